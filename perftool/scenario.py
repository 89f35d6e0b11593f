"""The Scenario contract, how scenarios are found, and how settings become a Plan.

A scenario is one file: a docstring, a few functions, and `scenario = Scenario(__name__, __doc__, ...)` at its end.
Scenario files import torch inside functions only, so that listing them stays fast, and nothing else that is not in the
standard library: they also run inside a user's own script, whose Python need not have more.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from perftool.plan import COMPILED, SWITCHED, Live, Plan, SettingError, changed, needs_own_loop
from perftool.words import Engaged, Proving, Settings

if TYPE_CHECKING:
    from perftool.records import Driver, Machine, ScenarioDescription, WorkloadFacts
    from perftool.workload import Workload

ENTRY_POINTS = "perftool.scenarios"
DOCUMENTED = ("What it changes", "When it helps", "When it hurts", "Source")

Changes = Literal["speed", "numerics", "optimisation"]
Cures = Mapping[str, Sequence[str]]
Proof = Callable[[Live, str], Proving | Engaged]
"""Whether a value took effect on a live training that is warmed up. It drives no training itself: it yields what it
wants to see happen (BARE_STEP, STEP, `batch = yield FETCH`) and is resumed after it, whoever has the loop."""


class ScenarioError(ValueError):
    """A scenario file that breaks the contract, or a setting that names nothing; the text says what to do."""


BF16_UNITS = ("amx_bf16", "avx512_bf16", "bf16")  # of x86 and, the last, of Arm
NO_BF16_UNITS = "this CPU has no units for bfloat16 (AMX, AVX-512 BF16, Arm BF16)"
NO_LOADER = "the script makes its batches itself, without a DataLoader"


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a scenario knows when it says what it offers: facts only, so that asking needs no torch."""

    machine: Machine
    workload: WorkloadFacts

    @property
    def on_cuda(self) -> bool:
        return self.machine.device.startswith("cuda")

    @property
    def has_bf16_units(self) -> bool:
        """Of the CPU."""
        return any(unit in self.machine.matrix_units for unit in BF16_UNITS)


@dataclass(frozen=True, kw_only=True)
class Code:
    """Lines of plain PyTorch for the places of an ordinary training script; empty where nothing changes.

    The lines may use `model`, `optimizer`, `dataset`, `workload`, `batch_size`, and on a GPU `device`. All settings of
    a training are put into one script, so that each place holds what is its own, whatever the others are.
    imports: imports of one line each that any of the lines need; those that are not used in the end are left out.
    setup: once, after the imports and before anything is built.
    batch_size: the number of samples in a batch.
    dataset: defines `dataset` anew, as what a DataLoader is to load.
    sampling: arguments of the DataLoader in place of batch_size, shuffle and drop_last.
    loader_arguments: further keyword arguments of the DataLoader.
    batches: a function `batches()` yielding the batches of one epoch, in place of the DataLoader. Where another
        setting needs a DataLoader, `dataset` and `sampling` of the same code are taken instead.
    batch_calls: what does for batches without a DataLoader what `loader_arguments` of the same code do with one: calls
        on each tensor (".pin_memory()"). Loader arguments without it need a DataLoader.
    model: after the model is on its device.
    optimizer: after the optimizer is made.
    optimizer_arguments: further keyword arguments of the optimizer ("fused=True").
    copy_arguments: further keyword arguments of the copy to the device.
    copy_stream: makes a stream `copies` on which batches are copied to the device, and for which each step waits.
    loss_context: a context manager around the computation of the loss.
    update: in place of `loss.backward()` and `optimizer.step()`.
    step: a function `step(batch)`, of a batch on the device, in place of the whole step; it may call
        `loss_of(model, batch)`, which is the workload's loss within all loss contexts. Returns the detached loss.
    around_step: defines `step` anew from the function `step(batch)`.
    warmed_up: once, after the first few steps.
    command: words on the command line of a script.
    """

    imports: str = ""
    setup: str = ""
    batch_size: str = ""
    dataset: str = ""
    sampling: str = ""
    loader_arguments: str = ""
    batches: str = ""
    batch_calls: str = ""
    model: str = ""
    optimizer: str = ""
    optimizer_arguments: str = ""
    copy_arguments: str = ""
    copy_stream: str = ""
    loss_context: str = ""
    update: str = ""
    step: str = ""
    around_step: str = ""
    warmed_up: str = ""
    command: str = ""

    def filled(self) -> dict[str, str]:
        """Place to lines, where there are lines."""
        return {place: lines for place, lines in asdict(self).items() if lines}


def _no_environment(_value: str) -> Mapping[str, str]:
    return {}


def _nothing_against(_value: str, _context: Context) -> str | None:
    return None


def _no_clash(_value: str, _others: Settings) -> str | None:
    return None


@dataclass(frozen=True)
class Scenario:
    """One lever.

    module, doc: `__name__` and `__doc__` of its file; the last part of the name is the scenario's.
    label: its name where it is not its file's.
    default: the value that the workload runs with if nothing is set, on this machine.
    values: those worth trying here, the default among them; unavailable ones may be listed.
    refusal: why a value cannot be had here, as a sentence, or None. Called for values that are not listed, too. What
        cannot be done to the loop of a script need not be said: it follows from what `apply` changes of the plan.
    discouraged: why a value that can be had is not tried unless somebody asks for it, as a sentence, or None.
        Called only for values that are not refused.
    clash: why a value cannot be had together with the other settings, as a sentence, or None. It is enough that one
        of two scenarios says so.
    apply: changes a plan for a value, without torch as long as nothing is built. May raise SettingError.
    proof: whether the value took effect on a live training. Runs where that does, outside of all timing.
    present: the value that is in force in this process, of what a script may set itself, where torch can tell at once.
    code: what a user pastes to have the same.
    environment: variables of the process that the value needs set before it starts.
    switchable: whether a process that runs already can be switched to a value and back, so that a search need not start
        another one: what it changes is built anew, or laid over a script's training as that goes on. One that changes
        `Plan.process` has `present`, whose value can be set again.
    changes: "numerics" (other rounding than the default's), "optimisation" (another training) or just "speed".
    cures: finding to the values that may cure it where the default is in force, the first that can be had here; or a
        function that says so of the value in force.
    for_memory: it saves memory at the price of time, so a search tries it only where memory is wanted or limited.
    typical_gain: ratio of throughput that it brings where it helps, from the literature; decides only what is tried
        first when time is short.
    """

    module: str
    doc: str | None
    default: Callable[[Context], str] = field(kw_only=True)
    values: Callable[[Context], Sequence[str]] = field(kw_only=True)
    refusal: Callable[[str, Context], str | None] = field(kw_only=True)
    apply: Callable[[Plan, str], Plan] = field(kw_only=True)
    proof: Proof = field(kw_only=True)
    present: Callable[[], str] | None = field(kw_only=True, default=None)
    code: Callable[[str, Context], Code] = field(kw_only=True)
    environment: Callable[[str], Mapping[str, str]] = field(kw_only=True, default=_no_environment)
    switchable: bool = field(kw_only=True, default=False)
    discouraged: Callable[[str, Context], str | None] = field(kw_only=True, default=_nothing_against)
    clash: Callable[[str, Settings], str | None] = field(kw_only=True, default=_no_clash)
    changes: Changes = field(kw_only=True, default="speed")
    cures: Cures | Callable[[str, Context], Cures] = field(kw_only=True, default_factory=dict)
    for_memory: bool = field(kw_only=True, default=False)
    typical_gain: float = field(kw_only=True, default=1.0)
    label: str | None = field(kw_only=True, default=None)

    def __post_init__(self) -> None:
        missing = [heading for heading in DOCUMENTED if f"{heading}:" not in (self.doc or "")]
        if missing:
            raise ScenarioError(f"scenario {self.module}: its docstring has no '{missing[0]}:'")

    @property
    def name(self) -> str:
        return self.label or self.module.rpartition(".")[2]

    @property
    def file(self) -> str:
        """Where it is written: a script's own process, which need not have perftool installed, loads it from there."""
        return inspect.getfile(self.apply)

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (self.doc or "").strip().splitlines()[0]

    def section(self, heading: str) -> str:
        """The text under one of the DOCUMENTED headings, unwrapped."""
        after = (self.doc or "").partition(f"{heading}:")[2]
        ends = [after.find(f"\n{other}:") for other in DOCUMENTED if f"\n{other}:" in after]
        return " ".join(after[: min(ends)].split() if ends else after.split())

    def available(self, context: Context) -> list[str]:
        """Values to try here."""
        return [value for value in self.values(context) if self.why_not(value, context) is None]

    def why_not(self, value: str, context: Context) -> str | None:
        """Why a value is not tried here, as a sentence; None where it is."""
        return self.refused(value, context) or self.discouraged(value, context)

    def refused(self, value: str, context: Context) -> str | None:
        """Why a value cannot be had here, as a sentence, or None: what the scenario says itself, and for a script what
        the value would have to change of its loop."""
        own = self.refusal(value, context)
        if own is not None or context.workload.driver == "workload" or value == self.default(context):
            return own  # what the script does already need not be laid over it
        before = Plan(workload=None, device=context.machine.device, batch_size=context.workload.batch_size)
        try:
            return needs_own_loop(before, self.apply(before, value))
        except SettingError as error:
            return str(error)

    def switches(self, context: Context) -> bool:
        """Whether a process of this training can be switched to its values and back."""
        if not self.switchable or context.workload.driver == "workload":
            return self.switchable
        return self._changes(context) <= set(SWITCHED)

    def compiles(self, context: Context) -> bool:
        """Whether its values make other code of the training, which takes time and stays in the process."""
        return not self.switchable and bool(self._changes(context) & set(COMPILED))

    def _changes(self, context: Context) -> set[str]:
        """The parts of a plan that its values change; all where that cannot be seen without a training."""
        before = Plan(workload=None, device=context.machine.device, batch_size=context.workload.batch_size)
        try:
            return set().union(*(changed(before, self.apply(before, value)) for value in self.available(context)))
        except Exception:  # a scenario of a user's own may look at the workload
            return {one.name for one in fields(Plan)}

    def cures_beyond(self, value: str, context: Context) -> Cures:
        """Finding to the values that may cure it where this value is in force."""
        if callable(self.cures):
            return self.cures(value, context)
        return self.cures if value == self.default(context) else {}

    def lines(self, value: str, context: Context) -> dict[str, str]:
        """Place to lines of a value's code, and under "environment" the variables that it needs, if it needs any."""
        needed = " ".join(f"{key}={text}" for key, text in self.environment(value).items())
        return self.code(value, context).filled() | ({"environment": needed} if needed else {})

    def described(self, context: Context) -> ScenarioDescription:
        """Everything that is shown of it, for this workload and machine."""
        from perftool.records import ScenarioDescription

        available = self.available(context)
        refused = {value: reason for value in self.values(context) if (reason := self.refused(value, context))}
        others = [value for value in self.values(context) if value not in refused]
        return ScenarioDescription(
            name=self.name,
            summary=self.summary,
            sections={heading: self.section(heading) for heading in DOCUMENTED},
            changes=self.changes,
            default=self.default(context),
            available=available,
            refused=refused,
            discouraged={value: reason for value in others if (reason := self.discouraged(value, context))},
            codes={value: self.lines(value, context) for value in available},
        )


Scenarios = Mapping[str, Scenario]


def discover(files: Sequence[Path] = ()) -> dict[str, Scenario]:
    """All scenarios by name: those of the entry-point group `perftool.scenarios`, then those in the given files.

    An entry point names a scenario module, or a package of them. A later one replaces an earlier one of its name.
    Raises ScenarioError, naming the file, for one that breaks the contract.
    """
    found: dict[str, Scenario] = {}
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        loaded = point.load()
        for module in [loaded, *_submodules(loaded)]:
            scenario = getattr(module, "scenario", None)
            if isinstance(scenario, Scenario):
                found[scenario.name] = scenario
    for file in files:
        scenario = _from_file(file)
        found[scenario.name] = scenario
    return dict(sorted(found.items()))


def _submodules(package: ModuleType) -> list[ModuleType]:
    paths = getattr(package, "__path__", None)
    if paths is None:
        return []
    names = sorted(info.name for info in pkgutil.iter_modules(paths))
    # reference.py is the training, not a scenario: reading the source avoids importing torch to learn that.
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names if _declares(package, name)]


def _declares(package: ModuleType, name: str) -> bool:
    return any(
        "scenario = Scenario(" in path.read_text(encoding="utf-8")
        for folder in package.__path__
        if (path := Path(folder) / f"{name}.py").is_file()
    )


def _from_file(path: Path) -> Scenario:
    if not path.is_file():
        raise ScenarioError(f"--scenario {path}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ScenarioError(f"--scenario {path}: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ScenarioError(f"--scenario {path}: {type(error).__name__}: {error}") from error
    scenario = getattr(module, "scenario", None)
    if not isinstance(scenario, Scenario):
        raise ScenarioError(f"--scenario {path}: it must end with `scenario = Scenario(__name__, __doc__, ...)`")
    return scenario


# --------------------------------------------------------------------------------------------------------- settings


def refuse_unlisted(value: str, values: Sequence[str]) -> str | None:
    """The refusal of a scenario that takes no values but these."""
    return None if value in values else f"it takes {', '.join(values[:-1])} or {values[-1]}, not '{value}'"


def normalised(settings: Mapping[str, str | int | bool]) -> Settings:
    """Values as text: True and False become on and off."""
    return {
        name: ("on" if value else "off") if isinstance(value, bool) else str(value) for name, value in settings.items()
    }


def check_names(names: Iterable[str], scenarios: Scenarios) -> None:
    """Raise ScenarioError, with the names there are, for the first that is none."""
    for name in names:
        if name not in scenarios:
            raise ScenarioError(f"there is no scenario '{name}'; there are {', '.join(scenarios)}")


def check_settings(settings: Settings, scenarios: Scenarios, context: Context) -> None:
    """Raise ScenarioError, with the remedy, for the first setting that cannot be had here, or not with the others."""
    check_names(settings, scenarios)
    for name, value in settings.items():
        reason = scenarios[name].refused(value, context)
        if reason is not None:
            raise ScenarioError(f"{name}={value}: {reason}")
    clash = clashes(settings, scenarios, context.workload.driver)
    if clash is not None:
        raise ScenarioError(clash)


def tunes_kernels(settings: Settings, scenarios: Scenarios, context: Context) -> bool:
    """Whether code is made for a GPU, whose kernels the compiler chooses by timing them. What is only captured is taken
    for such, too."""
    made = (name for name, value in settings.items() if value != scenarios[name].default(context))
    return context.on_cuda and (context.workload.compiled or any(scenarios[name].compiles(context) for name in made))


def clashes(settings: Settings, scenarios: Scenarios, driver: Driver = "workload") -> str | None:
    """Why these settings cannot be had together: 'NAME=VALUE: reason', from the first that says so, or None.

    driver: of the training. Over a script's own some cannot be laid together, which their plan says.
    """
    for name, value in settings.items():
        reason = scenarios[name].clash(value, {other: text for other, text in settings.items() if other != name})
        if reason is not None:
            return f"{name}={value}: {reason}"
    if driver == "script":
        plan = Plan(workload=None)
        for name, value in sorted(settings.items()):
            try:
                plan = scenarios[name].apply(plan, value)
            except SettingError as error:
                return f"{name}={value}: {error}"
    return None


def variants_of(wanted: Sequence[str], scenarios: Scenarios, context: Context, baseline: Settings) -> list[Settings]:
    """The variants that the command line names, in order; every available value of every scenario where it names none.

    `amp` stands for each of its other values, `amp=bf16` for one, `amp=bf16,optimizer_kernel=fused` for one variant of
    two settings. Raises ScenarioError for what cannot be had here, or not together with the baseline's settings.
    """
    variants: list[Settings] = []
    driver = context.workload.driver
    for text in wanted or list(scenarios):
        if "=" in text:
            parts = [part.partition("=") for part in text.split(",")]
            settings = {name.strip(): value.strip() for name, _, value in parts}
            check_settings({**baseline, **settings}, scenarios, context)
            variants.append(settings)
            continue
        check_names([text], scenarios)
        scenario = scenarios[text]
        other = [{text: value} for value in other_values(scenario, context, baseline)]
        possible = [settings for settings in other if clashes({**baseline, **settings}, scenarios, driver) is None]
        if wanted and not possible:
            reasons = [
                *(clashes({**baseline, **settings}, scenarios, driver) for settings in other),
                *(scenario.why_not(value, context) for value in scenario.values(context)),
            ]
            raise ScenarioError(f"{text}: {next(filter(None, reasons), 'there is no other value to try here')}")
        variants.extend(possible)
    return variants


def names_variant(text: str, scenarios: Scenarios) -> bool:
    """Whether this is a variant rather than a workload: a scenario, or settings whether there are such scenarios or
    not. A workload has a colon."""
    name, equals, _ = text.partition("=")
    return name.strip() in scenarios or bool(equals and ":" not in text)


def names_in(wanted: Iterable[str]) -> list[str]:
    """The scenarios that variants of the command line name."""
    return [part.partition("=")[0].strip() for text in wanted for part in text.split(",")]


def other_values(scenario: Scenario, context: Context, baseline: Settings) -> list[str]:
    """Available values but for the one that the baseline has."""
    present = baseline.get(scenario.name, scenario.default(context))
    return [value for value in scenario.available(context) if value != present]


def cures_of(scenarios: Scenarios, context: Context, baseline: Settings) -> dict[str, list[str]]:
    """Finding to the settings that may cure it: those that can be had here, and are not in force."""
    found: dict[str, list[str]] = {}
    for name, scenario in scenarios.items():
        others = [
            value
            for value in other_values(scenario, context, baseline)
            if clashes({**baseline, name: value}, scenarios, context.workload.driver) is None
        ]
        present = baseline.get(name, scenario.default(context))
        for finding, values in scenario.cures_beyond(present, context).items():
            value = next((one for one in values if one in others), None)
            if value is not None:
                found.setdefault(finding, []).append(f"{name}={value}")
    return found


def environment_of(settings: Settings, scenarios: Scenarios) -> dict[str, str]:
    """Environment variables that a process with these settings must start with."""
    return {key: text for name, value in settings.items() for key, text in scenarios[name].environment(value).items()}


def plan_of(workload: Workload | None, settings: Settings, scenarios: Scenarios, *, device: str, seed: int) -> Plan:
    """The workload, or a script's own training, under these settings. The order of the settings does not matter."""
    batch_size = None if workload is None else workload.batch_size
    plan = Plan(workload=workload, device=device, seed=seed, batch_size=batch_size)
    for name in sorted(settings):
        plan = scenarios[name].apply(plan, settings[name])
    return plan


def with_seed(plan: Plan, seed: int) -> Plan:
    """The same plan from another seed: other initial weights, another order of the data."""
    return replace(plan, seed=seed)
