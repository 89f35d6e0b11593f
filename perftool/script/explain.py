"""What explains a step of a script, at the price of disturbing it: phases and causes, a trace, counts, memory."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from perftool.script.loop import Loop

Answer = Generator[None, None, dict[str, Any]]
TRACE_WARM_STEPS = 2  # with the profiler on, before what is kept: its own first calls are slow


def traced(loop: Loop, request: Mapping[str, Any]) -> Answer:
    """Steps under torch.profiler, their phases named."""
    from torch.profiler import profile, schedule, supported_activities

    from perftool.script.named import Named

    for _ in range(request["drop"]):
        yield
    profiler = profile(
        activities=supported_activities(),  # type: ignore[no-untyped-call]
        schedule=schedule(wait=0, warmup=TRACE_WARM_STEPS, active=request["calls"], repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(request["path"]),
    )
    loop.marks = Named()
    try:
        with profiler:
            for _ in range(TRACE_WARM_STEPS + request["calls"]):
                yield
                loop.marks.end()
                profiler.step()
    finally:
        loop.marks = None
    return {"type": "traced", "calls": request["calls"]}
