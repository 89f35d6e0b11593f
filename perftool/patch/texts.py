"""Python source between bytes and text, and what changed in it as a unified diff that tools apply."""

from __future__ import annotations

import io
import tokenize
from collections.abc import Mapping
from difflib import unified_diff

MARK = "\ufeff"


def decoded(source: bytes) -> str:
    """The text of a file, with its line ends and byte order mark. Raises SyntaxError for an unknown encoding and
    UnicodeDecodeError for what is not of it."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    return source.decode("utf-8" if encoding == "utf-8-sig" else encoding)


def encoded(text: str) -> bytes:
    """The bytes of a file, as its coding line has it."""
    return text.encode(_encoding(text))


def diff_of(path: str, old: str, new: str) -> str:
    """Unified diff of one file, with the path as git writes it; "" where nothing changed."""
    end = "\t" if " " in path else ""  # where a name has spaces, tools look for the tab after it
    lines = unified_diff(_lines(old), _lines(new), f"a/{path}{end}", f"b/{path}{end}")
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def encoded_diff(diff: str, files: Mapping[str, str]) -> bytes:
    """The bytes of a diff of several files, each part in the encoding of its file. `files`: path to new text, in the
    order of the diff."""
    parts, rest = [], diff
    for path, text in reversed(list(files.items())):
        start = rest.rindex(f"--- a/{path}")
        parts.append(rest[start:].encode(_encoding(text)))
        rest = rest[:start]
    return b"".join(reversed(parts))


def _encoding(text: str) -> str:
    if text.startswith(MARK):
        return "utf-8"
    first = "".join(_lines(text)[:2]).encode("ascii", "replace")
    return tokenize.detect_encoding(io.BytesIO(first).readline)[0]


def _lines(text: str) -> list[str]:
    """Split at line feeds only, as tools that apply a diff do."""
    return io.StringIO(text, newline="\n").readlines()
