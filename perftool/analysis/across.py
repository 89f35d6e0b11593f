"""Two sessions of the same training side by side: whether they may be compared, and what changed between them.

Ratios travel, since both sides of each were measured in turns; what is absolute does not, for the sessions were not
paired.
"""

from __future__ import annotations

import re
from typing import Literal

from perftool.records import Beside, Comparison, Differing, Session, Settings, SideBySide, Summary


def incomparable(first: Session, second: Session) -> list[str]:
    """Why two sessions say nothing about each other; empty where they do."""
    ours, theirs = first.workload, second.workload
    pairs = (
        ("commands", f"perftool {first.command}", f"perftool {second.command}"),
        ("workloads", _short(first), _short(second)),
        ("kinds of device", _kind(first), _kind(second)),
        ("numbers of parameters", f"{ours.parameter_count:,}", f"{theirs.parameter_count:,}"),
        ("batch sizes", str(ours.batch_size), str(theirs.batch_size)),
        ("rates", f"{ours.sample_unit}s per second", f"{theirs.sample_unit}s per second"),
        ("optimizers", ours.optimizer, theirs.optimizer),
        ("baselines", _settings(first.baseline), _settings(second.baseline)),
    )
    reasons = [f"their {what} differ: {one} and {other}" for what, one, other in pairs if one != other]
    if not reasons and first == second:
        return ["they are the same session"]
    return reasons


def side_by_side(first: tuple[Session, Summary], second: tuple[Session, Summary]) -> SideBySide:
    """Every variant that either session measured, in the order of the first."""
    one, other = (
        {_key(variant.settings): variant.versus_baseline.get("throughput") for variant in summary.variants}
        for _, summary in (first, second)
    )
    return SideBySide(
        first=first[1],
        second=second[1],
        differing=differing(first[0], second[0]),
        variants=[
            Beside(
                settings=dict(key),
                first=one.get(key),
                second=other.get(key),
                change=change(one.get(key), other.get(key)),
            )
            for key in {**one, **other}
            if one.get(key) or other.get(key)
        ],
    )


def change(first: Comparison | None, second: Comparison | None) -> Literal["more", "less", "alike"] | None:
    """Whether the second ratio is surely another: where the intervals do not overlap. None without both intervals."""
    if first is None or second is None:
        return None
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return None
    if second.low > first.high:
        return "more"
    return "less" if second.high < first.low else "alike"


def differing(first: Session, second: Session) -> list[Differing]:
    """The circumstances in which two sessions differ, their time first."""
    told = zip(_circumstances(first), _circumstances(second), strict=True)
    return [Differing(name=name, first=one, second=other) for (name, one), (_, other) in told if one != other]


def _circumstances(session: Session) -> list[tuple[str, str]]:
    machine = session.machine
    return [
        ("measured", session.created_at),
        ("processor", machine.cpu_model),
        ("cores", str(machine.usable_cores)),
        ("device", machine.device_name or machine.device),
        ("torch", machine.torch_version),
        ("torch threads", str(machine.torch_threads)),
        ("Python", machine.python_version),
        ("CUDA", str(machine.cuda_version)),
        ("driver", str(machine.driver_version)),
        ("system", machine.system),
        ("perftool", machine.perftool_version),
        ("commit", f"{machine.git_commit}{' with changes' if machine.git_dirty else ''}"),
        ("environment", _settings(machine.environment)),
        ("rows of data", str(session.workload.dataset_rows)),
        ("goal", session.goal.objective),
        ("seed", str(session.seed)),
        ("budget", f"{session.budget_s:g} s"),
        ("interrupted", "yes" if session.interrupted else "no"),
    ]


def _short(session: Session) -> str:
    """The reference, or each word of the command, without the folder: the same file may lie elsewhere on another
    machine."""
    script = session.workload.script
    words = [session.workload.reference] if script is None else script.command
    return " ".join(re.sub(r".*[/\\]", "", word) for word in words)


def _kind(session: Session) -> str:
    return session.machine.device.partition(":")[0]


def _settings(settings: Settings) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "nothing set"


def _key(settings: Settings) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(settings.items()))
