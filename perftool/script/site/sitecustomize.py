"""Put in front of PYTHONPATH, so that every Python that a command starts comes by here before its program.

Runs whatever other sitecustomize there is, then lets perftool wait for torch. Errors of perftool's own must not reach
the program.
"""

import os
import sys
from contextlib import suppress

_HERE = os.path.dirname(os.path.abspath(__file__))


def _chain() -> None:
    """The sitecustomize that would have run without this one."""
    import importlib.util

    sys.path[:] = [place for place in sys.path if os.path.abspath(place or os.curdir) != _HERE]
    sys.path_importer_cache.pop(_HERE, None)
    ours = sys.modules.pop("sitecustomize")
    spec = importlib.util.find_spec("sitecustomize")
    if spec is None or spec.loader is None:
        sys.modules["sitecustomize"] = ours
    else:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _boot() -> None:
    told = os.environ.get("PERFTOOL_SCRIPT")
    if not told or not (told.startswith("{") or os.path.isfile(told)):  # no file: a process that outlived perftool
        return
    import importlib.util

    file = os.path.join(os.path.dirname(_HERE), "boot.py")
    spec = importlib.util.spec_from_file_location("_perftool_boot", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_perftool_boot"] = module
    spec.loader.exec_module(module)
    module.boot(told)


def _tell(error: Exception) -> None:
    """Whoever measures, by a file; else the user, since it is not known whether this process is the one that trains."""
    told = os.environ["PERFTOOL_SCRIPT"]
    if told.startswith("{"):
        sys.stderr.write(f"perftool: nothing of it is in force in process {os.getpid()}: {error}\n")
    else:
        with open(told + ".refused", "a") as trouble:
            trouble.write(f"{type(error).__name__}: {error}\n")


try:
    _boot()
except Exception as error:  # the program runs as it would without perftool
    with suppress(OSError, KeyError):
        _tell(error)
_chain()
