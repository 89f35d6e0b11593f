"""Revisions beside the working tree, with real git."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from time import monotonic, sleep

import pytest

from perftool.git import RevisionError, tracked
from perftool.measure import worktree
from perftool.measure.worktree import both_sides
from perftool.target import Script


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


def test_a_command_runs_in_the_same_folder_of_each_side(repository: Path) -> None:
    command = ("python", "train.py", "--data", str(repository / "data"), "--out", "/elsewhere")
    script = Script(command=command, folder=str(repository / "sub"))
    with both_sides(script, "old", ["../data"]) as (before, now):
        assert before.root is not None
        assert before.folder == f"{before.root}/sub"
        assert (Path(before.folder) / "train.py").read_text() == "old = 1\n"
        assert before.reference == f"python train.py --data {before.root}/data --out /elsewhere"
        assert now.folder == str(repository / "sub")
        assert now.reference == " ".join(command)


def test_a_command_whose_file_the_revision_lacks(repository: Path) -> None:
    script = Script(command=("python", "later.py"), folder=str(repository / "sub"))
    with pytest.raises(RevisionError, match="no file sub"), both_sides(script, "old"):
        pass


def test_it_is_removed_whatever_happens(repository: Path) -> None:
    with pytest.raises(KeyboardInterrupt), both_sides("sub/train.py:mine", "old"):
        raise KeyboardInterrupt
    assert len(worktrees(repository)) == 1


def test_what_a_killed_check_left_is_removed_by_the_next(repository: Path, tmp_path: Path) -> None:
    left = [tmp_path / f"{worktree.PREFIX}{name}" for name in ("locked", "bare")]
    gone = tmp_path / f"{worktree.PREFIX}gone"
    alive = tmp_path / f"{worktree.PREFIX}alive"
    for folder in (*left, gone, alive):
        git(repository, "worktree", "add", "--quiet", "--detach", str(folder / "tree"), "old")
    (left[0] / worktree.LOCK).touch()
    shutil.rmtree(gone)
    unregistered = repository / ".git" / f"{worktree.PREFIX}x"  # killed before git began
    unregistered.mkdir()
    (unregistered / worktree.LOCK).touch()
    with (alive / worktree.LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with both_sides("sub/train.py:mine", "old"):
            assert not any(folder.exists() for folder in (*left, unregistered))
            assert (alive / "tree" / "sub").exists()
            assert len(worktrees(repository)) == 3


def test_a_worktree_of_the_user_whose_disk_is_away_is_kept(repository: Path, tmp_path: Path) -> None:
    git(repository, "worktree", "add", "--quiet", "--detach", str(tmp_path / "mine"), "old")
    (tmp_path / "mine").rename(tmp_path / "away")
    with both_sides("sub/train.py:mine", "old"):
        pass
    (tmp_path / "away").rename(tmp_path / "mine")
    assert git(tmp_path / "mine", "rev-parse", "HEAD") == git(repository, "rev-parse", "old")


def test_a_worktree_that_lost_its_folder_is_forgotten(repository: Path) -> None:
    with both_sides("sub/train.py:mine", "old") as (before, _):
        assert before.root is not None
        shutil.rmtree(before.root)
    assert len(worktrees(repository)) == 1


def test_it_lies_where_git_does_not_look(repository: Path) -> None:
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "second")
    with both_sides("sub/train.py:mine", "old") as (before, _):
        assert before.root is not None
        assert Path(before.root).is_relative_to(repository / ".git")
        assert not git(repository, "status", "--porcelain")
    assert not list((repository / ".git").glob(f"{worktree.PREFIX}*"))


def test_on_another_disk_than_gits_it_lies_in_the_temporary_folder(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(worktree, "_common", lambda _root: tmp_path / "nowhere")
    with both_sides("sub/train.py:mine", "old") as (before, _):
        assert before.root is not None
        assert Path(before.root).parent.parent == tmp_path
        assert tracked(before.root, "*.py") == [PurePosixPath("sub/train.py")]
    assert not list(tmp_path.glob(f"{worktree.PREFIX}*"))


def test_an_interrupt_does_not_disturb_the_removal(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed = shutil.rmtree

    def hurried(*arguments: object, **named: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        removed(*arguments, **named)  # type: ignore[arg-type]

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(shutil, "rmtree", hurried)
    with pytest.raises(KeyboardInterrupt), both_sides("sub/train.py:mine", "old"):
        raise KeyboardInterrupt
    assert len(worktrees(repository)) == 1
    assert not list((repository / ".git").glob(f"{worktree.PREFIX}*"))
    assert signal.getsignal(signal.SIGTERM) == before


def test_it_is_removed_from_another_thread(repository: Path) -> None:
    def enter() -> None:
        with both_sides("sub/train.py:mine", "old"):
            pass

    with ThreadPoolExecutor(1) as pool:
        pool.submit(enter).result(timeout=60)
    assert len(worktrees(repository)) == 1


def test_an_interrupted_checkout_does_not_go_on(repository: Path) -> None:
    """Git's own children end with it: here the one that makes the files, held up by a filter."""
    begun, ended = repository / ".git" / "begun", repository / ".git" / "ended"
    git(repository, "config", "filter.slow.smudge", f"touch {begun}; sleep 2; touch {ended}; cat")
    (repository / ".git" / "info" / "attributes").write_text("*.py filter=slow\n")

    def interrupt() -> None:
        deadline = monotonic() + 30
        while not begun.exists() and monotonic() < deadline:
            sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    hurry = threading.Thread(target=interrupt)
    hurry.start()
    with pytest.raises(KeyboardInterrupt), both_sides("sub/train.py:mine", "old"):
        pass
    hurry.join()
    assert len(worktrees(repository)) == 1
    assert not list((repository / ".git").glob(f"{worktree.PREFIX}*"))
    sleep(2.2)
    assert not ended.exists()


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


def test_what_the_environment_configures_is_kept(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As containers set safe.directory; here something that shows in the files."""
    for name, value in (("COUNT", "1"), ("KEY_0", "core.autocrlf"), ("VALUE_0", "true")):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    with both_sides("sub/train.py:mine", "old") as (before, _):
        assert before.root is not None
        assert (Path(before.root) / "sub/train.py").read_bytes() == b"old = 1\r\n"


@pytest.mark.parametrize(("file", "dirty"), [("more.py", True), ("data/more.py", False), ("history.jsonl", False)])
def test_new_modules_are_changes(file: str, dirty: bool, repository: Path) -> None:
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "second")
    (repository / file).write_text("")
    with both_sides("sub/train.py:mine", "old") as (_, now):
        assert now.dirty is dirty


def test_linked_data_is_found_in_the_revision(repository: Path) -> None:
    with both_sides("sub/train.py:mine", "old", ["data"]) as (before, _):
        assert before.root is not None
        assert (Path(before.root) / "data" / "rows").read_text() == "1\n"
    assert (repository / "data" / "rows").exists()  # only the link went


def test_a_submodule_is_linked_over_its_empty_folder(repository: Path) -> None:
    inner = repository / "library"
    inner.mkdir()
    git(inner, "init", "--quiet")
    (inner / "code.py").write_text("inner = 1\n")
    git(inner, "add", ".")
    git(inner, "commit", "--quiet", "-m", "inner")
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{git(inner, 'rev-parse', 'HEAD')},library")
    git(repository, "commit", "--quiet", "-m", "with a submodule")
    with both_sides("sub/train.py:mine", "HEAD", ["library"]) as (before, _):
        assert before.root is not None
        assert (Path(before.root) / "library" / "code.py").exists()
    assert (inner / "code.py").exists()

    (inner / "code.py").write_text("inner = 2\n")
    with pytest.raises(RevisionError, match="hide what changed"), both_sides("sub/train.py:mine", "HEAD", ["library"]):
        pass
    git(inner, "commit", "--quiet", "--all", "-m", "moved")
    git(repository, "commit", "--quiet", "--all", "-m", "moved")
    with (
        pytest.raises(RevisionError, match="hide what changed"),
        both_sides("sub/train.py:mine", "HEAD~1", ["library"]),
    ):
        pass
    with both_sides("sub/train.py:mine", "HEAD", ["library"]):
        pass


def test_a_link_may_be_called_by_another_path(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(repository)
    with both_sides("sub/train.py:mine", "old", [str(tmp_path / "alias" / "data")]) as (before, _):
        assert before.root is not None
        assert (Path(before.root) / "data" / "rows").exists()


def test_no_link_is_made_where_the_revision_has_a_file_or_leads_elsewhere(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(repository / "data")
    git(repository, "rm", "--quiet", ".gitignore", "--cached")
    for name in ("file", "leading"):
        if name == "file":
            (repository / "data").write_text("")
        else:
            (repository / "data").symlink_to(tmp_path / "elsewhere")
        git(repository, "add", "--force", "data")
        git(repository, "commit", "--quiet", "-m", name)
        git(repository, "tag", name)
        (repository / "data").unlink()
    (repository / "data" / "big").mkdir(parents=True)
    with pytest.raises(RevisionError, match="no place for it"), both_sides("sub/train.py:mine", "file", ["data/big"]):
        pass
    with pytest.raises(RevisionError, match="leads out"), both_sides("sub/train.py:mine", "leading", ["data/big"]):
        pass
    assert not list((tmp_path / "elsewhere").iterdir())
    assert len(worktrees(repository)) == 1


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
