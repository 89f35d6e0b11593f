"""Whether the files of a check's sides stay as they are while they are measured: each launch imports them anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from perftool.records import Side
from perftool.trees import Stamp, edited, stamps

EDITED_MOST = 3  # files that a warning names


class Edits:
    """The files of each side, as they were when they were noted."""

    def __init__(self, sides: Sequence[Side]) -> None:
        """sides: one per variant; none where there is no check."""
        self._sides = sides
        self._noted: dict[int, tuple[str, dict[str, Stamp | None]]] = {}  # variant to its root and its files

    def note(self, variant: int, modules: Iterable[str]) -> None:
        """Remember how these files of a side are now."""
        root = self._sides[variant].root if self._sides else None
        if root is not None:
            self._noted[variant] = root, stamps(root, modules)

    def notice(self, variant: int) -> str | None:
        """A warning where files of a side have been edited since they were noted; once."""
        if variant not in self._noted:
            return None
        root, before = self._noted[variant]
        files = edited(before, stamps(root, before))
        if not files:
            return None
        del self._noted[variant]
        told = ", ".join(files[:EDITED_MOST]) + (" and others" if len(files) > EDITED_MOST else "")
        return (
            f"files of the {self._sides[variant].name} were edited while it was measured ({told}), so its numbers are "
            "of more than one program; check again, and leave the files alone meanwhile"
        )
