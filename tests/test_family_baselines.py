"""linear, mel, mfcc and spectrogram: as in the official toolkit, and exact per clip."""

import os
import subprocess
import sys

import fairseq_files as files
import numpy as np
import pytest
import torch

from superb_lite.testing import check_upstream
from superb_lite.upstreams import baseline

CARDS = {card.name: card for card in baseline.CARDS}
NAMES = sorted(CARDS)


@pytest.mark.parametrize("name", ["mel", "mfcc"])
def test_agrees_with_the_official_toolkit(name):
    assert files.parity_gap(f"baseline_{name}") < 2e-4


def test_every_bin_agrees_with_the_official_toolkit():
    """Almost empty bins show how the Fourier transform rounds; in this mode it does so alike on every processor."""
    assert files.parity_gap("baseline_linear") < 5e-3 and files.parity_gap("baseline_spectrogram") < 5e-3
    program = "import sys; from pathlib import Path; from superb_lite.parity import compare_folder\n"
    program += "print(*(compare_folder(Path(folder)).gap for folder in sys.argv[1:]))"
    folders = [str(files.PARITY / f"baseline_{name}") for name in ("linear", "spectrogram")]
    alike = {**os.environ, "MKL_CBWR": "COMPATIBLE"}
    done = subprocess.run([sys.executable, "-c", program, *folders], env=alike, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert max(float(gap) for gap in done.stdout.split()) < 2e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_card_and_the_contract(name):
    card, upstream = CARDS[name], CARDS[name].build()
    assert (upstream.name, upstream.layers, upstream.dim, upstream.stride) == (name, 1, card.dim, 160)
    assert sum(p.numel() for p in upstream.parameters()) == card.parameters == 0
    check_upstream(upstream)
    wavs = files.noise(1.3, 0.05, 2.07)
    assert files.batch_gap(upstream, wavs) < 1e-5
    hidden = upstream(wavs)
    expected = [int(16000 * s) // 160 + 1 if name in ("linear", "mel") else 1 + (int(16000 * s) - 400) // 160
                for s in (1.3, 0.05, 2.07)]  # fmt: skip
    assert hidden.lengths.tolist() == expected
    alone = upstream(wavs[:1]).states[0, 0]
    assert alone.mean(0).abs().max() < 1e-4 and (alone.std(0) - 1).abs().max() < 1e-3


def test_the_official_spectra_of_a_shorter_clip_know_the_padding():
    wavs = files.noise(1.3, 2.05)
    assert files.leak(CARDS["mel"].build(), wavs) > 1e-3, "its end is not mirrored, and the mean shifts every frame"
    assert files.leak(CARDS["mfcc"].build(), wavs) < 1e-5


def test_linear_is_the_power_spectrum_by_hand():
    (wav,) = files.noise(0.5)
    x = np.pad(wav.numpy().astype(np.float64), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([np.abs(np.fft.rfft(x[start : start + 400] * window)) ** 2 for start in range(0, 8001, 160)])
    logs = np.log(frames + 1e-10)
    expected = (logs - logs.mean(0)) / logs.std(0, ddof=1)
    ours = CARDS["linear"].build()([wav]).states[0, 0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_trailing_zeros_count_as_padding_only_in_the_official_way():
    wav = torch.cat([files.noise(1.0)[0], torch.zeros(8000)])
    upstream = CARDS["mel"].build()
    assert upstream([wav]).lengths.tolist() == [151]
    published = upstream.published(wav[None], torch.tensor([len(wav)]))
    assert published.shape == (1, 1, 101, 80)
