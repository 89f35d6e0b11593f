"""Performance claims as tests: the marker `perf`, and the fixture `perf_check` that measures them.

    def test_training_is_not_slower(perf_check):
        perf_check("train.py:workload", against="main")

    def test_bf16_pays(perf_check):
        perf_check.faster("train.py:workload", {"amp": "bf16"}, than={})

Such tests take a minute each, so they run only with `pytest --perf`. Each runs one perftool command, whose lock lets
nobody else measure at the same time, whatever runs in parallel.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from perftool.records import Check, Comparison, Summary

    Settings = Mapping[str, str | int | bool]

PERF = "perf"
UNDECIDED = "undecided: "
HEADLINE, REPORT = "perf.result", "perf.report"  # properties, also in JUnit's XML
BUDGET_S = 60.0


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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what measures unless it was asked for, and keep it in one process of pytest-xdist's `loadgroup`."""
    measuring = [
        item for item in items if item.get_closest_marker(PERF) or "perf_check" in getattr(item, "fixturenames", ())
    ]
    if not config.getoption("--perf"):
        if measuring:
            config.hook.pytest_deselected(items=measuring)
            items[:] = [item for item in items if item not in measuring]
        return
    for item in measuring:
        item.add_marker(PERF)
        if config.pluginmanager.hasplugin("xdist"):
            item.add_marker(pytest.mark.xdist_group(PERF))


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """A claim that could not be decided is neither passed nor failed."""
    if report.skipped and str(getattr(report, "wasxfail", "")).removeprefix("reason: ").startswith(UNDECIDED):
        return "undecided", "u", "UNDECIDED"
    return None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was measured, one line each, with where its report lies."""
    reports = [one for those in terminalreporter.stats.values() for one in those if hasattr(one, "user_properties")]
    told = [(one.nodeid, dict(one.user_properties)) for one in reports if getattr(one, "when", None) == "call"]
    measured = [(node, properties) for node, properties in told if HEADLINE in properties]
    if measured:
        terminalreporter.write_sep("=", "performance claims")
    for node, properties in measured:
        terminalreporter.write_line(f"{node}: {properties[HEADLINE]}")
        terminalreporter.write_line(f"    {properties[REPORT]}")


@pytest.fixture
def perf_check(request: pytest.FixtureRequest) -> PerfCheck:
    """Measures claims; see PerfCheck."""
    return PerfCheck(request.config, request.node.user_properties)


class PerfCheck:
    """Claims about a training, each measured by one perftool command in the folder of pytest's configuration.

    A claim that is not met fails the test; one that the noise leaves open is undecided, which `--perf-undecided=fail`
    makes a failure. Workloads are named as on the command line, settings are scenario names with values.
    """

    def __init__(self, config: pytest.Config, properties: list[tuple[str, object]]) -> None:
        self._config, self._properties = config, properties

    def __call__(
        self,
        workload: str,
        settings: Settings | None = None,
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
        summary, code, headline = self._run(arguments, settings, budget_s)
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
        settings: Settings,
        *,
        than: Settings | None = None,
        by: float = 0.0,
        budget_s: float = BUDGET_S,
    ) -> Comparison:
        """The training is faster with these settings than with others, by at least a share (0.1: a tenth)."""
        found, headline = self._compared(workload, settings, than, budget_s)
        if found.low is not None and found.low >= 1 + by and found.verdict == "better":
            return found
        if found.verdict in ("worse", "same") or (found.high is not None and found.high < 1 + by):
            pytest.fail(f"{headline}; claimed: faster{f' by {by:.0%}' if by else ''}", pytrace=False)
        self._undecided(headline)

    def not_faster(
        self, workload: str, settings: Settings, *, than: Settings | None = None, budget_s: float = BUDGET_S
    ) -> Comparison:
        """The training gains nothing from these settings over others."""
        found, headline = self._compared(workload, settings, than, budget_s)
        if found.verdict in ("worse", "same") or (found.high is not None and found.high < 1 + found.margin):
            return found
        if found.verdict == "better":
            pytest.fail(f"{headline}; claimed: not faster", pytrace=False)
        self._undecided(headline)

    def _compared(
        self, workload: str, settings: Settings, than: Settings | None, budget_s: float
    ) -> tuple[Comparison, str]:
        """The throughput with the settings over that with the others."""
        variant = ",".join(_words(settings))
        summary, _, headline = self._run(["compare", workload, variant], than, budget_s)
        [one] = summary.variants
        found = one.versus_baseline.get("throughput")
        if found is None:
            pytest.skip(f"{variant} was not measured: {one.reason}")
        self._record("perf.throughput.ratio", found.ratio)
        self._record("perf.throughput.verdict", found.verdict)
        return found, headline

    def _run(self, arguments: Sequence[str], settings: Settings | None, budget_s: float) -> tuple[Summary, int, str]:
        """The command's summary, exit code and headline. One that could not measure fails the test with its words."""
        from perftool.records import Summary, from_json
        from perftool.report.wording import headline

        moved = [word for one in _words(settings or {}) for word in ("-s", one)]
        command = [sys.executable, "-P", "-m", "perftool", *arguments, *moved, "--budget", f"{budget_s:g}"]
        out, err, code = _finished(
            [*command, "--out", str(self._config.getoption("--perf-out")), "--json", "--quiet"], self._config.rootpath
        )
        if code == 130:
            raise KeyboardInterrupt
        if code not in (0, 1, 3):
            pytest.fail(
                err.strip().removeprefix("perftool: ") or f"perftool ended with exit code {code}", pytrace=False
            )
        summary = from_json(out, Summary)
        told = headline(summary)
        self._record(HEADLINE, told)
        report = re.search(r"^report: (.*?);", err, re.MULTILINE)
        self._record(REPORT, report[1] if report else "the report could not be written")
        return summary, code, told

    def _record(self, name: str, value: object) -> None:
        """As `record_property` does, which warns of a schema that has no place for properties."""
        self._properties.append((name, value))

    def _undecided(self, headline: str) -> NoReturn:
        if self._config.getoption("--perf-undecided") == "fail":
            pytest.fail(f"{UNDECIDED}{headline}", pytrace=False)
        pytest.xfail(f"{UNDECIDED}{headline}")


def _words(settings: Settings) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]


def _finished(command: Sequence[str], folder: Path) -> tuple[str, str, int]:
    """A command's output, errors and exit code. Interrupted, it is waited for: it keeps what it has measured."""
    running = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = running.communicate()
    except BaseException:  # a timeout of the test, too
        running.send_signal(signal.SIGINT)
        try:
            running.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.communicate()
        raise
    return out, err, running.returncode
