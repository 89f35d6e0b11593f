"""What a torch.profiler trace of some steps says: how the traced time divides among the phases of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from perftool.records import BACKWARD, COPY, FORWARD, OPTIMIZER, WAIT, TraceFacts

STEP = "ProfilerStep#"  # torch.profiler's own mark of a step, followed by its number
OPTIMIZER_MARK = (
    "Optimizer."  # torch's own marks begin so: Optimizer.step#Adam.step, Optimizer.zero_grad#Adam.zero_grad
)

PHASES: Mapping[str, Callable[[str], bool]] = {
    WAIT: WAIT.__eq__,
    COPY: COPY.__eq__,
    FORWARD: FORWARD.__eq__,
    BACKWARD: BACKWARD.__eq__,
    OPTIMIZER: lambda name: name.startswith(OPTIMIZER_MARK),
}
"""Phase to whether an annotation of this name belongs to it. Our own marks have the names of the phases."""

Span = tuple[float, float]

SIZE_MARGIN = 0.9  # steps differ: an epoch may end in one of them
TRACED_CALLS_MOST = 50  # shows what there is to see; more are only slower to open


def facts_of(trace: Mapping[str, Any], *, steps_per_call: int = 1) -> TraceFacts:
    """How many steps were traced, how long they took, and the share of each phase that has marks in the trace.

    A phase that other threads work on as well counts as long as it is marked on the host.
    """
    annotations = [event for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    steps = _spans(event for event in annotations if event["name"].startswith(STEP))
    total_us = _length(steps)
    shares = {}
    for phase, belongs in PHASES.items():
        spans = _spans(event for event in annotations if belongs(event["name"]))
        if spans and total_us:
            shares[phase] = _length(_common(steps, spans)) / total_us
    return TraceFacts(
        steps=len(steps) * steps_per_call,
        events=len(trace["traceEvents"]),
        step_ns=1000 * total_us / (len(steps) * steps_per_call) if steps else None,
        shares=shares,
    )


def calls_that_fit(call_bytes: float, call_s: float, *, size_bytes: float, time_s: float) -> int:
    """How many calls to trace so that neither the trace becomes too large nor the tracing too long; at least one."""
    by_size = SIZE_MARGIN * size_bytes / max(1.0, call_bytes)
    by_time = time_s / max(1e-6, call_s)
    return max(1, int(min(by_size, by_time, TRACED_CALLS_MOST)))


def _spans(events: Iterable[Mapping[str, Any]]) -> list[Span]:
    """Begin and end of the events, in microseconds, in order; those that overlap as one."""
    spans: list[Span] = []
    for begin, end in sorted((event["ts"], event["ts"] + event["dur"]) for event in events):
        if spans and begin < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((begin, end))
    return spans


def _common(first: list[Span], second: list[Span]) -> list[Span]:
    """Where both are; each is in order and without overlaps."""
    found: list[Span] = []
    one, other = iter(first), iter(second)
    a, b = next(one, None), next(other, None)
    while a is not None and b is not None:
        begin, end = max(a[0], b[0]), min(a[1], b[1])
        if begin < end:
            found.append((begin, end))
        if a[1] < b[1]:
            a = next(one, None)
        else:
            b = next(other, None)
    return found


def _length(spans: list[Span]) -> float:
    return sum(end - begin for begin, end in spans)
