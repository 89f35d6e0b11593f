"""What can go wrong below, as errors that have an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from perftool.errors import BadInput, NotMeasured, NotWritten, PerftoolError
from perftool.git import RevisionError
from perftool.measure.lab import BaselineFailed
from perftool.measure.survey import UnusableError
from perftool.scenario import ScenarioError
from perftool.store import StoreError
from perftool.workload import WorkloadError


@contextmanager
def told() -> Iterator[None]:
    """Let the errors of what a job uses be those of a job. A file that cannot be read is its reader's to tell."""
    try:
        yield
    except (RevisionError, ScenarioError, UnusableError, WorkloadError) as error:
        raise BadInput(str(error)) from error
    except BaselineFailed as failed:
        raise not_measured(failed) from failed
    except StoreError as error:
        raise NotWritten(str(error)) from error


def not_measured(failed: BaselineFailed, what: str = "the baseline") -> PerftoolError:
    """A side that runs the other one's code can be mended by the user."""
    kind = BadInput if failed.kind == "tree" else NotMeasured
    return kind(f"{what} could not be measured: {failed}")
