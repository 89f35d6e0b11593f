"""From a tuned session to its recommendation."""

from __future__ import annotations

from msgspec.structs import replace

from perftool.analysis.recommend import chosen, conclude, rejected
from perftool.records import CONFIRM, LEAVE_ONE_OUT, PARITY, Decision, Session, Settings, TrainingRun
from tests.measure.fakes import make_session
from tests.sessions import Timed, make_launch, timed_session

AMP: Settings = {"amp": "bf16"}
FUSED: Settings = {"optimizer_kernel": "fused"}
THREADS: Settings = {"threads": "1"}
WINNER: Settings = {**AMP, **FUSED}
CODES = {
    "amp": {"bf16": {"loss_context": 'torch.autocast("cpu", dtype=torch.bfloat16)'}},
    "optimizer_kernel": {"fused": {"optimizer_arguments": "fused=True"}},
}


def tuned(confirmed_ms: float = 5.0, *, generations: int = 4, **changes: object) -> Session:
    """A search that found two settings helpful and one not, and a confirmation."""
    alone: list[Timed] = [({}, 10.0), (AMP, 7.0), (FUSED, 8.0), (THREADS, 15.0), (WINNER, 4.0)]
    session = timed_session(alone, command="tune", stage="alone", generations=1, noise=0.001)
    fresh: list[Timed] = [({}, 10.0), (WINNER, confirmed_ms), (AMP, 1.5 * confirmed_ms), (FUSED, 2 * confirmed_ms)]
    confirming = timed_session(fresh, generations=generations, noise=0.001, seed=1)
    for launch in confirming.launches:
        number = [0, 4, 1, 2][launch.variant]
        session.launches.append(
            replace(
                launch,
                launch=launch.launch + 100,
                generation=launch.generation + 10,
                variant=number,
                stage=CONFIRM if number in (0, 4) else LEAVE_ONE_OUT,
            )
        )
    for block in confirming.blocks:
        session.blocks.append(replace(block, launch=block.launch + 100, round=block.round + 1000))
    session.decisions.append(Decision(stage="confirm", settings=WINNER, action="chosen", reason="best of the search"))
    return replace(session, codes=CODES, **changes)


def test_only_the_confirmed_number_is_the_gain() -> None:
    summary = conclude(tuned())
    assert summary.recommendation_status == "confirmed"
    advised = summary.recommendation
    assert advised is not None
    assert advised.settings == WINNER
    assert round(advised.speedup.ratio, 2) == 2.0  # 2.5 in the search
    assert advised.speedup.low < 2.0 < advised.speedup.high
    assert (advised.launches, advised.pairs) == (4, 40)
    assert "fused=True" in advised.code
    assert 'with torch.autocast("cpu", dtype=torch.bfloat16):' in advised.code
    compile(advised.script, "recommended.py", "exec")


def test_what_is_handed_over_is_what_was_measured_the_baselines_settings_too() -> None:
    session = tuned()
    codes = {**CODES, "threads": {"1": {"setup": "torch.set_num_threads(1)"}}}
    advised = conclude(replace(session, codes=codes, baseline=THREADS)).recommendation
    assert advised is not None
    assert advised.settings == WINNER
    assert "torch.set_num_threads(1)" in advised.script
    assert "set_num_threads" not in advised.code
    assert not [line for line in advised.diff.splitlines() if "set_num_threads" in line and line[0] in "+-"]
    assert "+    group.update(fused=True)" in advised.diff.splitlines()


def test_each_setting_has_its_own_effect_alone_and_together() -> None:
    advised = conclude(tuned()).recommendation
    assert advised is not None
    effects = {one.name: one for one in advised.per_setting}
    assert effects["amp"].together is not None
    assert round(effects["amp"].together.ratio, 1) == 2.0  # 10 ms without it, 5 ms with it; the search saw 8 and 4
    assert effects["amp"].together.low < 2.0 < effects["amp"].together.high


def test_what_one_launch_said_alone_has_no_interval() -> None:
    session = tuned()
    searched = [one for one in session.launches if one.stage != LEAVE_ONE_OUT]
    advised = conclude(replace(session, launches=searched)).recommendation
    assert advised is not None
    for effect, ratio in zip(advised.per_setting, (1.43, 1.25), strict=True):
        assert effect.alone is None
        assert effect.seen_alone is not None
        assert round(effect.seen_alone, 2) == ratio


def test_two_fresh_launches_decide_a_large_gain_and_leave_a_small_one_open() -> None:
    large = conclude(tuned(generations=2))
    assert large.recommendation_status == "confirmed"
    small = conclude(tuned(9.8, generations=2))
    assert (small.recommendation_status, small.recommendation) == ("provisional", None)
    seen = small.provisional
    assert seen is not None
    assert (seen.settings, seen.launches, seen.launches_needed) == (WINNER, 2, 4)
    assert seen.gain.low < 1.02 < seen.gain.high
    assert seen.further_s is not None
    assert seen.further_s > 0
    assert "fused=True" in seen.code


def test_one_fresh_launch_confirms_nothing() -> None:
    summary = conclude(tuned(generations=1))
    assert (summary.recommendation_status, summary.recommendation) == ("not_confirmed", None)
    assert summary.provisional is None


def test_what_the_confirmation_does_not_bear_out_is_not_advised() -> None:
    for session in (tuned(10.0), tuned(12.0)):
        summary = conclude(session)
        assert (summary.recommendation_status, summary.recommendation) == ("not_confirmed", None)


def test_nothing_better_is_an_answer() -> None:
    session = make_session()
    session.decisions.append(Decision(stage="together", settings={}, action="chosen", reason="nothing was better"))
    summary = conclude(replace(session, command="tune"))
    assert (summary.recommendation_status, summary.recommendation) == ("nothing_better", None)


def test_an_interrupted_search_recommends_nothing_but_says_what_it_knows() -> None:
    session = timed_session([({}, 10.0), (THREADS, 15.0)], command="tune", stage="alone", generations=1)
    summary = conclude(replace(session, interrupted=True))
    assert (summary.recommendation_status, summary.recommendation) == ("interrupted", None)
    assert [one.settings for one in summary.rejected] == [THREADS]


def test_what_was_rejected_has_its_reason() -> None:
    session = tuned()
    session.variants.append({"torch_compile": "default"})
    session.launches.append(make_launch(999, 5, status="skipped", reason="did not take effect: it ran eagerly"))
    session.decisions.append(
        Decision(stage="together 1", settings={"batch_gather": "on"}, action="untested", reason="no time was left")
    )
    reasons = {next(iter(one.settings)): one.reason for one in rejected(session, WINNER)}
    assert reasons == {
        "batch_gather": "no time was left",
        "threads": "0.666x alone in 1 launch, not enough to tell",
        "torch_compile": "did not take effect: it ran eagerly",
    }


def test_numerics_that_train_differently_are_rejected_for_that() -> None:
    session = tuned()
    session.decisions.insert(0, Decision(stage=PARITY, settings=WINNER, action="dropped", reason="its loss differs"))
    [amp] = [one for one in rejected(session, FUSED) if one.settings == AMP]
    assert amp.reason == "its loss differs"


def test_losses_are_compared_with_the_recommendation() -> None:
    session = tuned(scenario_changes={"amp": "numerics"})
    for seed in range(5):
        session.training_runs.extend(
            TrainingRun(variant=variant, seed=seed, steps=100, loss=0.5 + 0.01 * seed)
            for variant in (session.variants.index(FUSED), session.variants.index(WINNER))
        )
    advised = conclude(session).recommendation
    assert advised is not None
    assert advised.loss_parity is not None
    assert (advised.loss_parity.verdict, advised.loss_parity.steps) == ("parity", 100)


def test_a_change_of_the_optimisation_is_said_to_be_one() -> None:
    plain, other = conclude(tuned()), conclude(tuned(scenario_changes={"amp": "optimisation"}))
    assert plain.recommendation is not None
    assert other.recommendation is not None
    assert (plain.recommendation.changes_optimisation, other.recommendation.changes_optimisation) == (False, True)


def test_only_tune_recommends() -> None:
    summary = conclude(timed_session([({}, 10.0), (AMP, 5.0)]))
    assert (summary.recommendation_status, summary.recommendation, summary.rejected) == (None, None, [])
    assert chosen(make_session()) is None
