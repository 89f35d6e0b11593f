"""Whether another training learns the same, and how soon, judged by how much seeds alone move the loss.

What changes numerics is compared with the same settings without it; what changes the optimisation, too, with what does
neither.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import exp, inf, isfinite, log
from statistics import mean

import numpy as np

from perftool.records import Estimate, LossParity, Session, Settings, TimeToLoss, TrainingRun

LEAST_SEEDS = 3
ALLOWED_SDS = 2.0
ALLOWED_SHARE = 1e-3  # of the loss, where seeds do not move it: a fixed start, or the whole data at every step
SMOOTHED_SHARE = 0.1  # of a run's steps, for the loss at any step
ALPHA = 0.05


def loss_parity(baseline: Mapping[int, float | None], variant: Mapping[int, float | None], *, steps: int) -> LossParity:
    """Losses by seed, paired: parity when the interval of their mean difference lies within two standard deviations of
    the baseline's own seeds, differs when it lies outside, else undecided. None is a loss that was not finite."""
    from scipy import stats

    seeds = sorted(set(baseline) & set(variant))
    if any(variant[seed] is None or not isfinite(variant[seed] or 0.0) for seed in seeds):
        return LossParity(
            verdict="differs", difference=None, low=None, high=None, allowed=None, seeds=len(seeds), steps=steps
        )
    usable = [seed for seed in seeds if baseline[seed] is not None]
    if len(usable) < LEAST_SEEDS:
        return LossParity(
            verdict="undecided", difference=None, low=None, high=None, allowed=None, seeds=len(usable), steps=steps
        )
    ours = np.array([variant[seed] for seed in usable], dtype=float)
    theirs = np.array([baseline[seed] for seed in usable], dtype=float)
    differences = ours - theirs
    difference = float(differences.mean())
    error = float(differences.std(ddof=1)) / len(usable) ** 0.5
    half = float(stats.t.ppf(1 - ALPHA / 2, len(usable) - 1)) * error
    allowed = max(ALLOWED_SDS * float(theirs.std(ddof=1)), ALLOWED_SHARE * abs(float(theirs.mean())))
    low, high = difference - half, difference + half
    if -allowed <= low and high <= allowed:
        verdict = "parity"
    elif low > allowed or high < -allowed:
        verdict = "differs"
    else:
        verdict = "undecided"
    return LossParity(
        verdict=verdict,  # type: ignore[arg-type]
        difference=difference,
        low=low,
        high=high,
        allowed=allowed,
        seeds=len(usable),
        steps=steps,
    )


# --------------------------------------------------------------------------------------------------- within a session


def settings_that(session: Session, kinds: Collection[str], settings: Settings) -> Settings:
    """Those of the settings that change "numerics" or the "optimisation", as asked."""
    return {name: value for name, value in settings.items() if session.scenario_changes.get(name) in kinds}


def without(session: Session, kinds: Collection[str], settings: Settings) -> Settings:
    """The settings but for those that change what is named."""
    return {name: value for name, value in settings.items() if session.scenario_changes.get(name) not in kinds}


def runs_of(session: Session, settings: Settings) -> dict[int, TrainingRun]:
    """A variant's trainings by seed."""
    number = session.variants.index(settings) if settings in session.variants else None
    return {run.seed: run for run in session.training_runs if run.variant == number}


def parity_of(session: Session, settings: Settings) -> LossParity | None:
    """Whether these settings train as they do without what changes numerics; None where they were not trained."""
    ours = runs_of(session, settings)
    theirs = runs_of(session, without(session, ["numerics"], settings))
    if not ours or not settings_that(session, ["numerics"], settings):
        return None
    steps = max(run.steps for run in ours.values())
    return loss_parity(_losses(theirs), _losses(ours), steps=steps)


def _losses(runs: Mapping[int, TrainingRun]) -> dict[int, float | None]:
    return {seed: run.loss for seed, run in runs.items()}


def time_to_loss(session: Session, settings: Settings, speedup: Estimate | None) -> TimeToLoss | None:
    """How long these settings take to the target loss, over what changes neither numerics nor the optimisation.

    speedup: in samples per second. The target is the workload's, or what the slowest of the reference's seeds reached.
    None where nothing was trained.
    """
    from scipy import stats

    found = _samples_to_loss(session, settings)
    if found is None or speedup is None:
        return None
    target, ratios = found
    logs = [one for one in ratios if isfinite(one)]
    unknown = TimeToLoss(ratio=None, low=None, high=None, target_loss=target, seeds=len(ratios), reached=len(logs))
    if len(logs) < LEAST_SEEDS or len(logs) < len(ratios):
        return unknown
    half = float(stats.t.ppf(1 - ALPHA / 2, len(logs) - 1)) * float(np.std(logs, ddof=1)) / len(logs) ** 0.5
    center = mean(logs) - log(speedup.ratio)
    # Both are uncertain, and independent.
    below = (half**2 + log(speedup.high / speedup.ratio) ** 2) ** 0.5
    above = (half**2 + log(speedup.ratio / speedup.low) ** 2) ** 0.5
    return TimeToLoss(
        ratio=exp(center),
        low=exp(center - below),
        high=exp(center + above),
        target_loss=target,
        seeds=len(ratios),
        reached=len(logs),
    )


def log_samples_ratio(session: Session, settings: Settings) -> float | None:
    """Log of the samples that settings need to the target loss over the reference's, mean over seeds; infinite where a
    seed did not get there; None where it is not known."""
    found = _samples_to_loss(session, settings)
    return None if found is None else mean(found[1])


def _samples_to_loss(session: Session, settings: Settings) -> tuple[float, list[float]] | None:
    """The target, and for each seed the log-ratio of the samples needed."""
    reference = runs_of(session, without(session, ["numerics", "optimisation"], settings))
    ours = runs_of(session, settings)
    seeds = [seed for seed in sorted(set(ours) & set(reference)) if ours[seed].losses and reference[seed].losses]
    final = [loss for seed in seeds if (loss := reference[seed].loss) is not None]
    if ours == reference or not final:
        return None
    target = session.workload.target_loss if session.workload.target_loss is not None else max(final)
    ratios = []
    for seed in seeds:
        needed, base = samples_until(ours[seed], target), samples_until(reference[seed], target)
        if base is not None:
            ratios.append(inf if needed is None else log(needed / base))
    return (target, ratios) if ratios else None


def samples_until(run: TrainingRun, target: float) -> float | None:
    """Samples fed until the mean of the last steps' losses was at the target; None where it never was.

    As many steps are averaged as for the run's final loss.
    """
    losses = np.array([np.nan if loss is None else loss for loss in run.losses], dtype=float)
    width = max(1, int(SMOOTHED_SHARE * len(losses)))
    if len(losses) < width or run.samples is None:
        return None
    means = np.convolve(losses, np.full(width, 1 / width), mode="valid")
    below = np.flatnonzero(means <= target * (1 + 1e-9) if target >= 0 else means <= target)
    return (int(below[0]) + width) * run.samples / len(losses) if len(below) else None
