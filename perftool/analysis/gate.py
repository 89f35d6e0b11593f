"""Whether a check found a regression: each metric against its own margin, and what differs confirmed.

A failure needs two sessions' worth of evidence: the interval of the first look clears the margin, and so does that of
fresh launches with twice the pairs. Pure: records in, records out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log
from pathlib import PurePath
from statistics import median

from perftool.analysis import baseline
from perftool.analysis.pairs import Samples, blocks_by_launch, launches_of, pair_effects, samples_per_second
from perftool.analysis.stats import Effect, launch_effects
from perftool.analysis.verdict import FULL_LOOK, HIGHER_IS_BETTER, comparison
from perftool.records import (
    CONFIRM,
    MEASURE,
    Check,
    Comparison,
    Counters,
    GateVerdict,
    HistoryEntry,
    MetricCheck,
    Outcome,
    Session,
    Side,
    WorkloadFacts,
)

ALPHAS = {MEASURE: 0.05, CONFIRM: 0.01}
"""Of the first look, which only asks for a second one, and of that. A failure needs both."""
TIMES_THE_PAIRS = 2  # of a confirmation


LIMIT = 4
"""Margins that a metric must surely not be worse by, to be no regression: what a busy machine can still tell."""


@dataclass(frozen=True)
class Gate:
    """How far a metric may go."""

    margin: float  # a regression is surely worse by this
    required: bool = True  # undecided, it leaves the check undecided


GATES = {
    "throughput": Gate(0.01),  # two launches of one program differ by one per cent
    "peak_host": Gate(0.02),  # allocators keep some pages more or less
    "peak_device": Gate(0.01),  # the caching allocator rounds
    "step_p95": Gate(0.05, required=False),  # a tail rests on a twentieth of the steps
    "jitter": Gate(0.05, required=False),  # p95/p50 rests on the same few steps
    "start_up": Gate(0.15, required=False),  # one sample a launch, of disk and processor that others share
}
COUNTED = ("flops_per_step", "operations_per_step", "parameters", "graph_breaks", "compiled_graphs")
"""Equal or not: no margin."""
ANYWHERE = ("parameters",)
"""Of these, what neither another kind of device nor another torch changes."""


def judged(session: Session) -> Check:
    """The check of a session, as far as it came."""
    against, now = session.sides
    then = session.expected
    metrics = [*_measured(session), *_counted(session)]
    modules = {one.variant: len(one.modules) for one in session.counters}
    failed = _failed(session)
    return Check(
        outcome="undecided" if failed is not None else _outcome(metrics),
        against=_side(against) if then is None else f"the baseline of {then.created_at[:10]}",
        now=_side(now),
        modules_against=modules.get(0, 0),
        modules_now=modules.get(1, 0),
        metrics=metrics,
        stored=then is not None,
        failed=failed,
        sample_unit=session.workload.sample_unit,
    )


def _failed(session: Session) -> str | None:
    """Why a side could not be measured to the end, where that was so."""
    return next(
        (
            f"{session.sides[one.variant].name}: {one.reason or one.status}"
            for one in session.launches
            if one.status != "measured"
        ),
        None,
    )


def is_check(session: Session) -> bool:
    """Whether there is something to judge by: another revision, or what was stored."""
    return bool(session.sides) and (session.expected is not None or session.sides[0].root is not None)


def decision(check: Check, *, strict: bool) -> Outcome:
    """What a check comes to for whoever acts on it. strict: an improvement that nobody explained fails, too."""
    improved = any(one.verdict == "improvement" for one in check.metrics)
    return "regression" if strict and improved else check.outcome


def first_look(session: Session) -> dict[str, Comparison]:
    """What the first look has found so far, by metric; for the two below."""
    return _compared(session, MEASURE)


def all_decided(look: Mapping[str, Comparison]) -> bool:
    """Whether the first look can be the last: what noise may leave open is waited for only where it leans worse."""
    return all(
        verdict(metric, found) != "undecided"
        for metric, found in look.items()
        if GATES[metric].required or _theta(metric, found.ratio) > log(1 + found.margin)
    )


def suspects(look: Mapping[str, Comparison]) -> list[str]:
    """The metrics that the first look calls changed: to be confirmed."""
    return [metric for metric, found in look.items() if verdict(metric, found) in _CHANGED]


def verdict(metric: str, found: Comparison) -> GateVerdict:
    """By the whole interval: worse by the margin, better by it, or surely not worse by LIMIT margins."""
    if found.launches < FULL_LOOK or found.low is None or found.high is None:
        return "undecided"
    best, worst = sorted((_theta(metric, found.low), _theta(metric, found.high)))
    m = log(1 + found.margin)
    if best >= m:
        return "regression"
    if worst <= -m:
        return "improvement"
    holds = worst <= log(1 + LIMIT * found.margin) and _theta(metric, found.ratio) < log(1 + LIMIT * found.margin / 2)
    return "no regression" if holds else "undecided"


def _theta(metric: str, ratio: float) -> float:
    """On a log scale on which more is worse."""
    sign = -1 if metric in HIGHER_IS_BETTER else 1
    return sign * log(ratio) if ratio > 0 else -sign * inf


_CHANGED: tuple[GateVerdict, ...] = ("regression", "improvement")


def history_entry(session: Session, check: Check) -> HistoryEntry | None:
    """The check as a point of a history; None where its throughput was not measured, or the check ended early."""
    against, now = session.sides
    if not all(_is_whole(one) for one in check.metrics if one.metric == "throughput"):
        return None
    found = {one.metric: one.confirmation or one.first for one in check.metrics}
    ratios = {metric: log(one.ratio) for metric, one in found.items() if one is not None and one.ratio > 0}
    if "throughput" not in ratios or against.commit is None:
        return None
    machine = session.machine
    return HistoryEntry(
        created_at=session.created_at,
        workload=_from_root(now, session.workload),
        against=against.commit,
        # Those of the pinned side, which `-s` alone changes: what the working tree's code changes is for the ratio.
        settings=against.settings,
        commit=now.commit or "",
        dirty=bool(now.dirty),
        machine=f"{machine.device_name or machine.cpu_model}, {machine.usable_cores} cores",
        outcome=check.outcome,
        log_ratios=ratios,
        sample_unit=check.sample_unit,
    )


def _is_whole(one: MetricCheck) -> bool:
    """Whether a look was reached, and the confirmation that it asked for."""
    if one.first is None or one.first.launches < FULL_LOOK:
        return False
    if one.confirmation is None:
        return verdict(one.metric, one.first) not in _CHANGED
    return _is_full(one.first, one.confirmation)


def _from_root(side: Side, workload: WorkloadFacts) -> str:
    """The workload's reference from the root of its repository, from wherever and however it was typed. A command stays
    as it is: what its words mean is its own."""
    place, _, attribute = side.reference.rpartition(":")
    is_file = place.endswith(".py") or os.sep in place
    if side.root is None or side.folder is None or not is_file or workload.driver == "script":
        return workload.reference
    inside = os.path.relpath(os.path.join(side.folder, place), side.root)
    return f"{PurePath(inside).as_posix()}:{attribute}"


def _measured(session: Session) -> list[MetricCheck]:
    first, second = (_compared(session, stage) for stage in (MEASURE, CONFIRM))
    then = session.expected
    figures = [_figures(session, variant) if then is None or variant else {} for variant in (0, 1)]
    unlike = baseline.unlike(then, session.machine) if then is not None else None
    return [
        MetricCheck(
            metric=metric,
            verdict=_both(metric, first.get(metric), second.get(metric)),
            required=gate.required,
            counted=False,
            against=figures[0].get(metric),
            now=figures[1].get(metric),
            first=first.get(metric),
            confirmation=second.get(metric),
            reason=unlike
            or (_why(metric, first[metric], second.get(metric)) if metric in first else _missing(session, metric)),
        )
        for metric, gate in GATES.items()
        if metric in first or _is_expected(session, metric)
    ]


def _is_expected(session: Session, metric: str) -> bool:
    """Whether a metric has to be there. A CPU has no memory of a device, and a stored baseline has few metrics."""
    if metric == "throughput":
        return True
    if session.expected is not None:
        return metric in session.expected.metrics
    return metric != "peak_device" or session.machine.device != baseline.ON_CPU


def _missing(session: Session, metric: str) -> str:
    """Why a metric was not measured."""
    if not session.blocks:
        return "it was not measured"
    if session.expected is not None:
        stored = session.expected.metrics.get(metric)
        launches = len(stored.log_values) if stored is not None else 0
        if launches < baseline.LEAST_LAUNCHES:
            return (
                f"the baseline has {launches} launches of it, and {baseline.LEAST_LAUNCHES} are the least; "
                "write it again with --write-baseline"
            )
    match metric:
        case "step_p95" | "jitter":
            return "there are no times of single steps, since several run in one call"
        case "peak_host" | "peak_device":
            return "a launch of each side has to tell its peak, and none did"
        case _:
            return "no launches of both sides were measured together"


def _compared(session: Session, stage: str) -> dict[str, Comparison]:
    if session.expected is not None:
        return baseline.compared(session, stage, ALPHAS[stage])
    samples = Samples(session)
    found = {}
    for metric in GATES:
        matrix = pair_effects(session, metric, [1], stages={stage}, samples=samples)
        effect = launch_effects(matrix.d, matrix.half_widths)[0]
        if effect is not None:
            pairs = int(matrix.pairs.sum())
            found[metric] = stage_comparison(metric, effect, pairs, stage)
    return found


def stage_comparison(metric: str, effect: Effect, pairs: int, stage: str) -> Comparison:
    """A metric of one stage. The first look is taken several times; the confirmation once, with all of its alpha."""
    return comparison(
        metric,
        effect,
        pairs,
        alpha=ALPHAS[stage],
        rule="strict",
        margin=GATES[metric].margin,
        single_look=stage == CONFIRM,
    )


def _is_full(first: Comparison, second: Comparison) -> bool:
    """Whether a confirmation has its launches. One that was cut short decides nothing."""
    return second.launches >= TIMES_THE_PAIRS * first.launches


def _both(metric: str, first: Comparison | None, second: Comparison | None) -> GateVerdict:
    """Of a look and its confirmation. What only the second one calls changed has failed once, not twice."""
    if first is None:
        return "not measured"
    one = verdict(metric, first)
    if second is None or not _is_full(first, second):
        return "undecided" if one in _CHANGED else one
    other = verdict(metric, second)
    return other if other == one or other not in _CHANGED else "undecided"


def _why(metric: str, first: Comparison, second: Comparison | None) -> str | None:
    """What the verdict alone does not tell."""
    one = verdict(metric, first)
    if second is None:
        return f"{one} at the first look, which was not confirmed in fresh launches" if one in _CHANGED else None
    if not _is_full(first, second):
        wanted = TIMES_THE_PAIRS * first.launches
        return (
            f"{one} at the first look, and the confirmation ended early, after {second.launches} of {wanted} launches"
        )
    other = verdict(metric, second)
    return None if other == one else f"{one} at the first look, {other} in fresh launches"


def _figures(session: Session, variant: int) -> dict[str, float]:
    """Absolute figures, to be read and not to be compared: medians over the launches."""
    blocks_of = blocks_by_launch(session)
    launches = [one for one in launches_of(session, variant, {MEASURE, CONFIRM}) if blocks_of.get(one.launch)]
    blocks = [block for one in launches for block in blocks_of[one.launch]]
    step_ns = sorted(time_ns for block in blocks for time_ns in block.step_ns)
    found: dict[str, float | None] = {
        "throughput": samples_per_second(session, blocks),
        "peak_host": _median(one.peak_host_bytes for one in launches),
        "peak_device": _median(one.peak_device_reserved_bytes for one in launches),
        "start_up": _median(one.start_up_ns for one in launches),
    }
    if step_ns:
        p50_ns, p95_ns = (step_ns[int(q * (len(step_ns) - 1))] for q in (0.5, 0.95))
        found |= {"step_p95": p95_ns, "jitter": p95_ns / p50_ns}
    return {name: value for name, value in found.items() if value is not None}


def _median(values: Iterator[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(median(known)) if known else None


def _counted(session: Session) -> list[MetricCheck]:
    sides: dict[int, Counters] = {one.variant: one for one in session.counters}
    uncountable = None
    if session.expected is not None and session.expected.counters is not None:
        sides[0] = session.expected.counters
        uncountable = baseline.uncountable(session.expected, session.machine)
    if not {0, 1} <= set(sides):
        return []
    found = []
    word: GateVerdict
    reason: str | None
    unseen: GateVerdict = "not measured"
    for name in COUNTED:
        against, now = (getattr(sides[variant], name) for variant in (0, 1))
        if uncountable is not None and name not in ANYWHERE:
            reason, word = uncountable, unseen
        elif against is None or now is None:
            reason = next((one.reason for one in (sides[0], sides[1]) if getattr(one, name) is None), None)
            word = unseen
        else:
            reason = None
            word = "regression" if now > against else "improvement" if now < against else "no regression"
        if against or now:  # what neither side has need not be told
            found.append(
                MetricCheck(
                    metric=name, verdict=word, required=False, counted=True, against=against, now=now, reason=reason
                )
            )
    return found


def _outcome(metrics: Sequence[MetricCheck]) -> Outcome:
    if any(one.verdict == "regression" for one in metrics):
        return "regression"
    return "undecided" if any(one.required and one.is_open for one in metrics) else "passed"


def _side(side: Side) -> str:
    commit = side.commit[:7] if side.commit else None
    if commit is None or side.name.startswith(commit):
        return side.name
    return f"{side.name} ({commit}{' with changes' if side.dirty else ''})"
