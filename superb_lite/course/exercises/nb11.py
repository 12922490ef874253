"""Exercises of notebook 11: mark slots up, read them back, slot-type F1, slot-value CER, Viterbi."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

from superb_lite.course.exercises import Exercise, WrongAnswer
from superb_lite.metrics import slot_type_f1, slot_value_cer
from superb_lite.text import read_slots, slot_markup, slot_tokens

VALUES = {
    "city": ("ROME", "OSLO", "NEW YORK", "BERLIN"),
    "day": ("TODAY", "NEXT WEEK", "NOW"),
    "artist": ("ANNA STONE", "A B", "PETER MARSH"),
}

# ----------------------------------------------------------------------------------- q1: mark a sentence up


def mark_up(text: str, tags: Sequence[str]) -> str:
    """A sentence and one tag a word ("O" or a slot) -> "FLY TO B-city NEW YORK E-city"."""
    return slot_markup(slot_tokens(text, tags))


def _runs(text, tags):
    """(tag, words) of every run of equal tags."""
    pairs = itertools.groupby(zip(text.upper().split(), tags, strict=True), key=lambda pair: pair[1])
    return [(tag, [word for word, _ in run]) for tag, run in pairs]


def _every_word(text, tags):
    words = zip(text.upper().split(), tags, strict=True)
    return " ".join(word if tag == "O" else f"B-{tag} {word} E-{tag}" for word, tag in words)


def _marks_the_rest(text, tags):
    return " ".join(f"B-{tag} {' '.join(words)} E-{tag}" for tag, words in _runs(text, tags))


def _lower_case(text, tags):
    runs = [(tag, " ".join(words).lower()) for tag, words in _runs(text, tags)]
    return " ".join(words if tag == "O" else f"B-{tag} {words} E-{tag}" for tag, words in runs)


def _never_closed_at_the_end(text, tags):
    marked = mark_up(text, tags)
    return marked.rsplit(" ", 1)[0] if tags[-1] != "O" else marked


def _neighbours_glued(text, tags):
    """Opens after an O and closes before an O, so slots that touch get lost."""
    said, inside = [], None
    for word, tag in zip(text.upper().split(), tags, strict=True):
        if inside is not None and tag == "O":
            said.append(f"E-{inside}")
            inside = None
        elif inside is None and tag != "O":
            said.append(f"B-{tag}")
            inside = tag
        said.append(word)
    return " ".join([*said, *([f"E-{inside}"] if inside is not None else [])])


def _tag_inputs(rng: np.random.Generator) -> list[tuple]:
    fixed = [
        ("fly to new york today", ["O", "O", "city", "city", "day"]),
        ("new york", ["city", "city"]),
        ("play it", ["O", "O"]),
        ("play anna stone now please", ["O", "artist", "artist", "day", "O"]),
    ]
    words = ("will", "it", "be", "rome", "next", "week", "anna", "stone")
    names = ("O", "O", "city", "day", "artist")
    size = int(rng.integers(5, 9))
    return [*fixed, (" ".join(rng.choice(words, size=size)), [str(name) for name in rng.choice(names, size=size)])]


# ------------------------------------------------------------------------------------- q2: read it back


def slots_in(markup: str) -> list[tuple[str, str]]:
    """A marked-up sentence -> [(slot, value), ...] from left to right; what is malformed is no slot."""
    return read_slots(markup)


def _greedy(markup):
    return re.findall(r"B-(\S+) (.+) E-\1", markup)


def _any_end(markup):
    return re.findall(r"B-(\S+) (.+?) E-\S+", markup)


def _open_counts(markup):
    found, name, value = [], None, []
    for word in [*markup.split(), "E-"]:
        if word.startswith(("B-", "E-")) and name is not None:
            found.append((name, " ".join(value)))
            name = None
        if word.startswith("B-"):
            name, value = word[2:], []
        elif not word.startswith("E-"):
            value.append(word)
    return found


def _sorted_slots(markup):
    return sorted(slots_in(markup))


def _swapped_pair(markup):
    return [(value, name) for name, value in slots_in(markup)]


def _markup_inputs(rng: np.random.Generator) -> list[tuple]:
    fixed = [
        "FLY FROM B-city ROME E-city TO B-city NEW YORK E-city B-day TODAY E-day",
        "FLY TO B-city ROME",
        "FLY TO ROME E-city",
        "B-artist ROME E-city NOW",
        "FLY TO B-city ROME B-day NOW E-day",
        "PLAY IT",
        "B-city E-city",
    ]
    return [*((markup,) for markup in fixed), (_sentence(rng, ("day", "artist", "city")),)]


def _sentence(rng: np.random.Generator, names: Sequence[str], spoiled: float = 0.0) -> str:
    """A marked-up sentence with these slots; with this probability a value loses a letter."""
    said = ["PLAY"]
    for name in names:
        value = str(rng.choice(VALUES[name]))
        if rng.random() < spoiled:
            value = value[:-1].strip() + str(rng.choice(["", "S", "EX"]))
        said.append(f"B-{name} {value} E-{name}" + str(rng.choice(["", " AND"])))
    return " ".join(said)


# ---------------------------------------------------------------------------------------- q3: slot-type F1


def slot_type_score(refs: Sequence[str], hyps: Sequence[str]) -> float:
    """Marked-up sentences -> the mean over sentences of the F1 of two sets of slot names, in percent."""
    return slot_type_f1(refs, hyps)


def _f1(wanted, found) -> float:
    """F1 of two Counters (or of two sets, written as Counters)."""
    both = sum(wanted.values()) + sum(found.values())
    return 2 * sum((wanted & found).values()) / both if both else 1.0


def _kinds(markup):
    return [name for name, _ in read_slots(markup)]


def _mean_f1(refs, hyps, pick):
    return 100 * float(np.mean([_f1(Counter(pick(r)), Counter(pick(h))) for r, h in zip(refs, hyps, strict=True)]))


def _counts_matter(refs, hyps):
    return _mean_f1(refs, hyps, _kinds)


def _values_matter(refs, hyps):
    return _mean_f1(refs, hyps, lambda markup: set(read_slots(markup)))


def _pooled_f1(refs, hyps):
    wanted = Counter((n, kind) for n, ref in enumerate(refs) for kind in set(_kinds(ref)))
    found = Counter((n, kind) for n, hyp in enumerate(hyps) for kind in set(_kinds(hyp)))
    return 100 * _f1(wanted, found)


def _nothing_is_zero(refs, hyps):
    empty = np.mean([not _kinds(ref) and not _kinds(hyp) for ref, hyp in zip(refs, hyps, strict=True)])
    return slot_type_f1(refs, hyps) - 100 * float(empty)


def _jaccard(refs, hyps):
    scores = []
    for ref, hyp in zip(refs, hyps, strict=True):
        wanted, found = set(_kinds(ref)), set(_kinds(hyp))
        scores.append(len(wanted & found) / len(wanted | found) if wanted | found else 1.0)
    return 100 * float(np.mean(scores))


def _pair_inputs(rng: np.random.Generator) -> list[tuple]:
    names = list(VALUES)

    def pairs(count: int) -> tuple[list[str], list[str]]:
        drawn = [[str(name) for name in rng.choice(names, size=rng.integers(0, 4))] for _ in range(2 * count)]
        kept = [drawn[n] if rng.random() < 0.6 else drawn[n + count] for n in range(count)]
        return [_sentence(rng, one) for one in drawn[:count]], [_sentence(rng, one, 0.5) for one in kept]

    fixed = (
        ["FLY TO B-city ROME E-city B-day NOW E-day", "STOP", "B-city ROME E-city AND B-city OSLO E-city"],
        ["FLY TO B-city HOME E-city NOW", "STOP", "B-city ROME E-city B-day NOW E-day B-artist A B E-artist"],
    )
    return [fixed, pairs(5), pairs(20)]


# -------------------------------------------------------------------------------------- q4: slot-value CER


def slot_value_errors(refs: Sequence[str], hyps: Sequence[str]) -> float:
    """Marked-up sentences -> all character edits in values, in percent of all characters of the reference values."""
    return slot_value_cer(refs, hyps)


def _value_pairs(refs, hyps):
    """(reference value, the hypothesis values of the same slot) of every reference slot."""
    for ref, hyp in zip(refs, hyps, strict=True):
        found = read_slots(hyp, strip=True)
        for name, value in read_slots(ref):
            yield value, [other for kind, other in found if kind == name]


def _nearest(value, others):
    return min((Levenshtein.distance(value, other) for other in others), default=len(value))


def _mean_of_rates(refs, hyps):
    return 100 * float(np.mean([_nearest(v, others) / len(v) for v, others in _value_pairs(refs, hyps)]))


def _missing_are_left_out(refs, hyps):
    pairs = [(value, others) for value, others in _value_pairs(refs, hyps) if others]
    edits = sum(_nearest(value, others) for value, others in pairs)
    return 100 * edits / max(1, sum(len(value) for value, _ in pairs))


def _the_first(refs, hyps):
    pairs = list(_value_pairs(refs, hyps))
    edits = sum(_nearest(value, others[:1]) for value, others in pairs)
    return 100 * edits / sum(len(value) for value, _ in pairs)


def _inventions_cost(refs, hyps):
    total = sum(len(value) for value, _ in _value_pairs(refs, hyps))
    extra = sum(
        len(value) for ref, hyp in zip(refs, hyps, strict=True) for name, value in read_slots(hyp)
        if name not in _kinds(ref)
    )  # fmt: skip
    return slot_value_cer(refs, hyps) + 100 * extra / total


def _marks_left_in(refs, hyps):
    edits = characters = 0
    for ref, hyp in zip(refs, hyps, strict=True):
        found = read_slots(hyp)
        for name, value in read_slots(ref):
            edits += _nearest(value, [other for kind, other in found if kind == name])
            characters += len(value)
    return 100 * edits / characters


def _value_inputs(rng: np.random.Generator) -> list[tuple]:
    fixed = (
        ["FLY TO B-city ROME E-city B-day NOW E-day", "STOP", "B-city ROME E-city AND B-city OSLO E-city"],
        [
            "FLY TO B-city HOME E-city NOW",
            "B-day NOW E-day",
            "B-city OSLO E-city B-city RIME E-city B-artist A B E-artist",
        ],
    )
    nested = ["FLY TO B-city NEW YORK E-city"], ["FLY TO B-city NEW E-day YORK E-city"]
    return [fixed, nested, *_pair_inputs(rng)[1:]]


# -------------------------------------------------------------------------------------------- q5: Viterbi


def best_tags(words: np.ndarray, moves: np.ndarray) -> list[int]:
    """words: (words, tags) points of each tag at each word; moves: (tags, tags) points of a tag (row) followed by
    another (column) -> the row of tags with the most points in all."""
    best, back = words[0], []
    for points in words[1:]:
        table = best[:, None] + moves  # (tag before, tag now)
        back.append(table.argmax(0))
        best = table.max(0) + points
    path = [int(best.argmax())]
    for came_from in reversed(back):
        path.append(int(came_from[path[-1]]))
    return path[::-1]


def _word_by_word(words, moves):
    return [int(place) for place in words.argmax(1)]


def _from_left_to_right(words, moves):
    path = [int(words[0].argmax())]
    for points in words[1:]:
        path.append(int((points + moves[path[-1]]).argmax()))
    return path


def _moves_turned(words, moves):
    return best_tags(words, moves.T)


def _backwards(words, moves):
    return best_tags(words, moves)[::-1]


def _best_at_each_word(words, moves):
    """The best tag of every column of the table, instead of the path that leads to the last one."""
    best, path = words[0], [int(words[0].argmax())]
    for points in words[1:]:
        best = (best[:, None] + moves).max(0) + points
        path.append(int(best.argmax()))
    return path


def _path_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(words: int, tags: int, weight: float) -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(size=(words, tags)), weight * rng.normal(size=(tags, tags))

    # The first word leans to tag 0, but only tag 1 may be followed by what comes.
    words = np.array([[1.0, 0.5, 0.0], [0.0, 0.0, 1.0], [0.0, 0.2, 1.0]])
    trap = words, np.array([[0, 0, -9], [2, 0, 1], [0, -1, 0.5]])
    return [trap, case(9, 4, 2.0), case(12, 3, 1.5), case(1, 5, 1.0), case(30, 6, 2.0), case(2, 4, 3.0)]


EXERCISES = {
    "sf.q1": Exercise(
        key="sf.q1",
        title="mark a sentence up",
        reference=mark_up,
        inputs=_tag_inputs,
        wrong=(
            WrongAnswer(
                "every word", _every_word, "every word gets marks of its own; a value of two words is one slot, so "
                "mark the run"
            ),
            WrongAnswer("marks the rest", _marks_the_rest, "O is marked up like a slot; it means that there is none"),
            WrongAnswer("lower case", _lower_case, "the words are in lower case; the targets have capital letters"),
            WrongAnswer(
                "left open", _never_closed_at_the_end, "a slot that ends with the sentence is never closed: look once "
                "more after the last word"
            ),
            WrongAnswer(
                "neighbours glued", _neighbours_glued, "two different slots that touch become one: a slot also ends "
                "where another one begins"
            ),
        ),
        hints=(
            "Neighbours with the same tag belong together. itertools.groupby does exactly that.",
            "Go through the words; where the tag differs from the one before, close what is open, then open what "
            "begins.",
            "for tag, run in itertools.groupby(zip(text.upper().split(), tags), key=lambda pair: pair[1]): the words "
            "of a run, joined by spaces, with f'B-{tag} ' in front and f' E-{tag}' behind unless tag is 'O'",
        ),
    ),
    "sf.q2": Exercise(
        key="sf.q2",
        title="read the slots back",
        reference=slots_in,
        inputs=_markup_inputs,
        wrong=(
            WrongAnswer(
                "too greedy", _greedy, "it goes on to the last end mark, and swallows what lies between two slots of "
                "one name: take the shortest text (.+?)"
            ),
            WrongAnswer(
                "any end", _any_end, "B-artist is closed by E-city here; only the end mark of the same name closes "
                "a slot"
            ),
            WrongAnswer(
                "open slots count", _open_counts, "a slot that is never closed is counted; without its end mark it is "
                "none"
            ),
            WrongAnswer("sorted", _sorted_slots, "the slots are sorted; keep them in the order of the sentence"),
            WrongAnswer("swapped", _swapped_pair, "the pairs are the wrong way round: the name first, then the value"),
        ),
        hints=(
            "re.findall with two groups gives back a list of pairs.",
            r"\S+ is a name without spaces, .+? the shortest text with at least one character.",
            r"re.findall(r'B-(\S+) (.+?) E-\1', markup): \1 is whatever the first group was",
        ),
    ),
    "sf.q3": Exercise(
        key="sf.q3",
        title="slot-type F1",
        reference=slot_type_score,
        inputs=_pair_inputs,
        wrong=(
            WrongAnswer(
                "counts matter", _counts_matter, "it counts how often each slot is there; the official score compares "
                "sets, so twice is once"
            ),
            WrongAnswer(
                "values matter", _values_matter, "it wants the values to be right, too; this score looks at names only"
            ),
            WrongAnswer(
                "pooled", _pooled_f1, "it adds up all sentences and divides once; here one F1 for each sentence, and "
                "then their mean"
            ),
            WrongAnswer(
                "nothing is zero", _nothing_is_zero, "a sentence without slots, in which none was found, gets 0; it "
                "is perfect and gets 100"
            ),
            WrongAnswer(
                "intersection over union", _jaccard, "it divides by the union of the sets; F1 is twice what both have, "
                "divided by the sum of their sizes"
            ),
        ),
        hints=(
            "For one sentence: wanted = {name for name, _ in slots_in(ref)}, found likewise from the hypothesis.",
            "F1 is 2 * |wanted & found| / (|wanted| + |found|). When is that 0 / 0, and what should it be then?",
            "scores.append(2 * len(wanted & found) / both if both else 1.0) for each sentence; 100 * their mean",
        ),
    ),
    "sf.q4": Exercise(
        key="sf.q4",
        title="slot-value character error rate",
        reference=slot_value_errors,
        inputs=_value_inputs,
        wrong=(
            WrongAnswer(
                "mean of rates", _mean_of_rates, "it is the mean of the rates of the values; add up all edits and all "
                "characters, and divide once"
            ),
            WrongAnswer(
                "missing left out", _missing_are_left_out, "slots that were not found are left out; every one of their "
                "characters is an error"
            ),
            WrongAnswer(
                "the first one", _the_first, "it takes the first value of that slot; take the one with the fewest edits"
            ),
            WrongAnswer(
                "inventions cost", _inventions_cost, "invented slots cost something here; in the official score they "
                "are free"
            ),
            WrongAnswer(
                "marks left in", _marks_left_in, "stray marks inside a hypothesis value are counted as letters: read "
                "hypotheses with slots_heard"
            ),
        ),
        hints=(
            "Go through the slots of the reference only. For each: which values of the same name does the hypothesis "
            "have?",
            "No such value: len(value) edits. Else the smallest Levenshtein.distance(value, other).",
            "found = slots_heard(hyp); "
            "edits += min((Levenshtein.distance(value, other) for kind, other in found if kind == name), "
            "default=len(value)); characters += len(value); at the end 100 * edits / characters",
        ),
    ),
    "sf.q5": Exercise(
        key="sf.q5",
        title="the best row of tags",
        reference=best_tags,
        inputs=_path_inputs,
        wrong=(
            WrongAnswer(
                "word by word", _word_by_word, "every word is tagged for itself; the points for moving from tag to tag "
                "are forgotten"
            ),
            WrongAnswer(
                "left to right", _from_left_to_right, "it decides from left to right and never changes its mind: keep "
                "the best way to every tag until the last word"
            ),
            WrongAnswer(
                "moves turned", _moves_turned, "moves are read the wrong way round: the row is the tag before, the "
                "column the tag after"
            ),
            WrongAnswer("backwards", _backwards, "the tags come back from the last word to the first: turn them round"),
            WrongAnswer(
                "best at each word", _best_at_each_word, "it takes the best tag of every column; the best way to the "
                "last word may come through another one: remember where it came from"
            ),
        ),
        hints=(
            "Keep, for every tag, the points of the best way that ends there. At first that is words[0].",
            "table = best[:, None] + moves is (tag before, tag now): table.argmax(0) says where each tag is best "
            "reached from, table.max(0) + words[n] is the new best. Remember the argmax.",
            "At the end start from best.argmax() and walk back through the remembered rows, last one first; then "
            "reverse the path.",
        ),
    ),
}
