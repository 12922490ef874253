"""DeCoAR 2.0: a transformer over every second frame of the spectrogram fills in what is hidden, with codes.

Spans of frames are hidden; a transformer reads what is left; what it says passes a codebook, as in VQ-APC, and a small
network rebuilds the hidden frames from the codes. So that the codes do not all become the same, the loss rewards using
many. The transformer is the one of wav2vec 2.0, taken from torchaudio.

Taught in notebooks 01 (pre-train an upstream) and 13 (the contestants).
Source: Ling and Liu 2020, "DeCoAR 2.0: Deep Contextualized Acoustic Representations with Vector Quantization",
arXiv:2012.06659.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torchaudio
from torch import Tensor, nn

from superb_lite.types import Card, CheckpointRefused
from superb_lite.upstreams._fairseq import rename, weights_of
from superb_lite.upstreams._pretext import Pretext, tiny_card
from superb_lite.upstreams._published import part, read_checkpoint
from superb_lite.upstreams._transformer import SpeechTransformer, blocks, project, spans
from superb_lite.upstreams.apc import BANDS, Codebook, clean_mels, filled, looking, quantise

HEADS = 12  # of the official model; a file does not tell


class SecondMels(nn.Module):
    """Waveforms to every second frame of `clean_mels`: 80 numbers every 20 ms. The front end that learns nothing."""

    def forward(self, wavs: Tensor, samples: Tensor | None) -> tuple[Tensor, Tensor]:
        """wavs: (batch, samples); samples: (batch,) valid ones, or None for all -> (batch, frames, 80), frames."""
        mels, frames = clean_mels(wavs, samples)
        return mels[:, ::2], (frames + 1) // 2


def decoar2_network(
    dim: int = 768, layers: int = 12, heads: int = HEADS, wide: int = 3072, kernel: int = 128, groups: int = 16
) -> torchaudio.models.Wav2Vec2Model:
    """wav2vec 2.0's transformer on frames of 80, with the official sizes unless told otherwise.

    wide: inner dimension of the feed-forward parts; kernel, groups: of the convolution that tells positions. Dropout is
    left out: the states need none.
    """
    network = torchaudio.models.wav2vec2_model(
        extractor_mode="layer_norm", extractor_conv_layer_config=[(BANDS, 1, 1)], extractor_conv_bias=False,
        encoder_embed_dim=dim, encoder_projection_dropout=0.0, encoder_pos_conv_kernel=kernel,
        encoder_pos_conv_groups=groups, encoder_num_layers=layers, encoder_num_heads=heads,
        encoder_attention_dropout=0.0, encoder_ff_interm_features=wide, encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0, encoder_layer_norm_first=False, encoder_layer_drop=0.0, aux_num_out=None,
    )  # fmt: skip
    network.feature_extractor = SecondMels()
    network.encoder.feature_projection.layer_norm = nn.Identity()  # the spectrogram comes normalised
    return network


def tiny_network(dim: int = 128) -> torchaudio.models.Wav2Vec2Model:
    """Three blocks of 128 dimensions, four heads: 0.6 M parameters and four states."""
    return decoar2_network(dim, layers=3, heads=4, wide=3 * dim, kernel=32, groups=8)


class Decoar2(SpeechTransformer):
    """A frozen DeCoAR 2.0: states are the input of the first block and the output of every block.

    Attention is masked at the exact end of each clip, so the official toolkit is exact per clip too.
    """


class Decoar2Objective(nn.Module):
    """Rebuild the hidden frames through codes: mean absolute error over them, plus `spread` times unused codes.

    Spans of `span` frames (of 20 ms) start at a share of `start_rate` of the frames, drawn for every clip; about half
    of a clip is hidden. Unused codes are counted as in wav2vec 2.0: 1 - (codes in use) / (codes there are).
    """

    def __init__(
        self, network: nn.Module, span: int = 10, start_rate: float = 0.065, books: int = 2, codes: int = 64,
        spread: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        self.network, self.span, self.start_rate, self.spread = network, span, start_rate, spread
        dim = network.encoder.feature_projection.projection.out_features
        self.codes, self.hidden_frame = codes, nn.Parameter(torch.zeros(dim))
        self.books = nn.ModuleList(Codebook(dim // books, codes) for _ in range(books))
        self.decoder = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, BANDS))

    def mask(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        """(batch, frames) bool, True where the network must not look; at least one span in every clip."""
        count = max(1, round(self.start_rate * frames))
        first = torch.rand(batch, frames, generator=generator).topk(count, dim=1).indices
        return spans(torch.zeros(batch, frames).scatter(1, first, 1.0), self.span)

    def rebuild(self, mels: Tensor, hide: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """mels (batch, frames, 80), hide (batch, frames) -> the spectrogram rebuilt, and the codes in use."""
        x, _ = project(self.network, mels, None)
        x = torch.where(hide[..., None], self.hidden_frame, x)
        chosen, used = quantise(self.books, blocks(self.network, x)[-1], generator)
        return self.decoder(chosen), used

    def forward(self, wavs: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """wavs: (batch, samples) of equal lengths; generator: draws spans and codes. Returns the loss and what to log.

        Logged: ``of_mean``, the error in percent of that of a guess that is always the mean; ``codes`` in use.
        """
        mels, _ = self.network.feature_extractor(wavs, None)
        hide = self.mask(mels.shape[0], mels.shape[1], generator).to(mels.device)
        rebuilt, used = self.rebuild(mels, hide, generator)
        error = nn.functional.l1_loss(rebuilt[hide], mels[hide])
        of_mean = 100 * float(error.detach() / mels[hide].abs().mean())
        return error + self.spread * (1 - used / self.codes), {"of_mean": of_mean, "codes": float(used.detach())}

    def picture(self, wav: Tensor, seed: int = 0) -> dict[str, Tensor]:
        """(samples,) -> spectrograms (frames every 20 ms, 80): ``heard``; ``hidden``, what the network got to see, with
        zeros in the holes; and ``rebuilt``, with its guesses there. `seed` decides where the holes are."""
        with looking(self):
            mels, _ = self.network.feature_extractor(wav[None], None)
            hide = self.mask(1, mels.shape[1], torch.Generator().manual_seed(seed)).to(mels.device)
            guess, _ = self.rebuild(mels, hide, None)
            holes = hide[..., None]
            shown = {"heard": mels, "hidden": mels * ~holes, "rebuilt": torch.where(holes, guess, mels)}
            return {name: image[0].cpu() for name, image in shown.items()}


def read_decoar2(path: str | Path, heads: int = HEADS) -> Decoar2:
    """An official DeCoAR 2.0 file, of any size; the sizes are those of its weights, except the number of `heads`.

    What is left in the file from pre-training is passed over. Raises CheckpointRefused naming the file.
    """
    weights = weights_of(part(read_checkpoint(path), ("model",), path)[0], path)
    asked = ("post_extract_proj.weight", "encoder.pos_conv.0.weight_v", "encoder.layers.0.fc1.weight")
    first, position, inner = part(weights, asked, path)
    if first.ndim != 2 or position.ndim != 3 or inner.ndim != 2 or first.shape[1] != BANDS:
        raise CheckpointRefused(f"{path}: its weights have other shapes than those of DeCoAR 2.0; is it broken?")
    layers = len({found[1] for found in (re.match(r"encoder\.layers\.(\d+)\.", name) for name in weights) if found})
    dim, wide, kernel = first.shape[0], inner.shape[0], position.shape[2]

    def make() -> nn.Module:
        return decoar2_network(dim, layers, heads, wide, kernel, groups=dim // position.shape[1])

    # what only pre-training needs has no name in the network, and the toolkit drops it as well
    known = ("encoder.feature_projection.", "encoder.transformer.")
    weights = {name: value for name, value in rename(weights).items() if name.startswith(known)}
    return Decoar2("decoar2", *filled(make, weights, path))


PRETEXTS = {
    "tiny_decoar2": Pretext("DeCoAR 2.0: rebuild hidden spans from codes", tiny_network, Decoar2Objective, Decoar2)
}

CARDS = (
    tiny_card(
        "tiny_decoar2", PRETEXTS["tiny_decoar2"], control="random", family="decoar2", input="FBANK",
        method="M-G + VQ", parameters=572_448, layers=4, dim=128, stride=320,
        notes="rebuilds hidden spans from codes (arXiv:2012.06659)",
    ),
    Card(
        name="decoar2", family="decoar2", method="M-G + VQ", input="FBANK", corpus="LS 960 hr", parameters=89_837_696,
        layers=13, dim=768, stride=320, licence="Apache-2.0", source="arXiv:2012.06659", read=read_decoar2,
        url="https://huggingface.co/s3prl/converted_ckpts/resolve/main/checkpoint_decoar2.pt",
        notes="takes every second frame: a stride of 20 ms, though the paper's table says 10",
    ),
)  # fmt: skip
