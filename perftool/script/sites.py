"""Where in the user's own files something is made or called: the innermost frame that is no library's."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable
from itertools import islice
from types import CodeType, FrameType
from typing import Any, NamedTuple

FRAMEWORKS = {
    "lightning": "lightning",
    "pytorch_lightning": "lightning",
    "transformers": "transformers",
    "accelerate": "accelerate",
}
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARIES = tuple(
    {
        os.path.realpath(path) + os.sep
        for key in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
        if (path := sysconfig.get_paths().get(key))
    }
    | {_OWN}
)
_PLACES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_own_files: dict[str, bool] = {}


class Place(NamedTuple):
    """A place in the user's files that was running.

    code: None where no frame was the user's. instruction: number in it. framework: whose loop it runs in, or that runs
        between it and what was seen. is_direct: it makes the call itself that was seen, with no library between.
    """

    code: CodeType | None
    instruction: int
    line: int
    framework: str | None
    is_direct: bool

    @property
    def file(self) -> str:
        """Absolute, without links; "" where there is none."""
        return "" if self.code is None else os.path.realpath(self.code.co_filename)

    def site(self, kind: str, callee: str = "", **more: Any) -> dict[str, Any]:
        """The fields of a `perftool.records.Site`; `more` are others than those of the place."""
        end_line, end_column = self._end()
        return {
            "kind": kind,
            "file": self.file,
            "line": self.line,
            "end_line": end_line,
            "end_column": end_column,
            "callee": callee,
            "framework": self.framework,
            **more,
        }

    def _end(self) -> tuple[int | None, int | None]:
        """Where the call that was seen ends, as the interpreter has it; Python 3.10 has not."""
        positions: Callable[[], Any] | None = getattr(self.code, "co_positions", None)
        if positions is None or not self.is_direct:
            return None, None
        _, line, _, column = next(islice(positions(), self.instruction, None))
        return line, column


def own_place(made: Any = None, *, outside: bool = False) -> Place:
    """The innermost place of the user's on the stack.

    made: an object whose constructors are running: those of libraries are not between the place and what was seen.
    outside: the user's constructors of it are passed over, too.
    """
    frame: FrameType | None = sys._getframe(1)
    is_direct, framework = True, None
    found: FrameType | None = None
    while frame is not None and (found is None or framework is None):
        code = frame.f_code
        constructs = found is None and made is not None and _constructs(frame, made)
        if not constructs:
            framework = framework or FRAMEWORKS.get(str(frame.f_globals.get("__name__", "")).partition(".")[0])
        if found is None and not code.co_filename.startswith(_OWN):
            if is_own(code.co_filename) and not (outside and constructs):
                found = frame
            elif not constructs:
                is_direct = False
        frame = frame.f_back
    if found is None:
        return Place(None, 0, 0, framework, False)
    return Place(found.f_code, found.f_lasti // 2, found.f_lineno, framework, is_direct)


def _constructs(frame: FrameType, made: Any) -> bool:
    code = frame.f_code
    return code.co_name == "__init__" and code.co_argcount > 0 and frame.f_locals.get(code.co_varnames[0]) is made


def is_own(file: str) -> bool:
    """Whether a file is the user's: one that is there, and none of a library or of an environment."""
    known = _own_files.get(file)
    if known is None:
        path = os.path.realpath(file)
        known = not path.startswith(_LIBRARIES) and not any(part in path for part in _PLACES) and os.path.isfile(path)
        _own_files[file] = known
    return known
