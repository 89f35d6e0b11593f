"""Import a project's modules from one tree of its files alone, where two revisions of it are measured side by side.

An editable install, a `.pth` file or a path in the user's code leads to one place for both. Here whatever lies in
another side's tree is looked up at the same place of this side's own, and what still came from there is told.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import spec_from_file_location
from pathlib import Path, PurePosixPath
from types import ModuleType

from perftool.scenario import ENTRY_POINTS

INSTALLED = ("site-packages", "dist-packages")
SOURCE_FOLDERS = ("", "src")
MAIN = ("__main__", "__mp_main__")
TOOL = "perftool"  # measures both sides, so it is the same on both
COPY_SHARE = 0.5  # of an installed package's files that its source has, too; one that only shares the name has few

Stamp = tuple[int, int]  # when a file was last changed, in ns, and its size


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Where one side's modules come from, and where they must not. All absolute."""

    root: str
    folder: str  # within the root, to work in
    others: list[str]  # roots of the other sides


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
    provided = _provided()
    looked_up: set[str] = set()
    for name, file in _files(sys.modules.copy().items()):
        package = name.partition(".")[0]
        if package == TOOL:
            continue
        found = _owner(file, tree)
        if found is not None:
            root, within = found
            if root != _real(tree.root):
                raise TreeError(
                    f"the module {name} was loaded from {file}, which belongs to the other side, so both would run "
                    "the same code; import it by its name, or from a path relative to the file that needs it"
                )
            own.append(within)
        elif package not in provided and package not in sys.stdlib_module_names:
            # A namespace package has no file of its own to be looked up by: each of its modules is.
            whole = name if getattr(sys.modules.get(package), "__file__", None) is None else package
            if whole in looked_up:
                continue
            looked_up.add(whole)
            installed = _installed(file)
            place = _source_of(whole, tree, surely=installed)
            if place is not None:
                remedy = (
                    f"install it editable (pip install -e) or remove it (pip uninstall {package})"
                    if installed
                    else "take that folder off PYTHONPATH"
                )
                raise TreeError(
                    f"{whole} was loaded from a copy ({file}), and {place} of this revision is not used, so both "
                    f"sides would run the same code; {remedy}"
                )
    return sorted(set(own))  # multiprocessing knows a script by a second name


def stamps(root: str, files: Iterable[str]) -> dict[str, Stamp | None]:
    """What tells that a file was edited, for each of these paths from the root; None for one that is not there."""
    found: dict[str, Stamp | None] = {}
    for file in files:
        try:
            status = os.stat(os.path.join(root, file))
            found[file] = (status.st_mtime_ns, status.st_size)
        except OSError:
            found[file] = None
    return found


def edited(before: Mapping[str, Stamp | None], now: Mapping[str, Stamp | None]) -> list[str]:
    """The files that are no longer what they were."""
    return sorted(file for file, stamp in before.items() if now.get(file) != stamp)


def _files(modules: Iterable[tuple[str, ModuleType]]) -> Iterable[tuple[str, str]]:
    for name, module in modules:
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and os.path.isabs(file):  # some of torch's modules have a name in place of a file
            spec = getattr(module, "__spec__", None)
            # The worker is perftool's, though it runs as a main module.
            yield spec.name if name in MAIN and spec is not None else name, os.path.normpath(file)


def _provided() -> set[str]:
    """Top-level packages that came with perftool: a project may well have one of the same name."""
    try:
        points = distribution(TOOL).entry_points.select(group=ENTRY_POINTS)
    except PackageNotFoundError:  # run from its source
        return set()
    return {point.module.partition(".")[0] for point in points}


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
                "ignores it or it lies in a submodule, bring it in with --link",
                name=name,
            )
        found = spec_from_file_location(name, file, submodule_search_locations=moved)
        return found or spec


def _moved(place: str, tree: Tree) -> Path | None:
    """The same place in this tree of what lies in another side's; None for all else."""
    found = _owner(place, tree) if place else None
    if found is None or found[0] == _real(tree.root):
        return None
    return Path(tree.root, found[1])


def _owner(place: str, tree: Tree) -> tuple[str, str] | None:
    """The root that a place lies in, with links in it followed, and the path from there.

    The path as it was given comes first: what was linked into a tree is its own, wherever the link leads.
    """
    given = os.path.abspath(place)
    for path in (given, _real(given)):
        roots = [root for root in map(_real, (tree.root, *tree.others)) if _inside(path, root)]
        if roots:
            root = max(roots, key=len)  # a revision may be checked out within the working tree: the innermost counts
            return root, os.path.relpath(path, root)
    return None


def _real(path: str) -> str:
    """As os.path.realpath, which would look at each folder again for each of thousands of modules."""
    folder, name = os.path.split(path)
    real = os.path.join(_real_folder(folder), name)
    return os.path.realpath(real) if os.path.islink(real) else real


_real_folder = cache(os.path.realpath)


@cache
def _environments() -> frozenset[str]:
    """Where Python and what is installed for it lie, as they are called and as they are."""
    places = (sys.prefix, sys.base_prefix)
    return frozenset([*map(os.path.abspath, places), *map(os.path.realpath, places)])


def _inside(file: str, root: str) -> bool:
    """Whether it is a project's file below the root, and not one of an environment that happens to lie there."""
    if not _below(file, root):
        return False
    environments = (one for one in _environments() if one != root and _below(one, root))
    return not any(_below(file, one) for one in environments) and not _installed(os.path.relpath(file, root))


def _below(file: str, folder: str) -> bool:
    return file == folder or file.startswith(folder.rstrip(os.sep) + os.sep)


def _installed(file: str) -> bool:
    return bool(set(Path(file).parts) & set(INSTALLED))


def _source_of(name: str, tree: Tree, *, surely: bool) -> Path | None:
    """Where the tree has a package or module, at its root, where it is worked in, or anywhere else. surely: at the
    first two its name is enough; else it has to have the same files."""
    path, module = name.replace(".", "/"), sys.modules.get(name)
    for start in dict.fromkeys((tree.root, tree.folder)):
        for source in SOURCE_FOLDERS:
            folder = Path(start, source)
            for place in (folder / path / "__init__.py", folder / f"{path}.py"):
                if place.is_file() and (surely or _is_copy(module, place)):
                    return place
    if "." in name:
        ends = (f"/{path}/__init__.py", f"/{path}.py")
        elsewhere = [file for file in _python_files(tree.root) if str(file).endswith(ends)]
    else:
        elsewhere = _tracked(tree.root).get(name, [])
    for place in (Path(tree.root, one) for one in elsewhere):
        if place.is_file() and _is_copy(module, place):
            return place
    return None


def _is_copy(module: ModuleType | None, source: Path) -> bool:
    """Whether what is installed can come from there: `tests/numpy/__init__.py` is not numpy."""
    file = getattr(module, "__file__", None)
    if file is None or hasattr(module, "__path__") != (source.name == "__init__.py"):
        return False
    return source.name != "__init__.py" or _same_files(Path(file).parent, source.parent)


def _same_files(installed: Path, source: Path) -> bool:
    files = [file.relative_to(installed) for file in installed.rglob("*.py")]
    return sum((source / file).is_file() for file in files) >= COPY_SHARE * len(files)


@cache
def _python_files(root: str) -> list[PurePosixPath]:
    from perftool.git import tracked  # late: start-up is measured

    return tracked(root, "*.py")


@cache
def _tracked(root: str) -> Mapping[str, list[PurePosixPath]]:
    """Top-level packages (their __init__.py) and modules by name, wherever in the tree they lie."""
    files = _python_files(root)
    packages = {str(file.parent) for file in files if file.name == "__init__.py"}
    found: dict[str, list[PurePosixPath]] = {}
    for file in files:
        whole = file.parent if file.name == "__init__.py" else file
        if str(whole.parent) not in packages:
            found.setdefault(whole.name.removesuffix(".py"), []).append(file)
    return found
