"""The work of one training step: arithmetic by counting, and the bytes that it has to move.

Source: torch.utils.flop_counter, torch.autograd.graph.saved_tensors_hooks.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from perftool.records import StepWork
from perftool.training import copied, count_samples, tensors_of

if TYPE_CHECKING:
    from perftool.training import Training

aten = torch.ops.aten
MATMULS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm")
CONVOLUTIONS = ("conv", "rnn")  # in the names of operations whose precision has a setting of its own


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
    gradients raises the peak of memory. Raises whatever the workload's code raises.
    """
    batch = copied(_full_batch(training), training.device, non_blocking=False)
    parameters = list(training.module.parameters())
    counter = FlopCounterMode(display=False, custom_mapping=dict(_more_formulas()))
    by_dtype = _ByDtype(counter)
    saved = _Saved()
    with _as_before(training, parameters), _nothing_compiled():
        with counter, by_dtype:
            with torch.autograd.graph.saved_tensors_hooks(saved.note, lambda tensor: tensor):
                loss = training.loss(training.module, batch)
            loss.backward()  # type: ignore[no-untyped-call]
        gradients = {part: part.grad for part in parameters if part.grad is not None}
        resting = _Resting(training, gradients)
    by_op = {str(op).removeprefix("aten."): flops for op, flops in counter.get_flop_counts().get("Global", {}).items()}
    batch_tensors = tensors_of(batch)
    batch_bytes = sum(map(_bytes, batch_tensors))
    saved_parameter_bytes = saved.bytes_of(parameters)
    saved_batch_bytes = saved.bytes_of(batch_tensors)
    activation_bytes = saved.bytes_but_of([*parameters, *batch_tensors, *training.module.buffers()])
    read_forward_bytes = sum(map(_bytes, parameters)) - sum(map(_bytes, _looked_up(training.module)))
    return StepWork(
        samples=count_samples(batch),
        flops=counter.get_total_flops(),
        flops_by_dtype=dict(by_dtype.flops),
        convolution_flops_by_dtype=dict(by_dtype.convolution_flops),
        matmul_flops=sum(by_op.get(name, 0) for name in MATMULS),
        parameter_bytes=read_forward_bytes + saved_parameter_bytes + 2 * resting.updated_bytes,
        gradient_bytes=2 * resting.gradient_bytes,
        optimizer_state_bytes=2 * resting.state_bytes,
        activation_bytes=2 * activation_bytes,
        batch_bytes=batch_bytes + saved_batch_bytes,
        working_set_bytes=sum(map(_bytes, parameters))
        + resting.gradient_bytes
        + resting.state_bytes
        + activation_bytes
        + batch_bytes,
    )


def count_operations(training: Training) -> int:
    """Operations that the host dispatches for the next step: loading (in this process), forward, backward, update."""
    counted = _Counting()
    with counted:
        training.step(training.fetch())
    return counted.operations


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts every operation that torch dispatches. Backward passes dispatch on this thread on a CPU; on a GPU the
    mode goes with them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def _full_batch(training: Training) -> Any:
    """The next batch; the one after it where that is an epoch's rest."""
    batch = next(training.batches)
    return next(training.batches) if count_samples(batch) < (training.plan.batch_size or 0) else batch


class _Resting:
    """Bytes of gradients and of what the update touches for their sake; of sparse gradients only their rows."""

    def __init__(self, training: Training, gradients: dict[nn.Parameter, torch.Tensor]) -> None:
        self.gradient_bytes = self.updated_bytes = self.state_bytes = 0
        for part, gradient in gradients.items():
            values = gradient.coalesce().values() if gradient.is_sparse else gradient
            touched = min(1.0, values.numel() / part.numel()) if part.numel() else 0.0
            state = [one for one in training.optimizer.state.get(part, {}).values() if isinstance(one, torch.Tensor)]
            self.gradient_bytes += _bytes(values)
            self.updated_bytes += round(touched * _bytes(part))
            self.state_bytes += round(touched * sum(map(_bytes, state)))


class _Saved:
    """What autograd keeps for the backward pass, each storage once: of its bytes as many as saved tensors show of it.

    The tensors are alive as long as the graph is, so that no storage takes the place of another meanwhile.
    """

    def __init__(self) -> None:
        self._views: dict[int, dict[Any, int]] = {}
        self._storage_bytes: dict[int, int] = {}

    def note(self, tensor: torch.Tensor) -> torch.Tensor:
        place = _place(tensor)
        if place is not None:
            layout = (tensor.storage_offset(), tensor.shape, tensor.stride())
            self._views.setdefault(place, {})[layout] = _bytes(tensor)
            self._storage_bytes[place] = tensor.untyped_storage().nbytes()
        return tensor

    def bytes_of(self, tensors: Sequence[torch.Tensor]) -> int:
        """Saved bytes that are these tensors'."""
        places = set(map(_place, tensors))
        return sum(self._bytes(place) for place in self._views if place in places)

    def bytes_but_of(self, tensors: Sequence[torch.Tensor]) -> int:
        """Saved bytes that are none of these tensors'."""
        places = set(map(_place, tensors))
        return sum(self._bytes(place) for place in self._views if place not in places)

    def _bytes(self, place: int) -> int:
        return min(self._storage_bytes[place], sum(self._views[place].values()))


class _ByDtype(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Asks a counter after each operation what it has added, and puts that down to the dtype that was multiplied."""

    supports_higher_order_operators = True

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counter = counter
        self.flops: Counter[str] = Counter()
        self.convolution_flops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._counter.get_total_flops()
        out = func(*args, **(kwargs or {}))
        flops = self._counter.get_total_flops() - before
        if flops:
            dtype = next((str(one.dtype) for one in args if isinstance(one, torch.Tensor)), "unknown")
            dtype = dtype.removeprefix("torch.")
            self.flops[dtype] += flops
            if any(part in str(func) for part in CONVOLUTIONS):
                self.convolution_flops[dtype] += flops
        return out


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
            yield getattr(aten, name), formula


def _recurrent(inputs: Sequence[int], weights: Sequence[Sequence[int]]) -> int:
    """Every step of every sequence multiplies with all matrices of the layer. Arguments are shapes."""
    return 2 * prod(inputs[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """What the user compiled runs eagerly and is not seen by the counter: a counter around a compiled callable makes it
    run eagerly for the rest of the process."""
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of global hooks, and whatever the training has warned of before
        yield


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


def _looked_up(module: nn.Module) -> list[torch.Tensor]:
    """Tables of which a forward pass reads a few rows, each once."""
    tables = (part.weight for part in module.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag))
    return list(dict.fromkeys(tables))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _place(tensor: torch.Tensor) -> int | None:
    """Where its storage lies; None for what has none, such as sparse tensors."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (NotImplementedError, RuntimeError):
        return None
