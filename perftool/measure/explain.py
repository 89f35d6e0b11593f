"""One more launch of the baseline, that explains and gives no verdict on time: its steps are watched, and what they
would take at best on this machine and what its memory is taken by are measured."""

from __future__ import annotations

import psutil

from perftool.measure import messages
from perftool.measure.launch import LaunchFailed
from perftool.measure.rounds import Lab, Running
from perftool.records import EXPLAIN

SHARE = 0.5  # of the budget of a profile
ROUND_S = 0.3  # of watched steps, beside one plain block
STEPS_MOST = 20_000  # watched; each leaves some ten numbers
ROUNDS_LEAST = 5
LIMITS_S = 30.0  # usually one or two


def explain(lab: Lab, seconds: float) -> None:
    """Watch the baseline for so long, in blocks, and learn its limits. Where that fails, a warning tells so; what came
    before is kept."""
    try:
        with lab.watched(EXPLAIN) as running:
            _watch(lab, running, seconds)
            lab.tell(f"{EXPLAIN}: measuring the machine's limits", 0.0)
            limited = running.live.ask(messages.Limit(), LIMITS_S)
            assert isinstance(limited, messages.Limited)
            lab.learn(limits=limited.limits)
            _weigh(lab, running)
    except LaunchFailed as failed:
        lab.session.warnings.append(f"not all could be explained: {failed.reason}")


def _weigh(lab: Lab, running: Running) -> None:
    """Last of all: batches of other sizes go through the model."""
    lab.tell(f"{EXPLAIN}: weighing memory", 0.0)
    available_bytes = (running.live.held_bytes() or 0) + psutil.virtual_memory().available
    weighed = running.live.ask(messages.Weigh(available_bytes=available_bytes), max(LIMITS_S, 100 * running.block_s))
    assert isinstance(weighed, messages.Weighed)
    lab.learn(memory_parts=weighed.parts, batch_fit=weighed.fit)


def _watch(lab: Lab, running: Running, seconds: float) -> None:
    end_s = lab.elapsed_s + seconds
    steps = rounds = 0
    while rounds < ROUNDS_LEAST or (lab.elapsed_s < end_s and steps < STEPS_MOST):
        lab.tell(f"{EXPLAIN}: watching single steps", max(0.0, end_s - lab.elapsed_s))
        steps += len(lab.watched_round(running, ROUND_S).step_ns)
        rounds += 1
