"""Where a script builds and calls what settings change, as the hook in its process saw it."""

from __future__ import annotations

from typing import Literal

from perftool.records import Record

Kind = Literal["loader", "optimizer", "model", "model_call", "backward", "update", "import_torch", "main"]
Outputs = Literal["tensor", "tensors", "other"]


class CodeSite(Record, frozen=True, kw_only=True):
    """One line of a user's file: of all frames at that moment the innermost that is neither the standard library's nor
    an installed package's.

    kind: what happens there. "main" is the script itself, "import_torch" the first import of torch; their line does
        not matter.
    file: absolute; "" where no frame was in a file of the user's.
    line: that the running interpreter was at (`frame.f_lineno`).
    end_line, end_column: the end of the call, by `code.co_positions()` at `frame.f_lasti // 2`; columns count bytes of
        UTF-8 from 0. They tell which call of a line it is, whatever its name. None where they are not known, or where
        that call is another, whose library builds or calls what this is about; then the callee tells.
    callee: the last name of what is called as the source writes it ("net" of `self.net(x)`); of a loader or an
        optimizer the name of its class does, too, whatever name it was imported by.
    framework: whose loop trains there: "lightning", "transformers", "accelerate", or None.
    uses: how often training used what is made or called there; 0 for a loader that only evaluates, which stays as it
        is.
    outputs: of a model call, what it returned: one floating-point tensor; a tuple or list of nothing but such tensors;
        anything else.
    """

    kind: Kind
    file: str
    line: int
    end_line: int | None = None
    end_column: int | None = None
    callee: str = ""
    framework: str | None = None
    uses: int = 1
    outputs: Outputs = "tensor"
