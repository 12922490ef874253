"""Frozen means: never compute it twice. Each clip passes each upstream once; its states are kept on disk.

    <root>/<upstream>-<revision>/frames-<sha256>.bin   (layers, frames, dim) float16 of each clip, end to end
                                 frames-<sha256>.json  which clip is where; written last, so it is the done-marker
                                 pooled-<sha256>.bin   (layers, 1, dim) float32: the mean of each layer over time
                                 pooled-<sha256>.json

Files are named by their content and arrive by renaming: a process killed at any moment leaves no half shard,
and two processes that compute the same shard write the same file. Frames always come with their means, so
asking for means after frames never runs the upstream again.

Taught in notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from superb_lite import audio
from superb_lite.files import cache_root
from superb_lite.types import RATE, Clip, ContractBroken, Hidden, Progress, SuperbLiteError, Upstream
from superb_lite.upstreams import load_upstream

log = logging.getLogger(__name__)

BATCH_SECONDS = 40.0  # audio in one call of the upstream, padding included
SHARD_BATCHES = 10  # calls of the upstream in one shard: what a killed process can lose
LENGTH_TOLERANCE = 3.0  # frames by which an upstream may differ from samples / stride (windows cut the end)

_FORMAT = 1
_DTYPES = {"frames": np.dtype("<f2"), "pooled": np.dtype("<f4")}
_STALE_SEC = 3600.0  # a temporary file nobody has written to for so long belongs to a dead process
_VERIFIED: set[tuple[str, int, int]] = set()  # shards whose checksum this process has seen to be right


# ----------------------------------------------------------------------------------------------- store


class FeatureStore:
    """The states of every clip that was ever asked for, one folder per upstream and revision.

    `root` is ``features`` in the cache folder unless given (see `superb_lite.files.cache_root`).

    >>> store = FeatureStore()                                           # doctest: +SKIP
    >>> means = store.get("tiny_hubert", split.clips, pooled=True)       # doctest: +SKIP
    >>> means[0].shape                                                   # doctest: +SKIP
    (5, 1, 192)
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = cache_root() / "features" if root is None else Path(root)
        self._shards: dict[Path, dict[str, _Shard]] = {}

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.root)!r})"

    def folder(self, upstream: Upstream) -> Path:
        """Where the states of this upstream with these weights are."""
        return self.root / re.sub(r"[^A-Za-z0-9._-]", "_", f"{upstream.name}-{upstream.revision}")

    def extract(
        self,
        upstream: str | Upstream,
        clips: Sequence[Clip],
        *,
        pooled: bool,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> int:
        """Compute and keep what is not there yet. Returns how many clips went through the upstream.

        Batches hold clips of similar length, about 40 s with padding. They are planned over all `clips`, not
        over the missing ones, so a run that continues another makes the same batches.

        Args:
            pooled: True keeps only the mean of each layer over time; False keeps frames and means

        Raises:
            AudioError: a file cannot be used; what was computed before it is kept.
            ContractBroken: the upstream does not keep its promises, or a state is not finite or exceeds float16.
            SuperbLiteError: the folder cannot be written (full disk); no half shard is left.
        """
        upstream = load_upstream(upstream)
        unique = {clip.key: clip for clip in clips}
        have = self._find(upstream, "pooled" if pooled else "frames", unique)
        if len(have) == len(unique):
            return 0
        planned = [[clip for clip in batch if clip.key not in have] for batch in plan_batches(unique.values())]
        batches = [batch for batch in planned if batch]
        total, done = sum(map(len, batches)), 0

        def report(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(f"features of {upstream.name}", done, total)

        _sweep(self.folder(upstream))
        for start in range(0, len(batches), SHARD_BATCHES):
            self._write(upstream, batches[start : start + SHARD_BATCHES], pooled, device, report)
        return total

    def get(
        self,
        upstream: str | Upstream,
        clips: Sequence[Clip],
        *,
        pooled: bool,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> list[np.ndarray]:
        """The states of `clips`, in their order; what is missing is extracted first.

        Returns read-only arrays: (layers, frames, dim) float16 views into the files, or with `pooled`
        (layers, 1, dim) float32, the exact mean over valid frames. Raises what `extract` raises.
        """
        upstream = load_upstream(upstream)
        self.extract(upstream, clips, pooled=pooled, device=device, progress=progress)
        found = self._find(upstream, "pooled" if pooled else "frames", {clip.key for clip in clips})
        return [found[clip.key] for clip in clips]

    def _write(
        self, upstream: Upstream, batches: list[list[Clip]], pooled: bool, device: str, report: Callable[[int], None]
    ) -> None:
        """Compute one shard of each kind; `report` hears how many clips each batch had."""
        folder = self.folder(upstream)
        known = self._find(upstream, "pooled", {clip.key for batch in batches for clip in batch})
        # Leaving the block closes the inner shard first: no frames are ever there without their means.
        with _ShardWriter(folder, "frames", upstream) as frames, _ShardWriter(folder, "pooled", upstream) as means:
            for batch in batches:
                hidden = run_upstream(upstream, batch, device)
                for place, clip in enumerate(batch):
                    states = hidden.states[:, place, : int(hidden.lengths[place])].float().cpu()
                    _check_range(upstream, clip, states, half=not pooled)
                    if not pooled:
                        frames.add(clip.key, states.half().numpy())
                    if clip.key not in known:
                        means.add(clip.key, states.double().mean(dim=1, keepdim=True).float().numpy())
                report(len(batch))

    def _find(self, upstream: Upstream, kind: str, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """Stored arrays by clip key. A shard that is used for the first time is verified, and dropped if corrupt."""
        shards = self._scan(self.folder(upstream))
        wanted = set(keys)
        found: dict[str, np.ndarray] = {}
        for shard in list(shards.values()):
            ours = wanted & shard.clips.keys() if shard.kind == kind else set()
            if not ours:
                continue
            try:
                found.update({key: shard.array(key) for key in ours})
            except _Corrupt as error:
                log.warning("%s is corrupt (%s): removed, its %d clips are computed again",
                            shard.data_path, error, len(shard.clips))
                shard.delete()
                del shards[shard.index_path.name]
        return found

    def _scan(self, folder: Path) -> dict[str, _Shard]:
        """Bring our list of a folder's shards up to date: other processes write there too."""
        shards = self._shards.setdefault(folder, {})
        names = {path.name for path in folder.glob("*.json")}
        for gone in shards.keys() - names:
            del shards[gone]
        for name in sorted(names - shards.keys()):
            try:
                shards[name] = _Shard(folder / name)
            except _Corrupt as error:
                log.warning("%s is corrupt (%s): removed", folder / name, error)
                (folder / name).unlink(missing_ok=True)
        return shards


# -------------------------------------------------------------------------------------------- upstream


def plan_batches(clips: Iterable[Clip], seconds: float = BATCH_SECONDS) -> list[list[Clip]]:
    """Clips of similar length, at most `seconds` of audio with padding (one clip may be longer)."""
    batches: list[list[Clip]] = []
    for clip in sorted(clips, key=lambda clip: (clip.seconds, clip.key)):
        if batches and (len(batches[-1]) + 1) * clip.seconds <= seconds:
            batches[-1].append(clip)  # sorted: this clip is the longest of its batch
        else:
            batches.append([clip])
    return batches


def run_upstream(upstream: Upstream, clips: Sequence[Clip], device: str = "cpu") -> Hidden:
    """Load a batch of clips and run them through the frozen upstream; its promises are checked.

    Raises:
        AudioError: a file cannot be used. ContractBroken: see `check_hidden`.
    """
    if isinstance(upstream, nn.Module):
        upstream.to(device).eval()
    wavs = [audio.load(clip).to(device) for clip in clips]
    with torch.no_grad():  # not inference_mode: a weighted sum saves the states for its own gradient
        hidden = upstream(wavs)
    check_hidden(upstream, hidden, [len(wav) for wav in wavs])
    return hidden


def check_hidden(upstream: Upstream, hidden: Hidden, samples: Sequence[int]) -> None:
    """Compare what an upstream said about waveforms of these lengths with what it promises.

    Raises:
        ContractBroken: wrong type, number of layers, size, dtype, or lengths that do not fit the stride.
    """
    name = upstream.name
    if not isinstance(hidden, Hidden):
        raise ContractBroken(f"{name} returned {type(hidden).__name__}, expected Hidden(states, lengths)")
    if hidden.states.ndim != 4 or not hidden.states.is_floating_point():
        raise ContractBroken(
            f"{name} returned states of shape {tuple(hidden.states.shape)} and type {hidden.states.dtype}, "
            "expected (layers, batch, frames, dim) float32; stack the layers, one (batch, frames, dim) each"
        )
    layers, batch, frames, dim = hidden.states.shape
    if (layers, batch, dim) != (upstream.layers, len(samples), upstream.dim):
        raise ContractBroken(
            f"{name} returned {layers} layers x {batch} clips x {dim} dims, promised {upstream.layers} layers x "
            f"{len(samples)} clips x {upstream.dim} dims; correct the attributes layers and dim, or the states"
        )
    if tuple(hidden.lengths.shape) != (batch,) or hidden.lengths.is_floating_point():
        raise ContractBroken(
            f"{name} returned lengths of shape {tuple(hidden.lengths.shape)} and type {hidden.lengths.dtype}, "
            f"expected ({batch},) int64: the valid frames of each clip"
        )
    _check_lengths(upstream, hidden.lengths, frames, samples)


def _check_lengths(upstream: Upstream, lengths: Tensor, frames: int, samples: Sequence[int]) -> None:
    for length, count in zip(lengths.tolist(), samples, strict=True):
        expected = count / upstream.stride
        if not 1 <= length <= frames:
            raise ContractBroken(
                f"{upstream.name} gave {length} valid frames for a clip of {count / RATE:.3f} s, but its states have "
                f"{frames}; expected 1 to {frames} (pad very short clips inside the upstream)"
            )
        if abs(length - expected) > LENGTH_TOLERANCE:
            raise ContractBroken(
                f"{upstream.name} gave {length} frames for {count} samples, but its stride of {upstream.stride} "
                f"samples means about {expected:.1f}; correct the stride or the lengths"
            )


def _check_range(upstream: Upstream, clip: Clip, states: Tensor, half: bool) -> None:
    peak = float(states.abs().max())
    where = f"{upstream.name} on clip {clip.id!r} ({clip.audio})"
    if not np.isfinite(peak):
        raise ContractBroken(f"{where} has states that are not finite (NaN or infinity); expected finite numbers")
    if half and peak > torch.finfo(torch.float16).max:
        raise ContractBroken(
            f"{where} has states up to {peak:.3g}, and frames are kept as float16 (at most 65504); "
            "scale the states inside the upstream"
        )


# ---------------------------------------------------------------------------------------------- shards


class _Corrupt(Exception):
    """A shard is not what its index says."""


class _Shard:
    """An index that was read, and its data file, mapped when first used."""

    def __init__(self, index_path: Path) -> None:
        self.index_path, self.data_path = index_path, index_path.with_suffix(".bin")
        try:
            index = json.loads(index_path.read_text())
            if index["format"] != _FORMAT:
                raise _Corrupt(f"format {index['format']}, expected {_FORMAT}")
            self.kind, self.sha256, self.bytes = str(index["kind"]), str(index["sha256"]), int(index["bytes"])
            self.dtype = _DTYPES[self.kind]
            self.clips = {key: (int(start), tuple(shape)) for key, (start, shape) in index["clips"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _Corrupt(f"unreadable index: {error!r}") from error
        self._data: np.ndarray | None = None

    def array(self, key: str) -> np.ndarray:
        """(layers, frames, dim) view of one clip. Raises _Corrupt."""
        if self._data is None:
            self._verify()
            self._data = np.asarray(np.memmap(self.data_path, dtype=self.dtype, mode="r"))
        start, shape = self.clips[key]
        return self._data[start : start + int(np.prod(shape))].reshape(shape)

    def _verify(self) -> None:
        """Compare size and checksum, once per process and file."""
        try:
            stat = self.data_path.stat()
            seen = (str(self.data_path), stat.st_mtime_ns, stat.st_size)
            if seen in _VERIFIED:
                return
            if stat.st_size != self.bytes:
                raise _Corrupt(f"{stat.st_size} bytes, expected {self.bytes}")
            with self.data_path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != self.sha256:
                    raise _Corrupt("its checksum is wrong")
        except OSError as error:
            raise _Corrupt(f"unreadable: {error.strerror}") from error
        _VERIFIED.add(seen)

    def delete(self) -> None:
        """Remove index and data, the index first."""
        self.index_path.unlink(missing_ok=True)
        self.data_path.unlink(missing_ok=True)


class _DiskFull(SuperbLiteError):
    """The folder cannot be written: what is in flight is thrown away, the means with their frames."""


class _ShardWriter:
    """Collects arrays in a temporary file; on leaving, data and then index get their final names.

    A clean end and an error outside (a broken audio file) keep what was added; a write error or an
    interrupt keeps nothing.
    """

    def __init__(self, folder: Path, kind: str, upstream: Upstream) -> None:
        self.folder, self.kind, self.upstream = folder, kind, upstream
        self._temporary = folder / f"{kind}-{os.getpid()}-{time.monotonic_ns()}.tmp"
        self._file: Any = None
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._clips: dict[str, tuple[int, tuple[int, ...]]] = {}

    def add(self, key: str, array: np.ndarray) -> None:
        """Append one clip's array. Raises SuperbLiteError if the disk is full."""
        data = np.ascontiguousarray(array, dtype=_DTYPES[self.kind]).tobytes()
        try:
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = self._temporary.open("wb")
            self._file.write(data)
        except OSError as error:
            raise self._full(error) from error
        self._clips[key] = (self._bytes // _DTYPES[self.kind].itemsize, array.shape)
        self._hash.update(data)
        self._bytes += len(data)

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        keep = kind is None or (issubclass(kind, Exception) and not issubclass(kind, _DiskFull))
        try:
            if keep and self._clips:
                self._commit()
        except OSError as problem:
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
        os.replace(self._temporary, stem.with_suffix(".bin"))
        self._temporary.write_text(json.dumps(index))
        os.replace(self._temporary, stem.with_suffix(".json"))

    def _discard(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError:  # what could not be flushed to a full disk is being thrown away
                log.debug("could not close %s", self._temporary)
            self._temporary.unlink(missing_ok=True)

    def _full(self, error: OSError) -> _DiskFull:
        return _DiskFull(
            f"cannot write features to {self.folder}: {error.strerror}; what was finished before is kept. Free some "
            "space, or set SUPERB_LITE_CACHE to a folder with more, and run again"
        )


def _sweep(folder: Path) -> None:
    """Remove what dead processes left: old temporary files, and old data without an index."""
    for path in [*folder.glob("*.tmp"), *folder.glob("*.bin")]:
        try:
            old = time.time() - path.stat().st_mtime > _STALE_SEC
            if old and (path.suffix == ".tmp" or not path.with_suffix(".json").exists()):
                path.unlink()
        except FileNotFoundError:  # its owner was quicker
            continue
