from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from perftool.analysis.diagnose import findings
from perftool.analysis.explain import explained
from perftool.analysis.roofline import distance
from perftool.records import (
    BACKWARD,
    COLLECTIONS,
    COMPILATION,
    COPY,
    DATA_WAIT,
    DENORMALS,
    DOUBLE_PRECISION,
    FAULT_CHURN,
    FAULTS,
    FORWARD,
    FULL_PRECISION,
    GARBAGE,
    HOST_SYNCS,
    LAUNCH_BOUND,
    LOADER,
    NO_CORE,
    OPTIMIZER,
    RAGGED_BATCH,
    RECOMPILING,
    RETRIES,
    RETRY,
    ROW_BY_ROW,
    RUN_QUEUE,
    SLOW_COPY,
    SLOW_OPTIMIZER,
    SLOW_TYPE,
    SLOWED,
    SLOWER_CORE,
    STEAL,
    STOLEN,
    THROTTLED,
    UNKNOWN,
    WAIT,
    WORKER_RESTARTS,
    WORKER_START,
    Block,
    Ceiling,
    Finding,
    Limits,
    Session,
    WatchedBlock,
)
from tests.measure.fakes import MACHINE, WORKLOAD, make_session
from tests.sessions import make_block, make_limits, make_work

MS = 1_000_000
STEPS = 100

CURES = {
    ROW_BY_ROW: ["batch_gather=on"],
    SLOW_OPTIMIZER: ["optimizer_kernel=fused"],
    FAULT_CHURN: ["malloc_retention=on", "thp=on"],
    FULL_PRECISION: ["amp=bf16"],
}


def session(
    phases: dict[str, float],
    *,
    slow: dict[str, float] | None = None,
    usual: dict[str, float] | None = None,
    minor_faults: int = 0,
    cures: dict[str, list[str]] | None = None,
    **block: object,
) -> Session:
    """Steps of 10 ms with these shares; every tenth is slow by so many ms for each of the causes in `slow`, which are
    measured, and every one has its `usual` ms of others."""
    slow_ms = sum((slow or {}).values())
    ends = [at % 10 == 9 and bool(slow) for at in range(STEPS)]
    step_ns = [round((10 + slow_ms * end) * MS) for end in ends]
    causes = {
        name: [round(((usual or {}).get(name, 0) + (slow or {}).get(name, 0) * end) * MS) for end in ends]
        for name in {**(slow or {}), **(usual or {})}
        if name != UNKNOWN
    }
    watched = WatchedBlock(
        launch=1,
        round=0,
        first_call=0,
        started_ns=0,
        samples=10 * STEPS,
        step_ns=step_ns,
        phase_ns={name: [round(10 * MS * share)] * STEPS for name, share in phases.items()},
        cause_ns=causes,
        minor_faults=[minor_faults] * STEPS,
        **block,  # type: ignore[arg-type]
    )
    return replace(make_session(), watched_blocks=[watched], cures=CURES if cures is None else cures)


def ranked_block(ranks: int) -> Block:
    return replace(make_block(0, 0, [10 * MS]), rank_steps=[1] * ranks, rank_wall_ns=[10 * MS] * ranks)


def found(session: Session) -> dict[str, Finding]:
    return {one.name: one for one in findings(session, explained(session))}


QUIET = {WAIT: 0.01, FORWARD: 0.4, BACKWARD: 0.5, OPTIMIZER: 0.05}


def test_nothing_is_found_in_a_quiet_training() -> None:
    assert found(session(QUIET)) == {}
    assert findings(make_session(), None) == []


def test_an_in_memory_dataset_that_is_taken_row_by_row() -> None:
    one = found(session({**QUIET, WAIT: 0.2}))[ROW_BY_ROW]
    assert one.try_ == "batch_gather=on"
    assert "200 µs per sample" in one.evidence  # 2 ms for a batch of ten


def test_waiting_for_any_other_data() -> None:
    waiting = session({**QUIET, WAIT: 0.2})
    files = replace(waiting, workload=replace(WORKLOAD, dataset_kind="map"))
    assert set(found(files)) == {DATA_WAIT}
    gathered = replace(waiting, cures={})  # the cure is in force
    assert set(found(gathered)) == {DATA_WAIT}


def test_no_finding_below_its_threshold() -> None:
    below = {WAIT: 0.04, COPY: 0.04, FORWARD: 0.4, OPTIMIZER: 0.09}
    assert found(session(below, slow={GARBAGE: 6}, usual={FAULTS: 0.4}, minor_faults=900)) != {}
    assert found(session(below, usual={FAULTS: 0.4, RUN_QUEUE: 0.4}, minor_faults=900)) == {}


def test_an_optimizer_is_slow_only_where_a_faster_one_is_to_be_had() -> None:
    heavy = {**QUIET, OPTIMIZER: 0.3}
    assert found(session(heavy))[SLOW_OPTIMIZER].try_ == "optimizer_kernel=fused"
    assert SLOW_OPTIMIZER not in found(session(heavy, cures={}))


def test_page_fault_churn_is_what_every_step_does() -> None:
    one = found(session(QUIET, usual={FAULTS: 2.0}, minor_faults=2000))[FAULT_CHURN]
    assert one.share == 0.2
    assert one.try_ == "malloc_retention=on or thp=on"
    assert "8.19 MB" in one.evidence


def test_each_cause_of_slow_steps_has_its_finding() -> None:
    named = {
        GARBAGE: COLLECTIONS,
        WORKER_START: WORKER_RESTARTS,
        COMPILATION: RECOMPILING,
        RUN_QUEUE: NO_CORE,
        STEAL: STOLEN,
        SLOWER_CORE: SLOWED,
        FAULTS: FAULT_CHURN,
    }
    for cause, name in named.items():
        one = found(session(QUIET, slow={cause: 20.0}))
        assert set(one) == {name}, cause
        assert "10 slow steps of 100, every 10 steps" in one[name].evidence or name == NO_CORE
    # What is not known is told among the slow steps, and is no finding.
    assert found(session(QUIET, slow={UNKNOWN: 20.0})) == {}
    assert set(found(session({**QUIET, WAIT: 0.1}, slow={LOADER: 20.0}, cures={}))) == {DATA_WAIT}


def test_a_remedy_is_told_where_no_setting_cures_it() -> None:
    one = found(session(QUIET, slow={WORKER_START: 20.0}))[WORKER_RESTARTS]
    assert one.try_ is None
    assert "persistent_workers=True" in one.evidence


def test_waiting_for_a_core_says_whose_fault_it_is() -> None:
    waiting = session(QUIET, usual={RUN_QUEUE: 2.0})
    assert "other programs" in found(waiting)[NO_CORE].evidence
    crowded = replace(waiting, machine=replace(MACHINE, torch_threads=8))
    assert "its 8 threads have 2 cores" in found(crowded)[NO_CORE].evidence
    loading = session(QUIET, usual={RUN_QUEUE: 2.0}, loader_workers=1)
    assert "its 2 threads and 1 loader worker have 2 cores" in found(loading)[NO_CORE].evidence
    alone = session(QUIET, usual={RUN_QUEUE: 2.0}, loader_workers=1, threads=1)
    assert "other programs" in found(alone)[NO_CORE].evidence, "the threads that it had, not those that it could have"
    several = replace(session(QUIET, usual={RUN_QUEUE: 2.0}, threads=1), blocks=[ranked_block(ranks=2)])
    assert "its 2 ranks have 2 cores together" in found(several)[NO_CORE].evidence
    stopped = found(session(QUIET, usual={RUN_QUEUE: 2.0}, threads=1, throttled_periods=3))[NO_CORE].evidence
    assert "quota" in stopped
    assert "use fewer threads" in stopped


def test_what_the_host_does_is_no_finding_where_the_device_decides() -> None:
    for bound, names in ((10 * MS, {FAULT_CHURN, NO_CORE}), (1 * MS, set())):
        usual = {FAULTS: 2.0, RUN_QUEUE: 2.0}
        one = found(session(QUIET, usual=usual, minor_faults=2000, dispatch_ns=[bound] * STEPS, cures={}))
        assert set(one) - {LAUNCH_BOUND} == names


def test_data_in_memory_that_a_function_collates_are_no_case_of_their_own() -> None:
    waiting = replace(session({**QUIET, WAIT: 0.2}, cures={}), workload=replace(WORKLOAD, dataset_kind="tensors"))
    collated = replace(waiting, workload=replace(waiting.workload, has_collate=True))
    assert "would only add to it" in found(waiting)[DATA_WAIT].evidence
    assert "would only add to it" not in found(collated)[DATA_WAIT].evidence


def test_what_is_the_trainings_own_comes_before_what_is_the_machines() -> None:
    both = session({**QUIET, OPTIMIZER: 0.2}, usual={RUN_QUEUE: 5.0})
    assert list(found(both)) == [SLOW_OPTIMIZER, NO_CORE]


def test_garbage_that_each_step_collects_is_found() -> None:
    one = found(session(QUIET, usual={GARBAGE: 2.0}))[COLLECTIONS]
    assert "takes 20 % of each step" in one.evidence
    assert one.share == 0.2
    both = found(session(QUIET, usual={GARBAGE: 2.0}, slow={GARBAGE: 20.0}))[COLLECTIONS].evidence
    assert "takes 20 % of each step; it made 10 slow steps" in both


def test_pages_may_be_large() -> None:
    large = session(QUIET, usual={FAULTS: 2.0}, minor_faults=125, page_bytes=65536)
    assert "8.19 MB" in found(large)[FAULT_CHURN].evidence


def test_reduced_precision_is_advised_where_matmuls_decide_and_the_machine_is_faster_at_it() -> None:
    plain = session(QUIET)

    def found_at(limits: Limits, step_ns: float, of: Session = plain) -> list[str]:
        of = replace(of, limits=limits)
        return [one.name for one in findings(of, explained(of), None, distance(limits, step_ns))]

    # A GFLOP takes 10 ms at the 100 GFLOP/s of float32; bfloat16 is eight times as fast here.
    assert found_at(make_limits(), 12e6) == [FULL_PRECISION]
    assert found_at(make_limits(), 100e6) == [], "its matmuls are a tenth of the step"
    assert found_at(make_limits(precision="medium"), 12e6) == [], "it does so already"
    in_bf16 = make_limits(work=make_work(flops_by_dtype={"bfloat16": 10**9}))
    assert found_at(in_bf16, 12e6) == []
    only_full = [one for one in make_limits().ceilings if one.kind == "copy" or one.precision == "highest"]
    assert found_at(make_limits(ceilings=only_full), 12e6) == [], "there is nothing faster"
    assert found_at(make_limits(), 12e6, replace(plain, cures={})) == [], "nothing can be switched on"

    convolving = make_work(matmul_flops=4 * 10**8, convolution_flops_by_dtype={"float32": 6 * 10**8})
    for mode in ("highest", "medium"):
        assert found_at(make_limits(work=convolving, convolution_precision=mode), 12e6) == [], "its matmuls are few"
    unknown = make_work(matmul_flops=None)
    assert found_at(make_limits(work=unknown), 12e6) == []
    patches = make_work(matmul_flops=9 * 10**8, convolution_flops_by_dtype={"float32": 10**8})
    assert found_at(make_limits(work=patches, convolution_precision="medium"), 12e6) == [FULL_PRECISION]


def limited(limits: Limits, step_ns: float, **changes: Any) -> dict[str, Finding]:
    """What is found where these limits were measured."""
    of = replace(session(QUIET, **changes), limits=limits)
    return {one.name: one for one in findings(of, explained(of), None, distance(limits, step_ns))}


def test_a_type_that_the_machine_emulates() -> None:
    """2 GFLOP/s in float16, 100 in float32, 800 in bfloat16."""
    half = make_limits(work=make_work(flops=10**9, flops_by_dtype={"float16": 9 * 10**8, "float32": 10**8}))
    one = limited(half, 500e6, cures={SLOW_TYPE: ["amp=bf16"]})[SLOW_TYPE]
    assert one.try_ == "amp=bf16"
    assert one.share is not None
    assert round(one.share, 3) == 0.882  # 450 ms at the least instead of 9
    assert "2 GFLOP/s in float16, and 100 GFLOP/s in float32" in one.evidence
    assert limited(half, 400e6)[SLOW_TYPE].share == 1, "the peak was measured too low"
    assert limited(half, 20e9) == {}, "its products are a fiftieth of the step"
    assert limited(make_limits(work=make_work(flops_by_dtype={"bfloat16": 10**9})), 12e6) == {}
    assert SLOW_TYPE not in limited(make_limits(), 12e6)


def test_a_type_that_is_hardly_slower_is_no_finding() -> None:
    near = Ceiling(kind="matmul", dtype="float16", rows=1024, flops_per_second=90e9)
    ceilings = [one for one in make_limits().ceilings if one.dtype != "float16"]
    half = make_work(flops_by_dtype={"float16": 10**9})
    assert limited(make_limits(work=half, ceilings=[*ceilings, near]), 12e6) == {}
    assert limited(make_limits(work=half, ceilings=ceilings), 12e6) == {}, "it was not measured"


def test_arithmetic_in_float64() -> None:
    work = make_work(flops_by_dtype={"float64": 10**8, "float32": 9 * 10**8})
    double = Ceiling(kind="matmul", dtype="float64", rows=1024, flops_per_second=50e9)
    limits = make_limits(work=work, ceilings=[*make_limits().ceilings, double])
    one = limited(limits, 20e6, cures={})[DOUBLE_PRECISION]
    assert (one.share, one.try_) == (0.1, None)
    assert "10 % of its arithmetic is in float64, where this machine does 50 GFLOP/s" in one.evidence
    assert "float64 unless told otherwise" in one.evidence
    assert limited(make_limits(work=work), 20e6, cures={})[DOUBLE_PRECISION].share is None, "no peak, no share"
    assert limited(make_limits(), 20e6, cures={}) == {}
    assert limited(make_limits(work=None), 20e6, cures={}) == {}


def test_compiling_again_for_the_last_batch_of_an_epoch() -> None:
    """An epoch of 1004 rows is a hundred batches of ten and one of four."""
    compiled = {"slow": {COMPILATION: 20.0}}
    one_call = [20 * MS if at == 99 else 0 for at in range(STEPS)]
    limits = make_limits(work=make_work(samples=10))

    def compiles(rows: int | None, samples: int, calls: list[int] = one_call, drop_last: bool = False) -> list[str]:
        of = session(QUIET, **compiled)  # type: ignore[arg-type]
        step_ns = [10 * MS + time_ns for time_ns in calls]
        (block,) = of.watched_blocks
        block = replace(block, samples=samples, step_ns=step_ns, cause_ns={COMPILATION: calls})
        facts = replace(WORKLOAD, dataset_rows=rows, drop_last=drop_last)
        return list(found(replace(of, watched_blocks=[block], workload=facts, limits=limits)))

    assert compiles(1004, 994) == [RAGGED_BATCH]
    assert compiles(1004, 1000) == [RECOMPILING], "all its batches were full"
    assert compiles(1000, 1000) == [RECOMPILING], "batches go into the rows evenly"
    assert compiles(None, 994) == [RECOMPILING], "the rows are not known"
    assert compiles(1004, 994, drop_last=True) == [RECOMPILING]
    twice = [20 * MS if at in (50, 99) else 0 for at in range(STEPS)]
    assert compiles(1004, 994, twice) == [RECOMPILING], "one short batch does not explain it all"
    assert compiles(1004, 988, twice) == [RAGGED_BATCH]
    assert compiles(1004, 994, [0] * STEPS) == [], "a short batch costs nothing by itself"


def test_waiting_for_data_in_memory_is_not_cured_by_workers() -> None:
    gathered = session({**QUIET, WAIT: 0.2}, cures={})
    assert "workers would only add to it" in found(gathered)[DATA_WAIT].evidence
    files = replace(gathered, workload=replace(WORKLOAD, dataset_kind="map"))
    assert "what the dataset does for each sample" in found(files)[DATA_WAIT].evidence
    assert found(replace(files, cures={DATA_WAIT: ["dataloader_workers=4"]}))[DATA_WAIT].try_ == "dataloader_workers=4"


def test_what_a_gpu_adds() -> None:
    waits = session(QUIET, dispatch_ns=[10 * MS] * STEPS, cures={LAUNCH_BOUND: ["cuda_graphs=on"]})
    assert found(waits)[LAUNCH_BOUND].try_ == "cuda_graphs=on"
    ahead = session(QUIET, dispatch_ns=[1 * MS] * STEPS)
    assert LAUNCH_BOUND not in found(ahead)
    assert HOST_SYNCS in found(session(QUIET, syncs=2))
    assert HOST_SYNCS not in found(session(QUIET, syncs=0))
    assert HOST_SYNCS not in found(session(QUIET, syncs=2, dispatch_ns=[1 * MS] * STEPS)), "the device has work queued"
    assert THROTTLED in found(session(QUIET, throttled=True))
    assert THROTTLED not in found(session(QUIET, throttled=False))
    assert SLOW_COPY in found(session({**QUIET, COPY: 0.1}))
    slow = session(QUIET, slow={UNKNOWN: 20.0}, counts={RETRY: [int(at % 10 == 9) for at in range(STEPS)]})
    assert set(found(slow)) == {RETRIES}


def test_denormal_numbers() -> None:
    def of(values: int) -> Session:
        return replace(session(QUIET), workload=replace(WORKLOAD, parameter_count=10_000, denormal_values=values))

    assert "12 numbers" in found(of(12))[DENORMALS].evidence
    assert found(of(9)) == {}, "one of a thousand parameters is not enough"
    on_cuda = replace(of(12), machine=replace(MACHINE, device="cuda:0"))
    assert found(on_cuda) == {}, "a GPU does not mind"


def test_the_largest_share_comes_first() -> None:
    both = session({**QUIET, WAIT: 0.1, OPTIMIZER: 0.3})
    assert [one.name for one in findings(both, explained(both))] == [SLOW_OPTIMIZER, ROW_BY_ROW]
