"""The pytest plugin, in runs of pytest within the test, with the perftool command scripted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy.fft  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
from msgspec.structs import replace

from perftool import pytest_plugin
from perftool.analysis.summary import summarise
from perftool.records import Engaged, Summary, to_json
from perftool.report import answers  # noqa: F401
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
    assert not hasattr(run, "command")


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


def test_undecided_fails_where_xfail_does_nothing(run: Run) -> None:
    result = run(CHECK, summarise(checked(10, 12)), 3, "--perf", "--runxfail")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*undecided: *"])


@pytest.mark.parametrize("code", [1, 70])
def test_an_exception_of_perftool_is_no_verdict(code: int, run: Run) -> None:
    result = run(CHECK, None, code, err="Traceback (most recent call last):\nZeroDivisionError: division by zero\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ZeroDivisionError: division by zero*"])
    result.stdout.no_fnmatch_line("*SchemaError*")


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


def test_a_setting_that_this_training_cannot_have_skips(run: Run) -> None:
    lost = make_lost({"amp": "bf16"}, "the loss is no tensor")
    result = run(FASTER.replace("BY", "0"), make_summary("compare", [lost]), 0, "--perf", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*amp=bf16 was not measured: the loss is no tensor*"])


def test_a_setting_that_did_not_take_effect_fails(run: Run) -> None:
    """A gain that a later change has lost is what such a test is there for."""
    lost = replace(
        make_lost({"amp": "bf16"}, "did not take effect: ran eagerly"), engaged=Engaged(ok=False, evidence="eager")
    )
    result = run(FASTER.replace("BY", "0"), make_summary("compare", [lost]))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*amp=bf16 was not measured: did not take effect: ran eagerly*"])


def test_a_training_that_dies_without_the_setting_shows_nothing(run: Run) -> None:
    summary = compared(1.5, 0.1, "better")
    died = replace(summary.baseline, status="failed", reason="RuntimeError: out of memory")
    result = run(FASTER.replace("BY", "0"), replace(summary, baseline=died))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*without amp=bf16 was not measured to the end: RuntimeError: out of memory*"])


def test_two_launches_are_too_few_to_claim_anything(run: Run) -> None:
    found = replace(make_comparison(1.5, 0.1, "better"), launches=2)
    summary = make_summary("compare", [make_variant({"amp": "bf16"}, throughput=found)])
    assert told(run(FASTER.replace("BY", "0"), summary)) == {"undecided": 1}


def test_each_claim_of_a_test_is_told(run: Run) -> None:
    test = """
def test_both(perf_check):
    perf_check.faster("train.py:mine", {"amp": "bf16"}, than={})
    perf_check.faster("train.py:other", {"amp": "bf16"}, than={})
"""
    result = run(test, compared(1.5, 0.1, "better"))
    result.assert_outcomes(passed=1)
    assert result.stdout.str().count("test_both: ") == 2


def test_a_termination_ends_pytest_in_order() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(pytest.exit.Exception, match="SIGTERM"), pytest_plugin._ended_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_setting_that_crashes_fails_with_the_reason(run: Run) -> None:
    lost = make_lost({"amp": "bf16"}, "RuntimeError: no such kernel", "failed")
    result = run(FASTER.replace("BY", "0"), make_summary("compare", [lost]))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*amp=bf16 was not measured: RuntimeError: no such kernel*"])


def test_too_few_launches_are_undecided(run: Run) -> None:
    summary = make_summary("compare", [make_variant({"amp": "bf16"}, versus_baseline={})])
    assert told(run(FASTER.replace("BY", "0"), summary)) == {"undecided": 1}


GRAPHS = """
def test_graphs(perf_check):
    perf_check.faster("train.py:mine", {"cuda_graphs": True}, than=THAN)
"""


@pytest.mark.parametrize(
    ("than", "words", "outcome"),
    [
        ("{}", "cuda_graphs=on: there is no CUDA device: the training runs on the CPU", "skipped"),
        ("{'amp': 'bf16'}", "amp=bf16: bfloat16 needs a GPU of compute capability 8.0 or newer", "skipped"),
        ("{'amp': 'bf17'}", "amp=bf17: it takes off, bf16 or fp16, not 'bf17'", "failed"),
        ("{'amp': 'bf16'}", "there is no scenario 'cuda_graphs'", "failed"),
        (
            "{'torch_compile': 'reduce-overhead'}",
            "cuda_graphs=on: torch_compile=reduce-overhead captures graphs of its own, and captures cannot be nested",
            "failed",
        ),
    ],
)
def test_a_setting_that_cannot_be_had_here_skips_and_one_that_is_wrong_anywhere_fails(
    than: str, words: str, outcome: str, run: Run
) -> None:
    result = run(GRAPHS.replace("THAN", than), None, 2, "--perf", "-rsf", err=f"perftool: {words}\n")
    assert told(result) == {outcome: 1}
    assert words[:60] in result.stdout.str()


def test_true_is_on(run: Run) -> None:
    run(GRAPHS.replace("THAN", "{'thp': False}"), compared(1.5, 0.1, "better"))
    command = run.command  # type: ignore[attr-defined]
    assert command[4:7] == ["compare", "train.py:mine", "cuda_graphs=on"]
    assert command[command.index("-s") + 1] == "thp=off"


@pytest.mark.parametrize(
    ("ratio", "verdict", "by", "outcome"),
    [(0.5, "worse", 0.5, "passed"), (1.5, "better", 0.0, "failed"), (1.0, "undecided", 0.0, "undecided")],
)
def test_the_workloads_own_settings_may_be_claimed_faster(
    ratio: float, verdict: str, by: float, outcome: str, run: Run
) -> None:
    test = f"""
def test_own(perf_check):
    perf_check.faster("train.py:mine", {{}}, than={{"amp": "bf16"}}, by={by})
"""
    result = run(test, compared(ratio, 0.1, verdict))
    assert told(result) == {outcome: 1}
    command = run.command  # type: ignore[attr-defined]
    assert command[6] == "amp=bf16"
    assert "-s" not in command
    if outcome != "passed":
        assert f"without amp=bf16 it has {1 / ratio:.3g} times" in result.stdout.str()


def test_nothing_cannot_be_compared_with_nothing(run: Run) -> None:
    result = run("def test_none(perf_check): perf_check.faster('train.py:mine', {})")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*there is nothing to compare: name a setting*"])


def test_junit_has_the_figures(run: Run, pytester: pytest.Pytester) -> None:
    run(CHECK, summarise(checked(10, 10)), 0, "--perf", "--junitxml=out.xml")
    properties = {
        one.get("name"): one.get("value") for one in ElementTree.parse(pytester.path / "out.xml").iter("property")
    }
    assert properties["perf.throughput.verdict"] == "no regression"
    assert float(str(properties["perf.throughput.ratio"])) == pytest.approx(1, abs=0.02)
    assert properties["perf.report"] == "results/x/report.html"


SCRIPTED = """
import os, time
from pathlib import Path
import pytest
from perftool import pytest_plugin

def note(what, began_s):
    with open(Path(__file__).parent / "times", "a") as times:
        times.write(f"{what} {os.environ['PYTEST_XDIST_WORKER']} {began_s} {time.monotonic()}\\n")

def finished(command, folder):
    began_s = time.monotonic()
    time.sleep(0.3)
    note("measured", began_s)
    return Path(folder, "answer.json").read_text(), "", 0

pytest_plugin._finished = finished

@pytest.fixture
def ordinary():
    began_s = time.monotonic()
    yield
    time.sleep(0.05)
    note("ordinary", began_s)
"""
MIXED = """
import os
import pytest

@pytest.mark.parametrize("number", range(3))
def test_measured(perf_check, number):
    perf_check("train.py:mine", against="main")

@pytest.mark.parametrize("number", range(16))
def test_ordinary(ordinary, number):
    pass
"""


@pytest.mark.process
def test_among_xdists_processes_it_measures_alone(run: Run, pytester: pytest.Pytester) -> None:
    """The processes of xdist are real ones, with a scripted perftool."""
    pytester.makeconftest(SCRIPTED)
    (pytester.path / "answer.json").write_bytes(to_json(summarise(checked(10, 10))))
    result = run(MIXED, None, 0, "--perf", "-n", "2")
    result.assert_outcomes(passed=19)
    lines = [line.split() for line in (pytester.path / "times").read_text().splitlines()]
    spans = [(what, float(began), float(ended)) for what, _, began, ended in lines]
    assert [what for what, *_ in spans].count("measured") == 3
    assert len({worker for _, worker, *_ in lines}) == 2
    for what, began, ended in spans:
        beside = [one for one in spans if one[1] < ended and began < one[2]]
        assert what == "ordinary" or len(beside) == 1, beside


UNSEEN = """
def test_unseen(request):
    request.getfixturevalue("perf_check")("train.py:mine", against="main")
"""


def test_what_asks_for_it_unseen_skips_without_perf(run: Run) -> None:
    result = run(UNSEEN, None, 0, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*it measures, which is done only with --perf*"])
    run(UNSEEN, summarise(checked(10, 10))).assert_outcomes(passed=1)


def test_what_asks_for_it_unseen_fails_among_xdists_processes(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pytest_plugin, "_turns", lambda _: str(tmp_path / "turns"))
    result = run(UNSEEN)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*mark it with @pytest.mark.perf, or take perf_check as its argument*"])


def test_it_can_be_chosen_by_its_mark(run: Run) -> None:
    result = run(CHECK + "\ndef test_other(): pass\n", summarise(checked(10, 10)), 0, "--perf", "-m", "perf")
    result.assert_outcomes(passed=1, deselected=1)
    without = run(CHECK + "\ndef test_other(): pass\n", None, 0, "--perf", "-m", "not perf")
    without.assert_outcomes(passed=1, deselected=1)


LIMITS = """
import pytest

@pytest.fixture
def limit(request):
    mark = request.node.get_closest_marker("timeout")
    return mark and mark.args[0]

def test_own(limit, perf_check): assert limit == {own}
@pytest.mark.timeout(7)
def test_marked(limit, perf_check): assert limit == 7
def test_other(limit): assert limit is None
"""


def test_it_has_a_time_limit_of_its_own_unless_one_was_asked_for(run: Run) -> None:
    limits = LIMITS.replace("{own}", "3600"), LIMITS.replace("{own}", "None")
    run(limits[0]).assert_outcomes(passed=3)
    run(limits[1], None, 0, "--perf", "--timeout=50").assert_outcomes(passed=3)


GROUPED = """
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    groups = {item.name: [mark.args for mark in item.iter_markers("xdist_group")] for item in items}
    assert groups == {"test_own": [("perf",)], "test_marked": [("perf",)], "test_other": []}
"""


def test_it_is_in_one_group_before_xdist_looks(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(GROUPED)
    run(LIMITS.replace("{own}", "3600")).assert_outcomes(passed=3)


COUNTING = """
import os, signal, sys, time
from pathlib import Path

heard = 0

def count(number, frame):
    global heard
    heard += 1

signal.signal(signal.SIGINT, count)
Path("ready").write_text(str(os.getsid(0)))
while not heard:
    time.sleep(0.01)
time.sleep(0.2)
Path("heard").write_text(str(heard))
"""


@pytest.mark.process
def test_an_interrupted_perftool_is_told_once_and_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    communicate = subprocess.Popen.communicate

    def interrupted(running: subprocess.Popen[str], *_: object, **__: object) -> tuple[str, str]:
        monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
        until_s = time.monotonic() + 30
        while not (tmp_path / "ready").exists() and time.monotonic() < until_s:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pytest_plugin._finished([sys.executable, "-c", COUNTING], tmp_path)
    assert (tmp_path / "heard").read_text() == "1"
    assert (tmp_path / "ready").read_text() != str(os.getsid(0))


@pytest.mark.process
def test_one_that_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest_plugin, "STOP_S", 0.1)
    deaf = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", deaf], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "deaf\n"
    pytest_plugin._interrupt(running)
    assert running.returncode == -signal.SIGKILL


def test_the_folder_is_pytests_own(run: Run, pytester: pytest.Pytester) -> None:
    run(CHECK, replace(summarise(checked(10, 10))))
    assert run.folder == pytester.path  # type: ignore[attr-defined]
