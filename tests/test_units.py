"""Numbers as text: the documented forms, and that no value is misstated by more than its rounding."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perftool import units

SIZES = st.floats(min_value=1e-3, max_value=1e17, allow_nan=False)
PROPERTY = settings(deadline=None, max_examples=200, derandomize=True)
EVERY_FORM: list[Callable[[float | None], str]] = [
    units.duration,
    units.rate,
    units.size,
    units.bandwidth,
    units.flops,
    units.flop_rate,
    units.temperature,
    units.ratio,
    units.percent,
    units.share,
    units.count,
    units.amount,
    units.decimal,
    lambda number: units.size_change(0, number, 1),
]


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "0 ns"),
        (226_000, "226 µs"),
        (999_700, "1 ms"),
        (14_120_000, "14.1 ms"),
        (3.2e9, "3.2 s"),
        (59.97e9, "1 min"),
        (125e9, "2 min 5 s"),
        (3599.6e9, "1 h"),
        (3900e9, "1 h 5 min"),
        (-1.5e6, "-1.5 ms"),
    ],
)
def test_duration(time_ns: float, text: str) -> None:
    assert units.duration(time_ns) == text


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (units.rate(70_345), "70.3 k samples/s"),
        (units.rate(0.25), "0.25 samples/s"),
        (units.rate(12, "step"), "12 steps/s"),
        (units.size(451_300_000), "451 MB"),
        (units.size(1_200_000_000), "1.2 GB"),
        (units.size(999_900_000), "1 GB"),
        (units.size(12), "12 B"),
        (units.bandwidth(12_140_000_000), "12.1 GB/s"),
        (units.flops(1_880_621_056), "1.88 GFLOP"),
        (units.flops(160), "160 FLOP"),
        (units.flop_rate(989e12), "989 TFLOP/s"),
        (units.temperature(44.6), "45 °C"),
        (units.ratio(1.3), "1.30x"),
        (units.ratio(0.4349), "0.435x"),
        (units.ratio(0), "0.00x"),
        (units.ratio_interval(1.34, 1.31, 1.37), "1.34x (1.31 to 1.37)"),
        (units.ratio_interval(1.34, None, 1.37), "1.34x"),
        (units.percent(0.337), "+34 %"),
        (units.percent(-0.004), "-0.4 %"),
        (units.percent(-0.0001), "0 %"),
        (units.percent(0.0997), "+10 %"),
        (units.share(0.042), "4.2 %"),
        (units.size_change(10_123, 9_840, 10_400), "+10.1 kB per step (9.8 to 10.4)"),
        (units.size_change(12, -200, 400), "+12 B per step (-200 to 400)"),
        (units.size_change(-1.5e6, -2e6, 900, "day"), "-1.5 MB per day (-2 to 0)"),
        (units.size_change(0, 0, 0), "0 B per step (0 to 0)"),
        (units.amount(1_234_000), "1.23 M"),
        (units.amount(845), "845"),
        (units.count(1234), "1,234"),
        (units.counted(1, "pair"), "1 pair"),
        (units.counted(2, "launch", "launches"), "2 launches"),
        (units.decimal(0.03121), "0.0312"),
        (units.decimal(1.2e-7), "1.20e-07"),
    ],
)
def test_documented_forms(shown: str, text: str) -> None:
    assert shown == text


@pytest.mark.parametrize("form", EVERY_FORM)
@pytest.mark.parametrize("number", [None, math.nan, math.inf, -math.inf])
def test_what_is_not_known_says_so(form: Callable[[float | None], str], number: float | None) -> None:
    assert form(number) == "unknown"


@PROPERTY
@given(SIZES)
def test_a_duration_reads_back_within_its_rounding(time_ns: float) -> None:
    parts = re.findall(r"([\d.,]+) (ns|µs|ms|s|min|h)", units.duration(time_ns))
    in_ns = {"ns": 1.0, "µs": 1e3, "ms": 1e6, "s": 1e9, "min": 60e9, "h": 3600e9}
    read = sum(float(number.replace(",", "")) * in_ns[unit] for number, unit in parts)
    tolerance = 0.0051 * time_ns if time_ns < 60e9 else 0.51e9 if time_ns < 3599e9 else 30.1e9
    assert read == pytest.approx(time_ns, abs=tolerance)


@PROPERTY
@given(SIZES)
def test_bytes_and_rates_read_back_within_half_a_per_cent(size: float) -> None:
    factors = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    for text, pattern in (
        (units.size(size), r"([\d.,]+) ([kMGT]?)B"),
        (units.rate(size), r"([\d.,]+) ?([kMGT]?) samples/s"),
    ):
        match = re.fullmatch(pattern, text)
        assert match is not None, text
        assert float(match[1].replace(",", "")) * factors[match[2]] == pytest.approx(size, rel=0.0051)


@PROPERTY
@given(st.floats(min_value=1e-6, max_value=1e6))
def test_a_ratio_shows_three_digits_of_itself(value: float) -> None:
    text = units.ratio(value)
    assert float(text[:-1].replace(",", "")) == pytest.approx(value, rel=0.0051)
    assert len(re.sub(r"^[0.]+|\D", "", text)) >= 3


@PROPERTY
@given(st.floats(min_value=-5, max_value=50))
def test_a_difference_keeps_its_sign_and_a_share_never_gains_one(fraction: float) -> None:
    text = units.percent(fraction)
    assert float(text.removesuffix(" %").replace(",", "")) == pytest.approx(100 * fraction, abs=0.51)
    assert text.startswith("+") == (fraction > 0 and text != "0 %")
    assert not units.share(fraction).startswith("+")
