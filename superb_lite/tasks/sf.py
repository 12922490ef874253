"""Slot filling: what was said, and which of its words fill which slot of the request, in one step.

Source: superb/protocol.md section 3.9 (Audio SNIPS, SpecAugment, BLSTM head, CTC over letters and slot marks, greedy
decoding; slot-type F1 and slot-value character error rate). The split's classes are `text.slot_classes`: ``<pad>``
(0, the blank), ``<eos>`` (1), ``<unk>`` (2), space, ``'``, the letters, then ``B-slot`` and ``E-slot`` of every slot.
A prediction is a marked-up sentence: ``PLAY B-artist ADELE E-artist NOW``.
Differs: repeats are collapsed before blanks are dropped; the published numbers come from the other order.

Taught in notebook 11 (slot filling).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from superb_lite.corpora import get_corpus
from superb_lite.metrics import slot_type_f1, slot_value_cer
from superb_lite.tasks._shared import TOY_BLSTM, blstm, ctc_loss, symbol_targets, tone, toy_clip, toy_seed
from superb_lite.text import collapse, slot_classes, slot_markup, slot_tokens
from superb_lite.types import Clip, Corpus, LabelMissing, Metric, Recipe, Split, Task

TEXT, TAGS = "text", "tags"

SUPERB = Recipe("superb", steps=200_000, batch=32, lr=1e-4, eval_every=2_000)
SIZES = {  # one layer instead of two, and little is hidden: a laptop has time for few steps
    "projector": 96, "hidden": 128, "layers": 1, "dropout": 0.0,
    "warp": 0, "freq_masks": 1, "freq_width": 9, "time_masks": 1, "time_width": 10,
}  # fmt: skip
MINI = Recipe("mini", steps=1200, batch=8, lr=5e-3, eval_every=300, sizes=SIZES)

TOY_HZ = {"a": 300.0, "b": 700.0, "c": 1500.0, "d": 2700.0}
TOY_VALUES = {"day": ("ab", "ba", "aba"), "city": ("cd", "dc", "cdc")}
TOY_CLIPS = {"train": 48, "dev": 12, "test": 16}


def encode(clips: Sequence[Clip], lengths: Tensor, stride: int, split: Split) -> tuple[Tensor, ...]:
    """((clips, symbols) int64 padded with 0, (clips,) int64 number of symbols): letters, marks and ``<eos>``.

    Raises:
        LabelMissing: a clip lacks text or tags, has not one tag per word, or something outside the classes.
    """
    return symbol_targets(clips, f"{TEXT} and {TAGS}", [_tokens(clip) for clip in clips], split)


def marked(clip: Clip) -> str:
    """The reference of a clip as a marked-up sentence. Raises LabelMissing."""
    return slot_markup(_tokens(clip))


def _tokens(clip: Clip) -> list[str]:
    text, tags = clip.label(TEXT), clip.label(TAGS)
    try:
        return slot_tokens(text, tags)
    except ValueError as error:
        raise LabelMissing(f"clip {clip.id!r} ({clip.audio}): {error}; correct the manifest") from None


def decode(out: Tensor, lengths: Tensor, stride: int, split: Split) -> list[str]:
    """Greedy: the best symbol of each valid frame, repeats collapsed, blanks and ``<eos>`` dropped; marks as text."""
    best = out.argmax(dim=-1)
    return [
        slot_markup(split.classes[number] for number in collapse(row[:length]))
        for row, length in zip(best.tolist(), lengths.tolist(), strict=True)
    ]


def score(predictions: Mapping[str, str], split: Split) -> dict[str, float]:
    """{"slot_f1": mean over clips, "slot_cer": edits pooled over all clips}, both in percent."""
    refs = [marked(clip) for clip in split.clips]
    hyps = [predictions[clip.id] for clip in split.clips]
    return {"slot_f1": slot_type_f1(refs, hyps), "slot_cer": slot_value_cer(refs, hyps)}


def toy(split: str, fold: int) -> Split:
    """A day, a city or both, one word each; every letter is one tone, and between words there is a pause."""
    clips = []
    for number in range(TOY_CLIPS[split]):
        generator = toy_seed("sf", split, fold, number)
        tags = (("day",), ("city",), ("day", "city"), ("city", "day"))[number % 4]
        words = [TOY_VALUES[tag][int(torch.randint(3, (), generator=generator))] for tag in tags]
        pieces = []
        for word in words:
            for letter in word:
                seconds = 0.12 + 0.05 * float(torch.rand((), generator=generator))
                pieces.append(tone((TOY_HZ[letter],), seconds, generator))
            pieces.append(0.02 * torch.randn(2400, generator=generator))
        labels = {TEXT: " ".join(words), TAGS: list(tags)}
        clips.append(toy_clip(f"sf-{split}-{fold}-{number}", torch.cat(pieces), labels))
    return Split("toy", split, tuple(clips), slot_classes(TOY_VALUES), fold)


TASK = Task(
    key="sf",
    title="Slot filling",
    domain="semantics",
    metrics=(
        Metric("slot_f1", "slot-type F1", higher_is_better=True),
        Metric("slot_cer", "slot-value character error rate", higher_is_better=False),
    ),
    corpora={"mini": Corpus(lambda split, fold: get_corpus("mini").sf(split, fold), MINI)},
    encode=encode,
    head=blstm,
    loss=ctc_loss,
    decode=decode,
    score=score,
    toy=toy,
    toy_sizes=TOY_BLSTM,
    published=SUPERB,
)
