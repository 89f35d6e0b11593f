"""The command's side of one launch of a script: start it, give it its turns, and make sure that all of it is gone.

Its processes find the launch by a file that the environment names; the one that makes steps, or each rank of several,
calls back over a socket. What is asked and answered is the same as with the worker of a Workload.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import join
from time import monotonic
from typing import Any, TypeVar

from perftool.measure import messages
from perftool.measure.callers import Caller, Callers
from perftool.measure.keeper import Ended
from perftool.measure.kept import Kept, NotStarted
from perftool.measure.launch import LaunchFailed
from perftool.measure.steps import block_of
from perftool.measure.waiting import readable
from perftool.probes import memory
from perftool.script.boot import REFUSED, SEEN, TORCH, TROUBLE
from perftool.script.boot import environment as hooked

HOOK = "launch.json"  # what its processes are told
MEETING = "meeting"  # a folder of what only they share
TROUBLE_EVERY_S = 0.5  # it is looked whether one of them could not begin
LAST_WORDS = 300  # characters of the last line that the command printed
ENDING_S = 10.0  # that a command may take to end once its script has
OTHERS_HELD_S = 5.0  # that a process which makes steps, too, stands still: it may be the one that trains, or a peer
HELPER_ENDING_S = 3.0  # after which a process that has ended was only a helper, for the command goes on

R = TypeVar("R")
StartKept = Callable[[Mapping[str, str]], Kept]
"""Starts the launch's command with these variables beyond the usual ones."""


class ScriptLaunch:
    """A launch of the user's command; see `LiveLaunch`. Its processes stand still whenever it is not answering."""

    def __init__(
        self,
        spec: messages.LaunchSpec,
        command: Sequence[str],
        start: StartKept,
        hook: Mapping[str, Any],
        folder: Path,
    ) -> None:
        """Nothing is started before the first question.

        command: what `start` starts, for messages. hook: what its processes are told; see `perftool.script.start`.
        folder: an empty one for what they are told and leave, which is removed at the end.
        """
        self._spec, self._command, self._start_kept, self._hook = spec, list(command), start, dict(hook)
        self._folder = folder
        self.kept: Kept | None = None  # while there are processes
        self._callers: Callers | None = None
        self._ranks: list[Caller] = []
        self._children_peak_bytes = 0
        self._is_killed = False
        self.passed_over = 0  # processes that made steps, and ended before the one that trains
        self.others = 0  # that made steps beside it, and are no ranks of it

    @property
    def ranks(self) -> int:
        """Processes that train together."""
        return self._ranks[0].world_size if self._ranks else 0

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
        if isinstance(request, messages.Look):  # the first rank knows when it has seen enough; the others go with it
            while len(self._ranks) > 1:
                self._ranks.pop().release()
        while True:
            try:
                lines = self._lines(messages.encode(request), deadline_s)
                break
            except _PassedOver:
                self._await_callers(deadline_s)
        self._release_others()
        assert self.kept is not None
        try:
            self.kept.tree.stop()
        except TimeoutError as error:
            self.close()
            raise LaunchFailed("time", f"it did not stop between its blocks: {error}") from error
        if isinstance(request, messages.Run):
            block: Any = block_of(self._steps(lines))
            found: R = block
            return found
        replies: list[R] = []
        for line in lines:
            reply = messages.decode_reply(line, request)
            if isinstance(reply, messages.Failed):
                raise self._failed(reply)
            replies.append(reply)
        return replies[0]

    def _steps(self, lines: Sequence[bytes]) -> list[messages.Steps]:
        """What each rank did."""
        replies = [messages.decode_steps(line) for line in lines]
        for reply in replies:
            if isinstance(reply, messages.Failed):
                raise self._failed(reply)
        return [reply for reply in replies if isinstance(reply, messages.Steps)]

    def _failed(self, reply: messages.Failed) -> LaunchFailed:
        self.close()
        return LaunchFailed(reply.kind, reply.reason)

    def _lines(self, question: bytes, deadline_s: float) -> list[bytes]:
        """What each rank replies. Raises LaunchFailed where one fails, ends, or does not reply in time."""
        try:
            for rank in self._ranks:
                rank.send(question)
        except OSError:
            raise self._gone() from None
        return [self._line(rank, deadline_s) for rank in self._ranks]

    def _line(self, rank: Caller, deadline_s: float) -> bytes:
        assert self.kept is not None
        held_until_s = monotonic() + OTHERS_HELD_S
        while not (ready := _ready([rank, self.kept], min(deadline_s, held_until_s))):
            if monotonic() >= deadline_s:
                raise self._given_up("did not answer in time")
            self._release_others()
            held_until_s = monotonic() + TROUBLE_EVERY_S
        line = rank.receive() if rank in ready else b""
        if not line:
            raise self._gone()
        told = json.loads(line)
        if told["type"] == "ended":
            raise self._over(int(told["steps"]))
        return line

    def _release_others(self) -> None:
        """Let go whoever else makes steps: the one that is asked may wait for it."""
        assert self._callers is not None
        while self._may_pass_over and _ready([self._callers], 0.0):
            with suppress(OSError, ValueError):  # it is gone already
                self._callers.accept().release()
                self.others += 1

    # ------------------------------------------------------------------------------------------------------ starting

    def _begin(self, hook: Mapping[str, Any], deadline_s: float) -> None:
        """Start the command, and wait until every process that makes steps has called."""
        self._callers = Callers()
        told = self._folder / HOOK
        meeting = self._folder / MEETING
        meeting.mkdir(exist_ok=True)
        found = {**hook, "address": self._callers.address, "meeting": str(meeting)}
        told.write_text(json.dumps(found), encoding="utf-8")
        try:
            self.kept = self._start_kept(hooked(str(told)))
        except NotStarted as error:
            self.close()
            raise LaunchFailed("reference", str(error)) from error
        for _ in range(hook["passed_over"]):
            self._await_callers(deadline_s)
            self._ranks.pop().release()
        self._await_callers(deadline_s)
        if not self._may_pass_over:
            self._callers.close()  # whoever else makes steps goes on by itself

    @property
    def _may_pass_over(self) -> bool:
        """Whether it is still to be found out which process trains, and which only helps."""
        return self._hook["rule"] is None

    def _await_callers(self, deadline_s: float) -> None:
        """Until a process that makes steps has called, or each rank of several."""
        assert self.kept is not None
        assert self._callers is not None
        while not self._ranks or len(self._ranks) < self._ranks[0].world_size:
            ready = _ready([self._callers, self.kept], min(deadline_s, monotonic() + TROUBLE_EVERY_S))
            if self._callers in ready:
                self._ranks.append(self._callers.accept())
            elif ready:
                raise self._gone()
            elif not self._ranks and self._noted(TROUBLE):
                reason = self._no_step()
                self.close()
                raise LaunchFailed("setting", reason)
            elif monotonic() >= deadline_s:
                missing = "" if not self._ranks else f" in {self._ranks[0].world_size - len(self._ranks)} of its ranks"
                raise self._given_up(f"took no step in time{missing}: {self._no_step()}")
        self._ranks.sort(key=lambda rank: rank.number)

    def _noted(self, ending: str) -> str | None:
        """What a process has left beside the launch's file."""
        try:
            return (self._folder / f"{HOOK}{ending}").read_text(encoding="utf-8").strip() or ending
        except OSError:
            return None

    def _no_step(self) -> str:
        """Why perftool has seen no step."""
        trouble = self._noted(TROUBLE) or self._noted(REFUSED)
        if trouble:
            return f"perftool could not get into it: {trouble.splitlines()[-1]}"
        if not self._noted(SEEN):
            return (
                "it starts no Python that perftool can get into: after -- comes the command that trains, such as "
                "python train.py, without -I, -E or -S"
            )
        if not self._noted(TORCH):
            return "none of its processes has imported torch (what it reads from standard input is empty here)"
        return (
            "nothing in it called backward or an optimizer's step, unless it still compiles its first one; say where a "
            "step ends by `import perftool` and `perftool.step()`"
        )

    # -------------------------------------------------------------------------------------------------------- ending

    def _over(self, steps: int) -> Exception:
        """The process that was asked says that it has come to its end."""
        ended = self._ended()
        if ended is None and self._passes_over():
            return _PassedOver()
        words = self._last_words()
        self.close()
        if ended is not None and ended.code:
            return LaunchFailed("training", f"{_told(ended.code)} after {steps} steps{words}")
        return _end(f"the script was over after {steps} steps")

    def _gone(self) -> Exception:
        """The command has ended, or the process that was asked."""
        if self._is_killed:
            self.close()
            return LaunchFailed("died", "it was ended")
        ended = self._ended()
        if ended is None and self._passes_over():
            return _PassedOver()
        words, had_begun = self._last_words(), bool(self._ranks)
        why = "" if had_begun else self._no_step()
        self.close()
        if ended is None:
            return LaunchFailed("died", f"its training process ended{words}")
        if not had_begun and ended.code:
            return LaunchFailed("training", f"{_told(ended.code)} before its first step{words}{self._remedy()}")
        if not had_begun:
            return LaunchFailed("training", f"the command ended without a step: {why}{words}")
        return LaunchFailed("died", f"{_told(ended.code)}{words}") if ended.code else _end("the script was over")

    def _ended(self) -> Ended | None:
        """How the command ended, once its process has; None where it goes on without it."""
        assert self.kept is not None
        self.kept.tree.resume()
        return self.kept.ended(HELPER_ENDING_S if self._may_pass_over else ENDING_S)

    def _passes_over(self) -> bool:
        """The command goes on, so the process that was asked may have been a helper of the one that trains."""
        if not self._may_pass_over or len(self._ranks) != 1:
            return False
        self._ranks.pop().close()
        self.passed_over += 1
        return True

    def _given_up(self, reason: str) -> LaunchFailed:
        words = self._last_words()
        self.close()
        return LaunchFailed("time", f"{reason}{words}")

    def _remedy(self) -> str:
        """What to do about a command that fails before anything is measured."""
        printed = self.kept.printed() if self.kept is not None else ""
        if "No module named 'torch'" in printed:
            return f"; {self._command[0]} has no torch: name the Python that has, or activate its environment"
        return f"; run it by itself to see all of it: {join(self._command)}"

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
        if self._callers is not None:
            self._callers.close()
        if self.kept is not None:
            self.kept.close()
            self.kept = None
        for ending in (SEEN, REFUSED, TORCH, TROUBLE):
            (self._folder / f"{HOOK}{ending}").unlink(missing_ok=True)
        shutil.rmtree(self._folder / MEETING, ignore_errors=True)


class _PassedOver(Exception):
    """The process that was asked was a helper of the one that trains, and is gone."""


def _end(text: str) -> LaunchFailed:
    return LaunchFailed("ended", f"{text}; let it run longer, such as more epochs")


def _told(code: int) -> str:
    """How a command ended."""
    return f"its command was ended by signal {-code}" if code < 0 else f"its command ended with exit code {code}"


def _ready(channels: Sequence[Callers | Caller | Kept], deadline_s: float) -> list[Callers | Caller | Kept]:
    """Those of which there is something to read, when there is or at the deadline."""
    return readable(channels, deadline_s - monotonic())
