"""`perftool.apply`: the training that was measured, in the caller's own process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import perftool
from perftool.applied import check_environment
from perftool.records import RecommendedSettings, to_json
from perftool.scenario import ScenarioError, discover, plan_of
from perftool.training import Training
from scenarios.reference import small
from tests.generate_readme import README
from tests.handed_over import made

SETTINGS: dict[str, str | int | bool] = {"amp": "bf16", "batch_gather": True, "optimizer_kernel": "fused"}


def test_it_is_the_training_that_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "recommended.json"
    settings = {"amp": "bf16", "batch_gather": "on", "optimizer_kernel": "fused"}
    file.write_bytes(to_json(RecommendedSettings(workload="scenarios.reference:small", settings=settings)))
    measured = Training(plan_of(small, settings, discover(), device="cpu", seed=3))
    wanted = [measured.step(measured.fetch()).item() for _ in range(3)]
    for chosen, workload in ((SETTINGS, small), (file, "scenarios.reference:small"), (str(file), small)):
        training = perftool.apply(chosen, workload, device="cpu", seed=3)
        assert [training.step(training.fetch()).item() for _ in range(3)] == wanted


def test_what_the_workload_does_already_stays_unless_it_is_undone() -> None:
    assert len(perftool.apply({}, made(), device="cpu").plan.loss) == 1
    assert len(perftool.apply({"amp": "off"}, made(), device="cpu").plan.loss) == 0


@pytest.mark.parametrize(
    ("settings", "device", "words"),
    [
        ({"amp": "bf8"}, "cpu", "amp=bf8: it takes off, bf16 or fp16"),
        ({"ampere": "on"}, "cpu", "there is no scenario 'ampere'; there are accumulation"),
        ({"cuda_graphs": "on"}, "cpu", "there is no CUDA device"),
        ({}, "tpu", "a device is auto, cpu, cuda or cuda:N, not 'tpu'"),
        ("missing.json", "cpu", "missing.json: .*give the path of a recommended.json"),
    ],
)
def test_what_cannot_be_had_says_so(settings: dict[str, str] | str, device: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        perftool.apply(settings, small, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_says_so() -> None:
    with pytest.raises(ValueError, match="finds no CUDA device here; use cpu"):
        perftool.apply({}, small, device="cuda")


def test_variables_that_must_be_set_before_python_starts_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFTOOL_TEST_SET", "1")
    monkeypatch.delenv("PERFTOOL_TEST_UNSET", raising=False)
    check_environment({"PERFTOOL_TEST_SET": "1"})
    with pytest.raises(ScenarioError, match="start with: PERFTOOL_TEST_UNSET='a b' python"):
        check_environment({"PERFTOOL_TEST_SET": "1", "PERFTOOL_TEST_UNSET": "a b"})


@pytest.mark.process
def test_importing_perftool_imports_no_torch() -> None:
    code = "import sys, perftool; perftool.apply; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_example_of_the_readme_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, next to the training of the README's `train.py`."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    [example] = [block for block in blocks if "perftool.apply" in block]
    [training] = [block for block in blocks if "mine = Workload(" in block]
    (tmp_path / "train.py").write_text(training)
    recommended = RecommendedSettings(workload="train.py:mine", settings={"optimizer_kernel": "fused"})
    (tmp_path / "recommended.json").write_bytes(to_json(recommended))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    places: dict[str, object] = {}
    exec(example, places)
    assert isinstance(places["loss"], torch.Tensor)
    assert torch.isfinite(places["loss"])
