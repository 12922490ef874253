"""Shards of the feature store on the disk: arrays of many clips in one file, and an index that says which is where.

What is written arrives by renaming, the index last, so that a shard is whole or absent. What is read is checked:
the data against its checksum, and the index against itself. Files are named by their content, so that two processes
which compute the same shard write the same file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from superb_lite import _eviction
from superb_lite.files import write_atomically
from superb_lite.types import SuperbLiteError, Upstream

DTYPES = {"frames": np.dtype("<f2"), "pooled": np.dtype("<f4")}

_FORMAT = 1
_VERIFIED: set[tuple[str, int, int]] = set()  # data files whose checksum this process has seen to be right


class Corrupt(Exception):
    """A shard is not what its index says."""


class Gone(Exception):
    """Another process has removed the shard."""


class DiskFull(SuperbLiteError):
    """The folder cannot be written: what is in flight is thrown away, the means with their frames."""


class Shard:
    """An index that was read, and its data once `open` has mapped them.

    Raises:
        Corrupt, Gone: see there. SuperbLiteError: a file is there and cannot be read (permissions, open files).
    """

    def __init__(self, index_path: Path) -> None:
        self.index_path, self.data_path = index_path, index_path.with_suffix(".bin")
        try:
            index = json.loads(index_path.read_bytes())
            if index["format"] != _FORMAT:
                raise Corrupt(f"format {index['format']}, expected {_FORMAT}")
            self.kind, self.sha256, self.bytes = str(index["kind"]), str(index["sha256"]), int(index["bytes"])
            self.dtype = DTYPES[self.kind]
            self.clips = {key: (int(start), tuple(map(int, shape))) for key, (start, shape) in index["clips"].items()}
        except OSError as error:
            raise _explain(error) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Corrupt(f"unreadable index: {error!r}") from error
        self._check_places()
        self._data: np.ndarray | None = None

    def _check_places(self) -> None:
        """The clips must fill the file end to end: then no digit of a place or shape can be wrong."""
        end = 0
        for start, shape in self.clips.values():
            if start != end or len(shape) != 3 or min(shape) < 1:
                raise Corrupt(f"a clip of shape {shape} at {start}, expected three sizes at {end}")
            end += math.prod(shape)
        if end * self.dtype.itemsize != self.bytes:
            raise Corrupt(f"its clips take {end * self.dtype.itemsize} bytes of {self.bytes}")

    def open(self) -> None:
        """Check size and checksum (once per process and file) and map the data.

        From then on `array` works even if another process removes the files: they live as long as they are mapped.
        """
        if self._data is not None:
            return
        try:
            with self.data_path.open("rb") as file:  # what is checked is what is mapped, whoever renames meanwhile
                stat = os.fstat(file.fileno())
                seen = (str(self.data_path), stat.st_mtime_ns, stat.st_size)
                if stat.st_size != self.bytes:
                    raise Corrupt(f"{stat.st_size} bytes, expected {self.bytes}")
                if seen not in _VERIFIED and hashlib.file_digest(file, "sha256").hexdigest() != self.sha256:
                    raise Corrupt("its checksum is wrong")
                self._data = np.asarray(np.memmap(file, dtype=self.dtype, mode="r"))
        except OSError as error:
            raise _explain(error) from error
        _VERIFIED.add(seen)

    def array(self, key: str) -> np.ndarray:
        """(layers, frames, dim) read-only view of one clip, after `open`."""
        start, shape = self.clips[key]
        return self._data[start : start + math.prod(shape)].reshape(shape)


def _explain(error: OSError) -> Exception:
    """What a file that cannot be read means: only damage is a reason to throw a shard away."""
    if error.errno in (errno.ENOENT, errno.ESTALE):
        return Gone(str(error))
    if error.errno == errno.EIO:
        return Corrupt(f"unreadable: {error.strerror}")
    return SuperbLiteError(
        f"cannot read features: {error}; make the folder readable, close other programs, or set SUPERB_LITE_CACHE to "
        "another folder"
    )


class ShardWriter:
    """Collects arrays in a temporary file; on leaving, data and then index get their final names.

    A clean end and an error outside (a broken audio file) keep what was added; a write error or an
    interrupt keeps nothing.
    """

    def __init__(self, folder: Path, kind: str, upstream: Upstream) -> None:
        self.folder, self.kind, self.upstream = folder, kind, upstream
        self._temporary = folder / f"{kind}-{uuid.uuid4().hex}.tmp"
        self._file: Any = None
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._clips: dict[str, tuple[int, tuple[int, ...]]] = {}

    def add(self, key: str, array: np.ndarray) -> None:
        """Append one clip's array. Raises DiskFull."""
        data = np.ascontiguousarray(array, dtype=DTYPES[self.kind]).tobytes()
        try:
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = self._temporary.open("xb")
            self._file.write(data)
        except OSError as error:
            raise self._full(error) from error
        self._clips[key] = (self._bytes // DTYPES[self.kind].itemsize, array.shape)
        self._hash.update(data)
        self._bytes += len(data)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        keep = kind is None or (issubclass(kind, Exception) and not issubclass(kind, DiskFull))
        try:
            if keep and self._clips:
                self._commit()
        except (OSError, SuperbLiteError) as problem:
            raise self._full(problem) from problem
        finally:
            self._discard()

    def _commit(self) -> None:
        self._file.close()
        sha256 = self._hash.hexdigest()
        stem = self.folder / f"{self.kind}-{sha256[:24]}"
        index = {
            "format": _FORMAT,
            "kind": self.kind,
            "upstream": self.upstream.name,
            "revision": self.upstream.revision,
            "bytes": self._bytes,
            "sha256": sha256,
            "clips": self._clips,
        }
        data = stem.with_suffix(".bin")
        if not data.exists() or data.stat().st_size != self._bytes:  # Windows replaces no file that is mapped
            write_atomically(data, lambda part: os.replace(self._temporary, part))
        write_atomically(stem.with_suffix(".json"), json.dumps(index).encode())
        _eviction.touch(stem.with_suffix(".json"))

    def _discard(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError:  # what could not be flushed to a full disk is being thrown away
                pass
            self._temporary.unlink(missing_ok=True)

    def _full(self, error: Exception) -> DiskFull:
        reason = getattr(error.__cause__ or error, "strerror", None) or error
        return DiskFull(
            f"cannot write features to {self.folder}: {reason}; what was finished before is kept. Free some "
            "space, or set SUPERB_LITE_CACHE to a folder with more, and run again"
        )
