"""Fbank: the classic feature that every contestant has to beat. It learns nothing.

80 log-mel energies every 10 ms, their slopes and the slopes' slopes: 240 numbers a frame. The published
Fbank row normalises every utterance to zero mean and unit variance (CMVN), which leaves nothing for a head
that looks at the time mean; `fbank` keeps the mean, `fbank_cmvn` is as published.

Taught in notebooks 02 (freeze, weigh, probe) and 16 (against Fbank).
Source: the benchmark's ``baseline/fbank.yaml``; Kaldi's defaults (Povey window, pre-emphasis 0.97, 20-8000 Hz).
"""

from __future__ import annotations

import torch
import torchaudio
from torch import Tensor

from superb_lite.types import RATE, Card, Hidden
from superb_lite.upstreams._frozen import Frozen


def log_mel(wav: Tensor) -> Tensor:
    """(samples,) in -1..1 -> (frames, 80) natural-log mel energies, 25 ms windows every 10 ms.

    frames = 1 + (samples - 400) // 160: a window that does not fit is left out.
    """
    return torchaudio.compliance.kaldi.fbank(wav[None], num_mel_bins=80, sample_frequency=RATE)


def with_deltas(static: Tensor) -> Tensor:
    """(frames, dim) -> (frames, 3 dim): the feature, its slope over five frames, and the slope of the slope."""
    slope = torchaudio.functional.compute_deltas(static.T)
    return torch.cat([static.T, slope, torchaudio.functional.compute_deltas(slope)]).T


def cmvn(feature: Tensor) -> Tensor:
    """(frames, dim) -> the same with zero mean and unit variance over the utterance, per dimension."""
    return (feature - feature.mean(0)) / (feature.std(0) + 1e-10)


class Fbank(Frozen):
    """240-dimensional Fbank, one state, a frame every 160 samples."""

    layers, dim, stride, revision = 1, 240, 160, "1"

    def __init__(self, name: str, normalise: bool):
        super().__init__()
        self.name, self.normalise = name, normalise
        self.freeze()

    def hidden(self, wavs: Tensor, samples: Tensor) -> Hidden:
        # one clip at a time: the deltas and the mean must not see padding
        features = [with_deltas(log_mel(wav[:n])) for wav, n in zip(wavs, samples.tolist(), strict=True)]
        if self.normalise:
            features = [cmvn(feature) for feature in features]
        lengths = torch.tensor([len(feature) for feature in features], device=wavs.device)
        return Hidden(torch.nn.utils.rnn.pad_sequence(features, batch_first=True)[None], lengths)


def _card(name: str, normalise: bool, notes: str) -> Card:
    return Card(
        name=name, family="fbank", method="-", input="waveform", corpus="none", parameters=0, layers=1, dim=240,
        stride=160, licence="MIT", source="computed, no weights",
        build=lambda: Fbank(name, normalise), notes=notes,
    )  # fmt: skip


CARDS = (
    _card("fbank", False, "log-mel, deltas, no normalisation: the reference of our tables"),
    _card("fbank_cmvn", True, "as in the published table; its time mean is zero, so mean-pool heads see nothing"),
)
