"""What a user pastes, and the script that does the same."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from perftool.analysis.handover import TITLES, places, script, to_paste

CODES = {
    "amp": {"bf16": {"loss_context": 'torch.autocast("cpu", dtype=torch.bfloat16)'}},
    "batch_size": {"512": {"setup": "batch_size = 512"}},
    "dataloader_workers": {"2": {"loader_arguments": "num_workers=2"}},
    "pinned_memory": {"on": {"loader_arguments": "pin_memory=True", "copy_arguments": "non_blocking=True"}},
    "threads": {"1": {"setup": "torch.set_num_threads(1)"}},
}


def test_arguments_are_joined_and_statements_follow_each_other() -> None:
    settings = {"batch_size": "512", "dataloader_workers": "2", "pinned_memory": "on", "threads": "1"}
    assert places(CODES, settings) == {
        "setup": "batch_size = 512\ntorch.set_num_threads(1)",
        "loader_arguments": "num_workers=2, pin_memory=True",
        "copy_arguments": "non_blocking=True",
    }


def test_each_place_is_named_in_the_order_of_a_script() -> None:
    text = to_paste(CODES, {"amp": "bf16", "pinned_memory": "on", "threads": "1"})
    found = [text.index(f"# {TITLES[place]}") for place in ("setup", "loader_arguments", "copy_arguments")]
    assert found == sorted(found)
    assert 'with torch.autocast("cpu", dtype=torch.bfloat16):' in text


def test_a_setting_without_code_changes_nothing() -> None:
    assert to_paste(CODES, {"amp": "off", "unknown": "x"}) == ""


@pytest.mark.parametrize("batch_size", [None, 64])
@pytest.mark.parametrize("settings", [{}, {"amp": "bf16", "pinned_memory": "on", "threads": "1"}])
def test_the_script_is_python(settings: dict[str, str], batch_size: int | None) -> None:
    text = script(CODES, settings, workload="a.py:w", device="cpu", batch_size=batch_size)
    names = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
    assert {"batches", "step", "to_device", "train"} <= names
    assert ("autocast" in text, "non_blocking=True" in text) == (bool(settings), bool(settings))


def test_the_batch_size_of_the_settings_wins() -> None:
    text = script(CODES, {"batch_size": "512"}, workload="a.py:w", device="cpu", batch_size=64)
    assert "batch_size = 512" in text
    assert "batch_size = 64" not in text


def test_what_waits_for_a_warm_training_is_done_once() -> None:
    codes = {"made": {"on": {"setup": "done = []", "warmed_up": "done.append(number)"}}}
    text = script(codes, {"made": "on"}, workload="scenarios.reference:seed", device="cpu", batch_size=None)
    found: dict[str, Any] = {"__name__": "recommended"}
    exec(compile(text, "recommended.py", "exec"), found)
    assert len(list(found["train"](6))) == 6
    assert found["done"] == [3]
