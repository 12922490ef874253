"""Keyword spotting: which of a few words was said?

Source: superb/protocol.md section 3.3 (Speech Commands v0.01, 12 classes, cross-entropy, accuracy on test).
Differs: `mini` and `digits` have every class equally often (`digits` without unknown words and silence), so
batches need no weighted sampler and dev is scored whole.

Taught in notebook 04 (keyword spotting).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from superb_lite.corpora import get_corpus
from superb_lite.heads import MeanPoolLinear
from superb_lite.tasks._shared import best_class, class_accuracy, class_numbers, cross_entropy, toy_classes
from superb_lite.types import Clip, Corpus, Metric, Recipe, Split, Task

LABEL = "keyword"

SUPERB = Recipe("superb", steps=200_000, batch=32, lr=1e-4, eval_every=5_000)
# Few steps, so 30 times the lr; both chosen on dev (3e-3 93.5, 5e-3 93.2, 7e-3 93.3, 1e-2 92.5 for tiny_hubert).
MINI = Recipe("mini", steps=3000, batch=32, lr=3e-3, eval_every=100)
DIGITS = Recipe("digits", steps=1000, batch=32, lr=5e-3, eval_every=100)

TOY_SOUNDS = {"low": (300.0,), "middle": (900.0,), "high": (1900.0,), "top": (3400.0,)}


def encode(clips: Sequence[Clip], lengths: Tensor, stride: int, split: Split) -> tuple[Tensor, ...]:
    """((clips,) int64 class numbers,). Raises LabelMissing."""
    return (class_numbers(clips, LABEL, split),)


def head(dim: int, split: Split, recipe: Recipe) -> MeanPoolLinear:
    """SUPERB's utterance head: linear to 256, mean over valid frames, linear to the classes."""
    return MeanPoolLinear(dim, len(split.classes))


def score(predictions: Mapping[str, str], split: Split) -> dict[str, float]:
    """{"acc": percent}."""
    return class_accuracy(predictions, LABEL, split)


def toy(split: str, fold: int) -> Split:
    """Four words, each one sine."""
    return toy_classes("ks", LABEL, TOY_SOUNDS, split, fold, seconds=0.3)


TASK = Task(
    key="ks",
    title="Keyword spotting",
    domain="content",
    metrics=(Metric("acc", "accuracy", higher_is_better=True),),
    corpora={
        "mini": Corpus(lambda split, fold: get_corpus("mini").ks(split, fold), MINI),
        "digits": Corpus(lambda split, fold: get_corpus("digits").ks(split, fold), DIGITS),
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
