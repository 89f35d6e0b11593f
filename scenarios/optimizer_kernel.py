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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perftool.scenario import Code, Context, Scenario, refuse_unlisted
from perftool.words import BARE_STEP, SLOW_OPTIMIZER, Engaged, Proving

if TYPE_CHECKING:
    import torch

    from perftool.plan import Live, Plan

VALUES = ("for-loop", "foreach", "fused")
PROOF_STEPS = 3  # an update may be left out, as a scaled one is where gradients overflow


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
    if value == "fused" and facts.sparse_gradients:
        return "fused kernels take dense gradients only, and an embedding of the model gives sparse ones"
    return refuse_unlisted(value, VALUES)


def apply(plan: Plan, value: str) -> Plan:
    return replace(plan, optimizer={**plan.optimizer, "foreach": value == "foreach", "fused": value == "fused"})


def proof(training: Live, value: str) -> Proving:
    """The operations that write into parameters during the optimizer's own step."""
    optimizer = training.optimizer
    if value != "for-loop" and value not in optimizer.defaults:
        kind = type(optimizer).__name__
        return Engaged(ok=False, evidence=f"there is nothing to act on: {kind} has no option '{value}'")
    with writing_into(optimizer) as names:
        for _ in range(PROOF_STEPS):
            if not names:
                yield BARE_STEP
    if not names:
        return Engaged(ok=False, evidence=f"no update was seen in {PROOF_STEPS} steps")
    kinds = {"aten::_fused_": "fused", "aten::_foreach_": "foreach"}
    ran = next((kind for start, kind in kinds.items() if any(name.startswith(start) for name in names)), "for-loop")
    return Engaged(ok=ran == value, evidence=f"the update of one step ran as {ran}")


@contextmanager
def writing_into(optimizer: torch.optim.Optimizer) -> Iterator[set[str]]:
    """The set to which each step of the optimizer adds the names of the operations that write into its parameters.

    What hooks of the step do to gradients and averages is none of them.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    names: set[str] = set()
    parameters: set[int] = set()  # addresses of their memory

    def is_parameter(part: Any) -> bool:
        plain = isinstance(part, torch.Tensor) and part.layout is torch.strided
        return plain and part.untyped_storage().data_ptr() in parameters

    class Noting(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, operation: Any, _types: Any, arguments: Any = (), options: Any = None) -> Any:
            if operation._schema.is_mutable and arguments:
                written = arguments[0] if isinstance(arguments[0], (list, tuple)) else arguments[:1]
                if any(map(is_parameter, written)):
                    names.add(operation._schema.name)
            return operation(*arguments, **(options or {}))

    noting = Noting()  # type: ignore[no-untyped-call]

    def begin(*_: Any) -> None:
        own = (part for group in optimizer.param_groups for part in group["params"])
        parameters.update(part.untyped_storage().data_ptr() for part in own)
        noting.__enter__()  # type: ignore[no-untyped-call]

    def end(*_: Any) -> None:
        noting.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    hooks = [optimizer.register_step_pre_hook(begin), optimizer.register_step_post_hook(end)]
    try:
        yield names
    finally:
        for hook in hooks:
            hook.remove()


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
    switchable=True,
    cures={SLOW_OPTIMIZER: ("fused",)},
    typical_gain=1.3,
)
