"""Lines at the head of a file: imports that are missing, and statements after the imports or before torch's."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence

import libcst as cst

from perftool.analysis.handover import IMPORTS
from perftool.patch.source import Draft, Refused, Source, Statement, bare, led_by, statements
from perftool.patch.work import Wish, Work

Name = tuple[str, str]
"""A module, "" for the import of a whole one, and what is imported."""

_EARLY = "before the first"  # says a scenario of lines that come too late after the import of torch
_BLANK = cst.EmptyLine(indent=False)


def lay_setup(wishes: Sequence[Wish], work: Work) -> None:
    """In the script itself, or in the file of the user's that imports torch where that is not one of theirs."""
    main = next((site for kind in ("main", "import_torch") for site in work.script.sites if site.kind == kind), None)
    if main is None:
        raise Refused("the file of the script is not known")
    draft = work.draft(main.file)
    present = {bare(one) for one in draft.source.module.body}
    for wish in wishes:
        lines = statements(wish["setup"])
        work.imports += [bare(one) for one in lines if _names(one)]
        new = [one for one in lines if not _names(one) and bare(one) not in present]
        text = cst.Module(new).code.strip("\n")
        early = _EARLY in text and not re.search(r"\btorch\b", re.sub(r'"[^"]*"|#.*', "", text))
        if new:
            (draft.first if early else draft.setup).append(text)


def with_head(module: cst.Module, draft: Draft, imports: Iterable[str]) -> cst.Module:
    """The module with what a draft has for its head, and the imports that its changes need: of those that torch's own
    scripts have, and of these lines."""
    body = list(module.body)
    first, last = _anchors(body)
    known = [name for line in (*IMPORTS, *imports) for one in statements(line) for name in _names(one)]
    early = _missing(known, draft.first, body[: first + 1])
    late = _missing(known, [*draft.setup, *draft.definitions, *draft.uses], body[: last + 1])
    late = [name for name in late if name not in early]
    body = _inserted(draft.source, body, last, late, draft.setup, draft.definitions)
    body = _inserted(draft.source, body, first, early, draft.first, ())
    return module.with_changes(body=body)


def _anchors(body: Sequence[Statement]) -> tuple[int, int]:
    """The index of the statement that early lines follow, the last before anything but the standard library is
    imported; and of the last import. -1 is before all."""
    first = -1
    for index, one in enumerate(body):
        standard = all((module or name).partition(".")[0] in sys.stdlib_module_names for module, name in _names(one))
        if not (index == 0 and _is_text(one)) and not (_names(one) and standard):
            break
        first = index
    last, has_torch = first, False
    for index, one in enumerate(body):
        if _names(one):
            last = max(last, index)
            has_torch |= any((module or name).partition(".")[0] == "torch" for module, name in _names(one))
        elif index and (has_torch or not isinstance(one, cst.SimpleStatementLine)):
            break
    return first, last


def _missing(known: Sequence[Name], texts: Sequence[str], above: Sequence[Statement]) -> list[Name]:
    """What the texts use of the known names that no statement above imports."""
    text = re.sub(r'"[^"]*"|#.*', "", "\n".join(texts))
    held = {name for one in above if not isinstance(one, cst.If) for name in _names(one)}
    return [name for name in dict.fromkeys(known) if name not in held and re.search(rf"\b{name[1]}\b", text)]


def _inserted(
    source: Source,
    body: Sequence[Statement],
    anchor: int,
    imports: Sequence[Name],
    setup: Sequence[str],
    definitions: Sequence[str],
) -> list[Statement]:
    """The body with new lines after the anchor: imports, then statements, then definitions."""
    parts = [part for part in ("\n".join(_import_lines(imports)), "\n".join(setup)) if part]
    text = "\n\n\n".join(part for part in ("\n\n".join(parts), *definitions) if part)
    if not text:
        return list(body)
    head, *rest = source.statements(text)
    above, below = body[: anchor + 1], body[anchor + 1 :]
    if above:
        gap = 2 if definitions and not parts else 0 if imports and _names(above[-1]) else 1
    else:
        gap = 1 if source.module.header and source.module.header[-1].comment else 0
    new = [led_by(head, [_BLANK] * gap), *rest]
    if below and (setup or definitions):
        blank = sum(line.comment is None for line in below[0].leading_lines)
        missing = max(0, (2 if definitions else 1) - blank)
        below = [led_by(below[0], [*[_BLANK] * missing, *below[0].leading_lines]), *below[1:]]
    return [*above, *new, *below]


def _import_lines(names: Sequence[Name]) -> list[str]:
    """One line per module, whole modules first."""
    wanted: dict[str, list[str]] = {}
    for module, name in names:
        wanted.setdefault(module, []).append(name)
    whole = [f"import {name}" for name in sorted(wanted.pop("", []))]
    return [*whole, *(f"from {module} import {', '.join(sorted(parts))}" for module, parts in sorted(wanted.items()))]


def _names(statement: Statement) -> list[Name]:
    """What a statement imports that does nothing else, by its own name; empty for any other statement.

    A `try` or `if` whose first block only imports is such a statement.
    """
    lines: Iterable[cst.CSTNode]
    if isinstance(statement, cst.Try | cst.If):
        lines = [one for line in statement.body.body if isinstance(line, cst.SimpleStatementLine) for one in line.body]
        if len(lines) < len(statement.body.body):
            return []
    else:
        lines = statement.body if isinstance(statement, cst.SimpleStatementLine) else ()
    found: list[Name] = []
    for line in lines:
        if not isinstance(line, cst.Import | cst.ImportFrom):
            return []
        found += _imported(line)
    return found


def _imported(line: cst.Import | cst.ImportFrom) -> Iterator[Name]:
    code = cst.Module([]).code_for_node
    module = ""
    if isinstance(line, cst.ImportFrom):
        module = "." * len(line.relative) + (code(line.module) if line.module else "")
    if isinstance(line.names, cst.ImportStar):
        yield module, "*"
        return
    for one in line.names:
        name = code(one.name)
        if one.asname:
            yield module or name, f"{name} as {code(one.asname.name)}"
        else:
            yield module, name
            if not module and "." in name:  # `import torch.nn` binds torch
                yield module, name.partition(".")[0]


def _is_text(statement: Statement) -> bool:
    return isinstance(statement, cst.SimpleStatementLine) and isinstance(statement.body[0], cst.Expr)
