"""Exercises of notebook 08: statistics pooling, cosines of trials, two kinds of error, the EER, AM-softmax's margin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from superb_lite.course.exercises import Exercise, WrongAnswer
from superb_lite.heads import mean_and_deviation
from superb_lite.metrics import det_points, eer

Trials = Sequence[tuple[str, str, bool]]

# ----------------------------------------------------------------------- q1: statistics pooling


def statistics(x: Tensor, lengths: Tensor) -> Tensor:
    """x: (batch, frames, dim); lengths: (batch,) -> (batch, 2 * dim): the mean, then the deviation, of valid frames."""
    return mean_and_deviation(x.transpose(1, 2), lengths)


def _over_padding(x, lengths):
    return statistics(x, torch.full_like(lengths, x.shape[1]))


def _halves(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, deviation = statistics(x, lengths).chunk(2, dim=1)
    return mean, deviation, lengths[:, None].to(x.dtype)


def _divided_by_n(x, lengths):
    mean, deviation, count = _halves(x, lengths)
    return torch.cat([mean, deviation * ((count - 1) / count).sqrt()], dim=1)


def _variance(x, lengths):
    mean, deviation, _ = _halves(x, lengths)
    return torch.cat([mean, deviation.square()], dim=1)


def _nothing_over_nothing(x, lengths):
    mean, deviation, count = _halves(x, lengths)
    return torch.cat([mean, torch.where(count > 1, deviation, torch.nan)], dim=1)


def _zeros_in_padding(x, lengths):
    """The padding is set to zero, and then taken for frames whose distance from the mean counts."""
    mean, _, count = _halves(x, lengths)
    valid = (torch.arange(x.shape[1]) < lengths[:, None])[..., None]
    spread = (torch.where(valid, x, 0.0) - mean[:, None]).square().sum(1)
    return torch.cat([mean, (spread / (count - 1).clamp(min=1)).sqrt()], dim=1)


def _frame_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(dim: int, lengths: list[int]) -> tuple:
        # what stands in the padding is not zero: nobody should look there
        x = torch.from_numpy(rng.normal(1.0, 2.0, size=(len(lengths), max(lengths), dim))).float()
        return x, torch.tensor(lengths)

    return [case(3, [6, 4, 2]), case(5, [7, 1, 3]), case(2, [1])]


# ------------------------------------------------------------------------ q2: one number per trial


def trial_cosines(vectors: Mapping[str, Tensor], trials: Trials) -> Tensor:
    """vectors: {clip id: (dim,)}; trials: [(id, id, same), ...] -> (trials,): the cosine of each pair, in order."""
    return functional.cosine_similarity(*_sides(vectors, trials), dim=1)


def _sides(vectors: Mapping[str, Tensor], trials: Trials) -> tuple[Tensor, Tensor]:
    first, second = (torch.stack([vectors[trial[side]] for trial in trials]) for side in (0, 1))
    return first, second


def _dot_product(vectors, trials):
    first, second = _sides(vectors, trials)
    return (first * second).sum(1)


def _cosine_distance(vectors, trials):
    return 1 - trial_cosines(vectors, trials)


def _nearness(vectors, trials):
    first, second = _sides(vectors, trials)
    return -(first - second).norm(dim=1)


def _squared_lengths(vectors, trials):
    first, second = _sides(vectors, trials)
    return (first * second).sum(1) / (first.square().sum(1) * second.square().sum(1)).clamp(min=1e-12)


def _zero_over_zero(vectors, trials):
    first, second = _sides(vectors, trials)
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))


def _trial_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(clips: int, dim: int, trials: int, silent: bool = False) -> tuple:
        names = [f"clip{number}" for number in rng.permutation(clips)]
        vectors = {name: torch.from_numpy(rng.normal(size=dim) * rng.uniform(0.2, 5)).float() for name in names}
        if silent:  # a ReLU may leave nothing of a clip
            vectors[names[0]] = torch.zeros(dim)
        pairs = [tuple(rng.choice(names, size=2, replace=False).tolist()) for _ in range(trials)]
        if silent:
            pairs[0] = names[0], names[1]
        return vectors, [(one, other, bool(rng.random() < 0.5)) for one, other in pairs]

    return [case(5, 4, 6), case(2, 3, 1), case(6, 8, 9, silent=True)]


# --------------------------------------------------------------------- q3: two kinds of error


def error_rates(same: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[float, float]:
    """(trials,) bool, (trials,), a threshold -> (false acceptances in % of the strangers, false rejections in % of the
    true pairs); a trial is accepted if its score is at least the threshold."""
    same, accepted = np.asarray(same, dtype=bool), np.asarray(scores) >= threshold
    return 100 * float(accepted[~same].mean()), 100 * float((~accepted[same]).mean())


def _of_all_trials(same, scores, threshold):
    accept, reject = error_rates(same, scores, threshold)
    return accept * float((~same).mean()), reject * float(same.mean())


def _swapped(same, scores, threshold):
    return error_rates(same, scores, threshold)[::-1]


def _strictly_above(same, scores, threshold):
    return error_rates(same, scores, np.nextafter(threshold, np.inf))


def _of_the_accepted(same, scores, threshold):
    accepted = np.asarray(scores) >= threshold
    wrongly, missed = float((accepted & ~same).sum()), float((~accepted & same).sum())
    return 100 * wrongly / max(1, int(accepted.sum())), 100 * missed / max(1, int((~accepted).sum()))


def _fractions(same, scores, threshold):
    return tuple(rate / 100 for rate in error_rates(same, scores, threshold))


def _decision_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(targets: int, others: int, threshold: float) -> tuple:
        same = rng.permutation([True] * targets + [False] * others)
        scores = np.where(same, 0.6, 0.4) + 0.3 * rng.normal(size=len(same))
        scores[np.flatnonzero(same)[0]], scores[np.flatnonzero(~same)[0]] = threshold - 0.05, threshold + 0.05
        return same, scores, threshold

    # whole tenths, with the threshold among them: is a score accepted that equals it?
    tenths = np.array([0.1, 0.5, 0.5, 0.9, 0.3, 0.5, 0.7]), np.array([0, 0, 1, 1, 0, 1, 0], dtype=bool)
    return [case(6, 9, 0.5), case(20, 7, 0.3), (tenths[1], tenths[0], 0.5)]


# ------------------------------------------------------------------------------------- q4: the EER


def equal_error_rate(same: np.ndarray, scores: np.ndarray) -> float:
    """(trials,) bool, (trials,) -> percent: where false acceptances and false rejections are equal."""
    return eer(same, scores)


def _crossing(accepts: np.ndarray, rejects: np.ndarray) -> float:
    """Where two paths meet, of which one rises and the other falls, point by point."""
    gap = accepts - rejects
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(accepts[after - 1] + share * (accepts[after] - accepts[after - 1]))


def _ties_one_by_one(same, scores):
    hits = np.asarray(same, dtype=bool)[np.argsort(-np.asarray(scores, dtype=float), kind="stable")]
    accepts = np.concatenate([[0], np.cumsum(~hits)]) / (~hits).sum()
    rejects = 1 - np.concatenate([[0], np.cumsum(hits)]) / hits.sum()
    return 100 * _crossing(accepts, rejects)


def _nearest_point(same, scores):
    _, accepts, rejects = det_points(same, scores)
    nearest = int(np.argmin(np.abs(accepts - rejects)))
    return float(accepts[nearest] + rejects[nearest]) / 2


def _fewest_errors(same, scores):
    _, accepts, rejects = det_points(same, scores)
    return float((accepts + rejects).min()) / 2


def _as_fraction(same, scores):
    return eer(same, scores) / 100


def _upside_down(same, scores):
    return eer(same, -np.asarray(scores, dtype=float))


def _score_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(targets: int, others: int, decimals: int, apart: float) -> tuple:
        same = rng.permutation([True] * targets + [False] * others)
        return same, (apart * same + rng.normal(size=len(same))).round(decimals)

    shuffled = rng.permutation([True] * 5 + [False] * 8)
    undecided = np.array([True] * 3 + [False] * 3), np.full(6, 5.0)  # everybody got the same mark
    tied = np.array([True, False, False, True, False]), np.array([2.0, 2.0, 1.0, 1.0, 0.0])
    return [case(17, 26, 9, 1.2), case(40, 30, 0, 1.0), undecided, tied, (shuffled, shuffled * 1.0)]


# ------------------------------------------------------------------------------------ q5: the margin


def margin_logits(
    embeddings: Tensor, speakers: Tensor, numbers: Tensor, margin: float = 0.4, scale: float = 30.0
) -> Tensor:
    """embeddings: (batch, dim); speakers: (dim, classes); numbers: (batch,) -> logits (batch, classes)."""
    cosines = _cosines(embeddings, speakers)
    return scale * (cosines - margin * functional.one_hot(numbers, cosines.shape[1]))


def _cosines(embeddings: Tensor, speakers: Tensor) -> Tensor:
    return functional.normalize(embeddings, dim=1) @ functional.normalize(speakers, dim=0)


def _off_everybody(embeddings, speakers, numbers, margin=0.4, scale=30.0):
    return scale * (_cosines(embeddings, speakers) - margin)


def _after_scaling(embeddings, speakers, numbers, margin=0.4, scale=30.0):
    cosines = _cosines(embeddings, speakers)
    return scale * cosines - margin * functional.one_hot(numbers, cosines.shape[1])


def _helps(embeddings, speakers, numbers, margin=0.4, scale=30.0):
    return margin_logits(embeddings, speakers, numbers, -margin, scale)


def _lengths_left_in(embeddings, speakers, numbers, margin=0.4, scale=30.0):
    cosines = embeddings @ speakers
    return scale * (cosines - margin * functional.one_hot(numbers, cosines.shape[1]))


def _on_the_angle(embeddings, speakers, numbers, margin=0.4, scale=30.0):
    cosines = _cosines(embeddings, speakers)
    right = functional.one_hot(numbers, cosines.shape[1]).bool()
    return scale * torch.where(right, (cosines.clamp(-0.999, 0.999).acos() + margin).cos(), cosines)


def with_slopes(answer: Callable, arguments: tuple) -> Any:
    """[logits, slope for the embeddings, slope for the speaker vectors]: without slopes nothing would be learned."""
    embeddings, speakers, *rest = arguments
    embeddings, speakers = embeddings.clone().requires_grad_(), speakers.clone().requires_grad_()
    logits = answer(embeddings, speakers, *rest)
    if not isinstance(logits, Tensor):
        return logits
    (logits * torch.arange(1.0, 1 + logits.numel()).sin().view_as(logits)).sum().backward()
    return [logits.detach(), embeddings.grad, speakers.grad]


def _margin_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(batch: int, dim: int, classes: int, *rest: float) -> tuple:
        vectors = (torch.from_numpy(rng.normal(size=shape)).float() for shape in ((batch, dim), (dim, classes)))
        return *vectors, torch.from_numpy(rng.integers(classes, size=batch)), *rest

    return [case(4, 6, 5), case(1, 3, 2, 0.2, 10.0), case(6, 4, 3, 0.35, 64.0)]


EXERCISES = {
    "asv.q1": Exercise(
        key="asv.q1",
        title="statistics pooling",
        reference=statistics,
        inputs=_frame_inputs,
        wrong=(
            WrongAnswer(
                "over padding", _over_padding, "the padding counts, too: mean and deviation are those of the first "
                "lengths[i] frames"
            ),
            WrongAnswer(
                "zeros in the padding", _zeros_in_padding, "the mean is right, but the deviation counts padded frames: "
                "after subtracting the mean they are not zero any more, so mask once again"
            ),
            WrongAnswer(
                "divided by n", _divided_by_n, "the squares are divided by n; the deviation asked for divides by n - 1"
            ),
            WrongAnswer("variance", _variance, "the second half is the variance: take its square root"),
            WrongAnswer(
                "one frame", _nothing_over_nothing, "with a single frame it divides 0 by 0 and gets NaN; the deviation "
                "of a single frame counts as 0"
            ),
        ),
        hints=(
            "Which frames are valid? torch.arange(frames) < lengths[:, None] is True for them.",
            "Set the rest to zero before summing: once for the mean, and once more after you have subtracted the mean.",
            "(x - mean[:, None]).square() * valid, summed over time, divided by (lengths - 1).clamp(min=1)[:, None], "
            "then the square root; torch.cat([mean, deviation], dim=1)",
        ),
    ),
    "asv.q2": Exercise(
        key="asv.q2",
        title="one number per trial",
        reference=trial_cosines,
        inputs=_trial_inputs,
        wrong=(
            WrongAnswer(
                "dot product", _dot_product, "it is the dot product: long vectors score high with everybody. Divide by "
                "both lengths"
            ),
            WrongAnswer(
                "distance", _cosine_distance, "it is 1 minus the cosine, which is small for equal voices; a score is "
                "high for them"
            ),
            WrongAnswer(
                "euclidean", _nearness, "it measures how far apart the ends of the vectors are; what is asked for is "
                "the cosine of the angle between them"
            ),
            WrongAnswer(
                "squared lengths", _squared_lengths, "it divides by the squared lengths of the vectors; the cosine "
                "divides by the lengths"
            ),
            WrongAnswer(
                "zero over zero", _zero_over_zero, "a vector of zeros makes NaN of its trials; their score is 0, so "
                "keep the divisor above zero"
            ),
        ),
        hints=(
            "Look up both vectors of every trial by their ids; the order of the trials stays.",
            "first = torch.stack([vectors[a] for a, _, _ in trials]), and second likewise.",
            "functional.cosine_similarity(first, second, dim=1) also takes care of zeros",
        ),
    ),
    "asv.q3": Exercise(
        key="asv.q3",
        title="two kinds of error",
        reference=error_rates,
        inputs=_decision_inputs,
        wrong=(
            WrongAnswer(
                "of all trials", _of_all_trials, "both are divided by the number of all trials; each kind of error can "
                "only happen to one kind of trial, so divide by the number of those"
            ),
            WrongAnswer(
                "of the decisions", _of_the_accepted, "it divides by how many were accepted or rejected; divide by how "
                "many strangers, and how many true pairs, there are"
            ),
            WrongAnswer("swapped", _swapped, "the two are swapped: false acceptances come first"),
            WrongAnswer(
                "strictly above", _strictly_above, "a score equal to the threshold is rejected; it should be accepted "
                "(at least, not more than)"
            ),
            WrongAnswer("fractions", _fractions, "the rates are fractions; percent are asked for"),
        ),
        hints=(
            "accepted = scores >= threshold is True or False for each trial.",
            "Strangers are scores[~same]. What share of them is accepted?",
            "100 * (scores[~same] >= threshold).mean(), 100 * (scores[same] < threshold).mean()",
        ),
    ),
    "asv.q4": Exercise(
        key="asv.q4",
        title="the equal error rate",
        reference=equal_error_rate,
        inputs=_score_inputs,
        wrong=(
            WrongAnswer(
                "ties one by one", _ties_one_by_one, "trials with equal scores are let in one after the other, so "
                "their order in the list decides; no threshold can separate them, so they have to pass together"
            ),
            WrongAnswer(
                "nearest point", _nearest_point, "it stops at the threshold where the two errors are nearest; follow "
                "the straight lines to the point where they cross"
            ),
            WrongAnswer(
                "fewest errors", _fewest_errors, "it is the smallest mean of the two errors; the equal error rate is "
                "where they are equal"
            ),
            WrongAnswer("a fraction", _as_fraction, "it is a fraction; percent are asked for"),
            WrongAnswer(
                "upside down", _upside_down, "it accepts the low scores; a high score means one voice"
            ),
        ),
        hints=(
            "Start above all scores: nobody is accepted, the errors are 0 and 100. Then lower the threshold from one "
            "distinct score to the next: thresholds = [np.inf, *np.unique(scores)[::-1]].",
            "With your error_rates you get one pair per threshold. Go through them until the first one is at least as "
            "large as the second.",
            "There and at the threshold before: gap = accept - reject. It passes zero after the share "
            "-gap_before / (gap_after - gap_before) of the way; the answer is accept_before + share * "
            "(accept_after - accept_before).",
        ),
    ),
    "asv.q5": Exercise(
        key="asv.q5",
        title="AM-softmax's margin",
        reference=margin_logits,
        inputs=_margin_inputs,
        call=with_slopes,
        tolerance=1e-4,
        wrong=(
            WrongAnswer(
                "off everybody", _off_everybody, "the margin is taken off all cosines, and a softmax does not notice "
                "that; take it off the right speaker's only"
            ),
            WrongAnswer(
                "after scaling", _after_scaling, "the margin is taken off after the scale, where it is next to "
                "nothing: subtract it from the cosine, then multiply"
            ),
            WrongAnswer(
                "it helps", _helps, "the margin is added, which makes it easier for the right speaker; it should "
                "be harder"
            ),
            WrongAnswer(
                "lengths left in", _lengths_left_in, "the vectors still have their lengths: without normalising both, "
                "these are no cosines"
            ),
            WrongAnswer(
                "on the angle", _on_the_angle, "the margin is added to the angle. That is a good loss with a name of "
                "its own (ArcFace); AM-softmax takes it off the cosine"
            ),
        ),
        hints=(
            "functional.normalize(embeddings, dim=1) makes rows of length 1. Along which dim do the speakers lie?",
            "A matrix product of the two gives all cosines, (batch, classes).",
            "functional.one_hot(numbers, classes) is 1 for the right speaker: scale * (cosines - margin * that)",
        ),
    ),
}
