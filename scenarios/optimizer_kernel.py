"""Run the optimizer's update as a loop, as grouped operations, or as one fused kernel.

What it changes: how the update is computed: parameter by parameter (`for-loop`), operation by operation over
    all parameters (`foreach`), or all at once (`fused`). The arithmetic is the same up to rounding.
When it helps: whenever the optimizer takes a share of the step. On a CPU the default is the loop, and fused
    Adam makes one pass over memory instead of a dozen; on a GPU the default is `foreach`.
When it hurts: `foreach` needs memory for temporaries of all parameters. Fused SGD has not been seen to gain
    on a CPU.
Source: https://docs.pytorch.org/docs/stable/optim.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perftool.records import SLOW_OPTIMIZER, Engaged
from perftool.scenario import Code, Context, Scenario, refuse_unlisted

if TYPE_CHECKING:
    from perftool.training import Plan, Training

VALUES = ("for-loop", "foreach", "fused")
FUSED = ("aten::_fused_adam", "aten::_fused_sgd", "aten::_fused_adagrad")  # the model may have fused kernels, too


def default(context: Context) -> str:
    options = context.workload.optimizer_options
    if options.get("fused"):
        return "fused"
    if options.get("foreach") or (options.get("foreach") is None and "foreach" in options and context.on_cuda):
        return "foreach"
    return "for-loop"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    facts = context.workload
    if value in ("foreach", "fused") and value not in facts.optimizer_options:
        return f"{facts.optimizer} has no option '{value}'"
    if value == "fused" and facts.optimizer_options.get("differentiable"):
        return f"{facts.optimizer}(differentiable=True) cannot be fused"
    if value == "fused" and not facts.floating_parameters:
        return "fused kernels take floating-point parameters only, and the model has others"
    return refuse_unlisted(value, VALUES)


def apply(plan: Plan, value: str) -> Plan:
    return replace(plan, optimizer={**plan.optimizer, "foreach": value == "foreach", "fused": value == "fused"})


def proof(training: Training, value: str) -> Engaged:
    """The operations that a profile of one step shows within the optimizer's own step."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        training.bare_step()
    names = names_within("Optimizer.step#", profiled.events() or [])
    if any(name.startswith(FUSED) for name in names):
        ran = "fused"
    else:
        ran = "foreach" if any(name.startswith("aten::_foreach_") for name in names) else "for-loop"
    return Engaged(ok=ran == value, evidence=f"the update of one step ran as {ran}")


def names_within(prefix: str, events: Sequence[Any]) -> set[str]:
    """Names of the profiler's events that lie within one whose name begins with the prefix, in its thread."""
    ranges = [(one.thread, one.time_range) for one in events if one.name.startswith(prefix)]
    return {
        one.name
        for one in events
        for thread, around in ranges
        if one.thread == thread and around.start <= one.time_range.start and one.time_range.end <= around.end
    }


def code(value: str, context: Context) -> Code:
    if value == default(context):
        return Code()
    # Both, since what the user's own optimizer says about the other one would stand against it.
    options = [option for option in ("foreach", "fused") if option in context.workload.optimizer_options]
    return Code(optimizer_arguments=", ".join(f"{option}={option == value}" for option in options))


scenario = Scenario(
    __name__,
    __doc__,
    default=default,
    values=values,
    refusal=refusal,
    apply=apply,
    proof=proof,
    code=code,
    cures={SLOW_OPTIMIZER: ("fused",)},
    typical_gain=1.3,
)
