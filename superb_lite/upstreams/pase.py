"""PASE+: one encoder, many small teachers. Noisy speech goes in, and a dozen questions about the clean one come out.

The waveform passes a bank of band filters (two learned numbers each: where the band begins and how wide it is), seven
convolutions that leave a frame every 10 ms, and a simple recurrent layer; shortcuts add what every stage knows. Then
small *workers* each ask for something: the spectrum, the cepstrum, pitch and loudness, or whether two frames come from
the same recording. They are so small that the answer must be in the encoder's frames, and since the encoder hears a
distorted copy, it learns to see through noise.

Taught in notebooks 01 (pre-train an upstream) and 13 (the contestants).
Source: Ravanelli et al. 2020, "Multi-task self-supervised learning for Robust Speech Recognition", arXiv:2001.09239;
the filters: Ravanelli and Bengio 2018, "SincNet", arXiv:1808.00158; the recurrent layer: Bradbury et al. 2016,
"Quasi-Recurrent Neural Networks", arXiv:1611.01576.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn

from superb_lite.types import RATE, Card, CheckpointRefused, Hidden, SuperbLiteError
from superb_lite.upstreams._fairseq import MOST, weights_of
from superb_lite.upstreams._frozen import Frozen
from superb_lite.upstreams._pretext import Pretext, tiny_card
from superb_lite.upstreams._published import read_checkpoint
from superb_lite.upstreams.apc import filled, looking

# the official sizes, in the words of the official file
OFFICIAL = {
    "kwidths": [251, 20, 11, 11, 11, 11, 11, 11], "strides": [1, 10, 2, 1, 2, 1, 2, 2],
    "fmaps": [64, 64, 128, 128, 256, 256, 512, 512], "rnn_dim": 512, "emb_dim": 256,
}  # fmt: skip
ALWAYS = {"denseskips": True, "norm_out": True, "rnn_pool": True, "rnn_layers": 1}
STRIDE, WINDOW, LONG = 160, 400, 640  # samples: of a frame, and of the windows that workers' questions look at


# ------------------------------------------------------------------------------------ the network


def mirrored(x: Tensor, samples: Tensor, before: int, after: int) -> Tensor:
    """Continue every row of (batch, channels, longest) beyond its own two ends as in a mirror.

    samples: (batch,) valid ones. Returns (batch, channels, before + longest + after); what lies more than `after`
    beyond the end of a row means nothing. This is what makes batches exact: the mirror stands where the clip ends.
    """
    if int(samples.min()) == x.shape[2]:
        return nn.functional.pad(x, (before, after), mode="reflect")
    place = torch.arange(-before, x.shape[2] + after, device=x.device).abs()
    last = samples[:, None] - 1
    place = torch.where(place > last, 2 * last - place, place).clamp(min=0)
    return x.gather(2, place[:, None].expand(-1, x.shape[1], -1))


class BandFilters(nn.Module):
    """A convolution whose kernels are ideal band filters, cut by a Hamming window. (batch, 1, n) -> (batch, bands, n).

    A band begins at 50 Hz + |low_hz_| and is 50 Hz + |band_hz_| wide; at first, bands are spread on the mel scale.
    """

    def __init__(self, bands: int, kernel: int, stride: int = 1):
        super().__init__()
        mel = torch.linspace(*(2595 * math.log10(1 + hertz / 700) for hertz in (30.0, RATE / 2 - 100)), bands + 1)
        hertz = 700 * (10 ** (mel / 2595) - 1)
        self.low_hz_ = nn.Parameter(hertz[:-1, None])
        self.band_hz_ = nn.Parameter(hertz.diff()[:, None])
        self.kernel, self.stride = kernel, stride

    def kernels(self) -> Tensor:
        """(bands, kernel): the difference of two low-pass filters, 1 in the middle."""
        half = self.kernel // 2
        low = 50 + self.low_hz_.abs()
        high = (low + 50 + self.band_hz_.abs()).clamp(50, RATE / 2)
        t = torch.arange(-half, 0, device=low.device) / RATE  # seconds; the other half is the mirror image
        place = torch.linspace(0, self.kernel / 2 - 1, half, device=low.device) / self.kernel
        window = 0.54 - 0.46 * torch.cos(2 * torch.pi * place)
        left = (torch.sin(2 * torch.pi * high * t) - torch.sin(2 * torch.pi * low * t)) / (torch.pi * t) * window
        left = left / (2 * (high - low))
        return torch.cat([left, torch.ones_like(low), left.flip(1)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv1d(x, self.kernels()[:, None], stride=self.stride)


class Block(nn.Module):
    """Mirror the ends, convolve, normalise over the batch, and a ramp with a learned slope below zero."""

    def __init__(self, before: int, maps: int, kernel: int, stride: int):
        super().__init__()
        short = 1 if stride > 1 or kernel % 2 == 0 else 0
        self.pad, self.kernel, self.stride = (kernel // 2 - short, kernel // 2), kernel, stride
        self.conv = BandFilters(maps, kernel, stride) if before == 0 else nn.Conv1d(before, maps, kernel, stride)
        self.norm, self.act = nn.BatchNorm1d(maps), nn.PReLU(maps, init=0.0)

    def forward(self, x: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, before, longest), valid samples -> (batch, maps, fewer), valid ones among those."""
        x = self.act(self.norm(self.conv(mirrored(x, samples, *self.pad))))
        return x, (samples + sum(self.pad) - self.kernel) // self.stride + 1


class QuasiRecurrent(nn.Module):
    """A recurrent layer whose only memory is a running mean: c[t] = f[t] z[t] + (1 - f[t]) c[t-1].

    What to store (z), how much of it (f) and how much to show (o) follow from the present frame and the one before.
    """

    def __init__(self, before: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(2 * before, 3 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, before, frames) -> (batch, dim, frames). A frame depends on earlier ones only."""
        x = x.transpose(1, 2)
        previous = nn.functional.pad(x[:, :-1], (0, 0, 1, 0))
        z, f, o = self.linear(torch.cat([x, previous], dim=2)).chunk(3, dim=2)
        kept, stored = 1 - f.sigmoid(), f.sigmoid() * z.tanh()
        step = 1  # after each round, `stored` sums up twice as many frames: log2(frames) rounds and no loop over time
        while step < x.shape[1]:
            stored = stored + kept * nn.functional.pad(stored[:, :-step], (0, 0, step, 0))
            kept = kept * nn.functional.pad(kept[:, :-step], (0, 0, step, 0))
            step *= 2
        return (o.sigmoid() * stored).transpose(1, 2)


def pooled(x: Tensor, samples: Tensor, frames: Tensor) -> Tensor:
    """(batch, channels, n) -> (batch, channels, most frames): the mean of as many samples as make a frame of each clip.

    samples, frames: (batch,) valid ones, of `x` and of the result. How many make a frame is rounded down for each clip.
    """
    longest, rows = int(frames.max()), []
    for row, many, few in zip(x, samples.tolist(), frames.tolist(), strict=True):
        size = many // few
        rows.append(nn.functional.pad(row[:, : few * size].unflatten(1, (few, size)).mean(2), (0, longest - few)))
    return torch.stack(rows)


class PaseNetwork(nn.Module):
    """Band filters, convolutions, recurrent layer and shortcuts; the arguments are named as in the official file.

    kwidths, strides, fmaps: kernel, stride and channels of every block, the band filters first; rnn_dim: of the
    recurrent layer; emb_dim: of the frames that come out.
    """

    def __init__(
        self, kwidths: Sequence[int], strides: Sequence[int], fmaps: Sequence[int], rnn_dim: int, emb_dim: int
    ):
        super().__init__()
        sizes = zip([0, *fmaps[:-1]], fmaps, kwidths, strides, strict=True)
        self.blocks = nn.ModuleList(Block(*size) for size in sizes)
        self.denseskips = nn.ModuleList(nn.Conv1d(maps, emb_dim, 1, bias=False) for maps in fmaps[:-1])
        self.rnn = QuasiRecurrent(fmaps[-1], rnn_dim)
        self.W = nn.Conv1d(rnn_dim, emb_dim, 1)
        self.norm_out = nn.BatchNorm1d(emb_dim, affine=False)
        self.stride, self.dim = math.prod(strides), emb_dim

    def forward(self, wavs: Tensor, samples: Tensor) -> tuple[list[Tensor], Tensor]:
        """wavs: (batch, samples), samples: (batch,) valid ones -> states (batch, frames, emb_dim) each, valid frames.

        States: the shortcut of every block but the last, what the recurrent layer says, and the normalised sum of all.
        """
        x, valid, seen = wavs[:, None], samples, []
        for block in self.blocks:
            x, valid = block(x, valid)
            seen.append((x, valid))
        # a shortcut is linear: the mean before it is the same as after it, and much cheaper
        states = [skip(pooled(*found, valid)) for skip, found in zip(self.denseskips, seen[:-1], strict=True)]
        states.append(self.W(self.rnn(x[..., : int(valid.max())])))
        states.append(self.norm_out(torch.stack(states).sum(0)))
        return [state.transpose(1, 2) for state in states], valid


def tiny_network(dim: int = 128) -> PaseNetwork:
    """The official shape with 32 to 96 channels: 0.5 M parameters, nine states of 128 dimensions every 10 ms.

    It keeps the front end on the waveform, unlike our other tiny networks: band filters *are* PASE's idea, and with two
    numbers to learn for each, spread on the mel scale from the start, they can do with little speech. A band is looked
    at every fifth sample, where the official network looks at every one: five times cheaper.
    """
    fmaps, kwidths = [32, 32, 48, 48, 64, 64, 96, 96], [*OFFICIAL["kwidths"]]
    kwidths[1] = 8  # it sees as far as the official 20 samples
    return PaseNetwork(kwidths, (5, 2, *OFFICIAL["strides"][2:]), fmaps, rnn_dim=dim, emb_dim=dim)


class Pase(Frozen):
    """A frozen PASE+; for its states see `PaseNetwork.forward`. Each clip is mirrored at its own end."""

    def __init__(self, name: str, network: PaseNetwork, revision: str):
        super().__init__()
        self.name, self.network, self.revision = name, network, revision
        self.layers, self.dim, self.stride = len(network.blocks) + 1, network.dim, network.stride
        self.freeze()

    def hidden(self, wavs: Tensor, samples: Tensor) -> Hidden:
        states, frames = self.network(wavs, samples)
        return Hidden(torch.stack(states), frames)

    def published(self, wavs: Tensor, samples: Tensor) -> Tensor:
        # the quirk: the zeros behind a clip are heard as if they were part of it, mirror at the far end and all
        return torch.stack(self.network(wavs, torch.full_like(samples, wavs.shape[1]))[0])


# ------------------------------------------------------------------------------------ the objective


def frames_of(wavs: Tensor, length: int) -> Tensor:
    """(batch, samples) -> (batch, frames, length): windows around the middles of the 160 samples of every frame."""
    edge = (length - STRIDE) // 2
    return nn.functional.pad(wavs, (edge, edge), mode="reflect").unfold(1, length, STRIDE)


def prosody(wavs: Tensor) -> Tensor:
    """(batch, samples) -> (batch, frames, 4): log energy, share of zero crossings, periodicity, log pitch.

    Periodicity is the highest autocorrelation at the distance of a pitch of 60 to 400 Hz, relative to the energy; the
    pitch is counted by how periodic the frame is, as a hiss has none.
    """
    windows = frames_of(wavs, LONG)
    crossings = (windows[..., 1:] * windows[..., :-1] < 0).float().mean(-1)
    correlation = torch.fft.irfft(torch.fft.rfft(windows, n=2 * LONG).abs().square())
    energy = correlation[..., 0] + 1e-6
    first = RATE // 400
    periodic, lag = (correlation[..., first : RATE // 60] / energy[..., None]).max(-1)
    return torch.stack([energy.log(), crossings, periodic, periodic * (RATE / (lag + first) / 150).log()], dim=-1)


def questions(wavs: Tensor) -> dict[str, Tensor]:
    """What the regression workers are asked for, (batch, frames, size) each, zero mean and unit variance over all."""
    windows = frames_of(wavs, WINDOW) * torch.hann_window(WINDOW, device=wavs.device)
    power = torch.fft.rfft(windows, n=512).abs().square() + 1e-6
    bank = torchaudio.functional.melscale_fbanks(257, 20.0, RATE / 2, 40, RATE).to(wavs.device)
    cosines = torchaudio.functional.create_dct(20, 40, "ortho").to(wavs.device)
    cepstrum = (power @ bank).log() @ cosines
    change = torchaudio.functional.compute_deltas(cepstrum.transpose(1, 2), win_length=9).transpose(1, 2)
    asked = {"spectrum": power.log(), "cepstrum": cepstrum, "change": change, "prosody": prosody(wavs)}
    return {name: (x - x.mean((0, 1))) / (x.std((0, 1)) + 1e-5) for name, x in asked.items()}


def distort(wavs: Tensor, generator: torch.Generator) -> Tensor:
    """What the encoder hears of (batch, samples): each clip by chance in a room, with noise, with a gap, with somebody
    else talking (the neighbour in the batch), or cut off at its peaks."""

    def dice(shape: Sequence[int] = (len(wavs), 1)) -> Tensor:
        return torch.rand(shape, generator=generator).to(wavs.device)

    loud = wavs.std(1, keepdim=True)
    time = torch.arange(RATE // 4, device=wavs.device) / RATE
    echo = (2 * dice((len(wavs), len(time))) - 1) * 0.3 * torch.exp(-time / (0.02 + 0.08 * dice()))
    echo = torch.where(time == 0, 1.0, echo * (dice() < 0.5))
    x = torchaudio.functional.fftconvolve(wavs, echo)[:, : wavs.shape[1]]
    noise = torch.randn(wavs.shape, generator=generator).to(wavs.device)
    x = x + (dice() < 0.4) * loud * 10 ** -dice() * noise  # 0 to 20 dB below the speech
    x = x + (dice() < 0.1) * 0.5 * wavs.roll(1, 0)
    since = torch.arange(wavs.shape[1], device=wavs.device) / wavs.shape[1] - dice()
    x = x * ~((dice() < 0.2) & (since > 0) & (since < 0.15 * dice()))
    peak = torch.where(dice() < 0.2, loud * (1 + 2 * dice()), torch.inf)
    return torch.minimum(torch.maximum(x, -peak), peak)


class PaseObjective(nn.Module):
    """Four regression workers and two that tell right from wrong, all of one hidden layer; the loss is their mean.

    ``spectrum``, ``cepstrum``, ``change`` (the slope of the cepstrum), ``prosody``: see `questions`; squared error.
    ``local``: does this frame belong to the same recording as that one? ``whole``: does this stretch (its mean) belong
    with that one? The wrong partner is the next recording in the batch. The paper has twelve workers; six are enough
    to show the idea.
    """

    def __init__(self, network: PaseNetwork, width: int = 128):
        super().__init__()
        self.network = network

        def worker(before: int, after: int) -> nn.Module:
            return nn.Sequential(nn.Linear(before, width), nn.PReLU(), nn.Linear(width, after))

        sizes = {"spectrum": 257, "cepstrum": 20, "change": 20, "prosody": 4}
        self.regress = nn.ModuleDict({name: worker(network.dim, size) for name, size in sizes.items()})
        self.match = nn.ModuleDict({name: worker(2 * network.dim, 1) for name in ("local", "whole")})

    def encode(self, wavs: Tensor) -> Tensor:
        """(batch, samples) of equal lengths -> the last state, (batch, frames, dim)."""
        return self.network(wavs, torch.full((len(wavs),), wavs.shape[1], device=wavs.device))[0][-1]

    def pairs(self, x: Tensor, generator: torch.Generator) -> dict[str, tuple[Tensor, Tensor]]:
        """(batch, frames, dim) -> for both matching workers, this and that (..., dim) of the same recordings."""
        frames = x.shape[1]
        other = torch.randperm(frames, generator=generator).to(x.device)
        cut = int(torch.randint(frames // 4, 3 * frames // 4 + 1, (), generator=generator))
        return {"local": (x, x[:, other]), "whole": (x[:, :cut].mean(1), x[:, cut:].mean(1))}

    def forward(self, wavs: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """wavs: (batch, samples) of equal lengths, at least two; generator: draws distortions and pairs.

        Returns the loss and every worker's own. Raises SuperbLiteError for a single clip: there is no wrong partner.
        """
        if len(wavs) < 2:
            raise SuperbLiteError(f"PASE+ got {len(wavs)} clip to learn from; expected at least 2, of different people")
        x, errors = self.encode(distort(wavs, generator)), {}
        for name, wanted in questions(wavs).items():
            frames = min(x.shape[1], wanted.shape[1])
            errors[name] = nn.functional.mse_loss(self.regress[name](x[:, :frames]), wanted[:, :frames])
        for name, (this, that) in self.pairs(x, generator).items():
            right, wrong = (self.match[name](torch.cat([this, y], dim=-1)) for y in (that, that.roll(1, 0)))
            errors[name] = (nn.functional.softplus(-right) + nn.functional.softplus(wrong)).mean() / 2
        return torch.stack(list(errors.values())).mean(), {name: float(e.detach()) for name, e in errors.items()}

    def picture(self, wav: Tensor, seed: int = 0) -> dict[str, Tensor]:
        """(samples,) -> log power spectra (frames, 257), normalised over the clip: ``heard`` is clean, ``hidden`` what
        the network got to hear, and ``rebuilt`` what its worker made of it. `seed` decides how it was distorted."""
        with looking(self):
            noisy = distort(wav[None], torch.Generator().manual_seed(seed))
            rebuilt = self.regress["spectrum"](self.encode(noisy))
            shown = {name: questions(x)["spectrum"] for name, x in (("heard", wav[None]), ("hidden", noisy))}
            frames = min(rebuilt.shape[1], shown["heard"].shape[1])
            return {name: x[0, :frames].cpu() for name, x in (shown | {"rebuilt": rebuilt}).items()}


# ------------------------------------------------------------------------------------ builders and cards


def _sizes(path: Path, model_config: str | Path | None) -> dict[str, Any]:
    """What the second official file says: that of `model_config`, or one beside `path`, or else the official sizes."""
    beside = [path.with_name(name) for name in ("model_config.cfg", "PASE+.cfg")]
    files = [Path(model_config)] if model_config is not None else [file for file in beside if file.is_file()]
    if not files:
        return OFFICIAL
    try:
        told = json.loads(files[0].read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointRefused(f"{files[0]}: no settings of PASE+ ({error}); it should be a JSON file") from None
    if not isinstance(told, Mapping) or any(told.get(name) != value for name, value in ALWAYS.items()):
        raise CheckpointRefused(f"{files[0]}: no settings of PASE+, expected a dictionary with {ALWAYS}")
    sizes = {name: told.get(name, OFFICIAL[name]) for name in OFFICIAL}  # the official file leaves emb_dim out
    for name, value in sizes.items():
        numbers = value if isinstance(OFFICIAL[name], list) and isinstance(value, list) else [value]
        if not all(isinstance(n, int) and 1 <= n <= MOST for n in numbers) or len(numbers) > 100:
            raise CheckpointRefused(f"{files[0]}: {name} is {value!r}, expected whole numbers from 1 to {MOST}")
    return sizes


def read_pase_plus(path: str | Path, model_config: str | Path | None = None) -> Pase:
    """An official PASE+ file: the weights, bare or under ``state_dict``. Its sizes are in a second, JSON file.

    model_config: that file; if None, a ``model_config.cfg`` or ``PASE+.cfg`` beside the weights, or else the official
    sizes are taken. Raises CheckpointRefused naming the file that is wrong.
    """
    content = read_checkpoint(path)
    weights = weights_of(content.get("state_dict", content), path)
    weights = {name.replace("rnn.layers.0.", "rnn."): value for name, value in weights.items()}
    sizes = _sizes(Path(path), model_config)
    return Pase("pase_plus", *filled(lambda: PaseNetwork(**sizes), weights, path))


PRETEXTS = {"tiny_pase": Pretext("PASE+: several small questions about one clip", tiny_network, PaseObjective, Pase)}

CARDS = (
    tiny_card(
        "tiny_pase", PRETEXTS["tiny_pase"], control="random_conv", family="pase", input="waveform",
        method="multi-task", parameters=439_968, layers=9, dim=128, stride=160,
        notes="six small questions about distorted speech (arXiv:2001.09239)",
    ),
    Card(
        name="pase_plus", family="pase", method="multi-task", input="waveform", corpus="LS 50 hr", parameters=7_832_896,
        layers=9, dim=256, stride=160, licence="MIT", source="arXiv:2001.09239", read=read_pase_plus,
        url="https://www.dropbox.com/s/p8811o7eadv4pat/FE_e199.ckpt?dl=1",
        notes="twelve workers ask it about clean speech while it hears distorted speech",
    ),
)  # fmt: skip
