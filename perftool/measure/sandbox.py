"""What a user's command may touch while it is measured, a dozen times over: nothing that stays, nothing that is sent.

Each launch sees the user's folders through a view of its own (`view.py`), has a temporary folder and a port of its own,
and an environment in which trackers are offline. What cannot be had is said before the first launch.
"""

from __future__ import annotations

import getpass
import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from perftool.measure import view as views
from perftool.measure.kept import Kept
from perftool.measure.view import View, mounts, upper
from perftool.script.meeting import free_port
from perftool.temporary import Temporary, remove

TRIAL_LIMIT_S = 20.0
FREE_BYTES = 1 << 30  # less free space than this is no place to write to
LARGE_BYTES = 1_000_000  # a file of this size before the first step is data, and its folder a download
ENTRIES = 100_000  # of a folder, to compare

# What trackers and hubs read, from their documentation. An argument in the script's own code outranks most of them.
OFFLINE = {
    "WANDB_MODE": "offline",  # docs.wandb.ai, "Environment variables"
    "COMET_START_ONLINE": "0",  # comet_ml.start, as documented in transformers' CometCallback
    "COMET_AUTO_LOG_DISABLE": "1",  # comet.com, "OfflineExperiment": the older Experiment(...) is disabled by it
    "NEPTUNE_MODE": "offline",  # docs.neptune.ai, "Environment variables": known to old and new clients
    "CLEARML_OFFLINE_MODE": "1",  # clear.ml/docs, "ClearML Task: Offline Mode"
    "SWANLAB_MODE": "disabled",  # docs.swanlab.cn: `offline` is unknown to older versions
    "DVC_STUDIO_OFFLINE": "true",  # dvc.org, "Environment Variables"
    "DVC_EXP_AUTO_PUSH": "false",  # the same
}
# Without its server MLflow writes to the working folder, and without its space Trackio does to the cache. No token, no
# upload: huggingface_hub needs one to write (its "Environment variables"), and falls back to its cache to read.
HIDDEN = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "TRACKIO_SPACE_ID",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
)
CACHES = (  # variables that name a folder in which downloads and compiled code are kept for all runs
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "TORCH_HOME",
    "TORCH_EXTENSIONS_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "CUDA_CACHE_PATH",
)
HOME_CACHES = (".cache", ".triton", ".nv")

# Too much to cover as a whole: the system, other users, and what processes meet in.
_SYSTEM = {
    *("/", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/var", "/opt", "/boot"),
    *("/home", "/mnt", "/media", "/srv", "/tmp", "/var/tmp"),
}
_NEVER_WITHIN = ("/dev", "/proc", "/sys", "/run")


def places(command: Sequence[str], folder: Path) -> list[Path]:
    """The folders to cover for a command: the working folder, and those that its arguments name outside of it, or name
    something in; of each the repository that it is in. None lies within another. Reads only what is there."""
    wanted = {top_of(path) for path in [folder.resolve(), *map(_folder, _named(command, folder))]}
    allowed = sorted(path for path in wanted if not _off_limits(path))
    return [path for path in allowed if not any(other in path.parents for other in allowed)]


def uncovered(command: Sequence[str], folder: Path) -> list[Path]:
    """What the command may write to, though the folder that it is in is not to be covered: sorted."""
    named = [path for path in _named(command, folder) if os.path.isdir(path) or not os.path.exists(path)]
    return sorted(path for path in {folder.resolve(), *named} if _off_limits(_folder(path)) and _writable(path))


def fixed_port(command: Sequence[str]) -> int | None:
    """The port that a command names for a launcher to meet its processes at. torchrun's --master-port is none: the
    environment outranks it (torch/distributed/run.py, `get_rdzv_endpoint`). Those of a script are no matter: see
    `perftool.script.meeting`."""
    text = " ".join(command)
    if "torchrun" not in text and "torch.distributed" not in text:
        named = re.search(r"--(?:master|main_process|main-process|dist)[-_]port[= ](\d+)", text)
        if named:
            return int(named[1])
    named = re.search(r"--rdzv[-_]endpoint[= ]\S*:(\d+)", text)
    return int(named[1]) or None if named else None


def _named(command: Sequence[str], folder: Path) -> set[Path]:
    """The paths in a command's arguments, without links: of what is there, or what has a slash."""
    values = [argument.split("=", 1)[-1] for argument in command[1:]]
    words = {word for value in values for word in (value, *value.split()) if word and len(word) < 1000}
    texts = {os.path.expanduser(word) for word in words if not word.startswith("-") and "://" not in word}
    return {(folder / text).resolve() for text in texts if os.path.exists(folder / text) or "/" in text.strip("/")}


def _folder(path: Path) -> Path:
    """The folder that is there already, in which a path is or would be."""
    return next(parent for parent in [path, *path.parents] if os.path.isdir(parent))


def _writable(path: Path) -> bool:
    return os.access(_folder(path), os.W_OK)


def top_of(folder: Path) -> Path:
    """The repository that a folder is in, else the folder itself. A repository of the whole home is none."""
    for path in [folder, *folder.parents]:
        if path == Path.home() or _off_limits(path):
            break
        if os.path.exists(path / ".git"):
            return path
    return folder


def _off_limits(path: Path) -> bool:
    return str(path) in _SYSTEM or any(path.is_relative_to(system) for system in _NEVER_WITHIN)


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """Where the launches of one command live. To be closed, after they are."""

    command: list[str]
    folder: Path
    environment: dict[str, str]  # of every launch
    protected: list[str]  # for the user: folders that stay as they are
    unprotected: list[str]  # for the user: sentences, about what does not
    view: View  # of every launch, but for its store
    watched: list[Path]  # folders whose fingerprint is taken
    ignored: list[Path]  # within them, what is not looked at
    before: dict[str, tuple[int, int]]
    temporary: Temporary  # of everything that is
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    def open(
        cls, command: Sequence[str], folder: Path, environment: Mapping[str, str], ignored: Sequence[Path] = ()
    ) -> Sandbox:
        """Find out what can be protected here. Writes nothing but a temporary folder.

        environment: the user's. ignored: where perftool itself writes meanwhile.
        """
        folder = folder.resolve()
        caches = _caches(environment)
        wanted = [
            place
            for place in places(command, folder)
            if folder.is_relative_to(place) or not any(place.is_relative_to(cache) for cache in caches)
        ]
        unwatched = [*(path.resolve() for path in ignored), *own_output(), *caches]
        before = fingerprint(wanted, unwatched)
        temporary, view, refused = _tried(wanted, caches)
        return cls(
            command=list(command),
            folder=folder,
            environment={**_offline(environment), "HF_TOKEN_PATH": str(temporary.path / "no-token")},
            protected=view.places,
            unprotected=_unprotected(command, folder, environment, view, refused),
            view=view,
            watched=wanted,
            ignored=unwatched,
            before=before,
            temporary=temporary,
        )

    @property
    def root(self) -> Path:
        """Of everything temporary."""
        return self.temporary.path

    def folder_of_its_own(self) -> Path:
        """A new one, which nobody looks into but who asks for it."""
        folder = self.root / str(next(self._numbers))
        folder.mkdir()
        return folder

    def launch(
        self,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        *,
        files: Mapping[Path, bytes] | None = None,
        show_output: bool = False,
    ) -> Kept:
        """Start the command in a view, with a temporary folder and a port of its own. Raises NotStarted.

        command: in place of the sandbox's, such as the same with other options. environment: more of it.
        files: what it finds in place of the user's own files, each of which is covered.
        """
        scratch = self.folder_of_its_own()
        for name in ("tmp", "store"):
            (scratch / name).mkdir()
        for path, content in (files or {}).items():
            self._lay(path, content, scratch / "files")
        port = free_port()
        own = {
            "TMPDIR": str(scratch / "tmp"),
            "MASTER_PORT": str(port),
            # An option's default for torchrun (torch/distributed/argparse_util.py), and so for accelerate launch.
            "PET_RDZV_ENDPOINT": f"localhost:{port}",
        }
        return Kept(
            self.command if command is None else command,
            folder=self.folder,
            environment={**self.environment, **own, **(environment or {})},
            view=replace(self.view, store=str(scratch / "store"), beneath=self._beneath(scratch / "files"))
            if self.protected
            else None,
            scratch=[scratch],
            leftovers=[self.root],
            show_output=show_output,
        )

    def covers(self, path: Path) -> bool:
        """Whether launches may find another file there than the user's."""
        return any(path.is_relative_to(place) for place in self.view.places)

    def _lay(self, path: Path, content: bytes, layer: Path) -> None:
        """Write a file into a layer over the user's folders, with the rights of the one that it covers."""
        for number, place in enumerate(self.view.places):
            if path.is_relative_to(place):
                copy = layer / str(number) / path.relative_to(place)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(content)
                shutil.copymode(path, copy)

    def keep_downloads(self, launch: Kept) -> list[str]:
        """Show what a launch has downloaded to all later launches. Returns the paths; the user's folder gets nothing.

        To be called when the launch is at its first step and stopped: what it has written until then is data, and no
        result.
        """
        if launch.view is None or launch.view.in_memory:  # nobody else can look into that memory
            return []
        layer = self.root / "downloads" / str(next(self._numbers))
        kept = []
        for number, place in enumerate(launch.view.places):
            written = upper(launch.view, place)
            for name in downloads(written):
                _link(written / name, layer / str(number) / name, Path(place, name))
                kept.append(os.path.join(place, name))
        return kept

    def changed(self) -> list[str]:
        """The user's files that are not as they were when the sandbox was opened, whoever changed them."""
        after = fingerprint(self.watched, self.ignored)
        paths = self.before.keys() | after.keys()
        if max(len(self.before), len(after)) == ENTRIES:  # then one may be missing because there are more of others
            paths = self.before.keys() & after.keys()
        return sorted(path for path in paths if self.before.get(path) != after.get(path))

    def close(self) -> None:
        """Remove everything temporary. May be called again."""
        self.temporary.close()

    def _beneath(self, files: Path) -> dict[str, list[str]]:
        """files: the layer that lies over all others."""
        layers = [files, *sorted((self.root / "downloads").glob("*"))]
        return {
            place: [str(layer / str(number)) for layer in layers if (layer / str(number)).exists()]
            for number, place in enumerate(self.view.places)
        }


def own_output() -> list[Path]:
    """The files that this process itself prints to: `perftool tune ... > out.txt` changes one."""
    streams = [Path(f"/proc/self/fd/{number}") for number in (1, 2)]
    return [stream.resolve() for stream in streams if stream.is_file()]


def fingerprint(folders: Sequence[Path], ignored: Sequence[Path] = ()) -> dict[str, tuple[int, int]]:
    """Size and time of change (ns) of files, by path; of the first 100,000 of them. Left out are compiled modules and
    what repositories keep for themselves."""
    files = (
        (path, (status.st_size, status.st_mtime_ns))
        for folder in folders
        for path, status in _entries(folder, ignored)
        if not stat.S_ISDIR(status.st_mode)
    )
    return dict(itertools.islice(files, ENTRIES))


def _entries(folder: Path, ignored: Sequence[Path]) -> Iterator[tuple[str, os.stat_result]]:
    """A folder and everything in it, always in the same order."""
    left_out = {str(path) for path in ignored}
    for parent, names, files in os.walk(folder):
        names[:] = sorted(
            name for name in names if name not in (".git", "__pycache__") and os.path.join(parent, name) not in left_out
        )
        for path in (parent, *(os.path.join(parent, name) for name in sorted(files))):
            if path not in left_out and (status := _status(path)) is not None:
                yield path, status


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def downloads(written: Path) -> list[str]:
    """What of the files written looks like downloaded data: each folder with a large file, whole, or a large file at
    the top itself. Relative paths, none within another."""
    found = set()
    for folder, _, files in os.walk(written):
        large = [name for name in files if _large(Path(folder, name))]
        if Path(folder) != written and large:
            found.add(Path(folder).relative_to(written))
        elif large:
            found.update(map(Path, large))
    return sorted(str(path) for path in found if not any(other in path.parents for other in found))


def _large(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_size >= LARGE_BYTES


def _link(source: Path, copy: Path, seen: Path) -> None:
    """Make a file or folder appear a second time without taking space, but for what the user has already (`seen`)."""
    if source.is_dir() and not source.is_symlink():
        copy.mkdir(parents=True, exist_ok=True)
        for child in source.iterdir():
            _link(child, copy / child.name, seen / child.name)
    elif not os.path.lexists(seen) and (source.is_file() or source.is_symlink()) and not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, copy, follow_symlinks=False)


def _offline(environment: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in environment.items() if name not in HIDDEN}
    try:
        user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
    except (KeyError, OSError):  # nobody in the list of users, as in containers
        user = str(os.getuid())
    compiled = os.path.join(tempfile.gettempdir(), f"torchinductor_{user}")  # where torch has it, but for our TMPDIR
    return {"TORCHINDUCTOR_CACHE_DIR": compiled, **kept, **OFFLINE}


def _caches(environment: Mapping[str, str]) -> list[Path]:
    home = Path(environment.get("HOME") or Path.home())
    named = [Path(environment[name]) for name in CACHES if environment.get(name)]
    return sorted({path.resolve() for path in [*named, *(home / name for name in HOME_CACHES)] if os.path.isdir(path)})


def _has_token(environment: Mapping[str, str]) -> bool:
    home = Path(environment.get("HF_HOME") or Path.home() / ".cache/huggingface")
    kept = Path(environment.get("HF_TOKEN_PATH") or home / "token")
    return any(environment.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")) or os.path.exists(kept)


def _unprotected(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], view: View, refused: Mapping[str, str]
) -> list[str]:
    told = [f"what is written to {path} stays there: it cannot be covered ({refused[path]})" for path in refused]
    told += [f"what is written to {path} stays: its folder is everybody's" for path in uncovered(command, folder)]
    if view.in_memory or (view.places and file_system(Path(view.store)) == "tmpfs"):
        told.append("what is written takes memory: no disk here can hold it; name one that can with TMPDIR")
    if (port := fixed_port(command)) is not None:
        told.append(f"two launches live at once, and both use port {port}: leave it out, and each gets one of its own")
    if _has_token(environment):
        told.append("the Hugging Face hub gets no token: what is private or gated must be in its cache already")
    return [*told, "not held back: what it writes to folders that its command does not name or run in, and the network"]


def _tried(wanted: Sequence[Path], caches: Sequence[Path]) -> tuple[Temporary, View, dict[str, str]]:
    """A new temporary folder, a view that works with it, and what is refused, with the reason."""
    covered = [str(path) for path in wanted]
    shared = [str(cache) for cache in caches if any(cache.is_relative_to(place) for place in wanted)]
    refused: dict[str, str] = {}
    for base, in_memory in _bases(wanted):
        temporary = Temporary(Path(base))
        trial = temporary.path / "trial"
        attempt = View(places=covered, store=str(trial), in_memory=in_memory, shared=shared)
        trial.mkdir()
        refused = _trial(attempt)
        remove(attempt.store)
        if not _may_mount():
            foreign = {str(place): _foreign(place, caches) for place in wanted}
            refused |= {place: f"{path} has another owner or group" for place, path in foreign.items() if path}
        works = [place for place in covered if place not in refused]
        if works or not covered:
            return temporary, replace(attempt, places=works), refused
        temporary.close()
    return Temporary(), View(places=[], store=""), refused


def _may_mount() -> bool:
    """Whether this process needs no user namespace for a view: it has CAP_SYS_ADMIN."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:")]
    return bool(int(line.split()[1], 16) >> 21 & 1)


def _foreign(folder: Path, ignored: Sequence[Path]) -> str | None:
    """Something in a folder that this user may change without being its owner, or as one of another group. In a user
    namespace only what belongs to the user and the first group can be changed (EOVERFLOW)."""
    own = (os.geteuid(), os.getegid())
    return next(
        (
            path
            for path, status in itertools.islice(_entries(folder, ignored), ENTRIES)
            if (status.st_uid, status.st_gid) != own and os.access(path, os.W_OK)
        ),
        None,
    )


def _bases(wanted: Sequence[Path]) -> list[tuple[str, bool]]:
    """Folders to write in, the best first, and whether by a file system in memory."""
    temporary = os.path.realpath(tempfile.gettempdir())
    bases = [
        (folder, False)
        for folder in dict.fromkeys([temporary, os.path.realpath("/var/tmp")])
        if os.access(folder, os.W_OK)
        and shutil.disk_usage(folder).free >= FREE_BYTES
        and not any(Path(folder).is_relative_to(place) for place in wanted)
    ]
    on_disk = [base for base in bases if file_system(Path(base[0])) != "tmpfs"]
    return [*on_disk, *[base for base in bases if base not in on_disk], (temporary, True)]


def file_system(folder: Path, table: str | None = None) -> str:
    """The kind of file system that a folder is on. table: a text like /proc/self/mountinfo."""
    kinds = mounts(table)
    return next(kinds[str(path)] for path in [folder, *folder.parents] if str(path) in kinds)


def _trial(attempt: View) -> dict[str, str]:
    """What of a view is refused here, and why. A process of its own tries it."""
    command = [sys.executable, "-P", "-m", views.__name__, json.dumps(asdict(attempt))]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_LIMIT_S)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(attempt.places, f"no answer within {TRIAL_LIMIT_S:g} s")
    if tried.returncode != 0:
        return dict.fromkeys(attempt.places, (tried.stderr.strip() or "killed").splitlines()[-1])
    refused: dict[str, str] = json.loads(tried.stdout)
    return refused
