"""The pytest plugin, in runs of pytest within the test, with the perftool command scripted."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy.fft  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
from msgspec.structs import replace

from perftool import pytest_plugin
from perftool.analysis.summary import summarise
from perftool.records import Summary, to_json
from perftool.report import wording  # noqa: F401
from tests.analysis.test_gate import checked
from tests.sessions import make_comparison, make_lost, make_summary, make_variant

# A run of pytest within the test forgets what it has imported, and extensions cannot be imported twice: hence the
# imports above of what is not used.

CHECK = """
def test_not_slower(perf_check):
    perf_check("train.py:mine", {"amp": "bf16"}, against="main", link=["data"])
"""
FASTER = """
def test_faster(perf_check):
    perf_check.faster("train.py:mine", {"amp": "bf16"}, than={"threads": 1}, by=BY)
"""
NOT_FASTER = """
def test_not_faster(perf_check):
    perf_check.not_faster("train.py:mine", {"dataloader_workers": 2})
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a test file with --perf; perftool answers with this summary and exit code. Keeps its command."""

    def run(test: str, summary: Summary | None = None, code: int = 0, *options: str, err: str = "") -> pytest.RunResult:
        def finished(command: Sequence[str], folder: Path) -> tuple[str, str, int]:
            run.command, run.folder = list(command), folder  # type: ignore[attr-defined]
            text = "" if summary is None else to_json(summary).decode()
            return text, err or "report: results/x/report.html; for a pull request, report.md beside it\n", code

        monkeypatch.setattr(pytest_plugin, "_finished", finished)
        pytester.makepyfile(test)
        plugin = [] if _is_installed() else ["-p", "perftool.pytest_plugin"]
        return pytester.runpytest_inprocess(*plugin, "-p", "no:randomly", *(options or ["--perf"]))

    return run


def _is_installed() -> bool:
    from importlib.metadata import entry_points

    return any(one.value == "perftool.pytest_plugin" for one in entry_points(group="pytest11"))


def told(result: pytest.RunResult) -> dict[str, int]:
    """The outcomes; that the plugin is imported already is this test's own doing."""
    return {name: count for name, count in result.parseoutcomes().items() if name != "warnings"}


def compared(ratio: float, half_width: float, verdict: str) -> Summary:
    found = make_comparison(ratio, half_width, verdict)  # type: ignore[arg-type]
    return make_summary("compare", [make_variant({"amp": "bf16"}, throughput=found)])


def test_it_is_deselected_unless_asked_for(run: Run) -> None:
    result = run(CHECK + "\ndef test_other(): pass\n", None, 0, "-q")
    result.assert_outcomes(passed=1, deselected=1)


def test_a_check_that_holds_passes_and_is_told(run: Run) -> None:
    result = run(CHECK, summarise(checked(10, 10)))
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["*performance claims*", "*test_not_slower: *no regression against main*", "*report.html"]
    )
    command = run.command  # type: ignore[attr-defined]
    assert command[3:8] == ["perftool", "check", "train.py:mine", "--against", "main"]
    assert "--link=data" in command
    assert command[command.index("-s") + 1] == "amp=bf16"


def test_a_regression_fails_with_the_headline(run: Run) -> None:
    result = run(CHECK, summarise(checked(10, 12, confirmed_ms=12)), 1)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*regression against main (4c1d2e3): samples/s 0.83*"])


def test_undecided_is_an_outcome_of_its_own(run: Run) -> None:
    result = run(CHECK, summarise(checked(10, 12)), 3)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*1 undecided*"])
    failed = run(CHECK, summarise(checked(10, 12)), 3, "--perf", "--perf-undecided=fail")
    failed.assert_outcomes(failed=1)


def test_what_cannot_be_measured_fails_with_perftools_own_words(run: Run) -> None:
    result = run(CHECK, None, 2, err="perftool: --against main: git knows no such revision\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*git knows no such revision*"])


@pytest.mark.parametrize(
    ("ratio", "half_width", "verdict", "by", "outcome"),
    [
        (1.5, 0.1, "better", 0.0, "passed"),
        (1.5, 0.1, "better", 0.3, "passed"),
        (1.5, 0.3, "better", 0.3, "undecided"),
        (1.1, 0.05, "better", 0.3, "failed"),
        (1.0, 0.01, "same", 0.0, "failed"),
        (0.8, 0.05, "worse", 0.0, "failed"),
        (1.05, 0.2, "undecided", 0.0, "undecided"),
    ],
)
def test_faster_by_the_whole_interval(
    ratio: float, half_width: float, verdict: str, by: float, outcome: str, run: Run
) -> None:
    result = run(FASTER.replace("BY", str(by)), compared(ratio, half_width, verdict))
    assert told(result) == {outcome: 1}


@pytest.mark.parametrize(
    ("ratio", "half_width", "verdict", "outcome"),
    [
        (0.5, 0.1, "worse", "passed"),
        (1.0, 0.01, "same", "passed"),
        (1.2, 0.1, "better", "failed"),
        (1.0, 0.2, "undecided", "undecided"),
    ],
)
def test_not_faster(ratio: float, half_width: float, verdict: str, outcome: str, run: Run) -> None:
    result = run(NOT_FASTER, compared(ratio, half_width, verdict))
    assert told(result) == {outcome: 1}


def test_a_setting_that_did_not_take_effect_skips(run: Run) -> None:
    lost = make_lost({"amp": "bf16"}, "did not take effect: no units")
    run(FASTER.replace("BY", "0"), make_summary("compare", [lost])).assert_outcomes(skipped=1)


def test_junit_has_the_figures(run: Run, pytester: pytest.Pytester) -> None:
    run(CHECK, summarise(checked(10, 10)), 0, "--perf", "--junitxml=out.xml")
    properties = {
        one.get("name"): one.get("value") for one in ElementTree.parse(pytester.path / "out.xml").iter("property")
    }
    assert properties["perf.throughput.verdict"] == "no regression"
    assert float(str(properties["perf.throughput.ratio"])) == pytest.approx(1, abs=0.02)
    assert properties["perf.report"] == "results/x/report.html"


def test_it_goes_with_xdist(run: Run, pytester: pytest.Pytester) -> None:
    """Workers of xdist are processes, in which nothing is scripted: here they only collect and deselect."""
    result = run(CHECK + "\ndef test_other(): pass\n", None, 0, "-n", "2")
    assert result.ret == 0
    result.assert_outcomes(passed=1)


def test_the_folder_is_pytests_own(run: Run, pytester: pytest.Pytester) -> None:
    run(CHECK, replace(summarise(checked(10, 10))))
    assert run.folder == pytester.path  # type: ignore[attr-defined]
