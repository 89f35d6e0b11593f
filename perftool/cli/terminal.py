"""The terminal as what a job talks to."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from perftool.cli.interrupts import interruptible
from perftool.cli.output import Format, print_out, rendered, say, width
from perftool.cli.progress import Watcher, watching

if TYPE_CHECKING:
    from perftool.jobs.front import Measured
    from perftool.records import TraceReport


class Terminal:
    """Answers on stdout, everything else on stderr. A Front of jobs."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._as_json, self._quiet = as_json, quiet

    @contextmanager
    def watching(self) -> Iterator[Watcher]:
        with watching(self._quiet) as watcher, interruptible():
            yield watcher

    def say(self, text: str) -> None:
        say(text)

    def measured(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def answer(self, answer: Measured | TraceReport) -> None:
        from perftool.records import TraceReport, to_json
        from perftool.report.terminal import render_trace

        if not isinstance(answer, TraceReport):
            form = Format.json if self._as_json else Format.terminal
            print_out(rendered(answer.session, answer.summary, form))
        elif self._as_json:
            print_out(to_json(answer, indent=2).decode())
        else:
            print_out(render_trace(answer, width=width()))
