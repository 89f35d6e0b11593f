"""Performance claims as tests: the marker `perf`, and the fixture `perf_check` that measures them.

    def test_training_is_not_slower(perf_check):
        perf_check("train.py:workload", against="main")

    def test_bf16_pays(perf_check):
        perf_check.faster("train.py:workload", {"amp": "bf16"}, than={})

Such tests take a minute each, so they run only with `pytest --perf`. Each runs one perftool command, whose lock lets
nobody else measure at the same time. Among the processes of pytest-xdist it runs while no other test does.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import mkstemp
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from perftool.records import Check, Comparison, Settings, Summary, VariantSummary, VerdictWord

    Given = Mapping[str, str | int | bool]

PERF = "perf"
UNDECIDED = "undecided: "
HEADLINE, REPORT = "perf.result", "perf.report"  # properties, also in JUnit's XML
BUDGET_S = 60.0
LIMIT_S = 3600.0  # of a test that measures: budgets, confirmation and starts, with time to spare
STOP_S = 30.0  # in which an interrupted perftool has written what it measured
BAD_INPUT = 2  # exit code
TURNS = "perftool_turns"  # a file's name, told to the processes of xdist
TURNS_FILE = pytest.StashKey[str]()
OTHER_WAY: dict[VerdictWord, VerdictWord] = {"better": "worse", "worse": "better"}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("perftool", "performance claims")
    group.addoption("--perf", action="store_true", help="run tests that measure (perf_check); they take a minute each")
    group.addoption(
        "--perf-undecided",
        choices=("xfail", "fail"),
        default="xfail",
        help="what a claim is that could not be decided: its own outcome, or a failure",
    )
    group.addoption("--perf-out", metavar="DIR", default="results", help="folder for the sessions and reports")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{PERF}: measures; runs only with --perf (perftool)")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what measures before anybody selects by marks, and give it one group for xdist's `loadgroup` and a time
    limit of its own: the project's is meant for ordinary tests. One given on the command line holds for all."""
    if not _measures(item):
        return
    item.add_marker(PERF)
    config, has = item.config, item.config.pluginmanager.hasplugin
    if has("xdist") and item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(PERF))
    if has("timeout") and config.getoption("timeout", None) is None and item.get_closest_marker("timeout") is None:
        item.add_marker(pytest.mark.timeout(LIMIT_S))


def _measures(item: pytest.Item) -> bool:
    return item.get_closest_marker(PERF) is not None or "perf_check" in getattr(item, "fixturenames", ())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what measures unless it was asked for."""
    measuring = [item for item in items if _measures(item)]
    if measuring and not config.getoption("--perf"):
        config.hook.pytest_deselected(items=measuring)
        items[:] = [item for item in items if item not in measuring]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process of xdist the file by which they take turns. This runs where they are started from."""
    stash = node.config.stash
    if TURNS_FILE not in stash:
        handle, path = mkstemp(prefix="perftool-pytest-")
        os.close(handle)
        stash[TURNS_FILE] = path
        node.config.add_cleanup(partial(os.unlink, path))
    node.workerinput[TURNS] = stash[TURNS_FILE]


def _turns(config: pytest.Config) -> str | None:
    """The file by which the processes of xdist take turns; None where there is but one."""
    told: dict[str, str] = getattr(config, "workerinput", {})
    return told.get(TURNS) if config.getoption("--perf") else None


@pytest.hookimpl(tryfirst=True, hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Among xdist's processes a test that measures waits until no other test runs, and the others wait for it.

    This is the outermost wrapper, so that no timeout counts the wait.
    """
    path = _turns(item.config)
    if path is None:
        yield
        return
    import fcntl  # here, since not every system has it

    with open(path, "a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX if _measures(item) else fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(turn, fcntl.LOCK_UN)  # closing is not enough: what the test has forked may hold it open


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """A claim that could not be decided is neither passed nor failed."""
    if report.skipped and str(getattr(report, "wasxfail", "")).removeprefix("reason: ").startswith(UNDECIDED):
        return "undecided", "u", "UNDECIDED"
    return None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was measured, one line each, with where its report lies."""
    reports = [one for those in terminalreporter.stats.values() for one in those if hasattr(one, "user_properties")]
    told = [
        (one.nodeid, name, text)
        for one in reports
        if getattr(one, "when", None) == "call"
        for name, text in one.user_properties  # a test may make several claims
        if name in (HEADLINE, REPORT)
    ]
    if told:
        terminalreporter.write_sep("=", "performance claims")
    for node, name, text in told:
        terminalreporter.write_line(f"{node}: {text}" if name == HEADLINE else f"    {text}")


@pytest.fixture
def perf_check(request: pytest.FixtureRequest) -> PerfCheck:
    """Measures claims; see PerfCheck."""
    if not request.config.getoption("--perf"):  # by request.getfixturevalue, which nobody sees beforehand
        pytest.skip("it measures, which is done only with --perf")
    if _turns(request.config) is not None and not _measures(request.node):
        pytest.fail(
            "other tests run beside this one, since nobody knew that it measures: mark it with @pytest.mark.perf, or "
            "take perf_check as its argument",
            pytrace=False,
        )
    return PerfCheck(request.config, request.node.user_properties)


class PerfCheck:
    """Claims about a training, each measured by one perftool command in the folder of pytest's configuration.

    A claim that is not met fails the test; one that the noise leaves open is undecided, which `--perf-undecided=fail`
    makes a failure. Settings that cannot be had on this machine skip it, with the reason. Workloads are named as on the
    command line, settings are scenario names with values; True and False are on and off.
    """

    def __init__(self, config: pytest.Config, properties: list[tuple[str, object]]) -> None:
        self._config, self._properties = config, properties

    def __call__(
        self,
        workload: str,
        settings: Given | None = None,
        *,
        against: str,
        link: Sequence[str] = (),
        strict: bool = False,
        budget_s: float = BUDGET_S,
    ) -> Check:
        """The training is no slower and no hungrier than at a git revision, as `perftool check` says."""
        arguments = ["check", workload, "--against", against, *(f"--link={one}" for one in link)]
        if strict:
            arguments.append("--strict")
        summary, code, headline = self._run(arguments, _normalised(settings), {}, budget_s)
        check = summary.check
        assert check is not None
        for one in check.metrics:
            found = one.confirmation or one.first
            if found is not None:
                self._record(f"perf.{one.metric}.ratio", found.ratio)
            self._record(f"perf.{one.metric}.verdict", one.verdict)
        if code == 1:
            pytest.fail(headline, pytrace=False)
        if code == 3:
            self._undecided(headline)
        return check

    def faster(
        self,
        workload: str,
        settings: Given,
        *,
        than: Given | None = None,
        by: float = 0.0,
        budget_s: float = BUDGET_S,
    ) -> Comparison:
        """The training is faster with these settings than with others, by at least a share (0.1: a tenth).

        Settings of `than` that these do not name hold on both sides. No settings are the workload's own.
        """
        found, headline = self._compared(workload, settings, than, budget_s)
        if found.low is not None and found.low >= 1 + by and found.verdict == "better":
            return found
        if found.verdict in ("worse", "same") or (found.high is not None and found.high < 1 + by):
            pytest.fail(f"{headline}; claimed: faster{f' by {by:.0%}' if by else ''}", pytrace=False)
        self._undecided(headline)

    def not_faster(
        self, workload: str, settings: Given, *, than: Given | None = None, budget_s: float = BUDGET_S
    ) -> Comparison:
        """The training gains nothing from these settings over others."""
        found, headline = self._compared(workload, settings, than, budget_s)
        if found.verdict in ("worse", "same") or (found.high is not None and found.high < 1 + found.margin):
            return found
        if found.verdict == "better":
            pytest.fail(f"{headline}; claimed: not faster", pytrace=False)
        self._undecided(headline)

    def _compared(self, workload: str, settings: Given, than: Given | None, budget_s: float) -> tuple[Comparison, str]:
        """The throughput with the settings over that with the others, and what perftool says."""
        here, there = _normalised(settings), _normalised(than)
        if not (here or there):
            pytest.fail(
                "there is nothing to compare: name a setting that differs from the workload's own", pytrace=False
            )
        # Nothing can be measured against others as no setting at all: the others are, and the ratio is turned round.
        variant, moved = (here, there) if here else (there, {})
        words = ",".join(_words(variant))
        summary, _, said = self._run(["compare", workload, words], moved, variant, budget_s)
        headline = said
        [measured] = summary.variants
        found = self._found(summary.baseline, measured, words)
        if not here:
            found = _turned_round(found)
            headline = f"{said}; without {words} it has {found.ratio:.3g} times the samples per second"
            self._properties[self._properties.index((HEADLINE, said))] = (HEADLINE, headline)
        self._record("perf.throughput.ratio", found.ratio)
        self._record("perf.throughput.verdict", found.verdict)
        return found, headline

    def _found(self, baseline: VariantSummary, variant: VariantSummary, words: str) -> Comparison:
        """The throughput of what was measured. What crashed or stayed without effect fails the test; what cannot be
        had here skips it."""
        from perftool.analysis.verdict import FULL_LOOK

        if baseline.status != "measured":
            pytest.fail(f"the training without {words} was not measured to the end: {baseline.reason}", pytrace=False)
        found = variant.versus_baseline.get("throughput")
        if found is not None and found.launches >= FULL_LOOK:
            return found
        if variant.status == "measured":
            self._undecided(f"{words} has too few launches to compare; raise budget_s")
        told = f"{words} was not measured: {variant.reason}"
        if variant.status == "skipped" and (variant.engaged is None or variant.engaged.ok):
            pytest.skip(told)
        pytest.fail(told, pytrace=False)

    def _run(
        self, arguments: Sequence[str], moved: Settings, variant: Settings, budget_s: float
    ) -> tuple[Summary, int, str]:
        """The command's summary, exit code and headline. One that could not measure fails the test with its words."""
        from perftool.report.answers import headline

        options = [word for one in _words(moved) for word in ("-s", one)]
        command = [sys.executable, "-P", "-m", "perftool", *arguments, *options, "--budget", f"{budget_s:g}"]
        out, err, code = _finished(
            [*command, "--out", str(self._config.getoption("--perf-out")), "--json", "--quiet"], self._config.rootpath
        )
        if code == 130:
            raise KeyboardInterrupt
        summary = _answer(out) if code in (0, 1, 3) else None
        if summary is None:
            said = re.search(r"^perftool: (.*)", err, re.MULTILINE | re.DOTALL)
            told = (said[1] if said else err).strip() or f"perftool ended with exit code {code} and without an answer"
            if code == BAD_INPUT and _is_refused_here(told, {**moved, **variant}):
                pytest.skip(told)
            pytest.fail(told, pytrace=False)
        told = headline(summary)
        self._record(HEADLINE, told)
        report = re.search(r"^report: (.*?);", err, re.MULTILINE)
        self._record(REPORT, report[1] if report else "the report could not be written")
        return summary, code, told

    def _record(self, name: str, value: object) -> None:
        """As `record_property` does, which warns of a schema that has no place for properties."""
        self._properties.append((name, value))

    def _undecided(self, headline: str) -> NoReturn:
        # Under --runxfail pytest.xfail does nothing.
        if self._config.getoption("--perf-undecided") == "fail" or self._config.getoption("runxfail", False):
            pytest.fail(f"{UNDECIDED}{headline}", pytrace=False)
        pytest.xfail(f"{UNDECIDED}{headline}")


def _normalised(settings: Given | None) -> Settings:
    from perftool.scenario import normalised

    return normalised(settings or {})


def _words(settings: Settings) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]


def _turned_round(found: Comparison) -> Comparison:
    """The baseline over the variant."""
    from msgspec.structs import replace

    return replace(
        found,
        ratio=1 / found.ratio,
        low=None if found.high is None else 1 / found.high,
        high=None if found.low is None else 1 / found.low,
        verdict=OTHER_WAY.get(found.verdict, found.verdict),
    )


def _answer(out: str) -> Summary | None:
    """What perftool printed; None where that is no summary, since it ended before it had one."""
    from perftool.records import SchemaError, Summary, from_json

    try:
        return from_json(out, Summary)
    except SchemaError:
        return None


def _is_refused_here(told: str, settings: Settings) -> bool:
    """Whether this refuses a setting for what the machine or the workload is. A value that there is nowhere, and
    settings that never go together, are the test's own fault."""
    from perftool.scenario import clashes, discover

    word, _, reason = told.partition(": ")
    if word not in _words(settings) or reason.startswith("it takes "):
        return False
    return told != clashes(settings, discover())


def _finished(command: Sequence[str], folder: Path) -> tuple[str, str, int]:
    """A command's output, errors and exit code. Interrupted, it is told so and waited for."""
    running = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # or a terminal's Ctrl-C would reach it, too, and again while it writes
    )
    try:
        with _ended_by_sigterm():
            out, err = running.communicate()
    except BaseException:  # a timeout of the test, too
        _interrupt(running)
        raise
    return out, err, running.returncode


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """A signal that would end pytest at once ends it in order: perftool runs in a session of its own, and would go
    on by itself."""

    def end(number: int, _: object) -> NoReturn:
        pytest.exit(f"ended by {signal.Signals(number).name}", 128 + number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(running: subprocess.Popen[str]) -> None:
    """End a command as Ctrl-C does: it keeps what it has measured. A further Ctrl-C ends the wait for that."""
    running.send_signal(signal.SIGINT)
    try:
        with suppress(subprocess.TimeoutExpired):
            running.communicate(timeout=STOP_S)
    finally:
        if running.poll() is None:
            running.kill()
            running.communicate()
