"""Frozen means: never compute it twice. Each clip passes each upstream once; its states are kept on disk.

    <root>/<upstream>-<revision>/frames-<sha256>.bin   (layers, frames, dim) float16 of each clip, end to end
                                 frames-<sha256>.json  which clip is where; written last, so it is the done-marker
                                 pooled-<sha256>.bin   (layers, 1, dim) float32: the mean of each layer over time
                                 pooled-<sha256>.json

Files are named by their content and arrive by renaming: a process killed at any moment leaves no half shard,
and two processes that compute the same shard write the same file. Frames always come with their means, so
asking for means after frames never runs the upstream again. When everything together exceeds a bound, the
shards that were not used for the longest time go; whoever asks for them again computes them again.

Taught in notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from superb_lite import _eviction, audio
from superb_lite._shards import DTYPES, Corrupt, Gone, Shard, ShardWriter
from superb_lite.files import cache_root
from superb_lite.types import RATE, Clip, ContractBroken, Hidden, Progress, SuperbLiteError, Upstream
from superb_lite.upstreams import load_upstream

log = logging.getLogger(__name__)

BATCH_SECONDS = 40.0  # audio in one call of the upstream, padding included
SHARD_BATCHES = 10  # calls of the upstream in one shard: what a killed process can lose
LENGTH_TOLERANCE = 3.0  # frames by which an upstream may differ from samples / stride (windows cut the end)

_ATTEMPTS = 5  # a shard that is lost so often as soon as it is written will not stay
_WARNED: set[Path] = set()  # stores that a request has been too large for; said once per process


# ----------------------------------------------------------------------------------------------- store


class FeatureStore:
    """The states of every clip that was asked for, one folder per upstream and revision, the last used ones first.

    Args:
        root: ``features`` in the cache folder unless given (see `superb_lite.files.cache_root`). It may be deleted
            at any time; `superb-lite doctor` says where it is and what it takes
        max_bytes: what all upstreams in `root` may take together. Unless given, it is the environment variable
            SUPERB_LITE_CACHE_GB, else 20 GB, but at most half of what the disk would have free without them

    Least recently used shards are removed after new ones were written. What a request needs is never removed under
    it, and neither is what another process has used in the last ten minutes: a bound smaller than that is exceeded.
    On a disk shared by several machines give each its own `root`, or a bound that is never reached: a mapped file
    outlives its removal by the same machine only.

    >>> store = FeatureStore()                                           # doctest: +SKIP
    >>> means = store.get("tiny_hubert", split.clips, pooled=True)       # doctest: +SKIP
    >>> means[0].shape                                                   # doctest: +SKIP
    (5, 1, 192)
    """

    def __init__(self, root: str | Path | None = None, max_bytes: int | None = None) -> None:
        self.root = cache_root() / "features" if root is None else Path(root)
        if max_bytes is not None and max_bytes < 0:
            raise SuperbLiteError(f"max_bytes is {max_bytes}, expected how many bytes the store may take")
        self.max_bytes = max_bytes
        self.bound()  # a wrong environment variable should not show up after minutes
        self._shards: dict[Path, dict[str, Shard]] = {}

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.root)!r})"

    def folder(self, upstream: Upstream) -> Path:
        """Where the states of this upstream with these weights are."""
        return self.root / re.sub(r"[^A-Za-z0-9._-]", "_", f"{upstream.name}-{upstream.revision}")

    def bound(self) -> int:
        """Bytes that the store may take now. Raises SuperbLiteError if SUPERB_LITE_CACHE_GB is no number."""
        if self.max_bytes is not None:
            return self.max_bytes
        try:
            return _eviction.default_bound(_eviction.free_bytes(self.root), _eviction.used_bytes(self.root))
        except ValueError as error:
            raise SuperbLiteError(str(error)) from error

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
        return self._fetch(load_upstream(upstream), clips, pooled, device, progress)[1]

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
        held, _ = self._fetch(load_upstream(upstream), clips, pooled, device, progress)
        return [held[clip.key].array(clip.key) for clip in clips]

    def _fetch(
        self, upstream: Upstream, clips: Sequence[Clip], pooled: bool, device: str, progress: Progress | None
    ) -> tuple[dict[str, Shard], int]:
        """Open shards by clip key, and how many clips went through the upstream.

        Shards are opened when they are found or written, and held: another process that removes one takes nothing
        from us. What it removes before that is missing in the next turn, and what it has computed is not.
        """
        kind = "pooled" if pooled else "frames"
        unique = {clip.key: clip for clip in clips}
        held = self._find(upstream, kind, unique)
        total, done, computed, lost = len(unique) - len(held), 0, 0, 0
        if not total:
            return held, 0

        def report(count: int) -> None:
            nonlocal done, computed
            done, computed = done + count, computed + count
            if progress is not None:
                progress(f"features of {upstream.name}", done, total)

        self._warn_if_too_large(upstream, unique.values(), pooled)
        _eviction.sweep(self.root)
        plan = plan_batches(unique.values())
        while missing := unique.keys() - held.keys():
            plan = [batch for planned in plan if (batch := [clip for clip in planned if clip.key in missing])]
            self._write(upstream, plan[:SHARD_BATCHES], pooled, device, report)
            found = self._find(upstream, kind, missing)
            held |= found
            done = total - (len(unique) - len(held))
            lost = 0 if found else lost + 1
            if lost == _ATTEMPTS:
                raise SuperbLiteError(
                    f"features in {self.folder(upstream)} are lost or corrupt as soon as they are written; is the "
                    "disk failing, or does another program delete them? Set SUPERB_LITE_CACHE to another folder"
                )
            self._make_room({shard.index_path for shard in held.values()})
        return held, computed

    def _write(
        self, upstream: Upstream, batches: list[list[Clip]], pooled: bool, device: str, report: Callable[[int], None]
    ) -> None:
        """Compute one shard of each kind; `report` hears how many clips each batch had."""
        folder = self.folder(upstream)
        computed: dict[str, np.ndarray] = {}
        # Leaving the block closes the inner shard first: no frames are ever there without their means.
        with ShardWriter(folder, "frames", upstream) as frames, ShardWriter(folder, "pooled", upstream) as means:
            try:
                for batch, wavs in _loaded(batches):
                    hidden = _run(upstream, wavs, device)
                    for place, clip in enumerate(batch):
                        states = hidden.states[:, place, : int(hidden.lengths[place])].float().cpu()
                        _check_range(upstream, clip, states, half=not pooled)
                        if not pooled:
                            frames.add(clip.key, states.half().numpy())
                        computed[clip.key] = states.double().mean(dim=1, keepdim=True).float().numpy()
                    report(len(batch))
            finally:
                known = self._find(upstream, "pooled", computed)  # now, for means may go while frames are computed
                for key, mean in computed.items():  # in their order: the same clips must make the same file
                    if key not in known:
                        means.add(key, mean)

    def _find(self, upstream: Upstream, kind: str, keys: Iterable[str]) -> dict[str, Shard]:
        """Open shards by clip key. One that is used for the first time is verified, and dropped if corrupt.

        Should two shards have a clip, the first by name serves every process, and the other is going to be evicted.
        """
        shards = self._scan(self.folder(upstream))
        wanted = set(keys)
        found: dict[str, Shard] = {}
        for name, shard in sorted(shards.items()):
            ours = wanted & shard.clips.keys() if shard.kind == kind else set()
            if not ours:
                continue
            try:
                shard.open()
            except Gone:
                del shards[name]
                continue
            except Corrupt as error:
                path, count = shard.data_path, len(shard.clips)
                log.warning("%s is corrupt (%s): removed, its %d clips are computed again", path, error, count)
                _eviction.delete(shard.index_path)
                del shards[name]
                continue
            _eviction.touch(shard.index_path)
            found.update(dict.fromkeys(ours, shard))
            wanted -= ours
        return found

    def _scan(self, folder: Path) -> dict[str, Shard]:
        """Bring our list of a folder's shards up to date: other processes write and evict there too."""
        shards = self._shards.setdefault(folder, {})
        names = {path.name for kind in DTYPES for path in folder.glob(f"{kind}-*.json")}
        for gone in shards.keys() - names:
            del shards[gone]
        for name in sorted(names - shards.keys()):
            try:
                shards[name] = Shard(folder / name)
            except Gone:
                continue
            except Corrupt as error:
                log.warning("%s is corrupt (%s): removed", folder / name, error)
                _eviction.delete(folder / name)
        return shards

    def _make_room(self, keep: set[Path]) -> None:
        """Evict what was used least recently, but for the shards to keep, if the store exceeds its bound."""
        bound = self.bound()
        if _eviction.used_bytes(self.root) <= bound:
            return
        self._shards.clear()  # lets go of mapped files: they take room on the disk, and Windows removes none of them
        left = _eviction.evict(self.root, bound, keep)
        if left > bound:
            log.info("%s takes %s of %s: the rest is in use", self.root, _gigabytes(left), _gigabytes(bound))

    def _warn_if_too_large(self, upstream: Upstream, clips: Collection[Clip], pooled: bool) -> None:
        """Say once if a request is larger than the bound: it is served, and all other features go."""
        frames = 0.0 if pooled else sum(clip.seconds for clip in clips) * RATE / upstream.stride
        sizes = DTYPES["frames"].itemsize * frames + DTYPES["pooled"].itemsize * len(clips)
        need, bound = int(upstream.layers * upstream.dim * sizes), self.bound()
        if need > bound and self.root not in _WARNED:
            _WARNED.add(self.root)
            log.warning(
                "the features of %s for %d clips need %s, but %s may take %s: they are all kept while they are needed, "
                "and computed again when they are asked for after others; set %s to more if the disk has room",
                upstream.name, len(clips), _gigabytes(need), self.root, _gigabytes(bound), _eviction.VARIABLE,
            )  # fmt: skip


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"


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


def _loaded(batches: Sequence[list[Clip]]) -> Iterator[tuple[list[Clip], list[Tensor]]]:
    """Batches with their waveforms; while one is worked on, another thread decodes the next."""
    with ThreadPoolExecutor(1, "loading") as pool:
        loading = pool.submit(_load, batches[0])
        for batch, following in zip(batches, [*batches[1:], None], strict=True):
            wavs = loading.result()
            if following is not None:
                loading = pool.submit(_load, following)
            yield batch, wavs


def _load(clips: Sequence[Clip]) -> list[Tensor]:
    return [audio.load(clip) for clip in clips]


def run_upstream(upstream: Upstream, clips: Sequence[Clip], device: str = "cpu") -> Hidden:
    """Load a batch of clips and run them through the frozen upstream; its promises are checked.

    Raises:
        AudioError: a file cannot be used. ContractBroken: see `check_hidden`.
    """
    return _run(upstream, _load(clips), device)


def _run(upstream: Upstream, wavs: Sequence[Tensor], device: str) -> Hidden:
    if isinstance(upstream, nn.Module):
        upstream.to(device).eval()
    with torch.no_grad():  # not inference_mode: a weighted sum saves the states for its own gradient
        hidden = upstream([wav.to(device) for wav in wavs])
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
