"""Findings: what a profile says is wrong, each with its evidence, its share, and the settings that may cure it.

Each rule is one function from the evidence to a finding, or to None. A rule does not know scenarios: it names what it
found, and a scenario says which findings it cures; only cures that can be had here and are not in force are told.
Thresholds are shares of the step where nothing else is said; those of data wait are TF Profiler's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from perftool import units
from perftool.analysis.roofline import FASTER_FROM, FULL, Mode, peaks_of
from perftool.analysis.slow_steps import watched
from perftool.records import (
    BACKWARD,
    COLLECTIONS,
    COMPILATION,
    COPY,
    DATA_WAIT,
    DENORMALS,
    DOUBLE_PRECISION,
    FAULT_CHURN,
    FAULTS,
    FORWARD,
    FRAGMENTATION,
    FULL_PRECISION,
    GARBAGE,
    HOST_SYNCS,
    LAUNCH_BOUND,
    LEAK,
    LOADER,
    NO_CORE,
    OPTIMIZER,
    RAGGED_BATCH,
    RECOMPILING,
    RETRIES,
    RETRY,
    ROW_BY_ROW,
    RUN_QUEUE,
    SLOW_COPY,
    SLOW_OPTIMIZER,
    SLOW_TYPE,
    SLOWED,
    SLOWER_CORE,
    STEAL,
    STOLEN,
    THROTTLED,
    WAIT,
    WHOLE,
    WORKER_RESTARTS,
    WORKER_START,
    Distance,
    Explained,
    Finding,
    MemoryReport,
    Session,
    StepWork,
    WatchedBlock,
)

WAIT_SHARE = 0.05  # TF Profiler: moderately input-bound from 5 %, highly from 20 %
COPY_SHARE = 0.05
OPTIMIZER_SHARE = 0.10
CHURN_BYTES_PER_STEP, CHURN_SHARE = 4_000_000, 0.05
CORE_SHARE = 0.05
LOST_SHARE = 0.02  # of all time, in slow steps of one cause
ARITHMETIC_SHARE = 0.3  # of the step, that its matmuls would take at the measured peak
MATMUL_SHARE = 0.5  # of the FLOPs, from which the mode of matmuls decides
SLOW_TYPE_SHARE = 0.05  # of the step, that its products would take less in float32
DENORMAL_SHARE = 0.001  # of the parameters
FRAGMENTED_SHARE = 0.2  # of what is reserved
THROTTLED_SHARE = 0.05  # of the blocks
SHORT_TYPES = ("bfloat16", "float16")
OF_THE_MACHINE = (NO_CORE, STOLEN, SLOWED, THROTTLED)


@dataclass(frozen=True)
class Evidence:
    """What rules look at."""

    session: Session
    explained: Explained
    memory: MemoryReport | None = None
    distance: Distance | None = None

    def phase(self, name: str) -> float:
        """Share of the step; 0 where there is no such phase."""
        return next((one.share for one in self.explained.phases if one.name == name), 0.0)

    @property
    def wait_ns_per_sample(self) -> float | None:
        """What fetching takes; None where no samples were counted."""
        block = self.session.watched_blocks[0]
        steps = len(block.step_ns) * block.steps_per_call
        return self.phase(WAIT) * self.explained.median_ns * steps / block.samples if block.samples else None

    def lost(self, cause: str) -> float:
        """Share of all time that slow steps of a cause lost."""
        return next((one.share_of_time for one in self.explained.causes if one.cause == cause), 0.0)

    def usual(self, cause: str) -> float:
        """What a cause takes of the median step, slow or not."""
        return self._usual_ns.get(cause, 0.0) / self.explained.median_ns

    @property
    def waits_for_device(self) -> bool:
        """What the host does beside is no part of the step then."""
        return self.explained.bound_by == "device"

    @cached_property
    def _usual_ns(self) -> Mapping[str, float]:
        causes = watched(self.session.watched_blocks).causes
        return {name: float(np.median(values)) for name, values in causes.items()}

    @cached_property
    def faulted_bytes(self) -> float:
        """Memory that a median step has the kernel map and clear."""
        blocks = self.session.watched_blocks
        bytes_ = [block.page_bytes * count / block.steps_per_call for block in blocks for count in block.minor_faults]
        return float(np.median(bytes_)) if bytes_ else 0.0

    @property
    def work(self) -> StepWork | None:
        """What a step has to do, where that was counted."""
        return None if self.session.limits is None else self.session.limits.work

    @cached_property
    def peaks(self) -> Mapping[Mode, float]:
        """What the machine does at best in each mode, in FLOP/s; empty where it was not measured."""
        return {} if self.session.limits is None else peaks_of(self.session.limits.ceilings)

    def arithmetic_share(self, compute_s: float) -> float | None:
        """Of the step, what arithmetic takes at the least; None where the step's time is not known."""
        return None if self.distance is None else min(1.0, compute_s * 1e9 / self.distance.step_ns)

    def slow(self, cause: str) -> str:
        """The slow steps of a cause in words."""
        found = next(one for one in self.explained.causes if one.cause == cause)
        often = f", {found.period}" if found.period else ""
        return (
            f"{units.counted(found.steps, 'slow step')} of {units.count(self.explained.steps)}{often}, "
            f"the worst {units.duration(found.worst_ns)} where the median is {units.duration(self.explained.median_ns)}"
        )


Rule = Callable[[Evidence], Finding | None]


def findings(
    session: Session,
    explained: Explained | None,
    memory: MemoryReport | None = None,
    distance: Distance | None = None,
) -> list[Finding]:
    """All that the rules find: the training's own first, then the machine's, each with the largest share first."""
    if explained is None:
        return []
    evidence = Evidence(session, explained, memory, distance)
    found = [finding for rule in RULES if (finding := rule(evidence)) is not None]
    return sorted(found, key=lambda one: (one.name in OF_THE_MACHINE, -(one.share or 0.0)))


def _found(evidence: Evidence, name: str, share: float | None, text: str, otherwise: str = "") -> Finding:
    """A finding with its cures; what helps `otherwise` is told where no setting does."""
    cures = evidence.session.cures.get(name, [])
    remedy = f"; {otherwise}" if otherwise and not cures else ""
    return Finding(name=name, share=share, evidence=text + remedy, try_=" or ".join(cures) or None)


def row_by_row(evidence: Evidence) -> Finding | None:
    share, facts = evidence.phase(WAIT), evidence.session.workload
    if share < WAIT_SHARE or facts.dataset_kind != "tensors" or ROW_BY_ROW not in evidence.session.cures:
        return None
    return _found(
        evidence,
        ROW_BY_ROW,
        share,
        f"the data are in memory, and fetching a batch takes {units.share(share)} of the step, "
        f"{units.duration(evidence.wait_ns_per_sample)} per sample, since each row is taken by itself",
    )


def data_wait(evidence: Evidence) -> Finding | None:
    share = evidence.phase(WAIT)
    if share < WAIT_SHARE or row_by_row(evidence) is not None:
        return None
    often = f"; {evidence.slow(LOADER)}" if evidence.lost(LOADER) else ""
    each = ""
    if not evidence.session.watched_blocks[0].loader_workers and evidence.wait_ns_per_sample is not None:
        each = f", {units.duration(evidence.wait_ns_per_sample)} per sample"
    return _found(
        evidence,
        DATA_WAIT,
        share,
        f"{units.share(share)} of the step the training waits for its next batch{each}{often}",
        _faster_data(evidence),
    )


def _faster_data(evidence: Evidence) -> str:
    if evidence.session.workload.is_gathered_from_memory:
        return "the data are in memory, and loader workers would only add to it; use a larger batch"
    return "make what the dataset does for each sample faster, or do it once and keep the result"


def worker_restarts(evidence: Evidence) -> Finding | None:
    share = evidence.lost(WORKER_START)
    if share < LOST_SHARE:
        return None
    text = evidence.slow(WORKER_START)
    return _found(evidence, WORKER_RESTARTS, share, text, "give the DataLoader persistent_workers=True")


def slow_copy(evidence: Evidence) -> Finding | None:
    share = evidence.phase(COPY)
    if share < COPY_SHARE:
        return None
    text = f"copying batches to the device takes {units.share(share)} of the step"
    return _found(evidence, SLOW_COPY, share, text, "keep the data on the device where it fits")


def slow_optimizer(evidence: Evidence) -> Finding | None:
    """Only where a faster kernel is to be had: an optimizer that is merely big is no fault."""
    share = evidence.phase(OPTIMIZER)
    if share < OPTIMIZER_SHARE or SLOW_OPTIMIZER not in evidence.session.cures:
        return None
    name = evidence.session.workload.optimizer
    text = f"{name}.step() takes {units.share(share)} of the step, and there is a faster kernel for it"
    return _found(evidence, SLOW_OPTIMIZER, share, text)


def fault_churn(evidence: Evidence) -> Finding | None:
    share, size = evidence.usual(FAULTS), evidence.faulted_bytes
    if size < CHURN_BYTES_PER_STEP or share < CHURN_SHARE or evidence.waits_for_device:
        return None
    return _found(
        evidence,
        FAULT_CHURN,
        share,
        f"each step the kernel maps and clears {units.size(size)} anew, about {units.share(share)} of its time: memory "
        "that one step frees is given back, and asked for again by the next",
    )


def faults_now_and_then(evidence: Evidence) -> Finding | None:
    share = evidence.lost(FAULTS)
    if share < LOST_SHARE or fault_churn(evidence) is not None:
        return None
    return _found(evidence, FAULT_CHURN, share, f"page faults made {evidence.slow(FAULTS)}")


def no_core(evidence: Evidence) -> Finding | None:
    share = min(1.0, evidence.usual(RUN_QUEUE) + evidence.lost(RUN_QUEUE))
    if share < CORE_SHARE or evidence.waits_for_device:
        return None
    blocks, cores = evidence.session.watched_blocks, evidence.session.machine.usable_cores
    workers = max(block.loader_workers for block in blocks)
    threads = max(block.threads or evidence.session.machine.torch_threads for block in blocks)
    ranks = max((len(block.rank_steps) for block in evidence.session.blocks), default=1)
    if any(block.throttled_periods for block in blocks):
        whose, remedy = "a cgroup's CPU quota stops it now and then", "raise the quota, or use fewer threads"
    elif ranks > 1 and ranks * (threads + workers + 1) > cores:  # each has a thread that meets the others
        whose = f"its {ranks} ranks have {units.counted(cores, 'core')} together"
        remedy = "use fewer threads or ranks, or a machine with more cores"
    elif threads + workers > cores:
        beside = f" and {units.counted(workers, 'loader worker')}" if workers else ""
        whose = f"its {units.counted(threads, 'thread')}{beside} have {units.counted(cores, 'core')}"
        remedy = "use fewer threads or loader workers"
    else:
        whose = "other programs run on its cores: it is not the training's fault"
        remedy = "end them, or train elsewhere"
    text = f"{units.share(share)} of the time a thread is ready and has no core; {whose}"
    return _found(evidence, NO_CORE, share, text, remedy)


def stolen(evidence: Evidence) -> Finding | None:
    share = evidence.lost(STEAL)
    if share < CORE_SHARE:
        return None
    text = f"the host of this virtual machine took its cores away: {evidence.slow(STEAL)}"
    return _found(evidence, STOLEN, share, text, "use a dedicated machine; it is not the training's fault")


def slowed(evidence: Evidence) -> Finding | None:
    share = evidence.lost(SLOWER_CORE)
    if share < CORE_SHARE:
        return None
    text = (
        "at times the same work takes longer on its core, since its clock was lowered or another's work runs on the "
        f"same physical core: {evidence.slow(SLOWER_CORE)}"
    )
    return _found(evidence, SLOWED, share, text, "use a dedicated machine; it is not the training's fault")


def collections(evidence: Evidence) -> Finding | None:
    share = evidence.lost(GARBAGE) + evidence.usual(GARBAGE)
    if share < LOST_SHARE:
        return None
    told = []
    if evidence.usual(GARBAGE) >= LOST_SHARE:
        told.append(f"takes {units.share(evidence.usual(GARBAGE))} of each step")
    if evidence.lost(GARBAGE):
        told.append(f"made {evidence.slow(GARBAGE)}")
    text = f"Python's garbage collector {'; it '.join(told) or f'takes {units.share(share)} of the time'}"
    return _found(evidence, COLLECTIONS, share, text, "make fewer objects that refer to each other in circles")


def recompiling(evidence: Evidence) -> Finding | None:
    share = evidence.lost(COMPILATION)
    if not share or ragged_batch(evidence) is not None:
        return None
    text = f"code was compiled again while training: {evidence.slow(COMPILATION)}"
    return _found(
        evidence,
        RECOMPILING,
        share,
        text,
        "keep the shapes of batches the same (drop_last=True), or compile with dynamic=True",
    )


def ragged_batch(evidence: Evidence) -> Finding | None:
    """Only where code was compiled again, and no more often than a block had batches that were not full: elsewhere a
    shorter last batch costs nothing. Any share counts. Source: the guide to recompilation of torch.compiler."""
    work, share, facts = evidence.work, evidence.lost(COMPILATION), evidence.session.workload
    if not share or work is None or not work.samples or facts.dataset_rows is None or facts.drop_last:
        return None
    rest = facts.dataset_rows % work.samples
    if not rest or not all(_short_batches_explain(one, work.samples, rest) for one in evidence.session.watched_blocks):
        return None
    text = (
        f"code was compiled again where the last batch of an epoch has {units.count(rest)} of the usual "
        f"{units.counted(work.samples, 'sample')}: {evidence.slow(COMPILATION)}"
    )
    return _found(evidence, RAGGED_BATCH, share, text, "leave it out (drop_last=True), or compile with dynamic=True")


def _short_batches_explain(block: WatchedBlock, full: int, rest: int) -> bool:
    """Whether so many of the block's batches had `rest` samples instead of `full` as it had calls that compiled."""
    missing = len(block.step_ns) * block.steps_per_call * full - block.samples
    compiled = sum(time_ns > 0 for time_ns in block.cause_ns.get(COMPILATION, ()))
    return compiled * (full - rest) <= missing


def retries(evidence: Evidence) -> Finding | None:
    share = evidence.lost(RETRY)
    if not share:
        return None
    text = f"the device's memory was full or in pieces, and its allocator had to start over: {evidence.slow(RETRY)}"
    return _found(evidence, RETRIES, share, text, "use a smaller batch")


def launch_bound(evidence: Evidence) -> Finding | None:
    if evidence.explained.bound_by != "launches":
        return None
    text = (
        "the device waits for the host, which takes as long to issue a step as the step takes, or waits in between "
        "for a result (.item(), printing a loss)"
    )
    return _found(evidence, LAUNCH_BOUND, None, text, "use a larger batch")


def host_syncs(evidence: Evidence) -> Finding | None:
    """Waiting costs nothing while the device has work queued; a step that it decides is never of that kind."""
    told = [block.syncs for block in evidence.session.watched_blocks if block.syncs is not None]
    typical = float(np.median(told)) if told else 0.0
    if typical < 1 or evidence.explained.bound_by == "device":
        return None
    text = f"in each step the host waits {units.counted(typical, 'time')} for the device to catch up"
    remedy = "read losses and metrics every so many steps only, and do without .item(), .cpu() and nonzero() in between"
    return _found(evidence, HOST_SYNCS, None, text, remedy)


def full_precision(evidence: Evidence) -> Finding | None:
    """Only where matmuls in float32 decide the step, and this machine was seen to be faster at something shorter.

    Convolutions do not count: on a GPU they run in TF32 by themselves.
    """
    if evidence.distance is None or FULL_PRECISION not in evidence.session.cures:
        return None
    own, *faster = evidence.distance.bounds
    share = sum(evidence.phase(name) for name in (FORWARD, BACKWARD, WHOLE))
    is_full = own.as_it_runs and own.dtypes == ["float32"] and own.precision == "highest"
    work = evidence.distance.work
    if work.matmul_flops is None or work.matmul_flops <= MATMUL_SHARE * work.flops:
        return None
    if not faster or not is_full or own.bound_by != "compute" or own.mfu < ARITHMETIC_SHARE:
        return None
    if own.times_above < 1:  # the peaks were measured too low to compare with
        return None
    full, reduced = (units.flop_rate(one) for one in (evidence.peaks.get(FULL), faster[0].flops_per_second))
    text = (
        f"its matmuls run in float32 in full precision, where this machine does {full}; in "
        f"{', '.join(faster[0].dtypes)} it does {reduced}"
    )
    return _found(evidence, FULL_PRECISION, share, text)


def slow_type(evidence: Evidence) -> Finding | None:
    """A short type that this machine emulates. The share is what float32 in full precision would save by the measured
    peaks; those must differ by as much as for any faster mode. Source: oneDNN, data types and where they are native."""
    full = evidence.peaks.get(FULL)
    if evidence.work is None or full is None:
        return None
    slower = {
        dtype: (flops, evidence.peaks[dtype, None])
        for dtype, flops in evidence.work.flops_by_dtype.items()
        if dtype in SHORT_TYPES and evidence.peaks.get((dtype, None), full) * FASTER_FROM < full
    }
    share = evidence.arithmetic_share(sum(flops / peak - flops / full for flops, peak in slower.values()))
    if share is None or share < SLOW_TYPE_SHARE:
        return None
    rates = " and ".join(f"{units.flop_rate(peak)} in {dtype}" for dtype, (_, peak) in slower.items())
    text = f"it multiplies in a type that this machine is slow at: it does {rates}, and {units.flop_rate(full)} in "
    return _found(evidence, SLOW_TYPE, share, f"{text}float32", "compute in float32")


def double_precision(evidence: Evidence) -> Finding | None:
    """Any product in float64, which is seldom meant: as fast as float32 on a few GPUs, a 64th of it on most. Source:
    CUDA C++ programming guide, throughput of native arithmetic instructions."""
    work = evidence.work
    flops = 0 if work is None else work.flops_by_dtype.get("float64", 0)
    if work is None or not flops:
        return None
    peak, full = evidence.peaks.get(("float64", None)), evidence.peaks.get(FULL)
    share = evidence.arithmetic_share(flops / peak) if peak else None
    text = f"{units.share(flops / work.flops)} of its arithmetic is in float64"
    if peak and full:
        text += f", where this machine does {units.flop_rate(peak)}; in float32 it does {units.flop_rate(full)}"
    remedy = "cast data and parameters to float32; what comes from NumPy is float64 unless told otherwise"
    return _found(evidence, DOUBLE_PRECISION, share, text, remedy)


def denormals(evidence: Evidence) -> Finding | None:
    facts = evidence.session.workload
    found = facts.denormal_values or 0
    if evidence.session.machine.device != "cpu" or not found or found < DENORMAL_SHARE * facts.parameter_count:
        return None
    whose = "the parameters" if facts.driver == "script" else "the first batch and the parameters"
    text = f"{units.counted(found, 'number')} of {whose} are too small for full precision, and slow to compute with"
    return _found(evidence, DENORMALS, None, text)


def throttled(evidence: Evidence) -> Finding | None:
    told = [block.throttled for block in evidence.session.watched_blocks if block.throttled is not None]
    share = sum(told) / len(told) if told else 0.0
    if share < THROTTLED_SHARE:
        return None
    text = f"heat or the power limit held the device's clock down in {units.share(share)} of the blocks"
    return _found(evidence, THROTTLED, share, text, "cool it, or raise its power limit; compare no runs of such hours")


def leak(evidence: Evidence) -> Finding | None:
    grown = () if evidence.memory is None else (evidence.memory.host_growth, evidence.memory.device_growth)
    found = next((one for one in grown if one is not None and one.verdict == "leak"), None)
    if found is None:
        return None
    pace = units.size_change(found.bytes_per_step, found.low, found.high)
    text = (
        f"memory grows by {pace}, to the end: {units.size(found.grown_bytes)} in {units.counted(found.steps, 'step')}"
    )
    return _found(
        evidence, LEAK, None, text, "look for what is kept of each step, such as losses that were not detached"
    )


def fragmentation(evidence: Evidence) -> Finding | None:
    parts = evidence.session.memory_parts
    split_bytes = None if parts is None else parts.device_inactive_split_bytes
    reserved_bytes = None if parts is None else parts.device_reserved_bytes
    retried = any(RETRY in block.counts for block in evidence.session.watched_blocks)
    if not retried or not split_bytes or not reserved_bytes or split_bytes / reserved_bytes < FRAGMENTED_SHARE:
        return None
    text = f"{units.size(split_bytes)} of the device memory that torch holds are free but in pieces"
    return _found(evidence, FRAGMENTATION, split_bytes / reserved_bytes, text)


RULES: Sequence[Rule] = (
    leak,
    fragmentation,
    row_by_row,
    data_wait,
    worker_restarts,
    slow_copy,
    slow_optimizer,
    fault_churn,
    faults_now_and_then,
    no_core,
    stolen,
    slowed,
    collections,
    recompiling,
    ragged_batch,
    retries,
    launch_bound,
    host_syncs,
    full_precision,
    slow_type,
    double_precision,
    denormals,
    throttled,
)
