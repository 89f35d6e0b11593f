"""What the command and its worker processes say to each other: JSON lines over a socket pair.

One request, one reply. Between a reply and the next request the worker and all its children are stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar, get_args

import msgspec

from perftool.records import (
    BatchFit,
    Block,
    BlockLabels,
    Counters,
    Engaged,
    Limits,
    Machine,
    MemoryParts,
    Patch,
    Record,
    ScriptFacts,
    Settings,
    Stretch,
    WatchedBlock,
    WorkloadFacts,
)
from perftool.trees import Tree

R = TypeVar("R")


class LaunchSpec(Record, frozen=True, kw_only=True):
    """What a worker process is to hold. Sent once, before the first request; nothing is built yet."""

    launch: int
    reference: str
    scenario_files: list[str]
    settings: Settings  # all of them, those of the workload and the baseline included
    device: str  # "auto", "cpu", "cuda", "cuda:N"
    seed: int
    watched: bool = False  # built so that it can be asked to `Watch`
    phases_named: bool = False  # for a trace; costs time in each step
    tree: Tree | None = None  # None: modules come from wherever Python finds them
    patch: Patch | None = None  # that a script's own files have; its settings are not laid over them
    switched: tuple[str, ...] = ()  # scenarios whose values the process will be switched between


class Ask(Record, Generic[R], frozen=True, kw_only=True):
    """A request that an `R` answers, or a `Failed`."""


class Described(Record, frozen=True, kw_only=True, tag="described"):
    machine: Machine
    workload: WorkloadFacts
    peak_host_bytes: int | None  # of this process, building and first step included
    device_used_bytes: int | None  # of the whole device, at the end of the first steps, as the driver tells it
    step_ns: int | None = None  # of the quickest of the first steps: for plans, not for verdicts


class Look(Ask[ScriptFacts], frozen=True, kw_only=True, tag="look"):
    """Of a script, which has a loop of its own: run until it is known what a step is, and say what it trains."""


class Describe(Ask[Described], frozen=True, kw_only=True, tag="describe"):
    """Say what the machine and the workload are."""


class Started(Record, frozen=True, kw_only=True, tag="started"):
    started_ns: int  # CLOCK_MONOTONIC at the end of the first step
    queued_batches: int  # that loader workers hold ready: workers x prefetch factor
    steps_per_call: int = 1


class Start(Ask[Started], frozen=True, kw_only=True, tag="start"):
    """Build the training and do its first step."""


class Switch(Ask[Started], frozen=True, kw_only=True, tag="switch"):
    """Go on as another launch: with its training, as it was left or built anew, or under its settings. One step of it
    is done where it is new. May be the first request."""

    launch: int
    settings: Settings  # all of them, those that the process began with included


class Warmed(Record, frozen=True, kw_only=True, tag="warmed"):
    step_ns: list[int]  # one per call, which may be several steps
    steps_since_event: int | None  # calls since a compilation, recompilation, capture, allocator retry; None: none yet


class Warm(Ask[Warmed], frozen=True, kw_only=True, tag="warm"):
    """Make up to `steps` calls, or as many as fit in `limit_s` but at least one."""

    steps: int  # calls, each of `steps_per_call` steps
    limit_s: float


class Proved(Record, frozen=True, kw_only=True, tag="proved"):
    engaged: Engaged


class Prove(Ask[Proved], frozen=True, kw_only=True, tag="prove"):
    """Show that the settings took effect."""


class Run(Ask[Block], frozen=True, kw_only=True, tag="run"):
    """Drop some calls, then time a block."""

    round: int
    position: int
    drop: int  # calls
    steps: int  # calls, each of `steps_per_call` steps


class Sustain(Ask[Stretch], frozen=True, kw_only=True, tag="sustain"):
    """Make some calls on end, and say what energy they took."""

    calls: int


class Watch(Ask[WatchedBlock], frozen=True, kw_only=True, tag="watch"):
    """Drop some calls, then watch what the next ones are made of."""

    round: int
    drop: int  # calls
    steps: int  # calls


class Count(Ask[Counters], frozen=True, kw_only=True, tag="count"):
    """Make some calls after the first one, then count what a step does. For a launch of its own, so that both sides
    count the same batches."""

    variant: int
    calls: int


class Trained(Record, frozen=True, kw_only=True, tag="trained"):
    loss: float | None  # mean of the last tenth of the steps; None where it was not finite
    losses: list[float | None]  # of every step
    samples: int


class Train(Ask[Trained], frozen=True, kw_only=True, tag="train"):
    """Train afresh from a seed for some steps."""

    seed: int
    steps: int


class Limit(Ask[Limits], frozen=True, kw_only=True, tag="limit"):
    """Count the work of a step and measure the ceilings of the machine. Takes a batch, some seconds and memory of its
    own, so it belongs into a launch that explains, after everything that is timed."""


class Weigh(Ask[MemoryParts], frozen=True, kw_only=True, tag="weigh"):
    """Say what the training's memory is taken by. One more batch goes through the model."""


class Fit(Ask[BatchFit], frozen=True, kw_only=True, tag="fit"):
    """Say how large a batch would fit. The last that is asked: batches of other sizes go through the model, and the
    host's high-water mark begins again."""


class Traced(Record, frozen=True, kw_only=True, tag="traced"):
    calls: int


class Trace(Ask[Traced], frozen=True, kw_only=True, tag="trace"):
    """Drop some calls, then trace some with torch.profiler, in a launch with `phases_named`."""

    drop: int  # calls
    calls: int
    path: str  # of the file to write


class Finished(Record, frozen=True, kw_only=True, tag="finished"):
    last_loss: float | None
    peak_device_allocated_bytes: int | None
    peak_device_reserved_bytes: int | None


class Finish(Ask[Finished], frozen=True, kw_only=True, tag="finish"):
    """Say the last figures, then end."""


FailureKind = Literal["reference", "device", "setting", "memory", "training", "tree", "ended"]


class Failed(Record, frozen=True, kw_only=True, tag="failed"):
    """The request could not be met; the worker ends. `reason` is a sentence for the user."""

    kind: FailureKind  # "ended": the user's script is over
    reason: str


Request = (
    Describe
    | Start
    | Switch
    | Warm
    | Prove
    | Run
    | Sustain
    | Watch
    | Count
    | Train
    | Limit
    | Weigh
    | Fit
    | Trace
    | Finish
)

Reply = (
    Described
    | Started
    | Warmed
    | Proved
    | Block
    | Stretch
    | WatchedBlock
    | Counters
    | Trained
    | Limits
    | MemoryParts
    | BatchFit
    | Traced
    | Finished
    | Failed
)

encode = msgspec.json.encode
decode_request: Callable[[bytes], Request] = msgspec.json.Decoder(Request).decode
decode_spec: Callable[[bytes], LaunchSpec] = msgspec.json.Decoder(LaunchSpec).decode


class Steps(Record, frozen=True, kw_only=True, tag="steps"):
    """What one process of a script replies to `Run`: the steps that it made, one entry of a list for each; see
    `perftool.measure.steps`."""

    launch: int
    round: int
    position: int
    started_ns: int
    step_ns: list[int]
    wait_ns: list[int]
    alone_ns: list[int]
    samples: list[int]
    asides: list[str | None]
    labels: BlockLabels


decode_steps: Callable[[bytes], Steps | Failed] = msgspec.json.Decoder(Steps | Failed).decode


def _decoder_of(request: Any) -> msgspec.json.Decoder[Any]:
    """Of the answers to a kind of request."""
    [answer] = get_args(request.__orig_bases__[0])
    return msgspec.json.Decoder(answer | Failed)


_DECODERS = {request: _decoder_of(request) for request in (Look, *get_args(Request))}


def decode_reply(line: bytes, request: Ask[R]) -> R | Failed:
    """What answers the request. Raises msgspec.ValidationError for the answer to another one."""
    found: R | Failed = _DECODERS[type(request)].decode(line)
    return found
