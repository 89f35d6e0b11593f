"""The recorder: the time of every step, and now and then a few steps with their phases and causes, into a `Trail`.

It first learns what a step is, as a survey does, and counts those steps, too. From then on a step costs one hook of the
optimizer, a clock and a store. What else there is to see is hooked for a few steps in a thousand, and the more
seldom the more that has cost. An evaluation or a checkpoint is no step, and kept apart.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import get_ident
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from perftool.script import hooks
from perftool.script.attached import Call
from perftool.script.boot import rank_of_process, say
from perftool.script.explain import watched
from perftool.script.facts import device_of, facts_of
from perftool.script.loop import Interval, Loop
from perftool.script.realise import Realised, plain_call
from perftool.script.steps import BACKWARD, MARK, OPTIMIZER, Counter, Rule, find_rule
from perftool.script.thread import in_backward
from perftool.script.trail import BLOCK_STEPS, SUFFIX, Trail
from perftool.words import FORWARD, REST
from perftool.words import OPTIMIZER as OPTIMIZER_PHASE

if TYPE_CHECKING:
    from perftool.plan import Plan
    from perftool.script.updates import Hook

WATCHED_STEPS = 16  # of a burst
EVERY_LEAST = 1024  # steps from one burst to the next
EVERY_SHARE = 128  # or this part of all so far, so that a long training leaves no long file
ONCE_NS, SPARE_NS = 10_000_000, 100  # that all bursts may cost, once and beside that for each step
FLUSH_NS = 1_000_000_000
ASIDES_MOST = 64  # kinds and places
FILES_MOST = 100  # of one rank, where a command runs several trainings


class Seen(NamedTuple):
    """An event that may have ended a step, while it is not known what does."""

    at_ns: int
    kind: str
    who: int
    aside: str | None


class Seeing(Realised):
    """A Plan over a loop whose models are called as they were where it asks for nothing of them."""

    @property
    def wraps_models(self) -> bool:
        return bool(self.plan.model or self.plan.loss)

    def _adopt(self, module: Any) -> bool:
        known, before = len(self.roots), module.__dict__.get("_compiled_call_impl")
        is_root = super()._adopt(module)
        if len(self.roots) > known and not self.wraps_models:
            _called_by(module, before)
        return is_root


class Recorder:
    """Records this process from `begin` to `end`."""

    def __init__(self, folder: str, plan: Plan, loaders: Sequence[Sequence[bool]] = ()) -> None:
        """folder: of the trails, one for each process that makes steps: `rank-0.steps`. loaders: as for Realised."""
        self.loop = Loop(None)
        self.realised = Seeing(plan, self.loop, loaders=loaders)
        self._folder = Path(folder)
        self._hooks = ExitStack()  # that stay until the end
        self._passing = ExitStack()  # that are there while steps are learnt, or watched
        self._seen: list[Seen] = []
        self._trail: Trail | None = None
        self._samples = self._sampled_steps = 0  # of those whose samples are known: learnt, watched or marked
        self._counts_samples = False  # while steps are watched
        self._asides: dict[str, list[int]] = {}  # what: how often, and the time beyond a step's
        self._interval = Interval()  # all of those that are not watched, emptied where it matters
        self._stamps: list[int] = []  # when the last steps ended
        self._before_ns = 0  # when the first of them began
        self._aside_at: dict[int, str] = {}  # those among them that were something besides
        self._noticed_at = -1  # in which of them something was noticed last
        self._usual_ns = 0  # of a step, lately
        self._steps = self._next_burst = 0
        self._watcher: Any = None
        self._burst: Generator[None, None, dict[str, Any]]
        self._watched_steps = 0
        self._burst_began_ns = self._cost_ns = 0  # the latter of all bursts
        self._is_silent = self._has_ended = False
        self._updates: Any = None  # hooks of optimizers, where there is torch
        self._nests = False  # the step of an optimizer calls that of its base class
        self._step = self._stamping()
        self._stepped: Callable[[], None] = self._step

    def begin(self) -> None:
        """Hook what is needed. Torch has been imported, or is not used at all."""
        loop, realised = self.loop, self.realised
        loop.ended = self._learn  # type: ignore[method-assign]
        os.register_at_fork(after_in_child=self._forked)
        realised.prepare()
        if "torch" not in sys.modules:
            return
        for undo in (
            hooks.around_optimizers_made(realised),
            hooks.around_making(realised),
            hooks.around_epochs(loop, realised),
            hooks.around_modes(realised),
            hooks.around_saving(loop),
            _around_scaler(self),
            hooks.around_scaled_steps(realised),
        ):
            self._hooks.callback(undo)
        realised.follow_calls(until_calm=True)
        self._hooks.callback(realised.stop_following)
        from perftool.script.updates import Updates

        self._updates = Updates()
        self._hooks.callback(self._updates.remove)
        self._see_all()

    def end(self) -> bool:
        """The training is over: write what is not written yet, and take all hooks away. Whether that is done now."""
        if self._has_ended or not self.loop.is_own:
            return False
        self._has_ended = True
        rule = find_rule(self.loop.events) if self._trail is None and not self._is_silent else None
        if rule is not None:  # it was over before that was sure
            self._guarded(partial(self._settle, rule))
        self._silence()
        self._passing.close()
        self._hooks.close()
        if self._trail is not None:
            self._guarded(self._enter)
            self._tell_standing()
            self._trail.close()
            if self.loop.thread.has_others:
                say("several threads have trained, and the recorded steps are those of one of them")
        return True

    def standing(self) -> tuple[int, ...]:
        """Another one after each update or step."""
        return self.loop.updates, self._before_ns, len(self._stamps), self._watched_steps

    def stepped(self) -> None:
        """A step has ended."""
        self._stepped()

    def _forked(self) -> None:
        """In a child of this process, whose steps are recorded where there were none before."""
        if self._trail is None and self.loop.forked():
            self._seen.clear()
        else:
            self._silence()

    def _silence(self) -> None:
        """From here on nothing is recorded."""
        if self._is_silent:
            return
        self._is_silent = True
        self._stepped = _nothing
        if self._updates is not None:
            self._updates.follow(_nothing)
        self.loop.ended = self.loop.marked = _nothing  # type: ignore[assignment, method-assign]
        self.loop.watcher = None

    def _guarded(self, act: Callable[[], object]) -> None:
        """Do what may fail, at the price of the recording and not of the training."""
        try:
            act()
        except Exception as error:
            self._silence()
            self._passing.close()
            say(f"recording has ended: {type(error).__name__}: {error}")

    # -------------------------------------------------------------------------------------------------------- hooks

    def _see_all(self) -> None:
        """Have everything hooked that a step consists of."""
        self._passing.close()
        for undo in (hooks.around_fetching(self.loop), hooks.around_backward(self.loop)):
            self._passing.callback(undo)
        self._updates.follow(self._update_ended, self._update_began)

    def _see_steps(self) -> None:
        """Have no more hooked than shows where a step ends."""
        rule, realised = self.loop.rule, self.realised
        self._passing.close()
        if self._updates is None or rule is None:
            return
        configures = realised.plan.optimizer or realised.plan.optimizer_changes or realised.wraps_models
        if rule.boundary == BACKWARD:
            self._passing.callback(_after_backward(self))
        if rule.boundary != OPTIMIZER or (rule.every == 1 and not self._nests):
            after = self._step_after(rule)
            self._updates.follow(after, self._configuring if configures else None)
        else:
            self._updates.follow(self._update_ended, self._update_began)

    def _step_after(self, rule: Rule) -> Hook:
        """What follows an update where each one of an optimizer ends a step."""
        if rule.boundary != OPTIMIZER:
            return _nothing
        is_here = self.loop.thread.is_here
        if rule.last is None:
            return self._step
        last, number_of = rule.last, self.loop.known.number_of

        def updated(optimizer: Any, _arguments: Any, _options: Any) -> None:
            if is_here() and number_of(optimizer) == last:
                self._step()

        return updated

    def _configuring(self, optimizer: Any, _arguments: Any, _options: Any) -> None:
        self.realised.configure(optimizer)

    def _update_began(self, optimizer: Any, _arguments: Any, _options: Any) -> None:
        loop = self.loop
        self.realised.configure(optimizer)
        if not loop.thread.is_here():
            return
        loop.in_update = True
        if loop.watcher is not None:
            loop.watcher.marks.push(OPTIMIZER_PHASE)

    def _update_ended(self, optimizer: Any, _arguments: Any, _options: Any) -> None:
        loop = self.loop
        if not loop.thread.is_here():
            return
        if not loop.in_update:
            self._nests = True
            return
        loop.in_update = False
        if loop.watcher is not None:
            loop.watcher.marks.pop(REST)
        loop.updated(optimizer)

    # ----------------------------------------------------------------------------------------------------- learning

    def _learn(self, kind: str, who: int = 0) -> None:
        """In place of `Loop.ended`, until that has found out which events end a step."""
        at_ns, loop, interval = monotonic_ns(), self.loop, self.loop.interval
        if not loop.thread.is_here():
            return
        if not self._seen:  # the script has set what it sets itself
            self._guarded(self.realised.prepare)
        Loop.ended(loop, kind, who)
        self._seen.append(Seen(at_ns, kind, who, interval.aside))
        if loop.interval is not interval:
            self._samples += interval.samples or 0
        if loop.rule is not None:
            self._guarded(partial(self._go_on, loop.rule))

    def _go_on(self, rule: Rule) -> None:
        self._shorten(rule, self._settle(rule))

    def _settle(self, rule: Rule) -> Counter:
        """Enter the steps so far. Returns what counts those to come. Raises OSError."""
        loop, counter = self.loop, Counter(rule)
        ends = self._ends(counter)
        began_ns = ends[0].at_ns if ends else monotonic_ns()
        device = device_of(loop)
        rank, ranks = rank_of_process()
        self._trail = _trail(self._folder, rank)
        loop.follow(rule)
        loop.steps = self._sampled_steps = len(ends)
        plain_ns = [one.at_ns - before.at_ns for before, one in pairwise(ends) if not one.aside]
        self._usual_ns = round(median(plain_ns)) if plain_ns else 0
        self._trail.tell(
            {
                **facts_of(loop, self.realised, device, looks_at_values=False),
                "type": "facts",
                "step_ns": self._usual_ns,
                "says_samples": self._samples > 0,
                "ranks": ranks,
                "rank": rank,
                "first_step_ns": began_ns,
            }
        )
        self._before_ns = began_ns
        self._trail.begin(began_ns)
        self._stamps += [one.at_ns for one in ends[1:]]
        self._aside_at = {at: one.aside for at, one in enumerate(ends[1:]) if one.aside}
        self._enter()
        return counter

    def _ends(self, counter: Counter) -> list[Seen]:
        """Where the steps so far have ended, each with what else there was in it."""
        ends, aside = [], None
        for one in self._seen:
            aside = aside or one.aside
            if counter.ends_step(one.kind, one.who):
                ends.append(one._replace(aside=aside))
                aside = None
        self._seen = []
        return ends

    # ---------------------------------------------------------------------------------------------------- recording

    def _shorten(self, rule: Rule, counter: Counter) -> None:
        """The way from an event to the step that it ends, from now on."""
        loop = self.loop

        def ended(kind: str, who: int = 0) -> None:
            if loop.thread.is_here() and counter.ends_step(kind, who):
                self._stepped()

        def marked(samples: int | None) -> None:
            if not loop.thread.is_here():
                return
            if samples is not None:
                self._samples += samples
                self._sampled_steps += 1
                loop.interval.samples = samples
            self._stepped()

        loop.ended, loop.noticed = ended, self._noticed  # type: ignore[method-assign]
        self._counts_samples = rule.boundary != MARK and self._samples > 0
        if rule.boundary == MARK:
            loop.marked = marked  # type: ignore[method-assign]
        if self._updates is not None:
            from perftool.probes.watch import Watcher

            self._watcher = Watcher(device_of(loop), fault_trials=1)
        self._see_steps()
        self._resume()
        self._look()

    def _stamping(self) -> Callable[..., None]:
        """What is called at the end of each step, by torch where possible. All else waits until some have ended."""
        stamps, enough = self._stamps, 1
        add, clock, thread = stamps.append, monotonic_ns, self.loop.thread

        def step(_optimizer: Any = None, _arguments: Any = None, _options: Any = None) -> None:
            nonlocal enough
            if get_ident() != thread.ident and not thread.is_here():
                return
            add(clock())
            if len(stamps) >= enough:
                enough = self._turn()

        return step

    def _turn(self) -> int:
        """Some steps have ended. Returns after how many this is to be called again: after a second of them or a block,
        so that no more is lost where the process is killed."""
        self.loop.thread.trains()
        self._guarded(self._enter)
        if self._steps >= self._next_burst and not self._is_silent:
            self._guarded(self._look)
        self._noticed_at = -1
        room = BLOCK_STEPS if self._trail is None else self._trail.room
        return max(1, min(room, FLUSH_NS // max(1, self._usual_ns)))

    def _enter(self) -> None:
        """Put down the ends of the last steps where they outlive the process."""
        stamps, before_ns = self._stamps, self._before_ns
        if not stamps or self._trail is None:
            return
        count = len(stamps)
        asides = {at: aside for at, aside in self._aside_at.items() if at < count}
        self._aside_at = {at - count: aside for at, aside in self._aside_at.items() if at >= count}  # not ended yet
        self._before_ns = stamps[-1]
        self._steps += count - len(asides)
        self.loop.steps = self._steps
        if not asides:
            self._usual_ns = (self._before_ns - before_ns) // count
        for at, aside in sorted(asides.items(), reverse=True):
            took_ns = stamps[at] - (stamps[at - 1] if at else before_ns)
            stamps[at] = -stamps[at]
            known = aside if aside in self._asides or len(self._asides) < ASIDES_MOST else "others"
            found = self._asides.setdefault(known, [0, 0])
            found[0] += 1
            found[1] += max(0, took_ns - self._usual_ns)
        self._trail.put(stamps)
        stamps.clear()

    def _noticed(self, sign: str, kind: str) -> None:
        """In place of `Loop.noticed`: while steps are not watched, they have one interval together."""
        at = len(self._stamps)
        if at != self._noticed_at:
            self._interval.aside, self._interval.signs = None, ()
            self._noticed_at = at
        Loop.noticed(self.loop, sign, kind)
        if self._interval.aside is not None and self.loop.interval is self._interval:
            self._aside_at[at] = self._interval.aside

    def _resume(self) -> None:
        """The next step begins, and what was before it is none."""
        self._noticed_at = -1
        self.loop.interval = self._interval
        self._before_ns = monotonic_ns()
        if self._trail is not None:
            self._trail.put([-self._before_ns])

    # ------------------------------------------------------------------------------------------------------- bursts

    def _look(self) -> None:
        """Tell how things stand; where phases can be seen, once some steps have been watched."""
        if self._watcher is None:
            self._tell_standing()
            self._space()
            return
        self._burst_began_ns = monotonic_ns()
        self._see_all()
        if not self.realised.wraps_models:
            for root in self.realised.roots:
                self._passing.callback(_marking_forward(self.loop, root))
        workers = max((one.num_workers for one in self.realised.loaders.in_use()), default=0)
        request = {"drop": 0, "steps": WATCHED_STEPS, "round": 0}
        self._burst = watched(self._watcher, self.loop, request, launch=0, workers=workers)
        self._stepped = partial(self._guarded, self._watch)
        self.loop.interval = Interval()
        next(self._burst)

    def _watch(self) -> None:
        """A watched step has ended."""
        self._watched_steps += 1
        try:
            next(self._burst)
        except StopIteration as done:
            self._end_burst(done.value)
        else:
            self.loop.interval = Interval()

    def _end_burst(self, found: dict[str, Any]) -> None:
        assert self._trail is not None
        self._stepped = self._step
        self._see_steps()
        if self._counts_samples:
            self._samples += found["samples"]
            self._sampled_steps += len(found["step_ns"])
        self._trail.tell({**found, "first_call": self._steps, "block": max(0, self._trail.number)})
        self._cost_ns += monotonic_ns() - self._burst_began_ns - sum(found["step_ns"])
        self._tell_standing()
        self._space()
        self._resume()

    def _space(self) -> None:
        """Decide when there is more to look at."""
        paid = (self._cost_ns - ONCE_NS) // SPARE_NS  # by so many steps
        self._next_burst = max(self._steps + EVERY_LEAST, self._steps + self._steps // EVERY_SHARE, paid)

    def _tell_standing(self) -> None:
        assert self._trail is not None
        self._trail.tell(
            {
                "type": "standing",
                "steps": self._steps,
                "every": self._trail.every,
                "samples_per_step": self._samples / self._sampled_steps if self._samples else 1,
                "asides": self._asides,
                "bursts_ns": self._cost_ns,
                "host_bytes": _resident_bytes(),
                "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                **_device_bytes(device_of(self.loop)),
            }
        )


def _nothing(*_: Any) -> None:
    """In place of whatever is no longer done."""


def _around_scaler(recorder: Recorder) -> Callable[[], None]:
    """A scaler skips the update where gradients have overflowed: the step ends all the same."""
    from torch.amp import GradScaler

    def stepping(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, optimizer: Any, *arguments: Any, **options: Any) -> Any:
            before = recorder.standing()
            found = step(self, optimizer, *arguments, **options)
            if recorder.standing() == before:
                recorder.loop.updated(getattr(optimizer, "optimizer", optimizer))
            return found

        return call

    return hooks.replaced(GradScaler, "step", stepping)


def _after_backward(recorder: Recorder) -> Callable[[], None]:
    """Where a backward pass ends the step, and nobody wants to know more of it."""
    import torch

    def around(backward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            found = backward(*arguments, **options)
            if not in_backward():
                recorder.stepped()
            return found

        return call

    return hooks.replaced(torch.autograd, "backward", around)


def _marking_forward(loop: Loop, root: Any) -> Callable[[], None]:
    """Have the calls of a model mark their phase."""
    before = root.__dict__.get("_compiled_call_impl")
    inner = before or plain_call(root)

    def call(*arguments: Any, **options: Any) -> Any:
        if loop.watcher is not None:
            loop.watcher.marks.begin(FORWARD)
        return inner(*arguments, **options)

    _called_by(root, Call(call))
    return partial(_called_by, root, before)


def _called_by(module: Any, call: Callable[..., Any] | None) -> None:
    """See `Realised._adopt`. None: as a module is called by itself."""
    if call is None:
        module.__dict__.pop("_compiled_call_impl", None)
    else:
        module.__dict__["_compiled_call_impl"] = call


def _trail(folder: Path, rank: int) -> Trail:
    """A new one; a rank has several where a command runs several trainings. Raises OSError."""
    for number in range(1, FILES_MOST):
        try:
            return Trail(folder / f"rank-{rank}{'' if number == 1 else f'-{number}'}{SUFFIX}")
        except FileExistsError:
            continue
    raise FileExistsError(f"{folder} has too many files")


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _device_bytes(device: str) -> dict[str, int]:
    """As torch's allocator counts them; none on a CPU."""
    if not device.startswith("cuda"):
        return {}
    import torch

    return {
        "device_allocated_bytes": torch.cuda.memory_allocated(device),
        "peak_device_allocated_bytes": torch.cuda.max_memory_allocated(device),
        "peak_device_reserved_bytes": torch.cuda.max_memory_reserved(device),
    }
