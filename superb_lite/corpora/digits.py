"""Free Spoken Digit Dataset: six people say the ten digits, fifty times each; 3,000 files, 22 minutes, 8 kHz.

Real human speech, small enough for a laptop. The recordings are of one fixed version; whatever source they are taken
from, their number and their bytes are checked. Licence of the recordings: CC BY-SA 4.0.

Splits
- KS and PR: voices never heard in training. Train: george (Greek accent), jackson (US), nicolas (Belgian French),
  yweweler (German). Dev: lucas (German). Test: theo (US). Both held-out accents occur in training, so that the test
  asks about a new voice and microphone, not about a new accent.
- ASR: as PR, with the letters of the words.
- SID: all six voices, the official split: recordings 0-4 of each digit are the test; 5-9 are our dev, 10-49 train.
- ASV and SD: strings of digits, each recording used once. Six voices cannot make three sets of several, so train has
  george, jackson and nicolas; dev has yweweler, new, beside other recordings of those three; test has lucas and theo,
  whom neither has heard. With so few voices these two say little: `mini` has sixty.
- QbE: three digits in a row against strings of digits by other voices; no voice is in dev and in test. Nothing is
  trained. (One digit is too short a query for these microphones and accents: no upstream was worth more than 0.)

Source: https://github.com/Jakobovski/free-spoken-digit-dataset (README "Usage" for the official test set).
Differs: SUPERB knows no such corpus; KS keeps its -3 dB, PR its symbols (``<pad> <eos> <unk>`` first), with phones from
a ten-word dictionary instead of a forced alignment, so that their times are unknown (None). The recordings are trimmed:
in SD a string of digits is speech from its beginning to its end.
Taught in notebook 04 (keyword spotting).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import soundfile

from superb_lite import files
from superb_lite.corpora import _lists
from superb_lite.text import DIGIT_PHONES, PhoneVocab, letter_classes
from superb_lite.types import Clip, CorpusMissing, Split, SuperbLiteError, UnknownName

KEY = "digits"
TITLE = "Free Spoken Digit Dataset"
LICENCE = "CC BY-SA 4.0"

WORDS = tuple(DIGIT_PHONES)  # zero, one, ... nine: the position is the digit
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
TAKES = 50  # recordings per digit and speaker

UNSEEN = {"train": ("george", "jackson", "nicolas", "yweweler"), "dev": ("lucas",), "test": ("theo",)}
OFFICIAL = {"train": range(10, TAKES), "dev": range(5, 10), "test": range(5)}
GAIN_DB = -3.0  # KS, ASV and QbE turn their audio down, as the official recipes do

# ASV and SD: voices of which all recordings are used, and voices of which only the official train or other ones are.
KNOWN = ("george", "jackson", "nicolas")
NEW = {"train": (), "dev": ("yweweler",), "test": ("lucas", "theo")}
# Mean level of each voice in dBFS; ASV and SD bring all of them to COMMON_DB, else theo could be told by his loudness.
LEVEL_DB = {"george": -25, "jackson": -21, "lucas": -24, "nicolas": -25, "theo": -42, "yweweler": -38}
COMMON_DB = -40  # a few of theo's are as loud as the others' and would be clipped if he was turned up more
STRING_DIGITS = 5  # digits in a string of ASV
STRING_PAUSE_SEC = (0.03, 0.15)  # short enough to be one turn
MOST_TRIALS = 1000  # of each kind
DIALOGUES = {"train": 240, "dev": 60, "test": 200}
DIALOGUE_SEC = (1.0, 9.0)
DIALOGUE_NOISE_DB = (-60.0, -48.0)
# QbE: who asks, who is searched; how many digits in a query, how many queries, how many strings, and their noise.
ASKING = {"dev": ("lucas",), "test": ("theo", "yweweler")}
SEARCHED = {"dev": ("george",), "test": ("jackson", "nicolas")}
QUERY_DIGITS = 3
QUERIES = {"dev": 40, "test": 60}
DOCUMENTS = {"dev": 60, "test": 90}
DOCUMENT_NOISE_DB = (-45.0, -33.0)

COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
URL = f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{COMMIT}.tar.gz"
# SHA-256 over "<file name> <SHA-256 of the file>\n", sorted by name. GitHub makes the archive when asked and does not
# promise the same bytes twice, so it is the recordings that are checked, not the archive.
CONTENT_SHA256 = "dbd573d7cafe79c4b49f65718115e1304e24e067fa39eff18a660dc6cb9c360f"

_DONE = "done.json"  # {file name: [seconds, bytes, sha256]}, written last


# ------------------------------------------------------------------------------------------ splits


def ks(split: str, fold: int = 0) -> Split:
    """Keyword spotting: which of ten words, by a voice never heard in training. Label ``keyword``; -3 dB."""
    return _split(split, fold, WORDS, speakers=UNSEEN, gain_db=GAIN_DB)


def sid(split: str, fold: int = 0) -> Split:
    """Speaker identification: which of six voices. Label ``speaker``."""
    return _split(split, fold, SPEAKERS, takes=OFFICIAL)


def pr(split: str, fold: int = 0) -> Split:
    """Phoneme recognition by a voice never heard in training. Label ``phones``: [[phone, None, None], ...]."""
    vocab = PhoneVocab.of(phone for phones in DIGIT_PHONES.values() for phone in phones)
    return _split(split, fold, vocab.symbols, speakers=UNSEEN)


def asr(split: str, fold: int = 0) -> Split:
    """Speech recognition of one word by a voice never heard in training. Label ``text``; classes: its letters."""
    return _split(split, fold, letter_classes(sorted(set("".join(WORDS).upper()))), speakers=UNSEEN)


def asv(split: str, fold: int = 0) -> Split:
    """Speaker verification: are two strings of five digits by one voice? -3 dB. Classes are the three known voices."""
    _refuse_strange(split, fold)
    strings = []
    for speaker, own in _voices(split).items():
        dice = _lists.Dice("strings", split, speaker)
        mixed = dice.shuffled(own)
        for number in range(len(mixed) // STRING_DIGITS):
            chosen = mixed[number * STRING_DIGITS : (number + 1) * STRING_DIGITS]
            spoken = _lists.line(chosen, dice, STRING_PAUSE_SEC)
            name = f"string-{split}-{speaker}-{number:03d}"
            strings.append(_lists.recording(name, spoken, {"speaker": speaker}, gain_db=GAIN_DB))
    trials = () if split == "train" else _lists.speaker_trials(f"{KEY} {split}", strings, MOST_TRIALS)
    return Split(KEY, split, tuple(strings), KNOWN, fold, trials)


def sd(split: str, fold: int = 0) -> Split:
    """Speaker diarization: who of two reads digits when? Label ``turns``: [[speaker, start_sec, end_sec], ...]."""
    _refuse_strange(split, fold)
    lines = {speaker: _strings(own, _lists.Dice("lines", split, speaker)) for speaker, own in _voices(split).items()}
    pairs = [(lines[a], lines[b]) for a, b in itertools.combinations(lines, 2) if split != "dev" or b in NEW[split]]
    dialogues = _lists.dialogues(
        f"dialogue-{split}", pairs, DIALOGUES[split], seconds=DIALOGUE_SEC, noise_db=DIALOGUE_NOISE_DB
    )
    return Split(KEY, split, dialogues, ("first", "second"), fold)


def qbe(split: str, fold: int = 0) -> Split:
    """Query by example: three digits in a row, to be found in strings of four to six by other voices, in noise. -3 dB.

    Label ``role`` is query or document. Every query is compared with every document; train is dev.
    """
    _refuse_strange(split, fold)
    if split == "train":
        return replace(qbe("dev", fold), name="train")
    everybody = _lists.by_speaker(clips())
    dice = _lists.Dice("queries", split)
    decks = [dice.deck(everybody[speaker]) for speaker in SEARCHED[split]]
    lines = [
        _lists.line([next(decks[number % len(decks)]) for _ in range(4 + number % 3)], dice, STRING_PAUSE_SEC)
        for number in range(DOCUMENTS[split])
    ]
    documents = _lists.documents(f"document-{split}", lines, gain_db=GAIN_DB, noise_db=DOCUMENT_NOISE_DB)
    queries = []
    for number, phrase in enumerate(dice.shuffled(_phrases(documents))[: QUERIES[split]]):
        voice = everybody[ASKING[split][number % len(ASKING[split])]]
        said = [dice.one([clip for clip in voice if clip.label("keyword") == word]) for word in phrase]
        spoken = _lists.line(said, dice, STRING_PAUSE_SEC)
        queries.append(_lists.recording(f"query-{split}-{number:03d}", spoken, {"role": "query"}, gain_db=GAIN_DB))
    return Split(KEY, split, (*queries, *documents), (), fold, _lists.phrase_trials(queries, documents))


def _phrases(documents: Sequence[Clip]) -> list[tuple[str, ...]]:
    """Everything that could be asked for: QUERY_DIGITS words that follow one another in a document."""
    texts = [clip.label("text").split() for clip in documents]
    starts = range(QUERY_DIGITS)
    return sorted({words for text in texts for words in zip(*(text[start:] for start in starts), strict=False)})


def clips() -> tuple[Clip, ...]:
    """All recordings with all their labels, sorted by digit, speaker and take; fetched at the first call.

    Raises CorpusMissing if they are not here and cannot be fetched, or if some of them have been lost or changed.
    """
    folder = locate()
    return tuple(
        Clip(name[:-4], str(folder / name), seconds, sha256, _labels(name))
        for name, (seconds, _, sha256) in sorted(_manifest(folder).items(), key=lambda item: _parse(item[0]))
    )


# ----------------------------------------------------------------------------------- where it lives


def locate(from_path: str | Path | None = None, *, root: str | Path | None = None) -> Path:
    """The folder with the recordings, checked. It is filled at the first call and remembered in the cache.

    from_path: an archive (.tar.gz, .zip) or a folder to take the recordings from; without it they are downloaded.
    root: the cache, see `files.cache_root`. The source is copied, so that it may be deleted afterwards.
    Raises CorpusMissing if the source is missing, broken or of another version, or if there is no network.
    """
    folder = files.cache_root(root) / KEY / COMMIT[:12]
    if from_path is not None:
        source = Path(from_path).expanduser()
        if not source.exists():
            raise CorpusMissing(f"{source}: there is no such archive or folder; check the path after --from")
        if not _intact(folder):
            _take(source, folder)
    elif not (folder / _DONE).exists():
        _download(folder, root)
    elif not _intact(folder):
        raise CorpusMissing(_lost_message(folder))
    return folder


def _download(folder: Path, root: str | Path | None) -> None:
    by_hand = f"with a browser, download {URL} and run: superb-lite olympics --corpus {KEY} --from PATH-OF-THE-FILE"
    try:
        archive = files.fetch(URL, None, name=f"{KEY}-{COMMIT[:12]}.tar.gz", root=root)
    except CorpusMissing as error:
        reason = str(error).partition(";")[0]
        raise CorpusMissing(f"corpus {KEY!r} is not on this machine: {reason}. Instead, {by_hand}") from error
    try:
        _take(archive, folder)
    finally:
        archive.unlink(missing_ok=True)  # a broken one must not be found again


def _take(source: Path, folder: Path) -> None:
    """Copy the recordings of an archive or folder to `folder`, check them, and only then give it its name."""
    with files.temporary_folder(folder.parent) as part:
        unpacked = source if source.is_dir() else files.unpack(source, part / "archive")
        fresh = part / "fresh"
        with files.disk(folder.parent):
            fresh.mkdir()
            for name, path in _find(source, unpacked).items():
                shutil.copyfile(path, fresh / name)
        manifest = _check(source, fresh)
        files.write_atomically(fresh / _DONE, json.dumps(manifest, indent=0).encode())
        if folder.exists() and not _intact(folder):
            os.replace(folder, part / "damaged")  # goes with the temporary folder
        try:
            os.replace(fresh, folder)
        except OSError as error:
            if not _intact(folder):  # else another process was quicker, with the same bytes
                raise SuperbLiteError(f"{folder}: cannot be made ({error.strerror}); delete it, try again") from error


def _find(source: Path, unpacked: Path) -> dict[str, Path]:
    """The recordings by file name, wherever they lie below `unpacked`. Raises CorpusMissing naming each missing one."""
    expected = _names()
    found = {path.name: path for path in sorted(unpacked.rglob("*.wav")) if path.name in expected and path.is_file()}
    missing = sorted(set(expected) - set(found), key=_parse)
    if missing:
        raise CorpusMissing(
            f"{source}: {len(missing)} of {len(expected)} recordings are missing: {_listed(missing)}; "
            f"is it the whole {TITLE}? Get it from {URL}"
        )
    return found


def _check(source: Path, folder: Path) -> dict[str, tuple[float, int, str]]:
    """The manifest of freshly copied recordings. Raises CorpusMissing if they are broken or of another version."""
    manifest, broken = {}, []
    content = hashlib.sha256()
    for name in sorted(_names()):
        data = (folder / name).read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        content.update(f"{name} {sha256}\n".encode())
        try:
            info = soundfile.info(folder / name)
            manifest[name] = (info.frames / info.samplerate, len(data), sha256)
        except soundfile.SoundFileError:
            broken.append(name)
    if broken:
        raise CorpusMissing(f"{source}: {len(broken)} recordings cannot be read: {_listed(broken)}; get it from {URL}")
    if content.hexdigest() != CONTENT_SHA256:
        raise CorpusMissing(
            f"{source}: the recordings are not those of version {COMMIT[:12]} (their checksum is "
            f"{content.hexdigest()[:12]}, expected {CONTENT_SHA256[:12]}), so scores could not be compared; get {URL}"
        )
    return manifest


def _manifest(folder: Path) -> dict[str, tuple[float, int, str]]:
    return {name: tuple(entry) for name, entry in json.loads((folder / _DONE).read_text()).items()}


def _lost(folder: Path) -> list[str]:
    """The recordings that are no longer there, or no longer of their size."""
    there = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    return [name for name, (_, size, _) in _manifest(folder).items() if there.get(name) != size]


def _lost_message(folder: Path) -> str:
    try:
        what = f"recordings are lost or changed: {_listed(_lost(folder))}"
    except ValueError:
        what = f"the list of recordings, {_DONE}, is broken"
    return f"{folder}: {what}; delete this folder to fetch it again, or use --from with the archive"


def _intact(folder: Path) -> bool:
    if not (folder / _DONE).exists():
        return False
    try:
        return not _lost(folder)
    except ValueError:
        return False


# ------------------------------------------------------------------------------------------ inside


def _names() -> dict[str, None]:
    return {
        f"{digit}_{speaker}_{take}.wav": None
        for digit in range(len(WORDS))
        for speaker in SPEAKERS
        for take in range(TAKES)
    }


def _parse(name: str) -> tuple[int, str, int]:
    """(digit, speaker, take) of ``7_jackson_32.wav`` or the id ``7_jackson_32``."""
    digit, speaker, take = name.removesuffix(".wav").split("_")
    return int(digit), speaker, int(take)


def _labels(name: str) -> dict[str, object]:
    digit, speaker, _ = _parse(name)
    word = WORDS[digit]
    phones = [[phone, None, None] for phone in DIGIT_PHONES[word]]
    return {"keyword": word, "speaker": speaker, "text": word, "phones": phones}


def _split(
    name: str,
    fold: int,
    classes: Sequence[str],
    *,
    speakers: Mapping[str, Sequence[str]] | None = None,
    takes: Mapping[str, Sequence[int]] | None = None,
    gain_db: float = 0.0,
) -> Split:
    """The clips of split `name` by the allowed speakers and takes; None allows all."""
    _refuse_strange(name, fold)
    chosen = []
    for clip in clips():
        _, speaker, take = _parse(clip.id)
        if (speakers is None or speaker in speakers[name]) and (takes is None or take in takes[name]):
            chosen.append(replace(clip, gain_db=gain_db))
    return Split(KEY, name, tuple(chosen), tuple(classes), fold)


def _refuse_strange(split: str, fold: int) -> None:
    if split not in OFFICIAL:
        raise UnknownName.among("split", split, tuple(OFFICIAL))
    if fold != 0:
        raise UnknownName.among(f"fold of corpus {KEY!r}", str(fold), ("0",))


def _voices(split: str) -> dict[str, list[Clip]]:
    """The recordings of ASV and SD by voice, the known voices first; train and dev share voices, but no recording."""
    known = {"train": KNOWN, "dev": KNOWN, "test": ()}[split]
    found = _lists.by_speaker(
        replace(clip, gain_db=float(COMMON_DB - LEVEL_DB[clip.label("speaker")])) for clip in clips()
    )
    train = OFFICIAL["train"]
    voices = {name: [c for c in found[name] if (_parse(c.id)[2] in train) == (split == "train")] for name in known}
    return voices | {name: found[name] for name in NEW[split]}


def _strings(recordings: Sequence[Clip], dice: _lists.Dice) -> list[_lists.Line]:
    """Three to five digits in a row, until every recording is used."""
    mixed, strings = dice.shuffled(recordings), []
    while mixed:
        count = dice.whole(3, 5)
        strings.append(_lists.line(mixed[:count], dice, STRING_PAUSE_SEC))
        mixed = mixed[count:]
    return strings


def _listed(names: list[str], most: int = 20) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
