"""Emotion recognition: in which mood was it said? Neutral, happy, angry or sad, whatever the words.

Five folds: each session of two speakers is the test set once, and the score of an upstream is the plain mean of five
accuracies. Trivial baseline: 25 % where the four are equally frequent (IEMOCAP: always "neutral" gives 31 %).

Source: superb/protocol.md section 3.10 (IEMOCAP, four classes, cross-entropy, accuracy per fold).
Differs: in SUPERB the seed that splits the sessions also fixes the first weights of the head; here the seed of a run
decides about those.

Taught in notebook 12 (emotion recognition).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from superb_lite.corpora import get_corpus
from superb_lite.heads import MeanPoolLinear
from superb_lite.tasks._shared import best_class, class_accuracy, class_numbers, cross_entropy, toy_classes
from superb_lite.types import Clip, Corpus, Metric, Recipe, Split, Task

LABEL = "emotion"
FOLDS = 5

SUPERB = Recipe("superb", steps=30_000, batch=4, accumulate=8, lr=1e-4, eval_every=1_000)
# A sixtieth of the steps, so 50 times the lr; after these the head knows every training clip.
MINI = Recipe("mini", steps=500, batch=32, lr=5e-3, eval_every=50)

TOY_SOUNDS = {
    "neu": (150.0, 300.0, 450.0),
    "hap": (260.0, 520.0, 2200.0),
    "ang": (210.0, 1300.0, 3100.0),
    "sad": (110.0, 220.0),
}


def encode(clips: Sequence[Clip], lengths: Tensor, stride: int, split: Split) -> tuple[Tensor, ...]:
    """((clips,) int64 emotion numbers,). Raises LabelMissing."""
    return (class_numbers(clips, LABEL, split),)


def head(dim: int, split: Split, recipe: Recipe) -> MeanPoolLinear:
    """SUPERB's utterance head: linear to 256, mean over valid frames, linear to the emotions."""
    return MeanPoolLinear(dim, len(split.classes), **recipe.sizes)


def score(predictions: Mapping[str, str], split: Split) -> dict[str, float]:
    """{"acc": percent} of one fold."""
    return class_accuracy(predictions, LABEL, split)


def toy(split: str, fold: int) -> Split:
    """Four moods, each a pitch with its own overtones."""
    return toy_classes("er", LABEL, TOY_SOUNDS, split, fold, seconds=0.4)


TASK = Task(
    key="er",
    title="Emotion recognition",
    domain="paralinguistics",
    metrics=(Metric("acc", "accuracy", higher_is_better=True),),
    corpora={"mini": Corpus(lambda split, fold: get_corpus("mini").er(split, fold), MINI)},
    pooled=True,
    encode=encode,
    head=head,
    loss=cross_entropy,
    decode=best_class,
    score=score,
    toy=toy,
    published=SUPERB,
    folds=FOLDS,
)
