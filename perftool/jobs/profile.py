"""One variant: where its time, jitter and memory go."""

from __future__ import annotations

from dataclasses import dataclass

from perftool.analysis.verdict import FULL_LOOK
from perftool.jobs.job import Job, Ready
from perftool.measure.explain import PLAIN_ROUNDS, SHARE, explain
from perftool.measure.lab import Lab
from perftool.measure.repeat import measure_repeatedly
from perftool.records import MEASURE


@dataclass(frozen=True, kw_only=True)
class Profile(Job[None]):
    command = "profile"

    def measure(self, lab: Lab, ready: Ready) -> None:
        # Nothing is decided: more rounds, and not more launches, tell the tail of the step times.
        plain_s = (1 - SHARE) * self.options.budget_s
        measure_repeatedly(
            lab, MEASURE, [], budget_s=plain_s, decided=lambda: True, rounds=PLAIN_ROUNDS, first_look=FULL_LOOK
        )
        explain(lab, SHARE * self.options.budget_s)
