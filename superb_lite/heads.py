"""The only things that learn: the weights over an upstream's layers, and SUPERB's deliberately simple heads.

Both heads are two linear maps with **no activation** between them. So a clip's class depends on nothing but the mean
of its frames, which is why utterance tasks may train on stored means, exactly and a thousand times faster.

Source: SUPERB ``upstream/interfaces.py`` (Featurizer) and ``downstream/model.py`` (UtteranceLevel, FrameLevel).
Taught in notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from superb_lite.types import ContractBroken, Layers


class Featurizer(nn.Module):
    """One sequence of vectors out of an upstream's many: the last layer, or a learned weighted sum.

    layers: number of hidden states; mode: "last" (round 1) or "sum" (round 2). The sum has one scalar per layer,
    zero at the start, so that the softmax begins as the plain average. There is nothing to learn with
    "last" or with a single layer (Fbank).

    >>> Featurizer(4).weights()
    (0.25, 0.25, 0.25, 0.25)
    """

    def __init__(self, layers: int, mode: Layers = "sum") -> None:
        super().__init__()
        if mode not in ("last", "sum"):
            raise ValueError(f"mode is {mode!r}, expected 'last' or 'sum'")
        if layers < 1:
            raise ValueError(f"layers is {layers}, expected at least 1")
        self.layers = layers
        self.mode = mode
        if mode == "sum" and layers > 1:
            self.scores = nn.Parameter(torch.zeros(layers))
        else:
            self.register_parameter("scores", None)

    def forward(self, states: Tensor) -> Tensor:
        """states: (layers, batch, frames, dim) -> (batch, frames, dim). Raises ContractBroken on another shape."""
        if states.ndim != 4 or len(states) != self.layers:
            raise ContractBroken(
                f"states have the shape {tuple(states.shape)}, expected ({self.layers}, batch, frames, dim); "
                "was this featurizer made for another upstream?"
            )
        if self.scores is None:
            return states[-1]
        return torch.tensordot(self.scores.softmax(0), states, dims=1)

    def weights(self) -> tuple[float, ...]:
        """The share of each layer, first to last; they add up to 1."""
        if self.scores is None:
            return (0.0,) * (self.layers - 1) + (1.0,)
        return tuple(self.scores.detach().softmax(0).tolist())


class MeanPoolLinear(nn.Module):
    """SUPERB's head for one label per clip (KS, SID, IC, ER): linear, mean over valid frames, linear.

    dim: size of a frame; classes: number of labels. About 200 thousand parameters for dim 768.
    """

    def __init__(self, dim: int, classes: int, hidden: int = 256) -> None:
        super().__init__()
        self.project = nn.Linear(dim, hidden)
        self.classify = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: (batch, frames, dim); lengths: (batch,) valid frames -> (batch, classes) logits."""
        valid = _valid(x, lengths)  # (batch, frames, 1)
        hidden = self.project(x).masked_fill(~valid, 0.0)
        mean = hidden.sum(dim=1) / valid.sum(dim=1)
        return self.classify(mean)


class FrameLinear(nn.Module):
    """SUPERB's head for one symbol per frame (PR): linear, linear. CTC does the rest."""

    def __init__(self, dim: int, vocab: int, hidden: int = 256) -> None:
        super().__init__()
        self.project = nn.Linear(dim, hidden)
        self.classify = nn.Linear(hidden, vocab)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: (batch, frames, dim); lengths: (batch,) valid frames -> (batch, frames, vocab) logits, 0 in the padding.

        Differs: SUPERB leaves the bias in the padding, where its training log decodes it as phones.
        """
        valid = _valid(x, lengths)
        return self.classify(self.project(x)).masked_fill(~valid, 0.0)


def _valid(x: Tensor, lengths: Tensor) -> Tensor:
    """(batch, frames, 1) bool, True where a frame is no padding. Raises ContractBroken if lengths do not fit x."""
    if x.ndim != 3 or lengths.shape != x.shape[:1]:
        raise ContractBroken(
            f"head got x {tuple(x.shape)} and lengths {tuple(lengths.shape)}; "
            "expected (batch, frames, dim) and (batch,)"
        )
    if int(lengths.min()) < 1 or int(lengths.max()) > x.shape[1]:
        raise ContractBroken(
            f"lengths go from {int(lengths.min())} to {int(lengths.max())}, expected 1 to {x.shape[1]} frames; "
            "are they in samples, or is a clip shorter than one frame?"
        )
    frame = torch.arange(x.shape[1], device=x.device)
    return (frame[None, :] < lengths.to(x.device)[:, None])[..., None]
