"""The first look at the workload and the machine, whose errors are the user's to mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from perftool.cli.interrupts import interruptible
from perftool.cli.output import BAD_INPUT, INTERRUPTED, code_of_failure, fail, say
from perftool.cli.progress import Watcher, watching

if TYPE_CHECKING:
    from perftool.measure.messages import Described
    from perftool.records import Fitness, Machine

FITNESS_WINDOW_S = 0.5


def surveyed(
    workload: str, device: str, seed: int, budget_s: float, quiet: bool, lock: ExitStack | None = None
) -> tuple[Described, int, Fitness | None]:
    """What the workload and the machine are, the memory that took, and what else the machine was doing before.

    lock: gets the measuring lock before the machine is looked at, so that the memory that another perftool holds while
        it measures is not taken for used, nor its measurements are disturbed. Without it nobody measures, and the
        machine is not watched.
    """
    from perftool.measure.survey import survey

    with looking(workload, device, quiet, lock) as (watcher, fitness):
        watcher.update(f"building {workload}", 0.0, 0.0)
        described, launch_bytes = survey(workload, device, seed, budget_s)
        return described, launch_bytes, of_device(fitness, described.machine)


def of_device(fitness: Fitness | None, machine: Machine) -> Fitness | None:
    """Without the GPU where "auto" has turned out to be the CPU: only a worker knows whether torch can use a GPU."""
    from msgspec.structs import replace

    return fitness if fitness is None or machine.device != "cpu" else replace(fitness, device=None)


@contextmanager
def looking(
    workload: str, device: str, quiet: bool, lock: ExitStack | None
) -> Iterator[tuple[Watcher, Fitness | None]]:
    """Where a workload is built for the first time: its errors are the user's to mend. `lock` as for `surveyed`."""
    from perftool.measure.lab import BaselineFailed
    from perftool.measure.probes.machine import read_fitness
    from perftool.measure.survey import UnusableError
    from perftool.measure.worktree import RevisionError
    from perftool.store import measuring_lock
    from perftool.workload import WorkloadError, check_reference

    try:
        check_reference(workload)
        with watching(quiet) as watcher, interruptible():
            fitness = None
            if lock is not None:
                lock.enter_context(measuring_lock(say))
                watcher.update("looking at the machine", 0.0, 0.0)
                fitness = read_fitness(FITNESS_WINDOW_S, device)
            yield watcher, fitness
    except (RevisionError, UnusableError, WorkloadError) as error:
        fail(str(error), BAD_INPUT)
    except BaselineFailed as error:
        fail(f"the baseline could not be measured: {error}", code_of_failure(error))
    except KeyboardInterrupt:
        fail("interrupted before anything was measured", INTERRUPTED)
