"""README.md says what is there."""

from __future__ import annotations

import re

from tests.generate_readme import PACKAGES, README, ROOT, with_blocks

TEXT = README.read_text(encoding="utf-8")


def test_its_tables_are_fresh() -> None:
    assert with_blocks(TEXT) == TEXT, "run python -m tests.generate_readme"


def test_every_file_is_on_the_map() -> None:
    shown = TEXT.partition("<!-- codemap -->")[2].partition("<!-- /codemap -->")[0]
    files = {path.name for package in PACKAGES for path in (ROOT / package).rglob("*.py")} - {"__init__.py"}
    assert files <= set(re.findall(r"\w+\.py", shown))


def test_its_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_its_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)\b", TEXT, re.MULTILINE)) <= targets
