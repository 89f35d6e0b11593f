"""Compile the model with torch.compile.

What it changes: the forward pass and its backward are traced once and run as generated kernels;
    `reduce-overhead` also replays them as CUDA graphs, `max-autotune` times several kernels for each matmul
    first and does both, `max-autotune-no-cudagraphs` that alone. `dynamic` makes code for batches of any size at once.
When it helps: many small elementwise operations, or a GPU that waits for Python. The gain has to pay for the
    first step, which takes seconds to minutes: see the break-even steps.
When it hurts: models that are one large matmul after another, short trainings, batches of changing shape
    (each new shape is compiled again, unless `dynamic`). On a CPU it needs a C++ compiler, and `reduce-overhead` does
    nothing there.
Source: https://docs.pytorch.org/docs/stable/generated/torch.compile.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perftool.probes.regions import regions_in
from perftool.scenario import Code, Context, Scenario, refuse_unlisted
from perftool.words import BARE_STEP, Engaged, Proving

if TYPE_CHECKING:
    from torch import nn

    from perftool.plan import Live, Plan

VALUES = ("off", "default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune", "dynamic")
STEPS_PAST_LIMIT = 20


def default(context: Context) -> str:
    return "default" if context.workload.compiled else "off"


def values(context: Context) -> Sequence[str]:
    return VALUES if context.on_cuda else ("off", "default", "dynamic")


def refusal(value: str, context: Context) -> str | None:
    machine = context.machine
    if context.workload.compiled and value in VALUES:
        own = "the script compiles its model itself; change that there, or vary its own option by --vary"
        return None if value == default(context) else own
    if value == "off" or value not in VALUES:
        return refuse_unlisted(value, VALUES)
    if not context.on_cuda and machine.compiler is None:
        return "there is no C++ compiler; install g++ (Debian: apt-get install g++) or set CXX"
    if context.on_cuda and not machine.triton:
        return "Triton is not installed; pip install triton"
    if context.on_cuda and (machine.device_capability or [0])[0] < 7:
        return "Triton needs a GPU of compute capability 7.0 or newer"
    return None


def discouraged(value: str, _: Context) -> str | None:
    if value == "dynamic":
        return "torch takes a size for dynamic by itself once it has changed; ask for it where each batch has its own"
    return None


def apply(plan: Plan, value: str) -> Plan:
    if value == "off":
        return plan

    def compiled(model: nn.Module) -> nn.Module:
        import torch

        return torch.compile(model, **arguments_of(value))  # type: ignore[return-value]

    return replace(plan, model=(*plan.model, compiled))


def proof(training: Live, value: str) -> Proving:
    """A profile of one step shows compiled regions, and for CUDA graphs inductor did not skip them. Where torch has
    given up compiling anew, more steps tell how many still run compiled."""
    import torch
    from torch._dynamo.utils import counters
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        yield BARE_STEP
    regions = regions_in(profiled)
    graphs = counters["stats"]["unique_graphs"]
    breaks = sum(counters["graph_break"].values())
    skips = counters["inductor"]["cudagraph_skips"]
    if value == "off":
        told = "ran compiled regions" if regions else "ran as it was written"
        return Engaged(ok=not regions, evidence=f"the model {told}")
    if not regions:
        return Engaged(ok=False, evidence="the step ran eagerly: its profile shows no compiled region")
    if value == "reduce-overhead" and (skips or not torch.cuda.is_available()):
        return Engaged(ok=False, evidence=f"CUDA graphs were skipped {skips} times, so it is the default mode")
    if is_past_limit(counters):
        eager = 0
        for _ in range(STEPS_PAST_LIMIT):
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                yield BARE_STEP
            eager += not regions_in(profiled)
        if eager:
            limit = torch._dynamo.config.recompile_limit
            told = f"{eager} of {STEPS_PAST_LIMIT} steps ran eagerly, past torch's limit of {limit} compilations"
            return Engaged(ok=False, evidence=told)
    return Engaged(
        ok=True, evidence=f"one step ran {len(regions)} kinds of compiled region; {graphs} graphs, {breaks} breaks"
    )


def arguments_of(value: str) -> dict[str, Any]:
    """Of torch.compile, beside the model."""
    return {"default": {}, "dynamic": {"dynamic": True}}.get(value, {"mode": value})


def is_past_limit(counters: Mapping[str, Mapping[str, int]]) -> bool:
    """Whether torch, by its own counters, has stopped compiling some function anew: what fits nothing that it has
    compiled runs eagerly from there on."""
    told = [*counters["unimplemented"], *counters["graph_break"]]
    return any("recompile limit" in reason for reason in told)


def code(value: str, _: Context) -> Code:
    if value == "off":
        return Code()
    written = {name: f'"{one}"' if isinstance(one, str) else one for name, one in arguments_of(value).items()}
    return Code(model=f"model = torch.compile(model{''.join(f', {name}={one}' for name, one in written.items())})")


scenario = Scenario(
    __name__,
    __doc__,
    default=default,
    values=values,
    refusal=refusal,
    apply=apply,
    proof=proof,
    code=code,
    discouraged=discouraged,
    typical_gain=1.3,
)
