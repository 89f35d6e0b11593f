"""What else could be chosen."""

from __future__ import annotations

from msgspec.structs import replace

from perftool.analysis.tradeoffs import pareto, smallest_batch
from perftool.records import Settings, VariantSummary
from tests.measure.fakes import make_session
from tests.sessions import make_comparison, make_variant


def variant(settings: Settings, ratio: float, peak_mb: int, jitter: float = 1.0) -> VariantSummary:
    versus = {"throughput": make_comparison(ratio), "jitter": make_comparison(jitter)} if settings else {}
    return make_variant(settings, peak_host_bytes=peak_mb * 10**6, versus_baseline=versus)


def test_what_another_variant_beats_in_everything_is_not_on_the_front() -> None:
    base, fast = variant({}, 1.0, 400), variant({"a": "1"}, 2.0, 500)
    worse, steady = variant({"b": "1"}, 0.9, 410), variant({"c": "1"}, 0.9, 450, jitter=0.8)
    assert pareto([base, fast, worse, steady]) == [{}, {"a": "1"}, {"c": "1"}]
    assert pareto([base, variant({"a": "1"}, 1.2, 400)]) == [{"a": "1"}]


def test_the_smallest_batch_that_is_nearly_as_fast() -> None:
    session = replace(
        make_session(), scenario_changes={"size": "optimisation", "amp": "numerics"}, defaults={"size": "10"}
    )
    variants = [
        variant({}, 1.0, 400),
        variant({"size": "20"}, 1.6, 400),
        variant({"size": "40"}, 1.96, 400),
        variant({"size": "80"}, 2.0, 400),
        variant({"amp": "bf16", "size": "20"}, 3.0, 400),  # not of the batch alone
    ]
    found = smallest_batch(session, variants)
    assert found is not None
    assert (found.batch_size, found.largest_batch_size) == (40, 80)
    assert found.of_best == 0.98
    assert smallest_batch(session, variants[:1]) is None
    slower = smallest_batch(session, [variants[0], variant({"size": "20"}, 0.9, 400)])
    assert slower is not None
    assert slower.batch_size == 10
