"""From a file to the one kind of sound the library knows: mono float32 ``(samples,)`` at 16 kHz.

Everything a broken file can do to a night of training is caught here, with the file's name in the message:
nothing downstream checks audio again. Files are read with soundfile, which knows WAV, FLAC, Ogg Vorbis, Opus
and MP3. A file may lie inside a zip archive, written ``archive.zip!member``; the archive is opened once.

Taught in notebook 00 (hear the decathlon) and notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from superb_lite.types import RATE, AudioError, Clip, Part

MIN_SECONDS = 0.05  # less than two frames of any upstream
MAX_PEAK = 1.5  # clipped or resampled audio may pass 1.0 a little; integers stored as floats reach 32768
MANIFEST_TOLERANCE = 0.1  # seconds between a manifest's duration and the file's


def load(clip: Clip) -> Tensor:
    """Read a clip, turned up or down by its ``gain_db``: what every upstream hears.

    Returns (samples,) float32 at 16 kHz. A clip with parts is mixed here, the same way every time: each part at its
    start and gain, then white noise drawn from a generator that the clip's digest seeds, then the clip's own gain.
    Raises AudioError if a file is unfit (see `read`) or its duration is not the one in the manifest; for a mixture, it
    names the mixture and the part, also when the part's file is not the one that the mixture was made from.
    Taught in notebook 02.
    """
    if clip.parts:
        return gain(_mixed(clip), clip.gain_db)
    wav = read(clip.audio, gain_db=clip.gain_db)
    seconds = len(wav) / RATE
    if abs(seconds - clip.seconds) > MANIFEST_TOLERANCE:
        raise AudioError(
            f"{clip.audio}: holds {seconds:.2f} s, but clip {clip.id!r} should have {clip.seconds:.2f} s; "
            "was the file replaced or cut? Fetch the corpus again"
        )
    return wav


def mixture(
    name: str,
    parts: Iterable[Part],
    seconds: float,
    labels: Mapping[str, Any],
    gain_db: float = 0.0,
    noise_db: float | None = None,
) -> Clip:
    """Describe a clip that is the sum of recordings: a dialogue, a long document. Nothing is read before `load`.

    name: the clip's id; parts: in any order, each with the digest of its file; seconds: of the whole;
    gain_db: applied to the sum, noise included; noise_db: white noise in dBFS (root mean square), None: none.
    The digest is a SHA-256 of the recipe with the parts' digests, so that moving the files changes nothing.
    Raises ValueError, naming the mixture, if there are no parts, or one does not start inside the mixture.
    Taught in notebook 09 (speaker diarization).

    >>> mixture("two", [Part("b.wav", "22", 0.5), Part("a.wav", "11", 0.0)], 3.0, {}).parts[0].audio
    'a.wav'
    """
    ordered = tuple(sorted(parts, key=lambda part: (part.start, part.digest, part.gain_db)))
    if not ordered:
        raise ValueError(f"mixture {name!r} has no parts; expected at least one recording")
    for part in ordered:
        if not 0 <= part.start < seconds:
            raise ValueError(
                f"mixture {name!r}: part {part.audio} starts at {part.start:g} s, expected 0 to {seconds:g} s; "
                "times are in seconds"
            )
    recipe = ([(part.digest, float(part.start), float(part.gain_db)) for part in ordered], float(seconds), noise_db)
    digest = hashlib.sha256(repr(recipe).encode()).hexdigest()
    return Clip(name, f"mixture {name}", seconds, digest, dict(labels), gain_db, ordered, noise_db)


def read(path: str | Path, *, gain_db: float = 0.0) -> Tensor:
    """Read a sound file of any rate and channel count as mono at 16 kHz.

    path: a file, or ``archive.zip!member``; gain_db: decibels added after reading (-3 halves the power).
    Returns (samples,) float32; channels are averaged; resampled with soxr's high quality.
    Raises AudioError, naming the file, if it is missing, unreadable, truncated, empty, shorter than 0.05 s, silent
    (digital zero), not finite or peaks above 1.5. Lossy MP3 streams do not tell their length, so that a cut one passes.
    Taught in notebook 00.
    """
    name = str(path)
    channels, rate = _decode(name)
    _check(name, channels, rate)
    mono = channels.mean(axis=1, dtype=np.float32)
    if not mono.any():
        how = "all samples are zero" if channels.shape[1] == 1 else "its channels are zero or cancel each other"
        raise AudioError(f"{name}: silent ({how}); expected speech. Remove it or record it again")
    if rate != RATE:
        mono = soxr.resample(mono, rate, RATE, quality="HQ")
    wav = torch.from_numpy(np.ascontiguousarray(mono, dtype=np.float32))
    return wav if gain_db == 0 else gain(wav, gain_db)


def gain(wav: Tensor, db: float) -> Tensor:
    """Turn a waveform up (`db` above 0) or down; 6 dB doubles the amplitude, nearly.

    Source: SUPERB's protocol turns KS, QbE and ASV audio down by 3 dB, a factor of 0.708. Taught in notebook 04.
    """
    return wav * 10 ** (db / 20)


def mix(a: Tensor, b: Tensor, snr_db: float) -> Tensor:
    """Add `b` to `a`, scaled so that the power of `a` is `snr_db` decibels above that of `b`.

    a, b: (samples,) of any two lengths; both start at zero and the shorter one is followed by silence. Power is the
    mean square over each one's own length. Returns (samples of the longer,); its peak may pass 1.
    Raises AudioError if either is silent. Taught in notebook 00.
    """
    power_a, power_b = a.square().mean(), b.square().mean()
    if not (power_a > 0 and power_b > 0):
        raise AudioError("cannot mix at a signal-to-noise ratio: one of the two waveforms is empty or silent")
    scale = torch.sqrt(power_a / power_b) * 10 ** (-snr_db / 20)
    mixed = a.new_zeros(max(len(a), len(b)))
    mixed[: len(a)] += a
    mixed[: len(b)] += b * scale
    return mixed


def digest(path: str | Path) -> str:
    """SHA-256 (64 hex digits) of the stored bytes of a file or an ``archive.zip!member``.

    Raises AudioError if it cannot be read. Taught in notebook 02 (why features are computed only once).
    """
    return hashlib.sha256(_bytes(str(path))).hexdigest()


# ------------------------------------------------------------------------------------------ inside


def _mixed(clip: Clip) -> Tensor:
    """The sum of a mixture's parts and its noise, before its gain. Raises AudioError naming mixture and part."""
    total = torch.zeros(round(clip.seconds * RATE))
    for part in clip.parts:
        wav = _part(clip, part)
        first = round(part.start * RATE)
        beyond = first + len(wav) - len(total)
        if beyond > MANIFEST_TOLERANCE * RATE:
            raise AudioError(
                f"mixture {clip.id!r}: part {part.audio} ends at {(first + len(wav)) / RATE:.2f} s, but the mixture "
                f"should have {clip.seconds:.2f} s; was the file replaced? Fetch the corpus again"
            )
        total[first : first + len(wav)] += wav[: len(total) - first]
    if clip.noise_db is not None:
        total += gain(_white_noise(len(total), clip.digest), clip.noise_db)
    peak = float(total.abs().max())
    if peak > MAX_PEAK:
        raise AudioError(f"mixture {clip.id!r}: peaks at {peak:.2f}, expected at most {MAX_PEAK}; turn its parts down")
    return total


def _part(clip: Clip, part: Part) -> Tensor:
    """(samples,) of one part at its gain. Its times are labels of the mixture, so the file must be the one meant."""
    try:
        wav = read(part.audio, gain_db=part.gain_db)
        found = digest(part.audio)
    except AudioError as error:
        raise AudioError(f"mixture {clip.id!r}: part {error}") from error
    if found != part.digest:
        raise AudioError(
            f"mixture {clip.id!r}: part {part.audio} is not the file it was made from (its SHA-256 begins with "
            f"{found[:12]}, expected {part.digest[:12] or 'none'}); was it replaced? Fetch the corpus again"
        )
    return wav


def _white_noise(samples: int, digest: str) -> Tensor:
    """(samples,) of unit power, the same for the same digest (numpy's generators give the same on every machine)."""
    generator = np.random.default_rng(int(digest[:16], 16))
    return torch.from_numpy(generator.standard_normal(samples, dtype=np.float32))


def _bytes(name: str) -> bytes:
    """The stored bytes of a file or an ``archive.zip!member``."""
    archive, bang, member = name.partition(".zip!")
    try:
        if not bang:
            return Path(name).read_bytes()
        archive += ".zip"
        stat = os.stat(archive)
        return _open_zip(archive, os.getpid(), stat.st_mtime_ns, stat.st_size).read(member)
    except FileNotFoundError as error:
        raise AudioError(f"{name}: there is no such file; was the corpus moved or deleted?") from error
    except KeyError as error:
        raise AudioError(f"{name}: the archive has no member {member!r}; is it the right version?") from error
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise AudioError(f"{name}: cannot be read ({error}); fetch it again") from error


@functools.lru_cache(maxsize=8)
def _open_zip(path: str, pid: int, mtime_ns: int, size: int) -> zipfile.ZipFile:
    """An open archive. Threads may share it; forked processes may not (one file position), hence `pid`."""
    return zipfile.ZipFile(path)


def _decode(name: str) -> tuple[np.ndarray, int]:
    """The file as (samples, channels) float32 at its own rate, and that rate in Hz."""
    data = _bytes(name)
    if not data:
        raise AudioError(f"{name}: the file is empty (0 bytes); fetch it again")
    cut = _missing_bytes(data)
    if cut:
        raise AudioError(f"{name}: truncated ({cut}); fetch it again")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            promised, rate = sound.frames, sound.samplerate
            channels = sound.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).rpartition(": ")[2] or type(error).__name__
        raise AudioError(f"{name}: cannot be decoded ({reason}); expected WAV, FLAC, Ogg, Opus or MP3") from error
    if len(channels) < promised:
        raise AudioError(f"{name}: truncated ({len(channels)} of {promised} samples); fetch it again")
    return channels, rate


def _missing_bytes(data: bytes) -> str:
    """What a cut WAV or Ogg file lacks, in words; empty if nothing. libsndfile shortens such files silently."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        at = 12
        while at + 8 <= len(data):
            kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
            if kind == b"data":
                lacking = at + 8 + size - len(data)
                streamed = size >= 0x7FFFF000  # a recorder writing to a pipe does not know the size
                return f"{lacking} of {size} bytes of sound are missing" if lacking > 0 and not streamed else ""
            at += 8 + size + size % 2
        return "the header ends before the sound"
    if data[:4] == b"OggS":
        page = data.rfind(b"OggS")
        head = data[page : page + 27]
        if len(head) < 27:
            return "the last page is cut"
        lacing = data[page + 27 : page + 27 + head[26]]
        if len(lacing) < head[26] or page + 27 + head[26] + sum(lacing) > len(data):
            return "the last page is cut"
        return "" if head[5] & 4 else "the last page is missing"
    return ""


def _check(name: str, channels: np.ndarray, rate: int) -> None:
    """Raise AudioError unless (samples, channels) at `rate` Hz is something to train on."""
    seconds = len(channels) / rate
    if seconds == 0:
        raise AudioError(f"{name}: the file is empty (no samples); fetch it again")
    if not np.isfinite(channels).all():
        bad = int((~np.isfinite(channels)).any(axis=1).sum())
        raise AudioError(f"{name}: {bad} of {len(channels)} samples are NaN or infinite; expected finite numbers")
    peak = float(np.abs(channels).max())
    if peak > MAX_PEAK:
        raise AudioError(
            f"{name}: peaks at {peak:g}, expected at most 1; if integers were stored as floats, divide them by 32768"
        )
    if seconds < MIN_SECONDS:
        raise AudioError(f"{name}: lasts {seconds:.3f} s, expected at least {MIN_SECONDS} s; remove it")
