"""The words that all reports share, so that the terminal and a page say the same thing: names, ratios, and variants.

Nothing is decided here or in the modules beside it: verdicts are read from the summary. What users named may stand in
any of these texts; each renderer escapes it for its own form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from perftool import units
from perftool.records import Comparison, Estimate, Rejected, Settings, Summary, VariantSummary, VerdictWord

if TYPE_CHECKING:
    from perftool.analysis.search import Standing

# Texts about samples, here and in `captions`, go through `units.told_in`.
METRIC_NAMES = {
    "throughput": "samples/s",
    "step_p50": "median step",
    "step_p95": "p95 step",
    "jitter": "p95/p50",
    "stall_share": "stalled time",
    "peak_host": "peak host memory",
    "peak_device": "peak device memory",
    "start_up": "start-up",
    "flops_per_step": "arithmetic per step",
    "operations_per_step": "operations per step",
    "parameters": "parameters",
    "graph_breaks": "graph breaks",
    "compiled_graphs": "compiled graphs",
}
GOAL_NAMES = {
    "throughput": "samples per second",
    "step_p50": "step time",
    "jitter": "p95/p50 of the step time",
    "peak_host": "peak host memory",
    "peak_device": "peak device memory",
    "time_to_loss": "time to the target loss",
}
TIMES_AND_RATES = ("throughput", "step_p50", "step_p95")
WARMUP_NOTES = {
    "slowdown": "its steps became slower while it warmed up",
    "no steady state": "its step times had not settled when it was measured",
}
LONGEST_TEXT = 500  # of a reason or warning: exceptions of users' code can be pages long
TRADEOFF_HEADINGS = ("settings", "samples/s", "memory", "p95/p50")
AT_ODDS = 1.15  # by so much two rates that were not taken in turns may say something else than those that were
P50_NOTE = "p50 is of each one's own steps, whenever they ran; the ratio is of blocks beside each other."
VARIANT_HEADINGS = ("settings", "samples/s", "verdict", "p50", "memory")

Pairs = list[tuple[str, str]]
"""Names with texts, in the order to show."""


def visible(text: str) -> str:
    """One line of at most LONGEST_TEXT characters, without control characters, which could hide or move text."""
    line = " ".join(printable(text).split())
    return line if len(line) <= LONGEST_TEXT else f"{line[: LONGEST_TEXT - 1]}…"


def printable(text: str) -> str:
    """Every character that does not print as a space."""
    return "".join(character if character.isprintable() else " " for character in text)


def more(count: int) -> str:
    """That a table goes on elsewhere."""
    return f"And {units.counted(count, 'slower one')}, all of them in report.html."


def left_out(titles: Sequence[str]) -> str:
    """What a report had no room for."""
    return f"Left out, since it would not fit a comment: {'; '.join(titles)}. All of it is in report.html."


# ------------------------------------------------------------------------------------------------------ the session


def is_alone(summary: Summary) -> bool:
    """Whether it tells of one variant that was compared with nothing."""
    return summary.command in ("profile", "trace", "run")


def is_for_later(summary: Summary) -> bool:
    """Whether it was measured to be stored, and is compared with nothing yet."""
    return summary.command == "check" and summary.check is None


def has_variants(summary: Summary) -> bool:
    """Whether it compares settings, of which some may be better."""
    return summary.command in ("tune", "compare")


# ---------------------------------------------------------------------------------------------- settings and ratios


def metric_name(metric: str, unit: str) -> str:
    """unit: what samples are counted in."""
    return units.told_in(METRIC_NAMES.get(metric, metric), unit)


def goal_name(metric: str, unit: str) -> str:
    """What a gain is a ratio of, in words."""
    return units.told_in(GOAL_NAMES[metric], unit)


def headings(names: Sequence[str], summary: Summary) -> list[str]:
    """Those of a table, about samples or about steps."""
    return [units.told_in(name, summary.sample_unit) for name in names]


def settings_text(settings: Settings) -> str:
    """`amp=bf16, threads=1`; the baseline's name where nothing differs."""
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "baseline"


def baseline_text(baseline: VariantSummary) -> str:
    """What every variant is compared with."""
    return f"baseline ({settings_text(baseline.settings)})" if baseline.settings else "baseline"


def standing_text(standing: Standing) -> str:
    """A combination as the search sees it: "amp=bf16, threads=1: about 1.34x (1.29 to 1.39), not confirmed"."""
    return f"{settings_text(standing.settings)}: about {estimate_text(standing.gain())}, not confirmed"


def p50_note(summary: Summary, variants: Sequence[VariantSummary]) -> str:
    """What to know of the medians of these variants, where the machine was not the same for all; else ""."""
    base = summary.baseline.samples_per_second
    for one in variants:
        found, own = throughput_of(one), one.samples_per_second
        if base and own and found and not 1 / AT_ODDS <= own / base / found.ratio <= AT_ODDS:
            return P50_NOTE
    return ""


def estimate_text(estimate: Estimate) -> str:
    return units.ratio_interval(estimate.ratio, estimate.low, estimate.high)


def comparison_text(comparison: Comparison) -> str:
    """The ratio with its interval: 1.34x (1.31 to 1.37)."""
    return units.ratio_interval(comparison.ratio, comparison.low, comparison.high)


def verdict_word(metric: str, verdict: VerdictWord) -> str:
    """Faster and slower where the metric is a time or a rate."""
    if metric not in TIMES_AND_RATES:
        return verdict
    return {"better": "faster", "worse": "slower"}.get(verdict, verdict)


def basis(comparisons: Sequence[Comparison]) -> str:
    """ "240 pairs of blocks in 4 launches of each"; a range where comparisons differ."""
    pairs = span([one.pairs for one in comparisons])
    launches = span([one.launches for one in comparisons])
    return f"{pairs} pairs of blocks in {launches} {'launch' if launches == '1' else 'launches'} of each"


def detectable(smallest: float) -> str:
    """The smallest effect that would have been noticed."""
    if smallest > 1:
        return "so little was measured that not even twice the speed would surely have been seen"
    return f"an effect of {units.share(smallest)} would have been seen in 4 of 5 such sessions"


def span(numbers: Sequence[int]) -> str:
    """ "4", or "3 to 5" where they differ."""
    low, high = min(numbers, default=0), max(numbers, default=0)
    return units.count(low) if low == high else f"{units.count(low)} to {units.count(high)}"


def start_up(break_even_steps: float | None) -> str:
    """Whether a slower start pays."""
    if break_even_steps is None:
        return "unknown"
    if break_even_steps < 1:
        return "no slower"
    return f"slower, paid back after {units.counted(break_even_steps, 'step')}"


# ----------------------------------------------------------------------------------------------------- the variants


def measured(summary: Summary) -> list[VariantSummary]:
    """The baseline and the variants that were measured, fastest first."""

    def order(variant: VariantSummary) -> float:
        throughput = throughput_of(variant)
        return -(throughput.ratio if throughput else 1.0)

    return sorted((one for one in (summary.baseline, *summary.variants) if one.status == "measured"), key=order)


def lost(summary: Summary) -> Pairs:
    """The variants that were not measured, with the reason; those told among the rejected apart."""
    told = [one.settings for one in summary.rejected]
    return [
        (name_of(one, summary), f"{one.status}: {one.reason}")
        for one in (summary.baseline, *summary.variants)
        if one.status != "measured" and one.settings not in told
    ]


def rejected(found: Sequence[Rejected]) -> Pairs:
    """What is not advised, and why."""
    return [(settings_text(one.settings), one.reason) for one in found]


def throughput_of(variant: VariantSummary) -> Comparison | None:
    return variant.versus_baseline.get("throughput")


def peak_memory_bytes(variant: VariantSummary) -> int | None:
    """Of the device where there is one, as its allocator reserves it; of the host otherwise."""
    reserved_bytes = variant.peak_device_reserved_bytes
    return variant.peak_host_bytes if reserved_bytes is None else reserved_bytes


def name_of(variant: VariantSummary, summary: Summary) -> str:
    """A variant's settings; the baseline's own are those it always runs with."""
    return baseline_text(variant) if variant is summary.baseline else settings_text(variant.settings)


def variant_cells(variant: VariantSummary, summary: Summary) -> tuple[str, str, str, str, str]:
    """A measured variant's cells under VARIANT_HEADINGS; the baseline shows its own rate."""
    throughput = throughput_of(variant)
    return (
        name_of(variant, summary),
        comparison_text(throughput) if throughput else units.rate(variant.samples_per_second, summary.sample_unit),
        verdict_word("throughput", throughput.verdict) if throughput else "",
        units.duration(variant.step_ns.p50 if variant.step_ns else None),
        units.size(peak_memory_bytes(variant)),
    )


def comparison_rows(variant: VariantSummary, unit: str) -> list[tuple[str, str, str, str]]:
    """Every metric of a variant: its name, the ratio, the verdict, and how sure that is."""
    return [
        (
            metric_name(metric, unit),
            comparison_text(one),
            verdict_word(metric, one.verdict),
            f"{basis([one])}; margin {units.share(one.margin)}",
        )
        for metric, one in variant.versus_baseline.items()
    ]


def notes(summary: Summary) -> Pairs:
    """What a table of throughputs does not show of its variants: other metrics that changed, starts, doubts."""
    return [(name_of(one, summary), note) for one in measured(summary) for note in _notes(one)]


def _notes(variant: VariantSummary) -> list[str]:
    told = [
        f"{METRIC_NAMES.get(metric, metric)} {comparison_text(one)}, {verdict_word(metric, one.verdict)}"
        for metric, one in variant.versus_baseline.items()
        if metric not in ("throughput", "step_p50") and one.verdict in ("better", "worse")
    ]
    throughput = throughput_of(variant)
    if throughput is not None and throughput.verdict == "undecided" and throughput.smallest_detectable is not None:
        told.append(f"undecided: {detectable(throughput.smallest_detectable)}")
    if variant.break_even_steps is not None and variant.break_even_steps >= 1:
        told.append(f"start-up {start_up(variant.break_even_steps)}")
    if variant.warmup_class in WARMUP_NOTES:
        told.append(WARMUP_NOTES[variant.warmup_class])
    if variant.reason is not None:
        told.append(variant.reason)
    return told


def tradeoffs(summary: Summary) -> list[tuple[str, str, str, str]]:
    """The variants that no other one beats in throughput, memory and jitter together, fastest first."""
    rows = []
    for one in measured(summary):
        settings = {} if one is summary.baseline else one.settings
        if settings in summary.pareto:
            faster, uneven = throughput_of(one), one.versus_baseline.get("jitter")
            rows.append(
                (
                    name_of(one, summary),
                    units.ratio(faster.ratio if faster else 1.0),
                    units.size(peak_memory_bytes(one)),
                    units.ratio(uneven.ratio if uneven else 1.0),
                )
            )
    return rows
