"""G10: whether the end of a warm-up is found, by the function and in the chunks that a launch uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, exp, log

import numpy as np

from perftool.measure.running import WARM_CAP_STEPS, WARM_CHUNK_STEPS
from perftool.measure.warmup import SAME_LEVEL, classify, last_change, settled
from perftool.records import WarmupClass
from tests.perf.noise import Floats
from tests.perf.table import Row, Table, share

TITLE = "G10: end of the warm-up"

TOLERANCE_STEPS = 10
FOUND = 0.90
TRIALS = 100
STEP_NS = 3e6

Generator = np.random.Generator


@dataclass(frozen=True)
class Case:
    """A warm-up whose end is known."""

    log_level: Floats  # of each step, relative to the last level
    end: int  # first step of the last level
    word: WarmupClass
    events: tuple[int, ...] = ()  # steps at which something was compiled


def flat(_: Generator) -> Case:
    return Case(np.zeros(WARM_CAP_STEPS), 0, "flat")


def exponential(generator: Generator) -> Case:
    """Its end is where it is as near to its last level as what counts as the same level."""
    height, length = generator.uniform(0.2, 1.0), generator.uniform(5, 30)
    level = height * np.exp(-np.arange(WARM_CAP_STEPS) / length)
    return Case(level, ceil(length * log(height / SAME_LEVEL)), "warm-up")


def step_down(generator: Generator) -> Case:
    """Early enough to be seen before the first level has filled the window."""
    end = int(generator.integers(10, 50))
    level = np.zeros(WARM_CAP_STEPS)
    level[:end] = generator.uniform(0.15, 1.0)
    return Case(level, end, "warm-up")


def two_steps(generator: Generator) -> Case:
    middle = int(generator.integers(10, 40))
    end = middle + int(generator.integers(10, 50))
    level = np.zeros(WARM_CAP_STEPS)
    level[:end] = generator.uniform(0.15, 0.5)
    level[:middle] += generator.uniform(0.15, 0.5)
    return Case(level, end, "warm-up")


def step_up(generator: Generator) -> Case:
    down = step_down(generator)
    return replace(down, log_level=-down.log_level, word="slowdown")


def late_step_down(generator: Generator) -> Case:
    """After a window of steady steps: nobody can wait for what nothing announces."""
    end = int(generator.integers(60, 150))
    level = np.zeros(WARM_CAP_STEPS)
    level[:end] = generator.uniform(0.15, 1.0)
    return Case(level, end, "warm-up")


def compile_spikes(generator: Generator) -> Case:
    events = (0, int(generator.integers(2, 20)), int(generator.integers(20, 38)))
    level = np.zeros(WARM_CAP_STEPS)
    level[list(events)] = generator.uniform(3.0, 6.0, len(events))
    return Case(level, events[-1] + 1, "flat", events)


def gaussian(generator: Generator) -> Floats:
    """One per cent."""
    return generator.normal(0.0, 0.01, WARM_CAP_STEPS)


def rough(generator: Generator) -> Floats:
    """Five per cent."""
    return generator.normal(0.0, 0.05, WARM_CAP_STEPS)


def spiky(generator: Generator) -> Floats:
    """Two per cent, and one step in thirty takes twice to five times as long."""
    spikes = generator.uniform(log(2), log(5), WARM_CAP_STEPS) * (generator.random(WARM_CAP_STEPS) < 1 / 30)
    noise: Floats = generator.normal(0.0, 0.02, WARM_CAP_STEPS) + spikes
    return noise


def wandering(generator: Generator) -> Floats:
    """Two per cent of which most stays for about five steps."""
    from scipy.signal import lfilter

    steps = generator.normal(0.0, 0.02, WARM_CAP_STEPS) * (1 - 0.8**2) ** 0.5
    noise: Floats = lfilter([1.0], [1.0, -0.8], steps)
    return noise


SHAPES: tuple[Callable[[Generator], Case], ...] = (
    flat,
    exponential,
    step_down,
    two_steps,
    step_up,
    compile_spikes,
    late_step_down,
)
NOISES: tuple[Callable[[Generator], Floats], ...] = (gaussian, rough, spiky, wandering)


def warm_up(case: Case, noise: Floats) -> list[int]:
    """The step times that a launch takes before it is measured."""
    step_ns = [round(STEP_NS * exp(level)) for level in case.log_level + noise]
    for steps in range(WARM_CHUNK_STEPS, WARM_CAP_STEPS, WARM_CHUNK_STEPS):
        seen = [event for event in case.events if event < steps]
        since_event = steps - seen[-1] if seen else steps
        if settled(step_ns[:steps], since_event, sum(step_ns[:steps]) / 1e9):
            return step_ns[:steps]
    return step_ns


def run(quick: bool) -> Table:
    trials = TRIALS // 10 if quick else TRIALS
    rows, all_found = [], 0
    for shape in SHAPES:
        for noise in NOISES:
            generator = np.random.default_rng(10)
            found = early = words = 0
            waits = []
            for _ in range(trials):
                case = shape(generator)
                step_ns = warm_up(case, noise(generator))
                # What was compiled ends a warm-up like a change of level does.
                end = max(last_change(step_ns), *(event + 1 for event in case.events), 0)
                found += abs(end - case.end) <= TOLERANCE_STEPS
                early += len(step_ns) < case.end - TOLERANCE_STEPS
                words += classify(step_ns) == case.word
                waits.append(len(step_ns) - case.end)
            all_found += found if shape is not late_step_down else 0
            cells = [
                shape.__name__.replace("_", " "),
                noise.__name__,
                share(found, trials),
                share(early, trials),
                f"{np.median(waits):.0f}, {np.quantile(waits, 0.9):.0f}",
                share(words, trials),
            ]
            rows.append(Row(cells, reached=found >= FOUND * trials))
    total = trials * (len(SHAPES) - 1) * len(NOISES)
    rows.append(
        Row(["all but the late step", "all", share(all_found, total), "", "", ""], reached=all_found >= FOUND * total)
    )
    return Table(
        ["warm-up", "noise", "end found", "measured too early", "steps waited after the end", "class right"],
        rows,
        [
            f"Target: end found within {TOLERANCE_STEPS} steps in 90 % of cases. Steps of {STEP_NS / 1e6:.0f} ms in "
            "chunks of 20 as a launch takes them, until `settled`; the end is the last change of level or compilation "
            "then known. Too early: the launch would be measured more than 10 steps before the true end. Steps waited "
            "are median and 90 % quantile. An exponential warm-up ends where it is within "
            f"{100 * SAME_LEVEL:.0f} % of its last level.",
            "Missed: a step down after a whole window of steady steps. Nothing announces it; the launch is measured by "
            "then, and its blocks show the change in both of a pair's members or widen the interval.",
        ],
    )
