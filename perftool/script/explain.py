"""What explains the steps of a script, at the price of disturbing them: phases and causes, a trace, counts, memory."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

from perftool.script.loop import Loop
from perftool.script.named import Named
from perftool.script.realise import Realised

if TYPE_CHECKING:
    import torch

    from perftool.probes.watch import Watcher

Answer = Generator[None, None, dict[str, Any]]
TRACE_WARM_STEPS = 2  # with the profiler on, before what is kept: its own first calls are slow
NOT_FITTED = "a script chooses its batches itself; vary its own option with --vary '--batch-size=32|64'"


def watched(watcher: Watcher, loop: Loop, request: Mapping[str, Any], *, launch: int, workers: int) -> Answer:
    """So many steps, each with its phases and what disturbed it. What is no step is left out."""
    for _ in range(request["drop"]):
        yield
    first, samples = loop.steps, 0
    loop.watcher = watcher
    try:
        watcher.begin()
        for _ in range(request["steps"]):
            watcher.stepping()
            yield
            watcher.stepped()
            samples += loop.interval.samples or 1
        fields = watcher.finish()
    finally:
        loop.watcher = None
    return {
        "type": "watched",
        "launch": launch,
        "round": request["round"],
        "first_call": first,
        "samples": samples,
        "loader_workers": workers,
        **fields,
    }


def traced(loop: Loop, request: Mapping[str, Any]) -> Answer:
    """Steps under torch.profiler, their phases named."""
    from torch.profiler import profile, schedule, supported_activities

    for _ in range(request["drop"]):
        yield
    profiler = profile(
        activities=supported_activities(),  # type: ignore[no-untyped-call]
        schedule=schedule(wait=0, warmup=TRACE_WARM_STEPS, active=request["calls"], repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(request["path"]),
    )
    loop.watcher = Named()
    try:
        with profiler:
            for _ in range(TRACE_WARM_STEPS + request["calls"]):
                yield
                loop.watcher.marks.end()
                profiler.step()
    finally:
        loop.watcher = None
    return {"type": "traced", "calls": request["calls"]}


def counted(loop: Loop, realised: Realised, request: Mapping[str, Any]) -> Answer:
    """What a step does by counting, after as many steps on either side of a check."""
    from torch.utils.flop_counter import FlopCounterMode

    from perftool.probes.work import Counting, compiled, more_formulas

    while loop.steps < request["calls"]:
        yield
    breaks, graphs = compiled()
    operations, flops, reasons = None, None, []
    if graphs:
        reasons.append("the operations of compiled code cannot be counted")
    else:
        counting = Counting()
        with counting:
            yield
        operations = counting.operations
        counter = FlopCounterMode(display=False, custom_mapping=dict(more_formulas()))
        with counter:
            yield
        flops = counter.get_total_flops()
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
    """What the training's memory is taken by; activations as autograd keeps them in the next step."""
    import torch

    from perftool.probes.device import read_use
    from perftool.probes.storages import Storages, tensors_within

    use = read_use(torch.device(device))
    parameters = parameters_of(loop, realised)
    held = Storages()
    parts = {
        "parameters_bytes": held.add(parameters),
        "gradients_bytes": held.add(part.grad for part in parameters if part.grad is not None),
        "optimizer_bytes": held.add(
            tensor for one in loop.optimizers for tensor in tensors_within(getattr(one, "state", {}))
        ),
        "buffers_bytes": held.add(buffer for root in realised.roots for buffer in root.buffers()),
    }
    kept_bytes = 0

    def note(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept_bytes
        kept_bytes += held.add([tensor])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield
    return {
        "type": "memory_parts",
        **parts,
        "activations_bytes": kept_bytes,
        "batch_bytes": None,
        "reason": "batches are the script's own, and are counted with the activations that autograd keeps",
        "device_allocated_bytes": use.allocated_bytes,
        "device_reserved_bytes": use.reserved_bytes,
        "device_nvml_bytes": use.nvml_bytes,
        "device_inactive_split_bytes": use.inactive_split_bytes,
    }


def parameters_of(loop: Loop, realised: Realised) -> list[torch.Tensor]:
    """Of the optimizers, or where the script updates by hand, of the models; each once."""
    groups = (group for one in loop.optimizers for group in getattr(one, "param_groups", ()))
    found = {id(part): part for group in groups for part in group["params"]}
    if not found:
        found = {id(part): part for root in realised.roots for part in root.parameters()}
    return list(found.values())
