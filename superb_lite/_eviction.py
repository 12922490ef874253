"""Room for stored features: how much they may take, when each shard was last used, and which goes first.

A shard is an index ``<kind>-<hash>.json`` beside its data ``<kind>-<hash>.bin``, in a folder per upstream below
`root` (see `superb_lite.features`). The time at which its index was modified says when it was last used: that needs
no database, and every process can read it. The doctor asks here too, so this file imports the standard library only.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path

log = logging.getLogger(__name__)

VARIABLE = "SUPERB_LITE_CACHE_GB"
DEFAULT_GB = 20.0
TOUCH_SEC = 60.0  # a process notes the use of a shard at most this often
IN_USE_SEC = 600.0  # what another process has used so recently is not taken away from it
STALE_SEC = 3600.0  # a half-made file nobody has written to for so long belongs to a dead process

_OURS = re.compile(r"\.?(frames|pooled)-.*\.(json|bin|tmp)")
_NOTED: dict[Path, tuple[float, int]] = {}  # by index: when this process noted its use, and the file time it gave


def default_bound(free: int, used: int) -> int:
    """Bytes that stored features may take: SUPERB_LITE_CACHE_GB (10^9 bytes each), else 20 GB or half of the room.

    Args:
        free, used: bytes that are free on their disk, and that they take already; together they are the room

    Raises:
        ValueError: the variable is not a number of gigabytes.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if not given:
        return min(int(DEFAULT_GB * 1e9), (free + used) // 2)
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise ValueError(f"{VARIABLE} is {given!r}, expected a number of gigabytes such as 20; correct it or unset it")
    return int(gigabytes * 1e9)


def free_bytes(folder: Path) -> int:
    """Free space on the disk where `folder` is, or is going to be."""
    folder = folder.absolute()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def used_bytes(root: Path) -> int:
    """What stored features take below `root`, half-made files included."""
    return sum(stat.st_size for _, stat in _files(root))


def touch(index: Path) -> None:
    """Note that a shard is in use, once a minute at most."""
    noted = _NOTED.get(index)
    if noted is not None and time.monotonic() - noted[0] < TOUCH_SEC:
        return
    with contextlib.suppress(OSError):  # a folder that can only be read, or a shard that has just been removed
        os.utime(index)
        _NOTED[index] = (time.monotonic(), index.stat().st_mtime_ns)


def evict(root: Path, bound: int, keep: Collection[Path]) -> int:
    """Remove least recently used shards of any upstream until at most `bound` bytes are left; returns the bytes left.

    More is left if `keep` (indexes of what the caller needs) and what other processes have just used are larger.
    Frames go before means of their folder: means take a hundredth of the room, and frames promise to come with them.
    """
    files = dict(_files(root))
    left = sum(stat.st_size for stat in files.values())
    now = time.time()
    used = {path: stat.st_mtime for path, stat in files.items() if _is_index(path)}
    newest: dict[Path, float] = {}
    for index, when in used.items():
        if _is_frames(index):
            newest[index.parent] = max(when, newest.get(index.parent, when))

    def order(index: Path) -> tuple[float, bool]:
        when = used[index] if _is_frames(index) else max(used[index], newest.get(index.parent, used[index]))
        return -abs(now - when), not _is_frames(index)  # a time in the future is a clock that was wrong

    for index in sorted(used, key=order):
        if left <= bound:
            break
        noted = _NOTED.get(index)
        by_others = noted is None or noted[1] != files[index].st_mtime_ns
        if index in keep or (by_others and abs(now - used[index]) < IN_USE_SEC):
            continue
        if not _is_frames(index) and any(index.parent.glob("frames-*.json")):
            continue
        if delete(index):
            log.debug("removed %s: not used for %.0f s", index, now - used[index])
            left -= sum(files[path].st_size for path in (index, index.with_suffix(".bin")) if path in files)
    return left


def delete(index: Path) -> bool:
    """Remove a shard; False if the system refuses (Windows does while a process has the data mapped).

    The data goes first: whatever happens in between, what remains is an index, which takes next to nothing.
    """
    try:
        index.with_suffix(".bin").unlink(missing_ok=True)
        index.unlink(missing_ok=True)
    except OSError as error:
        log.debug("%s stays: %s", index, error)
        return False
    _NOTED.pop(index, None)
    return True


def sweep(root: Path) -> None:
    """Remove what dead processes left: old temporary files, and old data or indexes without their other half."""
    for path, stat in _files(root):
        if time.time() - stat.st_mtime < STALE_SEC:
            continue
        other = path.with_suffix(".bin" if _is_index(path) else ".json")
        if path.name.startswith(".") or path.suffix == ".tmp" or not other.exists():
            with contextlib.suppress(OSError):  # its owner was quicker, or Windows still has it mapped
                path.unlink()


def _files(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Our files below `root`, and nobody else's."""
    for path in root.glob("*/*"):
        if _OURS.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):
                yield path, path.stat()


def _is_index(path: Path) -> bool:
    return path.suffix == ".json" and not path.name.startswith(".")


def _is_frames(index: Path) -> bool:
    return index.name.startswith("frames-")
