"""The only file that touches the results folder: sessions are written as they grow, and read back."""

from __future__ import annotations

import errno
import fcntl
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

from perftool.records import Block, Decision, Launch, Record, SchemaError, Session, TrainingRun, from_json, to_json

SESSION = "session.json"
JOURNAL = "journal.jsonl"
LEAST_FREE_BYTES = 64_000_000
LOCK = "perftool.lock"

_Entry = Block | Launch | TrainingRun | Decision


class StoreError(Exception):
    """Results that cannot be written or read; the text says why and what to do."""


class SessionStore:
    """One session's folder. The journal grows while measuring; `finish` puts one document in its place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, record: Record) -> None:
        """Add the session's header, first, or one of its records to the journal. Raises StoreError on a full disk;
        what was written before stays readable."""
        try:
            with (self.folder / JOURNAL).open("ab") as journal:
                journal.write(to_json(record) + b"\n")
        except OSError as error:
            raise StoreError(_unwritable(self.folder, error)) from error

    def finish(self, session: Session) -> None:
        """Write the whole session and remove the journal."""
        self.write(SESSION, to_json(session))
        with suppress(OSError):
            (self.folder / JOURNAL).unlink()

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file whole or not at all."""
        target = self.folder / name
        partial = target.with_name(f".{name}.partial")
        try:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
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


def open_results(out: Path, workload: str, command: str) -> SessionStore:
    """Make `out/<UTC>-<workload>-<command>/`. Raises StoreError where that cannot be written, or space is short."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name = re.sub(r"[^A-Za-z0-9]+", "-", workload.removesuffix(".py").replace(".py:", "-")).strip("-")[-60:]
    for attempt in range(100):
        folder = out / (f"{stamp}-{name}-{command}" + (f"-{attempt + 1}" if attempt else ""))
        try:
            folder.mkdir(parents=True)
            free_bytes = shutil.disk_usage(folder).free
        except FileExistsError:
            if out.exists() and not out.is_dir():
                raise StoreError(f"{out} is a file; name a folder with --out") from None
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
    raise StoreError(f"{out} has too many sessions of this second")


def load_session(path: Path) -> Session:
    """A session from its folder or its file; from the journal where the command was killed before it could finish.

    Raises StoreError for what is no session.
    """
    if not path.exists():
        raise StoreError(f"there is no {path}; give a session's folder, or its {SESSION}")
    document = path / SESSION if path.is_dir() else path
    try:
        if document.is_file() and document.name != JOURNAL:
            return from_json(document.read_bytes(), Session)
        journal = path / JOURNAL if path.is_dir() else path
        if journal.is_file():
            return _from_journal(journal)
    except SchemaError as error:
        raise StoreError(f"{document}: {error}") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    raise StoreError(f"{path} holds neither {SESSION} nor {JOURNAL}, so it is no session of perftool")


def _from_journal(path: Path) -> Session:
    header, *lines = path.read_bytes().split(b"\n")
    session = replace(from_json(header, Session), interrupted=True)
    decode = msgspec.json.Decoder(_Entry).decode
    for line in lines:
        try:
            entry = decode(line)
        except msgspec.DecodeError:
            break  # the line that was being written when the end came
        match entry:
            case Block():
                session.blocks.append(entry)
            case Launch():
                session.launches.append(entry)
            case TrainingRun():
                session.training_runs.append(entry)
            case Decision():
                session.decisions.append(entry)
    return session


@contextmanager
def measuring_lock(on_wait: Callable[[str], None]) -> Iterator[None]:
    """Only one perftool measures on a machine at a time. A second one says so once, and waits."""
    path = Path(tempfile.gettempdir()) / LOCK
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with suppress(OSError):
            os.chmod(path, 0o666)  # other users wait for it, too
    except OSError as error:
        on_wait(f"{path} cannot be opened ({error.strerror}), so another perftool may measure at the same time")
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            on_wait(f"another perftool is measuring here (process {holder}); waiting for it to end")
            fcntl.flock(handle, fcntl.LOCK_EX)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _unwritable(folder: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"the disk of {folder} is full; free some space, or name another folder with --out"
    return f"{folder} cannot be written ({error.strerror}); name another folder with --out"
