"""Git, asked by perftool: a surrounding git does not lead it elsewhere, and it never outlives the question."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath

LIMIT_S = 600.0  # of one git command: a checkout of a large repository


class RevisionError(ValueError):
    """A revision that cannot be checked out, or a place that it cannot be used from; the text says what to do."""


def tracked(root: str, pattern: str) -> list[PurePosixPath]:
    """The files of a tree that git knows, from its root; none where there is no git."""
    try:
        listed = told(Path(root), "ls-files", "-z", "--", pattern)
    except RevisionError:
        return []
    return [PurePosixPath(name) for name in (listed or "").split("\0") if name]


def told(folder: Path, *arguments: str) -> str | None:
    """What a git command prints; None where it fails."""
    done = git(folder, *arguments)
    return done.stdout.strip() if done.returncode == 0 else None


def git(folder: Path, *arguments: str, apart: bool = False) -> subprocess.CompletedProcess[str]:
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
    names = _run(["git", "rev-parse", "--local-env-vars"], dict(os.environ)).stdout.split()
    return frozenset(name for name in names if not name.startswith("GIT_CONFIG_"))


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
    import psutil  # late: a script's own Python may have none, and asks no more than for the files that git knows

    with suppress(psutil.Error):
        for child in psutil.Process(running.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    running.kill()
    running.wait()


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of what it complains of."""
    lines = [line for line in done.stderr.strip().splitlines() if line]
    return lines[-1] if lines else f"git ended with exit code {done.returncode}"
