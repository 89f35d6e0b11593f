"""What each setting of a recommendation bought: alone, and as what is lost without it. Measured, not added up."""

from __future__ import annotations

from math import exp, log

from perftool.analysis.pairs import Samples, pair_effects
from perftool.analysis.stats import interval, launch_effects
from perftool.analysis.verdict import ALPHA
from perftool.records import CONFIRM, Estimate, Session, SettingEffect, Settings

COUNTS = 0.02  # log-ratio by which a setting must do more in company than alone before they are said to interact


def setting_effects(session: Session, winner: Settings) -> list[SettingEffect]:
    """Of every setting of the winner, in samples per second."""
    samples = Samples(session)
    return [_effect(session, samples, winner, name) for name in winner]


def _effect(session: Session, samples: Samples, winner: Settings, name: str) -> SettingEffect:
    setting = {name: winner[name]}
    without = {key: value for key, value in winner.items() if key != name}
    alone = throughput_ratio(session, samples, setting, {})
    together = None
    if without:
        # From the fresh launches of the confirmation where it had both, else from the search.
        together = throughput_ratio(session, samples, winner, without, fresh=True)
        together = together or throughput_ratio(session, samples, winner, without)
    partners, beside = _partners(session, samples, setting, alone)
    return SettingEffect(
        name=name, value=winner[name], alone=alone, together=together, partners=partners, with_partners=beside
    )


def _partners(
    session: Session, samples: Samples, setting: Settings, alone: Estimate | None
) -> tuple[Settings, Estimate | None]:
    """The fewest other settings with which it surely does more or less than alone, by what counts."""
    if alone is None:
        return {}, None
    companies = sorted((one for one in session.variants if one and not setting.keys() & one.keys()), key=len)
    for company in companies:
        beside = throughput_ratio(session, samples, dict(sorted({**company, **setting}.items())), company)
        if beside is None or abs(log(beside.ratio / alone.ratio)) < COUNTS:
            continue
        if beside.low > alone.high or beside.high < alone.low:
            return company, beside
    return {}, None


def throughput_ratio(
    session: Session, samples: Samples, settings: Settings, against: Settings, *, fresh: bool = False
) -> Estimate | None:
    """Ratio of samples per second of one variant to another, from the generations in which both took turns.

    fresh: only from those that had no part in the choice.
    """
    if settings not in session.variants or against not in session.variants:
        return None
    own, other = session.variants.index(settings), session.variants.index(against)
    stages = [CONFIRM] if fresh else None
    matrix = pair_effects(session, "throughput", [own], against=other, stages=stages, samples=samples)
    [effect] = launch_effects(matrix.d, matrix.half_widths)
    if effect is None:
        return None
    low, high = interval(effect, ALPHA)
    return Estimate(ratio=exp(-effect.theta), low=exp(-high), high=exp(-low))
