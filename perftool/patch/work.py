"""What is to be written and where: the wishes of settings, the places of a script, and the drafts of its files."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import PurePath

from perftool.patch.source import Draft, Refused, Source
from perftool.records import Site, SiteKind

Wish = Mapping[str, str]
"""What one setting writes: place to lines. Nothing, where it is what the script does by itself."""


class Script:
    """The places of a script, and its files below a root; each is read once."""

    def __init__(self, sites: Sequence[Site], read: Callable[[str], str], root: str) -> None:
        self.sites, self.root = sites, PurePath(os.path.normpath(root))
        self._read = read
        self.source = cache(self._source)

    def path(self, file: str) -> str:
        """A file from the root on, with slashes. Raises Refused for one that is not below it."""
        try:
            return PurePath(os.path.normpath(file)).relative_to(self.root).as_posix()
        except ValueError:
            raise Refused(f"{file} is not below {self.root}" if file else "no file of yours is there") from None

    def _source(self, path: str) -> Source:
        try:
            text = self._read(str(self.root / path))
        except (OSError, ValueError, SyntaxError) as error:
            raise Refused(f"{path} cannot be read: {error}") from None
        return Source(path, text)


class Work:
    """The drafts of a script's files for some of the wishes."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.drafts: dict[str, Draft] = {}
        self.notes: list[str] = []
        self.imports: list[str] = []  # those that any of the lines may need

    def used(self, kind: SiteKind, what: str) -> list[Site]:
        """The places of a kind that training uses. Raises Refused where there is none."""
        found = [site for site in self.script.sites if site.kind == kind]
        if not found:
            raise Refused(f"no {what} was seen")
        return found

    def by_hand(self, kind: SiteKind, what: str) -> list[Site]:
        """Those of a training whose loop is the user's. Raises Refused where a framework has it."""
        found = self.used(kind, what)
        framework = next((site.framework for site in found if site.framework), None)
        if framework:
            raise Refused(f"{framework} has a way of its own for it")
        return found

    def draft(self, file: str) -> Draft:
        path = self.script.path(file)
        if path not in self.drafts:
            self.drafts[path] = Draft(self.script.source(path))
        return self.drafts[path]

    @property
    def is_empty(self) -> bool:
        return all(draft.is_empty for draft in self.drafts.values())
