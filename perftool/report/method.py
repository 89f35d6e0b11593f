"""How it was measured: by what procedure, how sure that makes the verdicts, on which machine, and what was left out."""

from __future__ import annotations

from itertools import pairwise
from shlex import join

from perftool import units
from perftool.analysis.fitness import rate
from perftool.analysis.verdict import ALPHA
from perftool.records import Fitness, Machine, Session, Summary
from perftool.report import checks, scripts
from perftool.report.wording import Pairs, basis, detectable, has_variants, is_alone, is_for_later, span, throughput_of


def how(summary: Summary) -> str:
    """How it was measured, in short."""
    return f"{_how(summary)} {scripts.how()}" if summary.script is not None else _how(summary)


def _how(summary: Summary) -> str:
    if is_for_later(summary) or (summary.check is not None and summary.check.stored):
        later = "What a later check compares" if summary.check is None else "What is compared with what was stored"
        return (
            "The workload ran in fresh processes that took turns with calibration kernels, which say how fast the "
            f"machine is at this hour. {later} is the ratio of the two."
        )
    if summary.check is not None:
        before = units.counted(summary.check.modules_against, "file")
        now = units.counted(summary.check.modules_now, "file")
        files = f": {before} of {summary.check.against}, {now} of the {summary.check.now}"
        return (
            "Both revisions ran in fresh processes that took turns, one running at a time, in a drawn order, each with "
            f"its own code{files if summary.script is None else ''}. Ratios are from blocks of the same round; "
            "intervals treat launches as a random effect."
        )
    if is_alone(summary):
        plain = "The training ran in fresh processes, one at a time, each warmed up before anything counted."
        if summary.explained is None:
            return plain
        return f"{plain} What explains comes from blocks that were watched, what is timed from plain ones between them."
    launches = [found.launches for one in summary.variants if (found := throughput_of(one))]
    times = span(launches) if launches else "0"
    return (
        f"Each variant ran in {times} fresh {'process' if times == '1' else 'processes'} that took turns with the "
        "baseline's, one running at a time, in a drawn order. Ratios are from blocks of the same round; intervals "
        "treat launches as a random effect."
    )


def how_sure(summary: Summary) -> list[str]:
    """On what the verdicts on throughput rest: intervals, pairs, launches, and what would have been seen."""
    if summary.check is not None:
        return checks.how(summary.check)
    if is_for_later(summary):
        return checks.for_later_how(summary)
    advice = summary.recommendation
    if advice is not None:
        won = [one for one in summary.variants if one.settings == advice.settings]
        comparisons = [found for one in won if (found := throughput_of(one))]
        first = (
            f"{units.share(advice.confidence)} interval, from {units.counted(advice.pairs, 'pair')} of blocks in "
            f"{units.counted(advice.launches, 'fresh launch', 'fresh launches')} of each, which had no part in the "
            "choice."
        )
    else:
        comparisons = [found for one in summary.variants if (found := throughput_of(one))]
        first = f"{units.share(1 - ALPHA)} intervals that hold for all variants together, from {basis(comparisons)}."
    if not comparisons:
        return []
    seen = [one.smallest_detectable for one in comparisons if one.smallest_detectable is not None]
    margin = max(one.margin for one in comparisons)
    limits = f"Effects below {units.share(margin)} do not count"
    if advice is not None and len(advice.settings) > 1:
        limits += f", nor does a setting that brings less than {units.share(summary.goal.price)} beside the others"
    return [first, f"{limits}; {detectable(max(seen))}." if seen else f"{limits}."]


# -------------------------------------------------------------------------------------------------------- the place


def circumstances(summary: Summary) -> Pairs:
    """Where, when and how it was measured."""
    machine = summary.machine
    changed = {True: " with changes", False: "", None: ""}[machine.git_dirty]
    lines = [
        ("machine", machine_text(machine)),
        (
            "measured",
            f"{summary.created_at}, seed {summary.seed}; {time_text(summary)}",
        ),
        ("again", again(summary)),
    ]
    if summary.fitness is not None:
        lines.append(("it was", fitness_text(summary.fitness)))
    if machine.git_commit is not None:
        lines.append(("commit", f"{machine.git_commit}{changed}"))
    if machine.environment:
        lines.append(("environment", environment_text(machine)))
    return lines


LEAST_TOLD_S = 0.5


def time_text(summary: Summary) -> str:
    """How long the blocks were, and what the rest of the time went into."""
    blocks = f"{units.duration(summary.measured_s * 1e9)} of blocks"
    wall = summary.wall
    if wall is None or not wall.total_s:
        return blocks
    rest = {
        "processes starting": wall.starting_s,
        "warming up": wall.warming_s,
        "steps between blocks": wall.turns_s - summary.measured_s,
    }
    rest["other work"] = wall.total_s - wall.starting_s - wall.warming_s - wall.turns_s  # losses compared, between
    parts = [f"{units.duration(seconds * 1e9)} {name}" for name, seconds in rest.items() if seconds >= LEAST_TOLD_S]
    told = f"{blocks} in {units.duration(wall.total_s * 1e9)} of measuring"
    return f"{told}; the rest: {', '.join(parts)}" if parts else told


def again(summary: Summary) -> str:
    """The command that measures the same once more."""
    return join(["perftool", *summary.arguments])


def going_on(summary: Summary, further_s: int) -> str:
    """The command that goes on with a search for so much longer: a command of the user's own is given again, with what
    is varied of it."""
    words = list(summary.arguments)
    at = words.index("--") if "--" in words else len(words)
    varied: list[str] = []
    for word, following in pairwise([*words[:at], ""]):
        if word == "--vary":
            varied += [word, following]
        elif word.startswith("--vary="):
            varied.append(word)
    folder = summary.folder or "."
    return join(["perftool", "tune", "--resume", folder, "--budget", str(max(1, further_s)), *varied, *words[at:]])


def machine_text(machine: Machine) -> str:
    """The machine in a line."""
    return (
        f"{machine.device_name or machine.cpu_model}, {units.counted(machine.usable_cores, 'core')}, "
        f"{units.size(machine.memory_bytes)}; torch {machine.torch_version}, Python {machine.python_version}"
    )


def fitness_text(fitness: Fitness) -> str:
    """How fit the machine was, and why not better."""
    rating = rate(fitness)
    return f"{rating.rating} for measuring" + (f": {'; '.join(rating.reasons)}" if rating.reasons else "")


def environment_text(machine: Machine) -> str:
    """The variables found set that bear on speed."""
    return (
        ", ".join(f"{name}={text}" for name, text in machine.environment.items()) or "nothing set that bears on speed"
    )


def not_tested(session: Session, summary: Summary) -> Pairs:
    """What the session says nothing about: settings that were left as they are, other places, other trainings."""
    tried = {name for variant in session.variants for name in variant}
    told = {name for one in summary.rejected for name in one.settings}
    left = [name for name in session.defaults if name not in tried | told]
    rows = []
    if left and has_variants(summary):
        rows.append(("left as they are", ", ".join(left)))
    if session.goal.keep:
        rows.append(("kept on request", ", ".join(session.goal.keep)))
    rows.append(("other machines", "absolute times are of this machine and this hour; measure again elsewhere"))
    numerics = [name for name, changes in session.scenario_changes.items() if changes != "speed" and name in tried]
    if numerics and summary.parity is None:
        rows.append(("what it learns", f"whether it trains the same with {', '.join(numerics)} was not looked at"))
    elif summary.parity is not None:
        rows.append(("what it learns", "losses were compared over short runs; the validation metric is yours to watch"))
    return rows
