"""Another revision of the user's files beside the working tree, by `git worktree`, for as long as it is needed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO

import psutil

from perftool.records import Side
from perftool.target import Script, Target, entry_of, moved, reference_of
from perftool.workload import check_reference, is_path

PREFIX = "perftool-check-"
WORKING_TREE = "working tree"
LIMIT_S = 600.0  # of one git command: a checkout of a large repository
LOCK = "lock"  # beside the tree, held as long as the check lives


class RevisionError(ValueError):
    """A revision that cannot be checked out, or a place that it cannot be used from; the text says what to do."""


@contextmanager
def both_sides(target: Target, revision: str, links: Sequence[str] = ()) -> Iterator[list[Side]]:
    """The target at the revision, and in the working tree as it lies there; the settings are still unknown.

    The revision is checked out in a folder that is removed at the end, whatever happens.
    links: paths in the working tree that git ignores, to be found in the revision, too.
    Raises RevisionError.
    """
    file = _file_of(target)
    here = Path.cwd().resolve() if isinstance(target, str) else Path(target.folder).resolve()
    root = _root(file.parent if file is not None and isinstance(target, str) else here)
    folder = here if file is None or here.is_relative_to(root) else file.parent
    commit = _commit(root, revision)
    with _checked_out(root, commit, revision) as other:
        _link(links, here, root, other)
        there = other / folder.relative_to(root)
        if not there.is_dir():
            raise RevisionError(
                f"there is no folder {folder.relative_to(root)} at {revision}; run from one that it has"
            )
        if file is not None and file.is_relative_to(root) and not (other / file.relative_to(root)).is_file():
            raise RevisionError(
                f"there is no file {file.relative_to(root)} at {revision}, so there is nothing to compare with; name a "
                "revision that has it"
            )
        yield [
            Side(
                name=revision,
                reference=_reference_at(target, file, folder, root, other),
                settings={},
                root=str(other),
                folder=str(there),
                commit=commit,
            ),
            Side(
                name=WORKING_TREE,
                reference=_reference_at(target, file, folder, root, root),
                settings={},
                root=str(root),
                folder=str(folder),
                commit=_told(root, "rev-parse", "HEAD"),
                dirty=_changed(root),
            ),
        ]


def _file_of(target: Target) -> Path | None:
    """The user's own file that is run, absolute; None where a module or a command is."""
    if isinstance(target, str):
        place, _ = check_reference(target)
        return Path(place).resolve() if is_path(place) else None
    at, kind, _ = entry_of(target.command)
    file = Path(target.folder, target.command[at])
    return file.resolve() if kind == "file" and file.is_file() else None


def _reference_at(target: Target, file: Path | None, folder: Path, root: Path, tree: Path) -> str:
    """What names the target from the folder, in the tree that stands for the root."""
    if isinstance(target, Script):
        return reference_of(moved(target, str(root), str(tree)))
    return target if file is None else f"{os.path.relpath(file, folder)}:{target.rpartition(':')[2]}"


def _root(folder: Path) -> Path:
    done = _git(folder, "rev-parse", "--show-toplevel")
    if "dubious ownership" in done.stderr:
        raise RevisionError(
            f"git does not trust {folder}, which belongs to another user; allow it by "
            "git config --global --add safe.directory FOLDER, with the folder of the repository"
        )
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


def _changed(root: Path) -> bool:
    """Whether the working tree has other code than HEAD. Of new files only those count that Python could import:
    results and histories lie about untracked in many a project."""
    return bool(
        _told(root, "status", "--porcelain", "--untracked-files=no")
        or _told(root, "ls-files", "--others", "--exclude-standard", "--", "*.py")
    )


def tracked(root: str, pattern: str) -> list[PurePosixPath]:
    """The files of a tree that git knows, from its root; none where there is no git."""
    try:
        told = _told(Path(root), "ls-files", "-z", "--", pattern)
    except RevisionError:
        return []
    return [PurePosixPath(name) for name in (told or "").split("\0") if name]


@contextmanager
def _checked_out(root: Path, commit: str, revision: str) -> Iterator[Path]:
    _remove_left_over(root)
    folder = _new_folder(root, revision)
    place = folder / "tree"
    lock: IO[bytes] | None = None
    try:
        lock = _locked(folder)
        # Hooks are for people who check out; what they would do here is nobody's wish.
        done = _git(root, "-c", f"core.hooksPath={os.devnull}", "worktree", "add", "--detach", str(place), commit)
        if done.returncode:
            raise RevisionError(
                f"{revision} cannot be checked out: {_said(done)}; git must be able to write to its folder "
                f"({_common(root)}), and there must be room in {folder.parent}"
            )
        yield place
    finally:
        _remove(root, place)
        if lock is not None:
            lock.close()


def _common(root: Path) -> Path:
    """Git's own folder, that of the first checkout where there are several."""
    return Path(root, _told(root, "rev-parse", "--git-common-dir") or ".git").resolve()


def _new_folder(root: Path, revision: str) -> Path:
    """Within git's folder, which `git status` does not look into: on another disk one side would read its files faster.

    Where that is not to be had, in the temporary folder.
    """
    common = _common(root)
    places = [Path(tempfile.gettempdir())]
    with suppress(OSError):
        if common.stat().st_dev == root.stat().st_dev:
            places.insert(0, common)
    why: str | None = None
    for place in places:
        try:
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=place)).resolve()
        except OSError as error:
            why = error.strerror
    raise RevisionError(f"there is no room for a copy of {revision} ({why}); set TMPDIR")


def _locked(folder: Path) -> IO[bytes] | None:
    """A lock that ends with this process, however it ends. None where it is another's, or there are none to be had."""
    import fcntl

    try:
        lock = (folder / LOCK).open("ab")
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _remove(root: Path, place: Path) -> None:
    """Also where the folder is gone: nothing of it may stay. Never `git worktree prune`, which would forget the user's
    own worktrees on a disk that is not mounted now."""
    with _undisturbed():
        try:
            shutil.rmtree(place, ignore_errors=True)
            with suppress(RevisionError):
                # Forced twice: an interrupted checkout is still locked.
                _git(root, "worktree", "remove", "--force", "--force", str(place), apart=True)
        finally:
            shutil.rmtree(place.parent, ignore_errors=True)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore whoever is in a hurry: a second Ctrl-C must not leave half of it behind."""
    if threading.current_thread() is not threading.main_thread():  # signals are not its own
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    known = {number: handler for number, handler in before.items() if handler is not None}
    try:
        for number in known:
            signal.signal(number, signal.SIG_IGN)
        yield
    finally:
        for number, handler in known.items():
            signal.signal(number, handler)


def _remove_left_over(root: Path) -> None:
    """What a check that was killed has left behind: its lock is free, or gone with its folder."""
    listed = (_told(root, "worktree", "list", "--porcelain") or "").splitlines()
    places = {Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")}
    with suppress(OSError):
        places |= {folder / "tree" for folder in _common(root).glob(f"{PREFIX}*") if (folder / LOCK).exists()}
    for place in sorted(places):
        if not (place.name == "tree" and place.parent.name.startswith(PREFIX)):
            continue
        if not (place.parent / LOCK).exists():
            _remove(root, place)
        elif (lock := _locked(place.parent)) is not None:
            _remove(root, place)
            lock.close()


def _link(links: Sequence[str], here: Path, root: Path, other: Path) -> None:
    for link in links:
        source = Path(os.path.abspath(here / link))
        if not source.exists():
            raise RevisionError(f"--link {link}: there is no {source}")
        if not source.is_relative_to(root):
            source = source.parent.resolve() / source.name  # the root is without links, too
        if not source.is_relative_to(root) or source == root:
            raise RevisionError(f"--link {link}: it must lie within {root}; what lies elsewhere is found by its path")
        within = source.relative_to(root)
        target = other / within
        if (target.exists() or target.is_symlink()) and not _is_empty(target):
            raise RevisionError(f"--link {link}: the revision has it itself, so linking would hide that")
        recorded = _submodule(other, within)
        if recorded is not None and (recorded != _told(source, "rev-parse", "HEAD") or _changed(source)):
            raise RevisionError(
                f"--link {link}: the revision has this submodule at {recorded[:7]}, and what lies here is another, so "
                f"linking would hide what changed; git -C {link} checkout {recorded[:7]} compares all else, and "
                "--write-baseline there with --baseline here the whole"
            )
        if not target.parent.resolve().is_relative_to(other):
            raise RevisionError(f"--link {link}: in the revision, a link leads out of it there; link what that lacks")
        try:
            if target.exists():
                target.rmdir()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source, target_is_directory=source.is_dir())
        except OSError as error:
            where = os.path.relpath(error.filename or target, other)
            raise RevisionError(
                f"--link {link}: there is no place for it in the revision ({where}: {error.strerror}); have the "
                "training find it by an absolute path instead"
            ) from error


def _submodule(tree: Path, within: Path) -> str | None:
    """The commit that a revision has of a submodule; None where it has no submodule at that place."""
    told = (_told(tree, "ls-tree", "HEAD", "--", str(within)) or "").split()
    return told[2] if told[1:2] == ["commit"] else None


def _is_empty(folder: Path) -> bool:
    """Whether it is a submodule's: git has no other empty folders."""
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def _told(folder: Path, *arguments: str) -> str | None:
    done = _git(folder, *arguments)
    return done.stdout.strip() if done.returncode == 0 else None


def _git(folder: Path, *arguments: str, apart: bool = False) -> subprocess.CompletedProcess[str]:
    """A git command. What a surrounding git (a hook) has set must not lead it elsewhere.

    apart: where a Ctrl-C in the terminal does not reach it. It cannot ask for a password there.
    """
    local = _local_variables()
    return _run(
        ["git", "-C", str(folder), *arguments],
        {name: value for name, value in os.environ.items() if name not in local},
        apart,
    )


@cache
def _local_variables() -> frozenset[str]:
    """The variables that are about one repository. Those that configure git stay: safe.directory is given so."""
    told = _run(["git", "rev-parse", "--local-env-vars"], dict(os.environ)).stdout.split()
    return frozenset(name for name in told if not name.startswith("GIT_CONFIG_"))


def _run(command: Sequence[str], environment: dict[str, str], apart: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; interrupted, neither it nor what it has started goes on."""
    try:
        running = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=apart,
        )
    except FileNotFoundError as error:
        raise RevisionError("--against needs git, which is not installed here") from error
    with running:
        try:
            out, err = running.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired as error:
            _end(running)
            raise RevisionError(f"{' '.join(command)} did not end within {LIMIT_S:.0f} s") from error
        except BaseException:
            _end(running)
            raise
    return subprocess.CompletedProcess(command, running.returncode, out, err)


def _end(running: subprocess.Popen[str]) -> None:
    """End it with all that it has started: a checkout that went on would write into what is being removed."""
    with suppress(psutil.Error):
        for child in psutil.Process(running.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    running.kill()
    running.wait()


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.strip().splitlines() if line]
    return lines[-1] if lines else f"git ended with exit code {done.returncode}"
