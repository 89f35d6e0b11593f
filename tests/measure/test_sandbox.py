"""What a command may touch: which folders are covered, and what real launches leave of what they write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from perftool.measure import sandbox as module
from perftool.measure.sandbox import Sandbox, downloads, file_system, fingerprint, fixed_port, places, uncovered
from perftool.measure.view import mounts_within
from tests.measure.test_tree import eventually

LIMIT_S = 30.0


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder within a repository, and a home elsewhere."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "repository" / "project"
    folder.mkdir(parents=True)
    (tmp_path / "repository" / ".git").mkdir()
    return folder


def test_the_repository_of_the_working_folder_is_covered(project: Path) -> None:
    assert places(["python", "train.py", "--data", "../data", "--lr", "1e-3"], project) == [project.parent]


def test_a_repository_of_the_whole_home_does_not_cover_it(tmp_path: Path, project: Path) -> None:
    home = tmp_path / "home"
    (home / ".git").mkdir()
    (home / "project").mkdir()
    assert places(["python", "train.py"], home / "project") == [home / "project"]


@pytest.mark.parametrize("form", ["--out {}", "--out={}", "output_dir={}", "{}", "python train.py --out {}"])
def test_a_folder_named_outside_of_it_is_covered_too(tmp_path: Path, project: Path, form: str) -> None:
    (tmp_path / "results").mkdir()
    arguments = form.format(tmp_path / "results")
    command = ["bash", "-c", arguments] if "python" in form else ["python", "train.py", *arguments.split()]
    assert places(command, project) == [project.parent, tmp_path / "results"]


def test_what_is_yet_to_be_made_is_covered_by_the_folder_that_is_there(tmp_path: Path, project: Path) -> None:
    (tmp_path / "results").mkdir()
    command = ["python", "train.py", "--out", str(tmp_path / "results" / "runs" / "1"), "--model", "org/name"]
    assert places(command, project) == [project.parent, tmp_path / "results"]


def test_links_are_followed_and_nested_folders_are_covered_once(tmp_path: Path, project: Path) -> None:
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (project / "out").symlink_to(tmp_path / "disk")
    command = ["python", "train.py", "--out", "out", "--log", str(tmp_path / "disk" / "run")]
    assert places(command, project) == [tmp_path / "disk", project.parent]


@pytest.mark.parametrize("path", ["/", "/usr", "/home", "/tmp", "/dev/shm", "/dev/null", "/proc/self"])
def test_the_system_is_never_covered(project: Path, path: str) -> None:
    assert places(["python", "train.py", path], project) == [project.parent]


def test_what_cannot_be_covered_is_named(project: Path) -> None:
    command = ["/usr/bin/python", "train.py", "--out", "/tmp/perftool-none-such", "--log", "/dev/null"]
    assert uncovered(command, project) == [Path("/tmp/perftool-none-such")]
    assert uncovered(["python", "train.py"], Path("/tmp")) == [Path("/tmp")]


@pytest.mark.parametrize(
    ("command", "port"),
    [
        ("python train.py", None),
        ("torchrun --standalone train.py", None),
        ("torchrun --master-port 1234 train.py", None),
        ("python -m torch.distributed.run --master_port=1234 train.py", None),
        ("torchrun --rdzv-endpoint=localhost:1234 train.py", 1234),
        ("torchrun --rdzv-endpoint=localhost:0 train.py", None),
        ("accelerate launch --main_process_port 1234 train.py", 1234),
        ("deepspeed --master_port=1234 train.py", 1234),
        ("python train.py --dist-url tcp://127.0.0.1:1234", None),
    ],
)
def test_a_port_that_two_launches_would_share_is_found(command: str, port: int | None) -> None:
    assert fixed_port(command.split()) == port


def test_mounts_are_read_from_the_table() -> None:
    table = "\n".join(
        [
            "1 0 8:1 / / rw - ext4 /dev/a rw",
            r"2 1 8:2 / /data/my\040set rw shared:1 - nfs4 server:/ rw",
            "3 2 8:3 / /data rw - xfs /dev/b rw",
            "4 1 8:4 / /database rw - tmpfs none rw",
        ]
    )
    assert mounts_within("/data", table) == ["/data/my set"]
    assert file_system(Path("/data/my set/x"), table) == "nfs4"
    assert file_system(Path("/elsewhere"), table) == "ext4"


def test_a_fingerprint_sees_what_was_added_changed_and_removed(project: Path) -> None:
    for name in ("same", "changed", "removed"):
        (project / name).write_text(name)
    (project / "ignored").mkdir()
    before = fingerprint([project], [project / "ignored"])
    (project / "changed").write_text("another")
    (project / "removed").unlink()
    (project / "added").touch()
    (project / "ignored" / "session").touch()
    (project / "__pycache__").mkdir()
    (project / "__pycache__" / "x.pyc").touch()
    after = fingerprint([project], [project / "ignored"])
    differing = {Path(path).name for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert differing == {"added", "changed", "removed"}


def test_downloads_are_folders_with_large_files_and_large_files_at_the_top(tmp_path: Path) -> None:
    large = b"x" * 1_000_000
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "images").write_bytes(large)
    (tmp_path / "data" / "raw" / "labels").write_text("small")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "events").write_text("small")
    (tmp_path / "set.npz").write_bytes(large)
    assert downloads(tmp_path) == ["data/raw", "set.npz"]


def test_trackers_are_offline_and_tokens_are_hidden(project: Path) -> None:
    environment = {"HF_TOKEN": "secret", "MLFLOW_TRACKING_URI": "http://tracker", "WANDB_MODE": "online", "MINE": "1"}
    opened = Sandbox.open(["python", "train.py"], project, environment)
    opened.close()
    assert "HF_TOKEN" not in opened.environment
    assert not Path(opened.environment["HF_TOKEN_PATH"]).exists()
    assert "MLFLOW_TRACKING_URI" not in opened.environment
    assert opened.environment["WANDB_MODE"] == "offline"
    assert opened.environment["MINE"] == "1"
    assert any("no token" in sentence for sentence in opened.unprotected)


@pytest.fixture
def sandbox(project: Path) -> Iterator[Sandbox]:
    (project / "old").write_text("old")
    opened = Sandbox.open([sys.executable, "train.py"], project, os.environ)
    yield opened
    opened.close()
    assert not opened.root.exists()


@pytest.fixture
def covered(sandbox: Sandbox) -> Sandbox:
    if not sandbox.protected or sandbox.view.in_memory:
        pytest.skip(f"no overlay on a disk here: {sandbox.unprotected}")
    return sandbox


def printed(sandbox: Sandbox, source: str, *arguments: Path, files: Mapping[Path, bytes] | None = None) -> str:
    """What a launch of some Python prints until it ends."""
    launch = sandbox.launch([sys.executable, "-c", source, *map(str, arguments)], files=files)
    ended = launch.ended(LIMIT_S)
    text = launch.printed()
    launch.close()
    assert ended is not None
    assert ended.code == 0, text
    return text


@pytest.mark.process
def test_a_launch_writes_where_it_likes_and_the_folder_stays_as_it_was(covered: Sandbox, project: Path) -> None:
    source = (
        "import os; open('new', 'w'); os.remove('old'); open('../up', 'w'); os.makedirs('runs/1');"
        "print(os.getcwd(), os.getuid(), sorted(os.listdir('.')), os.stat('new').st_uid)"
    )
    user = os.getuid()
    assert printed(covered, source) == f"{project} {user} ['new', 'runs'] {user}\n"
    assert sorted(path.name for path in project.parent.rglob("*")) == [".git", "old", "project"]
    assert covered.changed() == []


@pytest.mark.process
def test_each_launch_begins_with_what_the_user_has(covered: Sandbox) -> None:
    source = "import os; print(os.path.exists('old')); os.remove('old')"
    assert [printed(covered, source) for _ in range(2)] == ["True\n", "True\n"]


@pytest.mark.process
def test_files_lie_over_the_users_own_in_one_launch(covered: Sandbox, project: Path) -> None:
    script = project / "code" / "run.sh"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho own")
    script.chmod(0o755)
    (script.parent / "beside").write_text("beside")
    assert covered.covers(script)
    assert not covered.covers(project.parent.parent / "elsewhere")
    source = "import os; os.system('code/run.sh'); print(*sorted(os.listdir('code')))"
    patched = {script: b"#!/bin/sh\necho patched"}
    assert printed(covered, source, files=patched) == "patched\nbeside run.sh\n"
    assert printed(covered, source) == "own\nbeside run.sh\n"
    assert script.read_text().endswith("own")


@pytest.mark.process
def test_caches_within_a_covered_folder_or_named_are_shared(tmp_path: Path, project: Path) -> None:
    caches = [project / "cache", tmp_path / "home" / ".cache" / "sets"]
    for cache in caches:
        cache.mkdir(parents=True)
    command = [sys.executable, "train.py", "--cache", str(caches[1])]
    opened = Sandbox.open(command, project, {**os.environ, "HF_HOME": str(caches[0])})
    try:
        printed(
            opened, "import sys; [open(f'{path}/model', 'w').write('downloaded') for path in sys.argv[1:]]", *caches
        )
        assert [(path / "model").read_text() for path in caches] == ["downloaded"] * 2
        assert opened.changed() == []
    finally:
        opened.close()


@pytest.mark.process
def test_downloads_before_the_first_step_are_seen_by_later_launches(covered: Sandbox, project: Path) -> None:
    first = covered.launch(
        [
            sys.executable,
            "-c",
            "import os, time; os.makedirs('data'); open('data/set', 'w').write('x' * 1_000_000);"
            "open('results', 'w'); print(flush=True); time.sleep(1000)",
        ]
    )
    assert eventually(lambda: first.printed() != "")
    first.tree.stop()
    assert covered.keep_downloads(first) == [str(project / "data")]
    first.close()
    source = "import os; print(os.path.getsize('data/set'), os.path.exists('results')); open('data/set', 'w')"
    assert [printed(covered, source) for _ in range(2)] == ["1000000 False\n"] * 2
    assert sorted(path.name for path in project.iterdir()) == ["old"]


@pytest.mark.process
def test_each_launch_has_a_temporary_folder_and_a_port_of_its_own(sandbox: Sandbox) -> None:
    source = (
        "import json, os, tempfile; tempfile.mkstemp();"
        "print(json.dumps([tempfile.gettempdir(), os.environ['MASTER_PORT'], os.environ['PET_RDZV_ENDPOINT']]))"
    )
    (folder, port, endpoint), (other_folder, other_port, _) = (json.loads(printed(sandbox, source)) for _ in range(2))
    assert folder != other_folder
    assert port != other_port
    assert endpoint == f"localhost:{port}"
    assert not Path(folder).exists()


@pytest.mark.process
def test_what_a_killed_perftool_left_is_removed_by_the_next(sandbox: Sandbox, project: Path) -> None:
    source = (
        "import os, sys; from pathlib import Path; from perftool.measure.sandbox import Sandbox;"
        "opened = Sandbox.open(['sh'], Path(sys.argv[1]), os.environ); print(opened.root, flush=True);"
        "os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", source, project], stdout=subprocess.PIPE, text=True)
    left = Path(killed.stdout.strip())
    assert left.exists()
    Sandbox.open([sys.executable], project, os.environ).close()
    assert not left.exists()
    assert sandbox.root.exists()


@pytest.mark.process
def test_what_changes_in_the_folder_meanwhile_is_found(sandbox: Sandbox, project: Path) -> None:
    (project / "old").write_text("changed")
    assert sandbox.changed() == [str(project / "old")]


@pytest.mark.process
def test_what_perftool_prints_to_is_its_own(tmp_path: Path) -> None:
    told = tmp_path / "out.txt"
    tell = "from perftool.measure.sandbox import own_output; print(*own_output())"
    with told.open("w") as out:
        subprocess.run([sys.executable, "-c", tell], stdout=out, stderr=subprocess.DEVNULL, check=True)
    assert told.read_text().split() == [str(told)]
    assert fingerprint([tmp_path], [told]) == {}


@pytest.mark.process
def test_without_views_commands_run_all_the_same_and_it_is_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_trial", lambda attempt: dict.fromkeys(attempt.places, "not here"))
    opened = Sandbox.open([sys.executable], project, os.environ)
    try:
        assert opened.protected == []
        assert f"what is written to {project.parent} stays there: it cannot be covered (not here)" in opened.unprotected
        printed(opened, "open('new', 'w')")
        assert opened.changed() == [str(project / "new")]
    finally:
        opened.close()


@pytest.mark.process
def test_in_a_user_namespace_what_has_another_owner_is_not_covered(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be changed there, and the command would fail."""
    (project / "shared").touch()
    monkeypatch.setattr(module, "_may_mount", lambda: False)
    monkeypatch.setattr(os, "getegid", lambda: os.stat(project).st_gid + 1)
    opened = Sandbox.open([sys.executable], project, os.environ)
    opened.close()
    assert opened.protected == []
    assert any("another owner or group" in sentence for sentence in opened.unprotected)


@pytest.mark.process
def test_what_is_mounted_within_a_covered_folder_is_covered_too(project: Path) -> None:
    """In a mount namespace of this test's own, in which there is a second file system."""
    (project / "data").mkdir()
    script = (
        f"mount -t tmpfs none {project}/data && echo set > {project}/data/set && exec {sys.executable} -c "
        "'import os, sys; from pathlib import Path; from perftool.measure.sandbox import Sandbox\n"
        f'project = Path("{project}"); opened = Sandbox.open(["sh"], project, os.environ)\n'
        'launch = opened.launch(["sh", "-c", "cat data/set; echo new > data/set; cat data/set"])\n'
        'launch.ended(30); print(launch.printed(), opened.unprotected[:-1], (project / "data/set").read_text())\n'
        "launch.close(); opened.close()'"
    )
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True)
    if "permitted" in done.stderr or "denied" in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr}")
    assert done.stdout.split() == ["set", "new", "[]", "set"], done.stderr
