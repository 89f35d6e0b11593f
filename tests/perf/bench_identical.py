"""G1 and G6 live: identical programs in fresh launches, half of the sessions beside a process that comes and goes."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from perftool.analysis.pairs import pair_effects
from perftool.analysis.stats import launch_effects
from perftool.analysis.verdict import comparison
from perftool.records import Comparison, Session
from tests.perf.table import Row, Table, share
from tests.perf.trials import IDENTICAL, UNITS, beside, measured

if TYPE_CHECKING:
    from perftool.analysis.stats import Rule

TITLE = "G1 and G6, live: identical programs called different"

SESSIONS = 10
PROGRAMS = 5
RULES: tuple[tuple[Rule, float], ...] = (("strict", 0.01), ("detect", 0.05))


def run(quick: bool) -> Table:
    sessions: dict[bool, list[Session]] = {False: [], True: []}
    walls_s = []
    for number in range(2 if quick else SESSIONS):
        stress = bool(number % 2)
        with beside(stress):
            one = measured(
                "compare", UNITS, "identical", "--scenario", str(IDENTICAL), "--seed", str(number), "--budget", "40"
            )
        sessions[stress].append(one.session)
        walls_s.append(one.wall_s)
    rows = []
    for rule, alpha in RULES:
        for stress, those in sessions.items():
            compared = [one for session in those for one in _all_pairs(session, rule, alpha)]
            different = sum(one.verdict in ("better", "worse") for one in compared)
            rows.append(
                Row(
                    [
                        f"{rule}, alpha {alpha}",
                        "beside a neighbour" if stress else "alone",
                        share(different, len(compared)),
                        share(sum(one.verdict == "same" for one in compared), len(compared)),
                        f"{100 * max((abs(one.ratio - 1) for one in compared), default=0):.1f} %",
                    ],
                    reached=different <= alpha * len(compared),
                )
            )
    return Table(
        ["rule", "machine", "pairs called different", "called same", "largest estimate"],
        rows,
        [
            f"{len(walls_s)} sessions of {PROGRAMS} identical programs, {sum(walls_s) / len(walls_s):.0f} s each; "
            "every pair of programs is compared, as a comparison of its own, so those of one session hang together. "
            "Few sessions: the simulated benchmark of the same rule has thousands."
        ],
    )


def _all_pairs(session: Session, rule: Rule, alpha: float) -> list[Comparison]:
    found = []
    for one, other in combinations(range(len(session.variants)), 2):
        matrix = pair_effects(session, "throughput", [other], against=one)
        effect = launch_effects(matrix.d, matrix.half_widths)[0]
        if effect is not None:
            found.append(comparison("throughput", effect, int(matrix.pairs.sum()), alpha=alpha, rule=rule))
    return found
