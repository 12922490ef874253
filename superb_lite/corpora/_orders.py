"""What the clips of `mini` are: who says what, for which split, in what scene. One function a set.

An order is a clip to be made; `_make` makes it. All the chance of a set's orders comes from its seed.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from superb_lite.corpora import _grammars as grammars
from superb_lite.corpora import _texts as texts
from superb_lite.corpora._espeak import Voice, speak
from superb_lite.corpora._rooms import Scene

ACCENTS = tuple("en en-us en-us-nyc en-029 en-gb-scotland en-gb-x-rp en-gb-x-gbclan en-gb-x-gbcwmd".split())
# In espeak the variant (the shape of the vocal tract) is the speaker; accent and pitch are how it talks today.
# Human-sounding variants only, and none of the six that differ from process to process.
TRAIN_SPEAKERS = tuple(
    "Alex Andrea Andy Annie Denis Diogo Gene Henrique Hugo Jacky Lee Marco Mario Michael Mike Nguyen Reed adam "
    "announcer antonio belinda benjamin boris caleb david ed f1 grandma ian iven john klatt2 linda m1 m3 m5 m7 "
    "michel pablo steph".split()
)
DEV_SPEAKERS = tuple("anika f4 gustave klatt3 m2 miguel paul travis".split())
TEST_SPEAKERS = tuple("aunty edward grandpa klatt4 m4 m6 m8 marcelo norbert quincy rob shelby".split())


SHORT = (0.05, 0.15)  # seconds of room before and after the voice, where room is dear


@dataclass(frozen=True)
class Order:
    """A clip to be made: what is said, by whom, and which part of the corpus it is for."""

    id: str
    split: str
    text: str
    speaker: str
    labels: dict[str, Any]
    scene: Scene = Scene()
    seconds: float | None = None  # cut or fill to exactly this length
    around: tuple[float, float] = (0.08, 0.3)  # range of the seconds before, and after, the voice
    voice: Voice | None = None  # how the speaker talks in this clip (None: as at home, see `_make.voice_of`)


def sentence_orders(seed: int) -> Iterator[Order]:
    """Sentences: 40 training speakers (SID train, dev, test; all of it PR train), 8 for dev, 12 for test."""
    rng = np.random.default_rng([seed, 1])
    for split, speakers, count in (
        ("train", TRAIN_SPEAKERS, 22),
        ("dev", DEV_SPEAKERS, 10),
        ("test", TEST_SPEAKERS, 12),
    ):
        for speaker in speakers:
            for n in range(count):
                part = "train" if n < 14 else "dev" if n < 17 else "test"
                labels = {"sid": part} if split == "train" else {}
                yield Order(f"sentence-{speaker}-{n:02d}", split, texts.sentence(rng), speaker, labels)


def keyword_orders(seed: int) -> Iterator[Order]:
    """One second each, as in Speech Commands: ten words, `_unknown_`, `_silence_`; dev and test speakers are unseen."""
    rng = np.random.default_rng([seed, 2])
    scene = Scene(noise_db=(-60.0, -40.0))
    for split, speakers, each in (
        ("train", TRAIN_SPEAKERS, 130),
        ("dev", DEV_SPEAKERS, 20),
        ("test", TEST_SPEAKERS, 24),
    ):
        for keyword in (*texts.KEYWORDS, "_unknown_", "_silence_"):
            for n in range(each):
                word = {"_unknown_": str(rng.choice(texts.UNKNOWN_WORDS)), "_silence_": ""}.get(keyword, keyword)
                speaker = str(rng.choice(speakers)) if word else ""
                name = f"keyword-{split}-{keyword.strip('_')}-{n:03d}"
                yield Order(name, split, word, speaker, {"keyword": keyword}, scene, seconds=1.0)


def unlabelled_orders(seed: int) -> Iterator[Order]:
    """Speech for phase 1, by the training speakers only, in any accent, some of it through a telephone."""
    scene = Scene(noise_db=(-60.0, -32.0), reverb_sec=(0.08, 0.5), band_limited=0.25)
    for n in itertools.count():
        rng = np.random.default_rng([seed, 3, n])
        yield Order(f"unlabelled-{n:06d}", "train", texts.anything(rng), str(rng.choice(TRAIN_SPEAKERS)), {}, scene)


def command_orders(seed: int) -> Iterator[Order]:
    """Commands: 29 intents x 24 / 3 / 5; unseen dev and test speakers, a quarter of the test unseen phrasings."""
    rng = np.random.default_rng([seed, 4])
    for split, speakers, each in (("train", TRAIN_SPEAKERS, 24), ("dev", DEV_SPEAKERS, 3), ("test", TEST_SPEAKERS, 5)):
        for n, intent in itertools.product(range(each), grammars.INTENTS):
            text = grammars.command(rng, intent, test=split == "test")
            name = f"command-{split}-{n:02d}-{'-'.join(intent).replace(' ', '-')}"
            labels = dict(zip(("action", "object", "location"), intent, strict=True))
            yield Order(name, split, text, str(rng.choice(speakers)), labels, around=SHORT)


def request_orders(seed: int) -> Iterator[Order]:
    """Requests: 40 speakers x 13, 8 x 10, 12 x 11; every speaker goes through the five domains.

    Dev and test have unseen speakers, and may use 15 slot values (of 83) that training does not have.
    """
    rng = np.random.default_rng([seed, 5])
    domains = tuple(grammars.REQUESTS)
    for split, speakers, each in (
        ("train", TRAIN_SPEAKERS, 13),
        ("dev", DEV_SPEAKERS, 10),
        ("test", TEST_SPEAKERS, 11),
    ):
        for n, (who, speaker) in itertools.product(range(each), enumerate(speakers)):
            domain = domains[(n + who) % len(domains)]
            text, tags = grammars.request(rng, domain, unheard=split != "train")
            labels = {"tags": tags, "domain": domain}
            yield Order(f"request-{speaker}-{n:02d}", split, text, speaker, labels, around=SHORT)


# Two speakers a session, women first where the session has one. All of them are held out from the unlabelled
# speech, as the actors of IEMOCAP are from LibriSpeech.
ACTORS = (("norbert", "paul"), ("f4", "edward"), ("aunty", "marcelo"), ("shelby", "miguel"), ("travis", "m4"))
# How far an emotion moves pitch (espeak units), rate (factor), pitch range (espeak units) and level (dB).
ACTING = {
    "neu": (0.0, 1.0, 0.0, 0.0), "hap": (12.0, 1.08, 20.0, 2.0),
    "ang": (4.0, 1.12, 5.0, 6.0), "sad": (-10.0, 0.85, -20.0, -4.0),
}  # fmt: skip
STRENGTH = 2.5  # of the acting; in a trial with other sentences, 1 left a linear head below half of the clips right
_JITTER = (3.6, 0.036, 6.0, 1.5)  # standard deviation of each from clip to clip, whatever the emotion


def acted(rng: np.random.Generator, speaker: str, emotion: str) -> tuple[Voice, Scene]:
    """The voice of an emotion and the scene with its level; the noise is as loud whatever the emotion is."""
    home = np.random.default_rng(zlib.crc32(speaker.encode()))
    accent, pitch, rate = str(home.choice(ACCENTS)), home.integers(42, 59), home.integers(150, 173)
    moved_pitch, factor, moved_range, moved_db = ACTING[emotion]
    jitter = rng.standard_normal(4) * _JITTER
    wanted = (pitch + STRENGTH * moved_pitch + jitter[0], 50 + STRENGTH * moved_range + jitter[2])
    espeak_pitch, espeak_range = (int(np.clip(round(value), 0, 99)) for value in wanted)
    voice = Voice(accent, speaker, espeak_pitch, espeak_range, int(rate * factor**STRENGTH * np.exp(jitter[1])))
    level = -33 + STRENGTH * moved_db + jitter[3]
    return voice, Scene(speech_db=(level, level), noise_db=(-64.0, -48.0))


def emotion_orders(seed: int) -> Iterator[Order]:
    """Acted emotions: 5 sessions x 2 speakers x 10 sentences x 4 emotions, balanced in every session."""
    rng = np.random.default_rng([seed, 6])
    for session, pair in enumerate(ACTORS):
        for speaker in pair:
            for n, text in enumerate(rng.permutation(grammars.PLAIN_SENTENCES)[:10]):
                for emotion in ACTING:
                    voice, scene = acted(rng, speaker, emotion)
                    labels = {"emotion": emotion, "session": session}
                    name = f"emotion-{session}-{speaker}-{n:02d}-{emotion}"
                    yield Order(name, f"session{session}", str(text), speaker, labels, scene, around=SHORT, voice=voice)


@cache
def _has_five_phones(words: str) -> bool:
    return len(speak(words, Voice("en-us", "adam"))[2]) >= 5


def query_orders(seed: int) -> Iterator[Order]:
    """Spoken queries: 80 said in sentences of dev, 90 in sentences of test, here by voices of training speakers."""
    rng = np.random.default_rng([seed, 7])
    said = [(order.split, order.text) for order in sentence_orders(seed)]
    for split, count in (("dev", 80), ("test", 90)):
        texts_of = [text for name, text in said if name == split]
        for n, text in enumerate(grammars.queries(rng, texts_of, count, _has_five_phones)):
            yield Order(f"query-{split}-{n:02d}", split, text, str(rng.choice(TRAIN_SPEAKERS)), {}, around=SHORT)


SETS: dict[str, Callable[[int], Iterator[Order]]] = {
    "sentences": sentence_orders,
    "keywords": keyword_orders,
    "commands": command_orders,
    "requests": request_orders,
    "emotions": emotion_orders,
    "queries": query_orders,
}
