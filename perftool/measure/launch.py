"""The command's side of one worker process: start it, ask it, and make sure that it is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from time import monotonic, sleep
from typing import IO, Protocol, TypeVar

from perftool.measure import messages
from perftool.measure.waiting import readable
from perftool.probes import memory

STOP_LIMIT_S = 5.0
POLL_S = 0.0002

R = TypeVar("R")


class LaunchFailed(Exception):
    """A launch that can do no more. `kind` is "time" for one that did not answer, "died" for one whose process is gone,
    "ended" for one whose script is over, else what the worker said; `reason` is a sentence for the user."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class LiveLaunch(Protocol):
    """What a lab needs of a launch; a test scripts one without a process."""

    def ask(self, request: messages.Ask[R], limit_s: float) -> R:
        """Let it run, return its answer, and leave it stopped. Raises LaunchFailed; the launch is closed then."""

    def host_bytes(self) -> int | None:
        """High-water mark of the process, with its children's present size added; of one that has ended, what was last
        known."""

    def held_bytes(self) -> int | None:
        """What the process and its children hold now."""

    def reset_host_peak(self) -> None:
        """Begin the high-water mark again."""

    def kill(self) -> None:
        """Kill it and its children; whoever waits for its answer is told. May be called from another thread."""

    def close(self) -> None:
        """Kill it and release everything. May be called again."""


StartLaunch = Callable[[messages.LaunchSpec, dict[str, str]], LiveLaunch]


class ProcessLaunch:
    """A worker process in a process group of its own, stopped whenever it is not answering."""

    def __init__(self, spec: messages.LaunchSpec, environment: Mapping[str, str], *, show_output: bool = False) -> None:
        """Start the process. It waits for its first request before it imports anything heavy.

        To be called in the main thread: the kernel ends the worker with the thread that started it.
        show_output: let what the workload prints appear on stderr; else it is kept for the reason of a failure.
        """
        self._children_peak_bytes = 0
        ours, theirs = socket.socketpair()
        self._output: IO[bytes] | None = None if show_output else tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            self._process = subprocess.Popen(
                # -P keeps the working directory off the front of the path: its folders shadow nothing.
                [sys.executable, "-P", "-m", "perftool.measure.worker", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                env={**os.environ, **environment},
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        self._socket = ours
        self._channel = ours.makefile("rwb")
        self._send(messages.encode(spec))

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: messages.Ask[R], limit_s: float) -> R:
        self._signal(signal.SIGCONT)
        self._send(messages.encode(request))
        if not readable([self._socket], limit_s):
            reason = f"did not answer within {limit_s:.0f} s{self._last_words()}"
            self.close()
            raise LaunchFailed("time", reason)
        try:
            line = self._channel.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise LaunchFailed("died", self._death())
        reply = messages.decode_reply(line, request)
        if isinstance(reply, messages.Failed):
            self.close()
            raise LaunchFailed(reply.kind, reply.reason)
        if not isinstance(reply, messages.Finished | messages.Described):
            self._await_stop()
        return reply

    def host_bytes(self) -> int | None:
        own = memory.high_water_bytes(self.pid)
        self._children_peak_bytes = max(self._children_peak_bytes, memory.children_bytes(self.pid))
        return None if own is None else own + self._children_peak_bytes

    def held_bytes(self) -> int | None:
        own = memory.resident_bytes(self.pid)
        return None if own is None else own + memory.children_bytes(self.pid)

    def reset_host_peak(self) -> None:
        self._children_peak_bytes = 0
        memory.reset_high_water(self.pid)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self._process.wait()
        for resource in (self._channel, self._socket, self._output):
            if resource is not None:
                with contextlib.suppress(OSError):  # a broken channel cannot be flushed
                    resource.close()

    def _send(self, line: bytes) -> None:
        try:
            self._channel.write(line + b"\n")
            self._channel.flush()
        except (OSError, ValueError):
            raise LaunchFailed("died", self._death()) from None

    def _signal(self, number: int) -> None:
        # Once the leader has been waited for, its number may belong to somebody else.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _await_stop(self) -> None:
        """Return when the worker has really stopped, so that the next continue signal cannot overtake its stop."""
        deadline = monotonic() + STOP_LIMIT_S
        while monotonic() < deadline:
            found = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None and found.si_code == os.CLD_STOPPED:
                os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG)
                return
            if found is not None and found.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
                raise LaunchFailed("died", self._death())
            sleep(POLL_S)
        self.close()
        raise LaunchFailed("time", "did not stop between its blocks")

    def _ended(self) -> bool:
        """Whether the worker is a zombie; it is not waited for, so that its group can still be killed by number."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def _death(self) -> str:
        """Why a process that should have answered is gone."""
        deadline = monotonic() + STOP_LIMIT_S
        while monotonic() < deadline and not self._ended():
            sleep(POLL_S)
        words = self._last_words()
        self.close()
        code = self._process.returncode
        if code == -signal.SIGKILL:
            return f"its process was killed from outside, by the system if it ran out of memory{words}"
        if code is not None and code < 0:
            return f"its process died by {signal.Signals(-code).name}{words}"
        return f"its process ended with exit code {code}{words}"

    def _last_words(self) -> str:
        """The last line that the worker wrote, as evidence."""
        if self._output is None or self._output.closed:
            return ""
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, size - 2000))
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        return f"; last output: {lines[-1][:200]}" if lines else ""
