"""Trials on recorded noise: programs that take turns on a real, disturbed machine, with a known effect.

The traces of `tests/noise` are one training step repeated on a shared machine, `step_ns` of every step. Joined to one
long trace, each generation starts anywhere in it and cuts it, in time order, into blocks that go to baseline and
variants in each round's drawn order. Whatever differs between programs is then added to the log times: a fresh launch
effect per launch, and the injected effect of the variant. Everything is vectorised over trials.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from perftool.analysis.stats import Effect, launch_effects, median_half_width
from perftool.analysis.verdict import LOOKS, comparison
from perftool.measure.repeat import GENERATION_ROUNDS
from perftool.records import Comparison

if TYPE_CHECKING:
    from perftool.analysis.stats import Rule

Floats = NDArray[np.float64]

NOISE = Path(__file__).parents[1] / "noise"
STEPS_PER_BLOCK = 12  # about 30 ms of the undisturbed step, as a launch decides once at its warm-up
DROPPED_STEPS = 1  # after each switch
LAUNCH_SDS = (0.006, 0.010)  # between launches of one program, log scale: pinned to a core and not
GENERATIONS = max(LOOKS)


@cache
def trace_ns() -> Floats:
    """Step times of all recorded traces, one after another."""
    return np.concatenate([np.load(path)["step_ns"] for path in sorted(NOISE.glob("t*.npz"))]).astype(float)


@cache
def _elapsed_ns() -> Floats:
    """Time from the start of the trace to each step; the trace goes round once more, so that a cut may pass its end."""
    twice = np.concatenate([trace_ns(), trace_ns()])
    return np.concatenate([[0.0], np.cumsum(twice)])


def log_blocks(generator: np.random.Generator, generations: int, programs: int, rounds: int) -> Floats:
    """Log wall times of blocks of identical programs taking turns: (generations, rounds, programs)."""
    stride = STEPS_PER_BLOCK + DROPPED_STEPS
    order = generator.random((generations, rounds, programs)).argsort(axis=2)
    turn = np.arange(rounds)[:, None] * programs + order
    steps = len(trace_ns())
    begin = (generator.integers(0, steps, (generations, 1, 1)) + turn * stride + DROPPED_STEPS) % steps
    elapsed_ns = _elapsed_ns()
    blocks: Floats = np.log(elapsed_ns[begin + STEPS_PER_BLOCK] - elapsed_ns[begin])
    return blocks


@dataclass(frozen=True)
class Trials:
    """Launch medians of paired log-ratios of many sessions, and their half-widths: (trials, variants, generations)."""

    d: Floats
    half_widths: Floats

    def effects(self, trial: int, generations: int) -> list[Effect]:
        """What a session's analysis knows after so many generations, one effect per variant."""
        found = launch_effects(self.d[trial, :, :generations], self.half_widths[trial, :, :generations])
        return [effect for effect in found if effect is not None]


def simulate(*, trials: int, variants: int, launch_sd: float, effect: float = 0.0, seed: int = 0) -> Trials:
    """Sessions of `variants` variants, each slower than the baseline by `effect` (0.05: five per cent)."""
    generator = np.random.default_rng([seed, variants, round(1e4 * launch_sd), round(1e4 * effect)])
    blocks = log_blocks(generator, trials * GENERATIONS, variants + 1, GENERATION_ROUNDS)
    launches = generator.normal(0.0, launch_sd, (trials * GENERATIONS, 1, variants + 1))
    launches[..., 1:] += np.log1p(effect)
    blocks += launches
    d = blocks[..., 1:] - blocks[..., :1]
    half_widths = np.array([[median_half_width(pairs) for pairs in generation.T] for generation in d])

    def by_trial(figures: Floats) -> Floats:
        return figures.reshape(trials, GENERATIONS, variants).transpose(0, 2, 1)

    return Trials(by_trial(np.median(d, axis=1)), by_trial(half_widths))


def looked_at(trials: Trials, *, rule: Rule, alpha: float) -> list[list[list[Comparison]]]:
    """Throughput comparisons as a session makes them: trial, look, variant."""
    return [
        [
            [
                comparison(
                    "throughput", effect, GENERATION_ROUNDS * look, comparisons=len(effects), alpha=alpha, rule=rule
                )
                for effect in effects
            ]
            for look in LOOKS
            for effects, pairs in [(trials.effects(trial, look), GENERATION_ROUNDS * look)]
        ]
        for trial in range(len(trials.d))
    ]


def at_end(looks: list[list[Comparison]]) -> tuple[int, list[Comparison]]:
    """Generations after which a session stops (every verdict reached, or no more to come), and what it then says."""
    for generations, compared in zip(LOOKS, looks, strict=True):
        if all(one.verdict != "undecided" for one in compared):
            return generations, compared
    return GENERATIONS, looks[-1]
