"""`perftool report` draws saved sessions, one or two, in every form, and needs no torch for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner, Result

from perftool.cli import app
from perftool.errors import BAD_INPUT
from perftool.records import Session
from perftool.store import SessionStore
from tests.sessions import timed_session

FORMS = {
    "terminal": "amp=bf16",
    "markdown": "| amp=bf16 |",
    "html": "<!doctype html>",
    "json": '"schema_version"',
}


def saved(folder: Path, session: Session) -> Path:
    folder.mkdir()
    SessionStore(folder).finish(session)
    return folder


def compared(seed: int = 0) -> Session:
    return timed_session([({}, 12.0), ({"amp": "bf16"}, 8.0)], seed=seed)


def report(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.mark.parametrize("form", FORMS)
def test_one_session_and_two_have_every_form(form: str, tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a", compared()), saved(tmp_path / "b", compared(1))
    for folders in ([first], [first, second]):
        done = report(*folders, "--format", form)
        assert done.exit_code == 0, done.output
        assert FORMS[form] in done.stdout
    if form == "json":
        assert json.loads(done.stdout)["variants"][0]["change"] == "alike"


def test_two_that_cannot_be_compared_are_refused_with_the_reason(tmp_path: Path) -> None:
    first = saved(tmp_path / "a", compared())
    second = saved(tmp_path / "b", replace(compared(), command="profile"))
    done = report(first, second)
    assert done.exit_code == BAD_INPUT
    assert "their commands differ: perftool compare and perftool profile" in done.stderr
    assert done.stdout == ""


def test_a_second_session_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    done = report(saved(tmp_path / "a", compared()), tmp_path / "missing")
    assert done.exit_code == BAD_INPUT
    assert "there is no" in done.stderr


def test_a_page_is_drawn_without_torch(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", compared())
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name != 'torch'\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "from perftool.cli import app\n"
        f"app(['report', {str(folder)!r}, '--format', 'html'])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("</html>\n")
