"""Load batches in worker processes, which stay alive between epochs and work ahead.

What it changes: `num_workers` processes read and collate batches, two ahead each, with `persistent_workers`.
When it helps: when reading a sample takes real work (decoding, augmentation, disk) that the training would
    wait for.
When it hurts: data that is in memory already: sending a batch between processes costs more than making it.
    The workers also take cores and memory from the training.
Source: https://docs.pytorch.org/docs/stable/data.html#multi-process-data-loading
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perftool.records import DATA_WAIT, Engaged
from perftool.scenario import Code, Context, Scenario

if TYPE_CHECKING:
    from perftool.training import Plan, Training

PREFETCH_FACTOR = 2
MOST = 16
WORKER_NAME = "pt_data_worker"  # torch/utils/data/_utils/worker.py; the workload may have children of its own


def default(_: Context) -> str:
    return "0"


def values(context: Context) -> Sequence[str]:
    cores = min(context.machine.usable_cores, MOST)
    return [str(number) for number in sorted({0, 1, 2, cores // 2, cores}) if number <= max(1, cores)]


def refusal(value: str, context: Context) -> str | None:
    if not value.isdecimal():
        return f"it takes a number of processes, not '{value}'"
    if int(value) and context.workload.batch_size is None:
        return "the tensors are fed whole, with no loader"
    facts = context.workload
    # One that already loads with workers has a dataset that shares its samples out among them.
    shares_out = facts.settings.get("dataloader_workers", "0") != "0"
    if int(value) and facts.dataset_kind == "iterable" and not shares_out:
        return "every worker would yield all samples of an iterable dataset, so each would come several times"
    return None


def discouraged(value: str, context: Context) -> str | None:
    cores = context.machine.usable_cores
    return f"there are only {cores} cores" if int(value) > cores else None


def cures(value: str, context: Context) -> Mapping[str, Sequence[str]]:
    """More workers than are in force, but none for data in memory: those cost more to send than to put together,
    unless a function of the user's does that."""
    if context.workload.is_gathered_from_memory:
        return {}
    more = [other for other in values(context) if int(other) > max(1, int(value))]
    return {DATA_WAIT: more}


def apply(plan: Plan, value: str) -> Plan:
    if value == "0":
        return plan
    workers = {"num_workers": int(value), "persistent_workers": True, "prefetch_factor": PREFETCH_FACTOR}
    return replace(plan, loader={**plan.loader, **workers})


def proof(training: Training, value: str) -> Engaged:
    """So many child processes bear the name of loader workers once each has delivered a batch."""
    import multiprocessing

    import psutil

    for _ in range(int(value) + 1):
        training.fetch()
    children = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    alive = sum(psutil.Process(pid).name() == WORKER_NAME for pid in children if psutil.pid_exists(pid))
    return Engaged(ok=alive == int(value), evidence=f"{alive} loader processes are alive")


def code(value: str, _: Context) -> Code:
    if value == "0":
        return Code()
    return Code(loader_arguments=f"num_workers={value}, persistent_workers=True, prefetch_factor={PREFETCH_FACTOR}")


scenario = Scenario(
    __name__,
    __doc__,
    default=default,
    values=values,
    refusal=refusal,
    apply=apply,
    proof=proof,
    code=code,
    cures=cures,
    discouraged=discouraged,
    typical_gain=1.5,
)
