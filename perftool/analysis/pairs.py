"""From a session's blocks to paired log-ratios: one number per variant and generation, with its uncertainty.

A pair is a variant's block and a reference variant's of the same round.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perftool.analysis.jitter import STALL_FROM
from perftool.analysis.stats import Resampled, median_half_width
from perftool.records import Block, Launch, Session
from perftool.words import POWER_BRAKE

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

START_UP_SD = 0.1  # of the ratio of two starts of one program at the same time: disk and processor are shared
QUANTILES = (0.5, 0.95, 0.99)  # of the steps, that are compared


@dataclass(frozen=True)
class PairMatrix:
    """Rows are variants, columns generations; NaN where a variant was not measured."""

    variants: tuple[int, ...]
    generations: tuple[int, ...]
    d: Floats  # log(variant / reference), of time per sample for throughput: negative is faster
    half_widths: Floats
    pairs: NDArray[np.int64]


class Cell(NamedTuple):
    """What one generation says of one variant."""

    d: float
    half_width: float
    pairs: int


NO_CELL = Cell(float("nan"), float("nan"), 0)


def launches_of(session: Session, variant: int, stages: Collection[str] | None = None) -> list[Launch]:
    """The measured launches of a variant, in these stages or in all."""
    return [
        launch
        for launch in session.launches
        if launch.variant == variant and launch.status == "measured" and (stages is None or launch.stage in stages)
    ]


def blocks_by_launch(session: Session) -> dict[int, list[Block]]:
    """A session's blocks, by the launch that ran them."""
    blocks: dict[int, list[Block]] = defaultdict(list)
    for block in session.blocks:
        blocks[block.launch].append(block)
    return blocks


def samples_per_second(session: Session, blocks: Sequence[Block]) -> float | None:
    """Of these blocks together; steps per second where nobody says how many samples a step has. None without blocks."""
    wall_ns = sum(block.wall_ns for block in blocks)
    # Ranks take their steps together, while each has samples of its own.
    counted = (block.steps if session.workload.sample_unit == "step" else block.samples for block in blocks)
    return sum(counted) / wall_ns * 1e9 if wall_ns else None


class Pooled(NamedTuple):
    """Figures of the steps of several blocks together, which cannot be had block by block, and of resamples of these
    blocks: arrays of (1 + BOOTSTRAPS,)."""

    tails_ns: dict[float, Floats]
    stall_share: Floats


class _Blocks:
    """The blocks of one launch as arrays, in the order of their rounds."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = sorted(blocks, key=lambda block: block.round)
        self.rounds = np.array([block.round for block in self.blocks], dtype=int)
        self._pooled: dict[bytes, Pooled] = {}

    @cached_property
    def slowed(self) -> NDArray[np.bool_]:
        """Of each block; see `is_slowed`."""
        return np.array([is_slowed(block) for block in self.blocks], dtype=bool)

    @cached_property
    def sample_ns(self) -> Floats:
        """Wall time per sample of each block, data wait included; 0 where it has none."""
        return np.array([block.wall_ns / block.samples if block.samples else 0.0 for block in self.blocks])

    @cached_property
    def mean_step_ns(self) -> Floats:
        """Wall time per step of each block, whether or not single steps were timed."""
        return np.array([block.wall_ns / block.steps for block in self.blocks])

    @cached_property
    def step_ns(self) -> list[Floats]:
        """The steps of each block; empty where several run in one call."""
        return [np.array(block.step_ns, dtype=float) for block in self.blocks]

    @cached_property
    def median_step_ns(self) -> Floats:
        """The median step of each block; 0 where it has none."""
        return np.array([np.median(steps) if len(steps) else 0.0 for steps in self.step_ns])

    def pooled(self, chosen: Indices) -> Pooled:
        """Of the steps of these blocks. The baseline's are asked for by every variant, hence kept."""
        key = chosen.tobytes()
        if key not in self._pooled:
            resampled = Resampled.of([self.step_ns[index] for index in chosen])
            self._pooled[key] = Pooled(
                {q: resampled.quantile(q) for q in QUANTILES},
                resampled.share_above(STALL_FROM * resampled.quantile(0.5)),
            )
        return self._pooled[key]


class Samples:
    """A session's blocks by launch, as arrays that are made once for all metrics and variants."""

    def __init__(self, session: Session) -> None:
        self._blocks = {launch: _Blocks(blocks) for launch, blocks in blocks_by_launch(session).items()}
        self._none = _Blocks([])

    def of(self, launch: Launch) -> _Blocks:
        return self._blocks.get(launch.launch, self._none)


def pair_effects(
    session: Session,
    metric: str,
    variants: Sequence[int],
    *,
    stages: Collection[str] | None = None,
    against: int = 0,
    samples: Samples | None = None,
) -> PairMatrix:
    """All that the session says of these variants against the reference, by generation.

    stages: of the variants' launches; the reference's is the one of the same generation, whatever it was for.
    samples: of this session, where several matrices are wanted of it.
    """
    samples = samples or Samples(session)
    cell = _CELLS[metric]
    reference = {launch.generation: launch for launch in launches_of(session, against)}
    own = {
        (variant, launch.generation): launch
        for variant in variants
        for launch in launches_of(session, variant, stages)
        if launch.generation in reference
    }
    generations = sorted({generation for _, generation in own})
    cells = [
        [
            cell(own[variant, generation], reference[generation], samples) if (variant, generation) in own else NO_CELL
            for generation in generations
        ]
        for variant in variants
    ]
    shape = (len(variants), len(generations))
    return PairMatrix(
        tuple(variants),
        tuple(generations),
        np.array([[one.d for one in row] for row in cells], dtype=float).reshape(shape),
        np.array([[one.half_width for one in row] for row in cells], dtype=float).reshape(shape),
        np.array([[one.pairs for one in row] for row in cells], dtype=int).reshape(shape),
    )


def pairs_left_out(session: Session) -> int:
    """Of all variants' blocks and the baseline's of the same round, those of which one was slowed down from outside."""
    variant_of = {launch.launch: launch.variant for launch in session.launches}
    base = {block.round: is_slowed(block) for block in session.blocks if variant_of.get(block.launch) == 0}
    others = (block for block in session.blocks if variant_of.get(block.launch) and block.round in base)
    return sum(is_slowed(block) != base[block.round] for block in others)


def is_slowed(block: Block) -> bool:
    """Whether the device's clock was held down from outside, by its power supply. Heat, and as much power as is
    allowed, may be the variant's own doing."""
    return POWER_BRAKE in block.labels.device_held_down_by


def _paired(ours: _Blocks, theirs: _Blocks) -> tuple[Indices, Indices]:
    """Where each has the blocks of the rounds that both have, unless one of the two was slowed down from outside."""
    _, mine, others = np.intersect1d(ours.rounds, theirs.rounds, return_indices=True)
    alike = ours.slowed[mine] == theirs.slowed[others]
    return mine[alike], others[alike]


def _by_median(value: Callable[[_Blocks], Floats]) -> Callable[[Launch, Launch, Samples], Cell]:
    """The median over pairs of the log-ratio of a block's value."""

    def cell(ours: Launch, theirs: Launch, samples: Samples) -> Cell:
        one, other = samples.of(ours), samples.of(theirs)
        mine, others = _paired(one, other)
        numerator, denominator = value(one)[mine], value(other)[others]
        there = (numerator > 0) & (denominator > 0)
        d = np.log(numerator[there] / denominator[there])
        return Cell(float(np.median(d)), median_half_width(d), len(d)) if len(d) else NO_CELL

    return cell


def _by_pool(figure: Callable[[Pooled], Floats], least: int = 1) -> Callable[[Launch, Launch, Samples], Cell]:
    """The log-ratio of a figure of all paired steps, its spread by a bootstrap over the pairs; none where there are
    fewer pairs than `least`, or either's figure is 0."""

    def cell(ours: Launch, theirs: Launch, samples: Samples) -> Cell:
        one, other = samples.of(ours), samples.of(theirs)
        mine, others = _paired(one, other)
        stepped = (one.median_step_ns[mine] > 0) & (other.median_step_ns[others] > 0)
        mine, others = mine[stepped], others[stepped]
        if len(mine) < least:
            return NO_CELL
        numerator, denominator = figure(one.pooled(mine)), figure(other.pooled(others))
        there = (numerator > 0) & (denominator > 0)
        if not there[0]:
            return NO_CELL
        d = np.log(numerator[there] / denominator[there])
        spread = float(np.std(d[1:])) if len(mine) > 1 and len(d) > 1 else float("nan")
        return Cell(float(d[0]), spread, len(mine))

    return cell


def _of_launch(
    value: Callable[[Launch], int | None], half_width: float = 0.0
) -> Callable[[Launch, Launch, Samples], Cell]:
    """One figure per launch, known so well."""

    def cell(ours: Launch, theirs: Launch, _: Samples) -> Cell:
        one, other = value(ours), value(theirs)
        return Cell(log(one / other), half_width, 1) if one and other else NO_CELL

    return cell


_CELLS: dict[str, Callable[[Launch, Launch, Samples], Cell]] = {
    "throughput": _by_median(lambda blocks: blocks.sample_ns),
    "step_mean": _by_median(lambda blocks: blocks.mean_step_ns),
    "step_p50": _by_median(lambda blocks: blocks.median_step_ns),
    "step_p95": _by_pool(lambda pooled: pooled.tails_ns[0.95]),
    "step_p99": _by_pool(lambda pooled: pooled.tails_ns[0.99]),
    "jitter": _by_pool(lambda pooled: pooled.tails_ns[0.95] / pooled.tails_ns[0.5]),
    "stall_share": _by_pool(lambda pooled: pooled.stall_share, least=2),
    "peak_host": _of_launch(lambda launch: launch.peak_host_bytes),
    "peak_device": _of_launch(lambda launch: launch.peak_device_reserved_bytes),
    "start_up": _of_launch(lambda launch: launch.start_up_ns, START_UP_SD),
    "peak_memory": _of_launch(lambda launch: launch.peak_device_reserved_bytes or launch.peak_host_bytes),
}
