"""Small languages with a meaning: spoken commands (IC), requests with slots (SF), sentences to act (ER), words to find.

Every function takes a numpy Generator and returns words together with their labels. Text is lower-case letters
and ' only, words separated by one space.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from superb_lite.corpora._texts import WORDS

# ------------------------------------------------------------------------------------- commands (IC)

LOCATIONS = ("none", "kitchen", "bedroom", "washroom")
_SWITCHED = tuple(("lights", place) for place in LOCATIONS) + (("lamp", "none"), ("music", "none"))
_DIALLED = (("volume", "none"), *(("heat", place) for place in LOCATIONS))
# action -> (its (object, location) pairs, phrasings, a phrasing that only the test speakers use).
# The number of phrasings is how difficult the task is; the last one has known words in a new order (and a "please").
COMMANDS: dict[str, tuple[tuple[tuple[str, str], ...], tuple[str, ...], str]] = {
    "activate": (
        _SWITCHED,
        ("turn on the {object}{place}", "switch the {object} on{place}", "{object} on{place}"),
        "turn the {object} on{place}",
    ),
    "deactivate": (
        _SWITCHED,
        ("turn off the {object}{place}", "switch the {object} off{place}", "{object} off{place}"),
        "turn the {object} off{place}",
    ),
    "increase": (
        _DIALLED,
        ("turn the {object} up{place}", "increase the {object}{place}", "more {object}{place}"),
        "turn up the {object}{place}",
    ),
    "decrease": (
        _DIALLED,
        ("turn the {object} down{place}", "decrease the {object}{place}", "less {object}{place}"),
        "turn down the {object}{place}",
    ),
    "bring": (
        tuple((thing, "none") for thing in ("newspaper", "shoes", "juice", "blanket")),
        ("bring me the {object}", "i need the {object}", "fetch my {object}"),
        "please bring the {object}",
    ),
    "change language": (
        tuple((thing, "none") for thing in ("german", "spanish", "korean")),
        ("change the language to {object}", "speak {object} with me", "let us talk {object}"),
        "please speak {object}",
    ),
}
INTENTS = tuple(
    (action, thing, place) for action, (pairs, _, _) in COMMANDS.items() for thing, place in pairs
)  # 29: joint accuracy by chance is 3.4 %
NEW_PHRASING = 0.25  # share of test commands in the phrasing that training never heard


def command(rng: np.random.Generator, intent: tuple[str, str, str], *, test: bool) -> str:
    """The words of an intent (action, object, location)."""
    action, thing, place = intent
    _, phrasings, unheard = COMMANDS[action]
    pattern = unheard if test and rng.random() < NEW_PHRASING else str(rng.choice(phrasings))
    return pattern.format(object=thing, place="" if place == "none" else f" in the {place}")


# ------------------------------------------------------------------------------------- requests (SF)

# slot -> values that training uses, values that only dev and test use (15 of 83). Numbers and times are all known.
SLOTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "artist": (("anna stone", "the silver birds", "peter marsh", "ruby lake", "the night owls", "oscar bell"),
               ("mary wood", "the green lions")),
    "song": (("golden river", "stay with me tonight", "summer rain", "the last train", "dancing shoes", "blue morning"),
             ("winter moon", "walking home")),
    "genre": (("jazz", "folk", "reggae", "classical", "country"), ("opera",)),
    "city": (("london", "boston", "oslo", "madrid", "new york", "cairo", "denver", "berlin"),
             ("lisbon", "toronto", "paris")),
    "cuisine": (("italian", "indian", "chinese", "greek", "turkish", "mexican"), ("japanese", "french")),
    "people": (("two", "three", "four", "five", "six", "seven", "eight"), ()),
    "time": (("today", "tonight", "tomorrow", "on monday", "on friday", "next week", "at noon"), ()),
    "condition": (("rainy", "snowy", "windy", "foggy", "sunny"), ("cloudy",)),
    "book": (("the glass castle", "a house of smoke", "seven brothers", "the lost island", "under the bridge",
              "the baker's son"), ("the red tower", "a river of stars")),
    "rating": (("one", "two", "three", "four", "five", "zero"), ()),
    "playlist": (("morning run", "road trip", "quiet evening", "party time", "garden work", "study hour"),
                 ("rainy sunday", "kitchen dance")),
}  # fmt: skip
# (optional words), {slot}, one|of|these
REQUESTS: dict[str, tuple[str, ...]] = {
    "music": (
        "(please) play|start {song} (by {artist})",
        "play|hear some {genre} (music)",
        "i want to hear {artist}",
        "put on {genre} (music) by {artist}",
    ),
    "restaurant": (
        "book|reserve a table for {people} (in {city}) ({time})",
        "find {cuisine} food in {city}",
        "a table for {people} at a {cuisine} restaurant (please)",
        "i want {cuisine} food {time}",
    ),
    "weather": (
        "will it be {condition} in {city} ({time})",
        "what is the weather in {city} {time}",
        "is it {condition} {time}",
        "weather for {city} (please)",
    ),
    "book": (
        "give|rate {book} {rating} stars|points",
        "(please) rate {book} {rating} (out of five)",
        "{rating} stars|points for {book}",
    ),
    "playlist": (
        "add {song} to (my) {playlist}",
        "put {artist} on|in the {playlist} list",
        "(please) add this song to (my) {playlist}",
    ),
}


def request(rng: np.random.Generator, domain: str, *, unheard: bool) -> tuple[str, list[str]]:
    """Words and one tag a word ("O" or the slot's name); `unheard` lets values in that training does not use."""
    words: list[str] = []
    tags: list[str] = []

    def say(text: str, tag: str = "O") -> None:
        words.extend(text.split())
        tags.extend([tag] * len(text.split()))

    pattern = re.sub(r"\(([^()]*)\)", lambda m: m[1] if rng.random() < 0.5 else "", str(rng.choice(REQUESTS[domain])))
    for token in pattern.split():
        if token.startswith("{"):
            known, new = SLOTS[token[1:-1]]
            say(str(rng.choice(known + new if unheard else known)), token[1:-1])
        else:
            say(str(rng.choice(token.split("|"))))
    return " ".join(words), tags


# ------------------------------------------------------------------------------------- emotions (ER)

# Everyone says the same few sentences in all four emotions, so that the words tell nothing.
PLAIN_SENTENCES = (
    "the letter is on the table", "we leave tomorrow morning", "she told me about it", "they are coming home again",
    "it is nearly ten o'clock", "my brother called me today", "the door is open now", "you said it would rain",
    "i have seen it before", "he left it in the car", "the train was late again", "nobody told me his name",
    "there is a dog outside", "they moved the meeting", "i will wait for you here", "this is what i wanted",
)  # fmt: skip

# ------------------------------------------------------------------------------------- queries (QbE)

_KINDS = ("person", "thing", "place", "adjective", "verb", "motion", "adverb")
_CONTENT = {word for kind in _KINDS for word in WORDS[kind]}
MOST_DOCUMENTS = 4  # a word said everywhere is no query


def queries(
    rng: np.random.Generator, texts: Iterable[str], count: int, long_enough: Callable[[str], bool]
) -> list[str]:
    """`count` different queries that occur in `texts`: four of five one content word, the rest two neighbours.

    A word that begins another word of the texts is left out (*judge*, *judged*): it would be heard where it
    is not written. Raises ValueError if the texts hold too few.
    """
    spoken = [text.split() for text in texts]
    found = Counter(word for words in spoken for word in set(words))
    single = sorted(
        word for word, times in found.items()
        if word in _CONTENT and times <= MOST_DOCUMENTS and long_enough(word)
        and not any(other != word and other.startswith(word) for other in found)
    )  # fmt: skip
    chosen = [str(word) for word in rng.permutation(single)[: count * 4 // 5]]
    taken = set(chosen)
    pairs = sorted(
        f"{a} {b}" for words in spoken for a, b in zip(words, words[1:], strict=False)
        if a in _CONTENT and b in _CONTENT and not {a, b} & taken
    )  # fmt: skip
    for pair in rng.permutation(pairs):
        if len(chosen) < count and not set(str(pair).split()) & taken:
            chosen.append(str(pair))
            taken |= set(str(pair).split())
    if len(chosen) < count:
        raise ValueError(f"the texts hold only {len(chosen)} queries of the {count} wanted; ask for fewer")
    return chosen
