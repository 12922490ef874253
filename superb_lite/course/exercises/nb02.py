"""Exercises of notebook 02 (freeze, weigh, probe): freeze, weigh, pool, and what an affine head can see."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from superb_lite.course.exercises import Exercise, WrongAnswer

# ---------------------------------------------------------------------------------------- q1: frozen


class Small(nn.Module):
    """A network with dropout, which shows at once whether it sleeps. Its repr fits on a line."""

    def __init__(self, dim: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.5), nn.Linear(dim, dim))
        with torch.no_grad():
            for weight in self.layers.parameters():
                weight.copy_(torch.from_numpy(rng.normal(size=weight.shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def __repr__(self) -> str:
        return f"network with {sum(p.numel() for p in self.parameters())} weights"


class Frozen(nn.Module):
    """A network that stays as it is, whatever a parent module does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


class _OnlyEval(Frozen):
    def __init__(self, network: nn.Module) -> None:
        nn.Module.__init__(self)
        self.network = network
        self.eval()

    def train(self, mode: bool = True) -> nn.Module:
        return nn.Module.train(self, mode)


class _OnlyNoGradient(Frozen):
    def __init__(self, network: nn.Module) -> None:
        nn.Module.__init__(self)
        self.network = network
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> nn.Module:
        return nn.Module.train(self, mode)


class _WakesUp(Frozen):
    def train(self, mode: bool = True) -> nn.Module:
        return nn.Module.train(self, mode)


class _StillLearns(Frozen):
    def __init__(self, network: nn.Module) -> None:
        nn.Module.__init__(self)
        self.network = network
        self.eval()


class _NothingAtStart(Frozen):
    def __init__(self, network: nn.Module) -> None:
        nn.Module.__init__(self)
        self.network = network
        self.requires_grad_(False)


def wake_up_call(answer: Any, arguments: tuple) -> Any:
    """Build a frozen network, put it beside a head, and let the parent's train() reach it. None for a stub."""
    network, x = arguments
    frozen = answer(network)
    at_start = _awake(frozen)
    if frozen.train(True) is None:
        return None
    parent = nn.ModuleDict({"upstream": frozen, "head": nn.Linear(x.shape[-1], 2)})
    parent.train()
    out = frozen(x)
    return {
        "parts that are awake at the start": at_start,
        "parts that are awake after parent.train()": _awake(frozen),
        "weights that ask for a gradient": sum(p.numel() for p in frozen.parameters() if p.requires_grad),
        "weights in all": sum(p.numel() for p in frozen.parameters()),
        "two calls give the same": bool(torch.equal(out, frozen(x))),
        "size of what comes out": list(out.shape),
    }


def _awake(module: nn.Module) -> int:
    return sum(part.training for part in module.modules())


def frozen_inputs(rng: np.random.Generator) -> list[tuple]:
    return [(Small(dim, rng), torch.from_numpy(rng.normal(size=(5, dim))).float()) for dim in (8, 6, 16)]


# ----------------------------------------------------------------------------------- q2: weighted sum


def weighted_sum(states: Tensor, scores: Tensor) -> Tensor:
    """states: (layers, batch, frames, dim); scores: (layers,) -> (batch, frames, dim)."""
    return torch.tensordot(scores.softmax(0), states, dims=1)


def _no_softmax(states: Tensor, scores: Tensor) -> Tensor:
    return torch.tensordot(scores, states, dims=1)


def _softmax_over_one(states: Tensor, scores: Tensor) -> Tensor:
    return (scores[:, None, None, None].softmax(-1) * states).sum(0)


def _softmax_of_states(states: Tensor, scores: Tensor) -> Tensor:
    return torch.tensordot(scores, states.softmax(0), dims=1)


def _plain_mean(states: Tensor, scores: Tensor) -> Tensor:
    return states.mean(0)


def _last_layer(states: Tensor, scores: Tensor) -> Tensor:
    return states[-1]


def weighted_sum_inputs(rng: np.random.Generator) -> list[tuple]:
    shapes = ((5, 2, 7, 4), (3, 1, 4, 6), (13, 2, 3, 5))
    cases = [(_normal(rng, *shape), _normal(rng, shape[0])) for shape in shapes]
    return [*cases, (_normal(rng, 4, 2, 3, 3), torch.zeros(4))]  # zeros: where round 2 starts


# ------------------------------------------------------------------------------------ q3: masked mean


def masked_mean(states: Tensor, lengths: Tensor) -> Tensor:
    """states: (layers, batch, frames, dim); lengths: (batch,) -> (layers, batch, dim)."""
    valid = torch.arange(states.shape[2]) < lengths[:, None]  # (batch, frames)
    total = (states * valid[None, :, :, None]).sum(2)
    return total / lengths[:, None]


def _over_padding(states: Tensor, lengths: Tensor) -> Tensor:
    return states.mean(2)


def _divided_by_longest(states: Tensor, lengths: Tensor) -> Tensor:
    return masked_mean(states, lengths) * lengths[:, None] / states.shape[2]


def _one_too_many(states: Tensor, lengths: Tensor) -> Tensor:
    return masked_mean(states, (lengths + 1).clamp(max=states.shape[2]))


def _one_too_few(states: Tensor, lengths: Tensor) -> Tensor:
    return masked_mean(states, (lengths - 1).clamp(min=1))


def _all_summed(states: Tensor, lengths: Tensor) -> Tensor:
    valid = torch.arange(states.shape[2]) < lengths[:, None]
    return (states * valid[None, :, :, None]).sum(2) / lengths.sum()


def masked_mean_inputs(rng: np.random.Generator) -> list[tuple]:
    """The padding is not zero: a mask has to do the work."""
    lengths = ([7, 4], [5], [9, 9, 2, 1])
    return [(_normal(rng, 3, len(n), max(n) + 2, 5), torch.tensor(n)) for n in lengths]


# --------------------------------------------------------------------------------------- q4: one map


def one_map(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """w1 (hidden, dim), b1 (hidden,), w2 (classes, hidden), b2 (classes,) -> W (classes, dim), b (classes,)."""
    return w2 @ w1, w2 @ b1 + b2


def _first_bias_lost(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    return w2 @ w1, b2


def _second_bias_lost(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    return w2 @ w1, w2 @ b1


def _transposed(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    return w1.T @ w2.T, w2 @ b1 + b2


def _with_relu(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    return w2 @ w1.relu(), w2 @ b1.relu() + b2


def one_map_inputs(rng: np.random.Generator) -> list[tuple]:
    sizes = ((6, 8, 3), (4, 5, 4), (2, 7, 9))  # dim, hidden, classes
    return [(_normal(rng, h, d), _normal(rng, h), _normal(rng, c, h), _normal(rng, c)) for d, h, c in sizes]


# ------------------------------------------------------------------------------------------ q5: CMVN

_TINY = 1e-10


def cmvn(x: Tensor, lengths: Tensor) -> Tensor:
    """x: (batch, frames, dim); lengths: (batch,) -> the same shape, zero in the padding."""
    out = torch.zeros_like(x)
    for clip, n in enumerate(lengths.tolist()):
        valid = x[clip, :n]
        out[clip, :n] = (valid - valid.mean(0)) / (valid.std(0) + _TINY)
    return out


def _whole_batch(x: Tensor, lengths: Tensor) -> Tensor:
    inside = torch.arange(x.shape[1]) < lengths[:, None]
    valid = x[inside]
    return (x - valid.mean(0)) / (valid.std(0) + _TINY) * inside[..., None]


def _padding_counts(x: Tensor, lengths: Tensor) -> Tensor:
    inside = torch.arange(x.shape[1]) < lengths[:, None]
    return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + _TINY) * inside[..., None]


def _no_variance(x: Tensor, lengths: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for clip, n in enumerate(lengths.tolist()):
        out[clip, :n] = x[clip, :n] - x[clip, :n].mean(0)
    return out


def _each_frame(x: Tensor, lengths: Tensor) -> Tensor:
    inside = torch.arange(x.shape[1]) < lengths[:, None]
    return (x - x.mean(2, keepdim=True)) / (x.std(2, keepdim=True) + _TINY) * inside[..., None]


def _padding_stays(x: Tensor, lengths: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for clip, n in enumerate(lengths.tolist()):
        valid = x[clip, :n]
        out[clip] = (x[clip] - valid.mean(0)) / (valid.std(0) + _TINY)
    return out


def cmvn_inputs(rng: np.random.Generator) -> list[tuple]:
    """Two clips or more in each batch, every one with another mean and spread, and padding after all of them."""

    def case(lengths: list[int], dim: int) -> tuple[Tensor, Tensor]:
        x = _normal(rng, len(lengths), max(lengths) + 2, dim)
        spread, offset = 1 + _normal(rng, len(lengths), 1, dim).abs(), _normal(rng, len(lengths), 1, dim)
        return x * spread + offset, torch.tensor(lengths)

    return [case([9, 6], 4), case([5, 5], 3), case([12, 3, 7], 6)]


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.normal(size=shape)).float()


# ---------------------------------------------------------------------------------------- the records

EXERCISES = {
    "probe.q1": Exercise(
        key="probe.q1",
        title="a network that stays frozen",
        reference=Frozen,
        inputs=frozen_inputs,
        call=wake_up_call,
        wrong=(
            WrongAnswer("only eval", _OnlyEval,
                        "eval() alone lasts until parent.train(), and the weights still ask for a gradient"),
            WrongAnswer("only requires_grad", _OnlyNoGradient,
                        "the weights rest, but it is still in train mode, so dropout is awake: it needs eval() too"),
            WrongAnswer("wakes up", _WakesUp,
                        "it starts frozen, but parent.train() reaches every child and wakes it up; override train()"),
            WrongAnswer("still learns", _StillLearns,
                        "it stays in eval mode, but its weights ask for a gradient, so an optimiser would move them"),
            WrongAnswer("nothing at the start", _NothingAtStart,
                        "until somebody calls train() it is in train mode: put it to sleep in __init__ as well"),
        ),
        hints=(
            "Two switches make a network frozen: one for its layers (dropout ...), one for its weights.",
            "self.requires_grad_(False) and self.eval() at the end of __init__. Then: who calls train() later?",
            "parent.train() calls train(True) of every child. Yours may ignore the True: return super().train(False).",
        ),
    ),
    "probe.q2": Exercise(
        key="probe.q2",
        title="the weighted sum of layers",
        reference=weighted_sum,
        inputs=weighted_sum_inputs,
        wrong=(
            WrongAnswer("no softmax", _no_softmax,
                        "the scores are used as they are: without softmax shares may be negative, and not add up to 1"),
            WrongAnswer("softmax over an axis of size 1", _softmax_over_one,
                        "the softmax runs over an axis of size 1, where it is always 1: take it over the layers"),
            WrongAnswer("softmax of the states", _softmax_of_states,
                        "the softmax belongs to the scores, and you took it of the states"),
            WrongAnswer("plain mean", _plain_mean,
                        "this is the plain mean, where round 2 starts; the scores must count"),
            WrongAnswer("last layer", _last_layer, "this is the last layer alone, as in round 1"),
        ),
        hints=(
            "First turn the scores into shares that add up to 1; then give each layer its share.",
            "shares = scores.softmax(0), which is (layers,). Make it (layers, 1, 1, 1) to multiply with the states.",
            "(scores.softmax(0)[:, None, None, None] * states).sum(0), or torch.tensordot(shares, states, dims=1)",
        ),
    ),
    "probe.q3": Exercise(
        key="probe.q3",
        title="the mean over valid frames",
        reference=masked_mean,
        inputs=masked_mean_inputs,
        wrong=(
            WrongAnswer("mean over padding", _over_padding, "the padding is averaged too: use lengths"),
            WrongAnswer("divided by the longest", _divided_by_longest,
                        "you add up the valid frames, but divide by the number of all frames: divide by lengths"),
            WrongAnswer("one frame too many", _one_too_many,
                        "the first frame of the padding is counted: frame numbers start at 0, so < lengths and not <="),
            WrongAnswer("one frame too few", _one_too_few,
                        "the last valid frame is left out: it has the number lengths - 1"),
            WrongAnswer("divided by all", _all_summed,
                        "each clip is divided by the frames of the whole batch: lengths has one number per clip"),
        ),
        hints=(
            "Which frames count? Number them, and compare with lengths.",
            "valid = torch.arange(states.shape[2]) < lengths[:, None] is (batch, frames): add an axis at both ends.",
            "(states * valid[None, :, :, None]).sum(2) / lengths[:, None]",
        ),
    ),
    "probe.q4": Exercise(
        key="probe.q4",
        title="two linear maps are one",
        reference=one_map,
        inputs=one_map_inputs,
        tolerance=1e-4,
        wrong=(
            WrongAnswer("first bias lost", _first_bias_lost,
                        "b1 is lost: the second map is applied to it as well, so w2 @ b1 belongs into b"),
            WrongAnswer("second bias lost", _second_bias_lost, "b2 is lost: the second map adds it at the very end"),
            WrongAnswer("transposed", _transposed,
                        "W is transposed: it should be (classes, dim), like the weight of nn.Linear"),
            WrongAnswer("with an activation", _with_relu, "there is an activation in it, and SUPERB's head has none"),
        ),
        hints=(
            "Write it with letters: w2 (w1 m + b1) + b2. What stands before m? What stands alone?",
            "Before m: w2 @ w1. Alone: two terms, and b1 went through the second map.",
            "return w2 @ w1, w2 @ b1 + b2",
        ),
    ),
    "probe.q5": Exercise(
        key="probe.q5",
        title="normalise each utterance (CMVN)",
        reference=cmvn,
        inputs=cmvn_inputs,
        tolerance=1e-4,
        wrong=(
            WrongAnswer("statistics of the batch", _whole_batch,
                        "mean and deviation are those of the whole batch; each clip has its own"),
            WrongAnswer("padding counts", _padding_counts,
                        "the padding is in the mean and the deviation: cut to lengths first"),
            WrongAnswer("mean only", _no_variance, "the mean is gone, but the deviation is not 1 yet: divide by it"),
            WrongAnswer("each frame", _each_frame,
                        "each frame was normalised over its dims; CMVN takes each dim over the frames of a clip"),
            WrongAnswer("padding filled", _padding_stays, "the padding is no longer zero: leave zeros beyond lengths"),
        ),
        hints=(
            "Take one clip at a time, and of that clip the valid frames only: x[clip, :n].",
            "valid.mean(0) and valid.std(0) have one number per dim: they go over the frames.",
            "out = zeros_like(x); for each clip: out[clip, :n] = (valid - valid.mean(0)) / (valid.std(0) + 1e-10)",
        ),
    ),
}  # fmt: skip
