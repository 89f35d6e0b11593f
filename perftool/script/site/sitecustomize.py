"""Put in front of PYTHONPATH, so that every Python that a command starts comes by here before its program.

Runs whatever other sitecustomize there is, then lets perftool wait for torch. Errors of perftool's own must not reach
the program.
"""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


def _chain():
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


def _boot():
    path = os.environ.get("PERFTOOL_SCRIPT")
    if not path or not os.path.isfile(path):  # a process that outlived perftool
        return
    import importlib.util

    file = os.path.join(os.path.dirname(_HERE), "boot.py")
    spec = importlib.util.spec_from_file_location("_perftool_boot", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.boot(path)


try:
    _boot()
except Exception as error:  # the program runs as it would without perftool, and perftool is told
    try:
        with open(os.environ["PERFTOOL_SCRIPT"] + ".trouble", "a") as trouble:
            trouble.write(f"{type(error).__name__}: {error}\n")
    except (OSError, KeyError):
        pass
_chain()
