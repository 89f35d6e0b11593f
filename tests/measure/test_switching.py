"""Processes that several variants have in turn: scripted ones, a worker's and a script's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from perftool.analysis.search import Offer
from perftool.measure import messages
from perftool.measure.lab import BaselineFailed
from perftool.measure.launch import LaunchFailed, LiveLaunch, ProcessLaunch
from perftool.measure.rounds import generation
from perftool.measure.switching import SharedProcess, Switching
from perftool.records import ALONE, CONFIRM, CONFIRMING, TOGETHER, Settings
from perftool.search import tune
from tests.measure.fakes import Script, ScriptedLaunch, make_lab, make_session
from tests.measure.test_launch import LIMIT_S, spec_of
from tests.measure.test_script_launch import Launches, launches, script

__all__ = ["launches"]  # a fixture

SWITCHING = Switching(live=frozenset({"amp", "threads"}), single=frozenset({"torch_compile"}))
AMP, THREADS, HEAP, COMPILED = {"amp": "bf16"}, {"threads": "1"}, {"malloc_retention": "on"}, {"torch_compile": "on"}


def raced(scripted: Script, *variants: Settings, baseline: Settings | None = None) -> list[tuple[Settings, str, bool]]:
    """One generation in shared processes: settings, status and whether it shared one, of each launch."""
    lab, _ = make_lab(scripted, make_session(baseline=baseline))
    lab.switching = SWITCHING
    numbers = [lab.variant(one) for one in variants]
    generation(lab, "alone", numbers, budget_s=5, rounds=3, own_caches=False, shared=True)
    session = lab.session
    rounds = Counter(block.launch for block in session.blocks)
    assert all(rounds[one.launch] == 3 for one in session.launches if one.status == "measured")
    assert not scripted.alive
    return [(session.variants[one.variant], one.status, one.is_shared) for one in session.launches]


def test_what_can_be_switched_shares_a_process() -> None:
    scripted = Script(step_s=lambda settings: 0.005 if "amp" in settings else 0.01)
    found = raced(scripted, AMP, THREADS, HEAP, AMP | THREADS, HEAP | AMP, COMPILED, COMPILED | AMP)
    assert scripted.started == [{}, HEAP, COMPILED, COMPILED | AMP]
    assert {(tuple(settings), is_shared) for settings, _, is_shared in found} == {
        ((), True),
        (("amp",), True),
        (("threads",), True),
        (("amp", "threads"), True),
        (("malloc_retention",), True),
        (("malloc_retention", "amp"), True),
        (("torch_compile",), False),
        (("torch_compile", "amp"), False),
    }
    assert [status for _, status, _ in found] == ["measured"] * 8


def test_each_block_is_of_the_launch_that_was_asked() -> None:
    lab, _ = make_lab(Script(step_s=lambda settings: 0.005 if "amp" in settings else 0.01), make_session())
    lab.switching = SWITCHING
    faster = lab.variant(AMP)
    generation(lab, "alone", [faster], budget_s=5, rounds=3, shared=True)
    variant_of = {one.launch: one.variant for one in lab.session.launches}
    taken = {variant_of[block.launch]: block.wall_ns / block.steps / 1e9 for block in lab.session.blocks}
    assert taken == pytest.approx({0: 0.01, faster: 0.005})


def test_what_is_not_a_launchs_own_is_not_told_of_it() -> None:
    lab, _ = make_lab(Script(start_s=4.0), make_session())
    lab.switching = SWITCHING
    generation(lab, "alone", [lab.variant(AMP)], budget_s=5, rounds=3, shared=True)
    for launch in lab.session.launches:
        assert launch.is_shared
        assert (launch.peak_host_bytes, launch.warmup_peak_host_bytes, launch.last_loss) == (None, None, None)


def test_one_that_fails_is_lost_and_the_others_go_on_in_a_new_process() -> None:
    failure = LaunchFailed("training", "boom")
    scripted = Script(failures={("amp=bf16", messages.Switch): failure})
    found = raced(scripted, AMP, THREADS)
    assert found == [(AMP, "failed", True), ({}, "measured", True), (THREADS, "measured", True)]
    assert scripted.started == [{}, {}]


def test_one_that_is_over_again_and_again_leaves_no_dead_process_to_the_others() -> None:
    lab, _ = make_lab(Script(last_step=lambda settings: 30 if "amp" in settings else None), make_session())
    lab.switching = SWITCHING
    numbers = [lab.variant(one) for one in (AMP, THREADS)]
    generation(lab, "alone", numbers, budget_s=5, rounds=40, shared=True)
    found = {lab.session.variants[one.variant].get("threads", "-"): one.status for one in lab.session.launches}
    assert found["1"] == "measured"


def test_whoever_is_new_to_a_process_that_has_come_back_is_warmed() -> None:
    scripted = Script()
    started: list[list[str]] = []

    class Noting:
        """What the launches of one process are asked."""

        def __init__(self) -> None:
            self.asked: list[str] = []
            started.append(self.asked)

        def ask(self, request: messages.Ask[Any], limit_s: float) -> Any:
            self.asked.append(type(request).__name__)
            if isinstance(request, messages.Prove):
                raise LaunchFailed("training", "boom")
            return ScriptedLaunch(scripted, spec_of("rows")).ask(request, limit_s)

        def close(self) -> None:
            pass

    process = SharedProcess(Noting)  # type: ignore[arg-type]
    one, other = process.taken_by(1, {}), process.taken_by(2, {})
    block = messages.Run(round=0, position=0, drop=1, steps=1)
    for launch in (one, other):
        launch.ask(messages.Start(), LIMIT_S)
    with pytest.raises(LaunchFailed, match="boom"):
        process.ask(3, {}, messages.Prove(), LIMIT_S)
    for launch in (one, other, one):
        launch.ask(block, LIMIT_S)
    assert started == [
        ["Switch", "Switch", "Switch", "Warm", "Prove"],
        ["Switch", "Warm", "Run", "Switch", "Warm", "Run", "Switch", "Run"],
    ]


def test_a_script_that_is_over_begins_again() -> None:
    scripted = Script(last_step=lambda settings: 90)
    found = raced(scripted, AMP, THREADS)
    assert [status for _, status, _ in found] == ["measured"] * 3
    assert len(scripted.started) > 2


def test_where_the_baseline_fails_there_is_nothing_to_measure() -> None:
    scripted = Script(failures={("threads=2", messages.Switch): LaunchFailed("training", "boom")})
    with pytest.raises(BaselineFailed, match="boom"):
        raced(scripted, AMP, baseline={"threads": "2"})
    assert not scripted.alive


def test_the_baselines_settings_are_part_of_every_launch() -> None:
    scripted = Script()
    raced(scripted, AMP, baseline={"threads": "2", "thp": "on"})
    assert scripted.started == [{"thp": "on"}]
    assert {"threads": "2", "thp": "on"} in scripted.switched
    assert {"threads": "2", "thp": "on", "amp": "bf16"} in scripted.switched


def test_a_search_confirms_in_launches_of_their_own() -> None:
    scripted = Script(step_s=lambda settings: 0.005 if "amp" in settings else 0.01, start_s=2.0)
    lab, _ = make_lab(scripted, replace(make_session(budget_s=30), command="tune"))
    values = {"amp": ["bf16"], "threads": ["1"], "malloc_retention": ["on"]}
    tune(lab, Offer(values=values, defaults=dict.fromkeys(values, "off")), SWITCHING)
    shared = {(one.stage, one.is_shared) for one in lab.session.launches}
    assert (ALONE, True) in shared
    assert {(stage, is_shared) for stage, is_shared in shared if stage in CONFIRMING} == {(CONFIRM, False)}


def test_what_starts_slowly_comes_after_the_others_and_is_given_up_in_time() -> None:
    scripted = Script(step_s=lambda settings: 0.009 if "threads" in settings else 0.01, start_s=2.0)
    lab, _ = make_lab(scripted, replace(make_session(budget_s=60), command="tune"))
    values = {"amp": ["bf16"], "threads": ["1"], "torch_compile": ["default"]}
    offer = Offer(values=values, defaults=dict.fromkeys(values, "off"), slow=frozenset({"torch_compile"}))
    tune(lab, offer, SWITCHING)
    session = lab.session
    stages = {(one.stage, tuple(session.variants[one.variant])) for one in session.launches}
    assert (f"{TOGETHER} 1", ("torch_compile",)) in stages
    assert not any(stage == ALONE and "torch_compile" in names for stage, names in stages)
    assert {limit_s for request, limit_s in scripted.limits if request is messages.Start} == {30.0, 60.0}


@pytest.mark.parametrize(("gain", "place"), [(1.4, 4), (1.6, 0)])
def test_what_starts_slowly_gives_way_to_the_likeliest_unless_it_promises_more(gain: float, place: int) -> None:
    scripted = Script(step_s=lambda settings: 0.01 * 0.9 ** len(settings))
    lab, _ = make_lab(scripted, replace(make_session(budget_s=120), command="tune"))
    values = {"amp": ["bf16"], "threads": ["1"], "malloc_retention": ["on"], "torch_compile": ["default"]}
    gains = {"amp": 1.5, "torch_compile": gain}
    offer = Offer(values=values, defaults=dict.fromkeys(values, "off"), gains=gains, slow=frozenset({"torch_compile"}))
    tune(lab, offer, SWITCHING)
    session = lab.session
    first = {one.launch: session.variants[one.variant] for one in session.launches if one.stage == f"{TOGETHER} 1"}
    assert [first[number] for number in sorted(first)][1 + place] == {"torch_compile": "default"}


def test_what_is_switched_is_reckoned_as_such() -> None:
    lab, _ = make_lab(Script(), make_session())
    fresh_s = lab.switched_s([AMP, THREADS, HEAP])
    assert fresh_s == lab.launches_s([AMP, THREADS, HEAP])
    lab.switching = SWITCHING
    assert lab.switched_s([AMP, THREADS, HEAP]) < fresh_s


# ---------------------------------------------------------------------------------------------------- real processes


def switched(launch: LiveLaunch, number: int, settings: Settings) -> str:
    """Go on as another launch; what proves its settings."""
    launch.ask(messages.Switch(launch=number, settings=settings), LIMIT_S)
    block = launch.ask(messages.Run(round=0, position=0, drop=1, steps=3), LIMIT_S)
    assert (block.launch, block.steps) == (number, 3)
    engaged = launch.ask(messages.Prove(), LIMIT_S).engaged
    assert engaged.ok, engaged.evidence
    return engaged.evidence


TURNS: tuple[Settings, ...] = (
    {"threads": "1", "optimizer_kernel": "fused"},
    {"amp": "bf16"},
    {"batch_gather": "on", "optimizer_kernel": "foreach"},
    {"amp": "off", "batch_gather": "off"},
    {"threads": "1"},
)


@pytest.fixture
def worker() -> Iterator[ProcessLaunch]:
    names = ("amp", "batch_gather", "matmul_precision", "optimizer_kernel", "threads")
    launch = ProcessLaunch(replace(spec_of("rows"), switched=names), {})
    yield launch
    launch.close()


@pytest.mark.process
def test_a_worker_has_a_training_for_each_and_the_process_as_each_wants_it(worker: ProcessLaunch) -> None:
    own = switched(worker, 7, {}), worker.ask(messages.Prove(), LIMIT_S)
    for number, settings in enumerate(TURNS):
        assert all(name in switched(worker, number, settings) for name in settings)
    for number, settings in reversed(list(enumerate(TURNS))):
        switched(worker, number, settings)
    assert (switched(worker, 7, {}), worker.ask(messages.Prove(), LIMIT_S)) == own


@pytest.mark.process
def test_trainings_with_loader_workers_share_a_process() -> None:
    names = ("optimizer_kernel", "threads")
    launch = ProcessLaunch(replace(spec_of("rows", dataloader_workers="1"), switched=names), {})
    try:
        for number, settings in [(0, {"threads": "1"}), (1, {"optimizer_kernel": "foreach"}), (0, {"threads": "1"})]:
            evidence = switched(launch, number, {"dataloader_workers": "1", **settings})
            assert all(name in evidence for name in ["dataloader_workers", *settings])
    finally:
        launch.close()


@pytest.mark.process
def test_a_script_is_switched_while_it_goes_on(launches: Launches) -> None:
    facts = launches.look(script("mlp.py"))
    names = ("amp", "batch_gather", "matmul_precision", "optimizer_kernel", "threads")
    launch = launches.start(script("mlp.py"), facts=facts, switched=names)
    for number, settings in [*enumerate(TURNS), *reversed(list(enumerate(TURNS)))]:
        assert all(name in switched(launch, number, settings) for name in settings)
    # What no setting speaks of is as the script has it.
    launch.ask(messages.Switch(launch=9, settings={}), LIMIT_S)
    own = {"amp": "off", "batch_gather": "off", "optimizer_kernel": "for-loop", "threads": str(facts.torch_threads)}
    assert "did not" not in switched(launch, 10, own)
