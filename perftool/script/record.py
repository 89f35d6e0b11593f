"""The recorder: the time of every step, and now and then a few steps with their phases and causes, into a `Trail`.

It first learns what a step is, as a survey does, and counts those steps, too. From then on a step costs two hooks of
the optimizer, a clock and a store. What else there is to see is hooked for a few steps in a thousand, and the more
seldom the more that has cost. An evaluation or a checkpoint is no step, and kept apart.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from perftool.script import hooks
from perftool.script.boot import say
from perftool.script.facts import device_of, facts_of
from perftool.script.loop import Interval, Loop
from perftool.script.realise import Realised
from perftool.script.sites import own_place
from perftool.script.steps import BACKWARD, MARK, Counter, Rule, find_rule
from perftool.script.trail import BLOCK_STEPS, SUFFIX, Trail
from perftool.words import FORWARD, OPTIMIZER, REST

if TYPE_CHECKING:
    from perftool.plan import Plan

WATCHED_STEPS = 16  # of a burst
EVERY_LEAST = 1024  # steps from one burst to the next
EVERY_SHARE = 128  # or this part of all so far, so that a long training leaves no long file
ONCE_NS, SPARE_NS = 50_000_000, 250  # that all bursts may cost, once and beside that for each step
ASIDES_MOST = 64  # kinds and places
FILES_MOST = 100  # of one rank, where a command runs several trainings


class Seen(NamedTuple):
    """An event that may have ended a step, while it is not known what does."""

    at_ns: int
    kind: str
    who: int
    aside: str | None


class Seeing(Realised):
    """A Plan over a loop whose models are called as they were where it asks for nothing of them, and which may have
    made its loaders before anybody looked."""

    @property
    def wraps_models(self) -> bool:
        return bool(self.plan.model or self.plan.loss)

    def _adopt(self, module: Any) -> bool:
        known, before = len(self.roots), module.__dict__.get("_compiled_call_impl")
        is_root = super()._adopt(module)
        if len(self.roots) > known and not self.wraps_models:
            _called_by(module, before)
        return is_root

    def epoch(self, loader: Any) -> Any:
        if not any(loader is known for known, _ in self.loaders):
            self.loaders.append((loader, own_place(loader)))
        return super().epoch(loader)


class Recorder:
    """Records this process from `begin` to `end`."""

    def __init__(self, folder: str, plan: Plan) -> None:
        """folder: of the trails, one for each process that makes steps: `rank-0.steps`."""
        self.loop = Loop(None)
        self.realised = Seeing(plan, self.loop)
        self._folder = Path(folder)
        self._hooks = ExitStack()  # that stay until the end
        self._passing = ExitStack()  # that are there while steps are learnt, or watched
        self._seen: list[Seen] = []
        self._trail: Trail | None = None
        self._counts_samples = True  # while steps are learnt or watched, and of none in between
        self._samples = self._sampled_steps = 0
        self._asides: dict[str, list[int]] = {}  # what: how often, and the time beyond a step's
        self._interval = Interval()  # all of those that are not watched, emptied where it matters
        self._times, self._at, self._before_ns = memoryview(b""), 0, 0
        self._steps = 0  # before the block that is being filled
        self._next_burst = 0
        self._watcher: Any = None
        self._burst: list[Interval] = []
        self._burst_began_ns = self._cost_ns = 0  # the latter of all bursts
        self._is_over = False
        self._updated: Callable[[Any], None] = self.loop.updated
        self._stepped: Callable[[], None] = self._step

    def begin(self) -> None:
        """Hook what is needed. Torch has been imported, or is not used at all."""
        loop, realised = self.loop, self.realised
        loop.ended = self._learn  # type: ignore[method-assign]
        os.register_at_fork(after_in_child=self._silence)
        realised.prepare()
        if "torch" not in sys.modules:
            return
        for undo in (
            hooks.around_optimizers_made(realised),
            hooks.around_making(realised),
            hooks.around_epochs(loop, realised),
            hooks.around_modes(loop),
            hooks.around_saving(loop),
            hooks.around_scaler(loop),
            _around_updates(self),
        ):
            self._hooks.callback(undo)
        realised.follow_calls(until_calm=True)
        self._hooks.callback(realised.stop_following)
        for undo in (hooks.around_fetching(loop), hooks.around_backward(loop)):
            self._passing.callback(undo)

    def end(self) -> None:
        """The training is over: write what is not written yet, and take all hooks away."""
        if self._is_over:
            return
        rule = find_rule(self.loop.events) if self._trail is None else None
        if rule is not None:  # it was over before that was sure
            self._guarded(partial(self._settle, rule))
        self._silence()
        self._passing.close()
        self._hooks.close()
        if self._trail is not None:
            self._tell_standing()
            self._trail.close()

    def updated(self, optimizer: Any) -> None:
        """An optimizer's step has returned."""
        self._updated(optimizer)

    def _silence(self) -> None:
        """From here on nothing is recorded, as in a child of this process."""
        self._is_over = True
        self._updated = self._stepped = _nothing
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

    # ----------------------------------------------------------------------------------------------------- learning

    def _learn(self, kind: str, who: int = 0) -> None:
        """In place of `Loop.ended`, until that has found out which events end a step."""
        at_ns, loop, interval = monotonic_ns(), self.loop, self.loop.interval
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
        rank, ranks = _rank()
        self._trail = _trail(self._folder, rank)
        loop.rule = rule
        loop.steps = self._sampled_steps = len(ends)
        plain_ns = [one.at_ns - before.at_ns for before, one in pairwise(ends) if not one.aside]
        self._trail.tell(
            {
                **facts_of(loop, self.realised, device, looks_at_values=False),
                "type": "facts",
                "step_ns": round(median(plain_ns)) if plain_ns else 0,
                "says_samples": self._samples > 0,
                "ranks": ranks,
                "rank": rank,
                "first_step_ns": began_ns,
            }
        )
        self._before_ns = began_ns
        self._times = self._trail.block(began_ns)
        for one in ends[1:]:
            self._enter(one.at_ns, one.aside)
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
        last = None if rule.last is None else loop.optimizers[rule.last]

        def ended(kind: str, who: int = 0) -> None:
            if counter.ends_step(kind, who):
                self._stepped()

        def updated(optimizer: Any) -> None:
            loop.updates += 1
            if last is None or optimizer is last:
                self._stepped()

        def marked(samples: int | None) -> None:
            if samples is not None:
                self._samples += samples
                self._sampled_steps += 1
            self._stepped()

        self._passing.close()
        loop.ended = ended  # type: ignore[method-assign]
        self._counts_samples = rule.boundary != MARK
        if rule.boundary == MARK:
            loop.marked = marked  # type: ignore[method-assign]
        if rule.every == 1:
            self._updated = updated
        if rule.boundary == BACKWARD:
            self._hooks.callback(_after_backward(loop))
        if "torch" in sys.modules:
            from perftool.probes.watch import Watcher

            self._watcher = Watcher(device_of(loop))
        self._resume()
        self._look()

    def _step(self) -> None:
        """A step has ended. Called at each one: it is written out where `_enter` would be another call."""
        at_ns = monotonic_ns()
        if self._interval.asides:
            self._enter(at_ns, self._interval.aside)
            self._resume()
            return
        self._times[self._at] = at_ns - self._before_ns
        self._before_ns = at_ns
        self._at += 1
        if self._at == BLOCK_STEPS:
            self._next_block(at_ns)
            self.loop.steps = self._steps
            if self._steps >= self._next_burst:
                self._guarded(self._look)
            self._resume()

    def _enter(self, at_ns: int, aside: str | None) -> None:
        """A step, or what it was besides, has ended then."""
        took_ns = at_ns - self._before_ns
        self._before_ns = at_ns
        if aside is not None:
            self._enter_aside(took_ns, aside)
            return
        self._times[self._at] = took_ns
        self._at += 1
        if self._at == BLOCK_STEPS:
            self._next_block(at_ns)

    def _next_block(self, began_ns: int) -> None:
        assert self._trail is not None
        self._steps += BLOCK_STEPS
        self._times, self._at = self._trail.block(began_ns), 0

    def _enter_aside(self, took_ns: int, aside: str) -> None:
        usual_ns = sorted(self._times[: self._at])[self._at // 2] if self._at else 0
        known = aside if aside in self._asides or len(self._asides) < ASIDES_MOST else "others"
        found = self._asides.setdefault(known, [0, 0])
        found[0] += 1
        found[1] += max(0, took_ns - usual_ns)

    def _resume(self) -> None:
        """The next step begins."""
        self.loop.interval = self._interval
        self._interval.asides.clear()
        self._interval.signs.clear()
        self._before_ns = monotonic_ns()

    # ------------------------------------------------------------------------------------------------------- bursts

    def _look(self) -> None:
        """Tell how things stand; where phases can be seen, once some steps have been watched."""
        if self._watcher is None:
            self._tell_standing()
            self._space()
            return
        self._burst_began_ns = monotonic_ns()
        loop = self.loop
        for undo in (hooks.around_fetching(loop), hooks.around_backward(loop)):
            self._passing.callback(undo)
        if not self.realised.wraps_models:
            for root in self.realised.roots:
                self._passing.callback(_marking_forward(loop, root))
        self._burst = []
        self._watcher.begin()
        loop.watcher, loop.interval = self._watcher, Interval()
        self._stepped = self._watched
        self._watcher.stepping()

    def _watched(self) -> None:
        """A watched step has ended."""
        self._guarded(self._watch)

    def _watch(self) -> None:
        self._watcher.stepped()
        self._burst.append(self.loop.interval)
        if len(self._burst) == WATCHED_STEPS:
            self._end_burst()
        else:
            self.loop.interval = Interval()
            self._watcher.stepping()

    def _end_burst(self) -> None:
        assert self._trail is not None
        loop = self.loop
        fields = self._watcher.finish()
        loop.watcher, self._stepped = None, self._step
        self._passing.close()
        if not any(interval.asides for interval in self._burst):  # what is no step cannot be taken out again
            samples = sum(interval.samples or 0 for interval in self._burst)
            if self._counts_samples:
                self._samples += samples
                self._sampled_steps += WATCHED_STEPS
            self._trail.tell(
                {
                    **fields,
                    "type": "watched",
                    "launch": 0,
                    "round": self._steps // BLOCK_STEPS,
                    "first_call": self._steps,
                    "samples": samples or WATCHED_STEPS,
                    "loader_workers": max((one.num_workers for one in self.realised.loaders_in_use()), default=0),
                }
            )
            self._tell_standing()
        self._cost_ns += monotonic_ns() - self._burst_began_ns - sum(fields["step_ns"])
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
                "steps": self._steps + self._at,
                "every": self._trail.every,
                "samples_per_step": self._samples / self._sampled_steps if self._samples else 1,
                "asides": self._asides,
                "host_bytes": _resident_bytes(),
                "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                **_device_bytes(device_of(self.loop)),
            }
        )


def _nothing(*_: Any) -> None:
    """In place of whatever is no longer done."""


def _around_updates(recorder: Recorder) -> Callable[[], None]:
    """By torch's own hooks of all optimizers, also those that were made before. They cannot be taken away while they
    run, so there is one pair for all that is done with them."""
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    loop, realised = recorder.loop, recorder.realised
    configures = bool(realised.plan.optimizer or realised.plan.optimizer_changes)

    def before(optimizer: Any, _arguments: Any, _options: Any) -> None:
        loop.in_update = True
        if loop.watcher is not None:
            loop.watcher.marks.push(OPTIMIZER)
        if configures:
            realised.configure(optimizer)

    def after(optimizer: Any, _arguments: Any, _options: Any) -> None:
        if not loop.in_update:  # a step that has called its base class's
            return
        loop.in_update = False
        if loop.watcher is not None:
            loop.watcher.marks.pop(REST)
        recorder.updated(optimizer)

    handles = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


def _after_backward(loop: Loop) -> Callable[[], None]:
    """Where a backward pass ends the step, and nobody needs to know more of it."""
    import torch

    def around(backward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            found = backward(*arguments, **options)
            loop.ended(BACKWARD)
            return found

        return call

    return hooks.replaced(torch.autograd, "backward", around)


def _marking_forward(loop: Loop, root: Any) -> Callable[[], None]:
    """Have the calls of a model mark their phase."""
    before = root.__dict__.get("_compiled_call_impl")
    inner = before or root._call_impl

    def call(*arguments: Any, **options: Any) -> Any:
        if loop.watcher is not None:
            loop.watcher.marks.begin(FORWARD)
        return inner(*arguments, **options)

    _called_by(root, call)
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


def _rank() -> tuple[int, int]:
    """Of this process, and how many there are."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


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
