"""APC: listen to speech up to now and say how it will sound in a moment. VQ-APC: say it with few words.

Three recurrent layers read a log-mel spectrogram from left to right; from the last one, a linear map guesses the frame
that comes some steps later. Nobody can look into the future, so nothing has to be hidden. VQ-APC sends what it knows
through a codebook before it guesses: each frame has to choose one of a few hundred vectors.

The normalised spectrogram, the codebook and the reader of the toolkit's files are shared with NPC and DeCoAR 2.0.

Taught in notebooks 01 (pre-train an upstream) and 13 (the contestants).
Source: Chung et al. 2019, "An Unsupervised Autoregressive Model for Speech Representation Learning", arXiv:1904.03240;
Chung et al. 2020, "Vector-Quantized Autoregressive Predictive Coding", arXiv:2005.08392.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn

from superb_lite.types import RATE, Card, CheckpointRefused, Hidden
from superb_lite.upstreams._fairseq import MOST_LAYERS, Settings, weights_of
from superb_lite.upstreams._frozen import Frozen
from superb_lite.upstreams._pretext import Pretext, control_card, tiny_card
from superb_lite.upstreams._published import load_published, part, read_checkpoint
from superb_lite.upstreams.fbank import cmvn

BANDS = 80  # mel bands of a frame
# the only way of hearing that files of this toolkit use
AUDIO = {"feat_type": "fbank", "feat_dim": BANDS, "frame_length": 25, "frame_shift": 10, "cmvn": True}
PLACE = "https://huggingface.co/leo19941227/apc_series/resolve/e539bde29714108651296642ad94681a9594f149/"


# ------------------------------------------------------------------------------------ shared: what is heard


def clean_mel(wav: Tensor) -> Tensor:
    """(samples,) in -1..1 -> (frames, 80): log-mel energies, zero mean and unit variance over the clip in every band.

    25 ms Hamming windows every 10 ms, so frames = 1 + (samples - 400) // 160; else as `fbank.log_mel`.
    """
    windows = wav.unfold(0, 400, 160)
    windows = windows - windows.mean(1, keepdim=True)
    windows = windows - 0.97 * torch.cat([windows[:, :1], windows[:, :-1]], dim=1)  # pre-emphasis
    windows = windows * torch.hamming_window(400, periodic=False, device=wav.device)
    # In single precision the rounding of loud bands drowns silent ones, otherwise on every processor
    precise = torch.float32 if wav.device.type == "mps" else torch.float64
    spectrum = torch.fft.rfft(windows.to(precise), n=512)
    power = torch.view_as_real(spectrum).square().sum(-1).to(wav.dtype)
    banks, _ = torchaudio.compliance.kaldi.get_mel_banks(BANDS, 512, float(RATE), 20.0, 0.0, 100.0, -500.0, 1.0)
    energies = power[:, :256] @ banks.T.to(wav)
    return cmvn(energies.clamp(min=torch.finfo(torch.float32).eps).log())


def clean_mels(wavs: Tensor, samples: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`clean_mel` of every clip, each by itself: padding must not enter the mean.

    wavs: (batch, samples) zero-padded; samples: (batch,) valid ones, or None for all.
    Returns the features (batch, frames, 80), zero beyond the end of a clip, and the valid frames (batch,).
    """
    valid = [wavs.shape[1]] * len(wavs) if samples is None else samples.tolist()
    mels = [clean_mel(wav[:n]) for wav, n in zip(wavs, valid, strict=True)]
    frames = torch.tensor([len(mel) for mel in mels], device=wavs.device)
    return nn.utils.rnn.pad_sequence(mels, batch_first=True), frames


def inside(frames: Tensor, longest: int) -> Tensor:
    """(batch,) valid frames -> (batch, longest, 1), 1.0 inside a clip and 0.0 beyond its end."""
    return (torch.arange(longest, device=frames.device) < frames[:, None])[..., None].float()


# ------------------------------------------------------------------------------------ shared: the codebook


class Codebook(nn.Module):
    """Replaces a vector by one of `codes` learned ones; which one, a linear map decides.

    To learn, the choice is made by dice that favour likely codes (Gumbel noise), and the gradient passes as if the
    softmax had been used in place of the choice. Without dice, the likeliest code is taken.
    The names of the two maps are those of the official files.
    """

    def __init__(self, dim: int, codes: int, temperature: float = 1.0):
        super().__init__()
        self.dim, self.temperature = dim, temperature
        self.vq_logits = nn.Linear(dim, codes)
        nn.init.normal_(self.vq_logits.weight)  # scores far apart, or the dice decide and nothing is learned
        self.codebook_CxE = nn.Linear(codes, dim, bias=False)  # code n is column n of its weight

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(batch, frames, dim) -> the chosen vectors, of the same shape, and how often each code is wanted (codes,)."""
        logits = self.vq_logits(x)
        wanted = logits.softmax(-1).flatten(0, -2).mean(0)
        if generator is None:
            return self.codebook_CxE(nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(x.dtype)), wanted
        waits = torch.empty(logits.shape).exponential_(generator=generator).to(x.device)
        soft = ((logits - waits.log()) / self.temperature).softmax(-1)
        hard = nn.functional.one_hot(soft.argmax(-1), logits.shape[-1]).to(x.dtype)
        return self.codebook_CxE(hard + soft - soft.detach()), wanted


def quantise(books: Sequence[Codebook], x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Cut (batch, frames, dim) into as many parts as there are codebooks and replace each by a code of its book.

    Returns the vectors and the number of codes in use, a mean over the books (the exponential of the entropy: 1 if
    always the same is wanted, the size of the book if all are wanted equally). Without books, x comes back.
    """
    if len(books) == 0:
        return x, torch.ones((), device=x.device)
    pieces = x.split([book.dim for book in books], dim=-1)
    found = [book(piece, generator) for book, piece in zip(books, pieces, strict=True)]
    used = [torch.exp(-(wanted * (wanted + 1e-9).log()).sum()) for _, wanted in found]
    return torch.cat([vectors for vectors, _ in found], dim=-1), torch.stack(used).mean()


@contextmanager
def looking(objective: nn.Module) -> Iterator[None]:
    """To draw a picture: without gradients and in eval mode, so that batch norms learn nothing from it."""
    training = objective.training
    try:
        with torch.no_grad():
            yield objective.eval()
    finally:
        objective.train(training)


# ------------------------------------------------------------------------------------ shared: official files


def read_toolkit(path: str | Path, always: Mapping[str, Any]) -> tuple[Settings, dict[str, Tensor]]:
    """Settings and weights of an official file of APC, VQ-APC or NPC, which share a container.

    always: settings with the one value that our networks know. Dropout is for training and not asked for.
    Raises CheckpointRefused naming the file.
    """
    config, weights = part(read_checkpoint(path), ("config", "model"), path)
    try:
        paras, audio = dict(config["model"]["paras"]), dict(config["data"]["audio"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointRefused(f"{path}: its config lacks model.paras or data.audio; is it of another?") from None
    expected = {**AUDIO, **always}
    other = {name: value for name, value in {**audio, **paras}.items() if value != expected.get(name, value)}
    if other:
        ours = {name: expected[name] for name in other}
        raise CheckpointRefused(f"{path}: is of a variant that was never published, {other}; expected {ours}")
    return Settings(paras, path), weights_of(weights, path)


def filled(make: Callable[[], nn.Module], weights: Mapping[str, Tensor], path: str | Path) -> tuple[nn.Module, str]:
    """The network that `make` makes, with these weights, and the revision of the file.

    It gets memory only if it has the shapes of the weights, so that absurd sizes in a file cost nothing.
    Raises CheckpointRefused naming the file.
    """
    try:
        with torch.device("meta"):
            network = make()
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
        raise CheckpointRefused(f"{path}: no network has the sizes that it tells ({error}); is it broken?") from None
    ours = {name: value.shape for name, value in network.state_dict().items()}
    if ours == {name: value.shape for name, value in weights.items()}:
        network.to_empty(device="cpu")
    return network, load_published(network, weights, path)  # which says what is missing, extra or of another shape


def codebooks(vq: Mapping[str, Any]) -> list[Codebook]:
    """The codebooks that the ``vq`` part of a configuration describes."""
    pairs = zip(vq["code_dim"], vq["codebook_size"], strict=True)
    return [Codebook(dim, codes, vq["gumbel_temperature"]) for dim, codes in pairs]


# ------------------------------------------------------------------------------------ the network


class ApcNetwork(nn.Module):
    """GRU layers; from the second on, a layer adds to what came in. Modules are named as in the official files.

    dim: of every layer; layers: how many; books: codebooks whose dimensions sum up to `dim`, none for plain APC.
    """

    def __init__(self, dim: int = 512, layers: int = 3, books: Sequence[Codebook] = ()):
        super().__init__()
        self.dim = dim
        self.rnn_layers = nn.ModuleList(
            nn.GRU(dim if layer else BANDS, dim, batch_first=True) for layer in range(layers)
        )
        self.vq_layers = nn.ModuleList(books)
        self.postnet = nn.Linear(dim, BANDS)

    def forward(self, mels: Tensor) -> list[Tensor]:
        """(batch, frames, 80) -> what every layer says, (batch, frames, dim) each."""
        x, _ = self.rnn_layers[0](mels)
        states = [x]
        for rnn in self.rnn_layers[1:]:
            x = x + rnn(x)[0]
            states.append(x)
        return states


def tiny_network(dim: int = 176, codes: int = 0) -> ApcNetwork:
    """Three layers of 176 dimensions, 0.5 M parameters. VQ-APC has `codes` of them, 128 in our tiny one."""
    return ApcNetwork(dim, 3, [Codebook(dim, codes, 0.5)] if codes else ())


class Apc(Frozen):
    """A frozen APC or VQ-APC: its states are the outputs of the recurrent layers, before the codebook.

    The network looks back only, so what follows a clip cannot change it, and padded frames are zero: here the official
    toolkit is exact per clip too. (It knows three layers only; ours shows as many as there are.)
    """

    stride = 160

    def __init__(self, name: str, network: ApcNetwork, revision: str):
        super().__init__()
        self.name, self.network, self.revision = name, network, revision
        self.layers, self.dim = len(network.rnn_layers), network.dim
        self.freeze()

    def hidden(self, wavs: Tensor, samples: Tensor) -> Hidden:
        mels, frames = clean_mels(wavs, samples)
        return Hidden(torch.stack(self.network(mels)) * inside(frames, mels.shape[1]), frames)


class ApcObjective(nn.Module):
    """Guess the frame `ahead` steps (of 10 ms) later; the loss is the mean absolute error.

    One step ahead would be too easy, since windows of 25 ms overlap; the official models look 5 steps ahead.
    """

    def __init__(self, network: ApcNetwork, ahead: int = 5):
        super().__init__()
        self.network, self.ahead = network, ahead

    def guess(self, mels: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """(batch, frames, 80) -> for every frame, how the one `ahead` later will be; and the codes in use."""
        chosen, used = quantise(self.network.vq_layers, self.network(mels)[-1], generator)
        return self.network.postnet(chosen), used

    def forward(self, wavs: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """wavs: (batch, samples) of equal lengths; generator: draws codes. Returns the loss and what to log.

        Logged: ``of_copying``, the error in percent of that of saying "it stays as it is"; ``codes`` in use.
        """
        mels, _ = clean_mels(wavs)
        now, later = mels[:, : -self.ahead], mels[:, self.ahead :]
        guess, used = self.guess(now, generator)
        loss = nn.functional.l1_loss(guess, later)
        copying = nn.functional.l1_loss(now, later)
        seen = {"of_copying": 100 * float(loss.detach() / copying)}
        return loss, seen | ({"codes": float(used.detach())} if len(self.network.vq_layers) else {})

    def picture(self, wav: Tensor) -> dict[str, Tensor]:
        """(samples,) -> spectrograms (frames, 80): every row of ``rebuilt`` was guessed when the row of ``heard`` that
        is `ahead` earlier was the last that was known. (The first `ahead` frames, of which nothing is known, are not
        shown.)"""
        with looking(self):
            mels, _ = clean_mels(wav[None])
            guess, _ = self.guess(mels[:, : -self.ahead], None)
            return {"heard": mels[0, self.ahead :].cpu(), "rebuilt": guess[0].cpu()}


# ------------------------------------------------------------------------------------ builders and cards


def _read(name: str, path: str | Path) -> Apc:
    sizes, weights = read_toolkit(path, {"residual": True})
    vq = sizes.values.get("vq")
    if (vq is not None) != (name == "vq_apc"):
        other = "vq_apc" if name == "apc" else "apc"
        raise CheckpointRefused(f"{path}: is of {other}, expected {name}; load it under the name {other}")
    dim, layers = sizes.number("hidden_size", 512), sizes.number("num_layers", 3, MOST_LAYERS)
    return Apc(name, *filled(lambda: ApcNetwork(dim, layers, () if vq is None else codebooks(vq)), weights, path))


def read_apc(path: str | Path) -> Apc:
    """An official APC file (``config`` and ``model``), of any size. Raises CheckpointRefused naming it."""
    return _read("apc", path)


def read_vq_apc(path: str | Path) -> Apc:
    """An official VQ-APC file, of any size. Raises CheckpointRefused naming it."""
    return _read("vq_apc", path)


_card = partial(
    Card, family="apc", input="FBANK", corpus="LS 360 hr", layers=3, dim=512, stride=160,
    licence="none stated for the weights (toolkit: Apache-2.0)",
)  # fmt: skip

PRETEXTS = {
    "tiny_apc": Pretext("APC: say how it sounds 50 ms later", tiny_network, ApcObjective, Apc),
    "tiny_vq_apc": Pretext("VQ-APC: the same through 128 codes", partial(tiny_network, codes=128), ApcObjective, Apc),
}

SIZE = {"family": "apc", "layers": 3, "dim": 176, "stride": 160}

CARDS = (
    control_card(
        "random_gru", PRETEXTS["tiny_apc"], **SIZE, input="FBANK", parameters=524_208,
        notes="the control of the recurrent families: three untrained recurrent layers over log-mel",
    ),
    tiny_card(
        "tiny_apc", PRETEXTS["tiny_apc"], control="random_gru", family="apc", input="FBANK",
        method="F-G", parameters=524_208, layers=3, dim=176, stride=160,
        notes="guesses the frame 50 ms ahead (arXiv:1904.03240)",
    ),
    tiny_card(
        "tiny_vq_apc", PRETEXTS["tiny_vq_apc"], control="random_gru", family="apc", input="FBANK",
        method="F-G + VQ", parameters=569_392, layers=3, dim=176, stride=160,
        notes="APC that has to choose one of 128 codes before it guesses (arXiv:2005.08392)",
    ),
    _card(
        name="apc", method="F-G", parameters=4_105_296, read=read_apc, source="arXiv:1904.03240, weights by s3prl",
        url=PLACE + "apc_360hr.ckpt", sha256="cee536c2c06f25e6348ba1330cca114c46c62a4fc692d0cbe6470c68ae2e6260",
        notes="guesses the frame 50 ms ahead",
    ),
    _card(
        name="vq_apc", method="F-G + VQ", parameters=4_630_096, read=read_vq_apc,
        source="arXiv:2005.08392, weights by s3prl", url=PLACE + "vq_apc_360hr.ckpt",
        sha256="0641964b801f1687630c7bcd16ff61a6ca5d7e185ea8ebda4634f00e805acb00",
        notes="APC that has to choose one of 512 codes before it guesses; states are taken before the choice",
    ),
)  # fmt: skip
