"""Temporary folders, and those of a perftool that was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from perftool.temporary import LOCK, Temporary, temporary_folder


def test_what_a_killed_perftool_left_is_removed_by_the_next(tmp_path: Path) -> None:
    alive, killed = Temporary(tmp_path), Temporary(tmp_path)
    (killed.path / "variant-0").mkdir(mode=0o000)
    killed._lock.close()  # as its death does
    new = Temporary(tmp_path)
    assert not killed.path.exists()
    assert alive.path.exists()
    for one in (alive, new):
        one.close()
    assert not list(tmp_path.iterdir())


def test_a_folder_is_empty_and_beside_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert not list(folder.iterdir())
        assert (folder.parent / LOCK).exists()
    assert not list(tmp_path.iterdir())
