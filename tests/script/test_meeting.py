"""Where ranks meet whose script names a port or a file itself."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from perftool.script.meeting import is_here, meet_apart, own_port


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that makes them, which here tells where it would."""
    rendezvous = import_module("torch.distributed.rendezvous")
    monkeypatch.setattr(rendezvous, "_create_c10d_store", lambda host, port, *_: (host, port))
    monkeypatch.setattr(rendezvous, "FileStore", lambda path, *_: path)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    meet_apart(tmp_path)
    return rendezvous


def test_a_port_is_the_launchs_own_and_the_same_in_all_ranks(stores: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    host, port = stores._create_c10d_store("localhost", 12355, 0, 2, None)
    assert host == "localhost"
    assert port not in (12355, own_port(tmp_path / "other", 12355), own_port(tmp_path, 12356))
    assert stores._create_c10d_store("127.0.0.1", 12355, 1, 2, None) == ("127.0.0.1", port)


def test_torchruns_store_and_other_machines_are_left_alone(stores: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stores._create_c10d_store("198.51.100.1", 12355, 0, 2, None) == ("198.51.100.1", 12355)
    assert not is_here("no-such-machine.invalid")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert stores._create_c10d_store("localhost", 12355, 0, 2, None) == ("localhost", 12355)


def test_a_file_is_the_launchs_own(stores: ModuleType, tmp_path: Path) -> None:
    first, again, other = (stores.FileStore(path, 2) for path in ("/tmp/shared", "/tmp/shared", "/tmp/another"))
    assert first == again != other
    assert Path(first).parent == tmp_path
