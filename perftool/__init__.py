"""Measured tuning advice for PyTorch training.

Every name is imported when somebody first asks for it, so that `import perftool` costs a script nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perftool.applied import apply
    from perftool.errors import PerftoolError
    from perftool.jobs.calls import compare, profile, tune
    from perftool.jobs.recorded import record
    from perftool.scenario import Scenario
    from perftool.script.mark import step
    from perftool.workload import Workload

__version__ = "0.1.0"
__all__ = ["PerftoolError", "Scenario", "Workload", "apply", "compare", "profile", "record", "step", "tune"]

_PLACES = {
    "PerftoolError": "errors",
    "Scenario": "scenario",
    "Workload": "workload",
    "apply": "applied",
    "compare": "jobs.calls",
    "profile": "jobs.calls",
    "record": "jobs.recorded",
    "step": "script.mark",
    "tune": "jobs.calls",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'perftool' has no attribute '{name}'")
    found: object = getattr(import_module(f"perftool.{_PLACES[name]}"), name)
    globals()[name] = found  # asked for once: what a training calls at every step must not pay for it
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
