"""The scenario contract: how scenarios are found, described, checked and composed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from perftool.records import Engaged
from perftool.scenario import (
    Code,
    Context,
    Scenario,
    ScenarioError,
    check_settings,
    clashes,
    discover,
    environment_of,
    names_in,
    names_variant,
    normalised,
    other_values,
    plan_of,
    refuse_unlisted,
    variants_of,
    with_seed,
)
from perftool.script.start import _load as load_scenario
from scenarios.reference import seed as seed_workload
from tests.measure.fakes import MACHINE, WORKLOAD

CONTEXT = Context(machine=MACHINE, workload=WORKLOAD)
DOC = """One line.

What it changes: this,
    and that.
When it helps: now.
When it hurts: then.
Source: https://example.org
"""
OWN = f'''"""{DOC}"""

from perftool.records import Engaged
from perftool.scenario import Code, Scenario, refuse_unlisted

scenario = Scenario(
    __name__,
    __doc__,
    default=lambda context: "off",
    values=lambda context: ("off", "on"),
    refusal=lambda value, context: refuse_unlisted(value, ("off", "on")),
    apply=lambda plan, value: plan,
    proof=lambda training, value: Engaged(ok=True, evidence="nothing to see"),
    code=lambda value, context: Code(),
    environment=lambda value: {{"OWN": value}},
)
'''


def made(doc: str | None = DOC, **changes: Any) -> Scenario:
    usual: dict[str, Any] = {
        "default": lambda context: "off",
        "values": lambda context: ("off", "low", "high"),
        "refusal": lambda value, context: refuse_unlisted(value, ("off", "low", "high")),
        "apply": lambda plan, value: plan,
        "proof": lambda training, value: Engaged(ok=True, evidence=""),
        "code": lambda value, context: Code(setup=f"x = {value!r}"),
    }
    return Scenario("somewhere.made", doc, **{**usual, **changes})


def test_all_built_in_scenarios_are_found_without_torch() -> None:
    code = (
        "import sys; from perftool.scenario import discover\n"
        "print(*discover()); assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "accumulation",
        "activation_checkpointing",
        "amp",
        "batch_gather",
        "batch_size",
        "channels_last",
        "compiled_step",
        "cuda_allocator",
        "cuda_graphs",
        "cudnn_benchmark",
        "dataloader_workers",
        "device_resident_data",
        "float8",
        "flush_denormal",
        "gc_policy",
        "learning_rate",
        "malloc_retention",
        "matmul_precision",
        "optimizer_kernel",
        "pinned_memory",
        "sdpa_backend",
        "thp",
        "threads",
        "torch_compile",
    ]


def test_a_users_own_file_is_a_scenario_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    found = discover([tmp_path / "own.py"])
    assert "amp" in found
    assert found["own"].section("What it changes") == "this, and that."
    assert environment_of({"own": "on"}, found) == {"OWN": "on"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no such file"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("x = 1", "it must end with `scenario = Scenario(__name__, __doc__, ...)`"),
        (OWN.replace("When it hurts:", "But:"), "its docstring has no 'When it hurts:'"),
    ],
)
def test_a_file_that_breaks_the_contract_is_named(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "own.py").write_text(text)
    with pytest.raises(ScenarioError) as caught:
        discover([tmp_path / "own.py"])
    assert words in str(caught.value)
    assert "own" in str(caught.value)


def test_a_scenario_without_docstring_is_refused() -> None:
    with pytest.raises(ScenarioError, match="What it changes"):
        made(None)


def test_a_description_has_everything_that_is_shown() -> None:
    told = made(refusal=lambda value, context: "there is none here" if value == "high" else None).described(CONTEXT)
    assert (told.name, told.summary, told.default) == ("made", "One line.", "off")
    assert told.available == ["off", "low"]
    assert told.refused == {"high": "there is none here"}
    assert told.sections["When it helps"] == "now."
    assert told.codes["low"] == {"setup": "x = 'low'"}


# ----------------------------------------------------------------------------------------------------------- settings


def test_values_become_text() -> None:
    assert normalised({"a": True, "b": False, "c": 3, "d": "x"}) == {"a": "on", "b": "off", "c": "3", "d": "x"}


def test_refused_settings_name_the_remedy() -> None:
    found = discover()
    with pytest.raises(ScenarioError, match="there is no scenario 'nonsense'; there are accumulation, activation_"):
        check_settings({"nonsense": "on"}, found, CONTEXT)
    with pytest.raises(ScenarioError, match="amp=maybe: it takes off, bf16 or fp16, not 'maybe'"):
        check_settings({"amp": "maybe"}, found, CONTEXT)
    check_settings({"amp": "bf16", "threads": "1"}, found, CONTEXT)


@pytest.mark.parametrize(
    ("wanted", "variants"),
    [
        (["made"], [{"made": "low"}, {"made": "high"}]),
        (["made=high"], [{"made": "high"}]),
        (["made=high,other=low"], [{"made": "high", "other": "low"}]),
        ([], [{"made": "low"}, {"made": "high"}, {"other": "low"}, {"other": "high"}]),
    ],
)
def test_variants_of_the_command_line(wanted: list[str], variants: list[dict[str, str]]) -> None:
    found = {"made": made(), "other": made()}
    object.__setattr__(found["other"], "module", "somewhere.other")
    assert variants_of(wanted, found, CONTEXT, {}) == variants


def test_the_baselines_own_value_is_no_variant() -> None:
    assert other_values(made(), CONTEXT, {"made": "high"}) == ["off", "low"]
    assert variants_of(["made"], {"made": made()}, CONTEXT, {"made": "low"}) == [{"made": "off"}, {"made": "high"}]


def test_a_scenario_with_nothing_to_try_says_why() -> None:
    only = made(refusal=lambda value, context: None if value == "off" else "there is no accelerator")
    with pytest.raises(ScenarioError, match="made: there is no accelerator"):
        variants_of(["made"], {"made": only}, CONTEXT, {})
    assert variants_of([], {"made": only}, CONTEXT, {}) == []


def pair(**changes: Any) -> dict[str, Scenario]:
    """Two scenarios, of which `made=high` cannot be had with any `other` that is not off."""
    first = made(clash=lambda value, others: "not both" if value == "high" and others.get("other") == "low" else None)
    second = made(**changes)
    object.__setattr__(second, "module", "somewhere.other")
    return {"made": first, "other": second}


def test_settings_that_cannot_be_had_together_are_refused_wherever_they_come_from() -> None:
    found = pair()
    assert clashes({"made": "high", "other": "high"}, found) is None
    assert clashes({"other": "low", "made": "high"}, found) == "made=high: not both"
    with pytest.raises(ScenarioError, match="made=high: not both"):
        check_settings({"made": "high", "other": "low"}, found, CONTEXT)
    with pytest.raises(ScenarioError, match="made=high: not both"):
        variants_of(["made=high,other=low"], found, CONTEXT, {})
    with pytest.raises(ScenarioError, match="made=high: not both"):
        variants_of(["made=high"], found, CONTEXT, {"other": "low"})


def test_a_scenario_named_alone_stands_for_what_the_baseline_allows() -> None:
    assert variants_of(["made"], pair(), CONTEXT, {"other": "low"}) == [{"made": "low"}]
    only_low = pair(values=lambda context: ("off", "low"))
    with pytest.raises(ScenarioError, match="other: made=high: not both"):
        variants_of(["other"], only_low, CONTEXT, {"made": "high"})


def test_what_is_discouraged_is_not_tried_but_can_be_asked_for() -> None:
    slow = made(discouraged=lambda value, context: "it is slow here" if value == "high" else None)
    assert slow.available(CONTEXT) == ["off", "low"]
    described = slow.described(CONTEXT)
    assert (described.refused, described.discouraged) == ({}, {"high": "it is slow here"})
    assert variants_of(["made=high"], {"made": slow}, CONTEXT, {}) == [{"made": "high"}]
    assert variants_of([], {"made": slow}, CONTEXT, {}) == [{"made": "low"}]


def test_the_order_of_settings_does_not_matter() -> None:
    found = discover()
    settings = {"threads": "1", "optimizer_kernel": "fused", "amp": "bf16"}
    one, other = (
        plan_of(seed_workload, dict(items), found, device="cpu", seed=3)
        for items in (settings.items(), reversed(settings.items()))
    )
    assert (one.optimizer, len(one.process), len(one.loss)) == (other.optimizer, len(other.process), len(other.loss))
    assert (one.seed, with_seed(one, 4).seed) == (3, 4)


def test_on_cuda_is_asked_of_the_facts() -> None:
    assert not CONTEXT.on_cuda
    assert Context(machine=replace(MACHINE, device="cuda:1"), workload=WORKLOAD).on_cuda


def test_a_first_argument_that_is_no_workload_is_a_variant() -> None:
    found = discover()
    variants = ["amp", "amp=bf16", "amp=bf16,threads=1", "nonsense=1", "amp=a:b"]
    assert [names_variant(text, found) for text in variants] == [True] * len(variants)
    workloads = ["scenarios.reference:medium", "train.py:workload", "a=b/train.py:workload", "nonsense"]
    assert [names_variant(text, found) for text in workloads] == [False] * len(workloads)
    assert names_in(["amp", "amp=bf16, threads=1"]) == ["amp", "amp", "threads"]


FILES = {name: one.file for name, one in discover().items()}


@pytest.mark.parametrize("name", FILES)
def test_a_scenario_loads_in_the_process_of_a_script_which_need_not_have_the_others(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scenarios", None)  # or has a package of that name
    for module in [one for one in sys.modules if one.startswith("scenarios.")]:
        monkeypatch.delitem(sys.modules, module)
    file = FILES[name]
    monkeypatch.setitem(sys.modules, f"perftool_scenarios.{name}", None)  # gone after the test
    assert load_scenario(name, file).name == name
