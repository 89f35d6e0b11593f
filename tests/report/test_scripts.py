"""What reports say of a script, and nowhere of a workload."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

import pytest
from msgspec.structs import replace

from perftool.analysis.recommend import conclude
from perftool.records import LoopPart, RankTime, ScriptReport, StepRule, Summary
from perftool.report import answers, html, markdown, method, scripts, terminal
from tests.report.pages import scripted
from tests.sessions import make_script, script_summary, timed_session, tuned_summary

FORMS = [terminal.render, markdown.render]


def told(rule: StepRule | None, names: Sequence[str] = ("Adam",), **changes: object) -> ScriptReport:
    """A script of this rule and these optimizers."""
    plain = ScriptReport(rule=rule, optimizers=list(names), steps=960, step_share=1.0, beside=[])
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("rule", "names", "text"),
    [
        (StepRule(boundary="optimizer"), ["Adam"], "ends with Adam.step()"),
        (StepRule(boundary="optimizer", every=2), ["SGD"], "ends with each second SGD.step()"),
        (StepRule(boundary="optimizer", every=12), ["SGD"], "ends with each 12th SGD.step()"),
        (
            StepRule(boundary="optimizer", last=1),
            ["Adam", "SGD"],
            "ends with SGD.step(), the second of 2 optimizers",
        ),
        (
            StepRule(boundary="optimizer", every=4),
            ["Adam", "SGD", "Adam"],
            "ends with each fourth Adam.step() and SGD.step()",
        ),
        (StepRule(boundary="backward"), [], "ends with backward: the script updates by hand"),
        (StepRule(boundary="mark"), ["Adam"], "ends where perftool.step() is called"),
        (None, [], "none was seen"),
    ],
)
def test_how_a_step_was_found_is_said(rule: StepRule | None, names: Sequence[str], text: str) -> None:
    assert scripts.step_text(told(rule, names)) == text


def test_that_others_train_beside_it_is_said() -> None:
    text = scripts.others_text(told(None, other_processes=3, other_threads=True))
    assert text.startswith("other processes and threads train, too;")
    assert "beside it" not in dict(scripts.lines(told(None)))


def test_little_things_of_a_loop_are_one() -> None:
    beside = [LoopPart(name=f"evaluation at train.py:{line}", share=0.1) for line in range(5)]
    text = scripts.loop_text(told(None, step_share=0.5, beside=beside))
    assert text.startswith("steps take 50 % of it; evaluation at train.py:0 10 %, ")
    assert text.endswith("train.py:2 10 %, others 20 % (estimated)")


def test_a_loop_in_which_nothing_else_was_seen_says_how_long_somebody_looked() -> None:
    text = scripts.loop_text(told(None))
    assert text == "nothing but steps came in the 960 timed; what comes more rarely is not known"


def test_the_slower_rank_is_named() -> None:
    ranks = [RankTime(rank=0, step_ns=13e6, alone_ns=4e6), RankTime(rank=1, step_ns=13e6, alone_ns=8e6)]
    slow = scripts.ranks_text(told(None, ranks=ranks, last_rank=1, lag_ns=4e6))
    assert "rank 0 13 ms a step, 4 ms of it before backward" in slow
    assert "rank 1 is slower: it comes 4 ms after the others" in slow
    assert "none is surely slower" in scripts.ranks_text(told(None, ranks=ranks))


def test_a_gain_is_beside_the_headline_for_the_whole_loop() -> None:
    summary = script_summary()
    assert answers.whole_loop(summary) == (
        "The whole loop, of which steps take about 72 %, gains about 1.58x if nothing else gets faster."
    )
    assert summary.script is not None
    alone = replace(summary, script=replace(summary.script, step_share=1.0, beside=[]))
    assert answers.whole_loop(alone) == ""
    assert answers.whole_loop(tuned_summary()) == ""


def test_the_command_that_trains_with_the_advice_can_be_pasted() -> None:
    summary = replace(script_summary(), folder="my results/x", workload="python 'a b.py' --epochs 3")
    words = shlex.split(scripts.use(summary))
    assert words == [
        "perftool", "run", "-s", "@my results/x/recommended.json", "--", "python", "a b.py", "--epochs", "3",
    ]  # fmt: skip
    for form in FORMS:
        assert f"\n{scripts.use(summary)}\n" in form(summary)
    assert scripts.use(replace(summary, folder=None)) == ""
    assert scripts.use(replace(summary, recommendation=None)) == ""


@pytest.mark.parametrize("form", FORMS)
def test_a_workload_is_told_of_as_ever(form: Callable[[Summary], str]) -> None:
    text = form(tuned_summary())
    assert "The script" not in text
    assert "perftool run" not in text


def test_a_search_of_a_command_gives_no_second_script() -> None:
    """The command is one already: what is handed over are its lines, and its words."""
    session, summary = scripted()
    advice = summary.recommendation
    assert advice is not None
    assert (advice.script, advice.diff) == ("", "")
    assert "# on its command line\n--num-workers=2" in advice.code
    assert "with torch.autocast" in advice.code
    page = html.render(session, summary)
    assert "recommended.py" not in page + terminal.render(summary)
    assert "perftool run -s @results/" in page


def test_the_command_that_measures_it_again_is_the_one_that_was_typed() -> None:
    command = ["tune", "--vary", "--lr=0.1|0.2", "--", "bash", "my run.sh"]
    text = method.again(replace(script_summary(), arguments=command))
    assert text == "perftool tune --vary '--lr=0.1|0.2' -- bash 'my run.sh'"
    assert shlex.split(text) == ["perftool", *command]


@pytest.mark.parametrize("command", ["tune", "compare", "profile"])
def test_steps_are_what_is_counted_where_nobody_says_of_samples(command: str) -> None:
    session = timed_session([({}, 12.0), ({"amp": "bf16"}, 8.0)], command=command)  # type: ignore[arg-type]
    steps = make_script(session, aside_ms={}, loaders=[])
    summary = conclude(steps)
    assert summary.baseline.samples_per_second == pytest.approx(1e9 / 12e6, rel=0.05)
    for text in (terminal.render(summary), markdown.render(summary), html.render(steps, summary)):
        assert "steps/s" in text
        assert "samples" not in text.replace("too few samples", "")
        assert "Samples" not in text
