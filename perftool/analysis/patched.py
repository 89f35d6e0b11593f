"""Whether the patched script, and not only the interposed one, is as fast as recommended."""

from __future__ import annotations

from msgspec.structs import replace

from perftool.analysis.pairs import pair_effects
from perftool.analysis.stats import launch_effects
from perftool.analysis.summary import Summaries
from perftool.analysis.verdict import LOOKS, comparison
from perftool.records import PATCHED, Comparison, PatchAdvice, Session

FILE = "recommended.patch"


def patch_advice(session: Session, interposed: int, metric: str, summaries: Summaries) -> PatchAdvice | None:
    """What the patch of a session is worth by a metric; None where it has none, as of a workload.

    interposed: the variant that has the same settings laid over the script.
    """
    patch = session.patch
    if patch is None:
        return None
    advice = PatchAdvice(
        file=None,
        root=patch.root,
        files=list(patch.files),
        written=patch.written,
        already=patch.already,
        unwritten=patch.unwritten,
        notes=patch.notes,
        confirmed=None,
    )
    if patch.variant is None:
        return advice
    launches = [launch for launch in session.launches if launch.variant == patch.variant]
    ran = summaries.of(patch.variant)
    if ran.status != "measured":
        # What does something else than it should must not be applied; what could not be started may be right.
        if any(one.status == "failed" or (one.engaged is not None and not one.engaged.ok) for one in launches):
            return replace(advice, confirmed="broken", reason=ran.reason)
        return replace(advice, file=FILE, confirmed="not_measured", reason=ran.reason)
    against = ran.versus_baseline.get(metric)
    beside = _between(session, patch.variant, interposed, metric)
    if against is None or against.launches < min(LOOKS):
        return replace(advice, file=FILE, confirmed="not_measured", reason="too few of its launches were measured")
    holds = against.verdict == "better" and (beside is None or beside.verdict != "worse")
    return replace(
        advice,
        file=FILE,
        confirmed="confirmed" if holds else "not_confirmed",
        versus_baseline=against,
        versus_interposed=beside,
    )


def _between(session: Session, patched: int, interposed: int, metric: str) -> Comparison | None:
    """The patched script against the interposed one; None where they never took turns."""
    matrix = pair_effects(session, metric, [patched], stages=[PATCHED], against=interposed)
    [effect] = launch_effects(matrix.d, matrix.half_widths)
    return None if effect is None else comparison(metric, effect, int(matrix.pairs[0].sum()))
