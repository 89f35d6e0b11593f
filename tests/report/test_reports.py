"""Reports: fixed summaries give fixed texts, and whatever users name shows as text in every form."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perftool.records import (
    BatchFit,
    Estimate,
    Goal,
    Growth,
    MemoryParts,
    MemoryReport,
    Provisional,
    Rejected,
    Summary,
)
from perftool.report import answers, markdown, profiles, terminal, wording
from tests.report.regenerate import DISTURBED, GOLDEN, REPORTS
from tests.sessions import (
    compared_summary,
    make_comparison,
    make_lost,
    make_summary,
    make_variant,
    profiled_summary,
    tuned_summary,
    weighed_summary,
)

PROPERTY = settings(deadline=None, max_examples=40, derandomize=True)
HOSTILE = [
    "<script>alert(1)</script>",
    "a|b|c",
    "`x` ``y`` ```",
    "[red]x[/red] [link=http://example.org]y[/link]",
    "![image](http://example.org/x.png) [link](http://example.org)",
    "</details><b>",
    "\x1b[31mred\x1b[0m \x1b]8;;http://example.org\x07 \x07\b",
    "line\nbreak\r\ttab\u2028and\u2029more",
    "\u202eright to left\u202c\u200b",
    ":smile: **bold** _it_ ~~no~~ $x$ @somebody # &lt; \\",
]
ALL_SUMMARIES = [tuned_summary, compared_summary, profiled_summary, weighed_summary]


def hostile(text: str) -> Summary:
    """A summary in which everything that a user or their code can name is this text."""
    return make_summary(
        "compare",
        [
            make_variant({text: text}, throughput=make_comparison(1.2)),
            make_lost({"amp": text}, f"failed with {text}", "failed"),
        ],
        workload=text,
        arguments=["compare", text],
        warnings=[text],
        rejected=[Rejected(settings={text: "on"}, reason=text)],
        machine=replace(compared_summary().machine, cpu_model=text, environment={"OMP_X": text}, git_commit=text),
    )


@pytest.mark.parametrize("name", REPORTS)
def test_golden(name: str) -> None:
    golden = (GOLDEN / name).read_text(encoding="utf-8")
    assert REPORTS[name]().rstrip("\n") + "\n" == golden, "if this is meant: python -m tests.report.regenerate"


def test_every_golden_report_is_compared() -> None:
    assert sorted(path.name for path in GOLDEN.iterdir()) == sorted(REPORTS)


# --------------------------------------------------------------------------------------------------------- terminal


@pytest.mark.parametrize("summary", ALL_SUMMARIES)
@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_terminal_report_keeps_to_the_width(summary: Callable[[], Summary], width: int) -> None:
    lines = terminal.render(summary(), width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert not any(line.endswith(" ") for line in lines)


def test_one_screen() -> None:
    assert max(len(terminal.render(summary()).splitlines()) for summary in ALL_SUMMARIES) <= 45


@pytest.mark.parametrize("summary", ALL_SUMMARIES)
def test_colour_changes_no_character(summary: Callable[[], Summary], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    coloured = terminal.render(summary(), colour=True)
    assert "\x1b[" in coloured
    plain = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", coloured).splitlines()]
    assert plain == terminal.render(summary()).splitlines()


def test_code_is_never_wrapped_or_indented() -> None:
    summary = tuned_summary()
    code = f"if device == 'cpu':\n    {'x' * 150}()\n\nlast()"
    assert summary.recommendation is not None
    text = terminal.render(replace(summary, recommendation=replace(summary.recommendation, code=code)), width=60)
    assert f"\n{code}\n" in text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_shows_as_text_in_a_terminal(text: str) -> None:
    shown = terminal.render(hostile(text), width=200)
    assert wording.visible(text) in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


@PROPERTY
@given(st.text(max_size=60))
def test_no_text_reaches_a_terminal_with_control_characters(text: str) -> None:
    shown = terminal.render(hostile(text))
    assert all(character.isprintable() or character == "\n" for character in shown)


# --------------------------------------------------------------------------------------------------------- markdown


@pytest.mark.parametrize("count", [10, 200, 2000])
def test_a_markdown_report_fits_a_comment(count: int) -> None:
    variants = [
        make_variant(
            {"threads": str(one), "optimizer_kernel": "fused"},
            throughput=make_comparison(1 + one / 5000),
            versus_baseline={name: make_comparison(1 + one / 5000) for name in wording.METRIC_NAMES},
        )
        for one in range(count)
    ]
    rejected = [Rejected(settings={"threads": str(one)}, reason="x" * 200) for one in range(count)]
    page = markdown.render(make_summary("compare", variants, rejected=rejected))
    assert len(page) <= markdown.FITS
    assert ("Left out" in page) == (count > 10)
    assert ("<summary>Every metric" in page) == (count == 10)
    assert ("slower ones, all of them in report.html" in page) == (count > markdown.MOST_ROWS)


OWN_TAGS = re.compile(r"</?details>|</?summary>")


def rows_of(page: str) -> list[list[str]]:
    """The cells of every table row, split at the borders that GitHub sees."""
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    return [re.split(r"(?<!\\)(?:\\\\)*\|", row)[1:-1] for row in rows]


@PROPERTY
@given(st.text(max_size=60) | st.sampled_from(HOSTILE))
def test_hostile_text_shows_as_text_in_markdown(text: str) -> None:
    page = markdown.render(hostile(text))
    plain = markdown.render(hostile("plain"))
    assert OWN_TAGS.findall(page) == OWN_TAGS.findall(plain)
    assert "<" not in OWN_TAGS.sub("", page)
    assert [len(row) for row in rows_of(page)] == [len(row) for row in rows_of(plain)]
    assert len(page.splitlines()) == len(plain.splitlines())
    assert all(character.isprintable() or character == "\n" for character in page)
    unescaped = re.sub(r"\\.", "", page).replace("**Warning:**", "")
    assert not set(unescaped) & set("`[]*~$@")


def test_markdown_escapes_by_the_rules_of_markdown() -> None:
    page = markdown.render(hostile("<b>|`[x](http://e.org)@me_"))
    assert r"### &lt;b&gt;\|\`\[x\](http&#58;//e.org)&#64;me\_: fastest is" in page


def test_code_with_fences_in_it_stays_one_block() -> None:
    summary = tuned_summary()
    assert summary.recommendation is not None
    code = '"""\n````\n</details>\n"""'
    page = markdown.render(replace(summary, recommendation=replace(summary.recommendation, code=code)))
    assert f"`````python\n{code}\n`````\n" in page


def test_a_page_of_many_variants_fits_a_comment() -> None:
    variants = [make_variant({"a_scenario": str(number)}, throughput=make_comparison(1.1)) for number in range(60)]
    variants += [make_lost({"a_scenario": str(number)}, "ValueError: " + "x" * 10_000) for number in range(60, 70)]
    assert len(markdown.render(make_summary("compare", variants))) < 65_536


# ------------------------------------------------------------------------------------------------------ what is said


@pytest.mark.parametrize("form", [terminal.render, markdown.render])
@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("nothing_better", "nothing that was tried was seen to be faster; keep it as it is"),
        ("not_confirmed", "was not confirmed in fresh launches; keep it as it is"),
        ("interrupted", "interrupted before anything was confirmed; no advice"),
        (None, "no advice"),
    ],
)
def test_a_search_without_advice_says_why(form: Callable[[Summary], str], status: str | None, said: str) -> None:
    text = " ".join(form(make_summary("tune", recommendation_status=status)).split())
    assert said in text


def test_a_start_that_cannot_pay_back_is_part_of_the_answer() -> None:
    goal = Goal(planned_steps=1000)
    summary = make_summary("tune", recommendation_status="nothing_better", goal=goal)
    assert "faster and pays its start back within 1,000 steps; keep it as it is" in answers.headline(summary)


def test_a_baseline_with_settings_names_them_and_one_that_failed_says_why() -> None:
    moved = make_summary("compare", baseline=make_variant({"amp": "bf16"}))
    assert "baseline (amp=bf16)" in terminal.render(moved)
    lost = make_summary("compare", baseline=make_lost({}, "the loss became nan", "failed"))
    assert "baseline  failed: the loss became nan" in terminal.render(lost)


def test_times_and_rates_are_faster_or_slower_and_the_rest_better_or_worse() -> None:
    words = {
        (metric, verdict): wording.verdict_word(metric, verdict)
        for metric in wording.METRIC_NAMES
        for verdict in ("better", "worse", "same", "undecided")
    }
    assert {words[metric, "better"] for metric in wording.TIMES_AND_RATES} == {"faster"}
    assert words["step_p95", "worse"] == "slower"
    assert words["peak_host", "worse"] == "worse"
    assert words["stall_share", "better"] == "better"
    assert {words[metric, verdict] for metric, verdict in words if verdict in ("same", "undecided")} == {
        "same",
        "undecided",
    }


def test_a_verdict_is_shown_as_the_summary_has_it_whatever_the_numbers() -> None:
    """Nothing is decided again: a ratio of two that the summary calls undecided is undecided."""
    variant = make_variant({"amp": "bf16"}, throughput=make_comparison(2.0, 0.01, "undecided"))
    text = terminal.render(make_summary("compare", [variant]))
    assert "no variant is surely faster: amp=bf16 seems to give 2.00x (1.99 to 2.01), undecided" in " ".join(
        text.split()
    )
    assert re.search(r"amp=bf16 +2\.00x \(1\.99 to 2\.01\) +undecided", text)


def test_medians_of_other_times_than_the_ratios_are_told_as_such() -> None:
    base = make_variant({})
    rate = base.samples_per_second or 0.0
    found = make_comparison(1.1, 0.05, "better")
    beside, later = (
        make_variant({"amp": "bf16"}, throughput=found, samples_per_second=factor * rate) for factor in (1.12, 3.0)
    )
    assert wording.p50_note(make_summary("compare", [beside], baseline=base), [beside]) == ""
    assert wording.P50_NOTE in markdown.render(make_summary("compare", [later], baseline=base))


def test_where_nothing_was_found_faster_only_what_may_be_is_told_as_open() -> None:
    slower = make_variant({"amp": "bf16"}, throughput=make_comparison(0.8, 0.2, "undecided"))
    same = make_variant({"thp": "on"}, throughput=make_comparison(1.001, 0.001, "same"))
    assert answers.answer(make_summary("compare", [slower, same])) == "no variant was found faster than the baseline"
    maybe = make_variant({"threads": "1"}, throughput=make_comparison(1.3, 0.2, "undecided"))
    assert "no variant is surely faster: threads=1 seems" in answers.answer(
        make_summary("compare", [slower, same, maybe])
    )


def test_unknown_figures_say_so() -> None:
    variant = make_variant(
        {}, step_ns=None, jitter=None, peak_host_bytes=None, data_wait_fraction=None, steps_per_call=10
    )
    text = terminal.render(make_summary("profile", baseline=variant))
    assert re.search(r"step time +none of single steps: 10 run in one call", text)
    assert re.search(r"data wait +unknown\n", text)
    assert re.search(r"peak host memory +unknown; 512 MB while warming up", text)


def test_peak_memory_is_the_devices_where_there_is_one() -> None:
    on_device = make_variant({}, peak_device_reserved_bytes=9_000_000_000)
    assert wording.peak_memory_bytes(on_device) == 9_000_000_000
    assert wording.peak_memory_bytes(make_variant({})) == 451_000_000


def test_what_changed_the_optimisation_is_told_apart() -> None:
    summary = tuned_summary()
    assert summary.recommendation is not None
    advice = replace(summary.recommendation, changes_optimisation=True, break_even_steps=1200.0)
    told = dict(answers.costs(summary, advice))
    assert "another training" in told["optimisation"]
    assert told["start-up"] == "slower, paid back after 1,200 steps"
    assert "optimisation" not in dict(answers.costs(summary, summary.recommendation))


def test_a_long_reason_is_cut() -> None:
    shown = terminal.render(make_summary("compare", [make_lost({"amp": "bf16"}, "x" * 5000, "failed")]))
    assert shown.count("x") < wording.LONGEST_TEXT
    assert "…" in shown


def test_launches_that_differ_too_much_are_a_warning() -> None:
    unsteady = make_variant({"amp": "bf16"}, throughput=make_comparison(1.2, unsteady=True))
    steady = make_variant({"threads": "1"}, throughput=make_comparison(1.2))
    summary = make_summary("compare", [unsteady, steady], warnings=["another one"], fitness=DISTURBED)
    for render in (terminal.render, markdown.render):
        text = " ".join(render(summary).split())
        assert "the launches of amp=bf16 differ more than" in text
        assert "another one" in text
    assert not [one for one in answers.warnings(replace(summary, variants=[steady])) if "differ more" in one]


def test_launches_that_differ_are_no_warning_where_nobody_can_help_it() -> None:
    unsteady = make_variant({"amp": "bf16"}, throughput=make_comparison(1.2, unsteady=True))
    assert answers.warnings(make_summary("compare", [unsteady])) == []


def test_what_is_not_sure_is_told_with_its_interval_its_lines_and_what_would_tell() -> None:
    seen = Provisional(
        settings={"amp": "bf16"},
        metric="throughput",
        gain=Estimate(ratio=1.12, low=0.99, high=1.27),
        pairs=120,
        launches=2,
        code="with torch.autocast('cpu'):",
        launches_needed=6,
        further_s=21.4,
    )
    given = [
        "tune",
        "--budget",
        "30",
        "--vary",
        "--lr=1|2",
        "--vary=--amp",
        "--",
        "python",
        "train.py",
        "--budget",
        "3",
    ]
    summary = make_summary(
        "tune", recommendation_status="provisional", provisional=seen, folder="results/a search", arguments=given
    )
    for render in (terminal.render, markdown.render):
        text = " ".join(render(summary).replace("\\", "").split())
        assert "amp=bf16 seems to give 1.12x (0.990 to 1.27) the samples per second, by 2 fresh launches" in text
        assert (
            "which is not sure; 4 more launches may tell: perftool tune --resume 'results/a search' --budget 22 "
            "--vary '--lr=1|2' --vary=--amp -- python train.py --budget 3" in text
        )
        assert "with torch.autocast('cpu'):" in text
    hopeless = replace(seen, launches_needed=None, further_s=None)
    assert answers.answer(replace(summary, provisional=hopeless)).endswith(
        "not sure, and more launches like these would not tell; nothing is recommended"
    )


def test_memory_that_is_not_known_says_why() -> None:
    parts = MemoryParts(
        parameters_bytes=4,
        gradients_bytes=4,
        optimizer_bytes=8,
        buffers_bytes=0,
        activations_bytes=None,
        batch_bytes=None,
        reason="it failed",
    )
    few = Growth(verdict="undecided", bytes_per_step=None, low=None, high=None, steps=3, grown_bytes=5)
    fit = BatchFit(points=[], available_bytes=10**9, reason="its batches are text")
    assert profiles.memory_lines(MemoryReport(parts=parts, host_growth=few, fit=fit)) == [
        ("memory parts", "parameters 4 B, gradients 4 B, optimizer state 8 B, activations unknown (it failed)"),
        ("memory growth", "undecided: too few samples in 3 steps"),
        ("largest batch", "unknown: its batches are text"),
    ]
    slow = replace(few, verdict="steady", bytes_per_step=200.0, low=190.0, high=210.0)
    assert profiles.memory_lines(MemoryReport(host_growth=slow)) == [
        ("memory growth", "little: +200 B per step (190 to 210)")
    ]
    assert profiles.memory_lines(None) == []
