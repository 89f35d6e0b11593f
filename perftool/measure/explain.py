"""One more launch of the baseline, that explains and gives no verdict on time: its steps are watched, and what they
would take at best on this machine and what its memory is taken by are measured."""

from __future__ import annotations

from perftool.measure import messages
from perftool.measure.aside import watched, watched_round
from perftool.measure.lab import Lab
from perftool.measure.launch import LaunchFailed
from perftool.measure.running import Running
from perftool.records import EXPLAIN

SHARE = 0.5  # of the budget of a profile
PLAIN_ROUNDS = 400  # of each of its launches: 12 s of short steps, or as many steps as tell a p99
ROUND_S = 0.3  # of watched steps, beside one plain block
STEPS_MOST = 20_000  # watched; each leaves some ten numbers
ROUNDS_LEAST = 5
ASIDE_S, ASIDE_BLOCKS = 30.0, 100  # the least and, in blocks, the usual most that a figure of its own may take


def explain(lab: Lab, seconds: float) -> None:
    """Watch the baseline for so long, in blocks, and learn its limits. Where that fails, a warning tells so; what came
    before is kept."""
    try:
        with watched(lab, EXPLAIN) as running:
            _watch(lab, running, seconds)
            _measure_aside(lab, running)
    except LaunchFailed as failed:
        lab.ledger.warn(f"not all could be explained: {failed.reason}")


def _watch(lab: Lab, running: Running, seconds: float) -> None:
    end_s = lab.elapsed_s + seconds
    calls = rounds = 0
    while rounds < ROUNDS_LEAST or (lab.elapsed_s < end_s and calls < STEPS_MOST):
        lab.tell(f"{EXPLAIN}: watching single steps", max(0.0, end_s - lab.elapsed_s))
        calls += len(watched_round(running, ROUND_S).step_ns)
        rounds += 1


def _measure_aside(lab: Lab, running: Running) -> None:
    """What the steps left in memory first, and what could end the process last."""
    limit_s = max(ASIDE_S, ASIDE_BLOCKS * running.block_s)
    lab.tell(f"{EXPLAIN}: weighing memory", 0.0)
    lab.ledger.enter(running.live.ask(messages.Weigh(), limit_s))
    lab.tell(f"{EXPLAIN}: measuring the machine's limits", 0.0)
    lab.ledger.enter(running.live.ask(messages.Limit(), limit_s))
    lab.tell(f"{EXPLAIN}: fitting the memory of larger batches", 0.0)
    lab.ledger.enter(running.live.ask(messages.Fit(), limit_s))
