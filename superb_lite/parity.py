"""Do our networks say what the official toolkit says? ``superb-lite parity DIR`` compares them, a row per folder.

A folder holds a small checkpoint in the official format, three waveforms, and the hidden states that the toolkit made
of them in batches. Ours are computed with the toolkit's own treatment of padding (`Frozen.published`).

Taught in notebook 13 (the contestants).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from superb_lite.types import SuperbLiteError
from superb_lite.upstreams import load_upstream
from superb_lite.upstreams.decoar2 import read_decoar2

TOLERANCE = 2e-4  # absolute, of any number in any state
# folders that are not called like the card that reads them
CARDS = {
    "fbank": "fbank_cmvn", "baseline_fbank_no_cmvn": "fbank", "baseline_linear": "linear", "baseline_mel": "mel",
    "baseline_mfcc": "mfcc", "baseline_spectrogram": "spectrogram", "mockingjay_kaldi": "mockingjay",
    "mockingjay_preln": "mockingjay", "tera_chunked": "tera", "decoar2_reduced": "decoar2",
    "vq_wav2vec_kmeans": "vq_wav2vec",
}  # fmt: skip


@dataclass(frozen=True)
class Agreement:
    """One folder: states compared, over all cases, and the largest absolute difference of any number in them."""

    folder: str
    states: int
    gap: float

    @property
    def agrees(self) -> bool:
        return self.gap <= TOLERANCE


def compare(root: str | Path) -> Iterator[Agreement]:
    """Every folder of `root`, by name. Raises SuperbLiteError if there is none."""
    folders = sorted(path.parent for path in Path(root).glob("*/io.npz"))
    if not folders:
        raise SuperbLiteError(f"{root}: no folder in it has an io.npz; expected reference states, a folder a family")
    for folder in folders:
        yield compare_folder(folder)


def compare_folder(folder: Path) -> Agreement:
    """Compare all cases of one folder. Raises SuperbLiteError where ours has another number or shape of states."""
    upstream = _load(folder)
    gaps = []
    with np.load(folder / "io.npz") as file:
        for case in sorted(key.removesuffix(".n_hidden") for key in file.files if key.endswith(".n_hidden")):
            wavs = [torch.from_numpy(file[f"wav_{n}"].astype(np.float32) / 32768) for n in file[f"{case}.idx"]]
            samples = torch.tensor([len(wav) for wav in wavs])
            with torch.no_grad():
                ours = upstream.published(torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True), samples)
            if len(ours) != int(file[f"{case}.n_hidden"]):
                raise SuperbLiteError(f"{folder}: {len(ours)} hidden states, expected {file[f'{case}.n_hidden']}")
            for name in sorted(key for key in file.files if key.startswith(f"{case}.hs_")):
                gaps.append(_gap(ours[int(name[-2:])], torch.from_numpy(file[name]), f"{folder}, {name}"))
    return Agreement(folder.name, len(gaps), max(gaps))


def _gap(ours: Tensor, theirs: Tensor, where: str) -> float:
    step = -(-ours.shape[-1] // theirs.shape[-1])  # of wide states only every fourth or 24th channel is stored
    ours = ours[..., ::step]
    if ours.shape != theirs.shape:
        raise SuperbLiteError(f"{where}: the shape is {tuple(ours.shape)}, expected {tuple(theirs.shape)}")
    return float((ours - theirs).abs().max())


def _load(folder: Path):
    name = CARDS.get(folder.name, folder.name)
    found = sorted(folder.glob("checkpoint.*"))
    if found and folder.name == "decoar2_reduced":
        return read_decoar2(found[0], heads=4)  # how many heads there are is in no file: a constant of the toolkit
    if found:
        return load_upstream(name, found[0])
    layout = folder / "layout.json"
    if not layout.exists():
        return load_upstream(name)
    import tempfile

    with tempfile.TemporaryDirectory() as place:  # too large to be stored: the weights follow from their names
        path = Path(place) / "checkpoint.pt"
        torch.save({"model": made_up_weights(json.loads(layout.read_text())["state_dict"])}, path)
        return load_upstream(name, path)


def made_up_weights(layout: Iterable[Sequence[Any]], seed: int = 20) -> dict[str, Tensor]:
    """{name: weights} for rows of (name, shape, type), by the rule of the reference files: from the name alone."""
    return {name: torch.from_numpy(_made_up(name, tuple(shape), seed)) for name, shape, _ in layout}


def _made_up(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    dice = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    x = dice.standard_normal(shape)
    if name.endswith("weight_g"):
        x = 0.5 + 0.1 * np.abs(x)
    elif sum(size > 1 for size in shape) > 1:
        x = x / np.sqrt(np.prod(shape[1:]))
    else:
        x = 1 + 0.1 * x if len(shape) == 1 and name.endswith("weight") else 0.1 * x
    return np.asarray(x, dtype=np.float32)
