"""The script takes turns: it stands still at a step end until perftool asks for something, and goes on as far as the
answer needs."""

from __future__ import annotations

import os

from perftool.plan import SettingError
from perftool.script.answers import Answer, Answers, Reply
from perftool.script.boot import rank_of_process
from perftool.script.channel import Channel
from perftool.script.loop import Loop
from perftool.trees import TreeError

REASON_MOST = 2000  # characters
DISCOVERY_STEPS = 3  # in which every module that is called is seen


class Turns:
    """The conversation of one launch: whom it talks to, and what it is answering."""

    def __init__(self, address: str, loop: Loop, answers: Answers) -> None:
        """address: of perftool's socket. Nobody is called before the first step has ended."""
        self._address, self._loop, self._answers = address, loop, answers
        self._channel: Channel | None = None
        self._answer: Answer | None = None
        self._is_alone = False  # perftool is gone, or follows another process: the script goes on by itself
        loop.turn = self.step_ended

    def step_ended(self) -> None:
        """The script has made a step. Returns when it may make the next one; what is being answered is resumed, and
        where it is done, the next request is waited for."""
        if self._is_alone:
            return
        try:
            if self._answer is None:
                self._begin()
                return
            if self._loop.steps == DISCOVERY_STEPS and self._loop.rule is not None:
                self._answers.realised.stop_following()
            next(self._answer)
        except StopIteration as done:
            self._go_on(done.value)
        except Exception as error:  # a fault of perftool's own is not the script's
            self._fail(error)

    def _go_on(self, reply: Reply) -> None:
        """With the next request, after this reply."""
        try:
            self._reply(reply)
            self._wait()
        except Exception as error:
            self._fail(error)

    def _begin(self) -> None:
        """After the first step of this process, which is what tells the process that trains from its helpers."""
        try:
            self._channel = Channel(self._address)
            rank, ranks = rank_of_process()
            self._channel.send({"type": "hello", "pid": os.getpid(), "rank": rank, "world_size": ranks})
        except OSError:
            self._is_alone = True
            return
        self._answers.begin()
        self._wait()

    def _wait(self) -> None:
        """Until a request is there, and its answer wants a step."""
        while not self._is_alone:
            assert self._channel is not None
            request = self._channel.receive()
            if request is None or request["type"] == "release":  # perftool is gone, or another process is the training
                self._is_alone = True
                return
            self._answer = self._answers.to(request)
            try:
                next(self._answer)
                return
            except StopIteration as done:
                self._reply(done.value)
            except Exception as error:
                self._fail(error)

    def _reply(self, reply: Reply) -> None:
        assert self._channel is not None
        try:
            self._channel.send(reply)
        except OSError:
            self._is_alone = True

    def _fail(self, error: Exception) -> None:
        """What is asked cannot be answered: perftool ends this launch."""
        kind = "memory" if isinstance(error, MemoryError) or "out of memory" in str(error).lower() else "training"
        kind = "setting" if isinstance(error, SettingError) else "tree" if isinstance(error, TreeError) else kind
        reason = str(error) if kind in ("setting", "tree") else f"{type(error).__name__}: {error}"
        self._reply({"type": "failed", "kind": kind, "reason": reason[:REASON_MOST]})
        self._is_alone = True

    def ended(self) -> None:
        """The script is over: whoever waits for an answer is told how far it came. May be called again."""
        if self._channel is not None and not self._is_alone and self._loop.is_own:
            self._reply({"type": "ended", "steps": self._loop.steps})
            self._is_alone = True

    def forked(self) -> None:
        """In a child of this process: it is none of the launch, unless it may be the one that trains."""
        if self._channel is not None:
            self._channel.abandon()
        if not self._loop.forked():
            self._is_alone = True
