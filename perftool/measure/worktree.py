"""Another revision of the user's files beside the working tree, by `git worktree`, for as long as it is needed."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from perftool.git import RevisionError, git, said, told
from perftool.records import Side
from perftool.target import Script, Target, entry_of, moved, reference_of
from perftool.workload import check_reference, is_path

PREFIX = "perftool-check-"
WORKING_TREE = "working tree"
LOCK = "lock"  # beside the tree, held as long as the check lives


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
                commit=told(root, "rev-parse", "HEAD"),
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
    done = git(folder, "rev-parse", "--show-toplevel")
    if "dubious ownership" in done.stderr:
        raise RevisionError(
            f"git does not trust {folder}, which belongs to another user; allow it by "
            "git config --global --add safe.directory FOLDER, with the folder of the repository"
        )
    if done.returncode:
        raise RevisionError(
            f"{folder} is in no git repository, so it has no revisions to compare with ({said(done)}); "
            "use --baseline FILE instead of --against"
        )
    return Path(done.stdout.strip()).resolve()


def _commit(root: Path, revision: str) -> str:
    done = git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
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
        told(root, "status", "--porcelain", "--untracked-files=no")
        or told(root, "ls-files", "--others", "--exclude-standard", "--", "*.py")
    )


@contextmanager
def _checked_out(root: Path, commit: str, revision: str) -> Iterator[Path]:
    _remove_left_over(root)
    folder = _new_folder(root, revision)
    place = folder / "tree"
    lock: IO[bytes] | None = None
    try:
        lock = _locked(folder)
        # Hooks are for people who check out; what they would do here is nobody's wish.
        done = git(root, "-c", f"core.hooksPath={os.devnull}", "worktree", "add", "--detach", str(place), commit)
        if done.returncode:
            raise RevisionError(
                f"{revision} cannot be checked out: {said(done)}; git must be able to write to its folder "
                f"({_common(root)}), and there must be room in {folder.parent}"
            )
        yield place
    finally:
        _remove(root, place)
        if lock is not None:
            lock.close()


def _common(root: Path) -> Path:
    """Git's own folder, that of the first checkout where there are several."""
    return Path(root, told(root, "rev-parse", "--git-common-dir") or ".git").resolve()


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
                git(root, "worktree", "remove", "--force", "--force", str(place), apart=True)
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
    listed = (told(root, "worktree", "list", "--porcelain") or "").splitlines()
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
        if recorded is not None and (recorded != told(source, "rev-parse", "HEAD") or _changed(source)):
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
    entry = (told(tree, "ls-tree", "HEAD", "--", str(within)) or "").split()
    return entry[2] if entry[1:2] == ["commit"] else None


def _is_empty(folder: Path) -> bool:
    """Whether it is a submodule's: git has no other empty folders."""
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
