"""From a session's blocks to paired log-ratios: one number per variant and generation, with its uncertainty.

A pair is a variant's block and a reference variant's of the same round.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perftool.analysis.stats import median_half_width, paired_quantile_spread
from perftool.records import Block, Launch, Session

Floats = NDArray[np.float64]


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


def pair_effects(
    session: Session,
    metric: str,
    variants: Sequence[int],
    *,
    stages: Collection[str] | None = None,
    against: int = 0,
) -> PairMatrix:
    """All that the session says of these variants against the reference, by generation.

    stages: of the variants' launches; the reference's is the one of the same generation, whatever it was for.
    """
    blocks = blocks_by_launch(session)
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
            cell(own[variant, generation], reference[generation], blocks) if (variant, generation) in own else NO_CELL
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


Blocks = dict[int, list[Block]]


def paired(ours: Launch, theirs: Launch, blocks: Blocks) -> list[tuple[Block, Block]]:
    """Blocks of the same round."""
    partners = {block.round: block for block in blocks.get(theirs.launch, [])}
    return [(block, partners[block.round]) for block in blocks.get(ours.launch, []) if block.round in partners]


def _by_median(value: Callable[[Block], float]) -> Callable[[Launch, Launch, Blocks], Cell]:
    """The median over pairs of the log-ratio of a block's value."""

    def cell(ours: Launch, theirs: Launch, blocks: Blocks) -> Cell:
        pairs = [(value(one), value(other)) for one, other in paired(ours, theirs, blocks)]
        d = [log(one / other) for one, other in pairs if one > 0 and other > 0]
        return Cell(float(np.median(d)), median_half_width(d), len(d)) if d else NO_CELL

    return cell


def _tail(q: float) -> Callable[[Launch, Launch, Blocks], Cell]:
    """A quantile of the pooled steps of the paired blocks: a tail cannot be had block by block."""

    def cell(ours: Launch, theirs: Launch, blocks: Blocks) -> Cell:
        pairs = [(one, other) for one, other in paired(ours, theirs, blocks) if one.step_ns and other.step_ns]
        if not pairs:
            return NO_CELL
        d, spread = paired_quantile_spread(
            [np.asarray(one.step_ns, dtype=float) for one, _ in pairs],
            [np.asarray(other.step_ns, dtype=float) for _, other in pairs],
            q,
        )
        return Cell(d, spread, len(pairs))

    return cell


def _unevenness(ours: Launch, theirs: Launch, blocks: Blocks) -> Cell:
    """How p95/p50 of the step time differs."""
    tail, middle = _CELLS["step_p95"](ours, theirs, blocks), _CELLS["step_p50"](ours, theirs, blocks)
    return Cell(tail.d - middle.d, tail.half_width, tail.pairs)


def _stalls(ours: Launch, theirs: Launch, blocks: Blocks) -> Cell:
    """Log-ratio of the stall shares of the paired blocks; none where either never stalled."""
    from perftool.analysis.jitter import stall_share

    pairs = [(one, other) for one, other in paired(ours, theirs, blocks) if one.step_ns and other.step_ns]
    if len(pairs) < 2:
        return NO_CELL

    def ratio(chosen: Sequence[int]) -> float:
        one, other = (stall_share([pairs[index][side].step_ns for index in chosen]) for side in (0, 1))
        return log(one / other) if one and other else float("nan")

    generator = np.random.default_rng(0)
    draws = [ratio(generator.integers(0, len(pairs), len(pairs)).tolist()) for _ in range(40)]
    d = ratio(range(len(pairs)))
    return NO_CELL if np.isnan(d) else Cell(d, float(np.nanstd(draws)), len(pairs))


def _of_launch(value: Callable[[Launch], int | None]) -> Callable[[Launch, Launch, Blocks], Cell]:
    """One figure per launch, known without noise."""

    def cell(ours: Launch, theirs: Launch, blocks: Blocks) -> Cell:
        one, other = value(ours), value(theirs)
        return Cell(log(one / other), 0.0, 1) if one and other else NO_CELL

    return cell


_CELLS: dict[str, Callable[[Launch, Launch, Blocks], Cell]] = {
    "throughput": _by_median(lambda block: block.wall_ns / block.samples if block.samples else 0.0),
    "step_p50": _by_median(lambda block: float(np.median(block.step_ns)) if block.step_ns else 0.0),
    "step_p95": _tail(0.95),
    "step_p99": _tail(0.99),
    "step_mean": _by_median(lambda block: block.wall_ns / block.steps),
    "jitter": _unevenness,
    "stall_share": _stalls,
    "peak_host": _of_launch(lambda launch: launch.peak_host_bytes),
    "peak_device": _of_launch(lambda launch: launch.peak_device_allocated_bytes),
    "peak_memory": _of_launch(lambda launch: launch.peak_device_reserved_bytes or launch.peak_host_bytes),
}
