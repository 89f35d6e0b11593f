"""What scenarios and reports are told of a script."""

from __future__ import annotations

from typing import Any

import pytest

from perftool.measure.script_launch import _of_ranks
from perftool.measure.scripted import workload_of
from perftool.records import ScriptModel, WorkloadFacts
from perftool.target import Script
from tests.sessions import make_block, make_script_facts

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


def test_a_block_of_several_ranks_has_the_times_of_each() -> None:
    blocks = [make_block(0, 3, [step_ms * MS] * 4) for step_ms in (10, 12)]
    found = _of_ranks(blocks)
    assert (found.wall_ns, found.samples, found.steps) == (48 * MS, 80, 4)
    assert (found.rank_wall_ns, found.rank_steps) == ([40 * MS, 48 * MS], [4, 4])
    assert _of_ranks(blocks[:1]) == blocks[0]
