"""A command as it is, to its end, under settings that were measured: no budget, no lock, no view of its own."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic_ns
from typing import NoReturn

from perftool.errors import BadInput, PerftoolError
from perftool.jobs.inputs import parse_settings, read_recommended
from perftool.jobs.look import check_target, offered
from perftool.jobs.recorded import finish
from perftool.plan import Plan
from perftool.records import Machine, ModuleFacts, RecommendedSettings, Settings, WorkloadFacts
from perftool.scenario import BF16_UNITS, Context, ScenarioError, Scenarios, clashes, environment_of, plan_of
from perftool.script.boot import environment as hooked
from perftool.store import open_results
from perftool.target import Script, Vary, hidden_by, name_of
from perftool.vary import command_with

FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)  # which its children are not to inherit
BY_SIGNAL = 128  # what a shell adds to the number of the signal that ended a command


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is run.

    settings: scenarios' only; those that are the script's own options are in `script.vary`, with one value each.
    device: "cpu", or "auto" for the GPU where there is one.
    loaders: which train, where the settings were measured on this script; as in ScriptFacts.
    """

    script: Script
    settings: Settings
    scenarios: Scenarios
    device: str
    loaders: list[list[bool]]
    scenario_files: tuple[Path, ...]
    arguments: tuple[str, ...]

    @property
    def needs_hooks(self) -> bool:
        """Whether more than words and variables has to be set."""
        plan = plan_of(None, self.settings, self.scenarios, device=self.device, seed=0)
        return plan != Plan(workload=None, device=self.device)

    def command(self, record: Path | None = None) -> tuple[list[str], dict[str, str]]:
        """Its words, and all of its environment. record: the folder that its processes leave their steps in.

        Raises BadInput where perftool cannot get into it and has to.
        """
        own = {vary.name: vary.values[0] for vary in self.script.vary}
        words, variables = command_with(self.script, own)
        environment = {**os.environ, **environment_of(self.settings, self.scenarios), **variables}
        if record is None and not self.needs_hooks:
            return words, environment
        option = hidden_by(self.script.command)
        if option is not None:
            raise BadInput(
                f"its Python runs with {option}, which keeps perftool out; leave that out, or put the settings into "
                "the script itself"
            )
        told = {
            "address": None,
            "record": None if record is None else str(record.resolve()),
            "settings": self.settings,
            "scenarios": {name: self.scenarios[name].file for name in self.settings},
            "device": self.device,
            "loaders": self.loaders,
            "seed": 0,
        }
        return words, environment | hooked(json.dumps(told))


def prepared(
    command: Sequence[str] | None, given: Sequence[str], scenario_files: Sequence[Path], arguments: Sequence[str]
) -> Run:
    """given: `NAME=VALUE` and `@FILE`. Raises BadInput, or ScenarioError, for what can be known to be wrong."""
    script = Script(command=tuple(command or ()), folder=os.getcwd())
    check_target(script)
    settings = parse_settings(given)
    files = [read_recommended(Path(text[1:]), f"-s {text}") for text in given if text.startswith("@")]
    options = {name: kind for file in files for name, kind in file.options.items()}
    varied = [
        Vary(name=name, kind=kind, values=(settings.pop(name),)) for name, kind in options.items() if name in settings
    ]
    scenarios = offered(script, scenario_files)
    device = "cpu" if any(file.device == "cpu" for file in files) else "auto"
    _check(settings, scenarios, device)
    return Run(
        script=replace(script, vary=tuple(varied)),
        settings=settings,
        scenarios=scenarios,
        device=device,
        loaders=next((file.loaders for file in files if _is_of(file, script)), []),
        scenario_files=tuple(scenario_files),
        arguments=tuple(arguments),
    )


def _is_of(file: RecommendedSettings, script: Script) -> bool:
    """Whether settings were measured on this script, whatever its own options were."""
    return bool(file.loaders) and name_of(replace(script, command=tuple(shlex.split(file.workload)))) == name_of(script)


def become(run: Run) -> NoReturn:
    """Let the command take this process's place: its output, signals and exit code are its own. Raises BadInput."""
    words, environment = run.command()
    sys.stdout.flush()
    sys.stderr.flush()
    for number in IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(words[0], words, environment)
    except OSError as error:
        raise BadInput(f"{words[0]} cannot be started: {error.strerror}") from error


def recorded(run: Run, out: Path, say: Callable[[str], None]) -> int:
    """Run the command as a child, and make a session of what its processes leave. Returns its exit code.

    say: takes a line for people.
    """
    store = open_results(out, name_of(run.script), "run")
    started_ns = monotonic_ns()
    try:
        code = _waited_for(*run.command(record=store.folder))
    except BaseException:
        store.discard()
        raise
    warnings = [f"the command ended with exit code {code}"] if code else []
    try:
        finish(
            store,
            run.script,
            run.settings,
            run.scenarios,
            arguments=run.arguments,
            scenario_files=run.scenario_files,
            started_ns=started_ns,
            warnings=warnings,
        )
    except PerftoolError as error:  # the training is over, and its own exit code is what counts
        say(f"perftool: {error}")
    else:
        say(f"report: {store.folder / 'report.html'}; for a pull request, report.md beside it")
    return code


def _waited_for(words: list[str], environment: dict[str, str]) -> int:
    """Start a command, pass on the signals that are sent to this process alone, and wait for its end.

    What the terminal sends, such as Ctrl-C, reaches all of its processes by itself.
    """
    awaited = {*FORWARDED, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    try:
        try:
            child = os.posix_spawnp(words[0], words, environment, setsigmask=before, setsigdef=IGNORED_BY_PYTHON)
        except OSError as error:
            raise BadInput(f"{words[0]} cannot be started: {error.strerror}") from error
        while True:
            found = signal.sigwaitinfo(awaited)
            if found.si_signo == signal.SIGCHLD:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    code = os.waitstatus_to_exitcode(status)
                    return code if code >= 0 else BY_SIGNAL - code
            elif found.si_pid:  # of a process, and not of the terminal
                os.kill(child, found.si_signo)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check(settings: Settings, scenarios: Scenarios, device: str) -> None:
    """Raise ScenarioError for a setting that cannot be had whatever the training and the machine are."""
    for name, value in settings.items():
        if name not in scenarios:
            raise ScenarioError(
                f"there is no setting '{name}'; an option of the command's own is written in the command itself, and "
                f"settings are {', '.join(scenarios)}"
            )
        places = ["cpu"] if device == "cpu" else ["cpu", "cuda:0"]
        reasons = [scenarios[name].refused(value, _at_best(place)) for place in places]
        if None not in reasons:
            raise ScenarioError(f"{name}={value}: {reasons[-1]}")
    clash = clashes(settings, scenarios, "script")
    if clash is not None:
        raise ScenarioError(clash)


def _at_best(device: str) -> Context:
    """A script and a machine that allow whatever some script and machine allow."""
    plenty = 2**20
    machine = Machine(
        system="Linux",
        cpu_model="",
        usable_cores=plenty,
        memory_bytes=plenty**2,
        memory_available_bytes=plenty**2,
        python_version="",
        perftool_version="",
        torch_version="",
        torch_threads=1,
        matrix_units=list(BF16_UNITS),
        libc="glibc",
        compiler="c++",
        device=device,
        device_capability=[99, 0],
        device_memory_bytes=plenty**2,
        triton=True,
        torchao=True,
        cpu_fp16_matrix=True,
        huge_pages="always",
    )
    workload = WorkloadFacts(
        name="",
        reference="",
        driver="script",
        batch_size=1,
        dataset_kind="tensors",
        dataset_rows=plenty,
        dataset_bytes=None,
        has_collate=False,
        parameter_count=1,
        parameter_bytes=1,
        floating_parameters=True,
        optimizer="",
        optimizer_options={"foreach": None, "fused": None, "capturable": False, "differentiable": False},
        settings={},
        tensor_dataset=True,
        modules=ModuleFacts(convolution_dims=[2], block_lists=["blocks"], attends=True, large_linears=1),
    )
    return Context(machine=machine, workload=workload)
