"""Where the ranks of one launch meet. A port or a file that a script names itself would be that of all launches which
live at once, so each launch has one of its own in its place."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # torchrun has made the store already, at a port of the launch's own


def meet_apart(folder: Path) -> None:
    """Have `init_process_group` meet at a port, or by a file, of this launch. Torch must be loaded.

    folder: which the processes of the launch share, and nobody else.
    """
    from torch import distributed

    if not distributed.is_available():
        return
    rendezvous = import_module("torch.distributed.rendezvous")

    def at_port(make: Callable[..., Any]) -> Callable[..., Any]:
        def store(host: str, port: int, *arguments: Any, **options: Any) -> Any:
            is_own = port and os.environ.get(AGENT_STORE) != str(True) and is_here(host)
            return make(host, own_port(folder, port) if is_own else port, *arguments, **options)

        return store

    def by_file(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda path, *arguments, **options: make(own_file(folder, path), *arguments, **options)

    for name, make in (("_create_c10d_store", at_port), ("FileStore", by_file)):
        if hasattr(rendezvous, name):  # as torch 2 has them
            setattr(rendezvous, name, make(getattr(rendezvous, name)))


def own_port(folder: Path, port: int) -> int:
    """The one that this launch has in place of a port, whichever of its processes asks first."""
    return int(_agreed(folder / f"port-{port}", str(free_port())))


def own_file(folder: Path, path: str) -> str:
    """The one that this launch has in place of a file."""
    return str(folder / f"file-{hashlib.sha256(path.encode()).hexdigest()[:16]}")


def is_here(host: str) -> bool:
    """Whether a name is one of this machine's."""
    with suppress(OSError):
        for family, kind, protocol, _, (address, *_) in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
            with suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.bind((address, 0))
                return True
    return False


def _agreed(path: Path, proposal: str) -> str:
    """What a file says once it is there as a whole: the proposal of the first."""
    own = path.with_name(f"{path.name}-{os.getpid()}")
    own.write_text(proposal)
    with suppress(FileExistsError):
        os.link(own, path)
    own.unlink()
    return path.read_text()


def free_port() -> int:
    """One of this machine's that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port
