"""Exercises of notebook 05: a path as a sentence, one step of a beam search, Witten-Bell, the score of a sentence."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from superb_lite.course.exercises import Exercise, WrongAnswer
from superb_lite.text import letters_text

# --------------------------------------------------------------------------- q1: a path as a sentence

BLANK, END = "<s>", "</s>"


def read_path(path: Sequence[str]) -> str:
    """One symbol per frame -> the sentence: lower case, one space between words."""
    return letters_text(symbol for symbol, _ in itertools.groupby(path))


def _blanks_first(path):
    return read_path([symbol for symbol in path if symbol != BLANK])


def _nothing_merged(path):
    return letters_text(path)


def _end_as_text(path):
    merged = [symbol for symbol, _ in itertools.groupby(path) if symbol != BLANK]
    return " ".join("".join(merged).replace("|", " ").lower().split())


def _upper_case(path):
    return read_path(path).upper()


def _spaces_as_they_come(path):
    merged = [symbol for symbol, _ in itertools.groupby(path) if symbol not in (BLANK, END)]
    return "".join(merged).replace("|", " ").lower()


def _path_inputs(rng: np.random.Generator) -> list[tuple]:
    def path_of(text: str) -> list[str]:
        symbols: list[str] = []
        for letter in text.upper().replace(" ", "|") + "|":
            if symbols and symbols[-1] == letter:
                symbols.append(BLANK)  # a double letter
            symbols += [letter] * int(rng.integers(1, 3)) + [BLANK] * int(rng.integers(0, 3))
        return [*symbols, END]

    two_ends = ["O", "N", BLANK, "|", BLANK, "|", "G", "O", END, END, BLANK]  # a stutter of the space
    return [
        (path_of("the queen took a bottle"),), (path_of("she fell"),), (two_ends,), ([BLANK] * 4,),
        (["|", "A", "A", BLANK, "A", "|", END],),
    ]  # fmt: skip


# ------------------------------------------------------------------- q2: one frame of a beam search

Beam = Mapping[str, tuple[float, float]]
Row = Mapping[str, float]


def one_frame(live: Beam, row: Row) -> dict[str, tuple[float, float]]:
    """{text: (silent, sounding)} and one frame {symbol: probability}, "." is the blank -> the same, a frame later."""
    return _gathered(_routes(live, row))


def _routes(live: Beam, row: Row) -> Iterator[tuple[str, float, float]]:
    """(text, silent, sounding) of everything that this frame can make of each text."""
    for text, (silent, sounding) in live.items():
        both, last = silent + sounding, text[-1:]
        yield text, both * row["."], sounding * row.get(last, 0.0) if last else 0.0
        for symbol, value in row.items():
            if symbol != ".":
                yield text + symbol, 0.0, (silent if symbol == last else both) * value


def _gathered(routes: Iterator[tuple[str, float, float]]) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for text, silent, sounding in routes:
        before = found.get(text, (0.0, 0.0))
        found[text] = before[0] + silent, before[1] + sounding
    return found


def _overwrites(live, row):
    return {text: (silent, sounding) for text, silent, sounding in _routes(live, row)}


def _doubles_at_once(live, row):
    found = one_frame(live, row)
    for text, (_, sounding) in live.items():
        if text and text[-1] in row:
            silent, before = found[text + text[-1]]
            found[text + text[-1]] = silent, before + sounding * row[text[-1]]
    return found


def _never_holds(live, row):
    found = one_frame(live, row)
    for text, (_, sounding) in live.items():
        if text:
            silent, before = found[text]
            found[text] = silent, before - sounding * row.get(text[-1], 0.0)
    return found


def _blank_after_blank(live, row):
    found = one_frame(live, row)
    for text, (silent, _) in live.items():
        found[text] = silent * row["."], found[text][1]
    return found


def _best_instead_of_sum(live, row):
    found: dict[str, tuple[float, float]] = {}
    for text, silent, sounding in _routes(live, row):
        before = found.get(text, (0.0, 0.0))
        found[text] = max(before[0], silent), max(before[1], sounding)
    return found


def without_zeros(answer: Callable, arguments: tuple) -> Any:
    """{text: [silent, sounding]} without texts that have no probability: it does not matter if they are listed."""
    live, row = arguments
    found = answer(dict(live), dict(row))
    if not isinstance(found, Mapping):
        return found
    pairs = {text: [float(value) for value in pair] for text, pair in found.items()}
    return {text: pairs[text] for text in sorted(pairs) if sum(map(abs, pairs[text])) > 1e-12}


def _beam_inputs(rng: np.random.Generator) -> list[tuple]:
    def row(symbols: str) -> dict[str, float]:
        return dict(zip(symbols, rng.dirichlet(np.ones(len(symbols))).tolist(), strict=True))

    def pair() -> tuple[float, float]:
        silent, sounding = rng.uniform(0.05, 0.4, size=2).tolist()
        return silent, sounding

    ordinary = {"": (0.2, 0.0), "b": pair(), "bo": pair(), "boo": pair()}
    words = {"to|": pair(), "to": pair(), "tool": pair()}
    # the last input: a letter that is too unlikely is not in the row at all
    thin = {"ab": pair()}, row(".ac")
    return [(ordinary, row(".bok")), ({"": (1.0, 0.0)}, row(".ab")), (words, row(".ol|t")), thin]


# ------------------------------------------------------------------------ q3: a word after a word


def word_after(word: str, before: str, after: Mapping[str, Counter], alone: Mapping[str, float]) -> float:
    """after[before][word]: how often word followed before; alone[word]: P(word) -> P(word | before), Witten-Bell."""
    if before not in after:
        return alone[word]
    kinds = len(after[before])
    return (after[before][word] + kinds * alone[word]) / (after[before].total() + kinds)


def _only_counted(word, before, after, alone):
    return after[before][word] / after[before].total() if before in after else alone[word]


def _tokens_for_kinds(word, before, after, alone):
    if before not in after:
        return alone[word]
    count = after[before].total()
    return (after[before][word] + count * alone[word]) / (2 * count)


def _sum_above_one(word, before, after, alone):
    if before not in after:
        return alone[word]
    return (after[before][word] + len(after[before]) * alone[word]) / after[before].total()


def _unknown_is_never(word, before, after, alone):
    return word_after(word, before, after, alone) if before in after else 0.0


def _add_one(word, before, after, alone):
    counts = after.get(before, Counter())
    return (counts[word] + 1) / (counts.total() + len(alone))


def _count_inputs(rng: np.random.Generator) -> list[tuple]:
    words = ["the", "queen", "saw", "a", "tiger", "lazy"]
    alone = dict(zip(words, rng.dirichlet(np.ones(len(words))).tolist(), strict=True))
    after = {
        "the": Counter({"queen": int(rng.integers(3, 9)), "tiger": int(rng.integers(1, 5)), "lazy": 2}),
        "a": Counter({"tiger": 1, "lazy": int(rng.integers(2, 6))}),
        "lazy": Counter({"tiger": 4}),
    }
    asked = (("queen", "the"), ("saw", "the"), ("tiger", "a"), ("tiger", "lazy"), ("queen", "tiger"))
    return [(word, before, after, alone) for word, before in asked]


# ------------------------------------------------------------------------ q4: the score of a sentence

Sentences = Sequence[tuple[str, float, float]]


def ranked(sentences: Sentences, lm_weight: float, word_score: float) -> list[str]:
    """[(text, log P(sound), log P(text)), ...] -> the texts, the best score first."""
    return _by(sentences, lambda text, sound, language: sound + lm_weight * language + word_score * len(text.split()))


def _by(sentences: Sentences, score: Callable[[str, float, float], float]) -> list[str]:
    return [text for text, _, _ in sorted(sentences, key=lambda one: score(*one), reverse=True)]


def _weight_forgotten(sentences, lm_weight, word_score):
    return ranked(sentences, 1.0, word_score)


def _letters_for_words(sentences, lm_weight, word_score):
    return _by(sentences, lambda text, sound, language: sound + lm_weight * language + word_score * len(text))


def _words_taken_off(sentences, lm_weight, word_score):
    return ranked(sentences, lm_weight, -word_score)


def _worst_first(sentences, lm_weight, word_score):
    return ranked(sentences, lm_weight, word_score)[::-1]


def _all_weighed(sentences, lm_weight, word_score):
    return _by(
        sentences, lambda text, sound, language: sound + lm_weight * (language + word_score * len(text.split()))
    )


def _sentence_inputs(rng: np.random.Generator) -> list[tuple]:
    words = "the queen saw a lazy tiger near my extraordinary bed".split()

    def case(count: int, lm_weight: float, word_score: float) -> tuple:
        sentences, size = [("", *rng.normal(-12, 3, size=2).tolist())], len(words)
        for number in range(1, count):
            text = " ".join([words[number % size], *rng.choice(words, size=int(rng.integers(0, 7)))])
            sentences.append((text, *rng.normal(-12, 3, size=2).tolist()))
        return sentences, lm_weight, word_score

    return [case(9, 0.5, 2.0), case(8, 2.0, -1.0), case(6, 0.0, 0.0), case(9, 0.25, 3.0), case(1, 1.0, 1.0)]


EXERCISES = {
    "asr.q1": Exercise(
        key="asr.q1",
        title="a path as a sentence",
        reference=read_path,
        inputs=_path_inputs,
        wrong=(
            WrongAnswer(
                "blanks first", _blanks_first, "the blanks are dropped before equal neighbours are merged, so double "
                "letters become single: merge first"
            ),
            WrongAnswer(
                "nothing merged", _nothing_merged, "a letter that is held for two frames is written twice: merge equal "
                "neighbours"
            ),
            WrongAnswer("the end is text", _end_as_text, "</s> stands in the text; like the blank, it writes nothing"),
            WrongAnswer("upper case", _upper_case, "the letters are upper case; the transcripts are lower case"),
            WrongAnswer(
                "spaces as they come", _spaces_as_they_come, "every | became a space, also at the end, and two in a "
                "row are two: one space between words and none around them, as ' '.join(text.split()) makes it"
            ),
        ),
        hints=(
            "Three steps: merge equal neighbours, drop <s> and </s>, glue the rest together.",
            "[symbol for symbol, _ in itertools.groupby(path)] merges. Only then look for <s> and </s>.",
            "' '.join(''.join(kept).replace('|', ' ').lower().split())",
        ),
    ),
    "asr.q2": Exercise(
        key="asr.q2",
        title="one frame of the beam search",
        reference=one_frame,
        inputs=_beam_inputs,
        call=without_zeros,
        wrong=(
            WrongAnswer(
                "doubles at once", _doubles_at_once, "a text grows by its own last letter without a blank in between; "
                "right after itself a letter is only held, so a double grows from the silent part alone"
            ),
            WrongAnswer(
                "never holds", _never_holds, "a letter lasts one frame only: sounding * row[last letter] stays with "
                "the same text, as its sounding part"
            ),
            WrongAnswer(
                "overwrites", _overwrites, "a text that is reached in two ways keeps only one of them: add to what "
                "is there already"
            ),
            WrongAnswer(
                "blank after blank", _blank_after_blank, "only silent paths go on with a blank; those that have just "
                "sounded may fall silent, too"
            ),
            WrongAnswer(
                "best instead of sum", _best_instead_of_sum, "it keeps the best of several ways; the probability of a "
                "text is the sum over its paths"
            ),
        ),
        hints=(
            "Three things can happen to a text: a blank comes, its last letter goes on, or a letter is added. The "
            "first two leave the text as it is.",
            "Blank: silent gets (silent + sounding) * row['.']. Last letter held: sounding gets sounding * row[last].",
            "A new letter: the longer text's sounding part gets p * (silent + sounding), but p * silent if the letter "
            "equals the last one. Begin each entry with found.get(text, (0.0, 0.0)) and add.",
        ),
    ),
    "asr.q3": Exercise(
        key="asr.q3",
        title="a word after a word",
        reference=word_after,
        inputs=_count_inputs,
        wrong=(
            WrongAnswer(
                "only counted", _only_counted, "a pair that was never seen gets probability 0, and with it every "
                "sentence that has it: mix in P(word) with the weight t"
            ),
            WrongAnswer(
                "tokens for kinds", _tokens_for_kinds, "t is taken as the number of all words that followed; it counts "
                "how many different ones did: len(after[before])"
            ),
            WrongAnswer(
                "more than one", _sum_above_one, "the probabilities of all words add up to more than 1: divide by "
                "c + t, not by c"
            ),
            WrongAnswer(
                "unknown is never", _unknown_is_never, "after a word that nothing ever followed it gives 0; there, "
                "P(word) is all you know"
            ),
            WrongAnswer(
                "add one", _add_one, "it adds one to every count. That is Laplace's rule, which takes all unseen words "
                "for equally likely; here each gets a share of its own P(word)"
            ),
        ),
        hints=(
            "after[before] is a Counter: .total() is c, len() is t, and [word] is 0 for a word it does not have.",
            "First ask whether before is in after at all; if not, alone[word] is the answer.",
            "(after[before][word] + t * alone[word]) / (c + t)",
        ),
    ),
    "asr.q4": Exercise(
        key="asr.q4",
        title="the score of a sentence",
        reference=ranked,
        inputs=_sentence_inputs,
        wrong=(
            WrongAnswer("weight forgotten", _weight_forgotten, "the language model counts with weight 1, always"),
            WrongAnswer(
                "letters for words", _letters_for_words, "the word score is paid for every letter; len(text) counts "
                "letters, len(text.split()) words"
            ),
            WrongAnswer(
                "words taken off", _words_taken_off, "the word score is taken off; it is added (it may be negative "
                "itself)"
            ),
            WrongAnswer("worst first", _worst_first, "the worst comes first: both logarithms are better if larger"),
            WrongAnswer(
                "all weighed", _all_weighed, "the weight multiplies the word score as well; it belongs to the "
                "language model only"
            ),
        ),
        hints=(
            "One number for each sentence: sound + lm_weight * language + word_score * words.",
            "len(text.split()) words, also for the empty sentence, which has none.",
            "[text for text, _, _ in sorted(sentences, key=score, reverse=True)], with score(one) unpacking the triple",
        ),
    ),
}
