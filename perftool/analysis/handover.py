"""The recommended settings as plain PyTorch: lines to paste, a script that runs, and what it changes line by line.

Pure text. `codes` are the lines of each scenario by place, as `perftool.scenario.Code` names the places.
"""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import PurePath
from typing import NamedTuple

from perftool.records import Settings, WorkloadFacts

Codes = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Scenario -> value -> place -> lines."""

Pieces = Mapping[str, Sequence[str]]
"""Place -> the lines of each setting there."""

TITLES = {
    "environment": "in the environment, before Python starts",
    "command": "on its command line",
    "imports": "with the imports",
    "setup": "once, before anything is built",
    "batch_size": "in place of the batch size",
    "dataset": "after the dataset is built",
    "batches": "in place of the DataLoader",
    "sampling": "in the DataLoader, in place of batch_size, shuffle, sampler and drop_last",
    "loader_arguments": "in the DataLoader's constructor",
    "model": "after the model is on its device",
    "optimizer_arguments": "in the optimizer's constructor",
    "optimizer": "after the optimizer is made",
    "batch_calls": "on each tensor of a batch, before its copy to the device",
    "copy_arguments": "in the copy of a batch to the device",
    "copy_stream": "once, and each copy of a batch under `with torch.cuda.stream(copies):`, then as the script shows",
    "loss_context": "around the computation of the loss",
    "update": "in place of loss.backward() and optimizer.step()",
    "step": "in place of the whole step",
    "around_step": "after the step is a function of a batch that is on the device",
    "warmed_up": "once, after the first few steps",
}
WARM_STEPS = 3  # after which what is to be done once the training is warm is done
_ARGUMENTS = ("sampling", "loader_arguments", "optimizer_arguments", "copy_arguments", "loss_context")
_OF_A_LOADER = ("dataset", "sampling", "loader_arguments")
_WITHOUT_A_LOADER = ("batches", "batch_calls")
_CONTEXT_LINES = 2

IMPORTS = (
    "import importlib",
    "import itertools",
    "import sys",
    "from collections.abc import Mapping",
    "import torch",
    "from torch.utils.data import DataLoader, TensorDataset",
)
"""What the script itself may use; only what it does use is imported."""

COPIES = {
    "tensor": "batch = batch{calls}",
    "list": "batch = [part{calls} for part in batch]",
    "tuple": "batch = tuple(part{calls} for part in batch)",
    "dict": "batch = {{key: part{calls} for key, part in batch.items()}}",
    "nested": "batch = map_tensors(lambda part: part{calls}, batch)",
}
"""By the form of a batch: the change of each of its tensors."""

MAP_TENSORS = '''\
def map_tensors(change, batch):
    """The batch with every tensor in it changed; other objects are left as they are."""
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(change, part) for key, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(change, part) for part in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map_tensors(change, part) for part in batch)
    return batch'''


# ----------------------------------------------------------------------------------------------------------- places


def pieces(codes: Codes, settings: Settings) -> dict[str, list[str]]:
    """Place to the lines of each setting there, in the order of a script.

    Where batches are made without a DataLoader, what is asked of a loader goes, unless only a loader can give it.
    """
    chosen = [codes.get(name, {}).get(value, {}) for name, value in sorted(settings.items())]
    found = {
        place: [lines[place].strip("\n") for lines in chosen if lines.get(place)]
        for place in TITLES
        if any(lines.get(place) for lines in chosen)
    }
    # What has calls to put in place of loader arguments can do without a loader; the rest, worker processes, cannot.
    loads = any(lines.get("loader_arguments") and not lines.get("batch_calls") for lines in chosen)
    unused = _OF_A_LOADER if "batches" in found and not loads else _WITHOUT_A_LOADER
    return {place: lines for place, lines in found.items() if place not in unused}


def _joined(place: str, lines: Sequence[str]) -> str:
    if place in _ARGUMENTS:
        return ", ".join(lines)
    return {"batch_calls": "", "environment": " ", "command": " "}.get(place, "\n").join(lines)


def places(codes: Codes, settings: Settings) -> dict[str, str]:
    """Place to the lines of all settings there: arguments joined by commas, statements one after another."""
    return {place: _joined(place, lines) for place, lines in pieces(codes, settings).items()}


def to_paste(codes: Codes, settings: Settings, baseline: Settings) -> str:
    """What changes in an ordinary training script that has the baseline's settings, place by place, each under a
    comment that says where it goes. `settings` are all of them."""
    before, after = pieces(codes, baseline), pieces(codes, settings)
    blocks = []
    for place, title in TITLES.items():
        old, new = before.get(place, []), after.get(place, [])
        if place not in _ARGUMENTS:  # statements stand for themselves, arguments with their neighbours
            old, new = [one for one in old if one not in new], [one for one in new if one not in old]
        if new and new != old:
            lines = _shown(place, new, after)
            blocks += [f"# {title}\n{lines}"] if lines else []
        elif old and not new:
            gone = "\n".join(f"# {line}" for line in _shown(place, old, before).split("\n"))
            blocks.append(f"# no longer {title}:\n{gone}")
    return "\n\n".join(blocks)


def _shown(place: str, lines: Sequence[str], all_pieces: Pieces) -> str:
    if place == "imports":
        used = "\n".join(line for other, found in all_pieces.items() if other != "imports" for line in found)
        return _imports([line for one in lines for line in one.splitlines()], used)
    text = _joined(place, lines)
    return f"with {text}:" if place == "loss_context" else text


# ----------------------------------------------------------------------------------------------------------- script


@dataclass(frozen=True)
class _Script:
    """What a script is written from: the lines by place, and the facts of its workload."""

    at: Mapping[str, str]
    facts: WorkloadFacts
    device: str

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"


def script(codes: Codes, settings: Settings, *, workload: WorkloadFacts, device: str) -> str:
    """A training script in plain PyTorch with all of the settings in it; `train(steps)` is its loop.

    It takes model, dataset, loss and optimizer from the workload's own file.
    """
    chosen = ", ".join(f"{name}={value}" for name, value in sorted(settings.items())) or "no settings"
    title = f"{workload.reference} as perftool measured it, in plain PyTorch.\n\n{chosen}\n"
    escaped = title.replace("\\", "\\\\").replace('"', '\\"')
    parts = (f'"""{escaped}"""', *_program(codes, settings, workload, device))
    return "\n\n".join(filter(None, parts)) + "\n"


def lines_to_change(
    codes: Codes, settings: Settings, baseline: Settings, *, workload: WorkloadFacts, device: str
) -> str:
    """Unified diff from the script with the baseline's settings to the one with these, "" where they are the same.

    Without the lines that find the workload, which name a folder of this machine and are the same in both.
    """
    before, after = (
        "\n\n".join(part for part in (one.environment, one.imports, one.body) if part).splitlines()
        for one in (_program(codes, chosen, workload, device) for chosen in (baseline, settings))
    )
    return "\n".join(unified_diff(before, after, "before", "recommended", n=_CONTEXT_LINES, lineterm=""))


class _Program(NamedTuple):
    """The parts of a script, in their order; "" where there is nothing to write."""

    environment: str
    imports: str
    workload_import: str
    body: str


def _program(codes: Codes, settings: Settings, facts: WorkloadFacts, device: str) -> _Program:
    at = places(codes, settings)
    one = _Script(at, facts, device)
    workload_import, workload = _workload(facts)
    body = [
        workload,
        at.get("setup", ""),
        _dataset(one),
        at.get("dataset", ""),
        _loader(one),
        _model(one),
        _optimizer(one),
        MAP_TENSORS if (facts.batch_form == "nested" or "copy_stream" in at) and not one.on_cpu else "",
        at.get("copy_stream", ""),
        *_steps(one),
        at.get("around_step", ""),
        _train(one),
        'if __name__ == "__main__":\n'
        "    for number, loss in enumerate(train(1000), 1):\n"
        "        if number % 100 == 0:\n"
        '            print(f"step {number}: loss {loss.item():.4f}")',
    ]
    text = _spaced(body)
    imports = _imports([*IMPORTS, *at.get("imports", "").splitlines()], f"{workload_import}\n{text}")
    environment = f"# Start it with: {at['environment']} python recommended.py" if "environment" in at else ""
    return _Program(environment, imports, workload_import, text)


def _spaced(parts: Iterable[str]) -> str:
    """The parts with an empty line between them, and two around what defines a function or a class."""
    text, defined = "", False
    for part in filter(None, parts):
        defines = part.startswith(("def ", "class ", "@", "if __name__"))
        text += ("\n\n\n" if defines or defined else "\n\n") + part if text else part
        defined = defines and part.rpartition("\n")[2].startswith(" ")
    return text


def _imports(lines: Iterable[str], text: str) -> str:
    """Those of the imports whose names the text uses: the standard library's first, each module once."""
    wanted: dict[str, set[str]] = {}
    for line in lines:
        found = re.fullmatch(r"(?:from (\S+) )?import (.+)", line.strip())
        assert found, f"'{line}' is not an import of one line"
        for name in re.split(r",\s*", found[2]):
            if re.search(rf"\b{re.escape(name.rpartition(' ')[2])}\b", text):
                wanted.setdefault(found[1] or f"import {name}", set()).add(name)
    written = [
        module if module.startswith("import ") else f"from {module} import {', '.join(sorted(names))}"
        for module, names in wanted.items()
    ]

    def key(line: str) -> tuple[bool, bool, str]:
        module = line.split()[1]
        return module.partition(".")[0] not in sys.stdlib_module_names, line.startswith("from"), module

    written.sort(key=key)
    first = [line for line in written if not key(line)[0]]
    rest = [line for line in written if key(line)[0]]
    return "\n\n".join("\n".join(group) for group in (first, rest) if group)


def _workload(facts: WorkloadFacts) -> tuple[str, str]:
    """The import of the user's workload, and what is left to do to have it."""
    place, _, attribute = facts.reference.rpartition(":")
    # A reference that is no file of Python's is a module, also under Windows.
    module = PurePath(place.replace("\\", "/")).stem if place.endswith(".py") else place
    lines = []
    if facts.search_path is not None:
        lines.append(f"sys.path.insert(0, {facts.search_path!r})")
    call = "()" if facts.is_function else ""
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in module.split(".")):
        return "\n".join(lines), f"workload = importlib.import_module({module!r}).{attribute}{call}"
    alias = "" if facts.is_function or attribute == "workload" else " as workload"
    lines.append(f"from {module} import {attribute}{alias}")
    return "\n".join(lines), f"workload = {attribute}()" if facts.is_function else ""


def _dataset(one: _Script) -> str:
    lines = []
    if not one.on_cpu:
        lines.append(f'device = "{one.device}"')
        if one.device != "cuda:0":
            lines.append("torch.cuda.set_device(device)")
    if one.facts.batch_size is not None:
        lines.append(f"batch_size = {one.at.get('batch_size', one.facts.batch_size)}")
    return "\n".join([*lines, "torch.manual_seed(0)", "dataset = workload.dataset()"])


def _loader(one: _Script) -> str:
    at, facts = one.at, one.facts
    if facts.batch_size is None:
        return ""
    if "batches" in at:
        return at["batches"]
    rows = "TensorDataset(*dataset)"
    if "dataset" in at or facts.dataset_kind != "tensors" or facts.tensor_dataset:
        rows = "dataset"
    arguments = [rows]
    if "sampling" in at:
        arguments.append(at["sampling"])
    else:
        arguments.append("batch_size=batch_size")
        if facts.shuffle and facts.dataset_kind != "iterable":
            arguments.append("shuffle=True")
        if facts.drop_last:
            arguments.append("drop_last=True")
    if facts.has_collate:
        arguments.append("collate_fn=workload.collate_fn")
    if "loader_arguments" in at:
        arguments.append(at["loader_arguments"])
    return "loader = " + _call("DataLoader", arguments)


def _call(name: str, arguments: Sequence[str]) -> str:
    """A call on one line, or with an argument, or a setting's arguments, on each."""
    line = f"{name}({', '.join(arguments)})"
    if len(line) <= 100:
        return line
    return "\n".join([f"{name}(", *(f"    {argument}," for argument in arguments), ")"])


def _model(one: _Script) -> str:
    lines = ["model = workload.model()" + ("" if one.on_cpu else ".to(device)"), "model.train()"]
    return "\n".join([*lines, one.at["model"]] if "model" in one.at else lines)


def _optimizer(one: _Script) -> str:
    lines = ["optimizer = workload.optimizer(model.parameters())"]
    arguments = one.at.get("optimizer_arguments")
    if arguments is not None:
        lines += [
            "for group in optimizer.param_groups:  # better written in the optimizer's constructor",
            f"    group.update({arguments})",
        ]
        if "fused=True" in arguments and "update" in one.at:
            lines.append("optimizer._step_supports_amp_scaling = True  # the constructor says that by itself")
    if "optimizer" in one.at:
        lines.append(one.at["optimizer"])
    return "\n".join(lines)


def _steps(one: _Script) -> list[str]:
    """The function `step(batch)`, of a batch on the device, and what it calls."""
    at = one.at
    if "step" not in at:
        return [_step(at)]
    if not re.search(r"\bloss_of\(", at["step"]):
        return [at["step"]]
    body = f"return {_LOSS}"
    if "loss_context" in at:
        body = f"with {at['loss_context']}:\n    {body}"
    return [f"def loss_of(model, batch):\n{_indented(body, 4)}", at["step"]]


_LOSS = "workload.loss(model, batch)"


def _step(at: Mapping[str, str]) -> str:
    loss = f"loss = {_LOSS}"
    if "loss_context" in at:
        loss = f"with {at['loss_context']}:\n    {loss}"
    update = at.get("update", "loss.backward()\noptimizer.step()")
    body = f"optimizer.zero_grad()\n{loss}\n{update}\nreturn loss.detach()"
    return f"def step(batch):\n{_indented(body, 4)}"


def _train(one: _Script) -> str:
    at = one.at
    lines = ['"""Yield the loss of each step, as a tensor."""']
    if one.facts.batch_size is None:
        batches = "itertools.repeat(dataset, steps)"
    else:
        epoch = "batches()" if "batches" in at else "loader"
        lines.append(f"epochs = (batch for _ in itertools.count() for batch in {epoch})")
        batches = "itertools.islice(epochs, steps)"
    if "warmed_up" in at:
        lines.append(f"for number, batch in enumerate({batches}):")
        lines.append(f"    if number == {WARM_STEPS}:\n{_indented(at['warmed_up'], 8)}")
    else:
        lines.append(f"for batch in {batches}:")
    if not one.on_cpu:
        arguments = f", {at['copy_arguments']}" if "copy_arguments" in at else ""
        calls = f"{at.get('batch_calls', '')}.to(device{arguments})"
        copy = COPIES[one.facts.batch_form].format(calls=calls)
        lines.append(_indented(_ON_COPY_STREAM.format(copy=copy) if "copy_stream" in at else copy, 4))
    lines.append("    yield step(batch)")
    body = "\n".join(lines)
    return f"def train(steps):\n{_indented(body, 4)}"


_ON_COPY_STREAM = """\
with torch.cuda.stream(copies):
    {copy}
torch.cuda.current_stream().wait_stream(copies)
map_tensors(lambda part: part.record_stream(torch.cuda.current_stream()), batch)"""


def _indented(lines: str, spaces: int) -> str:
    return "\n".join(" " * spaces + line if line else line for line in lines.split("\n"))
