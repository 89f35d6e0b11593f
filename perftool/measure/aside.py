"""What is asked of launches of their own, beside all verdicts on time: counters, trainings that compare losses, and
steps that are watched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from perftool.measure import messages
from perftool.measure.lab import Lab
from perftool.measure.launch import LaunchFailed
from perftool.measure.running import Running, spawn
from perftool.measure.warmup import GIVE_UP_S
from perftool.records import COUNT, PARITY, Counters, MemorySample, Status, TrainingRun, WatchedBlock

WATCHED_MOST = 400  # calls of a watched block
COUNTED_CALLS = 20  # in which what compiles has compiled
COUNTED_LEAST = 2
COUNT_S = 60.0  # that these calls should not exceed; both sides make as many, so it is planned and not watched
COUNT_SLACK = 3.0  # what counts makes two more steps, slow ones, and the first steps may not have been typical


def count(lab: Lab, variant: int, calls: int | None = None) -> Counters:
    """What a step of a variant does by counting, entered into the ledger.

    calls: to make before; by default as many as COUNT_S has room for.
    Raises LaunchFailed.
    """
    step_s = (lab.session.first_step_ns or 0) / 1e9
    if calls is None:
        calls = COUNTED_CALLS if not step_s else max(COUNTED_LEAST, min(COUNTED_CALLS, int(COUNT_S / step_s)))
    limit_s = lab.start_limit_s + COUNT_SLACK * calls * step_s
    running = spawn(lab, COUNT, variant, own_caches=False)
    try:
        lab.tell(f"{COUNT}: what a step does")
        running.start()
        found = running.live.ask(messages.Count(variant=variant, calls=calls), limit_s)
    finally:
        running.live.close()
    lab.ledger.enter(found)
    lab.edits.note(variant, found.modules)
    return found


def train_runs(lab: Lab, variants: Sequence[int], seeds: Sequence[int], steps: int, limit_s: float) -> None:
    """Train each variant from each seed, one process per variant, and enter the losses into the ledger.

    limit_s: of one training. A training that fails leaves its variant without that loss, and a warning.
    """
    for variant in variants:
        running = spawn(lab, PARITY, variant, own_caches=False)
        try:
            for index, seed in enumerate(seeds):
                lab.tell(f"comparing losses: seed {index + 1} of {len(seeds)}")
                trained = running.live.ask(messages.Train(seed=seed, steps=steps), limit_s)
                lab.ledger.enter(
                    TrainingRun(
                        variant=variant,
                        seed=seed,
                        steps=steps,
                        loss=trained.loss,
                        samples=trained.samples,
                        losses=trained.losses,
                    )
                )
        except LaunchFailed as failed:
            lab.ledger.warn(f"the loss could not be compared: {failed.reason}")
        finally:
            running.live.close()


@contextmanager
def watched(lab: Lab, stage: str) -> Iterator[Running]:
    """A launch of the baseline that can be watched, warmed up; what it did is kept whatever happens in the block.

    Raises LaunchFailed where it does not come so far.
    """
    running = spawn(lab, stage, 0, own_caches=True, watched=True)
    status: Status = "failed"
    reason: str | None = "it did not come to its first step"
    try:
        lab.tell(f"{stage}: starting")
        running.start()
        running.warm_up(GIVE_UP_S)
        status, reason = "measured", None
        yield running
    except LaunchFailed as failed:
        if status == "failed":
            reason = failed.reason
        raise
    finally:
        running.keep(status, reason)
        lab.next_generation += 1


def watched_round(running: Running, seconds: float) -> WatchedBlock:
    """A plain block and a watched one of about so many seconds, in a drawn order, entered into the ledger."""
    lab = running.lab
    if lab.random.sample((False, True), 2)[0]:
        found, plain = _watch(running, seconds), running.block(position=0)
    else:
        plain, found = running.block(position=0), _watch(running, seconds)
    lab.next_round += 1
    lab.ledger.enter(plain, found)
    held_bytes = running.live.held_bytes()
    if held_bytes is not None:
        lab.ledger.enter(
            MemorySample(
                launch=running.number,
                steps=(found.first_call + len(found.step_ns)) * running.steps_per_call,
                host_bytes=held_bytes,
                device_allocated_bytes=found.device_allocated_bytes,
            )
        )
    return found


def _watch(running: Running, seconds: float) -> WatchedBlock:
    lab = running.lab
    steps = max(1, min(WATCHED_MOST, round(seconds / running.call_s)))
    request = messages.Watch(round=lab.next_round, drop=running.drop, steps=steps)
    with lab.spending():
        return running.live.ask(request, max(lab.start_limit_s, 20 * seconds))
