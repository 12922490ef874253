"""NPC: say how a moment of speech sounds from the sounds right before and after it, with convolutions only.

A stack of small convolutions reads the spectrogram and may see everything. Beside each of its blocks stands a wide
convolution whose middle is cut out, so wide a hole that nothing of the frame itself comes through; the sum of these
must rebuild the frame. No recurrence, no attention: all frames are computed at once and from 0.2 s of speech.

Taught in notebooks 01 (pre-train an upstream) and 13 (the contestants).
Source: Liu, Chung and Glass 2020, "Non-Autoregressive Predictive Coding for Learning Speech Representations from Local
Dependencies", arXiv:2011.00406.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from superb_lite.types import Card, Hidden
from superb_lite.upstreams._fairseq import MOST_LAYERS
from superb_lite.upstreams._frozen import Frozen
from superb_lite.upstreams._pretext import Pretext, tiny_card
from superb_lite.upstreams.apc import (
    BANDS,
    PLACE,
    Codebook,
    clean_mels,
    codebooks,
    filled,
    inside,
    looking,
    quantise,
    read_toolkit,
)


class Block(nn.Module):
    """A convolution over three frames and one over a single frame, each normalised over the batch."""

    def __init__(self, before: int, dim: int):
        super().__init__()
        self.conv, self.bn1 = nn.Conv1d(before, dim, 3, padding=1), nn.BatchNorm1d(dim)
        self.linear, self.bn2 = nn.Conv1d(dim, dim, 1), nn.BatchNorm1d(dim)

    def forward(self, x: Tensor, first: bool) -> Tensor:
        """(batch, before, frames) -> (batch, dim, frames); all blocks but the first add to what came in."""
        y = self.bn2(self.linear(torch.relu(self.bn1(self.conv(x)))))
        return torch.relu(y if first else y + x)


class MaskedConv(nn.Module):
    """A convolution over `kernel` frames that is blind for the `hole` frames in its middle (both odd)."""

    def __init__(self, dim: int, kernel: int, hole: int):
        super().__init__()
        if not 0 < hole < kernel or kernel % 2 == 0 or hole % 2 == 0:
            raise ValueError(f"a hole of {hole} frames in a kernel of {kernel}: expected odd numbers, the hole smaller")
        self.conv, self.hole = nn.Conv1d(dim, dim, kernel, padding=kernel // 2), hole

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, frames) -> the same shape, in -1..1."""
        kernel = self.conv.weight.shape[2]
        away = (torch.arange(kernel, device=x.device) - kernel // 2).abs()
        weight = self.conv.weight * (away > self.hole // 2)
        return torch.tanh(nn.functional.conv1d(x, weight, self.conv.bias, padding=kernel // 2))


class NpcNetwork(nn.Module):
    """Blocks that see all, masked convolutions that do not. Modules are named as in the official files.

    hole: frames of the spectrogram that a frame may not see, itself in the middle. Each block spreads a frame by one to
    either side, so the hole behind block n (from 1) is 2n wider.
    """

    def __init__(
        self, dim: int = 512, blocks: int = 4, kernel: int = 15, hole: int = 5, books: Sequence[Codebook] = ()
    ):
        super().__init__()
        self.dim = dim
        self.blocks = nn.ModuleList(Block(dim if n else BANDS, dim) for n in range(blocks))
        self.masked_convs = nn.ModuleList(MaskedConv(dim, kernel, hole + 2 * (n + 1)) for n in range(blocks))
        self.vq_layers = nn.ModuleList(books)
        self.postnet = nn.Linear(dim, BANDS)

    def forward(self, mels: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """(batch, frames, 80), zero beyond the end of a clip -> states, (batch, frames, dim) each.

        valid: (batch, frames, 1), 1.0 inside a clip; None looks over the end of a clip, as the official toolkit does.
        States: block 1, its masked convolution, block 2, ... and the sum of the masked convolutions.
        """
        x, states = mels.transpose(1, 2), []
        for n, (block, masked) in enumerate(zip(self.blocks, self.masked_convs, strict=True)):
            x = block(x, first=n == 0)
            if valid is not None:  # a clip alone ends in the zeros that convolutions are padded with
                x = x * valid.transpose(1, 2)
            states += [x, masked(x)]
        return [state.transpose(1, 2) for state in [*states, sum(states[1::2])]]


def tiny_network(dim: int = 128) -> NpcNetwork:
    """Two blocks of 128 dimensions and four books of 32 codes: 0.6 M parameters, half of them in holes; five states.

    It sees nearly as far as the official one (19 frames, 23 there), and the hole has the same five frames.
    """
    return NpcNetwork(dim, blocks=2, books=[Codebook(dim // 4, 32) for _ in range(4)])


class Npc(Frozen):
    """A frozen NPC; for its states see `NpcNetwork.forward`."""

    stride = 160

    def __init__(self, name: str, network: NpcNetwork, revision: str):
        super().__init__()
        self.name, self.network, self.revision = name, network, revision
        self.layers, self.dim = 2 * len(network.blocks) + 1, network.dim
        self.freeze()

    def hidden(self, wavs: Tensor, samples: Tensor) -> Hidden:
        mels, frames = clean_mels(wavs, samples)
        return Hidden(torch.stack(self.network(mels, inside(frames, mels.shape[1]))), frames)

    def published(self, wavs: Tensor, samples: Tensor) -> Tensor:
        # the quirk: nothing is masked, so what biases and norms make of the padding leaks into the end of a clip
        return torch.stack(self.network(clean_mels(wavs, samples)[0]))


class NpcObjective(nn.Module):
    """Rebuild every frame from its neighbours, through the codebooks; the loss is the mean absolute error."""

    def __init__(self, network: NpcNetwork):
        super().__init__()
        self.network = network

    def rebuild(self, mels: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """(batch, frames, 80) -> the same shape, each frame guessed without having seen it; and the codes in use."""
        chosen, used = quantise(self.network.vq_layers, self.network(mels)[-1], generator)
        return self.network.postnet(chosen), used

    def forward(self, wavs: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """wavs: (batch, samples) of equal lengths; generator: draws codes. Returns the loss and what to log.

        Logged: ``of_mean``, the error in percent of that of a guess that is always the mean; ``codes`` in use.
        """
        mels, _ = clean_mels(wavs)
        rebuilt, used = self.rebuild(mels, generator)
        loss = nn.functional.l1_loss(rebuilt, mels)
        return loss, {"of_mean": 100 * float(loss.detach() / mels.abs().mean()), "codes": float(used.detach())}

    def picture(self, wav: Tensor) -> dict[str, Tensor]:
        """(samples,) -> spectrograms (frames, 80): each row of ``rebuilt`` was guessed from the rows around it in
        ``heard``, without that row and the two on either side."""
        with looking(self):
            mels, _ = clean_mels(wav[None])
            rebuilt, _ = self.rebuild(mels, None)
            return {"heard": mels[0].cpu(), "rebuilt": rebuilt[0].cpu()}


def read_npc(path: str | Path) -> Npc:
    """An official NPC file (``config`` and ``model``), of any size. Raises CheckpointRefused naming it."""
    usual = {"residual": True, "batch_norm": True, "activate": "relu", "disable_cross_layer": False}
    sizes, weights = read_toolkit(path, {**usual, "dim_bottleneck": None})
    dim, blocks = sizes.number("hidden_size", 512), sizes.number("n_blocks", 4, MOST_LAYERS)
    kernel, hole = sizes.number("kernel_size", 15), sizes.number("mask_size", 5)
    # the holes are stored as well, as large as the weights; they follow from the sizes
    weights = {name: value for name, value in weights.items() if not name.endswith(".conv_mask")}

    def make() -> NpcNetwork:
        return NpcNetwork(dim, blocks, kernel, hole, codebooks(sizes.values["vq"]))

    return Npc("npc", *filled(make, weights, path))


PRETEXTS = {"tiny_npc": Pretext("NPC: fill the gap from what is around it", tiny_network, NpcObjective, Npc)}

CARDS = (
    tiny_card(
        "tiny_npc", PRETEXTS["tiny_npc"], control="random_conv", family="npc", input="FBANK",
        method="M-G + VQ", parameters=624_592, layers=5, dim=128, stride=160,
        notes="fills a gap of five frames from its surroundings (arXiv:2011.00406)",
    ),
    Card(
        name="npc", family="npc", method="M-G + VQ", input="FBANK", corpus="LS 360 hr", parameters=19_380_560, layers=9,
        dim=512, stride=160, licence="none stated for the weights (toolkit: Apache-2.0)", read=read_npc,
        source="arXiv:2011.00406, weights by s3prl", url=PLACE + "npc_360hr.ckpt",
        sha256="803709e379d6ba98dfab8f317b191c694f34c6418e7cefccbe4b9902ab01dcab",
        notes="convolutions with a hole in the middle; about half of the parameters lie in the holes and do nothing",
    ),
)  # fmt: skip
