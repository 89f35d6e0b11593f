"""The benchmarks can be found and their sections written; what they measure is theirs to say."""

from __future__ import annotations

import importlib
from math import exp, isnan, log
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from perftool.analysis.handover import script
from tests.measure.fakes import MACHINE, WORKLOAD, Script, make_lab, make_session
from tests.perf import bench_best_of_64 as best_of
from tests.perf import bench_peer, peer
from tests.perf.__main__ import main, names
from tests.perf.table import Row, Table, markdown, with_section
from tests.sessions import timed_session


@pytest.mark.parametrize("name", names())
def test_a_benchmark_has_a_title_and_can_be_run(name: str) -> None:
    module = importlib.import_module(f"tests.perf.bench_{name}")
    assert module.TITLE
    assert callable(module.run)


def test_titles_are_unique() -> None:
    titles = [importlib.import_module(f"tests.perf.bench_{name}").TITLE for name in names()]
    assert len(set(titles)) == len(titles)


def test_an_unknown_benchmark_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "there is no benchmark nonsense; there are" in capsys.readouterr().err


def test_a_miss_says_so() -> None:
    text = markdown(Table(["a"], [Row(["x|y"], reached=False), Row(["z"])], ["A note."]))
    assert text.splitlines() == ["| a | reached |", "| --- | --- |", "| x\\|y | no |", "| z | - |", "", "A note."]


TITLES = st.sampled_from(["one", "two", "three"])


@given(st.lists(st.tuples(TITLES, st.sampled_from(["x", "y\n\nz"])), max_size=6))
def test_a_section_is_replaced_where_it_stands_and_the_others_stay(written: list[tuple[str, str]]) -> None:
    document = "# Head\n\nIntroduction.\n"
    for title, body in written:
        document = with_section(document, title, body)
    order = list(dict.fromkeys(title for title, _ in written))
    assert [line[3:] for line in document.splitlines() if line.startswith("## ")] == order
    for title, body in dict(written).items():
        assert f"## {title}\n\n{body}\n" in document
    assert document.startswith("# Head\n\nIntroduction.\n")


# ----------------------------------------------------------------------------------------------------------- the peer

PRINTED = """[loadtune] trial 2/3: workers=2, persistent  (data_wait_frac=62% ≥ 20%: input-bound, trying num_workers=2)
[loadtune] report written to loadtune_report.md
[loadtune] best overall: workers=2, prefetch=4, persistent, pin, bs=128, threads=1, compiled, amp — 2.66x baseline
"""


def test_what_the_peer_advises_is_read_from_what_it_prints() -> None:
    advice = peer.advice_in(PRINTED)
    assert advice is not None
    assert advice.claim == 2.66
    assert (advice.knobs["workers"], advice.knobs["threads"]) == ("2", "1")
    assert peer.advised_batch_size(advice, 64) == 128
    assert peer.advice_in("[loadtune] brain proposed no trials — baseline looks fine.\n") is None


def test_what_the_peer_advises_becomes_a_plain_script() -> None:
    advice = peer.advice_in(PRINTED)
    assert advice is not None
    facts = replace(WORKLOAD, batch_size=64, shuffle=True)
    text = peer.advised_script(advice, facts)
    compile(text, "advised.py", "exec")
    for words in (
        "num_workers=2, prefetch_factor=4, persistent_workers=True, pin_memory=True",
        "torch.set_num_threads(1)",
        "model = torch.compile(model)",
        'torch.autocast("cpu", dtype=torch.bfloat16)',
        "batch_size = 64\n",
    ):
        assert words in text
    unchanged = script({}, {}, workload=facts, device="cpu")
    none = peer.Advice("workers=0", 1.02, {"workers": "0"})
    plain = peer.advised_script(none, facts)
    assert "num_workers=0" in plain
    assert _without_arguments(plain) == _without_arguments(unchanged)
    with pytest.raises(ValueError, match="has no knob turbo"):
        peer.places({"turbo": "on"}, "cpu")


def _without_arguments(text: str) -> list[str]:
    """The script's lines after its title, but for the loader's arguments."""
    return [line for line in text.splitlines()[3:] if "DataLoader(" not in line]


def test_the_peers_rows_answer_the_four_questions() -> None:
    def run(advice: str, claim: float | None, true: float) -> bench_peer.Run:
        return bench_peer.Run(advice, claim, true, true, 30.0, stress=False)

    theirs = [run("workers=2", 2.5, 0.5), run("workers=2", 10.0, 0.5), run("nothing", None, 1.0)]
    ours = [run("optimizer_kernel=fused", 1.30, 1.25), run("optimizer_kernel=fused", 1.25, 1.25)]
    truth, gain, repeat, right = bench_peer.rows_of("scenarios.reference:small", theirs, ours)
    assert (truth.cells[2:], truth.reached) == (["575.0 points", "2.5 points"], True)
    assert (gain.cells[2:], gain.reached) == (["0.667", "1.250"], True)
    assert (repeat.cells[2:], repeat.reached) == (["2 in 3 runs; 10.00", "1 in 2 runs; 1.04"], True)
    assert (right.cells[2:], right.reached) == (["1 of 3; 30 s", "2 of 2; 30 s"], True)
    assert [row.reached for row in bench_peer.rows_of("x:small", ours, theirs)] == [False] * 4
    silent = [run("nothing", None, 1.0)] * 2
    truth, _, repeat, _ = bench_peer.rows_of("x:small", silent, ours)
    assert (truth.reached, repeat.reached) == (None, None)


# --------------------------------------------------------------------------------------------------------- best of 64


def test_a_space_takes_the_first_that_fit() -> None:
    values = {"a": ["0", "1", "2"], "alone": ["0"], "b": ["0", "1"], "large": ["0", "1", "2"], "c": ["0", "1"]}
    assert list(best_of.fitting(values, 13, 20)) == ["a", "b", "large"]
    assert list(best_of.fitting(values, 30, 35)) == ["a", "b", "large"]  # 18, for want of 30
    space = best_of.fitting(values, 10, 12)
    assert list(space) == ["a", "b", "c"]
    combinations = best_of.combinations_of(space, {"a": "1", "b": "0", "c": "0"})
    assert len(combinations) == 3 * 2 * 2 - 1
    assert {"a": "0"} in combinations
    assert all(one and one.get("a") != "1" and one.get("b") != "0" for one in combinations)


def test_the_truth_is_what_the_session_was_made_of() -> None:
    made = [({}, 10.0), ({"a": "on"}, 8.0), ({"b": "on"}, 5.0), ({"a": "on", "b": "on"}, 4.9)]
    session = timed_session(made, stage=best_of.ALL, generations=2, noise=0.001)
    found = best_of.truths_of(session)
    assert [one.settings for one in found] == [made[3][0], made[2][0], made[1][0]]
    assert [one.ratio for one in found] == pytest.approx([10 / 4.9, 2.0, 1.25], rel=0.01)
    assert all(one.halves == pytest.approx((one.theta, one.theta), abs=0.01) for one in found)
    assert [one.settings for one in best_of.near_best(found, 0.05, 12)] == [made[3][0], made[2][0]]
    assert len(best_of.near_best(found, 0.05, 1)) == 1
    unsure = [best_of.Truth(one.settings, one.theta, 0.4, 1, one.halves) for one in found]
    assert len(best_of.near_best(unsure, 0.05, 12)) == 3


def test_those_that_went_on_are_judged_by_that_alone() -> None:
    session = timed_session([({}, 10.0), ({"a": "on"}, 8.0), ({"b": "on"}, 5.0)], stage=best_of.ALL, noise=0.001)
    further = timed_session([({}, 10.0), ({"a": "on"}, 8.0), ({"b": "on"}, 5.5)], stage=best_of.NEAR, noise=0.001)
    for launch in further.launches:
        if launch.variant != 1:
            moved = replace(launch, launch=launch.launch + 100, generation=launch.generation + 10)
            session.launches.append(moved)
    session.blocks.extend(replace(one, launch=one.launch + 100, round=one.round + 1000) for one in further.blocks)
    ratios = {tuple(one.settings): one.ratio for one in best_of.truths_of(session)}
    assert ratios == pytest.approx({("a",): 1.25, ("b",): 10 / 5.5}, rel=0.01)


def test_generations_end_in_time_but_there_is_always_one() -> None:
    def generations(end_s: float) -> int:
        session = make_session(budget_s=1000.0)
        lab, _ = make_lab(Script(start_s=10.0), session)
        best_of._generations(lab, best_of.ALL, [lab.variant({"a": "on"})], rounds=2, end_s=end_s)
        return len({launch.generation for launch in lab.session.launches})

    # Two starts of 10 s, a warm-up and two rounds each: less than 25 s a generation.
    assert generations(1.0) == 1
    assert generations(75.0) == 3
    assert generations(10_000.0) == best_of.GENERATIONS_MOST


def test_regret_is_what_is_missed_of_the_best() -> None:
    def truth(name: str, ratio: float, halves: tuple[float, float] | None = None) -> best_of.Truth:
        both = tuple(-log(half) for half in halves or (ratio, ratio))
        return best_of.Truth({name: "on"}, -log(ratio), 0.005, 4, (both[0], both[1]))

    best, near = truth("best", 2.0, (2.02, 1.98)), truth("near", 1.99, (1.98, 2.0))
    found = best_of.Cached(0.0, 1.0, [best, near])
    assert best_of.regret(near, found.truths) == pytest.approx(0.005)
    assert best_of.regret(best, found.truths) == 0
    assert best_of.regret(best_of.BASELINE, found.truths) == pytest.approx(0.5)
    # One half chooses `best` and measures 1.98 to 2.0; the other chooses `near` and measures it against itself.
    assert best_of.split_regret(near, found.truths) == pytest.approx(1 - exp((log(2.0 / 1.98)) / 2))
    told = best_of.judged(None, 30.0, found)
    assert told.points_off == 0
    assert told.regret == pytest.approx(0.5)
    assert isnan(best_of.regret(replace(best, theta=float("nan")), found.truths))


def test_a_truth_is_kept_for_a_day(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    assert best_of.read_cache(path, 0.0) is None
    kept = best_of.Cached(1000.0, 1.0, [best_of.BASELINE])
    path.write_bytes(msgspec.json.encode(kept))
    assert best_of.read_cache(path, 1000.0 + best_of.FRESH_S) == kept
    assert best_of.read_cache(path, 1001.0 + best_of.FRESH_S) is None
    path.write_bytes(b"{}")
    assert best_of.read_cache(path, 1000.0) is None
    space = {"a": ["0", "1"]}
    other = replace(MACHINE, torch_version="2.14.0")
    assert best_of.cache_path(MACHINE, "x:y", space) != best_of.cache_path(other, "x:y", space)
    assert best_of.cache_path(MACHINE, "x:y", space) == best_of.cache_path(replace(MACHINE), "x:y", space)
