"""From a tuned session to its recommendation. The search has chosen; here it is only told, with the confirmed numbers.

Pure: records in, records out.
"""

from __future__ import annotations

from perftool.analysis.confirmation import generation_s, measurable, metric_of_goal, missing, needed
from perftool.analysis.contributions import setting_effects
from perftool.analysis.handover import lines_to_change, script, to_paste
from perftool.analysis.pairs import launches_of
from perftool.analysis.parity import parity_of, time_to_loss
from perftool.analysis.patched import patch_advice
from perftool.analysis.search import Offer, believe
from perftool.analysis.summary import Summaries, summarise
from perftool.analysis.verdict import ALPHA, HIGHER_IS_BETTER
from perftool.records import (
    ALONE,
    FRESH,
    PARITY,
    Estimate,
    LossParity,
    PatchAdvice,
    Provisional,
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
from perftool.units import counted, ratio


def conclude(session: Session, folder: str | None = None) -> Summary:
    """The summary of any session, with the recommendation of a tuned one.

    folder: that its files are in; None where they are nowhere.
    """
    summaries = Summaries(session)
    if session.command != "tune":
        return summarise(session, summaries=summaries, folder=folder)
    winner = chosen(session)
    status: RecommendationStatus | None = None
    recommendation = None
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
        so_far=so_far(session) if recommendation is None and status in (None, "not_confirmed") else None,
        provisional=provisional(session, winner, summaries) if winner and status == "provisional" else None,
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
    tried = {setting for launch in session.launches for setting in session.variants[launch.variant].items()}
    for number, settings in enumerate(session.variants):
        if len(settings) == 1 and any(launch.variant == number for launch in session.launches):
            reasons[next(iter(settings.items()))] = [_against(summaries.of(number))]
    for decision in session.decisions:
        if decision.action == "dropped" and decision.stage == PARITY:
            for name in set(decision.settings) - set(winner):
                reasons[name, decision.settings[name]] = [decision.reason]
        elif decision.action in ("dropped", "untested"):
            for setting in decision.settings.items():
                if decision.action == "untested" and decision.stage == ALONE and setting in tried:
                    continue  # it came in company
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
    if throughput.low is None:
        seen = counted(throughput.launches, "launch", "launches")
        return f"{ratio(throughput.ratio)} alone in {seen}, not enough to tell"
    unsure = "no gain" if throughput.ratio <= 1 else "no clear gain"
    words = {"worse": "slower", "better": "faster"}.get(throughput.verdict, unsure)
    return f"{words} alone, {ratio(throughput.ratio)}"


def _recommendation(
    session: Session, winner: Settings, summaries: Summaries
) -> tuple[RecommendationStatus, Recommendation | None]:
    if not winner:
        return "nothing_better", None
    variant = session.variants.index(winner)
    confirmed = summaries.of(variant)
    throughput = confirmed.versus_baseline.get("throughput")
    if not launches_of(session, variant, FRESH) or throughput is None:
        return "not_confirmed", None
    if throughput.low is None or throughput.high is None:
        return "not_confirmed", None
    speedup = Estimate(ratio=throughput.ratio, low=throughput.low, high=throughput.high)
    learning = time_to_loss(session, winner, speedup)
    metric = metric_of_goal(session)
    gain, is_better = _gain(metric, confirmed, learning)
    limits_need = needed(session, winner, summaries)
    if not is_better and not limits_need:
        return "provisional" if provisional(session, winner, summaries) else "not_confirmed", None
    memory = confirmed.versus_baseline.get("peak_device") or confirmed.versus_baseline.get("peak_host")
    measured = {**session.baseline, **winner}
    patch = patch_advice(session, variant, measurable(metric), summaries)
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
        per_setting=setting_effects(session, winner, limits_need),
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


def _gain(metric: str, confirmed: VariantSummary, learning: TimeToLoss | None) -> tuple[Estimate | None, bool]:
    """The gain in the goal's metric, and whether it is one."""
    if metric == "time_to_loss" and learning is not None:
        if learning.ratio is None or learning.low is None or learning.high is None:
            return None, False
        return Estimate(ratio=learning.ratio, low=learning.low, high=learning.high), learning.high < 1
    # What changes neither numerics nor the optimisation needs as many samples: only its speed counts.
    found = confirmed.versus_baseline.get(measurable(metric))
    if found is None or found.low is None or found.high is None:
        return None, False
    return Estimate(ratio=found.ratio, low=found.low, high=found.high), found.verdict == "better"


def provisional(session: Session, winner: Settings, summaries: Summaries) -> Provisional | None:
    """A winner that looks better in its fresh launches, by what counts, without being surely so."""
    variant = session.variants.index(winner)
    metric = metric_of_goal(session)
    found = summaries.of(variant).versus_baseline.get(measurable(metric))
    if not launches_of(session, variant, FRESH) or found is None or found.low is None or found.high is None:
        return None
    gain = found.ratio if metric in HIGHER_IS_BETTER or metric == "time_to_loss" else 1 / found.ratio
    if gain < 1 + found.margin:
        return None
    launches_needed = missing(session, winner)
    further = None if launches_needed is None else launches_needed - found.launches
    return Provisional(
        settings=winner,
        metric=measurable(metric),
        gain=Estimate(ratio=found.ratio, low=found.low, high=found.high),
        pairs=found.pairs,
        launches=found.launches,
        code=to_paste(session.codes, {**session.baseline, **winner}, session.baseline),
        launches_needed=launches_needed,
        further_s=None if further is None else further * generation_s(session, winner),
    )


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
    best = belief.leader()
    if not best:
        return None
    [standing] = [one for one in belief.standings(most=len(belief.combinations)) if one.settings == best]
    return SoFar(settings=best, gain=standing.gain())


def ratio_of(variant: VariantSummary, metric: str) -> float | None:
    """The variant over the baseline in one metric."""
    found = variant.versus_baseline.get(metric)
    return found.ratio if found else None
