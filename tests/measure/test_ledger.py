"""The room in which a session grows."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from perftool.measure.ledger import Ledger
from perftool.records import Decision, Record
from perftool.store import NewVariant, NewWarning, SessionStore, load_session
from tests.measure.fakes import FIT, LIMITS, PARTS, make_session
from tests.sessions import make_launch, timed_session

DECISION = Decision(stage="alone", settings={"amp": "bf16"}, action="dropped", reason="slower")


def test_what_is_entered_is_in_the_session_and_on_disk(tmp_path: Path) -> None:
    ledger = Ledger(make_session(), SessionStore(tmp_path).append)
    measured = timed_session([({}, 10.0), ({"amp": "bf16"}, 12.0)], rounds=2)
    assert ledger.variant({"amp": "bf16"}) == 1
    ledger.enter(*measured.blocks, *measured.launches, DECISION, LIMITS, PARTS, FIT)
    ledger.warn("the launches differ")
    session = ledger.session
    assert (session.blocks, session.launches, session.decisions) == (measured.blocks, measured.launches, [DECISION])
    assert (session.limits, session.memory_parts, session.batch_fit) == (LIMITS, PARTS, FIT)
    assert (session.variants, session.warnings) == ([{}, {"amp": "bf16"}], ["the launches differ"])
    assert load_session(tmp_path) == replace(session, interrupted=True)


def test_each_line_is_on_disk_at_once() -> None:
    lines: list[Record] = []
    ledger = Ledger(make_session(), lines.append)
    ledger.variant({"amp": "bf16"})
    ledger.enter(make_launch(0, 1))
    ledger.warn("the launches differ")
    assert lines == [
        make_session(),
        NewVariant(settings={"amp": "bf16"}),
        make_launch(0, 1),
        NewWarning(text="the launches differ"),
    ]


def test_a_variant_has_one_number() -> None:
    lines: list[Record] = []
    ledger = Ledger(make_session(), lines.append)
    assert [ledger.variant(one) for one in ({}, {"amp": "bf16"}, {"threads": "1"}, {"amp": "bf16"})] == [0, 1, 2, 1]
    assert len(lines) == 3


def test_a_session_that_was_given_out_does_not_grow() -> None:
    begun = timed_session([({}, 10.0)], rounds=1)
    ledger = Ledger(begun, lambda line: None)
    then = ledger.session
    ledger.enter(make_launch(7, 0), DECISION)
    ledger.variant({"threads": "1"})
    ledger.warn("late")
    assert begun == timed_session([({}, 10.0)], rounds=1)
    assert then == begun
    assert ledger.session.launches == [*begun.launches, make_launch(7, 0)]


def test_a_session_that_is_gone_on_with_keeps_what_it_has() -> None:
    begun = replace(timed_session([({}, 10.0)], rounds=1), limits=LIMITS, warnings=["early"])
    ledger = Ledger(begun, lambda line: None)
    ledger.warn("late")
    assert ledger.session == replace(begun, warnings=["early", "late"])
