"""The keeper: a small process between perftool and a user's command, so that nothing of the command outlives perftool.

Started as `python -P -m perftool.measure.keeper FD`; `kept.py` is the other side. One line comes in over the socket
FD, a `Spec`. Two go out: a `Started` or a `Failed`, and an `Ended`. The end of what comes in, by whatever death of
perftool, means: kill. Standard library only, so that it starts fast and takes little beside what is measured.

Sources: prctl(2) for the subreaper, to whom every orphan of the command goes, whatever sessions it made, and for the
death signal; fallocate(2) for the hole in the output; see `view.py` for the private view of folders.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from perftool.measure.tree import ProcessTree
from perftool.measure.view import Refused, View, enter
from perftool.temporary import remove

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2

HEAD_BYTES = TAIL_BYTES = 1 << 20  # of what the command prints; what is between them is not kept
TRIM_EVERY_S = 0.5

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What to start, and how."""

    command: list[str]
    environment: dict[str, str]  # all of it
    folder: str
    output: int | None  # an open file in append mode; None: the keeper's own stderr
    view: dict[str, Any] | None = None  # the fields of a View; the command starts within it
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
    tree = ProcessTree(os.getpid())
    try:
        try:
            process = _start(spec)
        except Refused as error:
            _say(control, Failed(reason=str(error)))
            return
        except OSError as error:
            _say(control, Failed(reason=f"{error.filename}: {error.strerror}"))
            return
        _say(control, Started(pid=process.pid))
        code = _watch(control, process, spec.output)
        if code is not None:
            _say(control, Ended(code=code, left=tree.kill()))
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(TimeoutError, ChildProcessError):  # what cannot be killed is not waited for
            tree.kill()
            while True:  # not every first process of a container waits for what it is left with
                os.waitpid(-1, 0)
        for folder in spec.scratch + (spec.leftovers if _gone(control) else []):
            remove(folder)


def _start(spec: Spec) -> subprocess.Popen[bytes]:
    """Start the command within its view. Raises OSError, and Refused if the view cannot be had."""
    reason, reasons = os.pipe()

    def prepare() -> None:  # in the command, before it is one
        try:
            if spec.view is not None:
                enter(View(**spec.view), spec.folder)
            # Should the keeper be killed, the kernel kills at least this one. Last: new credentials take it back.
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        except (Refused, OSError) as error:
            os.write(reasons, str(error).encode())
            raise

    with open(reason, "rb") as told, open(reasons, "wb"):
        try:
            return subprocess.Popen(
                spec.command,
                env=spec.environment,
                cwd=spec.folder,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr if spec.output is None else spec.output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=prepare,
            )
        except subprocess.SubprocessError:
            raise Refused(told.read1().decode()) from None


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


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
