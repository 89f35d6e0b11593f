"""What is believed of combinations, from the few that were measured."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perftool.analysis.surrogate import Observation, likely_launch_sd, posterior
from perftool.records import Settings

NAMES = ("amp", "batch_gather", "malloc_retention", "optimizer_kernel")
ALL: list[Settings] = [
    {name: "on" for name, chosen in zip(NAMES, one, strict=True) if chosen} for one in product([0, 1], repeat=4)
]


def seen(chosen: Settings, log_ratio: float, generation: int = 0, sd: float = 0.002) -> Observation:
    return Observation(settings=chosen, generation=generation, log_ratio=log_ratio, sd=sd)


def test_nothing_measured_is_nothing_known() -> None:
    found = posterior(ALL, [], launch_sd=0.01)
    assert not found.mean.any()
    assert found.sd[ALL.index({})] == 0
    assert found.draws.shape == (256, len(ALL))
    assert found.sd[ALL.index({"amp": "on"})] == pytest.approx(float(found.draws[:, 1:].std()), rel=1.0)


def test_effects_of_single_settings_add_up_until_the_pair_is_seen() -> None:
    alone = [seen({"amp": "on"}, -0.4), seen({"optimizer_kernel": "on"}, -0.2)]
    pair = {"amp": "on", "optimizer_kernel": "on"}
    before = posterior(ALL, alone, launch_sd=0.005)
    assert before.mean[ALL.index(pair)] == pytest.approx(-0.6, abs=0.01)
    assert before.sd[ALL.index(pair)] > 0.09  # they may mask each other
    after = posterior(ALL, [*alone, seen(pair, -0.4, generation=1)], launch_sd=0.005)
    assert after.mean[ALL.index(pair)] == pytest.approx(-0.4, abs=0.01)
    assert after.sd[ALL.index(pair)] < 0.02


def test_what_a_pair_does_is_expected_of_a_third_setting_beside_it() -> None:
    measured = [seen({"amp": "on"}, -0.4), seen({"batch_gather": "on"}, 0.0), seen({"malloc_retention": "on"}, -0.1)]
    measured.append(seen({"amp": "on", "batch_gather": "on"}, -0.6, generation=1))
    found = posterior(ALL, measured, launch_sd=0.005)
    three = {"amp": "on", "batch_gather": "on", "malloc_retention": "on"}
    assert found.mean[ALL.index(three)] == pytest.approx(-0.7, abs=0.02)


def test_a_slow_launch_of_the_baseline_is_not_everybodys_gain() -> None:
    """All of one generation look 3 % faster: that is the baseline's launch, not all of them."""
    quiet = [seen({name: "on"}, 0.0, generation=0) for name in NAMES]
    shifted = [seen({name: "on"}, -0.03, generation=1) for name in NAMES]
    together = posterior(ALL, [*quiet, *shifted], launch_sd=0.01)
    independent = posterior(
        ALL, [*quiet, *(seen(one.settings, -0.03, generation=g) for g, one in enumerate(shifted, 1))], launch_sd=0.01
    )
    amp = ALL.index({"amp": "on"})
    assert together.sd[amp] > independent.sd[amp]


@pytest.mark.parametrize(("launch_sd", "low", "high"), [(0.005, 0.006, 0.02), (0.08, 0.04, 0.1)])
def test_a_machine_whose_launches_differ_much_is_known_by_them(launch_sd: float, low: float, high: float) -> None:
    generator = np.random.default_rng(0)
    effects = {name: -0.1 * number for number, name in enumerate(NAMES)}
    measured = [
        seen(
            one, sum(effects[name] for name in one) + float(generator.normal(0, launch_sd * 2**0.5)), generation=number
        )
        for number, one in enumerate(2 * ALL[1:])
    ]
    assert low <= likely_launch_sd(measured, 0.012) <= high
    assert likely_launch_sd(measured[:2], 0.012) == 0.012


@given(st.lists(st.tuples(st.sampled_from(ALL[1:]), st.floats(-0.5, 0.5), st.integers(0, 3)), min_size=1, max_size=12))
@settings(deadline=None, derandomize=True, max_examples=40)
def test_draws_agree_with_mean_and_sd(given: list[tuple[Settings, float, int]]) -> None:
    found = posterior(ALL, [seen(*one) for one in given], launch_sd=0.01, draws=4000)
    assert np.allclose(found.draws.mean(axis=0), found.mean, atol=5 * found.sd.max() / 4000**0.5 + 1e-9)
    assert np.allclose(found.draws.std(axis=0), found.sd, rtol=0.1, atol=1e-6)
    assert not found.draws[:, ALL.index({})].any()
