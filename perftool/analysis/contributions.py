"""What each setting of a recommendation bought: alone, and as what is lost without it. Measured, not added up."""

from __future__ import annotations

from collections.abc import Collection
from math import exp, log

from perftool.analysis.confirmation import earned, effect_against, estimate_of, leave_outs
from perftool.analysis.pairs import Samples
from perftool.records import Estimate, Session, SettingEffect, Settings

COUNTS = 0.02  # log-ratio by which a setting must do more in company than alone before they are said to interact


def setting_effects(session: Session, winner: Settings, needed: Collection[str] = ()) -> list[SettingEffect]:
    """Of every setting of the winner, in samples per second. needed: those without which a limit is broken."""
    samples = Samples(session)
    return [_effect(session, samples, winner, name, is_needed=name in needed) for name in winner]


def _effect(session: Session, samples: Samples, winner: Settings, name: str, *, is_needed: bool) -> SettingEffect:
    setting = {name: winner[name]}
    without = leave_outs(winner).get(name)
    alone = throughput_ratio(session, samples, setting, {})
    together = None
    if without is not None:
        # From the fresh launches of the confirmation where it had both, else from the search.
        together = earned(session, winner, without, "throughput", samples)
        together = together or throughput_ratio(session, samples, winner, without)
    partners, beside = _partners(session, samples, setting, alone)
    return SettingEffect(
        name=name,
        value=winner[name],
        alone=alone,
        together=together,
        seen_alone=None if alone is not None else _seen(session, samples, setting),
        is_needed=is_needed,
        partners=partners,
        with_partners=beside,
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


def throughput_ratio(session: Session, samples: Samples, settings: Settings, against: Settings) -> Estimate | None:
    """Ratio of samples per second of one variant to another, from the generations in which both took turns; None where
    these are too few to tell how sure it is."""
    return estimate_of(effect_against(session, settings, against, "throughput", samples=samples), "throughput")


def _seen(session: Session, samples: Samples, settings: Settings) -> float | None:
    """The same ratio to the baseline, however few launches tell it."""
    effect = effect_against(session, settings, {}, "throughput", samples=samples)
    return None if effect is None else exp(-effect.theta)
