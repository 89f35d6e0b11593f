"""What scenarios need to know of the modules that are trained. Torch must be loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

CHAIN_LEAST = 4  # modules, of which something is gained by computing them again
LARGE_FEATURES, FLOAT8_MULTIPLE = 1024, 16


def describe_modules(roots: Sequence[nn.Module], *, attends: bool = False) -> dict[str, Any]:
    """The fields of `perftool.records.ModuleFacts`.

    roots: the modules that are called. attends: whether attention was seen while they were.
    """
    (only,) = roots if len(roots) == 1 else (None,)
    return {
        "convolution_dims": convolution_dims(roots),
        "channels_last": is_channels_last(roots),
        "block_lists": [] if only is None else blocks_of(only),
        "chains": {} if only is None else {name: len(only.get_submodule(name)._modules) for name in chains_of(only)},
        "attends": attends,
        "large_linears": sum(is_large_linear(part) for root in roots for part in root.modules()),
    }


def convolutions(roots: Iterable[nn.Module]) -> list[_ConvNd]:
    return [part for root in roots for part in root.modules() if isinstance(part, _ConvNd)]


def convolution_dims(roots: Iterable[nn.Module]) -> list[int]:
    """Over how many dimensions the convolutions go, each number once."""
    return sorted({part.weight.ndim - 2 for part in convolutions(roots)})


def channels_last_format(dims: int) -> torch.memory_format | None:
    """The layout of tensors with so many dimensions beside batch and channels; None where torch has none."""
    return {2: torch.channels_last, 3: torch.channels_last_3d}.get(dims)


def is_channels_last(roots: Iterable[nn.Module]) -> bool:
    """Whether the weights of all convolutions lie so; those that lie so in either layout tell nothing."""
    weights = [part.weight for part in convolutions(roots) if channels_last_format(part.weight.ndim - 2)]
    telling = [one for one in weights if not (one.is_contiguous() and lies_channels_last(one))]
    return bool(telling) and all(lies_channels_last(one) for one in telling)


def lies_channels_last(tensor: torch.Tensor) -> bool:
    form = channels_last_format(tensor.ndim - 2)
    return form is not None and tensor.is_contiguous(memory_format=form)


def is_large_linear(module: nn.Module) -> bool:
    """Of a size that products in float8 take, and that is worth the scaling."""
    if not isinstance(module, nn.Linear):
        return False
    sizes = module.weight.shape
    return min(sizes) >= LARGE_FEATURES and all(size % FLOAT8_MULTIPLE == 0 for size in sizes)


def blocks_of(module: nn.Module) -> list[str]:
    """The names of the outermost lists of blocks: two or more children of one class, made of modules themselves."""
    found: list[str] = []
    for name, part in module.named_modules():
        children = list(part.children())
        alike = len(children) > 1 and len({type(one) for one in children}) == 1
        is_list = isinstance(part, (nn.ModuleList, nn.Sequential))
        if is_list and alike and any(children[0].children()) and not _is_within(name, found):
            found.append(name)
    return found


def chains_of(module: nn.Module) -> list[str]:
    """The names of the outermost sequences of several modules, where there are no blocks."""
    found: list[str] = []
    if blocks_of(module):
        return found
    for name, part in module.named_modules():
        is_chain = isinstance(part, nn.Sequential) and type(part).forward is nn.Sequential.forward
        if is_chain and len(part._modules) >= CHAIN_LEAST and not _is_within(name, found):
            found.append(name)
    return found


def _is_within(name: str, others: Iterable[str]) -> bool:
    return any(not other or name == other or name.startswith(f"{other}.") for other in others)


# --------------------------------------------------------------------------------------------------------- attention


@dataclass
class Seen:
    """What was called."""

    attention: bool = False


class _Calls(TorchFunctionMode):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        name = getattr(func, "__name__", "")
        # Whoever wants the weights themselves has them computed one operation after another.
        is_within = name == "multi_head_attention_forward" and not options.get("need_weights", True)
        self._seen.attention |= name == "scaled_dot_product_attention" or is_within
        return func(*args, **options)


@contextmanager
def calls_seen(roots: Iterable[nn.Module]) -> Iterator[Seen]:
    """What these modules call meanwhile, in this thread; nothing where one is compiled, which would be compiled again.
    It slows the calls down."""
    seen = Seen()
    parts = [part for root in roots for part in root.modules()]
    with nullcontext() if any(is_compiled(one) or is_compiled_in_place(one) for one in parts) else _Calls(seen):
        yield seen


def is_compiled(module: nn.Module) -> bool:
    """By torch.compile, as its user wrote it."""
    return type(module).__name__ == "OptimizedModule"


def is_compiled_in_place(module: nn.Module) -> bool:
    """By its own `compile`. What perftool itself puts there has a class of its own."""
    call = module.__dict__.get("_compiled_call_impl")
    return call is not None and not type(call).__module__.startswith("perftool.")
