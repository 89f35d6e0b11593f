"""What reports say of a patch."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from perftool.records import PatchAdvice, Summary, Unwritten
from perftool.report import markdown, patches, terminal
from tests.sessions import make_comparison, script_summary

ADVICE = PatchAdvice(
    file="recommended.patch",
    root="/home/my user",
    files=["train.py"],
    written=["amp", "optimizer_kernel"],
    already=[],
    unwritten=[],
    notes=[],
    confirmed="confirmed",
    versus_baseline=make_comparison(1.58, 0.06),
    versus_interposed=make_comparison(1.0, 0.02, "same"),
)
COMMAND = Unwritten(setting="--lr=0.1", reason="it is an option of the command", advice="add --lr=0.1 to the command")


def told(**changes: Any) -> Summary:
    summary = script_summary()
    assert summary.recommendation is not None
    recommendation = replace(summary.recommendation, patch=replace(ADVICE, **changes))
    return replace(summary, recommendation=recommendation, folder="results/one")


def measured(**changes: Any) -> str:
    return dict(patches.lines(told(**changes)))["measured"]


@pytest.mark.parametrize("render", [terminal.render, markdown.render])
def test_how_to_take_it_is_said(render: Any) -> None:
    page = render(told())
    assert patches.TITLE in page
    assert "git -C '/home/my user' apply < results/one/recommended.patch" in page
    assert "train.py: amp, optimizer" in page


def test_the_patched_script_stands_beside_the_interposed_one() -> None:
    text = "patched script 1.58x (1.52 to 1.64) the samples per second, as fast as the interposed one, 1.00x"
    assert measured().startswith(text)
    undecided = make_comparison(0.97, 0.05, "undecided")
    assert "not told apart from the interposed one" in measured(versus_interposed=undecided)
    worse = make_comparison(0.8, 0.05, "worse")
    lost = measured(confirmed="not_confirmed", versus_interposed=worse)
    assert lost.startswith("not confirmed: patched script 1.58x")
    assert "slower than the interposed one" in lost


def test_what_is_not_in_it_has_a_reason_and_what_to_do_instead() -> None:
    lines = Unwritten(setting="amp=fp16", reason="it goes elsewhere", advice="# around the loss\nwith autocast():")
    rows = dict(patches.lines(told(unwritten=[COMMAND, lines], notes=["A note."])))
    assert rows["without --lr=0.1"] == "it is an option of the command; instead: add --lr=0.1 to the command"
    assert rows["without amp=fp16"] == "it goes elsewhere; instead: paste its lines"
    assert rows["note"] == "A note."
    assert "with --lr=0.1, amp=fp16 set beside it" in rows["measured"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"confirmed": "not_measured", "reason": "no overlay"}, "the patched script was not measured: no overlay"),
        ({"confirmed": "broken", "file": None, "reason": "it died"}, "run and failed: it died"),
        ({"confirmed": None, "file": None, "files": [], "unwritten": [COMMAND]}, "nothing of it can be written"),
        ({"confirmed": None, "file": None, "files": [], "already": ["amp"]}, "have all of it already"),
    ],
)
def test_what_was_not_measured_is_said(changes: dict[str, Any], text: str) -> None:
    assert text in measured(**changes)
    assert (patches.command(told(**changes)) == "") == ("file" in changes)


def test_what_is_kept_nowhere_cannot_be_taken() -> None:
    assert patches.command(replace(told(), folder=None)) == ""


def test_a_workload_has_none() -> None:
    summary = told()
    assert summary.recommendation is not None
    assert patches.lines(replace(summary, recommendation=replace(summary.recommendation, patch=None))) == []
