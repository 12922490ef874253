"""Modified CPC: hear the past, and tell the true future from frames that came at another time.

Five convolutions make a frame every 10 ms of the waveform, a recurrent layer sums up all frames so far, and linear
maps guess the next ones. Nothing is rebuilt: a guess only has to be nearer to the true frame than to the others.

Taught in notebooks 01 (pre-train an upstream: predict the future) and 13 (the contestants).
Sources: van den Oord et al. 2018, "CPC", arXiv:1807.03748; Riviere et al. 2020, "Unsupervised pretraining transfers
well across languages", arXiv:2002.02848 (the modifications); superb/protocol.md section 2.3 for the states.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from superb_lite.types import Card, CheckpointRefused, Hidden
from superb_lite.upstreams._fairseq import Settings, weights_of
from superb_lite.upstreams._frozen import Frozen
from superb_lite.upstreams._pretext import Pretext, tiny_card
from superb_lite.upstreams._published import load_published, part, read_checkpoint
from superb_lite.upstreams.mockingjay import MelPairs, reading

CONVS = ((10, 5, 3), (8, 4, 2), (4, 2, 1), (4, 2, 1), (4, 2, 1))  # kernel, stride, zeros at both ends
RECURRENT = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


class ChannelNorm(nn.Module):
    """Every frame gets mean 0 and variance 1 over its channels; no other frame is needed for it."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(1, dim, 1)), nn.Parameter(torch.zeros(1, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, channels, frames)"""
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True)  # the unbiased one, unlike in LayerNorm
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


class Encoder(nn.Module):
    """Waveforms to frames: convolutions, each with channel norm and ReLU. `front` may make something else of a wave."""

    def __init__(
        self, dim: int = 256, convs: Sequence[tuple[int, int, int]] = CONVS, in_dim: int = 1,
        front: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.front = front
        sizes = zip([in_dim] + [dim] * (len(convs) - 1), convs, strict=True)
        self.convs = nn.ModuleList(nn.Conv1d(size, dim, kernel, stride, pad) for size, (kernel, stride, pad) in sizes)
        self.norms = nn.ModuleList(ChannelNorm(dim) for _ in convs)

    def forward(self, wavs: Tensor, samples: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(batch, samples), valid ones or None for all -> (batch, frames, dim), valid frames or None.

        With `samples`, what lies behind a clip is zero before every convolution, as it is for a clip alone.
        """
        x, frames = (wavs[:, None], samples) if self.front is None else self._features(wavs, samples)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x)).relu()
            if frames is not None:
                frames = (frames + 2 * conv.padding[0] - conv.kernel_size[0]) // conv.stride[0] + 1
                x = x * (torch.arange(x.shape[2], device=x.device) < frames[:, None])[:, None]
        return x.transpose(1, 2), frames

    def _features(self, wavs: Tensor, samples: Tensor | None) -> tuple[Tensor, Tensor | None]:
        features, frames = self.front(wavs, samples)
        return features.transpose(1, 2), frames


class Network(nn.Module):
    """Encoder and recurrent layers: [z, output of recurrent layer 1, ...], the last of which is called c."""

    def __init__(self, encoder: nn.Module, encoder_dim: int = 256, dim: int = 256, levels: int = 1, kind: str = "LSTM"):
        super().__init__()
        self.encoder, self.encoder_dim, self.dim = encoder, encoder_dim, dim
        inputs = [encoder_dim] + [dim] * (levels - 1)
        self.recurrent = nn.ModuleList(RECURRENT[kind](size, dim, batch_first=True) for size in inputs)

    def forward(self, wavs: Tensor, samples: Tensor | None = None) -> tuple[list[Tensor], Tensor | None]:
        """(batch, samples), valid ones or None for all -> states, each (batch, frames, dim), and valid frames."""
        x, frames = self.encoder(wavs, samples)
        states = [x]
        for layer in self.recurrent:  # looks back only: what follows a clip cannot matter
            x, _ = layer(x)
            states.append(x)
        return states, frames


class Cpc(Frozen):
    """A frozen CPC network. States: z and c; with `all_levels` also what lower recurrent layers say."""

    def __init__(self, name: str, network: Network, revision: str, stride: int = 160, all_levels: bool = False):
        super().__init__()
        self.name, self.network, self.revision, self.stride = name, network, revision, stride
        self.shown = list(range(len(network.recurrent) + 1)) if all_levels else [0, -1]
        self.layers, self.dim = len(self.shown), network.dim
        self.freeze()

    def hidden(self, wavs: Tensor, samples: Tensor) -> Hidden:
        states, frames = self.network(wavs, samples)
        return Hidden(torch.stack([states[n] for n in self.shown]), frames)

    def published(self, wavs: Tensor, samples: Tensor) -> Tensor:
        # lengths play no role there: at its end a short clip sees what the norms and biases make of the padding
        states, _ = self.network(wavs, None)
        return torch.stack([states[n] for n in self.shown])


# ------------------------------------------------------------------------------------------- official checkpoints


def our_name(name: str) -> str:
    """Our name of an official weight: ``gEncoder.conv0.bias`` is ``encoder.convs.0.bias``."""
    name = re.sub(r"^gEncoder\.conv(\d+)\.", r"encoder.convs.\1.", name)
    name = re.sub(r"^gEncoder\.batchNorm(\d+)\.", r"encoder.norms.\1.", name)  # it is called so, but is a ChannelNorm
    return re.sub(r"^gAR\.baseNet\.(\w+)_l(\d+)$", r"recurrent.\2.\1_l0", name)


def _network(config: Settings, path: str | Path) -> Network:
    config.choice("normMode", "layerNorm")
    config.choice("encoder_type", "cpc")
    dim, inner = config.number("hiddenEncoder", 256), config.number("hiddenGar", 256)
    if dim != inner:
        raise CheckpointRefused(f"{path}: z has {dim} dimensions and c has {inner}; states must have one size")
    kind = config.choice("arMode", "LSTM", "GRU", "RNN")
    return Network(Encoder(dim), dim, inner, config.number("nLevelsGRU", 1, most=100), kind)


def read_cpc(path: str | Path, name: str = "modified_cpc") -> Cpc:
    """An official checkpoint of any size (`config` and `weights`). Raises CheckpointRefused for other files."""
    content = read_checkpoint(path)
    with reading(path, name):
        config, weights = part(content, ["config", "weights"], path)
        with torch.device("meta"):  # without memory, until we know that the sizes are those of the weights
            network = _network(Settings(config, path), path)
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        # the published file also holds what the objective needed
        ours = {our: w for theirs, w in weights_of(weights, path).items() if (our := our_name(theirs)) in shapes}
        if shapes == {our: weight.shape for our, weight in ours.items()}:
            network.to_empty(device="cpu")
        return Cpc(name, network, load_published(network, ours, path))


# ---------------------------------------------------------------------------------------------------- phase 1


def others(batch: int, frames: int, count: int, generator: torch.Generator) -> Tensor:
    """(batch, frames, count): for every frame, `count` places in its clip that are not its own."""
    places = torch.randint(frames - 1, (batch, frames, count), generator=generator)
    return places + (places >= torch.arange(frames)[None, :, None])


def compare(guess: Tensor, truth: Tensor, ahead: int, wrong: Tensor) -> Tensor:
    """How well guesses fit: (batch, frames - ahead, 1 + count) inner products, that of the true future first.

    guess: (batch, frames, dim), of frame t + `ahead` made at frame t; truth: (batch, frames, dim);
    wrong: (batch, frames, count), places in the clip to compare with (see `others`).
    """
    batch, frames, _ = truth.shape
    table = guess[:, : frames - ahead] @ truth.transpose(1, 2)  # all pairs at once is faster than picking first
    right = torch.arange(ahead, frames, device=truth.device)[None, :, None].expand(batch, -1, 1)
    return table.gather(2, torch.cat([right, wrong[:, ahead:]], dim=2))


def spectrogram(wav: Tensor) -> Tensor:
    """(samples,) -> (frames every 10 ms, 80): the log-mel picture that goes with scores over time."""
    return MelPairs()(wav[None], None)[0][0].unflatten(1, (2, 80)).flatten(0, 1).cpu()


class CpcObjective(nn.Module):
    """Guess the next `steps` frames from the past, and pick each from among `negatives` other frames of the clip.

    Other frames of the same clip have the same voice and room, so only what is said can tell them apart. Guesses are
    linear in c, as in the first paper; the modified one puts a small transformer there.
    """

    def __init__(self, network: Network, steps: int = 6, negatives: int = 64):
        super().__init__()
        self.network, self.negatives = network, negatives
        self.guess = nn.ModuleList(nn.Linear(network.dim, network.encoder_dim, bias=False) for _ in range(steps))

    def _scores(self, wavs: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Of every step: (batch, frames - step, 1 + negatives)."""
        states, _ = self.network(wavs)
        truth, past = states[0], states[-1]
        wrong = others(*truth.shape[:2], self.negatives, generator).to(wavs.device)
        scale = truth.shape[2] ** -0.5
        steps = min(len(self.guess), truth.shape[1] - 1)
        return [scale * compare(self.guess[n](past), truth, n + 1, wrong) for n in range(steps)]

    def forward(self, wavs: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """wavs: (batch, samples) of equal lengths. Returns the loss (InfoNCE) and what to log.

        `right`: how often the true frame fits best, in percent; chance is 100 / (1 + negatives).
        """
        scores = self._scores(wavs, generator)
        # the true frame is number 0: minus the logarithm of its share
        loss = torch.stack([-score.log_softmax(2)[..., 0].mean() for score in scores]).mean()
        right = torch.cat([(score.argmax(2) == 0).flatten() for score in scores])
        return loss, {"right": 100 * right.float().mean().item()}

    @torch.no_grad()
    def picture(self, wav: Tensor, seed: int = 0) -> dict[str, Tensor]:
        """wav: (samples,) -> {"heard": (frames every 10 ms, 80), "scores": (frames every 20 ms, steps)}.

        "scores" is the probability that was given to the true frame, 1, 2, ... steps ahead of each; 0 where the clip
        was over.
        """
        scores = self._scores(wav[None], torch.Generator().manual_seed(seed))
        found = [score.softmax(2)[0, :, 0].cpu() for score in scores]
        longest = len(found[0]) + 1
        columns = [nn.functional.pad(column, (0, longest - len(column))) for column in found]
        return {"heard": spectrogram(wav), "scores": torch.stack(columns, dim=1)}


def tiny_network(dim: int = 160) -> Network:
    """CPC, shrunk: two recurrent layers of 160, a frame every 20 ms (464,320 parameters).

    The filter bank is given (log-mel), since learning one takes more speech than we have; what is learned in its place
    are two maps of single frames, so that z stays local and the future is not in sight.
    """
    encoder = Encoder(dim, [(1, 1, 0), (1, 1, 0)], MelPairs.dim, MelPairs())
    return Network(encoder, dim, dim, levels=2)


def _tiny(name: str, network: Network, revision: str) -> Cpc:
    return Cpc(name, network, revision, MelPairs.stride, all_levels=True)


PRETEXTS = {"tiny_cpc": Pretext("CPC: tell the future from other moments", tiny_network, CpcObjective, _tiny)}

CARDS = (
    tiny_card(
        "tiny_cpc", PRETEXTS["tiny_cpc"], control="random_gru", family="cpc", input="waveform",
        method="F-C", parameters=464_320, layers=3, dim=160, stride=320,
        notes="tells the future from other moments (arXiv:1807.03748)",
    ),
    Card(
        name="modified_cpc", family="cpc", method="F-C", input="waveform", corpus="LL 60k hr", parameters=1_843_456,
        layers=2, dim=256, stride=160, licence="MIT", source="Libri-Light", read=read_cpc,
        url="https://dl.fbaipublicfiles.com/librilight/CPC_checkpoints/60k_epoch4-d0f474de.pt",
        notes="tells the future from other frames (arXiv:1807.03748, arXiv:2002.02848)",
    ),
)  # fmt: skip
