"""What explains the steps of a script, at the price of disturbing them: phases and causes, a trace, counts, memory.

Whatever is counted is counted in the script's own next step. What cannot be told has a reason in its place: neither
the script nor its launch ends for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from perftool.script.loop import Loop
from perftool.script.phases import Phases
from perftool.script.realise import Realised

if TYPE_CHECKING:
    import torch

    from perftool.probes.watch import Watcher

Answer = Generator[None, None, dict[str, Any]]
TRACE_WARM_STEPS = 2  # with the profiler on, before what is kept: its own first calls are slow
TRIALS_MOST = 8  # of a step, until one is whole and nothing else
NOT_FITTED = "a script chooses its batches itself; vary its own option with --vary '--batch-size=32|64'"
OWN_BATCHES = "the script comes by its batches itself, so they count as activations where a backward pass needs them"


def watched(watcher: Watcher, loop: Loop, request: Mapping[str, Any], *, launch: int, workers: int) -> Answer:
    """So many steps, each with its phases and what disturbed it. Where something else came, too, they are left out."""
    for _ in range(request["drop"]):
        yield
    first = loop.steps
    samples: list[int] = []
    alone: list[bool] = []
    loop.watcher = watching = _Watching(watcher, loop)
    try:
        watcher.begin()
        while len(alone) < request["steps"] or not any(alone):
            watching.stepping()
            yield
            watcher.stepped()
            alone.append(loop.interval.aside is None or watching.is_anew)
            samples.append((loop.interval.samples or 1) - watching.before)
        fields = watcher.finish()
    finally:
        loop.watcher = None
    return {
        "type": "watched",
        "launch": launch,
        "round": request["round"],
        "first_call": first,
        "samples": sum(compress(samples, alone)),
        "loader_workers": workers,
        **{name: _chosen(value, alone) for name, value in fields.items()},
    }


class _Watching:
    """A watcher of a script's steps. What came before a new epoch of the training's own loader, such as an evaluation,
    is none of the step that follows; the start of the epoch is."""

    def __init__(self, watcher: Watcher, loop: Loop) -> None:
        self._watcher, self._loop = watcher, loop
        self.marks, self.fetching, self.fetched = watcher.marks, watcher.fetching, watcher.fetched

    def stepping(self) -> None:
        self._watcher.stepping()
        self.is_anew = False
        self.before = 0  # samples that were none of the step

    def iterating(self, loader: int) -> None:
        """A loader begins an epoch."""
        interval = self._loop.interval
        if interval.aside is not None and loader in self._loop.training_loaders:
            self._watcher.restart()
            self.is_anew, self.before = True, interval.samples or 0
        self._watcher.fetching()


def _chosen(value: Any, calls: Sequence[bool]) -> Any:
    """Of what has an entry per call, or columns of them, the entries of these calls; empty columns are left out."""
    if isinstance(value, dict):
        columns = {name: _chosen(column, calls) for name, column in value.items()}
        return {name: column for name, column in columns.items() if any(column)}
    return list(compress(value, calls)) if isinstance(value, list) else value


def traced(loop: Loop, request: Mapping[str, Any]) -> Answer:
    """Steps under torch.profiler, their phases named."""
    from torch.profiler import profile, schedule, supported_activities

    from perftool.script.named import Names

    for _ in range(request["drop"]):
        yield
    profiler = profile(
        activities=supported_activities(),  # type: ignore[no-untyped-call]
        schedule=schedule(wait=0, warmup=TRACE_WARM_STEPS, active=request["calls"], repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(request["path"]),
    )
    loop.watcher = phases = Phases(Names().now)
    try:
        with profiler:
            for _ in range(TRACE_WARM_STEPS + request["calls"]):
                yield
                phases.end()
                profiler.step()
    finally:
        loop.watcher = None
    return {"type": "traced", "calls": request["calls"]}


def counted(loop: Loop, realised: Realised, request: Mapping[str, Any]) -> Answer:
    """What a step does by counting, after as many steps on either side of a check."""
    from perftool.probes.storages import Uncountable
    from perftool.probes.work import Counting, compiled, nothing_compiled
    from perftool.script.facts import parameters_of

    for _ in range(request["calls"]):
        yield
    breaks, graphs = compiled()
    operations, flops, reasons = None, None, []
    try:
        with nothing_compiled():
            counting, _ = yield from _one_step(loop, Counting)
        operations = counting.operations
        flops = counting.flops
    except Exception as error:
        told = str(error) if isinstance(error, Uncountable) else f"{type(error).__name__}: {error}"
        reasons.append(f"its arithmetic cannot be counted ({told})")
    if graphs:
        operations = None
        reasons.append("the operations of compiled code cannot be counted")
    return {
        "type": "counters",
        "variant": request["variant"],
        "parameters": sum(part.numel() for part in parameters_of(loop, realised)),
        "flops_per_step": flops,
        "operations_per_step": operations,
        "graph_breaks": breaks,
        "compiled_graphs": graphs,
        "calls": request["calls"],
        "reason": "; ".join(reasons) or None,
    }


def weighed(loop: Loop, realised: Realised, device: str) -> Answer:
    """What the training's memory is taken by; activations as autograd keeps them for one backward pass of the next
    step."""
    import torch

    from perftool.probes.storages import Passes, bytes_of, places_of
    from perftool.probes.weights import parts_of
    from perftool.probes.work import nothing_compiled
    from perftool.script.facts import parameters_of

    parameters, buffers = parameters_of(loop, realised), _buffers_of(realised)
    parts = parts_of(parameters, buffers, loop.optimizers, torch.device(device))
    try:
        with nothing_compiled():
            passes, batch = yield from _one_step(loop, Passes)
        held = places_of([*parameters, *buffers, *batch])
        parts["activations_bytes"] = max((one.held_bytes(but=held) for one in passes.saved()), default=None)
    except Exception as error:
        return {**parts, "reason": f"what autograd keeps could not be seen: {error}"}
    if not batch:
        return {**parts, "reason": OWN_BATCHES}
    return {**parts, "batch_bytes": sum(map(bytes_of, batch)), "batch_size": loop.interval.samples}


def limited(loop: Loop, realised: Realised, device: str) -> Answer:
    """The work of the next step beside what this process can do at best."""
    import torch

    from perftool.probes.ceilings import limits_beside, uncounted
    from perftool.workload import where

    work, reasons = None, []
    try:
        work = yield from _work(loop, realised)
    except Exception as error:
        reasons.append(uncounted(error))
    try:
        found = limits_beside(work, torch.device(device))
    except Exception as error:
        found = {"type": "limits", "work": work, "ceilings": []}
        reasons.append(f"the machine's limits could not be measured: {where(error)}")
    return {**found, "reason": "; ".join(reasons) or None}


def _work(loop: Loop, realised: Realised) -> Answer:
    """The fields of a StepWork. Raises Uncountable."""
    from perftool.probes.work import Work, nothing_compiled
    from perftool.script.facts import parameters_of

    parameters = parameters_of(loop, realised)
    with nothing_compiled():
        work, batch = yield from _one_step(loop, lambda: Work(parameters))
    samples = loop.interval.samples or 1
    return work.fields(samples=samples, batch=batch, buffers=_buffers_of(realised), optimizers=loop.optimizers)


def not_fitted(device: str) -> Answer:
    """No batch of another size can be built here."""
    import torch

    from perftool.probes.weights import available_bytes

    return {
        "type": "batch_fit",
        "points": [],
        "available_bytes": available_bytes(torch.device(device)),
        "reason": NOT_FITTED,
    }
    yield  # of a generator, like all the others


# ------------------------------------------------------------------------------------------------------------ one step


class Counts(Protocol):
    """Counts while it is open, and is told the phases of the step."""

    def __enter__(self) -> object: ...

    def __exit__(self, *error: Any) -> object: ...

    def phase(self, name: str) -> None: ...


C = TypeVar("C", bound=Counts)


def _one_step(loop: Loop, counts: Callable[[], C]) -> Generator[None, None, tuple[C, list[torch.Tensor]]]:
    """Let the script make a step while it is counted, and another one where that was an epoch's rest, or more than a
    step. Returns what has counted it, and the tensors of the batches that came meanwhile."""
    usual = loop.interval.samples or 0
    loop.keeps_batches = True
    try:
        for _ in range(TRIALS_MOST):
            counting = counts()
            loop.watcher = batches = _Batches(loop, counting.phase)
            with counting:
                yield
            if loop.interval.aside is None and (loop.interval.samples or 0) >= usual:
                break
        return counting, batches.tensors()
    finally:
        loop.watcher = loop.batch = None
        loop.keeps_batches = False


class _Batches(Phases):
    """The phases of one step, and its batches: the loop keeps only the last one."""

    def __init__(self, loop: Loop, now: Callable[[str], None]) -> None:
        super().__init__(now)
        self._loop, self._earlier = loop, list[Any]()
        loop.batch = None

    def fetching(self) -> None:
        self._earlier.append(self._loop.batch)
        super().fetching()

    def tensors(self) -> list[torch.Tensor]:
        from perftool.training import tensors_of

        return tensors_of([*self._earlier, self._loop.batch])


def _buffers_of(realised: Realised) -> list[torch.Tensor]:
    return [buffer for root in realised.roots for buffer in root.buffers()]
