"""Pages to look at: sessions made by code that show every plot, and a parser that finds fault with their HTML."""

from __future__ import annotations

from html.parser import HTMLParser

from msgspec.structs import replace

from perftool.analysis.across import side_by_side
from perftool.analysis.recommend import conclude
from perftool.records import (
    BACKWARD,
    CONFIRM,
    FORWARD,
    GARBAGE,
    WAIT,
    BatchFit,
    BatchPoint,
    Decision,
    MemorySample,
    Recommendation,
    Session,
    SideBySide,
    Summary,
    WatchedBlock,
)
from tests.sessions import make_limits, make_script, timed_session, tuned_summary, weighed_summary

WINNER = {"amp": "bf16", "optimizer_kernel": "fused"}
VOID = {"meta", "input", "br", "hr", "img", "link"}


def watched_blocks(blocks: int = 10, steps: int = 20) -> list[WatchedBlock]:
    """Steps of 10 ms, the last of each block ten times as long because of a collection."""
    return [
        WatchedBlock(
            launch=0,
            round=number,
            first_call=number * steps,
            started_ns=number * 10**9,
            samples=10 * steps,
            step_ns=[10_000_000] * (steps - 1) + [100_000_000],
            phase_ns={
                WAIT: [1_000_000] * steps,
                FORWARD: [4_000_000] * steps,
                BACKWARD: [5_000_000] * (steps - 1) + [95_000_000],
            },
            cause_ns={GARBAGE: [0] * (steps - 1) + [90_000_000]},
        )
        for number in range(blocks)
    ]


def tuned() -> tuple[Session, Summary]:
    """A search with a recommendation, a front and a curve of batch sizes."""
    variants = [
        ({}, 12.0),
        ({"amp": "bf16"}, 8.3),
        ({"optimizer_kernel": "fused"}, 9.0),
        (WINNER, 5.9),
        ({"batch_size": "20"}, 11.0),
        ({"batch_size": "40"}, 10.5),
    ]
    session = replace(
        timed_session(variants, command="tune"),
        scenario_changes={"amp": "numerics", "optimizer_kernel": "speed", "batch_size": "optimisation"},
        defaults={"amp": "off", "optimizer_kernel": "default", "batch_size": "10", "threads": "2"},
    )
    advice = tuned_summary().recommendation
    assert isinstance(advice, Recommendation)
    return session, replace(conclude(session), recommendation=advice, recommendation_status="confirmed")


def compared() -> tuple[Session, Summary]:
    """A comparison of three variants."""
    session = timed_session([({}, 12.0), ({"amp": "bf16"}, 8.3), ({"threads": "1"}, 24.0)])
    return session, conclude(session)


def profiled() -> tuple[Session, Summary]:
    """A profile with slow steps, phases, memory and limits."""
    session = replace(
        timed_session([({}, 12.0)], command="profile"),
        watched_blocks=watched_blocks(),
        limits=make_limits(),
        memory_samples=[MemorySample(launch=0, steps=50 * one, host_bytes=10**9 + 4096 * one) for one in range(40)],
        memory_parts=weighed_summary().memory.parts,  # type: ignore[union-attr]
        batch_fit=BatchFit(
            points=[BatchPoint(batch_size=size, peak_bytes=10**9 + 10**5 * size) for size in (5, 10, 20)],
            available_bytes=8 * 10**9,
            fixed_bytes=1e9,
            per_sample_bytes=1e5,
            largest_batch_size=70_000,
        ),
    )
    return session, conclude(session)


def scripted() -> tuple[Session, Summary]:
    """A search of the settings of a command, among them an option of its own, with a recommendation."""
    winner = {"--num-workers": "2", "amp": "bf16"}
    session = timed_session(
        [({}, 12.0), ({"amp": "bf16"}, 8.3), ({"--num-workers": "2"}, 11.0), ({"threads": "1"}, 13.0), (winner, 7.2)],
        command="tune",
        stage=CONFIRM,
    )
    session = make_script(session, aside_ms={"evaluation at train.py:88": 15.0, "checkpoint at train.py:95": 2.0})
    session = replace(
        session,
        arguments=["tune", "--vary", "--num-workers=0|2", "--", *session.workload.script.command],  # type: ignore[union-attr]
        scenario_changes={"amp": "numerics", "--num-workers": "numerics", "threads": "speed"},
        defaults={"amp": "off", "--num-workers": "own", "threads": "2"},
        codes={
            "amp": {"bf16": {"loss_context": 'torch.autocast("cpu", dtype=torch.bfloat16)'}},
            "--num-workers": {"2": {"command": "--num-workers=2"}},
        },
        decisions=[Decision(stage=CONFIRM, settings=winner, action="chosen", reason="the best")],
    )
    return session, conclude(session, "results/20260101-000000-train-tune")


def two_sessions() -> SideBySide:
    """Before and after an upgrade that made one variant gain more, and brought another one."""
    first, told = compared()
    second = replace(
        timed_session([({}, 20.0), ({"amp": "bf16"}, 8.3), ({"thp": "on"}, 19.0)], seed=1),
        created_at="2026-02-02T00:00:00+00:00",
        machine=replace(first.machine, torch_version="3.0.0"),
    )
    return side_by_side((first, told), (second, conclude(second)))


PAGES = {"tuned": tuned, "compared": compared, "profiled": profiled, "scripted": scripted}


class Checked(HTMLParser):
    """Reads a page as strictly as nobody else does: every element is closed, every id is its own."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.wanted: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []  # element, name, value
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(tag, attrs)

    def _attributes(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")
            if name in ("aria-labelledby", "data-copy"):
                self.wanted.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        last = self.open.pop()
        assert last == tag, f"</{tag}> closes <{last}>"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def tags(self) -> list[str]:
        """Every attribute's element once, in order: enough to tell two pages' structures apart."""
        return [tag for tag, _, _ in self.attributes]

    @property
    def lines(self) -> list[str]:
        """All that can be read, one text after another."""
        return [line.strip() for text in self.texts for line in text.splitlines() if line.strip()]

    @property
    def text(self) -> str:
        """All that can be read."""
        return "".join(self.texts)
