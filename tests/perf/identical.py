"""Values that change nothing at all: a scenario for A/A trials.

What it changes: nothing.
When it helps: never; it is for benchmarks.
When it hurts: never.
Source: this file
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from perftool.records import Engaged
from perftool.scenario import Code, Context, Scenario

if TYPE_CHECKING:
    from perftool.plan import Live, Plan


def default(_: Context) -> str:
    return "a"


def values(_: Context) -> Sequence[str]:
    return ("a", "b", "c", "d", "e")


def refusal(_value: str, _: Context) -> str | None:
    return None


def apply(plan: Plan, _value: str) -> Plan:
    return plan


def proof(_training: Live, value: str) -> Engaged:
    return Engaged(ok=True, evidence=f"{value} is like the others")


def code(_value: str, _: Context) -> Code:
    return Code()


scenario = Scenario(
    __name__, __doc__, default=default, values=values, refusal=refusal, apply=apply, proof=proof, code=code
)
