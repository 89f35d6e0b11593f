"""A private view of folders: what a command writes there only it sees, and the folders stay as they were.

Each folder is covered by an overlay, in a mount namespace of the command's own; where the user may not make one, within
a user namespace in which everybody is who he was. Standard library only: this runs in the keeper (`keeper.py`).

Sources: user_namespaces(7) for the maps, mount_namespaces(7), and Documentation/filesystems/overlayfs.rst of the
kernel: `userxattr` is for overlays in user namespaces (Linux 5.11), where a folder that was there cannot be renamed
(EXDEV, which `mv` and shutil.move copy around); root has `redirect_dir` for that.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_BIND = 4096
MS_REC = 16384
MS_SLAVE = 1 << 19

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class View:
    """Which folders are private. All paths are absolute and without links."""

    places: list[str]  # folders that are covered; none of them within another
    store: str  # an empty folder for what is written; a place must not hold it
    in_memory: bool = False  # `store` is covered by a tmpfs first: what is written counts as memory
    shared: list[str] = field(default_factory=list)  # folders within the places that stay as they are
    beneath: dict[str, list[str]] = field(default_factory=dict)  # by place: folders whose files appear in it, too


class Refused(Exception):
    """The system does not allow the view; the message is a part of a sentence."""


def upper(view: View, place: str) -> Path:
    """The folder in which everything is that was written to a place."""
    return Path(view.store, str(view.places.index(place)), "upper")


def enter(view: View, folder: str) -> None:
    """Move this process, which must have one thread, into the view and then into the folder. Raises Refused."""
    if refused := cover(view):
        place, reason = next(iter(refused.items()))
        if place in view.places:
            raise Refused(f"{place} cannot be covered: {reason}")
    os.chdir(folder)  # the working folder was still the uncovered one


def cover(view: View) -> dict[str, str]:
    """Move this process into the view. Returns what could not be covered, and why: places, and the mounts within
    them, which stay as they are. Raises Refused if there can be no view at all."""
    _unshare()
    # An overlay shows nothing of what is mounted within its folder, nor what it covers itself: held open until then.
    mounts = [mount for place in view.places for mount in mounts_within(place)]
    held = {path: os.open(path, os.O_PATH) for path in [*mounts, *filter(os.path.isdir, view.shared)]}
    if view.in_memory:
        _mount("tmpfs", view.store, "tmpfs", 0, "mode=700")
    refused: dict[str, str] = {}
    for number, path in enumerate([*view.places, *mounts]):
        try:
            _overlay(path, f"/proc/self/fd/{held[path]}" if path in held else path, f"{view.store}/{number}", view)
        except Refused as error:
            refused[path] = str(error)
            if path in mounts:
                _bind(held[path], path)
    for path in view.shared:
        if path in held:
            _bind(held[path], path)
    return refused


def mounts(table: str | None = None) -> dict[str, str]:
    """The kind of each mounted file system, by where it is. table: a text like /proc/self/mountinfo."""
    kinds = {}
    for line in (Path("/proc/self/mountinfo").read_text() if table is None else table).splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), before.split()[4])
        kinds[point] = after.split()[0]
    return kinds


def mounts_within(folder: str, table: str | None = None) -> list[str]:
    """Where something is mounted within a folder, outermost first."""
    return sorted(point for point in mounts(table) if point.startswith(folder.rstrip("/") + "/"))


def _unshare() -> None:
    if _libc.unshare(CLONE_NEWNS) != 0:
        user, group = os.geteuid(), os.getegid()
        if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
            raise Refused(f"no mount namespace: {os.strerror(ctypes.get_errno())}")
        try:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        except OSError as error:
            raise Refused(f"no user namespace: {error.strerror}") from None
    _mount("none", "/", None, MS_REC | MS_SLAVE, None)  # nothing that is mounted here is seen outside


def _overlay(path: str, lower: str, store: str, view: View) -> None:
    try:
        os.makedirs(f"{store}/upper")
        os.makedirs(f"{store}/work")
    except OSError as error:
        raise Refused(f"{store}: {error.strerror}") from None
    layers = ":".join(_escaped(layer, ":,") for layer in [*view.beneath.get(path, []), lower])
    options = "redirect_dir=on" if _is_root() else "userxattr"
    folders = f"upperdir={_escaped(f'{store}/upper', ',')},workdir={_escaped(f'{store}/work', ',')}"
    _mount("overlay", path, "overlay", 0, f"lowerdir={layers},{folders},{options}")


def _bind(held: int, path: str) -> None:
    _mount(f"/proc/self/fd/{held}", path, None, MS_BIND | MS_REC, None)


def _is_root() -> bool:
    """Whether this is root in the first user namespace."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def _escaped(path: str, special: str) -> str:
    return re.sub(rf"([\\{special}])", r"\\\1", path)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    if _libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]) != 0:
        raise Refused(f"{kind or 'bind'} mount: {os.strerror(ctypes.get_errno())}")


def main(text: str) -> None:
    """Try a view, given as JSON, and print what is refused."""
    view = View(**json.loads(text))
    try:
        refused = cover(view)
    except (Refused, OSError) as error:
        refused = dict.fromkeys(view.places, str(error))
    sys.stdout.write(json.dumps(refused))


if __name__ == "__main__":
    main(sys.argv[1])
