"""The room in which a session grows: whatever a command learns is entered here, in the session and on disk at once."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from perftool.records import (
    BatchFit,
    Block,
    Counters,
    Decision,
    Launch,
    Limits,
    MemoryParts,
    MemorySample,
    Patch,
    Record,
    Session,
    Settings,
    Stretch,
    TrainingRun,
    WallTime,
    WatchedBlock,
)
from perftool.store import NewVariant, NewWarning

_LISTS: dict[type[Record], str] = {
    Block: "blocks",
    WatchedBlock: "watched_blocks",
    MemorySample: "memory_samples",
    Launch: "launches",
    Counters: "counters",
    TrainingRun: "training_runs",
    Decision: "decisions",
    Stretch: "stretches",
}
_FACTS: dict[type[Record], str] = {
    Limits: "limits",
    MemoryParts: "memory_parts",
    BatchFit: "batch_fit",
    Patch: "patch",
    WallTime: "wall",
}


class Ledger:
    """A session that grows. Nobody else adds to it."""

    def __init__(self, session: Session, append: Callable[[Record], None]) -> None:
        """`append` writes a line to disk; the session as it is now is the first."""
        self._begun, self._append = session, append
        self._lists = {name: list(getattr(session, name)) for name in (*_LISTS.values(), "variants", "warnings")}
        self._facts: dict[str, Record] = {}
        self._session: Session | None = session
        append(session)

    @property
    def session(self) -> Session:
        """All that there is by now. It does not grow: ask again."""
        if self._session is None:
            lists = {name: list(entries) for name, entries in self._lists.items()}
            self._session = replace(self._begun, **lists, **self._facts)
        return self._session

    def enter(self, *records: Record) -> None:
        """Add records, each to those of its kind; of facts, such as limits or the patch, there is one, the last."""
        for record in records:
            kind = type(record)
            if kind in _FACTS:
                self._session = None
                self._facts[_FACTS[kind]] = record
                self._append(record)
            else:
                self._add(_LISTS[kind], record, record)

    def variant(self, settings: Settings) -> int:
        """The number of the variant with these settings beyond the baseline's, made known where it is new."""
        variants = self._lists["variants"]
        if settings not in variants:
            self._add("variants", settings, NewVariant(settings=settings))
        return variants.index(settings)

    def another(self, settings: Settings) -> int:
        """The number of a further variant with settings that one has already, since it comes by them in another way."""
        self._add("variants", settings, NewVariant(settings=settings))
        return len(self._lists["variants"]) - 1

    def warn(self, text: str) -> None:
        """Add a warning for the report."""
        self._add("warnings", text, NewWarning(text=text))

    def _add(self, name: str, entry: Record | Settings | str, line: Record) -> None:
        self._session = None  # first, so that no interrupt can hide an entry
        self._lists[name].append(entry)
        self._append(line)
