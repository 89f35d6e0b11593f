"""Arguments of the copies of a batch to the device: `x.to(device)` in the loop over the batches."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from perftool.patch.arguments import change_arguments, keywords
from perftool.patch.source import Draft, Refused, Source
from perftool.patch.work import Wish, Work
from perftool.records import Site


def lay_copy_arguments(wishes: Sequence[Wish], work: Work) -> None:
    """In the copies of what a loop over batches binds, within that loop."""
    wanted = keywords(", ".join(wish["copy_arguments"] for wish in wishes))
    loops: dict[cst.CSTNode | None, tuple[Draft, Site, set[str]]] = {}
    for site in work.by_hand("model_call", "call of a model with gradients"):
        draft = work.draft(site.file)
        for call in draft.source.calls(site):
            loop: cst.CSTNode | None = next(
                (up for _, up in draft.source.parents(call) if isinstance(up, cst.For | cst.FunctionDef)), None
            )
            _, _, own = loops.setdefault(loop, (draft, site, set()))
            own.add(f"{draft.source.code(call.func)}.device")
    for loop, (draft, site, own) in loops.items():
        copies = _copies(loop, draft.source, own) if isinstance(loop, cst.For) else []
        if not copies:
            raise Refused(
                f"no copy of a batch to the device is seen in the loop around {draft.source.path}:{site.line}"
            )
        for call in copies:
            change_arguments(draft, call, wanted, ())


def _copies(loop: cst.For, source: Source, own: set[str]) -> list[cst.Call]:
    """The first `x.to(...)` or `x.cuda(...)` of each thing that a loop binds, and of what it makes of that, which
    copies to the training's device. One that does not wait on its way to the host would be read before it is there.

    own: the devices of the models that the loop calls, as they are written.
    """
    seen = _Copies(_names(loop.target), source, own, _devices(loop, source))
    loop.body.visit(seen)
    return seen.calls


def _devices(loop: cst.For, source: Source) -> set[str]:
    """What anything else of the file than the batches of this loop is moved to, such as the model, as it is written."""
    seen = _Targets()
    within = _Targets()
    source.module.visit(seen)
    loop.visit(within)
    others = [target for target in seen.targets if target not in within.targets]
    return {source.code(target) for target in others if not _kinds(target, source) <= {"cpu", "type"}}


class _Targets(cst.CSTVisitor):
    def __init__(self) -> None:
        self.targets: list[cst.BaseExpression] = []

    def visit_Call(self, node: cst.Call) -> None:
        target = _target(node)
        if target is not None:
            self.targets.append(target)


class _Copies(cst.CSTVisitor):
    def __init__(self, names: set[str], source: Source, own: set[str], devices: set[str]) -> None:
        self.names = names  # of what is on the host
        self.source, self.own, self.devices = source, own, devices
        self.calls: list[cst.Call] = []
        self._moved: set[str] = set()  # as it is written

    def leave_Assign(self, original_node: cst.Assign) -> None:
        self._assigned([one.target for one in original_node.targets], original_node.value)

    def leave_AnnAssign(self, original_node: cst.AnnAssign) -> None:
        if original_node.value is not None:
            self._assigned([original_node.target], original_node.value)

    def visit_ListComp(self, node: cst.ListComp) -> None:
        self._bind(node.for_in)

    def visit_DictComp(self, node: cst.DictComp) -> None:
        self._bind(node.for_in)

    def visit_GeneratorExp(self, node: cst.GeneratorExp) -> None:
        self._bind(node.for_in)

    def visit_Call(self, node: cst.Call) -> None:
        function = node.func
        if not isinstance(function, cst.Attribute) or _root(function) not in self.names:
            return
        what = self.source.code(function.value)
        if what not in self._moved and self._is_to_device(node, function.attr.value):
            self._moved.add(what)
            self.calls.append(node)

    def _is_to_device(self, call: cst.Call, method: str) -> bool:
        target = _target(call)
        if target is None:
            return method == "cuda"
        if isinstance(target, cst.Integer):
            return True
        kinds = _kinds(target, self.source)
        if kinds <= {"cpu", "type"}:
            return False
        text = self.source.code(target)
        if kinds == {"device"} or text in self.devices | self.own:
            return True
        return not self.devices and "device" in text.rpartition(".")[2].lower()

    def _assigned(self, targets: Sequence[cst.BaseExpression], value: cst.BaseExpression) -> None:
        names = {name for target in targets for name in _names(target)}
        if any(_is_within(call, value) for call in self.calls):
            self.names -= names
        elif _root(value) in self.names:
            self.names |= names

    def _bind(self, loop: cst.CompFor) -> None:
        if _root(loop.iter) in self.names:
            self.names |= _names(loop.target)


def _target(call: cst.Call) -> cst.BaseExpression | None:
    """Where `x.to(...)` moves, or what it makes of it; None for another call, and where that is not said."""
    if not isinstance(call.func, cst.Attribute) or call.func.attr.value not in ("to", "cuda"):
        return None
    named = {arg.keyword.value: arg.value for arg in call.args if arg.keyword is not None}
    if "device" in named:
        return named["device"]
    return next((arg.value for arg in call.args if arg.keyword is None and not arg.star), None)


def _kinds(target: cst.BaseExpression, source: Source) -> set[str | None]:
    """Of all that a name may stand for."""
    return {_kind(value) for value in source.values(target)}


def _kind(value: cst.BaseExpression) -> str | None:
    """What is written out: the "cpu", another "device", a "type" of numbers; None for anything else."""
    if isinstance(value, cst.Call) and _last(value.func) == "device" and value.args:
        return _kind(value.args[0].value)
    if isinstance(value, cst.SimpleString):
        return "cpu" if str(value.evaluated_value).startswith("cpu") else "device"
    if isinstance(value, cst.Attribute) and isinstance(value.value, cst.Name) and value.value.value == "torch":
        return "type"
    return None


def _last(node: cst.BaseExpression) -> str | None:
    """`device` of `torch.device`."""
    node = node.attr if isinstance(node, cst.Attribute) else node
    return node.value if isinstance(node, cst.Name) else None


def _is_within(node: cst.CSTNode, other: cst.CSTNode) -> bool:
    return node is other or any(_is_within(node, child) for child in other.children)


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
