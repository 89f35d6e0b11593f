"""Loader workers that end with every epoch, as a DataLoader's do unless it is told otherwise.

What it changes: `num_workers=1` without `persistent_workers`.
When it helps: never; it is there to see whether the pause at each epoch is told.
When it hurts: at the start of every epoch.
Source: https://docs.pytorch.org/docs/stable/data.html
"""

from __future__ import annotations

from dataclasses import replace

from perftool.records import Engaged
from perftool.scenario import Code, Scenario
from perftool.training import Plan

scenario = Scenario(
    __name__,
    __doc__,
    default=lambda _: "off",
    values=lambda _: ("off", "on"),
    refusal=lambda _value, _context: None,
    apply=lambda plan, value: _restarting(plan) if value == "on" else plan,
    proof=lambda _training, _value: Engaged(ok=True, evidence="not looked at"),
    code=lambda _value, _context: Code(),
)


def _restarting(plan: Plan) -> Plan:
    return replace(plan, loader={**plan.loader, "num_workers": 1})
