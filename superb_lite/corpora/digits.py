"""Free Spoken Digit Dataset: six people say the ten digits, fifty times each; 3,000 files, 22 minutes, 8 kHz.

Real human speech, small enough for a laptop. The recordings are of one fixed version; whatever source they are taken
from, their number and their bytes are checked. Licence of the recordings: CC BY-SA 4.0.

Splits
- KS and PR: voices never heard in training. Train: george (Greek accent), jackson (US), nicolas (Belgian French),
  yweweler (German). Dev: lucas (German). Test: theo (US). Both held-out accents occur in training, so that the test
  asks about a new voice and microphone, not about a new accent.
- SID: all six voices, the official split: recordings 0-4 of each digit are the test; 5-9 are our dev, 10-49 train.

Source: https://github.com/Jakobovski/free-spoken-digit-dataset (README "Usage" for the official test set).
Differs: SUPERB knows no such corpus; KS keeps its -3 dB, PR its symbols (``<pad> <eos> <unk>`` first), with phones from
a ten-word dictionary instead of a forced alignment, so that their times are unknown (None).
Taught in notebook 04 (keyword spotting).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import soundfile

from superb_lite import files
from superb_lite.text import DIGIT_PHONES, PhoneVocab
from superb_lite.types import Clip, CorpusMissing, Split, SuperbLiteError, UnknownName

KEY = "digits"
TITLE = "Free Spoken Digit Dataset"
LICENCE = "CC BY-SA 4.0"

WORDS = tuple(DIGIT_PHONES)  # zero, one, ... nine: the position is the digit
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
TAKES = 50  # recordings per digit and speaker

UNSEEN = {"train": ("george", "jackson", "nicolas", "yweweler"), "dev": ("lucas",), "test": ("theo",)}
OFFICIAL = {"train": range(10, TAKES), "dev": range(5, 10), "test": range(5)}
KS_GAIN_DB = -3.0

COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
URL = f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{COMMIT}.tar.gz"
# SHA-256 over "<file name> <SHA-256 of the file>\n", sorted by name. GitHub makes the archive when asked and does not
# promise the same bytes twice, so it is the recordings that are checked, not the archive.
CONTENT_SHA256 = "dbd573d7cafe79c4b49f65718115e1304e24e067fa39eff18a660dc6cb9c360f"

_DONE = "done.json"  # {file name: [seconds, bytes, sha256]}, written last


# ------------------------------------------------------------------------------------------ splits


def ks(split: str, fold: int = 0) -> Split:
    """Keyword spotting: which of ten words, by a voice never heard in training. Label ``keyword``; -3 dB."""
    return _split(split, fold, WORDS, speakers=UNSEEN, gain_db=KS_GAIN_DB)


def sid(split: str, fold: int = 0) -> Split:
    """Speaker identification: which of six voices. Label ``speaker``."""
    return _split(split, fold, SPEAKERS, takes=OFFICIAL)


def pr(split: str, fold: int = 0) -> Split:
    """Phoneme recognition by a voice never heard in training. Label ``phones``: [[phone, None, None], ...]."""
    vocab = PhoneVocab.of(phone for phones in DIGIT_PHONES.values() for phone in phones)
    return _split(split, fold, vocab.symbols, speakers=UNSEEN)


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
    if name not in OFFICIAL:
        raise UnknownName.among("split", name, tuple(OFFICIAL))
    if fold != 0:
        raise UnknownName.among(f"fold of corpus {KEY!r}", str(fold), ("0",))
    chosen = []
    for clip in clips():
        _, speaker, take = _parse(clip.id)
        if (speakers is None or speaker in speakers[name]) and (takes is None or take in takes[name]):
            chosen.append(replace(clip, gain_db=gain_db))
    return Split(KEY, name, tuple(chosen), tuple(classes), fold)


def _listed(names: list[str], most: int = 20) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
