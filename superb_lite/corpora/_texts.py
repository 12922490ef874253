"""What is said: word lists and sentence patterns for making speech. Every function takes a numpy Generator.

The sentences need not be wise; they must cover the sounds of English in ever new orders, so that a
recogniser cannot learn them by heart.
"""

from __future__ import annotations

import numpy as np

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN_WORDS = tuple(
    "bed bird cat dog eight five four happy house marvin nine one seven sheila six three tree two wow zero".split()
)

_WORDS = {
    "person": "doctor teacher farmer sailor painter baker neighbour captain judge nurse pilot singer lawyer tailor "
    "uncle aunt cousin mother father brother sister daughter child boy girl king queen stranger writer hunter "
    "soldier waiter student driver dancer butcher guard priest thief clown",
    "thing": "table chair window bottle kitchen garden basket ladder mirror pillow blanket hammer button candle "
    "letter paper pencil picture camera engine wheel bicycle wagon bridge tower castle church market village "
    "island harbour forest mountain river valley meadow orchard thunder shadow whistle trumpet violin drum "
    "jacket leather feather sugar pepper butter cheese onion carrot apple orange lemon cherry biscuit sausage "
    "oyster turkey rabbit donkey tiger lion monkey spider dolphin eagle pigeon goose sheep horse mouse snake "
    "measure treasure vision machine ocean ship shell judge bridge joy toy boil coin voice noise oil thumb bath "
    "path earth mouth tooth cloth thread throat fire hour flower power tour shoe boot book foot hook wood",
    "place": "station corner river market school hospital office theatre museum library airport beach hotel shop "
    "farm factory palace temple cellar attic balcony street square field hill lake shore desert north south",
    "adjective": "little yellow purple silver golden rusty dusty heavy gentle clever lazy hungry thirsty angry "
    "quiet noisy narrow broad ancient modern foreign royal rural urgent usual casual precious curious nervous "
    "famous dangerous beautiful cheerful powerful awful wide bright dark cold warm smooth rough thick thin sharp "
    "dull fresh stale sour sweet bitter cheap poor pure huge young old new strange",
    "verb": "carried followed noticed painted covered gathered measured imagined remembered forgot bought sold "
    "caught taught brought found lost broke fixed washed pushed pulled shook took gave saw heard watched chose "
    "drew threw knew sewed burned buried borrowed destroyed enjoyed avoided joined voted judged changed touched "
    "reached finished polished crushed rescued excused amused confused",
    "motion": "walked ran jumped travelled hurried wandered climbed crawled swam flew rode drove rushed marched "
    "sailed floated moved stayed waited rested slept laughed cried shouted whispered argued",
    "preposition": "near beside behind above below under over across through around between beyond inside outside "
    "toward without",
    "adverb": "slowly quickly quietly loudly carefully suddenly finally usually rarely often never always together "
    "again yesterday tonight tomorrow early later there here",
    "number": "one two three four five six seven eight nine ten eleven twelve thirteen twenty thirty fifty hundred "
    "thousand zero half third",
    "pronoun": "he she they we you everybody nobody somebody",
    "other": "because although until whether maybe please thanks hello goodbye yes no up down left right on off stop "
    "go how why where when which whose with without should could would might must",
}
WORDS = {kind: tuple(dict.fromkeys(words.split())) for kind, words in _WORDS.items()}
_ALL = tuple(sorted({word for words in WORDS.values() for word in words} | set(UNKNOWN_WORDS)))

_PATTERNS = tuple(
    pattern.split()
    for pattern in (
        "the adjective person verb the thing",
        "the person verb number adjective thing",
        "pronoun verb a adjective thing preposition the place",
        "the person motion adverb preposition the adjective place",
        "my person verb your thing and motion adverb",
        "number person motion preposition the thing",
        "pronoun motion adverb with the person and the thing",
        "the thing preposition the place was adjective and adjective",
        "please give the adjective thing to the person",
        "where did the person find number thing",
        "why would pronoun motion preposition a adjective thing",
        "adverb the person verb every thing in the place",
    )
)
_ONSETS = (
    "b d f g h j k l m n p r s t v w y z sh ch th bl br cl cr dr fl fr gl gr pl pr sk sl sm sn sp st sw tr"
).split()
_VOWELS = "a e i o u ee oo ai ow oy ar or er igh".split()
_CODAS = [""] + "b d f g k l m n p r s t v z sh ch th ng nd nt st lk mp".split()


def sentence(rng: np.random.Generator) -> str:
    """A sentence of five to ten words, lower case, no punctuation."""
    pattern = _PATTERNS[rng.integers(len(_PATTERNS))]
    return " ".join(str(rng.choice(WORDS[slot])) if slot in WORDS else slot for slot in pattern)


def word_list(rng: np.random.Generator, words: int) -> str:
    """Words in no order at all: every sound next to every other."""
    return " ".join(str(word) for word in rng.choice(_ALL, size=words, replace=False))


def invented_words(rng: np.random.Generator, words: int) -> str:
    """Words that do not exist, of one to three syllables; espeak pronounces anything."""
    return " ".join(
        "".join(str(rng.choice(part)) for _ in range(rng.integers(1, 4)) for part in (_ONSETS, _VOWELS, _CODAS))
        for _ in range(words)
    )


def anything(rng: np.random.Generator) -> str:
    """Text for unlabelled speech: half sentences, the rest word lists and invented words."""
    kind = rng.random()
    if kind < 0.5:
        return sentence(rng)
    return word_list(rng, int(rng.integers(3, 8))) if kind < 0.8 else invented_words(rng, int(rng.integers(2, 6)))
