"""What is trained, and how it is named on the command line.

A workload is five functions and a batch size. Nothing is built until a worker process asks for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DEFAULT_WORKLOAD = "scenarios.reference:medium"

Batch = Any
"""What the dataset's loader yields: a tensor, or tensors in tuples, lists and dicts."""


class WorkloadError(ValueError):
    """A workload that cannot be used; the text says what is wrong and what to write instead."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A training to be measured.

    model: () -> nn.Module.
    dataset: () -> a map-style or iterable Dataset, or a tuple of in-memory tensors with equal first dimensions.
    loss: (model, batch) -> scalar tensor. The batch is on the device already.
    optimizer: (parameters) -> Optimizer.
    batch_size: samples per step; None feeds the whole tensors at every step, with no loader.
    settings: what this training already does, such as {"amp": "bf16"}; the baseline runs with them.
    """

    model: Callable[[], torch.nn.Module]
    dataset: Callable[[], Any]
    loss: Callable[[Any, Batch], torch.Tensor]
    optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer]
    batch_size: int | None = 64
    name: str | None = None
    collate_fn: Callable[[list[Any]], Batch] | None = None
    target_loss: float | None = None
    shuffle: bool = True
    drop_last: bool = False
    settings: Mapping[str, str | int | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in ("model", "dataset", "loss", "optimizer"):
            if not callable(getattr(self, part)):
                raise WorkloadError(f"Workload({part}=...) must be a function, not {getattr(self, part)!r}")
        size: object = self.batch_size
        if size is not None and not (type(size) is int and size >= 1):
            raise WorkloadError(f"Workload(batch_size=...) must be a whole number of at least 1 or None, not {size!r}")
        settings: object = self.settings
        if not isinstance(settings, Mapping):
            raise WorkloadError(f"Workload(settings=...) must map scenario names to values, not {self.settings!r}")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A workload, and how Python comes by it.

    reference: what names it, as it was given.
    is_function: the reference names a function that returned it.
    search_path: the folder to look in for the reference's module, absolute; None where it is installed.
    """

    workload: Workload
    reference: str
    is_function: bool = False
    search_path: str | None = None


def load_workload(reference: str) -> Workload:
    """The workload that `path/to/file.py:attribute` or `package.module:attribute` names; see `load`."""
    return load(reference).workload


def load(reference: str) -> Loaded:
    """The workload that `path/to/file.py:attribute` or `package.module:attribute` names, with how it was found.

    The attribute is a Workload, or a function without arguments that returns one. Runs the user's code.
    Raises WorkloadError, with a sentence that names the remedy, for anything that does not lead to one.
    """
    place, attribute = check_reference(reference)
    is_file = is_path(place)
    module = _import_file(Path(place)) if is_file else _import_module(place)
    if not hasattr(module, attribute):
        found = sorted(name for name, value in vars(module).items() if isinstance(value, Workload))
        hint = f"; it has {', '.join(found)}" if found else "; it defines no Workload"
        raise WorkloadError(f"{place} has no attribute '{attribute}'{hint}")
    value = getattr(module, attribute)
    is_function = callable(value) and not isinstance(value, Workload)
    if is_function:
        try:
            value = value()
        except WorkloadError:
            raise
        except Exception as error:
            raise WorkloadError(f"{reference}() raised {where(error)}") from error
    if not isinstance(value, Workload):
        raise WorkloadError(f"{reference} is a {type(value).__name__}, not a Workload or a function that returns one")
    folder = Path(place).resolve().parent if is_file else _not_installed(module)
    search_path = None if folder is None else str(folder)
    return Loaded(workload=value, reference=reference, is_function=is_function, search_path=search_path)


def _not_installed(module: ModuleType) -> Path | None:
    """The working directory where the module was found in it, otherwise None."""
    here, file = Path.cwd(), getattr(module, "__file__", None)
    in_it = file is not None and Path(file).resolve().is_relative_to(here.resolve())
    return here if in_it and str(here) in sys.path else None


def check_reference(reference: str) -> tuple[str, str]:
    """The place and the attribute of a reference. Runs no user code.

    Raises WorkloadError for what cannot lead to a workload whatever the code says: no reference, no such file.
    """
    place, colon, attribute = reference.rpartition(":")
    if not colon or not place or not attribute:
        raise WorkloadError(
            f"'{reference}' names no workload; write path/to/file.py:attribute or package.module:attribute"
        )
    if is_path(place) and not Path(place).is_file():
        raise WorkloadError(f"there is no file {place}; give a path from {Path.cwd()}, or an absolute one")
    return place, attribute


def is_path(place: str) -> bool:
    """Whether the place of a reference is a file, and not a module."""
    return place.endswith(".py") or os.sep in place


def _import_file(path: Path) -> ModuleType:
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_workload"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise WorkloadError(f"{path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    _search_last(path.resolve().parent)
    # Registered under its own name so that DataLoader workers can unpickle what it defines.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise WorkloadError(f"{path} cannot be imported: {where(error)}") from error
    return module


def _import_module(name: str) -> ModuleType:
    try:
        # What is installed comes first, also where an editable install's finder asks after the path.
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            _search_last(Path.cwd())
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise WorkloadError(
                f"there is no module {error.name}; run from the folder that holds it, or write path/file.py:attribute"
            ) from error
        raise WorkloadError(f"{name} cannot be imported: {where(error)}") from error
    except Exception as error:
        raise WorkloadError(f"{name} cannot be imported: {where(error)}") from error


def _search_last(folder: Path) -> None:
    """Let the user's modules be found, but never in place of an installed one (a folder `scenarios/` is common)."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def where(error: BaseException) -> str:
    """'ValueError: text (file.py, line 3)', from the innermost frame of the user's own code, if there is any."""
    frames = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    own = [one for one in frames if not _is_library(one[0])]
    places = [(error.filename, error.lineno)] if isinstance(error, SyntaxError) else (own or frames)[-1:]
    place = "".join(f" ({file}, line {line})" for file, line in places)
    return f"{type(error).__name__}: {error}{place}"


def _is_library(file: str) -> bool:
    """Installed packages, Python's own modules and perftool."""
    places = [*sysconfig.get_paths().values(), str(Path(__file__).parent)]
    return file.startswith("<") or any(file.startswith(f"{place}{os.sep}") for place in places)
