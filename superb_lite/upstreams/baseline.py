"""Four more classic features, for comparison with Fbank: linear and mel spectra of two kinds, and MFCC.

`linear` and `mel` come from the front end that Mockingjay and TERA were trained on: windows centred on their frame,
the clip mirrored at both ends. `mfcc` and `spectrogram` follow Kaldi: only windows that fit. All are logarithms, and
all are normalised over the clip (CMVN), so that their time mean is zero, as with `fbank_cmvn`.

The logarithm of an almost empty bin shows how the Fourier transform rounds, and that differs between processors: by up
to 0.001 in `linear`. With the environment variable MKL_CBWR=COMPATIBLE it is the same on all that use Intel's library.

Source: the benchmark's ``baseline/*.yaml``. Taught in notebook 13 (the contestants).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchaudio
from torch import Tensor, nn

from superb_lite.types import RATE, Card, Hidden
from superb_lite.upstreams._frozen import Frozen
from superb_lite.upstreams.fbank import cmvn, with_deltas

WINDOW, HOP = 400, 160  # samples: 25 and 10 ms
MELS = 80


class Kaldi(Frozen):
    """A feature of Kaldi, clip by clip: batch mates cannot matter. One state, a frame every 160 samples."""

    layers, stride, revision = 1, HOP, "1"

    def __init__(self, name: str, dim: int, feature: Callable[[Tensor], Tensor]):
        super().__init__()
        self.name, self.dim, self.feature = name, dim, feature
        self.freeze()

    def hidden(self, wavs: Tensor, samples: Tensor) -> Hidden:
        features = [cmvn(self.feature(wav[:n])) for wav, n in zip(wavs, samples.tolist(), strict=True)]
        return _padded(features, wavs.device)


def _padded(features: list[Tensor], device: torch.device) -> Hidden:
    lengths = torch.tensor([len(feature) for feature in features], device=device)
    return Hidden(nn.utils.rnn.pad_sequence(features, batch_first=True)[None], lengths)


def mfcc(wav: Tensor) -> Tensor:
    """(samples,) -> (frames, 39): 13 cepstral coefficients, their slopes and the slopes' slopes."""
    return with_deltas(torchaudio.compliance.kaldi.mfcc(wav[None], num_ceps=13, sample_frequency=RATE))


def spectrogram(wav: Tensor) -> Tensor:
    """(samples,) -> (frames, 257): log power of every FFT bin, 0 to 8000 Hz."""
    return torchaudio.compliance.kaldi.spectrogram(wav[None], sample_frequency=RATE)


class Spectrum(Frozen):
    """Log power spectra of centred windows: 201 linear bins, or 80 mel bands. samples // 160 + 1 frames."""

    layers, stride, revision = 1, HOP, "1"

    def __init__(self, name: str, mel: bool):
        super().__init__()
        self.name, self.dim = name, MELS if mel else WINDOW // 2 + 1
        self.mel = torchaudio.transforms.MelScale(MELS, RATE, n_stft=WINDOW // 2 + 1) if mel else nn.Identity()
        self.freeze()

    def spectra(self, wavs: Tensor) -> Tensor:
        """(batch, samples) -> (batch, frames, dim)."""
        window = torch.hann_window(WINDOW, device=wavs.device)
        bins = torch.stft(wavs, WINDOW, HOP, window=window, center=True, pad_mode="reflect", return_complex=True)
        return (self.mel(bins.abs().square()) + 1e-10).log().transpose(1, 2)

    def hidden(self, wavs: Tensor, samples: Tensor) -> Hidden:
        # one clip at a time: its end is mirrored, so no padding may follow
        alone = [self.spectra(wav[None, :n])[0] for wav, n in zip(wavs, samples.tolist(), strict=True)]
        return _padded([cmvn(feature) for feature in alone], wavs.device)

    def published(self, wavs: Tensor, samples: Tensor) -> Tensor:
        # the quirks: spectra of the padded batch, so the end of a shorter clip is not mirrored; a clip is taken to end
        # at its last sample that is not zero; frames are cut by the ratio of frames to samples of the first clip
        ends = [int(wav.nonzero()[-1]) + 1 if bool(wav.any()) else 1 for wav in wavs]
        spectra = self.spectra(wavs[:, : max(ends)])
        frames, rate = spectra.shape[1], max(ends) / spectra.shape[1]
        features = [cmvn(x[: round(end / rate)]) for x, end in zip(spectra, ends, strict=True)]
        ratio = frames / int(samples[0])
        cut = max(min(frames, round(n * ratio)) for n in samples.tolist())
        return nn.utils.rnn.pad_sequence(features, batch_first=True)[None, :, :cut]


def _card(name: str, dim: int, build, notes: str) -> Card:
    return Card(
        name=name, family="baseline", method="-", input="waveform", corpus="none", parameters=0, layers=1, dim=dim,
        stride=HOP, licence="MIT", source="computed, no weights", build=build, notes=notes,
    )  # fmt: skip


CARDS = (
    _card("linear", 201, lambda: Spectrum("linear", mel=False), "log power spectrum, centred windows, CMVN"),
    _card("mel", MELS, lambda: Spectrum("mel", mel=True), "log-mel spectrum, centred windows, CMVN"),
    _card("mfcc", 39, lambda: Kaldi("mfcc", 39, mfcc), "13 coefficients, deltas, CMVN"),
    _card("spectrogram", 257, lambda: Kaldi("spectrogram", 257, spectrogram), "log power spectrum of Kaldi, CMVN"),
)
