"""One more launch of the baseline, whose steps are watched: it explains, and gives no verdict on time."""

from __future__ import annotations

from perftool.measure.launch import LaunchFailed
from perftool.measure.rounds import Lab
from perftool.records import EXPLAIN

SHARE = 0.5  # of the budget of a profile
ROUND_S = 0.3  # of watched steps, beside one plain block
STEPS_MOST = 20_000  # watched; each leaves some ten numbers
ROUNDS_LEAST = 5


def explain(lab: Lab, seconds: float) -> None:
    """Watch the baseline for so long, in blocks. Where that fails, a warning tells so; what came before is kept."""
    try:
        with lab.watched(EXPLAIN) as running:
            end_s = lab.elapsed_s + seconds
            steps = rounds = 0
            while rounds < ROUNDS_LEAST or (lab.elapsed_s < end_s and steps < STEPS_MOST):
                lab.tell(f"{EXPLAIN}: watching single steps", max(0.0, end_s - lab.elapsed_s))
                steps += len(lab.watched_round(running, ROUND_S).step_ns)
                rounds += 1
    except LaunchFailed as failed:
        lab.session.warnings.append(f"the steps could not be explained: {failed.reason}")
