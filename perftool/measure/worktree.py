"""Another revision of the user's files beside the working tree, by `git worktree`, for as long as it is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from perftool.records import Side
from perftool.workload import check_reference, is_path

PREFIX = "perftool-check-"
WORKING_TREE = "working tree"
LIMIT_S = 600.0  # of one git command: a checkout of a large repository


class RevisionError(ValueError):
    """A revision that cannot be checked out, or a place that it cannot be used from; the text says what to do."""


@contextmanager
def both_sides(reference: str, revision: str, links: Sequence[str] = ()) -> Iterator[list[Side]]:
    """The workload at the revision, and in the working tree as it lies there; the settings are still unknown.

    The revision is checked out in a temporary folder that is removed at the end, whatever happens.
    links: paths in the working tree that git ignores, to be found in the revision, too.
    Raises RevisionError.
    """
    place, attribute = check_reference(reference)
    is_file = is_path(place)
    here = Path.cwd().resolve()
    root = _root(Path(place).resolve().parent if is_file else here)
    folder = here if here.is_relative_to(root) else Path(place).resolve().parent
    if is_file:
        place = os.path.relpath(Path(place).resolve(), folder)
    commit = _commit(root, revision)
    with _checked_out(root, commit, revision) as other:
        _link(links, here, root, other)
        there = other / folder.relative_to(root)
        if not there.is_dir():
            raise RevisionError(
                f"there is no folder {folder.relative_to(root)} at {revision}; run from one that it has"
            )
        if is_file and not (there / place).is_file():
            raise RevisionError(
                f"there is no file {os.path.normpath(Path(folder.relative_to(root), place))} at {revision}, so there "
                "is nothing to compare with; name a revision that has it"
            )
        moved = f"{place}:{attribute}"
        yield [
            Side(name=revision, reference=moved, settings={}, root=str(other), folder=str(there), commit=commit),
            Side(
                name=WORKING_TREE,
                reference=moved,
                settings={},
                root=str(root),
                folder=str(folder),
                commit=_told(root, "rev-parse", "HEAD"),
                dirty=bool(_told(root, "status", "--porcelain", "--untracked-files=no")),
            ),
        ]


def _root(folder: Path) -> Path:
    done = _git(folder, "rev-parse", "--show-toplevel")
    if done.returncode:
        raise RevisionError(
            f"{folder} is in no git repository, so it has no revisions to compare with ({_said(done)}); "
            "use --baseline FILE instead of --against"
        )
    return Path(done.stdout.strip()).resolve()


def _commit(root: Path, revision: str) -> str:
    done = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if done.returncode:
        raise RevisionError(
            f"--against {revision}: git knows no such revision; in CI a shallow clone may lack it: "
            f"git fetch origin {revision}, or check out with the whole history"
        )
    return done.stdout.strip()


@contextmanager
def _checked_out(root: Path, commit: str, revision: str) -> Iterator[Path]:
    _remove_left_over(root)
    try:
        place = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")).resolve() / "tree"
    except OSError as error:
        raise RevisionError(f"there is no room for a copy of {revision} ({error.strerror}); set TMPDIR") from error
    try:
        # Hooks are for people who check out; what they would do here is nobody's wish.
        done = _git(root, "-c", f"core.hooksPath={os.devnull}", "worktree", "add", "--detach", str(place), commit)
        if done.returncode:
            raise RevisionError(f"{revision} cannot be checked out: {_said(done)}")
        yield place
    finally:
        _remove(root, place)


def _remove(root: Path, place: Path) -> None:
    """Also where the folder is gone, or git will not: nothing of it may stay."""
    with suppress(RevisionError):
        _git(root, "worktree", "remove", "--force", str(place))
    shutil.rmtree(place.parent, ignore_errors=True)
    with suppress(RevisionError):
        _git(root, "worktree", "prune")


def _remove_left_over(root: Path) -> None:
    """What a check that was killed has left behind."""
    listed = _told(root, "worktree", "list", "--porcelain") or ""
    for line in listed.splitlines():
        place = Path(line.removeprefix("worktree "))
        name = place.parent.name
        if line.startswith("worktree ") and name.startswith(PREFIX):
            pid = name.removeprefix(PREFIX).partition("-")[0]
            if not (pid.isdecimal() and psutil.pid_exists(int(pid))):
                _remove(root, place)


def _link(links: Sequence[str], here: Path, root: Path, other: Path) -> None:
    for link in links:
        source = Path(os.path.abspath(here / link))
        if not source.exists():
            raise RevisionError(f"--link {link}: there is no {source}")
        if not source.is_relative_to(root) or source == root:
            raise RevisionError(f"--link {link}: it must lie within {root}; what lies elsewhere is found by its path")
        target = other / source.relative_to(root)
        if target.exists() or target.is_symlink():
            raise RevisionError(f"--link {link}: the revision has it itself, so linking would hide that")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source, target_is_directory=source.is_dir())


def _told(folder: Path, *arguments: str) -> str | None:
    done = _git(folder, *arguments)
    return done.stdout.strip() if done.returncode == 0 else None


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A git command. What a surrounding git (a hook) has set must not lead it elsewhere."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise RevisionError("--against needs git, which is not installed here") from error
    except subprocess.TimeoutExpired as error:
        raise RevisionError(f"git {arguments[0]} did not end within {LIMIT_S:.0f} s") from error


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.strip().splitlines() if line]
    return lines[-1] if lines else f"git ended with exit code {done.returncode}"
