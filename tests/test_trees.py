"""Each side's own code: editable installs, paths and files of the other side, in a Python of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from perftool.trees import edited, stamps
from tests.measure.test_worktree import git

SETUP = """
import sys
from perftool import trees
from perftool.trees import Tree
tree = Tree(root={own!r}, folder={own!r}, others=[{other!r}])
"""
SNEAKED = """
from importlib.util import module_from_spec, spec_from_file_location
trees.enter(tree)
spec = spec_from_file_location("sneaked", {place!r})
sys.modules["sneaked"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["sneaked"])
trees.modules_of(tree)
"""


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Two trees with a package `project` that says which one it is from."""
    for side in ("own", "other"):
        package = tmp_path / side / "src" / "project"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"SIDE = {side!r}\n")
        (package / "part.py").write_text(f"SIDE = {side!r}\n")
    return tmp_path / "own", tmp_path / "other"


def told(sides: tuple[Path, Path], code: str) -> str:
    """What the code prints, or the last line of its error."""
    own, other = map(str, sides)
    done = subprocess.run(
        [sys.executable, "-c", SETUP.format(own=own, other=other) + code], capture_output=True, text=True, timeout=60
    )
    return (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1]


def test_a_path_into_the_other_side_leads_to_ones_own(sides: tuple[Path, Path]) -> None:
    place = str(sides[1] / "src")
    code = f"sys.path.append({place!r}); trees.enter(tree); import project.part; print(project.part.SIDE)"
    assert told(sides, code) == "own"


def test_a_path_added_later_too(sides: tuple[Path, Path]) -> None:
    place = str(sides[1] / "src")
    code = (
        f"trees.enter(tree); sys.path.insert(0, {place!r}); import project; print(project.SIDE, trees.modules_of(tree))"
    )
    assert told(sides, code) == "own ['src/project/__init__.py']"


def test_the_worker_is_no_module_of_a_side_though_it_runs_as_main(sides: tuple[Path, Path]) -> None:
    """Where perftool's own repository is checked, with an editable install."""
    main = str(sides[1] / "perftool" / "measure" / "worker.py")
    code = f"""
from importlib.util import spec_from_file_location
this = sys.modules["__main__"]
this.__file__, this.__spec__ = {main!r}, spec_from_file_location("perftool.measure.worker", {main!r})
print(trees.modules_of(tree))
this.__spec__ = spec_from_file_location("another.script", {main!r})
trees.modules_of(tree)
"""
    assert "the module another.script was loaded from" in told(sides, code)


def test_a_path_through_a_link_leads_to_ones_own(sides: tuple[Path, Path], tmp_path: Path) -> None:
    """As a home folder that is a link."""
    (tmp_path / "alias").symlink_to(sides[1])
    place = str(tmp_path / "alias" / "src")
    code = f"sys.path.append({place!r}); trees.enter(tree); import project; print(project.SIDE, trees.modules_of(tree))"
    assert told(sides, code) == "own ['src/project/__init__.py']"


def test_a_file_of_the_other_side_loaded_through_a_link_is_an_error(sides: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(sides[1])
    assert "belongs to the other side" in told(sides, SNEAKED.format(place=str(tmp_path / "alias/src/project/part.py")))


def test_what_was_linked_into_a_tree_is_its_own(sides: tuple[Path, Path]) -> None:
    for name in ("__init__.py", "part.py"):
        (sides[0] / "src" / "project" / name).unlink()
    (sides[0] / "src" / "project").rmdir()
    (sides[0] / "src" / "project").symlink_to(sides[1] / "src" / "project")
    place = str(sides[1] / "src")
    code = f"sys.path.append({place!r}); trees.enter(tree); import project; print(project.SIDE, trees.modules_of(tree))"
    assert told(sides, code) == "other ['src/project/__init__.py']"


@pytest.mark.parametrize("inner", ["own", "other"])
def test_one_side_may_lie_within_the_other(inner: str, sides: tuple[Path, Path]) -> None:
    own, other = sides
    outer, moved = (other, own) if inner == "own" else (own, other)
    (outer / "tmp").mkdir()
    moved = moved.rename(outer / "tmp" / "tree")
    both = (moved, other) if inner == "own" else (own, moved)
    place = str(both[1] / "src")
    code = f"sys.path.append({place!r}); trees.enter(tree); import project.part; print(project.part.SIDE)"
    assert told(both, code) == "own"
    assert told(both, code.replace("project.part.SIDE", "trees.modules_of(tree)")) == (
        "['src/project/__init__.py', 'src/project/part.py']"
    )


def test_an_editable_finder_leads_to_ones_own(sides: tuple[Path, Path]) -> None:
    """As setuptools installs it: a finder with a mapping of names to places."""
    place = str(sides[1] / "src" / "project" / "__init__.py")
    code = f"""
from importlib.util import spec_from_file_location
class Editable:
    def find_spec(self, name, path=None, target=None):
        if name == "project":
            return spec_from_file_location(name, {place!r})
sys.meta_path.append(Editable())
trees.enter(tree)
import project.part
print(project.SIDE, project.part.SIDE)
"""
    assert told(sides, code) == "own own"


def test_a_module_that_the_side_lacks_is_an_error(sides: tuple[Path, Path]) -> None:
    (sides[0] / "src" / "project" / "part.py").unlink()
    place = str(sides[1] / "src")
    error = told(sides, f"sys.path.append({place!r}); trees.enter(tree); import project.part")
    # The package is the side's own, so the ordinary finder says it.
    assert "ModuleNotFoundError" in error
    (sides[0] / "src" / "project" / "__init__.py").unlink()
    error = told(sides, f"trees.enter(tree); sys.path.append({place!r}); import project")
    assert "--link" in error


def test_a_file_of_the_other_side_loaded_by_its_path_is_an_error(sides: tuple[Path, Path]) -> None:
    assert "belongs to the other side" in told(sides, SNEAKED.format(place=str(sides[1] / "src/project/part.py")))


def installed(tmp_path: Path, name: str, files: Sequence[str]) -> str:
    """Import a package of this name from where it is installed; then look whether that was right."""
    folder = tmp_path / "site-packages" / name
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_text("SIDE = 'installed'\n")
    place = str(folder.parent)
    return (
        f"sys.path.insert(0, {place!r}); trees.enter(tree); import {name}; print(trees.modules_of(tree), {name}.SIDE)"
    )


def test_an_installed_copy_of_what_the_tree_holds_is_an_error(sides: tuple[Path, Path], tmp_path: Path) -> None:
    assert "pip install -e" in told(sides, installed(tmp_path, "project", ["__init__.py"]))


@pytest.mark.parametrize("place", ["packages/core/src/core", "lib/core", "one/two/three/core"])
def test_also_where_the_tree_holds_it_deep_within(place: str, sides: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("__init__.py", "part.py", "new.py"):
        (sides[0] / place).mkdir(parents=True, exist_ok=True)
        (sides[0] / place / name).write_text("")
    git(sides[0], "init", "--quiet")
    git(sides[0], "add", ".")
    error = told(sides, installed(tmp_path, "core", ["__init__.py", "part.py", "old.py"]))
    assert "pip install -e" in error
    assert place in error


@pytest.mark.parametrize(
    ("within", "source"),
    [
        ("acme/models/__init__.py", "src/acme/models/__init__.py"),
        ("acme/models/__init__.py", "packages/models/src/acme/models/__init__.py"),
        ("plain/net.py", "src/plain/net.py"),
        ("plain/net.py", "lib/plain/net.py"),
    ],
)
def test_a_copy_in_a_package_without_a_file_of_its_own_is_found_by_its_modules(
    within: str, source: str, sides: tuple[Path, Path], tmp_path: Path
) -> None:
    for file in (sides[0] / source, tmp_path / "site-packages" / within):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    git(sides[0], "init", "--quiet")
    git(sides[0], "add", ".")
    name = within.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    place = str(tmp_path / "site-packages")
    error = told(sides, f"sys.path.append({place!r}); import {name}; trees.enter(tree); print(trees.modules_of(tree))")
    assert "pip install -e" in error
    assert source in error


def test_a_copy_on_the_path_is_one_though_it_is_not_installed(sides: tuple[Path, Path], tmp_path: Path) -> None:
    for name, code in (("__init__", ""), ("part", "")):
        (tmp_path / "lib" / "project").mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / "project" / f"{name}.py").write_text(code)
    place = str(tmp_path / "lib")
    run = f"sys.path.insert(0, {place!r}); trees.enter(tree); import project.part; print(trees.modules_of(tree))"
    assert "take that folder off PYTHONPATH" in told(sides, run)
    (tmp_path / "lib" / "project" / "other.py").write_text("")
    for file in ("one", "two", "three"):  # now it only has the name
        (tmp_path / "lib" / "project" / f"{file}.py").write_text("")
    assert told(sides, run) == "[]"


@pytest.mark.parametrize("file", ["tests/library/__init__.py", "src/project/library.py", "examples/library.py"])
def test_what_only_has_the_name_of_something_installed_is_no_copy(
    file: str, sides: tuple[Path, Path], tmp_path: Path
) -> None:
    (sides[0] / file).parent.mkdir(parents=True, exist_ok=True)
    (sides[0] / file).write_text("")
    git(sides[0], "init", "--quiet")
    git(sides[0], "add", ".")
    code = installed(tmp_path, "library", ["__init__.py", "one.py", "two.py"])
    assert told(sides, code) == "[] installed"


def test_a_package_of_the_name_of_perftools_own_is_no_copy(sides: tuple[Path, Path], tmp_path: Path) -> None:
    (sides[0] / "scenarios").mkdir()
    (sides[0] / "scenarios" / "__init__.py").write_text("")
    facts = tmp_path / "site-packages" / "perftool-9.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Name: perftool\nVersion: 9\n")
    (facts / "entry_points.txt").write_text("[perftool.scenarios]\nbuiltin = scenarios\n")
    assert told(sides, installed(tmp_path, "scenarios", ["__init__.py"])) == "[] installed"


def test_edits_show_in_the_stamps(tmp_path: Path) -> None:
    for name in ("same.py", "edited.py", "removed.py"):
        (tmp_path / name).write_text("old")
    files = ["edited.py", "removed.py", "same.py"]
    before = stamps(str(tmp_path), files)
    (tmp_path / "edited.py").write_text("newer")
    (tmp_path / "removed.py").unlink()
    assert edited(before, stamps(str(tmp_path), files)) == ["edited.py", "removed.py"]


def test_an_environment_within_the_tree_is_left_alone(sides: tuple[Path, Path]) -> None:
    installed = sides[1] / ".venv" / "lib" / "site-packages" / "library"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("SIDE = 'installed'\n")
    place = str(installed.parent)
    code = f"sys.path.append({place!r}); trees.enter(tree); import library; print(library.SIDE, trees.modules_of(tree))"
    assert told(sides, code) == "installed []"


def test_a_namespace_package_comes_from_ones_own(sides: tuple[Path, Path]) -> None:
    for side in sides:
        (side / "src" / "project" / "__init__.py").unlink()
    place = str(sides[1] / "src")
    code = f"trees.enter(tree); sys.path.append({place!r}); import project.part; print(project.part.SIDE)"
    assert told(sides, code) == "own"
