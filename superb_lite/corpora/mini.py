"""The default corpus: 146 minutes of synthetic English in rooms, shipped inside the package.

Made from text patterns and espeak-ng voices by ``data_scripts/make_mini.py``; the phone times are exact because
the synthesiser reports them. It is honest speech for learning what the tasks are, and no human ever said
it: a score on `mini` ranks upstreams on `mini`.

====== ==================================================================== =======================================
task   train / dev / test                                                   speakers
====== ==================================================================== =======================================
PR     880 / 80 / 144 sentences                                             40 / 8 / 12, disjoint
KS     1560 / 240 / 288 clips of one second, 12 classes                     40 / 8 / 12, disjoint
ASR    880 / 80 / 144, the sentences of PR                                  40 / 8 / 12, disjoint
QbE    nothing is trained; 80 / 90 queries, 60 / 90 documents (dev / test)  queries: of training; documents: unseen
SID    560 / 120 / 200 sentences                                            the same 40 everywhere
ASV    880 / 80 / 144, the sentences of PR; 0 / 720 / 1584 trials           40 / 8 / 12, disjoint
SD     280 / 60 / 220 dialogues of 5 to 8 s                                 40 / 8 / 12, disjoint
IC     696 / 87 / 145 commands, 29 intents of three slots                   40 / 8 / 12, disjoint
SF     520 / 80 / 132 requests, 11 slots                                    40 / 8 / 12, disjoint
ER     256 / 64 / 80 clips in each of five folds, 4 emotions                8 / the same / 2 unseen actors
====== ==================================================================== =======================================

QbE's documents and SD's dialogues are sums of sentences, made when they are loaded (`superb_lite.audio.mixture`);
`clips` has the stored recordings only.

Taught in notebook 00 (welcome).
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from superb_lite import text
from superb_lite.corpora import _lists
from superb_lite.types import Clip, CorpusMissing, Split, UnknownName

KEY = "mini"
TITLE = "synthetic English in rooms, shipped with the package"
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "_unknown_", "_silence_")
EMOTIONS = ("neu", "hap", "ang", "sad")
FOLDS = 5  # of emotion recognition: one recording session each
SETS = ("sentences", "keywords", "commands", "requests", "emotions", "queries")
LABELS = tuple("text phones speaker keyword action object location tags domain emotion session".split())

GAIN_DB = -3.0  # KS, ASV and QbE turn their audio down by 3 dB, as the official recipes do
GAINS = {"keywords": GAIN_DB, "queries": GAIN_DB}
DIALOGUES = {"train": 280, "dev": 60, "test": 220}
DIALOGUE_SEC = (5.0, 8.0)
DIALOGUE_NOISE_DB = (-50.0, -38.0)
DOCUMENTS = {"dev": 60, "test": 90}
DOCUMENT_NOISE_DB = (-62.0, -50.0)  # on top of the sentences' own noise; 10 dB more hides what upstreams tell apart

DATA = Path(str(files("superb_lite.corpora") / "data"))


@cache
def manifest(name: str) -> tuple[dict, ...]:
    """The rows of ``NAME.jsonl.gz``, one dict a clip. Raises CorpusMissing naming the file that is not there."""
    path, archive = DATA / f"{name}.jsonl.gz", DATA / f"{name}.zip"
    for file in (path, archive):
        if not file.is_file():
            raise CorpusMissing(f"{file} is missing although it ships with superb_lite; install the package again")
    try:
        return tuple(json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines())
    except (OSError, EOFError, ValueError) as error:
        raise CorpusMissing(f"{path} is damaged ({error}); install the package again") from None


def _clips(name: str, gain_db: float | None = None) -> Iterator[tuple[dict, Clip]]:
    """(manifest row, Clip) for every clip of a set, at the set's gain or another."""
    gain = GAINS.get(name, 0.0) if gain_db is None else gain_db
    for row in manifest(name):
        labels = {key: row[key] for key in LABELS if key in row}
        audio = f"{DATA / name}.zip!{row['id']}.opus"
        yield row, Clip(row["id"], audio, row["seconds"], row["sha256"], labels, gain)


def _refuse_strange(split: str) -> None:
    if split not in ("train", "dev", "test"):
        raise UnknownName.among("split", split, ("train", "dev", "test"))


def _of(name: str, split: str, gain_db: float | None = None) -> tuple[Clip, ...]:
    """The clips of a set that belong to train, dev or test. Raises UnknownName."""
    _refuse_strange(split)
    return tuple(clip for row, clip in _clips(name, gain_db) if row["split"] == split)


def clips() -> tuple[Clip, ...]:
    """Every stored clip of the corpus; dialogues and documents are made of them."""
    return tuple(clip for name in SETS for _, clip in _clips(name))


# ------------------------------------------------------------------------------------------- content


def pr(split: str, fold: int = 0) -> Split:
    """Phoneme recognition: sentences with exact phones; dev and test speakers were never heard."""
    return Split(KEY, split, _of("sentences", split), text.PhoneVocab.of(text.ARPABET).symbols, fold)


def ks(split: str, fold: int = 0) -> Split:
    """Keyword spotting: ten words, ``_unknown_`` and ``_silence_``; nobody is heard in two splits."""
    return Split(KEY, split, _of("keywords", split), KEYWORDS, fold)


def asr(split: str, fold: int = 0) -> Split:
    """Speech recognition: the sentences of `pr`, with their ``text``; classes are `text.letter_classes`."""
    return Split(KEY, split, _of("sentences", split), text.letter_classes(), fold)


def qbe(split: str, fold: int = 0) -> Split:
    """Query by example: in which documents is the query said? Label ``role`` tells the two apart.

    A document is two or three sentences of different speakers, with pauses, in white noise. Every query is compared
    with every document of its split, and it is in at least one. Nothing is trained: train is dev.
    """
    if split == "train":
        return replace(qbe("dev", fold), name="train")
    return _qbe(split, fold)


@cache
def _qbe(split: str, fold: int) -> Split:
    queries = tuple(replace(clip, labels={**clip.labels, "role": "query"}) for clip in _of("queries", split))
    dice = _lists.Dice("paragraphs", split)
    sizes = (2 + number % 2 for number in range(DOCUMENTS[split]))
    lines = [
        _lists.line(group, dice, pause=(0.2, 0.6)) for group in _lists.groups(_of("sentences", split), sizes, dice)
    ]
    documents = _lists.documents(f"document-{split}", lines, gain_db=GAIN_DB, noise_db=DOCUMENT_NOISE_DB)
    return Split(KEY, split, queries + documents, (), fold, _lists.phrase_trials(queries, documents))


# ------------------------------------------------------------------------------------------- speakers


def sid(split: str, fold: int = 0) -> Split:
    """Speaker identification: 40 speakers, every one of them in every split, with other sentences."""
    _refuse_strange(split)
    chosen = [clip for row, clip in _clips("sentences") if row.get("sid") == split]
    return Split(KEY, split, tuple(chosen), tuple(sorted({clip.label("speaker") for clip in chosen})), fold)


@cache
def asv(split: str, fold: int = 0) -> Split:
    """Speaker verification: are two sentences by one speaker? Dev and test speakers were never heard.

    Classes are the 40 training speakers in every split. The trials of dev and test are all pairs of sentences by one
    speaker, and as many by two. A speaker is an espeak variant; variants that differ in accent or pitch only are one.
    """
    classes = tuple(sorted(_lists.by_speaker(_of("sentences", "train"))))
    chosen = _of("sentences", split, GAIN_DB)
    trials = () if split == "train" else _lists.speaker_trials(f"{KEY} {split}", chosen)
    return Split(KEY, split, chosen, classes, fold, trials)


@cache
def sd(split: str, fold: int = 0) -> Split:
    """Speaker diarization: who speaks when? Two speakers of the split, three sentences, 10 to 35 % of it overlapped.

    Label ``turns``: [[speaker, start_sec, end_sec], ...] from the phone times, by start.
    """
    dice = _lists.Dice("pairs", split)
    lines = {speaker: [_lists.line([clip], dice) for clip in own]
             for speaker, own in _lists.by_speaker(_of("sentences", split)).items()}  # fmt: skip
    pairs = itertools.combinations(lines.values(), 2)
    dialogues = _lists.dialogues(
        f"dialogue-{split}", pairs, DIALOGUES[split], seconds=DIALOGUE_SEC, noise_db=DIALOGUE_NOISE_DB
    )
    return Split(KEY, split, dialogues, ("first", "second"), fold)


# --------------------------------------------------------------------------- semantics and paralinguistics


def ic(split: str, fold: int = 0) -> Split:
    """Intent classification: spoken commands with ``action``, ``object`` and ``location`` ("none" is a value)."""
    classes = tuple(
        f"{slot}={value}"
        for slot in ("action", "object", "location")
        for value in sorted({clip.label(slot) for _, clip in _clips("commands")})
    )
    return Split(KEY, split, _of("commands", split), classes, fold)


def sf(split: str, fold: int = 0) -> Split:
    """Slot filling: spoken requests with ``text`` and ``tags``, one a word: "O" or the name of a slot."""
    slots = {tag for _, clip in _clips("requests") for tag in clip.label("tags")} - {"O"}
    return Split(KEY, split, _of("requests", split), text.slot_classes(slots), fold)


def er(split: str, fold: int = 0) -> Split:
    """Emotion recognition: neutral, happy, angry or sad? The test of fold k (0 to 4) is session k.

    Of the other four sessions 80 % are train and 20 % dev, drawn by a fixed seed; they share speakers, as in IEMOCAP.
    """
    _refuse_strange(split)
    if fold not in range(FOLDS):
        raise UnknownName.among("fold of emotion recognition", str(fold), tuple(map(str, range(FOLDS))))
    return Split(KEY, split, _emotions(fold)[split], EMOTIONS, fold)


@cache
def _emotions(fold: int) -> dict[str, tuple[Clip, ...]]:
    clips = [clip for _, clip in _clips("emotions")]
    test = tuple(clip for clip in clips if clip.label("session") == fold)
    others = [clip for clip in clips if clip.label("session") != fold]
    mixed = _lists.Dice("emotions", fold).shuffled(others)
    dev = {clip.id for clip in mixed[: len(others) // 5]}
    return {
        "train": tuple(clip for clip in others if clip.id not in dev),
        "dev": tuple(clip for clip in others if clip.id in dev),
        "test": test,
    }
