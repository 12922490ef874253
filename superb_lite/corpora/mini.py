"""The default corpus: 85 minutes of synthetic English in rooms, shipped inside the package.

Made from text patterns and espeak-ng voices by ``data_scripts/make_mini.py``; the phone times are exact because
the synthesiser reports them. It is honest speech for learning what the tasks are, and no human ever said
it: a score on `mini` ranks upstreams on `mini`.

=========== ==================================================== =====================================
task        train / dev / test                                   speakers
=========== ==================================================== =====================================
KS          12 classes x 130 / 20 / 24 clips of one second        40 / 8 / 12, disjoint
SID         40 speakers x 14 / 3 / 5 sentences                   the same 40 everywhere
PR          880 / 80 / 144 sentences                             40 / 8 / 12, disjoint
=========== ==================================================== =====================================

Taught in notebook 00 (welcome).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

from superb_lite import text
from superb_lite.types import Clip, CorpusMissing, Split

KEY = "mini"
TITLE = "synthetic English in rooms, shipped with the package"
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "_unknown_", "_silence_")
GAIN_DB = -3.0  # keyword spotting turns its audio down by 3 dB, as the official recipe does

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


def _clips(name: str, gain_db: float = 0.0) -> Iterator[tuple[dict, Clip]]:
    """(manifest row, Clip) for every clip of a set."""
    for row in manifest(name):
        labels = {key: row[key] for key in ("text", "phones", "speaker", "keyword") if key in row}
        audio = f"{DATA / name}.zip!{row['id']}.opus"
        yield row, Clip(row["id"], audio, row["seconds"], row["sha256"], labels, gain_db)


def clips() -> tuple[Clip, ...]:
    """Every clip of the corpus."""
    sets = (("sentences", 0.0), ("keywords", GAIN_DB))
    return tuple(clip for name, gain_db in sets for _, clip in _clips(name, gain_db))


def ks(split: str, fold: int = 0) -> Split:
    """Keyword spotting: ten words, ``_unknown_`` and ``_silence_``; nobody is heard in two splits."""
    clips = [clip for row, clip in _clips("keywords", GAIN_DB) if row["split"] == split]
    return Split(KEY, split, tuple(clips), KEYWORDS, fold)


def sid(split: str, fold: int = 0) -> Split:
    """Speaker identification: 40 speakers, every one of them in every split, with other sentences."""
    chosen = [clip for row, clip in _clips("sentences") if row.get("sid") == split]
    return Split(KEY, split, tuple(chosen), tuple(sorted({clip.label("speaker") for clip in chosen})), fold)


def pr(split: str, fold: int = 0) -> Split:
    """Phoneme recognition: sentences with exact phones; dev and test speakers were never heard."""
    clips = [clip for row, clip in _clips("sentences") if row["split"] == split]
    return Split(KEY, split, tuple(clips), text.PhoneVocab.of(text.ARPABET).symbols, fold)
