"""What makes launches of one program differ: each suspect is taken out in turn, and what is left of the spread told."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from perftool.measure import messages
from perftool.measure.launch import LiveLaunch, StartLaunch
from perftool.measure.ledger import Ledger
from perftool.measure.rounds import generation
from perftool.measure.survey import new_session, open_lab, survey
from perftool.records import Session, Settings
from perftool.scenario import discover
from perftool.store import measuring_lock
from tests.perf.table import Row, Table
from tests.perf.trials import IDENTICAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perftool.analysis.search import Standing

TITLE = "What makes launches of one program differ"

REFERENCES = ("scenarios.reference:small",)
GENERATIONS, ROUNDS = 5, 60
PROGRAMS = ("b", "c", "d", "e")
NO_RANDOM_ADDRESSES = 0x0040000  # ADDR_NO_RANDOMIZE, personality(2)
RESAMPLED = 2000

TREATMENTS: Mapping[str, Mapping[str, str]] = {
    "as they are": {},
    "threads bound to cores": {"GOMP_CPU_AFFINITY": " ".join(map(str, sorted(os.sched_getaffinity(0))))},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "the same addresses": {},
    "huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    "freed memory kept": {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_MAX_": "0"},
}
"""What is done to all launches of a generation, as variables of their environment; addresses are the kernel's."""


def run(quick: bool) -> Table:
    rows = []
    for reference in REFERENCES[:1] if quick else REFERENCES:
        with measuring_lock(print):
            spreads = _spreads(reference, 1 if quick else GENERATIONS)
        usual = spreads["as they are"]
        for treatment, (sd, low, high) in spreads.items():
            name = reference.rpartition(":")[2]
            text = f"{100 * sd:.2f} % ({100 * low:.2f} to {100 * high:.2f})"
            rows.append(Row([name, treatment, text, "-" if sd == usual[0] else f"{sd / max(usual[0], 1e-6):.2f}x"]))
    return Table(
        ["training", "launches", "standard deviation between launches", "of the usual"],
        rows,
        [
            f"{GENERATIONS} generations of {1 + len(PROGRAMS)} launches of one program for each treatment, in turns, "
            f"with {ROUNDS} rounds of blocks in each. The spread of the launches' means, less what rounds alone make "
            "of it; the interval, of 95 %, is by resampling launches.",
        ],
    )


def _spreads(reference: str, generations: int) -> dict[str, tuple[float, float, float]]:
    """Of each treatment, with an interval."""
    scenarios = discover([IDENTICAL])
    described, footprint = survey(reference, "cpu", seed=0)
    session = new_session(described, scenarios, command="compare", arguments=[], settings={}, seed=0, budget_s=86400.0)
    opened = open_lab(
        Ledger(session, lambda _: None), scenarios, scenario_files=[IDENTICAL], footprint=footprint, watcher=_Quiet()
    )
    of: dict[int, str] = {}
    with opened as lab:
        variants = [lab.variant({"identical": name}) for name in PROGRAMS]
        usual, start = lab.environment, lab.start
        for _ in range(generations):
            for treatment, variables in TREATMENTS.items():
                of[lab.next_generation] = treatment
                lab.environment = partial(_with, usual, variables)
                lab.start = _without_random_addresses(start) if treatment == "the same addresses" else start
                generation(lab, "measure", variants, budget_s=600.0, rounds=ROUNDS, own_caches=False)
        found = lab.session
    return {
        treatment: spread([_times(found, number) for number, one in of.items() if one == treatment])
        for treatment in TREATMENTS
    }


def _with(usual: Callable[[Settings], dict[str, str]], added: Mapping[str, str], settings: Settings) -> dict[str, str]:
    return {**usual(settings), **added}


def _times(session: Session, number: int) -> NDArray[np.float64]:
    """Log times of a generation, of shape (launches, rounds), against the median of their round."""
    launches = sorted(one.launch for one in session.launches if one.generation == number and one.status == "measured")
    rounds = sorted({one.round for one in session.blocks if one.launch in launches})
    times = np.full((len(launches), len(rounds)), np.nan)
    for block in session.blocks:
        if block.launch in launches:
            place = launches.index(block.launch), rounds.index(block.round)
            times[place] = np.log(block.wall_ns / block.steps)
    times = times[:, ~np.isnan(times).any(axis=0)]
    centred: NDArray[np.float64] = times - np.median(times, axis=0)
    return centred


def spread(generations: Sequence[NDArray[np.float64]]) -> tuple[float, float, float]:
    """Standard deviation of launches beyond what their rounds make of it, and the ends of its 95 % interval.

    generations: log times of shape (launches, rounds), less what a round's launches have in common.
    """
    drawn = np.random.default_rng(0)

    def between(chosen: Callable[[int], NDArray[np.int64]]) -> float:
        excess = []
        for times in generations:
            rows = times[chosen(len(times))]
            # Neighbouring rounds are alike, so their own spread is told by thirds.
            thirds = np.stack([np.median(part, axis=1) for part in np.array_split(rows, 3, axis=1)], axis=1)
            within = float(np.mean(np.var(thirds, axis=1, ddof=1))) / 3
            excess.append(float(np.var(thirds.mean(axis=1), ddof=1)) - within)
        return sqrt(max(0.0, float(np.mean(excess))))

    resampled = [between(lambda count: drawn.integers(0, count, count)) for _ in range(RESAMPLED)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return between(np.arange), float(low), float(high)


def _without_random_addresses(start: StartLaunch) -> StartLaunch:
    def started(spec: messages.LaunchSpec, environment: dict[str, str]) -> LiveLaunch:
        with _personality(NO_RANDOM_ADDRESSES):
            return start(spec, environment)

    return started


@contextmanager
def _personality(flags: int) -> Iterator[None]:
    """Of this process, and of what it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = libc.personality(0xFFFFFFFF)
    libc.personality(before | flags)
    try:
        yield
    finally:
        libc.personality(before)


class _Quiet:
    def update(self, text: str, done_s: float, left_s: float) -> None: ...

    def show(self, standings: Sequence[Standing]) -> None: ...
