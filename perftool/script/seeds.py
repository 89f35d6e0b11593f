"""Other seeds for a script that draws its own: each is moved by the same number."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable
from typing import Any

from perftool.script.loop import Loop

NUMPY_MOST = 2**32


def shift_seeds(loop: Loop, shift: int) -> None:
    """Have every seed that the script sets moved by `shift`, and note that it sets one.

    Covers torch.manual_seed, random.seed and numpy.random.seed, which the frameworks call, too; not generators of the
    script's own. Torch begins from one fixed seed where the script sets none: that is moved, as well.
    """
    import torch

    def moved(seed: Callable[..., Any], most: int) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            loop.seeded = True
            if shift:
                arguments = tuple((one + shift) % most if isinstance(one, int) else one for one in arguments)
                options = {name: (one + shift) % most if isinstance(one, int) else one for name, one in options.items()}
            return seed(*arguments, **options)

        return functools.wraps(seed)(call)

    if shift:
        torch.manual_seed((torch.initial_seed() + shift) % 2**63)
    torch.manual_seed = moved(torch.manual_seed, 2**63)
    random.seed = moved(random.seed, 2**63)
    numpy = sys.modules.get("numpy")
    if numpy is not None:  # torch imports it where it is installed
        numpy.random.seed = moved(numpy.random.seed, NUMPY_MOST)
