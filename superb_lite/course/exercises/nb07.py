"""Exercises of notebook 07: the first frames, variance between people, one answer for all, a learning rate, top-k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from superb_lite.course.exercises import Exercise, WrongAnswer

# ----------------------------------------------------------------- q1: the mean of the first n frames


def mean_of_first(x: Tensor, lengths: Tensor, n: int) -> Tensor:
    """x: (batch, frames, dim); lengths: (batch,) -> (batch, dim): the mean of each clip's first n valid frames."""
    return _mean_where(x, torch.arange(x.shape[1]) < lengths.clamp(max=n)[:, None])


def _mean_where(x: Tensor, used: Tensor) -> Tensor:
    """used: (batch, frames) bool."""
    return (x * used[..., None]).sum(1) / used.sum(1, keepdim=True)


def _ignores_lengths(x, lengths, n):
    return x[:, :n].mean(1)


def _divides_by_n(x, lengths, n):
    return mean_of_first(x, lengths, n) * lengths.clamp(max=n)[:, None] / n


def _one_frame_more(x, lengths, n):
    return mean_of_first(x, lengths, n + 1)


def _all_frames(x, lengths, n):
    return mean_of_first(x, lengths, x.shape[1])


def _the_last_ones(x, lengths, n):
    place = torch.arange(x.shape[1])
    return _mean_where(x, (place < lengths[:, None]) & (place >= (lengths - n)[:, None]))


def _frame_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(dim: int, lengths: list[int], n: int) -> tuple:
        # what stands in the padding is not zero: a mean must not look there
        x = torch.from_numpy(rng.normal(size=(len(lengths), max(lengths), dim))).float()
        return x, torch.tensor(lengths), n

    return [case(4, [9, 5, 7, 2], 3), case(3, [6, 4], 1), case(2, [5, 8, 1], 8), case(3, [4, 6], 100)]


# ------------------------------------------------------------- q2: how much of the variance is between


def share_explained(x: Tensor, groups: Tensor) -> float:
    """x: (items, dim); groups: (items,) int64 -> the part of the variance that lies between the groups, 0 to 1."""
    around = x - x.mean(0)
    return float((around - _inside(x, groups)).square().sum() / around.square().sum())


def _group_means(x: Tensor, groups: Tensor) -> Tensor:
    return torch.stack([x[groups == group].mean(0) for group in groups.unique()])


def _inside(x: Tensor, groups: Tensor) -> Tensor:
    """Each item minus the mean of its group."""
    _, place = groups.unique(return_inverse=True)
    return x - _group_means(x, groups)[place]


def _share_inside(x, groups):
    return 1 - share_explained(x, groups)


def _ratio(x, groups):
    share = share_explained(x, groups)
    return share / (1 - share) if share < 1 else 1e6


def _groups_alike(x, groups):
    means = _group_means(x, groups)
    return float((means - x.mean(0)).square().sum(1).mean() / (x - x.mean(0)).square().sum(1).mean())


def _not_centred(x, groups):
    inside = _inside(x, groups)
    return float((x - inside).square().sum() / x.square().sum())


def _mean_of_shares(x, groups):
    return float(np.mean([share_explained(column[:, None], groups) for column in x.T]))


def _group_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(sizes: list[int], dim: int, apart: float) -> tuple:
        groups = np.repeat(np.arange(len(sizes)), sizes)
        scale = 1 + 4 * rng.random(dim)  # dimensions of unequal size
        x = apart * rng.normal(size=(len(sizes), dim))[groups] + rng.normal(size=(len(groups), dim))
        order = rng.permutation(len(groups))
        return torch.from_numpy(3 + x * scale)[order].float(), torch.from_numpy(groups)[order]

    one_each = torch.from_numpy(rng.normal(size=(4, 2))).float(), torch.arange(4)
    return [case([5, 2, 9], 3, 1.0), case([4, 4], 1, 0.1), case([3, 8, 2, 6], 5, 3.0), one_each]


# ----------------------------------------------------------------------- q3: the answer to everybody


def answer_to_everybody(first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor) -> Tensor:
    """The (classes,) logits of SUPERB's head for a clip whose mean is zero: second @ first_bias + second_bias."""
    return second @ first_bias + second_bias


def _only_last_bias(first, first_bias, second, second_bias):
    return second_bias


def _forgets_last_bias(first, first_bias, second, second_bias):
    return second @ first_bias


def _clip_of_ones(first, first_bias, second, second_bias):
    return second @ (first.sum(1) + first_bias) + second_bias


def _rectified(first, first_bias, second, second_bias):
    return second @ first_bias.relu() + second_bias


def _zeros(first, first_bias, second, second_bias):
    return torch.zeros_like(second_bias)


def _head_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(dim: int, hidden: int, classes: int) -> tuple:
        shapes = (hidden, dim), (hidden,), (classes, hidden), (classes,)
        return tuple(torch.from_numpy(rng.normal(size=shape)).float() for shape in shapes)

    return [case(5, 4, 3), case(2, 6, 7), case(8, 1, 2)]


# ------------------------------------------------------------------------------ q4: a learning rate

Runs = Mapping[float, Sequence[tuple[float, float]]]  # learning rate -> (dev, test) accuracy of each seed


def choose_lr(runs: Runs) -> tuple[float, float]:
    """(the learning rate with the best mean on dev, its mean on test); the smaller one if two are equal."""
    best = max(sorted(runs), key=lambda lr: np.mean([dev for dev, _ in runs[lr]]))
    return best, float(np.mean([test for _, test in runs[best]]))


def _on_test(runs):
    best = max(sorted(runs), key=lambda lr: np.mean([test for _, test in runs[lr]]))
    return best, float(np.mean([test for _, test in runs[best]]))


def _luckiest_seed(runs):
    best = max(sorted(runs), key=lambda lr: max(dev for dev, _ in runs[lr]))
    return best, float(np.mean([test for _, test in runs[best]]))


def _reports_dev(runs):
    best, _ = choose_lr(runs)
    return best, float(np.mean([dev for dev, _ in runs[best]]))


def _reports_best_seed(runs):
    best, _ = choose_lr(runs)
    return best, max(test for _, test in runs[best])


def _larger_of_equals(runs):
    best = max(sorted(runs, reverse=True), key=lambda lr: np.mean([dev for dev, _ in runs[lr]]))
    return best, float(np.mean([test for _, test in runs[best]]))


def _run_inputs(rng: np.random.Generator) -> list[tuple]:
    def noisy(value: float, spread: float) -> tuple[float, float]:
        return value + spread * float(rng.random()), 60 + 20 * float(rng.random())

    # 1e-2 is best on dev, 1e-1 on test; 1e-3 has the one luckiest seed; the dictionary is not in order
    typical = {
        1e-1: [(50.0, 95.0), (52.0, 96.0)],
        1e-3: [(99.0, 70.0), (41.0, 72.0)],
        1e-2: [noisy(80.0, 5.0), noisy(80.0, 5.0)],
        1e-4: [(30.0, 25.0), (31.0, 26.0)],
    }
    equal = {1e-1: [(90.0, 81.0)], 1e-3: [(90.0, 84.0)], 1e-4: [(20.0, 23.0)]}
    return [(typical,), (equal,), ({5e-3: [noisy(70.0, 9.0)] * 3},)]


# ------------------------------------------------------------------------------------------ q5: top-k


def top_k(logits: Tensor, truth: Tensor, k: int) -> float:
    """logits: (clips, classes); truth: (clips,) -> percent of clips whose class is among the k largest logits."""
    return 100 * float((logits.topk(k).indices == truth[:, None]).any(1).double().mean())


def _always_first(logits, truth, k):
    return top_k(logits, truth, 1)


def _smallest(logits, truth, k):
    return top_k(-logits, truth, k)


def _exactly_kth(logits, truth, k):
    return 100 * float((logits.topk(k).indices[:, -1] == truth).double().mean())


def _divided_by_k(logits, truth, k):
    return top_k(logits, truth, k) / k


def _as_fraction(logits, truth, k):
    return top_k(logits, truth, k) / 100


def _logit_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(clips: int, classes: int, k: int) -> tuple:
        truth = torch.from_numpy(rng.integers(classes, size=clips))
        logits = torch.from_numpy(rng.normal(size=(clips, classes))).float()
        logits[torch.arange(clips), truth] += 1.0
        # the three cases that must count differently are always there: first, second and last place
        for clip, place in enumerate((0, 1, classes - 1)):
            order = logits[clip].argsort(descending=True)
            truth[clip] = order[place]
        return logits, truth, k

    return [case(30, 8, 3), case(12, 5, 1), case(9, 4, 4), case(20, 6, 2)]


EXERCISES = {
    "sid.q1": Exercise(
        key="sid.q1",
        title="the mean of the first n frames",
        reference=mean_of_first,
        inputs=_frame_inputs,
        wrong=(
            WrongAnswer(
                "padding", _ignores_lengths, "where a clip is shorter than n frames, its padding is averaged too: use "
                "min(n, lengths)"
            ),
            WrongAnswer(
                "divides by n", _divides_by_n, "clips shorter than n frames are divided by n, though fewer frames were "
                "added up"
            ),
            WrongAnswer("one more", _one_frame_more, "it takes n + 1 frames: the first n are numbers 0 to n - 1"),
            WrongAnswer("all frames", _all_frames, "it averages the whole clip; only the first n frames may be heard"),
            WrongAnswer("the last n", _the_last_ones, "it takes the last n frames; the first n were asked for"),
        ),
        hints=(
            "How many frames of each clip count? It is the smaller of two numbers.",
            "used = torch.arange(x.shape[1]) < lengths.clamp(max=n)[:, None] has the shape (batch, frames)",
            "Add up x * used[..., None] over the frames, and divide by used.sum(1, keepdim=True)",
        ),
    ),
    "sid.q2": Exercise(
        key="sid.q2",
        title="how much of the variance lies between groups",
        reference=share_explained,
        inputs=_group_inputs,
        tolerance=1e-4,
        wrong=(
            WrongAnswer(
                "inside", _share_inside, "that is the part inside the groups; the part between them is what is left"
            ),
            WrongAnswer(
                "ratio", _ratio, "it divides between by within, which has no upper end; divide by the whole variance"
            ),
            WrongAnswer(
                "groups alike", _groups_alike, "every group counts the same, but a group of nine items should count "
                "nine times: give each item its group's mean"
            ),
            WrongAnswer(
                "not centred", _not_centred, "the mean of everything was not subtracted, so a common offset counts as "
                "variance"
            ),
            WrongAnswer(
                "mean of shares", _mean_of_shares, "it averages one share per dimension; add up the squares of all "
                "dimensions first, then divide once"
            ),
        ),
        hints=(
            "Replace every item by the mean of its group. How much do these vary around the mean of everything?",
            "between = sum of ((mean of the item's group) - (mean of all)) squared, over items and dimensions",
            "means = torch.stack([x[groups == g].mean(0) for g in groups]); then ((means - x.mean(0)) ** 2).sum() / "
            "((x - x.mean(0)) ** 2).sum()",
        ),
    ),
    "sid.q3": Exercise(
        key="sid.q3",
        title="one answer for everybody",
        reference=answer_to_everybody,
        inputs=_head_inputs,
        wrong=(
            WrongAnswer(
                "last bias only", _only_last_bias, "the first bias is lost: it is what comes out of the first map when "
                "zero goes in, and the second map sees it"
            ),
            WrongAnswer(
                "no last bias", _forgets_last_bias, "the second bias is missing: it is added whatever comes in"
            ),
            WrongAnswer("ones", _clip_of_ones, "that is the answer to a clip whose mean is 1 everywhere; put in zero"),
            WrongAnswer("relu", _rectified, "there is a ReLU between the two maps; SUPERB's head has no activation"),
            WrongAnswer("zeros", _zeros, "zero in is not zero out: the maps are affine, they have biases"),
        ),
        hints=(
            "Write the head down: second @ (first @ mean + first_bias) + second_bias. Which term falls away?",
            "With mean = 0, first_bias is all that the second map gets to see",
            "second @ first_bias + second_bias",
        ),
    ),
    "sid.q4": Exercise(
        key="sid.q4",
        title="choose a learning rate",
        reference=choose_lr,
        inputs=_run_inputs,
        wrong=(
            WrongAnswer(
                "on test", _on_test, "it chooses on test, so that the number it reports is too good: choose on dev"
            ),
            WrongAnswer(
                "luckiest seed", _luckiest_seed, "one lucky seed decides: compare the means over the seeds"
            ),
            WrongAnswer(
                "reports dev", _reports_dev, "it reports the score on dev, on which it has chosen: report test"
            ),
            WrongAnswer(
                "best seed", _reports_best_seed, "it reports the best seed on test; report the mean over the seeds"
            ),
            WrongAnswer("larger", _larger_of_equals, "of two equal learning rates it takes the larger one"),
        ),
        hints=(
            "Two splits, two jobs: one chooses, the other is reported. And no seed is better than its brothers.",
            "sorted(runs) goes from small to large, and max() keeps the first of equals",
            "best = max(sorted(runs), key=lambda lr: np.mean([dev for dev, _ in runs[lr]])); return it with the mean "
            "of the second entries of runs[best]",
        ),
    ),
    "sid.q5": Exercise(
        key="sid.q5",
        title="right within k guesses",
        reference=top_k,
        inputs=_logit_inputs,
        wrong=(
            WrongAnswer("k is ignored", _always_first, "k is ignored: only the first guess counts"),
            WrongAnswer("smallest", _smallest, "it takes the k smallest logits; the likely classes have the largest"),
            WrongAnswer("only the k-th", _exactly_kth, "only the k-th guess counts; any of the first k should"),
            WrongAnswer("divided by k", _divided_by_k, "it divides by k: a clip is right or not, however many guesses"),
            WrongAnswer("fraction", _as_fraction, "it returns a fraction; percent were asked for"),
        ),
        hints=(
            "torch has a method that gives the k largest entries of each row, and where they are",
            "found = logits.topk(k).indices has the shape (clips, k)",
            "100 * (found == truth[:, None]).any(1).float().mean(), as a float",
        ),
    ),
}
