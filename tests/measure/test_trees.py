"""Each side's own code: editable installs, paths and files of the other side, in a Python of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SETUP = """
import sys
from perftool.measure import trees
from perftool.measure.messages import Tree
tree = Tree(root={own!r}, folder={own!r}, others=[{other!r}])
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
    place = str(sides[1] / "src" / "project" / "part.py")
    code = f"""
from importlib.util import module_from_spec, spec_from_file_location
trees.enter(tree)
spec = spec_from_file_location("sneaked", {place!r})
sys.modules["sneaked"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["sneaked"])
trees.modules_of(tree)
"""
    assert "belongs to the other side" in told(sides, code)


def test_an_installed_copy_of_what_the_tree_holds_is_an_error(sides: tuple[Path, Path], tmp_path: Path) -> None:
    installed = tmp_path / "site-packages" / "project"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("SIDE = 'installed'\n")
    place = str(installed.parent)
    error = told(sides, f"sys.path.insert(0, {place!r}); trees.enter(tree); import project; trees.modules_of(tree)")
    assert "pip install -e" in error


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
