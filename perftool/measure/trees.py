"""Import a project's modules from one tree of its files alone, where two revisions of it are measured side by side.

An editable install, a `.pth` file or a path in the user's code leads to one place for both. Here whatever lies in
another side's tree is looked up at the same place of this side's own, and what still came from there is told.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from perftool.measure.messages import Tree

INSTALLED = ("site-packages", "dist-packages")
SOURCE_FOLDERS = ("", "src")
TOOL = "perftool"  # measures both sides, so it is the same on both


class TreeError(Exception):
    """A module that is not this side's own; the text names it and the remedy."""


def enter(tree: Tree) -> None:
    """Work in the tree's folder from here on, and import from the tree. To be called before the project is imported."""
    os.chdir(tree.folder)
    sys.path[:] = [str(_moved(place, tree) or place) for place in sys.path]
    sys.path_importer_cache.clear()
    sys.meta_path.insert(0, _OwnTree(tree))


def modules_of(tree: Tree) -> list[str]:
    """The files of all project modules loaded so far, from the tree's root.

    Raises TreeError for one that was loaded from another side's tree, or from an installed copy of what the tree
    itself holds: then both sides would run the same code.
    """
    own = []
    for name, file in _files(sys.modules.copy().items()):
        package = name.partition(".")[0]
        if package == TOOL:
            continue
        if _inside(file, tree.root):
            own.append(str(Path(file).relative_to(tree.root)))
        elif any(_inside(file, other) for other in tree.others):
            raise TreeError(
                f"the module {name} was loaded from {file}, which belongs to the other side, so both would run the "
                "same code; import it by its name, or from a path relative to the file that needs it"
            )
        elif _installed(file) and (place := _in_tree(package, tree)) is not None:
            raise TreeError(
                f"{package} is installed ({file}), and {place} of this revision is not used, so both sides would run "
                f"the same code; install it editable (pip install -e) or remove it (pip uninstall {package})"
            )
    return sorted(own)


def _files(modules: Iterable[tuple[str, ModuleType]]) -> Iterable[tuple[str, str]]:
    for name, module in modules:
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and os.path.isabs(file):  # some of torch's modules have a name in place of a file
            yield name, os.path.normpath(file)


class _OwnTree:
    """A finder that asks all others, and moves what they find in another side's tree to this one's."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] == TOOL:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return self._own(name, spec)
        return None

    def _own(self, name: str, spec: ModuleSpec) -> ModuleSpec:
        places = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
        moved = None if places is None else [str(_moved(place, self._tree) or place) for place in places]
        if not spec.has_location or spec.origin is None:
            if moved != places:  # a namespace package: folders without a file of its own
                spec = ModuleSpec(name, None, is_package=True)
                spec.submodule_search_locations = moved
            return spec
        file = _moved(spec.origin, self._tree)
        if file is None:
            return spec
        if not file.exists():
            raise ModuleNotFoundError(
                f"{name} is not in this revision: {file.relative_to(self._tree.root)} is missing there; if git "
                "ignores it, bring it in with --link",
                name=name,
            )
        found = spec_from_file_location(name, file, submodule_search_locations=moved)
        return found or spec


def _moved(place: str, tree: Tree) -> Path | None:
    """The same place in this tree of what lies in another side's; None for all else."""
    for other in tree.others:
        if place and _inside(os.path.abspath(place), other):
            return Path(tree.root, os.path.relpath(os.path.abspath(place), other))
    return None


def _inside(file: str, root: str) -> bool:
    """Whether it is a project's file below the root, and not one of an environment that happens to lie there."""
    if not (file == root or file.startswith(root.rstrip(os.sep) + os.sep)):
        return False
    parts = Path(os.path.relpath(file, root)).parts
    environment = sys.prefix != root and sys.prefix.startswith(root.rstrip(os.sep) + os.sep)
    below_environment = environment and (file == sys.prefix or file.startswith(sys.prefix + os.sep))
    return not below_environment and not set(parts) & set(INSTALLED)


def _installed(file: str) -> bool:
    return bool(set(Path(file).parts) & set(INSTALLED))


def _in_tree(package: str, tree: Tree) -> Path | None:
    """Where the tree has a package or module of this name, at its root or where it is worked in."""
    for start in dict.fromkeys((tree.root, tree.folder)):
        for source in SOURCE_FOLDERS:
            folder = Path(start, source)
            for place in (folder / package / "__init__.py", folder / f"{package}.py"):
                if place.is_file():
                    return place
    return None
