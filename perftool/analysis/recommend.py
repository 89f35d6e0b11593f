"""From a tuned session to its recommendation. The search has chosen; here it is only told, with the confirmed numbers.

Pure: records in, records out.
"""

from __future__ import annotations

from perftool.analysis.contributions import setting_effects
from perftool.analysis.handover import lines_to_change, script, to_paste
from perftool.analysis.parity import parity_of, time_to_loss
from perftool.analysis.patched import patch_advice
from perftool.analysis.search import Offer, believe
from perftool.analysis.summary import Summaries, summarise
from perftool.analysis.verdict import ALPHA, LOOKS
from perftool.records import (
    CONFIRM,
    PARITY,
    Estimate,
    LossParity,
    PatchAdvice,
    Recommendation,
    RecommendationStatus,
    Rejected,
    Session,
    Settings,
    SoFar,
    Summary,
    TimeToLoss,
    VariantSummary,
)
from perftool.units import ratio


def conclude(session: Session, folder: str | None = None) -> Summary:
    """The summary of any session, with the recommendation of a tuned one.

    folder: that its files are in; None where they are nowhere.
    """
    summaries = Summaries(session)
    if session.command != "tune":
        return summarise(session, summaries=summaries, folder=folder)
    winner = chosen(session)
    status, recommendation = None, None
    if winner is not None:
        status, recommendation = _recommendation(session, winner, summaries)
    return summarise(
        session,
        summaries=summaries,
        folder=folder,
        recommendation=recommendation,
        recommendation_status=status,
        rejected=rejected(session, winner or {}, summaries),
        parity=last_parity(session),
        so_far=so_far(session) if recommendation is None and status != "nothing_better" else None,
    )


def chosen(session: Session) -> Settings | None:
    """What the search settled on; None when it did not get that far."""
    return next((one.settings for one in reversed(session.decisions) if one.action == "chosen"), None)


def last_parity(session: Session) -> LossParity | None:
    """Of the settings whose losses were compared last."""
    compared = (parity_of(session, session.variants[run.variant]) for run in reversed(session.training_runs))
    return next(filter(None, compared), None)


def rejected(session: Session, winner: Settings, summaries: Summaries | None = None) -> list[Rejected]:
    """Every setting that was considered and is not part of the winner, with what is known against it."""
    summaries = summaries or Summaries(session)
    reasons: dict[tuple[str, str], list[str]] = {}
    for number, settings in enumerate(session.variants):
        if len(settings) == 1 and any(launch.variant == number for launch in session.launches):
            reasons[next(iter(settings.items()))] = [_against(summaries.of(number))]
    for decision in session.decisions:
        if decision.action == "dropped" and decision.stage == PARITY:
            for name in set(decision.settings) - set(winner):
                reasons[name, decision.settings[name]] = [decision.reason]
        elif decision.action in ("dropped", "untested"):
            for setting in decision.settings.items():
                reasons.setdefault(setting, []).append(decision.reason)
    return [
        Rejected(settings={name: value}, reason="; ".join(dict.fromkeys(said)))
        for (name, value), said in sorted(reasons.items())
        if winner.get(name) != value and (name in winner or value != session.defaults.get(name))
    ]


def _against(alone: VariantSummary) -> str:
    throughput = alone.versus_baseline.get("throughput")
    if alone.status != "measured" or throughput is None:
        return alone.reason or alone.status
    # One generation is too little for a verdict; that there is no gain in sight can be said all the same.
    unsure = "no gain" if throughput.ratio <= 1 else "no clear gain"
    words = {"worse": "slower", "better": "faster"}.get(throughput.verdict, unsure)
    return f"{words} alone, {ratio(throughput.ratio)}"


def _recommendation(
    session: Session, winner: Settings, summaries: Summaries
) -> tuple[RecommendationStatus, Recommendation | None]:
    if not winner:
        return "nothing_better", None
    confirmed = summaries.of(session.variants.index(winner))
    throughput = confirmed.versus_baseline.get("throughput")
    generations = {launch.generation for launch in session.launches if launch.stage == CONFIRM}
    if throughput is None or len(generations) < min(LOOKS) or throughput.low is None or throughput.high is None:
        return "not_confirmed", None
    speedup = Estimate(ratio=throughput.ratio, low=throughput.low, high=throughput.high)
    learning = time_to_loss(session, winner, speedup)
    metric = metric_of_goal(session)
    gain, is_better = _gain(metric, confirmed, learning)
    if not is_better and not _is_needed(session, summaries.of(0), confirmed):
        return "not_confirmed", None
    memory = confirmed.versus_baseline.get("peak_device") or confirmed.versus_baseline.get("peak_host")
    measured = {**session.baseline, **winner}
    patch = patch_advice(session, session.variants.index(winner), _measurable(metric), summaries)
    plain, diff = _handed_over(session, measured, patch)
    return "confirmed", Recommendation(
        settings=winner,
        speedup=speedup,
        confidence=1 - ALPHA,
        pairs=throughput.pairs,
        launches=throughput.launches,
        peak_memory_ratio=memory.ratio if memory else None,
        jitter_ratio=ratio_of(confirmed, "jitter"),
        break_even_steps=confirmed.break_even_steps,
        loss_parity=parity_of(session, winner),
        time_to_loss=learning,
        changes_optimisation=any(session.scenario_changes.get(name) == "optimisation" for name in winner),
        changes_numerics=any(session.scenario_changes.get(name) == "numerics" for name in winner),
        code=to_paste(session.codes, measured, session.baseline),
        script=plain,
        diff=diff,
        per_setting=setting_effects(session, winner),
        rejected=rejected(session, winner, summaries),
        patch=patch,
        metric=metric,
        gain=gain,
    )


def _handed_over(session: Session, measured: Settings, patch: PatchAdvice | None) -> tuple[str, str]:
    """A workload's training as a script that runs, "" of a script, which is one already; and what changes in it."""
    workload, device = session.workload, session.machine.device
    if workload.driver == "script":
        return "", session.patch.diff if session.patch is not None and patch is not None and patch.file else ""
    return (
        script(session.codes, measured, workload=workload, device=device),
        lines_to_change(session.codes, measured, session.baseline, workload=workload, device=device),
    )


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


def _gain(metric: str, confirmed: VariantSummary, learning: TimeToLoss | None) -> tuple[Estimate | None, bool]:
    """The gain in the goal's metric, and whether it is one."""
    if metric == "time_to_loss" and learning is not None:
        if learning.ratio is None or learning.low is None or learning.high is None:
            return None, False
        return Estimate(ratio=learning.ratio, low=learning.low, high=learning.high), learning.high < 1
    # What changes neither numerics nor the optimisation needs as many samples: only its speed counts.
    found = confirmed.versus_baseline.get(_measurable(metric))
    if found is None or found.low is None or found.high is None:
        return None, False
    return Estimate(ratio=found.ratio, low=found.low, high=found.high), found.verdict == "better"


def _measurable(metric: str) -> str:
    """The metric of blocks that stands for the goal's."""
    return "throughput" if metric == "time_to_loss" else metric


def _is_needed(session: Session, baseline: VariantSummary, confirmed: VariantSummary) -> bool:
    """Whether the baseline breaks a limit that these settings keep."""
    goal = session.goal

    def kept(one: VariantSummary) -> bool:
        p99_ns = one.step_ns.p99 if one.step_ns else None
        figures = (
            (one.peak_host_bytes, goal.max_host_bytes),
            (one.peak_device_reserved_bytes, goal.max_device_bytes),
            (p99_ns, goal.max_p99_ns),
        )
        return all(figure is not None and figure <= limit for figure, limit in figures if limit is not None)

    return kept(confirmed) and not kept(baseline)


def so_far(session: Session) -> SoFar | None:
    """The best combination measured, where the search ended before a confirmation; None where none was better."""
    offer = Offer(
        values={
            name: [value for value in codes if value != session.defaults.get(name)]
            for name, codes in session.codes.items()
        },
        defaults=session.defaults,
    )
    belief = believe(session, offer)
    best = belief.best()
    if not best:
        return None
    [standing] = [one for one in belief.standings(most=len(belief.combinations)) if one.settings == best]
    return SoFar(settings=best, gain=standing.gain())


def ratio_of(variant: VariantSummary, metric: str) -> float | None:
    """The variant over the baseline in one metric."""
    found = variant.versus_baseline.get(metric)
    return found.ratio if found else None
