"""The README's recipes for CI: their shell lines are run with stand-ins for `perftool`, `gh` and `curl`."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from textwrap import dedent

import pytest

README = Path(__file__).parents[1] / "README.md"
PERFTOOL = """#!/bin/sh
echo "$@" >> "$CALLS"
[ "$CODE" = 2 ] || { mkdir -p perf/now-check; echo "what was found" > perf/now-check/report.md; }
exit "$CODE"
"""
CALLED = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
"""


def recipe(marker: str) -> str:
    """The YAML in which these words stand."""
    found: str
    [found] = [block for block in re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL) if marker in block]
    return found


def scripts(yaml: str) -> list[str]:
    """The shell lines of each block scalar, in order."""
    blocks = re.findall(r"(?m)^( *)(?:- )*(?:run: )?\|\n((?:\1 .*\n|\n)+)", yaml)
    return [dedent(lines).replace("${{ github.event.number }}", "7") for _, lines in blocks]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder to run in, with what the recipes call on the path."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("perftool", PERFTOOL), ("gh", CALLED), ("curl", CALLED)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return tmp_path


def ran(script: str, job: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """As the runners do it: `bash -e`."""
    environment = {
        "PATH": f"{job / 'programs'}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(job / "calls"),
        "GITHUB_BASE_REF": "main",
        "GITHUB_STEP_SUMMARY": str(job / "summary"),
        "CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main",
        "CI_API_V4_URL": "https://example.org/api/v4",
        "CI_PROJECT_ID": "3",
        "CI_MERGE_REQUEST_IID": "7",
        "PERF_TOKEN": "secret",
        **variables,
    }
    return subprocess.run(["bash", "-e", "-c", script], cwd=job, env=environment, capture_output=True, text=True)


def calls(job: Path) -> list[str]:
    return (job / "calls").read_text().splitlines()


CHECKED = "check train.py:mine --against origin/main --out perf"
COMMENT = "gh pr comment 7 --body-file perf/now-check/report.md"


@pytest.mark.parametrize(("code", "ends", "warns"), [(0, 0, False), (1, 1, False), (2, 2, False), (3, 0, True)])
def test_a_github_job_fails_on_a_regression_and_warns_of_what_is_undecided(
    code: int, ends: int, warns: bool, job: Path
) -> None:
    check, comment = scripts(recipe("GITHUB_BASE_REF"))
    done = ran(check, job, CODE=str(code))
    assert (done.returncode, done.stderr) == (ends, "")
    assert ("::warning::" in done.stdout) == warns
    told = ran(comment, job, FORK="false")
    assert told.returncode == 0, told.stderr
    assert calls(job) == ([CHECKED] if code == 2 else [CHECKED, COMMENT])
    assert (job / "summary").exists() == (code != 2)


def test_a_pull_request_from_a_fork_gets_the_page_and_no_comment(job: Path) -> None:
    check, comment = scripts(recipe("GITHUB_BASE_REF"))
    ran(check, job, CODE="1")
    assert ran(comment, job, FORK="true").returncode == 0
    assert calls(job) == [CHECKED]
    assert (job / "summary").read_text() == "what was found\n"


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_a_gitlab_job_ends_as_the_check_does_and_notes_its_report(code: int, job: Path) -> None:
    yaml = recipe("CI_MERGE_REQUEST_IID")
    [check] = re.findall(r"- (perftool check .*)", yaml)
    assert ran(check, job, CODE=str(code)).returncode == code
    [note] = scripts(yaml)
    told = ran(note, job)
    assert told.returncode == 0, told.stderr
    posted = [line for line in calls(job) if line.startswith("curl")]
    assert len(posted) == (code != 2)
    for line in posted:
        assert "--data-urlencode body@perf/now-check/report.md" in line
        assert line.endswith("https://example.org/api/v4/projects/3/merge_requests/7/notes")
    assert "allow_failure: {exit_codes: 3}" in yaml
