"""Exercises of notebook 01: pre-train an upstream."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from superb_lite.course.exercises import Exercise, WrongAnswer


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.normal(size=shape)).float()


# ------------------------------------------------------------------------------------ q1: hide stretches


def hide_stretches(starts: Tensor, span: int, frames: int) -> Tensor:
    """starts: (batch, count) first frames of stretches -> (batch, frames) bool, True where a frame is hidden."""
    place = torch.arange(frames)[None, None]
    first = starts[:, :, None]
    return ((place >= first) & (place < first + span)).any(dim=1)


def _only_the_starts(starts: Tensor, span: int, frames: int) -> Tensor:
    return hide_stretches(starts, 1, frames)


def _one_too_many(starts: Tensor, span: int, frames: int) -> Tensor:
    return hide_stretches(starts, span + 1, frames)


def _backwards(starts: Tensor, span: int, frames: int) -> Tensor:
    return hide_stretches(starts - span + 1, span, frames)


def _same_for_all(starts: Tensor, span: int, frames: int) -> Tensor:
    return hide_stretches(starts[:1], span, frames).expand(len(starts), -1)


def _shown(starts: Tensor, span: int, frames: int) -> Tensor:
    return ~hide_stretches(starts, span, frames)


def stretch_inputs(rng: np.random.Generator) -> list[tuple]:
    """Overlaps, two clips or more in each batch, and a stretch that the end of the clip cuts off."""

    def case(batch: int, count: int, span: int, frames: int) -> tuple[Tensor, int, int]:
        return torch.from_numpy(rng.integers(frames - span + 1, size=(batch, count))), span, frames

    cut = torch.tensor([[2, 17], [9, 18]]), 5, 20
    return [case(3, 2, 4, 30), cut, case(2, 4, 5, 25), case(4, 1, 2, 9)]


# ------------------------------------------------------------------------------------ q2: the loss of rebuilding


def rebuilding_loss(guess: Tensor, truth: Tensor, hidden: Tensor) -> Tensor:
    """guess, truth: (batch, frames, dim); hidden: (batch, frames) bool -> mean absolute error of hidden frames."""
    return (guess - truth).abs()[hidden].mean()


def _all_frames(guess: Tensor, truth: Tensor, hidden: Tensor) -> Tensor:
    return (guess - truth).abs().mean()


def _visible_frames(guess: Tensor, truth: Tensor, hidden: Tensor) -> Tensor:
    return (guess - truth).abs()[~hidden].mean()


def _zeros_counted(guess: Tensor, truth: Tensor, hidden: Tensor) -> Tensor:
    return ((guess - truth).abs() * hidden[..., None]).mean()


def _summed(guess: Tensor, truth: Tensor, hidden: Tensor) -> Tensor:
    return (guess - truth).abs()[hidden].sum()


def _squared(guess: Tensor, truth: Tensor, hidden: Tensor) -> Tensor:
    return (guess - truth).square()[hidden].mean()


def loss_inputs(rng: np.random.Generator) -> list[tuple]:
    """Guesses that are good where nothing is hidden, as those of a network are."""

    def case(batch: int, frames: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        truth, hidden = 3 * _normal(rng, batch, frames, dim), torch.from_numpy(rng.random((batch, frames)) < 0.4)
        hidden[0, :2] = torch.tensor([True, False])
        return truth + _normal(rng, batch, frames, dim) * (0.2 + 2 * hidden[..., None]), truth, hidden

    return [case(2, 12, 4), case(3, 20, 6), case(1, 9, 8)]


# ------------------------------------------------------------------------------------ q3: predict the future


def future_pairs(mels: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    """mels: (batch, frames, bins) -> what was heard last and what has to be guessed, (batch, frames - ahead, bins)."""
    return mels[:, :-ahead], mels[:, ahead:]


def _other_way(mels: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    return mels[:, ahead:], mels[:, :-ahead]


def _one_more(mels: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    return future_pairs(mels, ahead + 1)


def _rolled(mels: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    return mels, mels.roll(-ahead, dims=1)


def _over_bins(mels: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    return mels[:, :, :-ahead], mels[:, :, ahead:]


def _always_one(mels: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    return mels[:, :-1], mels[:, 1:]


def future_inputs(rng: np.random.Generator) -> list[tuple]:
    return [(_normal(rng, 2, 12, 8), 3), (_normal(rng, 1, 9, 7), 1), (_normal(rng, 3, 20, 9), 5)]


# ------------------------------------------------------------------------------------ q4: tell true from false


def info_nce(guess: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """guess: (places, dim); candidates: (places, 1 + wrong, dim), the true frame first -> the mean loss."""
    cosine = functional.cosine_similarity(guess[:, None], candidates, dim=2)
    return -(cosine / temperature).log_softmax(dim=1)[:, 0].mean()


def _no_temperature(guess: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    return info_nce(guess, candidates, 1.0)


def _times_temperature(guess: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    return info_nce(guess, candidates, 1 / temperature)


def _over_places(guess: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    cosine = functional.cosine_similarity(guess[:, None], candidates, dim=2)
    return -(cosine / temperature).log_softmax(dim=0)[:, 0].mean()


def _truth_not_below(guess: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    scores = functional.cosine_similarity(guess[:, None], candidates, dim=2) / temperature
    return (scores[:, 1:].logsumexp(dim=1) - scores[:, 0]).mean()


def _products(guess: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    scores = torch.einsum("pd,pcd->pc", guess, candidates) / temperature
    return -scores.log_softmax(dim=1)[:, 0].mean()


def contrast_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(places: int, wrong: int, dim: int, temperature: float) -> tuple[Tensor, Tensor, float]:
        candidates = _normal(rng, places, 1 + wrong, dim)
        return 2 * candidates[:, 0] + 1.5 * _normal(rng, places, dim), candidates, temperature

    return [case(6, 4, 8, 0.2), case(1, 9, 5, 0.1), case(12, 3, 6, 0.5)]


EXERCISES = {
    "pre.q1": Exercise(
        key="pre.q1",
        title="hide stretches of time",
        reference=hide_stretches,
        inputs=stretch_inputs,
        wrong=(
            WrongAnswer(
                "only the starts", _only_the_starts, "only the first frame of each stretch is hidden; a single frame "
                "is easily guessed from its neighbours, so hide `span` of them"
            ),
            WrongAnswer(
                "one too many", _one_too_many, "the stretches are one frame too long: the last hidden one is "
                "start + span - 1"
            ),
            WrongAnswer("backwards", _backwards, "the stretches end at their starts; they should begin there"),
            WrongAnswer(
                "the same for all", _same_for_all, "every clip is hidden where the first one is; each has a row of "
                "starts of its own"
            ),
            WrongAnswer("turned round", _shown, "True and False are swapped: True means hidden"),
        ),
        hints=(
            "Frame t is hidden if, for some stretch, start <= t < start + span.",
            "Compare torch.arange(frames)[None, None] with starts[:, :, None]: that gives (batch, count, frames).",
            "place, first = torch.arange(frames)[None, None], starts[:, :, None]; "
            "((place >= first) & (place < first + span)).any(dim=1)",
        ),
    ),
    "pre.q2": Exercise(
        key="pre.q2",
        title="the loss of rebuilding",
        reference=rebuilding_loss,
        inputs=loss_inputs,
        wrong=(
            WrongAnswer(
                "all frames", _all_frames, "it is the mean over all frames; the visible ones can be copied, so only "
                "hidden ones may count"
            ),
            WrongAnswer("visible frames", _visible_frames, "it looks at the visible frames instead of the hidden ones"),
            WrongAnswer(
                "zeros counted", _zeros_counted, "visible frames are set to zero but still counted: divide by the "
                "hidden ones only"
            ),
            WrongAnswer(
                "sum", _summed, "it is the sum: then a batch with more hidden frames has a larger loss; take the mean"
            ),
            WrongAnswer("squares", _squared, "it is the mean of squares; here the absolute error is wanted (L1)"),
        ),
        hints=(
            "The error of each number is (guess - truth).abs(). Which of them may count?",
            "Indexing a (batch, frames, dim) tensor with a (batch, frames) bool tensor keeps the frames that are True.",
            "(guess - truth).abs()[hidden].mean()",
        ),
    ),
    "pre.q3": Exercise(
        key="pre.q3",
        title="past and future in pairs",
        reference=future_pairs,
        inputs=future_inputs,
        wrong=(
            WrongAnswer(
                "the other way", _other_way, "the two are swapped: the network would have to guess the past from "
                "the future"
            ),
            WrongAnswer("one more", _one_more, "it looks one frame too far: frame t belongs to frame t + ahead"),
            WrongAnswer(
                "rolled", _rolled, "the clip is bent into a ring: its last frames are paired with its first; leave "
                "frames without a future out"
            ),
            WrongAnswer("bins shifted", _over_bins, "you moved along the bins: time is the middle dimension"),
            WrongAnswer("always one", _always_one, "it looks one frame ahead whatever `ahead` says"),
        ),
        hints=(
            "Pair t is (frame t, frame t + ahead). For how many t do both exist?",
            "The last `ahead` frames have no future in the clip, the first `ahead` are nobody's future.",
            "return mels[:, :-ahead], mels[:, ahead:]",
        ),
    ),
    "pre.q4": Exercise(
        key="pre.q4",
        title="the loss of telling true from false",
        reference=info_nce,
        inputs=contrast_inputs,
        wrong=(
            WrongAnswer("no temperature", _no_temperature, "the temperature is not used: divide the cosines by it"),
            WrongAnswer(
                "times temperature", _times_temperature, "you multiply by the temperature: a small one should make "
                "differences larger, so divide"
            ),
            WrongAnswer(
                "over places", _over_places, "the softmax runs over the places; at each place, its candidates compete"
            ),
            WrongAnswer(
                "truth left out", _truth_not_below, "the true frame is missing below the fraction bar: the softmax "
                "runs over all candidates, the true one included"
            ),
            WrongAnswer(
                "products", _products, "these are inner products, so long vectors win; a cosine divides by both lengths"
            ),
        ),
        hints=(
            "Three steps: a score for each candidate, shares that add up to 1 at each place, minus the logarithm of "
            "the true frame's share.",
            "functional.cosine_similarity(guess[:, None], candidates, dim=2) / temperature is (places, 1 + wrong); "
            "the softmax runs over dim=1.",
            "-(cosine / temperature).log_softmax(dim=1)[:, 0].mean()",
        ),
    ),
}
