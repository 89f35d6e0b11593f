"""Scale the learning rate with the batch.

What it changes: the optimizer's learning rates, by the factor that the batch has grown by (`linear`) or by its
    square root (`sqrt`). It belongs to `batch_size`, and is tried only with `--allow learning_rate`.
When it helps: larger batches, whose gradients are less noisy: with the old rate they often need nearly as many
    steps to the same loss. Judge it by `--objective time-to-loss`.
When it hurts: large factors, early in training, where a warm-up of the rate may be needed; optimizers that
    choose their own step.
Source: https://arxiv.org/abs/1706.02677
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perftool.scenario import Code, Context, Scenario, refuse_unlisted
from perftool.words import Engaged, Settings

if TYPE_CHECKING:
    import torch

    from perftool.plan import Live, Plan

VALUES = ("own", "linear", "sqrt")
POWERS = {"own": 0.0, "linear": 1.0, "sqrt": 0.5}


def default(_: Context) -> str:
    return "own"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    if value in VALUES and value != "own" and context.workload.driver == "script":
        return "the script chooses its batches and its rates; vary its own option with --vary '--lr=0.1|0.2'"
    if value in VALUES and value != "own" and context.workload.batch_size is None:
        return "the tensors are fed whole at every step, so there is no batch that grows"
    return refuse_unlisted(value, VALUES)


def clash(value: str, others: Settings) -> str | None:
    if value != "own" and "batch_size" not in others:
        return "the batch is the training's own, so there is nothing to scale by; set batch_size, too"
    return None


def apply(plan: Plan, value: str) -> Plan:
    if value == "own":
        return plan
    return replace(plan, optimizer_changes=(*plan.optimizer_changes, lambda built, made: scale(built, made, value)))


def scale(plan: Plan, optimizer: torch.optim.Optimizer, value: str) -> None:
    """Multiply every group's rate; the plan's batch size is the one in force, whatever else was set first."""
    for group in optimizer.param_groups:
        group["lr"] *= factor(plan, value)


def factor(plan: Plan, value: str) -> float:
    own, present = None if plan.workload is None else plan.workload.batch_size, plan.batch_size
    return 1.0 if own is None or present is None else (present / own) ** POWERS[value]


def proof(training: Live, value: str) -> Engaged:
    """The rates against those of an optimizer that the workload makes afresh."""
    plan = training.plan
    assert plan.workload is not None, "refused to scripts"
    plain = plan.workload.optimizer(training.module.parameters())
    ratios = {
        round(float(ours["lr"] / theirs["lr"]), 6)
        for ours, theirs in zip(training.optimizer.param_groups, plain.param_groups, strict=True)
        if theirs["lr"]
    }
    wanted = round(factor(plan, value), 6)
    told = ", ".join(f"{ratio:g}" for ratio in sorted(ratios)) or "nothing"
    return Engaged(ok=ratios <= {wanted}, evidence=f"the learning rate is {told} times the optimizer's own")


def code(value: str, context: Context) -> Code:
    own = context.workload.batch_size
    if value == "own" or own is None:
        return Code()
    power = "" if value == "linear" else " ** 0.5"
    grown = f"batch_size / {own}" if value == "linear" else f"(batch_size / {own})"
    return Code(optimizer=f'for group in optimizer.param_groups:\n    group["lr"] *= {grown}{power}')


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
    clash=clash,
    changes="optimisation",
)
