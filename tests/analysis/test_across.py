"""Two sessions are put side by side only where that says something, and only ratios are compared."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from perftool.analysis.across import change, differing, incomparable, side_by_side
from perftool.analysis.recommend import conclude
from perftool.records import Session
from perftool.report import beside, wording
from tests.sessions import Timed, make_comparison, make_script, timed_session

VARIANTS: list[Timed] = [({}, 12.0), ({"amp": "bf16"}, 8.0), ({"threads": "1"}, 24.0)]


def upgraded(session: Session, **machine: Any) -> Session:
    return replace(session, created_at="2026-02-02T00:00:00+00:00", machine=replace(session.machine, **machine))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"command": "profile"}, "their commands differ: perftool compare and perftool profile"),
        ({"workload": {"reference": "other.py:mine"}}, "their workloads differ"),
        ({"workload": {"sample_unit": "step"}}, "their rates differ: samples per second and steps per second"),
        ({"workload": {"batch_size": 20}}, "their batch sizes differ: 10 and 20"),
        ({"workload": {"parameter_count": 11_000}}, "their numbers of parameters differ: 10 and 11,000"),
        ({"workload": {"optimizer": "SGD"}}, "their optimizers differ: Adam and SGD"),
        ({"machine": {"device": "cuda:0"}}, "their kinds of device differ: cpu and cuda"),
        ({"baseline": {"amp": "bf16"}}, "their baselines differ: nothing set and amp=bf16"),
        ({}, "they are the same session"),
    ],
)
def test_what_cannot_be_compared_says_why(changes: dict[str, Any], reason: str) -> None:
    first = timed_session(VARIANTS)
    nested = {
        name: replace(getattr(first, name), **new) for name, new in changes.items() if name in {"workload", "machine"}
    }
    second = replace(first, **{**changes, **nested})
    [told] = incomparable(first, second)
    assert reason in told


def test_the_same_file_may_lie_elsewhere() -> None:
    first = timed_session(VARIANTS)
    second = replace(
        timed_session(VARIANTS, seed=1), workload=replace(first.workload, reference="/a/scripted.py:workload")
    )
    assert incomparable(first, second) == []


def test_each_word_of_a_command_may_lie_elsewhere_and_no_word_may_differ() -> None:
    def run(*command: str) -> Session:
        return make_script(timed_session(VARIANTS), aside_ms={}, command=list(command))

    first = run("python", "/home/a/train.py", "--data", "/home/a/set")
    assert incomparable(first, run("/usr/bin/python", "train.py", "--data", "set")) == []
    [told] = incomparable(first, run("python", "/home/a/other.py", "--data", "/home/a/set"))
    assert told == "their workloads differ: python train.py --data set and python other.py --data set"


def test_gains_of_another_size_are_told_and_slower_machines_are_not() -> None:
    first = timed_session(VARIANTS, noise=0.002)
    second = upgraded(
        timed_session(
            [({}, 24.0), ({"amp": "bf16"}, 12.0), ({"threads": "1"}, 48.0), ({"thp": "on"}, 20.0)], noise=0.002, seed=1
        ),
        torch_version="3.0.0",
    )
    found = side_by_side((first, conclude(first)), (second, conclude(second)))
    told = {wording.settings_text(one.settings): one.change for one in found.variants}
    assert told == {"amp=bf16": "more", "threads=1": "alike", "thp=on": None}
    assert [(one.first, one.second) for one in found.differing if one.name == "torch"] == [("2.13.0", "3.0.0")]
    assert beside.headline(found).endswith("2 variants in both sessions, and the gain of 1 differs")


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (make_comparison(1.2, 0.1), make_comparison(1.35, 0.1), "alike"),
        (make_comparison(1.2, 0.1), make_comparison(1.5, 0.1), "more"),
        (make_comparison(1.5, 0.1), make_comparison(1.2, 0.1), "less"),
        (make_comparison(1.5, 0.1), None, None),
        (make_comparison(1.5, 0.1), replace(make_comparison(9.0), low=None), None),
    ],
)
def test_a_change_needs_intervals_apart(first: Any, second: Any, told: str | None) -> None:
    assert change(first, second) == told


def test_equal_circumstances_are_not_told() -> None:
    session = timed_session(VARIANTS)
    assert differing(session, session) == []
