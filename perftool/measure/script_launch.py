"""The command's side of one launch of a script: start it, give it its turns, and make sure that all of it is gone.

Its processes find the launch by a file that the environment names; the one that makes steps, or each rank of several,
calls back over a socket. What is asked and answered is the same as with the worker of a Workload.
"""

from __future__ import annotations

import json
import select
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from time import monotonic
from typing import Any, TypeVar
from uuid import uuid4

from msgspec.structs import replace

from perftool.measure import messages
from perftool.measure.kept import Kept, NotStarted
from perftool.measure.launch import LaunchFailed
from perftool.probes import memory
from perftool.records import Block
from perftool.script.boot import SEEN, TORCH, TROUBLE
from perftool.script.boot import environment as hooked

HIDDEN_BY = ("-I", "-E", "-S")  # options of Python with which it does not come by perftool's hook
LAST_WORDS = 300  # characters of the last line that the command printed
ENDING_S = 10.0  # that a command may take to end once its script has

R = TypeVar("R")
StartKept = Callable[[Mapping[str, str]], Kept]
"""Starts the launch's command with these variables beyond the usual ones."""


class Rank:
    """One process that makes steps, and the socket to it."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.file = connection.makefile("rwb")
        hello = json.loads(self.file.readline())
        self.pid, self.number = int(hello["pid"]), int(hello["rank"])
        self.world_size = int(hello["world_size"])

    def close(self) -> None:
        for resource in (self.file, self.socket):
            with suppress(OSError):  # a broken connection cannot be flushed
                resource.close()


class ScriptLaunch:
    """A launch of the user's command; see `LiveLaunch`. Its processes stand still whenever it is not answering."""

    def __init__(
        self, spec: messages.LaunchSpec, command: Sequence[str], start: StartKept, hook: Mapping[str, Any]
    ) -> None:
        """Nothing is started before the first question.

        command: what `start` starts, for messages. hook: what its processes are told; see `perftool.script.start`.
        """
        self._spec, self._command, self._start_kept, self._hook = spec, list(command), start, dict(hook)
        self._folder = Path(mkdtemp(prefix="perftool-"))
        self.kept: Kept | None = None  # while there are processes
        self._listener: socket.socket | None = None
        self._ranks: list[Rank] = []
        self._children_peak_bytes = 0
        self._is_killed = False

    # -------------------------------------------------------------------------------------------------------- asking

    def ask(self, request: messages.Ask[R], limit_s: float) -> R:
        deadline_s = monotonic() + limit_s
        if isinstance(request, messages.Train):  # each from the beginning, with its own seed
            self._stop_all()
            self._begin({**self._hook, "seed": request.seed, "keeps_losses": True}, deadline_s)
        elif self.kept is None:
            self._begin(self._hook, deadline_s)
        else:
            self.kept.tree.resume()
        line = messages.encode(request)
        try:
            for rank in self._ranks:
                rank.file.write(line + b"\n")
                rank.file.flush()
        except OSError:
            raise self._gone() from None
        lines = [self._line(rank, deadline_s) for rank in self._ranks]
        assert self.kept is not None
        try:
            self.kept.tree.stop()
        except TimeoutError as error:
            self.close()
            raise LaunchFailed("time", f"it did not stop between its blocks: {error}") from error
        replies: list[R] = []
        for line in lines:
            reply = messages.decode_reply(line, request)
            if isinstance(reply, messages.Failed):
                self.close()
                raise LaunchFailed(reply.kind, reply.reason)
            replies.append(reply)
        return _of_ranks(replies)

    def _line(self, rank: Rank, deadline_s: float) -> bytes:
        """What a rank replies. Raises LaunchFailed where it fails, ends, or does not reply in time."""
        assert self.kept is not None
        while True:
            ready = _ready([rank.socket, self.kept], max(0.0, deadline_s - monotonic()))
            if rank.socket in ready:
                break
            if ready:
                raise self._gone()
            limit_s = deadline_s - monotonic()
            raise self._given_up(f"did not answer in time ({-limit_s:.0f} s late){self._last_words()}")
        try:
            line = rank.file.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise self._gone()
        told = json.loads(line)
        if told["type"] == "ended":
            raise self._over(int(told["steps"]))
        return bytes(line)

    # ------------------------------------------------------------------------------------------------------ starting

    def _begin(self, hook: Mapping[str, Any], deadline_s: float) -> None:
        """Start the command, and wait until every process that makes steps has called."""
        # An abstract address: no path can be too long, and no view of folders hides it. Nobody guesses it.
        address = f"\0perftool-{uuid4().hex}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(address)
        self._listener.listen()
        told = self._folder / "launch.json"
        told.write_text(json.dumps({**hook, "address": address}), encoding="utf-8")
        try:
            self.kept = self._start_kept(hooked(str(told)))
        except NotStarted as error:
            self.close()
            raise LaunchFailed("reference", str(error)) from error
        while not self._ranks or len(self._ranks) < self._ranks[0].world_size:
            ready = _ready([self._listener, self.kept], max(0.0, deadline_s - monotonic()))
            if self._listener in ready:
                connection, _ = self._listener.accept()
                self._ranks.append(Rank(connection))
            elif ready:
                raise self._gone()
            else:
                missing = "" if not self._ranks else f" in {self._ranks[0].world_size - len(self._ranks)} of its ranks"
                raise self._given_up(f"took no step{missing}; {self._no_step()}{self._last_words()}")
        self._ranks.sort(key=lambda rank: rank.number)
        self._listener.close()  # whoever else makes steps goes on by itself

    def _no_step(self) -> str:
        """Why perftool has seen no step."""
        hidden = [option for option in HIDDEN_BY if option in self._command]
        trouble = self._folder / f"launch.json{TROUBLE}"
        if trouble.is_file():
            return f"perftool could not get into it: {trouble.read_text(encoding='utf-8').strip().splitlines()[-1]}"
        if not (self._folder / f"launch.json{SEEN}").is_file():
            if hidden:
                return f"its Python runs with {hidden[0]}, which keeps perftool out; leave that out while measuring"
            return "no Python of it could be entered by PYTHONPATH: is it one, and not started with -I, -E or -S?"
        if not (self._folder / f"launch.json{TORCH}").is_file():
            return "none of its processes has imported torch"
        return (
            "nothing in it called backward or an optimizer's step; say where a step ends by `import perftool` and "
            "`perftool.step()`"
        )

    # -------------------------------------------------------------------------------------------------------- ending

    def _over(self, steps: int) -> LaunchFailed:
        """The script has come to its end."""
        assert self.kept is not None
        ended = self.kept.ended(ENDING_S)
        code = 0 if ended is None else ended.code
        words = self._last_words()
        self.close()
        if code:
            return LaunchFailed("training", f"{_told(code)} after {steps} steps{words}")
        return LaunchFailed("ended", f"the script was over after {steps} steps; let it run longer, such as more epochs")

    def _gone(self) -> LaunchFailed:
        """The command has ended, or the process that was asked."""
        assert self.kept is not None
        if self._is_killed:
            self.close()
            return LaunchFailed("died", "it was ended")
        self.kept.tree.resume()
        ended = self.kept.ended(ENDING_S)
        words = self._last_words()
        if not self._ranks:
            why = self._no_step()
            self.close()
            if ended is not None and ended.code:
                return LaunchFailed("training", f"{_told(ended.code)} before its first step{words}")
            return LaunchFailed("training", f"the command ended without a step: {why}{words}")
        self.close()
        if ended is None:
            return LaunchFailed("died", f"its training process ended{words}")
        return LaunchFailed("died", f"{_told(ended.code)}{words}")

    def _given_up(self, reason: str) -> LaunchFailed:
        self.close()
        return LaunchFailed("time", reason)

    def _last_words(self) -> str:
        """The last line that the command printed, as evidence."""
        lines = self.kept.printed().strip().splitlines() if self.kept is not None else []
        return f"; last output: {lines[-1][:LAST_WORDS]}" if lines else ""

    # -------------------------------------------------------------------------------------------------------- memory

    def host_bytes(self) -> int | None:
        own = [memory.high_water_bytes(rank.pid) for rank in self._ranks]
        self._children_peak_bytes = max(self._children_peak_bytes, self._children_bytes())
        return sum(one or 0 for one in own) + self._children_peak_bytes if any(own) else None

    def held_bytes(self) -> int | None:
        own = [memory.resident_bytes(rank.pid) for rank in self._ranks]
        return sum(one or 0 for one in own) + self._children_bytes() if any(own) else None

    def _children_bytes(self) -> int:
        return sum(memory.children_bytes(rank.pid) for rank in self._ranks)

    def reset_host_peak(self) -> None:
        self._children_peak_bytes = 0
        for rank in self._ranks:
            memory.reset_high_water(rank.pid)

    # ------------------------------------------------------------------------------------------------------- closing

    def kill(self) -> None:
        self._is_killed = True
        if self.kept is not None:
            self.kept.kill()

    def close(self) -> None:
        self._stop_all()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _stop_all(self) -> None:
        for rank in self._ranks:
            rank.close()
        self._ranks = []
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self.kept is not None:
            self.kept.close()
            self.kept = None
        for left in (f"launch.json{SEEN}", f"launch.json{TORCH}", f"launch.json{TROUBLE}"):
            with suppress(OSError):
                (self._folder / left).unlink()


def _told(code: int) -> str:
    """How a command ended."""
    return f"its command was ended by signal {-code}" if code < 0 else f"its command ended with exit code {code}"


def _of_ranks(replies: Sequence[R]) -> R:
    """One reply for all ranks: those of a block go as the slowest, and learn from the samples of all."""
    first = replies[0]
    if not isinstance(first, Block):
        return first
    blocks = [block for block in replies if isinstance(block, Block)]
    if len(blocks) == 1:
        return first
    return replace(
        max(blocks, key=lambda block: block.wall_ns),
        samples=sum(block.samples for block in blocks),
        alone_ns=[ns for block in blocks for ns in block.alone_ns],
        rank_wall_ns=[block.wall_ns for block in blocks],
        rank_steps=[block.steps for block in blocks],
    )


def _ready(channels: Sequence[socket.socket | Kept], limit_s: float) -> list[socket.socket | Kept]:
    """Those of which there is something to read within the limit."""
    return select.select(channels, [], [], limit_s)[0]
