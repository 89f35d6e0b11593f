"""Pairs of blocks of the same round, by hand."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from msgspec.structs import replace

from perftool.analysis.pairs import blocks_by_launch, launches_of, pair_effects, pairs_left_out
from perftool.analysis.summary import summarise
from perftool.records import METRICS, Session
from perftool.words import DEVICE_HEAT, HARDWARE_SLOWDOWN, POWER_BRAKE, POWER_LIMIT
from tests.measure.fakes import make_session
from tests.sessions import make_block, make_launch, timed_session


def two_launches(ours: dict[int, int], theirs: dict[int, int]) -> Session:
    """A session of one generation; step times by round."""
    session = make_session()
    session.variants.append({"amp": "bf16"})
    session.launches.extend([make_launch(0, 0), make_launch(1, 1)])
    session.blocks.extend(make_block(0, number, [step] * 4) for number, step in theirs.items())
    session.blocks.extend(make_block(1, number, [step] * 4) for number, step in ours.items())
    return session


def test_an_effect_is_the_median_log_ratio_of_blocks_of_the_same_round() -> None:
    session = two_launches({0: 50, 1: 90, 2: 100, 9: 1}, {0: 100, 1: 100, 2: 100, 5: 7})
    matrix = pair_effects(session, "throughput", [1])
    assert matrix.pairs.tolist() == [[3]]
    assert matrix.d[0, 0] == pytest.approx(log(0.9))


def test_times_are_per_sample() -> None:
    session = two_launches({0: 100}, {0: 100})
    twice = make_block(1, 1, [100] * 4)
    session.blocks.extend([make_block(0, 1, [100] * 2), twice])
    assert pair_effects(session, "throughput", [1]).d[0, 0] == 0


def test_blocks_without_samples_or_steps_make_no_pair() -> None:
    session = two_launches({}, {0: 100})
    session.blocks.append(make_block(1, 0, []))
    for metric in METRICS[:4]:
        assert np.isnan(pair_effects(session, metric, [1]).d[0, 0]), metric


def test_generations_are_columns_and_gaps_are_nan() -> None:
    session = timed_session([({}, 10.0), ({"amp": "bf16"}, 5.0), ({"threads": "1"}, 12.0)], generations=3, noise=0.0)
    gone = next(one for one in session.launches if one.variant == 2 and one.generation == 1)
    session.launches[session.launches.index(gone)] = make_launch(gone.launch, 2, 1, status="failed", reason="it died")
    matrix = pair_effects(session, "throughput", [1, 2])
    assert matrix.generations == (0, 1, 2)
    assert matrix.d[0] == pytest.approx([log(0.5)] * 3)
    assert np.isnan(matrix.d[1]).tolist() == [False, True, False]
    assert matrix.pairs.tolist() == [[10, 10, 10], [10, 0, 10]]


def test_a_shared_disturbance_cancels_within_pairs() -> None:
    session = timed_session([({}, 10.0), ({"amp": "bf16"}, 8.0)], noise=0.002)
    slow = [block for block in session.blocks if block.round % 2]
    assert slow
    matrix = pair_effects(session, "throughput", [1])
    assert matrix.d[0] == pytest.approx([log(0.8)] * 4, abs=0.005)


def test_stages_choose_the_launches() -> None:
    session = timed_session([({}, 10.0), ({"amp": "bf16"}, 5.0)], stage="alone")
    assert launches_of(session, 1, ["confirm"]) == []
    assert pair_effects(session, "throughput", [1], stages=["confirm"]).d.shape == (1, 0)
    assert len(launches_of(session, 1)) == 4


def test_any_variant_may_be_the_reference() -> None:
    session = timed_session([({}, 10.0), ({"amp": "bf16"}, 5.0), ({"threads": "1"}, 20.0)], noise=0.0)
    assert pair_effects(session, "throughput", [1], against=2).d[0] == pytest.approx([log(0.25)] * 4)


def test_memory_is_one_figure_per_launch() -> None:
    session = two_launches({0: 100}, {0: 100})
    session.launches[1] = make_launch(1, 1, peak_host_bytes=800_000_000)
    assert pair_effects(session, "peak_host", [1]).d[0, 0] == pytest.approx(log(2))
    assert np.isnan(pair_effects(session, "peak_device", [1]).d[0, 0])


def test_tails_and_stalls_are_of_all_paired_steps() -> None:
    session = two_launches({}, {})
    for number in range(20):
        session.blocks.append(make_block(0, number, [100] * 19 + [300]))
        session.blocks.append(make_block(1, number, [100] * 18 + [600, 600]))
    assert pair_effects(session, "step_p95", [1]).d[0, 0] == pytest.approx(log(600 / 110), abs=0.1)
    stalls = pair_effects(session, "stall_share", [1])
    assert stalls.d[0, 0] == pytest.approx(log((900 / 3000) / (150 / 2200)))
    # One that never stalls has no ratio.
    assert np.isnan(pair_effects(two_launches({0: 9, 1: 9}, {0: 9, 1: 9}), "stall_share", [1]).d[0, 0])


def test_blocks_are_found_by_launch() -> None:
    session = two_launches({0: 1, 1: 2}, {0: 3})
    assert [len(blocks_by_launch(session)[launch]) for launch in (0, 1)] == [1, 2]


def test_pairs_of_which_one_block_was_slowed_down_from_outside_are_left_out() -> None:
    session = two_launches({0: 90, 1: 90, 2: 200, 3: 180}, {0: 100, 1: 100, 2: 100, 3: 200})

    def held_down(at: int, *by: str) -> None:
        block = session.blocks[at]
        session.blocks[at] = replace(block, labels=replace(block.labels, device_held_down_by=list(by)))

    held_down(6, POWER_BRAKE)  # ours in round 2
    held_down(3, POWER_BRAKE)  # both in round 3
    held_down(7, POWER_BRAKE, DEVICE_HEAT)
    held_down(4, POWER_LIMIT)  # ours in round 0: what it draws, and how hot it runs, may be its own doing
    held_down(5, HARDWARE_SLOWDOWN)
    matrix = pair_effects(session, "throughput", [1])
    assert matrix.pairs.tolist() == [[3]]
    assert matrix.d[0, 0] == pytest.approx(log(0.9))
    assert pairs_left_out(session) == 1
    left_out, hot = summarise(session).warnings
    assert left_out.startswith("1 pair of blocks is left out")
    assert "in 2 blocks of 8" in hot
