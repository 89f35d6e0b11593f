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

from perftool.plan import SettingError
from perftool.scenario import NO_LOADER, Code, Context, Scenario
from perftool.words import DATA_WAIT, FETCH, Engaged, Proving

if TYPE_CHECKING:
    from perftool.plan import Live, Plan

PREFETCH_FACTOR = 2
MOST = 16
NO_WORKERS = {  # nor what a script asks of those that it has
    "num_workers": 0,
    "persistent_workers": False,
    "prefetch_factor": None,
    "multiprocessing_context": None,
    "timeout": 0,
}


def default(context: Context) -> str:
    return str(context.workload.loader_options.get("num_workers", 0))


def values(context: Context) -> Sequence[str]:
    cores = min(context.machine.usable_cores, MOST)
    own = int(default(context))
    tried = {0, 2, cores // 2, own} if context.on_cuda else {0, 1, 2, cores // 2, cores, own}
    return [str(number) for number in sorted(tried) if number <= max(1, cores, own)]


def refusal(value: str, context: Context) -> str | None:
    if not value.isdecimal():
        return f"it takes a number of processes, not '{value}'"
    if value != default(context) and context.workload.dataset_kind == "own":
        return NO_LOADER
    if int(value) and context.workload.batch_size is None:
        return "the tensors are fed whole, with no loader"
    if int(value) and context.workload.dataset_on_device:
        return "the dataset is on the GPU, which worker processes cannot read it from"
    facts = context.workload
    # One that already loads with workers has a dataset that shares its samples out among them.
    shares_out = facts.settings.get("dataloader_workers", default(context)) != "0"
    if int(value) and facts.dataset_kind == "iterable" and not shares_out:
        return "every worker would yield all samples of an iterable dataset, so each would come several times"
    return None


def discouraged(value: str, context: Context) -> str | None:
    cores = context.machine.usable_cores
    return f"there are only {cores} cores" if int(value) > cores and value != default(context) else None


def cures(value: str, context: Context) -> Mapping[str, Sequence[str]]:
    """More workers than are in force, but none for data in memory: those cost more to send than to put together,
    unless a function of the user's does that."""
    if context.workload.is_gathered_from_memory:
        return {}
    more = [other for other in values(context) if int(other) > max(1, int(value))]
    return {DATA_WAIT: more}


def apply(plan: Plan, value: str) -> Plan:
    if plan.workload is None and plan.epoch is not None and int(value):
        raise SettingError("the script's batches are gathered in its own process then (batch_gather)")
    workers = {"num_workers": int(value), "persistent_workers": True, "prefetch_factor": PREFETCH_FACTOR}
    return replace(plan, loader={**plan.loader, **(workers if int(value) else NO_WORKERS)})


def proof(training: Live, value: str) -> Proving:
    """So many processes of a loader are alive once each has delivered a batch. A script may have several loaders."""
    import gc

    from torch.utils.data import dataloader

    for _ in range(int(value) + 1):
        yield FETCH
    loading = [one for one in gc.get_objects() if type(one) is dataloader._MultiProcessingDataLoaderIter]
    alive = [number for one in loading if (number := sum(worker.is_alive() for worker in one._workers))]
    told = " and ".join(map(str, alive)) or "no"
    return Engaged(ok=(int(value) in alive) if int(value) else not alive, evidence=f"{told} loader processes are alive")


def code(value: str, context: Context) -> Code:
    if value == default(context):
        return Code()
    if value == "0":
        return Code(loader_arguments="num_workers=0, persistent_workers=False, prefetch_factor=None")
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
