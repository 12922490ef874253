"""Exercises of notebook 17: who contributes, frame labels, one probe a layer, linear CKA, projecting out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from superb_lite.course.exercises import Exercise, WrongAnswer
from superb_lite.types import RATE

WINDOW = 400  # samples that a frame starts from: 25 ms

# ------------------------------------------------------------------------------- q1: who contributes how much


def shares(weights: Sequence[float], states: np.ndarray) -> np.ndarray:
    """weights: (layers,); states: (layers, frames, dim) -> (layers,): weight times spread, as parts of 1."""
    spread = np.sqrt(((states - states.mean(axis=1, keepdims=True)) ** 2).sum(axis=2).mean(axis=1))
    parts = np.asarray(weights) * spread
    return parts / parts.sum()


def _only_weights(weights, states):
    return np.asarray(weights) / np.sum(weights)


def _with_the_mean(weights, states):
    parts = np.asarray(weights) * np.sqrt((states**2).sum(axis=2).mean(axis=1))
    return parts / parts.sum()


def _no_total(weights, states):
    spread = np.sqrt(((states - states.mean(axis=1, keepdims=True)) ** 2).sum(axis=2).mean(axis=1))
    return np.asarray(weights) * spread


def _squared(weights, states):
    parts = np.asarray(weights) * ((states - states.mean(axis=1, keepdims=True)) ** 2).sum(axis=2).mean(axis=1)
    return parts / parts.sum()


def _only_spread(weights, states):
    return shares(np.ones(len(weights)), states)


def _share_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(layers: int, frames: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
        loud = rng.uniform(0.3, 4.0, size=(layers, 1, 1))
        states = loud * rng.normal(size=(layers, frames, dim)) + rng.normal(size=(layers, 1, dim))
        return rng.dirichlet(np.ones(layers)), states

    return [case(3, 8, 4), case(5, 20, 6), case(1, 5, 2), case(13, 6, 3)]


# ------------------------------------------------------------------------------------ q2: labels for frames


def frame_phones(phones: Sequence[Sequence], frames: int, stride: int) -> list[str]:
    """[[phone, start_sec, end_sec], ...] -> the phone in the middle of each frame's window, "" where there is none."""
    return _labelled(phones, [(frame * stride + WINDOW / 2) / RATE for frame in range(frames)])


def _labelled(phones, times):
    """The phone at each of these seconds; the start of a phone belongs to it, its end does not."""
    return [next((name for name, start, end in phones if start <= time < end), "") for time in times]


def _at_the_start(phones, frames, stride):
    return _labelled(phones, [frame * stride / RATE for frame in range(frames)])


def _middle_of_the_stride(phones, frames, stride):
    return _labelled(phones, [(frame + 0.5) * stride / RATE for frame in range(frames)])


def _always_20_ms(phones, frames, stride):
    return frame_phones(phones, frames, 320)


def _no_pauses(phones, frames, stride):
    found, last = [], phones[0][0]
    for name in frame_phones(phones, frames, stride):
        last = name or last
        found.append(last)
    return found


def _evenly(phones, frames, stride):
    """The phones spread evenly over the clip, as if all took equally long."""
    return [phones[frame * len(phones) // frames][0] for frame in range(frames)]


def _phone_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(count: int, stride: int) -> tuple[list, int, int]:
        at, phones = 0.05, []
        for name in rng.choice(["AA", "S", "T", "IY", "M"], size=count):
            at += 0.08 * float(rng.random() < 0.3)  # a pause
            end = at + float(rng.uniform(0.03, 0.12))
            phones.append([str(name), round(at, 4), round(end, 4)])
            at = end
        return phones, int((at + 0.1) * RATE / stride), stride

    return [case(6, 320), case(12, 160), case(9, 320), case(1, 320)]


# -------------------------------------------------------------------------------------- q3: a probe a layer

Fit = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]


def probe_layers(train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray, fit: Fit) -> list[float]:
    """train, test: (layers, frames, dim); labels, truth: (frames,) -> the percentage of test frames right, per layer.

    fit(x, y) learns from (frames, dim) and (frames,), and returns a function from (frames, dim) to labels.
    """
    return [100 * float(np.mean(fit(known, labels)(new) == truth)) for known, new in zip(train, test, strict=True)]


def nearest_mean(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A small probe for the checks: the class whose mean is nearest."""
    classes = np.unique(y)
    means = np.stack([x[y == name].mean(axis=0) for name in classes])
    return lambda new: classes[((new[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)]


def _tested_on_training(train, labels, test, truth, fit):
    return [100 * float(np.mean(fit(known, labels)(known) == labels)) for known in train]


def _trained_on_test(train, labels, test, truth, fit):
    return [100 * float(np.mean(fit(new, truth)(new) == truth)) for new in test]


def _one_probe_for_all(train, labels, test, truth, fit):
    answer = fit(train[-1], labels)
    return [100 * float(np.mean(answer(new) == truth)) for new in test]


def _layers_so_far(train, labels, test, truth, fit):
    return probe_layers(train.cumsum(axis=0), labels, test.cumsum(axis=0), truth, fit)


def _fraction(train, labels, test, truth, fit):
    return [score / 100 for score in probe_layers(train, labels, test, truth, fit)]


def _probe_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(layers: int, classes: int, dim: int) -> tuple:
        means = rng.normal(size=(layers, classes, dim)) * rng.uniform(0.4, 1.5, size=(layers, 1, 1))
        labels = np.concatenate([np.arange(classes), rng.integers(0, classes, size=40)])
        truth = rng.integers(0, classes, size=30)

        def seen(y: np.ndarray) -> np.ndarray:
            return means[:, y] + rng.normal(size=(layers, len(y), dim))

        return seen(labels), labels, seen(truth), truth, nearest_mean

    return [case(3, 4, 5), case(5, 3, 2), case(1, 6, 4)]


# ------------------------------------------------------------------------------------------- q4: linear CKA


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """x: (frames, dims), y: (the same frames, other dims) -> 0 (nothing in common) to 1 (the same but for rotation,
    scale and shift)."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def _cka(x, y):
    return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def _not_centred(x, y):
    return _cka(x, y)


def _each_frame_centred(x, y):
    return _cka(x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True))


def _dims_alike(x, y):
    return linear_cka(x / x.std(axis=0), y / y.std(axis=0))


def _not_squared(x, y):
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return float(np.linalg.norm(x.T @ y) / np.sqrt(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def _divided_by_sizes(x, y):
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x) ** 2 * np.linalg.norm(y) ** 2))


def _cka_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(frames: int, dims: int, others: int, like: float) -> tuple[np.ndarray, np.ndarray]:
        common = rng.normal(size=(frames, 3))
        x = common @ rng.normal(size=(3, dims)) + (1 - like) * rng.normal(size=(frames, dims))
        y = common @ rng.normal(size=(3, others)) + (1 - like) * rng.normal(size=(frames, others))
        return x + rng.normal(size=dims), 3 * y + 2 * rng.normal(size=others)

    x = rng.normal(size=(30, 4)) * np.array([4.0, 2.0, 1.0, 0.5]) + 1.0
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    return [case(40, 5, 7, 0.6), case(60, 8, 3, 0.2), (x, 2.5 * x @ turn), (x, x @ rng.normal(size=(4, 4)))]


# -------------------------------------------------------------------------------------- q5: projecting out


def project_out(x: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """x: (frames, dim); directions: (count, dim), any rows -> x without what points along any of them."""
    _, size, rows = np.linalg.svd(directions, full_matrices=False)
    rows = rows[size > 1e-5 * size[0]]
    return x - (x @ rows.T) @ rows


def _raw_directions(x, directions):
    return x - (x @ directions.T) @ directions


def _unit_directions(x, directions):
    rows = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return x - (x @ rows.T) @ rows


def _one_after_the_other(x, directions):
    for row in directions / np.linalg.norm(directions, axis=1, keepdims=True):
        x = x - np.outer(x @ row, row)
    return x


def _kept(x, directions):
    return x - project_out(x, directions)


def _coordinates(x, directions):
    """The coordinates along an orthonormal basis of the rest: another shape."""
    rank = int((np.linalg.svd(directions, compute_uv=False) > 1e-5).sum())
    return x @ np.linalg.svd(directions, full_matrices=True)[2][rank:].T


def _direction_inputs(rng: np.random.Generator) -> list[tuple]:
    means = rng.normal(size=(4, 9))
    dependent = means - means.mean(axis=0)  # four rows that add up to zero: rank three
    return [
        (rng.normal(size=(6, 5)), rng.normal(size=(2, 5))),
        (rng.normal(size=(7, 9)), dependent),
        (rng.normal(size=(4, 3)), np.array([[0.0, 2.0, 0.0]])),
        (rng.normal(size=(12, 8)), 3 * rng.normal(size=(4, 8))),
    ]


EXERCISES = {
    "why.q1": Exercise(
        key="why.q1",
        title="who contributes how much",
        reference=shares,
        inputs=_share_inputs,
        wrong=(
            WrongAnswer(
                "weights only", _only_weights, "these are the weights; a weight of 0.2 on a state with large numbers "
                "brings more than 0.2 on one with small numbers, so multiply by the spread"
            ),
            WrongAnswer(
                "spread only", _only_spread, "these are the spreads of the states; what the head receives is weight "
                "times spread"
            ),
            WrongAnswer(
                "mean left in", _with_the_mean, "the mean of each state is left in; a constant tells no two frames "
                "apart, so subtract the mean over the frames first"
            ),
            WrongAnswer("no total", _no_total, "the shares do not add up to 1: divide by their sum"),
            WrongAnswer("squared", _squared, "it takes the squared spread: the root is missing"),
        ),
        hints=(
            "Subtract from each state its mean over the frames (axis 1, keepdims=True).",
            "The spread of one state: the squared length of each frame (sum over dim), its mean over the frames, the "
            "root of that.",
            "spread = np.sqrt((centred ** 2).sum(axis=2).mean(axis=1)); parts = weights * spread; "
            "parts / parts.sum()",
        ),
    ),
    "why.q2": Exercise(
        key="why.q2",
        title="labels for frames",
        reference=frame_phones,
        inputs=_phone_inputs,
        wrong=(
            WrongAnswer(
                "start of the window", _at_the_start, "it looks at the start of each window; a frame speaks for its "
                "middle, 200 samples later"
            ),
            WrongAnswer(
                "middle of the stride", _middle_of_the_stride, "it takes the middle of the stride; the window is 400 "
                "samples long whatever the stride is, so its middle is frame * stride + 200"
            ),
            WrongAnswer(
                "always 20 ms", _always_20_ms, "it takes a frame every 320 samples for granted; use the stride (Fbank "
                "has 160)"
            ),
            WrongAnswer(
                "no pauses", _no_pauses, 'pauses get the phone before them; where no phone is said the label is ""'
            ),
            WrongAnswer(
                "spread evenly", _evenly, "the phones are spread evenly over the clip; they have times, use them"
            ),
        ),
        hints=(
            "First the time: which second is in the middle of the window of frame n?",
            "(n * stride + 200) / 16_000. Then look for the phone with start <= time < end.",
            'next((name for name, start, end in phones if start <= time < end), "") for each time',
        ),
    ),
    "why.q3": Exercise(
        key="why.q3",
        title="a probe for each layer",
        reference=probe_layers,
        inputs=_probe_inputs,
        wrong=(
            WrongAnswer(
                "tested on training", _tested_on_training, "it is tested on the frames that it learned from; use test "
                "and truth"
            ),
            WrongAnswer("trained on test", _trained_on_test, "it learns from the test frames; fit on train and labels"),
            WrongAnswer(
                "one probe for all", _one_probe_for_all, "one probe, that of the last layer, answers for every layer; "
                "each layer needs a probe of its own"
            ),
            WrongAnswer(
                "layers so far", _layers_so_far, "layers are added up on the way; a single-layer probe sees one layer"
            ),
            WrongAnswer("fraction", _fraction, "these are fractions; percent is asked for"),
        ),
        hints=(
            "A loop over pairs: zip(train, test). Each turn has (frames, dim) twice.",
            "answer = fit(known, labels), then answer(new) are the guesses.",
            "[100 * float(np.mean(fit(known, labels)(new) == truth)) for known, new in zip(train, test)]",
        ),
    ),
    "why.q4": Exercise(
        key="why.q4",
        title="linear CKA",
        reference=linear_cka,
        inputs=_cka_inputs,
        wrong=(
            WrongAnswer(
                "not centred", _not_centred, "the columns are not centred: subtract the mean over the frames first"
            ),
            WrongAnswer(
                "frames centred", _each_frame_centred, "each frame is centred over its dims; it is each dim that has "
                "to be centred over the frames (axis 0)"
            ),
            WrongAnswer(
                "dims made alike", _dims_alike, "every dim is brought to one size first; that forgets which directions "
                "are large, and a rotation would change the result"
            ),
            WrongAnswer("not squared", _not_squared, "that is the square root of it: square the norm above the line"),
            WrongAnswer(
                "divided by sizes", _divided_by_sizes, "it divides by the squared norms of x and y; divide by those "
                "of x.T @ x and y.T @ y, so that x and x give 1"
            ),
        ),
        hints=(
            "x - x.mean(axis=0), and y likewise: both have the same frames in the rows.",
            "np.linalg.norm of a matrix is the root of the sum of its squares (Frobenius).",
            "np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)), as a float",
        ),
    ),
    "why.q5": Exercise(
        key="why.q5",
        title="project a subspace out",
        reference=project_out,
        inputs=_direction_inputs,
        wrong=(
            WrongAnswer(
                "raw directions", _raw_directions, "the rows are used as they are; they need length 1 and right angles "
                "between them: find an orthonormal basis of what they span"
            ),
            WrongAnswer(
                "length one only", _unit_directions, "the rows have length 1 but no right angles between them, so what "
                "they share is taken away twice: find an orthonormal basis"
            ),
            WrongAnswer(
                "one after the other", _one_after_the_other, "taking the second away brings some of the first back, "
                "unless they are at right angles: find an orthonormal basis first"
            ),
            WrongAnswer("the other part", _kept, "this is the part inside the subspace; the rest of x is asked for"),
            WrongAnswer(
                "new coordinates", _coordinates, "these are coordinates of the rest; keep the shape of x"
            ),
        ),
        hints=(
            "If the rows of v are orthonormal, (x @ v.T) @ v is the part of x inside.",
            "An orthonormal basis of the rows: np.linalg.svd(directions, full_matrices=False) gives (u, s, v); rows of "
            "v with s near zero belong to nothing.",
            "v = v[s > 1e-5 * s[0]]; x - (x @ v.T) @ v",
        ),
    ),
}
