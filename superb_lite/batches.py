"""Stored states, cut into batches: what lies between the feature store and a head.

Differs from SUPERB, whose batches are consecutive in a list sorted by length (PR) or random (KS, SID): ours are
cut from a shuffled list that is sorted by length in stretches, so that little is padded and every epoch differs.

Taught in notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from superb_lite.features import FeatureStore
from superb_lite.types import Layers, Progress, Split, Upstream

BUCKET = 16  # batches in one stretch that is sorted by length
EVAL_FRAMES = 60_000  # frames in one batch of prediction, padding included


def batch_order(lengths: Tensor, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of clip numbers, every clip at most once per epoch.

    Each epoch: shuffle; sort stretches of `BUCKET` batches by length, so that batch mates are similar and little
    is padded; cut into batches; shuffle the batches. What does not fill a batch is left out of this epoch.

    Args:
        lengths: (clips,) frames of each clip; all equal (means) makes the sort do nothing
    """
    count = len(lengths)
    batch = min(batch, count)
    lengths = lengths.cpu()
    while True:
        order = torch.randperm(count, generator=generator)
        stretches = [part[lengths[part].argsort(stable=True)] for part in order.split(BUCKET * batch)]
        batches = torch.cat(stretches)[: count // batch * batch].view(-1, batch)
        yield from batches[torch.randperm(len(batches), generator=generator)]


@dataclass
class States:
    """Stored states of a split (only the last layer for ``"last"``), ready to be cut into batches.

    lengths: (clips,) valid frames. whole: (layers, clips, 1, dim) on the device if every clip is one frame (means),
    else None, and batches are padded from the arrays, which are views into files.
    """

    split: Split
    arrays: Sequence[np.ndarray]
    lengths: Tensor
    device: str
    whole: Tensor | None

    @classmethod
    def load(
        cls, split: Split, pooled: bool, upstream: Upstream, layers: Layers, store: FeatureStore, device: str,
        progress: Progress | None = None,
    ) -> States:  # fmt: skip
        """Fetch (and extract, if missing) what the head is going to see."""
        arrays = store.get(upstream, split.clips, pooled=pooled, device=device, progress=progress)
        if layers == "last":
            arrays = [array[-1:] for array in arrays]  # the others are not read from disk at all
        lengths = torch.tensor([array.shape[1] for array in arrays])
        whole = None
        if pooled:
            whole = torch.from_numpy(np.stack(arrays, axis=1).astype(np.float32)).to(device)
        return cls(split, arrays, lengths, device, whole)

    def batch(
        self, index: Tensor, crop: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(layers, batch, frames, dim) float32, zero where padded, and (batch,) lengths, both on the device.

        crop: at most so many frames of each clip, from a place drawn from `generator`.
        """
        lengths = self.lengths[index]
        if self.whole is not None:
            return self.whole.index_select(1, index.to(self.device)), lengths.to(self.device)
        arrays = [self.arrays[place] for place in index.tolist()]
        if crop is not None and int(lengths.max()) > crop:
            spare = (lengths - crop).clamp(min=0)
            starts = (torch.rand(len(spare), generator=generator) * (spare + 1)).long().tolist()
            arrays = [array[:, start : start + crop] for array, start in zip(arrays, starts, strict=True)]
            lengths = lengths.clamp(max=crop)
        layers, _, dim = arrays[0].shape
        padded = np.zeros((layers, len(arrays), int(lengths.max()), dim), dtype=arrays[0].dtype)
        for place, array in enumerate(arrays):
            padded[:, place, : array.shape[1]] = array
        return torch.from_numpy(padded).to(self.device).float(), lengths.to(self.device)

    def eval_batches(self) -> Iterator[Tensor]:
        """Every clip once, the shortest first, in batches of bounded size."""
        order = self.lengths.argsort(stable=True)
        batch: list[int] = []
        for place in order.tolist():
            if batch and (len(batch) + 1) * int(self.lengths[place]) > EVAL_FRAMES:
                yield torch.tensor(batch)
                batch = []
            batch.append(place)
        yield torch.tensor(batch)
