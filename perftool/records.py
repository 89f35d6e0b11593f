"""Frozen records of everything that is measured and decided, and their JSON form.

Two documents leave this module: a `Session` (raw, what one command measured) and a `Summary` (what follows from it).
Numbers carry their unit in the name; what may be unknown is `None`, never NaN or Infinity. Reading tolerates fields of
a newer minor version; a newer major version is refused.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar

import msgspec

from perftool.words import *  # noqa: F403 (by their old names: scenarios of users' own import them from here)
from perftool.words import Engaged, Settings

SCHEMA_VERSION = "1.9"
# History of the schema, newest last. A new optional field raises the minor number, anything else the major one.
# 1.0  first version
# 1.1  goals of a search, losses of training runs, time to loss, unsteady comparisons, how batches are drawn and where
#      Python finds the workload, the lines to change, several steps per call, further facts of workload and machine
# 1.2  watched blocks: phases and causes of slow steps, findings, memory, limits, fitness of the machine,
#      sessions of a trace
# 1.3  whether a recommendation changes numerics; sessions of a check, with their sides and counters; its history
# 1.4  of watched steps: when each began, how fast the core was then, the threads, what a cgroup stopped, and whether
#      the host was ahead of the device; FLOPs of convolutions and the mode they run in; cores that others keep busy,
#      heat, and what the device was doing, in the fitness of the machine
# 1.5  the settings of a check in its history, and its workload from the root of the repository; whether a check was
#      made against what was stored, and why it could not be made to the end
# 1.6  of a workload: whether a script of the user's own drives it, what it does already, and that it may make its
#      batches without a DataLoader; what a rate counts; of a script: its loop beside its steps, its ranks, and the
#      patch of its files, and which of its loaders train; sessions of a run that was recorded; of recommended settings,
#      which are options of the command, and for which device and loaders they are
# 1.7  the price of a setting, what seems better and is not sure, and what is needed for a limit; sparse gradients
# 1.8  launches that shared a process; what measuring took, and what of; how much of a first step waits for its batch
# 1.9  of a workload: what its modules are; of a block: the clock of the device; seconds on end, and their energy

Command = Literal["tune", "compare", "profile", "trace", "check", "run"]
Driver = Literal["workload", "script"]
Status = Literal["measured", "skipped", "failed"]
VerdictWord = Literal["better", "worse", "same", "undecided"]
OptionKind = Literal["option", "flag", "variable", "argument"]  # of a script's own; see `perftool.target.Vary`
DatasetKind = Literal["tensors", "map", "iterable", "own"]  # own: a script makes its batches, with no DataLoader
BatchForm = Literal["tensor", "list", "tuple", "dict", "nested"]
WarmupClass = Literal["flat", "warm-up", "slowdown", "no steady state"]
SampleUnit = Literal["sample", "step"]  # that samples are counted in: steps, where nobody says what a step learns from

MEASURE, COUNT = "measure", "count"
"""Stages of a comparison, and of launches that only count."""
ALONE, TOGETHER, TRIM, CONFIRM = "alone", "together", "trim", "confirm"
LEAVE_ONE_OUT, PATCHED, PARITY = "leave one out", "patched", "loss parity"
"""Stages of a search. `TOGETHER` and `TRIM` are followed by the number of the pass."""
FRESH = (CONFIRM, LEAVE_ONE_OUT)
"""Stages of a search that had no part in the choice."""
CONFIRMING = (*FRESH, PATCHED)
"""Stages whose launches take turns with the winner's."""
EXPLAIN = "explain"
"""The stage whose launch is watched: its blocks explain, and count for no verdict."""

Objective = Literal["throughput", "step-time", "jitter", "memory", "time-to-loss"]

METRICS = ("throughput", "step_p50", "step_p95", "jitter", "stall_share", "peak_host", "peak_device")
"""The metrics a variant is compared by. In all but throughput, less is better."""


class SchemaError(ValueError):
    """A document that cannot be read as what it should be; the text says why."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records: immutable, keyword-only."""


def known(number: float | None) -> float | None:
    """The number, or None where it is NaN or infinite, so that it can be written as JSON."""
    return number if number is not None and math.isfinite(number) else None


# --------------------------------------------------------------------------------------------------- circumstances


class Machine(Record, frozen=True, kw_only=True):
    """What a measurement ran on, as found at its start."""

    system: str
    cpu_model: str
    usable_cores: int  # of this process: affinity and cgroup limit applied
    memory_bytes: int
    memory_available_bytes: int
    python_version: str
    perftool_version: str
    torch_version: str
    torch_threads: int  # torch.get_num_threads() before anything changes it
    matrix_units: list[str]  # instruction sets for reduced precision found on the CPU, such as amx_bf16
    libc: str  # "glibc 2.36", or "" where it is another one
    compiler: str | None  # path of the C++ compiler that torch.compile would use on a CPU
    device: str  # "cpu", "cuda:0"
    device_name: str | None = None
    device_capability: list[int] | None = None
    device_memory_bytes: int | None = None
    cuda_version: str | None = None
    driver_version: str | None = None
    triton: bool = False  # torch.compile needs it for CUDA
    torchao: bool = False  # float8 needs it
    cpu_fp16_matrix: bool = False  # fp16 on this CPU runs on matrix units rather than by emulation
    huge_pages: str | None = None  # "always", "madvise" or "never"; None where the kernel has none
    environment: dict[str, str] = {}  # OMP_*, MKL_*, MALLOC_*, TORCH*, PYTORCH_*, CUDA_*, THP_* found set
    git_commit: str | None = None  # of the folder the command ran in
    git_dirty: bool | None = None
    load_average_1min: float | None = None


class BusyProcess(Record, frozen=True, kw_only=True):
    """A process of somebody else that was at work."""

    pid: int
    name: str
    cores: float  # CPU time over wall time: 1 is one core all the time


class DeviceFitness(Record, frozen=True, kw_only=True):
    """What a CUDA device was doing for others. None: its driver does not tell."""

    busy_share: float | None  # of the time, for somebody else: this process left it alone
    processes: int | None  # of others that hold a context; in a container the driver may hide them
    used_bytes: int | None  # the driver's own included
    held_down_by: list[str] | None  # what holds the clock down, by the names above
    temperature_c: float | None
    slowdown_c: float | None  # from where heat lowers the clock


class Fitness(Record, frozen=True, kw_only=True):
    """What else a machine was doing, over a window of about a second. None: the system does not tell."""

    window_s: float
    cores: int  # that this process may use
    host_cores: int | None = None  # of the whole machine, whose load it is
    load_average_1min: float | None
    others_cores: float | None = None  # kept busy by all other processes that can be seen and may run on our cores
    steal_share: float | None  # of all cores' time, taken by the host
    pressure_share: float | None  # of the window, in which something waited for a core
    throttled_periods: int | None  # in which a cgroup's quota stopped this process
    governor: str | None  # one that saves power, where the usable cores have several
    swap_used_bytes: int | None
    swapped_bytes: int | None  # moved in and out during the window
    busy_processes: list[BusyProcess]  # the busiest few of the others, the busiest first
    cpu_temperature_c: float | None = None  # of the hottest sensor
    heat_slowdowns: int | None = None  # counted by all cores and packages during the window
    device: DeviceFitness | None = None  # None on a CPU


class FitnessRating(Record, frozen=True, kw_only=True):
    """How fit a machine is for measuring."""

    rating: Literal["fit", "noisy", "unfit"]
    reasons: list[str]  # each with what would help


SiteKind = Literal["loader", "optimizer", "model", "model_call", "import_torch", "main"]
Outputs = Literal["tensor", "tensors", "other"]


class Site(Record, frozen=True, kw_only=True):
    """A place in the user's own files that a training uses: of all frames at that moment the innermost that is neither
    the standard library's nor an installed package's.

    kind: what happens there: a loader, an optimizer or a model is built, a model is called. "main" is the script
        itself, "import_torch" the first import of torch; their line does not matter.
    file: absolute, without links; "" where no frame was in a file of the user's.
    line: that the interpreter was at.
    end_line, end_column: the end of the call; columns count bytes of UTF-8 from 0. They tell which call of a line it
        is, whatever its name. None where they are not known, or where that call is another, whose library builds or
        calls what this is about; then the callee tells.
    callee: the last name of what is called as the source writes it ("net" of `self.net(x)`); of what is built the name
        of its class does, too, whatever name it was imported by.
    framework: whose loop trains there: "lightning", "transformers", "accelerate", or None.
    outputs: of a model call, what it returned: one floating-point tensor; a tuple or list of nothing but such tensors;
        anything else.
    """

    kind: SiteKind
    file: str
    line: int
    end_line: int | None = None
    end_column: int | None = None
    callee: str = ""
    framework: str | None = None
    outputs: Outputs = "tensor"


class StepRule(Record, frozen=True, kw_only=True):
    """Which events of a script end a step; see `perftool.script.steps`."""

    boundary: Literal["mark", "optimizer", "backward"]
    last: int | None = None
    every: int = 1


class ScriptOptimizer(Record, frozen=True, kw_only=True):
    """An optimizer that a script has stepped."""

    name: str  # of its class
    options: dict[str, bool | None]  # those of foreach, fused, capturable, differentiable that it has
    step_class: str | None  # class of torch.optim whose step it runs; None where the step is its own


class ScriptLoader(Record, frozen=True, kw_only=True):
    """A DataLoader that a script has made."""

    name: str  # of its class
    dataset: str  # likewise
    kind: DatasetKind
    rows: int | None
    batch_size: int | None
    workers: int
    pinned: bool
    has_collate: bool
    shuffle: bool
    drop_last: bool
    trains: bool  # its batches went into a backward pass


class ScriptModel(Record, frozen=True, kw_only=True):
    """A module that a script calls from outside of any module, with gradients."""

    name: str  # of its class
    compiled: bool


class ModuleFacts(Record, frozen=True, kw_only=True):
    """What scenarios need to know of the modules that are trained."""

    convolution_dims: list[int] = []  # over how many dimensions its convolutions go, each number once
    channels_last: bool = False  # the weights of all convolutions lie so by themselves
    block_lists: list[str] = []  # names of the outermost lists of alike blocks, of a single model
    chains: dict[str, int] = {}  # of the outermost sequences, where there are no blocks, with their lengths
    attends: bool = False  # its steps compute attention
    large_linears: int = 0  # linear layers large enough for float8


class ScriptFacts(Record, frozen=True, kw_only=True, tag="facts"):
    """A training that a command of the user's makes, as seen in one launch that was thrown away."""

    command: list[str] = []
    folder: str = ""
    rule: StepRule | None  # None: no step was seen
    steps: int  # that were seen
    step_ns: int
    wait_ns: int = 0  # of it, for batches
    device: str
    python: str  # the interpreter that trains
    python_version: str
    torch_version: str
    torch_threads: int
    optimizers: list[ScriptOptimizer]
    loaders: list[ScriptLoader]  # in the order made
    loader_kinds: list[list[bool]] = []  # by the place that makes them: whether each one made there trains
    models: list[ScriptModel]
    sites: list[Site] = []
    modules: ModuleFacts = ModuleFacts()
    changes_buffers: bool = False  # the forward pass does, as BatchNorm its running statistics
    autocast: Literal["bf16", "fp16"] | None  # that the script itself uses
    parameter_count: int
    parameter_bytes: int
    floating_parameters: bool
    sparse_gradients: bool = False
    denormal_values: int | None  # None: nobody looked
    python_objects: int
    frameworks: list[str]
    seeded: bool = False  # it sets a seed
    says_samples: bool = False  # of a step: by a DataLoader, or by perftool.step(samples)
    ranks: int = 1
    passed_over: int = 0  # processes that made steps, and ended, before the one that trains
    other_processes: int = 0  # that make steps beside it, and are no ranks of it
    other_threads: bool = False  # of its process do
    options: dict[str, OptionKind] = {}  # its own that are settings


class WorkloadFacts(Record, frozen=True, kw_only=True):
    """What scenarios and reports need to know of a workload, learnt in a worker: the command runs no user code."""

    name: str
    reference: str  # as given on the command line
    batch_size: int | None  # None: the whole tensors at every step
    dataset_kind: DatasetKind
    dataset_rows: int | None
    dataset_bytes: int | None  # of in-memory tensors
    has_collate: bool
    parameter_count: int
    parameter_bytes: int
    floating_parameters: bool  # all parameters are floating point and real
    sparse_gradients: bool = False  # an embedding gives some
    optimizer: str  # class name
    optimizer_options: dict[str, bool | None]  # those of foreach, fused, capturable, differentiable that it has
    settings: Settings  # what the workload says that it does already
    target_loss: float | None = None
    shuffle: bool = True
    drop_last: bool = False
    tensor_dataset: bool = False  # in-memory tensors come in a TensorDataset, not in a tuple
    dataset_on_device: bool = False  # they are on the GPU already
    batch_form: BatchForm = "nested"  # a tensor, a plain list, tuple or dict of nothing but tensors, or anything else
    is_function: bool = False  # the reference names a function that returns the workload
    search_path: str | None = None  # the folder to look in for what the reference names; None: it is installed
    optimizer_step: str | None = None  # class of torch.optim whose step it runs; None where the step is its own
    modules: ModuleFacts = ModuleFacts()
    changes_buffers: bool = False  # the forward pass does, as BatchNorm its running statistics
    wait_share: float | None = None  # of the quickest of the first steps, that it waited for its batch: for plans
    python_objects: int | None = None  # that the garbage collector looks at, after the first step
    denormal_values: int | None = None  # in the first batch and, after its step, in the parameters
    script: ScriptFacts | None = None  # of a training that is a command of the user's
    driver: Driver = "workload"  # whose loop it is: perftool's, or a script's own
    loader_options: dict[str, bool | int] = {}  # num_workers and pin_memory of a script's own DataLoader
    autocast: Literal["bf16", "fp16"] | None = None  # that a script itself computes in
    compiled: bool = False  # a script compiles its model itself
    sample_unit: SampleUnit = "sample"

    @property
    def is_gathered_from_memory(self) -> bool:
        """Batches are rows of tensors in memory, which no function of the user's puts together."""
        return self.dataset_kind == "tensors" and not self.has_collate


class ScenarioDescription(Record, frozen=True, kw_only=True):
    """A scenario as it is listed: its documentation, and what it offers one workload on one machine."""

    name: str
    summary: str
    sections: dict[str, str]  # heading to text
    changes: str  # "speed", "numerics" or "optimisation"
    default: str
    available: list[str]  # values that can be tried here
    refused: dict[str, str]  # value to why it cannot be had here
    discouraged: dict[str, str] = {}  # value to why it is tried only where it is asked for
    codes: dict[str, dict[str, str]]  # value -> place in the loop -> lines to paste


# ------------------------------------------------------------------------------------------------------ raw samples


class BlockLabels(Record, frozen=True, kw_only=True):
    """What else happened during a block, from the operating system: labels, never filters."""

    thread_cpu_ns: int | None = None
    run_queue_ns: int | None = None  # the main thread was ready but had no core
    involuntary_switches: int | None = None
    minor_faults: int | None = None
    major_faults: int | None = None
    system_cpu_ns: int | None = None
    steal_ticks: int | None = None  # machine-wide, 1/100 s
    device_clock_mhz: int | None = None  # at its end
    device_held_down_by: list[str] = []  # what held that clock down then


class Block(Record, frozen=True, kw_only=True, tag="block"):
    """Consecutive steps of one launch, timed without synchronising inside."""

    launch: int
    round: int  # unique in the session: blocks of one round were measured next to each other
    position: int  # in the drawn order of the round
    started_ns: int  # CLOCK_MONOTONIC
    wall_ns: int  # the whole block, data wait included, synchronised at its end
    steps: int
    samples: int
    step_ns: list[int] = []  # one per step, end to end; empty where several steps run in one call
    wait_ns: list[int] = []  # one per step: waiting for the next batch, part of step_ns
    waited_ns: int | None = None  # in all, for batches; part of wall_ns
    # Beside wall_ns: what else the loop of a script did, such as an evaluation, and where.
    aside_ns: dict[str, int] = {}
    aside_steps: int = 0  # that came with that; their own part is in no other figure
    alone_ns: list[int] = []  # by rank: what a step took before its first backward pass, in all
    rank_wall_ns: list[int] = []  # by rank, where there are several: wall_ns is the longest of these
    rank_steps: list[int] = []  # likewise; one that evaluates for all may have fewer
    labels: BlockLabels = BlockLabels()


class Launch(Record, frozen=True, kw_only=True, tag="launch"):
    """One worker process holding one variant; `blocks` refer to it by number. Written when it ends."""

    launch: int
    variant: int
    generation: int
    stage: str  # what it was for: "measure", "alone", "together 1", "confirm"
    status: Status
    reason: str | None = None
    engaged: Engaged | None = None
    cold: bool = False  # first launch of its variant, with an empty compile cache
    start_up_ns: int | None = None  # from exec to the end of the first step
    warmup_class: WarmupClass | None = None
    warmup_step_ns: list[int] = []  # one per call
    steps_per_call: int = 1
    peak_host_bytes: int | None = None  # after warm-up: the process's high-water mark and its children's PSS
    warmup_peak_host_bytes: int | None = None
    peak_device_allocated_bytes: int | None = None
    peak_device_reserved_bytes: int | None = None
    last_loss: float | None = None
    is_shared: bool = False  # in a process that others had in turn: start-up, warm-up and memory are not its own


class Stretch(Record, frozen=True, kw_only=True, tag="stretch"):
    """Steps of one launch for some seconds on end, as a training makes them: a GPU reaches its limits of heat and of
    power by then, which blocks in turns do not show."""

    launch: int
    wall_ns: int  # synchronised at both ends
    steps: int
    samples: int
    energy_mj: int | None  # that the device took; None where it does not tell
    device_clock_mhz: int | None = None  # at its end
    device_held_down_by: list[str] = []  # what held that clock down then


class WallTime(Record, frozen=True, kw_only=True, tag="wall"):
    """What measuring took, all of it and its parts, the blocks themselves being within `turns_s`."""

    total_s: float
    starting_s: float  # processes, until the first step of each launch
    warming_s: float  # the launches, with the proofs that settings took effect
    turns_s: float  # blocks, the steps before each that are left out, and going from one to the next


class WatchedBlock(Record, frozen=True, kw_only=True, tag="watched"):
    """Consecutive steps that were watched, to explain them. Lists have one entry per call; what was 0 in all calls of
    the block is left out of the dictionaries."""

    launch: int
    round: int  # the same as that of the plain block beside it
    first_call: int  # number of the first call since the launch began
    started_ns: int  # CLOCK_MONOTONIC
    samples: int
    steps_per_call: int = 1
    loader_workers: int = 0
    threads: int | None = None  # torch's, within an operation; None in sessions before 1.4
    step_ns: list[int]  # of each call, end to end, without the time that reading the counters took
    began_ns: list[int] = []  # each call's begin since started_ns
    phase_ns: dict[str, list[int]]  # phase to its part of step_ns
    cause_ns: dict[str, list[int]] = {}  # cause to the time it took, within whatever phase
    counts: dict[str, list[int]] = {}  # cause to how often it happened, where that is all that is known
    fixed_work_ns: list[int] = []  # what the same work took about then: how fast the core was
    minor_faults: list[int] = []
    page_bytes: int = 4096
    dispatch_ns: list[int] = []  # on a GPU: until the host had issued the step
    host_ahead: list[bool] = []  # on a GPU: that the device had not reached the step's last phase then
    device_allocated_bytes: int | None = None  # at its end
    syncs: int | None = None  # times that the host waited for the device in a call before these
    throttled: bool | None = None  # the device's clock was held down for heat or power
    throttled_periods: int | None = None  # in which a cgroup's quota stopped this process during the block


class TrainingRun(Record, frozen=True, kw_only=True, tag="training_run"):
    """A training from one seed, to compare losses: variants with the same seed see the same data in the same order."""

    variant: int
    seed: int
    steps: int
    loss: float | None  # mean of the last tenth of the steps; None where it was not finite
    samples: int | None = None  # fed in all these steps
    losses: list[float | None] = []  # of every step; empty in sessions before 1.1


class MemorySample(Record, frozen=True, kw_only=True, tag="memory_sample"):
    """Memory that a launch held between two blocks."""

    launch: int = 0
    steps: int  # that this launch has done since its warm-up
    host_bytes: int  # resident set of the process, and its children's PSS
    device_allocated_bytes: int | None = None


class MemoryParts(Record, frozen=True, kw_only=True, tag="memory_parts"):
    """What a training holds, by what it is for. Views and tied weights are counted once."""

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    buffers_bytes: int
    activations_bytes: int | None  # that autograd keeps for the backward pass, of one eager forward pass
    batch_bytes: int | None
    batch_size: int | None = None  # of that batch
    reason: str | None = None  # why activations or the batch are not known
    device_allocated_bytes: int | None = None  # after these steps, as all below
    device_reserved_bytes: int | None = None
    device_nvml_bytes: int | None = None  # of the whole device, other processes included
    device_inactive_split_bytes: int | None = None  # free, but in pieces: lost to fragmentation


class BatchPoint(Record, frozen=True, kw_only=True):
    """The peak of a process during one forward and backward pass."""

    batch_size: int
    peak_bytes: int


class BatchFit(Record, frozen=True, kw_only=True, tag="batch_fit"):
    """The largest batch that memory would hold, by a line through measured peaks. Numbers are None with a reason."""

    points: list[BatchPoint]
    available_bytes: int  # that the process may hold in all
    fixed_bytes: float | None = None  # that no batch needs
    per_sample_bytes: float | None = None
    largest_batch_size: int | None = None
    reason: str | None = None


class Side(Record, frozen=True, kw_only=True):
    """What a variant of a check is: the workload at one revision."""

    name: str  # as the user called it: "main", or "working tree"
    reference: str  # of the workload, from the folder
    settings: Settings  # all of them
    root: str | None = None  # that its modules come from; None where that is left as it is
    folder: str | None = None  # within the root, that it runs in
    commit: str | None = None
    dirty: bool | None = None


class Counters(Record, frozen=True, kw_only=True, tag="counters"):
    """What a variant does by counting, which no machine and no hour changes. None: not countable, for `reason`."""

    variant: int
    parameters: int
    flops_per_step: int | None  # forward and backward
    operations_per_step: int | None  # of torch, dispatched by the host to load, compute and update; eager steps only
    graph_breaks: int  # of torch.compile, in the calls before
    compiled_graphs: int  # likewise, recompilations included
    calls: int
    reason: str | None = None
    modules: list[str] = []  # files that were loaded from the side's root


class Decision(Record, frozen=True, kw_only=True, tag="decision"):
    """A choice `tune` made while measuring, with its reason, in the order made."""

    stage: str
    settings: Settings
    action: Literal["adopted", "dropped", "untested", "chosen"]
    reason: str


class Unwritten(Record, frozen=True, kw_only=True):
    """A setting that a patch has not: why, and what to write or to type instead."""

    setting: str  # name=value
    reason: str
    advice: str


class Patch(Record, frozen=True, kw_only=True, tag="patch"):
    """What settings change in a user's own files."""

    root: str  # absolute
    diff: str  # unified, with paths from the root on; `git apply` and `patch -p1` take it; "" where nothing changes
    files: dict[str, str]  # path from the root on, with slashes, to the new text of each file that changes
    written: list[str]  # names of the settings that the diff contains
    already: list[str]  # those that the files had already
    unwritten: list[Unwritten]
    notes: list[str]  # what else to know of how they are written, as sentences
    variant: int | None = None  # the one whose launches run the changed files; None: none does

    @property
    def in_files(self) -> list[str]:
        """Names of the settings that need nothing else once the files are changed."""
        return [*self.written, *self.already]


class StepWork(Record, frozen=True, kw_only=True):
    """What one training step has to do at the least: arithmetic by counting, and bytes moved between memory and the
    processor where nothing stays in a cache from one pass (forward, backward, update) to the next."""

    samples: int  # that the step learns from
    flops: int  # forward and backward; a multiplication and an addition are two
    flops_by_dtype: dict[str, int] = {}  # of what the matmuls and convolutions multiply: "float32", "bfloat16"
    matmul_flops: int | None = None  # of all, those of matrix products; the rest are convolutions, attention, RNNs
    convolution_flops_by_dtype: dict[str, int] = {}  # of flops_by_dtype, those of convolutions and recurrent layers
    parameter_bytes: int  # moved: read by the passes, read and written by the update
    gradient_bytes: int  # moved: written by the backward pass, read by the update
    optimizer_state_bytes: int  # moved: read and written by the update
    activation_bytes: int  # moved: what autograd saved, written by the forward pass and read by the backward pass
    batch_bytes: int  # moved: read by the forward pass, and again by the backward pass where autograd saved it
    working_set_bytes: int  # of all these together at rest, each counted once


class Ceiling(Record, frozen=True, kw_only=True):
    """The best that this machine was seen to do, by the threads of the training: a product of two square matrices, or
    a copy of one buffer into another."""

    kind: Literal["matmul", "copy"]
    dtype: str  # "float32", "bfloat16"
    precision: str | None = None  # of float32 matmuls: a mode of torch.set_float32_matmul_precision
    rows: int | None = None  # of each of the square matrices with which it was reached
    buffer_bytes: int | None = None  # of each of the two buffers of a copy
    flops_per_second: float | None = None
    bytes_per_second: float | None = None  # of a copy: read and written bytes together


class Limits(Record, frozen=True, kw_only=True, tag="limits"):
    """The work of one step beside the measured ceilings of the machine, from one process."""

    work: StepWork | None  # None where counting it failed, with the reason
    ceilings: list[Ceiling]
    reason: str | None = None
    cache_bytes: int | None = None  # last-level cache of the device; None where the system does not tell
    precision: str | None = None  # in which the training's float32 matmuls run; None where it was set in other ways
    convolution_precision: str | None = None  # likewise of float32 convolutions and RNNs; None where they differ


class Goal(Record, frozen=True, kw_only=True):
    """What a search is to find, and within which limits. A memory or a time that is None has no limit."""

    objective: Objective = "throughput"
    max_host_bytes: int | None = None
    max_device_bytes: int | None = None
    max_p99_ns: float | None = None
    planned_steps: int | None = None  # a start-up that does not pay back within so many steps is not worth its gain
    allow: list[str] = []  # scenarios that change the optimisation and may be tried all the same
    keep: list[str] = []  # scenarios that stay as they are
    only: list[str] = []  # no others are tried
    price: float = 0.01  # of a change to make and to keep: a setting must bring as much to be advised

    @property
    def is_about_memory(self) -> bool:
        """Memory is what is to be had, or it is limited."""
        limits = (self.max_host_bytes, self.max_device_bytes)
        return self.objective == "memory" or any(limit is not None for limit in limits)


class StoredMetric(Record, frozen=True, kw_only=True):
    """One metric of a stored baseline."""

    log_values: list[float]  # one per launch; of throughput the time per sample over a calibration step's, else bytes
    margin: float


class StoredBaseline(Record, frozen=True, kw_only=True):
    """What a workload did, for a check at another time: a file of `results/baselines/`."""

    schema_version: str = SCHEMA_VERSION
    workload: str
    settings: Settings
    created_at: str
    commit: str | None
    dirty: bool | None
    machine: dict[str, str]  # what has to be the same for all but the counters
    metrics: dict[str, StoredMetric]
    counters: Counters | None


class Session(Record, frozen=True, kw_only=True):
    """Everything one command measured, raw. Variant 0 is the baseline."""

    schema_version: str = SCHEMA_VERSION
    command: Command
    arguments: list[str]  # to run it again
    created_at: str  # UTC, ISO 8601
    seed: int
    budget_s: float
    machine: Machine
    workload: WorkloadFacts
    scenario_changes: dict[str, str]  # scenario name to "speed", "numerics" or "optimisation"
    codes: dict[str, dict[str, dict[str, str]]] = {}  # scenario -> value -> place in the loop -> lines to paste
    defaults: Settings = {}  # every scenario's value in the baseline
    baseline: Settings = {}  # what every variant runs with unless its own settings say otherwise
    goal: Goal = Goal()
    first_step_ns: int | None = None  # of the baseline, roughly: for plans, not for verdicts
    scenario_files: list[str] = []  # of the user's own scenarios
    variants: list[Settings]  # beyond the baseline's; the first is empty
    launches: list[Launch] = []
    blocks: list[Block] = []
    watched_blocks: list[WatchedBlock] = []
    fitness: Fitness | None = None  # of the machine, before anything was measured
    cures: dict[str, list[str]] = {}  # finding to the settings that may cure it here and are not in force
    sides: list[Side] = []  # of a check, one per variant
    expected: StoredBaseline | None = None  # of a check against what was stored
    counters: list[Counters] = []
    training_runs: list[TrainingRun] = []
    decisions: list[Decision] = []
    patch: Patch | None = None  # of the settings that a search has chosen for a script
    limits: Limits | None = None  # of the baseline, where it was asked for
    memory_samples: list[MemorySample] = []
    memory_parts: MemoryParts | None = None
    batch_fit: BatchFit | None = None
    wall: WallTime | None = None  # until the last generation ended
    stretches: list[Stretch] = []  # of the launches that confirm, on a GPU
    interrupted: bool = False
    warnings: list[str] = []


# ---------------------------------------------------------------------------------------------------------- results


class Estimate(Record, frozen=True, kw_only=True):
    """A ratio variant / baseline with its simultaneous interval."""

    ratio: float
    low: float
    high: float


class Comparison(Record, frozen=True, kw_only=True):
    """One metric of a variant against the baseline. The ratio is in the metric's own unit (throughput 2: twice)."""

    ratio: float
    low: float | None
    high: float | None
    margin: float  # 0.01: effects below one per cent do not count
    verdict: VerdictWord
    pairs: int
    launches: int
    smallest_detectable: float | None  # relative effect that would have been seen in 80 % of such sessions
    unsteady: bool = False  # launches differed far more than they should: the strict rule gave the verdict


class Quantiles(Record, frozen=True, kw_only=True):
    """Of the end-to-end step time."""

    p50: float | None
    p95: float | None
    p99: float | None


class Jitter(Record, frozen=True, kw_only=True):
    """How uneven the steps are. Shares are of the median step unless named otherwise; None: not enough steps."""

    j95: float | None  # q95/q50 - 1
    j95_low: float | None
    j95_high: float | None
    j99: float | None
    j99_low: float | None
    j99_high: float | None
    mad_ratio: float | None  # 1.4826 MAD / median
    step_to_step_q95: float | None  # q95 of |T_i - T_(i-1)| / median
    stall_share: float | None  # of the total time: sum (T - 1.5 q50)+ / sum T
    steps: int
    effective_steps: float | None  # steps / (1 + 2 sum of autocorrelations)
    note: str | None  # "not enough steps" for which quantile


class VariantSummary(Record, frozen=True, kw_only=True):
    """One variant as everybody reads it."""

    settings: Settings
    status: Status
    reason: str | None
    engaged: Engaged | None
    samples_per_second: float | None
    steps_per_call: int
    step_ns: Quantiles | None
    jitter: Jitter | None
    peak_host_bytes: int | None
    warmup_peak_host_bytes: int | None
    peak_device_allocated_bytes: int | None
    peak_device_reserved_bytes: int | None
    data_wait_fraction: float | None
    cold_start_ns: int | None
    warm_start_ns: int | None
    break_even_steps: float | None  # steps after which a slower start has paid back; 0 when it starts no slower
    warmup_class: WarmupClass | None
    versus_baseline: dict[str, Comparison]
    sample_mj: float | None = None  # energy of the device per sample, over seconds on end
    sustained_ratio: float | None = None  # of samples per second to the baseline's, over seconds on end
    held_down_by: list[str] = []  # what held the device's clock down at the end of those


class Finding(Record, frozen=True, kw_only=True):
    """A diagnosed cause, with its share of time, memory or jitter and the setting to try."""

    name: str
    share: float | None
    evidence: str
    try_: str | None = msgspec.field(name="try", default=None)


class Phase(Record, frozen=True, kw_only=True):
    """A part of the step."""

    name: str
    step_ns: float  # mean over the watched steps
    share: float  # of the step


class SlowStep(Record, frozen=True, kw_only=True):
    """A step of more than one and a half times the median."""

    call: int  # since the launch began
    started_ns: int  # since the first watched step
    step_ns: int
    cause: str
    cause_ns: int | None  # what the cause took beyond its usual; None where it is only counted, or unknown


class SlowCause(Record, frozen=True, kw_only=True):
    """All slow steps of one cause."""

    cause: str
    steps: int
    share_of_slow: float  # of the slow steps
    share_of_time: float  # lost beyond the median step, of all time
    worst_ns: int
    period: str | None  # "every epoch", "every 64 steps"


class Explained(Record, frozen=True, kw_only=True):
    """Where the time of the watched steps went."""

    steps: int
    median_ns: float
    phases: list[Phase]
    slow_steps: int
    causes: list[SlowCause]  # most time lost first
    worst: list[SlowStep]  # slowest first
    distortion: Estimate | None  # time of a watched step over that of a plain one beside it
    bound_by: Literal["launches", "device"] | None  # on a GPU: what a step waits for


class Bound(Record, frozen=True, kw_only=True):
    """The least time of one step, if all its arithmetic ran at the measured peak of one mode."""

    dtypes: list[str]  # several where the step itself mixes them
    precision: str | None  # mode of float32 matmuls; None where no float32 is multiplied
    convolution_precision: str | None = None  # of float32 convolutions and RNNs, where matmuls run in another mode
    as_it_runs: bool  # the step computes in this mode; False: it could
    flops_per_second: float | None  # the measured peak, by the step's own mixture of dtypes; None: nothing to compute
    compute_ns: float
    memory_ns: float
    bound_ns: float  # the longer of the two
    bound_by: Literal["compute", "memory"]
    times_above: float  # step time over this bound; below 1 where caches spare the step traffic
    mfu: float  # model FLOPs utilisation: arithmetic of the step over what the peak does in its time


class Distance(Record, frozen=True, kw_only=True):
    """How far a step is from what the machine allows."""

    step_ns: float
    work: StepWork
    moved_bytes: int  # per step, all parts of the work
    bytes_per_second: float  # the measured copy that the memory bound rests on
    in_cache: bool  # the working set fits in the last-level cache, and so did that copy
    bounds: list[Bound]  # the mode that the step runs in first, where it is known; then faster ones


class LossParity(Record, frozen=True, kw_only=True):
    """Whether a change of numerics trains the same, judged by the baseline's own spread between seeds."""

    verdict: Literal["parity", "differs", "undecided"]
    difference: float | None  # mean of loss(variant) - loss(baseline), paired by seed
    low: float | None
    high: float | None
    allowed: float | None  # two standard deviations of the baseline's seeds
    seeds: int
    steps: int


class TimeToLoss(Record, frozen=True, kw_only=True):
    """Time that a variant needs to reach a loss, over the baseline's: the samples that it needs, by several seeds and
    without a clock, times its time per sample, as confirmed."""

    ratio: float | None  # None: too few seeds reached it
    low: float | None
    high: float | None
    target_loss: float
    seeds: int
    reached: int  # seeds by which the variant got there


class SettingEffect(Record, frozen=True, kw_only=True):
    """What one setting did alone, and within the last combination that was tried with and without it."""

    name: str
    value: str
    alone: Estimate | None  # throughput ratio
    together: Estimate | None
    seen_alone: float | None = None  # the same as `alone`, where too few launches tell how sure it is
    is_needed: bool = False  # without it a limit of the goal is broken
    partners: Settings = {}  # the fewest with which it surely does more or less than alone
    with_partners: Estimate | None = None


class Rejected(Record, frozen=True, kw_only=True):
    """A setting or combination that is not recommended, and why."""

    settings: Settings
    reason: str


class PatchAdvice(Record, frozen=True, kw_only=True):
    """The recommended settings as a patch of the user's own files, and how fast the patched script is.

    The patched launches ran the files as the patch has them; only what it does not contain was laid over them.
    """

    file: str | None  # beside the summary; None: there is nothing to apply
    root: str  # the folder that the paths in it start from
    files: list[str]
    written: list[str]
    already: list[str]  # settings that the files had already
    unwritten: list[Unwritten]
    notes: list[str]
    confirmed: Literal["confirmed", "not_confirmed", "not_measured", "broken"] | None  # None: there is nothing to run
    reason: str | None = None  # why it was not measured, or is broken
    versus_baseline: Comparison | None = None  # in the metric of the goal, as below
    versus_interposed: Comparison | None = None  # the patched script against its own files with the settings laid over


class Recommendation(Record, frozen=True, kw_only=True):
    """What `tune` advises. Every number in it is of the confirmation in fresh launches."""

    settings: Settings
    speedup: Estimate
    confidence: float  # of the interval, 0.95
    pairs: int
    launches: int
    peak_memory_ratio: float | None
    jitter_ratio: float | None  # of p95/p50 of the step time
    break_even_steps: float | None
    loss_parity: LossParity | None
    time_to_loss: TimeToLoss | None
    changes_optimisation: bool
    changes_numerics: bool = False
    code: str  # lines to paste
    script: str  # the same as a script that runs; "" where what is trained is a script already
    diff: str = ""  # unified, from that script with the baseline's settings to the one with these
    per_setting: list[SettingEffect]
    rejected: list[Rejected]
    patch: PatchAdvice | None = None  # of a script's files
    metric: str = "throughput"  # that the goal is about
    gain: Estimate | None = None  # in that metric


class SoFar(Record, frozen=True, kw_only=True):
    """The best that a search knew when it ended without a confirmation. The gain is expected, and flattering."""

    settings: Settings
    gain: Estimate  # in the metric of the goal, as a ratio of the baseline to it


class Provisional(Record, frozen=True, kw_only=True):
    """What the search chose, where its fresh launches leave open whether it is better. Nothing is recommended."""

    settings: Settings
    metric: str  # that the goal is about, as of Recommendation
    gain: Estimate
    pairs: int
    launches: int
    code: str  # lines to paste
    launches_needed: int | None  # in all, with which such a gain would be sure; None: more than are ever made
    further_s: float | None  # of budget, for those that are missing


class LoopPart(Record, frozen=True, kw_only=True):
    """What a script's loop does beside its steps."""

    name: str  # what and where: "evaluation at train.py:88"
    share: float  # of the loop's time


class RankTime(Record, frozen=True, kw_only=True):
    """One of several ranks: means over the baseline's steps."""

    rank: int
    step_ns: float
    alone_ns: float  # of that, before the first backward pass, in which ranks wait for each other


class ScriptReport(Record, frozen=True, kw_only=True):
    """What is told of a script beyond its steps. Shares are estimates: what comes rarely may be in no block."""

    rule: StepRule | None
    optimizers: list[str]  # classes, in the order of their first steps
    other_processes: int = 0  # that make steps beside the one that was measured
    other_threads: bool = False  # do
    steps: int  # of the baseline, from which all of this is told
    step_share: float | None  # of the loop's time, start-up and end left out; None without blocks
    beside: list[LoopPart]  # the rest of it, the largest first
    ranks: list[RankTime] = []  # empty where there is one
    last_rank: int | None = None  # that surely comes last to the backward pass; None where none does
    lag_ns: float | None = None  # of that rank behind the one before it, median


class SmallestBatch(Record, frozen=True, kw_only=True):
    """The smallest batch that is nearly as fast as the best one."""

    batch_size: int
    of_best: float  # its samples per second over those of the fastest
    largest_batch_size: int  # of those measured


class Growth(Record, frozen=True, kw_only=True):
    """Whether memory grows from step to step. The rate, with its 95 % interval, is of the part that was judged: where
    a leak was found the longest part that grows evenly, otherwise the last half."""

    verdict: Literal["leak", "steady", "undecided"]
    bytes_per_step: float | None  # None, as its interval: too few samples
    low: float | None
    high: float | None
    steps: int  # from the first sample to the last
    grown_bytes: int  # likewise; negative where it shrank


class MemoryReport(Record, frozen=True, kw_only=True):
    """Where a training's memory goes, whether it grows, and how large a batch would fit."""

    parts: MemoryParts | None = None
    host_growth: Growth | None = None
    device_growth: Growth | None = None
    fit: BatchFit | None = None


GateVerdict = Literal["regression", "improvement", "no regression", "undecided", "not measured"]
Outcome = Literal["passed", "regression", "undecided"]


class MetricCheck(Record, frozen=True, kw_only=True):
    """One metric of a check."""

    metric: str
    verdict: GateVerdict
    required: bool  # undecided, it leaves the check undecided
    counted: bool  # and not measured: no machine and no hour changes it
    against: float | None  # of the side that is compared with, in the metric's unit
    now: float | None
    first: Comparison | None = None
    confirmation: Comparison | None = None  # in fresh launches, with twice the pairs
    reason: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing can be said."""
        return self.verdict in ("undecided", "not measured")


class Check(Record, frozen=True, kw_only=True):
    """What a check found."""

    outcome: Outcome
    against: str  # "main (4c1d2e3)"
    now: str
    modules_against: int  # files of that side that were loaded
    modules_now: int
    metrics: list[MetricCheck]
    stored: bool = False  # against what was stored, beside calibration kernels, in place of another revision
    failed: str | None = None  # why a side could not be measured to the end; the outcome is "undecided" then
    sample_unit: SampleUnit = "sample"


RecommendationStatus = Literal["confirmed", "provisional", "nothing_better", "not_confirmed", "interrupted"]


class Summary(Record, frozen=True, kw_only=True):
    """What a session says: `summary.json`, and what `--json` prints."""

    schema_version: str = SCHEMA_VERSION
    command: Command
    workload: str
    created_at: str
    seed: int
    arguments: list[str]
    machine: Machine
    baseline: VariantSummary
    variants: list[VariantSummary]
    findings: list[Finding]
    recommendation_status: RecommendationStatus | None
    objective: str
    pareto: list[Settings]
    recommendation: Recommendation | None
    rejected: list[Rejected]
    parity: LossParity | None
    goal: Goal = Goal()
    so_far: SoFar | None = None
    provisional: Provisional | None = None
    smallest_batch: SmallestBatch | None = None
    explained: Explained | None = None
    fitness: Fitness | None = None
    distance: Distance | None = None  # of the baseline to the limits of the machine
    memory: MemoryReport | None = None
    check: Check | None = None
    script: ScriptReport | None = None  # where that is what is trained
    sample_unit: SampleUnit = "sample"
    folder: str | None = None  # that its files are in, as the command was told; None where nothing is kept
    measured_s: float  # wall time of all blocks
    wall: WallTime | None = None
    warnings: list[str]


class Differing(Record, frozen=True, kw_only=True):
    """A circumstance in which two sessions differ."""

    name: str
    first: str
    second: str


class Beside(Record, frozen=True, kw_only=True):
    """One variant in two sessions, each against its own baseline. None: not measured there."""

    settings: Settings
    first: Comparison | None  # of the throughput
    second: Comparison | None
    change: Literal["more", "less", "alike"] | None  # of the second; None where it cannot be told


class SideBySide(Record, frozen=True, kw_only=True):
    """Two sessions of the same training. Ratios may be compared, what is absolute may not: it was not paired."""

    schema_version: str = SCHEMA_VERSION
    first: Summary
    second: Summary
    differing: list[Differing]
    variants: list[Beside]


class TraceFacts(Record, frozen=True, kw_only=True):
    """What a trace of some steps shows. Tracing slows steps: its shares say more than its times."""

    steps: int
    calls: int  # that these steps were taken in
    events: int
    step_ns: float | None  # mean, of traced steps
    shares: dict[str, float]  # phase of a step to its share of the host's time, where it has marks
    device_shares: dict[str, float] = {}  # the same of a GPU's time
    device_busy: float | None = None  # share of the time in which a GPU worked; None: the training ran on none


class TraceReport(Record, frozen=True, kw_only=True):
    """A trace that was taken: what it shows, and where it is."""

    schema_version: str = SCHEMA_VERSION
    workload: str
    folder: str
    files: list[str]  # of the trace, within the folder
    size_bytes: int  # of the trace as torch wrote it
    plain_step_ns: float | None  # median, of steps that were not traced
    facts: TraceFacts
    warnings: list[str]


class MachineReport(Record, frozen=True, kw_only=True):
    """A machine, and how fit it is for measuring now."""

    schema_version: str = SCHEMA_VERSION
    machine: Machine
    fitness: Fitness
    rating: FitnessRating


class ScenarioReport(Record, frozen=True, kw_only=True):
    """What can be varied of one workload on one machine, and what cannot."""

    schema_version: str = SCHEMA_VERSION
    workload: str
    scenarios: list[ScenarioDescription]


class HistoryEntry(Record, frozen=True, kw_only=True):
    """One check in a history: a line of its file. Ratios travel through time, since both sides ran in turns."""

    schema_version: str = SCHEMA_VERSION
    created_at: str  # UTC, ISO 8601
    workload: str  # from the repository's root
    against: str  # the pinned revision: its commit
    commit: str  # of the working tree
    dirty: bool
    machine: str  # "AMD EPYC, 2 cores"
    outcome: Outcome
    log_ratios: dict[str, float]  # metric to log(now / against), in the metric's own unit
    settings: Settings = {}  # of the pinned side; not known before 1.5
    sample_unit: SampleUnit = "sample"


class RecommendedSettings(Record, frozen=True, kw_only=True):
    """`recommended.json`, usable as `-s @recommended.json`."""

    schema_version: str = SCHEMA_VERSION
    workload: str
    settings: Settings
    options: dict[str, OptionKind] = {}  # those of the settings that are the script's own options
    device: str | None = None  # that they were measured on
    loaders: list[list[bool]] = []  # of a script: which of them the settings are for; as in ScriptFacts


# ---------------------------------------------------------------------------------------------------------- to JSON

R = TypeVar("R", bound=Record)


def to_json(record: Record, *, indent: int = 0) -> bytes:
    """The record as JSON; NaN and Infinity become null. `indent` 0 writes one line."""
    line = msgspec.json.encode(record, enc_hook=_plain)
    return msgspec.json.format(line, indent=indent) if indent else line


def _plain(value: Any) -> Any:
    """A number of numpy's as Python's own: what statistics return finds its way into records."""
    if hasattr(value, "item"):
        return value.item()
    raise NotImplementedError(f"a record holds {type(value).__name__}")


def from_json(document: bytes | str, kind: type[R]) -> R:
    """Read one record of this kind.

    Raises SchemaError with a sentence for text that is no JSON, a field of the wrong type or a newer major version.
    """
    try:
        # The version first: what a newer one has changed must not look like damage.
        version = msgspec.json.decode(document, type=_Versioned).schema_version
        if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
            raise SchemaError(f"schema version {version} is not readable here; this perftool reads {SCHEMA_VERSION}")
        return msgspec.json.decode(document, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise SchemaError(f"not a {kind.__name__} of perftool: {error}") from error


class _Versioned(Record, frozen=True, kw_only=True):
    """The one field that is read of a document before all others."""

    schema_version: str = SCHEMA_VERSION
