"""The file of a recorder: what is read is what was written, whatever ended the writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from perftool.script.trail import BLOCK_STEPS, BLOCKS, Trail, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rank-0.steps"


def fill(trail: Trail, blocks: int, began_ns: int = 1) -> int:
    """So many blocks of steps of 10 ns each. Returns when the last one ended."""
    for _ in range(blocks):
        ends_ns = [began_ns + 10 * (at + 1) for at in range(BLOCK_STEPS)]
        trail.put(ends_ns[:100])
        trail.put(ends_ns[100:])
        began_ns = ends_ns[-1]
    return began_ns


def test_what_is_no_step_is_left_out(path: Path) -> None:
    trail = Trail(path)
    trail.begin(100)
    trail.put([110, 130])
    trail.put([-5000, 5010])
    assert read(path).blocks == [(100, [10, 20, 10])]  # nothing was closed: a killed process closes nothing
    trail.close()


def test_steps_go_on_where_a_block_ends(path: Path) -> None:
    trail = Trail(path)
    trail.begin(1)
    trail.put([11 + 10 * at for at in range(BLOCK_STEPS + 3)])
    blocks = read(path).blocks
    assert [(block.began_ns, len(block.step_ns)) for block in blocks] == [(1, BLOCK_STEPS), (1 + 10 * BLOCK_STEPS, 3)]
    assert {time_ns for block in blocks for time_ns in block.step_ns} == {10}
    assert (trail.number, trail.room) == (1, BLOCK_STEPS - 3)
    trail.close()


def test_a_long_training_keeps_every_second_block_and_no_more_room(path: Path) -> None:
    trail = Trail(path)
    size = path.stat().st_size
    trail.begin(1)
    end_ns = fill(trail, BLOCKS)
    began_ns = [block.began_ns for block in read(path).blocks]
    assert (len(began_ns), trail.every) == (BLOCKS, 1)
    fill(trail, 3, end_ns)
    kept = read(path).blocks
    assert trail.every == 2
    assert [block.began_ns for block in kept[: BLOCKS // 2]] == began_ns[::2]
    assert len(kept) == BLOCKS // 2 + 2
    assert all(block.step_ns == [10] * BLOCK_STEPS for block in kept)
    assert path.stat().st_size == size
    trail.close()


def test_a_line_that_was_cut_short_is_left_out(path: Path) -> None:
    trail = Trail(path)
    trail.tell({"a": 1})
    trail.tell({"a": 2})
    trail.close()
    path.write_bytes(path.read_bytes()[:-4])
    assert read(path).lines == [{"a": 1}]


def test_another_process_has_a_file_of_its_own(path: Path) -> None:
    Trail(path).close()
    with pytest.raises(FileExistsError):
        Trail(path)
