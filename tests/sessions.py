"""Sessions and summaries with scripted numbers, for every test that reads one."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from shlex import join
from typing import Any

from msgspec.structs import replace

from perftool.analysis.roofline import distance
from perftool.records import (
    BACKWARD,
    COLLECTIONS,
    FORWARD,
    GARBAGE,
    OPTIMIZER,
    SLOW_OPTIMIZER,
    UNKNOWN,
    WAIT,
    BatchFit,
    BatchPoint,
    Block,
    Ceiling,
    Command,
    Comparison,
    Engaged,
    Estimate,
    Explained,
    Finding,
    Growth,
    Jitter,
    Launch,
    Limits,
    LoopPart,
    LossParity,
    MemoryParts,
    MemoryReport,
    Phase,
    Quantiles,
    Recommendation,
    Rejected,
    ScriptFacts,
    ScriptLoader,
    ScriptModel,
    ScriptOptimizer,
    ScriptReport,
    Session,
    SettingEffect,
    Settings,
    SlowCause,
    SlowStep,
    StepRule,
    StepWork,
    Summary,
    VariantSummary,
    VerdictWord,
    WallTime,
)
from tests.measure.fakes import MACHINE, make_session

STEPS_PER_BLOCK = 4
SAMPLES_PER_STEP = 10

Timed = tuple[Settings, float]
"""Settings of a variant and its step time in milliseconds."""


def timed_session(
    variants: Sequence[Timed],
    *,
    command: Command = "compare",
    stage: str = "measure",
    generations: int = 4,
    rounds: int = 10,
    noise: float = 0.01,
    seed: int = 0,
) -> Session:
    """A session in which each variant's steps take so long, times exp(noise x a standard normal) drawn per block.

    The first of `variants` is the baseline; its settings are the session's. All blocks of a round share a second draw
    ten times as strong, as a machine's noise does, so that only pairs are exact.
    """
    drawn = random.Random(seed)
    session = replace(
        make_session(baseline=variants[0][0]),
        command=command,
        variants=[{}, *(settings for settings, _ in variants[1:])],
    )
    for generation in range(generations):
        number = {variant: generation * len(variants) + variant for variant in range(len(variants))}
        for index in range(rounds):
            weather = drawn.lognormvariate(0.0, 10 * noise)
            for position, (variant, (_, step_ms)) in enumerate(enumerate(variants)):
                step_ns = round(step_ms * 1e6 * weather * drawn.lognormvariate(0.0, noise))
                session.blocks.append(
                    make_block(number[variant], generation * rounds + index, [step_ns] * STEPS_PER_BLOCK, position)
                )
        session.launches.extend(make_launch(number[one], one, generation, stage) for one in number)
    return session


def make_block(launch: int, round_number: int, step_ns: Sequence[int], position: int = 0) -> Block:
    """A block of these steps; a tenth of each is spent waiting for data."""
    return Block(
        launch=launch,
        round=round_number,
        position=position,
        started_ns=10**9 * round_number + position,
        wall_ns=sum(step_ns),
        steps=len(step_ns),
        samples=SAMPLES_PER_STEP * len(step_ns),
        step_ns=list(step_ns),
        wait_ns=[time_ns // 10 for time_ns in step_ns],
    )


def make_script(session: Session, *, aside_ms: Mapping[str, float], **changes: Any) -> Session:
    """The same session of a command. Each block of the baseline has these things beside its steps, with one step."""
    facts = make_script_facts(**changes)
    workload = replace(
        session.workload,
        name="train",
        reference=join(facts.command),
        driver="script",
        script=facts,
        sample_unit="sample" if any(one.trains for one in facts.loaders) else "step",
    )
    own = {launch.launch for launch in session.launches if launch.variant == 0}
    aside_ns = {name: round(ms * 1e6) for name, ms in aside_ms.items()}
    blocks = [
        replace(block, aside_ns=aside_ns, aside_steps=int(bool(aside_ns))) if block.launch in own else block
        for block in session.blocks
    ]
    return replace(session, workload=workload, blocks=blocks)


def make_script_facts(**changes: Any) -> ScriptFacts:
    """A script with one loader, one optimizer and one model."""
    usual: dict[str, Any] = {
        "command": ["python", "train.py", "--epochs", "3"],
        "folder": "/home/user",
        "rule": StepRule(boundary="optimizer"),
        "steps": 30,
        "step_ns": 12_000_000,
        "device": "cpu",
        "python": "/usr/bin/python",
        "python_version": "3.11.0",
        "torch_version": "2.13.0",
        "torch_threads": 2,
        "optimizers": [ScriptOptimizer(name="Adam", options={"fused": None}, step_class="Adam")],
        "loaders": [
            ScriptLoader(
                name="DataLoader", dataset="Digits", kind="map", rows=1000, batch_size=10, workers=0, pinned=False,
                has_collate=False, shuffle=True, drop_last=False, trains=True,
            )
        ],
        "models": [ScriptModel(name="Net", compiled=False)],
        "autocast": None,
        "parameter_count": 10,
        "parameter_bytes": 40,
        "floating_parameters": True,
        "denormal_values": 0,
        "python_objects": 1000,
        "frameworks": [],
    }  # fmt: skip
    return ScriptFacts(**{**usual, **changes})


def make_launch(launch: int, variant: int, generation: int = 0, stage: str = "measure", **changes: Any) -> Launch:
    """A launch that went well."""
    usual: dict[str, Any] = {
        "status": "measured",
        "engaged": Engaged(ok=True, evidence="scripted"),
        "cold": generation == 0,
        "start_up_ns": 2 * 10**9,
        "warmup_class": "flat",
        "warmup_step_ns": [10**7] * 5,
        "peak_host_bytes": 400_000_000 + 1_000_000 * variant,
        "warmup_peak_host_bytes": 420_000_000,
    }
    return Launch(launch=launch, variant=variant, generation=generation, stage=stage, **{**usual, **changes})


# -------------------------------------------------------------------------------------------------------- summaries


def make_comparison(
    ratio: float, half_width: float = 0.03, verdict: VerdictWord = "better", **changes: Any
) -> Comparison:
    """A comparison whose interval is the ratio and so much to either side."""
    usual: dict[str, Any] = {"margin": 0.01, "pairs": 240, "launches": 4, "smallest_detectable": 0.021}
    return Comparison(
        ratio=ratio, low=ratio - half_width, high=ratio + half_width, verdict=verdict, **{**usual, **changes}
    )


def make_variant(
    settings: Settings, *, throughput: Comparison | None = None, p50_ms: float = 12.0, **changes: Any
) -> VariantSummary:
    """A measured variant; `throughput` is against the baseline."""
    usual: dict[str, Any] = {
        "status": "measured",
        "reason": None,
        "engaged": Engaged(ok=True, evidence="scripted"),
        "samples_per_second": 256 / p50_ms * 1e3,
        "steps_per_call": 1,
        "step_ns": Quantiles(p50=p50_ms * 1e6, p95=p50_ms * 1.12e6, p99=None),
        "jitter": make_jitter(),
        "peak_host_bytes": 451_000_000,
        "warmup_peak_host_bytes": 512_000_000,
        "peak_device_allocated_bytes": None,
        "peak_device_reserved_bytes": None,
        "data_wait_fraction": 0.113,
        "cold_start_ns": 4_200_000_000,
        "warm_start_ns": 3_100_000_000,
        "break_even_steps": 0.0 if throughput and throughput.verdict == "better" else None,
        "warmup_class": "flat",
        "versus_baseline": {"throughput": throughput} if throughput else {},
    }
    return VariantSummary(settings=settings, **{**usual, **changes})


def make_jitter() -> Jitter:
    """Enough steps for p95, too few for p99."""
    return Jitter(
        j95=0.12, j95_low=0.10, j95_high=0.15, j99=None, j99_low=None, j99_high=None, mad_ratio=0.021,
        step_to_step_q95=0.08, stall_share=0.004, steps=960, effective_steps=310.0,
        note="not enough steps for p99",
    )  # fmt: skip


def make_lost(settings: Settings, reason: str, status: str = "skipped") -> VariantSummary:
    """A variant that was not measured."""
    nothing: Mapping[str, Any] = dict.fromkeys(
        (
            "engaged", "samples_per_second", "step_ns", "jitter", "peak_host_bytes", "warmup_peak_host_bytes",
            "data_wait_fraction", "cold_start_ns", "warm_start_ns", "break_even_steps", "warmup_class",
        )
    )  # fmt: skip
    return make_variant(settings, status=status, reason=reason, **nothing)


def make_summary(command: Command, variants: Sequence[VariantSummary] = (), **changes: Any) -> Summary:
    """A summary of these variants and a baseline, on the scripted machine."""
    usual: dict[str, Any] = {
        "workload": "scenarios.reference:medium",
        "created_at": "2026-01-01T00:00:00+00:00",
        "seed": 0,
        "arguments": [command, "scenarios.reference:medium"],
        "machine": MACHINE,
        "baseline": make_variant({}),
        "findings": [],
        "recommendation_status": None,
        "objective": "throughput",
        "pareto": [],
        "recommendation": None,
        "rejected": [],
        "parity": None,
        "measured_s": 88.4,
        "wall": WallTime(total_s=171.0, starting_s=48.0, warming_s=12.4, turns_s=104.0),
        "warnings": [],
    }
    return Summary(command=command, variants=list(variants), **{**usual, **changes})


def tuned_summary() -> Summary:
    """A tuned session with a confirmed recommendation of two settings, one skipped variant and one that is slower."""
    winner = {"amp": "bf16", "optimizer_kernel": "fused"}
    parity = LossParity(
        verdict="parity", difference=0.0004, low=-0.0008, high=0.0016, allowed=0.0031, seeds=5, steps=200
    )
    rejected = [
        Rejected(settings={"dataloader_workers": "2"}, reason="slower: 0.98x the samples per second alone"),
        Rejected(
            settings={"torch_compile": "default"}, reason="did not take effect: no graph was compiled; it ran eagerly"
        ),
    ]
    recommendation = Recommendation(
        settings=winner,
        speedup=Estimate(ratio=2.03, low=1.98, high=2.08),
        confidence=0.95,
        pairs=240,
        launches=4,
        peak_memory_ratio=1.02,
        jitter_ratio=1.06,
        break_even_steps=0.0,
        loss_parity=parity,
        time_to_loss=None,
        changes_optimisation=False,
        code=(
            "# in the optimizer's constructor\nfused=True\n\n"
            "# around the computation of the loss\nwith torch.autocast(\"cpu\", dtype=torch.bfloat16):"
        ),
        script="print('trains')\n",
        diff=(
            "--- before\n+++ recommended\n@@ -14,9 +14,11 @@\n optimizer = workload.optimizer(model.parameters())\n"
            "+for group in optimizer.param_groups:  # better written in the optimizer's constructor\n"
            "+    group.update(foreach=False, fused=True)\n \n \n def step(batch):\n     optimizer.zero_grad()\n"
            "-    loss = workload.loss(model, batch)\n"
            "+    with torch.autocast(\"cpu\", dtype=torch.bfloat16):\n+        loss = workload.loss(model, batch)\n"
            "     loss.backward()\n     optimizer.step()"
        ),
        per_setting=[
            SettingEffect(
                name="amp",
                value="bf16",
                alone=Estimate(ratio=1.45, low=1.40, high=1.50),
                together=Estimate(ratio=1.52, low=1.47, high=1.57),
            ),
            SettingEffect(
                name="optimizer_kernel",
                value="fused",
                alone=Estimate(ratio=1.34, low=1.31, high=1.37),
                together=Estimate(ratio=1.40, low=1.35, high=1.45),
                partners={"amp": "bf16"},
                with_partners=Estimate(ratio=1.40, low=1.38, high=1.42),
            ),
        ],
        rejected=rejected,
    )  # fmt: skip
    return make_summary(
        "tune",
        [
            make_variant({"amp": "bf16"}, throughput=make_comparison(1.45, 0.05), p50_ms=8.3),
            make_variant({"optimizer_kernel": "fused"}, throughput=make_comparison(1.34, 0.05), p50_ms=9.0),
            make_variant({"dataloader_workers": "2"}, throughput=make_comparison(0.98, 0.01, "worse"), p50_ms=12.3),
            make_lost({"torch_compile": "default"}, "did not take effect: no graph was compiled; it ran eagerly"),
            make_variant(winner, throughput=make_comparison(2.03, 0.05), p50_ms=5.9, peak_host_bytes=460_000_000),
        ],
        recommendation_status="confirmed",
        recommendation=recommendation,
        rejected=rejected,
        parity=parity,
    )


def script_summary() -> Summary:
    """The same search of a command's settings, one of which is an option of its own."""
    told = tuned_summary()
    winner = {"--num-workers": "2", "amp": "bf16"}
    assert told.recommendation is not None
    effects = [
        replace(one, name=name, value=value, partners={}, with_partners=None)
        for one, (name, value) in zip(told.recommendation.per_setting, winner.items(), strict=True)
    ]
    return replace(
        told,
        workload="python train.py --epochs 3",
        arguments=["tune", "--vary", "--num-workers=0|2", "--", "python", "train.py", "--epochs", "3"],
        variants=[*told.variants[:1], replace(told.variants[-1], settings=winner)],
        recommendation=replace(
            told.recommendation,
            settings=winner,
            code='''# on its command line
--num-workers=2

# around the computation of the loss
with torch.autocast("cpu", dtype=torch.bfloat16):''',
            script="",
            diff="",
            per_setting=effects,
        ),
        script=ScriptReport(
            rule=StepRule(boundary="optimizer"),
            optimizers=["Adam"],
            steps=960,
            step_share=0.72,
            beside=[
                LoopPart(name="evaluation at train.py:88", share=0.25),
                LoopPart(name="checkpoint at train.py:95", share=0.03),
            ],
        ),
        folder="results/20260101-000000-train-tune",
    )  # fmt: skip


def compared_summary() -> Summary:
    """A comparison with every verdict, a failure, a slow start that pays back, and a warning."""
    compiled = make_comparison(1.12, 0.02)
    return make_summary(
        "compare",
        [
            make_variant(
                {"amp": "bf16"},
                throughput=make_comparison(1.45, 0.05),
                p50_ms=8.3,
                versus_baseline={
                    "throughput": make_comparison(1.45, 0.05),
                    "step_p50": make_comparison(0.69, 0.02),
                    "peak_host": make_comparison(1.10, 0.02, "worse", margin=0.02, pairs=4),
                },
            ),
            make_variant({"torch_compile": "default"}, throughput=compiled, p50_ms=10.7, break_even_steps=12_400.0),
            make_variant({"threads": "1"}, throughput=make_comparison(1.002, 0.006, "same"), p50_ms=12.0),
            make_variant({"malloc_retention": "on"}, throughput=make_comparison(1.015, 0.04, "undecided"), p50_ms=11.8),
            make_variant(
                {"dataloader_workers": "2", "pinned_memory": "on"},
                throughput=make_comparison(0.44, 0.02, "worse"),
                p50_ms=27.0,
                warmup_class="no steady state",
            ),
            make_lost({"batch_gather": "on"}, "IndexError: index 70000 is out of bounds (train.py, line 12)", "failed"),
        ],
        warnings=["the launches differ more than usual; the verdicts follow the strict rule"],
    )


def profiled_summary() -> Summary:
    """A profile of one variant."""
    return make_summary("profile", baseline=make_variant({"amp": "bf16"}))


def explained_summary() -> Summary:
    """A profile with phases, slow steps of two causes, and two findings."""
    explained = Explained(
        steps=1200,
        median_ns=22.1e6,
        phases=[
            Phase(name=WAIT, step_ns=1.6e6, share=0.07),
            Phase(name=FORWARD, step_ns=5.8e6, share=0.26),
            Phase(name=BACKWARD, step_ns=8.1e6, share=0.36),
            Phase(name=OPTIMIZER, step_ns=6.9e6, share=0.31),
        ],
        slow_steps=9,
        causes=[
            SlowCause(
                cause=GARBAGE,
                steps=6,
                share_of_slow=6 / 9,
                share_of_time=0.021,
                worst_ns=95_000_000,
                period="every 64 steps",
            ),
            SlowCause(
                cause=UNKNOWN, steps=3, share_of_slow=3 / 9, share_of_time=0.004, worst_ns=36_000_000, period=None
            ),
        ],
        worst=[
            SlowStep(call=812, started_ns=0, step_ns=95_000_000, cause=GARBAGE, cause_ns=71_000_000),
            SlowStep(call=90, started_ns=0, step_ns=36_000_000, cause=UNKNOWN, cause_ns=None),
        ],
        distortion=Estimate(ratio=1.004, low=1.001, high=1.008),
        bound_by=None,
    )
    findings = [
        Finding(
            name=SLOW_OPTIMIZER,
            share=0.31,
            evidence="Adam.step() takes 31 % of the step, one tensor after another",
            try_="optimizer_kernel=fused",
        ),
        Finding(
            name=COLLECTIONS, share=0.021, evidence="Python's garbage collector made 6 slow steps of 1,200", try_=None
        ),
    ]
    return make_summary("profile", baseline=make_variant({}), explained=explained, findings=findings)


# ----------------------------------------------------------------------------------------------------------- limits


def make_work(**changes: Any) -> StepWork:
    """A GFLOP of float32 and 60 MB moved, 20 MB at rest."""
    usual: dict[str, Any] = {
        "samples": 256,
        "flops": 10**9,
        "flops_by_dtype": {"float32": 10**9},
        "matmul_flops": 10**9,
        "parameter_bytes": 20_000_000,
        "gradient_bytes": 10_000_000,
        "optimizer_state_bytes": 20_000_000,
        "activation_bytes": 9_000_000,
        "batch_bytes": 1_000_000,
        "working_set_bytes": 20_000_000,
    }
    return StepWork(**{**usual, **changes})


def make_limits(**changes: Any) -> Limits:
    """A machine with 100 GFLOP/s in float32, eight times that in bfloat16, 40 GB/s in its cache and 10 GB/s beyond."""
    usual: dict[str, Any] = {
        "work": make_work(),
        "ceilings": [
            Ceiling(kind="matmul", dtype="float32", precision="highest", rows=1024, flops_per_second=100e9),
            Ceiling(kind="matmul", dtype="float32", precision="medium", rows=1024, flops_per_second=400e9),
            Ceiling(kind="matmul", dtype="bfloat16", rows=1024, flops_per_second=800e9),
            Ceiling(kind="matmul", dtype="float16", rows=256, flops_per_second=2e9),
            Ceiling(kind="copy", dtype="float32", buffer_bytes=67_108_864, bytes_per_second=10e9),
            Ceiling(kind="copy", dtype="float32", buffer_bytes=4_194_304, bytes_per_second=40e9),
        ],
        "cache_bytes": 33_554_432,
        "precision": "highest",
    }
    return Limits(**{**usual, **changes})


def limited_summary() -> Summary:
    """A profile with the distance of its 12 ms step to the limit."""
    return make_summary("profile", distance=distance(make_limits(), 12e6))


def weighed_summary() -> Summary:
    """A profile whose memory was watched and weighed, with a leak on the host."""
    memory = MemoryReport(
        parts=MemoryParts(
            parameters_bytes=5_255_172,
            gradients_bytes=5_255_172,
            optimizer_bytes=10_510_368,
            buffers_bytes=4096,
            activations_bytes=2_098_176,
            batch_bytes=263_168,
            batch_size=256,
            device_allocated_bytes=40_000_000,
            device_reserved_bytes=60_000_000,
            device_nvml_bytes=900_000_000,
            device_inactive_split_bytes=3_000_000,
        ),
        host_growth=Growth(
            verdict="leak", bytes_per_step=10_100.0, low=9800.0, high=10_400.0, steps=4000, grown_bytes=40_500_000
        ),
        device_growth=Growth(
            verdict="steady", bytes_per_step=12.0, low=-200.0, high=400.0, steps=4000, grown_bytes=-5000
        ),
        fit=BatchFit(
            points=[BatchPoint(batch_size=size, peak_bytes=426_000_000 + 31_700 * size) for size in (128, 256, 512)],
            available_bytes=20_000_000_000,
            fixed_bytes=426e6,
            per_sample_bytes=31.7e3,
            largest_batch_size=617_476,
        ),
    )
    return make_summary("profile", baseline=make_variant({}), memory=memory)
