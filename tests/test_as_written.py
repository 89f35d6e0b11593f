"""No setting takes anything away that the user wrote: the same training after fifty steps, or a refusal."""

from __future__ import annotations

from dataclasses import replace as replace_workload
from functools import cache
from math import ceil
from pathlib import Path
from statistics import fmean

import pytest
import torch

from perftool.analysis.handover import script
from perftool.scenario import discover, plan_of
from perftool.training import SettingError, Training
from perftool.workload import load
from scenarios.activation_checkpointing import checkpoint_parts
from tests.as_written import Make, adam
from tests.proofs import proved
from tests.test_handover import context, run

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_compiler")

FILE = Path(__file__).parent / "as_written.py"
SCENARIOS = discover()
NAMES = (
    "clipping", "averaging", "scheduled", "in_groups", "gradient_hooks", "frozen", "tied", "sparse", "normed",
    "pictures", "sentences", "repeating",
)  # fmt: skip
STEPS = 50
OTHER_TRAINING = ("batch_size", "learning_rate")  # by design
OF_A_PROCESS = (
    "malloc_retention",
    "matmul_precision",
    "flush_denormal",
    "sdpa_backend",
    "threads",
)  # what they set holds for all
SLOW = ("torch_compile", "compiled_step")
ONE_OF_MANY = {
    "accumulation": ["2", "8"],
    "dataloader_workers": ["1"],
    "compiled_step": ["1", "10"],
    "torch_compile": ["default"],
}
LARGE = ("pictures", "sentences", "repeating")  # too large to be compiled in time as a whole step
NOT_HERE = (("amp", "fp16"),)  # its scaler leaves the first steps out, until the scale fits
ROUNDED = ("amp",)  # of which only the mean of the losses is the same, and that nearly


@cache
def plain(name: str) -> list[float]:
    """The losses of the training as it is written."""
    return losses_of(name, {})


def losses_of(name: str, settings: dict[str, str]) -> list[float]:
    training = Training(plan_of(load(f"{FILE}:{name}").workload, settings, SCENARIOS, device="cpu", seed=0))
    calls = ceil(STEPS / training.steps_per_call)
    return [loss for _ in range(calls) for loss in training.step(training.fetch()).reshape(-1).tolist()]


def settings_of(name: str, *, slow: bool) -> list[tuple[str, str]]:
    """Those that can be had of this training, without defaults."""
    facts = context(name, file=FILE)
    return [
        (scenario, value)
        for scenario, one in SCENARIOS.items()
        if scenario not in (*OTHER_TRAINING, *OF_A_PROCESS) and (scenario in SLOW) is slow
        for value in ONE_OF_MANY.get(scenario, one.values(facts))
        if one.refused(value, facts) is None and value != one.default(facts) and (scenario, value) not in NOT_HERE
    ]


def cases(*, slow: bool) -> list[tuple[str, str, str]]:
    return [
        (name, scenario, value)
        for name in NAMES
        for scenario, value in settings_of(name, slow=slow)
        if name not in LARGE or scenario != "compiled_step"
    ]


def check_losses(found: list[float], name: str, scenario: str) -> None:
    if scenario in ROUNDED:
        assert fmean(found) == pytest.approx(fmean(plain(name)), rel=0.05)
    else:
        assert found == pytest.approx(plain(name), rel=1e-3, abs=1e-4)


def handed_over(name: str, scenario: str, value: str) -> list[float]:
    """The losses of the script that has the setting."""
    facts = context(name, file=FILE)
    codes = {scenario: {value: SCENARIOS[scenario].lines(value, facts)}}
    return run(script(codes, {scenario: value}, workload=facts.workload, device="cpu"), STEPS).losses


def check_live(name: str, scenario: str, value: str) -> None:
    try:
        found = losses_of(name, {scenario: value})
    except SettingError as refusal:
        assert len(str(refusal)) > 20  # noqa: PT017
        return
    check_losses(found[:STEPS], name, scenario)


@pytest.mark.parametrize(("name", "scenario", "value"), cases(slow=False))
def test_it_trains_the_same_or_is_refused(name: str, scenario: str, value: str) -> None:
    check_live(name, scenario, value)


@pytest.mark.parametrize(("name", "scenario", "value"), cases(slow=False))
def test_what_is_handed_over_trains_the_same(name: str, scenario: str, value: str) -> None:
    try:
        Training(plan_of(load(f"{FILE}:{name}").workload, {scenario: value}, SCENARIOS, device="cpu", seed=0))
    except SettingError:
        return  # never measured, so never handed over
    check_losses(handed_over(name, scenario, value), name, scenario)


@pytest.mark.parametrize(("name", "scenario", "value"), cases(slow=True))
def test_what_compiles_trains_the_same_or_is_refused(name: str, scenario: str, value: str) -> None:
    check_live(name, scenario, value)


@pytest.mark.parametrize(
    ("name", "scenario", "value"), [case for case in cases(slow=True) if case[0] in ("in_groups", "tied")]
)
def test_what_compiles_is_handed_over_as_it_trains(name: str, scenario: str, value: str) -> None:
    try:
        losses_of(name, {scenario: value})
    except SettingError:
        return  # never measured, so never handed over
    steps = int(value) if scenario == "compiled_step" else 1  # of a call, which tells the last one's loss
    found = handed_over(name, scenario, value)[steps - 1 :: steps]
    assert found == pytest.approx(plain(name)[steps - 1 :: steps], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("clipping", lambda parts: torch.optim.SGD(parts, lr=0.5)),
        ("averaging", adam),
        ("scheduled", adam),
        ("in_groups", lambda parts: torch.optim.AdamW(parts, lr=0.02)),
        ("gradient_hooks", lambda parts: torch.optim.SGD(parts, lr=0.5)),
    ],
)
def test_leaving_out_what_is_written_would_show(name: str, optimizer: Make) -> None:
    workload = replace_workload(load(f"{FILE}:{name}").workload, optimizer=optimizer)
    without = Training(plan_of(workload, {}, SCENARIOS, device="cpu", seed=0))
    found = [without.step(without.fetch()).item() for _ in range(STEPS)]
    assert found != pytest.approx(plain(name), rel=0.01)


def test_what_is_computed_again_draws_the_same_numbers() -> None:
    found = losses_of("forgetful", {"activation_checkpointing": "on"})
    assert found == pytest.approx(plain("forgetful"), rel=1e-4)
    assert plain("forgetful") != pytest.approx(plain("sentences"), rel=1e-2), "numbers are drawn"


def test_parts_of_a_loss_that_is_no_mean_are_found() -> None:
    training = Training(
        plan_of(load(f"{FILE}:summed").workload, {"accumulation": "2"}, SCENARIOS, device="cpu", seed=0)
    )
    before = [part.clone() for part in training.module.parameters()]
    found = proved(SCENARIOS["accumulation"], training, "2")
    assert not found.ok
    assert "no mean" in found.evidence
    assert all(torch.equal(one, other) for one, other in zip(before, training.module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "dropped"), [("pictures", "channels_last"), ("sentences", "activation_checkpointing")]
)
def test_what_changes_the_module_itself_is_proved(name: str, dropped: str) -> None:
    for settings in ({}, {dropped: "on"}):
        training = Training(plan_of(load(f"{FILE}:{name}").workload, settings, SCENARIOS, device="cpu", seed=0))
        assert proved(SCENARIOS[dropped], training, "on").ok == bool(settings)
        assert proved(SCENARIOS[dropped], training, "off").ok != bool(settings)


def test_parts_with_running_statistics_are_left_as_they_are() -> None:
    """Where nobody has looked at the training before, as in a script that is run under its settings."""
    from torch import nn

    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    assert not checkpoint_parts(nn.Sequential(block(), block()))
    assert not checkpoint_parts(nn.Linear(4, 4))
    assert checkpoint_parts(nn.ModuleList([block(), nn.Sequential(nn.Linear(4, 4), nn.Identity())]))


def test_a_loss_in_parts_is_proved_with_recurrent_layers_and_dropout() -> None:
    training = Training(
        plan_of(load(f"{FILE}:recurrent").workload, {"accumulation": "2"}, SCENARIOS, device="cpu", seed=0)
    )
    recurrent = training.module.get_submodule("0")
    modes = [one.training for one in training.module.modules()]
    assert proved(SCENARIOS["accumulation"], training, "2").ok
    assert [one.training for one in training.module.modules()] == modes
    assert recurrent.dropout == 0.5
