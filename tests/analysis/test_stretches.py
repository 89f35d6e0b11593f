"""Seconds on end: by hand, and as a search on a scripted GPU leaves them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perftool.analysis.recommend import conclude
from perftool.analysis.search import Offer
from perftool.analysis.stretches import held_down_by, of_variant, sample_mj, sustained_ratio
from perftool.records import CONFIRM, POWER_LIMIT, Session, Stretch
from perftool.report import answers
from perftool.search import STRETCH_S, tune
from tests.measure.fakes import Script, make_lab, make_session
from tests.sessions import make_launch


def stretch(launch: int, samples: int, seconds: float, energy_mj: int | None = None, *held: str) -> Stretch:
    return Stretch(
        launch=launch,
        wall_ns=round(seconds * 1e9),
        steps=samples,
        samples=samples,
        energy_mj=energy_mj,
        device_held_down_by=list(held),
    )


def session_of(*stretches: Stretch) -> Session:
    """Launches 0 and 1 are of one generation, 2 and 3 of another; the odd ones of variant 1."""
    session = make_session()
    session.variants.append({"amp": "bf16"})
    session.launches.extend(make_launch(number, number % 2, number // 2) for number in range(4))
    session.stretches.extend(stretches)
    return session


def test_energy_is_per_sample_of_all_stretches_that_tell_it() -> None:
    session = session_of(stretch(1, 100, 1.0, 300), stretch(3, 300, 1.0, 500), stretch(3, 1000, 1.0))
    assert sample_mj(of_variant(session, 1)) == 2.0
    assert sample_mj(of_variant(session, 0)) is None


def test_the_ratio_is_of_the_generations_in_which_both_went_on_end() -> None:
    session = session_of(stretch(0, 100, 1.0), stretch(1, 100, 0.5), stretch(3, 100, 0.01))
    assert sustained_ratio(session, 1) == pytest.approx(2.0)
    assert sustained_ratio(session_of(stretch(1, 100, 1.0)), 1) is None


def test_what_held_the_clock_down_is_told_once() -> None:
    assert held_down_by([stretch(0, 1, 1.0, None, POWER_LIMIT), stretch(1, 1, 1.0, None, POWER_LIMIT)]) == [POWER_LIMIT]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_confirmation_on_a_gpu_steps_on_end_and_tells_what_it_took(device: str) -> None:
    session = make_session(budget_s=60.0)
    session = replace(session, command="tune", machine=replace(session.machine, device=device))
    script = Script(
        step_s=lambda one: 0.005 if "optimizer_kernel" in one else 0.01,
        sample_mj=lambda one: 1.5 if "optimizer_kernel" in one else 2.0,
    )
    lab, _ = make_lab(script, session)
    tune(lab, Offer(values={"optimizer_kernel": ["fused"]}, defaults={"optimizer_kernel": "for-loop"}))
    confirming = {one.launch for one in lab.session.launches if one.stage == CONFIRM}
    went_on = {one.launch for one in lab.session.stretches}
    assert went_on == (confirming if device == "cuda:0" else set())
    assert all(one.wall_ns == pytest.approx(STRETCH_S * 1e9, rel=0.01) for one in lab.session.stretches)
    summary = conclude(lab.session)
    assert summary.recommendation is not None
    told = dict(answers.costs(summary, summary.recommendation))
    if device == "cpu":
        assert not {"on end", "energy"} & told.keys()
    else:
        assert told["on end"].startswith("2.00x the samples/s")
        assert told["energy"] == "1.5 mJ a sample, -25 %, of the GPU alone"
