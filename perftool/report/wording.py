"""The sentences and table cells of every report, so that the terminal and a page say the same thing.

Nothing is decided here: verdicts are read from the summary. What users named may stand in any of these texts; each
renderer escapes it for its own form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from shlex import join
from typing import TYPE_CHECKING

from perftool import units
from perftool.analysis.fitness import rate
from perftool.analysis.gate import ALPHAS
from perftool.analysis.history import LEAST_POINTS
from perftool.analysis.traces import SIZE_MARGIN, SIZE_MOST_BYTES, loses_kernels
from perftool.analysis.verdict import ALPHA
from perftool.records import (
    CONFIRM,
    COPY,
    FORWARD,
    MEASURE,
    BatchFit,
    Beside,
    Bound,
    Check,
    Comparison,
    Distance,
    Estimate,
    Explained,
    Finding,
    Fitness,
    GateVerdict,
    Growth,
    Jitter,
    LossParity,
    Machine,
    MemoryParts,
    MemoryReport,
    MetricCheck,
    Recommendation,
    Rejected,
    Session,
    SettingEffect,
    Settings,
    SideBySide,
    SlowStep,
    SmallestBatch,
    Summary,
    TimeToLoss,
    TraceFacts,
    TraceReport,
    VariantSummary,
    VerdictWord,
)

if TYPE_CHECKING:
    from perftool.analysis.history import Change, Series
    from perftool.analysis.search import Standing

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

BOUNDS = {
    "launches": "launches: the device waits for the host to issue the step's work",
    "device": "the device: the host has issued the step's work long before it is done",
}
CAUSE_HEADINGS = ("cause", "slow steps", "time lost", "worst", "how often")
WORST_HEADINGS = ("step", "took", "cause")
TRADEOFF_HEADINGS = ("settings", "samples/s", "memory", "p95/p50")
CHECK_HEADINGS = ("metric", "now", "margin", "verdict")
CHECK_FIGURE_HEADINGS = ("metric", "before", "now", "ratio", "margin", "verdict")
VARIANT_HEADINGS = ("settings", "samples/s", "verdict", "p50", "memory")

NOTHING_FOUND = "None of the known causes takes a share that counts."

Pairs = list[tuple[str, str]]
"""Names with texts, in the order to show."""


def visible(text: str) -> str:
    """One line of at most LONGEST_TEXT characters, without control characters, which could hide or move text."""
    line = " ".join(printable(text).split())
    return line if len(line) <= LONGEST_TEXT else f"{line[: LONGEST_TEXT - 1]}…"


def printable(text: str) -> str:
    """Every character that does not print as a space."""
    return "".join(character if character.isprintable() else " " for character in text)


def settings_text(settings: Settings) -> str:
    """`amp=bf16, threads=1`; the baseline's name where nothing differs."""
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "baseline"


def baseline_text(baseline: VariantSummary) -> str:
    """What every variant is compared with."""
    return f"baseline ({settings_text(baseline.settings)})" if baseline.settings else "baseline"


def standing_text(standing: Standing) -> str:
    """A combination as the search sees it: "amp=bf16, threads=1: about 1.34x (1.29 to 1.39), not confirmed"."""
    return f"{settings_text(standing.settings)}: about {estimate_text(standing.gain())}, not confirmed"


def estimate_text(estimate: Estimate) -> str:
    return units.ratio_interval(estimate.ratio, estimate.low, estimate.high)


def warnings(summary: Summary) -> list[str]:
    """What to know before believing the figures: of the session, of the machine, and of launches that differed too
    much."""
    told = list(summary.warnings)
    if summary.fitness is not None and rate(summary.fitness).rating == "unfit":
        told.append(f"when it began, the machine was {fitness_text(summary.fitness)}")
    unsteady = [one for one in summary.variants if (found := throughput_of(one)) and found.unsteady]
    if unsteady and is_for_later(summary):
        told.append(
            "the launches differ more than launches of one program should, so a later check will see only larger "
            "changes; end other programs and store again"
        )
    elif unsteady:
        names = "; ".join(settings_text(one.settings) for one in unsteady) if summary.check is None else "the two sides"
        told.append(
            f"the launches of {names} differ more than launches of one program should, so a verdict of faster or "
            "slower was given only where the whole interval clears the margin; end other programs and measure again"
        )
    return told


# ------------------------------------------------------------------------------------------------------ the answer


def headline(summary: Summary) -> str:
    """The answer, in a sentence."""
    return f"{summary.workload}: {answer(summary)}"


def answer(summary: Summary) -> str:
    """The same without what was trained."""
    advice = summary.recommendation
    if summary.check is not None:
        return check_answer(summary.check)
    if is_for_later(summary):
        return "measured beside calibration kernels, for later checks to compare with"
    if is_alone(summary):
        first = next(iter(summary.findings), None)
        wrong = f"; first of what is wrong: {first.name}" if first is not None else ""
        return f"{units.rate(summary.baseline.samples_per_second)}{wrong}"
    if summary.command == "compare":
        fastest = best(summary)
        gain = throughput_of(fastest) if fastest is not None else None
        if fastest is None or gain is None:
            return "no variant was found faster than the baseline"
        return f"fastest is {settings_text(fastest.settings)}, {comparison_text(gain)} the samples per second"
    if advice is not None:
        gained = estimate_text(advice.gain or advice.speedup)
        return f"{settings_text(advice.settings)} gives {gained} the {GOAL_NAMES[advice.metric]}"
    match summary.recommendation_status:
        case "nothing_better" if summary.goal.planned_steps is not None:
            steps = units.counted(summary.goal.planned_steps, "step")
            return f"nothing that was tried is faster and pays its start back within {steps}; keep it as it is"
        case "nothing_better":
            return "nothing that was tried is faster; keep it as it is"
        case "not_confirmed":
            return f"what the search chose was not confirmed in fresh launches; keep it as it is{_so_far(summary)}"
        case "interrupted":
            return f"interrupted before anything was confirmed; no advice{_so_far(summary)}"
        case _:
            return "no advice"


def is_alone(summary: Summary) -> bool:
    """Whether it tells of one variant that was compared with nothing."""
    return summary.command in ("profile", "trace")


def is_for_later(summary: Summary) -> bool:
    """Whether it was measured to be stored, and is compared with nothing yet."""
    return summary.command == "check" and summary.check is None


def has_variants(summary: Summary) -> bool:
    """Whether it compares settings, of which some may be better."""
    return summary.command in ("tune", "compare")


def best(summary: Summary) -> VariantSummary | None:
    """The variant that the answer is about: what is recommended, or the fastest of those found faster."""
    if summary.recommendation is not None:
        advised = summary.recommendation.settings
        return next((one for one in summary.variants if one.settings == advised), None)
    if summary.command != "compare":
        return None
    return next((one for one in measured(summary) if (found := throughput_of(one)) and found.verdict == "better"), None)


def _so_far(summary: Summary) -> str:
    found = summary.so_far
    if found is None:
        return ""
    return f"; best so far: {settings_text(found.settings)}, about {estimate_text(found.gain)}, unconfirmed"


def costs(summary: Summary, advice: Recommendation) -> Pairs:
    """What the recommendation costs or changes beside its speed."""
    advised = best(summary)
    compared = advised.versus_baseline if advised is not None else {}
    jitter = compared.get("jitter")
    lines = [
        ("peak memory", _cost(advice.peak_memory_ratio, compared.get("peak_device") or compared.get("peak_host"))),
        ("jitter", f"p95/p50 of the step time {_cost(advice.jitter_ratio, jitter)}"),
        ("start-up", start_up(advice.break_even_steps)),
    ]
    if advice.metric != "throughput":
        lines.insert(0, ("speed", f"{estimate_text(advice.speedup)} the samples per second"))
    lines.append(("numerics", _numerics(advice)))
    if advice.time_to_loss is not None:
        lines.append(("time to loss", time_to_loss(advice.time_to_loss)))
    if advice.changes_optimisation:
        lines.append(
            ("optimisation", "another batch size is another training: check what it learns, and its learning rate")
        )
    return lines


def _cost(ratio: float | None, comparison: Comparison | None) -> str:
    """ "+4 %, 1.04x (1.02 to 1.06), worse"; without an interval where there is none."""
    if ratio is None:
        return units.UNKNOWN
    if comparison is None:
        return f"{units.percent(ratio - 1)} ({units.ratio(ratio)})"
    return f"{units.percent(ratio - 1)}, {comparison_text(comparison)}, {comparison.verdict}"


def _numerics(advice: Recommendation) -> str:
    """Whether it computes the same, and where it does not, whether it trains the same."""
    if advice.loss_parity is not None:
        return parity(advice.loss_parity)
    if advice.changes_numerics:
        return "changed, and losses were not compared: watch your own validation metric"
    return "not changed by any of these settings"


def start_up(break_even_steps: float | None) -> str:
    """Whether a slower start pays."""
    if break_even_steps is None:
        return "unknown"
    if break_even_steps < 1:
        return "no slower"
    return f"slower, paid back after {units.counted(break_even_steps, 'step')}"


def parity(checked: LossParity) -> str:
    """What the comparison of losses came to."""
    difference = (
        f"the loss differs by {units.decimal(checked.difference)} ({units.decimal(checked.low)} to "
        f"{units.decimal(checked.high)}) over {checked.seeds} seeds of {units.counted(checked.steps, 'step')}, "
        f"and seeds alone allow {units.decimal(checked.allowed)}"
    )
    match checked.verdict:
        case "parity":
            return f"changed, and it trains the same: {difference}"
        case "differs":
            return f"changed, and it does not train the same: {difference}"
        case _:
            return (
                f"changed; whether it trains the same is undecided, so watch your own validation metric: {difference}"
            )


def time_to_loss(found: TimeToLoss) -> str:
    """How soon it learns as much, or that it does not."""
    target = f"a loss of {units.decimal(found.target_loss)}"
    if found.ratio is None:
        return f"{target} was reached by {found.reached} of {units.counted(found.seeds, 'seed')}, so it is not known"
    ratio = units.ratio_interval(found.ratio, found.low, found.high)
    return f"{ratio} the time to {target}, over {units.counted(found.seeds, 'seed')}"


def contribution(effect: SettingEffect) -> str:
    """What one setting did alone, what is lost without it, and with whom it does more or less."""
    told = ["not measured alone" if effect.alone is None else f"{_bought(effect.alone)} alone"]
    if effect.together is not None:
        told.append(f"{_bought(effect.together)} on top of the others")
    if effect.with_partners is not None:
        told.append(f"{_bought(effect.with_partners)} with {settings_text(effect.partners)}")
    return ", ".join(told)


def _bought(estimate: Estimate) -> str:
    """ "+22 %", or "nothing" where the interval holds 0."""
    if estimate.low <= 1 <= estimate.high:
        return f"nothing sure ({units.percent(estimate.ratio - 1)})"
    return units.percent(estimate.ratio - 1)


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


def smallest_batch(found: SmallestBatch) -> str:
    """The batch that is enough."""
    return (
        f"A batch of {units.count(found.batch_size)} gives {units.share(found.of_best)} of the samples per second of "
        f"the fastest up to {units.count(found.largest_batch_size)}, with nothing else changed."
    )


def contributions(advice: Recommendation) -> Pairs:
    """Every setting of a recommendation with what it did."""
    return [(f"{one.name}={one.value}", contribution(one)) for one in advice.per_setting]


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


def name_of(variant: VariantSummary, summary: Summary) -> str:
    """A variant's settings; the baseline's own are those it always runs with."""
    return baseline_text(variant) if variant is summary.baseline else settings_text(variant.settings)


def variant_cells(variant: VariantSummary, summary: Summary) -> tuple[str, str, str, str, str]:
    """A measured variant's cells under VARIANT_HEADINGS; the baseline shows its own rate."""
    throughput = throughput_of(variant)
    return (
        name_of(variant, summary),
        comparison_text(throughput) if throughput else units.rate(variant.samples_per_second),
        verdict_word("throughput", throughput.verdict) if throughput else "",
        units.duration(variant.step_ns.p50 if variant.step_ns else None),
        units.size(peak_memory_bytes(variant)),
    )


def peak_memory_bytes(variant: VariantSummary) -> int | None:
    """Of the device where there is one, as its allocator reserves it; of the host otherwise."""
    reserved_bytes = variant.peak_device_reserved_bytes
    return variant.peak_host_bytes if reserved_bytes is None else reserved_bytes


def verdict_word(metric: str, verdict: VerdictWord) -> str:
    """Faster and slower where the metric is a time or a rate."""
    if metric not in TIMES_AND_RATES:
        return verdict
    return {"better": "faster", "worse": "slower"}.get(verdict, verdict)


def comparison_text(comparison: Comparison) -> str:
    """The ratio with its interval: 1.34x (1.31 to 1.37)."""
    return units.ratio_interval(comparison.ratio, comparison.low, comparison.high)


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


def comparison_rows(variant: VariantSummary) -> list[tuple[str, str, str, str]]:
    """Every metric of a variant: its name, the ratio, the verdict, and how sure that is."""
    return [
        (
            METRIC_NAMES.get(metric, metric),
            comparison_text(one),
            verdict_word(metric, one.verdict),
            f"{basis([one])}; margin {units.share(one.margin)}",
        )
        for metric, one in variant.versus_baseline.items()
    ]


# ---------------------------------------------------------------------------------------------------------- a check


def check_answer(check: Check) -> str:
    """What a check came to: "regression against main (4c1d2e3): samples/s 0.952x (0.946 to 0.958)"."""

    def told(verdict: GateVerdict) -> str:
        found = [one for one in check.metrics if one.verdict == verdict]
        return ", ".join(f"{METRIC_NAMES[one.metric]} {_now(one)}" for one in found)

    improved = told("improvement")
    if check.failed is not None:
        return f"not measured to the end against {check.against}: {check.failed}"
    match check.outcome:
        case "regression":
            return f"regression against {check.against}: {told('regression')}"
        case "undecided":
            names = [METRIC_NAMES[one.metric] for one in check.metrics if one.required and one.is_open]
            return f"undecided against {check.against}: {', '.join(names)}"
        case _:
            also = f"; better, is that meant? {improved}" if improved else ""
            return f"no regression against {check.against}{also}"


def check_rows(check: Check) -> list[tuple[str, str, str, str]]:
    """Every metric of a check, under CHECK_HEADINGS."""
    return [(METRIC_NAMES[one.metric], _now(one), _margin(one), one.verdict) for one in check.metrics]


def check_figure_rows(check: Check) -> list[tuple[str, str, str, str, str, str]]:
    """The same with absolute figures, under CHECK_FIGURE_HEADINGS. They are to be read, not to be compared."""
    return [
        (
            METRIC_NAMES[one.metric],
            _figure(one.metric, one.against),
            _figure(one.metric, one.now),
            _now(one) if not one.counted else "",
            _margin(one),
            one.verdict,
        )
        for one in check.metrics
    ]


def check_notes(check: Check) -> Pairs:
    """Why some metrics have no verdict, or another than at first."""
    return [(METRIC_NAMES[one.metric], one.reason) for one in check.metrics if one.reason is not None]


def check_how(check: Check) -> list[str]:
    """On what the verdicts rest."""
    throughput = next((one for one in check.metrics if one.metric == "throughput"), None)
    if throughput is None or throughput.first is None:
        return []
    again = throughput.confirmation
    told = [f"{units.share(1 - ALPHAS[MEASURE])} intervals, from {basis([throughput.first])}."]
    if again is not None:
        told.append(f"What differed was confirmed with {units.share(1 - ALPHAS[CONFIRM])}, from {basis([again])}.")
    last = again or throughput.first
    if last.smallest_detectable is not None:
        told.append(f"In samples/s {detectable(last.smallest_detectable)}.")
    return told


def for_later_how(summary: Summary) -> list[str]:
    """What there is to store, of how many launches, and how it is to be compared."""
    found = [one for one in map(throughput_of, summary.variants) if one is not None]
    if not found:
        return []
    return [
        "Stored are the time per sample relative to the calibration kernels', the peak memory and what a step does by "
        f"counting, from {basis(found)}.",
        "A later check (--baseline) compares its own with these: times and memory only on a machine of the same kind, "
        "and only large changes can be told, since two hours are not paired.",
    ]


def for_later_lines(summary: Summary) -> Pairs:
    """The workload's own figures."""
    return [line for one in summary.variants for line in profile_lines(one) if line[0] != "settings"]


CHECK_RULE = (
    "Regression: the whole interval is worse by the margin, and again in fresh launches with twice the pairs. No "
    "regression: surely not worse by four margins. Counted figures are equal or not. Tails and start-up are seen too "
    "coarsely to leave a check undecided."
)


def _now(one: MetricCheck) -> str:
    found = one.confirmation or one.first
    if found is not None:
        return comparison_text(found)
    if one.counted and one.against is not None and one.now is not None:
        same = one.against == one.now
        return (
            _figure(one.metric, one.now)
            if same
            else f"{_figure(one.metric, one.against)} to " + _figure(one.metric, one.now)
        )
    return units.UNKNOWN


def _margin(one: MetricCheck) -> str:
    found = one.confirmation or one.first
    if one.counted:
        return "equal"
    return units.share(found.margin) if found is not None else ""


def _figure(metric: str, value: float | None) -> str:
    match metric:
        case "throughput":
            return units.rate(value)
        case "step_p95" | "start_up":
            return units.duration(value)
        case "peak_host" | "peak_device":
            return units.size(value)
        case "jitter":
            return units.ratio(value)
        case "flops_per_step":
            return units.flops(value)
        case _:
            return units.count(value)


# --------------------------------------------------------------------------------------------------------- how sure


def how(summary: Summary) -> str:
    """How it was measured, in short."""
    if is_for_later(summary) or (summary.check is not None and summary.check.stored):
        later = "What a later check compares" if summary.check is None else "What is compared with what was stored"
        return (
            "The workload ran in fresh processes that took turns with calibration kernels, which say how fast the "
            f"machine is at this hour. {later} is the ratio of the two."
        )
    if summary.check is not None:
        before = units.counted(summary.check.modules_against, "file")
        now = units.counted(summary.check.modules_now, "file")
        return (
            "Both revisions ran in fresh processes that took turns, one running at a time, in a drawn order, each with "
            f"its own code: {before} of {summary.check.against}, {now} of the {summary.check.now}. Ratios are from "
            "blocks of the same round; intervals treat launches as a random effect."
        )
    if is_alone(summary):
        plain = "The training ran in fresh processes, one at a time, each warmed up before anything counted."
        if summary.explained is None:
            return plain
        return f"{plain} What explains comes from blocks that were watched, what is timed from plain ones between them."
    launches = [found.launches for one in summary.variants if (found := throughput_of(one))]
    times = _span(launches) if launches else "0"
    return (
        f"Each variant ran in {times} fresh {'process' if times == '1' else 'processes'} that took turns with the "
        "baseline's, one running at a time, in a drawn order. Ratios are from blocks of the same round; intervals "
        "treat launches as a random effect."
    )


def how_sure(summary: Summary) -> list[str]:
    """On what the verdicts on throughput rest: intervals, pairs, launches, and what would have been seen."""
    if summary.check is not None:
        return check_how(summary.check)
    if is_for_later(summary):
        return for_later_how(summary)
    advice = summary.recommendation
    if advice is not None:
        won = [one for one in summary.variants if one.settings == advice.settings]
        comparisons = [found for one in won if (found := throughput_of(one))]
        first = (
            f"{units.share(advice.confidence)} interval, from {units.counted(advice.pairs, 'pair')} of blocks in "
            f"{units.counted(advice.launches, 'fresh launch', 'fresh launches')} of each, which had no part in the "
            "choice."
        )
    else:
        comparisons = [found for one in summary.variants if (found := throughput_of(one))]
        first = f"{units.share(1 - ALPHA)} intervals that hold for all variants together, from {basis(comparisons)}."
    if not comparisons:
        return []
    seen = [one.smallest_detectable for one in comparisons if one.smallest_detectable is not None]
    margin = max(one.margin for one in comparisons)
    limits = f"Effects below {units.share(margin)} do not count"
    return [first, f"{limits}; {detectable(max(seen))}." if seen else f"{limits}."]


def basis(comparisons: Sequence[Comparison]) -> str:
    """ "240 pairs of blocks in 4 launches of each"; a range where comparisons differ."""
    pairs = _span([one.pairs for one in comparisons])
    launches = _span([one.launches for one in comparisons])
    return f"{pairs} pairs of blocks in {launches} {'launch' if launches == '1' else 'launches'} of each"


def detectable(smallest: float) -> str:
    """The smallest effect that would have been noticed."""
    if smallest > 1:
        return "so little was measured that not even twice the speed would surely have been seen"
    return f"an effect of {units.share(smallest)} would have been seen in 4 of 5 such sessions"


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return units.count(low) if low == high else f"{units.count(low)} to {units.count(high)}"


# ------------------------------------------------------------------------------------------------------ one variant


def profile_lines(variant: VariantSummary) -> Pairs:
    """All of one variant's figures."""
    lines = [("settings", settings_text(variant.settings)), ("throughput", units.rate(variant.samples_per_second))]
    if variant.step_ns is not None:
        quantiles = zip(
            ("p50", "p95", "p99"), (variant.step_ns.p50, variant.step_ns.p95, variant.step_ns.p99), strict=True
        )
        lines.append(("step time", ", ".join(f"{name} {units.duration(time_ns)}" for name, time_ns in quantiles)))
    elif variant.steps_per_call > 1:
        lines.append(("step time", f"none of single steps: {variant.steps_per_call} run in one call"))
    if variant.jitter is not None:
        lines += jitter_lines(variant.jitter)
    lines.append(("data wait", f"{units.share(variant.data_wait_fraction)} of the step time"))
    lines.append(
        (
            "peak host memory",
            f"{units.size(variant.peak_host_bytes)}; {units.size(variant.warmup_peak_host_bytes)} while warming up",
        )
    )
    if variant.peak_device_allocated_bytes is not None:
        lines.append(
            (
                "peak device memory",
                f"{units.size(variant.peak_device_allocated_bytes)} allocated, "
                f"{units.size(variant.peak_device_reserved_bytes)} reserved, "
                f"{units.size(variant.peak_device_nvml_bytes)} in use on the device",
            )
        )
    starts = f"{units.duration(variant.cold_start_ns)} cold, {units.duration(variant.warm_start_ns)} warm"
    return [*lines, ("start-up", starts), ("warm-up", variant.warmup_class or units.UNKNOWN)]


def phase_lines(found: Explained) -> Pairs:
    """Where the time of a step goes, and what it cost to look."""
    lines = [(one.name, f"{units.share(one.share)}, {units.duration(one.step_ns)}") for one in found.phases]
    if found.bound_by is not None:
        lines.append(("bound by", BOUNDS[found.bound_by]))
    if found.distortion is not None:
        changed = units.ratio_interval(found.distortion.ratio, found.distortion.low, found.distortion.high)
        lines.append(("watching", f"{changed} the time of a plain step, over {units.counted(found.steps, 'step')}"))
    return lines


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


def finding_rows(found: Sequence[Finding]) -> Pairs:
    """Each finding with its evidence and what may cure it."""
    return [(one.name, one.evidence + (f"; try {one.try_}" if one.try_ else "")) for one in found]


def fitness_text(fitness: Fitness) -> str:
    """How fit the machine was, and why not better."""
    rating = rate(fitness)
    return f"{rating.rating} for measuring" + (f": {'; '.join(rating.reasons)}" if rating.reasons else "")


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


def _tail(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return "not enough steps"
    return f"{units.share(value)} above the median ({units.share(low)} to {units.share(high)})"


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


# -------------------------------------------------------------------------------------------------------- the place


def machine_text(machine: Machine) -> str:
    """The machine in a line."""
    return (
        f"{machine.device_name or machine.cpu_model}, {units.counted(machine.usable_cores, 'core')}, "
        f"{units.size(machine.memory_bytes)}; torch {machine.torch_version}, Python {machine.python_version}"
    )


def circumstances(summary: Summary) -> Pairs:
    """Where, when and how it was measured."""
    machine = summary.machine
    changed = {True: " with changes", False: "", None: ""}[machine.git_dirty]
    lines = [
        ("machine", machine_text(machine)),
        (
            "measured",
            f"{summary.created_at}, {units.duration(summary.measured_s * 1e9)} of blocks, seed {summary.seed}",
        ),
        ("again", again(summary)),
    ]
    if summary.fitness is not None:
        lines.append(("it was", fitness_text(summary.fitness)))
    if machine.git_commit is not None:
        lines.append(("commit", f"{machine.git_commit}{changed}"))
    if machine.environment:
        lines.append(("environment", environment_text(machine)))
    return lines


def again(summary: Summary) -> str:
    """The command that measures the same once more."""
    return join(["perftool", *summary.arguments])


def environment_text(machine: Machine) -> str:
    """The variables found set that bear on speed."""
    return (
        ", ".join(f"{name}={text}" for name, text in machine.environment.items()) or "nothing set that bears on speed"
    )


def more(count: int) -> str:
    """That a table goes on elsewhere."""
    return f"And {units.counted(count, 'slower one')}, all of them in report.html."


def left_out(titles: Sequence[str]) -> str:
    """What a report had no room for."""
    return f"Left out, since it would not fit a comment: {'; '.join(titles)}. All of it is in report.html."


# --------------------------------------------------------------------------------------------------------- the page


RATIO_AXIS = "samples per second over the baseline's"
MARKS = "Filled in colour is faster, filled dark is slower, hollow is the same or undecided"
CAPTIONS = {
    "variants": "Samples per second over the baseline's, whose line is at 1x; bars are the intervals. " + MARKS + ". "
    "A bar without a cap goes on beyond the plot.",
    "contributions": "Samples per second that each setting adds: hollow alone, filled on top of all the others.",
    "beside": "The first session is hollow, the second filled below it.",
    "steps": "The line is the median, the band reaches from the fastest to the slowest step of each moment.",
    "slow": "Each slow step has a tick in the lane of its cause.",
    "distribution": "Shares of all steps, by how long they took.",
    "front": "Filled are the variants that no other one beats in throughput, memory and jitter together; their numbers "
    "are those of the table.",
    "batches": "Samples per second over the baseline's, by batch size, with nothing else changed.",
    "fit": "Peak memory of one forward and backward pass, by batch size.",
    "phases": "Where the time of a mean step goes.",
    "parts": "What the memory of a training step is taken by.",
    "growth": "Memory that one launch held beyond what it had at first, by the steps it had done.",
    "distance": "The least time that this machine could take for the step's work, as a part of what it takes.",
}


def series_caption(told: Sequence[tuple[str, int]], *, blocks: bool) -> str:
    """Which series a plot of step times shows: "baseline (4,000 steps) and amp=bf16 (4,000 steps)"."""
    each = " and ".join(f"{name} ({units.counted(steps, 'block' if blocks else 'step')})" for name, steps in told)
    return f"{each}; means of blocks, since several steps run in one call." if blocks else f"{each}."


def beyond(told: Sequence[tuple[str, int]]) -> str:
    """How many steps a histogram leaves out on its right."""
    left_out = ", ".join(f"{units.count(steps)} of {name}" for name, steps in told if steps)
    return f"Slower still, and not shown: {left_out}." if left_out else ""


def not_tested(session: Session, summary: Summary) -> Pairs:
    """What the session says nothing about: settings that were left as they are, other places, other trainings."""
    tried = {name for variant in session.variants for name in variant}
    told = {name for one in summary.rejected for name in one.settings}
    left = [name for name in session.defaults if name not in tried | told]
    rows = []
    if left and has_variants(summary):
        rows.append(("left as they are", ", ".join(left)))
    if session.goal.keep:
        rows.append(("kept on request", ", ".join(session.goal.keep)))
    rows.append(("other machines", "absolute times are of this machine and this hour; measure again elsewhere"))
    numerics = [name for name, changes in session.scenario_changes.items() if changes != "speed" and name in tried]
    if numerics and summary.parity is None:
        rows.append(("what it learns", f"whether it trains the same with {', '.join(numerics)} was not looked at"))
    elif summary.parity is not None:
        rows.append(("what it learns", "losses were compared over short runs; the validation metric is yours to watch"))
    return rows


# --------------------------------------------------------------------------------------------------------- a history


def history_headline(series: Series, found: Sequence[Change]) -> str:
    """What a series of checks shows, in a sentence."""
    told = [f"{change_text(one)} on {series.entries[one.index].created_at[:10]}" for one in found]
    few = len(series.entries) < LEAST_POINTS
    seen = "; ".join(told) or (
        f"too few to look for changes of level, which takes {LEAST_POINTS}" if few else "no change of level"
    )
    settings = f" with {settings_text(series.settings)}" if series.settings else ""
    return (
        f"{series.workload}{settings} against {series.against[:7]} on {series.machine}, {METRIC_NAMES[series.metric]}, "
        f"{units.counted(len(series.entries), 'check')}: {seen}"
    )


def change_text(change: Change) -> str:
    """ "a new level, -4.6 %"."""
    return f"a new level, {units.percent(change.ratio - 1)}"


def history_rows(series: Series) -> list[tuple[str, str, str]]:
    """When, which commit, and the ratio to the pinned revision."""
    return [
        (
            one.created_at[:16].replace("T", " "),
            one.commit[:7] + ("+" if one.dirty else ""),
            units.ratio(exp(one.log_ratios[series.metric])),
        )
        for one in series.entries
    ]


# -------------------------------------------------------------------------------------------------------- two sessions


TRAVELS = (
    "Ratios and shares may be read across the two: each is of one session, whose blocks took turns. Times, rates and "
    "memory may not: the sessions were not paired, so what differs can be the machine or the hour."
)
CHANGE_RULE = "More and less: the two intervals do not overlap. Alike: they do, so no difference is seen."
BESIDE_HEADINGS = ("settings", "first", "second", "gain")
OWN_TITLE = "Each session's own figures, which were not paired"
DIFFERING_TITLE = "What differs between them"
SHARES_TITLE = "Shares of the time"
BESIDE_TITLE = "Samples per second, each over its own baseline's"
DIFFERING_HEADINGS = ("differs", "first", "second")
OWN_HEADINGS = ("baseline", "first", "second")
SHARE_HEADINGS = ("share", "first", "second")


def beside_headline(found: SideBySide) -> str:
    """What two sessions come to, in a sentence."""
    workload = found.first.workload
    if is_alone(found.first):
        return f"{workload}: two profiles side by side"
    both = [one for one in found.variants if one.first is not None and one.second is not None]
    if not both:
        return f"{workload}: the two sessions have no measured variant in common"
    changed = [one for one in both if one.change in ("more", "less")]
    variants = units.counted(len(both), "variant")
    if not changed:
        return f"{workload}: {variants} in both sessions, and no difference between their gains is seen"
    differ = "the gain of 1 differs" if len(changed) == 1 else f"the gains of {units.count(len(changed))} differ"
    return f"{workload}: {variants} in both sessions, and {differ}"


def beside_answers(found: SideBySide) -> Pairs:
    """What each session advises."""
    return [("first", answer(found.first)), ("second", answer(found.second))]


def beside_rows(found: SideBySide) -> list[tuple[str, str, str, str]]:
    """Each variant in both sessions, under BESIDE_HEADINGS."""
    return [
        (settings_text(one.settings), _beside(one.first), _beside(one.second), _gains(one)) for one in found.variants
    ]


def beside_lost(found: SideBySide) -> Pairs:
    """The variants that a session tried and could not measure, with the reason."""
    told = (("first", found.first), ("second", found.second))
    return [(name, f"{place} session: {reason}") for place, one in told for name, reason in lost(one)]


def _beside(comparison: Comparison | None) -> str:
    return "not measured" if comparison is None else comparison_text(comparison)


def _gains(found: Beside) -> str:
    """Whether a variant gains more in the second session."""
    return found.change or ("unknown" if found.first and found.second else "")


def own_rows(found: SideBySide) -> list[tuple[str, str, str]]:
    """Absolute figures of the two baselines, under OWN_HEADINGS."""

    def figures(one: VariantSummary) -> tuple[str, ...]:
        step_ns = one.step_ns.p50 if one.step_ns else None
        return units.rate(one.samples_per_second), units.duration(step_ns), units.size(peak_memory_bytes(one))

    names = ("throughput", "median step", "peak memory")
    return list(zip(names, figures(found.first.baseline), figures(found.second.baseline), strict=True))


def share_rows(found: SideBySide) -> list[tuple[str, str, str]]:
    """Shares of two profiles, under SHARE_HEADINGS."""
    first, second = (_shares(one) for one in (found.first, found.second))
    return [(name, first.get(name, "none"), second.get(name, "none")) for name in {**first, **second}]


def _shares(summary: Summary) -> dict[str, str]:
    phases = summary.explained.phases if summary.explained is not None else []
    uneven = jitter_lines(summary.baseline.jitter)[:2] if summary.baseline.jitter is not None else []
    causes = summary.explained.causes if summary.explained is not None else []
    return {
        **{one.name: units.share(one.share) for one in phases},
        **{name.replace(",", ""): text for name, text in uneven},
        **{f"lost to {one.cause}": units.share(one.share_of_time) for one in causes},
    }


def differing_rows(found: SideBySide) -> list[tuple[str, str, str]]:
    """What is not the same of the two, under DIFFERING_HEADINGS."""
    return [(one.name, one.first, one.second) for one in found.differing]


def beside_warnings(found: SideBySide) -> list[str]:
    """Those of both sessions, each with its place."""
    told = ("first", found.first), ("second", found.second)
    return [f"{place} session: {warning}" for place, one in told for warning in warnings(one)]
