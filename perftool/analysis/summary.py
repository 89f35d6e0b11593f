"""From a session to what everybody reads: one summary per variant, each metric compared with the baseline."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import median

import numpy as np
from msgspec.structs import replace

from perftool import units
from perftool.analysis.diagnose import findings
from perftool.analysis.explain import explained
from perftool.analysis.gate import is_check, judged
from perftool.analysis.jitter import jitter
from perftool.analysis.loop import script_report
from perftool.analysis.memory import memory_report
from perftool.analysis.pairs import (
    Samples,
    blocks_by_launch,
    launches_of,
    pair_effects,
    pairs_left_out,
    samples_per_second,
)
from perftool.analysis.roofline import distance
from perftool.analysis.stats import Effect, launch_effects
from perftool.analysis.stretches import held_down_by, of_variant, sample_mj, sustained_ratio
from perftool.analysis.tradeoffs import pareto, smallest_batch
from perftool.analysis.verdict import FULL_LOOK, comparison
from perftool.records import (
    CONFIRMING,
    EXPLAIN,
    FRESH,
    METRICS,
    PATCHED,
    Block,
    Comparison,
    Distance,
    Engaged,
    Jitter,
    Launch,
    LossParity,
    Provisional,
    Quantiles,
    Recommendation,
    RecommendationStatus,
    Rejected,
    Session,
    SoFar,
    Status,
    Summary,
    VariantSummary,
)
from perftool.words import DEVICE_HEAT, HARDWARE_SLOWDOWN

SLOWED = {DEVICE_HEAT, HARDWARE_SLOWDOWN}  # what holds a device's clock down in itself


class Summaries:
    """What a session says of each variant, worked out once for whoever asks: comparisons take the most time."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._samples = Samples(session)
        self._blocks = blocks_by_launch(session)
        self._compared: dict[tuple[frozenset[str], int], dict[int, dict[str, Comparison]]] = {}
        self._told: dict[int, VariantSummary] = {}

    def of(self, variant: int) -> VariantSummary:
        """One variant. Absolute figures are of this session's machine and hour; only `versus_baseline` travels."""
        if variant not in self._told:
            self._told[variant] = self._summary(variant)
        return self._told[variant]

    def _versus_baseline(self, variant: int, stages: Collection[str]) -> dict[str, Comparison]:
        """Beside all that took part in these stages; what was confirmed stands for itself."""
        session, among = self.session, frozenset(stages)
        is_fresh = among <= set(FRESH)
        key = (among, variant if is_fresh else 0)
        if key not in self._compared:
            peers = [variant] if is_fresh else _variants_in(session, among)
            beside = _variants_in(session, CONFIRMING) if is_fresh else []
            within = CONFIRMING if is_fresh else among
            self._compared[key] = compare_all(session, peers, within, samples=self._samples, beside=beside)
        return self._compared[key][variant]

    def _summary(self, variant: int) -> VariantSummary:
        session = self.session
        ended = [one for one in session.launches if one.variant == variant and one.stage != EXPLAIN]
        stages = stages_that_count(session, variant, self._blocks)
        measured = [one for one in launches_of(session, variant, stages or None) if self._blocks.get(one.launch)]
        blocks = [block for launch in measured for block in self._blocks[launch.launch]]
        lost = next((launch for launch in ended if launch.status != "measured"), None)
        spared = lost is not None and _spared(ended, measured)
        status: Status = "measured" if measured else "failed"
        unmeasured = "interrupted before it was measured" if session.interrupted else "it was not measured"
        reason = None if measured else unmeasured
        if lost is not None:
            status = status if spared else lost.status
            reason = _loss(ended, lost) if spared else lost.reason
        settings = {**session.baseline, **session.variants[variant]} if variant == 0 else session.variants[variant]
        runs = [block.step_ns for block in blocks if block.step_ns]
        uneven = jitter(runs) if runs else None
        versus = self._versus_baseline(variant, stages) if variant and measured and (not lost or spared) else {}
        cold = next((one.start_up_ns for one in ended if one.cold and one.start_up_ns is not None), None)
        own = [one for one in ended if not one.cold and not one.is_shared]
        warm = [one.start_up_ns for one in own if one.start_up_ns is not None]
        on_end = of_variant(session, variant)
        return VariantSummary(
            settings=settings,
            status=status,
            reason=reason,
            engaged=_engaged(ended),
            samples_per_second=samples_per_second(session, blocks),
            steps_per_call=next((one.steps_per_call for one in measured), 1),
            step_ns=_quantiles(runs, uneven) if uneven else None,
            jitter=uneven,
            peak_host_bytes=_most(one.peak_host_bytes for one in ended),
            warmup_peak_host_bytes=_most(one.warmup_peak_host_bytes for one in ended),
            peak_device_allocated_bytes=_most(one.peak_device_allocated_bytes for one in ended),
            peak_device_reserved_bytes=_most(one.peak_device_reserved_bytes for one in ended),
            data_wait_fraction=_data_wait(session, blocks),
            cold_start_ns=cold,
            warm_start_ns=round(median(warm)) if warm else None,
            break_even_steps=break_even_steps(session, cold, blocks, versus.get("throughput")) if variant else None,
            warmup_class=next((one.warmup_class for one in _own_first(ended) if one.warmup_class), None),
            versus_baseline=versus,
            sample_mj=sample_mj(on_end),
            sustained_ratio=sustained_ratio(session, variant) if variant else None,
            held_down_by=held_down_by(on_end),
        )


def _own_first(launches: Sequence[Launch]) -> list[Launch]:
    """Those in a process of their own before those that shared one."""
    return sorted(launches, key=lambda one: one.is_shared)


def variant_summary(session: Session, variant: int) -> VariantSummary:
    """One variant; `Summaries` where several are wanted of a session."""
    return Summaries(session).of(variant)


def summarise(
    session: Session,
    *,
    summaries: Summaries | None = None,
    folder: str | None = None,
    recommendation: Recommendation | None = None,
    recommendation_status: RecommendationStatus | None = None,
    rejected: Sequence[Rejected] = (),
    parity: LossParity | None = None,
    so_far: SoFar | None = None,
    provisional: Provisional | None = None,
) -> Summary:
    """The whole summary; what is recommended is decided elsewhere and only passed through.

    summaries: of this session, where somebody has them already. folder: that its files are in.
    """
    summaries = summaries or Summaries(session)
    launched = {launch.variant for launch in session.launches if launch.stage != PATCHED} - {0}
    variants = [summaries.of(variant) for variant in sorted(launched)]
    baseline = summaries.of(0)
    found, memory, limit = explained(session), memory_report(session), _distance(session, baseline)
    measured = [one for one in (replace(baseline, settings={}), *variants) if one.status == "measured"]
    return Summary(
        command=session.command,
        workload=session.workload.reference,
        created_at=session.created_at,
        seed=session.seed,
        arguments=session.arguments,
        machine=session.machine,
        baseline=baseline,
        variants=variants,
        findings=findings(session, found, memory, limit),
        recommendation_status="interrupted"
        if session.interrupted and session.command == "tune"
        else recommendation_status,
        objective=session.goal.objective,
        pareto=pareto(measured),
        recommendation=recommendation,
        rejected=list(rejected),
        parity=parity,
        goal=session.goal,
        so_far=so_far,
        provisional=provisional,
        smallest_batch=smallest_batch(session, measured),
        explained=found,
        fitness=session.fitness,
        distance=limit,
        memory=memory,
        check=judged(session) if is_check(session) else None,
        script=script_report(session),
        sample_unit=session.workload.sample_unit,
        folder=folder,
        measured_s=sum(block.wall_ns for block in session.blocks) / 1e9,
        wall=session.wall,
        warnings=[*session.warnings, *_of_the_clock(session)],
    )


def _of_the_clock(session: Session) -> list[str]:
    """What is to be said of a device whose clock was held down now and then."""
    told = []
    count = pairs_left_out(session)
    if count:
        pairs = units.counted(count, "pair of blocks is", "pairs of blocks are")
        told.append(f"{pairs} left out, since the GPU's power supply held its clock down for one of the two")
    hot = sum(bool(SLOWED & set(block.labels.device_held_down_by)) for block in session.blocks)
    if hot:
        blocks = units.counted(hot, "block")
        told.append(
            f"heat or the hardware held the GPU's clock down in {blocks} of {len(session.blocks):,}: cool it better"
        )
    return told


def _distance(session: Session, baseline: VariantSummary) -> Distance | None:
    """Of the baseline's median step; of its mean one where several run in a call. None where nobody asked for it."""
    if session.limits is None:
        return None
    if baseline.step_ns is not None and baseline.step_ns.p50 is not None:
        return distance(session.limits, baseline.step_ns.p50)
    own = {launch.launch for launch in launches_of(session, 0) if launch.stage != EXPLAIN}
    blocks = [block for block in session.blocks if block.launch in own]
    steps = sum(block.steps for block in blocks)
    return distance(session.limits, sum(block.wall_ns for block in blocks) / steps) if steps else None


def compare_all(
    session: Session,
    variants: Sequence[int],
    stages: Collection[str] | None = None,
    *,
    metrics: Sequence[str] = METRICS,
    samples: Samples | None = None,
    beside: Sequence[int] = (),
) -> dict[int, dict[str, Comparison]]:
    """Metrics of these variants against the baseline, with intervals that hold for all of the variants together.

    beside: further variants, of which nothing is said; how their launches differ tells of the machine.
    """
    samples = samples or Samples(session)
    rows = [*variants, *(one for one in beside if one not in variants)]
    compared: dict[int, dict[str, Comparison]] = {variant: {} for variant in variants}
    for metric in metrics:
        matrix = pair_effects(session, metric, rows, stages=stages, samples=samples)
        effects = launch_effects(matrix.d, matrix.half_widths)
        for row, effect in enumerate(effects[: len(variants)]):
            if effect is not None:
                compared[variants[row]][metric] = comparison(
                    metric, effect, int(matrix.pairs[row].sum()), comparisons=len(variants)
                )
    return compared


def fresh_effect(session: Session, variant: int, metric: str) -> tuple[Effect, int] | None:
    """Of a variant on the log scale, in the launches that had no part in choosing it, and in how many pairs; None where
    it had none."""
    peers = [variant, *(one for one in _variants_in(session, CONFIRMING) if one != variant)]
    matrix = pair_effects(session, metric, peers, stages=CONFIRMING)
    effect = launch_effects(matrix.d, matrix.half_widths)[0]
    return None if effect is None else (effect, int(matrix.pairs[0].sum()))


def _variants_in(session: Session, stages: Collection[str]) -> list[int]:
    return sorted({one.variant for one in session.launches if one.stage in stages and one.variant})


def all_decided(session: Session, variants: Sequence[int], stages: Collection[str] | None = None) -> bool:
    """Whether the throughput of each variant that was measured has a verdict."""
    compared = compare_all(session, variants, stages, metrics=["throughput"])
    return all(one["throughput"].verdict != "undecided" for one in compared.values() if "throughput" in one)


def stages_that_count(session: Session, variant: int, blocks: Mapping[int, Sequence[Block]]) -> set[str]:
    """Where a variant has fresh launches, only they count: those that made it the winner flatter it.

    blocks: by launch; one that was interrupted before its first counts for nothing.
    """
    stages = {launch.stage for launch in launches_of(session, variant) if blocks.get(launch.launch)} - {EXPLAIN}
    return stages & set(FRESH) or stages


def _spared(ended: Sequence[Launch], measured: Sequence[Launch]) -> bool:
    """Whether enough of a variant's launches were measured for a verdict although others were lost. Not where its
    settings ever failed to take effect: what is advised must always do something."""
    return len(measured) >= FULL_LOOK and all(one.engaged is None or one.engaged.ok for one in ended)


def _loss(ended: Sequence[Launch], lost: Launch) -> str:
    """A note on launches that were lost of a variant that was measured all the same."""
    count = sum(launch.status != "measured" for launch in ended)
    return (
        f"{count} of its {len(ended)} launches was lost: {lost.reason}"
        if count == 1
        else (f"{count} of its {len(ended)} launches were lost, the first: {lost.reason}")
    )


def _data_wait(session: Session, blocks: Sequence[Block]) -> float | None:
    """Share of the steps, or of blocks without times of single steps, spent waiting for batches. None on a GPU: the
    host fetches while the GPU still works on earlier steps, so what it waits there costs nothing until the GPU has
    nothing left to do."""
    if session.machine.device.startswith("cuda"):
        return None
    stepped = [block for block in blocks if block.step_ns and block.wait_ns]
    if stepped:
        return sum(sum(block.wait_ns) for block in stepped) / sum(sum(block.step_ns) for block in stepped)
    told = [block for block in blocks if block.waited_ns is not None]
    return sum(block.waited_ns or 0 for block in told) / sum(block.wall_ns for block in told) if told else None


def break_even_steps(
    session: Session, cold_start_ns: int | None, blocks: Sequence[Block], throughput: Comparison | None
) -> float | None:
    """Steps of the variant after which its slower start has paid back: 0 where it starts no slower, None where it never
    does or the start-ups are not known."""
    own = [one for one in session.launches if one.variant == 0 and not one.is_shared]
    base = [one for one in own if one.start_up_ns is not None]
    baseline_start_ns = next((one.start_up_ns for one in base if one.cold), None)
    if cold_start_ns is None or baseline_start_ns is None or throughput is None or throughput.verdict != "better":
        return None
    lost_ns = cold_start_ns - baseline_start_ns
    starts_ns = [one.start_up_ns for one in base if one.start_up_ns is not None]
    if lost_ns <= max(starts_ns) - min(starts_ns):
        return 0.0  # the baseline's own starts differ by as much
    step_ns = sum(block.wall_ns for block in blocks) / sum(block.steps for block in blocks)
    saved_ns = step_ns * (throughput.ratio - 1)
    return max(0.0, lost_ns / saved_ns)


def _engaged(launches: Sequence[Launch]) -> Engaged | None:
    proofs = [launch.engaged for launch in launches if launch.engaged is not None]
    return next((proof for proof in proofs if not proof.ok), proofs[0] if proofs else None)


def _quantiles(runs: Sequence[Sequence[int]], uneven: Jitter) -> Quantiles:
    """Of the steps; None for those that so few steps do not tell."""
    p50, p95, p99 = (
        float(value) for value in np.quantile(np.concatenate([np.asarray(run) for run in runs]), [0.5, 0.95, 0.99])
    )
    return Quantiles(p50=p50, p95=p95 if uneven.j95 is not None else None, p99=p99 if uneven.j99 is not None else None)


def _most(figures: object) -> int | None:
    return max((figure for figure in figures if figure is not None), default=None)  # type: ignore[attr-defined]
