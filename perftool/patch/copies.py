"""Arguments of the copies of a batch to the device: `x.to(device)` in the loop over the batches."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from perftool.patch.arguments import change_arguments, keywords
from perftool.patch.source import Draft, Refused
from perftool.patch.work import Wish, Work
from perftool.records import Site


def lay_copy_arguments(wishes: Sequence[Wish], work: Work) -> None:
    """In the copies of what a loop over batches binds, within that loop."""
    wanted = keywords(", ".join(wish["copy_arguments"] for wish in wishes))
    loops: dict[cst.CSTNode | None, tuple[Draft, Site]] = {}
    for site in work.by_hand("model_call", "call of a model with gradients"):
        draft = work.draft(site.file)
        for call in draft.source.calls(site):
            loop: cst.CSTNode | None = next(
                (up for _, up in draft.source.parents(call) if isinstance(up, cst.For | cst.FunctionDef)), None
            )
            loops[loop] = draft, site
    for loop, (draft, site) in loops.items():
        copies = _copies(loop) if isinstance(loop, cst.For) else []
        if not copies:
            raise Refused(
                f"no copy of a batch to the device is seen in the loop around {draft.source.path}:{site.line}"
            )
        for call in copies:
            change_arguments(draft, call, wanted, ())


def _copies(loop: cst.For) -> list[cst.Call]:
    """`x.to(...)` and `x.cuda(...)` of what a loop binds, and of what it makes of that."""
    seen = _Copies(_names(loop.target))
    loop.body.visit(seen)
    return seen.calls


class _Copies(cst.CSTVisitor):
    def __init__(self, names: set[str]) -> None:
        self.names = names
        self.calls: list[cst.Call] = []

    def visit_Assign(self, node: cst.Assign) -> None:
        if _root(node.value) in self.names:
            self.names |= {name for target in node.targets for name in _names(target.target)}

    def visit_ListComp(self, node: cst.ListComp) -> None:
        self._bind(node.for_in)

    def visit_DictComp(self, node: cst.DictComp) -> None:
        self._bind(node.for_in)

    def visit_GeneratorExp(self, node: cst.GeneratorExp) -> None:
        self._bind(node.for_in)

    def visit_Call(self, node: cst.Call) -> None:
        function = node.func
        copies = isinstance(function, cst.Attribute) and function.attr.value in ("to", "cuda")
        if copies and _root(function) in self.names:
            self.calls.append(node)

    def _bind(self, loop: cst.CompFor) -> None:
        if _root(loop.iter) in self.names:
            self.names |= _names(loop.target)


def _root(node: cst.BaseExpression) -> str | None:
    """`batch` of `batch["x"].items()`."""
    while isinstance(node, cst.Attribute | cst.Subscript | cst.Call):
        node = node.func if isinstance(node, cst.Call) else node.value
    return node.value if isinstance(node, cst.Name) else None


def _names(target: cst.BaseExpression) -> set[str]:
    if isinstance(target, cst.Name):
        return {target.value}
    elements = target.elements if isinstance(target, cst.Tuple | cst.List) else ()
    return {name for element in elements for name in _names(element.value)}
