"""Where things are made and called, in files of a user's and of libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

import perftool
from perftool.plan import Plan
from perftool.records import Site
from perftool.script.facts import sites_of
from perftool.script.loop import Loop
from perftool.script.realise import Realised, outputs_of
from perftool.script.sites import Place, is_own, own_place

LIBRARY = "venv/lib/python3/site-packages/lib.py"


def run(folder: Path, file: str, text: str, **names: Any) -> dict[str, Any]:
    """What the text of a file defines."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    names.setdefault("__name__", "__main__")
    exec(compile(text, str(path), "exec"), names)
    return names


def hook(seen: list[Place], **options: bool) -> Callable[..., None]:
    """A function as of perftool's own files, which notes the place of its call; it may be told what is being made."""
    text = "lambda *made: seen.append(own_place(*made, **options))"
    code = compile(text, str(Path(perftool.__file__).parent / "script" / "hooks.py"), "eval")
    found: Callable[..., None] = eval(code, {"own_place": own_place, "seen": seen, "options": options})
    return found


def test_a_place_is_where_the_user_makes_the_call(tmp_path: Path) -> None:
    seen: list[Place] = []
    text = 'for é in range(2): é, note(\n    *("é", )[1:]), é\n'
    run(tmp_path, "train.py", text, note=hook(seen))
    assert seen[0] == seen[1]
    site = seen[0].site("loader", "note")
    assert site["file"] == str(tmp_path / "train.py")
    assert (site["line"], site["end_line"], site["end_column"]) == (1, 2, len('    *("é", )[1:])'.encode()))


def test_a_call_by_a_library_has_the_place_but_not_the_end(tmp_path: Path) -> None:
    seen: list[Place] = []
    library = run(tmp_path, LIBRARY, "def fit(call):\n    call()\n", __name__="lightning.trainer")
    run(tmp_path, "train.py", "fit(note)\n", fit=library["fit"], note=hook(seen))
    [place] = seen
    assert (place.file, place.line) == (str(tmp_path / "train.py"), 1)
    assert place.framework == "lightning"
    assert place.site("loader")["end_line"] is None


def test_a_hook_of_the_users_within_a_framework_makes_the_call_itself(tmp_path: Path) -> None:
    seen: list[Place] = []
    library = run(tmp_path, LIBRARY, "def fit(call):\n    call()\n", __name__="transformers.trainer")
    text = "def step():\n    note()\nfit(step)\n"
    run(tmp_path, "train.py", text, fit=library["fit"], note=hook(seen))
    [place] = seen
    assert (place.line, place.site("loader")["end_column"]) == (2, len("    note()"))
    assert place.framework == "transformers"  # whose loop it is


MADE = "class Base:\n    def __init__(self):\n        note(self)\n"
OWN = "class Own(Base):\n    def __init__(self):\n        super().__init__()\nmade = Own()\n"


@pytest.mark.parametrize(("outside", "line"), [(False, 3), (True, 4)])
def test_what_is_made_by_a_class_of_the_users(tmp_path: Path, outside: bool, line: int) -> None:
    seen: list[Place] = []
    base = run(tmp_path, LIBRARY, MADE, note=hook(seen, outside=outside))["Base"]
    run(tmp_path, "train.py", OWN, Base=base)
    [place] = seen
    assert place.line == line
    assert place.site("model")["end_line"] == line


def test_files_of_an_environment_within_the_users_folder_are_not_the_users(tmp_path: Path) -> None:
    run(tmp_path, LIBRARY, "")
    run(tmp_path, "venv_tools/train.py", "")
    assert not is_own(str(tmp_path / LIBRARY))
    assert is_own(str(tmp_path / "venv_tools/train.py"))
    assert not is_own(str(tmp_path / "gone.py"))
    assert not is_own("<string>")
    assert not is_own(torch.__file__)


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (torch.ones(1), "tensor"),
        (torch.ones(1, dtype=torch.long), "other"),
        ((torch.ones(1), torch.ones(1)), "tensors"),
        ([torch.ones(1), torch.ones(1)], "tensors"),
        ((torch.ones(1), None), "other"),
        ((torch.ones(1),), "other"),
        ({"loss": torch.ones(1)}, "other"),
        (torch.ones(1, 1).max(dim=0), "other"),  # a named tuple
    ],
)
def test_what_a_call_returns(output: object, kind: str) -> None:
    assert outputs_of(output) == kind


# ------------------------------------------------------------------------------------------------ a script's own calls


@pytest.fixture
def followed() -> Iterator[Realised]:
    realised = Realised(Plan(workload=None), Loop(None))
    realised.follow_calls()
    yield realised
    realised.stop_following()


GAN = """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 1)

    def forward(self, x):
        return self.inner(x)

def build():
    return Net().float()

D = build()
for step in range(2):
    loss = criterion(D(real), ones) + criterion(D(
        real * 2
    ), ones)
    D(real).sum()
with torch.no_grad():
    D(real)
"""


def test_every_call_of_a_model_is_seen_once_and_where_it_was_made(tmp_path: Path, followed: Realised) -> None:
    names = {"criterion": nn.MSELoss(), "real": torch.ones(2, 4), "ones": torch.ones(2, 1)}
    run(tmp_path, "train.py", GAN, nn=nn, torch=torch, **names)
    sites = msgspec.convert(sites_of(followed.loop, followed), list[Site])
    calls = [(one.line, one.end_line, one.end_column) for one in sites if one.kind == "model_call"]
    assert calls == [(14, 14, 28), (14, 16, 5), (17, 17, 11)]
    [model] = [one for one in sites if one.kind == "model"]
    assert (model.line, model.callee, model.end_column) == (10, "Net", len("    return Net()"))


def test_a_call_that_returns_now_this_now_that_is_other(tmp_path: Path, followed: Realised) -> None:
    text = "for pair in (False, True):\n    model(pair)\n"
    run(tmp_path, "train.py", text, model=Two())
    [call] = [one for one in sites_of(followed.loop, followed) if one["kind"] == "model_call"]
    assert call["outputs"] == "other"


class Two(nn.Module):
    """Returns one tensor or two."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, pair: bool) -> object:
        return (self.weight, self.weight) if pair else self.weight


def test_what_follows_the_calls_leaves_torch_as_it_was() -> None:
    before: tuple[Callable[..., Any], Callable[..., Any]] = (nn.Module.__call__, nn.Module.__init__)
    realised = Realised(Plan(workload=None), Loop(None))
    realised.follow_calls()
    assert nn.Module.__init__ is not before[1]
    realised.stop_following()
    assert (nn.Module.__call__, nn.Module.__init__) == before
