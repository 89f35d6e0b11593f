"""Place by place: what a setting wishes to write, by whom it is written, and the texts that come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from perftool.analysis.handover import TITLES, Codes
from perftool.patch.arguments import lay_loader_arguments, lay_optimizer_arguments
from perftool.patch.contexts import lay_contexts
from perftool.patch.copies import lay_copy_arguments
from perftool.patch.head import lay_setup, with_head
from perftool.patch.lines import lines_of
from perftool.patch.models import lay_models
from perftool.patch.rows import lay_datasets
from perftool.patch.source import Refused
from perftool.patch.work import Wish, Work

WRITERS: Mapping[str, Callable[[Sequence[Wish], Work], None]] = {
    "setup": lay_setup,
    "loader_arguments": lay_loader_arguments,
    "sampling": lay_datasets,
    "model": lay_models,
    "optimizer_arguments": lay_optimizer_arguments,
    "copy_arguments": lay_copy_arguments,
    "loss_context": lay_contexts,
}
_WITH_OTHERS = {"imports", "dataset"}  # written where what needs them is


def wish_of(codes: Codes, name: str, value: str) -> Wish:
    """What a setting writes. Raises Refused where that cannot be written into a script."""
    lines = lines_of(codes, name, value)
    if lines is None:
        raise Refused("no lines are known for it")
    variables = [one.partition("=")[0] for one in lines.get("environment", "").split()]
    if variables and all(one in lines.get("setup", "") for one in variables):
        del lines["environment"]  # the script sets them itself, early enough
    for place in lines.keys() - _WITH_OTHERS - set(WRITERS):
        raise Refused(_REASONS.get(place) or f"it goes {TITLES[place]}, and where that is in your script is not known")
    return lines


_REASONS = {
    "command": "it is an option of the command",
    "environment": "it has to be set before Python starts",
}


def lay(wishes: Sequence[Wish], work: Work) -> None:
    """Draft what the wishes ask for. Raises Refused for what cannot be written."""
    for wish in wishes:
        work.imports += wish.get("imports", "").splitlines()
    for place, writer in WRITERS.items():
        asked = [wish for wish in wishes if place in wish]
        if asked:
            writer(asked, work)


def texts(work: Work) -> dict[str, str]:
    """Path to new text of the files that change."""
    return {
        path: draft.source.mark + with_head(draft.applied(), draft, work.imports).code
        for path, draft in sorted(work.drafts.items())
        if not draft.is_empty
    }
