"""Speaker identification: which of the speakers heard in training is this?

Source: superb/protocol.md section 3.4 (VoxCeleb1 identification split, 1,251 speakers, cross-entropy, accuracy).
Training clips longer than 8 s are cut at random places by the published recipe; those of `mini` are shorter.

Taught in notebook 07 (speaker identification).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from superb_lite.corpora import get_corpus
from superb_lite.heads import MeanPoolLinear
from superb_lite.tasks._shared import best_class, class_accuracy, class_numbers, cross_entropy, toy_classes
from superb_lite.types import Clip, Corpus, Metric, Recipe, Split, Task

LABEL = "speaker"

SUPERB = Recipe("superb", steps=200_000, batch=8, accumulate=4, lr=1e-4, eval_every=5_000, crop_sec=8.0)
# A two-hundredth of the steps at one lr for everyone, which was best for a tiny network.
MINI = Recipe("mini", steps=1000, batch=32, lr=5e-3, eval_every=100)
DIGITS = Recipe("digits", steps=1000, batch=32, lr=5e-3, eval_every=100)

TOY_SOUNDS = {
    "bass": (110.0, 220.0, 330.0, 2400.0),
    "tenor": (160.0, 320.0, 480.0, 2700.0),
    "alto": (230.0, 460.0, 690.0, 3000.0),
    "child": (340.0, 680.0, 1020.0, 3400.0),
}


def encode(clips: Sequence[Clip], lengths: Tensor, stride: int, split: Split) -> tuple[Tensor, ...]:
    """((clips,) int64 speaker numbers,). Raises LabelMissing."""
    return (class_numbers(clips, LABEL, split),)


def head(dim: int, split: Split, recipe: Recipe) -> MeanPoolLinear:
    """SUPERB's utterance head: linear to 256, mean over valid frames, linear to the speakers."""
    return MeanPoolLinear(dim, len(split.classes))


def score(predictions: Mapping[str, str], split: Split) -> dict[str, float]:
    """{"acc": percent}."""
    return class_accuracy(predictions, LABEL, split)


def toy(split: str, fold: int) -> Split:
    """Four voices, each a pitch with its harmonics and a formant."""
    return toy_classes("sid", LABEL, TOY_SOUNDS, split, fold, seconds=0.4)


TASK = Task(
    key="sid",
    title="Speaker identification",
    domain="speaker",
    metrics=(Metric("acc", "accuracy", higher_is_better=True),),
    corpora={
        "mini": Corpus(lambda split, fold: get_corpus("mini").sid(split, fold), MINI),
        "digits": Corpus(lambda split, fold: get_corpus("digits").sid(split, fold), DIGITS),
    },
    pooled=True,
    encode=encode,
    head=head,
    loss=cross_entropy,
    decode=best_class,
    score=score,
    toy=toy,
    published=SUPERB,
)
