"""wav2vec 2.0: hide pieces of speech and find the true one among a hundred others.

What the transformer says about a hidden frame is compared with the quantised front end output of that very frame and
of `distractors` other hidden frames of the clip. Quantised: the frame picks one entry from each of a few small code
books, so that the answer is a kind of sound, not an exact copy. Picking is a hard choice; noise of the Gumbel
distribution and a temperature that falls make it one through which gradients flow. A second loss keeps all entries
in use.

Source: Baevski et al. 2020, "wav2vec 2.0", arXiv:2006.11477, sections 2 and 3.
Taught in notebooks 01 (pre-train an upstream: tell true from false) and 13 (the contestants).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn

from superb_lite.types import Card, CheckpointRefused
from superb_lite.upstreams import hubert
from superb_lite.upstreams._fairseq import Settings, build, rename, weights_of
from superb_lite.upstreams._pretext import Pretext, tiny_card
from superb_lite.upstreams._published import part, read_checkpoint, settings
from superb_lite.upstreams._transformer import SpeechTransformer, blocks, heard_and_hidden, project, spans

NAMES = ((r"quantizer\.vars$", "quantizer.codes"), (r"quantizer\.weight_proj\.", "quantizer.score."))


class Wav2Vec2(SpeechTransformer):
    """A frozen wav2vec 2.0: states are the input of the first block and the output of every block."""


class Quantizer(nn.Module):
    """Frames to entries of code books: each of `groups` books gives one of its `entries`, and they are joined.

    dim: of the frames that come in; size: of what goes out, divided evenly among the books
    """

    def __init__(self, dim: int, size: int, groups: int = 2, entries: int = 320):
        super().__init__()
        self.groups, self.entries = groups, entries
        # signs matter: vectors that all point the same way are hard to tell apart by their cosines
        self.codes = nn.Parameter(2 * torch.rand(1, groups * entries, size // groups) - 1)
        self.score = nn.Linear(dim, groups * entries)
        nn.init.normal_(self.score.weight)  # scores far apart, or the noise decides and nothing can be guessed
        nn.init.zeros_(self.score.bias)

    def forward(self, x: Tensor, temperature: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """x: (n, dim) -> quantised frames (n, size), and how much each entry is used on average (groups, entries).

        With a generator (on the CPU) the choice is drawn, without one it is the entry of the highest score.
        """
        logits = self.score(x).unflatten(-1, (self.groups, self.entries))
        used = logits.softmax(-1).mean(0)
        noisy = logits
        if generator is not None:
            uniform = torch.rand(logits.shape, generator=generator).clamp(1e-9, 1 - 1e-7).to(x.device)
            noisy = logits - (-uniform.log()).log()
        soft = (noisy / temperature).softmax(-1)
        hard = nn.functional.one_hot(noisy.argmax(-1), self.entries).to(soft.dtype)
        choice = hard + soft - soft.detach()  # the value of the hard choice, the gradient of the soft one
        books = self.codes[0].unflatten(0, (self.groups, self.entries))
        return torch.einsum("nge,ges->ngs", choice, books).flatten(1), used


def with_contrast(network: nn.Module, dim: int, size: int, groups: int = 2, entries: int = 320) -> nn.Module:
    """Add what pre-training needs besides: the vector shown for a hidden frame, the quantiser, two projections.

    dim: of the front end's frames; size: of the space in which candidates are compared
    """
    inside = network.encoder.transformer.layer_norm.normalized_shape[0]
    network.hidden_frame = nn.Parameter(torch.rand(inside))
    network.quantizer = Quantizer(dim, size, groups, entries)
    network.project_q = nn.Linear(size, size)
    network.final_proj = nn.Linear(inside, size)
    return network


def tiny_network(dim: int = 128, blocks: int = 4) -> nn.Module:
    """wav2vec 2.0, shrunk: post-norm blocks behind a fixed log-mel front end (see `hubert.LogMelFrontEnd`).

    The targets are log-mel frames then, quantised with two books of 64 entries.
    """
    return with_contrast(hubert.tiny_network(dim, blocks, feed_forward=2 * dim), 160, 64, entries=64)


def tiny_large_network(dim: int = 96, blocks: int = 8) -> nn.Module:
    """Large in shape, not in size: twice as deep and pre-norm."""
    return with_contrast(hubert.tiny_large_network(dim, blocks), 160, 64, entries=64)


def others_of(marked: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """For every marked frame, `count` other marked frames of its clip, evenly drawn and put back.

    marked: (batch, frames) bool on the CPU -> (marked frames, count): places in the list of all marked frames. The only
    marked frame of a clip gets itself.
    """
    clip = marked.nonzero()[:, 0]
    of_clip = marked.sum(1)
    first = of_clip.cumsum(0) - of_clip
    size, start = of_clip[clip][:, None], first[clip][:, None]
    rank = torch.arange(len(clip))[:, None] - start
    step = 1 + (torch.rand(len(clip), count, generator=generator) * (size - 1)).long()  # 1 .. size - 1
    return start + (rank + step) % size


class Contrast(nn.Module):
    """wav2vec 2.0's objective: which of the candidates is the hidden frame?

    network: made by `tiny_network`, or that of a published checkpoint. The loss is the cross entropy over cosine
    similarities divided by `kappa`, plus `alpha` times the share of code book entries that are not used (the paper's
    equation 4 counts them by entropy, its program and this one by perplexity). In training the temperature falls from
    `warm` to `cold` by the factor `cooling` with every batch.

    Differs, because a small network on little speech learns much faster so: the share `visible` of the loss is about
    frames that were not hidden, each among others of its kind, as in our HuBERT (the paper: 0); and what is quantised
    was normalised over the clip, which takes out most of who speaks. There is no penalty on the size of the front end's
    output, because ours is fixed.
    """

    def __init__(
        self, network: nn.Module, *, distractors: int = 100, span: int = 10, start_rate: float = 0.065,
        kappa: float = 0.1, alpha: float = 0.1, visible: float = 0.5, warm: float = 2.0, cold: float = 0.5,
        cooling: float = 0.9993,
    ):  # fmt: skip
        super().__init__()
        self.network, self.distractors, self.span, self.start_rate = network, distractors, span, start_rate
        self.kappa, self.alpha, self.visible = kappa, alpha, visible
        self.cold, self.cooling = cold, cooling
        self.register_buffer("temperature", torch.tensor(warm))  # in the checkpoint of a run that is resumed

    def mask(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        """(batch, frames) bool, True where the network must not look; at least one span in every clip."""
        starts = torch.rand(batch, frames, generator=generator) < self.start_rate
        sure = torch.randint(frames, (batch,), generator=generator)
        starts[torch.arange(batch), sure] = True
        return spans(starts, self.span)

    def _context(self, features: Tensor, hide: Tensor) -> tuple[Tensor, Tensor]:
        """Context vectors (batch, frames, size) with `hide` hidden, and front end frames, normalised, to quantise."""
        network = self.network
        x, _ = project(network, features, None)
        x = torch.where(hide[:, :, None].to(x.device), network.hidden_frame, x)
        latent = (features - features.mean(1, keepdim=True)) / (features.std(1, keepdim=True) + 1e-3)
        return network.final_proj(blocks(network, x)[-1]), latent

    def forward(self, wavs: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """wavs: (batch, samples) of equal length; generator on the CPU. Returns the loss and what to log.

        ``right``: percent of hidden frames whose true candidate scores highest; ``entries``: how many are in use.
        """
        features, _ = self.network.feature_extractor(wavs, None)
        hide = self.mask(*features.shape[:2], generator)
        context, latent = self._context(features, hide)
        loss, seen = self._contrast(context, latent, hide, generator)
        if self.visible and not hide.all():
            other, _ = self._contrast(context, latent, ~hide, generator)
            loss = (1 - self.visible) * loss + self.visible * other
        if self.training:
            self.temperature.mul_(self.cooling).clamp_(min=self.cold)
        return loss, seen

    def _contrast(
        self, context: Tensor, latent: Tensor, marked: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of the `marked` frames, among each other."""
        quantised, used = self.network.quantizer(latent[marked], float(self.temperature), generator)
        others = others_of(marked, self.distractors, generator)
        logits = self._scores(context[marked], self.network.project_q(quantised), others)
        found = nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        entries = torch.exp(-(used * (used + 1e-7).log()).sum(-1)).sum()  # perplexity: as if that many, used evenly
        unused = 1 - entries / used.numel()
        # a draw with a copy of the true one (minus infinity) is no mistake, but a tie with it is
        right = (logits[:, 0] > logits[:, 1:].amax(1)).float().mean().item() * 100
        return found + self.alpha * unused, {"right": right, "entries": entries.item()}

    def _scores(self, context: Tensor, targets: Tensor, others: Tensor) -> Tensor:
        """(n, size) twice and (n, count) -> (n, 1 + count): scaled cosines, the true candidate first."""
        false = targets[others.to(targets.device)]
        candidates = torch.cat([targets[:, None], false], dim=1)
        logits = nn.functional.cosine_similarity(context[:, None], candidates, dim=-1) / self.kappa
        same = (false == targets[:, None]).all(-1)  # it picked the same entries: nobody could tell the two apart
        return torch.cat([logits[:, :1], logits[:, 1:].masked_fill(same, float("-inf"))], dim=1)

    @torch.no_grad()
    def picture(self, wav: Tensor) -> dict[str, Tensor]:
        """(samples,) -> log-mel as heard and with the hidden spans out (10 ms frames, 80), and ``scores``:

        (20 ms frames, 20 ms frames), row: what the network says about a frame, column: cosine with the quantised
        frame there. What it has learned is on the diagonal.
        """
        features, _ = self.network.feature_extractor(wav[None], None)
        hide = self.mask(1, features.shape[1], torch.Generator().manual_seed(0))
        context, latent = self._context(features, hide)
        targets = self.network.project_q(self.network.quantizer(latent[0], 1.0, None)[0])
        scores = nn.functional.normalize(context[0], dim=-1) @ nn.functional.normalize(targets, dim=-1).T
        return {**heard_and_hidden(wav, hide[0]), "scores": scores.cpu()}


def _entries(content: Mapping[str, Any], path: str | Path) -> tuple[Any, Any, Any]:
    """Settings of the task and of the model, and the weights, of the repacked file or of fairseq's own."""
    if "args" in content and "model" in content:  # fairseq until 2020: one flat Namespace
        return content["args"], content["args"], content["model"]
    if "cfg" in content and "model" in content:
        try:
            task, model = part(settings(content["cfg"]), ("task", "model"), path)
        except (TypeError, ValueError):
            raise CheckpointRefused(f"{path}: cfg is a {type(content['cfg']).__name__}, not settings") from None
        return task, model, content["model"]
    return tuple(part(content, ("task_cfg", "model_cfg", "model_weight"), path))


def _read(name: str, path: str | Path) -> Wav2Vec2:
    task, model, weights = _entries(read_checkpoint(path), path)
    task, options = Settings(task, path), Settings(model, path)
    sizes, size = options.network_sizes(), options.number("final_dim", 256)
    groups, entries = options.number("latent_groups", 2), options.number("latent_vars", 320)
    if size % groups:
        raise CheckpointRefused(f"{path}: {size} dimensions (final_dim) cannot be shared by {groups} code books")
    channels = sizes["extractor_conv_layer_config"][-1][0]

    def make() -> nn.Module:
        return with_contrast(torchaudio.models.wav2vec2_model(**sizes), channels, size, groups, entries)

    network, revision = build(make, rename(weights_of(weights, path), NAMES), path)
    return Wav2Vec2(name, network, revision, normalise=task.flag("normalize"), frame_rule="conv")


def read_wav2vec2_base(path: str | Path) -> Wav2Vec2:
    """A published wav2vec 2.0, post-norm: ``wav2vec_small.pt``, fairseq's own or repacked. Raises CheckpointRefused."""
    return _read("wav2vec2_base", path)


def read_wav2vec2_large(path: str | Path) -> Wav2Vec2:
    """A published wav2vec 2.0, pre-norm: ``wav2vec_vox_new.pt``, otherwise as `read_wav2vec2_base`."""
    return _read("wav2vec2_large", path)


def _published(name: str, corpus: str, parameters: int, layers: int, dim: int, read, file: str, sha256=None) -> Card:
    return Card(
        name=name, family="wav2vec2", method="M-C + VQ", input="waveform", corpus=corpus, parameters=parameters,
        layers=layers, dim=dim, stride=320, licence="MIT", source="fairseq (arXiv:2006.11477), repacked by s3prl",
        read=read, url=f"https://huggingface.co/s3prl/converted_ckpts/resolve/main/{file}", sha256=sha256,
    )  # fmt: skip


PRETEXTS = {
    "tiny_wav2vec2": Pretext("wav2vec 2.0: which code is hidden here?", tiny_network, Contrast, Wav2Vec2),
    "tiny_wav2vec2_large": Pretext("wav2vec 2.0, deep and pre-norm", tiny_large_network, Contrast, Wav2Vec2),
}

CARDS = (
    tiny_card(
        "tiny_wav2vec2", PRETEXTS["tiny_wav2vec2"], control="random", family="wav2vec2", input="waveform",
        method="M-C + VQ", parameters=654_048, layers=5, dim=128, stride=320,
        notes="finds the code of a hidden frame among others (arXiv:2006.11477)",
    ),
    tiny_card(
        "tiny_wav2vec2_large", PRETEXTS["tiny_wav2vec2_large"], control="random", family="wav2vec2", input="waveform",
        method="M-C + VQ", parameters=686_400, layers=9, dim=96, stride=320,
        notes="large in shape only: deep, narrow, pre-norm",
    ),
    _published("wav2vec2_base", "LS 960 hr", 95_044_608, 13, 768, read_wav2vec2_base, "wav2vec_small.pt"),
    _published(
        "wav2vec2_large", "LL 60k hr", 317_390_592, 25, 1024, read_wav2vec2_large, "wav2vec_vox_new.pt",
        "ba1dd46c4bfc9588b6679b66fa5a1e217d285f260117771dc19e1208fa2421cb",
    ),
)  # fmt: skip
