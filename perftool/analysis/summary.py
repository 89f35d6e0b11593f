"""From a session to what everybody reads: one summary per variant, each metric compared with the baseline."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import median

import numpy as np

from perftool.analysis.jitter import jitter
from perftool.analysis.pairs import blocks_by_launch, launches_of, pair_effects
from perftool.analysis.stats import launch_effects
from perftool.analysis.verdict import comparison
from perftool.records import (
    METRICS,
    Block,
    Comparison,
    Engaged,
    Jitter,
    Launch,
    LossParity,
    Quantiles,
    Recommendation,
    RecommendationStatus,
    Rejected,
    Session,
    Settings,
    Summary,
    VariantSummary,
)

CONFIRM = "confirm"


def summarise(
    session: Session,
    *,
    recommendation: Recommendation | None = None,
    recommendation_status: RecommendationStatus | None = None,
    rejected: Sequence[Rejected] = (),
    parity: LossParity | None = None,
) -> Summary:
    """The whole summary; what is recommended is decided elsewhere and only passed through."""
    launched = {launch.variant for launch in session.launches} - {0}
    variants = [variant_summary(session, variant) for variant in sorted(launched)]
    return Summary(
        command=session.command,
        workload=session.workload.reference,
        created_at=session.created_at,
        seed=session.seed,
        arguments=session.arguments,
        machine=session.machine,
        baseline=variant_summary(session, 0),
        variants=variants,
        findings=[],
        recommendation_status="interrupted"
        if session.interrupted and session.command == "tune"
        else recommendation_status,
        objective="throughput",
        pareto=pareto([variant for variant in variants if variant.status == "measured"]),
        recommendation=recommendation,
        rejected=list(rejected),
        parity=parity,
        measured_s=sum(block.wall_ns for block in session.blocks) / 1e9,
        warnings=list(session.warnings),
    )


def compare_all(
    session: Session, variants: Sequence[int], stages: Collection[str] | None = None
) -> dict[int, dict[str, Comparison]]:
    """Every metric of these variants against the baseline, with intervals that hold for all of them together."""
    compared: dict[int, dict[str, Comparison]] = {variant: {} for variant in variants}
    for metric in METRICS:
        matrix = pair_effects(session, metric, variants, stages=stages)
        for row, effect in enumerate(launch_effects(matrix.d, matrix.half_widths)):
            if effect is not None:
                compared[variants[row]][metric] = comparison(
                    metric, effect, int(matrix.pairs[row].sum()), comparisons=len(variants)
                )
    return compared


def all_decided(session: Session, variants: Sequence[int], stages: Collection[str] | None = None) -> bool:
    """Whether the throughput of each variant that was measured has a verdict."""
    compared = compare_all(session, variants, stages)
    return all(one["throughput"].verdict != "undecided" for one in compared.values() if "throughput" in one)


def stages_that_count(session: Session, variant: int) -> set[str]:
    """Where a variant was confirmed, only that counts: the launches that made it the winner flatter it."""
    stages = {launch.stage for launch in launches_of(session, variant)}
    return {CONFIRM} if CONFIRM in stages else stages


def variant_summary(session: Session, variant: int) -> VariantSummary:
    """One variant. Absolute figures are of this session's machine and hour; only `versus_baseline` travels."""
    ended = [launch for launch in session.launches if launch.variant == variant]
    by_launch = blocks_by_launch(session)
    stages = stages_that_count(session, variant)
    measured = [one for one in launches_of(session, variant, stages or None) if by_launch.get(one.launch)]
    blocks = [block for launch in measured for block in by_launch[launch.launch]]
    lost = next((launch for launch in ended if launch.status != "measured"), None)
    settings = {**session.baseline, **session.variants[variant]} if variant == 0 else session.variants[variant]
    wall_ns = sum(block.wall_ns for block in blocks)
    runs = [block.step_ns for block in blocks if block.step_ns]
    uneven = jitter(runs) if runs else None
    versus = {}
    if variant and measured and not lost:
        peers = sorted({one.variant for one in session.launches if one.stage in stages and one.variant})
        versus = compare_all(session, peers, stages)[variant]
    cold = next((one.start_up_ns for one in ended if one.cold and one.start_up_ns is not None), None)
    warm = [one.start_up_ns for one in ended if not one.cold and one.start_up_ns is not None]
    return VariantSummary(
        settings=settings,
        status=lost.status if lost else "measured" if measured else "failed",
        reason=lost.reason if lost else None if measured else "it was not measured",
        engaged=_engaged(ended),
        samples_per_second=sum(block.samples for block in blocks) / wall_ns * 1e9 if wall_ns else None,
        steps_per_call=next((one.steps_per_call for one in measured), 1),
        step_ns=_quantiles(runs, uneven) if uneven else None,
        jitter=uneven,
        peak_host_bytes=_most(one.peak_host_bytes for one in ended),
        warmup_peak_host_bytes=_most(one.warmup_peak_host_bytes for one in ended),
        peak_device_allocated_bytes=_most(one.peak_device_allocated_bytes for one in ended),
        peak_device_reserved_bytes=_most(one.peak_device_reserved_bytes for one in ended),
        peak_device_nvml_bytes=_most(one.peak_device_nvml_bytes for one in ended),
        data_wait_fraction=_data_wait_fraction(blocks),
        cold_start_ns=cold,
        warm_start_ns=round(median(warm)) if warm else None,
        break_even_steps=break_even_steps(session, cold, blocks, versus.get("throughput")) if variant else None,
        warmup_class=next((one.warmup_class for one in ended if one.warmup_class), None),
        versus_baseline=versus,
    )


def break_even_steps(
    session: Session, cold_start_ns: int | None, blocks: Sequence[Block], throughput: Comparison | None
) -> float | None:
    """Steps of the variant after which its slower start has paid back: 0 where it starts no slower, None where it never
    does or the start-ups are not known."""
    baseline_start_ns = next(
        (one.start_up_ns for one in session.launches if one.variant == 0 and one.cold and one.start_up_ns), None
    )
    if cold_start_ns is None or baseline_start_ns is None or throughput is None or throughput.verdict != "better":
        return None
    lost_ns = cold_start_ns - baseline_start_ns
    step_ns = sum(block.wall_ns for block in blocks) / sum(block.steps for block in blocks)
    saved_ns = step_ns * (throughput.ratio - 1)
    return max(0.0, lost_ns / saved_ns)


def losses_by_seed(session: Session, variant: int) -> dict[int, float | None]:
    """Final losses of a variant's training runs."""
    return {run.seed: run.loss for run in session.training_runs if run.variant == variant}


def pareto(variants: Sequence[VariantSummary]) -> list[Settings]:
    """Settings of the variants that no other one beats in throughput, host memory and stalls together."""

    def costs(one: VariantSummary) -> tuple[float, ...]:
        faster = one.versus_baseline.get("throughput")
        stalls = one.jitter.stall_share if one.jitter and one.jitter.stall_share is not None else 0.0
        return (-(faster.ratio if faster else 1.0), float(one.peak_host_bytes or 0), stalls)

    def beaten(one: VariantSummary) -> bool:
        mine = costs(one)
        return any(
            costs(other) != mine and all(theirs <= own for theirs, own in zip(costs(other), mine, strict=True))
            for other in variants
        )

    return [one.settings for one in variants if not beaten(one)]


def _engaged(launches: Sequence[Launch]) -> Engaged | None:
    proofs = [launch.engaged for launch in launches if launch.engaged is not None]
    return next((proof for proof in proofs if not proof.ok), proofs[0] if proofs else None)


def _data_wait_fraction(blocks: Sequence[Block]) -> float | None:
    """Share of the steps, or of blocks without times of single steps, spent waiting for batches."""
    single = [block for block in blocks if block.step_ns]
    if single:
        return sum(sum(block.wait_ns) for block in single) / sum(sum(block.step_ns) for block in single)
    told = [block for block in blocks if block.waited_ns is not None]
    return sum(block.waited_ns or 0 for block in told) / sum(block.wall_ns for block in told) if told else None


def _quantiles(runs: Sequence[Sequence[int]], uneven: Jitter) -> Quantiles:
    """Of the steps; None for those that so few steps do not tell."""
    p50, p95, p99 = (
        float(value) for value in np.quantile(np.concatenate([np.asarray(run) for run in runs]), [0.5, 0.95, 0.99])
    )
    return Quantiles(p50=p50, p95=p95 if uneven.j95 is not None else None, p99=p99 if uneven.j99 is not None else None)


def _most(figures: object) -> int | None:
    return max((figure for figure in figures if figure is not None), default=None)  # type: ignore[attr-defined]
