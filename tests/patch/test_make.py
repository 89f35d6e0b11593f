"""Settings become a diff of a user's own files, or a sentence why not."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path

import libcst as cst
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perftool.patch.arguments import LOADER, put
from perftool.patch.frameworks import WORDS, words
from perftool.patch.make import make
from perftool.patch.texts import decoded, diff_of, encoded, encoded_diff
from perftool.records import Site, SiteKind
from tests.patch.regenerate import GOLDEN, page
from tests.patch.samples import CODES, PLAIN, ROOT, SAMPLES, Sample, Seen

HEAD = "import torch\nfrom torch.utils.data import DataLoader\n\n"
AMP = 'with torch.autocast("cpu", dtype=torch.bfloat16):'


def patched(sample: Sample) -> str:
    return {**sample.all_files, **sample.patch().files}["train.py"]


def line_of(text: str, seen: Seen, setting: str) -> Sample:
    name, _, value = setting.partition("=")
    return Sample(text=text, seen=(seen,), settings={name: value})


# --------------------------------------------------------------------------------------------------- whole scripts


@pytest.mark.parametrize("name", SAMPLES)
def test_a_script_of_each_style(name: str) -> None:
    golden = (GOLDEN / f"{name}.diff").read_bytes().decode()
    assert page(SAMPLES[name]) == golden, "if it is meant: python -m tests.patch.regenerate"


@pytest.mark.parametrize("name", SAMPLES)
def test_a_patched_script_is_patched_already(name: str) -> None:
    sample = SAMPLES[name]
    first = sample.patch()
    again = sample.patch(files={**sample.all_files, **first.files})
    assert again.diff == ""
    assert again.written == []
    assert again.already == first.written
    assert [one.setting for one in again.unwritten] == [one.setting for one in first.unwritten]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_written_compiles_and_is_what_the_diff_says(data: st.DataObject) -> None:
    sample = SAMPLES[data.draw(st.sampled_from(sorted(SAMPLES)))]
    chosen = {
        name: data.draw(st.sampled_from(sorted(values)))
        for name, values in CODES.items()
        if data.draw(st.booleans())
    }  # fmt: skip
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    files = {name: text.replace("\n", end) for name, text in sample.all_files.items()}
    if data.draw(st.booleans()):
        files = {name: text.removesuffix(end) for name, text in files.items()}
    patch = sample.patch(chosen, files)
    told = {one.setting.partition("=")[0] for one in patch.unwritten}
    assert sorted([*patch.written, *patch.already, *told]) == sorted(chosen)
    assert all(one.reason and one.advice for one in patch.unwritten)
    assert patch.diff == "".join(diff_of(name, files[name], text) for name, text in patch.files.items())
    for name, text in patch.files.items():
        compile(text, name, "exec")
        assert text.count("\n") == text.count(end)
        assert applied(files[name], diff_of(name, files[name], text)) == text


def applied(old: str, diff: str) -> str:
    """The text that a diff of one file makes of another, by the book."""
    lines, result, at = old.splitlines(keepends=True), [], 0
    told = diff.splitlines(keepends=True)[2:]
    for before, line in pairwise(["", *told]):
        if line.startswith("@@"):
            found = re.match(r"@@ -(\d+)(?:,(\d+))?", line)
            assert found
            start = int(found[1]) - (found[2] != "0")
            result += lines[at:start]
            at = start
        elif line.startswith("\\"):
            if not before.startswith("-"):  # of a line that is gone the newline is, too
                result[-1] = result[-1].rstrip("\n")
        elif line.startswith("+"):
            result.append(line[1:])
        else:
            assert lines[at].rstrip("\n") == line[1:].rstrip("\n")
            if line.startswith(" "):
                result.append(line[1:])
            at += 1
    return "".join(result + lines[at:])


# ----------------------------------------------------------------------------------------------------------- calls


@pytest.mark.parametrize(
    ("setting", "before", "after"),
    [
        ("2", "DataLoader(rows)", "DataLoader(rows, num_workers=2, persistent_workers=True, prefetch_factor=2)"),
        (
            "2",
            "DataLoader(rows, num_workers = 8, prefetch_factor=2, persistent_workers=True)",
            "DataLoader(rows, num_workers = 2, prefetch_factor=2, persistent_workers=True)",
        ),
        (
            "2",
            "DataLoader(\n    rows,  # all\n    batch_size=4  # few\n)",
            "DataLoader(\n    rows,  # all\n    batch_size=4,  # few\n    num_workers=2,\n"
            "    persistent_workers=True,\n    prefetch_factor=2\n)",
        ),
        (
            "2",
            "DataLoader(\n    row for row in rows  # all\n)",
            "DataLoader(\n    (row for row in rows),  # all\n    num_workers=2,\n"
            "    persistent_workers=True,\n    prefetch_factor=2\n)",
        ),
        ("0", "DataLoader(rows, 4, num_workers=0)", "DataLoader(rows, 4, num_workers=0)"),  # as it is by itself
        (
            "2",
            "super().__init__(rows)",
            "super().__init__(rows, num_workers=2, persistent_workers=True, prefetch_factor=2)",
        ),
    ],
)  # fmt: skip
def test_arguments_keep_the_style_of_a_call(setting: str, before: str, after: str) -> None:
    sample = line_of(
        f"{HEAD}loader = {before}\n", Seen("loader", "loader = ", "DataLoader"), f"dataloader_workers={setting}"
    )
    assert patched(sample) == f"{HEAD}loader = {after}\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("f(rows, shuffle=True, size=4)", "f(rows, size=4)"),
        ("f(rows, 4, True)", "f(rows, 4)"),
        ("f(\n    rows,\n    shuffle=True,\n)", "f(\n    rows,\n)"),
        ("f(rows)", "f(rows)"),
        ("f(shuffle=True)", "f()"),
    ],
)
def test_what_goes_takes_its_comma_with_it(before: str, after: str) -> None:
    call = cst.ensure_type(cst.parse_expression(before), cst.Call)
    assert cst.Module([]).code_for_node(put(call, {"shuffle": None}, ("rows", "size", "shuffle"))) == after


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("DataLoader(rows, **more)", r"takes \*\*more, which may hold the same words"),
        ("DataLoader(*more)", r"takes \*more"),
        ("DataLoader(rows), DataLoader(others)", "several times"),
        ("make(rows)", "no call of DataLoader"),
        ("f'{DataLoader(rows)}'", "within a string"),
    ],
)
def test_a_call_that_cannot_be_told_is_left(before: str, reason: str) -> None:
    text = f"{HEAD}loader = {before}\n"
    patch = line_of(text, Seen("loader", "loader = ", "DataLoader"), "dataloader_workers=2").patch()
    assert patch.diff == ""
    assert re.search(reason, patch.unwritten[0].reason)
    assert "num_workers=2" in patch.unwritten[0].advice


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("DataLoader(rows, generator=g)", "a generator of its own"),
        ("DataLoader(rows, 4, None, order)", "a sampler of its own"),
        ("DataLoader(rows, shuffle=train)", "shuffle of the DataLoader at train.py:4 is not written out"),
        ("DataLoader()", "names no dataset"),
    ],
)
def test_the_order_of_a_loader_is_not_guessed(before: str, reason: str) -> None:
    patch = line_of(f"{HEAD}loader = {before}\n", Seen("loader", "loader", "DataLoader"), "batch_gather=on").patch()
    assert reason in patch.unwritten[0].reason


def test_a_dataset_with_a_name_keeps_it() -> None:
    text = f"{HEAD}loader = DataLoader(self.rows, 4, True)\n"
    after = patched(line_of(text, Seen("loader", "loader", "DataLoader"), "batch_gather=on"))
    call = after.partition("loader = ")[2]
    assert "RowsByTheBatch(self.rows.tensors)" in call
    assert "batch_size=None" in call
    assert "sampler=BatchSampler(RandomSampler(self.rows), 4, drop_last=False)" in call
    assert "shuffle" not in call


def test_the_end_of_a_call_tells_it_from_others() -> None:
    """As the interpreter itself reports where the call is, whatever the source calls the callee."""
    line = 'é = wrap("é", (make(rows)), [make(more)], make)'
    code = compile(f"{HEAD}{line}\n", "train.py", "exec")
    seen: list[tuple[int | None, int | None, int | None]] = []

    def make_loader(_: object) -> None:
        frame = inspect.currentframe()
        assert frame is not None
        assert frame.f_back is not None
        start, end, _, column = next(islice(code.co_positions(), frame.f_back.f_lasti // 2, None))
        seen.append((start, end, column))

    exec(code, {"make": make_loader, "wrap": lambda *_: None, "rows": 1, "more": 2})
    for number, name in enumerate(("rows", "more")):
        start, end, column = seen[number]
        site = Site(
            kind="loader", file=f"{ROOT}/train.py", line=start or 0, end_line=end, end_column=column, callee="X"
        )
        patch = make({"dataloader_workers": "2"}, CODES, [site], lambda _: f"{HEAD}{line}\n", ROOT)
        assert f"make({name}, num_workers=2" in patch.files["train.py"]
        assert patch.files["train.py"].count("num_workers") == 1


def test_the_positions_are_those_of_torch() -> None:
    from torch.utils.data import DataLoader

    parameters = inspect.signature(DataLoader).parameters.values()
    assert [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD] == list(LOADER)


# -------------------------------------------------------------------------------------------------------- contexts


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("y = model(x)", f"{AMP}\n    y = model(x)\ny = y.float()"),
        ("y = f(model(x))", f"{AMP}\n    output = model(x)\ny = f(output.float())"),
        ("x = model(x).view(len(x))", f"{AMP}\n    output = model(x)\nx = output.float().view(len(x))"),
        ("total += model(x)", f"{AMP}\n    output = model(x)\ntotal += output.float()"),
        ("model(model(x)).sum()", f"{AMP}\n    output = model(model(x))\noutput.float().sum()"),
        ("y = output + model(x)", f"{AMP}\n    output_2 = model(x)\ny = output + output_2.float()"),
        ("y: T = model(x)", f"{AMP}\n    output = model(x)\ny: T = output.float()"),
    ],
)
def test_a_call_in_reduced_precision_has_float32_outputs(before: str, after: str) -> None:
    sample = line_of(f"{HEAD}{before}\n", Seen("model_call", r"model\(x", "model"), "amp=bf16")
    assert patched(sample) == f"{HEAD}{after}\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("f = lambda: model(x)", "only on a condition"),
        ("y = [model(x) for x in xs]", "several times"),
        ("y = x if late else model(x)", "only on a condition"),
        ("y = x or model(x)", "only on a condition"),
        ("y = 1; z = model(x)", "several statements share"),
        ("while model(x): pass", "a compound statement"),
        ("if x: y = model(x)", "a compound statement"),
        ('with torch.autocast("cpu"):\n    y = model(x)', 'has torch.autocast("cpu") already'),
    ],
)
def test_a_call_that_cannot_be_surrounded_is_left(line: str, reason: str) -> None:
    patch = line_of(f"{HEAD}{line}\n", Seen("model_call", r"model\(x", "model"), "amp=bf16").patch()
    assert patch.diff == ""
    assert reason in patch.unwritten[0].reason


def test_half_a_setting_is_not_written() -> None:
    """The scaled update has no place, so that neither the scaler nor the autocast is written."""
    patch = line_of(f"{HEAD}y = model(x)\n", Seen("model_call", "model", "model"), "amp=fp16").patch()
    assert patch.diff == ""
    assert "scaler.step(optimizer)" in patch.unwritten[0].advice


# ---------------------------------------------------------------------------------------------------------- copies

AT_ONCE = ", non_blocking=True"


@pytest.mark.parametrize(
    ("head", "copies"),
    [
        # On the way to the host nobody would wait for it; a type is no place.
        ("", ["x = x.to(device~)", 'labels.append(y.to("cpu").numpy())', 'seen = y.to(torch.device("cpu"))']),
        ("", ["x = x.to(device~)", "y = y.to(torch.long)", "y = y.to(dtype=torch.long)", "y = y.to(x)"]),
        ("", ["x = x.to(dtype=torch.half, device=device~)", "y = y.to(device~).long()"]),
        ('home = device2 = torch.device("cpu")', ["x = x.to(device~)", "y = y.to(home)", "z = y.to(device2)"]),
        # What is there already is not copied.
        ("", ["x = x.to(device~)", "z = x.to(device)", "y = y.cuda(~)", "y = y.cuda()"]),
        ("", ['image = x["image"].to(device~)', 'mask = x["mask"].to(device~)', "z = image.to(device)"]),
        ("", ["x = {name: part.to(device~) for name, part in x.items()}", 'z = x["labels"].to(device)']),
        # Where the model is, too.
        ("model = Net().to(rank)", ["x = x.to(rank~)", "y = y.to(device)", 'z = y.to("cuda:1"~)']),
        ("model = Net().to(rank)", ["x = x.to(model.device~)", "y = y.to(other.device)"]),
        ("model = Net().to(torch.half)", ["x = x.to(args.device~)", "y = y.cuda(0~)"]),
    ],
)  # fmt: skip
def test_only_copies_to_the_device_do_not_wait(head: str, copies: list[str]) -> None:
    lines = [*copies, "model(x).sum().backward()"]
    text = f"{HEAD}{head}\nfor x, y in loader:\n" + "".join(f"    {line}\n" for line in lines)
    before = text.replace("~", "")
    sample = line_of(before, Seen("model_call", r"model\(x\).sum", "model"), "pinned_memory=on")
    codes = {"pinned_memory": {"on": {"copy_arguments": "non_blocking=True"}}}
    patch = make({"pinned_memory": "on"}, codes, sample.sites(), lambda _: before, ROOT)
    assert patch.files["train.py"] == text.replace("(~", "(non_blocking=True").replace("~", AT_ONCE)


@pytest.mark.parametrize("kind", ["model_call", "loader"])
def test_a_reason_names_what_is_not_seen(kind: SiteKind) -> None:
    """A place that no call is seen at has no name of what is called."""
    patch = line_of(
        f"{HEAD}x = 1\n", Seen(kind, "x = 1"), "amp=bf16" if kind == "model_call" else "dataloader_workers=2"
    ).patch()
    assert "  " not in patch.unwritten[0].reason


# ----------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("/elsewhere/train.py", "f(x)\n", "is not below"),
        (f"{ROOT}/../other/train.py", "f(x)\n", "is not below"),
        ("", "", "no file of yours"),
        (f"{ROOT}/missing.py", None, "cannot be read"),
        (f"{ROOT}/train.py", "def (:\n", "libcst cannot read train.py, line 1"),
    ],
)
def test_a_file_that_is_not_to_be_changed(file: str, text: str | None, reason: str) -> None:
    def read(path: str) -> str:
        if text is None:
            raise FileNotFoundError(path)
        assert path.startswith(f"{ROOT}/")
        return text

    site = Site(kind="optimizer", file=file, line=1, callee="f")
    patch = make({"optimizer_kernel": "fused"}, CODES, [site], read, ROOT)
    assert (patch.diff, patch.files) == ("", {})
    assert reason in patch.unwritten[0].reason


def test_every_file_keeps_its_own_changes() -> None:
    sample = Sample(
        text="import torch\nimport nets\n",
        files={"pkg/nets.py": "from torch import nn\n\n\ndef step(model, x):\n    return model(x)\n"},
        seen=(Seen("model_call", "model.x.", "model", file="pkg/nets.py"),),
        settings={"amp": "bf16", "threads": "1"},
    )
    patch = sample.patch()
    assert sorted(patch.files) == ["pkg/nets.py", "train.py"]
    assert "import torch\n" in patch.files["pkg/nets.py"]
    assert "set_num_threads" not in patch.files["pkg/nets.py"]


ODD = {
    "crlf": PLAIN.text.replace("\n", "\r\n").encode(),
    "latin": PLAIN.text.replace("/usr/bin/env python", " coding: latin-1")
    .replace("plain", "très plain")
    .encode("latin-1"),
    "marked": b"\xef\xbb\xbf" + PLAIN.text.encode(),
    "open": PLAIN.text.rstrip("\n").encode(),
}


@pytest.mark.process
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("tool", [["git", "apply"], ["patch", "-p1", "--binary", "-i"]], ids=["git", "patch"])
def test_tools_apply_it(name: str, tool: list[str], tmp_path: Path) -> None:
    file = tmp_path / "my code" / "train.py"
    file.parent.mkdir()
    file.write_bytes(ODD[name])
    sites = [
        Site(kind="main", file=str(file), line=1),
        Site(kind="optimizer", file=str(file), line=12, callee="Adam"),
    ]
    wanted = {"optimizer_kernel": "fused", "threads": "1"}
    patch = make(wanted, CODES, sites, lambda path: decoded(Path(path).read_bytes()), str(tmp_path))
    assert patch.written == ["optimizer_kernel", "threads"]
    (tmp_path / "recommended.patch").write_bytes(encoded_diff(patch.diff, patch.files))
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run([*tool, "recommended.patch"], cwd=tmp_path, check=True, capture_output=True)
    assert file.read_bytes() == encoded(patch.files["my code/train.py"]) != ODD[name]
    ast.parse(file.read_bytes())


@pytest.mark.process
def test_a_patched_script_trains(tmp_path: Path) -> None:
    patch = PLAIN.patch({name: value for name, value in PLAIN.settings.items() if name != "torch_compile"})
    (tmp_path / "train.py").write_bytes(encoded(patch.files["train.py"]))
    command = [sys.executable, str(tmp_path / "train.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"epoch \d: loss \d", done.stdout)


@pytest.mark.parametrize("text", ["x = 1\n", "\ufeffx = 1\n", "# coding: latin-1\nx = 'é'\r\n", ""])
def test_text_and_bytes_are_the_same_thing(text: str) -> None:
    assert decoded(encoded(text)) == text


# ------------------------------------------------------------------------------------------------------ frameworks


def test_frameworks_say_it_with_the_value() -> None:
    assert words("transformers", "dataloader_workers", "3") == (
        "TrainingArguments(dataloader_num_workers=3, dataloader_persistent_workers=True)"
    )
    assert words("lightning", "threads", "1") is None
    assert words("another", "amp", "bf16") is None
    assert not [text for known in WORDS.values() for text in known.values() if "{{" in text]
