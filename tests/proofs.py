"""Proofs run to their end, for tests."""

from __future__ import annotations

from perftool.scenario import Scenario
from perftool.training import Training, run_proof
from perftool.words import Engaged


def proved(scenario: Scenario, training: Training, value: str) -> Engaged:
    """What the scenario's proof says of a training in perftool's own loop."""
    return run_proof(training, scenario.proof(training, value))
