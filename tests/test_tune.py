"""The search on scripted launches: levers that add up, mask each other, hurt, fail, or change what is learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from perftool.analysis.recommend import conclude
from perftool.analysis.search import Offer
from perftool.measure import messages
from perftool.measure.launch import LaunchFailed, LiveLaunch
from perftool.measure.switching import Switching
from perftool.records import CONFIRM, LEAVE_ONE_OUT, PARITY, PATCHED, TRIM, Goal, Session, Settings, Site
from perftool.scenario import Context, discover
from perftool.search import offer_of, parity_steps, root_of, switching_of, tune
from tests.measure.fakes import MACHINE, WORKLOAD, Script, ScriptedLaunch, make_lab, make_session
from tests.sessions import make_script, make_script_facts

OFFER = Offer(
    values={
        "amp": ["bf16"],
        "batch_gather": ["on"],
        "dataloader_workers": ["1", "2"],
        "malloc_retention": ["on"],
        "matmul_precision": ["medium"],
        "optimizer_kernel": ["foreach", "fused"],
    },
    defaults={
        "amp": "off",
        "batch_gather": "off",
        "dataloader_workers": "0",
        "malloc_retention": "off",
        "matmul_precision": "highest",
        "optimizer_kernel": "for-loop",
    },
)
CHANGES = {"amp": "numerics", "matmul_precision": "numerics", "batch_size": "optimisation"}
BEST = {"amp": "bf16", "batch_gather": "on", "malloc_retention": "on", "optimizer_kernel": "fused"}


def step_s(chosen: Settings) -> float:
    """A world like the one of LEVERS: gather shows only once autocast has shrunk the matmuls, and autocast makes the
    matmul precision pointless."""
    time = 0.010
    if chosen.get("amp") == "bf16":
        time *= 0.5
        time *= 0.8 if chosen.get("batch_gather") == "on" else 1.0
    elif chosen.get("matmul_precision") == "medium":
        time *= 0.85
    time *= {"fused": 0.7, "foreach": 0.9}.get(chosen.get("optimizer_kernel", ""), 1.0)
    time *= 0.9 if chosen.get("malloc_retention") == "on" else 1.0
    return time * {"1": 1.05, "2": 2.4}.get(chosen.get("dataloader_workers", "0"), 1.0)


def searched(script: Script, budget_s: float = 200.0, offer: Offer = OFFER, goal: Goal | None = None) -> Session:
    """The session of a whole tune on the script."""
    session = replace(
        make_session(budget_s=budget_s),
        scenario_changes=CHANGES,
        goal=goal or Goal(),
        first_step_ns=round(1e9 * script.step_s({})),
    )
    lab, _ = make_lab(script, session)
    tune(lab, offer)
    assert not script.alive
    return lab.session


def chosen(session: Session) -> Settings:
    *_, decision = [one for one in session.decisions if one.action == "chosen"]
    return decision.settings


def test_the_search_finds_what_only_helps_in_company_and_leaves_what_adds_nothing() -> None:
    assert chosen(searched(Script(step_s=step_s))) == BEST


def test_the_winner_is_confirmed_in_launches_of_its_own() -> None:
    session = searched(Script(step_s=step_s))
    winner = session.variants.index(chosen(session))
    confirming = [launch for launch in session.launches if launch.stage == CONFIRM]
    assert {launch.variant for launch in confirming} == {0, winner}
    assert len({launch.generation for launch in confirming if launch.variant == winner}) >= 2
    searching = {launch.launch for launch in session.launches if launch.stage != CONFIRM}
    assert not searching & {launch.launch for launch in confirming}


def test_the_winner_takes_turns_with_itself_less_each_setting() -> None:
    session = searched(Script(step_s=step_s))
    beside = {launch.variant for launch in session.launches if launch.stage == LEAVE_ONE_OUT}
    lacking = [{name: value for name, value in BEST.items() if name != left_out} for left_out in BEST]
    assert [session.variants[number] for number in sorted(beside)] == sorted(lacking, key=session.variants.index)
    confirmed = {launch.generation for launch in session.launches if launch.stage == CONFIRM}
    assert {launch.generation for launch in session.launches if launch.stage == LEAVE_ONE_OUT} <= confirmed


def test_what_hurts_badly_is_not_tried_again() -> None:
    script = Script(step_s=step_s)
    searched(script)
    assert sum(one.get("dataloader_workers") == "2" for one in script.started) == 1


def test_what_hurts_grossly_leaves_after_a_few_rounds() -> None:
    """Emulated reduced precision was seen to take 37 times the baseline's step: it must not eat the others' budget."""
    script = Script(step_s=lambda one: step_s(one) * (40 if one.get("amp") == "bf16" else 1))
    session = searched(script, budget_s=60)
    slow = session.variants.index({"amp": "bf16"})
    [launch] = [one.launch for one in session.launches if one.variant == slow]
    assert sum(block.launch == launch for block in session.blocks) == 3
    assert chosen(session) == {
        "malloc_retention": "on",
        "matmul_precision": "medium",
        "optimizer_kernel": "fused",
    }


def test_nothing_better_is_chosen_where_nothing_is() -> None:
    session = searched(Script(step_s=lambda chosen: 0.01))
    assert chosen(session) == {}
    assert not [launch for launch in session.launches if launch.stage == CONFIRM]


def test_a_failing_setting_does_not_stop_the_search() -> None:
    failures = {("amp=bf16", messages.Warm): LaunchFailed("training", "the loss became nan")}
    session = searched(Script(step_s=step_s, failures=failures))
    assert chosen(session) == {
        "malloc_retention": "on",
        "matmul_precision": "medium",
        "optimizer_kernel": "fused",
    }


@pytest.mark.parametrize("together", [{"amp", "optimizer_kernel"}, {"amp", "malloc_retention", "optimizer_kernel"}])
def test_a_combination_that_fails_costs_only_what_holds_it(together: set[str]) -> None:
    """Each works alone, not together: the best of the rest is found."""

    class Failing(Script):
        def start(self, spec: messages.LaunchSpec, environment: dict[str, str]):  # type: ignore[no-untyped-def]
            launch = super().start(spec, environment)
            if together <= set(spec.settings):
                answer = launch.answer

                def refuse(request: messages.Ask[Any]) -> Any:
                    if isinstance(request, messages.Warm):
                        raise LaunchFailed("memory", "out of memory")
                    return answer(request)

                launch.answer = refuse  # type: ignore[method-assign]
            return launch

    session = searched(Failing(step_s=step_s))
    winner = chosen(session)
    assert not together <= set(winner)
    possible = [{n: v for n, v in BEST.items() if n != left_out} for left_out in together]
    assert step_s(winner) <= 1.01 * min(map(step_s, possible))
    assert any(launch.reason == "out of memory" for launch in session.launches)


def test_numerics_that_train_differently_are_taken_out() -> None:
    script = Script(step_s=step_s, loss=lambda one, seed: seed * 0.01 + (1.0 if one.get("amp") == "bf16" else 0.0))
    session = searched(script)
    assert "amp" not in chosen(session)
    [dropped] = [one for one in session.decisions if one.stage == PARITY]
    assert "does not train the same" in dropped.reason


def test_a_winner_is_compared_with_itself_less_its_numerics() -> None:
    """Another batch size learns something else; that must not be blamed on autocast."""
    offer = Offer(values={"amp": ["bf16"], "batch_size": ["20"]}, defaults={"amp": "off", "batch_size": "10"})
    script = Script(
        step_s=lambda one: 0.01 * (0.5 if "amp" in one else 1.0) * (1.2 if "batch_size" in one else 1.0),
        loss=lambda one, seed: seed * 0.01 + (1.0 if "batch_size" in one else 0.0),
        samples_per_step=lambda one: int(one.get("batch_size", "10")),
    )
    session = searched(script, offer=offer, goal=Goal(allow=["batch_size"]))
    assert chosen(session) == {"amp": "bf16", "batch_size": "20"}
    trained = {run.variant for run in session.training_runs}
    assert [session.variants[number] for number in sorted(trained)] == sorted(
        [{}, {"batch_size": "20"}, {"amp": "bf16", "batch_size": "20"}], key=session.variants.index
    )


def test_losses_are_not_compared_where_numerics_stay() -> None:
    offer = Offer(values={"optimizer_kernel": ["fused"]}, defaults=OFFER.defaults)
    session = searched(Script(step_s=step_s), offer=offer)
    assert chosen(session) == {"optimizer_kernel": "fused"}
    assert not session.training_runs


def test_what_the_losses_do_not_decide_is_trained_from_more_seeds() -> None:
    drawn = iter(range(10**6))
    loss: Callable[[Settings, int], float] = lambda one, seed: (  # noqa: E731
        0.5 + 0.01 * seed + ("amp" in one) * (0.05 if next(drawn) % 2 else -0.04)
    )
    offer = Offer(values={"amp": ["bf16"]}, defaults=OFFER.defaults)
    session = searched(Script(step_s=step_s, loss=loss), offer=offer)
    assert len({run.seed for run in session.training_runs}) == 10


def test_an_interrupted_search_goes_on_where_it_stopped() -> None:
    script = Script()

    def interrupted(one: Settings) -> float:
        if script.now_s > 60:
            raise KeyboardInterrupt
        return step_s(one)

    script.step_s = interrupted
    session = replace(make_session(budget_s=200), scenario_changes=CHANGES)
    lab, _ = make_lab(script, session)
    with pytest.raises(KeyboardInterrupt):
        tune(lab, OFFER)
    session = lab.session
    assert session.blocks
    assert not script.alive
    before = len(session.launches)

    again = Script(step_s=step_s)
    lab, _ = make_lab(again, session)
    assert lab.spent_s > 0
    tune(lab, OFFER)
    session = lab.session
    assert chosen(session) == BEST
    assert len({launch.launch for launch in session.launches}) == len(session.launches) > before
    alone = [launch for launch in session.launches if launch.stage == "alone" and launch.variant == 1]
    assert len(alone) == 1
    rounds = [(block.round, block.launch) for block in session.blocks]
    assert len(set(rounds)) == len(rounds)


def test_a_finished_search_that_is_gone_on_with_only_confirms_further() -> None:
    session = searched(Script(step_s=step_s))
    lab, _ = make_lab(Script(step_s=step_s), session)
    stages = {launch.stage for launch in session.launches}
    decisions = len(session.decisions)
    tune(lab, OFFER)
    assert {launch.stage for launch in lab.session.launches} == stages
    assert len(lab.session.decisions) == decisions


def test_slow_steps_get_a_plan_that_fits_with_the_most_promising_first() -> None:
    script = Script(step_s=lambda one: 200 * step_s(one), start_s=5.0)  # two seconds a step
    offer = replace_gains(OFFER, {"amp": 1.5, "optimizer_kernel": 1.3})
    session = searched(script, budget_s=90, offer=offer)
    untested = [one.settings for one in session.decisions if one.action == "untested"]
    assert {"dataloader_workers": "2"} in untested
    assert {"amp": "bf16"} not in untested
    assert "amp" in chosen(session)


def replace_gains(offer: Offer, gains: dict[str, float]) -> Offer:
    return Offer(values=offer.values, defaults=offer.defaults, gains=gains, clash=offer.clash)


def test_a_winner_that_is_expensive_to_start_is_confirmed_where_nothing_else_helps() -> None:
    offer = Offer(values={"torch_compile": ["default"]}, defaults=OFFER.defaults)
    script = Script(
        step_s=lambda one: 0.01 * (0.5 if one else 1.0), start_of=lambda one: 40.0 if "torch_compile" in one else 1.0
    )
    session = searched(script, budget_s=20, offer=offer)
    assert chosen(session) == {"torch_compile": "default"}
    assert len({launch.generation for launch in session.launches if launch.stage == CONFIRM}) >= 2


def test_what_cannot_be_had_together_is_not_launched() -> None:
    def clash(settings: Settings) -> str | None:
        return "not together" if {"amp", "optimizer_kernel"} <= set(settings) else None

    script = Script(step_s=step_s)
    session = searched(script, offer=Offer(values=OFFER.values, defaults=OFFER.defaults, clash=clash))
    assert all(clash(one) is None for one in script.started)
    assert chosen(session) == {name: value for name, value in BEST.items() if name != "optimizer_kernel"}


def test_a_start_up_that_does_not_pay_back_is_not_chosen() -> None:
    offer = Offer(values={"torch_compile": ["default"], "optimizer_kernel": ["fused"]}, defaults=OFFER.defaults)

    class Compiling(Script):
        def start(self, spec: messages.LaunchSpec, environment: dict[str, str]):  # type: ignore[no-untyped-def]
            if "torch_compile" in spec.settings:
                self.now_s += 1e-9  # the start itself is timed in ask
            return super().start(spec, environment)

    def times(one: Settings) -> float:
        return 0.01 * (0.5 if "torch_compile" in one else 1.0) * (0.9 if "optimizer_kernel" in one else 1.0)

    script = Compiling(step_s=times, start_of=lambda one: 21.0 if "torch_compile" in one else 1.0)
    for planned, compiled in ((1000, False), (100_000, True), (None, True)):
        session = searched(script, budget_s=300, offer=offer, goal=Goal(planned_steps=planned))
        assert ("torch_compile" in chosen(session)) == compiled, planned
        assert "optimizer_kernel" in chosen(session)


def test_a_memory_limit_keeps_out_what_breaks_it() -> None:
    offer = Offer(values={"malloc_retention": ["on"], "optimizer_kernel": ["fused"]}, defaults=OFFER.defaults)
    script = Script(step_s=step_s, host_bytes=lambda one: 150_000_000 if "malloc_retention" in one else 100_000_000)
    session = searched(script, offer=offer, goal=Goal(max_host_bytes=120_000_000))
    assert chosen(session) == {"optimizer_kernel": "fused"}
    session = searched(script, offer=offer, goal=Goal(max_host_bytes=160_000_000))
    assert chosen(session) == {"malloc_retention": "on", "optimizer_kernel": "fused"}


def test_a_limit_that_the_baseline_breaks_is_kept_even_at_a_price() -> None:
    offer = Offer(values={"malloc_retention": ["on"]}, defaults=OFFER.defaults)
    script = Script(
        step_s=lambda one: 0.011 if "malloc_retention" in one else 0.010,
        host_bytes=lambda one: 100_000_000 if "malloc_retention" in one else 150_000_000,
    )
    assert chosen(searched(script, offer=offer, goal=Goal(max_host_bytes=120_000_000))) == {"malloc_retention": "on"}


def test_memory_as_the_objective() -> None:
    offer = Offer(values={"malloc_retention": ["on"], "optimizer_kernel": ["fused"]}, defaults=OFFER.defaults)
    script = Script(step_s=step_s, host_bytes=lambda one: 80_000_000 if "malloc_retention" in one else 100_000_000)
    assert chosen(searched(script, offer=offer, goal=Goal(objective="memory"))) == {"malloc_retention": "on"}


def test_time_to_loss_weighs_speed_against_samples() -> None:
    """Twice the batch: 1.8 times the samples per second, but either half as many steps or just as many."""
    offer = Offer(values={"batch_size": ["20"]}, defaults={"batch_size": "10"})
    for decay, wins in ((0.02, True), (0.01, False)):  # of the loss per step with the larger batch
        script = Script(
            step_s=lambda one: 0.01 * (2 / 1.8 if "batch_size" in one else 1.0),
            samples_per_step=lambda one: int(one.get("batch_size", "10")),
            losses=lambda one, seed, steps, decay=decay: [  # type: ignore[misc]
                (1 + seed / 1000) * (1 - (decay if "batch_size" in one else 0.01)) ** step for step in range(steps)
            ],
        )
        goal = Goal(objective="time-to-loss", allow=["batch_size"])
        assert (chosen(searched(script, offer=offer, goal=goal)) == {"batch_size": "20"}) == wins


def test_parity_steps_fit_the_time_and_its_bounds() -> None:
    assert parity_steps(0.010, 10.0) == 100  # 10 s for 5 seeds of two trainings at 10 ms
    assert parity_steps(0.010, 0.1) == 20
    assert parity_steps(0.010, 1e6) == 1000


def test_slow_starts_leave_time_for_one_pass_of_combinations() -> None:
    speed = ("batch_gather", "malloc_retention", "optimizer_kernel")
    offer = Offer(values={name: OFFER.values[name] for name in speed}, defaults=OFFER.defaults)
    script = Script(step_s=step_s, start_s=6.0)
    session = searched(script, budget_s=60, offer=offer)
    assert "together 1" in {launch.stage for launch in session.launches}
    assert chosen(session) == {"malloc_retention": "on", "optimizer_kernel": "fused"}
    assert script.now_s <= 180, "and still ends within three times the budget"


# ----------------------------------------------------------------------------------------------------------- patched

TRAIN = "import torch\noptimizer = torch.optim.Adam([torch.ones(1)])\n"
FUSED = {"optimizer_kernel": {"fused": {"optimizer_arguments": "fused=True"}}}


def patched(
    tmp_path: Path, script: Script, *, failure: Exception | None = None, text: str = TRAIN
) -> tuple[Session, list[messages.LaunchSpec], list[dict[str, str]]]:
    """The session of a search over one lever of a script, its launches, and their environments."""
    file = tmp_path / "train.py"
    file.write_text(text)
    site = Site(kind="optimizer", file=str(file), line=2, callee="Adam")
    session = replace(
        make_script(make_session(budget_s=60.0), aside_ms={}, folder=str(tmp_path), sites=[site]),
        command="tune",
        codes=FUSED,
        first_step_ns=10_000_000,
    )
    lab, _ = make_lab(script, session)
    specs: list[messages.LaunchSpec] = []

    def start(spec: messages.LaunchSpec, environment: dict[str, str]) -> LiveLaunch:
        specs.append(spec)
        if spec.patch is not None and failure is not None:
            failing = replace_fields(script, failures={("optimizer_kernel=fused", messages.Prove): failure})
            return ScriptedLaunch(failing, spec)
        return script.start(spec, environment)

    environments: list[dict[str, str]] = []

    def environment(settings: Settings) -> dict[str, str]:
        environments.append(dict(settings))
        return {}

    lab.start, lab.environment = start, environment
    tune(lab, Offer(values={"optimizer_kernel": ["fused"]}, defaults={"optimizer_kernel": "for-loop"}))
    return lab.session, specs, environments


def test_the_patched_script_takes_part_in_every_confirmation(tmp_path: Path) -> None:
    session, specs, laid = patched(tmp_path, Script(step_s=step_s))
    assert session.patch is not None
    assert session.patch.root == str(tmp_path)
    assert session.patch.written == ["optimizer_kernel"]
    assert "Adam([torch.ones(1)], fused=True)" in session.patch.files["train.py"]
    assert session.variants[session.patch.variant or 0] == chosen(session) == {"optimizer_kernel": "fused"}
    generations = [{one.generation for one in session.launches if one.stage == stage} for stage in (CONFIRM, PATCHED)]
    assert generations[0] == generations[1]
    assert len(generations[1]) >= 2
    for spec, settings in zip(specs, laid, strict=True):
        is_patched = spec.patch is not None
        assert spec.settings == {"optimizer_kernel": "fused"} or not is_patched  # what is to be proved
        assert (settings == {}) == (is_patched or spec.settings == {})  # what is laid over the script


def test_a_patched_script_that_fails_costs_the_confirmation_nothing(tmp_path: Path) -> None:
    session, _, _ = patched(tmp_path, Script(step_s=step_s), failure=LaunchFailed("training", "it crashed"))
    [lost] = [one for one in session.launches if one.stage == PATCHED]  # and not again
    assert (lost.status, lost.reason) == ("failed", "it crashed")
    summary = conclude(session)
    assert summary.recommendation_status == "confirmed"
    assert summary.recommendation is not None
    assert summary.recommendation.patch is not None
    assert summary.recommendation.patch.confirmed == "broken"


def test_a_file_that_has_it_already_needs_no_patched_variant(tmp_path: Path) -> None:
    session, specs, _ = patched(tmp_path, Script(step_s=step_s), text=TRAIN.replace("ones(1)]", "ones(1)], fused=True"))
    assert session.patch is not None
    assert (session.patch.variant, session.patch.already) == (None, ["optimizer_kernel"])
    assert all(spec.patch is None for spec in specs)


def test_a_search_that_goes_on_keeps_its_patched_variant(tmp_path: Path) -> None:
    script = Script(step_s=step_s)
    first, _, _ = patched(tmp_path, script)
    lab, _ = make_lab(script, replace(first, budget_s=first.budget_s + 30))
    tune(lab, Offer(values={"optimizer_kernel": ["fused"]}, defaults={"optimizer_kernel": "for-loop"}))
    assert lab.session.patch == first.patch
    assert lab.session.variants == first.variants


def test_the_patch_is_for_the_repository_that_has_the_script(tmp_path: Path) -> None:
    inner, beside = tmp_path / "repository" / "work", tmp_path / "beside"
    for folder in (inner, beside, inner.parent / ".git"):
        folder.mkdir(parents=True)

    def root(main: Path) -> Path:
        return root_of(make_script_facts(folder=str(inner), sites=[Site(kind="main", file=str(main), line=1)]))

    assert root(inner / "train.py") == root(inner.parent / "train.py") == inner.parent
    assert root(beside / "train.py") == beside


def test_the_best_takes_turns_with_itself_less_each_setting_before_it_is_confirmed() -> None:
    session = searched(Script(step_s=step_s))
    stages = [launch.stage for launch in session.launches]
    assert max(index for index, one in enumerate(stages) if one.startswith(TRIM)) < stages.index(CONFIRM)
    best = {launch.generation for launch in session.launches if session.variants[launch.variant] == BEST}
    for left_out in BEST:
        lacking = {name: value for name, value in BEST.items() if name != left_out}
        asked = {launch.generation for launch in session.launches if session.variants[launch.variant] == lacking}
        assert asked & best - {one.generation for one in session.launches if one.stage == CONFIRM}


def test_what_the_fresh_launches_find_useless_is_taken_out_again() -> None:
    """Retention helped in the search, and does nothing in the launches that confirm."""
    script = Script()
    offer = Offer(values={"amp": ["bf16"], "malloc_retention": ["on"]}, defaults=OFFER.defaults)
    confirming = False

    def times(one: Settings) -> float:
        return 0.01 * (0.5 if "amp" in one else 1.0) * (0.9 if "malloc_retention" in one and not confirming else 1.0)

    script.step_s = times
    start = script.start

    def started(spec: messages.LaunchSpec, environment: dict[str, str]) -> ScriptedLaunch:
        nonlocal confirming
        confirming = any(one.action == "chosen" for one in lab.session.decisions)
        return start(spec, environment)

    lab, _ = make_lab(script, replace(make_session(budget_s=200), scenario_changes=CHANGES))
    lab.start = started
    tune(lab, offer)
    session = lab.session
    wanted = [one for one in session.decisions if one.stage == CONFIRM]
    assert [(one.action, one.settings) for one in wanted] == [
        ("chosen", {"amp": "bf16", "malloc_retention": "on"}),
        ("dropped", {"malloc_retention": "on"}),
        ("chosen", {"amp": "bf16"}),
    ]
    assert "brings" in wanted[1].reason
    summary = conclude(replace(session, command="tune"))
    assert summary.recommendation is not None
    assert summary.recommendation.settings == {"amp": "bf16"}
    assert summary.recommendation.speedup.ratio == pytest.approx(2.0, rel=0.02)


def test_a_price_keeps_out_what_brings_less() -> None:
    for price, kept in ((0.01, True), (0.2, False)):
        session = searched(Script(step_s=step_s), goal=Goal(price=price))
        assert ("malloc_retention" in chosen(session)) == kept


@pytest.mark.parametrize(
    ("wait_share", "first"), [(0.6, "batch_gather"), (0.02, "optimizer_kernel"), (None, "batch_gather")]
)
def test_what_acts_on_the_larger_part_of_the_step_is_tried_first(wait_share: float | None, first: str) -> None:
    scenarios = {name: one for name, one in discover().items() if name in ("batch_gather", "optimizer_kernel")}
    facts = replace(WORKLOAD, wait_share=wait_share, optimizer_options={"foreach": None, "fused": None})
    offer = offer_of(scenarios, Context(machine=MACHINE, workload=facts), {}, Goal())
    assert offer.changes()[0][0] == first


def test_two_levers_that_hide_each_other_are_found() -> None:
    """A step takes as long as the slower of its loader and its computation: neither one's lever shows alone."""
    names = ("dataloader_workers", "malloc_retention", "optimizer_kernel")
    values = {name: OFFER.values[name] for name in names} | {"torch_compile": ["default"]}
    offer = Offer(values=values, defaults=OFFER.defaults, slow=frozenset({"torch_compile"}))
    script = Script(
        step_s=lambda one: max(
            0.02 / int(one.get("dataloader_workers", "1")),
            0.02 * (0.6 if one.get("optimizer_kernel") == "fused" else 1.0),
        ),
        start_of=lambda one: 25.0 if "torch_compile" in one else 3.5,
    )
    session = searched(script, budget_s=60, offer=offer)
    assert chosen(session) == {"dataloader_workers": "2", "optimizer_kernel": "fused"}
    assert script.now_s <= 180


@pytest.mark.parametrize(
    ("baseline", "shares"), [({}, True), ({"dataloader_workers": "1"}, True), ({"torch_compile": "default"}, False)]
)
def test_a_process_is_shared_unless_what_the_baseline_makes_stays_in_it(baseline: Settings, shares: bool) -> None:
    context = Context(machine=MACHINE, workload=WORKLOAD)
    switching = switching_of(discover(), context, baseline, Goal())
    assert ("threads" in switching.live) == shares
    assert ("torch_compile" in switching.single) == shares
    assert "dataloader_workers" not in switching.live | switching.single, "each of its values has a process"
    if not shares:
        assert switching == Switching()
