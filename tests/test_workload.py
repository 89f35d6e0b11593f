"""How a workload is named, and what is said where the name leads to none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perftool.workload import Workload, WorkloadError, load_workload, where

GOOD = """
import torch
from perftool.workload import Workload

mine = Workload(
    model=lambda: torch.nn.Linear(2, 1),
    dataset=lambda: (torch.ones(8, 2),),
    loss=lambda model, batch: model(batch[0]).mean(),
    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
)

def made():
    return mine

def broken():
    return {}["missing"]

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user, on whose path nothing stays behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_file_or_a_module_and_a_workload_or_a_function(folder: Path) -> None:
    (folder / "train_a.py").write_text(GOOD)
    for reference in ("train_a.py:mine", "./train_a.py:made", f"{folder}/train_a.py:mine", "train_a:made"):
        assert isinstance(load_workload(reference), Workload)
    assert load_workload("scenarios.reference:seed").name == "seed"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("train_b.py", "write path/to/file.py:attribute"),
        ("train_b.py:", "write path/to/file.py:attribute"),
        ("missing.py:mine", "there is no file missing.py; give a path from"),
        ("missing_module:mine", "there is no module missing_module; run from the folder that holds it"),
        ("train_b.py:nothing", "has no attribute 'nothing'; it has mine"),
        ("train_b.py:number", "train_b.py:number is a int, not a Workload"),
        ("train_b.py:broken", "train_b.py:broken() raised KeyError: 'missing'"),
        ("raising.py:mine", "raising.py cannot be imported: ZeroDivisionError: division by zero"),
        ("syntax.py:mine", "syntax.py cannot be imported: SyntaxError"),
        ("raising:mine", "raising cannot be imported: ZeroDivisionError"),
        ("importing:mine", "importing cannot be imported: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("empty.py:mine", "it defines no Workload"),
    ],
)
def test_what_leads_nowhere_says_why_and_what_to_write(folder: Path, reference: str, words: str) -> None:
    for name, text in (
        ("train_b.py", GOOD),
        ("raising.py", "1 / 0"),
        ("syntax.py", "def"),
        ("importing.py", "import nowhere_to_be_found"),
        ("empty.py", ""),
    ):
        (folder / name).write_text(text)
    with pytest.raises(WorkloadError) as caught:
        load_workload(reference)
    assert words in str(caught.value)


def test_a_file_named_like_a_module_in_use_replaces_nothing(folder: Path) -> None:
    import json

    (folder / "json.py").write_text(GOOD)
    assert isinstance(load_workload("json.py:mine"), Workload)
    assert sys.modules["json"] is json


def test_a_file_finds_its_neighbours(folder: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "neighbour_of_train.py").write_text("rows = 8")
    (folder / "code" / "train_c.py").write_text("from neighbour_of_train import rows\n" + GOOD)
    assert isinstance(load_workload("code/train_c.py:mine"), Workload)


def test_a_users_folder_scenarios_shadows_nothing(tmp_path: Path) -> None:
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "__init__.py").write_text("raise ImportError('the wrong scenarios')")
    code = (
        "from perftool.workload import load_workload; from perftool.scenario import discover\n"
        "print(load_workload('scenarios.reference:seed').name, 'amp' in discover())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["seed", "True"], done.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None}, "Workload(model=...) must be a function, not None"),
        ({"batch_size": 0}, "at least 1 or None, not 0"),
        ({"batch_size": True}, "at least 1 or None, not True"),
        ({"batch_size": 2.5}, "at least 1 or None, not 2.5"),
        ({"settings": ["amp"]}, "must map scenario names to values"),
    ],
)
def test_a_workload_checks_its_parts(changes: dict[str, Any], words: str) -> None:
    usual: dict[str, Any] = {"model": list, "dataset": list, "loss": max, "optimizer": list}
    with pytest.raises(WorkloadError) as caught:
        Workload(**{**usual, **changes})
    assert words in str(caught.value)


def test_an_error_is_told_by_the_last_line_of_the_users_own_code(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("import json\n\n\ndef loss():\n    return json.loads('{')\n")
    names: dict[str, Any] = {}
    exec(compile(file.read_text(), str(file), "exec"), names)
    with pytest.raises(ValueError, match="Expecting") as told:
        names["loss"]()
    error = told.value
    # Without the frame of this test, which is no library either.
    assert error.__traceback__ is not None
    assert where(error.with_traceback(error.__traceback__.tb_next)).endswith(f"({file}, line 5)")
