"""The sentences and table cells of every report, so that the terminal and a page say the same thing.

Nothing is decided here: verdicts are read from the summary.
"""

from __future__ import annotations

from perftool import units
from perftool.records import (
    Comparison,
    Jitter,
    LossParity,
    Machine,
    Recommendation,
    SettingEffect,
    Settings,
    Summary,
    VariantSummary,
)

VERDICTS = {"better": "faster", "worse": "slower", "same": "same", "undecided": "undecided"}


def settings_text(settings: Settings) -> str:
    """`amp=bf16, threads=1`; the baseline's own name where nothing differs."""
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "baseline"


def headline(summary: Summary) -> str:
    """The answer, in a sentence."""
    advice = summary.recommendation
    if summary.command == "profile":
        return f"{summary.workload}: {units.rate(summary.baseline.samples_per_second)}"
    if summary.command == "compare":
        faster = [one for one in summary.variants if _verdict(one) == "better"]
        best = max(faster, key=lambda one: one.versus_baseline["throughput"].ratio, default=None)
        if best is None:
            return f"{summary.workload}: no variant was found faster than the baseline"
        return (
            f"{summary.workload}: fastest is {settings_text(best.settings)}, {gain(best.versus_baseline['throughput'])}"
        )
    if advice is not None:
        speedup = units.ratio_interval(advice.speedup.ratio, advice.speedup.low, advice.speedup.high)
        return f"{summary.workload}: {settings_text(advice.settings)} gives {speedup} the samples per second"
    return {
        "nothing_better": f"{summary.workload}: nothing that was tried is faster; keep it as it is",
        "not_confirmed": f"{summary.workload}: the best of the search was not confirmed in fresh launches; no advice",
        "interrupted": f"{summary.workload}: interrupted before anything was confirmed; no advice",
    }.get(summary.recommendation_status or "", f"{summary.workload}: no advice")


def gain(comparison: Comparison) -> str:
    """A throughput comparison: 1.34x (1.31 to 1.37)."""
    return units.ratio_interval(comparison.ratio, comparison.low, comparison.high)


def sureness(advice: Recommendation) -> str:
    """How sure the confirmed number is."""
    return (
        f"{units.share(advice.confidence)} interval, from {advice.pairs} pairs of blocks in {advice.launches} fresh "
        "launches of each that had no part in the choice"
    )


def costs(advice: Recommendation) -> list[tuple[str, str]]:
    """What the recommendation costs or changes beside its speed: a name and a sentence each."""
    memory = (
        "unknown" if advice.peak_memory_ratio is None else f"{units.percent(advice.peak_memory_ratio - 1)} at the peak"
    )
    jitter = (
        "unknown"
        if advice.jitter_ratio is None
        else f"p95/p50 of the step time {units.percent(advice.jitter_ratio - 1)}"
    )
    if advice.break_even_steps is None:
        start = "unknown"
    elif advice.break_even_steps < 1:
        start = "no slower"
    else:
        start = f"slower, paid back after {units.count(advice.break_even_steps)} steps"
    lines = [("memory", memory), ("jitter", jitter), ("start-up", start)]
    if advice.loss_parity is not None:
        lines.append(("numerics", parity(advice.loss_parity)))
    if advice.changes_optimisation:
        lines.append(
            ("optimisation", "another batch size is another training: check what it learns, and its learning rate")
        )
    return lines


def parity(checked: LossParity) -> str:
    """What the comparison of losses came to."""
    basis = f"{checked.seeds} seeds of {checked.steps} steps each"
    if checked.verdict == "parity":
        return f"changed, and the loss stays within what seeds alone do ({basis})"
    if checked.verdict == "differs":
        return f"changed, and the loss differs by more than seeds alone do ({basis})"
    return f"changed; whether the loss stays the same is undecided ({basis}), so watch your own validation metric"


def contribution(effect: SettingEffect) -> str:
    """What one setting did alone, and what its absence from the whole costs."""
    alone = "not measured alone" if effect.alone is None else f"{units.ratio(effect.alone.ratio)} alone"
    if effect.together is None:
        return alone
    return f"{alone}, {units.ratio(effect.together.ratio)} on top of the others"


def variant_cells(variant: VariantSummary) -> tuple[str, str, str, str, str]:
    """Throughput ratio with interval, verdict, p50, memory and note of a variant."""
    throughput = variant.versus_baseline.get("throughput")
    step = units.duration(variant.step_ns.p50) if variant.step_ns else ""
    memory = units.size(variant.peak_host_bytes) if variant.peak_host_bytes else ""
    if variant.status != "measured":
        return "", variant.status, "", "", variant.reason or ""
    if throughput is None:
        return "", "", step, memory, ""
    return gain(throughput), VERDICTS[throughput.verdict], step, memory, _doubt(throughput)


def _doubt(throughput: Comparison) -> str:
    if throughput.verdict == "undecided" and throughput.smallest_detectable is not None:
        return f"would have seen {units.share(throughput.smallest_detectable)}"
    return ""


def jitter_lines(jitter: Jitter) -> list[tuple[str, str]]:
    """Jitter figures with their intervals, or why there are none."""
    lines = []
    for name, value, low, high in (
        ("p95 over p50", jitter.j95, jitter.j95_low, jitter.j95_high),
        ("p99 over p50", jitter.j99, jitter.j99_low, jitter.j99_high),
    ):
        if value is None or low is None or high is None:
            lines.append((name, "not enough steps"))
        else:
            lines.append((name, f"{units.percent(value)} ({units.percent(low)} to {units.percent(high)})"))
    lines.append(("stalled time", units.share(jitter.stall_share)))
    return lines


def profile_lines(variant: VariantSummary) -> list[tuple[str, str]]:
    """All of one variant's figures."""
    step = variant.step_ns
    lines = [("throughput", units.rate(variant.samples_per_second))]
    if step is not None:
        lines.append(
            (
                "step time",
                f"p50 {units.duration(step.p50)}, p95 {units.duration(step.p95)}, p99 {units.duration(step.p99)}",
            )
        )
    if variant.jitter is not None:
        lines += jitter_lines(variant.jitter)
        lines.append(("steps", units.count(variant.jitter.steps)))
    lines.append(("data wait", units.share(variant.data_wait_fraction) + " of the step"))
    lines.append(
        (
            "peak host memory",
            f"{units.size(variant.peak_host_bytes)} ({units.size(variant.warmup_peak_host_bytes)} while warming up)",
        )
    )
    if variant.peak_device_allocated_bytes is not None:
        lines.append(
            (
                "peak device memory",
                f"{units.size(variant.peak_device_allocated_bytes)} allocated, "
                f"{units.size(variant.peak_device_reserved_bytes)} reserved, "
                f"{units.size(variant.peak_device_nvml_bytes)} used on the device",
            )
        )
    lines.append(
        ("start-up", f"{units.duration(variant.cold_start_ns)} cold, {units.duration(variant.warm_start_ns)} warm")
    )
    lines.append(("warm-up", variant.warmup_class or units.UNKNOWN))
    return lines


def machine_text(machine: Machine) -> str:
    """The machine in a line."""
    place = machine.device_name or machine.cpu_model
    return (
        f"{place}, {machine.usable_cores} cores, {units.size(machine.memory_bytes)}; torch {machine.torch_version}, "
        f"Python {machine.python_version}"
    )


def again(summary: Summary) -> str:
    """The command that does the same again."""
    from shlex import join

    return join(["perftool", *summary.arguments])


def _verdict(variant: VariantSummary) -> str:
    throughput = variant.versus_baseline.get("throughput")
    return throughput.verdict if throughput and variant.status == "measured" else ""
