"""Plots are well-formed, keep inside of their box, and lose no extreme when they are thinned out."""

from __future__ import annotations

import re
from math import isfinite
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perftool import units
from perftool.report import plots
from perftool.report.thin import BARS, BINS, bars, envelope

PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)
TIMES = st.lists(st.floats(1e3, 1e12), min_size=1, max_size=400)


@PROPERTY
@given(TIMES, st.booleans())
def test_an_axis_holds_what_it_is_over(values: list[float], log: bool) -> None:
    axis = plots.axis_over(values, log=log)
    assert all(axis.holds(value) and 0 <= axis.at(value) <= 100 for value in values)
    assert all(0 <= axis.at(tick) <= 100 and axis.holds(tick * (1 - 1e-9)) for tick in axis.ticks())
    assert len(axis.ticks()) <= 12


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (plots.Axis(0, 10), [0, 2, 4, 6, 8, 10]),
        (plots.Axis(0.9, 2.1, log=True), [1, 1.25, 1.5, 1.75, 2]),
        (plots.Axis(1, 60, log=True), [1, 2, 5, 10, 20, 50]),
        (plots.Axis(1, 2e4, log=True), [1, 10, 100, 1000, 10000]),
        (plots.Axis(3, 3), [3]),
    ],
)
def test_ticks_are_round(axis: plots.Axis, ticks: list[float]) -> None:
    assert axis.ticks() == pytest.approx(ticks)


def test_beyond_an_axis_is_its_end() -> None:
    axis = plots.Axis(1, 100, log=True)
    assert (axis.at(0.1), axis.at(10), axis.at(1e6)) == (0, 50, 100)
    assert plots.Axis(5, 5).at(5) == 50


def test_a_very_long_interval_does_not_hide_the_others() -> None:
    axis = plots.ratio_axis([1.2, 1.4], [0.01, 90.0])
    assert axis.at(1.4) - axis.at(1.2) > 10
    assert not axis.holds(90.0)


def drawn(*values: float) -> list[str]:
    """Every kind of plot of these values."""
    band = plots.Band("<b>", "first", list(range(len(values))), values, values, values)
    lane = plots.Lane("a & b", [0.0], [values[0]])
    spots = [plots.Spot(x=value, y=value, mark="open", label="<1>", low=value, high=value) for value in values]
    axis = plots.axis_over([1.0, *values], log=True)
    return [
        plots.timeline('"x"', "<d>", [band], [lane], units.duration, units.duration, "<time>"),
        plots.histogram("x", "", [plots.Shape("s", "first", [0.5, 0.5], [("<m>", values[0])])], axis, units.times,
                        units.share, "x"),
        plots.scatter("x", "", spots, units.times, units.size, "x", curve=True, log_x=True),
        plots.interval(axis, values[0], values[0], None, "better", "<x>"),
        plots.interval(axis, values[0], values[0], values[-1], "worse", "<x>"),
        plots.interval_axis(axis, units.times, "x"),
        plots.stacked("x", "", values),
        plots.bar("x", values[0], "better"),
        plots.swatch(3),
        plots.key("<k>", "first"),
    ]  # fmt: skip


@PROPERTY
@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=30))
def test_plots_are_well_formed_and_finite(values: list[float]) -> None:
    for one in drawn(*values):
        root = ElementTree.fromstring(one)
        for element in root.iter():
            for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height", "d"):
                numbers = re.findall(r"[^\sMLZ%]+", element.get(name, ""))
                assert all(isfinite(float(number)) for number in numbers)


def test_a_plot_says_what_it_is() -> None:
    named, described = ElementTree.fromstring(drawn(1.0, 2.0)[0])[:2]
    assert (named.tag, named.text, described.tag, described.text) == ("title", '"x"', "desc", "<d>")


def test_no_line_bridges_a_long_gap() -> None:
    at = [*range(10), *range(100, 110)]
    band = plots.Band("x", "first", at, at, at, at)
    text = plots.timeline("x", "", [band], [], units.duration, units.duration, "x")
    assert text.count('class="line first"') == 2


# --------------------------------------------------------------------------------------------------------- thinning


@PROPERTY
@given(TIMES)
def test_an_envelope_keeps_the_extremes(values: list[float]) -> None:
    sample = np.array(values)
    found = envelope(np.cumsum(sample), sample)
    assert (min(found.low), max(found.high)) == (sample.min(), sample.max())
    assert len(found.at) == len(found.low) == len(found.middle) == len(found.high) <= BINS
    assert all(low <= middle <= high for low, middle, high in zip(found.low, found.middle, found.high, strict=True))
    assert found.at == sorted(found.at)


def test_an_envelope_of_nothing_is_empty() -> None:
    assert envelope(np.empty(0), np.empty(0)).at == []


@PROPERTY
@given(st.lists(TIMES, min_size=1, max_size=2))
def test_a_histogram_counts_every_value(samples: list[list[float]]) -> None:
    found = bars([np.array(sample) for sample in samples])
    for sample, shares, above in zip(samples, found.shares, found.above, strict=True):
        assert len(shares) == BARS
        assert sum(shares) + above / len(sample) == pytest.approx(1)
