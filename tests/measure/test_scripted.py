"""What scenarios and reports are told of a script."""

from __future__ import annotations

from typing import Any

import pytest

from perftool.measure.scripted import workload_of
from perftool.records import ScriptModel, WorkloadFacts
from perftool.target import Script
from tests.sessions import make_script_facts

MS = 10**6


def told(**changes: Any) -> WorkloadFacts:
    facts = make_script_facts(**changes)
    return workload_of(Script(command=tuple(facts.command), folder=facts.folder), facts)


@pytest.mark.parametrize(
    ("changes", "unit"),
    [
        ({}, "sample"),  # its DataLoader says
        ({"loaders": []}, "step"),
        ({"loaders": [], "says_samples": True}, "sample"),  # by perftool.step(samples)
    ],
)
def test_a_rate_counts_samples_where_somebody_says_how_many(changes: dict[str, Any], unit: str) -> None:
    assert told(**changes).sample_unit == unit


def test_what_the_script_does_itself_is_known() -> None:
    assert (told().autocast, told().compiled) == (None, False)
    model = ScriptModel(name="OptimizedModule", compiled=True)
    both = told(autocast="bf16", models=[model])
    assert (both.autocast, both.compiled) == ("bf16", True)
