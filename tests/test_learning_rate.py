"""The learning rate follows the batch, in whatever order the settings come."""

from __future__ import annotations

from pathlib import Path

import pytest

from perftool.scenario import clashes, discover, plan_of
from perftool.training import Training
from perftool.workload import load_workload
from tests.proofs import proved

SCENARIOS = discover()
ROWS = load_workload(f"{Path(__file__).parent / 'measure' / 'workloads.py'}:rows")


@pytest.mark.parametrize(("value", "factor"), [("own", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_the_rate_grows_with_the_batch(value: str, factor: float) -> None:
    assert ROWS.batch_size is not None
    size = str(4 * ROWS.batch_size)
    plain = Training(plan_of(ROWS, {}, SCENARIOS, device="cpu", seed=0))
    for settings in ({"batch_size": size, "learning_rate": value}, {"learning_rate": value, "batch_size": size}):
        training = Training(plan_of(ROWS, settings, SCENARIOS, device="cpu", seed=0))
        [group], [own] = training.optimizer.param_groups, plain.optimizer.param_groups
        assert group["lr"] == pytest.approx(factor * own["lr"])
        proof = proved(SCENARIOS["learning_rate"], training, value)
        assert proof.ok, proof.evidence
        group["lr"] *= 3
        assert not proved(SCENARIOS["learning_rate"], training, value).ok


def test_without_another_batch_there_is_nothing_to_scale() -> None:
    assert "set batch_size, too" in (clashes({"learning_rate": "linear"}, SCENARIOS) or "")
    assert clashes({"learning_rate": "linear", "batch_size": "64"}, SCENARIOS) is None
    assert clashes({"learning_rate": "own"}, SCENARIOS) is None
