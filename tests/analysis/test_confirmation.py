"""What the fresh launches say of a winner and of its settings."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perftool.analysis.confirmation import earned, is_decided, is_worth, leave_outs, missing, needed, unearned
from perftool.analysis.summary import Summaries
from perftool.records import CONFIRM, LEAVE_ONE_OUT, Estimate, Goal, Session, Settings
from tests.sessions import Timed, timed_session

AMP: Settings = {"amp": "bf16"}
FUSED: Settings = {"optimizer_kernel": "fused"}
BOTH: Settings = {**AMP, **FUSED}


def confirmed(both_ms: float, amp_ms: float, fused_ms: float, *, generations: int = 4, noise: float = 0.001) -> Session:
    """Both settings beside each alone, in fresh launches; the baseline takes 10 ms."""
    variants: list[Timed] = [({}, 10.0), (BOTH, both_ms), (AMP, amp_ms), (FUSED, fused_ms)]
    session = timed_session(variants, command="tune", stage=CONFIRM, generations=generations, noise=noise)
    session.launches[:] = [
        replace(one, stage=LEAVE_ONE_OUT) if one.variant in (2, 3) else one for one in session.launches
    ]
    return session


def nothing(_: Settings) -> float:
    """Expected by all else that was measured."""
    return 0.0


def test_each_setting_is_left_out_of_several_and_none_of_one() -> None:
    assert leave_outs(BOTH) == {"amp": FUSED, "optimizer_kernel": AMP}
    assert leave_outs(AMP) == {}


def test_what_a_setting_earns_is_the_ratio_to_the_rest() -> None:
    session = confirmed(4.0, 5.0, 8.0)
    gain = earned(session, BOTH, AMP, "throughput")
    assert gain is not None
    assert gain.ratio == pytest.approx(1.25, rel=0.01)
    assert gain.low < 1.25 < gain.high
    shorter = earned(session, BOTH, AMP, "step_p50")
    assert shorter is not None
    assert shorter.ratio == pytest.approx(0.8, rel=0.01)


def test_one_launch_tells_nothing_of_a_setting() -> None:
    assert earned(confirmed(4.0, 5.0, 8.0, generations=1), BOTH, AMP, "throughput") is None


def test_the_worst_that_earns_nothing_is_named_and_one_at_a_time() -> None:
    assert unearned(confirmed(4.0, 5.0, 8.0), BOTH, nothing) is None
    found = unearned(confirmed(5.0, 4.99, 10.0), BOTH, nothing)
    assert found is not None
    assert found[0] == "optimizer_kernel"
    twins = unearned(confirmed(5.0, 5.0, 4.99), BOTH, nothing)  # each seems to bring nothing beside the other
    assert twins is not None
    assert twins[0] == "amp"


def test_a_price_decides_what_is_worth_it() -> None:
    session = confirmed(5.0, 5.15, 10.0)  # 3 %
    assert unearned(session, BOTH, nothing) is None
    priced = unearned(replace(session, goal=Goal(price=0.1)), BOTH, nothing)
    assert priced is not None
    assert priced[0] == "optimizer_kernel"


@pytest.mark.parametrize(
    ("metric", "ratio", "low", "high", "worth"),
    [
        ("throughput", 1.02, 0.98, 1.06, True),
        ("throughput", 1.008, 1.002, 1.014, True),  # surely something
        ("throughput", 1.005, 1.001, 1.009, False),  # and surely less than the price
        ("throughput", 1.005, 0.99, 1.02, False),
        ("peak_host", 0.98, 0.95, 1.01, True),
        ("peak_host", 0.995, 0.99, 1.0, False),
        ("peak_host", 0.993, 0.987, 0.999, True),
    ],
)
def test_worth(metric: str, ratio: float, low: float, high: float, worth: bool) -> None:
    assert is_worth(metric, Estimate(ratio=ratio, low=low, high=high), 0.01, 0.0) == worth


def test_what_a_limit_needs_earns_its_place() -> None:
    session = confirmed(5.0, 4.99, 10.0)
    peaks = {0: 900, 1: 400, 2: 900, 3: 400}
    session.launches[:] = [replace(one, peak_host_bytes=peaks[one.variant]) for one in session.launches]
    limited = replace(session, goal=Goal(max_host_bytes=500))
    assert needed(limited, BOTH, Summaries(limited)) == {"optimizer_kernel"}
    assert unearned(limited, BOTH, nothing) is None


def test_a_winner_is_decided_with_a_verdict_and_each_setting_left_out() -> None:
    assert is_decided(confirmed(4.0, 5.0, 8.0), BOTH)
    assert not is_decided(confirmed(4.0, 5.0, 8.0, generations=1), BOTH)
    session = confirmed(4.0, 5.0, 8.0)
    session.launches[:] = [one for one in session.launches if one.variant != 3]
    assert not is_decided(session, BOTH)
    lost = next(one for one in confirmed(4.0, 5.0, 8.0).launches if one.variant == 3)
    session.launches.append(replace(lost, status="failed", reason="out of memory"))
    assert is_decided(session, BOTH)


def test_what_is_missing_is_told_in_launches() -> None:
    assert missing(confirmed(9.5, 9.7, 9.8, generations=2), BOTH) == 4
    assert missing(confirmed(9.5, 9.7, 9.8, generations=1), BOTH) is None


def test_what_fresh_launches_leave_wide_open_is_for_all_that_was_measured_to_say() -> None:
    open_wide, surely_less = (Estimate(ratio=0.995, low=low, high=high) for low, high in ((0.9, 1.1), (0.991, 0.999)))
    assert is_worth("throughput", open_wide, 0.01, 0.03)
    assert not is_worth("throughput", open_wide, 0.01, 0.005)
    assert not is_worth("throughput", surely_less, 0.01, 0.03)
