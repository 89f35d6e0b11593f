"""What the fresh launches of a search say of its winner: whether it is better, what each of its settings earns beside
the others, and what is missing for a verdict."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import exp, isfinite, log, log1p

from perftool.analysis.pairs import Samples, pair_effects
from perftool.analysis.stats import Effect, interval, launch_effects
from perftool.analysis.summary import Summaries, fresh_effect
from perftool.analysis.verdict import ALPHA, HIGHER_IS_BETTER, comparison, launches_needed
from perftool.records import CONFIRMING, FRESH, PATCHED, Estimate, Goal, Session, Settings, VariantSummary, VerdictWord


def metric_of_goal(session: Session) -> str:
    """The metric by which the goal is judged: one of METRICS, or "time_to_loss"."""
    on_device = session.machine.device.startswith("cuda")
    return {
        "throughput": "throughput",
        "step-time": "step_p50",
        "jitter": "jitter",
        "memory": "peak_device" if on_device else "peak_host",
        "time-to-loss": "time_to_loss",
    }[session.goal.objective]


def measurable(metric: str) -> str:
    """The metric of blocks that stands for the goal's."""
    return "throughput" if metric == "time_to_loss" else metric


def leave_outs(winner: Settings) -> dict[str, Settings]:
    """A winner without each of its settings, by what is left out; none of a single setting."""
    if len(winner) < 2:
        return {}
    return {name: {key: value for key, value in winner.items() if key != name} for name in winner}


def is_decided(session: Session, winner: Settings, beside: Collection[int] | None = None) -> bool:
    """Whether the throughput of the winner has a verdict, and each of its settings was left out often enough to tell
    what that costs.

    beside: variants without a setting that can take turns with the winner; all, unless there is no room for them.
    """
    if _verdict(session, winner) in (None, "undecided"):
        return False
    lost = {one.variant for one in session.launches if one.status != "measured"}
    samples = Samples(session)
    for without in leave_outs(winner).values():
        number = session.variants.index(without) if without in session.variants else None
        asked = beside is None or number in beside
        if asked and number not in lost and earned(session, winner, without, "throughput", samples) is None:
            return False
    return True


def is_better(session: Session, winner: Settings) -> bool:
    """Whether the winner surely has more throughput than the baseline."""
    return _verdict(session, winner) == "better"


def _verdict(session: Session, winner: Settings) -> VerdictWord | None:
    found = fresh_effect(session, session.variants.index(winner), "throughput")
    return None if found is None else comparison("throughput", *found).verdict


def earned(
    session: Session, winner: Settings, without: Settings, metric: str, samples: Samples | None = None
) -> Estimate | None:
    """Ratio of the winner to itself without a setting, in fresh launches that took turns; in throughput more is
    better, in all else less. None where too few did."""
    return estimate_of(effect_against(session, winner, without, metric, stages=FRESH, samples=samples), metric)


def effect_against(
    session: Session,
    settings: Settings,
    against: Settings,
    metric: str,
    *,
    stages: Collection[str] | None = None,
    samples: Samples | None = None,
) -> Effect | None:
    """Of one variant against another one, from the generations in which both took turns; None where they never did.

    stages: of the former's launches, or all.
    """
    if settings not in session.variants or against not in session.variants:
        return None
    own, other = session.variants.index(settings), session.variants.index(against)
    matrix = pair_effects(session, metric, [own], against=other, stages=stages, samples=samples)
    return launch_effects(matrix.d, matrix.half_widths)[0]


def estimate_of(effect: Effect | None, metric: str) -> Estimate | None:
    """An effect as a ratio in the metric's own unit; None where too little was measured to tell how sure it is."""
    if effect is None or not isfinite(effect.se):
        return None
    low, high = interval(effect, ALPHA)
    if metric in HIGHER_IS_BETTER:
        return Estimate(ratio=exp(-effect.theta), low=exp(-high), high=exp(-low))
    return Estimate(ratio=exp(effect.theta), low=exp(low), high=exp(high))


def needed(session: Session, winner: Settings, summaries: Summaries) -> set[str]:
    """The settings without which the winner breaks a limit of the goal that it keeps."""
    if winner not in session.variants or not keeps(session.goal, summaries.of(session.variants.index(winner))):
        return set()
    lacking: Mapping[str, Settings] = leave_outs(winner) or {name: {} for name in winner}
    return {
        name
        for name, without in lacking.items()
        if without in session.variants and not keeps(session.goal, summaries.of(session.variants.index(without)))
    }


def keeps(goal: Goal, one: VariantSummary) -> bool:
    """Whether a variant keeps all limits; what was not measured keeps none."""
    p99_ns = one.step_ns.p99 if one.step_ns else None
    figures = (
        (one.peak_host_bytes, goal.max_host_bytes),
        (one.peak_device_reserved_bytes, goal.max_device_bytes),
        (p99_ns, goal.max_p99_ns),
    )
    return all(figure is not None and figure <= limit for figure, limit in figures if limit is not None)


def unearned(session: Session, winner: Settings, expected: Callable[[Settings], float]) -> tuple[str, Estimate] | None:
    """The setting that brings least, where that is not its price, and what it brings; None where each is worth it. What
    a limit needs is worth it.

    expected: by how much the winner is better than a part of it by all that was measured, log scale: the fresh launches
        alone may leave it wide open.
    One at a time: of two that do the same each seems to bring nothing.
    """
    metric = measurable(metric_of_goal(session))
    samples = Samples(session)
    found = {
        name: gain
        for name, without in leave_outs(winner).items()
        if (gain := earned(session, winner, without, metric, samples)) is not None
        and not is_worth(metric, gain, session.goal.price, expected(without))
    }
    kept = needed(session, winner, Summaries(session)) if found else set()
    idle = {name: gain for name, gain in found.items() if name not in kept}
    if not idle:
        return None
    worst = (min if metric == "throughput" else max)(idle, key=lambda name: idle[name].ratio)
    return worst, idle[worst]


def is_worth(metric: str, gain: Estimate, price: float, expected: float) -> bool:
    """Whether such a gain may be as large as the price, and is, or surely is one, or is expected to be as large by what
    it does not speak against."""
    ratio, low, high = gain.ratio, gain.low, gain.high
    if metric != "throughput":
        ratio, low, high = 1 / ratio, 1 / high, 1 / low
    return high >= 1 + price and (ratio >= 1 + price or low > 1 or log1p(price) <= expected <= log(high))


def missing(session: Session, winner: Settings) -> int | None:
    """With how many launches in all the winner would have a verdict, if what comes were like what was; None where even
    the last look would not decide, or too little was measured to say."""
    metric = measurable(metric_of_goal(session))
    found = fresh_effect(session, session.variants.index(winner), metric)
    return None if found is None else launches_needed(metric, *found)


def generation_s(session: Session, winner: Settings) -> float:
    """Of the budget, that a generation of the confirmation takes where no setting is left out beside the winner."""
    alone = (0, session.variants.index(winner))
    fresh = [one for one in session.launches if one.stage in CONFIRMING]
    to_come = {one.launch for one in fresh if one.variant in alone or one.stage == PATCHED}
    spent_ns = sum(block.wall_ns for block in session.blocks if block.launch in to_come)
    return spent_ns / 1e9 / max(1, len({one.generation for one in fresh}))
