"""Automatic speaker verification: is this the same voice, although neither clip was heard in training?

The head learns to tell the training speakers apart (AM-softmax); on dev and test it only describes: a clip becomes
a vector, and the cosine of two vectors says how much the voices are alike. A trial is a pair of clips.

Two numbers: `eer` is that of the head that was best on dev; `eer_published` is the lowest of all the heads kept
during training, chosen on the split that is scored, which is how the published numbers came about.
Trivial baseline: any score that does not hear the voice has an EER of 50 %.

Source: superb/protocol.md section 3.5 (VoxCeleb1: 1,211 training speakers, 37,720 trials of 40 others, x-vector,
cosine, equal error rate).
Differs: SUPERB trims silence and drops training clips of 2 s or less, and has no dev set; the corpora here have neither
long silence nor such a rule, and a dev set of unseen speakers. One exact pooling length, see `XVector`.

Taught in notebook 08 (speaker verification).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from superb_lite.corpora import get_corpus
from superb_lite.heads import XVector
from superb_lite.losses import AMSoftmax
from superb_lite.metrics import eer
from superb_lite.tasks._shared import class_numbers, tone, toy_clip, toy_seed
from superb_lite.types import Clip, ContractBroken, Corpus, Metric, Recipe, Split, Task

LABEL = "speaker"
EMBEDDING = 512  # unless the recipe says otherwise

# SUPERB never looks at dev: it scores the checkpoints of every 20,000th step on test.
SUPERB = Recipe(
    "superb", steps=200_000, batch=10, accumulate=5, lr=1e-4, eval_every=20_000, clip_norm=1000.0, optimizer="adamw",
    crop_sec=8.0, sizes={"width": 512, "last": 1500, "embedding": EMBEDDING},
)  # fmt: skip
# A five-hundredth of the steps, so ten times the lr; a network a thirtieth as large; half of each clip at a time.
MINI = Recipe(
    "mini", steps=400, batch=32, lr=1e-3, eval_every=50, clip_norm=1000.0, optimizer="adamw", crop_sec=1.5,
    sizes={"width": 96, "last": 192, "embedding": 96},
)  # fmt: skip
DIGITS = Recipe(
    "digits", steps=400, batch=32, lr=1e-3, eval_every=50, clip_norm=1000.0, optimizer="adamw", crop_sec=1.5,
    sizes={"width": 96, "last": 192, "embedding": 96},
)  # fmt: skip


class Verifier(nn.Module):
    """An x-vector and the loss it is trained with, whose speaker vectors learn beside it."""

    def __init__(self, dim: int, speakers: int, *, embedding: int = EMBEDDING, **sizes: int) -> None:
        super().__init__()
        self.network = XVector(dim, embedding=embedding, **sizes)
        self.margin = AMSoftmax(embedding, speakers)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: (batch, frames, dim); lengths: (batch,) valid frames -> (batch, embedding). See `XVector`."""
        return self.network(x, lengths)


def encode(clips: Sequence[Clip], lengths: Tensor, stride: int, split: Split) -> tuple[Tensor, ...]:
    """((clips,) int64 speaker numbers,); -1 on dev and test for a speaker who is not in training, as none should be.

    Raises:
        LabelMissing: a clip has no speaker, or a training clip has one outside the classes.
        ContractBroken: dev or test without trials.
    """
    if split.name == "train":
        return (class_numbers(clips, LABEL, split),)
    if not split.trials:
        raise ContractBroken(
            f"the {split.name} split of {split.corpus} has no trials, so nobody can be verified; "
            "give it Split.trials, pairs of clip ids with True for the same speaker"
        )
    places = {name: number for number, name in enumerate(split.classes)}
    return (torch.tensor([places.get(clip.label(LABEL), -1) for clip in clips], dtype=torch.int64),)


def head(dim: int, split: Split, recipe: Recipe) -> Verifier:
    """SUPERB's x-vector with the vectors of the training speakers. `recipe.sizes`: width, last, embedding."""
    return Verifier(dim, len(split.classes), **recipe.sizes)


def loss(head: Verifier, out: Tensor, lengths: Tensor, targets: tuple[Tensor, ...]) -> Tensor:
    """AM-softmax. out: (batch, embedding); targets: one tensor (batch,) of speaker numbers."""
    (numbers,) = targets
    return head.margin(out, numbers)


def decode(out: Tensor, lengths: Tensor, stride: int, split: Split) -> list[np.ndarray]:
    """One embedding per clip, (embedding,) float32 of length 1 (of length 0 if no channel is active)."""
    return list(functional.normalize(out, dim=1).numpy())


def trial_scores(predictions: Mapping[str, np.ndarray], split: Split) -> np.ndarray:
    """(trials,) float64: the cosine of each pair, in the order of `split.trials`.

    Raises:
        ContractBroken: a trial names a clip that has no embedding.
    """
    places = {name: place for place, name in enumerate(predictions)}
    strangers = [name for pair in split.trials for name in pair[:2] if name not in places]
    if strangers:
        raise ContractBroken(
            f"a trial of {split.corpus} {split.name} names {strangers[0]!r}, which has no embedding; "
            "predict the split that is scored"
        )
    vectors = np.array([predictions[name] for name in places], dtype=np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    first, second = ([places[pair[side]] for pair in split.trials] for side in (0, 1))
    return np.einsum("td,td->t", vectors[first], vectors[second])


def score(predictions: Mapping[str, np.ndarray], split: Split) -> dict[str, float]:
    """{"eer": percent} over the split's trials. `evaluate` adds ``eer_published``, see above."""
    return {"eer": eer([same for _, _, same in split.trials], trial_scores(predictions, split))}


# ------------------------------------------------------------------------------------------------- toys

TOY_VOICES = {"train": (0, 2, 3, 5), "dev": (1,), "test": (4,)}  # of every six neighbours
TOY_PITCHES = [300.0 * 8 ** (place / 35) for place in range(36)]
TOY_CLIPS = 5  # of each voice


def toy(split: str, fold: int) -> Split:
    """Voices are sines of their own, under a higher one that is new in every clip; nobody is in two splits."""
    clips = []
    for place, pitch in enumerate(TOY_PITCHES):
        if place % 6 in TOY_VOICES[split]:
            for number in range(TOY_CLIPS):
                generator = toy_seed("asv", place, fold, number)
                seconds = 0.4 + 0.2 * float(torch.rand((), generator=generator))
                said = 3000.0 + 4000.0 * float(torch.rand((), generator=generator))
                wave = tone((pitch,), seconds, generator) + 0.5 * tone((said,), seconds, generator)
                name = f"asv-{split}-{fold}-{place}-{number}"
                clips.append(toy_clip(name, wave, {LABEL: f"voice{place:02d}"}))
    trained = tuple(f"voice{place:02d}" for place in range(36) if place % 6 in TOY_VOICES["train"])
    return Split("toy", split, tuple(clips), trained, fold, () if split == "train" else every_pair(clips))


def every_pair(clips: Sequence[Clip]) -> tuple[tuple[str, str, bool], ...]:
    """Trials of each clip with each later one; the label says which are the same speaker. Raises LabelMissing."""
    return tuple(
        (one.id, other.id, one.label(LABEL) == other.label(LABEL))
        for place, one in enumerate(clips)
        for other in clips[place + 1 :]
    )


TASK = Task(
    key="asv",
    title="Speaker verification",
    domain="speaker",
    metrics=(
        Metric("eer", "equal error rate", higher_is_better=False),
        Metric("eer_published", "equal error rate, best head chosen on test", higher_is_better=False, in_table=False),
    ),
    corpora={
        "mini": Corpus(lambda split, fold: get_corpus("mini").asv(split, fold), MINI),
        "digits": Corpus(lambda split, fold: get_corpus("digits").asv(split, fold), DIGITS),
    },
    encode=encode,
    head=head,
    loss=loss,
    decode=decode,
    score=score,
    snapshots=True,
    toy=toy,
    toy_sizes={"width": 48, "last": 96, "embedding": 48},
    published=SUPERB,
)
