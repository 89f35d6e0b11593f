"""Lines by place, what a user pastes, and the script that does the same."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from msgspec.structs import replace

from perftool.analysis.handover import TITLES, lines_to_change, places, script, to_paste
from perftool.records import Settings
from tests.measure.fakes import WORKLOAD

CODES = {
    "amp": {"bf16": {"loss_context": 'torch.autocast("cpu", dtype=torch.bfloat16)'}},
    "batch_size": {"512": {"batch_size": "512"}},
    "dataloader_workers": {"2": {"loader_arguments": "num_workers=2"}},
    "gather": {"on": {"batches": "def batches():\n    yield dataset", "sampling": "sampler=x, batch_size=None"}},
    "malloc": {"on": {"imports": "import ctypes\nimport gc", "setup": "ctypes.CDLL(None)"}},
    "pinned_memory": {
        "on": {
            "loader_arguments": "pin_memory=True",
            "batch_calls": ".pin_memory()",
            "copy_arguments": "non_blocking=True",
        }
    },
    "threads": {"1": {"setup": "torch.set_num_threads(1)"}},
}


def test_arguments_are_joined_and_statements_follow_each_other() -> None:
    settings = {"batch_size": "512", "dataloader_workers": "2", "malloc": "on", "pinned_memory": "on", "threads": "1"}
    assert places(CODES, settings) == {
        "imports": "import ctypes\nimport gc",
        "setup": "ctypes.CDLL(None)\ntorch.set_num_threads(1)",
        "batch_size": "512",
        "loader_arguments": "num_workers=2, pin_memory=True",
        "copy_arguments": "non_blocking=True",
    }


@pytest.mark.parametrize(
    ("beside", "wanted"),
    [
        ({}, {"batches"}),
        ({"pinned_memory": "on"}, {"batches", "batch_calls", "copy_arguments"}),
        ({"dataloader_workers": "2"}, {"sampling", "loader_arguments"}),
        (
            {"dataloader_workers": "2", "pinned_memory": "on"},
            {"sampling", "loader_arguments", "copy_arguments"},
        ),
    ],
)
def test_a_loader_stays_only_where_a_setting_needs_one(beside: Settings, wanted: set[str]) -> None:
    assert set(places(CODES, {"gather": "on", **beside})) == wanted


def test_each_place_is_named_in_the_order_of_a_script() -> None:
    text = to_paste(CODES, {"amp": "bf16", "pinned_memory": "on", "threads": "1"}, {})
    found = [text.index(f"# {TITLES[place]}") for place in ("setup", "loader_arguments", "copy_arguments")]
    assert found == sorted(found)
    assert 'with torch.autocast("cpu", dtype=torch.bfloat16):' in text


def test_only_what_differs_from_the_baseline_is_to_be_pasted() -> None:
    baseline = {"dataloader_workers": "2", "threads": "1"}
    text = to_paste(CODES, {**baseline, "malloc": "on", "pinned_memory": "on"}, baseline)
    assert "set_num_threads" not in text
    assert "num_workers=2, pin_memory=True" in text
    assert "import ctypes" in text
    assert "gc" not in text
    assert to_paste(CODES, baseline, baseline) == ""
    assert "# no longer once, before anything is built:\n# torch.set_num_threads(1)" in to_paste(CODES, {}, baseline)


def test_a_setting_without_code_changes_nothing() -> None:
    settings = {"amp": "off", "unknown": "x"}
    assert to_paste(CODES, settings, {}) == ""
    assert lines_to_change(CODES, settings, {}, workload=WORKLOAD, device="cpu") == ""


@pytest.mark.parametrize("batch_size", [None, 64])
@pytest.mark.parametrize("settings", [{}, {"amp": "bf16", "pinned_memory": "on", "threads": "1"}])
def test_the_script_is_python(settings: Settings, batch_size: int | None) -> None:
    facts = replace(WORKLOAD, batch_size=batch_size)
    text = script(CODES, settings, workload=facts, device="cuda:0")
    names = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
    assert names == {"step", "map_tensors", "train"}
    assert ("autocast" in text, "non_blocking=True" in text) == (bool(settings), bool(settings))


def test_the_batch_size_of_the_settings_wins() -> None:
    text = script(CODES, {"batch_size": "512"}, workload=WORKLOAD, device="cpu")
    assert "batch_size = 512" in text
    assert "batch_size = 10" not in text


def test_a_name_with_quotes_and_backslashes_is_only_text() -> None:
    text = script({}, {}, workload=replace(WORKLOAD, reference='C:\\new"""\\train.py:mine'), device="cpu")
    assert 'C:\\new"""\\train.py:mine' in (ast.get_docstring(ast.parse(text)) or "")


def test_what_waits_for_a_warm_training_is_done_once() -> None:
    codes = {"made": {"on": {"setup": "done = []", "warmed_up": "done.append(number)"}}}
    facts = replace(WORKLOAD, reference="scenarios.reference:seed", batch_size=None)
    text = script(codes, {"made": "on"}, workload=facts, device="cpu")
    found: dict[str, Any] = {"__name__": "recommended"}
    exec(compile(text, "recommended.py", "exec"), found)
    assert len(list(found["train"](6))) == 6
    assert found["done"] == [3]
