"""Lists over stored clips: dialogues for SD, trials for ASV, documents and matches for QbE. No new audio is made.

A list is a function of the clips and of a name, the same on every machine and for ever: chance comes from `Dice`,
whose numbers Python promises never to change. What overlaps, pauses or is repeated is then written down in
seconds, so that labels are exact; `superb_lite.audio.load` makes the sound.

Source: superb/protocol.md sections 3.5 (trials), 3.6 (queries and documents) and 3.7 (two speakers and noise).
Taught in notebooks 06 (query by example), 08 (speaker verification) and 09 (speaker diarization).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from superb_lite import audio
from superb_lite.types import Clip, Part

MIN_PAUSE = 0.2  # seconds; a shorter silence inside somebody's speech is speech, as in SUPERB's diarization labels
OVERLAP = (0.10, 0.35)  # in every dialogue, this share of the time with speech has two voices
TRIES = 40  # timings tried for the same lines before others are taken

Thing = TypeVar("Thing")
Trials = tuple[tuple[str, str, bool], ...]


class Dice:
    """Chance that depends on the words it is made from, and on nothing else.

    Only ``random.Random.random`` is used: the one method whose numbers Python keeps from version to version.

    >>> [round(Dice("a", 1).uniform(0, 1), 3), Dice("a", 1).shuffled("abcd")]
    [0.197, ['a', 'd', 'c', 'b']]
    """

    def __init__(self, *words: object) -> None:
        seed = hashlib.sha256(repr(words).encode()).digest()
        self._random = random.Random(int.from_bytes(seed, "big")).random

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self._random()

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._random() * (high - low + 1))

    def one(self, things: Sequence[Thing]) -> Thing:
        """One of the things."""
        return things[self.whole(0, len(things) - 1)]

    def shuffled(self, things: Iterable[Thing]) -> list[Thing]:
        """The things in another order."""
        return [thing for _, thing in sorted(((self._random(), thing) for thing in things), key=lambda pair: pair[0])]

    def deck(self, things: Iterable[Thing]) -> Iterator[Thing]:
        """The things one by one for ever, shuffled anew when all have been drawn: none is used much more than another.

        Raises ValueError if there are none.
        """
        things = list(things)
        if not things:
            raise ValueError("a deck of nothing: the split has no clip of this kind; is the corpus complete?")
        while True:
            yield from self.shuffled(things)


def by_speaker(clips: Iterable[Clip]) -> dict[str, list[Clip]]:
    """The clips of each speaker, in their order; speakers sorted."""
    found = defaultdict(list)
    for clip in clips:
        found[clip.label("speaker")].append(clip)
    return dict(sorted(found.items()))


# ------------------------------------------------------------------------------------------- lines


@dataclass(frozen=True)
class Line:
    """What is played in one go: recordings one after the other. Times in seconds from its own start."""

    pieces: tuple[tuple[Clip, float], ...]
    seconds: float
    speech: tuple[tuple[float, float], ...]

    @property
    def speaker(self) -> str:
        return self.pieces[0][0].label("speaker")

    @property
    def text(self) -> str:
        return " ".join(clip.label("text") for clip, _ in self.pieces)

    def parts(self, start: float = 0.0, gain_db: float = 0.0) -> list[Part]:
        """The recordings as parts of a mixture in which the line begins at `start`, turned up by `gain_db` more."""
        return [
            Part(clip.audio, clip.digest, round(start + at, 2), round(clip.gain_db + gain_db, 2))
            for clip, at in self.pieces
        ]


def line(clips: Sequence[Clip], dice: Dice, pause: tuple[float, float] = (0.0, 0.0)) -> Line:
    """Recordings one after the other, with pauses of that many seconds (low, high) between them.

    A recording with phone times is speech from its first phone to its last; one without is speech from end to end.
    """
    pieces, speech, at = [], [], 0.0
    for clip in clips:
        if pieces:
            at = round(at + dice.uniform(*pause), 2)
        pieces.append((clip, at))
        phones = [(start, end) for _, start, end in clip.labels.get("phones", ()) if start is not None]
        speech += [(at + start, at + end) for start, end in phones or [(0.0, clip.seconds)]]
        at += clip.seconds
    return Line(tuple(pieces), at, merged(speech))


def merged(stretches: Iterable[tuple[float, float]], gap: float = MIN_PAUSE) -> tuple[tuple[float, float], ...]:
    """Stretches of time (start, end) in order, with every silence shorter than `gap` seconds closed.

    >>> merged([(0.0, 1.0), (1.1, 2.0), (2.5, 3.0)])
    ((0.0, 2.0), (2.5, 3.0))
    """
    done: list[tuple[float, float]] = []
    for start, end in sorted(stretches):
        if done and start - done[-1][1] < gap - 1e-9:
            done[-1] = (done[-1][0], max(done[-1][1], end))
        else:
            done.append((start, end))
    return tuple(done)


def recording(
    name: str, spoken: Line, labels: Mapping[str, Any], *, gain_db: float = 0.0, noise_db: float | None = None
) -> Clip:
    """A line as a clip of its own; its text is added to the labels."""
    seconds = math.ceil(spoken.seconds * 100) / 100
    return audio.mixture(name, spoken.parts(), seconds, {"text": spoken.text, **labels}, gain_db, noise_db)


# --------------------------------------------------------------------------------------- dialogues (SD)


def dialogues(
    name: str,
    pairs: Iterable[tuple[Sequence[Line], Sequence[Line]]],
    count: int,
    *,
    seconds: tuple[float, float],
    noise_db: tuple[float, float],
) -> tuple[Clip, ...]:
    """`count` clips in which two people speak, ``name-000`` and so on, each between `seconds` (low, high) long.

    pairs: the lines of the one and of the other speaker; all pairs get equally many dialogues. Three lines a dialogue,
    each speaker up to 5 dB quieter than recorded, in white noise of `noise_db` (low, high) dBFS.
    Raises ValueError if the lines are too long or too short for such dialogues.
    """
    dice = Dice("dialogues", name)
    deck = dice.deck([(dice.deck(first), dice.deck(second)) for first, second in pairs])
    return tuple(_dialogue(f"{name}-{number:03d}", dice, *next(deck), seconds, noise_db) for number in range(count))


def _dialogue(
    name: str,
    dice: Dice,
    first: Iterator[Line],
    second: Iterator[Line],
    seconds: tuple[float, float],
    noise_db: tuple[float, float],
) -> Clip:
    for _ in range(TRIES):
        lines = [next({"A": first, "B": second}[who]) for who in dice.one(("ABA", "BAB", "AAB", "ABB", "BBA", "BAA"))]
        for _ in range(TRIES):
            starts = _starts(lines, dice)
            said = _speech(lines, starts)
            turns = {speaker: merged(own) for speaker, own in said.items()}
            length = max(start + spoken.seconds for start, spoken in zip(starts, lines, strict=True))
            length = math.ceil(100 * (length + dice.uniform(0.0, 0.3))) / 100
            if seconds[0] <= length <= seconds[1] and _alternates(said) and _fits(overlap_share(turns)):
                gains = {speaker: round(dice.uniform(-5, 0), 1) for speaker in turns}
                parts = [part for spoken, start in zip(lines, starts, strict=True)
                         for part in spoken.parts(start, gains[spoken.speaker])]  # fmt: skip
                noise = round(dice.uniform(*noise_db), 1)
                return audio.mixture(name, parts, length, {"turns": _labels(turns)}, noise_db=noise)
    raise ValueError(f"dialogue {name!r}: the lines do not fit into {seconds} s; change the range")


def _starts(lines: Sequence[Line], dice: Dice) -> list[float]:
    """When each line begins: after a pause in the speech, or, often, before the other one has finished."""
    starts = [round(dice.uniform(0.0, 0.3), 2)]
    for before, after in itertools.pairwise(lines):
        end, shorter = starts[-1] + before.speech[-1][1], min(_extent(before), _extent(after))
        interrupts = before.speaker != after.speaker and dice.uniform(0, 1) < 0.75
        wait = -dice.uniform(0.15, 0.7) * shorter if interrupts else dice.uniform(0.25, 0.8)
        starts.append(max(0.0, round(end + wait - after.speech[0][0], 2)))
    return starts


def _extent(spoken: Line) -> float:
    return spoken.speech[-1][1] - spoken.speech[0][0]


def _speech(lines: Sequence[Line], starts: Sequence[float]) -> dict[str, list[tuple[float, float]]]:
    """The stretches of speech of each speaker, line after line."""
    speech = defaultdict(list)
    for spoken, start in zip(lines, starts, strict=True):
        speech[spoken.speaker] += [(start + a, start + b) for a, b in spoken.speech]
    return dict(sorted(speech.items()))


def _alternates(speech: Mapping[str, Sequence[tuple[float, float]]]) -> bool:
    """Nobody speaks twice at the same time."""
    return all(b[0] - a[1] >= 0 for own in speech.values() for a, b in itertools.pairwise(own))


def overlap_share(speech: Mapping[str, Sequence[tuple[float, float]]]) -> float:
    """The time in which two people speak, as a share (0..1) of the time in which somebody does."""
    everybody = [stretch for own in speech.values() for stretch in own]
    total = sum(end - start for start, end in everybody)
    union = sum(end - start for start, end in merged(everybody, gap=0.0))
    return (total - union) / union


def _fits(share: float) -> bool:
    return OVERLAP[0] <= share <= OVERLAP[1]


def _labels(turns: Mapping[str, Sequence[tuple[float, float]]]) -> list[list]:
    """[[speaker, start_sec, end_sec], ...] by start, in milliseconds."""
    found = [[speaker, round(start, 3), round(end, 3)] for speaker, own in turns.items() for start, end in own]
    return sorted(found, key=lambda turn: turn[1])


# ----------------------------------------------------------------------------------------- trials (ASV)


def speaker_trials(name: str, clips: Iterable[Clip], most: int | None = None) -> Trials:
    """As many pairs of clips by one speaker as by two: (id, id, True if it is one).

    All pairs of one speaker are taken, or `most` of them, equally many of each speaker as far as they go; the others
    are spread evenly over the pairs of speakers. Raises ValueError if there are fewer than two speakers, or no pair.
    """
    dice = Dice("trials", name)
    speakers = by_speaker(clips)
    same = [[(a.id, b.id) for a, b in itertools.combinations(own, 2)] for own in speakers.values()]
    other = [[(a.id, b.id) for a in one for b in two] for one, two in itertools.combinations(speakers.values(), 2)]
    count = min(sum(map(len, same)), sum(map(len, other)), *([] if most is None else [most]))
    if count == 0:
        raise ValueError(f"trials {name!r}: {len(speakers)} speaker(s) give no pairs; expected two with two clips each")
    pairs = [(*pair, kind) for kind, groups in ((True, same), (False, other)) for pair in _evenly(groups, count, dice)]
    return tuple(dice.shuffled(pairs))


def _evenly(groups: Sequence[Sequence[Thing]], count: int, dice: Dice) -> list[Thing]:
    """`count` things, one of each group in turn; groups that are used up are passed over."""
    rounds = itertools.zip_longest(*(dice.shuffled(group) for group in dice.shuffled(groups)))
    return list(itertools.islice((thing for turn in rounds for thing in turn if thing is not None), count))


# --------------------------------------------------------------------------------------- documents (QbE)


def groups(clips: Sequence[Clip], sizes: Iterable[int], dice: Dice) -> Iterator[list[Clip]]:
    """Groups of clips of these sizes, by different speakers in each; every clip is used before any is used again.

    Raises ValueError if there are fewer speakers than a group needs.
    """
    deck, waiting, speakers = dice.deck(clips), [], len(by_speaker(clips))
    for size in sizes:
        if size > speakers:
            raise ValueError(f"a group of {size} clips by different speakers is asked for, but there are {speakers}")
        chosen: dict[str, Clip] = {}
        while len(chosen) < size:
            clip = next((clip for clip in waiting if clip.label("speaker") not in chosen), None)
            if clip is not None:
                waiting.remove(clip)
            else:
                clip = next(deck)
            if clip.label("speaker") in chosen:
                waiting.append(clip)
            else:
                chosen[clip.label("speaker")] = clip
        yield list(chosen.values())


def documents(name: str, lines: Iterable[Line], *, gain_db: float, noise_db: tuple[float, float]) -> tuple[Clip, ...]:
    """Each line as a document in noise, ``name-000`` and so on; noise_db: (low, high) dBFS, drawn for each."""
    dice = Dice("documents", name)
    labels = {"role": "document"}
    return tuple(
        recording(
            f"{name}-{number:03d}", spoken, labels, gain_db=gain_db, noise_db=round(dice.uniform(*noise_db), 1)
        )
        for number, spoken in enumerate(lines)
    )  # fmt: skip


def phrase_trials(queries: Iterable[Clip], documents: Sequence[Clip]) -> Trials:
    """(query id, document id, True if the query's words follow one another in the document) for every pair.

    >>> contains("the old clock stopped", "old clock"), contains("the older clock", "old")
    (True, False)

    Raises ValueError naming the queries that no document contains: they could not be scored.
    """
    trials, lost = [], []
    for query in queries:
        row = [(query.id, doc.id, contains(doc.label("text"), query.label("text"))) for doc in documents]
        trials += row
        if not any(found for _, _, found in row):
            lost.append(f"{query.id} ({query.label('text')!r})")
    if lost:
        raise ValueError(f"no document contains {', '.join(lost)}; leave these queries out or add documents")
    return tuple(trials)


def contains(text: str, phrase: str) -> bool:
    """True if the words of `phrase` occur in `text` in this order with nothing between them."""
    return f" {phrase} " in f" {text} "
