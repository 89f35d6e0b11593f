"""The first of perftool in a user's process: it waits until torch has been imported, then puts the hooks in place.

Loaded by its path, for the interpreter may have another perftool, or none.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent
PYTHON_LEAST = (3, 10)
SEEN, TORCH, TROUBLE = ".seen", ".torch", ".trouble"
"""Endings of files beside the launch's own: a Python has come by, one has imported torch, perftool could not begin."""


def boot(spec_path: str) -> None:
    """Have perftool begin in this process as soon as it has imported torch. spec_path: of the launch's JSON file."""
    _note(spec_path + SEEN)
    if sys.version_info < PYTHON_LEAST:
        raise RuntimeError(f"perftool needs Python 3.10 or newer in the script's own environment, not {sys.version}")
    with open(spec_path, encoding="utf-8") as file:
        spec = json.load(file)
    sys.meta_path.insert(0, _Own())
    if spec.get("tree"):  # before the project is imported
        from perftool.trees import Tree, enter

        enter(Tree(**spec["tree"]))
    sys.meta_path.insert(0, _AfterTorch(lambda: _begin(spec, spec_path)))


def _begin(spec: dict[str, Any], spec_path: str) -> None:
    _note(spec_path + TORCH)
    try:
        from perftool.script.start import begin

        begin(spec)
    except Exception as error:
        _note(spec_path + TROUBLE, f"{type(error).__name__}: {error}\n")


def _note(path: str, text: str = "") -> None:
    """For perftool, which looks when it has waited in vain."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


class _Own:
    """Finds the perftool that measures, whatever else of that name is installed for this interpreter."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name != "perftool":
            return None
        return importlib.util.spec_from_file_location(
            name, PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
        )


class _AfterTorch:
    """Calls once, when torch has been imported as a whole."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        plain = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            plain(module)
            self._then()

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


def environment(spec_path: str) -> dict[str, str]:
    """The variables that bring a command's Pythons here, beside those of this process."""
    present = os.environ.get("PYTHONPATH")
    places = [str(Path(__file__).resolve().parent / "site"), *([present] if present else [])]
    return {"PERFTOOL_SCRIPT": spec_path, "PYTHONPATH": os.pathsep.join(places)}
