"""Whether two sets of losses are the same training."""

from __future__ import annotations

import pytest

from perftool.analysis.parity import loss_parity

BASELINE: dict[int, float | None] = {0: 0.50, 1: 0.52, 2: 0.48, 3: 0.51, 4: 0.49}


def moved(by: float, wobble: float = 0.001) -> dict[int, float | None]:
    return {seed: loss + by + wobble * (-1) ** seed if loss is not None else None for seed, loss in BASELINE.items()}


def test_parity_lies_within_two_spreads_of_the_seeds() -> None:
    told = loss_parity(BASELINE, moved(0.002), steps=100)
    assert told.verdict == "parity"
    assert told.allowed == pytest.approx(2 * 0.0158114, rel=1e-4)
    assert told.difference == pytest.approx(0.0022)
    assert (told.seeds, told.steps) == (5, 100)
    assert told.low is not None
    assert told.high is not None
    assert told.low < 0.0022 < told.high


@pytest.mark.parametrize("by", [0.2, -0.2])
def test_a_loss_far_away_differs_whichever_way(by: float) -> None:
    assert loss_parity(BASELINE, moved(by), steps=100).verdict == "differs"


def test_between_the_two_it_is_undecided() -> None:
    assert loss_parity(BASELINE, moved(0.032), steps=100).verdict == "undecided"
    assert loss_parity(BASELINE, moved(0.0, wobble=0.1), steps=100).verdict == "undecided"


def test_a_loss_that_is_not_finite_differs() -> None:
    told = loss_parity(BASELINE, {**moved(0), 3: None}, steps=100)
    assert (told.verdict, told.difference) == ("differs", None)
    assert loss_parity(BASELINE, {**moved(0), 3: float("inf")}, steps=100).verdict == "differs"


def test_too_few_seeds_decide_nothing() -> None:
    assert loss_parity({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}, steps=9).verdict == "undecided"
    assert loss_parity({}, {}, steps=9).verdict == "undecided"
    # A baseline that diverges by itself says nothing of the variant.
    assert loss_parity(dict.fromkeys(BASELINE), moved(0), steps=9).verdict == "undecided"


def test_only_seeds_of_both_are_compared() -> None:
    assert loss_parity(BASELINE, {0: 0.5, 1: 0.52, 2: 0.48}, steps=9).seeds == 3
