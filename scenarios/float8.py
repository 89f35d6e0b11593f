"""Multiply large matrices in float8, with torchao.

What it changes: large linear layers (`torchao.float8.convert_to_float8_training`) scale inputs, weights and gradients
    into float8 for their three products; weights stay in their own type. Layers below 1,024 features, or whose sizes
    are no multiples of 16, stay as they are.
When it helps: products of several thousand rows and columns on GPUs with float8 units (compute capability 8.9 or
    newer), together with torch_compile, which fuses the scaling.
When it hurts: without compilation, or with smaller layers, scaling costs more than the products save. It changes
    numerics: the loss is compared over several seeds before it is advised.
Source: https://docs.pytorch.org/ao/stable/workflows/training.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perftool.probes.regions import regions_in
from perftool.scenario import Code, Context, Scenario, refuse_unlisted
from perftool.words import BARE_STEP, Engaged, Proving, Settings

if TYPE_CHECKING:
    from torch import nn

    from perftool.plan import Live, Plan

VALUES = ("off", "on")
SCALED_PRODUCT, LAYER = "_scaled_mm", "Float8Linear"


def default(_: Context) -> str:
    return "off"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    machine = context.machine
    if value != "on":
        return refuse_unlisted(value, VALUES)
    if not context.on_cuda:
        return "CPUs have no units for float8 products"
    if tuple(machine.device_capability or (0, 0)) < (8, 9):
        return "float8 products need a GPU of compute capability 8.9 or newer"
    if not machine.torchao:
        return "torchao is not installed; pip install torchao"
    if not context.workload.modules.large_linears:
        return "the model has no linear layer of 1,024 features and more, in multiples of 16, where float8 would pay"
    return None


def clash(value: str, others: Settings) -> str | None:
    if value == "on" and others.get("compiled_step", "off") != "off":
        return "the scaling of float8 products has not been seen to work within one compiled step; use torch_compile"
    return None


def apply(plan: Plan, value: str) -> Plan:
    return plan if value == "off" else replace(plan, module=(*plan.module, convert))


def convert(module: nn.Module) -> bool:
    """A module's large linear layers, in place; their parameters stay the same objects. Whether it has any.

    Batches that are no multiple of 16 are padded, since the products of gradients sum over them.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    from perftool.probes.modules import is_large_linear

    found = any(is_large_linear(part) for part in module.modules())
    config = Float8LinearConfig(pad_inner_dim=True)
    convert_to_float8_training(module, module_filter_fn=lambda part, name: is_large_linear(part), config=config)
    return found


def proof(training: Live, value: str) -> Proving:
    """Layers in float8, and their products in a step, unless compiled code hides them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        yield BARE_STEP
    layers = sum(type(part).__name__ == LAYER for part in training.module.modules())
    calls = sum(event.count for event in profiled.key_averages() if event.key.endswith(SCALED_PRODUCT))
    is_compiled = bool(regions_in(profiled))
    told = f"{layers} layers are in float8; a step showed {calls} such products"
    is_on = bool(layers) and (bool(calls) or is_compiled)
    return Engaged(ok=is_on == (value == "on"), evidence=f"{told}, and compiled code" if is_compiled else told)


def code(value: str, _: Context) -> Code:
    if value == "off":
        return Code()
    return Code(
        imports="from torchao.float8 import Float8LinearConfig, convert_to_float8_training",
        model=_MODEL,
    )


_MODEL = """\
convert_to_float8_training(
    model,
    module_filter_fn=lambda part, name: min(part.weight.shape) >= 1024 and all(n % 16 == 0 for n in part.weight.shape),
    config=Float8LinearConfig(pad_inner_dim=True),  # for batches that are no multiple of 16
)"""


scenario = Scenario(
    __name__,
    __doc__,
    default=default,
    values=values,
    refusal=refusal,
    apply=apply,
    proof=proof,
    code=code,
    clash=clash,
    changes="numerics",
    typical_gain=1.15,
)
