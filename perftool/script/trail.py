"""The file that a recorder leaves: when steps ended, then lines of what else it saw.

Whatever ends the process, all that was written is there. The part with the steps is bounded: where there is no room for
another block of them every second one is given up, and from then on only so many are kept.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

BLOCK_STEPS = 1024
BLOCKS = 256  # an even number
_WORDS = 1 + BLOCK_STEPS  # when the block began, then when each step ended; 0 where there is none yet
_WORD_BYTES = 8
AREA_BYTES = BLOCKS * _WORDS * _WORD_BYTES
SUFFIX = ".steps"


class Trail:
    """Written by one process."""

    def __init__(self, path: Path) -> None:
        """A new file. Raises OSError where it cannot be made, FileExistsError where another process has."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        os.posix_fallocate(self._file, 0, AREA_BYTES)  # a disk that is full is found here
        self._before_ns = self._at = self._used = 0
        self._place: int | None = None  # where the block that is being filled goes on; None: it is not kept
        self.number = -1  # of the block that was filled last, in part at least
        self.every = 1  # of so many blocks one is kept

    def begin(self, began_ns: int) -> None:
        """The first step began then, by CLOCK_MONOTONIC."""
        self._before_ns = began_ns

    @property
    def room(self) -> int:
        """For so many steps, before another block begins."""
        return BLOCK_STEPS - self._at

    def put(self, ends_ns: Sequence[int]) -> None:
        """The next steps ended then, by CLOCK_MONOTONIC; a negative end is of something that is no step.

        Raises OSError.
        """
        left = array("q", ends_ns)
        while left:
            ends = left[: self.room]
            words = ends if self._at else array("q", [self._before_ns]) + ends
            if not self._at:
                self._next_place()
            if self._place is not None:
                os.pwrite(self._file, words, self._place)
                self._place += len(words) * _WORD_BYTES
            self._at = (self._at + len(ends)) % BLOCK_STEPS
            self._before_ns = abs(ends[-1])
            left = left[len(ends) :]

    def _next_place(self) -> None:
        """For another block."""
        self.number += 1
        if self._used == BLOCKS and not self.number % self.every:
            self._thin()
        self._place = None
        if not self.number % self.every:
            self._place = self._used * _WORDS * _WORD_BYTES
            self._used += 1

    def _thin(self) -> None:
        """Give up every second block."""
        words = array("q", os.pread(self._file, AREA_BYTES, 0))
        kept = array("q")
        for number in range(0, BLOCKS, 2):
            kept += words[number * _WORDS : (number + 1) * _WORDS]
        os.pwrite(self._file, kept.tobytes().ljust(AREA_BYTES, b"\0"), 0)
        self._used = BLOCKS // 2
        self.every *= 2

    def tell(self, line: dict[str, Any]) -> None:
        """Add a line. One that the disk has no room for is left out."""
        try:
            end = max(AREA_BYTES, os.fstat(self._file).st_size)
            os.pwrite(self._file, json.dumps(line).encode() + b"\n", end)
        except OSError:
            return

    def close(self) -> None:
        os.close(self._file)


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
    area = content[:AREA_BYTES]
    words = array("q", area[: len(area) - len(area) % _WORD_BYTES].ljust(AREA_BYTES, b"\0"))
    blocks: list[Block] = []
    for at in range(0, len(words), _WORDS):
        began_ns = words[at]
        if not began_ns or (blocks and began_ns <= blocks[-1].began_ns):  # killed while blocks were given up
            break
        blocks.append(Block(began_ns, _times(began_ns, words[at + 1 : at + _WORDS])))
    return Left(blocks, _known(content[AREA_BYTES:]))


def _times(began_ns: int, ends_ns: Sequence[int]) -> list[int]:
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
