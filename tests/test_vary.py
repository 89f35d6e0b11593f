"""A script's options as settings: how they are read, and the command that has them."""

from __future__ import annotations

import argparse
import sys
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perftool.scenario import Context, Scenario, ScenarioError, check_settings, other_values
from perftool.target import Script, Vary, entry_of, hidden_by, name_of, reference_of
from perftool.vary import command_with, parse, present, scenarios_of
from perftool.words import Engaged
from tests.measure.fakes import MACHINE, WORKLOAD

CONTEXT = Context(machine=MACHINE, workload=WORKLOAD)
LIVE = cast(Any, None)  # a proof looks at the process alone


def proved(one: Scenario, value: str) -> Engaged:
    found = one.proof(LIVE, value)
    assert isinstance(found, Engaged)
    return found


def script(words: str, *varied: str) -> Script:
    return Script(command=tuple(words.split()), folder="/work", vary=tuple(parse(one) for one in varied))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("--num-workers=0|2|4", Vary(name="--num-workers", kind="option", values=("0", "2", "4"))),
        ("-b=16|16|32", Vary(name="-b", kind="option", values=("16", "32"))),
        ("--amp", Vary(name="--amp", kind="flag", values=("off", "on"))),
        ("BATCH=32|64", Vary(name="BATCH", kind="variable", values=("32", "64"))),
        ("optim.lr=0.1|0.2", Vary(name="optim.lr", kind="argument", values=("0.1", "0.2"))),
        ("lr=a=b", Vary(name="lr", kind="argument", values=("a=b",))),
    ],
)
def test_each_form_is_read(text: str, found: Vary) -> None:
    assert parse(text) == found


@pytest.mark.parametrize("text", ["", "amp", "--", "--=1", "=1", "--x=", "--x=1||2", "a b=1", "BATCH"])
def test_what_is_none_of_them_is_a_sentence(text: str) -> None:
    with pytest.raises(ScenarioError, match="--vary takes"):
        parse(text)


def test_what_is_varied_twice_is_a_sentence() -> None:
    with pytest.raises(ScenarioError, match="--x: it is there twice"):
        scenarios_of(script("python train.py", "--x=1", "--x=2"))


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("python train.py --epochs 3", "train"),
        ("/opt/venv/bin/python3.11 -u -X dev src/train.py", "train"),
        ("python -m pkg.train --x", "pkg-train"),
        ("python -um pkg.train", "pkg-train"),
        ("python -c print(1)", "python"),
        ("torchrun --nproc-per-node 2 train.py --epochs 3", "train"),
        ("torchrun -m pkg.train", "pkg-train"),
        ("python -m torch.distributed.run --nproc-per-node=2 train.py", "train"),
        ("python /opt/bin/torchrun train.py", "train"),
        ("accelerate launch --config_file a.yaml nlp.py", "nlp"),
        ("bash run.sh", "run"),
        ("./train.py --x", "train"),
        ("my-trainer --x", "my-trainer"),
        ("env A=1 nice -n 5 python train.py", "train"),
        ("uv run python -m pkg.train", "pkg-train"),
    ],
)
def test_a_command_is_called_after_the_users_program(words: str, name: str) -> None:
    assert name_of(script(words)) == name
    assert reference_of(script(words)) == " ".join(words.replace("print(1)", "'print(1)'").split())


def test_a_reference_is_its_own_name() -> None:
    assert name_of("train.py:mine") == reference_of("train.py:mine") == "train.py:mine"


@pytest.mark.parametrize(
    ("words", "varied", "value"),
    [
        ("python train.py", "--x=1", "own"),
        ("python train.py --x 2", "--x=1", "2"),
        ("python train.py --x=2", "--x=1", "2"),
        ("python train.py --x=1 --x 3", "--x=1", "3"),
        ("python train.py --x -1e-3", "--x=1", "-1e-3"),
        ("python train.py --x --y", "--x=1", "own"),
        ("python train.py -- --x 2", "--x=1", "own"),
        ("python -u train.py", "-u=1", "own"),
        ("torchrun --x 2 train.py --x 3", "--x=1", "3"),
        ("python train.py", "--amp", "off"),
        ("python train.py --amp", "--amp", "on"),
        ("python train.py +a.b=2", "a.b=1", "2"),
        ("python train.py a.bc=2", "a.b=1", "own"),
    ],
)
def test_what_the_command_says_now_is_the_default(words: str, varied: str, value: str) -> None:
    one = script(words, varied)
    assert present(one, one.vary[0]) == value
    [found] = scenarios_of(one).values()
    assert found.default(CONTEXT) == value
    assert value not in other_values(found, CONTEXT, {})


def test_a_variable_is_looked_up_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    one = script("python train.py", "BATCH=32|64")
    monkeypatch.delenv("BATCH", raising=False)
    assert present(one, one.vary[0]) == "own"
    monkeypatch.setenv("BATCH", "32")
    assert present(one, one.vary[0]) == "32"
    assert command_with(one, {"BATCH": "64"}) == (["python", "train.py"], {"BATCH": "64"})


@pytest.mark.parametrize(
    ("words", "settings", "result"),
    [
        ("python train.py", {"--x": "1"}, "python train.py --x=1"),
        ("python train.py --x 2 data", {"--x": "1"}, "python train.py --x 1 data"),
        ("python train.py --x=2 data", {"--x": "1"}, "python train.py --x=1 data"),
        ("python train.py --x 2", {"--x": "2"}, "python train.py --x 2"),
        ("python train.py --x 2", {"--x": "-1"}, "python train.py --x=-1"),
        ("python train.py --x --y", {"--x": "1"}, "python train.py --x=1 --y"),
        ("python train.py a -- b", {"--x": "1"}, "python train.py a --x=1 -- b"),
        ("python train.py --", {"--x": "1"}, "python train.py --x=1 --"),
        ("python train.py", {"-b": "1"}, "python train.py -b 1"),
        ("python train.py -b 2 c", {"-b": "1"}, "python train.py -b 1 c"),
        ("python train.py", {"--amp": "on"}, "python train.py --amp"),
        ("python train.py --amp a --amp", {"--amp": "off"}, "python train.py a"),
        ("python train.py", {"o.lr": "1"}, "python train.py o.lr=1"),
        ("python train.py ++o.lr=2 b", {"o.lr": "1"}, "python train.py ++o.lr=1 b"),
        ("torchrun --x 2 -- train.py --y", {"--x": "1"}, "torchrun --x 2 -- train.py --y --x=1"),
        ("accelerate launch train.py", {"--x": "1", "--amp": "on"}, "accelerate launch train.py --x=1 --amp"),
        ("my-trainer fit", {"--x": "1", "amp": "bf16"}, "my-trainer fit --x=1"),
        ("bash run.sh", {}, "bash run.sh"),
    ],
)
def test_settings_are_put_where_they_belong(words: str, settings: dict[str, str], result: str) -> None:
    one = script(words, "--x=1", "-b=1", "--amp", "o.lr=1")
    assert command_with(one, settings) == (result.split(), {})


ANYTHING = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
PLAIN = st.text("abz019._/ =", min_size=1).filter(lambda text: not text.startswith("-"))


@given(ANYTHING, st.sampled_from(["", "--rate old", "--rate=old", "--rate", "--rate 1 --rate=2"]), st.booleans())
def test_a_parser_reads_any_value_back(value: str, said: str, amp: bool) -> None:
    one = script(f"python train.py first {said} --size 3", "--rate=x", "--amp")
    words, _ = command_with(one, {"--rate": value, "--amp": "on" if amp else "off"})
    parser = argparse.ArgumentParser()
    parser.add_argument("place")
    parser.add_argument("--rate", nargs="?")
    parser.add_argument("--size")
    parser.add_argument("--amp", action="store_true")
    assert vars(parser.parse_args(words[2:])) == {"place": "first", "rate": value, "size": "3", "amp": amp}


@given(st.lists(PLAIN), st.dictionaries(st.sampled_from(["--a", "-b", "c.d"]), PLAIN))
def test_what_was_put_is_what_is_found_and_all_else_stays(others: list[str], settings: dict[str, str]) -> None:
    one = Script(
        command=("python", "train.py", *others), folder="/work", vary=tuple(map(parse, ("--a=x", "-b=x", "c.d=x")))
    )
    words, environment = command_with(one, settings)
    changed = Script(command=tuple(words), folder="/work", vary=one.vary)
    assert environment == {}
    assert {vary.name: present(changed, vary) for vary in one.vary} == {
        vary.name: settings.get(vary.name, present(one, vary)) for vary in one.vary
    }
    assert words[: len(one.command)] == list(one.command)
    assert command_with(changed, settings) == (words, {})


@given(st.lists(ANYTHING, min_size=1))
def test_any_command_has_an_entry_and_stays_without_settings(words: list[str]) -> None:
    one = Script(command=tuple(words), folder="/work", vary=(parse("--x=1"),))
    assert 0 <= entry_of(words).at < len(words)
    assert command_with(one, {}) == (words, {})
    assert isinstance(name_of(one), str)


def test_the_proof_looks_at_the_process_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    found = scenarios_of(script("bash run.sh", "--x=1", "--amp", "BATCH=32"))
    monkeypatch.setattr(sys, "argv", ["train.py", "--x", "1"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "spawned"])
    monkeypatch.setenv("BATCH", "32")
    assert proved(found["--x"], "1").ok
    assert proved(found["--x"], "1").evidence == "the training process was started as train.py --x 1"
    assert not proved(found["--x"], "2").ok
    assert proved(found["--amp"], "off").ok
    assert not proved(found["--amp"], "on").ok
    assert proved(found["BATCH"], "32").ok
    assert not proved(found["BATCH"], "own").ok


def test_it_is_a_scenario_that_losses_decide_about() -> None:
    found = scenarios_of(script("python train.py", "--x=1|2", "--amp", "BATCH=32"))
    assert {one.changes for one in found.values()} == {"numerics"}
    assert other_values(found["--x"], CONTEXT, {}) == ["1", "2"]
    assert found["--x"].lines("2", CONTEXT) == {"command": "--x=2"}
    assert found["--amp"].lines("on", CONTEXT) == {"command": "--amp"}
    assert found["BATCH"].lines("32", CONTEXT) == {"environment": "BATCH=32"}
    check_settings({"--x": "17"}, found, CONTEXT)  # the script knows what it takes
    with pytest.raises(ScenarioError, match="--amp=1: it takes off or on"):
        check_settings({"--amp": "1"}, found, CONTEXT)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("python -I train.py", "-I"),
        ("python -W ignore -E train.py", "-E"),
        ("nice python3.11 -S -m torch.distributed.run train.py", "-S"),
        ("python train.py -S", None),
        ("python -m torch.distributed.run -S train.py", None),
        ("python -m pkg -I", None),
        ("bash -E run.sh", None),
        ("sudo -E python train.py", None),
    ],
)
def test_only_an_option_of_the_interpreter_itself_hides_it(command: str, option: str | None) -> None:
    assert hidden_by(command.split()) == option
