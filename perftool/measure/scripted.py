"""A command of the user's as what is measured: the first look at it, and a lab whose launches run it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from dataclasses import replace as replace_script
from pathlib import Path

from msgspec import to_builtins
from msgspec.structs import replace

from perftool.measure import messages
from perftool.measure.footprint import Footprint, footprint_of, launches_that_fit
from perftool.measure.kept import Kept
from perftool.measure.lab import BaselineFailed, Lab, Watcher
from perftool.measure.launch import LaunchFailed, LiveLaunch
from perftool.measure.ledger import Ledger
from perftool.measure.sandbox import Sandbox
from perftool.measure.script_launch import ScriptLaunch
from perftool.measure.survey import PARALLEL_STARTS_MOST, SURVEY_LIMIT_S, UnusableError
from perftool.patch.texts import encoded
from perftool.probes import nvml
from perftool.probes.machine import describe_machine
from perftool.records import Machine, ScriptFacts, WorkloadFacts
from perftool.scenario import Context, Scenario, Scenarios, environment_of, tunes_kernels
from perftool.target import Script, entry_of, hidden_by, name_of
from perftool.temporary import temporary_folder
from perftool.vary import command_with

CHANGED_SHOWN = 3  # of the files that a warning names


class Sandboxes:
    """Where the launches of a command live: one sandbox for each folder that it runs in."""

    def __init__(self, tell: Callable[[str], None], ignored: Sequence[Path] = ()) -> None:
        """tell: gets a sentence for what is not protected, before anything is started, and for what was changed all
        the same. ignored: where perftool itself writes."""
        self._tell, self._ignored = tell, list(ignored)
        self._opened: dict[str, Sandbox] = {}
        self._told: set[str] = set()

    def of(self, script: Script) -> Sandbox:
        """The sandbox of the script's folder."""
        if script.folder not in self._opened:
            sandbox = Sandbox.open(script.command, Path(script.folder), os.environ, self._ignored)
            self._opened[script.folder] = sandbox
            for sentence in sandbox.unprotected:
                if sentence not in self._told:
                    self._told.add(sentence)
                    self._tell(f"perftool: {sentence}")
        return self._opened[script.folder]

    def close(self) -> None:
        """Remove everything temporary, and tell what of the user's is not as it was."""
        for sandbox in self._opened.values():
            changed = sandbox.changed()
            if changed:
                more = f" and {len(changed) - CHANGED_SHOWN} others" if len(changed) > CHANGED_SHOWN else ""
                self._tell(f"perftool: changed while measuring: {', '.join(changed[:CHANGED_SHOWN])}{more}")
            sandbox.close()
        self._opened.clear()


def survey(
    script: Script, device: str, seed: int, budget_s: float, sandboxes: Sandboxes
) -> tuple[messages.Described, Footprint]:
    """Run the command until its steps are known, then end it: what it trains and on what, and the memory it takes.

    Raises UnusableError for a command that cannot be started, BaselineFailed for one that cannot be measured.
    """
    at, kind, _ = entry_of(script.command)
    file = script.command[at]
    if kind == "file" and file.endswith(".py") and not Path(script.folder, file).exists():
        raise UnusableError(f"there is no {file} in {script.folder}; after -- comes the command that trains")
    option = hidden_by(script.command)
    if option is not None:
        raise UnusableError(f"its Python runs with {option}, which keeps perftool out; leave that out while measuring")
    spec = messages.LaunchSpec(
        launch=0, reference=shlex.join(script.command), scenario_files=[], settings={}, device=device, seed=seed
    )
    sandbox = sandboxes.of(script)
    used_before_bytes = nvml.used_by_device()
    launch = start(spec, {}, script, {}, None, sandbox)
    try:
        facts = replace(launch.ask(messages.Look(), max(SURVEY_LIMIT_S, budget_s)), ranks=launch.ranks)
        host_bytes = launch.host_bytes()
        used_after_bytes = nvml.used_bytes(nvml.handle_of(facts.device))
        if launch.kept is not None:
            sandbox.keep_downloads(launch.kept)  # so that they happen once
    except LaunchFailed as failed:
        if failed.kind == "reference":
            raise UnusableError(failed.reason) from failed
        raise BaselineFailed(failed.reason, failed.kind) from failed
    finally:
        launch.close()
    facts = replace(
        facts,
        command=list(script.command),
        folder=script.folder,
        passed_over=launch.passed_over,
        other_processes=launch.others,
        options={vary.name: vary.kind for vary in script.vary},
    )
    described = messages.Described(
        machine=_machine(facts, seed),
        workload=workload_of(script, facts),
        peak_host_bytes=host_bytes,
        device_used_bytes=used_after_bytes,
        step_ns=facts.step_ns,
    )
    taken = footprint_of(
        host_bytes,
        described.machine,
        used_before_bytes=used_before_bytes.get(facts.device),
        used_after_bytes=used_after_bytes,
    )
    return described, taken


def _machine(facts: ScriptFacts, seed: int) -> Machine:
    """The machine, and the interpreter that trains, which need not be perftool's."""
    return replace(
        describe_machine(facts.device, threads_before=facts.torch_threads),
        python_version=facts.python_version,
        torch_version=facts.torch_version,
    )


def workload_of(script: Script, facts: ScriptFacts) -> WorkloadFacts:
    """What scenarios and reports need to know of the training that a script makes."""
    loader = next((one for one in facts.loaders if one.trains), None)
    optimizer = facts.optimizers[0] if facts.optimizers else None
    shared = set.intersection(*(set(one.options) for one in facts.optimizers)) if facts.optimizers else set()
    return WorkloadFacts(
        name=name_of(script),
        reference=shlex.join(script.command),
        driver="script",
        batch_size=loader.batch_size if loader else None,
        dataset_kind=loader.kind if loader else "own",
        dataset_rows=loader.rows if loader else None,
        dataset_bytes=None,
        has_collate=loader.has_collate if loader else False,
        parameter_count=facts.parameter_count,
        parameter_bytes=facts.parameter_bytes,
        floating_parameters=facts.floating_parameters,
        sparse_gradients=facts.sparse_gradients,
        optimizer=" and ".join(dict.fromkeys(one.name for one in facts.optimizers)) or "its own update",
        optimizer_options={name: value for name, value in optimizer.options.items() if name in shared}
        if optimizer
        else {},
        optimizer_step=optimizer.step_class if optimizer else None,
        modules=facts.modules,
        changes_buffers=facts.changes_buffers,
        settings={},
        shuffle=loader.shuffle if loader else False,
        drop_last=loader.drop_last if loader else False,
        tensor_dataset=loader is not None and loader.kind == "tensors",
        search_path=script.folder,
        wait_share=facts.wait_ns / facts.step_ns if facts.step_ns else None,
        python_objects=facts.python_objects,
        denormal_values=facts.denormal_values,
        loader_options={"num_workers": loader.workers, "pin_memory": loader.pinned} if loader else {},
        autocast=facts.autocast,
        compiled=any(one.compiled for one in facts.models),
        sample_unit="sample" if loader or facts.says_samples else "step",
        script=facts,
    )


def start(
    spec: messages.LaunchSpec,
    environment: Mapping[str, str],
    script: Script,
    scenarios: Mapping[str, Scenario],
    facts: ScriptFacts | None,
    sandbox: Sandbox,
) -> ScriptLaunch:
    """A launch of the script under the settings of `spec`, in a sandbox.

    environment: what the settings need. scenarios: those of all settings, but for those that are the script's own.
    facts: what is known of it; None while it is being found out.
    """
    patch = spec.patch
    files = {} if patch is None else {Path(patch.root, path): encoded(text) for path, text in patch.files.items()}
    command, variables = command_with(script, spec.settings)
    own = {vary.name for vary in script.vary}
    hook = {
        "launch": spec.launch,
        "settings": spec.settings,
        "in_files": [] if patch is None else patch.in_files,
        "scenarios": {name: scenarios[name].file for name in {*spec.settings, *spec.switched} if name not in own},
        "switched": list(spec.switched),
        "script": asdict(script),
        "tree": None if spec.tree is None else asdict(spec.tree),
        "rule": None if facts is None or facts.rule is None else to_builtins(facts.rule),
        "loaders": [] if facts is None else facts.loader_kinds,
        "device": spec.device if facts is None else facts.device,
        "passed_over": 0 if facts is None else facts.passed_over,
        "seed": spec.seed,
        "watched": spec.watched,
    }

    def kept(hooked: Mapping[str, str]) -> Kept:
        uncovered = [path for path in files if not sandbox.covers(path)]
        if uncovered:
            raise LaunchFailed("setting", f"{uncovered[0]} cannot be covered here, so the patch was not run")
        return sandbox.launch(command, {**environment, **variables, **hooked}, files=files)

    return ScriptLaunch(spec, command, kept, hook, sandbox.folder_of_its_own())


@contextmanager
def open_lab(
    ledger: Ledger,
    scenarios: Scenarios,
    *,
    scenario_files: Sequence[Path],
    footprint: Footprint,
    watcher: Watcher,
    script: Script,
    sandboxes: Sandboxes,
) -> Iterator[Lab]:
    """A lab whose launches run the script, in the tree of their side where there are two; see `survey.open_lab`."""
    machine, facts = ledger.session.machine, ledger.session.workload.script
    context = Context(machine=machine, workload=ledger.session.workload)

    def launched(spec: messages.LaunchSpec, environment: dict[str, str]) -> LiveLaunch:
        own = script if spec.tree is None else replace_script(script, folder=spec.tree.folder)
        return start(spec, environment, own, scenarios, facts, sandboxes.of(own))

    with temporary_folder() as caches:
        yield Lab(
            ledger,
            start=launched,
            environment=lambda settings: environment_of(settings, scenarios),
            scenario_files=[str(file.resolve()) for file in scenario_files],
            parallel_starts=max(1, min(machine.usable_cores, PARALLEL_STARTS_MOST)),
            live_limit=launches_that_fit(footprint, ledger),
            tunes_kernels=lambda settings: tunes_kernels(settings, scenarios, context),
            even_steps=True,
            caches=caches,
            watcher=watcher,
        )
