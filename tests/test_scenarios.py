"""Every discovered scenario keeps the contract: it builds, trains, proves itself, composes, and its code runs."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import combinations, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
import torch
from msgspec.structs import replace
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from perftool.measure.facts import describe_workload
from perftool.plan import Plan
from perftool.probes.machine import describe_machine
from perftool.records import (
    DATA_WAIT,
    FULL_PRECISION,
    SLOW_TYPE,
    DatasetKind,
    Engaged,
    Goal,
    ModuleFacts,
    Settings,
    WorkloadFacts,
)
from perftool.scenario import DOCUMENTED, Context, check_settings, clashes, cures_of, discover, environment_of, plan_of
from perftool.search import offer_of
from perftool.training import CopiedAside, SettingError, Training, configure, loader_feed
from perftool.words import FETCH, Proving, Wanted
from perftool.workload import Loaded, Workload, load, load_workload
from scenarios.amp import scaled_update
from scenarios.device_resident_data import resident
from tests.measure.fakes import MACHINE, WORKLOAD
from tests.proofs import proved

SCENARIOS = discover()
REFERENCE = f"{Path(__file__).parent / 'measure' / 'workloads.py'}:rows"
WHOLE = "scenarios.reference:seed"
OF_THE_PROCESS = (  # set for a whole process
    "sdpa_backend",
    "flush_denormal",
    "gc_policy",
    "malloc_retention",
    "matmul_precision",
    "thp",
    "threads",
)
SLOW = ("compiled_step", "torch_compile")
ON_GPU = replace(
    MACHINE, device="cuda:0", device_name="scripted", device_capability=[9, 0], device_memory_bytes=2**36, triton=True
)


CONVOLVED, LAYERED = ModuleFacts(convolution_dims=[2]), ModuleFacts(block_lists=["layers"])


def modelled(modules: ModuleFacts = ModuleFacts(), *, gpu: bool = False, **changes: Any) -> Context:  # noqa: B008
    """What a scenario is told of a workload with a model of such a kind."""
    machine = replace(ON_GPU, torchao=True) if gpu else context().machine
    return Context(machine=machine, workload=replace(context().workload, modules=modules, **changes))


def described(workload: Workload) -> WorkloadFacts:
    training = Training(plan_of(workload, {}, SCENARIOS, device="cpu", seed=0))
    return describe_workload(Loaded(workload=workload, reference=REFERENCE), training, training.fetch())


@cache
def context(reference: str = REFERENCE, *, gpu: bool = False) -> Context:
    """What a scenario is told of a workload, here or on a scripted GPU."""
    loaded = load(reference)
    training = Training(plan_of(loaded.workload, {}, SCENARIOS, device="cpu", seed=0))
    threads = torch.get_num_threads()
    here = replace(
        MACHINE,
        torch_threads=threads,
        usable_cores=max(2, threads),
        matrix_units=["amx_bf16"],
        huge_pages=describe_machine("cpu").huge_pages,
    )
    facts = describe_workload(loaded, training, training.fetch())
    facts = replace(facts, python_objects=10**6, denormal_values=1)
    return Context(machine=ON_GPU if gpu else here, workload=facts)


def trained(settings: Settings, reference: str = REFERENCE, steps: int = 3) -> Training:
    """A training that has done a few steps with a finite loss."""
    training = Training(plan_of(load_workload(reference), settings, SCENARIOS, device="cpu", seed=0))
    for _ in range(steps):
        assert math.isfinite(training.step(training.fetch()).item())
    return training


def proofs(settings: Settings, training: Training) -> dict[str, Engaged]:
    return {name: proved(SCENARIOS[name], training, value) for name, value in settings.items()}


def settings_here(*, but: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Every value that can be had here without a GPU."""
    here = context()
    return [(name, value) for name, one in SCENARIOS.items() if name not in but for value in one.available(here)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_documents_itself(name: str) -> None:
    scenario = SCENARIOS[name]
    assert scenario.summary.endswith(".")
    assert all(len(scenario.section(heading)) > 10 for heading in DOCUMENTED)
    assert scenario.section("Source").startswith("https://")


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("reference", [REFERENCE, WHOLE])
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_default_can_be_had_and_what_cannot_has_a_reason(name: str, reference: str, gpu: bool) -> None:
    scenario, facts = SCENARIOS[name], context(reference, gpu=gpu)
    assert scenario.default(facts) in scenario.available(facts)
    assert not scenario.code(scenario.default(facts), facts).filled()
    for value in [*scenario.values(facts), "nonsense"]:
        reason = scenario.refusal(value, facts)
        assert reason is None or len(reason) > 10
    assert scenario.refusal("nonsense", facts)


def test_what_needs_a_gpu_says_so_and_is_there_with_one() -> None:
    for name, value in (
        ("cuda_graphs", "on"),
        ("device_resident_data", "on"),
        ("pinned_memory", "on"),
        ("cuda_allocator", "expandable_segments"),
    ):
        assert "CPU" in (SCENARIOS[name].refusal(value, context()) or "")
        assert SCENARIOS[name].refusal(value, context(gpu=True)) is None
    assert SCENARIOS["torch_compile"].available(context(gpu=True)) == [
        "off",
        "default",
        "reduce-overhead",
        "max-autotune-no-cudagraphs",
        "max-autotune",
    ]
    assert SCENARIOS["amp"].available(context(gpu=True)) == ["off", "bf16"]
    old = Context(machine=replace(ON_GPU, device_capability=[7, 0]), workload=context().workload)
    assert SCENARIOS["amp"].available(old) == ["off", "fp16"]
    assert "8.0" in (SCENARIOS["amp"].refusal("bf16", old) or "")
    assert "8.0" in (SCENARIOS["matmul_precision"].refusal("high", old) or "")


def test_other_circumstances_have_their_reasons() -> None:
    here, whole = context(), context(WHOLE)
    bare = Context(machine=replace(here.machine, libc="", compiler=None), workload=here.workload)
    mapped = Context(machine=here.machine, workload=replace(here.workload, dataset_kind="map", dataset_rows=None))
    collating = Context(machine=here.machine, workload=replace(here.workload, has_collate=True))
    mine = replace(here.workload, optimizer="Mine", optimizer_options={}, optimizer_step=None)
    sgd = Context(machine=here.machine, workload=mine)
    stream = Context(machine=here.machine, workload=replace(here.workload, dataset_kind="iterable", dataset_rows=None))
    configured = Context(
        machine=replace(ON_GPU, environment={"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}), workload=mine
    )
    on_device = Context(machine=ON_GPU, workload=replace(here.workload, dataset_on_device=True))
    large = Context(machine=ON_GPU, workload=replace(here.workload, dataset_bytes=2**36))
    collating_on_gpu = Context(machine=ON_GPU, workload=collating.workload)
    preloaded = Context(
        machine=replace(here.machine, environment={"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}), workload=here.workload
    )
    for name, value, facts, words in (
        ("malloc_retention", "on", bare, "glibc"),
        ("torch_compile", "default", bare, "apt-get install g++"),
        ("batch_gather", "on", mapped, "cannot be indexed"),
        ("batch_gather", "on", collating, "collate_fn"),
        ("batch_gather", "on", whole, "whole already"),
        ("batch_size", "64", whole, "whole"),
        ("batch_size", "1000000", here, "only"),
        ("dataloader_workers", "1", whole, "no loader"),
        ("dataloader_workers", "1", stream, "several times"),
        ("malloc_retention", "on", preloaded, "jemalloc"),
        ("optimizer_kernel", "fused", sgd, "Mine has no option 'fused'"),
        ("cuda_graphs", "on", Context(machine=ON_GPU, workload=mine), "Mine has no option 'capturable'"),
        ("thp", "on", Context(machine=replace(here.machine, huge_pages="never"), workload=mine), "set to 'never'"),
        ("thp", "on", Context(machine=replace(here.machine, huge_pages=None), workload=mine), "does not offer them"),
        ("flush_denormal", "on", context(gpu=True), "mode of the CPU"),
        ("device_resident_data", "on", collating_on_gpu, "collate_fn"),
        ("device_resident_data", "on", large, "a large part of the GPU's memory"),
        ("device_resident_data", "on", on_device, "on the GPU already"),
        ("pinned_memory", "on", on_device, "on the GPU already"),
        ("dataloader_workers", "1", on_device, "worker processes cannot read"),
        ("cuda_allocator", "expandable_segments", configured, "PYTORCH_ALLOC_CONF is set"),
        ("pinned_memory", "prefetch", here, "runs on the CPU"),
        ("accumulation", "0", here, "at least 1"),
        ("accumulation", "2", modelled(changes_buffers=True), "running statistics"),
        ("accumulation", "2", modelled(batch_form="nested"), "no plain list"),
        ("activation_checkpointing", "on", here, "no list of blocks"),
        ("activation_checkpointing", "on", modelled(LAYERED, changes_buffers=True), "changed twice"),
        ("activation_checkpointing", "on", modelled(LAYERED, compiled=True), "compiles its model itself"),
        ("channels_last", "on", here, "no convolution"),
        ("channels_last", "on", modelled(ModuleFacts(convolution_dims=[1])), "no convolution"),
        ("channels_last", "on", modelled(ModuleFacts(convolution_dims=[2, 3])), "no one layout"),
        ("channels_last", "off", modelled(replace(CONVOLVED, channels_last=True)), "itself"),
        ("cudnn_benchmark", "on", here, "on the CPU"),
        ("cudnn_benchmark", "on", context(gpu=True), "no convolution"),
        ("float8", "on", here, "CPUs"),
        ("float8", "on", Context(machine=replace(ON_GPU, device_capability=[8, 0]), workload=mine), "8.9"),
        ("float8", "on", context(gpu=True), "pip install torchao"),
        ("float8", "on", Context(machine=replace(ON_GPU, torchao=True), workload=mine), "no linear layer"),
        ("sdpa_backend", "math", here, "was not seen to call"),
        ("sdpa_backend", "flash", modelled(ModuleFacts(attends=True)), "a CPU has one fused kernel"),
        ("torch_compile", "max", here, "it takes"),
    ):
        assert words in (SCENARIOS[name].refusal(value, facts) or ""), (name, value)


def test_models_of_other_kinds_have_what_is_for_them() -> None:
    eight = ModuleFacts(attends=True, large_linears=4)
    for name, value, facts in (
        ("activation_checkpointing", "on", modelled(LAYERED)),
        ("activation_checkpointing", "on", modelled(ModuleFacts(chains={"body": 6}))),
        ("channels_last", "on", modelled(CONVOLVED)),
        ("channels_last", "on", modelled(ModuleFacts(convolution_dims=[1, 3]))),
        ("cudnn_benchmark", "on", modelled(CONVOLVED, gpu=True)),
        ("sdpa_backend", "math", modelled(eight)),
        ("sdpa_backend", "cudnn", modelled(eight, gpu=True)),
        ("float8", "on", modelled(eight, gpu=True)),
    ):
        assert value in SCENARIOS[name].available(facts), (name, value)
    own = modelled(replace(CONVOLVED, channels_last=True))
    assert SCENARIOS["channels_last"].default(own) == "on"
    assert not SCENARIOS["channels_last"].code("on", own).filled()


@pytest.mark.parametrize("name", ["accumulation", "activation_checkpointing"])
def test_what_costs_time_for_memory_is_searched_where_memory_is_wanted(name: str) -> None:
    facts = modelled(LAYERED)
    for goal, is_tried in (
        (Goal(), False),
        (Goal(max_p99_ns=1e6), False),
        (Goal(only=[name]), True),
        (Goal(objective="memory"), True),
        (Goal(max_host_bytes=2**30), True),
        (Goal(max_device_bytes=2**30), True),
        (Goal(max_device_bytes=2**30, keep=[name]), False),
    ):
        assert bool(offer_of(SCENARIOS, facts, {}, goal).values.get(name)) == is_tried, goal


@pytest.mark.usefixtures("torch_as_before")
def test_the_kernels_of_attention_are_chosen_and_seen() -> None:
    workload = load(f"{Path(__file__).with_name('as_written.py')}:sentences").workload
    scenario = SCENARIOS["sdpa_backend"]
    assert scenario.present is not None
    for value in ("math", "auto"):
        training = Training(plan_of(workload, {"sdpa_backend": value}, SCENARIOS, device="cpu", seed=0))
        found = {one: proved(scenario, training, one) for one in ("math", "auto", "flash")}
        assert found[value].ok
        assert found["auto"].ok, "it leaves the choice"
        assert found["flash"].ok == (value == "auto")
        assert ("math" if value == "math" else "flash") in found[value].evidence
        assert scenario.present() == value
    plan_of(None, {"sdpa_backend": "flash+cudnn"}, SCENARIOS, device="cpu", seed=0).process[0]()
    assert scenario.present() == "flash+cudnn", "what a script has chosen itself can be set again"


def test_code_of_a_compilation_has_its_arguments() -> None:
    for value, line in (
        ("default", "model = torch.compile(model)"),
        ("dynamic", "model = torch.compile(model, dynamic=True)"),
        ("max-autotune-no-cudagraphs", 'model = torch.compile(model, mode="max-autotune-no-cudagraphs")'),
    ):
        assert SCENARIOS["torch_compile"].code(value, context()).model == line


class FakeStreams:
    """Of torch.cuda what a copy beside the steps asks for; notes it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def Stream(self, _: torch.device) -> str:
        return "side"

    @contextmanager
    def stream(self, name: str) -> Iterator[None]:
        self.told.append(f"on {name}")
        yield
        self.told.append(f"off {name}")

    def current_stream(self, _: torch.device) -> Any:
        return SimpleNamespace(wait_stream=lambda other: self.told.append(f"wait for {other}"))


class FakeTensor(torch.Tensor):
    """Notes by which streams it is used."""

    streams: ClassVar[list[Any]] = []

    def record_stream(self, stream: Any) -> None:
        self.streams.append(stream)


def test_a_copy_beside_the_steps_is_waited_for_and_its_memory_kept() -> None:
    fake = FakeStreams()
    FakeTensor.streams.clear()

    def step(batch: Any) -> torch.Tensor:
        fake.told.append("step")
        return torch.zeros(())

    CopiedAside(step, torch.device("cpu"), fake)([FakeTensor([1.0]), FakeTensor([2.0])])
    assert fake.told == ["on side", "off side", "wait for side", "step"]
    assert len(FakeTensor.streams) == 2


def test_a_graph_refuses_what_hangs_on_the_optimizer() -> None:
    workload = load(f"{Path(__file__).with_name('as_written.py')}:clipping").workload
    with pytest.raises(SettingError, match=r"hooks are registered .*, which a graph would run once"):
        Training(plan_of(workload, {"cuda_graphs": "on"}, SCENARIOS, device="cpu", seed=0))


@pytest.mark.parametrize("own", ["bf16", "fp16"])
def test_a_script_that_uses_autocast_is_the_default_and_cannot_be_without(own: Literal["bf16", "fp16"]) -> None:
    """Whatever this machine can do: the baseline does it already."""
    facts = replace(WORKLOAD, driver="script", dataset_kind="own", autocast=own)
    for machine in (ON_GPU, replace(MACHINE, matrix_units=[])):
        here = Context(machine=machine, workload=facts)
        assert SCENARIOS["amp"].default(here) == own
        assert own in SCENARIOS["amp"].available(here)
        assert f"the script itself computes in {own}" in (SCENARIOS["amp"].refused("off", here) or "")


def test_a_script_that_compiles_its_model_is_left_to_it() -> None:
    facts = replace(WORKLOAD, driver="script", dataset_kind="own", compiled=True)
    for machine in (ON_GPU, replace(MACHINE, compiler=None)):
        here = Context(machine=machine, workload=facts)
        assert SCENARIOS["torch_compile"].default(here) == "default"
        assert SCENARIOS["torch_compile"].available(here) == ["default"]
        assert "compiles its model itself" in (SCENARIOS["torch_compile"].refused("off", here) or "")
        assert "it takes" in (SCENARIOS["torch_compile"].refused("often", here) or "")


def test_what_is_not_sensible_here_is_not_tried_but_can_be_had() -> None:
    here = context()
    few = replace(here.workload, python_objects=200_000, denormal_values=0)
    plain = Context(machine=replace(here.machine, matrix_units=[], huge_pages="always"), workload=few)
    for name, value, facts, words in (
        ("amp", "bf16", plain, "no units for bfloat16"),
        ("amp", "fp16", plain, "many times slower"),
        ("amp", "fp16", here, "use bf16"),
        ("dataloader_workers", "999", here, "only"),
        ("threads", "999", here, "only"),
        ("gc_policy", "freeze", plain, "too few"),
        ("flush_denormal", "on", plain, "no denormal number"),
    ):
        assert words in (SCENARIOS[name].why_not(value, facts) or ""), (name, value)
        check_settings({name: value}, SCENARIOS, facts)
    assert SCENARIOS["amp"].available(plain) == ["off"]
    assert set(SCENARIOS["amp"].described(plain).discouraged) == {"bf16", "fp16"}


def test_an_iterable_dataset_that_shares_its_samples_out_may_have_other_numbers_of_workers() -> None:
    facts = replace(context().workload, dataset_kind="iterable", settings={"dataloader_workers": "4"})
    assert SCENARIOS["dataloader_workers"].refusal("2", Context(machine=MACHINE, workload=facts)) is None


def test_workers_cure_a_wait_for_data_that_are_not_in_memory_and_more_of_them_where_some_are_in_force() -> None:
    def cured(kind: DatasetKind, workers: str | None, cores: int = 8) -> list[str] | None:
        here = context()
        facts = replace(here.workload, dataset_kind=kind, settings={"dataloader_workers": "1"})
        own = {"dataloader_workers": SCENARIOS["dataloader_workers"]}
        machine = replace(here.machine, usable_cores=cores)
        settings = {} if workers is None else {"dataloader_workers": workers}
        return cures_of(own, Context(machine=machine, workload=facts), settings).get(DATA_WAIT)

    told = {workers: cured("map", workers) for workers in (None, "1", "2", "4", "6", "8")}
    assert told == {
        None: ["dataloader_workers=2"],
        "1": ["dataloader_workers=2"],
        "2": ["dataloader_workers=4"],
        "4": ["dataloader_workers=8"],
        "6": ["dataloader_workers=8"],
        "8": None,
    }
    assert cured("iterable", "1", cores=2) == ["dataloader_workers=2"]
    assert cured("map", "2", cores=2) is None
    assert [cured("tensors", workers) for workers in (None, "0", "1")] == [None] * 3


def test_another_type_is_advised_where_a_slow_one_is_in_force() -> None:
    own = {"amp": SCENARIOS["amp"]}
    with_units, without = context(), Context(machine=replace(MACHINE, matrix_units=[]), workload=WORKLOAD)
    assert cures_of(own, with_units, {"amp": "fp16"}) == {SLOW_TYPE: ["amp=bf16"]}
    assert cures_of(own, without, {"amp": "fp16"}) == {SLOW_TYPE: ["amp=off"]}
    assert cures_of(own, without, {"amp": "bf16"}) == {SLOW_TYPE: ["amp=off"]}
    assert cures_of(own, with_units, {}) == {FULL_PRECISION: ["amp=bf16"]}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"amp": "fp16", "cuda_graphs": "on"}, "amp=fp16: .* use amp=bf16"),
        ({"cuda_graphs": "on", "torch_compile": "reduce-overhead"}, "cannot be nested"),
        ({"cuda_graphs": "on", "cuda_allocator": "expandable_segments"}, "hangs were reported"),
    ],
)
def test_what_cannot_be_had_together_says_why(settings: Settings, words: str) -> None:
    assert re.search(words, clashes(settings, SCENARIOS) or "")
    for name in settings:
        assert clashes({name: settings[name]}, SCENARIOS) is None


class Scaled(TensorDataset):
    """A user's own, which does something with each row."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return tuple(2 * tensor[index] for tensor in self.tensors)


class Fetching(TensorDataset):
    """A user's own, which does something with the rows of a batch."""

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, ...]]:
        return [self[index] for index in indices]


@pytest.mark.parametrize(("kind", "told"), [(TensorDataset, "tensors"), (Scaled, "map"), (Fetching, "map")])
def test_a_dataset_that_works_on_its_rows_is_not_taken_for_tensors(kind: Any, told: str) -> None:
    workload = dataclasses.replace(load_workload(REFERENCE), dataset=lambda: kind(torch.ones(16, 4), torch.ones(16, 1)))
    facts = described(workload)
    assert (facts.dataset_kind, facts.dataset_rows) == (told, 16)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (torch.optim.SGD, "SGD"),
        (type("Derived", (torch.optim.SGD,), {}), "SGD"),
        (type("Own", (torch.optim.SGD,), {"step": lambda self, closure=None: None}), None),
    ],
)
def test_whose_step_an_optimizer_runs_is_known(make: Any, told: str | None) -> None:
    workload = dataclasses.replace(load_workload(REFERENCE), optimizer=lambda parameters: make(parameters, lr=0.1))
    assert described(workload).optimizer_step == told


def test_the_models_own_fused_kernels_are_not_taken_for_the_optimizers() -> None:
    workload = dataclasses.replace(
        load_workload(REFERENCE),
        loss=lambda model, batch: model(nn.functional.rms_norm(batch[0], (4,))).square().mean(),
    )
    training = Training(plan_of(workload, {"optimizer_kernel": "for-loop"}, SCENARIOS, device="cpu", seed=0))
    # The grouped operations of a clipping in the loss, too.
    foreach = dataclasses.replace(
        training.plan, loss=(lambda loss: lambda model, batch: torch._foreach_add([loss(model, batch)], 0)[0],)
    )
    for one in (training, Training(foreach)):
        assert proved(SCENARIOS["optimizer_kernel"], one, "for-loop").ok


@pytest.mark.parametrize(("value", "foreach"), [("for-loop", True), ("foreach", False), ("fused", True)])
def test_what_hooks_of_the_optimizers_step_do_is_not_taken_for_the_update(value: str, foreach: bool) -> None:
    training = trained({"optimizer_kernel": value})
    parameters = list(training.module.parameters())
    averages = [part.detach().clone() for part in parameters]

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=foreach)

    training.optimizer.register_step_pre_hook(clip)
    training.optimizer.register_step_post_hook(
        lambda *_: torch._foreach_lerp_(averages, [part.detach() for part in parameters], 0.1)
    )
    for other in ("for-loop", "foreach", "fused"):
        proof = proved(SCENARIOS["optimizer_kernel"], training, other)
        assert proof.ok == (other == value), proof.evidence
        assert proof.evidence == f"the update of one step ran as {value}"


def test_an_optimizer_without_the_option_is_nothing_to_act_on() -> None:
    workload = dataclasses.replace(
        load_workload(REFERENCE), optimizer=lambda parameters: torch.optim.Rprop(parameters, lr=0.01)
    )
    training = Training(plan_of(workload, {}, SCENARIOS, device="cpu", seed=0))
    proof = proved(SCENARIOS["optimizer_kernel"], training, "fused")
    assert (proof.ok, proof.evidence) == (False, "there is nothing to act on: Rprop has no option 'fused'")


def test_an_update_that_never_comes_is_no_effect() -> None:
    training = trained({})
    training.bare_step = lambda: torch.zeros(())  # type: ignore[method-assign]
    proof = proved(SCENARIOS["optimizer_kernel"], training, "for-loop")
    assert (proof.ok, proof.evidence) == (False, "no update was seen in 3 steps")


@pytest.mark.usefixtures("torch_as_before")
def test_the_precision_of_matmuls_is_what_torch_says_and_its_effect_what_is_seen() -> None:
    training = trained({"matmul_precision": "medium"})
    differing = proved(SCENARIOS["matmul_precision"], training, "medium")
    assert differing.ok
    assert torch.get_float32_matmul_precision() == "medium", "the proof leaves it as it was"
    assert re.search(r"of \d+ products .* differ|no effect seen on these shapes", differing.evidence)
    assert not proved(SCENARIOS["matmul_precision"], training, "highest").ok
    torch.set_float32_matmul_precision("highest")  # as a script may, too
    lost = proved(SCENARIOS["matmul_precision"], training, "medium")
    assert (lost.ok, lost.evidence) == (False, "torch's precision is 'highest'")


@pytest.mark.process
def test_children_of_the_workload_are_not_taken_for_loader_processes() -> None:
    training = trained({"dataloader_workers": "1"})
    with multiprocessing.Manager():
        assert proved(SCENARIOS["dataloader_workers"], training, "1").ok
        assert not proved(SCENARIOS["dataloader_workers"], training, "2").ok


@pytest.mark.parametrize(("name", "value"), settings_here(but=(*OF_THE_PROCESS, *SLOW)))
def test_a_value_trains_and_proves_itself(name: str, value: str) -> None:
    proof = proved(SCENARIOS[name], trained({name: value}), value)
    assert proof.ok, proof.evidence


@pytest.mark.process
@pytest.mark.parametrize(("name", "value"), [one for one in settings_here() if one[0] in OF_THE_PROCESS])
def test_a_value_of_the_process_proves_itself_and_only_where_it_is_set(name: str, value: str) -> None:
    """In a process of its own, without the value and then with it; in two where the environment decides."""
    code = (
        "import json, sys; from tests.test_scenarios import SCENARIOS, proved, trained\n"
        "name, value, several = sys.argv[1:]\n"
        "proofs = [proved(SCENARIOS[name], trained(one), value) for one in json.loads(several)]\n"
        "print(json.dumps([[proof.ok, proof.evidence] for proof in proofs]))"
    )

    def proved(several: list[Settings], environment: dict[str, str]) -> list[tuple[bool, str]]:
        done = subprocess.run(
            [sys.executable, "-c", code, name, value, json.dumps(several)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, **environment},
        )
        assert done.returncode == 0, done.stderr
        return [(ok, evidence) for ok, evidence in json.loads(done.stdout)]

    setting = {name: value}
    environment = environment_of(setting, SCENARIOS)
    apart = environment or name == "flush_denormal"  # threads keep the mode that they started with
    told = proved([{}], {}) + proved([setting], environment) if apart else proved([{}, setting], {})
    (plain, _), (set_to, evidence) = told
    assert plain == (value == SCENARIOS[name].default(context()))
    if (name, value) == ("matmul_precision", "medium"):
        return  # whether it takes effect depends on the CPU, which the proof is there to find out
    assert set_to, evidence


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("amp", "bf16"),
        ("batch_gather", "on"),
        ("batch_size", "16"),
        ("cuda_graphs", "on"),
        ("dataloader_workers", "1"),
        ("optimizer_kernel", "fused"),
        ("optimizer_kernel", "foreach"),
        ("pinned_memory", "on"),
        ("torch_compile", "default"),
    ],
)
def test_a_proof_fails_where_the_setting_is_not(name: str, value: str) -> None:
    proof = proved(SCENARIOS[name], trained({}), value)
    assert not proof.ok
    assert proof.evidence


@pytest.mark.parametrize(
    ("settings", "default"),
    [
        ({"amp": "bf16"}, ("amp", "off")),
        ({"batch_gather": "on"}, ("batch_gather", "off")),
        ({"optimizer_kernel": "fused"}, ("optimizer_kernel", "for-loop")),
    ],
)
def test_the_proof_of_a_default_fails_where_it_was_changed(settings: Settings, default: tuple[str, str]) -> None:
    assert not proved(SCENARIOS[default[0]], trained(settings), default[1]).ok


OF_EVERY_TEST = ("flush_denormal", "gc_policy", "malloc_retention")  # no test could undo them


def pairs_here() -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Every two values, not defaults, of two scenarios."""
    values = settings_here(but=(*SLOW, *OF_EVERY_TEST))
    changes = [(name, value) for name, value in values if value != SCENARIOS[name].default(context())]
    return [(one, other) for one, other in combinations(changes, 2) if one[0] != other[0]]


@pytest.mark.usefixtures("torch_as_before")
@pytest.mark.parametrize("pair", pairs_here(), ids=lambda pair: "+".join("=".join(one) for one in pair))
def test_any_two_settings_are_one_training(pair: tuple[tuple[str, str], tuple[str, str]]) -> None:
    trained(dict(pair))


@pytest.mark.process
@pytest.mark.usefixtures("torch_as_before")
def test_compilation_composes_and_proves_itself_in_company() -> None:
    settings = {"amp": "bf16", "batch_gather": "on", "optimizer_kernel": "fused", "torch_compile": "default"}
    told = proofs(settings, trained(settings, "scenarios.reference:small"))
    assert all(one.ok for one in told.values()), told


def test_gathered_batches_are_the_loaders_own() -> None:
    loaded, gathered = (Training(plan_of(load_workload(REFERENCE), one, SCENARIOS, device="cpu", seed=7))
                        for one in ({}, {"batch_gather": "on"}))  # fmt: skip
    for _ in range(20):  # over the end of an epoch, its ragged last batch included
        for one, other in zip(loaded.fetch(), gathered.fetch(), strict=True):
            assert torch.equal(one, other)


def test_gathering_in_worker_processes_gives_the_same_batches() -> None:
    settings = {"batch_gather": "on", "dataloader_workers": "1"}
    alone, with_workers = (Training(plan_of(load_workload(REFERENCE), one, SCENARIOS, device="cpu", seed=7))
                           for one in ({}, settings))  # fmt: skip
    for _ in range(10):
        assert torch.equal(alone.fetch()[0], with_workers.fetch()[0])


def epoch_of(loader: DataLoader[Any]) -> Iterator[Any]:
    """As a script's driver has it."""
    plan = plan_of(None, {"batch_gather": "on"}, SCENARIOS, device="cpu", seed=0)
    assert plan.epoch is not None
    return plan.epoch(loader)


ROWS = torch.arange(22.0).reshape(11, 2)


@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 4, "shuffle": True},
        {"batch_size": 4, "shuffle": True, "drop_last": True},
        {"batch_size": 4},
        {"batch_sampler": [[3, 1], [2], [0, 10, 5]]},
        {"batch_size": 3, "sampler": torch.utils.data.WeightedRandomSampler([1.0] * 11, 20)},
        # What does not fit comes by the loader's own iterator.
        {"batch_size": 4, "shuffle": True, "collate_fn": lambda rows: [torch.stack(one) for one in zip(*rows)]},  # noqa: B905
        {"batch_size": None, "shuffle": True},
    ],
)
def test_a_scripts_epochs_are_its_loaders_own_and_so_is_the_random_state_after_them(
    arguments: dict[str, Any], seeded: bool
) -> None:
    def epochs(take: Any) -> tuple[list[list[torch.Tensor]], torch.Tensor]:
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(5) if seeded else None
        loader = DataLoader(TensorDataset(ROWS, ROWS[:, 0]), generator=generator, **arguments)
        batches = []
        for _ in range(3):
            taken = take(loader)
            batches += [list(batch) for batch in taken]
            batches.append([torch.rand(2)])
        return batches, torch.get_rng_state()

    (own, state), (gathered, after) = epochs(iter), epochs(epoch_of)
    assert torch.equal(state, after)
    assert len(own) == len(gathered)
    for one, other in zip(own, gathered, strict=True):
        assert all(torch.equal(part, theirs) for part, theirs in zip(one, other, strict=True))


def test_only_what_fits_is_gathered() -> None:
    plain = TensorDataset(ROWS)
    assert not isinstance(epoch_of(DataLoader(plain, batch_size=4)), _BaseDataLoaderIter)
    for loader in (
        DataLoader(Scaled(ROWS), batch_size=4),
        DataLoader(plain, batch_size=None),
        DataLoader(plain, batch_size=4, collate_fn=lambda rows: rows),
    ):
        assert isinstance(epoch_of(loader), _BaseDataLoaderIter)


@dataclasses.dataclass
class Own:
    """A training whose loop is not perftool's, with a plan laid over it by hand."""

    plan: Plan
    module: nn.Module
    optimizer: torch.optim.Optimizer

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def model(self) -> nn.Module:
        return self.module

    def prove(self, proving: Proving | Engaged) -> Engaged:
        """Go on with the loop until the proof ends, and resume it at the borders that it asked for."""
        assert not isinstance(proving, Engaged)
        loss: Any = lambda model, batch: model(*batch).square().mean()  # noqa: E731
        for wrap in self.plan.loss:
            loss = wrap(loss)
        loader = DataLoader(TensorDataset(torch.ones(64, 8)), batch_size=4)
        wanted: Wanted | None = next(proving)
        try:
            for batch in iter(loader) if self.plan.epoch is None else self.plan.epoch(loader):
                if wanted == FETCH:
                    wanted = proving.send(batch)
                self.optimizer.zero_grad()
                loss(self.module, batch).backward()
                self.optimizer.step()
                if wanted != FETCH:
                    wanted = next(proving)
        except StopIteration as ended:
            engaged: Engaged = ended.value
            return engaged
        raise AssertionError("the loop ended before the proof")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("amp", "off"),
        ("amp", "bf16"),
        ("batch_gather", "off"),
        ("batch_gather", "on"),
        ("optimizer_kernel", "for-loop"),
        ("optimizer_kernel", "fused"),
        ("dataloader_workers", "0"),
        ("torch_compile", "off"),
    ],
)
def test_a_proof_can_be_run_in_a_loop_that_it_does_not_drive(name: str, value: str) -> None:
    module = nn.Linear(8, 8)
    optimizer = torch.optim.Adam(module.parameters())
    plan = plan_of(None, {name: value}, SCENARIOS, device="cpu", seed=0)
    configure(optimizer, plan.optimizer)
    live = Own(plan=plan, module=module, optimizer=optimizer)
    proof = live.prove(SCENARIOS[name].proof(live, value))
    assert proof.ok, proof.evidence
    if value not in ("off", "0", "for-loop"):
        bare = dataclasses.replace(live, plan=Plan(workload=None), optimizer=torch.optim.Adam(module.parameters()))
        assert not bare.prove(SCENARIOS[name].proof(bare, value)).ok


@pytest.mark.process
def test_a_scripts_workers_stay_its_own() -> None:
    loader = DataLoader(TensorDataset(ROWS), batch_size=4, num_workers=1, persistent_workers=True)
    first = epoch_of(loader)
    assert [len(batch[0]) for batch in first] == [4, 4, 3]
    assert epoch_of(loader) is first, "persistent workers go on"
    assert [len(batch[0]) for batch in first] == [4, 4, 3]


def test_batches_taken_on_the_device_are_those_of_the_loader() -> None:
    plan = plan_of(load_workload(REFERENCE), {}, SCENARIOS, device="cpu", seed=0)
    dataset = Training(plan).dataset
    size = plan.batch_size
    assert size is not None
    epoch = -(-len(dataset[0]) // size)
    pairs = zip(loader_feed(plan, dataset), resident(plan, dataset), strict=True)
    for ours, theirs in islice(pairs, 2 * epoch):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("other", [("batch_gather", "on"), ("dataloader_workers", "2"), ("pinned_memory", "on")])
def test_what_loads_on_the_host_has_nothing_left_to_do_beside_data_on_the_device(other: tuple[str, str]) -> None:
    assert f"{other[0]} would do nothing" in (clashes({"device_resident_data": "on", **dict([other])}, SCENARIOS) or "")
    assert (
        clashes({"device_resident_data": "on", other[0]: "0" if other[0] == "dataloader_workers" else "off"}, SCENARIOS)
        is None
    )


def test_each_training_finds_a_scale_of_its_own() -> None:
    """Those of several seeds have the same plan."""
    update, scales = scaled_update("cpu"), []
    for factor in (float("inf"), 1.0):
        parameter = nn.Parameter(torch.ones(1))
        parameter.register_hook(lambda gradient: scales.append(gradient.item()))  # type: ignore[no-untyped-call]
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        for _ in range(2):
            update((parameter * factor).sum(), optimizer)
    assert scales[2:] == [65536.0] * 2, "whatever the first one has come to"


def test_kernels_of_the_optimizer_train_alike() -> None:
    losses = []
    for value in ("for-loop", "foreach", "fused"):
        training = Training(
            plan_of(load_workload(REFERENCE), {"optimizer_kernel": value}, SCENARIOS, device="cpu", seed=0)
        )
        losses.append([training.step(training.fetch()).item() for _ in range(10)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------- GPU


def on_gpu(settings: Settings, steps: int) -> tuple[Training, list[float]]:
    training = Training(plan_of(load_workload(REFERENCE), settings, SCENARIOS, device="cuda:0", seed=0))
    return training, [training.step(training.fetch()).item() for _ in range(steps)]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name, one in SCENARIOS.items()
        for value in one.values(context(gpu=True))
        if one.refusal(value, context(gpu=True)) is None
        and name not in (*OF_THE_PROCESS, "cuda_allocator", "dataloader_workers")
        and (name, value) not in (("torch_compile", "max-autotune"), ("compiled_step", "10"))  # see its own tests
    ],
)
def test_a_value_trains_and_proves_itself_on_a_gpu(name: str, value: str) -> None:
    training, losses = on_gpu({name: value}, 5)
    assert all(map(math.isfinite, losses))
    proof = proved(SCENARIOS[name], training, value)
    assert proof.ok, proof.evidence


@pytest.mark.gpu
@pytest.mark.process
@pytest.mark.parametrize("value", ["default", "expandable_segments"])
def test_segments_of_gpu_memory_can_grow_only_where_they_are_told_to(value: str) -> None:
    code = (
        "import sys; from tests.test_scenarios import SCENARIOS, on_gpu, proved\n"
        "print([proved(SCENARIOS['cuda_allocator'], on_gpu({}, 3)[0], value).ok for value in sys.argv[1:]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "default", "expandable_segments"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, **SCENARIOS["cuda_allocator"].environment(value)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([value == "default", value == "expandable_segments"])


@pytest.mark.gpu
def test_a_graphed_step_trains_as_an_eager_one_over_a_ragged_batch() -> None:
    _, eager = on_gpu({}, 20)
    _, graphed = on_gpu({"cuda_graphs": "on"}, 20)
    assert graphed == pytest.approx(eager, rel=1e-3)


@pytest.mark.gpu
def test_a_scaled_loss_cannot_be_graphed_and_says_so() -> None:
    with pytest.raises(SettingError, match="use amp=bf16"):
        on_gpu({"amp": "fp16", "cuda_graphs": "on"}, 1)


@pytest.mark.gpu
def test_everything_for_a_gpu_is_one_training() -> None:
    settings = {
        "amp": "bf16",
        "batch_gather": "on",
        "cuda_graphs": "on",
        "optimizer_kernel": "fused",
        "pinned_memory": "on",
    }
    training, losses = on_gpu(settings, 10)
    assert all(map(math.isfinite, losses))
    told = proofs(settings, training)
    assert all(one.ok for one in told.values()), told


# -------------------------------------------------------------------------------------------------- proofs that count


class Alternating(nn.Module):
    """Every other step is another program to a compiler."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.is_odd = nn.Linear(4, 1), False

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.is_odd = not self.is_odd
        output: torch.Tensor = self.layer(rows if self.is_odd else 2 * rows)
        return output


def tiny(**changes: Any) -> Workload:
    usual: dict[str, Any] = {
        "model": lambda: nn.Linear(4, 1),
        "dataset": lambda: (torch.ones(64, 4), torch.zeros(64, 1)),
        "loss": lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        "batch_size": 8,
    }
    return Workload(**{**usual, **changes})


def test_steps_past_the_limit_of_compilations_are_counted_as_they_ran() -> None:
    torch._dynamo.reset()
    scenario = SCENARIOS["torch_compile"]
    with torch._dynamo.config.patch(recompile_limit=1):
        plan = plan_of(tiny(model=Alternating), {"torch_compile": "default"}, SCENARIOS, device="cpu", seed=0)
        training = Training(plan)
        for _ in range(4):
            training.step(training.fetch())
        if not training.module.is_odd:  # so that the first step that the proof looks at is a compiled one
            training.step(training.fetch())
        found = [proved(scenario, training, "default") for _ in range(2)]
    torch._dynamo.reset()
    assert not any(one.ok for one in found)
    assert any("10 of 20 steps ran eagerly, past torch's limit of 1 compilations" in one.evidence for one in found)


@pytest.mark.parametrize(
    ("collate", "told"),
    [
        (None, "a batch has 16 samples"),
        (lambda rows: {"scale": torch.tensor(1.0), "rows": torch.stack([one for one, _ in rows])}, "has 16 samples"),
        (lambda rows: torch.stack([one for one, _ in rows], dim=1), "has 16 samples"),
        (lambda rows: torch.cat([one.repeat(2) for one, _ in rows]), "the loader draws 16 samples; a batch does not"),
    ],
)
def test_a_batch_size_is_seen_wherever_a_batch_has_it(collate: Any, told: str) -> None:
    plan = plan_of(tiny(collate_fn=collate), {"batch_size": "16"}, SCENARIOS, device="cpu", seed=0)
    found = proved(SCENARIOS["batch_size"], Training(plan), "16")
    assert found.ok
    assert told in found.evidence


def test_a_batch_size_that_is_still_the_old_one_is_no_effect() -> None:
    found = proved(SCENARIOS["batch_size"], Training(plan_of(tiny(), {}, SCENARIOS, device="cpu", seed=0)), "16")
    assert (found.ok, found.evidence) == (False, "a batch still has 8 samples")


def test_fused_kernels_are_refused_where_gradients_are_sparse() -> None:
    sparse = tiny(model=lambda: nn.Sequential(nn.EmbeddingBag(8, 4, sparse=True, mode="sum"), nn.Linear(4, 1)))
    facts = described(sparse)
    assert facts.sparse_gradients
    assert not described(tiny()).sparse_gradients
    here = dataclasses.replace(context(), workload=facts)
    assert "dense gradients only" in (SCENARIOS["optimizer_kernel"].refused("fused", here) or "")
    assert "fused" not in SCENARIOS["optimizer_kernel"].available(here)
