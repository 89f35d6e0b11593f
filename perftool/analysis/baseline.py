"""Expectations that were stored at another hour: what a session says beside calibration kernels, and how it compares.

Pure. Two sessions are not paired, so what differs between hours counts as noise: only large changes can be told.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, log, sqrt
from statistics import fmean, stdev

import numpy as np

from perftool import units
from perftool.analysis.pairs import launches_of, pair_effects
from perftool.analysis.verdict import HIGHER_IS_BETTER
from perftool.records import Comparison, Machine, Session, StoredBaseline, StoredMetric, known

LEAST_LAUNCHES = 5  # of which each stored value comes
MARGINS = {"throughput": 0.08, "peak_host": 0.03, "peak_device": 0.01}
BETWEEN_SESSIONS_SD = {"throughput": 0.06, "peak_host": 0.01, "peak_device": 0.005}
"""Log scale; what the launches of one hour do not show. On a shared server, series of sessions of one training were 2
to 6 % apart (`python -m tests.perf stored`)."""
POWER = 0.8
WIDEST = 3.0  # times that launches may differ to be stored
ON_CPU = "cpu"  # as a fingerprint calls it; any other device is a GPU, by its name


def figures(session: Session, stages: set[str] | None = None) -> dict[str, list[float]]:
    """One log figure per launch of the workload (variant 1): its time per sample over a calibration step's, and its
    peaks of memory in bytes."""
    matrix = pair_effects(session, "throughput", [1], stages=stages)
    launches = launches_of(session, 1, stages)
    return {
        name: values
        for name, values in (
            ("throughput", [float(d) for d in matrix.d[0] if not np.isnan(d)]),
            ("peak_host", _logs(one.peak_host_bytes for one in launches)),
            ("peak_device", _logs(one.peak_device_reserved_bytes for one in launches)),
        )
        if values
    }


def stored(session: Session) -> StoredBaseline | None:
    """What a session says for later; None where nothing could be compared with that, as `unstorable` tells."""
    if unstorable(session) is not None:
        return None
    side, found = session.sides[1], figures(session)
    return StoredBaseline(
        workload=session.workload.reference,
        settings=side.settings,
        created_at=session.created_at,
        commit=side.commit,
        dirty=side.dirty,
        machine=fingerprint(session.machine),
        metrics={name: StoredMetric(log_values=values, margin=MARGINS[name]) for name, values in found.items()},
        counters=next((one for one in session.counters if one.variant == 1), None),
    )


def unstorable(session: Session) -> str | None:
    """Why a later check could not be compared with what this session says; None where it can."""
    times = figures(session).get("throughput", [])
    if len(times) < LEAST_LAUNCHES:
        return f"only {len(times)} of at least {LEAST_LAUNCHES} launches could be measured"
    spread = exp(max(times) - min(times))
    if spread > WIDEST:
        return (
            f"its launches differ {units.decimal(spread)}-fold, so nothing could be compared with them; end other "
            "programs, or raise --budget"
        )
    return None


def fingerprint(machine: Machine) -> dict[str, str]:
    """What has to be the same for times and memory to be comparable."""
    return {
        "processor": machine.cpu_model,
        "cores": str(machine.usable_cores),
        "device": machine.device_name or machine.device,
        "torch": machine.torch_version,
        "threads": str(machine.torch_threads),
    }


def unlike(baseline: StoredBaseline, machine: Machine) -> str | None:
    """Why this machine's times say nothing beside the stored ones; None where they do."""
    here = fingerprint(machine)
    differing = [
        f"{name} {then}, here {here.get(name)}" for name, then in baseline.machine.items() if then != here.get(name)
    ]
    return f"stored on another machine ({'; '.join(differing)})" if differing else None


def uncountable(baseline: StoredBaseline, machine: Machine) -> str | None:
    """Why the work counted here says nothing beside the stored; None where it does. Parameters always do.

    The same step is other operations on another kind of device (optimizers loop on a CPU, and take all tensors at once
    on a GPU) and in another torch. So is its arithmetic: torch knows that of some kernels only, neither of a CPU's
    attention nor of a fused LSTM, and which these are changes between its versions.
    """
    then, here = baseline.machine, fingerprint(machine)
    if "torch" in then and then["torch"] != here["torch"]:
        return f"counted by torch {then['torch']}, here {here['torch']}: that alone changes what is counted"
    if "device" in then and ON_CPU in (then["device"], here["device"]) and then["device"] != here["device"]:
        return f"counted on {then['device']}, here on {here['device']}: each kind of device has its own operations"
    return None


def compared(session: Session, stage: str, alpha: float) -> dict[str, Comparison]:
    """The figures of a stage against the stored ones. The interval is that of one more session of the stored kind."""
    baseline = session.expected
    if baseline is None or unlike(baseline, session.machine) is not None:
        return {}
    now = figures(session, {stage})
    return {
        name: _compared(name, baseline.metrics[name], values, alpha)
        for name, values in now.items()
        if name in baseline.metrics and len(baseline.metrics[name].log_values) >= LEAST_LAUNCHES
    }


def _compared(name: str, then: StoredMetric, now: list[float], alpha: float) -> Comparison:
    from scipy import stats

    count = len(then.log_values)
    sd = max(stdev(then.log_values), BETWEEN_SESSIONS_SD[name])
    theta = fmean(now) - fmean(then.log_values)
    se = sd * sqrt(1 + 1 / count)
    critical = float(stats.t.ppf(1 - alpha / 2, count - 1))
    sign = -1 if name in HIGHER_IS_BETTER else 1
    low, high = sorted(exp(sign * (theta + side * critical * se)) for side in (-1, 1))
    detectable = log(1 + then.margin) + (critical + float(stats.t.ppf(POWER, count - 1))) * se
    return Comparison(
        ratio=exp(sign * theta),
        low=known(low),
        high=known(high),
        margin=then.margin,
        verdict="undecided",  # the gate has its own words
        pairs=0,
        launches=len(now),
        smallest_detectable=exp(detectable) - 1,
    )


def _logs(sizes: Iterable[int | None]) -> list[float]:
    return [log(size) for size in sizes if size]
