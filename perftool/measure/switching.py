"""Processes that several variants have in turn, for a search: switched between blocks, and not started anew.

What a verdict rests on is never measured so: a launch of its own shows what a user's process would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

from perftool.measure import messages
from perftool.measure.launch import LaunchFailed, LiveLaunch
from perftool.records import Settings

R = TypeVar("R")

WARM_STEPS, WARM_LIMIT_S = 20, 1.0  # after a process has come back
UNKNOWN = messages.Finished(
    last_loss=None,
    peak_device_allocated_bytes=None,
    peak_device_reserved_bytes=None,
)
"""What a launch in a process of others can say of itself at its end."""


@dataclass(frozen=True)
class Switching:
    """Which settings a process can take on while it lives.

    live: scenarios between whose values it can be switched. single: those whose process nobody else can have: what they
    compile or capture stays in it.
    """

    live: frozenset[str] = frozenset()
    single: frozenset[str] = frozenset()

    def start_of(self, settings: Settings) -> Settings:
        """The part of the settings that their process must start with."""
        if self.single & settings.keys():
            return settings
        return {name: value for name, value in settings.items() if name not in self.live}

    def processes(self, variants: Sequence[Settings]) -> list[Settings]:
        """What the processes of these variants start with, each once."""
        found: list[Settings] = []
        for settings in map(self.start_of, variants):
            if settings not in found:
                found.append(settings)
        return found


class SharedProcess:
    """A process that launches have in turn. Where it is lost by a setting of one of them, or its script is over, it is
    started again for the others."""

    def __init__(self, start: Callable[[], LiveLaunch], clock: Callable[[], float] = monotonic) -> None:
        """Start it. To be called in the main thread, as all that asks it but the first question.

        clock: seconds, by which its launches tell when they have started.
        """
        self._start, self._clock = start, clock
        self._process: LiveLaunch | None = start()
        self.start_up_ns: int | None = None  # until the end of its first step
        self._present: int | None = None  # the launch that has it
        self._known: set[int] = set()  # those that had it
        self._tenants = 0

    def taken_by(self, launch: int, settings: Settings) -> SharedLaunch:
        """A launch that has the process whenever it is asked something.

        settings: all of them, those that the process starts with included.
        """
        self._tenants += 1
        return SharedLaunch(self, launch, settings)

    def ask(self, launch: int, settings: Settings, request: messages.Ask[R], limit_s: float) -> R:
        """The launch's answer. Raises LaunchFailed; the process is gone then."""
        was_used = self._present is not None
        try:
            reply: R = self._asked(launch, settings, request, limit_s)
        except LaunchFailed as failed:
            if failed.kind != "ended" or not was_used:
                raise
            reply = self._asked(launch, settings, request, limit_s)  # its script begins again
        return reply

    def _asked(self, launch: int, settings: Settings, request: messages.Ask[Any], limit_s: float) -> Any:
        try:
            return self._asked_once(launch, settings, request, limit_s)
        except LaunchFailed:
            self._close()
            raise

    def _asked_once(self, launch: int, settings: Settings, request: messages.Ask[Any], limit_s: float) -> Any:
        if self._process is None:
            self._process = self._start()
        if self._present != launch:
            began_ns, is_first = round(self._clock() * 1e9), self._present is None
            started = self._process.ask(messages.Switch(launch=launch, settings=settings), limit_s)
            is_new = launch not in self._known
            self._present = launch
            self._known.add(launch)
            if is_first:
                self.start_up_ns = started.started_ns - began_ns
            if isinstance(request, messages.Start):
                return started
            if is_new and not isinstance(request, messages.Warm):  # to a process that has come back
                self._process.ask(messages.Warm(steps=WARM_STEPS, limit_s=WARM_LIMIT_S), limit_s)
        return self._process.ask(request, limit_s)

    def kill(self) -> None:
        """End it at once; whoever waits for an answer is told."""
        process = self._process
        if process is not None:
            process.kill()

    def left(self) -> None:
        """One of its launches is over; with the last one it ends."""
        self._tenants -= 1
        if not self._tenants:
            self._close()

    def _close(self) -> None:
        process, self._process, self._present = self._process, None, None
        self._known.clear()
        if process is not None:
            process.close()


class SharedLaunch:
    """A launch in a shared process; see `LiveLaunch`. Nobody knows what memory it takes."""

    def __init__(self, process: SharedProcess, launch: int, settings: Settings) -> None:
        self.process, self._launch, self._settings = process, launch, settings
        self._is_closed = False

    def ask(self, request: messages.Ask[R], limit_s: float) -> R:
        if isinstance(request, messages.Finish):  # the process goes on for the others
            return UNKNOWN  # type: ignore[return-value]
        try:
            return self.process.ask(self._launch, self._settings, request, limit_s)
        except LaunchFailed:
            self.close()
            raise

    def host_bytes(self) -> int | None:
        return None

    def held_bytes(self) -> int | None:
        return None

    def reset_host_peak(self) -> None:
        pass

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.process.left()
