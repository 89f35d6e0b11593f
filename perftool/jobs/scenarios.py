"""What can be varied of one target on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from perftool.jobs.failures import told
from perftool.jobs.front import Front
from perftool.jobs.look import check_target, looked, offered
from perftool.measure.scripted import Sandboxes
from perftool.records import ScenarioReport
from perftool.scenario import check_names
from perftool.target import Target, reference_of


def described(target: Target, files: Sequence[Path], device: str, name: str | None, front: Front) -> ScenarioReport:
    """Every scenario, or the one of this name, with its values here. Raises PerftoolError."""
    with told():
        check_target(target)
        scenarios = offered(target, files)
        check_names([name] if name else [], scenarios)
        with closing(Sandboxes(front.say)) as sandboxes:
            context = looked(target, device, seed=0, budget_s=0.0, front=front, sandboxes=sandboxes).context
        shown = [one.described(context) for one in scenarios.values() if name in (None, one.name)]
        return ScenarioReport(workload=reference_of(target), scenarios=shown)
