"""Each variant against the baseline."""

from __future__ import annotations

from dataclasses import dataclass

from perftool.analysis.summary import all_decided
from perftool.jobs.job import Bench, Job, Ready
from perftool.measure.lab import Lab
from perftool.measure.repeat import measure_repeatedly
from perftool.records import MEASURE, Settings
from perftool.scenario import names_in, variants_of


@dataclass(frozen=True, kw_only=True)
class Compare(Job[None]):
    """variants: as on the command line, `amp=bf16,threads=1`; every scenario alone where there are none."""

    command = "compare"
    variants: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return [*super().names, *names_in(self.variants)]

    def prepare(self, bench: Bench) -> Ready:
        ready = self.fresh(bench)
        self._settings(ready)
        return ready

    def measure(self, lab: Lab, ready: Ready) -> None:
        numbers = [number for number in dict.fromkeys(map(lab.variant, self._settings(ready))) if number]
        measure_repeatedly(
            lab,
            MEASURE,
            numbers,
            budget_s=self.options.budget_s,
            decided=lambda: all_decided(lab.session, numbers, [MEASURE]),
        )

    def _settings(self, ready: Ready) -> list[Settings]:
        return variants_of(self.variants, ready.scenarios, ready.context, ready.session.baseline)
