"""WavLM: HuBERT that hears two people and must guess the units of one.

Two changes to HuBERT. In training, part of every second clip or so is covered by a stretch of another one, and the
network still has to name the units of the first: it learns who is speaking and what is noise, besides what is said. And
attention gets a bias that depends on how far two frames are apart, in buckets that widen with the distance; each
frame opens or closes that bias with gates of its own. The network is torchaudio's.

Source: Chen et al. 2021, "WavLM", arXiv:2110.13900, section III (gates: equations 4-6, mixing: algorithm 1).
Taught in notebook 13 (the contestants).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torchaudio
from torch import Tensor, nn

from superb_lite.types import Card, CheckpointRefused
from superb_lite.upstreams._fairseq import Settings, build, rename, weights_of
from superb_lite.upstreams._pretext import Pretext
from superb_lite.upstreams._published import part, read_checkpoint
from superb_lite.upstreams._transformer import SpeechTransformer
from superb_lite.upstreams.hubert import TWICE, LogMelFrontEnd, MaskedUnits

_ATTENTION = r"encoder\.layers\.(\d+)\.self_attn\."
_OURS = r"encoder.transformer.layers.\1.attention."
NAMES = (
    (_ATTENTION + r"grep_a$", _OURS + "gru_rel_pos_const"),
    (_ATTENTION + r"grep_linear\.", _OURS + "gru_rel_pos_linear."),
    (_ATTENTION + r"relative_attention_bias\.", _OURS + "rel_attn_embed."),
    (_ATTENTION + r"out_proj\.", _OURS + "attention.out_proj."),
)


class WavLM(SpeechTransformer):
    """A frozen WavLM: states are the input of the first block and the output of every block."""


def with_hidden_frame(network: nn.Module) -> nn.Module:
    """Add the vector that is shown in place of a hidden frame; the published files hold it, and no other head."""
    network.hidden_frame = nn.Parameter(torch.rand(network.encoder.transformer.layer_norm.normalized_shape[0]))
    return network


def tiny_network(dim: int = 128, blocks: int = 4) -> nn.Module:
    """WavLM, shrunk: 4 post-norm blocks behind a fixed log-mel front end, biases up to 128 frames (2.6 s) apart."""
    network = torchaudio.models.wavlm_model(
        extractor_mode="layer_norm", extractor_conv_layer_config=[(160, 1, 1)], extractor_conv_bias=False,
        encoder_embed_dim=dim, encoder_projection_dropout=0.0, encoder_pos_conv_kernel=32, encoder_pos_conv_groups=8,
        encoder_num_layers=blocks, encoder_num_heads=4, encoder_num_buckets=32, encoder_max_distance=128,
        encoder_attention_dropout=0.0, encoder_ff_interm_features=2 * dim, encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0, encoder_layer_norm_first=False, encoder_layer_drop=0.0, aux_num_out=None,
    )  # fmt: skip
    network.feature_extractor = LogMelFrontEnd()
    return network


def mix(wavs: Tensor, generator: torch.Generator, *, share: float = 0.2, decibel: float = 5.0) -> Tensor:
    """Cover a stretch of some clips with a stretch of another one of the batch. Nothing changes in the rest.

    wavs: (batch, samples), all full; share: of clips that are mixed. The stretch is at most half a clip long, so that
    the clip itself stays the main voice, and its energy is up to `decibel` above or below that of the clip.
    """
    batch, samples = wavs.shape
    if batch < 2:
        return wavs
    mixed, draw = wavs.clone(), torch.rand(batch, 6, generator=generator).tolist()
    for n, (chance, other, size, here, there, level) in enumerate(draw):
        if chance >= share:
            continue
        m = (n + 1 + int(other * (batch - 1))) % batch  # any clip but this one
        length = 1 + int(size * (samples // 2))
        start, source = int(here * (samples - length)), int(there * (samples - length))
        voice = wavs[m, source : source + length]
        wanted = wavs[n].pow(2).mean() * 10 ** (decibel * (2 * level - 1) / 10)
        mixed[n, start : start + length] += voice * (wanted / voice.pow(2).mean().clamp(min=1e-10)).sqrt()
    return mixed


class DenoisedUnits(nn.Module):
    """WavLM's objective: HuBERT's `MaskedUnits`, heard through a second voice.

    units: how many there are to guess; more arguments as for `MaskedUnits`. Differs: the paper also mixes in noise
    recordings; here the clips that are given bring their own noise.
    """

    def __init__(self, network: nn.Module, units: int, *, share: float = 0.2, **options):
        super().__init__()
        self.share, self.masked = share, MaskedUnits(network, units, **options)

    def forward(self, wavs: Tensor, units: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """wavs: (batch, samples) of equal length; units: (batch, frames) of the clips alone. Returns loss, what to log.

        `generator` lives on the CPU.
        """
        return self.masked(mix(wavs, generator, share=self.share), units, generator)

    def picture(self, wav: Tensor) -> dict[str, Tensor]:
        """As `MaskedUnits.picture`; the second voice is the clip itself, backwards, over its middle."""
        quarter = len(wav) // 4
        second = torch.zeros_like(wav)
        second[quarter : 3 * quarter] = wav.flip(0)[quarter : 3 * quarter]
        return self.masked.picture(wav + second)


def _one_projection(weights: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """Query, key and value projections, three matrices in the file, as torchaudio's single one."""
    found = dict(weights)
    for name in [name for name in weights if re.search(r"\.attention\.q_proj\.(weight|bias)$", name)]:
        trio = [found.pop(name.replace("q_proj", f"{letter}_proj"), None) for letter in "qkv"]
        if any(matrix is None or matrix.shape != trio[0].shape for matrix in trio):
            raise CheckpointRefused(f"{path}: {name} has no key or value of the same size; is the file complete?")
        place, kind = name.rsplit(".q_proj.", 1)
        found[f"{place}.attention.in_proj_{kind}"] = torch.cat(trio)
    return found


def _read(name: str, path: str | Path) -> WavLM:
    config, weights = part(read_checkpoint(path), ("cfg", "model"), path)
    options = Settings(config, path)
    if not options.flag("relative_position_embedding") or not options.flag("gru_rel_pos"):
        raise CheckpointRefused(f"{path}: has no gated relative position bias; is it of another model?")
    sizes = options.network_sizes()
    sizes |= {"encoder_num_buckets": options.number("num_buckets", 320)}
    sizes |= {"encoder_max_distance": options.number("max_distance", 800)}  # visible in no shape
    if not 4 <= sizes["encoder_num_buckets"] < 4 * sizes["encoder_max_distance"]:
        raise CheckpointRefused(f"{path}: {sizes['encoder_num_buckets']} buckets do not fit the largest distance")
    ours = _one_projection(rename(weights_of(weights, path), NAMES), path)
    network, revision = build(lambda: with_hidden_frame(torchaudio.models.wavlm_model(**sizes)), ours, path)
    return WavLM(name, network, revision, normalise=options.flag("normalize"), frame_rule="share")


def read_wavlm_base(path: str | Path) -> WavLM:
    """A published WavLM, post-norm: ``WavLM-Base.pt`` (or Base+). Raises CheckpointRefused."""
    return _read("wavlm_base", path)


def read_wavlm_large(path: str | Path) -> WavLM:
    """A published pre-norm WavLM: ``WavLM-Large.pt``. Raises CheckpointRefused."""
    return _read("wavlm_large", path)


def _published(name: str, corpus: str, parameters: int, layers: int, dim: int, read) -> Card:
    return Card(
        name=name, family="wavlm", method="M-P + VQ", input="waveform", corpus=corpus, parameters=parameters,
        layers=layers, dim=dim, stride=320, licence="MIT", source="microsoft/unilm (arXiv:2110.13900), kept by s3prl",
        read=read, url=f"https://huggingface.co/s3prl/converted_ckpts/resolve/main/{name}.pt",
        notes="units guessed through a second voice; entered the competition after the paper",
    )  # fmt: skip


PRETEXTS = {
    "tiny_wavlm": Pretext("WavLM: guess hidden units behind a second voice", tiny_network, DenoisedUnits, WavLM, TWICE)
}

CARDS = (
    _published("wavlm_base", "LS 960 hr", 94_381_936, 13, 768, read_wavlm_base),
    _published("wavlm_large", "Mix 94k hr", 315_453_120, 25, 1024, read_wavlm_large),
)
