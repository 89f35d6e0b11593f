"""Progress while a command measures, on stderr: the watcher, and the live table of a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from perftool.cli.output import say

if TYPE_CHECKING:
    from rich.progress import Progress

    from perftool.analysis.search import Standing

_NO_DIGITS = str.maketrans("", "", "0123456789")


class Watcher:
    """Progress on stderr: a bar on a terminal, a line now and then elsewhere, nothing where it is not wanted."""

    LINE_EVERY_S = 10.0  # and whenever something else is done

    def __init__(self, progress: Progress | None, lines: bool) -> None:
        self._progress, self._lines = progress, lines
        self._task = progress.add_task("", total=None) if progress else None
        self._said_s = -self.LINE_EVERY_S
        self._phase = ""
        self.standings: Sequence[Standing] = ()

    def show(self, standings: Sequence[Standing]) -> None:
        from perftool.report.wording import standing_text

        self.standings = standings
        if self._lines and standings and standings[0].settings:
            say(f"best so far: {standing_text(standings[0])}")

    def update(self, text: str, done_s: float, left_s: float) -> None:
        from perftool.units import duration

        left = f"about {duration(left_s * 1e9)} left" if left_s else ""
        if self._progress is not None and self._task is not None:
            total_s = done_s + left_s or None
            self._progress.update(self._task, description=text, completed=done_s, total=total_s, left=left)
        phase = text.translate(_NO_DIGITS)
        if self._lines and (phase != self._phase or done_s - self._said_s >= self.LINE_EVERY_S):
            self._said_s, self._phase = done_s, phase
            say(f"{text}; {left}" if left else text)


@contextmanager
def watching(quiet: bool) -> Iterator[Watcher]:
    if quiet or not sys.stderr.isatty():
        yield Watcher(None, lines=not quiet)
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    from perftool.report.terminal import standings_table

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[left]}"),
    )
    progress = Progress(*columns)
    watcher = Watcher(progress, lines=False)

    def drawn() -> Group:
        return Group(*([standings_table(watcher.standings)] if watcher.standings else []), progress)

    with Live(get_renderable=drawn, console=Console(stderr=True), transient=True):
        yield watcher
