"""Changes of level in series of checks."""

from __future__ import annotations

from math import exp, log
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perftool.analysis.history import LEAST_POINTS, changes, hampel, series_of
from perftool.records import HistoryEntry
from perftool.report.checks import history_headline

NOISE = 0.01


def make_entry(day: int, log_ratio: float = 0.0, **changed: Any) -> HistoryEntry:
    usual: dict[str, Any] = {"workload": "train.py:mine", "against": "4c1d2e3f", "machine": "a machine, 2 cores"}
    return HistoryEntry(
        created_at=f"2026-01-{day:02}T00:00:00+00:00",
        commit=f"{day:07}",
        dirty=False,
        outcome="passed",
        log_ratios={"throughput": log_ratio},
        **{**usual, **changed},
    )


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, NOISE, count)


def test_a_flat_series_has_no_change() -> None:
    assert not changes(noise(60))


def test_a_change_of_level_is_found_where_it_is() -> None:
    values = noise(60)
    values[40:] += log(0.9)
    [found] = changes(values)
    assert abs(found.index - 40) <= 2
    assert found.ratio == pytest.approx(0.9, abs=0.01)


def test_a_single_outlier_is_no_change() -> None:
    values = noise(60)
    values[30] += log(0.5)
    assert not changes(values)


def test_few_points_tell_nothing() -> None:
    assert not changes([0.0] * 3 + [1.0] * (LEAST_POINTS - 4))


def test_short_flat_series_are_hardly_ever_flagged() -> None:
    series = [noise(points, seed) for seed in range(100) for points in (LEAST_POINTS, 20)]
    assert sum(bool(changes(values)) for values in series) <= 0.01 * len(series)


def test_a_flat_series_that_grows_is_hardly_ever_flagged_on_its_way() -> None:
    flagged = 0
    for seed in range(25):
        values = noise(40, seed)
        flagged += any(changes(values[:points]) for points in range(LEAST_POINTS, 41))
    assert flagged <= 0.05 * 25


def test_a_large_change_is_found_in_most_short_series() -> None:
    step = np.repeat([0.0, 20 * NOISE], LEAST_POINTS // 2)
    found = sum(bool(changes(noise(LEAST_POINTS, seed) + step)) for seed in range(100))
    assert found >= 75


def test_a_constant_series_has_no_change() -> None:
    assert not changes([0.5] * 40)


@settings(max_examples=30, deadline=None)
@given(st.floats(-0.5, 0.5), st.floats(0.2, 5.0))
def test_neither_shift_nor_scale_of_a_clear_series_matters(shift: float, scale: float) -> None:
    values = noise(50)
    values[25:] += 20 * NOISE
    found = changes(values)
    moved = changes(scale * values + shift)
    assert [one.index for one in moved] == [one.index for one in found]
    assert moved[0].ratio == pytest.approx(exp(scale * log(found[0].ratio)), rel=0.02)


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40))
def test_clipping_stays_within_the_series(values: list[float]) -> None:
    clipped = hampel(np.array(values))
    assert len(clipped) == len(values)
    assert clipped.min() >= min(values) - 1e-9
    assert clipped.max() <= max(values) + 1e-9


def test_series_are_apart_where_they_cannot_be_compared() -> None:
    entries = [make_entry(2, 0.2), make_entry(1, 0.1), make_entry(3, machine="another"), make_entry(4, against="other")]
    found = series_of(entries, "throughput")
    assert [len(one.entries) for one in found] == [2, 1, 1]
    assert list(found[0].log_ratios) == [0.1, 0.2]
    assert not series_of(entries, "jitter")


def test_series_with_other_settings_are_apart_and_named() -> None:
    moved = {"threads": "1", "amp": "bf16"}
    entries = [
        make_entry(1),
        make_entry(2, settings=moved),
        make_entry(3),
        make_entry(4, settings=dict(reversed(moved.items()))),
    ]
    plain, other = series_of(entries, "throughput")
    assert [len(plain.entries), len(other.entries)] == [2, 2]
    assert history_headline(plain, []).startswith("train.py:mine against")
    assert history_headline(other, []).startswith("train.py:mine with amp=bf16, threads=1 against")
