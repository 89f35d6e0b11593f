"""The keeper: a small process between perftool and a user's command, so that nothing of the command outlives perftool.

Started as `python -I keeper.py FD`; `kept.py` is the other side. One line comes in over the socket FD, a `Spec`. Two go
out: a `Started` or a `Failed`, and an `Ended`. The end of what comes in, by whatever death of perftool, means: kill.
Standard library only, and nothing of perftool: it has to start fast, and to be alive when all else is not.

Sources: prctl(2) for the subreaper, to whom every orphan of the command goes, whatever sessions it made, and for the
death signal; fallocate(2) for the hole in the output; see `view.py` for the private view of folders.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field
from time import monotonic, sleep
from typing import NamedTuple, NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2

HEAD_BYTES = TAIL_BYTES = 1 << 20  # of what the command prints; what is between them is not kept
TRIM_EVERY_S = 0.5
KILL_LIMIT_S = 10.0  # a process in an uninterruptible sleep cannot be killed; nobody waits for it for ever

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What to start, and how."""

    command: list[str]
    environment: dict[str, str]  # all of it
    folder: str
    output: int | None  # an open file in append mode; None: the keeper's own stderr
    scratch: list[str] = field(default_factory=list)  # folders to remove at the end
    leftovers: list[str] = field(default_factory=list)  # more of them, to remove when perftool is gone


@dataclass(frozen=True, kw_only=True)
class Started:
    pid: int


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The command could not be started; `reason` is a part of a sentence."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The command has ended, and everything it left behind has been killed."""

    code: int  # its exit code; the number of a signal, negative
    left: int  # processes that it left behind


class Stat(NamedTuple):
    """What /proc says of a process."""

    state: str
    parent: int
    start: int  # clock ticks since boot: with the pid, the identity of a process
    caught: int  # a bit for each signal up to 31 that it handles itself


def read_stat(pid: int) -> Stat | None:
    """None for a process that is gone."""
    try:
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError:
        return None
    try:
        text = os.read(file, 4096)
    except OSError:
        return None
    finally:
        os.close(file)
    fields = text[text.rindex(b")") + 2 :].split()  # the name before it may hold anything
    return Stat(fields[0].decode(), int(fields[1]), int(fields[19]), int(fields[31]))


def descendants(root: int) -> list[int]:
    """The living descendants of a process, parents before their children. A zombie is not alive; its children are not
    its own any more."""
    children: dict[int, list[int]] = {}
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        stat = read_stat(pid)
        if stat is not None and stat.state not in "ZX":
            children.setdefault(stat.parent, []).append(pid)
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def kill_descendants() -> int:
    """Kill everything below this process, and whatever it starts meanwhile. Returns how many there were."""
    killed: set[int] = set()
    deadline = monotonic() + KILL_LIMIT_S
    while (living := descendants(os.getpid())) and monotonic() < deadline:
        for pid in living:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed.update(living)
        sleep(0.001)
    return len(killed)


def trim(output: int) -> None:
    """Give back the disk space between the first and the last megabyte of a growing file. The command writes on in
    append mode and notices nothing."""
    size = os.fstat(output).st_size
    if size <= HEAD_BYTES + TAIL_BYTES:
        return
    mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    start, length = ctypes.c_int64(HEAD_BYTES), ctypes.c_int64(size - HEAD_BYTES - TAIL_BYTES)
    if _libc.fallocate(output, mode, start, length) != 0:
        os.ftruncate(output, HEAD_BYTES)  # a file system without holes keeps the beginning and what comes now


def main(control: socket.socket) -> None:
    """Keep one command. Returns when it and all its descendants are gone."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _leave)
    channel = control.makefile("rwb")
    spec = Spec(**json.loads(channel.readline() or "null") or sys.exit())
    try:
        try:
            process = subprocess.Popen(
                spec.command,
                env=spec.environment,
                cwd=spec.folder,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr if spec.output is None else spec.output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_keeper,
            )
        except OSError as error:
            _say(control, Failed(reason=f"{error.filename}: {error.strerror}"))
            return
        _say(control, Started(pid=process.pid))
        code = _watch(control, process, spec.output)
        if code is not None:
            _say(control, Ended(code=code, left=kill_descendants()))
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        kill_descendants()
        for folder in spec.scratch + (spec.leftovers if _gone(control) else []):
            _remove(folder)


def _watch(control: socket.socket, process: subprocess.Popen[bytes], output: int | None) -> int | None:
    """The command's exit code once it ends; None once perftool is gone, or has said that it has had enough."""
    ours, theirs = socket.socketpair()

    def reap() -> None:
        # In a thread of its own, so that no stop and no continue of the command wakes this process.
        with theirs, contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, 0)
                if pid == process.pid:
                    process.returncode = os.waitstatus_to_exitcode(status)
                    with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
                        theirs.send(b"!")

    threading.Thread(target=reap, daemon=True).start()
    while True:
        ready, _, _ = select.select([control, ours], [], [], TRIM_EVERY_S)
        if output is not None:
            trim(output)
        if ours in ready:
            return process.returncode
        if control in ready:
            return None


def _die_with_keeper() -> None:
    """In the command, before it is one: should the keeper be killed, the kernel kills at least its first process."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _say(control: socket.socket, what: Started | Failed | Ended) -> None:
    with contextlib.suppress(OSError):  # perftool may be gone
        control.sendall(json.dumps({type(what).__name__: asdict(what)}).encode() + b"\n")


def _gone(control: socket.socket) -> bool:
    """Whether perftool has gone without a word."""
    try:
        return control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _leave(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def _remove(folder: str) -> None:
    """Remove a folder with everything in it, folders that forbid it included."""
    for root, names, _ in os.walk(folder):
        for path in (os.path.join(root, name) for name in names):
            if not os.path.islink(path):
                with contextlib.suppress(OSError):
                    os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
