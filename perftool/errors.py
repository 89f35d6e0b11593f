"""What ends a job early, each with the exit code that the command line gives it. A leaf without imports."""

from __future__ import annotations

REGRESSION = 1
BAD_INPUT = 2
UNDECIDED = 3
NOT_MEASURED = 4
NOT_WRITTEN = 5
FAULT = 70  # EX_SOFTWARE of sysexits.h: Python's own 1 would be taken for a regression
INTERRUPTED = 130


class PerftoolError(Exception):
    """Base of all that perftool's calls raise on purpose; the text says what to do."""

    exit_code = FAULT


class BadInput(PerftoolError):
    """Input that the user can mend."""

    exit_code = BAD_INPUT


class NotMeasured(PerftoolError):
    """The baseline, or a side of a check, could not be measured."""

    exit_code = NOT_MEASURED


class NotWritten(PerftoolError):
    """Results that could not be written."""

    exit_code = NOT_WRITTEN
