"""Leaks among memory that grows, jumps and wanders without leaking: what is found, and what is called one wrongly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from perftool.analysis.memory import growth
from perftool.records import MemorySample
from tests.perf.noise import Floats
from tests.perf.table import Row, Table, share

TITLE = "Memory: leaks found, and warm-ups that are not called leaks"

FOUND, FALSE = 0.95, 0.01
TRIALS = 500
STEPS = (2000, 6000)  # of a run, from and to
SAMPLES = (60, 120, 400)  # evenly over the steps
MB = 1e6
PAGE = 4096
LEAK = MB / 100  # bytes per step
BASE = 500 * MB

Generator = np.random.Generator
Shape = Callable[[Generator, Floats], Floats]
"""(generator, steps of the samples) -> bytes held, without noise."""


def leak(_: Generator, steps: Floats) -> Floats:
    return LEAK * steps


def leak_in_jumps(generator: Generator, steps: Floats) -> Floats:
    """An allocator that asks for a megabyte at a time."""
    return MB * np.floor(LEAK * steps / MB + generator.random())


def leak_after_warmup(generator: Generator, steps: Floats) -> Floats:
    return LEAK * steps + settling(generator, steps, 0.1)


def leak_with_workers(generator: Generator, steps: Floats) -> Floats:
    return LEAK * steps + workers(generator, steps, ramp=0.0)


def flat(_: Generator, steps: Floats) -> Floats:
    return np.zeros(len(steps))


def settling(generator: Generator, steps: Floats, longest: float = 0.2) -> Floats:
    """Up to 200 MB, with a time constant of up to a fifth of the run."""
    constant = generator.uniform(0.02, longest) * steps[-1]
    held: Floats = generator.uniform(20, 200) * MB * (1 - np.exp(-steps / constant))
    return held


def jump(generator: Generator, steps: Floats) -> Floats:
    """Once, at any time."""
    held: Floats = generator.uniform(5, 50) * MB * (steps > generator.uniform(0.05, 0.98) * steps[-1])
    return held


def allocator(generator: Generator, steps: Floats) -> Floats:
    """Batches of changing length, and an allocator that keeps the most that it ever needed."""
    need = generator.lognormal(0.0, generator.uniform(0.2, 0.8), int(steps[-1]) + 1)
    most: Floats = np.maximum.accumulate(need)[steps.astype(int)]
    return 20 * MB * most


def sawtooth(generator: Generator, steps: Floats) -> Floats:
    """Garbage that piles up until it is collected, at least twice within the run."""
    period = generator.uniform(0.02, 0.4) * steps[-1]
    held: Floats = generator.uniform(5, 50) * MB * ((steps / period + generator.random()) % 1)
    return held


def uneven_sawtooth(generator: Generator, steps: Floats) -> Floats:
    """The same, with teeth of different lengths."""
    ends = np.cumsum(generator.uniform(0.05, 0.35, 40) * steps[-1])
    starts = np.concatenate([[0.0], ends])
    since = steps - starts[np.searchsorted(ends, steps, side="right")]
    held: Floats = generator.uniform(10, 100) * MB * since / steps[-1]
    return held


def workers(generator: Generator, steps: Floats, ramp: float = 1.0) -> Floats:
    """Loader workers that start anew each epoch and touch more pages in its course."""
    epoch = generator.uniform(0.05, 0.3) * steps[-1]
    within = (steps / epoch + generator.random()) % 1
    gone = within < 0.02
    return np.where(gone, 0.0, (100 + ramp * generator.uniform(0, 60) * within) * MB)


LEAKS: tuple[Shape, ...] = (leak, leak_in_jumps, leak_after_warmup, leak_with_workers)
OTHERS: tuple[Shape, ...] = (flat, settling, jump, allocator, sawtooth, uneven_sawtooth, workers)


def independent(generator: Generator, steps: Floats) -> Floats:
    """Within 2 MB either way."""
    return generator.uniform(-2, 2, len(steps)) * MB


def wandering(generator: Generator, steps: Floats, correlated_steps: float = 100) -> Floats:
    """Within about 2 MB either way, of which most stays for 100 steps."""
    from scipy.signal import lfilter

    kept = np.exp(-(steps[1] - steps[0]) / correlated_steps)
    drawn = generator.normal(0.0, MB * (1 - kept**2) ** 0.5, len(steps) + 200)
    noise: Floats = lfilter([1.0], [1.0, -kept], drawn)[200:]
    return noise


def drifting(generator: Generator, steps: Floats) -> Floats:
    """Within about 2 MB either way, of which most stays for 500 steps."""
    return wandering(generator, steps, 500)


NOISES: tuple[Shape, ...] = (independent, wandering, drifting)


def verdicts(shape: Shape, noise: Shape, trials: int) -> list[str]:
    """What is said of so many runs of this shape."""
    generator = np.random.default_rng(11)
    return [verdict(shape, noise, generator) for _ in range(trials)]


def verdict(shape: Shape, noise: Shape, generator: Generator) -> str:
    steps = np.round(np.linspace(0, generator.integers(*STEPS), generator.choice(SAMPLES)))
    held_bytes = (BASE + shape(generator, steps) + noise(generator, steps)) // PAGE * PAGE
    told = growth(
        [MemorySample(steps=int(at), host_bytes=int(held)) for at, held in zip(steps, held_bytes, strict=True)]
    )
    assert told is not None
    return told.verdict


def run(quick: bool) -> Table:
    trials = TRIALS // 10 if quick else TRIALS
    rows = []
    for shape in (*LEAKS, *OTHERS):
        for noise in NOISES:
            told = verdicts(shape, noise, trials)
            leaks = told.count("leak")
            cells = [
                shape.__name__.replace("_", " "),
                noise.__name__,
                *(share(told.count(word), trials) for word in ("leak", "steady", "undecided")),
            ]
            rows.append(Row(cells, leaks >= FOUND * trials if shape in LEAKS else leaks <= FALSE * trials))
    return Table(
        ["memory", "noise", "called a leak", "steady", "undecided"],
        rows,
        [
            "Target: a leak of 1 MB in 100 steps is found in 95 % of trials; what does not leak is called a leak in at "
            f"most 1 %. Runs of {STEPS[0]:,} to {STEPS[1]:,} steps with {', '.join(map(str, SAMPLES))} samples, in "
            "pages of 4 kB. Noise is of about 2 MB either way: independent, or kept for 100 steps (wandering) or for "
            "500 (drifting). Warm-ups settle with a time constant of at most a fifth of the run, a tenth where a leak "
            "follows; teeth and epochs come at least twice in a run.",
            "What jumps or is collected is often undecided rather than steady: the last half of a run does not tell.",
        ],
    )
