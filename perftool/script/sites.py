"""Where in the user's own files something was written: the innermost frame that is no library's."""

from __future__ import annotations

import os
import sys
import sysconfig
from types import CodeType, FrameType
from typing import Any

FRAMEWORKS = {
    "lightning": "lightning",
    "pytorch_lightning": "lightning",
    "transformers": "transformers",
    "accelerate": "accelerate",
}
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LIBRARIES = tuple(
    {
        os.path.realpath(place) + os.sep
        for key in ("stdlib", "platstdlib", "purelib", "platlib")
        if (place := sysconfig.get_paths().get(key))
    }
    | {_OWN + os.sep}
)
_PLACES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_own_code: dict[CodeType, bool] = {}


def own_site(**more: Any) -> dict[str, Any] | None:
    """File, line and function of the innermost frame in the user's files, the framework that lies between, and
    whatever else is to be kept with it; None where no frame is the user's."""
    frame: FrameType | None = sys._getframe(1)
    framework = None
    while frame is not None:
        if is_own(frame.f_code):
            code = frame.f_code
            return {
                "file": os.path.abspath(code.co_filename),
                "line": frame.f_lineno,
                "function": code.co_name,
                "framework": framework,
                **more,
            }
        framework = framework or FRAMEWORKS.get(str(frame.f_globals.get("__name__", "")).partition(".")[0])
        frame = frame.f_back
    return None


def is_own(code: CodeType) -> bool:
    """Whether code is from a file of the user's."""
    known = _own_code.get(code)
    if known is None:
        name = code.co_filename
        path = os.path.realpath(name)
        known = not (
            name.startswith("<") or path.startswith(_LIBRARIES) or any(part in path for part in _PLACES)
        ) and os.path.exists(path)
        _own_code[code] = known
    return known


def place(site: dict[str, Any] | None) -> str:
    """ "train.py:88", or "" for a site that is not known."""
    return f"{os.path.basename(site['file'])}:{site['line']}" if site else ""
