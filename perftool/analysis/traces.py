"""What a torch.profiler trace of some steps says: how the traced time divides among the phases of a step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from perftool.records import BACKWARD, COPY, FORWARD, OPTIMIZER, WAIT, TraceFacts

STEP = "ProfilerStep#"  # torch.profiler's own mark of a step, followed by its number
OPTIMIZER_MARK = (
    "Optimizer."  # torch's own marks begin so: Optimizer.step#Adam.step, Optimizer.zero_grad#Adam.zero_grad
)

PHASES = (WAIT, COPY, FORWARD, BACKWARD, OPTIMIZER)
"""Our own marks have the names of the phases."""

Span = tuple[float, float]

DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")
# A kernel takes 2 us or more, and Python launches one every 10 to 100 us, the profiler's own work included. A GPU that
# was at work for less than this share of the time in which the host did not wait for data is not in the trace.
BUSY_LEAST = 0.01

SIZE_MOST_BYTES = 20_000_000
SIZE_MARGIN = 0.9  # steps differ: an epoch may end in one of them
TRACED_CALLS_MOST = 50  # shows what there is to see; more are only slower to open


def facts_of(trace: Mapping[str, Any], *, steps_per_call: int = 1, on_cuda: bool = False) -> TraceFacts:
    """How many steps were traced, how long they took, and the share of each phase that has marks in the trace.

    The shares are of the host's time. A phase that other threads work on as well counts as long as it is marked there.
    On a GPU the host runs ahead until something waits, and that phase has the waiting: the device's shares are apart.
    """
    events = trace["traceEvents"]
    steps = _spans(event for event in _of(events, "user_annotation") if event["name"].startswith(STEP))
    marked = {phase: _marked(events, "user_annotation", phase) for phase in PHASES}
    total_us = _length(steps)
    busy, device_shares = _on_device(events, steps, marked) if on_cuda and total_us else (None, {})
    return TraceFacts(
        steps=len(steps) * steps_per_call,
        calls=len(steps),
        events=len(events),
        step_ns=1000 * total_us / (len(steps) * steps_per_call) if steps else None,
        shares=_shares(marked, steps),
        device_shares=device_shares,
        device_busy=busy,
    )


def loses_kernels(facts: TraceFacts) -> bool:
    """Whether the trace of a training on a GPU has next to none of the device's work.

    Source: wheels of torch for CUDA 13.0 may lose kernels, pytorch issues 188481 and 192021.
    """
    waited = facts.shares.get(WAIT, 0.0)
    return facts.device_busy is not None and facts.device_busy < BUSY_LEAST * (1 - waited)


def _on_device(
    events: Sequence[Mapping[str, Any]], steps: list[Span], marked: Mapping[str, list[Span]]
) -> tuple[float, dict[str, float]]:
    """The share of the time in which the device worked, and of each phase on it, gaps between its kernels included.

    torch repeats a mark on the device from the first to the last kernel that its thread launched within. Those of the
    backward pass are launched by a thread of autograd's, so the mark lacks them (kineto issues 1022 and 1132): what was
    launched while the host was within a mark counts too.
    """
    # What CUPTI lost may be there with a begin and a length of 0.
    began_us = steps[0][0]
    work = [event for category in DEVICE_WORK for event in _of(events, category) if event["ts"] >= began_us]
    marks = [event for event in _of(events, "gpu_user_annotation") if event["ts"] >= began_us]
    worked = _spans(work)
    # The device lags behind the host, and ends last.
    whole = [(began_us, max(end for _, end in [*steps, *worked]))]
    launched_us = {_correlation(event): event["ts"] for category in LAUNCHES for event in _of(events, category)}
    own = {
        phase: _merged([*_marked(marks, "gpu_user_annotation", phase), *_launched_within(spans, work, launched_us)])
        for phase, spans in marked.items()
    }
    return _length(_common(whole, worked)) / _length(whole), _shares(own, whole)


def _launched_within(
    spans: list[Span], work: Iterable[Mapping[str, Any]], launched_us: Mapping[int | None, float]
) -> Iterable[Span]:
    """For each span of the host the time from the first to the last work on the device that was launched in it."""
    found: dict[int, Span] = {}
    for event in work:
        correlation = _correlation(event)
        at_us = launched_us.get(correlation) if correlation is not None else None
        index = bisect_right(spans, at_us, key=lambda span: span[0]) - 1 if at_us is not None else -1
        if at_us is not None and index >= 0 and at_us < spans[index][1]:
            begin, end = found.get(index, (float("inf"), float("-inf")))
            found[index] = (min(begin, event["ts"]), max(end, event["ts"] + event["dur"]))
    return found.values()


def _correlation(event: Mapping[str, Any]) -> int | None:
    """What a launch and the work that it launched have in common."""
    correlation: int | None = event.get("args", {}).get("correlation")
    return correlation


def _shares(spans: Mapping[str, list[Span]], whole: list[Span]) -> dict[str, float]:
    """Of each phase that has marks."""
    total_us = _length(whole)
    return {phase: _length(_common(whole, own)) / total_us for phase, own in spans.items() if own and total_us}


def _of(events: Iterable[Mapping[str, Any]], category: str) -> Iterable[Mapping[str, Any]]:
    return (event for event in events if event.get("cat") == category)


def _marked(events: Sequence[Mapping[str, Any]], category: str, phase: str) -> list[Span]:
    """Torch's marks of the optimizer count where it has none of ours: a closure lies within them, all that it computes
    included."""
    own = _spans(event for event in _of(events, category) if event["name"] == phase)
    if own or phase != OPTIMIZER:
        return own
    return _spans(event for event in _of(events, category) if event["name"].startswith(OPTIMIZER_MARK))


def calls_that_fit(call_bytes: float, call_s: float, *, size_bytes: float, time_s: float) -> int:
    """How many calls to trace so that neither the trace becomes too large nor the tracing too long; at least one."""
    by_size = SIZE_MARGIN * size_bytes / max(1.0, call_bytes)
    by_time = time_s / max(1e-6, call_s)
    return max(1, int(min(by_size, by_time, TRACED_CALLS_MOST)))


def _spans(events: Iterable[Mapping[str, Any]]) -> list[Span]:
    """Begin and end of the events, in microseconds, in order; those that overlap as one."""
    return _merged((event["ts"], event["ts"] + event["dur"]) for event in events)


def _merged(parts: Iterable[Span]) -> list[Span]:
    """In order; those that overlap as one."""
    spans: list[Span] = []
    for begin, end in sorted(parts):
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
