"""The only file that touches the results folder: sessions are written as they grow, and read back.

While measuring, a session is a journal: its header, then a line for each record, so that a kill loses nothing that was
written. At its end the journal gives way to one document.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec.structs import replace

from perftool.records import (
    BatchFit,
    Block,
    Counters,
    Decision,
    HistoryEntry,
    Launch,
    Limits,
    MemoryParts,
    MemorySample,
    Patch,
    Record,
    SchemaError,
    Session,
    Settings,
    StoredBaseline,
    StoredMetric,
    Stretch,
    TrainingRun,
    WallTime,
    WatchedBlock,
    from_json,
    to_json,
)

SESSION = "session.json"
JOURNAL = "journal.jsonl"
LEAST_FREE_BYTES = 64_000_000
MARGIN_MOST = 1.0  # of a stored baseline: twice as much
LOG_VALUE_MOST = 50.0  # likewise: e^50 bytes are more than there are
LOCK = Path("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()) / "perftool.lock"  # one for all users


class NewVariant(Record, frozen=True, kw_only=True, tag="variant"):
    """A journal line: a variant that became known after the header was written."""

    settings: Settings


class NewWarning(Record, frozen=True, kw_only=True, tag="warning"):
    """A journal line: a warning that came after the header was written."""

    text: str


_Entry = (
    Block
    | WatchedBlock
    | Limits
    | MemorySample
    | MemoryParts
    | BatchFit
    | Patch
    | WallTime
    | Stretch
    | Launch
    | Counters
    | TrainingRun
    | Decision
    | NewVariant
    | NewWarning
)


class StoreError(Exception):
    """Results that cannot be written or read; the text says why and what to do."""


class SessionStore:
    """One session's folder. The journal grows while measuring; `finish` puts one document in its place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, record: Record) -> None:
        """Add the session's header, first, or a line on what it has gained since to the journal.

        Raises StoreError on a full disk; what was written before stays readable.
        """
        if isinstance(record, Session):
            self._begin(record)
            return
        try:
            _append(self.folder / JOURNAL, to_json(record) + b"\n")
        except OSError as error:
            raise StoreError(_unwritable(self.folder, error)) from error

    def _begin(self, session: Session) -> None:
        """A new journal. That of a session which is gone on with begins with all that it holds."""
        self.write(JOURNAL, to_json(session) + b"\n")
        with suppress(OSError):
            (self.folder / SESSION).unlink()

    def finish(self, session: Session) -> None:
        """Write the whole session and remove the journal. Raises StoreError where that fails; the journal stays."""
        self.write(SESSION, to_json(session))
        with suppress(OSError):
            (self.folder / JOURNAL).unlink()

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file whole or not at all, in a folder within the session's where its name says so.

        Raises StoreError.
        """
        target = self.folder / name
        partial = target.with_name(f".{target.name}.partial")
        try:
            target.parent.mkdir(exist_ok=True)
            with partial.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())  # the rename must not reach the disk before the content
            partial.replace(target)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise StoreError(_unwritable(self.folder, error)) from error

    def discard(self) -> None:
        """Remove a folder in which nothing was measured."""
        with suppress(OSError):
            (self.folder / JOURNAL).unlink(missing_ok=True)
            self.folder.rmdir()


def open_results(out: Path, workload: str, command: str, now: datetime | None = None) -> SessionStore:
    """Make `out/<UTC>-<workload>-<command>/`, unique even where two start in the same second.

    workload: a reference; its file or module and its attribute become part of the name.
    Raises StoreError where the folder cannot be written, or space is short.
    """
    stamp = (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    if out.exists() and not out.is_dir():
        raise StoreError(f"{out} is a file; name a folder with --out")
    for attempt in range(1, 100):
        folder = out / (f"{stamp}-{_slug(workload)}-{command}" + (f"-{attempt}" if attempt > 1 else ""))
        try:
            folder.mkdir(parents=True)
            free_bytes = shutil.disk_usage(folder).free
        except FileExistsError:
            continue
        except OSError as error:
            raise StoreError(_unwritable(out, error)) from error
        if free_bytes < LEAST_FREE_BYTES:
            folder.rmdir()
            raise StoreError(
                f"there are only {free_bytes // 1_000_000} MB free for {out}, and a session may need "
                f"{LEAST_FREE_BYTES // 1_000_000}; free some, or name another folder with --out"
            )
        return SessionStore(folder)
    raise StoreError(f"{out} has too many sessions of this second; wait for the next one")


def load_session(path: Path) -> Session:
    """A session from its folder or its file; from the journal, as interrupted, where the command was killed.

    Raises StoreError for what is no session, is damaged, or is of a newer major version.
    """
    if not path.exists():
        raise StoreError(f"there is no {path}; give a session's folder, or its {SESSION}")
    names = [SESSION, JOURNAL] if path.is_dir() else [path.name]
    folder = path if path.is_dir() else path.parent
    document = next((folder / name for name in names if (folder / name).is_file()), None)
    if document is None:
        raise StoreError(f"{path} holds neither {SESSION} nor {JOURNAL}, so it is no session of perftool")
    try:
        content = document.read_bytes()
        session = from_json(content, Session) if document.suffix == ".json" else _from_journal(content)
        _check_references(session)
    except SchemaError as error:
        raise StoreError(f"{document}: {error}") from error
    except OSError as error:
        raise StoreError(f"{document} cannot be read: {error.strerror}") from error
    return session


def try_out(path: Path, option: str, *, appends: bool) -> None:
    """Find out before anything is measured whether a file can be written, without making it. Raises StoreError.

    appends: to the file as it is; else a new one takes its place, for which its folder must be writable.
    """
    try:
        if path.exists():
            path.open("ab").close()
            if appends:
                return
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{parent} is no folder")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"{parent} is not writable")
    except OSError as error:
        raise _not_writable(path, option, error.strerror) from error


def _not_writable(path: Path, option: str, why: str | None) -> StoreError:
    return StoreError(f"{option} {path}: it cannot be written ({why}); name another file")


def append_history(path: Path, entry: HistoryEntry) -> None:
    """Add a line to a history. Raises StoreError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, to_json(entry) + b"\n")
    except OSError as error:
        raise _not_writable(path, "--history", error.strerror) from error


def load_history(path: Path, on_damage: Callable[[str], None] = lambda _: None) -> list[HistoryEntry]:
    """The entries of a history, in the order written. Raises StoreError where the file cannot be read.

    on_damage: called with a sentence that names a line which is left out.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read ({error.strerror}); `perftool check --against REV --history {path}` begins one"
        ) from error
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(from_json(line, HistoryEntry))
        except SchemaError as error:
            on_damage(f"{path}, line {number} is left out: {error if line.strip() else 'it is blank'}")
    return entries


def save_baseline(path: Path, baseline: StoredBaseline) -> None:
    """Write a stored baseline, whole or not at all. Raises StoreError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        SessionStore(path.parent).write(path.name, to_json(baseline, indent=2) + b"\n")
    except (OSError, StoreError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        why = cause.strerror if isinstance(cause, OSError) else str(error)
        raise _not_writable(path, "--baseline", why) from error


def load_baseline(path: Path) -> StoredBaseline:
    """Raises StoreError for what is no stored baseline, and for numbers that none can have."""
    try:
        found = from_json(path.read_bytes(), StoredBaseline)
    except OSError as error:
        raise StoreError(
            f"--baseline {path}: it cannot be read ({error.strerror}); write it with --write-baseline"
        ) from error
    except SchemaError as error:
        raise StoreError(f"--baseline {path}: {error}") from error
    for name, metric in found.metrics.items():
        wrong = _impossible(metric)
        if wrong is not None:
            raise StoreError(f"--baseline {path}: {name} has {wrong}; write it again with --write-baseline")
    return found


def _impossible(metric: StoredMetric) -> str | None:
    """What a metric of a stored baseline cannot be, as in a file that was edited."""
    if not 0 < metric.margin <= MARGIN_MOST:
        return f"the margin {metric.margin:g}, and a margin lies above 0 and is at most {MARGIN_MOST:g}"
    if not metric.log_values:
        return "no values"
    worst = max(metric.log_values, key=abs)
    if abs(worst) > LOG_VALUE_MOST:
        return f"the value {worst:g}, and values are logarithms, which lie within {LOG_VALUE_MOST:g} of 0"
    return None


def baseline_path(out: Path, workload: str) -> Path:
    """Where a workload's baseline is stored unless it is said."""
    return out / "baselines" / f"{_slug(workload)}.json"


def shown(folder: Path) -> str:
    """How a person names the folder from where they are: within the working folder by what leads on from it."""
    try:
        whole, here = folder.resolve(), Path.cwd().resolve()
    except OSError:  # the working folder is gone
        return str(folder)
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(whole)


def reopen(path: Path) -> tuple[SessionStore, Session]:
    """An interrupted session, to be gone on with in its folder. Raises StoreError where there is none."""
    return SessionStore(path if path.is_dir() else path.parent), load_session(path)


def _from_journal(content: bytes) -> Session:
    header, *lines = content.split(b"\n")
    session = replace(from_json(header, Session), interrupted=True)
    decode = msgspec.json.Decoder(_Entry).decode
    launches = {launch.launch: launch for launch in session.launches}
    for number, line in enumerate(lines[:-1], 2):  # after the last newline: nothing, or a line cut short by the end
        try:
            entry = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SchemaError(f"line {number} is damaged: {error}") from error
        match entry:
            case Block():
                session.blocks.append(entry)
            case WatchedBlock():
                session.watched_blocks.append(entry)
            case Limits():
                session = replace(session, limits=entry)
            case MemorySample():
                session.memory_samples.append(entry)
            case MemoryParts():
                session = replace(session, memory_parts=entry)
            case BatchFit():
                session = replace(session, batch_fit=entry)
            case Patch():
                session = replace(session, patch=entry)
            case WallTime():
                session = replace(session, wall=entry)
            case Stretch():
                session.stretches.append(entry)
            case Launch():
                launches[entry.launch] = entry  # one may be written when it starts, and again when it ends
            case Counters():
                session.counters.append(entry)
            case TrainingRun():
                session.training_runs.append(entry)
            case Decision():
                session.decisions.append(entry)
            case NewVariant():
                session.variants.append(entry.settings)
            case NewWarning():
                session.warnings.append(entry.text)
    return replace(session, launches=list(launches.values()))


def _check_references(session: Session) -> None:
    known = len(session.variants)
    named = {launch.variant for launch in session.launches} | {run.variant for run in session.training_runs}
    for variant in named - set(range(known)):
        raise SchemaError(f"damaged: it speaks of variant {variant}, and has {known}")


def _slug(workload: str) -> str:
    """`folder/train.py:big` as train-big."""
    short = re.sub(r".*[/\\]", "", workload).replace(".py:", "-")
    return re.sub(r"[^A-Za-z0-9]+", "-", short).strip("-")[-60:].lstrip("-") or "workload"


def _append(path: Path, content: bytes) -> None:
    """All of it or nothing, so that a full disk leaves no half line in the middle."""
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


@contextmanager
def measuring_lock(on_wait: Callable[[str], None], path: Path = LOCK) -> Iterator[None]:
    """Only one perftool measures on a machine at a time. A second one says so once, and waits.

    on_wait: called with a sentence that names the process that is waited for, or with why there is no lock.
    """
    import fcntl  # here, so that a report can be drawn again where there is none

    try:
        handle = _open_lock(path)
    except OSError as error:
        on_wait(f"{path} cannot be opened ({error.strerror}), so another perftool may measure at the same time")
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            on_wait(f"another perftool is measuring here (process {holder}); waiting for it to end")
            fcntl.flock(handle, fcntl.LOCK_EX)
        with suppress(OSError):  # another user's file may be read-only to us: the lock holds all the same
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _open_lock(path: Path) -> int:
    """The lock file, open; made for every user where it is not there yet."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o666)
    except FileExistsError:
        # Without O_CREAT: Linux refuses that for another user's file in a sticky folder (fs.protected_regular).
        try:
            return os.open(path, os.O_RDWR | flags)
        except PermissionError:
            return os.open(path, os.O_RDONLY | flags)
    os.fchmod(handle, 0o666)  # whatever the umask
    return handle


def _unwritable(folder: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"the disk of {folder} is full; free some space, or name another folder with --out"
    return f"{folder} cannot be written ({error.strerror}); name another folder with --out"
