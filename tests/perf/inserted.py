"""More units of work per step of `units_of_work.py`: a scenario whose effect is known.

What it changes: the number of equal units in a step.
When it helps: never; it is for benchmarks.
When it hurts: always, by a known amount.
Source: this file
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perftool.records import Engaged
from perftool.scenario import Code, Context, Scenario

if TYPE_CHECKING:
    from torch import nn

    from perftool.plan import Live, Plan


def default(_: Context) -> str:
    return "0"


def values(_: Context) -> Sequence[str]:
    return ("0", "2", "5", "10")


def refusal(value: str, _: Context) -> str | None:
    return None if value.isdecimal() else f"it takes a number of units, not '{value}'"


def apply(plan: Plan, value: str) -> Plan:
    def insert(model: nn.Module) -> nn.Module:
        model.units += int(value)  # type: ignore[assignment, operator]
        return model

    return replace(plan, model=(*plan.model, insert))


def proof(training: Live, value: str) -> Engaged:
    units = int(training.module.units)  # type: ignore[arg-type]
    assert training.plan.workload is not None
    own = int(training.plan.workload.model().units)  # type: ignore[arg-type]
    return Engaged(ok=units == own + int(value), evidence=f"{units} units per step")


def code(_value: str, _: Context) -> Code:
    return Code()


scenario = Scenario(
    __name__, __doc__, default=default, values=values, refusal=refusal, apply=apply, proof=proof, code=code
)
