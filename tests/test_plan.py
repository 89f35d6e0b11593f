"""What of a plan can be laid over a script's own loop, and what is asked of the Python that it runs in."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from msgspec.structs import replace as replace_fields

from perftool.plan import Plan, SettingError, needs_own_loop
from perftool.scenario import Context, ScenarioError, check_settings, discover
from tests.measure.fakes import MACHINE, WORKLOAD

SCENARIOS = discover()
SCRIPT = Context(machine=MACHINE, workload=replace_fields(WORKLOAD, driver="script"))
ON_GPU = Context(
    machine=replace_fields(MACHINE, device="cuda:0", device_capability=[9, 0], triton=True), workload=SCRIPT.workload
)
OWN_BATCHES = Context(
    machine=ON_GPU.machine, workload=replace_fields(SCRIPT.workload, dataset_kind="own", batch_size=None)
)
PLAN = Plan(workload=None, batch_size=64)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": (lambda training, step: step,)}, "whole step"),
        ({"steps_per_call": 10}, "whole step"),
        ({"whole_step": True}, "whole step"),
        ({"update": lambda loss, optimizer: None}, "backward and update"),
        ({"batch_size": 32}, "--vary '--batch-size=32|64'"),
        ({"feed": lambda plan, dataset: iter(())}, "loading of batches"),
        ({"feed": lambda plan, dataset: iter(()), "epoch": iter}, None),
        ({"loader": {"num_workers": 2}, "non_blocking": True, "optimizer": {"fused": True}}, None),
        ({"process": (print,), "model": (id,), "loss": (id,), "warmed_up": (print,)}, None),
        ({}, None),
    ],
)
def test_what_a_script_has_of_its_own_cannot_be_replaced(changes: dict[str, Any], words: str | None) -> None:
    told = needs_own_loop(PLAN, replace(PLAN, **changes))
    assert told is None if words is None else words in (told or "")


def test_scenarios_say_what_a_script_cannot_have_by_what_they_change() -> None:
    facts = replace_fields(SCRIPT.workload, optimizer_step="Adam", optimizer_options={"capturable": False})
    script, own = (
        Context(machine=ON_GPU.machine, workload=one) for one in (facts, replace_fields(facts, driver="workload"))
    )
    for name, value in {"compiled_step": "1", "cuda_graphs": "on", "amp": "fp16", "batch_size": "20"}.items():
        assert SCENARIOS[name].refused(value, own) is None, "a Workload has it"
        assert value not in SCENARIOS[name].described(own).refused
        assert value in SCENARIOS[name].described(script).refused
        with pytest.raises(ScenarioError, match=f"{name}={value}: "):
            check_settings({name: value}, SCENARIOS, script)
    assert "--vary" in (SCENARIOS["learning_rate"].refused("linear", script) or "")
    for name, value in {"amp": "bf16", "gc_policy": "freeze", "batch_gather": "on", "pinned_memory": "on"}.items():
        assert SCENARIOS[name].refused(value, ON_GPU) is None, name


@pytest.mark.parametrize(
    ("name", "value"), [("batch_gather", "on"), ("dataloader_workers", "2"), ("pinned_memory", "on")]
)
def test_a_script_without_a_loader_has_none_to_change(name: str, value: str) -> None:
    assert "without a DataLoader" in (SCENARIOS[name].refused(value, OWN_BATCHES) or "")
    assert SCENARIOS[name].refused(SCENARIOS[name].default(OWN_BATCHES), OWN_BATCHES) is None


def test_a_scripts_loader_is_known_by_what_it_does_already() -> None:
    loads = replace_fields(SCRIPT.workload, loader_options={"num_workers": 3, "pin_memory": True})
    context = Context(machine=ON_GPU.machine, workload=loads)
    for name, own, other, lines in (
        ("dataloader_workers", "3", "0", "num_workers=0, persistent_workers=False, prefetch_factor=None"),
        ("pinned_memory", "on", "off", "pin_memory=False"),
    ):
        one = SCENARIOS[name]
        assert one.default(context) == own
        assert other in one.available(context)
        assert one.code(other, context).filled() == {"loader_arguments": lines}
        assert not one.code(own, context).filled()
    assert "worker processes" in (SCENARIOS["batch_gather"].refused("on", context) or "")
    here = Context(machine=MACHINE, workload=loads)
    assert SCENARIOS["pinned_memory"].default(here) == "off", "torch pins nothing without a GPU"


def test_a_setting_that_cannot_be_applied_says_why() -> None:
    def refuse(plan: Plan, value: str) -> Plan:
        raise SettingError("not here")

    assert replace(SCENARIOS["amp"], apply=refuse).refused("bf16", ON_GPU) == "not here"


def run_without(modules: list[str], code: str) -> str:
    """What the code prints where these modules cannot be imported."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({modules}))\n"
    done = subprocess.run([sys.executable, "-c", blocked + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


OURS_ALONE = ["msgspec", "psutil", "numpy", "scipy", "typer", "rich", "jinja2", "ruptures", "pynvml"]


def test_scenarios_are_found_and_applied_without_anything_installed() -> None:
    last = {name: one.values(ON_GPU)[-1] for name, one in SCENARIOS.items()}
    told = run_without(
        [*OURS_ALONE, "torch"],
        "from perftool.scenario import discover, plan_of\n"
        "found = discover()\n"
        f"values = {last}\n"
        "for name, value in values.items():\n"
        "    plan_of(None, {name: value}, found, device='cuda:0', seed=0)\n"
        "print(*found)",
    )
    assert told.split() == list(SCENARIOS)


def test_what_explains_a_script_needs_torch_alone() -> None:
    told = run_without(
        [name for name in OURS_ALONE if name != "numpy"],  # which torch takes where it is there
        "from importlib import import_module\n"
        "import torch\n"
        "names = 'causes', 'clock', 'core', 'cgroups', 'marks', 'device', 'watch', 'storages', 'work', 'weights', "
        "'ceilings'\n"
        "probes = {name: import_module(f'perftool.probes.{name}') for name in names}\n"
        "causes, ceilings, device = probes['causes'], probes['ceilings'], torch.device('cpu')\n"
        "watcher = probes['watch'].Watcher('cpu')\n"
        "before = causes.read_counters()\n"
        "watcher.begin(); watcher.fetching(); watcher.fetched(); watcher.stepped()\n"
        "print(len(watcher.finish()['step_ns']), sorted(causes.labels(before, causes.read_counters())))\n"
        "layer = torch.nn.Linear(2, 3)\n"
        "with probes['work'].Work(layer.parameters()) as work:\n"
        "    layer(torch.ones(1, 2)).sum().backward()\n"
        "print(work.flops, probes['weights'].parts_of([*layer.parameters()], [], [], device)['parameters_bytes'])\n"
        "ceilings.ROWS, ceilings.LARGE_COPY_BYTES = {'cpu': (16, 16)}, {'cpu': (2**16, 2**17)}\n"
        "print(ceilings.limits_beside(None, device)['type'], probes['weights'].available_bytes(device) > 0)\n",
    ).splitlines()
    assert told[0].startswith("1 ['involuntary_switches', 'major_faults'")
    assert told[1:] == [f"{2 * 2 * (2 * 3)} {4 * (2 * 3 + 3)}", "limits True"]
