"""The file that a recorder leaves: when steps ended, in memory that the system keeps, then lines of what else it saw.

Whatever ends the process, all that was written is there. The file is bounded: where there is no room for another block
of steps every second one is given up, and from then on only so many are kept.
"""

from __future__ import annotations

import json
import mmap
import os
from array import array
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

BLOCK_STEPS = 256
BLOCKS = 1024  # an even number
_WORDS = 1 + BLOCK_STEPS  # when the block began, then when each step ended; 0 where there is none yet
_WORD_BYTES = 8
AREA_BYTES = BLOCKS * _WORDS * _WORD_BYTES
SUFFIX = ".steps"


class Trail:
    """Written by one process."""

    def __init__(self, path: Path) -> None:
        """A new file. Raises OSError where it cannot be made, FileExistsError where another process has."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            os.posix_fallocate(descriptor, 0, AREA_BYTES)  # a full disk must be found now: it would kill the training
            self._area = memoryview(mmap.mmap(descriptor, AREA_BYTES)).cast("q")
        finally:
            os.close(descriptor)
        self._lines = open(path, "ab", buffering=0)  # noqa: SIM115 - as long as the process lives
        self._nowhere = memoryview(array("q", bytes(BLOCK_STEPS * _WORD_BYTES)))
        self._used = 0
        self.number = -1  # of the block that is being filled
        self.every = 1  # of so many blocks one is kept

    def block(self, began_ns: int) -> memoryview:
        """Room for the ends of the next BLOCK_STEPS steps; those of a block that is not kept are lost.

        began_ns, and the ends: CLOCK_MONOTONIC; a negative one is of something that is no step.
        """
        self.number += 1
        number = self.number
        if number % self.every:
            return self._nowhere
        if self._used == BLOCKS:
            self._thin()
            if number % self.every:
                return self._nowhere
        at = self._used * _WORDS
        self._used += 1
        self._area[at] = began_ns
        return self._area[at + 1 : at + _WORDS]

    def _thin(self) -> None:
        """Give up every second block."""
        half = BLOCKS // 2
        for number in range(1, half):
            at, source = number * _WORDS, 2 * number * _WORDS
            self._area[at : at + _WORDS] = self._area[source : source + _WORDS]
        empty = bytes((BLOCKS - half) * _WORDS * _WORD_BYTES)
        self._area[half * _WORDS :] = memoryview(empty).cast("q")
        self._used = half
        self.every *= 2

    def tell(self, line: dict[str, Any]) -> None:
        """Add a line. One that the disk has no room for is left out."""
        try:
            self._lines.write(json.dumps(line).encode() + b"\n")
        except OSError:
            return

    def close(self) -> None:
        self._lines.close()


class Block(NamedTuple):
    """Consecutive steps."""

    began_ns: int  # CLOCK_MONOTONIC
    step_ns: list[int]


class Left(NamedTuple):
    """What a file holds."""

    blocks: list[Block]
    lines: list[dict[str, Any]]


def read(path: Path) -> Left:
    """What a process has left, whether it came to its end or was killed. Raises OSError."""
    content = path.read_bytes()
    words = array("q", content[: AREA_BYTES - AREA_BYTES % _WORD_BYTES].ljust(AREA_BYTES, b"\0"))
    blocks: list[Block] = []
    for at in range(0, len(words), _WORDS):
        began_ns = words[at]
        if not began_ns or (blocks and began_ns <= blocks[-1].began_ns):  # killed while blocks were given up
            break
        blocks.append(Block(began_ns, _times(began_ns, words[at + 1 : at + _WORDS])))
    return Left(blocks, _known(content[AREA_BYTES:]))


def _times(began_ns: int, ends_ns: array[int]) -> list[int]:
    """Of the steps alone."""
    found, before_ns = [], began_ns
    for end_ns in takewhile(bool, ends_ns):
        if end_ns > 0:
            found.append(end_ns - before_ns)
        before_ns = abs(end_ns)
    return found


def _known(text: bytes) -> list[dict[str, Any]]:
    """Whole lines; a last one may have been cut short."""
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
