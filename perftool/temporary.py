"""Temporary folders; of a perftool that was killed the next one removes them, as nobody holds their lock any more.

Standard library only: the keeper has it, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX, LOCK = "perftool-", "lock"


class Temporary:
    """A folder of this process, to be closed. Nothing else in it may be called LOCK."""

    def __init__(self, base: Path | None = None) -> None:
        """base: the folder that it is made in; None: where temporary files belong. Raises OSError."""
        base = Path(tempfile.gettempdir()) if base is None else base
        _sweep(base)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        new = self.path / f"{LOCK}.new"
        self._lock = new.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # which goes with its holder, by whatever death
        new.rename(self.path / LOCK)

    def close(self) -> None:
        """Remove it. May be called again."""
        remove(self.path)
        self._lock.close()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder. Raises OSError."""
    with contextlib.closing(Temporary()) as own:
        folder = own.path / "folder"
        folder.mkdir()
        yield folder


def _sweep(base: Path) -> None:
    """Remove what a perftool has left that was killed."""
    for lock in base.glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError), lock.open() as file:  # BlockingIOError: its holder lives
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(lock.parent)


def remove(folder: str | Path) -> None:
    """Remove a folder with everything in it; an overlay leaves some that nobody may enter."""
    for root, names, _ in os.walk(folder):
        for path in (os.path.join(root, name) for name in names):
            if not os.path.islink(path):
                with contextlib.suppress(OSError):
                    os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
