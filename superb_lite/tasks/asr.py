"""Speech recognition: which words were said?

Source: superb/protocol.md section 3.2 (LibriSpeech, SpecAugment, BLSTM head, CTC over letters with ``|`` at the end of
every word and ``</s>`` at the end, corpus-level word error rate). The split's classes are `text.letter_classes`:
``<s>`` (0, the blank) and three more specials, ``|``, the letters.

Three scores: ``wer`` and ``cer`` of the greedy path, without any language model; ``wer_lm`` of a beam search with a
closed lexicon and an n-gram (`superb_lite.lm`), both from the *training* text alone. How much the n-gram counts is
settled on dev.
Differs: SUPERB's lexicon and 4-gram come from books outside the benchmark, and their weights are fixed.

Taught in notebook 05 (speech recognition).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from superb_lite.corpora import get_corpus
from superb_lite.lm import Hypothesis, Lexicon, NGram, beam_search
from superb_lite.metrics import cer, wer
from superb_lite.tasks._shared import TOY_BLSTM, blstm, ctc_loss, symbol_targets, tone, toy_clip, toy_seed
from superb_lite.text import collapse, letter_classes, letter_tokens, letters_text
from superb_lite.types import Clip, Corpus, Metric, Recipe, Split, SuperbLiteError, Task

log = logging.getLogger(__name__)

LABEL = "text"

# SUPERB's buckets of 32 clips are always halved (section 3.2), so 16.
SUPERB = Recipe("superb", steps=200_000, batch=16, lr=1e-4, eval_every=2_000)
SIZES = {  # one layer instead of two, and little is hidden: a laptop has time for few steps
    "projector": 96, "hidden": 128, "layers": 1, "dropout": 0.0,
    "warp": 0, "freq_masks": 1, "freq_width": 9, "time_masks": 1, "time_width": 10,
}  # fmt: skip
MINI = Recipe("mini", steps=1600, batch=8, lr=4e-3, eval_every=400, sizes=SIZES)
DIGITS = Recipe("digits", steps=800, batch=8, lr=4e-3, eval_every=200, sizes=SIZES)

ORDER = 3  # words in the longest n-gram
BEAM = 16  # hypotheses kept at each frame
LM_WEIGHTS = (0.25, 0.5, 1.0, 1.5, 2.0)
WORD_SCORES = (-1.0, 0.0, 1.0, 2.0)
FIRST_GUESS = (1.0, 0.0)  # weight and word score of the search whose hypotheses are weighed on dev

TOY_HZ = {"a": 300.0, "b": 700.0, "c": 1500.0, "d": 2700.0}
TOY_WORDS = ("ab", "ba", "cad", "dab", "bad", "cab")
TOY_CLIPS = {"train": 48, "dev": 12, "test": 16}


@dataclass(frozen=True)
class Heard:
    """What a recogniser made of a clip: the greedy text, and what a beam search needs to do better.

    log_probs: (frames, vocab) float16; a clip of ten seconds takes 32 kB
    """

    text: str
    log_probs: Tensor = field(repr=False, compare=False)


# ------------------------------------------------------------------------------------------ the task


def encode(clips: Sequence[Clip], lengths: Tensor, stride: int, split: Split) -> tuple[Tensor, ...]:
    """((clips, symbols) int64 padded with 0, (clips,) int64 number of symbols): letters, ``|`` and ``</s>``.

    Raises:
        LabelMissing: a clip has no text, an empty one, or a character outside the classes.
    """
    return symbol_targets(clips, LABEL, [letter_tokens(clip.label(LABEL)) for clip in clips], split)


def decode(out: Tensor, lengths: Tensor, stride: int, split: Split) -> list[Heard]:
    """For each clip the greedy text (best symbol of each frame, repeats collapsed, blanks dropped) and all the odds."""
    log_probs = out.log_softmax(dim=-1)
    heard = []
    for row, length in zip(log_probs, lengths.tolist(), strict=True):
        path = collapse(row[:length].argmax(dim=-1))
        heard.append(Heard(letters_text(split.classes[number] for number in path), row[:length].half()))
    return heard


def settle(predictions: Mapping[str, Heard], split: Split) -> dict[str, float]:
    """{"lm_weight", "word_score"} with the lowest word error rate on dev; {} if the training text is out of reach.

    One search lists the hypotheses of every clip; all weights are tried on these lists.
    """
    lexicon = _lexicon(split.corpus, split.fold, split.classes)
    if lexicon is None:
        return {}
    lists = [_search(predictions[clip.id], lexicon, *FIRST_GUESS) for clip in split.clips]
    refs = [clip.label(LABEL) for clip in split.clips]

    def error(weights: tuple[float, float]) -> float:
        return wer(refs, [max(found, key=lambda one: one.score(*weights)).text for found in lists])

    lm_weight, word_score = min(itertools.product(LM_WEIGHTS, WORD_SCORES), key=error)
    return {"lm_weight": lm_weight, "word_score": word_score}


def score(
    predictions: Mapping[str, Heard], split: Split, *, lm_weight: float | None = None, word_score: float = 0.0
) -> dict[str, float]:
    """{"wer", "cer", "wer_lm"} in percent, edits pooled over all clips.

    lm_weight, word_score: as from `settle`. Without a weight there is no language model, and wer_lm is wer.
    """
    refs = [clip.label(LABEL) for clip in split.clips]
    heard = [predictions[clip.id] for clip in split.clips]
    greedy = [one.text for one in heard]
    scores = {"wer": wer(refs, greedy), "cer": cer(refs, greedy)}
    lexicon = None if lm_weight is None else _lexicon(split.corpus, split.fold, split.classes)
    if lexicon is None:
        return scores | {"wer_lm": scores["wer"]}
    best = [_search(one, lexicon, lm_weight, word_score)[0].text for one in heard]
    return scores | {"wer_lm": wer(refs, best)}


def _search(heard: Heard, lexicon: Lexicon, lm_weight: float, word_score: float) -> list[Hypothesis]:
    return beam_search(heard.log_probs, lexicon, lm_weight=lm_weight, word_score=word_score, beam=BEAM)


@cache
def _lexicon(corpus: str, fold: int, classes: tuple[str, ...]) -> Lexicon | None:
    """Language model and lexicon of a corpus' training text; None, with a warning, if we do not know the corpus."""
    try:
        train = toy("train", fold) if corpus == "toy" else get_corpus(corpus).asr("train", fold)
    except (SuperbLiteError, AttributeError) as error:
        log.warning("no language model for corpus %r, so wer_lm is wer: no training text (%s)", corpus, error)
        return None
    return Lexicon(NGram([clip.label(LABEL) for clip in train.clips], ORDER), classes)


# ----------------------------------------------------------------------------------------------- toy


def toy(split: str, fold: int) -> Split:
    """Two or three words of four letters; every letter is one tone, and between words there is a pause."""
    clips = []
    for number in range(TOY_CLIPS[split]):
        generator = toy_seed("asr", split, fold, number)
        count = int(torch.randint(2, 4, (), generator=generator))
        words = [TOY_WORDS[place] for place in torch.randint(len(TOY_WORDS), (count,), generator=generator)]
        pieces = []
        for word in words:
            for letter in word:
                seconds = 0.08 + 0.04 * float(torch.rand((), generator=generator))
                pieces.append(tone((TOY_HZ[letter],), seconds, generator))
            pieces.append(0.02 * torch.randn(1600, generator=generator))
        clips.append(toy_clip(f"asr-{split}-{fold}-{number}", torch.cat(pieces), {LABEL: " ".join(words)}))
    return Split("toy", split, tuple(clips), letter_classes(letter.upper() for letter in TOY_HZ), fold)


TASK = Task(
    key="asr",
    title="Speech recognition",
    domain="content",
    metrics=(
        Metric("wer", "word error rate", higher_is_better=False),
        Metric("cer", "character error rate", higher_is_better=False, in_table=False),
        Metric("wer_lm", "word error rate with a language model", higher_is_better=False),
    ),
    corpora={
        "mini": Corpus(lambda split, fold: get_corpus("mini").asr(split, fold), MINI),
        "digits": Corpus(lambda split, fold: get_corpus("digits").asr(split, fold), DIGITS),
    },
    encode=encode,
    head=blstm,
    loss=ctc_loss,
    decode=decode,
    score=score,
    settle=settle,
    toy=toy,
    toy_sizes=TOY_BLSTM,
    published=SUPERB,
)
