"""How perftool finds out that torch has been imported, with another module of that name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from perftool.script.boot import _AfterTorch, _tell_passed


@pytest.fixture
def begun() -> list[str]:
    return []


@pytest.fixture
def awaiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: list[str]) -> _AfterTorch:
    (tmp_path / "torch.py").write_text("names = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    found = _AfterTorch(lambda: begun.append("begun" if hasattr(sys.modules["torch"], "names") else "too early"))
    monkeypatch.setattr(sys, "meta_path", [found, *sys.meta_path])
    return found


def test_torch_that_is_asked_for_and_imported_later_is_not_missed(awaiting: _AfterTorch, begun: list[str]) -> None:
    assert importlib.util.find_spec("torch") is not None  # as transformers and others do
    assert begun == []
    importlib.import_module("torch")
    assert begun == ["begun"]
    assert not awaiting.waits
    importlib.reload(sys.modules["torch"])
    assert begun == ["begun"]


def test_torch_that_fails_to_import_may_come_again(tmp_path: Path, awaiting: _AfterTorch, begun: list[str]) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError")
    with pytest.raises(ImportError):
        importlib.import_module("torch")
    (tmp_path / "torch.py").write_text("names = [1, 2]\n")
    importlib.import_module("torch")
    assert begun == ["begun"]


def test_torch_by_another_way_is_told(
    awaiting: _AfterTorch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _tell_passed(awaiting)
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "torch", sys)
    _tell_passed(awaiting)
    assert "nothing of perftool was in force" in capsys.readouterr().err


def test_a_finder_that_asks_the_others_in_turn_is_asked_once(
    awaiting: _AfterTorch, monkeypatch: pytest.MonkeyPatch, begun: list[str]
) -> None:
    """As that of a tree does, and editable installs."""

    class Asking:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
            others = [finder for finder in sys.meta_path if finder is not self]
            return next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)

    monkeypatch.setattr(sys, "meta_path", [Asking(), *sys.meta_path])
    importlib.import_module("torch")
    assert begun == ["begun"]
