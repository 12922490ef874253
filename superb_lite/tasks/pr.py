"""Phoneme recognition: which phones were said, in which order?

Source: superb/protocol.md section 3.1 (LibriSpeech, frame-wise linear head, CTC with ``<eos>`` as a target,
greedy decoding, corpus-level phone error rate). The split's classes are the vocabulary: ``<pad>`` (0, the
blank), ``<eos>`` (1), ``<unk>`` (2), then the phones.
Differs: repeats are collapsed before blanks are dropped; the published numbers come from the other order.
Phones carry no stress digits on `mini` and `digits`.

Taught in notebook 03 (phoneme recognition).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from superb_lite.corpora import get_corpus
from superb_lite.heads import FrameLinear
from superb_lite.losses import ctc
from superb_lite.metrics import per
from superb_lite.tasks._shared import outside, tone, toy_clip, toy_seed
from superb_lite.text import SPECIALS, PhoneVocab, collapse
from superb_lite.types import RATE, Clip, Corpus, Metric, Recipe, Split, Task

LABEL = "phones"

SUPERB = Recipe("superb", steps=100_000, batch=16, accumulate=2, lr=1e-2, eval_every=1_000)
# A hundredth of the steps, half the clips in each, half the lr.
MINI = Recipe("mini", steps=1000, batch=16, lr=5e-3, eval_every=200)
DIGITS = Recipe("digits", steps=1000, batch=16, lr=5e-3, eval_every=200)

TOY_PHONES = {"a": (350.0,), "b": (900.0,), "c": (1800.0,), "d": (3200.0,)}
TOY_CLIPS = {"train": 48, "dev": 12, "test": 16}


def encode(clips: Sequence[Clip], lengths: Tensor, stride: int, split: Split) -> tuple[Tensor, ...]:
    """((clips, symbols) int64 padded with 0, (clips,) int64 number of symbols). ``<eos>`` ends each row.

    Raises:
        LabelMissing: a clip has no phones, an empty list, or a phone outside the vocabulary.
    """
    vocab = PhoneVocab(split.classes)
    phones = set(split.classes[len(SPECIALS) :])
    rows = []
    for clip in clips:
        said = spoken(clip)
        strange = [phone for phone in said if phone not in phones]
        if strange or not said:
            raise outside(clip, LABEL, strange[0] if strange else [], split)
        rows.append(torch.tensor(vocab.ids(said)))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


def spoken(clip: Clip) -> list[str]:
    """The phones of a clip without their times. Raises LabelMissing."""
    return [phone for phone, _, _ in clip.label(LABEL)]


def head(dim: int, split: Split, recipe: Recipe) -> FrameLinear:
    """SUPERB's frame head: linear to 256, linear to the vocabulary."""
    return FrameLinear(dim, len(split.classes))


def loss(head: nn.Module, out: Tensor, lengths: Tensor, targets: tuple[Tensor, ...]) -> Tensor:
    """CTC. out: (batch, frames, vocab) logits; targets: symbols and their numbers, as from `encode`."""
    symbols, counts = targets
    return ctc(out, lengths, symbols, counts)


def decode(out: Tensor, lengths: Tensor, stride: int, split: Split) -> list[list[str]]:
    """Greedy: the best symbol of each valid frame, repeats collapsed, blanks and ``<eos>`` dropped."""
    vocab = PhoneVocab(split.classes)
    best = out.argmax(dim=-1)
    return [
        vocab.phones(collapse(row[:length])) for row, length in zip(best.tolist(), lengths.tolist(), strict=True)
    ]


def score(predictions: Mapping[str, list[str]], split: Split) -> dict[str, float]:
    """{"per": percent}, edits pooled over all clips."""
    return {"per": per([spoken(clip) for clip in split.clips], [predictions[clip.id] for clip in split.clips])}


def toy(split: str, fold: int) -> Split:
    """Words of three to six phones out of four, each one sine of 0.1 s or so, and never the same twice in a row."""
    clips = []
    names = list(TOY_PHONES)
    for number in range(TOY_CLIPS[split]):
        generator = toy_seed("pr", split, fold, number)
        count = int(torch.randint(3, 7, (), generator=generator))
        pieces, phones, at, place = [], [], 0, 0
        for step in torch.randint(1, len(names), (count,), generator=generator).tolist():
            place = (place + step) % len(names)
            seconds = 0.08 + 0.06 * float(torch.rand((), generator=generator))
            pieces.append(tone(TOY_PHONES[names[place]], seconds, generator))
            phones.append([names[place], at / RATE, (at + len(pieces[-1])) / RATE])
            at += len(pieces[-1])
        clips.append(toy_clip(f"pr-{split}-{fold}-{number}", torch.cat(pieces), {LABEL: phones}))
    return Split("toy", split, tuple(clips), PhoneVocab.of(names).symbols, fold)


TASK = Task(
    key="pr",
    title="Phoneme recognition",
    domain="content",
    metrics=(Metric("per", "phone error rate", higher_is_better=False),),
    corpora={
        "mini": Corpus(lambda split, fold: get_corpus("mini").pr(split, fold), MINI),
        "digits": Corpus(lambda split, fold: get_corpus("digits").pr(split, fold), DIGITS),
    },
    pooled=False,
    encode=encode,
    head=head,
    loss=loss,
    decode=decode,
    score=score,
    toy=toy,
    published=SUPERB,
)
