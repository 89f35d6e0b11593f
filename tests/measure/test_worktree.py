"""Revisions beside the working tree, with real git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from perftool.measure import worktree
from perftool.measure.worktree import RevisionError, both_sides


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose first revision, `old`, has a training, and whose working tree another one."""
    root = tmp_path / "repository"
    (root / "sub").mkdir(parents=True)
    git(root, "init", "--quiet", "--initial-branch", "main")
    (root / ".gitignore").write_text("data/\n")
    (root / "sub" / "train.py").write_text("old = 1\n")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    git(root, "tag", "old")
    (root / "sub" / "train.py").write_text("new = 1\n")
    (root / "sub" / "later.py").write_text("new = 1\n")
    (root / "new").mkdir()
    (root / "data").mkdir()
    (root / "data" / "rows").write_text("1\n")
    monkeypatch.chdir(root)
    return root


def worktrees(root: Path) -> list[str]:
    return git(root, "worktree", "list").splitlines()


def test_each_side_has_its_own_files(repository: Path) -> None:
    with both_sides("sub/train.py:mine", "old") as (before, now):
        assert before.folder is not None
        assert now.folder is not None
        assert (Path(before.folder) / "sub/train.py").read_text() == "old = 1\n"
        assert (Path(now.folder) / "sub/train.py").read_text() == "new = 1\n"
        assert before.reference == now.reference == "sub/train.py:mine"
        assert before.commit == git(repository, "rev-parse", "old")
        assert now.dirty
        assert len(worktrees(repository)) == 2
    assert len(worktrees(repository)) == 1
    assert not Path(before.folder).exists()


def test_within_a_subdirectory(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository / "sub")
    with both_sides("train.py:mine", "old") as (before, now):
        assert before.folder is not None
        assert Path(before.folder).name == "sub"
        assert now.folder == str(repository / "sub")
        assert before.reference == "train.py:mine"


def test_from_outside_by_its_path(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with both_sides(f"{repository}/sub/train.py:mine", "old") as (before, now):
        assert before.folder is not None
        assert (Path(before.folder) / before.reference.partition(":")[0]).read_text() == "old = 1\n"
        assert now.folder == str(repository / "sub")


def test_it_is_removed_whatever_happens(repository: Path) -> None:
    with pytest.raises(KeyboardInterrupt), both_sides("sub/train.py:mine", "old"):
        raise KeyboardInterrupt
    assert len(worktrees(repository)) == 1


def test_what_a_killed_check_left_is_removed_by_the_next(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / f"{worktree.PREFIX}999999999-x" / "tree"
    git(repository, "worktree", "add", "--quiet", "--detach", str(left), "old")
    own = tmp_path / f"{worktree.PREFIX}{os.getpid()}-x" / "tree"  # of a check that is alive
    git(repository, "worktree", "add", "--quiet", "--detach", str(own), "old")
    with both_sides("sub/train.py:mine", "old"):
        assert not left.exists()
        assert own.exists()


def test_hooks_do_not_run(repository: Path) -> None:
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch hooked\n")
    hook.chmod(0o755)
    with both_sides("sub/train.py:mine", "old") as (before, _):
        assert before.root is not None
        assert not (Path(before.root) / "hooked").exists()


def test_a_surrounding_git_does_not_lead_elsewhere(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    with both_sides("sub/train.py:mine", "old") as (before, _):
        assert before.commit is not None


def test_linked_data_is_found_in_the_revision(repository: Path) -> None:
    with both_sides("sub/train.py:mine", "old", ["data"]) as (before, _):
        assert before.root is not None
        assert (Path(before.root) / "data" / "rows").read_text() == "1\n"
    assert (repository / "data" / "rows").exists()  # only the link went


@pytest.mark.parametrize(
    ("reference", "revision", "links", "words"),
    [
        ("sub/train.py:mine", "nonsense", [], "git knows no such revision"),
        ("sub/train.py:mine", "--help", [], "git knows no such revision"),
        ("sub/later.py:mine", "old", [], "there is no file sub/later.py at old"),
        ("sub/train.py:mine", "old", ["nothing"], "there is no"),
        ("sub/train.py:mine", "old", [".."], "must lie within"),
        ("sub/train.py:mine", "old", ["sub"], "has it itself"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(
    reference: str, revision: str, links: list[str], words: str, repository: Path
) -> None:
    with pytest.raises(RevisionError, match=words), both_sides(reference, revision, links):
        pass
    assert len(worktrees(repository)) == 1


def test_a_folder_that_the_revision_lacks(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository / "new")
    with pytest.raises(RevisionError, match="no folder new at old"), both_sides("package.module:mine", "old"):
        pass


def test_outside_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(RevisionError, match="no git repository"), both_sides("train.py:mine", "main"):
        pass
