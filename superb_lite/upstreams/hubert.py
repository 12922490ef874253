"""HuBERT: hide pieces of speech from a transformer and let it guess which sound unit was there.

The units come from clustering, so no label is needed: first k-means over MFCCs, then k-means over what
the network has learned so far. The network is torchaudio's: a front end that makes
a frame every 20 ms, a positional convolution, and a transformer.

`tiny_hubert` is pre-trained by us on synthetic speech (see its card in ``weights/``); `random` is the same
network with untrained weights, the control that belongs into every table.

Taught in notebooks 01 (pre-train an upstream) and 02 (freeze, weigh, probe).
Source: Hsu et al. 2021, "HuBERT", arXiv:2106.07447, sections 2.1-2.4.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import torch
import torchaudio
from torch import Tensor, nn

from superb_lite.types import Card, Hidden
from superb_lite.upstreams._frozen import Frozen, digest, load_weights
from superb_lite.upstreams.fbank import log_mel

WEIGHTS = Path(str(files("superb_lite.upstreams") / "weights"))


class LogMelFrontEnd(nn.Module):
    """Waveforms to frames of 160: two neighbouring log-mel vectors (80 each, 10 ms apart) every 20 ms.

    It stands where HuBERT Base has seven convolutions that learn a filter bank of their own. Learning one takes
    far more speech than a laptop can hear: with a small convolutional front end, 7,000 steps on 4.5 hours left
    keyword spotting at the level of untrained weights behind this one, and speaker identification far below.
    """

    def forward(self, wavs: Tensor, samples: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """wavs: (batch, samples); samples: (batch,) valid ones, or None for all -> (batch, frames, 160), frames."""
        valid = [wavs.shape[1]] * len(wavs) if samples is None else samples.tolist()
        mels = [log_mel(wav[:n]) for wav, n in zip(wavs, valid, strict=True)]
        pairs = [mel[: len(mel) // 2 * 2].reshape(-1, 160) for mel in mels]
        frames = None if samples is None else torch.tensor([len(pair) for pair in pairs], device=wavs.device)
        return nn.utils.rnn.pad_sequence(pairs, batch_first=True), frames


def frames_of(samples: int) -> int:
    """How many frames the tiny network makes of a clip: pairs of 25 ms windows that start every 10 ms."""
    return (1 + (samples - 400) // 160) // 2


def tiny_network(dim: int = 192, blocks: int = 4) -> torchaudio.models.Wav2Vec2Model:
    """HuBERT's network, shrunk: 4 post-norm blocks of 192 dimensions behind a fixed log-mel front end."""
    network = torchaudio.models.wav2vec2_model(
        extractor_mode="layer_norm", extractor_conv_layer_config=[(160, 1, 1)], extractor_conv_bias=False,
        encoder_embed_dim=dim, encoder_projection_dropout=0.0, encoder_pos_conv_kernel=32, encoder_pos_conv_groups=8,
        encoder_num_layers=blocks, encoder_num_heads=4, encoder_attention_dropout=0.0,
        encoder_ff_interm_features=3 * dim, encoder_ff_interm_dropout=0.0, encoder_dropout=0.0,
        encoder_layer_norm_first=False, encoder_layer_drop=0.0, aux_num_out=None,
    )  # fmt: skip
    network.feature_extractor = LogMelFrontEnd()
    return network


def project(network: nn.Module, features: Tensor, frames: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Frames of the front end (batch, frames, 160), valid ones -> frames for the transformer, attention mask."""
    return network.encoder._preprocess(features, frames)


def blocks(network: nn.Module, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """Projected frames -> [input of the first block, output of block 1, ..., output of the last block]."""
    transformer = network.encoder.transformer
    x = transformer._preprocess(x)
    states, position_bias = [x], None
    for block in transformer.layers:
        x, position_bias = block(x, mask, position_bias=position_bias)
        states.append(x)
    return states


class Hubert(Frozen):
    """A frozen HuBERT-like network: states are the input of the first block and the output of every block."""

    stride = 320

    def __init__(self, name: str, network: nn.Module, revision: str):
        super().__init__()
        self.name, self.revision, self.network = name, revision, network
        self.layers = len(network.encoder.transformer.layers) + 1
        self.dim = network.encoder.transformer.layer_norm.normalized_shape[0]
        self.freeze()

    def hidden(self, wavs: Tensor, samples: Tensor) -> Hidden:
        features, frames = self.network.feature_extractor(wavs, samples)
        x, mask = project(self.network, features, frames)
        return Hidden(torch.stack(blocks(self.network, x, mask)), frames)


class MaskedUnits(nn.Module):
    """HuBERT's objective: guess the unit of every hidden frame from what is left to see.

    Spans of `span` frames start at random places until about half of the frames are hidden. The loss is
    `alpha` times the cross entropy over hidden frames plus 1 - `alpha` times that over visible ones (the
    paper's equation 3; its models use 1, but a small network on little speech learns much faster with both).
    """

    def __init__(
        self,
        network: nn.Module,
        units: int,
        span: int = 10,
        start_rate: float = 0.065,
        alpha: float = 0.5,
    ):
        super().__init__()
        self.network, self.span, self.start_rate, self.alpha = network, span, start_rate, alpha
        dim = network.encoder.transformer.layer_norm.normalized_shape[0]
        self.hidden_frame = nn.Parameter(torch.rand(dim))
        self.guess = nn.Linear(dim, units)

    def mask(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        """(batch, frames) bool, True where the network must not look."""
        starts = torch.rand(batch, frames, generator=generator) < self.start_rate
        earlier = nn.functional.pad(starts.float(), (self.span - 1, 0))
        return nn.functional.max_pool1d(earlier[:, None], self.span, stride=1)[:, 0] > 0

    def forward(self, features: Tensor, units: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """features: (batch, frames, 160) of the front end; units: (batch, frames). Returns the loss and what to log."""
        x, _ = project(self.network, features, None)
        hide = self.mask(x.shape[0], x.shape[1], generator).to(x.device)
        x = torch.where(hide[..., None], self.hidden_frame, x)
        logits = self.guess(blocks(self.network, x)[-1])
        hidden, visible = (nn.functional.cross_entropy(logits[part], units[part]) for part in (hide, ~hide))
        right = (logits[hide].argmax(-1) == units[hide]).float().mean().item() * 100
        return self.alpha * hidden + (1 - self.alpha) * visible, {"right": right}


def random_hubert() -> Hubert:
    """The tiny network with untrained weights, the same on every machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = tiny_network()
    return Hubert("random", network, revision=digest(network))


def tiny_hubert(path: str | Path | None = None) -> Hubert:
    """The tiny network with our weights, or with those of a safetensors file made by ``superb-lite pretrain``."""
    network = tiny_network()
    revision = load_weights(network, WEIGHTS / "tiny_hubert.safetensors" if path is None else path)
    return Hubert("tiny_hubert", network, revision)


def _card(name: str, method: str, corpus: str, source: str, build, notes: str) -> Card:
    return Card(
        name=name, family="hubert", method=method, input="waveform", corpus=corpus, parameters=1_663_072, layers=5,
        dim=192, stride=320, licence="MIT", source=source, build=build, notes=notes,
    )  # fmt: skip


def weights_card(name: str) -> dict:
    """How the embedded weights of `name` were made: recipe, data, steps, loss curve, licence."""
    return json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))


CARDS = (
    _card("random", "-", "none", "drawn, seed 0", random_hubert, "the control: what a bare network gives for nothing"),
    _card(
        "tiny_hubert", "M-P + VQ", "synthetic English", "in the package", tiny_hubert,
        "masked prediction of k-means units (arXiv:2106.07447)",
    ),
)  # fmt: skip
