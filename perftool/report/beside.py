"""The sentences and table cells of two sessions side by side."""

from __future__ import annotations

from perftool import units
from perftool.records import Beside, Comparison, SideBySide, Summary
from perftool.report import answers, profiles, wording

TRAVELS = (
    "Ratios and shares may be read across the two: each is of one session, whose blocks took turns. Times, rates and "
    "memory may not: the sessions were not paired, so what differs can be the machine or the hour."
)
CHANGE_RULE = "More and less: the two intervals do not overlap. Alike: they do, so no difference is seen."
HEADINGS = ("settings", "first", "second", "gain")
OWN_TITLE = "Each session's own figures, which were not paired"
DIFFERING_TITLE = "What differs between them"
SHARES_TITLE = "Shares of the time"
DIFFERING_HEADINGS = ("differs", "first", "second")
OWN_HEADINGS = ("baseline", "first", "second")
SHARE_HEADINGS = ("share", "first", "second")


def title(found: SideBySide) -> str:
    """Of the table of variants."""
    return units.told_in("Samples per second, each over its own baseline's", found.first.sample_unit)


def headline(found: SideBySide) -> str:
    """What two sessions come to, in a sentence."""
    workload = found.first.workload
    if wording.is_alone(found.first):
        return f"{workload}: two profiles side by side"
    both = [one for one in found.variants if one.first is not None and one.second is not None]
    if not both:
        return f"{workload}: the two sessions have no measured variant in common"
    changed = [one for one in both if one.change in ("more", "less")]
    variants = units.counted(len(both), "variant")
    if not changed:
        return f"{workload}: {variants} in both sessions, and no difference between their gains is seen"
    differ = "the gain of 1 differs" if len(changed) == 1 else f"the gains of {units.count(len(changed))} differ"
    return f"{workload}: {variants} in both sessions, and {differ}"


def advice(found: SideBySide) -> wording.Pairs:
    """What each session advises."""
    return [("first", answers.answer(found.first)), ("second", answers.answer(found.second))]


def warnings(found: SideBySide) -> list[str]:
    """Those of both sessions, each with its place."""
    told = ("first", found.first), ("second", found.second)
    return [f"{place} session: {warning}" for place, one in told for warning in answers.warnings(one)]


def rows(found: SideBySide) -> list[tuple[str, str, str, str]]:
    """Each variant in both sessions, under HEADINGS."""
    return [
        (wording.settings_text(one.settings), _cell(one.first), _cell(one.second), _gains(one))
        for one in found.variants
    ]


def _cell(comparison: Comparison | None) -> str:
    return "not measured" if comparison is None else wording.comparison_text(comparison)


def _gains(found: Beside) -> str:
    """Whether a variant gains more in the second session."""
    return found.change or ("unknown" if found.first and found.second else "")


def lost(found: SideBySide) -> wording.Pairs:
    """The variants that a session tried and could not measure, with the reason."""
    told = (("first", found.first), ("second", found.second))
    return [(name, f"{place} session: {reason}") for place, one in told for name, reason in wording.lost(one)]


def own_rows(found: SideBySide) -> list[tuple[str, str, str]]:
    """Absolute figures of the two baselines, under OWN_HEADINGS."""

    def figures(summary: Summary) -> tuple[str, ...]:
        one, unit = summary.baseline, summary.sample_unit
        step_ns = one.step_ns.p50 if one.step_ns else None
        return (
            units.rate(one.samples_per_second, unit),
            units.duration(step_ns),
            units.size(wording.peak_memory_bytes(one)),
        )

    names = ("throughput", "median step", "peak memory")
    return list(zip(names, figures(found.first), figures(found.second), strict=True))


def share_rows(found: SideBySide) -> list[tuple[str, str, str]]:
    """Shares of two profiles, under SHARE_HEADINGS."""
    first, second = (_shares(one) for one in (found.first, found.second))
    return [(name, first.get(name, "none"), second.get(name, "none")) for name in {**first, **second}]


def _shares(summary: Summary) -> dict[str, str]:
    phases = summary.explained.phases if summary.explained is not None else []
    uneven = profiles.jitter_lines(summary.baseline.jitter)[:2] if summary.baseline.jitter is not None else []
    causes = summary.explained.causes if summary.explained is not None else []
    beside = summary.script.beside if summary.script is not None else []
    return {
        **{f"{one.name}, of the loop": units.share(one.share) for one in beside},
        **{one.name: units.share(one.share) for one in phases},
        **{name.replace(",", ""): text for name, text in uneven},
        **{f"lost to {one.cause}": units.share(one.share_of_time) for one in causes},
    }


def differing_rows(found: SideBySide) -> list[tuple[str, str, str]]:
    """What is not the same of the two, under DIFFERING_HEADINGS."""
    return [(one.name, one.first, one.second) for one in found.differing]
