"""perftool's side of a keeper: a user's command that runs, is stopped and continued as one, and is surely gone at the
end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from perftool.measure import keeper
from perftool.measure.tree import KILL_LIMIT_S, ProcessTree
from perftool.measure.view import View
from perftool.measure.waiting import readable

START_LIMIT_S = 30.0
END_LIMIT_S = KILL_LIMIT_S + 5.0
MARK = "PERFTOOL_LAUNCH"  # in the environment of every process of a command: which launch it belongs to


class NotStarted(Exception):
    """The command could not be started; the message is a sentence for the user."""


class Kept:
    """One launch of a user's command, below a keeper in a session of its own. It runs at once.

    May be started from any thread; not to be used by two at once, but for `kill`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        view: View | None = None,
        scratch: Sequence[Path] = (),
        leftovers: Sequence[Path] = (),
        show_output: bool = False,
    ) -> None:
        """environment: all of the command's. view: how it sees folders. scratch: folders that the keeper removes at
        the end. leftovers: more of them, which it removes if perftool is killed. show_output: let what the command
        prints appear on stderr; else its first and last megabyte are kept. Raises NotStarted.
        """
        launch = uuid.uuid4().hex
        self._output: IO[bytes] | None = None if show_output else _appended()
        self._ended: keeper.Ended | None = None
        self.view = view
        spec = keeper.Spec(
            command=list(command),
            environment={**environment, MARK: launch},
            folder=str(folder),
            output=None if self._output is None else self._output.fileno(),
            view=None if view is None else asdict(view),
            scratch=[str(path) for path in scratch],
            leftovers=[str(path) for path in leftovers],
        )
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._keeper = subprocess.Popen(
                [sys.executable, "-P", "-m", keeper.__name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *([] if spec.output is None else [spec.output])],
                start_new_session=True,
            )
        self.tree = ProcessTree(self._keeper.pid, f"{MARK}={launch}")
        self._channel = self._socket.makefile("rb")
        with contextlib.suppress(OSError):  # a keeper that is dead already says so below
            self._socket.sendall(json.dumps(asdict(spec)).encode() + b"\n")
        match self._hear(START_LIMIT_S):
            case keeper.Started(pid=pid):
                self.pid = pid
            case keeper.Failed(reason=reason):
                self.close()
                raise NotStarted(f"the command could not be started: {reason}")
            case _:
                self.close()
                raise NotStarted("the command could not be started: its keeper ended")

    def fileno(self) -> int:
        """For `select`: readable once the command has ended."""
        return self._socket.fileno()

    def ended(self, limit_s: float = 0.0) -> keeper.Ended | None:
        """How the command ended, waiting for it; None while it runs. All that it left behind is gone then, too.

        A keeper that was killed from outside looks like a command that was: all of it is killed here.
        """
        if self._ended is None:
            match self._hear(limit_s):
                case keeper.Ended() as ended:
                    self._ended = ended
                case "gone":
                    self._ended = keeper.Ended(code=-signal.SIGKILL, left=self.tree.kill())
        return self._ended

    def printed(self) -> str:
        """What the command has printed: all of it, or its beginning and its end. Empty when it was shown."""
        if self._output is None:
            return ""
        file = self._output.fileno()
        size = os.fstat(file).st_size
        left_out = size - keeper.HEAD_BYTES - keeper.TAIL_BYTES
        if left_out <= 0:
            return os.pread(file, size, 0).decode(errors="replace")
        head = os.pread(file, keeper.HEAD_BYTES, 0).decode(errors="replace")
        tail = os.pread(file, keeper.TAIL_BYTES, size - keeper.TAIL_BYTES).decode(errors="replace")
        return f"{head}\n[{left_out:,} bytes left out]\n{tail}"

    def kill(self) -> None:
        """Have all of it killed; `fileno` becomes readable. May be called from another thread."""
        with contextlib.suppress(OSError):
            self._socket.send(b".")
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Kill all of it, see it gone, and release everything. May be called again."""
        self.kill()
        try:
            self._keeper.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:  # stopped from outside, or waiting for what cannot be killed
            self._keeper.kill()
            self._keeper.wait()
        self.tree.kill()
        for resource in (self._channel, self._socket, self._output):
            if resource is not None:
                resource.close()

    def _hear(self, limit_s: float) -> keeper.Started | keeper.Failed | keeper.Ended | str | None:
        """What the keeper says next; None: nothing within the limit; "gone": it is dead."""
        if not readable([self._socket], limit_s):
            return None
        try:
            line = self._channel.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            return "gone"
        ((kind, fields),) = json.loads(line).items()
        said: keeper.Started | keeper.Failed | keeper.Ended = getattr(keeper, kind)(**fields)
        return said


def _appended() -> IO[bytes]:
    """A file without a name, which is appended to whoever writes."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    fcntl.fcntl(file, fcntl.F_SETFL, os.O_RDWR | os.O_APPEND)
    return file
