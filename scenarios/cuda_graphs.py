"""Capture the whole training step into a CUDA graph and replay it.

What it changes: copy-in, forward, backward and optimizer are recorded once and then launched as one graph,
    with the optimizer's `capturable` option where it has one. A batch of another shape runs without the
    graph.
When it helps: when the GPU waits for Python to launch many small kernels.
When it hurts: the captured step keeps its memory for itself; Python in the step runs only once, so logging,
    data-dependent branches and hooks in it are frozen. The first three steps run without the graph. With optimizers
    other than Adam and AdamW the lines to paste capture it again whenever the learning rate changes.
Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perftool.scenario import Code, Context, Scenario, refuse_unlisted
from perftool.words import LAUNCH_BOUND, STEP, Engaged, Proving, Settings

if TYPE_CHECKING:
    import torch

    from perftool.plan import Live, Looped, Plan, Step
    from perftool.workload import Batch

VALUES = ("off", "on")
TAKE_TENSOR_RATES = ("Adam", "AdamW")  # others wait for the device to read one, which no graph can hold
WARM_STEPS = 3  # before a capture, on a side stream, as the documentation asks
GRAPHED_COMPILATION = ("reduce-overhead", "max-autotune")  # modes of torch_compile with graphs of their own


def default(_: Context) -> str:
    return "off"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    if value == "on" and not context.on_cuda:
        return "there is no CUDA device: the training runs on the CPU"
    facts = context.workload
    if value == "on" and "capturable" not in facts.optimizer_options and facts.optimizer_step != "SGD":
        return f"{facts.optimizer} has no option 'capturable': a graph would freeze what it counts, such as its steps"
    return refuse_unlisted(value, VALUES)


def clash(value: str, others: Settings) -> str | None:
    mode = others.get("torch_compile")
    if value == "on" and mode in GRAPHED_COMPILATION:
        return f"torch_compile={mode} captures graphs of its own, and captures cannot be nested"
    return None


def apply(plan: Plan, value: str) -> Plan:
    return plan if value == "off" else replace(plan, step=(*plan.step, graphed), whole_step=True)


def graphed(training: Looped, step: Step) -> Step:
    """The step as a graph. Raises SettingError for what cannot be captured."""
    from perftool.plan import SettingError, backward_and_step
    from perftool.training import configure
    from scenarios.compiled_step import hooks_of

    if training.plan.update is not backward_and_step:
        raise SettingError("a scaled loss makes the step wait for the GPU, which no graph can hold; use amp=bf16")
    hung = hooks_of(training.optimizer, training.module)
    if hung is not None:
        raise SettingError(f"{hung}, which a graph would run once")
    if "capturable" in training.optimizer.defaults:
        configure(training.optimizer, {"capturable": True})
    return Graphed(step)


class Graphed:
    """A step as a graph of the first batch's shapes, captured after WARM_STEPS with them that train as any other. A
    batch of other shapes runs without."""

    replays = 0  # in this process, for the proof

    def __init__(self, step: Step) -> None:
        self._step = step
        self._warm_steps = 0
        self._shapes: list[torch.Size] = []
        self._side: torch.cuda.Stream | None = None  # one for all: each would have a pool of memory of its own
        self._captured: Captured | None = None

    def __call__(self, batch: Batch) -> torch.Tensor:
        import torch

        if self._side is None:
            self._shapes, self._side = shapes_of(batch), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        if shapes_of(batch) != self._shapes:
            return self._step(batch)
        if self._warm_steps < WARM_STEPS:
            self._warm_steps += 1
            return self._on_side_stream(self._side, batch)
        if self._captured is None:
            self._captured = Captured(self._step, batch)
        Graphed.replays += 1
        return self._captured.replay(batch)

    def _on_side_stream(self, side: torch.cuda.Stream, batch: Batch) -> torch.Tensor:
        """One step as it is, on another stream, before and after which this one waits."""
        import torch

        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            loss = self._step(batch)
        torch.cuda.current_stream().wait_stream(side)
        return loss


def shapes_of(batch: Batch) -> list[torch.Size]:
    from perftool.training import tensors_of

    return [part.shape for part in tensors_of(batch)]


class Captured:
    """A step on buffers of its own."""

    def __init__(self, step: Step, batch: Batch) -> None:
        import torch

        from perftool.plan import SettingError
        from perftool.training import leaves_of, map_tensors

        frozen = [part for part in leaves_of(batch) if not isinstance(part, torch.Tensor)]
        if frozen:
            kind = type(frozen[0]).__name__
            raise SettingError(f"a batch holds a {kind}, which a graph would freeze; it must hold tensors only")
        self._batch = map_tensors(lambda tensor: tensor.clone(), batch)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, such as the one that pins batches, may use CUDA meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._loss = step(self._batch)

    def replay(self, batch: Batch) -> torch.Tensor:
        """One step on this batch. The loss is overwritten by the next."""
        from perftool.training import tensors_of

        for ours, theirs in zip(tensors_of(self._batch), tensors_of(batch), strict=True):
            ours.copy_(theirs, non_blocking=True)
        self._graph.replay()
        return self._loss


def proof(training: Live, value: str) -> Proving:
    """The step's graph is replayed. Counted here: a profile of the device would slow down all that comes after it in
    the process (https://github.com/pytorch/pytorch/issues/144455)."""
    before = Graphed.replays
    for _ in range(2):  # one of them may be the last of an epoch, of another shape
        yield STEP
    replays = Graphed.replays - before
    return Engaged(ok=bool(replays) == (value == "on"), evidence=f"two steps replayed {replays} graphs")


def code(value: str, context: Context) -> Code:
    if value == "off":
        return Code()
    facts = context.workload
    helpers = _TENSORS_OF if facts.batch_form == "nested" else ""
    takes_tensor = facts.optimizer_step in TAKE_TENSOR_RATES
    return Code(
        optimizer_arguments="capturable=True" if "capturable" in facts.optimizer_options else "",
        optimizer=_TENSOR_RATES if takes_tensor else "",
        around_step=helpers
        + _AROUND_STEP.format(
            **_FORMS[facts.batch_form],
            **(_RATES_WRITTEN if takes_tensor else _RATES_CAPTURED),
            warm_steps=WARM_STEPS,
        ),
    )


# A graph keeps a number that was in it when it was captured, so a learning rate is a tensor, or captured again.
_TENSOR_RATES = """\
rates = [torch.tensor(float(group["lr"]), device=device) for group in optimizer.param_groups]"""
_RATES_WRITTEN = {
    "rates": "",
    "nonlocal_rates": "",
    "follow_rates": """
        for rate, group in zip(rates, optimizer.param_groups):
            if group["lr"] is not rate:  # a graph would keep the number
                rate.fill_(group["lr"])
                group["lr"] = rate""",
    "or_rates": "",
    "keep_rates": "",
}
_RATES_CAPTURED = {
    "rates": " rates =",
    "nonlocal_rates": ", rates",
    "follow_rates": '\n        present_rates = [group["lr"] for group in optimizer.param_groups]',
    "or_rates": " or rates != present_rates",
    "keep_rates": "\n            rates = present_rates",
}
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
    """The step as a CUDA graph, after a few without. A batch of other shapes than the first one's runs without."""
    graph = side = shapes = static_batch = static_loss ={rates} None
    warm_steps = 0

    def replay(batch):  # the loss that it returns is overwritten by the next step
        nonlocal graph, side, shapes, static_batch, static_loss, warm_steps{nonlocal_rates}{follow_rates}
        present_shapes = [part.shape for part in {tensors}]
        if side is None:
            side, shapes = torch.cuda.Stream(), present_shapes
        if present_shapes != shapes:
            return step(batch)
        if warm_steps < {warm_steps}:
            warm_steps += 1
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                loss = step(batch)
            torch.cuda.current_stream().wait_stream(side)
            return loss
        if graph is None{or_rates}:
            graph, static_batch = torch.cuda.CUDAGraph(), {clone}{keep_rates}
            # Other threads, such as one that pins batches, may use CUDA meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                static_loss = step(static_batch)
        for static, part in zip({static_tensors}, {tensors}):
            static.copy_(part, non_blocking=True)
        graph.replay()
        return static_loss

    return replay


step = graphed(step)'''


scenario = Scenario(
    __name__,
    __doc__,
    default=default,
    values=values,
    refusal=refusal,
    apply=apply,
    proof=proof,
    code=code,
    cures={LAUNCH_BOUND: ("on",)},
    clash=clash,
    typical_gain=2.0,
)
