"""From a tuned session to its recommendation. The search has chosen; here it is only told, with the confirmed numbers.

Pure: records in, records out.
"""

from __future__ import annotations

from math import exp

from perftool.analysis.handover import lines_to_change, script, to_paste
from perftool.analysis.pairs import pair_effects
from perftool.analysis.parity import parity_of, time_to_loss
from perftool.analysis.stats import Effect, interval, launch_effects
from perftool.analysis.summary import Summaries, summarise
from perftool.analysis.verdict import ALPHA, LOOKS
from perftool.records import (
    CONFIRM,
    PARITY,
    Estimate,
    LossParity,
    Recommendation,
    RecommendationStatus,
    Rejected,
    Session,
    SettingEffect,
    Settings,
    Summary,
    VariantSummary,
)
from perftool.units import ratio


def conclude(session: Session) -> Summary:
    """The summary of any session, with the recommendation of a tuned one."""
    summaries = Summaries(session)
    if session.command != "tune":
        return summarise(session, summaries=summaries)
    winner = chosen(session)
    status, recommendation = None, None
    if winner is not None:
        status, recommendation = _recommendation(session, winner, summaries)
    return summarise(
        session,
        summaries=summaries,
        recommendation=recommendation,
        recommendation_status=status,
        rejected=rejected(session, winner or {}, summaries),
        parity=last_parity(session),
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
    number = session.variants.index(winner)
    confirmed = summaries.of(number)
    throughput = confirmed.versus_baseline.get("throughput")
    generations = {launch.generation for launch in session.launches if launch.stage == CONFIRM}
    if throughput is None or len(generations) < min(LOOKS) or throughput.low is None or throughput.high is None:
        return "not_confirmed", None
    if throughput.verdict != "better":
        return "not_confirmed", None
    speedup = Estimate(ratio=throughput.ratio, low=throughput.low, high=throughput.high)
    memory = confirmed.versus_baseline.get("peak_device") or confirmed.versus_baseline.get("peak_host")
    measured = {**session.baseline, **winner}
    return "confirmed", Recommendation(
        settings=winner,
        speedup=speedup,
        confidence=1 - ALPHA,
        pairs=throughput.pairs,
        launches=throughput.launches,
        peak_memory_ratio=memory.ratio if memory else None,
        jitter_ratio=_jitter_ratio(confirmed),
        break_even_steps=confirmed.break_even_steps,
        loss_parity=parity_of(session, winner),
        time_to_loss=time_to_loss(session, winner, speedup),
        changes_optimisation=any(session.scenario_changes.get(name) == "optimisation" for name in winner),
        code=to_paste(session.codes, measured, session.baseline),
        script=script(session.codes, measured, workload=session.workload, device=session.machine.device),
        diff=lines_to_change(
            session.codes, measured, session.baseline, workload=session.workload, device=session.machine.device
        ),
        per_setting=[_setting_effect(session, winner, name) for name in winner],
        rejected=rejected(session, winner, summaries),
    )


def _jitter_ratio(confirmed: VariantSummary) -> float | None:
    """How p95/p50 changed, both compared pair by pair."""
    tail, middle = (confirmed.versus_baseline.get(metric) for metric in ("step_p95", "step_p50"))
    return tail.ratio / middle.ratio if tail and middle else None


def _setting_effect(session: Session, winner: Settings, name: str) -> SettingEffect:
    without = {key: value for key, value in winner.items() if key != name}
    alone = {name: winner[name]}
    return SettingEffect(
        name=name,
        value=winner[name],
        alone=_throughput(session, alone, {}),
        # Measured as what is lost without it, in the last pass that had both.
        together=_throughput(session, winner, without) if without else None,
    )


def _throughput(session: Session, settings: Settings, against: Settings) -> Estimate | None:
    """Ratio of samples per second of one variant to another, from the passes in which both took turns."""
    if settings not in session.variants or against not in session.variants:
        return None
    matrix = pair_effects(
        session, "throughput", [session.variants.index(settings)], against=session.variants.index(against)
    )
    effects: list[Effect | None] = launch_effects(matrix.d, matrix.half_widths)
    if effects[0] is None:
        return None
    low, high = interval(effects[0], ALPHA)
    return Estimate(ratio=exp(-effects[0].theta), low=exp(-high), high=exp(-low))
