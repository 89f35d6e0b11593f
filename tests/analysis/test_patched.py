"""Whether a patched script is as fast as the one with its settings laid over it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from perftool.analysis.patched import FILE, patch_advice
from perftool.analysis.recommend import conclude
from perftool.analysis.search import Offer, excluded, observations
from perftool.analysis.summary import Summaries
from perftool.records import CONFIRM, PATCHED, Decision, Engaged, Patch, PatchAdvice, Session, Unwritten
from tests.sessions import make_script, timed_session

WINNER = {"amp": "bf16"}
PATCH = Patch(
    root="/home/user",
    diff="--- a/train.py\n",
    files={"train.py": "x = 1\n"},
    written=["amp"],
    already=[],
    unwritten=[Unwritten(setting="--lr=1", reason="it is an option", advice="add it")],
    notes=[],
    variant=2,
)


def confirmed(patched_ms: float = 5.0, *, generations: int = 4, patch: Patch = PATCH, **of_patched: Any) -> Session:
    """A search of a script whose winner takes 5 ms in place of 10, and whose patched variant takes so long."""
    session = timed_session(
        [({}, 10.0), (WINNER, 5.0), (WINNER, patched_ms)], command="tune", stage=CONFIRM, generations=generations
    )
    launches = [
        replace(launch, stage=PATCHED, **of_patched) if launch.variant == 2 else launch for launch in session.launches
    ]
    decision = Decision(stage=CONFIRM, settings=WINNER, action="chosen", reason="best of the search")
    return make_script(replace(session, launches=launches, decisions=[decision], patch=patch), aside_ms={})


def advised(session: Session) -> PatchAdvice:
    found = patch_advice(session, 1, "throughput", Summaries(session))
    assert found is not None
    return found


def test_a_patched_script_as_fast_as_the_interposed_one_is_confirmed() -> None:
    found = advised(confirmed(5.0))
    assert (found.confirmed, found.file) == ("confirmed", FILE)
    assert found.versus_baseline is not None
    assert found.versus_baseline.verdict == "better"
    assert found.versus_interposed is not None
    assert found.versus_interposed.ratio == pytest.approx(1.0, abs=0.02)
    assert (found.written, found.unwritten) == (["amp"], PATCH.unwritten)


@pytest.mark.parametrize("patched_ms", [7.0, 10.0])
def test_a_slower_one_is_not(patched_ms: float) -> None:
    found = advised(confirmed(patched_ms))
    assert (found.confirmed, found.file) == ("not_confirmed", FILE)
    assert found.versus_interposed is not None
    assert found.versus_interposed.verdict == "worse"


def test_one_that_could_not_be_run_may_be_taken_all_the_same() -> None:
    found = advised(confirmed(status="skipped", reason="it cannot be covered", engaged=None))
    assert (found.confirmed, found.file, found.reason) == ("not_measured", FILE, "it cannot be covered")


@pytest.mark.parametrize(
    "lost",
    [
        {"status": "failed", "reason": "its command ended with exit code 1", "engaged": None},
        {"status": "skipped", "reason": "did not take effect", "engaged": Engaged(ok=False, evidence="float32")},
    ],
)
def test_one_that_fails_or_has_no_effect_is_no_patch_to_take(lost: dict[str, Any]) -> None:
    session = confirmed(**lost)
    found = advised(session)
    assert (found.confirmed, found.file, found.reason) == ("broken", None, lost["reason"])
    recommendation = conclude(session).recommendation
    assert recommendation is not None
    assert recommendation.diff == ""


def test_without_a_place_for_anything_there_is_nothing_to_take() -> None:
    nothing = replace(PATCH, diff="", files={}, written=[], variant=None)
    found = advised(confirmed(patch=nothing))
    assert (found.confirmed, found.file) == (None, None)


def test_a_workload_has_no_patch() -> None:
    session = replace(confirmed(), patch=None)
    assert patch_advice(session, 1, "throughput", Summaries(session)) is None


def test_the_recommendation_has_it_and_the_patched_variant_is_none_of_the_others() -> None:
    summary = conclude(confirmed())
    assert summary.recommendation is not None
    assert summary.recommendation.patch == advised(confirmed())
    assert summary.recommendation.diff == PATCH.diff
    assert [one.settings for one in summary.variants] == [WINNER]


def test_the_search_learns_nothing_from_the_patched_variant() -> None:
    offer = Offer(values={"amp": ["bf16"]}, defaults={"amp": "off"})
    assert excluded(confirmed(status="failed", reason="crashed", engaged=None), offer).changes == {}
    assert len(observations(confirmed(), "throughput")) == 4  # one for each launch of the winner
