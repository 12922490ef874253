"""Exercises of notebook 12: loudness, pitch, nearest centroid, folds by session, accuracy beside average recall."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from superb_lite.course.exercises import Exercise, WrongAnswer
from superb_lite.types import RATE

# --------------------------------------------------------------------------------------- q1: loudness


def loudness(wav: Tensor) -> Tensor:
    """wav: (samples,) -> (2,): the clip's level in dB, and how far its frames range (5th to 95th percentile, dB)."""
    low, high = _frame_levels(wav).quantile(torch.tensor([0.05, 0.95]))
    return torch.stack([_decibels(wav.square().mean()), high - low])


def _decibels(power: Tensor) -> Tensor:
    return 10 * torch.log10(power + 1e-10)


def _frame_levels(wav: Tensor) -> Tensor:
    return _decibels(wav.unfold(0, 400, 160).square().mean(1))


def _twenty(wav: Tensor) -> Tensor:
    return 2 * loudness(wav)


def _mean_of_decibels(wav: Tensor) -> Tensor:
    return torch.stack([_frame_levels(wav).mean(), loudness(wav)[1]])


def _extremes(wav: Tensor) -> Tensor:
    levels = _frame_levels(wav)
    return torch.stack([loudness(wav)[0], levels.max() - levels.min()])


def _no_square(wav: Tensor) -> Tensor:
    return torch.stack([_decibels(wav.abs().mean()), loudness(wav)[1]])


def _range_of_samples(wav: Tensor) -> Tensor:
    low, high = _decibels(wav.square()).quantile(torch.tensor([0.05, 0.95]))
    return torch.stack([loudness(wav)[0], high - low])


def _sound_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(samples: int, steps: int) -> tuple:
        # noise whose loudness changes from stretch to stretch, as speech does
        envelope = np.repeat(10 ** rng.uniform(-3, -0.7, size=steps), -(-samples // steps))[:samples]
        return (torch.from_numpy(envelope * rng.standard_normal(samples)).float(),)

    return [case(16_000, 12), case(9_123, 5), case(24_000, 30)]


# ------------------------------------------------------------------------------------------ q2: pitch


def pitch(frames: Tensor, low: int = 50, high: int = 400) -> Tensor:
    """frames: (frames, samples) -> (frames,) in Hz, 0 where the best autocorrelation is below 0.4 of the power."""
    return _pitch(frames, low, high)


def _pitch(
    frames: Tensor, low: int, high: int, *, centre: bool = True, first: int | None = None, voicing: bool = True,
    hertz: bool = True,
) -> Tensor:  # fmt: skip
    x = frames - frames.mean(1, keepdim=True) if centre else frames
    size = x.shape[1]
    spectrum = torch.fft.rfft(x, 2 * size)
    products = torch.fft.irfft(spectrum.abs().square(), 2 * size)[:, :size]  # sums of x[t] * x[t + lag], every lag
    power = products[:, :1].clamp_min(1e-10)
    shortest = RATE // high if first is None else first
    strength, place = (products / power)[:, shortest : RATE // low + 1].max(1)
    lag = (place + shortest).float()
    found = RATE / lag.clamp_min(1.0) if hertz else lag
    return torch.where(strength >= 0.4, found, torch.zeros_like(found)) if voicing else found


def _lag_zero(frames: Tensor, low: int = 50, high: int = 400) -> Tensor:
    return _pitch(frames, low, high, first=0)


def _as_lag(frames: Tensor, low: int = 50, high: int = 400) -> Tensor:
    return _pitch(frames, low, high, hertz=False)


def _always_voiced(frames: Tensor, low: int = 50, high: int = 400) -> Tensor:
    return _pitch(frames, low, high, voicing=False)


def _with_offset(frames: Tensor, low: int = 50, high: int = 400) -> Tensor:
    return _pitch(frames, low, high, centre=False)


def _short_by_some(frames: Tensor, low: int = 50, high: int = 400) -> Tensor:
    found = _pitch(frames, low, high)
    lag = RATE / found.clamp_min(1.0) - RATE // high
    return torch.where(found > 0, RATE / lag.clamp_min(1.0), found)


def _frame_inputs(rng: np.random.Generator) -> list[tuple]:
    def voiced(hertz: float, size: int) -> np.ndarray:
        time = np.arange(size) / RATE
        return sum(np.sin(2 * np.pi * n * hertz * time + rng.uniform(0, 6)) / n for n in (1, 2, 3, 4))

    def case(count: int, size: int, offset: float) -> tuple:
        rows = [0.1 * voiced(rng.uniform(80, 350), size) for _ in range(count)]
        rows += [0.1 * rng.standard_normal(size) for _ in range(2)]
        noisy = np.stack([row + 0.002 * rng.standard_normal(size) for row in rows])
        return (torch.from_numpy(noisy + offset).float(),)

    silent = torch.zeros(2, 1024)
    return [case(4, 1024, 0.0), case(3, 1024, 0.5), (silent,), (*case(5, 800, 0.0), 70, 380)]


# -------------------------------------------------------------------------------- q3: nearest centroid


def nearest_centroid(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """train: (clips, features), labels: (clips,), test: (others, features) -> (others,) class numbers."""
    return _nearest(train, labels, test, train)


def _nearest(train: Tensor, labels: Tensor, test: Tensor, scale_from: Tensor | None) -> Tensor:
    if scale_from is not None:
        mean, spread = scale_from.mean(0), scale_from.std(0)
        train, test = (train - mean) / spread, (test - mean) / spread
    centres = torch.stack([train[labels == number].mean(0) for number in range(int(labels.max()) + 1)])
    return torch.cdist(test, centres).argmin(1)


def _not_scaled(train, labels, test):
    return _nearest(train, labels, test, None)


def _scaled_with_all(train, labels, test):
    return _nearest(train, labels, test, torch.cat([train, test]))


def _each_its_own(train, labels, test):
    own = (test - test.mean(0)) / test.std(0)
    return _nearest((train - train.mean(0)) / train.std(0), labels, own, None)


def _nearest_clip(train, labels, test):
    mean, spread = train.mean(0), train.std(0)
    return labels[torch.cdist((test - mean) / spread, (train - mean) / spread).argmin(1)]


def _farthest(train, labels, test):
    mean, spread = train.mean(0), train.std(0)
    train, test = (train - mean) / spread, (test - mean) / spread
    centres = torch.stack([train[labels == number].mean(0) for number in range(int(labels.max()) + 1)])
    return torch.cdist(test, centres).argmax(1)


def _point_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(clips: int, others: int, features: int, classes: int) -> tuple:
        labels = rng.permutation(np.arange(clips) % classes)
        centres, scale = rng.normal(size=(classes, features)), 10.0 ** np.arange(features)
        train = (centres[labels] + 1.2 * rng.normal(size=(clips, features))) * scale
        test = (1.5 + 2.5 * rng.normal(size=(others, features))) * scale  # other people, other ranges
        return tuple(torch.from_numpy(part) for part in (train, labels, test))

    return [case(80, 200, 3, 4), case(40, 150, 2, 3), case(90, 200, 4, 4)]


# ------------------------------------------------------------------------------ q4: folds by session

CLASS_OF = {"neu": "neu", "hap": "hap", "exc": "hap", "ang": "ang", "sad": "sad"}
Labelled = list[tuple[str, str]]


def session_fold(clips: Sequence[tuple[str, int, str]], fold: int) -> dict[str, Labelled]:
    """[(clip id, session, raw label)] -> train, dev and test, each [(clip id, class)], in the given order."""
    return _fold(clips, fold, CLASS_OF.get)


def _fold(clips, fold: int, class_of: Callable[[str], str | None]) -> dict[str, Labelled]:
    kept = [(name, session, class_of(raw)) for name, session, raw in clips if class_of(raw) is not None]
    others = [(name, label) for name, session, label in kept if session != fold]
    return {
        "train": [clip for place, clip in enumerate(others) if place % 5 != 4],
        "dev": others[4::5],
        "test": [(name, label) for name, session, label in kept if session == fold],
    }


def _excited_lost(clips, fold):
    return _fold(clips, fold, lambda raw: CLASS_OF.get(raw) if raw != "exc" else None)


def _excited_apart(clips, fold):
    return _fold(clips, fold, lambda raw: raw if raw in CLASS_OF else None)


def _all_kept(clips, fold):
    return _fold(clips, fold, lambda raw: CLASS_OF.get(raw, "neu"))


def _by_clip(clips, fold):
    kept = [(name, CLASS_OF[raw]) for name, _, raw in clips if raw in CLASS_OF]
    others = [clip for place, clip in enumerate(kept) if place % 5 != fold]
    return {
        "train": [clip for place, clip in enumerate(others) if place % 5 != 4],
        "dev": others[4::5],
        "test": kept[fold::5],
    }


def _dev_from_test(clips, fold):
    parts = session_fold(clips, fold)
    train = parts["train"] + parts["dev"]
    return {"train": train, "dev": parts["test"][4::5], "test": parts["test"]}


def _raw_inputs(rng: np.random.Generator) -> list[tuple]:
    names = ("neu", "hap", "exc", "ang", "sad", "fru", "xxx")

    def case(count: int, sessions: int, fold: int) -> tuple:
        raw = [*names, *rng.choice(names, size=count)]
        where = [fold, *range(sessions)] * len(raw)
        return [(f"clip{n:03d}", int(where[n]), str(raw[n])) for n in rng.permutation(len(raw))], fold

    return [case(90, 5, 1), case(50, 3, 0), case(70, 5, 4)]


# ---------------------------------------------------------------------------------- q5: three scores

Fold = tuple[Sequence[str], Sequence[str]]


def three_scores(folds: Sequence[Fold]) -> dict[str, float]:
    """[(truth, answers) of a fold] -> percent: mean of the folds' accuracies, pooled accuracy, pooled UAR."""
    classes = sorted(set(_all(folds)[0]))
    return {"fold mean": _fold_mean(folds), "pooled": _pooled(folds), "UAR": _recall(folds, classes)}


def _all(folds: Sequence[Fold]) -> tuple[list[str], list[str]]:
    return [true for truth, _ in folds for true in truth], [answer for _, answers in folds for answer in answers]


def _fold_mean(folds: Sequence[Fold]) -> float:
    return float(np.mean([_pooled([fold]) for fold in folds]))


def _pooled(folds: Sequence[Fold]) -> float:
    truth, answers = _all(folds)
    return float(100 * np.mean([true == answer for true, answer in zip(truth, answers, strict=True)]))


def _recall(folds: Sequence[Fold], names: Sequence[str]) -> float:
    truth, answers = _all(folds)
    shares = []
    for name in names:
        given = [answer == name for true, answer in zip(truth, answers, strict=True) if true == name]
        shares.append(sum(given) / max(1, len(given)))
    return float(100 * np.mean(shares))


def _mean_is_pooled(folds):
    return three_scores(folds) | {"fold mean": _pooled(folds)}


def _pooled_is_mean(folds):
    return three_scores(folds) | {"pooled": _fold_mean(folds)}


def _precision(folds):
    return three_scores(folds) | {"UAR": three_scores([(answers, truth) for truth, answers in folds])["UAR"]}


def _uar_by_size(folds):
    return three_scores(folds) | {"UAR": _pooled(folds)}


def _fractions(folds):
    return {name: value / 100 for name, value in three_scores(folds).items()}


def _answer_inputs(rng: np.random.Generator) -> list[tuple]:
    names = np.array(["neu", "hap", "ang", "sad"])

    def fold(clips: int, right: float, shares: Sequence[float]) -> Fold:
        truth = rng.choice(len(names), size=clips, p=shares)
        answers = np.where(rng.random(clips) < right, truth, rng.choice(2, size=clips))
        return names[truth].tolist(), names[answers].tolist()

    uneven, without_sad = (0.5, 0.2, 0.2, 0.1), (0.6, 0.3, 0.1, 0.0)
    return [
        ([fold(60, 0.9, uneven), fold(25, 0.5, uneven), fold(40, 0.7, uneven)],),
        ([fold(50, 0.3, without_sad), fold(20, 0.9, without_sad)],),
        ([(["neu", "sad", "neu"], ["neu", "neu", "neu"]), (["neu"], ["hap"])],),
    ]


EXERCISES = {
    "er.q1": Exercise(
        key="er.q1",
        title="how loud, and how far the loudness ranges",
        reference=loudness,
        inputs=_sound_inputs,
        tolerance=1e-4,
        wrong=(
            WrongAnswer("20 log", _twenty, "it is 20 log10 of a power: 20 is for amplitudes, 10 for their squares"),
            WrongAnswer(
                "mean of decibels", _mean_of_decibels, "the level is the mean of the frames' decibels, so "
                "that a pause weighs as much as a vowel: first the mean square of the whole clip, then the logarithm"
            ),
            WrongAnswer(
                "extremes", _extremes, "the range goes from the softest to the loudest frame: one click would decide; "
                "take the 5th and 95th percentile"
            ),
            WrongAnswer("no square", _no_square, "the level comes from absolute values: power is the mean of squares"),
            WrongAnswer(
                "samples", _range_of_samples, "the range is that of single samples, which cross zero all the time: cut "
                "the clip into frames first"
            ),
        ),
        hints=(
            "power = mean of squares; decibels = 10 log10(power + 1e-10)",
            "wav.unfold(0, 400, 160) has one frame of 400 samples per row, a new one every 160 samples",
            "levels = decibels(wav.unfold(0, 400, 160).square().mean(1)); return torch.stack("
            "[decibels(wav.square().mean()), levels.quantile(0.95) - levels.quantile(0.05)])",
        ),
    ),
    "er.q2": Exercise(
        key="er.q2",
        title="pitch by autocorrelation",
        reference=pitch,
        inputs=_frame_inputs,
        tolerance=1e-3,
        wrong=(
            WrongAnswer(
                "lag 0", _lag_zero, "the search begins at lag 0, where all sound is like itself: begin at 16000 // high"
            ),
            WrongAnswer("lag", _as_lag, "it is the lag in samples: a repetition every lag samples is 16000 / lag Hz"),
            WrongAnswer(
                "always voiced", _always_voiced, "noise and silence get a pitch too: give 0 where the best value is "
                "below 0.4 of the value at lag 0"
            ),
            WrongAnswer(
                "offset", _with_offset, "a constant offset looks like a perfect repetition: subtract each frame's mean"
            ),
            WrongAnswer(
                "shifted", _short_by_some, "argmax counts from the shortest lag of the search: add 16000 // high to it"
            ),
        ),
        hints=(
            "The autocorrelation at a lag is the sum of x[t] * x[t + lag]; it is large where the sound repeats itself.",
            "products holds it for all lags. Only the lags 16000 // high to 16000 // low (included) are voices; "
            "max(1) of that slice gives value and place.",
            "strength, place = products[:, a : b + 1].max(1) with a = 16000 // high, b = 16000 // low; "
            "hertz = 16000 / (place + a); torch.where(strength >= 0.4 * products[:, 0].clamp_min(1e-10), hertz, 0.0)",
        ),
    ),
    "er.q3": Exercise(
        key="er.q3",
        title="the nearest centroid",
        reference=nearest_centroid,
        inputs=_point_inputs,
        wrong=(
            WrongAnswer(
                "not scaled", _not_scaled, "nothing is scaled, so the feature with the largest numbers decides alone: "
                "subtract the mean and divide by the standard deviation"
            ),
            WrongAnswer(
                "scaled with all", _scaled_with_all, "mean and spread are taken over train and test together: "
                "the test is not known yet when you build a classifier"
            ),
            WrongAnswer(
                "each its own", _each_its_own, "test is scaled with its own mean and spread: use those of train"
            ),
            WrongAnswer(
                "nearest clip", _nearest_clip, "it takes the class of the nearest training clip: average classes first"
            ),
            WrongAnswer("farthest", _farthest, "it takes the centroid that is farthest: argmin, not argmax"),
        ),
        hints=(
            "Three steps: scale both with the mean and spread of train; one mean per class; the nearest one wins.",
            "centres = torch.stack([train[labels == n].mean(0) for n in range(labels.max() + 1)]) after scaling",
            "mean, spread = train.mean(0), train.std(0); torch.cdist((test - mean) / spread, centres).argmin(1)",
        ),
    ),
    "er.q4": Exercise(
        key="er.q4",
        title="from raw labels to a fold",
        reference=session_fold,
        inputs=_raw_inputs,
        wrong=(
            WrongAnswer("excited lost", _excited_lost, "the excited clips are gone: exc counts as hap"),
            WrongAnswer("excited apart", _excited_apart, "exc is a fifth class: it counts as hap"),
            WrongAnswer(
                "everything kept", _all_kept, "frustrated and unclear clips are in it: keep only what the mapping names"
            ),
            WrongAnswer(
                "by clip", _by_clip, "clips are dealt out one by one, so its people train too: test = session `fold`"
            ),
            WrongAnswer(
                "dev from test", _dev_from_test, "dev is a part of the test: then the head is chosen on its own exam"
            ),
        ),
        hints=(
            "First translate and drop, then divide: the fifth clip is counted among those that stay.",
            "others = kept clips of another session; others[4::5] are the clips number 4, 9, 14, ... (counted from 0)",
            '"train": [clip for n, clip in enumerate(others) if n % 5 != 4]; "test": kept clips with session == fold',
        ),
    ),
    "er.q5": Exercise(
        key="er.q5",
        title="three scores of five folds",
        reference=three_scores,
        inputs=_answer_inputs,
        wrong=(
            WrongAnswer(
                "mean is pooled", _mean_is_pooled, "the fold mean weighs large folds more: one accuracy per fold, "
                "then their plain mean"
            ),
            WrongAnswer("pooled is mean", _pooled_is_mean, "pooled means: all clips in one heap, then one accuracy"),
            WrongAnswer(
                "precision", _precision, "UAR asks how many of the clips that ARE a class were found; this asks how "
                "many of those CALLED so are one"
            ),
            WrongAnswer(
                "UAR by size", _uar_by_size, "UAR is the accuracy here: compute the share found of each class, then "
                "the plain mean over classes"
            ),
            WrongAnswer("fractions", _fractions, "the scores are between 0 and 1: give percent"),
        ),
        hints=(
            "Accuracy is the mean of (true == answer). Do it per fold, and once for everything.",
            "recall of a class: of the clips whose truth it is, the share answered right; only classes that occur",
            "recalls = [np.mean([a == c for t, a in zip(truth, answers) if t == c]) for c in set(truth)]; 100 * "
            "np.mean(recalls)",
        ),
    ),
}
