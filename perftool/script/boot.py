"""The first thing of perftool in a user's process: once torch has been imported, it puts the hooks in place.

Loaded by its path, for the interpreter may have another perftool, or none.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent
PYTHON_LEAST = (3, 10)
NAME = "_perftool_boot"  # of this module, in a user's process
SEEN, REFUSED, TORCH, TROUBLE = ".seen", ".refused", ".torch", ".trouble"
"""Endings of files beside the launch's own: a Python has come by, one could not be entered (sitecustomize writes that),
one has imported torch, and perftool could not begin there."""


def boot(told: str) -> None:
    """Have perftool begin in this process as soon as it has imported torch, or calls `perftool.step()`.

    told: the launch's description as JSON, or the path of the file that holds it. With a path, whoever measures is told
    by files beside it; without one nobody measures, and what is wrong is told on stderr.
    """
    if is_inline(told):
        spec, note = json.loads(told), _nobody
    else:
        note = partial(_note, told)
        note(SEEN)
        with open(told, encoding="utf-8") as file:
            spec = json.load(file)
    if sys.version_info < PYTHON_LEAST:
        raise RuntimeError(f"perftool needs Python 3.10 or newer in the script's own environment, not {sys.version}")
    sys.meta_path.insert(0, _Own())
    if spec.get("tree"):  # before the project is imported
        from perftool.trees import Tree, enter

        enter(Tree(**spec["tree"]))
    begin = partial(_begin, spec, told, note)
    if "torch" in sys.modules:  # something that Python starts with has imported it
        begin()
    else:
        awaiting = _AfterTorch(begin)
        sys.meta_path.insert(0, awaiting)
        if is_inline(told):
            atexit.register(_tell_passed, awaiting)
    sys.modules[NAME].__dict__["begin"] = begin


begin: Callable[[], None] = lambda: None  # noqa: E731
"""What `perftool.step()` calls in a process that has not imported torch."""


def is_inline(told: str) -> bool:
    """Whether this is the description itself, and no path."""
    return told.startswith("{")


def _begin(spec: dict[str, Any], told: str, note: Callable[..., None]) -> None:
    note(TORCH)
    try:
        from perftool.script.start import begin

        begin(spec)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if not is_inline(told):
            note(TROUBLE, f"{reason}\n")
        elif spec["settings"]:  # a training without them is another one than was asked for, and none is lost yet
            say(f"{settings_text(spec['settings'])} cannot be put in force, so the training is not started: {reason}")
            raise SystemExit(2) from error
        else:
            say(f"the training is not recorded: {reason}")


def settings_text(settings: Mapping[str, str]) -> str:
    """ "amp=bf16, threads=1"."""
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def say(sentence: str) -> None:
    """Tell the user on stderr; of several ranks the first does."""
    if rank_of_process()[0] == 0:
        sys.stderr.write(f"perftool: {sentence}\n")
        sys.stderr.flush()


def rank_of_process() -> tuple[int, int]:
    """Of this process, and how many there are: as torch knows it once it has met the others, which the environment of
    processes that the script starts itself need not tell."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _note(path: str, ending: str, text: str = "") -> None:
    """For perftool, which looks when it has waited in vain."""
    with open(path + ending, "a", encoding="utf-8") as file:
        file.write(text)


def _nobody(_ending: str, _text: str = "") -> None:
    """Nobody looks."""


class _Own:
    """Finds the perftool that measures, whatever else of that name is installed for this interpreter."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name != "perftool":
            return None
        return importlib.util.spec_from_file_location(
            name, PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
        )


class _AfterTorch:
    """Calls once, when torch has been imported as a whole. Many only ask whether it is there before."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then
        self._is_asking = False  # the other finders, one of which may ask all of them in turn

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name != "torch" or self._is_asking:
            return None
        self._is_asking = True
        try:
            finders = [one for one in sys.meta_path if one is not self and hasattr(one, "find_spec")]
            others = (finder.find_spec(name, path, target) for finder in finders)
            spec = next((found for found in others if found is not None), None)
        finally:
            self._is_asking = False
        if spec is None or spec.loader is None:
            return spec
        plain = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            plain(module)
            if self.waits:
                sys.meta_path.remove(self)
                self._then()

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec

    @property
    def waits(self) -> bool:
        """Whether torch has not been imported by the way that is watched here."""
        return self in sys.meta_path


def _tell_passed(awaiting: _AfterTorch) -> None:
    """At the end of a process that nobody measures."""
    if awaiting.waits and "torch" in sys.modules:
        say("torch was imported by another way than Python's own, so nothing of perftool was in force")


def environment(told: str) -> dict[str, str]:
    """The variables that bring a command's Pythons here, beside those of this process. told: as for `boot`."""
    present = os.environ.get("PYTHONPATH")
    places = [str(Path(__file__).resolve().parent / "site"), *([present] if present else [])]
    return {"PERFTOOL_SCRIPT": told, "PYTHONPATH": os.pathsep.join(places)}
