"""Generation after generation of the same variants, until the verdicts are there or the budget is spent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from perftool.analysis.verdict import FULL_LOOK, LOOKS
from perftool.measure.lab import Lab
from perftool.measure.rounds import generation
from perftool.measure.warmup import GIVE_UP_S
from perftool.records import Session

GENERATION_ROUNDS = 60
NOISY_ROUNDS = 240  # where so many do not tell a launch's median as well as launches agree


def nobody(_: int) -> Mapping[int, str]:
    return {}


def measure_repeatedly(
    lab: Lab,
    stage: str,
    variants: Sequence[int],
    *,
    budget_s: float,
    decided: Callable[[], bool],
    rounds: int = GENERATION_ROUNDS,
    guests: Callable[[int], Mapping[int, str]] = nobody,
    first_look: int = min(LOOKS),
    counted: Collection[str] = (),
    drift_limit_s: float = GIVE_UP_S,
    stretch_s: float = 0.0,
    planned: Callable[[int], int] | None = None,
) -> int:
    """Measure the variants and the baseline in fresh launches. Returns the number of generations.

    The budget is spread over as many generations as are planned; what is left then buys further ones. Only at a look,
    and never between, may `decided` end it: looking more often would raise the false alarms. Generations of these
    variants that the session holds already count.
    rounds: of a generation, at most; NOISY_ROUNDS where those do not tell enough.
    guests: further variants of the generation after so many, with the stage that they are there for.
    first_look: one of LOOKS; the earlier ones are left out.
    counted: stages whose generations count beside those of `stage`.
    drift_limit_s: as of `generation`.
    stretch_s: as of `generation`, of those before the first look.
    planned: how many the budget is spread over, asked before each with how many are done; by default FULL_LOOK, or the
        first look if that is later.
    """
    end_s = lab.spent_s + min(budget_s, lab.left_s)
    looks = sorted(look for look in LOOKS if look >= first_look)
    usual = max(FULL_LOOK, looks[0])
    done = _generations(lab.session, {stage, *counted}, variants)
    for look in looks:
        while done < look:
            plan = usual if planned is None else planned(done)
            to_come = max(look, plan) - done
            if done >= plan and not _affords_another(lab, end_s, done, budget_s):
                lab.planned_s = None
                return done
            beside = guests(done)
            before_s = lab.spent_s
            lab.launches_to_come = to_come * (1 + len(variants) + len(beside))
            generation(
                lab,
                stage,
                variants,
                budget_s=max(0.0, end_s - lab.spent_s) / to_come,
                rounds=rounds,
                noisy_rounds=NOISY_ROUNDS,
                guests=beside,
                drift_limit_s=drift_limit_s,
                stretch_s=stretch_s if done < min(LOOKS) else 0.0,
            )
            done += 1
            if lab.is_over:
                return done
            # Rounds end a generation before the budget does where blocks are short. After the last nothing is known.
            lab.planned_s = (lab.spent_s - before_s) * (to_come - 1) if to_come > 1 else None
        if decided() or all(variant in lab.lost for variant in variants):
            return done
    return done


def _generations(session: Session, stages: Collection[str], variants: Sequence[int]) -> int:
    wanted = set(variants) or {0}
    return len({one.generation for one in session.launches if one.stage in stages and one.variant in wanted})


def _affords_another(lab: Lab, end_s: float, done: int, budget_s: float) -> bool:
    """Whether what is left is worth the start-up of another generation."""
    return end_s - lab.spent_s > 0.5 * budget_s / (done + 1)
