"""The work of one training step: arithmetic by counting, and the bytes that it has to move.

`Work` counts whatever runs while it is open, so a step of a script's own loop, too. It needs torch alone; records are
made by whoever asks in perftool's own loop.
Source: torch.utils.flop_counter, torch.autograd.graph.saved_tensors_hooks.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

from perftool.probes.storages import Passes, Place, Uncountable, bytes_of, place_of, places_of, tensors_within
from perftool.training import copied, leaves_of, tensors_of
from perftool.words import BACKWARD, OPTIMIZER

if TYPE_CHECKING:
    from perftool.records import StepWork
    from perftool.training import Training

aten = torch.ops.aten
MATMULS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm")
CONVOLUTIONS = ("conv", "rnn")  # in the names of operations whose precision has a setting of its own
LOOKUPS = "embedding"  # in the names of operations that read a few rows of a table


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that torch dispatches while this is open, and the arithmetic of those that multiply.

    Backward passes dispatch on this thread on a CPU; on a GPU the mode goes with them. What fails here does not reach
    the code around: `trouble` tells it.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self.trouble: str | None = None  # why not all arithmetic is counted
        self._by_name: Counter[str] = Counter()
        self._by_dtype: Counter[str] = Counter()
        self._convolutions_by_dtype: Counter[str] = Counter()

    @property
    def flops(self) -> int:
        """Raises Uncountable."""
        if self.trouble is not None:
            raise Uncountable(self.trouble)
        return sum(self._by_name.values())

    def phase(self, name: str) -> None:
        """What follows is of this phase. Here all count alike."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.operations += 1
        try:
            self._count(func, args, kwargs, out)
        except Exception as error:
            self.trouble = self.trouble or f"{func}: {type(error).__name__}: {error}"
        return out

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if isinstance(func, torch._ops.HigherOrderOperator):
            raise Uncountable("what it does inside is not known")
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is None:
            return
        flops = formula(*args, **kwargs, out_val=out)
        name = func._overloadpacket.__name__
        dtype = next((str(one.dtype) for one in args if isinstance(one, torch.Tensor)), "unknown")
        dtype = dtype.removeprefix("torch.")
        self._by_name[name] += flops
        self._by_dtype[dtype] += flops
        if any(part in name for part in CONVOLUTIONS):
            self._convolutions_by_dtype[dtype] += flops


class Work(Counting):  # type: ignore[no-untyped-call]
    """Counts the work of one step, of however many forward and backward passes, while this is open.

    Whoever opens it tells the phases of the step.
    """

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._parameters = list(parameters)
        self._places = places_of(self._parameters)
        self._passes = Passes()
        self._is_forward = True
        self._touched: set[Place] = set()
        self._read_bytes = self._written_bytes = 0
        self._gradients: dict[torch.Tensor, int] = {}

    def __enter__(self) -> Work:
        with ExitStack() as opened:
            for part in self._parameters:
                if part.requires_grad and part.is_leaf:
                    opened.callback(part.register_post_accumulate_grad_hook(self._accumulated).remove)  # type: ignore[no-untyped-call]
            opened.enter_context(self._passes)
            super().__enter__()  # type: ignore[no-untyped-call]
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._opened.close()

    def phase(self, name: str) -> None:
        self._is_forward = name not in (BACKWARD, OPTIMIZER)
        self._passes.phase(name)
        if name == BACKWARD:
            self._read_bytes += sum(bytes_of(part) for part in self._parameters if place_of(part) in self._touched)
            self._touched = set()

    def fields(
        self, *, samples: int, batch: Sequence[torch.Tensor], buffers: Iterable[torch.Tensor], optimizers: Iterable[Any]
    ) -> dict[str, Any]:
        """The fields of a StepWork. batch: the tensors that were fed in. Raises Uncountable."""
        done, batch_places = self._passes.saved(), places_of(batch)
        held = self._places | batch_places | places_of(buffers)
        saved_parameter_bytes = sum(one.shown_bytes(self._places, within=True) for one in done)
        saved_batch_bytes = sum(one.shown_bytes(batch_places, within=True) for one in done)
        activations_bytes = [one.shown_bytes(held, within=False) for one in done]
        resting = _Resting(self._gradients, optimizers)
        batch_bytes = sum(map(bytes_of, batch))
        return {
            "samples": samples,
            "flops": self.flops,
            "flops_by_dtype": dict(self._by_dtype),
            "convolution_flops_by_dtype": dict(self._convolutions_by_dtype),
            "matmul_flops": sum(self._by_name[name] for name in MATMULS),
            "parameter_bytes": self._read_bytes + saved_parameter_bytes + 2 * resting.updated_bytes,
            "gradient_bytes": self._written_bytes + resting.gradient_bytes,
            "optimizer_state_bytes": 2 * resting.state_bytes,
            "activation_bytes": 2 * sum(activations_bytes),
            "batch_bytes": batch_bytes + saved_batch_bytes,
            "working_set_bytes": sum(map(bytes_of, self._parameters))
            + resting.gradient_bytes
            + resting.state_bytes
            + max(activations_bytes, default=0)
            + batch_bytes,
        }

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if self._is_forward and LOOKUPS not in str(func):
            parts = (part for part in leaves_of((args, kwargs)) if isinstance(part, torch.Tensor))
            self._touched |= places_of(parts) & self._places
        super()._count(func, args, kwargs, out)

    def _accumulated(self, part: torch.Tensor) -> None:
        """A gradient has been written, for the first or another time."""
        if part.grad is None:  # an update within the backward pass has used it up
            return
        try:
            self._gradients[part] = _gradient_bytes(part.grad)
            self._written_bytes += self._gradients[part]
        except Exception as error:
            self.trouble = self.trouble or f"{type(error).__name__}: {error}"


class _Resting:
    """Bytes of gradients and of what the update touches for their sake; of sparse gradients only their rows."""

    def __init__(self, gradients: Mapping[torch.Tensor, int], optimizers: Iterable[Any]) -> None:
        states = [getattr(one, "state", {}) for one in optimizers]
        self.gradient_bytes = sum(gradients.values())
        self.updated_bytes = self.state_bytes = 0
        for part, gradient_bytes in gradients.items():
            touched = min(1.0, gradient_bytes / bytes_of(part)) if part.numel() else 0.0
            held = tensors_within([state[part] for state in states if part in state])
            self.updated_bytes += round(touched * bytes_of(part))
            self.state_bytes += round(touched * sum(map(bytes_of, held)))


def _gradient_bytes(gradient: torch.Tensor) -> int:
    return bytes_of(gradient.coalesce().values() if gradient.is_sparse else gradient)


def count_work(training: Training) -> StepWork:
    """The work of the next step: its loss and backward pass are done once, eagerly, on the module as the user wrote it.

    training: one that has done a step, so that its optimizer has its state.

    FLOPs are those of matrix products, convolutions, attention and recurrent layers, as the eager step does them:
    elementwise operations and the optimizer are left out, and what is computed again for checkpointed activations
    counts twice.

    Bytes are the least that the step moves where nothing stays in a cache from one pass to the next, since each pass
    touches every part of it once: forward reads parameters and the batch and writes what is saved for backward;
    backward reads that, with those parameters and batches that autograd saved, and writes gradients; the update reads
    gradients, state and parameters, and writes state and parameters. Whatever is not saved is taken to stay in
    registers, and of embeddings the forward pass is taken to read nothing. Real steps move more, or less where caches
    hold a part of the working set.

    Gradients, buffers and the random state are put back, and compiled code stays compiled. What cannot be undone: the
    feed has moved on by a batch or two, and counters of the workload's own have counted a step. The second set of
    gradients raises the peak of memory. Raises whatever the workload's code raises, and Uncountable.
    """
    from perftool.records import StepWork

    batch, samples = _full_batch(training)
    batch = copied(batch, training.device, non_blocking=False)
    parameters = list(training.module.parameters())
    work = Work(parameters)
    with _as_before(training, parameters), nothing_compiled(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever the training has warned of before
        with work:
            loss = training.loss(training.module, batch)
            work.phase(BACKWARD)
            loss.backward()  # type: ignore[no-untyped-call]
    fields = work.fields(
        samples=samples,
        batch=tensors_of(batch),
        buffers=training.module.buffers(),
        optimizers=[training.optimizer],
    )
    return StepWork(**fields)


def count_operations(training: Training) -> int:
    """Operations that the host dispatches for the next step: loading (in this process), forward, backward, update."""
    counted = Counting()
    with counted:
        training.step(training.fetch())
    return counted.operations


def compiled() -> tuple[int, int]:
    """Graph breaks and graphs that torch.compile has made in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is None:
        return 0, 0
    return sum(dynamo.counters["graph_break"].values()), dynamo.counters["stats"]["unique_graphs"]


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """What was compiled runs eagerly: its operations are seen then, and it is not compiled anew for being watched."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled, and this would load the compiler
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _full_batch(training: Training) -> tuple[Any, int]:
    """The next batch, and its samples; the one after it where that is an epoch's rest."""
    batch, samples = training.one_batch()
    return training.one_batch() if samples < (training.plan.batch_size or 0) else (batch, samples)


@contextmanager
def _as_before(training: Training, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Put gradients, buffers and the random state back at the end. Inside there are no gradients."""
    gradients = [part.grad for part in parameters]
    buffers = [(buffer, buffer.detach().clone()) for buffer in training.module.buffers()]
    devices = [training.device] if training.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            for part in parameters:
                part.grad = None
            yield
    finally:
        for part, gradient in zip(parameters, gradients, strict=True):
            part.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):  # BatchNorm writes past the counter of versions
                    buffer.copy_(before)


def _more_formulas() -> Iterator[tuple[Any, Callable[..., int]]]:
    """FLOPs of fused operations that torch's counter passes over: attention on a CPU, and recurrent layers."""
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    formulas: dict[str, Callable[..., int]] = {
        attention: lambda *shapes, **_: int(sdpa_flop_count(*shapes[:3])),  # type: ignore[no-untyped-call]
        f"{attention}_backward": lambda *shapes, **_: int(sdpa_backward_flop_count(*shapes[:4])),  # type: ignore[no-untyped-call]
        "mkldnn_rnn_layer": lambda inputs, first, second, *_, **__: _recurrent(inputs, [first, second]),
        "mkldnn_rnn_layer_backward": lambda inputs, first, second, *_, **__: 2 * _recurrent(inputs, [first, second]),
        "_cudnn_rnn": lambda inputs, weights, *_, **__: _recurrent(inputs, weights),
        "_cudnn_rnn_backward": lambda inputs, weights, *_, **__: 2 * _recurrent(inputs, weights),
    }
    for name, formula in formulas.items():
        if hasattr(aten, name):
            yield getattr(aten, name), shape_wrapper(formula)  # type: ignore[no-untyped-call]


def _recurrent(inputs: Sequence[int], weights: Sequence[Sequence[int]]) -> int:
    """Every step of every sequence multiplies with all matrices of the layer. Arguments are shapes."""
    return 2 * prod(inputs[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


_FORMULAS: Mapping[Any, Callable[..., int]] = {**flop_registry, **dict(_more_formulas())}
