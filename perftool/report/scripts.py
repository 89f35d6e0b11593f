"""The sentences of a script: what a step of it is, what its loop does beside steps, its ranks, and how to train with
the advice at once."""

from __future__ import annotations

from shlex import join

from perftool import units
from perftool.analysis.loop import whole_loop
from perftool.records import LoopPart, ScriptReport, Summary
from perftool.report.wording import Pairs

PARTS_SHOWN = 3  # of what the loop does beside steps
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
TITLE = "The script"
USE_TITLE = "Train with it at once"


def lines(script: ScriptReport | None) -> Pairs:
    """What a step is and how that was found, what else the loop does, and the time of each of several ranks."""
    if script is None:
        return []
    told = [("a step", step_text(script))]
    if script.other_processes or script.other_threads:
        told.append(("beside it", others_text(script)))
    if script.step_share is not None:
        told.append(("its loop", loop_text(script)))
    return [*told, *([("ranks", ranks_text(script))] if script.ranks else [])]


def step_text(script: ScriptReport) -> str:
    """What ends a step: "ends with Adam.step()"."""
    rule, names = script.rule, script.optimizers
    if rule is None:
        return "none was seen"
    match rule.boundary:
        case "mark":
            return "ends where perftool.step() is called"
        case "backward":
            return "ends with backward: the script updates by hand"
    if rule.last is not None and rule.last < len(names):
        return f"ends with {names[rule.last]}.step(), the {_ordinal(rule.last)} of {len(names)} optimizers"
    stepped = " and ".join(f"{name}.step()" for name in dict.fromkeys(names))
    return f"ends with {stepped}" if rule.every == 1 else f"ends with each {_ordinal(rule.every - 1)} {stepped}"


def others_text(script: ScriptReport) -> str:
    """That what is told is not of all that trains."""
    others = [*(["processes"] if script.other_processes else []), *(["threads"] if script.other_threads else [])]
    return f"other {' and '.join(others)} train, too; all that is told here is of the one that stepped first"


def _ordinal(index: int) -> str:
    return ORDINALS[index] if index < len(ORDINALS) else f"{index + 1}th"


def loop_text(script: ScriptReport) -> str:
    """ "steps take 72 % of it; evaluation at train.py:88 25 %, checkpoint at train.py:95 3 %", as far as was seen."""
    if not script.beside:
        return f"nothing but steps came in the {units.count(script.steps)} timed; what comes more rarely is not known"
    shown, more = script.beside[:PARTS_SHOWN], script.beside[PARTS_SHOWN:]
    others = [LoopPart(name="others", share=sum(one.share for one in more))] if more else []
    parts = ", ".join(f"{one.name} {units.share(one.share)}" for one in [*shown, *others])
    return f"steps take {units.share(script.step_share)} of it; {parts} (estimated)"


def ranks_text(script: ScriptReport) -> str:
    """The step of each rank, and which one the others wait for."""
    times = ", ".join(
        f"rank {one.rank} {units.duration(one.step_ns)} a step, {units.duration(one.alone_ns)} of it before backward"
        for one in script.ranks
    )
    if script.last_rank is None:
        return f"{times}; none is surely slower than the others"
    return (
        f"{times}; rank {script.last_rank} is slower: it comes {units.duration(script.lag_ns)} after the others to the "
        "backward pass, where they wait for it"
    )


def whole_loop_text(summary: Summary, speedup: float) -> str:
    """What the whole loop gains where its steps are so many times faster; "" where it is steps alone."""
    script = summary.script
    if script is None or script.step_share is None or not script.beside:
        return ""
    gained = units.ratio(whole_loop(script.step_share, speedup))
    steps = units.share(script.step_share)
    return f"The whole loop, of which steps take about {steps}, gains about {gained} if nothing else gets faster."


def how() -> str:
    """How a script is measured, beside what is the same for all trainings."""
    return "The script ran unchanged, and stood still at the end of a step while another process had its turn."


def use(summary: Summary) -> str:
    """The command that trains with the advice; "" where there is none to give."""
    if summary.script is None or summary.recommendation is None or summary.folder is None:
        return ""
    return f"{join(['perftool', 'run', '-s', f'@{summary.folder}/recommended.json'])} -- {summary.workload}"
