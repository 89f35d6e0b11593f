"""What a session comes to: the headline, the warnings, and what the advice buys and costs."""

from __future__ import annotations

from math import ceil

from perftool import units
from perftool.analysis.fitness import rate
from perftool.records import (
    Comparison,
    Estimate,
    LossParity,
    Provisional,
    Recommendation,
    SettingEffect,
    SmallestBatch,
    Summary,
    TimeToLoss,
    VariantSummary,
)
from perftool.report import checks, method, scripts
from perftool.report.wording import (
    Pairs,
    comparison_text,
    estimate_text,
    goal_name,
    is_alone,
    is_for_later,
    measured,
    settings_text,
    start_up,
    throughput_of,
)

PROVISIONAL_TITLE = "Lines that are not sure to help"


def headline(summary: Summary) -> str:
    """The answer, in a sentence."""
    return f"{summary.workload}: {answer(summary)}"


def answer(summary: Summary) -> str:
    """The same without what was trained."""
    advice = summary.recommendation
    if summary.check is not None:
        return checks.answer(summary.check)
    if is_for_later(summary):
        return "measured beside calibration kernels, for later checks to compare with"
    if is_alone(summary):
        first = next(iter(summary.findings), None)
        wrong = f"; first of what is wrong: {first.name}" if first is not None else ""
        return f"{units.rate(summary.baseline.samples_per_second, summary.sample_unit)}{wrong}"
    if summary.command == "compare":
        fastest = best(summary)
        gain = throughput_of(fastest) if fastest is not None else None
        if fastest is None or gain is None:
            if not any(one.status == "measured" for one in summary.variants):
                return "nothing could be compared with the baseline"
            return _not_faster(summary)
        gained = f"{comparison_text(gain)} the {goal_name('throughput', summary.sample_unit)}"
        return f"fastest is {settings_text(fastest.settings)}, {gained}"
    if advice is not None:
        gained = f"{estimate_text(advice.gain or advice.speedup)} the {goal_name(advice.metric, summary.sample_unit)}"
        return f"{settings_text(advice.settings)} gives {gained}"
    match summary.recommendation_status:
        case "nothing_better" if summary.goal.planned_steps is not None:
            steps = units.counted(summary.goal.planned_steps, "step")
            return (
                f"nothing that was tried was seen to be faster and pays its start back within {steps}; keep it as it is"
            )
        case "nothing_better":
            return "nothing that was tried was seen to be faster; keep it as it is"
        case "provisional" if summary.provisional is not None:
            return provisional(summary, summary.provisional)
        case "not_confirmed":
            return f"what the search chose was not confirmed in fresh launches; keep it as it is{_so_far(summary)}"
        case "interrupted":
            return f"interrupted before anything was confirmed; no advice{_so_far(summary)}"
        case _:
            return "no advice"


def _not_faster(summary: Summary) -> str:
    """That no variant was found faster, and whether any may be."""
    told = [(one, found) for one in measured(summary) if (found := throughput_of(one)) and found.verdict == "undecided"]
    open_ones = [(one, found) for one, found in told if found.ratio > 1]
    if not open_ones:
        return "no variant was found faster than the baseline"
    one, found = max(open_ones, key=lambda pair: pair[1].ratio)
    return (
        f"no variant is surely faster: {settings_text(one.settings)} seems to give {comparison_text(found)}, undecided"
    )


def best(summary: Summary) -> VariantSummary | None:
    """The variant that the answer is about: what is recommended, or the fastest of those found faster."""
    if summary.recommendation is not None:
        advised = summary.recommendation.settings
        return next((one for one in summary.variants if one.settings == advised), None)
    if summary.command != "compare":
        return None
    return next((one for one in measured(summary) if (found := throughput_of(one)) and found.verdict == "better"), None)


def whole_loop(summary: Summary) -> str:
    """What a script gains in all, beside the answer about its steps; "" where there is no gain, or no more to say."""
    found = best(summary)
    gain = throughput_of(found) if found is not None else None
    if gain is None or gain.verdict != "better":
        return ""
    return scripts.whole_loop_text(summary, gain.ratio)


def provisional(summary: Summary, found: Provisional) -> str:
    """What the winner seems to give, that it is not sure, and what would tell."""
    launches = units.counted(found.launches, "fresh launch", "fresh launches")
    seen = (
        f"{settings_text(found.settings)} seems to give {estimate_text(found.gain)} the "
        f"{goal_name(found.metric, summary.sample_unit)}, by {launches}"
    )
    if found.launches_needed is None or found.further_s is None:
        return f"{seen}, which is not sure, and more launches like these would not tell; nothing is recommended"
    if summary.folder is None:
        return f"{seen}, which is not sure; nothing is recommended"
    more = units.counted(found.launches_needed - found.launches, "more launch", "more launches")
    return f"{seen}, which is not sure; {more} may tell: {method.going_on(summary, ceil(found.further_s))}"


def _so_far(summary: Summary) -> str:
    found = summary.so_far
    if found is None:
        return ""
    return f"; best so far: {settings_text(found.settings)}, about {estimate_text(found.gain)}, unconfirmed"


def warnings(summary: Summary) -> list[str]:
    """What to know before believing the figures: of the session, of the machine, and of launches that differed too much
    where something can be done about it: what machines do by themselves is in the intervals."""
    told = list(summary.warnings)
    if summary.fitness is not None and rate(summary.fitness).rating == "unfit":
        told.append(f"when it began, the machine was {method.fitness_text(summary.fitness)}")
    busy = summary.fitness is not None and rate(summary.fitness).rating != "fit"
    unsteady = [one for one in summary.variants if busy and (found := throughput_of(one)) and found.unsteady]
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


# ------------------------------------------------------------------------------------------------------- the advice


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
        speed = f"{estimate_text(advice.speedup)} the {goal_name('throughput', summary.sample_unit)}"
        lines.insert(0, ("speed", speed))
    if advised is not None and advised.sustained_ratio is not None:
        lines.append(("on end", units.told_in(_on_end(advised), summary.sample_unit)))
    if advised is not None and advised.sample_mj is not None and summary.baseline.sample_mj:
        less = advised.sample_mj / summary.baseline.sample_mj - 1
        told = f"{units.energy(advised.sample_mj)} a {summary.sample_unit}, {units.percent(less)}"
        lines.append(("energy", f"{told}, of the GPU alone"))
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


def _on_end(advised: VariantSummary) -> str:
    """Whether the gain lasts for seconds on end."""
    assert advised.sustained_ratio is not None
    held = f", with the clock held down by: {', '.join(advised.held_down_by)}" if advised.held_down_by else ""
    return f"{units.ratio(advised.sustained_ratio)} the samples/s where each steps on for seconds{held}"


def _numerics(advice: Recommendation) -> str:
    """Whether it computes the same, and where it does not, whether it trains the same."""
    if advice.loss_parity is not None:
        return parity(advice.loss_parity)
    if advice.changes_numerics:
        return "changed, and losses were not compared: watch your own validation metric"
    return "not changed by any of these settings"


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


def contributions(advice: Recommendation) -> Pairs:
    """Every setting of a recommendation with what it did."""
    return [(f"{one.name}={one.value}", contribution(one)) for one in advice.per_setting]


def contribution(effect: SettingEffect) -> str:
    """What one setting did alone, what is lost without it, and with whom it does more or less."""
    told = []
    if effect.together is not None:
        told.append(f"{_bought(effect.together)} on top of the others")
    if effect.alone is not None:
        told.append(f"{_bought(effect.alone)} alone")
    elif effect.seen_alone is not None:
        told.append(f"{units.percent(effect.seen_alone - 1)} alone in one launch")
    if effect.is_needed:
        told.append("needed for the limit")
    if effect.with_partners is not None:
        told.append(f"{_bought(effect.with_partners)} with {settings_text(effect.partners)}")
    return ", ".join(told) or "not measured alone"


def _bought(estimate: Estimate) -> str:
    """ "+22 % (+19 to +25 %)", or "nothing sure" where the interval holds 0."""
    low, high = (units.percent(end - 1).removesuffix(" %") for end in (estimate.low, estimate.high))
    told = f"{units.percent(estimate.ratio - 1)} ({low} to {high} %)"
    return f"nothing sure, {told}" if estimate.low <= 1 <= estimate.high else told


def smallest_batch(found: SmallestBatch) -> str:
    """The batch that is enough."""
    return (
        f"A batch of {units.count(found.batch_size)} gives {units.share(found.of_best)} of the samples per second of "
        f"the fastest up to {units.count(found.largest_batch_size)}, with nothing else changed."
    )
