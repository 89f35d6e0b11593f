"""What perftool has to know of a script, learnt from one launch of it that is thrown away."""

from __future__ import annotations

import gc
import inspect
import os
import platform
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from perftool.script.loop import Loop
from perftool.script.realise import Realised, place_of
from perftool.script.sites import FRAMEWORKS, is_own

if TYPE_CHECKING:
    import torch

OPTIONS = ("foreach", "fused", "capturable", "differentiable")


def facts_of(
    loop: Loop,
    realised: Realised,
    device: str,
    *,
    attends: bool = False,
    changes_buffers: bool = False,
    looks_at_values: bool = True,
) -> dict[str, Any]:
    """Everything as plain values: `perftool.measure.scripted` makes records of it.

    attends, changes_buffers: whether a step was seen to.
    looks_at_values: of the parameters, which takes as much memory again as the largest of them.
    """
    torch: Any = sys.modules.get("torch")
    parameters = parameters_of(loop, realised)
    return {
        "rule": None if loop.rule is None else loop.rule.as_json(),
        "steps": loop.steps,
        "device": device,
        "python": sys.executable,
        "python_version": platform.python_version(),
        "torch_version": "none" if torch is None else str(torch.__version__),
        "torch_threads": 1 if torch is None else torch.get_num_threads(),
        "optimizers": [_optimizer(one) for one in loop.optimizers],
        "loaders": realised.loaders.facts(),
        "loader_kinds": realised.loaders.kinds(),
        "models": _models(realised),
        "sites": sites_of(loop, realised),
        "modules": _modules(realised, attends=attends),
        "changes_buffers": changes_buffers,
        "autocast": realised.autocast,
        "parameter_count": sum(part.numel() for part in parameters),
        "parameter_bytes": sum(part.numel() * part.element_size() for part in parameters),
        "floating_parameters": all(part.is_floating_point() for part in parameters),
        "sparse_gradients": _has_sparse_gradients(realised),
        "denormal_values": _denormal(parameters) if looks_at_values else None,
        "python_objects": len(gc.get_objects()),
        "frameworks": sorted({name for module, name in FRAMEWORKS.items() if module in sys.modules}),
        "seeded": loop.seeded,
        "other_threads": loop.thread.has_others,
        "says_samples": loop.interval.samples is not None,
    }


def device_of(loop: Loop) -> str:
    """Where the parameters are that the optimizers update; the loss, where none does."""
    for optimizer in loop.optimizers:
        for group in getattr(optimizer, "param_groups", ()):
            for part in group["params"]:
                return str(part.device)
    return "cpu" if loop.last_loss is None else str(loop.last_loss.device)


def sites_of(loop: Loop, realised: Realised) -> list[dict[str, Any]]:
    """Where the user's files make and call what settings change of the training; each place once."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    found = [{"kind": "main", "file": os.path.realpath(main), "line": 1}] if main is not None and is_own(main) else []
    places = [
        ("import_torch", "", realised.torch_place),
        *(("loader", one.name, one.place) for one in realised.loaders.in_training()),
        *(("optimizer", type(one).__name__, place_of(one)) for one in loop.optimizers),
        *(("model", type(root).__name__, place) for root, place in realised.root_places()),
    ]
    found += [place.site(kind, callee) for kind, callee, place in places if place is not None]
    found += [place.site("model_call", outputs=outputs) for place, outputs in realised.calls.values()]
    return [site for number, site in enumerate(found) if site not in found[:number]]


def parameters_of(loop: Loop, realised: Realised) -> list[torch.Tensor]:
    """Those that the optimizers update, and those of the models, which may hold frozen ones, too; each once."""
    groups = (group for one in loop.optimizers for group in getattr(one, "param_groups", ()))
    updated = (part for group in groups for part in group["params"])
    called = (part for root in realised.roots for part in root.parameters())
    return list({id(part): part for part in (*updated, *called)}.values())


def _optimizer(optimizer: Any) -> dict[str, Any]:
    defaults = getattr(optimizer, "defaults", {})
    step = inspect.unwrap(type(optimizer).step)
    return {
        "name": type(optimizer).__name__,
        "options": {name: defaults[name] for name in OPTIONS if name in defaults},
        "step_class": step.__qualname__.partition(".")[0] if step.__module__.startswith("torch.optim.") else None,
    }


def _models(realised: Realised) -> list[dict[str, Any]]:
    if "torch" not in sys.modules:
        return []
    from perftool.probes.modules import is_compiled

    return [{"name": type(root).__name__, "compiled": is_compiled(root)} for root in realised.roots]


def _modules(realised: Realised, *, attends: bool) -> dict[str, Any]:
    if "torch" not in sys.modules:
        return {}
    from perftool.probes.modules import describe_modules

    return describe_modules(realised.roots, attends=attends)


def copies_of_buffers(realised: Realised) -> list[torch.Tensor]:
    """Of all that the models have. Their versions would not do: ranks give each other the values that they have."""
    return [buffer.detach().clone() for root in realised.roots for buffer in root.buffers()]


def are_equal(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    """Whether these are the same numbers."""
    return len(some) == len(others) and all(one.equal(other) for one, other in zip(some, others, strict=True))


def _has_sparse_gradients(realised: Realised) -> bool:
    if "torch" not in sys.modules:
        return False
    from perftool.training import has_sparse_gradients

    return has_sparse_gradients(realised.roots)


def _denormal(tensors: Sequence[torch.Tensor]) -> int:
    found = 0
    for tensor in tensors:
        import torch

        if tensor.dtype in (torch.float32, torch.float64) and not tensor.is_sparse:
            sizes = tensor.detach().abs()
            found += int(((sizes > 0) & (sizes < torch.finfo(tensor.dtype).tiny)).sum())
    return found
