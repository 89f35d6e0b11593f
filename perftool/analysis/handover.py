"""The recommended settings as plain PyTorch: lines to paste, and a script that runs.

Pure text. `codes` are the lines of each scenario by place, as `perftool.scenario.Code` names the places.
"""

from __future__ import annotations

from collections.abc import Mapping

from perftool.records import Settings

Codes = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Scenario -> value -> place -> lines."""

TITLES = {
    "setup": "once, before anything is built",
    "model": "after the model is on its device",
    "optimizer_arguments": "in the optimizer's constructor",
    "loader_arguments": "in the DataLoader's constructor",
    "batches": "in place of the DataLoader",
    "copy_arguments": "in the copy of a batch to the device",
    "loss_context": "around the computation of the loss",
    "update": "in place of loss.backward() and optimizer.step()",
    "step": "in place of the whole step",
    "warmed_up": "once, after the first few steps",
}
WARM_STEPS = 3  # after which what is to be done once the training is warm is done
_ARGUMENTS = ("optimizer_arguments", "loader_arguments", "copy_arguments", "loss_context")


def places(codes: Codes, settings: Settings) -> dict[str, str]:
    """Place to the lines of all settings there: arguments joined by commas, statements one after another."""
    found: dict[str, list[str]] = {}
    for name, value in settings.items():
        for place, lines in codes.get(name, {}).get(value, {}).items():
            found.setdefault(place, []).append(lines.strip("\n"))
    return {place: (", " if place in _ARGUMENTS else "\n").join(found[place]) for place in TITLES if place in found}


def to_paste(codes: Codes, settings: Settings) -> str:
    """What changes in an ordinary training script, place by place, each under a comment that says where it goes."""
    blocks = []
    for place, lines in places(codes, settings).items():
        text = f"with {lines}:" if place == "loss_context" else lines
        blocks.append(f"# {TITLES[place]}\n{text}")
    return "\n\n".join(blocks)


def _indented(lines: str, spaces: int) -> str:
    return "\n".join(" " * spaces + line if line else line for line in lines.split("\n"))


def script(codes: Codes, settings: Settings, *, workload: str, device: str, batch_size: int | None) -> str:
    """A training script in plain PyTorch with the settings in it; `train(steps)` is its loop.

    It takes model, dataset, loss and optimizer from the workload's own file, and nothing else from perftool.
    """
    at = places(codes, settings)
    chosen = ", ".join(f"{name}={value}" for name, value in settings.items()) or "nothing changed"
    size = settings.get("batch_size", str(batch_size))
    step = at.get("step") or _step(at)
    optimizer = "optimizer = workload.optimizer(model.parameters())"
    if "optimizer_arguments" in at:
        optimizer += (
            f"\n# The same as writing {at['optimizer_arguments']} in the optimizer's constructor."
            f"\nfor group in optimizer.param_groups:\n    group.update(dict({at['optimizer_arguments']}))"
        )
    parts = [
        f'"""{workload} with {chosen}, as recommended by perftool. Plain PyTorch."""',
        "import contextlib\nimport itertools\n\n"
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\n\n"
        "from perftool.workload import load_workload",
        f"workload = load_workload({workload!r})\ndevice = torch.device({device!r})\nbatch_size = {size}",
        at.get("setup", ""),
        "torch.manual_seed(0)\ndataset = workload.dataset()\nmodel = workload.model().to(device)",
        at.get("model", ""),
        optimizer,
        at.get("batches") or _batches(at, size),
        _to_device(at),
        _compute_loss(at),
        step,
        _train(at),
        'if __name__ == "__main__":\n'
        "    for number, loss in enumerate(train(1000), 1):\n"
        "        if number % 100 == 0:\n"
        '            print(f"step {number}: loss {loss.item():.4f}")',
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _batches(at: Mapping[str, str], size: str) -> str:
    if size == "None":
        return "def batches():\n    yield dataset"
    arguments = f", {at['loader_arguments']}" if "loader_arguments" in at else ""
    return (
        "rows = TensorDataset(*dataset) if isinstance(dataset, tuple) else dataset\n"
        "loader = DataLoader(rows, batch_size=batch_size, shuffle=workload.shuffle, drop_last=workload.drop_last,\n"
        f"                    collate_fn=workload.collate_fn{arguments})\n\n\n"
        "def batches():\n    return iter(loader)"
    )


def _to_device(at: Mapping[str, str]) -> str:
    arguments = f", {at['copy_arguments']}" if "copy_arguments" in at else ""
    return (
        "def to_device(batch):\n"
        "    if isinstance(batch, torch.Tensor):\n"
        f"        return batch.to(device{arguments})\n"
        "    if isinstance(batch, dict):\n"
        "        return {key: to_device(part) for key, part in batch.items()}\n"
        "    if isinstance(batch, tuple) and hasattr(batch, '_fields'):\n"
        "        return type(batch)(*map(to_device, batch))\n"
        "    if isinstance(batch, (list, tuple)):\n"
        "        return type(batch)(map(to_device, batch))\n"
        "    return batch"
    )


def _train(at: Mapping[str, str]) -> str:
    after = ""
    if "warmed_up" in at:
        after = f"        if number == {WARM_STEPS}:\n{_indented(at['warmed_up'], 12)}\n"
    return (
        "def train(steps):\n"
        '    """Yields the loss of each step, as a tensor."""\n'
        "    epochs = itertools.chain.from_iterable(batches() for _ in itertools.count())\n"
        + (
            "    for number, batch in enumerate(itertools.islice(epochs, steps)):\n"
            if after
            else "    for batch in itertools.islice(epochs, steps):\n"
        )
        + after
        + "        yield step(batch)"
    )


def _compute_loss(at: Mapping[str, str]) -> str:
    return (
        "def compute_loss(model, batch):\n"
        f"    with {at.get('loss_context', 'contextlib.nullcontext()')}:\n"
        "        return workload.loss(model, batch)"
    )


def _step(at: Mapping[str, str]) -> str:
    update = at.get("update", "loss.backward()\noptimizer.step()")
    return (
        "def step(batch):\n"
        "    batch = to_device(batch)\n"
        "    optimizer.zero_grad()\n"
        "    loss = compute_loss(model, batch)\n"
        f"{_indented(update, 4)}\n"
        "    return loss.detach()"
    )
