"""DistilHuBERT: a quarter of HuBERT that learns to say what HuBERT says in three of its layers.

The student is HuBERT's front end and two blocks, begun as copies of the teacher's. Behind them stand three heads, each
predicting the frames of one layer of the teacher from the student's last block: three views of one frame, so that
the shared block has to know what all three need. No label and no masking.

Source: Chang et al. 2021, "DistilHuBERT", arXiv:2110.01900, sections 2.1-2.3.
Taught in notebook 13 (the contestants).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torchaudio
from torch import Tensor, nn

from superb_lite.types import Card, CheckpointRefused
from superb_lite.upstreams import hubert
from superb_lite.upstreams._fairseq import Settings, build, rename, weights_of
from superb_lite.upstreams._frozen import Frozen
from superb_lite.upstreams._pretext import Pretext, load_tiny
from superb_lite.upstreams._published import part, read_checkpoint
from superb_lite.upstreams._transformer import SpeechTransformer, blocks, extract, project
from superb_lite.upstreams.fbank import log_mel

NAMES = ((r"output_layer\.0\.", "heads.expand."), (r"output_layer\.2\.", "heads."))


class Heads(nn.Module):
    """One prediction per teacher layer: a shared map to `tasks` vectors of `dim`, GELU, and a matrix for each."""

    def __init__(self, dim: int, tasks: int):
        super().__init__()
        self.tasks = tasks
        self.expand = nn.Linear(dim, tasks * dim)
        self.weight = nn.Parameter(torch.randn(tasks, dim, dim) / dim**0.5)
        self.bias = nn.Parameter(torch.zeros(1, 1, tasks, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> (tasks, batch, frames, dim)."""
        views = nn.functional.gelu(self.expand(x)).unflatten(-1, (self.tasks, -1))
        return (torch.einsum("btnd,ndf->btnf", views, self.weight) + self.bias).permute(2, 0, 1, 3)


def with_heads(network: nn.Module, tasks: int = 3) -> nn.Module:
    """A network for DistilHuBERT: no norm between front end and projection, and a head per teacher layer."""
    network.encoder.feature_projection.layer_norm = nn.Identity()
    network.heads = Heads(network.encoder.transformer.layer_norm.normalized_shape[0], tasks)
    return network


def tiny_network(dim: int = 192, tasks: int = 3) -> nn.Module:
    """The student of `tiny_hubert`: two of its blocks, same width, three heads."""
    return with_heads(hubert.tiny_network(dim, blocks=2), tasks)


def start_from(student: nn.Module, teacher: nn.Module) -> None:
    """Copy the teacher's front end, projection, positional convolution and first blocks into the student.

    student, teacher: the networks, of the same width. The paper finds this beginning to matter (its table 3).
    """
    have = teacher.state_dict()
    shared = {key: value for key, value in student.state_dict().items() if key in have}
    student.load_state_dict({key: have[key] for key in shared}, strict=False)


class DistilHubert(SpeechTransformer):
    """A frozen DistilHuBERT: the projected frames, the output of both blocks, and the predictions of three layers.

    The benchmark's weighted sum runs over all six; the paper's rows use the last block alone (protocol.md section 2.3).
    """

    def count(self) -> int:
        return len(self.network.encoder.transformer.layers) + 1 + self.network.heads.tasks

    def states(self, features: Tensor, frames: Tensor) -> Tensor:
        x, mask = project(self.network, features, frames)
        after = blocks(self.network, x, mask)[1:]
        return torch.cat([torch.stack([x, *after]), self.network.heads(after[-1])])


class Distillation(nn.Module):
    """DistilHuBERT's objective: predict the teacher's layers, in size (L1) and in direction (cosine).

    network: as `tiny_network` makes one; teacher: a frozen upstream of the same width and frame rate. targets: the
    teacher's states to predict; a third, two thirds and all of its blocks, as 4, 8 and 12 of Base, unless given.
    direction: how much the logarithm of the cosine's sigmoid counts (lambda in equation 1 of the paper).
    """

    def __init__(
        self, network: nn.Module, teacher: Frozen, *, targets: Sequence[int] | None = None, direction: float = 1.0
    ):
        super().__init__()
        tasks, deepest = network.heads.tasks, teacher.layers - 1
        self.targets = [round((n + 1) * deepest / tasks) for n in range(tasks)] if targets is None else list(targets)
        if len(self.targets) != tasks or not all(0 <= n <= deepest for n in self.targets):
            raise ValueError(f"targets are {self.targets}, expected {tasks} states from 0 to {deepest}")
        self.network, self.teacher, self.direction = network, teacher, direction

    def _both(self, wavs: Tensor) -> tuple[Tensor, Tensor]:
        """What the teacher says and what the student predicts, both (tasks, batch, frames, dim)."""
        samples = torch.full((len(wavs),), wavs.shape[1], device=wavs.device)
        with torch.no_grad():
            wanted = self.teacher.hidden(wavs, samples).states[self.targets]
        features, frames = extract(self.network.feature_extractor, wavs, samples)
        x, mask = project(self.network, features, frames)
        return wanted, self.network.heads(blocks(self.network, x, mask)[-1])

    def forward(self, wavs: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, float]]:
        """wavs: (batch, samples) of equal length -> the loss, and what to log. Nothing is drawn: no `generator`."""
        wanted, said = self._both(wavs)
        cosine = nn.functional.cosine_similarity(said, wanted, dim=-1)
        size = (said - wanted).abs().mean(-1)
        # both terms are means over frames, summed over the layers that are predicted
        loss = (size - self.direction * nn.functional.logsigmoid(cosine)).mean((1, 2)).sum()
        return loss, {"l1": size.mean().item(), "cosine": cosine.mean().item()}

    @torch.no_grad()
    def picture(self, wav: Tensor) -> dict[str, Tensor]:
        """(samples,) -> the log-mel spectrogram (10 ms frames, 80), and the last predicted layer (20 ms frames, dim):

        as the teacher has it, ``wanted``, and as the student predicts it, ``rebuilt``.
        """
        wanted, said = self._both(wav[None])
        return {"heard": log_mel(wav).cpu(), "wanted": wanted[-1, 0].cpu(), "rebuilt": said[-1, 0].cpu()}


def read_distilhubert(path: str | Path) -> DistilHubert:
    """The published checkpoint, of the s3prl pre-training runner. Raises CheckpointRefused."""
    weights, config = part(read_checkpoint(path), ("Distiller", "Config"), path)
    (inner,) = part(Settings(config, path).values, ("distiller",), path)
    options = Settings(inner, path)
    options.choice("out_layer_type", "expand-last")
    options.choice("task_emb_type", "expand-last")
    options.choice("attention_type", "original")
    sizes = options.network_sizes("extractor_conv_feature_layers")
    dim, tasks = sizes["encoder_embed_dim"], options.number("n_tasks", 3, 50)
    if options.number("final_dim", dim) != dim or sizes["encoder_layer_norm_first"]:
        raise CheckpointRefused(f"{path}: expected predictions as wide as the network ({dim}), and norms behind blocks")
    ours = rename(weights_of(weights, path), NAMES)
    network, revision = build(lambda: with_heads(torchaudio.models.wav2vec2_model(**sizes), tasks), ours, path)
    return DistilHubert("distilhubert", network, revision, frame_rule="conv")


def _pupil(network: nn.Module) -> Distillation:
    """Starts as a copy of its teacher's first blocks, as in the paper."""
    teacher = load_tiny("tiny_hubert", hubert.PRETEXTS["tiny_hubert"])
    start_from(network, teacher.network)
    return Distillation(network, teacher)


PRETEXTS = {"tiny_distilhubert": Pretext("DistilHuBERT: say what a teacher says", tiny_network, _pupil, DistilHubert)}

CARDS = (
    Card(
        name="distilhubert", family="distilhubert", method="distilled", input="waveform", corpus="LS 960 hr",
        parameters=27_034_752, layers=6, dim=768, stride=320, licence="Apache-2.0",
        source="s3prl (arXiv:2110.01900)", read=read_distilhubert,
        url="https://www.dropbox.com/s/hcfczqo5ao8tul3/disilhubert_ls960_4-8-12.ckpt?dl=1",
        notes="predicts states 4, 8 and 12 of hubert_base; entered the competition after the paper",
    ),
)  # fmt: skip
