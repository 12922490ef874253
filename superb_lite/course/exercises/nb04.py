"""Exercises of notebook 04: a split by speaker, SUPERB's head, cross-entropy, a confusion matrix, a fair sampler."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from superb_lite.course.exercises import Exercise, WrongAnswer, as_module
from superb_lite.heads import MeanPoolLinear

# ------------------------------------------------------------------- q1: nobody on both sides


def bucket(name: str) -> int:
    """A number from 0 to 99 that depends on the name only: the same on every machine, today and next year."""
    return int(hashlib.sha1(name.encode()).hexdigest(), 16) % 100


def split_by_speaker(clips: Sequence[tuple[str, str]], dev: int = 10, test: int = 10) -> dict[str, list[str]]:
    """Deal (clip id, speaker) out to train, dev and test by the bucket of the speaker; speaker "" is nobody."""
    return _deal(clips, dev, test, lambda clip, speaker: speaker if speaker else clip)


def _deal(clips, dev, test, name, extra: int = 0) -> dict[str, list[str]]:
    split: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for clip, speaker in clips:
        number = bucket(name(clip, speaker))
        split["dev" if number < dev + extra else "test" if number < dev + test + extra else "train"].append(clip)
    return split


def _by_clip(clips, dev=10, test=10):
    return _deal(clips, dev, test, lambda clip, speaker: clip)


def _by_place(clips, dev=10, test=10):
    ids = [clip for clip, _ in clips]
    first, second = len(ids) * dev // 100, len(ids) * (dev + test) // 100
    return {"train": ids[second:], "dev": ids[:first], "test": ids[first:second]}


def _nobody_is_somebody(clips, dev=10, test=10):
    return _deal(clips, dev, test, lambda clip, speaker: speaker)


def _drops_silence(clips, dev=10, test=10):
    return split_by_speaker([(clip, speaker) for clip, speaker in clips if speaker], dev, test)


def _one_too_many(clips, dev=10, test=10):
    return _deal(clips, dev, test, lambda clip, speaker: speaker if speaker else clip, extra=1)


def _clip_inputs(rng: np.random.Generator) -> list[tuple]:
    def people(count: int) -> list[str]:
        return [f"person{number}" for number in rng.choice(10_000, size=count, replace=False)]

    def recordings(speakers: Sequence[str], each: int, silences: int) -> list[tuple[str, str]]:
        clips = [(f"{speaker}-{take}", speaker) for speaker in speakers for take in range(each)]
        clips += [(f"silence-{rng.integers(1_000_000)}-{take}", "") for take in range(silences)]
        return [clips[place] for place in rng.permutation(len(clips))]

    # people on the very edges of the parts: 9 is still dev, 10 is test, 19 is test, 20 is train
    edges = [next(f"edge{n}" for n in range(10_000) if bucket(f"edge{n}") == wanted) for wanted in (9, 10, 19, 20)]
    return [
        (recordings([*people(25), *edges], 4, 60),),
        (recordings([*people(12), *edges], 2, 0), 20, 30),
        (recordings(people(1), 5, 3),),
    ]


# --------------------------------------------------------------------------------- q2: the head


class _Rectified(MeanPoolLinear):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        valid = (torch.arange(x.shape[1]) < lengths[:, None])[..., None]
        hidden = self.project(x).relu() * valid
        return self.classify(hidden.sum(1) / lengths[:, None])


class _OverPadding(MeanPoolLinear):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.classify(self.project(x).mean(1))


class _Softmaxed(MeanPoolLinear):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return super().forward(x, lengths).softmax(-1)


class _Summed(MeanPoolLinear):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        valid = (torch.arange(x.shape[1]) < lengths[:, None])[..., None]
        return self.classify((self.project(x) * valid).sum(1))


class _OtherOrder(MeanPoolLinear):
    def __init__(self, dim: int, classes: int, hidden: int = 256) -> None:
        nn.Module.__init__(self)
        self.classify = nn.Linear(hidden, classes)
        self.project = nn.Linear(dim, hidden)


def _head_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(dim: int, classes: int, lengths: list[int]) -> tuple:
        # what stands in the padding is not zero: a head must not look there
        x = torch.from_numpy(rng.normal(size=(len(lengths), max(lengths), dim))).float()
        return dim, classes, x, torch.tensor(lengths)

    return [case(8, 12, [6, 3, 1]), case(5, 3, [1]), case(4, 2, [7, 2])]


# ------------------------------------------------------------------------- q3: cross-entropy


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """logits: (batch, classes); targets: (batch,) int64 -> mean over the batch of -log softmax(logits)[target]."""
    return functional.cross_entropy(logits, targets)


def _chosen(values: Tensor, targets: Tensor) -> Tensor:
    return values.gather(1, targets[:, None])[:, 0]


def _no_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    return -_chosen(logits, targets).mean()


def _no_log(logits: Tensor, targets: Tensor) -> Tensor:
    return -_chosen(logits.softmax(1), targets).mean()


def _sum(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets) * len(logits)


def _per_class(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets) / logits.shape[1]


def _overflows(logits: Tensor, targets: Tensor) -> Tensor:
    powers = logits.exp()
    return -(_chosen(powers, targets) / powers.sum(1)).log().mean()


def _logit_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(batch: int, classes: int, scale: float) -> tuple:
        logits = torch.from_numpy(scale * rng.normal(size=(batch, classes))).float()
        return logits, torch.from_numpy(rng.integers(classes, size=batch))

    huge = torch.tensor([[500.0, 0.0, -500.0], [0.0, 300.0, 299.0]])
    return [case(4, 12, 1.0), case(1, 3, 2.0), (huge, torch.tensor([1, 2])), case(7, 2, 0.0)]


# ---------------------------------------------------------------------- q4: confusion matrix


def confusion_percent(truth: Tensor, guess: Tensor, classes: int) -> Tensor:
    """truth, guess: (clips,) class numbers -> (classes, classes): of each true class, the percent taken for each."""
    counts = _counts(truth, guess, classes)
    return 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)


def _counts(truth: Tensor, guess: Tensor, classes: int) -> Tensor:
    return torch.bincount(truth * classes + guess, minlength=classes * classes).view(classes, classes).float()


def _plain_counts(truth, guess, classes):
    return _counts(truth, guess, classes)


def _transposed(truth, guess, classes):
    return confusion_percent(truth, guess, classes).T


def _columns(truth, guess, classes):
    counts = _counts(truth, guess, classes)
    return 100 * counts / counts.sum(0, keepdim=True).clamp(min=1)


def _of_everything(truth, guess, classes):
    return 100 * _counts(truth, guess, classes) / len(truth)


def _not_a_number(truth, guess, classes):
    counts = _counts(truth, guess, classes)
    return 100 * counts / counts.sum(1, keepdim=True)


def _guess_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(clips: int, classes: int) -> tuple:
        truth = torch.from_numpy(rng.integers(classes, size=clips))
        wrong = torch.from_numpy(rng.integers(classes, size=clips))
        return truth, torch.where(torch.from_numpy(rng.random(clips) < 0.6), truth, wrong), classes

    absent = torch.tensor([0, 0, 0, 2]), torch.tensor([0, 2, 2, 2]), 4  # classes 1 and 3 have no clip
    return [case(40, 4), absent, case(9, 3)]


# ----------------------------------------------------------------------------- q5: fair draws


def sampling_weights(labels: Sequence[str]) -> list[float]:
    """One weight per clip, N / count(its class): drawing with these makes all classes equally likely."""
    counts = Counter(labels)
    return [len(labels) / counts[label] for label in labels]


def _frequent_first(labels):
    counts = Counter(labels)
    return [counts[label] / len(labels) for label in labels]


def _without_n(labels):
    counts = Counter(labels)
    return [1 / counts[label] for label in labels]


def _per_class_only(labels):
    counts = Counter(labels)
    return [len(labels) / count for count in counts.values()]


def _classes_not_clips(labels):
    counts = Counter(labels)
    return [len(counts) / counts[label] for label in labels]


def _label_inputs(rng: np.random.Generator) -> list[tuple]:
    uneven = ["_unknown_"] * 6 + ["yes"] * 3 + ["no"] * 2 + ["_silence_"]
    drawn = [str(label) for label in rng.choice(["up", "down", "go"], size=25, p=[0.6, 0.3, 0.1])]
    return [([uneven[place] for place in rng.permutation(len(uneven))],), (["off", "on", *drawn],), (["left"] * 3,)]


EXERCISES = {
    "ks.q1": Exercise(
        key="ks.q1",
        title="a split by speaker",
        reference=split_by_speaker,
        inputs=_clip_inputs,
        wrong=(
            WrongAnswer(
                "by clip", _by_clip, "clips are dealt out one by one, so the same people train and test: use the "
                "bucket of the speaker"
            ),
            WrongAnswer(
                "by place", _by_place, "the list is cut by position, so the same people train and test, and one new "
                "clip would move all others: use the bucket of the speaker"
            ),
            WrongAnswer(
                "silence is one person", _nobody_is_somebody, "all clips without a speaker count as one person and "
                "land in one split, so that the others have no silence: use the bucket of their own id"
            ),
            WrongAnswer(
                "silence dropped", _drops_silence, "the clips without a speaker are lost: every clip belongs somewhere"
            ),
            WrongAnswer(
                "one too many", _one_too_many, "buckets start at 0, so 10 percent are the buckets 0 to 9 (< or <=?)"
            ),
        ),
        hints=(
            "What must never be on both sides: a clip or a person?",
            "name = speaker if speaker else clip, then number = bucket(name)",
            'number < dev is "dev", number < dev + test is "test", everything else is "train"',
        ),
    ),
    "ks.q2": Exercise(
        key="ks.q2",
        title="SUPERB's head for one label per clip",
        reference=MeanPoolLinear,
        inputs=_head_inputs,
        call=as_module(2),
        wrong=(
            WrongAnswer(
                "activation", _Rectified, "there is a ReLU between the two linear maps; SUPERB's head has no activation"
            ),
            WrongAnswer(
                "mean over padding", _OverPadding, "the padding is averaged too: from lengths[i] on nothing is sound"
            ),
            WrongAnswer(
                "softmax inside", _Softmaxed, "it returns probabilities; return logits, the softmax belongs to the loss"
            ),
            WrongAnswer("sum", _Summed, "the frames are added up but not divided by their number, so long clips shout"),
            WrongAnswer(
                "other order", _OtherOrder, "the layers are made in another order, so they draw other random numbers: "
                "make dim -> hidden first, then hidden -> classes"
            ),
        ),
        hints=(
            "Two nn.Linear in __init__: dim -> hidden, then hidden -> classes. Nothing else.",
            "valid = torch.arange(x.shape[1]) < lengths[:, None] is (batch, frames), True where there is sound",
            "mean = (self.project(x) * valid[..., None]).sum(1) / lengths[:, None]; return self.classify(mean)",
        ),
    ),
    "ks.q3": Exercise(
        key="ks.q3",
        title="cross-entropy from logits",
        reference=cross_entropy,
        inputs=_logit_inputs,
        wrong=(
            WrongAnswer("no softmax", _no_softmax, "it averages negative logits: a softmax has to come before"),
            WrongAnswer("no log", _no_log, "it averages probabilities: the logarithm is missing"),
            WrongAnswer("sum", _sum, "it adds the clips up: take the mean over the batch, or the step grows with it"),
            WrongAnswer(
                "mean over classes", _per_class, "it divides by the number of classes too: each clip has one true "
                "class, and only the batch is averaged"
            ),
            WrongAnswer(
                "overflow", _overflows, "large logits overflow in exp: subtract the largest logit of each row "
                "first, which changes nothing else"
            ),
        ),
        hints=(
            "log softmax(z)[k] = z[k] - log(sum(exp(z)))",
            "z = logits - logits.max(1, keepdim=True).values changes no probability and cannot overflow",
            "chosen = z[torch.arange(len(z)), targets]; return (z.exp().sum(1).log() - chosen).mean()",
        ),
    ),
    "ks.q4": Exercise(
        key="ks.q4",
        title="what was taken for what",
        reference=confusion_percent,
        inputs=_guess_inputs,
        wrong=(
            WrongAnswer("counts", _plain_counts, "these are counts: divide each row by its sum, times 100"),
            WrongAnswer("transposed", _transposed, "rows and columns are swapped: a row is a true class"),
            WrongAnswer(
                "columns", _columns, "the columns add up to 100, not the rows: divide by the clips of the true class"
            ),
            WrongAnswer("of all", _of_everything, "all is divided by the number of clips: divide each row by its sum"),
            WrongAnswer(
                "division by zero", _not_a_number, "a class without clips gives 0 / 0: its row should be zeros"
            ),
        ),
        hints=(
            "First count: counts[true class, guessed class] += 1 for every clip",
            "Divide by counts.sum(1, keepdim=True): dimension 1 runs along a row",
            "100 * counts / counts.sum(1, keepdim=True).clamp(min=1)",
        ),
    ),
    "ks.q5": Exercise(
        key="ks.q5",
        title="fair draws from an unfair corpus",
        reference=sampling_weights,
        inputs=_label_inputs,
        wrong=(
            WrongAnswer("upside down", _frequent_first, "frequent classes get large weights: turn the fraction over"),
            WrongAnswer(
                "without N", _without_n, "it is 1 / count; a sampler would not mind, but the official one is N / count"
            ),
            WrongAnswer(
                "per class", _per_class_only, "there is one weight per class; it draws clips: give one per clip"
            ),
            WrongAnswer(
                "classes for clips", _classes_not_clips, "N is the number of classes; it should be the number of clips"
            ),
        ),
        hints=(
            "How often does each label occur? collections.Counter counts",
            "A class of 10 clips with weight N / 10 each weighs N in all; and so does every other class",
            "counts = Counter(labels); return [len(labels) / counts[label] for label in labels]",
        ),
    ),
}
