"""Mockingjay, TERA and AudioALBERT: spoil a spectrogram, and let a transformer that sees both sides rebuild it.

One network, three ways to use it. Mockingjay hides stretches of time; TERA also hides bands of frequency and adds
noise; AudioALBERT is Mockingjay with one block that is applied again and again.

Taught in notebooks 01 (pre-train an upstream: mask and rebuild) and 13 (the contestants).
Sources: Liu et al. 2020, "Mockingjay", arXiv:1910.12638; Liu et al. 2021, "TERA", arXiv:2007.06028; Chi et al. 2021,
"Audio ALBERT", arXiv:2005.08575; superb/protocol.md section 2.3 for the states.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn

from superb_lite.types import RATE, Card, CheckpointRefused, Hidden, SuperbLiteError
from superb_lite.upstreams._fairseq import MOST_LAYERS, Settings, weights_of
from superb_lite.upstreams._frozen import Frozen
from superb_lite.upstreams._pretext import Pretext, tiny_card
from superb_lite.upstreams._published import load_published, part, read_checkpoint, settings
from superb_lite.upstreams.fbank import cmvn, log_mel, with_deltas
from superb_lite.upstreams.hubert import LogMelFrontEnd

# ------------------------------------------------------------------------------------ what the network is given


def _padded(clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[(frames, dim)] -> (batch, frames, dim) with zeros at the ends, valid frames (batch,)."""
    lengths = torch.tensor([len(clip) for clip in clips], device=clips[0].device)
    return nn.utils.rnn.pad_sequence(list(clips), batch_first=True), lengths


class Mel(nn.Module):
    """The features of most official files: log-mel energies, every clip equally loud and with CMVN.

    Windows of 25 ms every 10 ms are centred, and a clip is mirrored at its ends: frames = 1 + samples // 160.
    """

    stride, stack = 160, 1

    def __init__(self, bins: int = 80, level: float = -25.0):
        super().__init__()
        self.bins, self.level = bins, level

    def _as_loud_as_all(self, wav: Tensor) -> Tensor:
        return wav * (10 ** (self.level / 20) / (wav.square().mean().sqrt() + 1e-10))

    def _log_mel(self, wavs: Tensor) -> Tensor:
        window = torch.hann_window(400, device=wavs.device)
        power = torch.stft(wavs, 400, 160, window=window, return_complex=True).abs().square()
        bands = torchaudio.functional.melscale_fbanks(201, 0.0, RATE / 2, self.bins, RATE).to(wavs.device)
        return (power.transpose(1, 2) @ bands + 1e-10).log()

    def forward(self, wavs: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """wavs (batch, samples), valid ones (batch,) -> (batch, frames, bins), valid frames; every clip by itself."""
        clips = [self._as_loud_as_all(wav[:n])[None] for wav, n in zip(wavs, samples.tolist(), strict=True)]
        return _padded([cmvn(self._log_mel(clip)[0]) for clip in clips])

    def published(self, wavs: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The same as the official toolkit has it, of the padded batch: a short clip's last windows reach into zeros
        where a clip alone is mirrored, and the number of its frames is a rounded guess. CMVN spreads both over it."""
        counts = samples.tolist()
        loud = [self._as_loud_as_all(wav[:n]) for wav, n in zip(wavs, counts, strict=True)]
        mels = self._log_mel(nn.utils.rnn.pad_sequence(loud, batch_first=True))
        frames = [round(n / (max(counts) / mels.shape[1])) for n in counts]
        return _padded([cmvn(mel[:n]) for mel, n in zip(mels, frames, strict=True)])


class KaldiFbank(nn.Module):
    """The features of later official files: our `fbank_cmvn`. Made clip by clip there too, so padding never leaks."""

    stride, stack, bins = 160, 1, 240

    def forward(self, wavs: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """wavs (batch, samples), valid ones (batch,) -> (batch, frames, 240), valid frames."""
        return _padded([cmvn(with_deltas(log_mel(wav[:n]))) for wav, n in zip(wavs, samples.tolist(), strict=True)])

    published = forward


class MelPairs(LogMelFrontEnd):
    """The features of our tiny networks: two log-mel vectors every 20 ms, shifted and scaled by two fixed numbers.

    No CMVN: the mean over a clip says much about who speaks, and a tiny network has few layers to win it back.
    """

    stride, stack, bins, dim = 320, 2, 80, 160
    ahead = 2  # the next frame begins 15 ms before this one ends; the one after it has no sample in common with it
    middle, spread = -6.0, 4.0  # of the log-mel energies of our unlabelled speech, in nepers, about

    def forward(self, wavs: Tensor, samples: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """wavs (batch, samples), valid ones or None for all -> (batch, frames, 160), valid frames or None."""
        pairs, frames = super().forward(wavs, samples)
        return (pairs - self.middle) / self.spread, frames

    published = forward


# ------------------------------------------------------------------------------------------------- the network


class Block(nn.Module):
    """A transformer block. `pre_norm`: normalise what goes into its two halves rather than what comes out of them."""

    def __init__(self, dim: int, heads: int, inner: int, pre_norm: bool, activation: nn.Module, eps: float):
        super().__init__()
        self.heads, self.pre_norm, self.activation = heads, pre_norm, activation
        self.query, self.key, self.value, self.mix = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_attention, self.norm_feed = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.up, self.down = nn.Linear(dim, inner), nn.Linear(inner, dim)

    def attend(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x: (batch, frames, dim); bias: (batch, 1, 1, frames), added to what every frame is asked with."""
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        return self.mix(nn.functional.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2))

    def feed(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.pre_norm:
            x = x + self.attend(self.norm_attention(x), bias)
            return x + self.feed(self.norm_feed(x))
        x = self.norm_attention(x + self.attend(x, bias))
        return self.norm_feed(x + self.feed(x))


def positions(frames: int, dim: int) -> Tensor:
    """(frames, dim): sines on even channels and cosines on odd ones, from one every frame to one in 10,000 frames."""
    channel = torch.arange(dim, dtype=torch.float64)
    angle = torch.arange(frames, dtype=torch.float64)[:, None] / 10_000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


class Transformer(nn.Module):
    """Features of `front` to states. The defaults are Mockingjay's official sizes; TERA has three blocks.

    shared: one block applied `blocks` times (AudioALBERT); limit: clips of more frames are cut into equal pieces that
    do not see each other (0: never).
    """

    def __init__(
        self, front: nn.Module | None = None, in_dim: int = 80, dim: int = 768, blocks: int = 12, heads: int = 12,
        inner: int = 3072, shared: bool = False, pre_norm: bool = False, activation: nn.Module | None = None,
        eps: float = 1e-12, limit: int = 1500,
    ):  # fmt: skip
        super().__init__()
        self.front, self.limit = Mel() if front is None else front, limit
        make = partial(Block, dim, heads, inner, pre_norm, nn.GELU() if activation is None else activation, eps)
        self.project, self.norm = nn.Linear(in_dim, dim), nn.LayerNorm(dim, eps)
        self.blocks = nn.ModuleList([make()] * blocks if shared else [make() for _ in range(blocks)])
        # with pre-norm the stream itself grows from block to block; what is shown of it is normalised
        self.shown = nn.ModuleList([nn.LayerNorm(dim, eps) for _ in range(blocks + 1)] if pre_norm else [])

    def forward(self, features: Tensor, frames: Tensor | None = None) -> list[Tensor]:
        """(batch, frames, in_dim), valid frames or None for all -> [input of the first block, all blocks' output]."""
        bias = None
        if frames is not None:
            inside = torch.arange(features.shape[1], device=features.device) < frames[:, None]
            # -10,000 like the official code: where a piece holds padding only, all frames get it, and nothing is 0 / 0
            bias = torch.where(inside, 0.0, -10_000.0)[:, None, None]
        dim = self.project.out_features
        x = self.norm(self.project(features) + positions(features.shape[1], dim).to(features.device))
        states = [x]
        for block in self.blocks:
            x = block(x, bias)
            states.append(x)
        return [norm(x) for norm, x in zip(self.shown, states, strict=True)] if len(self.shown) else states


class Mockingjay(Frozen):
    """A frozen network of this family: states are what goes into the first block and what comes out of every block."""

    def __init__(self, name: str, network: Transformer, revision: str):
        super().__init__()
        self.name, self.revision, self.network = name, revision, network
        self.layers, self.dim = len(network.blocks) + 1, network.project.out_features
        self.stride = network.front.stride
        self.freeze()

    def _pieces(self, clip: Tensor) -> list[Tensor]:
        limit = self.network.limit
        return list(clip.chunk(math.ceil(len(clip) / limit))) if 0 < limit < len(clip) else [clip]

    def _join(self, states: Tensor, pieces: Sequence[Sequence[Tensor]]) -> Tensor:
        """(layers, all pieces, frames, dim) -> (layers, batch, frames, dim): the pieces of a clip one after another."""
        if all(len(of_clip) == 1 for of_clip in pieces):
            return states
        rows = iter(states.unbind(1))
        clips = [torch.cat([next(rows)[:, : len(piece)] for piece in of_clip], dim=1) for of_clip in pieces]
        return nn.utils.rnn.pad_sequence([clip.transpose(0, 1) for clip in clips]).permute(2, 1, 0, 3)

    def hidden(self, wavs: Tensor, samples: Tensor) -> Hidden:
        features, frames = self.network.front(wavs, samples)
        pieces = [self._pieces(clip[:n]) for clip, n in zip(features, frames.tolist(), strict=True)]
        x, lengths = _padded([piece for of_clip in pieces for piece in of_clip])
        return Hidden(self._join(torch.stack(self.network(x, lengths)), pieces), frames)

    def published(self, wavs: Tensor, samples: Tensor) -> Tensor:
        features, _ = self.network.front.published(wavs, samples)
        # here the padded batch is cut into pieces, and a frame is valid if its numbers do not add up to zero
        pieces = zip(*(self._pieces(clip) for clip in features), strict=True)
        states = [torch.stack(self.network(x, (x.sum(2) != 0).sum(1))) for x in map(torch.stack, pieces)]
        return torch.cat(states, dim=2)


# ------------------------------------------------------------------------------------------- official checkpoints

OURS = {
    "attention.self.query.": "query.", "attention.self.key.": "key.", "attention.self.value.": "value.",
    "attention.output.dense.": "mix.", "attention.output.LayerNorm.": "norm_attention.", "intermediate.dense.": "up.",
    "output.dense.": "down.", "output.LayerNorm.": "norm_feed.", "input_representations.spec_transform.": "project.",
    "input_representations.LayerNorm.": "norm.", "encoder.layer.": "blocks.", "encoder.LayerNorm.": "shown.",
    "gamma": "weight", "beta": "bias",
}  # fmt: skip
ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "swish": nn.SiLU}


def our_name(name: str) -> str:
    """Our name of an official weight: ``encoder.layer.0.output.dense.bias`` is ``blocks.0.down.bias``."""
    for theirs, ours in OURS.items():
        name = name.replace(theirs, ours)
    return name


@contextmanager
def reading(path: str | Path, family: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes CheckpointRefused and names the file: its content is not ours to trust."""
    try:
        yield
    except SuperbLiteError:
        raise
    except Exception as error:
        raise CheckpointRefused(
            f"{path}: its content is not that of a {family} checkpoint ({type(error).__name__}: {error}); "
            "is it of another model?"
        ) from None


def _front(audio: Mapping[str, Any], path: str | Path) -> nn.Module:
    """The features that the file asks for. Raises CheckpointRefused for those that no published model uses."""
    if "kaldi" in audio:
        kaldi, delta, norm = audio["kaldi"], audio.get("delta", {}), audio.get("cmvn", {})
        if (kaldi["feat_type"], kaldi["fbank"]["num_mel_bins"], delta.get("order"), norm.get("use_cmvn")) == (
            "fbank", 80, 2, True,
        ):  # fmt: skip
            return KaldiFbank()
    else:
        wanted = {"feat_type": "mel", "log": True, "delta": 0, "cmvn": True}
        same = all(audio["input"].get(key) == value for key, value in wanted.items())
        if same and (audio["win_ms"], audio["hop_ms"]) == (25, 10):
            return Mel(int(audio["n_mels"]), float(audio["target_level"]))
    raise CheckpointRefused(f"{path}: wants the features {audio}; only log-mel or Kaldi Fbank with CMVN can be made")


def _network(config: Mapping[str, Any], path: str | Path) -> Transformer:
    sizes, front = Settings(config["transformer"], path), _front(config["audio"], path)
    dim, heads = sizes.number("hidden_size", 768), sizes.number("num_attention_heads", 12)
    if dim % heads:
        raise CheckpointRefused(f"{path}: {dim} dimensions cannot be shared by {heads} attention heads")
    return Transformer(
        front, front.bins, dim, sizes.number("num_hidden_layers", 12, MOST_LAYERS), heads,
        sizes.number("intermediate_size", 3072), sizes.flag("share_layer"), sizes.flag("pre_layer_norm"),
        ACTIVATIONS[sizes.choice("hidden_act", *ACTIVATIONS)](), float(sizes.values["layer_norm_eps"]),
        int(config["task"]["sequence_length"]),
    )  # fmt: skip


def read_mockingjay(path: str | Path, name: str = "mockingjay") -> Mockingjay:
    """An official checkpoint of any size (``.ckpt``, both of its layouts). Raises CheckpointRefused for other files."""
    content = read_checkpoint(path)
    with reading(path, name):
        weights = weights_of(part(content, ["Transformer"], path)[0], path)
        # old files keep the network's settings where new ones keep those of the training run
        configs = [settings(content[key]) for key in ("Config", "Upstream_Config") if key in content]
        config = next((config for config in configs if "transformer" in config), None)
        if config is None:
            raise CheckpointRefused(f"{path}: neither 'Config' nor 'Upstream_Config' has 'transformer', the sizes")
        with torch.device("meta"):  # without memory, until we know that the sizes are those of the weights
            network = _network(config, path)
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        # a pre-norm file has two names for some weights, and old ones carry leftovers: the official code ignores them
        ours = {our: weight for theirs, weight in weights.items() if (our := our_name(theirs)) in shapes}
        if shapes == {our: weight.shape for our, weight in ours.items()}:
            network.to_empty(device="cpu")
        return Mockingjay(name, network, load_published(network, ours, path))


# ---------------------------------------------------------------------------------------------------- phase 1


def stretches(batch: int, frames: int, span: int, share: float, generator: torch.Generator) -> Tensor:
    """(batch, frames) bool: stretches of `span` frames from random places; `share` of all where none overlap."""
    span = min(span, frames)
    count = max(1, round(share * frames / span))
    dice = torch.rand(batch, frames - span + 1, generator=generator)
    starts = torch.zeros_like(dice).scatter(1, dice.topk(min(count, dice.shape[1])).indices, 1.0)
    return nn.functional.max_pool1d(nn.functional.pad(starts, (span - 1, span - 1)), span, stride=1) > 0


class MockingjayObjective(nn.Module):
    """Rebuild what was hidden in time: 15 % of the frames, in stretches of 0.14 s.

    Of ten clips eight have zeros there, one has frames from elsewhere, and one is left as it was (but must be rebuilt
    all the same), so that the network cannot rely on zeros. The loss is the mean absolute error of what was hidden.
    Spans are longer than the paper's 70 ms, which a frame of 20 ms bridges easily.
    """

    def __init__(self, network: Transformer, span: int = 14, share: float = 0.15):
        super().__init__()
        self.network, self.span, self.share = network, span, share
        dim, out = network.project.out_features, network.project.in_features
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, out))

    def _mels(self, wavs: Tensor) -> Tensor:
        """(batch, samples) -> (batch, frames every 10 ms, bins)."""
        samples = torch.full((len(wavs),), wavs.shape[1], device=wavs.device)
        features, _ = self.network.front(wavs, samples)
        return features.unflatten(2, (self.network.front.stack, -1)).flatten(1, 2)

    def _rebuild(self, mels: Tensor) -> Tensor:
        stack = self.network.front.stack
        guess = self.head(self.network(mels.unflatten(1, (-1, stack)).flatten(2))[-1])
        return guess.unflatten(2, (stack, -1)).flatten(1, 2)

    def alter(self, mels: Tensor, generator: torch.Generator, zeros: float = 0.8) -> tuple[Tensor, Tensor]:
        """mels: (batch, frames, bins) -> the same, spoilt; and which numbers have to be rebuilt (bool).

        zeros: the share of clips in which what is hidden is zero
        """
        batch, frames, _ = mels.shape
        hide = stretches(batch, frames, self.span, self.share, generator)[:, :, None].to(mels.device)
        fate = torch.rand(batch, 1, 1, generator=generator).to(mels.device)
        places = torch.randint(frames, (batch, frames), generator=generator).to(mels.device)
        elsewhere = mels[torch.arange(batch, device=mels.device)[:, None], places]
        moved = zeros + (1 - zeros) / 2
        instead = torch.where(fate < zeros, torch.zeros_like(mels), torch.where(fate < moved, elsewhere, mels))
        return torch.where(hide, instead, mels), hide.expand_as(mels)

    def forward(self, wavs: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """wavs: (batch, samples) of equal lengths. Returns the loss and what to log.

        `rebuilt` is in percent: 0 is as good as zeros, 100 is perfect.
        """
        mels = self._mels(wavs)
        spoilt, hide = self.alter(mels, generator)
        loss = (self._rebuild(spoilt) - mels).abs()[hide].mean()
        return loss, {"rebuilt": 100 - 100 * loss.item() / mels[hide].abs().mean().item()}

    @torch.no_grad()
    def picture(self, wav: Tensor, seed: int = 0) -> dict[str, Tensor]:
        """wav: (samples,) -> {"heard", "hidden", "rebuilt"}: spectrograms, (frames every 10 ms, bins).

        "hidden" is what the network got to see, "rebuilt" has its guesses in the hidden places.
        """
        mels = self._mels(wav[None])
        spoilt, hide = self.alter(mels, torch.Generator().manual_seed(seed), zeros=1.0)
        shown = {"heard": mels, "hidden": spoilt, "rebuilt": torch.where(hide, self._rebuild(spoilt), mels)}
        return {name: values[0].cpu() for name, values in shown.items()}


class TeraObjective(MockingjayObjective):
    """Rebuild what was altered in time as in Mockingjay, in frequency, and in magnitude.

    Frequency: a band of random place and width, up to a fifth of all, is zero throughout the clip. Magnitude: in 15 %
    of the clips all numbers get Gaussian noise of deviation 0.2. The loss counts what was hidden in time or frequency.
    """

    def alter(self, mels: Tensor, generator: torch.Generator, zeros: float = 0.8) -> tuple[Tensor, Tensor]:
        spoilt, hide = super().alter(mels, generator, zeros)
        batch, _, bins = mels.shape
        width = torch.randint(bins // 5 + 1, (batch, 1, 1), generator=generator)
        first = (torch.rand(batch, 1, 1, generator=generator) * (bins - width + 1)).long()
        band = ((torch.arange(bins) >= first) & (torch.arange(bins) < first + width)).to(mels.device)
        noisy = torch.rand(batch, 1, 1, generator=generator) < 0.15
        noise = 0.2 * noisy * torch.randn(mels.shape, generator=generator)
        return spoilt.masked_fill(band, 0.0) + noise.to(mels.device), hide | band


def tiny_network(dim: int = 128, blocks: int = 3) -> Transformer:
    """The network, shrunk: 3 blocks of 128 dimensions that read 20 ms a frame (516,992 parameters)."""
    return Transformer(MelPairs(), MelPairs.dim, dim, blocks, heads=4, inner=3 * dim, eps=1e-5, limit=0)


def _card(name: str, method: str, corpus: str, parameters: int, blocks: int, place: str, notes: str) -> Card:
    return Card(
        name=name, family="mockingjay", method=method, input="FBANK", corpus=corpus, parameters=parameters,
        layers=blocks + 1, dim=768, stride=160, licence="Apache-2.0", source="s3prl's model zoo",
        read=partial(read_mockingjay, name=name), url=f"https://www.dropbox.com/s/{place}?dl=1", notes=notes,
    )  # fmt: skip


PRETEXTS = {
    "tiny_mockingjay": Pretext("Mockingjay: rebuild hidden time", tiny_network, MockingjayObjective, Mockingjay),
    "tiny_tera": Pretext("TERA: rebuild hidden time and frequency", tiny_network, TeraObjective, Mockingjay),
}

CARDS = (
    tiny_card(
        "tiny_tera", PRETEXTS["tiny_tera"], control="random", family="mockingjay", input="FBANK",
        method="time/freq M-G", parameters=516_992, layers=4, dim=128, stride=320,
        notes="rebuilds hidden time and frequency (arXiv:2007.06028)",
    ),
    tiny_card(
        "tiny_mockingjay", PRETEXTS["tiny_mockingjay"], control="random", family="mockingjay", input="FBANK",
        method="time M-G", parameters=516_992, layers=4, dim=128, stride=320,
        notes="rebuilds hidden stretches of time (arXiv:1910.12638)",
    ),
    _card(
        "mockingjay", "time M-G", "LS 360 hr", 85_118_208, 12, "zwsfa6w2iy2cc68/states-500000.ckpt",
        "rebuilds linear spectra from log-mel with stretches of time hidden (arXiv:1910.12638)",
    ),
    _card(
        "tera", "time/freq M-G", "LS 960 hr", 21_327_360, 3, "xdoj9wdo87lztv1/states-1000000.ckpt",
        "rebuilds log-mel altered in time, frequency and magnitude (arXiv:2007.06028)",
    ),
    _card(
        "audio_albert", "time M-G", "LS 960 hr", 7_151_616, 3, "3wgynxmod77ha1z/states-1000000.ckpt",
        "Mockingjay with one block applied three times (arXiv:2005.08575); not in the paper's table",
    ),
)  # fmt: skip
