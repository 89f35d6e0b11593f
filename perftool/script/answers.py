"""The answers to the requests of `perftool.measure.messages`, as a script can give them.

Each is a generator that yields where the script is to make its next step, and returns the reply. So the script keeps
its own loop, and whatever an answer has opened (a profiler, hooks) stays open while it does.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Generator, Mapping
from time import monotonic, monotonic_ns
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from perftool.probes.device import Meter, clock_labels, drop_cache, read_peaks, reset_peaks
from perftool.probes.events import Events
from perftool.scenario import plan_of
from perftool.script import explain
from perftool.script.boot import rank_of_process
from perftool.script.facts import are_equal, copies_of_buffers, device_of, facts_of
from perftool.script.loop import Interval, Loop
from perftool.script.realise import Realised
from perftool.trees import Tree, modules_of

if TYPE_CHECKING:
    from perftool.scenario import Scenario

Reply = dict[str, Any]
Answer = Generator[None, None, Reply]
NOT_FINITE_MOST = 3  # losses in a row, of those that are looked at
PLAN_STEPS, PLAN_LIMIT_S = 5, 1.0  # for the time that a step takes roughly
RETURN_STEPS = 2  # after which a training that was left without a cache has what it needs
SETTLE_S = 60.0  # after which the rule of a slow script is the likeliest by the few steps it has made


class Answers:
    """What one launch answers. `realised` is the Plan over its loop, `scenarios` those of its settings."""

    def __init__(
        self, spec: Mapping[str, Any], loop: Loop, realised: Realised, scenarios: Mapping[str, Scenario]
    ) -> None:
        """spec: as `perftool.measure.scripted` writes it."""
        self.spec, self.loop, self.realised, self.scenarios = spec, loop, realised, scenarios
        self._events = Events()
        self._step_clock: Any = None
        self._watcher: Any = None
        self._not_finite = 0  # losses in a row
        self._own: dict[str, str] | None = None  # what is in force of what is switched, before the first switch
        self.device = "cpu"

    def begin(self) -> None:
        """The script has made its first step: its device is known, and it has set what it sets itself."""
        self.device = device_of(self.loop)
        self.realised.prepare()

    def to(self, request: Mapping[str, Any]) -> Answer:
        """The answer to a request."""
        answers: dict[str, Callable[[Mapping[str, Any]], Answer]] = {
            "look": self._look,
            "start": self._start,
            "switch": self._switch,
            "warm": self._warm,
            "prove": self._prove,
            "run": self._run,
            "sustain": self._sustain,
            "train": self._train,
            "finish": self._finish,
            "watch": self._watch,
            "trace": self._trace,
            "count": self._count,
            "weigh": self._weigh,
            "limit": self._limit,
            "fit": self._fit,
        }
        return answers[request["type"]](request)

    def _look(self, _: Mapping[str, Any]) -> Answer:
        loop = self.loop
        began_s = monotonic()
        while loop.rule is None and monotonic() - began_s < SETTLE_S:
            yield
        if loop.rule is None:
            loop.settle()  # so that all launches follow the same
        taken: list[tuple[int, int]] = []
        while len(taken) < PLAN_STEPS and sum(step_ns for step_ns, _ in taken) < PLAN_LIMIT_S * 1e9:
            began_ns, before = monotonic_ns(), loop.steps
            yield
            step_ns = (monotonic_ns() - began_ns) // max(1, loop.steps - before)
            taken.append((step_ns, min(step_ns, loop.interval.wait_ns)))
        # The quickest: one alone may have waited for whatever else the machine does.
        step_ns, wait_ns = min(taken)
        buffers = copies_of_buffers(self.realised)
        attends = yield from self._attends()
        facts = facts_of(
            loop,
            self.realised,
            self.device,
            attends=attends,
            changes_buffers=not are_equal(buffers, copies_of_buffers(self.realised)),
        )
        return {"type": "facts", **facts, "step_ns": step_ns, "wait_ns": wait_ns}

    def _attends(self) -> Generator[None, None, bool]:
        """One more step; whether it computes attention."""
        if "torch" not in sys.modules:
            yield
            return False
        from perftool.probes.modules import calls_seen

        with calls_seen(self.realised.roots) as seen:
            yield
        return seen.attention

    def _start(self, _: Mapping[str, Any]) -> Answer:
        started_ns = monotonic_ns()
        if self.spec.get("watched"):
            if "torch" not in sys.modules:
                raise RuntimeError("the phases of a script without torch cannot be seen")
            from perftool.probes.watch import Watcher

            self._watcher = Watcher(self.device)
        return {"type": "started", "started_ns": started_ns, "queued_batches": self._queued(), "steps_per_call": 1}
        yield  # of a generator, like all the others

    def _switch(self, request: Mapping[str, Any]) -> Answer:
        """Go on under other settings, and make a step under them."""
        if self._own is None:
            shown = {name: self.scenarios[name].present for name in self.spec["switched"]}
            self._own = {name: show() for name, show in shown.items() if show is not None and "torch" in sys.modules}
        self.spec = {**self.spec, "launch": request["launch"], "settings": request["settings"]}
        laid = {**self._own, **request["settings"]}
        self.realised.switch(plan_of(None, laid, self.scenarios, device=self.device, seed=self.spec["seed"]))
        yield
        return (yield from self._start(request))

    def _queued(self) -> int:
        """Batches that loader workers hold ready."""
        loaders = self.realised.loaders.in_use()
        return max((one.num_workers * (one.prefetch_factor or 2) for one in loaders if one.num_workers), default=0)

    def _warm(self, request: Mapping[str, Any]) -> Answer:
        clock = self._clock()
        has_peers = rank_of_process()[1] > 1  # ranks that stop at other steps wait for ever
        deadline_s = monotonic() + request["limit_s"]
        self._events.after_steps(self.loop.steps, self._place())
        clock.start()
        for _ in range(request["steps"]):
            yield
            clock.mark()
            self._events.after_step(self.loop.steps)
            if monotonic() > deadline_s and not has_peers:
                break
        _, step_ns = clock.finish()
        self._events.after_steps(self.loop.steps, self._place())
        self._check_loss()
        since = self._events.steps_since(self.loop.steps)
        return {"type": "warmed", "step_ns": step_ns, "steps_since_event": since}

    def _prove(self, _: Mapping[str, Any]) -> Answer:
        from perftool.script.training import ScriptTraining

        training: Any = None  # of a script without torch, whose settings are its own options
        if "torch" in sys.modules:
            training = ScriptTraining(self.loop, self.realised, self.device)
        self.realised.prepare()  # the script may have set something else since
        proofs = []
        for name, value in sorted(self.spec["settings"].items()):
            proofs.append((name, (yield from self._proof(self.scenarios[name].proof(training, value)))))
        gc.collect()  # what the proofs left behind is not the training's
        drop_cache(self._place())
        if self._place().type == "cuda":
            for _step in range(RETURN_STEPS):  # it takes again what it needs
                yield
        reset_peaks(self._place())
        evidence = [f"{name}: {one.evidence}" for name, one in proofs if not one.ok or all(p.ok for _, p in proofs)]
        engaged = {"ok": all(one.ok for _, one in proofs), "evidence": "; ".join(evidence)}
        return {"type": "proved", "engaged": engaged}

    def _proof(self, proof: Any) -> Generator[None, None, Any]:
        """Run a proof, which yields for each step that it wants to see, and gets the last batch."""
        if not hasattr(proof, "send"):
            return proof
        self.loop.keeps_batches = True
        try:
            proof.send(None)
            while True:
                yield
                proof.send(self.loop.batch)
        except StopIteration as done:
            return done.value
        finally:
            self.loop.keeps_batches = False
            self.loop.batch = None

    def _run(self, request: Mapping[str, Any]) -> Answer:
        """As many steps as asked for, neither more nor fewer: ranks make them together."""
        from perftool.probes.causes import labels, read_counters

        for _ in range(request["drop"]):
            yield
        clock = self._clock()
        intervals: list[Interval] = []
        before = read_counters()
        started_ns = monotonic_ns()
        clock.start()
        for _ in range(request["steps"]):
            yield
            clock.mark()
            intervals.append(self.loop.interval)
        of_clock = clock_labels(self._place())  # before the device has nothing left to do
        _, step_ns = clock.finish()
        counted = labels(before, read_counters()) | of_clock
        self._check_loss()
        return {
            "type": "steps",
            "launch": self.spec["launch"],
            "round": request["round"],
            "position": request["position"],
            "started_ns": started_ns,
            "step_ns": step_ns,
            "wait_ns": [one.wait_ns for one in intervals],
            "alone_ns": [one.alone_ns or 0 for one in intervals],
            "samples": [one.samples or 1 for one in intervals],
            "asides": [one.aside for one in intervals],
            "labels": counted,
        }

    def _sustain(self, request: Mapping[str, Any]) -> Answer:
        samples, meter = 0, Meter(self._place())
        for _ in range(request["calls"]):
            yield
            samples += self.loop.interval.samples or 1
        measured = meter.read()
        self._check_loss()
        return {
            "type": "stretch",
            "launch": self.spec["launch"],
            "steps": request["calls"],
            "samples": samples,
            **measured,
        }

    def _train(self, request: Mapping[str, Any]) -> Answer:
        """The losses of the first steps; this process was started with the seed."""
        loop = self.loop
        loop.keeps_losses = True
        losses: list[tuple[Any, ...]] = [loop.interval.losses]
        samples = loop.interval.samples or 0
        while len(losses) < request["steps"]:
            yield
            losses.append(loop.interval.losses)
            samples += loop.interval.samples or 0
        means = [_mean([float(one) for one in step]) for step in losses]
        tail = means[-max(1, request["steps"] // 10) :]
        known = [loss for loss in tail if loss is not None and math.isfinite(loss)]
        return {
            "type": "trained",
            "loss": sum(known) / len(tail) if len(known) == len(tail) else None,
            "losses": means,
            "samples": samples,
        }

    def _finish(self, _: Mapping[str, Any]) -> Answer:
        peaks = read_peaks(self._place())
        loss = self._loss()
        return {
            "type": "finished",
            "last_loss": loss if loss is not None and math.isfinite(loss) else None,
            "peak_device_allocated_bytes": peaks.allocated_bytes,
            "peak_device_reserved_bytes": peaks.reserved_bytes,
        }
        yield

    # ------------------------------------------------------------------------------------------------ explanations

    def _watch(self, request: Mapping[str, Any]) -> Answer:
        workers = max((one.num_workers for one in self.realised.loaders.in_use()), default=0)
        return explain.watched(self._watcher, self.loop, request, launch=self.spec["launch"], workers=workers)

    def _trace(self, request: Mapping[str, Any]) -> Answer:
        return explain.traced(self.loop, request)

    def _count(self, request: Mapping[str, Any]) -> Answer:
        counted = yield from explain.counted(self.loop, self.realised, request)
        tree = self.spec.get("tree")
        return counted if tree is None else {**counted, "modules": modules_of(Tree(**tree))}

    def _weigh(self, _: Mapping[str, Any]) -> Answer:
        return explain.weighed(self.loop, self.realised, self.device)

    def _limit(self, _: Mapping[str, Any]) -> Answer:
        return explain.limited(self.loop, self.realised, self.device)

    def _fit(self, _: Mapping[str, Any]) -> Answer:
        return explain.not_fitted(self.device)

    # ------------------------------------------------------------------------------------------------------ helpers

    def _clock(self) -> Any:
        from perftool.probes.clock import step_clock

        if self._step_clock is None:
            self._step_clock = step_clock(self._place())
        return self._step_clock

    def _place(self) -> Any:
        """The device as probes take it, which on a CPU ask for nothing but its type."""
        torch: Any = sys.modules.get("torch")
        return SimpleNamespace(type="cpu") if torch is None else torch.device(self.device)

    def _loss(self) -> float | None:
        loss = self.loop.last_loss
        return None if loss is None else float(loss)

    def _check_loss(self) -> None:
        """A script that scales its loss may see an infinite one now and then, and skips that step."""
        loss = self._loss()
        self._not_finite = 0 if loss is None or math.isfinite(loss) else self._not_finite + 1
        if self._not_finite == NOT_FINITE_MOST:
            raise FloatingPointError(f"the loss became {loss} within {self.loop.steps} steps")


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
