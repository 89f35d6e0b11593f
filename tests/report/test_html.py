"""The page: well-formed, in one file, honest about everything, and proof against whatever users name."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perftool.records import Session, Summary
from perftool.report import answers, beside, html, method, wording
from tests.measure.fakes import make_session
from tests.report.pages import PAGES, WINNER, Checked, compared, profiled, tuned, two_sessions
from tests.report.test_reports import ALL_SUMMARIES, HOSTILE, hostile
from tests.sessions import make_comparison, make_summary, make_variant

Made = Callable[[], tuple[Session, Summary]]


def page_of(made: Made) -> Checked:
    return Checked(html.render(*made()))


@pytest.mark.parametrize("made", PAGES.values(), ids=PAGES)
def test_a_page_is_well_formed_and_its_ids_are_unique(made: Made) -> None:
    page = page_of(made)
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.wanted) <= set(page.ids)


@pytest.mark.parametrize("summary", ALL_SUMMARIES)
def test_every_summary_has_a_page_without_a_single_step(summary: Callable[[], Summary]) -> None:
    told = summary()
    page = Checked(html.render(make_session(), told))
    assert answers.answer(told) in page.text


@pytest.mark.parametrize("made", PAGES.values(), ids=PAGES)
def test_a_page_asks_for_nothing_outside_of_itself(made: Made) -> None:
    text = html.render(*made())
    loading = {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}
    assert not [one for one in Checked(text).attributes if one[1] in loading]
    assert not re.search(r"url\(|@import|https?://", text)
    [script] = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in policy or f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy.replace("&#39;", "'")


@pytest.mark.parametrize(
    ("made", "plots"),
    [
        (tuned, ["Step times over time", "How long the steps take", "Throughput and memory", "Throughput and jitter"]),
        (tuned, ["Batch size and throughput"]),
        (compared, ["Step times over time", "Throughput and memory"]),
        (profiled, ["Slow steps and their causes", "Phases of a step", "Memory of a step", "Memory over the steps"]),
        (profiled, ["Batch size and memory"]),
    ],
)
def test_every_plot_is_there_with_its_name(made: Made, plots: list[str]) -> None:
    text = html.render(*made())
    for name in plots:
        assert f"<title>{name}</title>" in text


def test_the_first_screen_has_the_answer_the_costs_and_the_code() -> None:
    session, summary = tuned()
    assert summary.recommendation is not None
    head = html.render(session, summary).partition("</header>")[0]
    text = Checked(head.partition("<main>")[2] + "</header>").text
    assert "2.03x" in text
    assert "(1.98 to 2.08)" in text
    for name, told in answers.costs(summary, summary.recommendation):
        assert name in text
        assert told in text
    assert summary.recommendation.code in text


def test_each_variant_has_a_row_with_its_interval() -> None:
    session, summary = compared()
    text = html.render(session, summary)
    for one in wording.measured(summary):
        name, *cells = wording.variant_cells(one, summary)
        assert f"<title>{name}: {cells[0]} {cells[1]}</title>" in text


def test_slow_steps_are_marked_with_their_cause() -> None:
    text = html.render(*profiled())
    drawing = text.partition("<title>Slow steps and their causes</title>")[2].partition("</figure>")[0]
    assert ">garbage collection</text>" in drawing
    assert drawing.count('class="event"') == 20  # a tick and a dot for each of ten


def test_what_was_not_tested_is_said() -> None:
    session, summary = tuned()
    told = dict(method.not_tested(session, summary))
    assert told["left as they are"] == "threads"
    assert "amp" in told["what it learns"]
    assert told["left as they are"] in html.render(session, summary)


def test_a_step_of_several_in_one_call_is_drawn_by_blocks() -> None:
    session, summary = compared()
    blocks = [replace(block, step_ns=[], wait_ns=[]) for block in session.blocks]
    text = html.render(replace(session, blocks=blocks), summary)
    assert "means of blocks, since several steps run in one call" in text


def test_a_winner_that_is_no_variant_of_the_session_is_left_out() -> None:
    session, summary = tuned()
    advice = summary.recommendation
    assert advice is not None
    other = replace(summary, recommendation=replace(advice, settings={"threads": "7"}))
    assert wording.settings_text(WINNER) in html.render(session, other)


def test_two_sessions_have_a_page() -> None:
    found = two_sessions()
    text = html.render_beside(found)
    page = Checked(text)
    for row in beside.rows(found):
        assert all(cell in page.text for cell in row)
    assert beside.TRAVELS in page.text
    assert text.count('class="dot better"') == text.count('class="dot open"') == 2
    assert len(set(page.ids)) == len(page.ids)


# --------------------------------------------------------------------------------------------------------- escaping

OWN = {"script": 1, "style": 1}


def hostile_page(text: str) -> Checked:
    summary = hostile(text)
    session = replace(make_session(), variants=[{}, {text: text}], defaults={text: text})
    return Checked(html.render(session, summary))


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.text(max_size=60) | st.sampled_from(HOSTILE))
def test_hostile_text_shows_as_text(text: str) -> None:
    page, plain = hostile_page(text), hostile_page("plain")
    assert page.attributes.count(("button", "type", "button")) == plain.attributes.count(("button", "type", "button"))
    names = [(tag, name) for tag, name, _ in page.attributes]
    assert names == [(tag, name) for tag, name, _ in plain.attributes]
    assert wording.visible(text).strip() in page.text


def test_a_script_as_a_workloads_name_is_text() -> None:
    name = "<script>alert(1)</script>"
    text = html.render(make_session(), make_summary("compare", workload=name))
    assert text.count("<script") == 1
    assert name in Checked(text).text


def test_code_keeps_its_lines_and_loses_its_tags() -> None:
    session, summary = tuned()
    advice = summary.recommendation
    assert advice is not None
    code = "if a < b:\n    x = '</pre><img src=x>'"
    text = html.render(session, replace(summary, recommendation=replace(advice, code=code)))
    assert "<img" not in text
    assert code in Checked(text).text


# ------------------------------------------------------------------------------------------------------------- size


def test_many_variants_are_folded() -> None:
    variants = [make_variant({"threads": str(one)}, throughput=make_comparison(1 + one / 1000)) for one in range(200)]
    text = html.render(make_session(), make_summary("compare", variants))
    assert f"The other {201 - html.ROWS_SHOWN}" in text
    assert len(text) < 1_000_000


def test_more_steps_do_not_make_a_larger_page() -> None:
    session, summary = compared()
    longer = replace(
        session, blocks=[replace(one, step_ns=one.step_ns * 100, wait_ns=one.wait_ns * 100) for one in session.blocks]
    )
    assert len(html.render(longer, summary)) < len(html.render(session, summary)) + 30_000


def test_the_templates_are_packaged() -> None:
    root = Path(__file__).parents[2]
    assert '"perftool.report" = ["templates/*"]' in (root / "pyproject.toml").read_text()
