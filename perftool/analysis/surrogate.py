"""What is known of every combination of settings from the few that were measured: a Gaussian process over settings.

The log effect of a combination is a sum of what each setting does, of what each pair of settings does beyond that, and
of a rest of its own; the baseline's is 0. Measurements of one generation share the error of its baseline's launch.
Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), 2.2; Wilson et al., Efficiently sampling
functions from Gaussian process posteriors (2020), for the draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perftool.records import Settings

Floats = NDArray[np.float64]

# Standard deviations before anything is measured, of the log of the objective.
SETTING_SD = 0.3
PAIR_SD = 0.1  # autocast alone shrinks the step so that what saved a tenth of it saves a quarter
REST_SD = 0.01

LAUNCH_SD_FACTORS = (0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
LAUNCH_SD_SPREAD = 0.7  # of the log of that factor, before anything is measured
LEAST_FOR_LAUNCH_SD = 4


@dataclass(frozen=True)
class Observation:
    """One launch of a combination against the baseline's launch of the same generation: a log-ratio, less is better."""

    settings: Settings
    generation: int
    log_ratio: float
    sd: float  # of the median within the launches; that between launches comes on top


@dataclass(frozen=True)
class Posterior:
    """Of the log effect of each combination: mean, standard deviation, and joint draws (draws, combinations)."""

    combinations: tuple[Settings, ...]
    mean: Floats
    sd: Floats
    draws: Floats


def likely_launch_sd(observations: Sequence[Observation], expected: float) -> float:
    """The standard deviation between launches of one program that makes the observations likeliest, log scale.

    expected: what it usually is; a machine that shares its cores with others may have many times as much.
    """
    if len(observations) < LEAST_FOR_LAUNCH_SD:
        return expected
    columns = _columns([one.settings for one in observations])
    seen = _features([one.settings for one in observations], columns)
    values = np.array([one.log_ratio for one in observations])
    keys = [key_of(one.settings) for one in observations]
    rest = REST_SD**2 * np.array([[float(one == other) for other in keys] for one in keys])

    def log_likelihood(launch_sd: float) -> float:
        factor = np.linalg.cholesky(seen @ seen.T + rest + _error(observations, launch_sd))
        whitened = np.linalg.solve(factor, values)
        prior = (np.log(launch_sd / expected) / LAUNCH_SD_SPREAD) ** 2 / 2
        return float(-np.sum(np.log(np.diag(factor))) - whitened @ whitened / 2 - prior)

    return max((expected * factor for factor in LAUNCH_SD_FACTORS), key=log_likelihood)


def _error(observations: Sequence[Observation], launch_sd: float) -> Floats:
    """Covariance of the observations' errors: the launch of each variant, and that of the baseline, which all of a
    generation share."""
    generations = np.array([one.generation for one in observations])
    shared = launch_sd**2 * (generations[:, None] == generations[None, :])
    covariance: Floats = shared + np.diag([launch_sd**2 + one.sd**2 for one in observations])
    return covariance


def posterior(
    combinations: Sequence[Settings],
    observations: Sequence[Observation],
    *,
    launch_sd: float,
    draws: int = 256,
    seed: int = 0,
) -> Posterior:
    """What the observations say of these combinations. `launch_sd`: between launches of one program, log scale."""
    generator = np.random.default_rng(seed)
    columns = _columns([*combinations, *(one.settings for one in observations)])
    wanted = _features(combinations, columns)
    seen = _features([one.settings for one in observations], columns)
    keys = [key_of(one) for one in combinations]
    seen_keys = [key_of(one.settings) for one in observations]
    distinct = list(dict.fromkeys([*keys, *seen_keys]))
    place = {key: index for index, key in enumerate(distinct)}
    rest_of = np.array([place[key] for key in keys], dtype=int)
    rest_seen = np.array([place[key] for key in seen_keys], dtype=int)

    weights = generator.normal(size=(draws, wanted.shape[1])) if draws else np.empty((0, wanted.shape[1]))
    rests = REST_SD * generator.normal(size=(draws, len(distinct)))
    rests[:, [index for key, index in place.items() if not key]] = 0.0
    prior = weights @ wanted.T + rests[:, rest_of]
    if not observations:
        variance = np.sum(wanted**2, axis=1) + np.where([bool(key) for key in keys], REST_SD**2, 0.0)
        return Posterior(tuple(combinations), np.zeros(len(keys)), np.sqrt(variance), prior)

    def covariance(one: Floats, one_rest: NDArray[np.int_], other: Floats, other_rest: NDArray[np.int_]) -> Floats:
        same = (one_rest[:, None] == other_rest[None, :]) & np.array([bool(distinct[at]) for at in one_rest])[:, None]
        shared: Floats = one @ other.T + REST_SD**2 * same
        return shared

    error = _error(observations, launch_sd)
    factor = np.linalg.cholesky(covariance(seen, rest_seen, seen, rest_seen) + error)
    cross = covariance(wanted, rest_of, seen, rest_seen)
    whitened = np.linalg.solve(factor, cross.T)  # (observations, combinations)
    values = np.array([one.log_ratio for one in observations])
    mean = np.asarray(whitened.T @ np.linalg.solve(factor, values), dtype=float)
    variance = np.sum(wanted**2, axis=1) + np.where([bool(key) for key in keys], REST_SD**2, 0.0)
    sd: Floats = np.sqrt(np.maximum(variance - np.sum(whitened**2, axis=0), 0.0))
    # Each draw of the prior, moved by what the measurements would have to say of its errors.
    noise = generator.normal(size=(draws, len(values))) @ np.linalg.cholesky(error).T
    missed = values - (weights @ seen.T + rests[:, rest_seen] + noise)
    moved: Floats = prior + np.linalg.solve(factor, missed.T).T @ whitened
    return Posterior(tuple(combinations), mean, sd, moved)


def key_of(settings: Settings) -> tuple[tuple[str, str], ...]:
    """The same for the same settings, whatever their order."""
    return tuple(sorted(settings.items()))


def _columns(combinations: Sequence[Settings]) -> dict[tuple[str, str], int]:
    changes = sorted({change for settings in combinations for change in settings.items()})
    return {change: index for index, change in enumerate(changes)}


def _features(combinations: Sequence[Settings], columns: dict[tuple[str, str], int]) -> Floats:
    """One column per setting and per pair of settings, scaled so that the prior of each coefficient is standard."""
    count = len(columns)
    alone = np.zeros((len(combinations), count))
    for row, settings in enumerate(combinations):
        for change in settings.items():
            alone[row, columns[change]] = 1.0
    first, second = np.triu_indices(count, k=1)
    pairs = alone[:, first] * alone[:, second]
    return np.hstack([SETTING_SD * alone, PAIR_SD * pairs])
