"""Making the speech of `mini`, and hours of unlabelled speech like it, from text, voices and rooms.

One clip is a function of its id and the seed of the set, nothing else: every clip draws from a generator of
its own and is spoken by a fresh espeak process, so the same recipe gives the same sound in any order and
with any number of workers. The command is ``python data_scripts/make_mini.py``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import multiprocessing
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from superb_lite.corpora._espeak import Voice, arpabet, speak
from superb_lite.corpora._orders import ACCENTS, SETS, Order, unlabelled_orders
from superb_lite.corpora._rooms import at_level, noise, place
from superb_lite.types import RATE

SEED = 2105  # the corpus that ships was made with this one
OPUS_LEVEL = 0.976  # about 13 kbit/s and the container; 150 minutes fit into 20 MB
OPUS_LEVELS = {"sentences": 0.97, "keywords": 0.97}  # the oldest sets are stored a little better (14 kbit/s)
CHUNK = 400  # unlabelled clips made between two reports of progress


def clip_rng(seed: int, clip_id: str) -> np.random.Generator:
    """The generator of one clip."""
    return np.random.default_rng([seed, zlib.crc32(clip_id.encode())])


def voice_of(speaker: str, rng: np.random.Generator, *, any_accent: bool = False) -> Voice:
    """How `speaker` talks in one clip: a home accent, pitch and rate, and a little variation around them."""
    home = np.random.default_rng(zlib.crc32(speaker.encode()))
    accent, pitch, rate = str(home.choice(ACCENTS)), home.integers(40, 61), home.integers(145, 181)
    if any_accent:
        accent, pitch, rate = str(rng.choice(ACCENTS)), rng.integers(30, 71), rng.integers(135, 196)
    return Voice(
        accent, speaker, pitch=int(pitch + rng.integers(-4, 5)), pitch_range=int(rng.integers(40, 66)),
        rate=int(rate * rng.uniform(0.94, 1.06)),
    )  # fmt: skip


def make_clip(order: Order, seed: int, *, any_accent: bool = False) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Speak an order and put it into a room.

    Returns the sound in the room and the dry voice alone, both (samples,) at 16 kHz and aligned, and the labels.
    """
    rng = clip_rng(seed, order.id)
    labels = dict(order.labels)
    if not order.text:  # nobody speaks: the sound of an empty room
        quiet = noise(rng, int(order.seconds * RATE))
        return at_level(quiet, rng.uniform(*order.scene.noise_db)), np.zeros_like(quiet), labels
    voice = voice_of(order.speaker, rng, any_accent=any_accent)
    dry, rate, phones = speak(order.text, voice if order.voice is None else order.voice)
    dry = soxr.resample(dry, rate, RATE)
    before, after = rng.uniform(*order.around, size=2)
    if order.seconds is not None:
        room_left = max(0.0, order.seconds - len(dry) / RATE)
        before = rng.uniform(0.15, 0.85) * room_left
        after = room_left - before
    dry = np.concatenate([np.zeros(int(before * RATE), np.float32), dry, np.zeros(int(after * RATE) + 1, np.float32)])
    if order.seconds is not None:
        dry = dry[: int(order.seconds * RATE)]
    if not any_accent:  # unlabelled speech has no labels
        spoken = [(name, start + before, min(end + before, len(dry) / RATE)) for name, start, end in arpabet(phones)]
        labels |= {"text": order.text, "phones": [[name, round(a, 3), round(b, 3)] for name, a, b in spoken]}
    return place(rng, dry, order.scene), dry, labels


# ------------------------------------------------------------------------------------------ writing it down


def encode(wav: np.ndarray, level: float = OPUS_LEVEL) -> bytes:
    """(samples,) -> the bytes of an Opus file; `level` 0 is the best sound, 1 the smallest file."""
    file = io.BytesIO()
    soundfile.write(file, wav, RATE, format="OGG", subtype="OPUS", compression_level=level)
    return file.getvalue()


def _job(task: tuple[Order, int, float]) -> tuple[Order, bytes, int, dict[str, Any]]:
    order, seed, level = task
    wav, _, labels = make_clip(order, seed)
    return order, encode(wav, level), len(wav), labels


def _pair_job(task: tuple[Order, int]) -> tuple[np.ndarray, np.ndarray]:
    order, seed = task
    wav, dry, _ = make_clip(order, seed, any_accent=True)
    return tuple(np.round(np.clip(x, -1, 1) * 32767).astype(np.int16) for x in (wav, dry))


def _in_parallel(job: Callable, tasks: Iterable, workers: int) -> Iterator:
    if workers <= 1:
        yield from map(job, tasks)
        return
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield from pool.imap(job, tasks, chunksize=8)


def write_set(
    name: str, orders: Iterable[Order], folder: Path, *, seed: int = SEED, workers: int = 2
) -> tuple[int, float]:
    """Write ``name.zip`` (Opus files) and ``name.jsonl.gz`` (one clip a line, gzipped). Returns (clips, seconds).

    The sound is the same every time, the bytes are not quite: an Opus file carries a random serial number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    level = OPUS_LEVELS.get(name, OPUS_LEVEL)
    rows = []
    with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_STORED) as archive:
        for order, data, samples, labels in _in_parallel(_job, ((o, seed, level) for o in orders), workers):
            member = zipfile.ZipInfo(f"{order.id}.opus", date_time=(2026, 1, 1, 0, 0, 0))
            archive.writestr(member, data)
            rows.append(
                {"id": order.id, "split": order.split, "speaker": order.speaker, "seconds": round(samples / RATE, 4)}
                | {"sha256": hashlib.sha256(data).hexdigest()} | labels
            )  # fmt: skip
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
    return len(rows), sum(row["seconds"] for row in rows)


def write_mini(
    folder: Path, *, sets: Iterable[str] = tuple(SETS), seed: int = SEED, workers: int = 2
) -> dict[str, tuple[int, float]]:
    """Make those sets of `mini` (default: all) in `folder`. Returns {set: (clips, seconds)}."""
    return {name: write_set(name, SETS[name](seed), folder, seed=seed, workers=workers) for name in sets}


def write_unlabelled(folder: Path, hours: float, *, seed: int = SEED, workers: int = 2, progress=None) -> Path:
    """Make at least `hours` of unlabelled speech in two files that can be memory-mapped.

    Writes ``room.i16`` (16-bit samples, clip after clip, as a microphone hears it), ``dry.i16`` (the same voices
    without room and noise) and, last, ``lengths.npy`` (samples per clip); a folder that has the third is
    complete, and is left as it is.
    """
    if (folder / "lengths.npy").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    wanted, lengths = int(hours * 3600 * RATE), []
    orders = unlabelled_orders(seed)
    with open(folder / "room.i16", "wb") as room, open(folder / "dry.i16", "wb") as dry:
        while sum(lengths) < wanted:
            batch = [(order, seed) for order in itertools.islice(orders, CHUNK)]
            for heard, spoken in _in_parallel(_pair_job, batch, workers):
                room.write(heard.tobytes())
                dry.write(spoken.tobytes())
                lengths.append(len(heard))
            if progress is not None:
                progress("making unlabelled speech (minutes)", sum(lengths) // RATE // 60, wanted // RATE // 60)
    np.save(folder / "lengths.tmp.npy", np.array(lengths))
    (folder / "lengths.tmp.npy").rename(folder / "lengths.npy")
    return folder
