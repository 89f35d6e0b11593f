"""The parts of README.md that the code writes: `python -m tests.generate_readme`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from perftool.scenario import discover

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PACKAGES = ("perftool", "scenarios")


def scenario_table() -> str:
    """One row per scenario, from the docstrings."""
    rows = [
        f"| [`{name}`](scenarios/{name}.py) | {one.summary} | {one.section('When it helps')} |"
        for name, one in discover().items()
    ]
    return "\n".join(["| scenario | what it does | when it helps |", "| --- | --- | --- |", *rows])


def codemap() -> str:
    """Every source file with the first line of its docstring, as a tree."""
    lines = ["```"]
    for package in PACKAGES:
        folders = sorted({path.parent for path in (ROOT / package).rglob("*.py")})
        for folder in folders:
            lines.append(f"{folder.relative_to(ROOT)}/")
            lines += [
                f"    {path.name:<23} {purpose}" for path in sorted(folder.glob("*.py")) if (purpose := _purpose(path))
            ]
    return "\n".join([*lines, "```"])


def _purpose(path: Path) -> str:
    """First sentence of a file's docstring, "" without one."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    return re.split(r"(?<=\.) ", paragraph)[0]


def with_blocks(document: str) -> str:
    """The document with what stands between its markers written anew."""
    for name, text in (("scenarios", scenario_table()), ("codemap", codemap())):
        block = re.compile(rf"(<!-- {name} -->\n).*(<!-- /{name} -->)", re.DOTALL)
        document, count = block.subn(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", document)  # type: ignore[misc]
        assert count == 1, f"README.md has {count} blocks <!-- {name} -->"
    return document


if __name__ == "__main__":
    README.write_text(with_blocks(README.read_text(encoding="utf-8")), encoding="utf-8")
