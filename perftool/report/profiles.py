"""The sentences and table cells of a profile: figures, findings, phases, slow steps, limits, memory, and a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perftool import units
from perftool.analysis.traces import SIZE_MARGIN, SIZE_MOST_BYTES, loses_kernels
from perftool.records import (
    COPY,
    FORWARD,
    BatchFit,
    Bound,
    Distance,
    Explained,
    Finding,
    Growth,
    Jitter,
    MemoryParts,
    MemoryReport,
    SlowStep,
    TraceFacts,
    TraceReport,
    VariantSummary,
)
from perftool.report.wording import Pairs, settings_text

BOUNDS = {
    "launches": "launches: the device waits for the host to issue the step's work",
    "device": "the device: the host has issued the step's work long before it is done",
}
CAUSE_HEADINGS = ("cause", "slow steps", "time lost", "worst", "how often")
WORST_HEADINGS = ("step", "took", "cause")
NOTHING_FOUND = "None of the known causes takes a share that counts."


def figure_lines(variant: VariantSummary, unit: str) -> Pairs:
    """All of one variant's figures; samples are counted in `unit`."""
    lines = [
        ("settings", settings_text(variant.settings)),
        ("throughput", units.rate(variant.samples_per_second, unit)),
    ]
    if variant.step_ns is not None:
        quantiles = zip(
            ("p50", "p95", "p99"), (variant.step_ns.p50, variant.step_ns.p95, variant.step_ns.p99), strict=True
        )
        lines.append(("step time", ", ".join(f"{name} {units.duration(time_ns)}" for name, time_ns in quantiles)))
    elif variant.steps_per_call > 1:
        lines.append(("step time", f"none of single steps: {variant.steps_per_call} run in one call"))
    if variant.jitter is not None:
        lines += jitter_lines(variant.jitter)
    waits = variant.data_wait_fraction is not None
    lines.append(("data wait", units.share(variant.data_wait_fraction) + (" of the step time" if waits else "")))
    peak = units.size(variant.peak_host_bytes)
    if variant.warmup_peak_host_bytes is not None:
        peak += f"; {units.size(variant.warmup_peak_host_bytes)} while warming up"
    lines.append(("peak host memory", peak))
    if variant.peak_device_allocated_bytes is not None:
        lines.append(
            (
                "peak device memory",
                f"{units.size(variant.peak_device_allocated_bytes)} allocated, "
                f"{units.size(variant.peak_device_reserved_bytes)} reserved",
            )
        )
    starts = ((variant.cold_start_ns, "cold"), (variant.warm_start_ns, "warm"))
    told = [f"{units.duration(start_ns)} {kind}" for start_ns, kind in starts if start_ns is not None]
    if told:
        lines.append(("start-up", ", ".join(told)))
    return [*lines, ("warm-up", variant.warmup_class or units.UNKNOWN)]


def jitter_lines(jitter: Jitter) -> Pairs:
    """Jitter figures with their intervals, or why there are none."""
    tails = (("p95", jitter.j95, jitter.j95_low, jitter.j95_high), ("p99", jitter.j99, jitter.j99_low, jitter.j99_high))
    lines = [(f"jitter, {name}", _tail(value, low, high)) for name, value, low, high in tails]
    return [
        *lines,
        (
            "step to step",
            "not enough steps"
            if jitter.step_to_step_q95 is None
            else f"95 % of neighbours differ by less than {units.share(jitter.step_to_step_q95)} of the median",
        ),
        ("stalled time", f"{units.share(jitter.stall_share)} of {units.counted(jitter.steps, 'step')}"),
    ]


def _tail(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return "not enough steps"
    return f"{units.share(value)} above the median ({units.share(low)} to {units.share(high)})"


def finding_rows(found: Sequence[Finding]) -> Pairs:
    """Each finding with its evidence and what may cure it."""
    return [(one.name, one.evidence + (f"; try {one.try_}" if one.try_ else "")) for one in found]


# ---------------------------------------------------------------------------------------------------- a step's time


def phase_lines(found: Explained) -> Pairs:
    """Where the time of a step goes, and what it cost to look."""
    lines = [(one.name, f"{units.share(one.share)}, {units.duration(one.step_ns)}") for one in found.phases]
    if found.bound_by is not None:
        lines.append(("bound by", BOUNDS[found.bound_by]))
    if found.distortion is not None:
        changed = units.ratio_interval(found.distortion.ratio, found.distortion.low, found.distortion.high)
        lines.append(("watching", f"{changed} the time of a plain step, over {units.counted(found.steps, 'step')}"))
    return lines


def slow_text(found: Explained) -> str:
    """How many slow steps there are."""
    if not found.slow_steps:
        return (
            f"None of {units.counted(found.steps, 'step')} took more than one and a half times the median, "
            f"{units.duration(found.median_ns)}."
        )
    return (
        f"{units.counted(found.slow_steps, 'step')} of {units.count(found.steps)} took more than one and a half times "
        f"the median, {units.duration(found.median_ns)}."
    )


def cause_rows(found: Explained) -> list[tuple[str, str, str, str, str]]:
    """The slow steps by cause, under CAUSE_HEADINGS."""
    return [
        (
            one.cause,
            units.count(one.steps),
            units.share(one.share_of_time),
            units.duration(one.worst_ns),
            one.period or "",
        )
        for one in found.causes
    ]


def worst_rows(found: Explained) -> list[tuple[str, str, str]]:
    """The slowest steps, under WORST_HEADINGS."""
    return slow_rows(found.worst)


def slow_rows(slow: Sequence[SlowStep]) -> list[tuple[str, str, str]]:
    """Slow steps, under WORST_HEADINGS."""
    return [
        (
            units.count(one.call),
            units.duration(one.step_ns),
            one.cause if one.cause_ns is None else f"{one.cause}, {units.duration(one.cause_ns)}",
        )
        for one in slow
    ]


# -------------------------------------------------------------------------------------------------------- the limit


def limit_lines(distance: Distance) -> Pairs:
    """How far the step is from what the machine allows: its work, the ceilings, the bounds, and how well it does."""
    peaks = [f"{units.flop_rate(one.flops_per_second)} ({mode_text(one)})" for one in distance.bounds if one.dtypes]
    copy = f"copy {units.bandwidth(distance.bytes_per_second)} {'in' if distance.in_cache else 'beyond the'} cache"
    used = [f"{units.share(one.mfu)} of the measured {mode_text(one)} peak" for one in distance.bounds if one.dtypes]
    return [
        (
            "work per step",
            f"{units.flops(distance.work.flops)} forward and backward, at least "
            f"{units.size(distance.moved_bytes)} moved",
        ),
        ("this machine's ceiling", ", ".join([*peaks, copy])),
        *((bound_name(one), _bound_text(one)) for one in distance.bounds),
        ("MFU", ", ".join(used) or "no matrix product to judge by"),
    ]


def mode_text(bound: Bound) -> str:
    """ "bfloat16", "float32", "float32 at medium", "float32 (convolutions at high)"."""
    mode = "" if bound.precision in (None, "highest") else f" at {bound.precision}"
    if bound.convolution_precision is not None:
        mode += f" (convolutions at {bound.convolution_precision})"
    return " and ".join(f"{dtype}{mode if dtype == 'float32' else ''}" for dtype in bound.dtypes)


def bound_name(bound: Bound) -> str:
    """ "bound" for the mode that the step runs in, "bound in bfloat16" for one that it could."""
    return "bound" if bound.as_it_runs else f"bound in {mode_text(bound)}"


def _bound_text(bound: Bound) -> str:
    by = {"compute": "arithmetic", "memory": "memory traffic"}[bound.bound_by]
    text = f"{units.duration(bound.bound_ns)} by {by}: the step takes {units.ratio(bound.times_above)} that"
    if bound.times_above >= 1:
        return text
    why = {
        "compute": "the peak was measured too low, so end other programs and measure again",
        "memory": "caches spare it a part of the traffic",
    }[bound.bound_by]
    return f"{text}, since {why}"


# ----------------------------------------------------------------------------------------------------------- memory


def memory_lines(memory: MemoryReport | None) -> Pairs:
    """What memory is taken by, whether it grows, and how large a batch would fit."""
    if memory is None:
        return []
    lines = _parts_lines(memory.parts) if memory.parts is not None else []
    grown = (("memory growth", memory.host_growth), ("device memory growth", memory.device_growth))
    lines += [(name, _growth(found)) for name, found in grown if found is not None]
    return [*lines, ("largest batch", _largest_batch(memory.fit))] if memory.fit is not None else lines


def _parts_lines(parts: MemoryParts) -> Pairs:
    held = [
        f"parameters {units.size(parts.parameters_bytes)}",
        f"gradients {units.size(parts.gradients_bytes)}",
        f"optimizer state {units.size(parts.optimizer_bytes)}",
        *([f"buffers {units.size(parts.buffers_bytes)}"] if parts.buffers_bytes else []),
        f"activations {units.size(parts.activations_bytes)}{f' ({parts.reason})' if parts.reason else ''}",
        *([f"batch {units.size(parts.batch_bytes)}"] if parts.batch_bytes is not None else []),
    ]
    lines = [("memory parts", ", ".join(held))]
    if parts.device_allocated_bytes is not None:
        split_bytes, reserved_bytes = parts.device_inactive_split_bytes, parts.device_reserved_bytes
        lost = split_bytes / reserved_bytes if split_bytes is not None and reserved_bytes else None
        lines.append(
            (
                "device memory",
                f"{units.size(parts.device_allocated_bytes)} allocated, {units.size(reserved_bytes)} reserved, "
                f"{units.size(parts.device_nvml_bytes)} in use on the device; fragmentation "
                f"{units.size(split_bytes)}, {units.share(lost)} of what is reserved",
            )
        )
    return lines


def _growth(found: Growth) -> str:
    if found.bytes_per_step is None:
        return f"undecided: too few samples in {units.counted(found.steps, 'step')}"
    pace = units.size_change(found.bytes_per_step, found.low, found.high)
    if found.verdict == "steady":
        return f"{'little' if found.low is not None and found.low > 0 else 'none'}: {pace}"
    return f"{found.verdict}: {pace}, {units.size(found.grown_bytes)} in {units.counted(found.steps, 'step')}"


def _largest_batch(fit: BatchFit) -> str:
    if fit.largest_batch_size is None:
        return f"unknown: {fit.reason}"
    sizes = ", ".join(units.count(one.batch_size) for one in fit.points)
    return (
        f"about {units.amount(fit.largest_batch_size)} fits in {units.size(fit.available_bytes)}, "
        f"{units.size(fit.per_sample_bytes)} a sample (fitted from batches of {sizes})"
    )


# ---------------------------------------------------------------------------------------------------------- a trace


def trace_lines(report: TraceReport) -> Pairs:
    """What a trace shows, and how much slower the steps were for it."""
    facts = report.facts
    lines = _trace_shares(facts)
    if report.plain_step_ns is not None:
        lines.append(
            ("step time", f"{units.duration(facts.step_ns)} traced, {units.duration(report.plain_step_ns)} without")
        )
    return lines


def _trace_shares(facts: TraceFacts) -> Pairs:
    shares = _phases(facts.shares)
    if FORWARD not in facts.shares:
        shares += "; the rest runs as one graph, whose phases have no marks"
    if facts.device_busy is None:
        return [("share of the traced time", shares)]
    if COPY in facts.shares:
        shares += f"; {COPY} includes waiting there for the step before"
    lines = [("share of the host's time", shares)]
    if not loses_kernels(facts):
        lines.insert(
            0, ("share of the device's time", _phases({**facts.device_shares, "busy in all": facts.device_busy}))
        )
    return lines


def _phases(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{phase} {units.share(share)}" for phase, share in shares.items())


def trace_warnings(facts: TraceFacts, size_bytes: int) -> list[str]:
    """What is wrong with a trace, with what would help."""
    warnings = []
    if loses_kernels(facts):
        warnings.append(
            f"next to no kernels are in the trace: the device is seen at work for {units.share(facts.device_busy)} of "
            "the time. Wheels of torch for CUDA 13.0 may lose them; one for another CUDA has them. The shares of the "
            "host's time hold."
        )
    if size_bytes > SIZE_MOST_BYTES:
        warnings.append(f"the trace is {_larger(facts, size_bytes)}")
    return warnings


def _larger(facts: TraceFacts, size_bytes: int) -> str:
    larger = f"larger than {units.size(SIZE_MOST_BYTES)}, and viewers may be slow to open it"
    if facts.calls <= 1:
        least = units.counted(facts.steps, "step")
        return f"{larger}; fewer than {least} cannot be traced here, and Perfetto opens large traces best"
    calls = max(1, int(facts.calls * SIZE_MARGIN * SIZE_MOST_BYTES / size_bytes))
    return f"{larger}; trace fewer steps: --steps {calls * facts.steps // facts.calls}"
