"""wav2vec and vq-wav2vec: hear the past, and tell for each future frame whether it is true or false.

Convolutions only. An extractor makes a frame z every 10 ms of the waveform, an aggregator sums up what was heard so far
in c, and a linear map of c per step ahead is compared with the true frame and with frames of other times of the clip.
vq-wav2vec puts a code book between the two: z is replaced by the nearest of a few vectors, as if speech had letters.

Taught in notebooks 01 (pre-train an upstream: tell true from false) and 13 (the contestants).
Sources: Schneider et al. 2019, "wav2vec", arXiv:1904.05862; Baevski et al. 2020, "vq-wav2vec", arXiv:1910.05453;
superb/protocol.md section 2.3 for the states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from superb_lite.types import Card, CheckpointRefused, Hidden, SuperbLiteError
from superb_lite.upstreams._fairseq import Settings, build, rename, weights_of
from superb_lite.upstreams._frozen import Frozen
from superb_lite.upstreams._pretext import Pretext, control_card, tiny_card
from superb_lite.upstreams._published import part, read_checkpoint
from superb_lite.upstreams.cpc import compare, others, spectrogram
from superb_lite.upstreams.mockingjay import MelPairs, reading

Convs = Sequence[tuple[int, int, int]]  # (channels, kernel, stride)
EXTRACTOR: Convs = ((512, 10, 5), (512, 8, 4), (512, 4, 2), (512, 4, 2), (512, 4, 2), (512, 1, 1), (512, 1, 1))
AGGREGATOR: Convs = tuple((512, kernel, 1) for kernel in range(2, 14))

# ------------------------------------------------------------------------------------------------- the network


def norm_clips(norm: nn.GroupNorm, x: Tensor, frames: Tensor | None) -> Tensor:
    """Group norm of (batch, channels, frames). Its mean and variance run over time: each clip has to have its own.

    frames: (batch,) valid ones, beyond which there are zeros afterwards; None: all, as in the official code, where
    the padding of a short clip changes all of its frames.
    """
    if frames is None:
        return norm(x)
    clips = [norm(clip[None, :, :n])[0] for clip, n in zip(x, frames.tolist(), strict=True)]
    return torch.stack([nn.functional.pad(clip, (0, x.shape[2] - clip.shape[1])) for clip in clips])


class Extractor(nn.Module):
    """Waveforms to z. `front` may make something else of a wave first: frames of `in_dim` numbers."""

    def __init__(
        self, convs: Convs = EXTRACTOR, activation: nn.Module | None = None, compress: bool = True,
        affine: bool = True, in_dim: int = 1, front: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.front, self.compress = front, compress
        self.activation = nn.ReLU() if activation is None else activation
        sizes = [in_dim] + [channels for channels, _, _ in convs]
        self.convs = nn.ModuleList(
            nn.Conv1d(size, channels, kernel, stride, bias=False)
            for size, (channels, kernel, stride) in zip(sizes[:-1], convs, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, channels, affine=affine) for channels in sizes[1:])
        self.dim = sizes[-1]

    def forward(self, wavs: Tensor, samples: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(batch, samples), valid ones or None for all -> z (batch, dim, frames), valid frames or None."""
        x, frames = wavs[:, None], samples
        if self.front is not None:
            x, frames = self.front(wavs, samples)
            x = x.transpose(1, 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x)
            if frames is not None:
                frames = (frames - conv.kernel_size[0]) // conv.stride[0] + 1
            x = self.activation(norm_clips(norm, x, frames))
        return (x.abs().log1p() if self.compress else x), frames

    @property
    def ahead(self) -> int:
        """How many frames on the first frame is that has no sample in common with this one: 3, of 10 ms, officially."""
        if self.front is not None:
            return self.front.ahead
        reach, step = 1, 1
        for conv in self.convs:
            reach, step = reach + (conv.kernel_size[0] - 1) * step, step * conv.stride[0]
        return math.ceil(reach / step)


class Aggregator(nn.Module):
    """z to c: convolutions that look back only, each with a shortcut around it. A clip's first frame is repeated
    before its start."""

    def __init__(
        self, convs: Convs = AGGREGATOR, in_dim: int = 512, activation: nn.Module | None = None, bias: bool = True,
        affine: bool = True, skip: bool = True, scale: float = 0.5, zero_pad: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.skip, self.scale, self.zero_pad = skip, math.sqrt(scale), zero_pad
        self.activation = nn.ReLU() if activation is None else activation
        sizes = [in_dim] + [channels for channels, _, _ in convs]
        pairs = zip(sizes[:-1], convs, strict=True)
        self.convs = nn.ModuleList(nn.Conv1d(size, n, kernel, bias=bias) for size, (n, kernel, _) in pairs)
        self.norms = nn.ModuleList(nn.GroupNorm(1, n, affine=affine) for n in sizes[1:])
        self.dim = sizes[-1]

    def forward(self, x: Tensor, frames: Tensor | None) -> list[Tensor]:
        """z (batch, dim, frames), valid frames or None for all -> what each convolution says, shortcut included."""
        states = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            back = (conv.kernel_size[0] - 1, 0)
            padded = nn.functional.pad(x, back) if self.zero_pad else nn.functional.pad(x, back, mode="replicate")
            out = self.activation(norm_clips(norm, conv(padded), frames))
            x = (out + x) * self.scale if self.skip else out
            states.append(x)
        return states


class GumbelQuantizer(nn.Module):
    """Code books: in each group, a frame chooses one of `codes` vectors by the largest of as many scores.

    A choice has no gradient. In training the scores get Gumbel noise, the gradient is that of their softmax at
    `temperature`, and the value that of the choice.
    """

    def __init__(
        self, dim: int = 512, codes: int = 320, groups: int = 2, depth: int = 2, shared: bool = False,
        activation: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.codes, self.groups = codes, groups
        activation = nn.ReLU() if activation is None else activation
        # signs matter: vectors that all point the same way are hard to tell apart by inner products
        self.vars = nn.Parameter(2 * torch.rand(1, codes * (1 if shared else groups), dim // groups) - 1)
        sizes = [dim] + [2 * dim] * (depth - 1)
        hidden = [nn.Sequential(nn.Linear(a, b), activation) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        self.weight_proj = nn.Sequential(*hidden, nn.Linear(sizes[-1], groups * codes))
        nn.init.normal_(self.weight_proj[-1].weight)  # scores far apart, or the noise decides

    def scores(self, z: Tensor) -> Tensor:
        """z (batch, dim, frames) -> (batch, frames, groups, codes)"""
        return self.weight_proj(z.transpose(1, 2)).unflatten(2, (self.groups, self.codes))

    def choose(self, z: Tensor) -> Tensor:
        """z (batch, dim, frames) -> the chosen codes, (batch, frames, groups)"""
        return self.scores(z).argmax(3)

    def _vectors(self, chosen: Tensor) -> Tensor:
        """(batch, frames, groups, codes), shares of codes -> (batch, dim, frames)"""
        books = self.vars[0].unflatten(0, (-1, self.codes)).expand(self.groups, -1, -1)
        return torch.einsum("btgn,gnd->btgd", chosen, books).flatten(2).transpose(1, 2)

    def forward(self, z: Tensor, frames: Tensor | None = None) -> Tensor:
        return self._vectors(nn.functional.one_hot(self.choose(z), self.codes).to(z.dtype))

    def sample(self, z: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (batch, dim, frames) that pass gradients on; how often each code was chosen, and should have been
        by the scores without noise (groups, codes)."""
        scores = self.scores(z)
        dice = torch.rand(scores.shape, generator=generator).clamp(1e-9, 1 - 1e-7).to(z.device)
        soft = ((scores - (-dice.log()).log()) / temperature).softmax(3)
        hard = nn.functional.one_hot(soft.argmax(3), self.codes).to(z.dtype)
        vectors = self._vectors(hard + soft - soft.detach())
        return vectors, hard.flatten(0, 1).mean(0), scores.softmax(3).flatten(0, 1).mean(0)


class KmeansQuantizer(nn.Module):
    """Code books again: in each group, a frame becomes the nearest of `codes` vectors. Read from files, not trained."""

    def __init__(self, dim: int = 512, codes: int = 320, groups: int = 2, shared: bool = False):
        super().__init__()
        self.groups = groups
        self.embedding = nn.Parameter(torch.randn(codes, 1 if shared else groups, dim // groups))
        self.projection = nn.Sequential(nn.Conv1d(dim, dim, 1, groups=groups, bias=False), nn.GroupNorm(groups, dim))

    def _books_and_choice(self, z: Tensor, frames: Tensor | None) -> tuple[Tensor, Tensor]:
        conv, norm = self.projection
        x = norm_clips(norm, conv(z), frames).transpose(1, 2).unflatten(2, (self.groups, -1))
        books = self.embedding.transpose(0, 1).expand(self.groups, -1, -1)
        # differences, not products: two codes may be nearly as far
        far = torch.cdist(x.permute(2, 0, 1, 3), books[:, None], compute_mode="donot_use_mm_for_euclid_dist")
        return books, far.argmin(3).permute(1, 2, 0)

    def choose(self, z: Tensor, frames: Tensor | None = None) -> Tensor:
        """z (batch, dim, frames) -> the chosen codes, (batch, frames, groups)"""
        return self._books_and_choice(z, frames)[1]

    def forward(self, z: Tensor, frames: Tensor | None = None) -> Tensor:
        books, chosen = self._books_and_choice(z, frames)
        vectors = [book[chosen[:, :, group]] for group, book in enumerate(books)]
        return torch.cat(vectors, dim=2).transpose(1, 2)


class Network(nn.Module):
    """Extractor, aggregator, the linear maps that look `steps` frames ahead, and perhaps code books in between."""

    def __init__(
        self, extractor: Extractor | None = None, aggregator: Aggregator | None = None, steps: int = 12,
        quantizer: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.extractor = Extractor() if extractor is None else extractor
        self.aggregator = Aggregator() if aggregator is None else aggregator
        self.quantizer = quantizer
        # a map for every step, all in one: (dim of c, dim of z, 1, steps), and a bias that they share
        self.guess = nn.ConvTranspose2d(self.aggregator.dim, self.extractor.dim, (1, steps))

    def forward(self, wavs: Tensor, samples: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(batch, samples), valid ones or None for all -> states (layers, batch, frames, dim), valid frames or None."""
        z, frames = self.extractor(wavs, samples)
        heard = z if self.quantizer is None else self.quantizer(z, frames)
        return torch.stack([z, *self.aggregator(heard, frames)]).transpose(2, 3), frames


class Wav2Vec(Frozen):
    """A frozen wav2vec or vq-wav2vec. States: z (before any code book), and what every aggregator convolution says."""

    def __init__(self, name: str, network: Network, revision: str, stride: int = 160):
        super().__init__()
        self.name, self.network, self.revision, self.stride = name, network, revision, stride
        self.layers, self.dim = 1 + len(network.aggregator.convs), network.extractor.dim
        self.freeze()

    def hidden(self, wavs: Tensor, samples: Tensor) -> Hidden:
        return Hidden(*self.network(wavs, samples))

    def published(self, wavs: Tensor, samples: Tensor) -> Tensor:
        return self.network(wavs, None)[0]  # lengths play no role there: padding gets into all group norms


# ------------------------------------------------------------------------------------------- official checkpoints

NAMES = (
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"extractor.convs.\1."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.", r"extractor.norms.\1."),
    (r"feature_aggregator\.conv_layers\.(\d+)\.1\.", r"aggregator.convs.\1."),
    (r"feature_aggregator\.conv_layers\.(\d+)\.3\.", r"aggregator.norms.\1."),
    (r"vector_quantizer\.weight_proj\.(weight|bias)", r"quantizer.weight_proj.0.\1"),  # depth 1: not in a list
    (r"vector_quantizer\.", "quantizer."),
    (r"wav2vec_predictions\.project_to_steps\.", "guess."),
)


def _quantizer(config: Settings, dim: int, activation: nn.Module, path: str | Path) -> nn.Module | None:
    kind = config.choice("vq_type", "none", "gumbel", "kmeans")
    if kind == "none":
        return None
    codes, groups = config.number("vq_vars", 320), config.number("vq_groups", 2)
    if dim % groups or config.values.get("vq_dim", 0) not in (0, dim):
        raise CheckpointRefused(f"{path}: codes of {config.values.get('vq_dim', dim)} dimensions in {groups} groups")
    shared = config.flag("combine_groups")
    if kind == "kmeans":
        return KmeansQuantizer(dim, codes, groups, shared)
    return GumbelQuantizer(dim, codes, groups, config.number("vq_depth", 1, most=10), shared, activation)


def _network(config: Settings, path: str | Path) -> Network:
    for name, wanted in (("aggregator", "cnn"), ("project_features", "none")):
        config.choice(name, wanted)
    if config.flag("skip_connections_feat"):
        raise CheckpointRefused(f"{path}: has shortcuts in its feature extractor; no published model has them")
    activation = {"relu": nn.ReLU, "gelu": nn.GELU}[config.choice("activation", "relu", "gelu")]()
    convs, more = (config.conv_layers(f"conv_{part}_layers") for part in ("feature", "aggregator"))
    if any(stride != 1 for _, _, stride in more):
        raise CheckpointRefused(f"{path}: its aggregator has the strides {[layer[2] for layer in more]}, expected 1")
    affine = not config.flag("non_affine_group_norm")
    extractor = Extractor(convs, activation, bool(config.values.get("log_compression", True)), affine)
    aggregator = Aggregator(
        more, extractor.dim, activation, not config.flag("no_conv_bias"), affine,
        bool(config.values.get("skip_connections_agg", True)), float(config.values.get("residual_scale", 0.5)),
        config.flag("agg_zero_pad"),
    )  # fmt: skip
    if len({extractor.dim, *(channels for channels, _, _ in more)}) > 1:
        raise CheckpointRefused(f"{path}: its layers have different widths; states must have one size")
    quantizer = _quantizer(config, extractor.dim, activation, path)
    return Network(extractor, aggregator, config.number("prediction_steps", 12), quantizer)


def read_wav2vec(path: str | Path, name: str = "wav2vec") -> Wav2Vec:
    """A checkpoint of any size, in fairseq's form or the benchmark's (`model_cfg`, `model_weight`).

    name: "wav2vec", or "vq_wav2vec" for one with code books, Gumbel's or k-means'. Raises CheckpointRefused.
    """
    content = read_checkpoint(path)
    with reading(path, name):
        if "model_cfg" in content:
            config, weights = part(content, ["model_cfg", "model_weight"], path)
        else:
            config, weights = part(content, ["args", "model"], path)
        config = Settings(config, path)
        if "conv_aggregator_layers" not in config.values:
            raise CheckpointRefused(f"{path}: its settings have no 'conv_aggregator_layers'; is it of another model?")
        kinds = ("none",) if name == "wav2vec" else ("gumbel", "kmeans")
        if config.choice("vq_type", "none", "gumbel", "kmeans") not in kinds:
            raise CheckpointRefused(f"{path}: vq_type is {config.values.get('vq_type')!r}; {name} has {kinds}")
        renamed = rename(weights_of(weights, path), NAMES)
        network, revision = build(lambda: _network(config, path), renamed, path)
        return Wav2Vec(name, network, revision)


# ---------------------------------------------------------------------------------------------------- phase 1


def in_use(shares: Tensor) -> Tensor:
    """(groups, codes) -> (groups,): as many codes, used alike, would have the same entropy."""
    return torch.special.entr(shares).sum(1).exp()


class Wav2VecObjective(nn.Module):
    """Say for each of the next frames whether it is true, or false: one of `negatives` from elsewhere in the clip.

    Two classes, so the loss is logistic, summed over the true frame and the false ones. With code books both are
    quantised, and so is what the aggregator hears. `temperature` belongs to the code books (see GumbelQuantizer); the
    paper lowers it from 2 to 0.5, and a training loop may do so too. `variety` weighs the share of codes that are not
    in use: without it a small network soon uses two or three. Raises SuperbLiteError for k-means code books.
    """

    def __init__(self, network: Network, negatives: int = 10, temperature: float = 2.0, variety: float = 0.1):
        super().__init__()
        if isinstance(network.quantizer, KmeansQuantizer):
            raise SuperbLiteError("code books of k-means are read from files only; train a GumbelQuantizer instead")
        self.network, self.negatives, self.temperature, self.variety = network, negatives, temperature, variety

    def _heard(self, wavs: Tensor, generator: torch.Generator) -> tuple[Tensor, tuple[Tensor, ...]]:
        """z (batch, dim, frames), through the code books if there are any, and what `GumbelQuantizer.sample` says."""
        z, _ = self.network.extractor(wavs, None)
        if self.network.quantizer is None:
            return z, ()
        z, *shares = self.network.quantizer.sample(z, self.temperature, generator)
        return z, tuple(shares)

    def _scores(self, heard: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Of every step (batch, frames - step, 1 + negatives), the true frame first."""
        past, truth = self.network.aggregator(heard, None)[-1], heard.transpose(1, 2)
        # scaled as in attention: the larger the vectors, the larger their products
        guess = self.network.guess(past[..., None]) * truth.shape[2] ** -0.5
        wrong = others(*truth.shape[:2], self.negatives, generator).to(heard.device)
        first = self.network.extractor.ahead
        steps = min(guess.shape[3], truth.shape[1] - first)
        return [compare(guess[..., n].transpose(1, 2), truth, first + n, wrong) for n in range(steps)]

    def forward(self, wavs: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """wavs: (batch, samples) of equal lengths. Returns the loss and what to log.

        `right`: how often the true frame scores best, in percent; chance is 100 / (1 + negatives). With code books
        `codes`: how many are in use (see `in_use`), mean of the groups.
        """
        heard, shares = self._heard(wavs, generator)
        scores, softplus = self._scores(heard, generator), nn.functional.softplus
        loss = torch.stack([(softplus(-s[..., 0]) + softplus(s[..., 1:]).sum(2)).mean() for s in scores]).mean()
        right = torch.cat([(s[..., 0] > s[..., 1:].amax(2)).flatten() for s in scores]).float().mean()
        log = {"right": 100 * right.item()}
        if shares:
            chosen, wanted = shares
            loss = loss + self.variety * (1 - in_use(wanted) / wanted.shape[1]).mean()
            log["codes"] = in_use(chosen).mean().item()
        return loss, log

    @torch.no_grad()
    def picture(self, wav: Tensor, seed: int = 0) -> dict[str, Tensor]:
        """wav: (samples,) -> {"heard": (frames every 10 ms, 80), "scores": (frames every 20 ms, steps)}.

        With code books also "codes": (frames every 20 ms, groups), the numbers of those chosen.

        "scores" is the probability, from 0 to 1, that a true frame is taken for true; 0 where the clip was over.
        """
        generator = torch.Generator().manual_seed(seed)
        heard, _ = self._heard(wav[None], generator)
        found = [score[0, :, 0].sigmoid().cpu() for score in self._scores(heard, generator)]
        z, _ = self.network.extractor(wav[None], None)
        columns = [nn.functional.pad(column, (0, z.shape[2] - len(column))) for column in found]
        shown = {"heard": spectrogram(wav), "scores": torch.stack(columns, dim=1)}
        if self.network.quantizer is not None:
            shown["codes"] = self.network.quantizer.choose(z)[0].cpu()
        return shown


def tiny_network(codes: int = 0, dim: int = 128, steps: int = 6) -> Network:
    """The network, shrunk: a frame every 20 ms, an aggregator that looks back 0.4 s (547,328 parameters).

    The filter bank is given (log-mel), since learning one takes more speech than we have: with convolutions on the
    waveform such a network learned next to nothing. What is learned in its place are two maps of single frames, without
    logarithm and with GELU: then z has both signs, and products tell frames apart much sooner.
    codes: in each of two code books, for vq-wav2vec; the aggregator then has a layer less (506,368 with 64).
    """
    gelu = nn.GELU()
    extractor = Extractor([(dim, 1, 1)] * 2, gelu, compress=False, in_dim=MelPairs.dim, front=MelPairs())
    aggregator = Aggregator([(dim, kernel, 1) for kernel in range(3, 7 if codes else 8)], dim, gelu)
    return Network(extractor, aggregator, steps, GumbelQuantizer(dim, codes, activation=gelu) if codes else None)


def _card(name: str, method: str, parameters: int, file: str, notes: str) -> Card:
    return Card(
        name=name, family="wav2vec", method=method, input="waveform", corpus="LS 960 hr", parameters=parameters,
        layers=13, dim=512, stride=160, licence="MIT", source="fairseq, in the benchmark's conversion",
        read=partial(read_wav2vec, name=name), notes=notes,
        url=f"https://huggingface.co/s3prl/converted_ckpts/resolve/main/{file}",
    )  # fmt: skip


def _tiny(name: str, network: Network, revision: str) -> Wav2Vec:
    return Wav2Vec(name, network, revision, MelPairs.stride)


PRETEXTS = {
    "tiny_wav2vec": Pretext("wav2vec: tell the next steps from others", tiny_network, Wav2VecObjective, _tiny),
    "tiny_vq_wav2vec": Pretext("the same over codes", partial(tiny_network, codes=64), Wav2VecObjective, _tiny),
}

CARDS = (
    control_card(
        "random_conv",
        PRETEXTS["tiny_wav2vec"],
        family="wav2vec",
        input="waveform",
        parameters=547_328,
        layers=6,
        dim=128,
        stride=320,
        notes="the control of the convolutional families: untrained layers over log-mel",
    ),
    tiny_card(
        "tiny_wav2vec", PRETEXTS["tiny_wav2vec"], control="random_conv", family="wav2vec", input="waveform",
        method="F-C", parameters=547_328, layers=6, dim=128, stride=320,
        notes="tells true futures from false ones (arXiv:1904.05862)",
    ),
    tiny_card(
        "tiny_vq_wav2vec", PRETEXTS["tiny_vq_wav2vec"], control="random_conv", family="wav2vec", input="waveform",
        method="F-C + VQ", parameters=506_368, layers=5, dim=128, stride=320,
        notes="the same over Gumbel's codes (arXiv:1910.05453)",
    ),
    _card("wav2vec", "F-C", 32_537_088, "wav2vec_large.pt", "tells true futures from false ones (arXiv:1904.05862)"),
    _card("vq_wav2vec", "F-C + VQ", 34_145_408, "vq-wav2vec.pt", "the same over Gumbel's codes (arXiv:1910.05453)"),
)  # fmt: skip
