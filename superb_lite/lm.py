"""A language model that fits on a page, and the beam search that listens to it.

A recogniser trained with CTC writes down what it hears, letter by letter. The language model knows which words exist
and which of them follow each other. The beam search looks for the sentence both like best:

    score(sentence) = log P(sentence | sound) + lm_weight * log P(sentence) + word_score * words

The lexicon is closed: only words of the training text can be written (an unknown word costs infinity, as in
SUPERB), so a sentence with a word that was never in it cannot be right.

Source: superb/protocol.md section 3.2 (beam search with a lexicon, 4-gram, lm_weight 2, word_score -1, beam 5).
Differs: the n-gram is estimated from the training text alone (Witten-Bell, interpolated); a sentence's probability
is summed over its alignments, where SUPERB's decoder takes the best one.

Taught in notebook 05 (speech recognition).
"""

from __future__ import annotations

import heapq
import math
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
NEVER = -math.inf


def log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b)), also for minus infinity."""
    if a < b:
        a, b = b, a
    return a if b == NEVER else a + math.log1p(math.exp(b - a))


# ------------------------------------------------------------------------------------------------ n-gram


class NGram:
    """How likely a word is after the `order` - 1 words before it.

    Witten-Bell: where a context was followed by many different words, trust the shorter context more. With c the
    count of the context, t the number of different words after it and h' the context without its first word,

        P(word | h) = (count(h word) + t P(word | h')) / (c + t)

    and at the end of the chain all words, the end of the sentence and "unknown" are equally likely.

    sentences: words separated by white space; order: at least 1. Raises ValueError if there is no word at all.

    >>> lm = NGram(["turn the light off", "turn the music off"], order=2)
    >>> lm.probability("the", ("turn",)) > lm.probability("off", ("turn",))
    True
    """

    def __init__(self, sentences: Iterable[str], order: int = 3) -> None:
        if order < 1:
            raise ValueError(f"order is {order}, expected at least 1 (1: single words, 2: pairs, 3: triples)")
        self.order = order
        self._after: dict[tuple[str, ...], Counter[str]] = {}
        words: set[str] = set()
        for sentence in sentences:
            said = sentence.split()
            words.update(said)
            padded = [START] * (order - 1) + said + [END]
            for place in range(order - 1, len(padded)):
                for length in range(order):
                    context = tuple(padded[place - length : place])
                    self._after.setdefault(context, Counter())[padded[place]] += 1
        if not words:
            raise ValueError("there is no word in the sentences, so there is nothing to estimate; are the texts empty?")
        self.words = tuple(sorted(words))
        self._uniform = 1.0 / (len(words) + 2)  # the words, END and UNKNOWN
        self._known: dict[tuple[str, tuple[str, ...]], float] = {}

    @property
    def start(self) -> tuple[str, ...]:
        """The context of a sentence's first word."""
        return (START,) * (self.order - 1)

    def step(self, context: tuple[str, ...], word: str) -> tuple[str, ...]:
        """The context after one more word."""
        return (*context, word)[1:] if self.order > 1 else ()

    def probability(self, word: str, context: Sequence[str] = ()) -> float:
        """P(word | context), 0..1; `word` may be ``"</s>"``. Only the last `order` - 1 words of the context count."""
        context = tuple(context)[max(0, len(context) - self.order + 1) :]
        shorter = self.probability(word, context[1:]) if context else self._uniform
        after = self._after.get(context)
        if after is None:
            return shorter
        kinds = len(after)
        return (after[word] + kinds * shorter) / (after.total() + kinds)

    def log_probability(self, word: str, context: tuple[str, ...]) -> float:
        """Natural logarithm of `probability`, remembered."""
        found = self._known.get((word, context))
        if found is None:
            found = self._known[word, context] = math.log(self.probability(word, context))
        return found

    def perplexity(self, sentences: Iterable[str]) -> float:
        """How many words the model hesitates between, on average; an unknown word counts as ``<unk>``.

        Raises ValueError without sentences.
        """
        total, count = 0.0, 0
        for sentence in sentences:
            context = self.start
            for word in [*sentence.split(), END]:
                total += self.log_probability(word, context)
                context, count = self.step(context, word), count + 1
        if count == 0:
            raise ValueError("there is no sentence to measure; expected at least one")
        return math.exp(-total / count)


# --------------------------------------------------------------------------------------------- lexicon


class Lexicon:
    """The words of a language model as a tree of letters: which letter may come next, and is this a word?

    lm: the model; symbols: the recogniser's vocabulary, upper-case letters with ``|`` as the end of a word. Words
    that these letters cannot write are left out. Node 0 is the root.
    """

    def __init__(self, lm: NGram, symbols: Sequence[str]) -> None:
        self.lm = lm
        self.symbols = tuple(symbols)
        self.end = self.symbols.index("|")
        self.letters = tuple(place for place, symbol in enumerate(self.symbols) if len(symbol) == 1)
        self.children: list[dict[int, int]] = [{}]
        self.word: list[str | None] = [None]
        self.hope: list[float] = [NEVER]  # the best single-word log-probability below a node
        place_of = {self.symbols[place].lower(): place for place in self.letters if place != self.end}
        for word in lm.words:
            if all(letter in place_of for letter in word):
                self._add(word, [place_of[letter] for letter in word], math.log(lm.probability(word)))
        self.hope[0] = 0.0

    def _add(self, word: str, places: list[int], score: float) -> None:
        node = 0
        for place in places:
            if place not in self.children[node]:
                self.children[node][place] = len(self.children)
                self.children.append({})
                self.word.append(None)
                self.hope.append(NEVER)
            node = self.children[node][place]
            self.hope[node] = max(self.hope[node], score)
        self.word[node] = word


# ----------------------------------------------------------------------------------------- beam search


@dataclass(frozen=True)
class Hypothesis:
    """A sentence the recogniser may have heard. sound and language are natural log-probabilities."""

    text: str
    sound: float
    language: float
    words: int

    def score(self, lm_weight: float, word_score: float) -> float:
        """What the search makes large."""
        return self.sound + lm_weight * self.language + word_score * self.words


@dataclass(eq=False)
class _Prefix:
    """The beginning of a sentence: letters so far, as a place in the lexicon, and the words before it."""

    last: int  # its last symbol, -1 at the beginning
    node: int
    context: tuple[str, ...]
    words: tuple[str, ...]
    language: float
    bonus: float  # what language model, word score and hope add to its rank
    longer: dict[int, _Prefix | None] = field(default_factory=dict)


# rank; log-probability of all paths that end in silence, in the last letter, and of both
_Path = tuple[float, _Prefix, float, float, float]
_rank = operator.itemgetter(0)
_UNSEEN = object()


def beam_search(
    log_probs: Tensor,
    lexicon: Lexicon,
    *,
    lm_weight: float = 1.0,
    word_score: float = 0.0,
    beam: int = 16,
    floor: float = -7.0,
) -> list[Hypothesis]:
    """The best sentences for one clip, best first; at least one.

    Prefix beam search: two paths that write the same letters are one hypothesis, and their probabilities add up. A
    hypothesis half way through a word is ranked by the most frequent word it can still become.

    Args:
        log_probs: (frames, vocab), log-softmax of the head's output. Everything that is no letter (blank, ``</s>``
            and the other specials) is taken as silence.
        beam: hypotheses kept after each frame
        floor: letters less likely than this (natural log) at a frame are not tried there
    """
    frames, quiet = _frames(log_probs, lexicon, floor)
    root = _Prefix(-1, 0, lexicon.lm.start, (), 0.0, 0.0)
    live: list[_Path] = [(0.0, root, 0.0, NEVER, 0.0)]
    for (row, likely), silence in zip(frames, quiet, strict=True):
        stay = {prefix: _stay(prefix, sounding, both, row, silence) for _, prefix, _, sounding, both in live}
        # what is worse than all that stay cannot be among the best afterwards: adding paths up only raises them
        bar = min(path[0] for path in stay.values()) if len(stay) == beam else NEVER
        grown = []
        for _, prefix, silent, _, both in live:
            for symbol, value in likely:
                longer = prefix.longer.get(symbol, _UNSEEN)
                if longer is _UNSEEN:
                    longer = _extend(prefix, symbol, lexicon, lm_weight, word_score)
                if longer is None:
                    continue
                sound = (silent if symbol == prefix.last else both) + value  # a letter twice needs silence in between
                if longer in stay:
                    stay[longer] = _both(stay[longer], sound)
                elif sound + longer.bonus >= bar and sound > NEVER:
                    grown.append((sound + longer.bonus, longer, NEVER, sound, sound))
        live = heapq.nlargest(beam, [*stay.values(), *grown], key=_rank)
    return _finish(live, lexicon, lm_weight, word_score)


def _stay(prefix: _Prefix, sounding: float, both: float, row: list[float], silence: float) -> _Path:
    """One frame later, without a new letter."""
    silent = both + silence
    sounding = sounding + row[prefix.last] if sounding > NEVER else NEVER
    both = log_add(silent, sounding)
    return both + prefix.bonus, prefix, silent, sounding, both


def _both(path: _Path, sound: float) -> _Path:
    """The same sentence, also reached by a new letter."""
    _, prefix, silent, sounding, _ = path
    sounding = log_add(sounding, sound)
    both = log_add(silent, sounding)
    return both + prefix.bonus, prefix, silent, sounding, both


def _frames(
    log_probs: Tensor, lexicon: Lexicon, floor: float
) -> tuple[list[tuple[list[float], list[tuple[int, float]]]], list[float]]:
    """For each frame its row and the (symbol, log-probability) worth trying; and the log-probability of silence."""
    log_probs = log_probs.double()
    others = [place for place in range(log_probs.shape[1]) if place not in lexicon.letters]
    quiet = log_probs[:, others].logsumexp(dim=1).tolist()
    rows = log_probs.tolist()
    likely = [[(place, row[place]) for place in lexicon.letters if row[place] > floor] for row in rows]
    return list(zip(rows, likely, strict=True)), quiet


def _extend(
    prefix: _Prefix, symbol: int, lexicon: Lexicon, lm_weight: float, word_score: float
) -> _Prefix | None:
    """The prefix with one symbol more, or None if the lexicon has no such word."""
    longer = None
    if symbol == lexicon.end:
        word = lexicon.word[prefix.node]
        if word is not None:
            words = (*prefix.words, word)
            language = prefix.language + lexicon.lm.log_probability(word, prefix.context)
            bonus = lm_weight * language + word_score * len(words)
            longer = _Prefix(symbol, 0, lexicon.lm.step(prefix.context, word), words, language, bonus)
    elif symbol in lexicon.children[prefix.node]:
        node = lexicon.children[prefix.node][symbol]
        bonus = lm_weight * (prefix.language + lexicon.hope[node]) + word_score * len(prefix.words)
        longer = _Prefix(symbol, node, prefix.context, prefix.words, prefix.language, bonus)
    prefix.longer[symbol] = longer
    return longer


def _finish(live: list, lexicon: Lexicon, lm_weight: float, word_score: float) -> list[Hypothesis]:
    """Complete sentences, best first. A last word may lack its ``|``; half a word is no sentence."""
    found: dict[tuple[str, ...], Hypothesis] = {}
    halves = []
    for _, prefix, _, _, sound in live:
        halves.append(prefix)
        if prefix.node != 0:
            prefix = _extend(prefix, lexicon.end, lexicon, lm_weight, word_score)
            if prefix is None:
                continue
        language = prefix.language + lexicon.lm.log_probability(END, prefix.context)
        before = found.get(prefix.words)
        sound = sound if before is None else log_add(sound, before.sound)
        found[prefix.words] = Hypothesis(" ".join(prefix.words), sound, language, len(prefix.words))
    if not found:  # every hypothesis ends inside a word: give what was complete before it
        words = halves[0].words
        return [Hypothesis(" ".join(words), live[0][-1], halves[0].language, len(words))]
    return sorted(found.values(), key=lambda one: one.score(lm_weight, word_score), reverse=True)
