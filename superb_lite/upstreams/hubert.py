"""HuBERT: hide pieces of speech from a transformer and let it guess which sound unit was there.

The units come from clustering, so no label is needed: first k-means over MFCCs, then k-means over what
the network has learned so far. The network is torchaudio's: a front end that makes
a frame every 20 ms, a positional convolution, and a transformer.

`tiny_hubert` is pre-trained by us on synthetic speech (see its card in ``weights/``); `random` is the same
network with untrained weights, the control that belongs into every table. `hubert_base` and `hubert_large` are the
published ones; Large is deeper, and normalises in front of each block and not behind it.

Taught in notebooks 01 (pre-train an upstream) and 02 (freeze, weigh, probe).
Source: Hsu et al. 2021, "HuBERT", arXiv:2106.07447, sections 2.1-2.4.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torchaudio
from torch import Tensor, nn

from superb_lite.types import Card, CheckpointRefused
from superb_lite.upstreams._fairseq import Settings, build, rename, weights_of
from superb_lite.upstreams._pretext import Pretext, Stage, control_card, tiny_card
from superb_lite.upstreams._published import part, read_checkpoint
from superb_lite.upstreams._transformer import SpeechTransformer, blocks, heard_and_hidden, project, spans
from superb_lite.upstreams.fbank import log_mel


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


def tiny_network(
    dim: int = 192, blocks: int = 4, *, feed_forward: int | None = None, norm_first: bool = False
) -> torchaudio.models.Wav2Vec2Model:
    """HuBERT's network, shrunk: 4 post-norm blocks of 192 dimensions behind a fixed log-mel front end.

    feed_forward: size inside a block, three times `dim` unless given; norm_first: the norms stand in front of
    attention and feed-forward, as in the Large models, and not behind them.
    """
    network = torchaudio.models.wav2vec2_model(
        extractor_mode="layer_norm", extractor_conv_layer_config=[(160, 1, 1)], extractor_conv_bias=False,
        encoder_embed_dim=dim, encoder_projection_dropout=0.0, encoder_pos_conv_kernel=32, encoder_pos_conv_groups=8,
        encoder_num_layers=blocks, encoder_num_heads=4, encoder_attention_dropout=0.0,
        encoder_ff_interm_features=3 * dim if feed_forward is None else feed_forward, encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0, encoder_layer_norm_first=norm_first, encoder_layer_drop=0.0, aux_num_out=None,
    )  # fmt: skip
    network.feature_extractor = LogMelFrontEnd()
    return network


def tiny_large_network(dim: int = 96, blocks: int = 8) -> torchaudio.models.Wav2Vec2Model:
    """Large in shape, not in size: twice as deep as `tiny_network`, half as wide, and pre-norm. 0.65 M parameters.

    It is there for a puzzle of the benchmark: with the last layer only, the Large models disappoint.
    """
    return tiny_network(dim, blocks, feed_forward=2 * dim, norm_first=True)


class Hubert(SpeechTransformer):
    """A frozen HuBERT: states are the input of the first block and the output of every block."""


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
        return spans(torch.rand(batch, frames, generator=generator) < self.start_rate, self.span)

    def forward(self, wavs: Tensor, units: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """wavs: (batch, samples) of equal length; units: (batch, frames). Returns the loss and what to log.

        ``right``: percent of hidden frames whose unit is guessed; `generator` lives on the CPU.
        """
        x, _ = project(self.network, self.network.feature_extractor(wavs, None)[0], None)
        hide = self.mask(x.shape[0], x.shape[1], generator).to(x.device)
        x = torch.where(hide[..., None], self.hidden_frame, x)
        logits = self.guess(blocks(self.network, x)[-1])
        hidden, visible = (nn.functional.cross_entropy(logits[part], units[part]) for part in (hide, ~hide))
        right = (logits[hide].argmax(-1) == units[hide]).float().mean().item() * 100
        return self.alpha * hidden + (1 - self.alpha) * visible, {"right": right}

    @torch.no_grad()
    def picture(self, wav: Tensor) -> dict[str, Tensor]:
        """(samples,) -> what is heard and what is hidden, log-mel (10 ms frames, 80), and the guesses.

        ``guessed`` is the probability of every unit, (20 ms frames, units), for hidden and visible frames alike.
        """
        x, _ = project(self.network, self.network.feature_extractor(wav[None], None)[0], None)
        hide = self.mask(1, x.shape[1], torch.Generator().manual_seed(0)).to(x.device)
        logits = self.guess(blocks(self.network, torch.where(hide[..., None], self.hidden_frame, x))[-1])
        return {**heard_and_hidden(wav, hide[0]), "guessed": logits[0].softmax(-1).cpu()}


def with_codebook(network: nn.Module, size: int, units: int, sets: int = 1) -> nn.Module:
    """Add what the published files hold besides: the vector shown for a hidden frame, a projection, unit vectors.

    A frame's guess is the unit whose vector has the largest cosine with the projected frame (equation 2 of the paper).
    size: of a unit's vector; units: how many; sets: how many clusterings were guessed at once
    """
    dim = network.encoder.transformer.layer_norm.normalized_shape[0]
    network.hidden_frame = nn.Parameter(torch.rand(dim))
    network.final_proj = nn.Linear(dim, size * sets)
    network.codebook = nn.Parameter(torch.rand(units, size))
    return network


def _read(name: str, path: str | Path) -> Hubert:
    entries = ("task_cfg", "model_cfg", "model_weight", "dictionaries_symbols")
    task, model, weights, symbols = part(read_checkpoint(path), entries, path)
    if not isinstance(symbols, list) or not all(isinstance(rows, list) for rows in symbols):
        raise CheckpointRefused(f"{path}: dictionaries_symbols is no list of lists of unit names")
    options, task = Settings(model, path), Settings(task, path)
    sizes, size = options.network_sizes(), options.number("final_dim", 256)
    sets, units = len(symbols) if options.flag("untie_final_proj") else 1, sum(len(rows) for rows in symbols)

    def make() -> nn.Module:
        return with_codebook(torchaudio.models.wav2vec2_model(**sizes), size, units, sets)

    ours = rename(weights_of(weights, path), ((r"label_embs_concat$", "codebook"),))
    network, revision = build(make, ours, path)
    return Hubert(name, network, revision, normalise=task.flag("normalize"), frame_rule="share")


def read_hubert_base(path: str | Path) -> Hubert:
    """A published HuBERT, post-norm: ``hubert_base_ls960.pt`` as repacked for s3prl. Raises CheckpointRefused.

    fairseq's own file holds an object of fairseq and would need its code to be opened; it is refused.
    """
    return _read("hubert_base", path)


def read_hubert_large(path: str | Path) -> Hubert:
    """A published pre-norm HuBERT: ``hubert_large_ll60k.pt``, otherwise as `read_hubert_base`."""
    return _read("hubert_large", path)


def _published(name: str, corpus: str, parameters: int, layers: int, dim: int, read, file: str) -> Card:
    return Card(
        name=name, family="hubert", method="M-P + VQ", input="waveform", corpus=corpus, parameters=parameters,
        layers=layers, dim=dim, stride=320, licence="MIT", source="fairseq (arXiv:2106.07447), repacked by s3prl",
        read=read, url=f"https://huggingface.co/s3prl/converted_ckpts/resolve/main/{file}",
    )  # fmt: skip


# four rounds of units for the 40,000 steps of `tiny_hubert`, two, as in the paper, for the 4,000 of all others
ITERATIONS = (Stage(0.1, "mfcc", 200), Stage(0.2, 3, 200), Stage(0.4, 3, 250), Stage(0.3, 3, 250))
TWICE = (Stage(0.4, "mfcc", 200), Stage(0.6, 3, 250))
DEEP = (TWICE[0], Stage(0.6, 5, 250))
PRETEXTS = {
    "tiny_hubert": Pretext("HuBERT: guess hidden units", tiny_network, MaskedUnits, Hubert, ITERATIONS, lr=1.5e-3),
    "tiny_hubert_large": Pretext("HuBERT, deep and pre-norm", tiny_large_network, MaskedUnits, Hubert, DEEP),
}

SIZE = {"family": "hubert", "input": "waveform", "parameters": 1_663_072, "layers": 5, "dim": 192, "stride": 320}

CARDS = (
    control_card(
        "random", PRETEXTS["tiny_hubert"], **SIZE, notes="the control: what a bare transformer gives for nothing"
    ),
    tiny_card(
        "tiny_hubert", PRETEXTS["tiny_hubert"], **SIZE, method="M-P + VQ",
        notes="guesses hidden k-means units (arXiv:2106.07447); ten times the steps of all others",
    ),
    tiny_card(
        "tiny_hubert_large", PRETEXTS["tiny_hubert_large"], control="random", family="hubert", input="waveform",
        method="M-P + VQ", parameters=651_232, layers=9, dim=96, stride=320,
        notes="large in shape only: deep, narrow, pre-norm",
    ),
    _published("hubert_base", "LS 960 hr", 94_697_600, 13, 768, read_hubert_base, "hubert_base_ls960.pt"),
    _published("hubert_large", "LL 60k hr", 316_609_408, 25, 1024, read_hubert_large, "hubert_large_ll60k.pt"),
)  # fmt: skip
