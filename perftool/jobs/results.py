"""The results folder while a job fills it. A full disk ends the writing, not the job."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from perftool.patch.texts import encoded_diff
from perftool.records import RecommendedSettings, Record, Session, Summary, to_json
from perftool.report import html, markdown
from perftool.store import SessionStore, StoreError


class Results:
    """A session's folder, written as far as the disk allows.

    unwritten: why something could not be written, as a sentence; nothing else is tried then.
    """

    def __init__(self, store: SessionStore, *, keeps: bool = False) -> None:
        """keeps: the folder holds a session already, which is gone on with."""
        self.store, self._keeps = store, keeps
        self.unwritten: str | None = None

    @property
    def folder(self) -> Path:
        return self.store.folder

    def attempt(self, write: Callable[[], None]) -> None:
        """Write something, which may raise StoreError."""
        if self.unwritten is not None:
            return
        try:
            write()
        except StoreError as error:
            self.unwritten = str(error)

    def append(self, record: Record) -> None:
        """Add to the journal."""
        self.attempt(partial(self.store.append, record))

    def write(self, session: Session, summary: Summary) -> None:
        """What others read: the session, the summary, and what is recommended."""
        self.attempt(partial(self.store.finish, session))
        self.attempt(partial(self.store.write, "summary.json", to_json(summary, indent=2)))
        if summary.recommendation is not None:
            # All that was measured: the baseline may have been moved by -s, or by the workload.
            measured = {**summary.baseline.settings, **summary.recommendation.settings}
            script = session.workload.script
            recommended = RecommendedSettings(
                workload=summary.workload,
                settings=measured,
                options={}
                if script is None
                else {name: script.options[name] for name in measured if name in script.options},
                device=summary.machine.device,
                loaders=[] if script is None else script.loader_kinds,
            )
            self.attempt(partial(self.store.write, "recommended.json", to_json(recommended, indent=2)))
            if summary.recommendation.script:
                self.attempt(partial(self.store.write, "recommended.py", summary.recommendation.script))
            advised, patch = summary.recommendation.patch, session.patch
            if advised is not None and advised.file is not None and patch is not None:
                self.attempt(partial(self.store.write, advised.file, encoded_diff(patch.diff, patch.files)))

    def draw(self, session: Session, summary: Summary) -> None:
        """The pages for people."""
        if self.unwritten is None:
            self.attempt(partial(self.store.write, "report.md", markdown.render(summary)))
            self.attempt(partial(self.store.write, "report.html", html.render(session, summary)))

    def discard(self) -> None:
        """Leave no folder in which nothing was measured."""
        if not self._keeps:
            self.store.discard()
