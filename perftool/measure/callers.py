"""The processes of a script that make steps: each calls perftool at the end of its first one."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from uuid import uuid4


class Caller:
    """One process that makes steps, and the conversation with it."""

    def __init__(self, connection: socket.socket) -> None:
        """Reads what it says of itself. Raises OSError, ValueError for one that is gone at once."""
        self._socket = connection
        self._file = connection.makefile("rwb")
        hello = json.loads(self._file.readline())
        self.pid, self.number = int(hello["pid"]), int(hello["rank"])
        self.world_size = int(hello["world_size"])

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def send(self, line: bytes) -> None:
        """Raises OSError where it is gone."""
        self._file.write(line + b"\n")
        self._file.flush()

    def receive(self) -> bytes:
        """The next line; empty where it is gone."""
        try:
            line = self._file.readline()
        except OSError:
            return b""
        return line if line.endswith(b"\n") else b""

    def release(self) -> None:
        """Let it go on by itself: it is not the one that trains."""
        with suppress(OSError):
            self.send(b'{"type":"release"}')
        self.close()

    def close(self) -> None:
        for resource in (self._file, self._socket):
            with suppress(OSError):  # a broken connection cannot be flushed
                resource.close()


class Callers:
    """Where they call."""

    def __init__(self) -> None:
        # An abstract address: no path can be too long, and no view of folders hides it. Nobody guesses it.
        self.address = f"\0perftool-{uuid4().hex}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.address)
        self._listener.listen()

    def fileno(self) -> int:
        """For `select`."""
        return self._listener.fileno()

    def accept(self) -> Caller:
        """The next one."""
        connection, _ = self._listener.accept()
        return Caller(connection)

    def close(self) -> None:
        self._listener.close()
