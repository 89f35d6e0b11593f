"""The golden patches: `python -m tests.patch.regenerate` writes them anew from what is made now."""

from __future__ import annotations

from pathlib import Path

from tests.patch.samples import SAMPLES, Sample

GOLDEN = Path(__file__).parent / "golden"


def page(sample: Sample) -> str:
    """A patch, and what it says beside the diff."""
    patch = sample.patch()
    lines = [
        f"written: {', '.join(patch.written)}",
        *([f"already: {', '.join(patch.already)}"] if patch.already else []),
        *(f"note: {note}" for note in patch.notes),
        *(f"{one.setting}: {one.reason}\n{one.advice}" for one in patch.unwritten),
    ]
    return "\n".join([*lines, "", patch.diff])


def regenerate() -> None:
    """Write every golden patch."""
    GOLDEN.mkdir(exist_ok=True)
    for name, sample in SAMPLES.items():
        (GOLDEN / f"{name}.diff").write_bytes(page(sample).encode())


if __name__ == "__main__":
    regenerate()
