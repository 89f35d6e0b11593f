"""What all commands share: the user's own command after `--`, exit codes, and the options of those that measure."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from perftool.cli.output import fail
from perftool.cli.terminal import Terminal
from perftool.errors import BAD_INPUT, INTERRUPTED, PerftoolError
from perftool.jobs.options import BUDGET_S, CHECK_BUDGET_S, Options
from perftool.workload import DEFAULT_WORKLOAD

if TYPE_CHECKING:
    from perftool.jobs.job import Job
    from perftool.target import Target

BUDGET_MOST_S = 7 * 24 * 3600.0


class Commands(TyperGroup):
    """Everything after the first bare `--` is the user's own command, which no parser looks at. What a command raises
    on purpose becomes a sentence and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.obj = tuple(args[at + 1 :])
            args = args[:at]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PerftoolError as error:
            fail(str(error), error.exit_code)
        except KeyboardInterrupt as error:
            fail(str(error) or "interrupted", INTERRUPTED)


class Plain(TyperCommand):
    """A command that takes none of the user's."""

    def invoke(self, ctx: Any) -> Any:
        if ctx.obj is not None:
            fail(f"perftool {self.name} takes no command after --", BAD_INPUT)
        return super().invoke(ctx)


class Measuring(TyperCommand):
    """A command that takes one of the user's, `-- python train.py`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND ...]"]


class Comparing(Measuring):
    """Its variants may be named like options, since a script's options are settings: `--num-workers=2`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.ignore_unknown_options = ctx.obj is not None
        return super().parse_args(ctx, args)


def seconds(given: float | None) -> float | None:
    """A budget as given. Raises typer.BadParameter for one that is none, infinity among them."""
    if given is None or 1 <= given <= BUDGET_MOST_S:
        return given
    raise typer.BadParameter(f"it takes seconds, from 1 to {BUDGET_MOST_S:.0f} (a week), not {given:g}")


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the command line gives every measuring command."""

    workload: str | None
    command: tuple[str, ...] | None
    vary: list[str]
    device: str
    budget_s: float | None
    out: Path
    seed: int
    settings: list[str]
    scenario_files: list[Path]
    as_json: bool
    quiet: bool

    @property
    def target(self) -> Target | None:
        from perftool.jobs.inputs import target_of

        return target_of(self.workload, self.command, self.vary)

    def options(self, budget_s: float = BUDGET_S) -> Options:
        """budget_s: where none is given."""
        from perftool.jobs.inputs import parse_settings

        return Options(
            target=self.target or DEFAULT_WORKLOAD,
            device=self.device,
            budget_s=self.budget_s or budget_s,
            out=self.out,
            seed=self.seed,
            settings=parse_settings(self.settings),
            scenario_files=tuple(self.scenario_files),
            arguments=tuple(sys.argv[1:]),
        )

    def with_variants(self, variants: list[str]) -> tuple[Given, tuple[str, ...]]:
        """Without a workload, and what are variants, where the first word is none: `compare amp`."""
        from perftool.jobs.look import offered
        from perftool.scenario import names_variant

        if self.workload is None:
            return self, tuple(variants)
        apart = replace(self, workload=None)
        scenarios = offered(apart.target or DEFAULT_WORKLOAD, self.scenario_files)
        if names_variant(self.workload, scenarios):
            return apart, (self.workload, *variants)
        return self, tuple(variants)


# ---------------------------------------------------------------------------------------------- options that all have

DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N")]
ScenarioOption = Annotated[
    list[Path] | None, typer.Option("--scenario", metavar="FILE", help="a scenario file of your own")
]


def _given(
    context: typer.Context,
    workload: Annotated[
        str | None,
        typer.Argument(
            help=f"path/to/file.py:attribute or package.module:attribute  [default: {DEFAULT_WORKLOAD}]",
            show_default=False,
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="OPTION=A|B", help="make an option of the command a setting"),
    ] = None,
    device: DeviceOption = "auto",
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            callback=seconds,
            metavar="SECONDS",
            help=f"of measured blocks; start-up comes on top  [default: {BUDGET_S:g}, of check {CHECK_BUDGET_S:g}]",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="folder for the results")] = Path("results"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="of the data order, the weights and the drawn turns")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("-s", "--set", metavar="NAME=VALUE", help="move the baseline; @FILE takes a recommended.json"),
    ] = None,
    scenario: ScenarioOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON on stdout, and nothing else")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
) -> Given:
    return Given(
        workload=workload,
        command=context.obj,
        vary=vary or [],
        device=device,
        budget_s=budget,
        out=out,
        seed=seed,
        settings=settings or [],
        scenario_files=scenario or [],
        as_json=as_json,
        quiet=quiet,
    )


def measuring(app: typer.Typer, kind: type[Measuring] = Measuring) -> Callable[[Callable[..., Job[Any]]], None]:
    """Make a command out of a function that gets a Given and options of its own, and returns the job to run."""

    def add(make: Callable[..., Job[Any]]) -> None:
        make.__annotations__.pop("return")  # is for the type checker alone: importing jobs takes a while
        common = inspect.signature(_given, eval_str=True).parameters
        _, *own = inspect.signature(make, eval_str=True).parameters.values()

        def command(**values: Any) -> NoReturn:
            from perftool.jobs.failures import told
            from perftool.jobs.runner import run

            given = _given(**{name: values.pop(name) for name in common})
            with told():
                job = make(given, **values)
            raise typer.Exit(run(job, Terminal(as_json=given.as_json, quiet=given.quiet)).exit_code)

        context, workload, *others = common.values()
        parameters = [one.replace(kind=one.KEYWORD_ONLY) for one in (context, workload, *own, *others)]
        vars(command)["__signature__"] = inspect.Signature(parameters)  # which the parser goes by
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        app.command(make.__name__, cls=kind, help=make.__doc__)(command)

    return add
