"""The script's end of the socket to perftool: one JSON document a line, requests in, replies out."""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Mapping
from typing import Any


class Channel:
    """Connected; whoever holds it waits for requests while the script stands still."""

    def __init__(self, address: str) -> None:
        """Raises OSError where perftool is gone."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(address)
        self._file = self._socket.makefile("rwb")
        self.owner = os.getpid()

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises OSError where perftool is gone."""
        self._file.write(json.dumps(_known(message)).encode() + b"\n")
        self._file.flush()

    def receive(self) -> dict[str, Any] | None:
        """The next request; None where perftool is gone."""
        try:
            line = self._file.readline()
        except OSError:
            return None
        found: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return found

    def abandon(self) -> None:
        """In a forked child: the parent's conversation is not its own. Nothing is sent."""
        os.close(self._socket.detach())


def _known(value: Any) -> Any:
    """NaN and infinity are no JSON: they are not known."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _known(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_known(part) for part in value]
    return value
