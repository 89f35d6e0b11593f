"""A user's command as the tree of processes that it is: stopped, continued and killed as one.

Every process below the command's keeper belongs to it, whatever sessions and process groups it made; an orphan goes to
the keeper and so stays in the tree (`keeper.py`). Read from /proc, without psutil: a tree is stopped and continued for
every block that is timed.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from time import monotonic, sleep

from perftool.measure.keeper import Stat, read_stat

STOP_LIMIT_S = 5.0
KILL_LIMIT_S = 10.0
POLL_S = 0.0002
REUSE_S = 1.0  # no process number comes back so soon: all the others have their turn first
AT_REST = "TtDZX"  # D: in the kernel; a stop signal that waits for it there takes it before its next instruction


class ProcessTree:
    """All descendants of a process, that one excluded."""

    def __init__(self, root: int, mark: str | None = None) -> None:
        """root: the keeper. mark: "NAME=value" in the environment of all of them, by which `kill` finds what was
        orphaned after the keeper had died."""
        self._root = root
        self._mark = mark
        self._members: dict[int, int] = {}  # pid to start time; parents before their children
        self._listed: set[str] = set()  # the names in /proc that have been looked at
        self._scanned_s = 0.0
        self._stopped: list[int] = []

    def pids(self) -> list[int]:
        """The processes of the tree, parents before their children, with zombies that nobody has waited for yet."""
        names = set(os.listdir("/proc"))
        now_s = monotonic()
        if now_s - self._scanned_s < REUSE_S:
            gone, new = _numbers(self._listed - names), _numbers(names - self._listed)
        else:  # a number may be somebody else's by now
            gone, new = [pid for pid, start in self._members.items() if _started(pid) != start], _numbers(names)
        self._scanned_s, self._listed = now_s, names
        for pid in gone:
            self._members.pop(pid, None)
        self._adopt({pid: stat for pid in new if (stat := read_stat(pid)) is not None})
        return list(self._members)

    def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """Stop all of it. When this returns, every first thread is at rest; the others of a process follow it within
        microseconds.

        Left alone is what catches the continue signal, for which being continued is not the same as not having been
        stopped. Raises TimeoutError; those that were stopped can be resumed then.
        """
        deadline = monotonic() + limit_s
        seen: set[int] = set()
        while fresh := [pid for pid in self.pids() if pid not in seen]:  # again: it may have forked meanwhile
            seen.update(fresh)
            stopping = [pid for pid in fresh if _stoppable(pid)]
            _signal(stopping, signal.SIGSTOP)
            self._stopped += stopping
            for pid in stopping:
                while (stat := read_stat(pid)) is not None and stat.state not in AT_REST:
                    if monotonic() > deadline:
                        raise TimeoutError(f"process {pid} of the command did not stop within {limit_s:g} s")
                    sleep(POLL_S)

    def resume(self) -> None:
        """Continue what `stop` has stopped, children before their parents."""
        _signal(reversed(self._stopped), signal.SIGCONT)
        self._stopped = []

    def kill(self, limit_s: float = KILL_LIMIT_S) -> int:
        """Kill all of it, and what it starts meanwhile, and see it gone. Returns how many there were.

        Raises TimeoutError, if a process is in an uninterruptible sleep.
        """
        deadline = monotonic() + limit_s
        killed: set[int] = set()
        while living := self._living():
            if monotonic() > deadline:
                raise TimeoutError(f"process {living[0]} of the command could not be killed within {limit_s:g} s")
            _signal(living, signal.SIGKILL)
            killed.update(living)
            sleep(POLL_S)
        return len(killed)

    def _living(self) -> list[int]:
        pids = self.pids()
        if self._mark is not None and _started(self._root) is None:
            marked = [pid for pid in _numbers(self._listed) if pid not in pids and _marked(pid, self._mark)]
            self._members |= {pid: start for pid in marked if (start := _started(pid)) is not None}
            pids = list(self._members)
        return [pid for pid in pids if _started(pid) is not None]

    def _adopt(self, found: dict[int, Stat]) -> None:
        """Take in those that descend from the root or from a member."""
        while more := [pid for pid, stat in found.items() if stat.parent == self._root or stat.parent in self._members]:
            self._members |= {pid: found.pop(pid).start for pid in more}


def _numbers(names: Iterable[str]) -> list[int]:
    return [int(name) for name in names if name.isdigit()]


def _started(pid: int) -> int | None:
    stat = read_stat(pid)
    return None if stat is None or stat.state in "ZX" else stat.start


def _stoppable(pid: int) -> bool:
    """Whether it lives, runs, and does not catch the continue signal."""
    stat = read_stat(pid)
    return stat is not None and stat.state not in "TtZX" and not stat.caught >> (signal.SIGCONT - 1) & 1


def _marked(pid: int, mark: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            return os.fsencode(mark) in file.readall().split(b"\0")
    except OSError:
        return False


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
