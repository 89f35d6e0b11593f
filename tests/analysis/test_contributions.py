"""What each setting bought, and with whom."""

from __future__ import annotations

from msgspec.structs import replace

from perftool.analysis.contributions import setting_effects
from perftool.records import CONFIRM, LEAVE_ONE_OUT, Session, Settings
from tests.sessions import Timed, timed_session

AMP: Settings = {"amp": "bf16"}
GATHER: Settings = {"batch_gather": "on"}
BOTH: Settings = {**AMP, **GATHER}


def session(both_fresh_ms: float = 4.0) -> Session:
    """Gather does nothing alone, and a fifth beside autocast; the fresh launches of the confirmation come last."""
    searched: list[Timed] = [({}, 10.0), (AMP, 5.0), (GATHER, 10.0), (BOTH, 3.5)]
    found = timed_session(searched, command="tune", stage="together 1", generations=3, noise=0.001)
    fresh: list[Timed] = [({}, 10.0), (AMP, 5.0), (GATHER, 10.0), (BOTH, both_fresh_ms)]
    confirming = timed_session(fresh, generations=3, noise=0.001, seed=1)
    for launch in confirming.launches:
        stage = CONFIRM if launch.variant in (0, 3) else LEAVE_ONE_OUT
        found.launches.append(
            replace(launch, launch=launch.launch + 100, generation=launch.generation + 10, stage=stage)
        )
    for block in confirming.blocks:
        found.blocks.append(replace(block, launch=block.launch + 100, round=block.round + 1000))
    return found


def test_leaving_one_out_counts_in_fresh_launches_only() -> None:
    effects = {one.name: one for one in setting_effects(session(), BOTH)}
    gather = effects["batch_gather"].together
    assert gather is not None
    assert round(gather.ratio, 2) == 1.25  # 5.0 / 4.0; the search saw 5.0 / 3.5


def test_a_setting_that_shows_only_in_company_names_it() -> None:
    effects = {one.name: one for one in setting_effects(session(), BOTH)}
    gather = effects["batch_gather"]
    assert gather.alone is not None
    assert gather.alone.low <= 1 <= gather.alone.high
    assert gather.partners == AMP
    assert gather.with_partners is not None
    assert gather.with_partners.low > 1.2


def test_settings_that_only_multiply_have_no_partners() -> None:
    variants: list[Timed] = [({}, 10.0), (AMP, 5.0), (GATHER, 8.0), (BOTH, 4.0)]
    found = timed_session(variants, command="tune", stage=CONFIRM, generations=4, noise=0.001)
    for one in setting_effects(found, BOTH):
        assert (one.partners, one.with_partners) == ({}, None)
        assert one.together is not None


def test_a_single_setting_has_no_company_to_be_left_out_of() -> None:
    [one] = setting_effects(timed_session([({}, 10.0), (AMP, 5.0)], stage=CONFIRM), AMP)
    assert one.alone is not None
    assert (one.together, one.partners) == (None, {})
