"""What launches did for seconds on end: energy, and whether a gain seen in short blocks lasts."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log
from statistics import fmean

from perftool.records import Session, Stretch


def of_variant(session: Session, variant: int) -> list[Stretch]:
    """In the order of their launches."""
    own = {launch.launch for launch in session.launches if launch.variant == variant}
    return [one for one in session.stretches if one.launch in own]


def sample_mj(stretches: Sequence[Stretch]) -> float | None:
    """Energy of the device per sample; None where it does not tell."""
    told = [one for one in stretches if one.energy_mj is not None]
    samples = sum(one.samples for one in told)
    return sum(one.energy_mj or 0 for one in told) / samples if samples else None


def sustained_ratio(session: Session, variant: int) -> float | None:
    """Samples per second of a variant to the baseline's, by the generations in which both went on end. No more than a
    look: there are too few for an interval."""
    generation = {launch.launch: launch.generation for launch in session.launches}
    rates, base = (
        {generation[one.launch]: one.samples / one.wall_ns for one in of_variant(session, number) if one.samples}
        for number in (variant, 0)
    )
    both = rates.keys() & base.keys()
    return exp(fmean(log(rates[number] / base[number]) for number in both)) if both else None


def held_down_by(stretches: Sequence[Stretch]) -> list[str]:
    """What held the device's clock down at the end of any of these, each word once."""
    return list(dict.fromkeys(word for one in stretches for word in one.device_held_down_by))
