"""How far a step is from the least time that its arithmetic and its memory traffic allow on this machine.

The roofline model: a step takes at least as long as its FLOPs at the measured peak, and at least as long as its bytes
at the measured bandwidth. Source: Williams, Waterman and Patterson, Roofline (2009), doi:10.1145/1498765.1498785.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import isfinite

from perftool.records import Bound, Ceiling, Distance, Limits, StepWork

FASTER_FROM = 1.2  # a mode counts as faster than the step's own from so many times its peak: peaks are measured, too

Mode = tuple[str, str | None]
"""A dtype with the precision mode of its products, which only float32 has."""

FULL: Mode = ("float32", "highest")


def distance(limits: Limits, step_ns: float) -> Distance | None:
    """Where a step of this time stands above its bounds.

    One bound for the mode that the step runs in, and one for the fastest mode of the machine where that is another;
    where the step's own mode is not known, float32 in full precision takes its place.
    The memory bound takes the copy that fits in the last-level cache where the step's whole working set does, and the
    large one otherwise. None where a ceiling is missing, or there is neither work nor time.
    """
    work = limits.work
    if work is None:
        return None
    peaks = peaks_of(limits.ceilings)
    in_cache = limits.cache_bytes is not None and work.working_set_bytes <= limits.cache_bytes
    bytes_per_second = _bandwidth(limits.ceilings, in_cache)
    moved = moved_bytes(work)
    if not peaks or bytes_per_second is None or not moved or not isfinite(step_ns) or step_ns <= 0:
        return None
    memory_ns = moved / bytes_per_second * 1e9
    return Distance(
        step_ns=step_ns,
        work=work,
        moved_bytes=moved,
        bytes_per_second=bytes_per_second,
        in_cache=in_cache,
        bounds=[
            _bound(modes, work, peaks, memory_ns, step_ns, as_it_runs=as_it_runs)
            for modes, as_it_runs in _compared(work, _modes(work, limits), peaks)
        ],
    )


def moved_bytes(work: StepWork) -> int:
    """All that a step moves at the least, in bytes."""
    return (
        work.parameter_bytes
        + work.gradient_bytes
        + work.optimizer_state_bytes
        + work.activation_bytes
        + work.batch_bytes
    )


def _modes(work: StepWork, limits: Limits) -> dict[Mode, int]:
    """FLOPs of the step by the mode that it runs in. Of a dtype that has two, that of matmuls comes first.

    Convolutions and recurrent layers have a setting of their own: on a GPU they run in TF32 while matmuls do not.
    """
    modes: Counter[Mode] = Counter()
    for dtype, flops in work.flops_by_dtype.items():
        convolved = min(flops, work.convolution_flops_by_dtype.get(dtype, 0))
        for part, precision in ((flops - convolved, limits.precision), (convolved, limits.convolution_precision)):
            if part:
                modes[_mode(dtype, precision)] += part
    return dict(modes)


def _compared(work: StepWork, own: dict[Mode, int], peaks: Mapping[Mode, float]) -> list[tuple[dict[Mode, int], bool]]:
    """FLOPs by mode, and whether the step runs so."""
    flops = work.flops
    if sum(own.values()) == flops and own.keys() <= peaks.keys():
        found = [(own, True)]
    else:
        found = [({FULL: flops}, False)] if FULL in peaks else []
    best = max(peaks, key=lambda mode: peaks[mode])
    if not found or flops / peaks[best] * FASTER_FROM < _compute_s(found[0][0], peaks):
        found.append(({best: flops}, False))
    return found


def _bound(
    modes: Mapping[Mode, int],
    work: StepWork,
    peaks: Mapping[Mode, float],
    memory_ns: float,
    step_ns: float,
    *,
    as_it_runs: bool,
) -> Bound:
    compute_ns = _compute_s(modes, peaks) * 1e9
    bound_ns = max(compute_ns, memory_ns)
    first, second, *_ = [*(precision for _, precision in modes if precision is not None), None, None]
    return Bound(
        dtypes=list(dict.fromkeys(dtype for dtype, _ in modes)),
        precision=first,
        convolution_precision=second,
        as_it_runs=as_it_runs,
        flops_per_second=work.flops / compute_ns * 1e9 if compute_ns else None,
        compute_ns=compute_ns,
        memory_ns=memory_ns,
        bound_ns=bound_ns,
        bound_by="compute" if compute_ns >= memory_ns else "memory",
        times_above=step_ns / bound_ns,
        mfu=compute_ns / step_ns,
    )


def _compute_s(modes: Mapping[Mode, int], peaks: Mapping[Mode, float]) -> float:
    return sum(flops / peaks[mode] for mode, flops in modes.items())


def _mode(dtype: str, precision: str | None) -> Mode:
    return (dtype, precision if dtype == "float32" else None)


def peaks_of(ceilings: list[Ceiling]) -> dict[Mode, float]:
    """The best of each mode, in FLOP/s."""
    peaks: dict[Mode, float] = {}
    for one in ceilings:
        if one.kind == "matmul" and one.flops_per_second:
            mode = _mode(one.dtype, one.precision)
            peaks[mode] = max(one.flops_per_second, peaks.get(mode, 0.0))
    return peaks


def _bandwidth(ceilings: list[Ceiling], in_cache: bool) -> float | None:
    """Of the smallest copy, or of the largest; no lower within the cache than beyond it."""
    copies = sorted(
        (one.buffer_bytes, one.bytes_per_second)
        for one in ceilings
        if one.kind == "copy" and one.bytes_per_second and one.buffer_bytes
    )
    if not copies:
        return None
    return max(copies[0][1], copies[-1][1]) if in_cache else copies[-1][1]
