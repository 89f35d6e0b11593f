"""The script that is handed over trains as it was measured: every pair of settings, on every form of workload."""

from __future__ import annotations

import ast
import gc
import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from perftool.analysis.handover import lines_to_change, script, to_paste
from perftool.measure.facts import describe_first_step
from perftool.records import Settings
from perftool.scenario import Context, discover, plan_of
from perftool.training import Counted, SettingError, Training, draws, tensors_of
from perftool.workload import load
from scenarios.cuda_graphs import WARM_STEPS, Graphed
from tests.measure.fakes import MACHINE
from tests.proofs import proved

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_compiler")

FILE = Path(__file__).parent / "handed_over.py"
SCENARIOS = discover()
IN_ORDER = (
    "ordered", "dropping_in_order", "whole", "stream", "dicts", "named", "single", "collated", "sgd",
    "fused_already", "made",
)  # fmt: skip
SHUFFLED = ("shuffled", "dropping")
ON_GPU = replace(
    MACHINE, device="cuda:0", device_name="scripted", device_capability=[9, 0], device_memory_bytes=2**36, triton=True
)
SLOW = ("torch_compile", "compiled_step")
OF_A_PROCESS = ("malloc_retention", "matmul_precision")  # cannot be taken back, or is slow on some CPUs
VALUES = {"batch_size": "6", "dataloader_workers": "1", "threads": "2"}  # one of many that are alike
STEPS = 8  # over the end of an epoch


@cache
def context(name: str, *, file: Path = FILE, gpu: bool = False) -> Context:
    """What scenarios are told of one of the workloads, here or on a scripted GPU."""
    loaded = load(f"{file}:{name}")
    training = Training(plan_of(loaded.workload, {}, SCENARIOS, device="cpu", seed=0))
    here = replace(MACHINE, torch_threads=1)
    facts, _ = describe_first_step(loaded, training)
    return Context(machine=ON_GPU if gpu else here, workload=facts)


def changes(name: str, *, gpu: bool = False, but: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """The settings that can be had, without defaults; one value of those scenarios that have many alike."""
    facts = context(name, gpu=gpu)
    return [
        (scenario, value)
        for scenario, one in SCENARIOS.items()
        if scenario not in but
        for value in ([VALUES[scenario]] if scenario in VALUES else one.available(facts))
        if one.refusal(value, facts) is None and value != one.default(facts)
    ]


def pairs(name: str, *, gpu: bool = False, but: tuple[str, ...] = ()) -> list[Settings]:
    """Nothing, each setting, and every two of different scenarios, on top of what the workload does already."""
    single = changes(name, gpu=gpu, but=but)
    two = [pair for pair in combinations(single, 2) if pair[0][0] != pair[1][0]]
    own = context(name).workload.settings
    return [{**own, **dict(chosen)} for chosen in [(), *((one,) for one in single), *two]]


def codes(settings: Settings, facts: Context) -> dict[str, dict[str, dict[str, str]]]:
    return {name: {value: SCENARIOS[name].lines(value, facts)} for name, value in settings.items()}


def written(settings: Settings, facts: Context) -> str:
    return script(codes(settings, facts), settings, workload=facts.workload, device=facts.machine.device)


@dataclass
class Ran:
    """A script that was executed, and what its steps were given."""

    places: dict[str, Any]
    losses: list[float] = field(default_factory=list)
    shapes: list[list[torch.Size]] = field(default_factory=list)
    batches: list[Any] = field(default_factory=list)


def run(text: str, steps: int = STEPS) -> Ran:
    """Execute a script, as an import would, and train some steps."""
    ran = Ran({"__name__": "recommended"})
    exec(compile(text, "recommended.py", "exec"), ran.places)
    step = ran.places["step"]

    def noting(batch: Any) -> torch.Tensor:
        ran.shapes.append([part.shape for part in tensors_of(batch)])
        ran.batches.append(batch)
        loss: torch.Tensor = step(batch)
        ran.losses.append(loss.item())
        return loss

    ran.places["step"] = noting
    assert sum(1 for _ in ran.places["train"](steps)) == steps
    ran.places["step"] = step
    return ran


def as_training(places: dict[str, Any], settings: Settings, workload: str) -> Training:
    """A Training whose parts are those of an executed script, for the scenarios' proofs to look at."""
    training = Training(plan_of(load(f"{FILE}:{workload}").workload, settings, SCENARIOS, device="cpu", seed=0))
    again = (lambda: places["loader"]) if "loader" in places else places.get("batches", lambda: [places["dataset"]])
    batches: Iterator[Any] = (batch for _ in itertools.count() for batch in again())
    training.batches = Counted(batches, draws(training.plan, training.dataset))
    training.module = training.model = places["model"]
    training.optimizer, training.step = places["optimizer"], places["step"]
    training.bare_step = lambda: training.step(training.fetch())  # type: ignore[method-assign]
    return training


def end_loaders(settings: Settings) -> None:
    """End the processes of loaders that nobody holds any more; those of several at a time wait for each other."""
    if "dataloader_workers" in settings:
        gc.collect()


def named_pairs(names: tuple[str, ...]) -> list[Any]:
    return [
        pytest.param(name, settings, id=f"{name}-{'+'.join(f'{key}={value}' for key, value in settings.items())}")
        for name in names
        for settings in pairs(name, but=(*SLOW, *OF_A_PROCESS))
    ]


@pytest.mark.parametrize(("name", "settings"), named_pairs(IN_ORDER))
def test_a_script_in_order_has_the_losses_of_the_training(name: str, settings: Settings) -> None:
    try:
        training = Training(plan_of(load(f"{FILE}:{name}").workload, settings, SCENARIOS, device="cpu", seed=0))
    except SettingError:
        return  # never measured, so never handed over
    measured = [training.step(training.fetch()).item() for _ in range(STEPS)]
    del training
    end_loaders(settings)
    ran = run(written(settings, context(name)))
    ran.places.clear()
    end_loaders(settings)
    assert ran.losses == pytest.approx(measured, rel=1e-5)


@pytest.mark.parametrize(("name", "settings"), named_pairs(SHUFFLED))
def test_a_shuffled_script_has_all_rows_in_batches_as_measured_and_every_setting_proves_itself(
    name: str, settings: Settings
) -> None:
    facts = context(name)
    training = Training(plan_of(load(f"{FILE}:{name}").workload, settings, SCENARIOS, device="cpu", seed=0))
    measured = [training.fetch() for _ in range(STEPS)]
    del training
    end_loaders(settings)
    ran = run(written(settings, facts))
    assert ran.shapes == [[part.shape for part in batch] for batch in measured]
    assert [type(batch) for batch in ran.batches] == [type(batch) for batch in measured]
    size = int(settings.get("batch_size", "4"))
    per_epoch = 22 // size if name == "dropping" else -(-22 // size)
    rows = torch.cat([batch[0] for batch in ran.batches[:per_epoch]])[:, 0].tolist()
    everything = load(f"{FILE}:shuffled").workload.dataset()[0][:, 0].tolist()
    assert len(set(rows)) == len(rows) == (per_epoch * size if name == "dropping" else 22)
    assert set(rows) <= set(everything)
    assert rows != sorted(rows)
    in_workers = settings.get("dataloader_workers", "0") != "0"
    live = as_training(ran.places, settings, name)
    for scenario, value in settings.items():
        if scenario == "batch_gather" and in_workers:
            continue  # see below
        proof = proved(SCENARIOS[scenario], live, value)
        assert proof.ok, f"{scenario}={value}: {proof.evidence}"
    live.batches.source.close()  # type: ignore[attr-defined]  # found by the collector, a loader waits 5 s for its workers
    ran.places.clear()
    end_loaders(settings)


def test_a_proof_fails_on_a_script_without_the_setting() -> None:
    """That the proofs above look at the script, and not at the training that lends them its form."""
    ran = run(written({}, context("shuffled")))
    for scenario, value in (("amp", "bf16"), ("batch_gather", "on"), ("optimizer_kernel", "fused")):
        assert not proved(SCENARIOS[scenario], as_training(ran.places, {scenario: value}, "shuffled"), value).ok


@pytest.mark.parametrize(("name", "sampler"), [("shuffled", "RandomSampler"), ("ordered", "SequentialSampler")])
def test_gathering_in_worker_processes_keeps_the_loader_and_what_is_asked_of_it(name: str, sampler: str) -> None:
    settings = {"batch_gather": "on", "dataloader_workers": "2", "pinned_memory": "on"}
    text = written(settings, context(name, gpu=True))
    for words in (sampler, "batch_size=None", "num_workers=2", "pin_memory=True", "part.to(device, non_blocking=True)"):
        assert words in text
    assert "def batches" not in text
    assert ".pin_memory()" not in text


def test_gathering_in_this_process_pins_what_a_loader_would() -> None:
    text = written({"batch_gather": "on", "pinned_memory": "on"}, context("shuffled", gpu=True))
    assert "part.pin_memory().to(device, non_blocking=True)" in text
    assert "DataLoader" not in text


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("name", [*IN_ORDER, *SHUFFLED])
def test_every_script_is_python_that_uses_what_it_imports_and_nothing_of_perftool(name: str, gpu: bool) -> None:
    facts = context(name, gpu=gpu)
    for settings in pairs(name, gpu=gpu):
        text = written(settings, facts)
        tree = ast.parse(text)
        imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        imported = {(alias.asname or alias.name).partition(".")[0] for node in imports for alias in node.names}
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert imported <= used, text
        assert not [node for node in imports if "perftool" in ast.unparse(node)]
        bound = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        assert all(used_by(text, function) for function in bound - {"train"}), text
        assert ("to(device" in text) == gpu


def used_by(text: str, name: str) -> bool:
    """Whether a name that is defined is used, too; some methods are called by Python, and `forward` by torch."""
    return name.startswith("__") or name == "forward" or len([line for line in text.splitlines() if name in line]) > 1


def test_a_setting_of_a_gpu_goes_where_the_optimizer_takes_it() -> None:
    assert "capturable=True" in written({"cuda_graphs": "on"}, context("ordered", gpu=True))
    assert "capturable" not in written({"cuda_graphs": "on"}, context("sgd", gpu=True))
    scaled = written({"amp": "fp16", "optimizer_kernel": "fused"}, context("ordered", gpu=True))
    assert "optimizer._step_supports_amp_scaling = True" in scaled
    other = replace(ON_GPU, device="cuda:1")
    assert "torch.cuda.set_device(device)" in written({}, Context(machine=other, workload=context("sgd").workload))


class FakeGraph:
    """Counts its replays."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


class FakeContext:
    """Stands for a stream, and for a capture that runs what it captures."""

    modes: list[str] = []  # noqa: RUF012

    def __init__(self, *_: Any, capture_error_mode: str = "") -> None:
        self.modes.extend([capture_error_mode] if capture_error_mode else [])

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def wait_stream(self, _: object) -> None:
        pass


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    """Those that are captured on a scripted GPU, where a capture runs what it captures, and a replay nothing."""
    found: list[FakeGraph] = []

    def make_graph() -> FakeGraph:
        found.append(FakeGraph())
        return found[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", make_graph)
    monkeypatch.setattr(FakeContext, "modes", [])
    for fake in ("graph", "Stream", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, fake, FakeContext)
    return found


def graphed(name: str) -> str:
    """The script for a GPU, as the CPU can run it."""
    text = written({"amp": "bf16", "cuda_graphs": "on"}, context(name, gpu=True))
    text = text.replace('device = "cuda:0"', 'device = "cpu"').replace("capturable=True", "capturable=False")
    return text.replace('torch.autocast("cuda"', 'torch.autocast("cpu"')


def test_what_is_captured_has_the_shapes_of_the_first_batch(graphs: list[FakeGraph]) -> None:
    """Also where the batch that comes first after the warm-up is ragged."""
    seen: list[int] = []

    def step(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return batch.sum()

    replaying = Graphed(step)
    for rows in (*[4] * WARM_STEPS, 2, 4, 4, 2, 4):
        replaying(torch.ones(rows))
    assert seen == [*[4] * WARM_STEPS, 2, 4, 2], "the ragged ones, and what was captured"
    assert [graph.replays for graph in graphs] == [3]


def test_a_graph_never_keeps_an_old_learning_rate(graphs: list[FakeGraph]) -> None:
    """Adam reads it from a tensor, which a scheduler writes into; for SGD, which cannot, it is captured again."""
    ran = run(graphed("ordered"))
    rate = ran.places["optimizer"].param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.StepLR(ran.places["optimizer"], 1, gamma=0.5)
    ran.places["optimizer"].step()  # it asks for one before
    schedule.step()
    assert ran.places["optimizer"].param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.005)

    graphs.clear()
    ran = run(graphed("sgd"))
    assert len(graphs) == 1
    ran.places["optimizer"].param_groups[0]["lr"] = 0.01
    for _ in range(2):
        ran.places["step"](ran.batches[0])
    assert [graph.replays for graph in graphs[1:]] == [2]


@pytest.mark.parametrize("name", ["ordered", "dicts", "named", "single", "whole"])
def test_a_graphed_script_replays_full_batches_and_runs_ragged_ones(name: str, graphs: list[FakeGraph]) -> None:
    """Its batches of any form are copied into the captured ones."""
    ran = run(graphed(name))
    full = sum(shapes == ran.shapes[0] for shapes in ran.shapes)
    assert full == (STEPS if name == "whole" else STEPS - 1)
    assert [graph.replays for graph in graphs] == [full - WARM_STEPS]
    assert FakeContext.modes == ["thread_local"]
    replay = ran.places["step"]
    inside = dict(zip(replay.__code__.co_freevars, replay.__closure__, strict=True))
    static = tensors_of(inside["static_batch"].cell_contents)
    assert all(torch.equal(one, other) for one, other in zip(static, tensors_of(ran.batches[-1]), strict=True))


def test_a_step_in_place_of_the_whole_composes_with_the_loss_and_with_what_is_around_it() -> None:
    facts = context("ordered")
    lines = {
        "whole_step": {
            "on": {
                "step": "def step(batch):\n    optimizer.zero_grad()\n    loss = loss_of(model, batch)\n"
                "    loss.backward()\n    optimizer.step()\n    return loss.detach()",
                "around_step": "plain_step = step\n\n\ndef step(batch):\n    return plain_step(batch)",
            }
        }
    }
    both = {"amp": "bf16", "whole_step": "on"}
    text = script(codes({"amp": "bf16"}, facts) | lines, both, workload=facts.workload, device="cpu")
    assert "torch.autocast" in text.partition("def loss_of(model, batch):")[2].partition("def step")[0]
    assert run(text).losses == run(written({"amp": "bf16"}, facts)).losses


# ------------------------------------------------------------------------------------------------------- what changes


def differs(name: str, settings: Settings, baseline: Settings) -> tuple[str, str]:
    """Lines to change, and lines to paste, from a baseline to it moved by the settings."""
    facts, full = context(name), {**baseline, **settings}
    of = {
        one: {value: SCENARIOS[one].lines(value, facts) for value in (full[one], baseline.get(one)) if value}
        for one in full
    }
    diff = lines_to_change(of, full, baseline, workload=facts.workload, device="cpu")
    return diff, to_paste(of, full, baseline)


def test_what_the_baseline_does_already_stays_and_is_not_to_be_changed() -> None:
    diff, paste = differs("made", {"optimizer_kernel": "fused"}, {"amp": "bf16"})
    changed = [line for line in diff.splitlines()[2:] if line.startswith(("+", "-"))]
    assert changed == [
        "+for group in optimizer.param_groups:  # better written in the optimizer's constructor",
        "+    group.update(foreach=False, fused=True)",
    ]
    assert paste == "# in the optimizer's constructor\nforeach=False, fused=True"
    assert "torch.autocast" in written({"amp": "bf16", "optimizer_kernel": "fused"}, context("made"))


def test_what_goes_back_to_a_default_is_to_be_removed() -> None:
    diff, paste = differs("made", {"amp": "off"}, {"amp": "bf16"})
    assert '-    with torch.autocast("cpu", dtype=torch.bfloat16):' in diff.splitlines()
    assert paste.startswith("# no longer around the computation of the loss:\n# with torch.autocast(")
    assert differs("made", {}, {"amp": "bf16"}) == ("", "")


@pytest.mark.parametrize(
    ("value", "arguments"), [("for-loop", "foreach=False, fused=False"), ("foreach", "foreach=True, fused=False")]
)
def test_a_fused_optimizer_is_told_not_to_be(value: str, arguments: str) -> None:
    assert arguments in differs("fused_already", {"optimizer_kernel": value}, {})[1]


def test_a_diff_does_not_say_where_the_workload_lies() -> None:
    diff, _ = differs("ordered", {"amp": "bf16", "batch_gather": "on", "malloc_retention": "on"}, {})
    assert str(FILE.parent) not in diff
    assert "+import ctypes" in diff.splitlines()


# ------------------------------------------------------------------------------------------------------ on its own


@pytest.mark.process
def test_a_script_runs_on_its_own_from_anywhere(tmp_path: Path) -> None:
    settings = {"amp": "bf16", "batch_gather": "on", "malloc_retention": "on", "optimizer_kernel": "fused"}
    (tmp_path / "recommended.py").write_text(written(settings, context("made")))
    done = subprocess.run(
        [sys.executable, "recommended.py"], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"step {number}" for number in range(100, 1001, 100)]
    first, *_, last = (float(line.rpartition(" ")[2]) for line in lines)
    assert last < first


@pytest.mark.process
def test_a_compiled_script_trains() -> None:
    ran = run(written({"amp": "bf16", "torch_compile": "default"}, context("ordered")), steps=2)
    assert ran.losses[0] == pytest.approx(run(written({"amp": "bf16"}, context("ordered"))).losses[0], rel=0.05)


def test_a_module_with_a_name_that_is_none_is_imported_all_the_same(tmp_path: Path) -> None:
    facts = context("made").workload
    for reference, function, wanted in (
        ("my-train.py:mine", False, 'workload = importlib.import_module(\'my-train\').mine\n'),
        ("my-train.py:make", True, "import_module('my-train').make()\n"),
        ("a/train.py:workload", False, "from train import workload\n"),
        ("a/train.py:workload", True, "from train import workload\n\nworkload = workload()\n"),
        ("package.module:mine", False, "from package.module import mine as workload\n"),
    ):  # fmt: skip
        named = replace(facts, reference=reference, is_function=function, search_path=str(tmp_path))
        text = script({}, {}, workload=named, device="cpu")
        assert wanted in text
        assert f"sys.path.insert(0, {str(tmp_path)!r})" in text


def test_variables_of_the_environment_are_said_where_the_script_is_started() -> None:
    lines = {"allocator": {"on": {"environment": "LD_PRELOAD=libtcmalloc.so"}}}
    facts = context("ordered")
    text = script(lines, {"allocator": "on"}, workload=facts.workload, device="cpu")
    assert "# Start it with: LD_PRELOAD=libtcmalloc.so python recommended.py" in text


# ---------------------------------------------------------------------------------------------------------------- GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ordered", "dicts", "named", "sgd"])
def test_scripts_for_a_gpu_train_as_measured(name: str) -> None:
    facts = context(name, gpu=True)
    for settings in pairs(name, gpu=True, but=(*SLOW, *OF_A_PROCESS, "threads")):
        plan = plan_of(load(f"{FILE}:{name}").workload, settings, SCENARIOS, device="cuda:0", seed=0)
        try:
            training = Training(plan)
            measured = [training.step(batch).item() for batch in islice(training.batches, STEPS)]
        except SettingError:
            continue
        assert run(written(settings, facts)).losses == pytest.approx(measured, rel=1e-3), settings
