"""Capture the whole training step into a CUDA graph and replay it.

What it changes: copy-in, forward, backward and optimizer are recorded once and then launched as one graph,
    with the optimizer's `capturable` option where it has one. A batch of another shape runs without the
    graph.
When it helps: when the GPU waits for Python to launch many small kernels.
When it hurts: the captured step keeps its memory for itself; Python in the step runs only once, so logging,
    data-dependent branches and hooks in it are frozen. Three steps on the first batch are spent on warming
    up.
Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perftool.records import Engaged
from perftool.scenario import Code, Context, Scenario, refuse_unlisted

if TYPE_CHECKING:
    import torch

    from perftool.training import Plan, Step, Training
    from perftool.workload import Batch

VALUES = ("off", "on")
WARM_STEPS = 3  # before a capture, on a side stream, as the documentation asks


def default(_: Context) -> str:
    return "off"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    if value == "on" and not context.on_cuda:
        return "there is no CUDA device: the training runs on the CPU"
    return refuse_unlisted(value, VALUES)


def apply(plan: Plan, value: str) -> Plan:
    return plan if value == "off" else replace(plan, step=(*plan.step, graphed))


def graphed(training: Training, step: Step) -> Step:
    """The step as a graph, captured at the first batch. Raises SettingError for what cannot be captured."""
    from perftool.training import SettingError, backward_and_step, configure

    if training.plan.update is not backward_and_step:
        raise SettingError("a scaled loss makes the step wait for the GPU, which no graph can hold; use amp=bf16")
    if "capturable" in training.optimizer.defaults:
        configure(training.optimizer, {"capturable": True})
    captured: Captured | None = None

    def replay(batch: Batch) -> torch.Tensor:
        nonlocal captured
        if captured is None:
            captured = Captured(step, batch)
        return captured.replay(batch) if captured.fits(batch) else step(batch)

    return replay


class Captured:
    """A step on buffers of its own."""

    def __init__(self, step: Step, batch: Batch) -> None:
        import torch

        from perftool.training import map_tensors

        self._batch = map_tensors(lambda tensor: tensor.clone(), batch)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_STEPS):
                step(self._batch)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, such as the one that pins batches, may use CUDA meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._loss = step(self._batch)

    def fits(self, batch: Batch) -> bool:
        """Whether the batch has the shapes that were captured."""
        from perftool.training import tensors_of

        return [part.shape for part in tensors_of(batch)] == [part.shape for part in tensors_of(self._batch)]

    def replay(self, batch: Batch) -> torch.Tensor:
        """One step on this batch. The loss is overwritten by the next."""
        from perftool.training import tensors_of

        for ours, theirs in zip(tensors_of(self._batch), tensors_of(batch), strict=True):
            ours.copy_(theirs, non_blocking=True)
        self._graph.replay()
        return self._loss


def proof(training: Training, value: str) -> Engaged:
    """A profile of one full-sized step shows a graph launch."""
    from torch.profiler import profile, supported_activities

    with profile(activities=supported_activities()) as profiled:  # type: ignore[no-untyped-call]
        for _ in range(2):  # one of them may be the last of an epoch, of another shape
            training.step(training.fetch())
    launches = sum(event.count for event in profiled.key_averages() if "GraphLaunch" in event.key)
    return Engaged(ok=bool(launches) == (value == "on"), evidence=f"two steps launched {launches} graphs")


def code(value: str, context: Context) -> Code:
    if value == "off":
        return Code()
    facts = context.workload
    helpers = _TENSORS_OF if facts.batch_form == "nested" else ""
    return Code(
        optimizer_arguments="capturable=True" if "capturable" in facts.optimizer_options else "",
        around_step=helpers + _AROUND_STEP.format(**_FORMS[facts.batch_form], warm_steps=WARM_STEPS),
    )


_FORMS = {
    "tensor": {"clone": "batch.clone()", "static_tensors": "[static_batch]", "tensors": "[batch]"},
    "list": {"clone": "[part.clone() for part in batch]", "static_tensors": "static_batch", "tensors": "batch"},
    "tuple": {"clone": "tuple(part.clone() for part in batch)", "static_tensors": "static_batch", "tensors": "batch"},
    "dict": {
        "clone": "{key: part.clone() for key, part in batch.items()}",
        "static_tensors": "static_batch.values()",
        "tensors": "batch.values()",
    },
    "nested": {
        "clone": "map_tensors(torch.clone, batch)",
        "static_tensors": "tensors_of(static_batch)",
        "tensors": "tensors_of(batch)",
    },
}
_TENSORS_OF = """\
def tensors_of(batch):
    found = []
    map_tensors(found.append, batch)
    return found


"""
_AROUND_STEP = '''\
def graphed(step):
    """The step as a CUDA graph, captured at the first batch. A batch of other shapes runs without it."""
    graph = torch.cuda.CUDAGraph()
    static_batch = static_loss = None

    def replay(batch):  # the loss that it returns is overwritten by the next step
        nonlocal static_batch, static_loss
        if static_batch is None:
            static_batch = {clone}
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range({warm_steps}):
                    step(static_batch)
            torch.cuda.current_stream().wait_stream(side)
            # Other threads, such as one that pins batches, may use CUDA meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                static_loss = step(static_batch)
        if [part.shape for part in {tensors}] != [part.shape for part in {static_tensors}]:
            return step(batch)
        for static, part in zip({static_tensors}, {tensors}):
            static.copy_(part, non_blocking=True)
        graph.replay()
        return static_loss

    return replay


step = graphed(step)'''


scenario = Scenario(
    __name__, __doc__, default=default, values=values, refusal=refusal, apply=apply, proof=proof, code=code
)
