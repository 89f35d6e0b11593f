"""Sessions on disk: nothing that was written is lost, and whatever else is there ends in a sentence."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from perftool.records import (
    Decision,
    HistoryEntry,
    Record,
    Session,
    StoredBaseline,
    StoredMetric,
    TrainingRun,
    from_json,
    to_json,
)
from perftool.store import (
    JOURNAL,
    SESSION,
    NewVariant,
    NewWarning,
    SessionStore,
    StoreError,
    append_history,
    load_baseline,
    load_history,
    load_session,
    measuring_lock,
    open_results,
    reopen,
    save_baseline,
)
from tests.measure.fakes import make_session
from tests.sessions import make_launch, timed_session

SLOWER: list[tuple[dict[str, str], float]] = [({}, 10.0), ({"amp": "bf16"}, 12.0)]


def journal(folder: Path, session: Session) -> SessionStore:
    """The session written down record by record, as measuring does it."""
    folder.mkdir(parents=True, exist_ok=True)
    written = SessionStore(folder)
    written.append(replace(session, launches=[], blocks=[], training_runs=[], decisions=[]))
    records: list[Record] = [*session.blocks, *session.launches, *session.training_runs, *session.decisions]
    for record in records:
        written.append(record)
    return written


# ---------------------------------------------------------------------------------------------------------- folders


def test_a_folder_is_named_after_its_time_workload_and_command(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    folder = open_results(tmp_path / "new" / "out", "scenarios.reference:medium", "tune", now).folder
    assert folder == tmp_path / "new" / "out" / "20260102T030405Z-scenarios-reference-medium-tune"
    again = open_results(tmp_path / "new" / "out", "scenarios.reference:medium", "tune", now).folder
    assert again != folder
    assert again.is_dir()


@pytest.mark.parametrize(
    ("workload", "part"),
    [
        ("/home/user/my project/train.py:big", "-train-big-"),
        ("../../etc:passwd", "-etc-passwd-"),
        ("<script>alert(1)</script>", "-script-"),
        ("größe.py:ü", "-gr-e-"),
        ("::", "-workload-"),
        ("x" * 300 + ":y", "x-y-"),
    ],
)
def test_any_workload_makes_a_plain_folder_name(tmp_path: Path, workload: str, part: str) -> None:
    folder = open_results(tmp_path, workload, "tune").folder
    assert folder.parent == tmp_path
    assert part in folder.name
    assert folder.name.isascii()
    assert len(folder.name) < 100


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(StoreError, match="is a file; name a folder with --out"):
        open_results(tmp_path / "out", "w", "tune")
    with pytest.raises(StoreError, match="--out"):
        open_results(tmp_path / "out" / "below", "w", "tune")


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # permissions do not hold root back
    with pytest.raises(StoreError, match=r"cannot be written \(Permission denied\); name another folder with --out"):
        open_results(tmp_path, "w", "tune")


def test_space_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total, used, _ = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(total, used, 12_000_000))
    with pytest.raises(StoreError, match=r"only 12 MB free .* --out"):
        open_results(tmp_path, "w", "tune")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_measurements_is_taken_away(tmp_path: Path) -> None:
    opened = open_results(tmp_path, "w", "tune")
    opened.append(make_session())
    opened.discard()
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------- writing and reading


def test_a_finished_session_reads_back_whole_from_folder_and_file(tmp_path: Path) -> None:
    session = timed_session(SLOWER)
    written = journal(tmp_path / "s", session)
    written.finish(session)
    assert load_session(written.folder) == session
    assert load_session(written.folder / SESSION) == session
    assert [path.name for path in written.folder.iterdir()] == [SESSION]


def test_a_killed_session_reads_back_from_its_journal_as_interrupted(tmp_path: Path) -> None:
    session = replace(
        timed_session(SLOWER),
        training_runs=[TrainingRun(variant=1, seed=0, steps=5, loss=None)],
        decisions=[Decision(stage="alone", settings={"amp": "bf16"}, action="dropped", reason="slower")],
    )
    written = journal(tmp_path / "s", session)
    expected = replace(session, interrupted=True)
    assert load_session(written.folder) == expected
    assert load_session(written.folder / JOURNAL) == expected


def test_variants_and_warnings_that_come_while_measuring_are_in_the_journal(tmp_path: Path) -> None:
    growing = SessionStore(tmp_path)
    growing.append(make_session())
    growing.append(NewVariant(settings={"amp": "bf16"}))
    growing.append(make_launch(0, 1))
    growing.append(NewWarning(text="the launches differ"))
    read = load_session(tmp_path)
    assert read.variants == [{}, {"amp": "bf16"}]
    assert read.warnings == ["the launches differ"]
    assert [launch.variant for launch in read.launches] == [1]


def test_a_launch_written_when_it_starts_is_replaced_when_it_ends(tmp_path: Path) -> None:
    growing = SessionStore(tmp_path)
    growing.append(make_session())
    growing.append(make_launch(0, 0, peak_host_bytes=None))
    growing.append(make_launch(1, 0))
    growing.append(make_launch(0, 0, peak_host_bytes=5))
    assert [(one.launch, one.peak_host_bytes) for one in load_session(tmp_path).launches] == [(0, 5), (1, 400_000_000)]


@pytest.mark.parametrize("lost_bytes", [1, 2, 30, 100])
def test_a_last_line_cut_short_is_left_out(tmp_path: Path, lost_bytes: int) -> None:
    session = timed_session(SLOWER, rounds=3)
    path = journal(tmp_path, replace(session, launches=[])).folder / JOURNAL
    path.write_bytes(path.read_bytes()[:-lost_bytes])
    assert load_session(tmp_path).blocks == session.blocks[:-1]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = journal(tmp_path, timed_session(SLOWER)).folder / JOURNAL
    lines = path.read_bytes().split(b"\n")
    lines[3] = b"\xff" + lines[3][5:]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(StoreError, match="line 4 is damaged"):
        load_session(tmp_path)


def test_a_full_disk_ends_in_a_sentence_and_leaves_what_was_written_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk holds so many more bytes: a write is cut short, and the next one raises."""
    session = timed_session(SLOWER, rounds=3)
    written = journal(tmp_path, replace(session, launches=[]))
    before = (tmp_path / JOURNAL).read_bytes()
    real_open, left = Path.open, 100

    def full(path: Path, *arguments: Any, **options: Any) -> Any:
        file = real_open(path, *arguments, **options)
        real_write = file.write

        class Full:
            def __enter__(self) -> Full:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

            def write(self, content: bytes) -> int:
                nonlocal left
                fits = min(left, len(content))
                left -= fits
                if not fits:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return int(real_write(content[:fits]))

        return Full()

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StoreError, match="is full; free some space"):
        written.append(session.launches[0])
    with pytest.raises(StoreError, match="is full; free some space"):
        written.write("summary.json", b"x")
    monkeypatch.undo()
    assert (tmp_path / JOURNAL).read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))
    assert load_session(tmp_path).blocks == session.blocks


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_device_ends_in_a_sentence(tmp_path: Path) -> None:
    session = timed_session(SLOWER, rounds=1)
    store = SessionStore(tmp_path)
    store.append(make_session())
    (tmp_path / JOURNAL).unlink()
    (tmp_path / JOURNAL).symlink_to("/dev/full")
    with pytest.raises(StoreError, match="is full; free some space, or name another folder with --out"):
        store.append(session.blocks[0])


def test_a_session_that_is_gone_on_with_keeps_what_it_has_and_grows(tmp_path: Path) -> None:
    session = timed_session(SLOWER, rounds=3)
    journal(tmp_path, session).finish(session)
    store, again = reopen(tmp_path)
    assert again == session
    more = replace(session.blocks[-1], round=session.blocks[-1].round + 1)
    store.append(again)
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL]
    store.append(more)
    assert load_session(tmp_path).blocks == [*session.blocks, more]
    assert load_session(tmp_path).launches == session.launches


def test_a_finish_that_fails_leaves_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = timed_session(SLOWER)
    written = journal(tmp_path, session)

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="is full"):
        written.finish(session)
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL]
    assert load_session(tmp_path).blocks == session.blocks


# ---------------------------------------------------------------------------------------------- what is no session


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no .*nowhere; give a session's folder"):
        load_session(tmp_path / "nowhere")


def test_a_folder_with_neither_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds neither session\.json nor journal\.jsonl"):
        load_session(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'"\xff"', b"null", b'{"seed": "x"}', b"[" * 9999])
@pytest.mark.parametrize("name", [SESSION, JOURNAL])
def test_damage(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=f"{name}: not a Session of perftool"):
        load_session(tmp_path)


def test_a_launch_of_a_variant_that_is_not_there(tmp_path: Path) -> None:
    session = make_session()
    session.launches.append(make_launch(0, 7))
    SessionStore(tmp_path).finish(session)
    with pytest.raises(StoreError, match="damaged: it speaks of variant 7, and has 1"):
        load_session(tmp_path)


def test_a_newer_major_version_is_refused_even_where_its_fields_differ(tmp_path: Path) -> None:
    (tmp_path / SESSION).write_bytes(b'{"schema_version": "2.0", "seed": {"new": 1}}')
    with pytest.raises(StoreError, match=r"schema version 2\.0 is not readable here"):
        load_session(tmp_path)


def test_a_newer_minor_version_is_read_and_its_new_fields_are_passed_over(tmp_path: Path) -> None:
    session = make_session()
    document = msgspec.json.decode(to_json(session))
    newer = {**document, "schema_version": "1.99", "mood": {"of": ["the", "day"]}}
    (tmp_path / SESSION).write_bytes(msgspec.json.encode(newer))
    assert load_session(tmp_path) == replace(session, schema_version="1.99")


# ------------------------------------------------------------------------------------------------------------- lock


def test_the_second_waits_and_names_whom_it_waits_for(tmp_path: Path) -> None:
    path, order, told = tmp_path / "lock", list[str](), list[str]()
    waits = threading.Event()

    def second() -> None:
        def on_wait(sentence: str) -> None:
            told.append(sentence)
            waits.set()

        with measuring_lock(on_wait, path):
            order.append("second")

    with measuring_lock(told.append, path):
        assert told == []
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert told == [f"another perftool is measuring here (process {os.getpid()}); waiting for it to end"]
    assert path.stat().st_mode & 0o777 == 0o666


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    held = "with store.measuring_lock(print, Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    code = f"import os, sys; from pathlib import Path; from perftool import store\n{held}"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], check=False)
    assert done.returncode == -9
    told: list[str] = []
    with measuring_lock(told.append, tmp_path / "lock"):
        assert told == []


def test_a_lock_that_cannot_be_had_is_said_and_measuring_goes_on(tmp_path: Path) -> None:
    told: list[str] = []
    with measuring_lock(told.append, tmp_path):
        assert len(told) == 1
    assert "another perftool may measure at the same time" in told[0]


def test_a_lock_file_that_may_only_be_read_still_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another user's file is; root would be let through, so the refusal is made up."""
    path, real_open = tmp_path / "lock", os.open
    path.write_text("1")

    def refuse(name: Path, flags: int, mode: int = 0o777) -> int:
        if name == path and flags & os.O_RDWR and not flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(name, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    told: list[str] = []
    with measuring_lock(told.append, path):
        code = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        other = subprocess.run([sys.executable, "-c", code, str(path)], check=False, capture_output=True)
    assert told == []
    assert b"BlockingIOError" in other.stderr


def test_session_json_is_what_records_read(tmp_path: Path) -> None:
    session = timed_session(SLOWER)
    SessionStore(tmp_path).finish(session)
    assert from_json((tmp_path / SESSION).read_bytes(), Session) == session


# ------------------------------------------------------------------------------------------------------ a check's files


def make_entry(commit: str) -> HistoryEntry:
    return HistoryEntry(
        created_at="2026-01-01T00:00:00+00:00",
        workload="train.py:mine",
        against="4c1d2e3f",
        commit=commit,
        dirty=False,
        machine="a machine, 2 cores",
        outcome="passed",
        log_ratios={"throughput": 0.0},
    )


def test_a_damaged_line_of_a_history_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    append_history(file, make_entry("1"))
    with file.open("ab") as handle:
        handle.write(b"\n{half\n")
    append_history(file, make_entry("2"))
    notes: list[str] = []
    assert [one.commit for one in load_history(file, notes.append)] == ["1", "2"]
    blank, damaged = notes
    assert blank == f"{file}, line 2 is left out: it is blank"
    assert damaged.startswith(f"{file}, line 3 is left out: not a HistoryEntry of perftool")
    assert load_history(file) == load_history(file, notes.append)


def make_baseline(margin: float = 0.02, log_values: Sequence[float] = (0.7,) * 5) -> StoredBaseline:
    return StoredBaseline(
        workload="train.py:mine",
        settings={},
        created_at="2026-01-01T00:00:00+00:00",
        commit=None,
        dirty=None,
        machine={},
        metrics={"throughput": StoredMetric(log_values=list(log_values), margin=margin)},
        counters=None,
    )


def test_a_stored_baseline_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "baselines" / "mine.json"
    save_baseline(file, make_baseline())
    assert load_baseline(file) == make_baseline()


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        (make_baseline(margin=-2.0), "throughput has the margin -2"),
        (make_baseline(margin=0.0), "throughput has the margin 0"),
        (make_baseline(margin=2.0), "throughput has the margin 2"),
        (make_baseline(log_values=[]), "throughput has no values"),
        (make_baseline(log_values=[0.7, -400.0]), "throughput has the value -400"),
    ],
)
def test_an_impossible_number_of_a_stored_baseline_is_named(
    baseline: StoredBaseline, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.json"
    save_baseline(file, baseline)
    with pytest.raises(StoreError, match=f"{re.escape(str(file))}: {re.escape(words)}.*--write-baseline"):
        load_baseline(file)
