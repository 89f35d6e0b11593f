"""The benchmarks can be found and their sections written; what they measure is theirs to say."""

from __future__ import annotations

import importlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.perf.__main__ import main, names
from tests.perf.table import Row, Table, markdown, with_section


@pytest.mark.parametrize("name", names())
def test_a_benchmark_has_a_title_and_can_be_run(name: str) -> None:
    module = importlib.import_module(f"tests.perf.bench_{name}")
    assert module.TITLE
    assert callable(module.run)


def test_titles_are_unique() -> None:
    titles = [importlib.import_module(f"tests.perf.bench_{name}").TITLE for name in names()]
    assert len(set(titles)) == len(titles)


def test_an_unknown_benchmark_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "there is no benchmark nonsense; there are" in capsys.readouterr().err


def test_a_miss_says_so() -> None:
    text = markdown(Table(["a"], [Row(["x|y"], reached=False), Row(["z"])], ["A note."]))
    assert text.splitlines() == ["| a | reached |", "| --- | --- |", "| x\\|y | no |", "| z | - |", "", "A note."]


TITLES = st.sampled_from(["one", "two", "three"])


@given(st.lists(st.tuples(TITLES, st.sampled_from(["x", "y\n\nz"])), max_size=6))
def test_a_section_is_replaced_where_it_stands_and_the_others_stay(written: list[tuple[str, str]]) -> None:
    document = "# Head\n\nIntroduction.\n"
    for title, body in written:
        document = with_section(document, title, body)
    order = list(dict.fromkeys(title for title, _ in written))
    assert [line[3:] for line in document.splitlines() if line.startswith("## ")] == order
    for title, body in dict(written).items():
        assert f"## {title}\n\n{body}\n" in document
    assert document.startswith("# Head\n\nIntroduction.\n")
