"""G5: how far what `tune` recommends is from the best of all combinations, as a long exhaustive session finds it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, product
from math import exp, hypot, nan, prod
from pathlib import Path

import msgspec
import numpy as np

from perftool.analysis.pairs import Samples, pair_effects
from perftool.analysis.search import Standing
from perftool.analysis.stats import launch_effects
from perftool.measure.footprint import Footprint
from perftool.measure.lab import Lab
from perftool.measure.ledger import Ledger
from perftool.measure.rounds import generation
from perftool.measure.survey import new_session, open_lab, survey
from perftool.records import Machine, Recommendation, Session, Settings
from perftool.scenario import Context, discover
from perftool.store import measuring_lock
from tests.perf.table import Row, Table, share
from tests.perf.trials import measured

TITLE = "G5, live: what `tune` recommends against the best of 64 and more combinations"

REFERENCE, QUICK_REFERENCE = "scenarios.reference:medium", "scenarios.reference:small"
RUNS = 3
BUDGET_S = 60.0
WALL_LIMIT_S = 180.0
REGRET = 0.01
PRINTED_POINTS = 0.5

# In order of preference: what costs little to start and matters on a CPU first.
NAMES = ("optimizer_kernel", "batch_gather", "malloc_retention", "threads", "amp")
WITH_UNITS = ("matmul_precision",)  # does something only where the CPU has units for it
LAST = ("torch_compile", "dataloader_workers")  # slow to start, or long blocks
LEAST, MOST = 64, 128

ALL, NEAR = "all", "near the best"  # stages of the exhaustive session
TRUTH_WALL_S = 8 * 60.0
SHARE_FOR_ALL = 0.5  # of that time; the rest is for those near the best
ROUNDS_FOR_ALL, ROUNDS = 12, 60
NEAR_BEST = 0.05  # log-ratio
NEAR_MOST = 12
GENERATIONS_MOST = 8
DRIFT_LIMIT_S = 2.0
FRESH_S = 24 * 3600.0


class Truth(msgspec.Struct, frozen=True):
    """What the exhaustive session found of one combination, on the log scale of time per sample."""

    settings: Settings
    theta: float  # to the baseline; negative is faster
    se: float
    launches: int
    halves: tuple[float | None, float | None]  # the same, of every second launch: None where there is none

    @property
    def ratio(self) -> float:
        """Samples per second over the baseline's."""
        return exp(-self.theta)


BASELINE = Truth(settings={}, theta=0.0, se=0.0, launches=0, halves=(0.0, 0.0))


class Cached(msgspec.Struct, frozen=True):
    """A truth as it is kept for a day."""

    made_at_s: float  # seconds since 1970
    wall_s: float
    truths: list[Truth]


@dataclass(frozen=True)
class Judged:
    """One run of `tune` against the truth."""

    settings: Settings
    regret: float  # of throughput: 0.01 is one per cent less than the best
    split_regret: float | None
    printed: float | None
    truth: Truth
    wall_s: float

    @property
    def points_off(self) -> float:
        """Of the printed gain, in hundredths of the baseline's throughput; no advice prints a gain of 0."""
        return 100 * abs((self.printed or 1.0) - self.truth.ratio)


def run(quick: bool) -> Table:
    reference = QUICK_REFERENCE if quick else REFERENCE
    session, footprint = _session(reference)
    space = _space(session, quick)
    combinations = combinations_of(space, session.defaults)
    found = _truth(session, footprint, space, combinations, quick)
    only = [word for name in space for word in ("--only", name)]
    budget = str(BUDGET_S / 4 if quick else BUDGET_S)
    runs = []
    for seed in range(1 if quick else RUNS):
        tuned = measured("tune", reference, "--device", "cpu", "--budget", budget, "--seed", str(seed), *only)
        runs.append(judged(tuned.summary.recommendation, tuned.wall_s, found))
    return _table(space, combinations, found, runs)


def _session(reference: str) -> tuple[Session, Footprint]:
    described, footprint = survey(reference, "cpu", seed=0)
    session = new_session(
        described,
        discover(),
        command="compare",
        arguments=[],
        settings={},
        seed=64,
        budget_s=TRUTH_WALL_S,
    )
    return session, footprint


def _space(session: Session, quick: bool) -> dict[str, list[str]]:
    """Scenario to all its values here, the default among them: what `--only` lets `tune` choose from."""
    context = Context(machine=session.machine, workload=session.workload)
    scenarios = discover()
    names = ("optimizer_kernel", "batch_gather") if quick else (*NAMES, *_with_units(session.machine), *LAST)
    return fitting({name: scenarios[name].available(context) for name in names}, LEAST, MOST)


def _with_units(machine: Machine) -> Sequence[str]:
    return WITH_UNITS if machine.matrix_units else ()


# ----------------------------------------------------------------------------------------------------------- the truth


def _truth(
    session: Session,
    footprint: Footprint,
    space: Mapping[str, Sequence[str]],
    combinations: list[Settings],
    quick: bool,
) -> Cached:
    """From the cache where this machine has measured the same within a day."""
    path = cache_path(session.machine, session.workload.reference, space)
    kept = read_cache(path, time.time())
    if kept is not None:
        return kept
    began_s = time.monotonic()
    with measuring_lock(print):
        measured = _exhaust(session, footprint, combinations, 60.0 if quick else TRUTH_WALL_S)
    found = Cached(time.time(), time.monotonic() - began_s, truths_of(measured))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(found))
    return found


def _exhaust(session: Session, footprint: Footprint, combinations: Sequence[Settings], wall_s: float) -> Session:
    """Every combination and the baseline take turns, in as many generations as fit into their share of the time; then
    those near the best go on, in fresh launches with more rounds."""
    opened = open_lab(
        Ledger(session, lambda record: None),
        discover(),
        scenario_files=[],
        footprint=footprint,
        watcher=_Told(),
    )
    with opened as lab:
        everyone = [lab.variant(settings) for settings in combinations]
        _generations(lab, ALL, everyone, rounds=ROUNDS_FOR_ALL, end_s=SHARE_FOR_ALL * wall_s)
        near = near_best(truths_of(lab.session), NEAR_BEST, NEAR_MOST)
        _generations(lab, NEAR, [lab.variant(one.settings) for one in near], rounds=ROUNDS, end_s=wall_s)
        return lab.session


def _generations(lab: Lab, stage: str, variants: Sequence[int], *, rounds: int, end_s: float) -> None:
    """One generation, and further ones while another like the last would end in time."""
    for _ in range(GENERATIONS_MOST):
        began_s = lab.elapsed_s
        generation(
            lab,
            stage,
            variants,
            budget_s=lab.left_s,
            rounds=rounds,
            own_caches=False,
            drift_limit_s=DRIFT_LIMIT_S,
        )
        if lab.elapsed_s + (lab.elapsed_s - began_s) > end_s:
            return


class _Told:
    """Progress, a line a minute."""

    def __init__(self) -> None:
        self._said_s = -60.0

    def update(self, text: str, done_s: float, left_s: float) -> None:
        if done_s - self._said_s >= 60:
            self._said_s = done_s
            print(f"{done_s:.0f} s: {text}", flush=True)

    def show(self, standings: Sequence[Standing]) -> None:
        pass


def truths_of(session: Session) -> list[Truth]:
    """The effect of every combination that was measured, by paired log-ratios. Of those that went on only from the
    launches in which they did: what they were chosen by flatters them."""
    went_on = {launch.variant for launch in session.launches if launch.stage == NEAR and launch.status == "measured"}
    everyone = {launch.variant for launch in session.launches if launch.stage == ALL}
    samples = Samples(session)
    return sorted(
        [
            *_truths_in(session, samples, ALL, sorted(everyone - went_on - {0})),
            *_truths_in(session, samples, NEAR, sorted(went_on - {0})),
        ],
        key=lambda one: one.theta,
    )


def _truths_in(session: Session, samples: Samples, stage: str, variants: Sequence[int]) -> list[Truth]:
    matrix = pair_effects(session, "throughput", variants, stages=[stage], samples=samples)
    found = []
    for row, effect in enumerate(launch_effects(matrix.d, matrix.half_widths)):
        if effect is None:
            continue
        own = matrix.d[row][~np.isnan(matrix.d[row])]
        one, other = (float(half.mean()) if len(half) else None for half in (own[::2], own[1::2]))
        settings = session.variants[variants[row]]
        found.append(Truth(settings, effect.theta, effect.se, effect.launches, (one, other)))
    return found


def near_best(truths: Sequence[Truth], within: float, most: int) -> list[Truth]:
    """The fastest, and those that are not slower than it by more than `within` on the log scale, or than what twice the
    standard error of the difference hides."""
    best, *rest = sorted(truths, key=lambda one: one.theta)
    hidden = (one for one in rest if one.theta - best.theta <= max(within, 2 * hypot(best.se, one.se)))
    return [best, *hidden][:most]


# ----------------------------------------------------------------------------------------------------------- the space


def fitting(values: Mapping[str, Sequence[str]], least: int, most: int) -> dict[str, list[str]]:
    """Scenarios whose values make between so many combinations, the earlier ones rather than the later; where nothing
    does, those that make the most combinations below `most`. A scenario with a single value is left out."""
    varied = {name: list(those) for name, those in values.items() if len(those) > 1}
    fewer: dict[str, list[str]] = {}
    for taken in product([True, False], repeat=len(varied)):
        space = dict(compress(varied.items(), taken))
        if least <= size(space) <= most:
            return space
        if size(fewer) < size(space) < least:
            fewer = space
    return fewer


def size(space: Mapping[str, Sequence[str]]) -> int:
    """How many combinations it has."""
    return prod(map(len, space.values()))


def combinations_of(space: Mapping[str, Sequence[str]], defaults: Settings) -> list[Settings]:
    """All settings of the space but the baseline's, defaults left out as `tune` leaves them out."""
    every = (dict(zip(space, values, strict=True)) for values in product(*space.values()))
    settings = ({name: value for name, value in one.items() if value != defaults[name]} for one in every)
    return [dict(sorted(one.items())) for one in settings if one]


# ----------------------------------------------------------------------------------------------------------- the cache


def cache_path(machine: Machine, reference: str, space: Mapping[str, Sequence[str]]) -> Path:
    """Of what was measured on such a machine with such a torch, for this user."""
    key = [machine.cpu_model, machine.usable_cores, machine.memory_bytes, machine.torch_version, reference, space]
    digest = hashlib.sha256(msgspec.json.encode(key)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"perftool-benchmarks-{os.getuid()}" / f"best_of_64-{digest}.json"


def read_cache(path: Path, now_s: float) -> Cached | None:
    """What is kept there; None where there is nothing, or it is older than a day."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Cached)
    except (OSError, msgspec.DecodeError):
        return None
    return kept if 0 <= now_s - kept.made_at_s <= FRESH_S else None


# --------------------------------------------------------------------------------------------------------- the verdict


def judged(advised: Recommendation | None, wall_s: float, found: Cached) -> Judged:
    """What is recommended against the truth; unknown (NaN, which reaches nothing) where the exhaustive session could
    not measure it."""
    settings = advised.settings if advised else {}
    unknown = Truth(settings, nan, nan, 0, (None, None))
    truth = next((one for one in [BASELINE, *found.truths] if one.settings == settings), unknown)
    return Judged(
        settings=settings,
        regret=regret(truth, found.truths),
        split_regret=split_regret(truth, found.truths),
        printed=advised.speedup.ratio if advised else None,
        truth=truth,
        wall_s=wall_s,
    )


def regret(truth: Truth, truths: Sequence[Truth]) -> float:
    """Share of the best's throughput that is missed. The largest of many estimates is too large: too severe."""
    best = min([BASELINE, *truths], key=lambda one: one.theta)
    return 1 - exp(best.theta - truth.theta)


def split_regret(truth: Truth, truths: Sequence[Truth]) -> float | None:
    """The same with the best chosen by one half of the launches and both measured by the other, and the reverse: the
    choice does not flatter what was chosen, so this may be below 0. None where a half is missing."""
    near = [one for one in [BASELINE, *near_best(truths, NEAR_BEST, NEAR_MOST)] if None not in one.halves]
    if None in truth.halves or len(near) < 2:
        return None
    missed = []
    for chosen_by, measured_by in ((0, 1), (1, 0)):
        best = min(near, key=lambda one: one.halves[chosen_by] or 0.0)
        missed.append((best.halves[measured_by] or 0.0) - (truth.halves[measured_by] or 0.0))
    return 1 - exp(sum(missed) / 2)


def _table(
    space: Mapping[str, Sequence[str]], combinations: Sequence[Settings], found: Cached, runs: Sequence[Judged]
) -> Table:
    best = min(found.truths, key=lambda one: one.theta)
    rows = [
        Row(
            [
                _text(one.settings),
                f"{100 * one.regret:.1f} %",
                "-" if one.split_regret is None else f"{100 * one.split_regret:.1f} %",
                "-" if one.printed is None else f"{one.printed:.3f}",
                f"{one.truth.ratio:.3f} ± {one.truth.ratio * one.truth.se:.3f}",
                f"{one.points_off:.1f}",
                f"{one.wall_s:.0f} s",
            ],
            reached=one.regret <= REGRET and one.points_off <= PRINTED_POINTS and one.wall_s <= WALL_LIMIT_S,
        )
        for one in runs
    ]
    near = sum(one.regret <= REGRET for one in runs)
    true = sum(one.points_off <= PRINTED_POINTS for one in runs)
    slowest_s = max(one.wall_s for one in runs)
    rows.append(
        Row(
            [
                "all runs",
                f"at most {100 * REGRET:.0f} %: {share(near, len(runs))}",
                "-",
                "-",
                "-",
                f"at most {PRINTED_POINTS}: {share(true, len(runs))}",
                f"at most {slowest_s:.0f} s",
            ],
            reached=near >= 0.95 * len(runs) and true >= 0.95 * len(runs) and slowest_s <= WALL_LIMIT_S,
        )
    )
    count = len(combinations) + 1
    return Table(
        [
            "recommended",
            "regret",
            "regret, best by one half",
            "printed gain",
            "true gain ± standard error",
            "off by, points",
            "wall time",
        ],
        rows,
        [
            f"Target: regret at most {100 * REGRET:.0f} % of throughput in 95 % of runs, the printed gain off by at "
            f"most {PRINTED_POINTS} points, `--budget {BUDGET_S:.0f}` within {WALL_LIMIT_S:.0f} s. {count} combinations"
            + (f", fewer than {LEAST}," if count < LEAST else "")
            + f" of {', '.join(f'{name} ({len(values)})' for name, values in space.items())}; "
            f"{len(found.truths) + 1} could be measured.",
            f"The truth: every combination in turns with the baseline, {found.wall_s:.0f} s in all, those near the "
            f"best in up to {max(one.launches for one in found.truths)} further launches. The best is "
            f"{_text(best.settings)}, {best.ratio:.3f} ± {best.ratio * best.se:.3f}. It is chosen from many estimates, "
            "so that the first regret is too severe; the second lets one half of the launches choose and the other "
            "measure.",
        ],
    )


def _text(settings: Settings) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "nothing"
