"""The sentences and table cells of a check: against a revision, against what was stored, and over its history."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import TYPE_CHECKING

from perftool import units
from perftool.analysis.gate import ALPHAS
from perftool.analysis.history import LEAST_POINTS
from perftool.records import CONFIRM, MEASURE, Check, GateVerdict, MetricCheck, Summary
from perftool.report import profiles
from perftool.report.wording import (
    Pairs,
    basis,
    comparison_text,
    detectable,
    metric_name,
    settings_text,
    throughput_of,
)

if TYPE_CHECKING:
    from perftool.analysis.history import Change, Series

HEADINGS = ("metric", "now", "margin", "verdict")
FIGURE_HEADINGS = ("metric", "before", "now", "ratio", "margin", "verdict")
RULE = (
    "Regression: the whole interval is worse by the margin, and again in twice as many fresh launches. No "
    "regression: surely not worse by four margins. Counted figures are equal or not. Tails and start-up are seen too "
    "coarsely to leave a check undecided."
)


def answer(check: Check) -> str:
    """What a check came to: "regression against main (4c1d2e3): samples/s 0.952x (0.946 to 0.958)"."""

    def told(verdict: GateVerdict) -> str:
        found = [one for one in check.metrics if one.verdict == verdict]
        return ", ".join(f"{_name(one, check)} {_now(one, check)}" for one in found)

    improved = told("improvement")
    also = f"; better, is that meant? {improved}" if improved else ""
    if check.failed is not None:
        return f"not measured to the end against {check.against}: {check.failed}"
    match check.outcome:
        case "regression":
            return f"regression against {check.against}: {told('regression')}"
        case "undecided":
            names = [_name(one, check) for one in check.metrics if one.required and one.is_open]
            return f"undecided against {check.against}: {', '.join(names)}{also}"
        case _:
            return f"no regression against {check.against}{also}"


def rows(check: Check) -> list[tuple[str, str, str, str]]:
    """Every metric of a check, under HEADINGS."""
    return [(_name(one, check), _now(one, check), _margin(one), one.verdict) for one in check.metrics]


def figure_rows(check: Check) -> list[tuple[str, str, str, str, str, str]]:
    """The same with absolute figures, under FIGURE_HEADINGS. They are to be read, not to be compared."""
    return [
        (
            _name(one, check),
            _figure(one, one.against, check),
            _figure(one, one.now, check),
            _now(one, check) if not one.counted else "",
            _margin(one),
            one.verdict,
        )
        for one in check.metrics
    ]


def notes(check: Check) -> Pairs:
    """Why some metrics have no verdict, or another than at first."""
    return [(_name(one, check), one.reason) for one in check.metrics if one.reason is not None]


def how(check: Check) -> list[str]:
    """On what the verdicts rest."""
    throughput = next((one for one in check.metrics if one.metric == "throughput"), None)
    if throughput is None or throughput.first is None:
        return []
    again = throughput.confirmation
    rests_on = basis([throughput.first])
    if check.stored:
        launches = units.counted(throughput.first.launches, "launch", "launches")
        rests_on = f"{launches} now and those that were stored"
    told = [f"{units.share(1 - ALPHAS[MEASURE])} intervals, from {rests_on}."]
    if again is not None:
        from_these = units.counted(again.launches, "launch", "launches") if check.stored else basis([again])
        told.append(f"What differed was confirmed with {units.share(1 - ALPHAS[CONFIRM])}, from {from_these}.")
    last = again or throughput.first
    if last.smallest_detectable is not None:
        told.append(f"In {_name(throughput, check)} {detectable(last.smallest_detectable)}.")
    if check.outcome == "undecided":
        told.append("Undecided: raise --budget, or check again when the machine does less else.")
    return told


def _name(one: MetricCheck, check: Check) -> str:
    return metric_name(one.metric, check.sample_unit)


def _now(one: MetricCheck, check: Check) -> str:
    found = one.confirmation or one.first
    if found is not None:
        return comparison_text(found)
    if one.counted and one.against is not None and one.now is not None:
        same = one.against == one.now
        return (
            _figure(one, one.now, check)
            if same
            else f"{_figure(one, one.against, check)} to " + _figure(one, one.now, check)
        )
    return units.UNKNOWN


def _margin(one: MetricCheck) -> str:
    found = one.confirmation or one.first
    if one.counted:
        return "equal"
    return units.share(found.margin) if found is not None else ""


def _figure(one: MetricCheck, value: float | None, check: Check) -> str:
    match one.metric:
        case "throughput":
            return units.rate(value, check.sample_unit)
        case "step_p95" | "start_up":
            return units.duration(value)
        case "peak_host" | "peak_device":
            return units.size(value)
        case "jitter":
            return units.ratio(value)
        case "flops_per_step":
            return units.flops(value)
        case _:
            return units.count(value)


# ------------------------------------------------------------------------------------------------ for a later check


def for_later_how(summary: Summary) -> list[str]:
    """What there is to store, of how many launches, and how it is to be compared."""
    found = [one for one in map(throughput_of, summary.variants) if one is not None]
    if not found:
        return []
    return [
        "Stored are the time per sample relative to the calibration kernels', the peak memory and what a step does by "
        f"counting, from {basis(found)}.",
        "A later check (--baseline) compares its own with these: times and memory only on a machine of the same kind, "
        "and only large changes can be told, since two hours are not paired.",
    ]


def for_later_lines(summary: Summary) -> Pairs:
    """The workload's own figures."""
    told = [line for one in summary.variants for line in profiles.figure_lines(one, summary.sample_unit)]
    return [line for line in told if line[0] != "settings"]


# ------------------------------------------------------------------------------------------------------ the history


def history_headline(series: Series, found: Sequence[Change]) -> str:
    """What a series of checks shows, in a sentence."""
    told = [f"{change_text(one)} on {series.entries[one.index].created_at[:10]}" for one in found]
    few = len(series.entries) < LEAST_POINTS
    seen = "; ".join(told) or (
        f"too few to look for changes of level, which takes {LEAST_POINTS}" if few else "no change of level"
    )
    settings = f" with {settings_text(series.settings)}" if series.settings else ""
    name = metric_name(series.metric, series.entries[0].sample_unit)
    return (
        f"{series.workload}{settings} against {series.against[:7]} on {series.machine}, {name}, "
        f"{units.counted(len(series.entries), 'check')}: {seen}"
    )


def change_text(change: Change) -> str:
    """ "a new level, -4.6 %"."""
    return f"a new level, {units.percent(change.ratio - 1)}"


def history_rows(series: Series) -> list[tuple[str, str, str]]:
    """When, which commit, and the ratio to the pinned revision."""
    return [
        (
            one.created_at[:16].replace("T", " "),
            one.commit[:7] + ("+" if one.dirty else ""),
            units.ratio(exp(one.log_ratios[series.metric])),
        )
        for one in series.entries
    ]
