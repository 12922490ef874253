"""espeak-ng through ctypes: text in, sound and exact phone times out.

Only the makers of new corpora need this; the speech of `mini` ships with the package. The library comes
from the `espeakng-loader` wheel (``pip install superb-lite[make]``).

espeak keeps state between utterances (its second rendering of a sentence differs from its first), so
every utterance is spoken in a process of its own: `speak` forks, speaks once, and the child dies.
"""

from __future__ import annotations

import ctypes
import json
import os
from dataclasses import dataclass

import numpy as np

from superb_lite.types import SuperbLiteError

_SYNCHRONOUS, _PHONEME_EVENTS = 2, 1  # AUDIO_OUTPUT_SYNCHRONOUS; espeakINITIALIZE_PHONEME_EVENTS
_EVENT_END, _EVENT_PHONEME = 0, 7  # espeakEVENT_LIST_TERMINATED; espeakEVENT_PHONEME
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER: words a minute, 0..100, 0..100

# espeak's phone names in our eight accents, stress marks removed -> ARPAbet (39 phones, no stress). A name that
# is missing here is an error, not a guess, so that a new accent cannot slip an unlabelled sound into a corpus.
_ARPABET = {
    espeak: arpabet
    for arpabet, names in {
        "AA": "A: A@ 0", "AE": "a aa", "AH": "V @ @2 @5 @- a# I#", "AO": "O: O@ O2 o@ O", "AW": "aU",
        "AY": "aI aI@ aI3 aI2",
        "EH": "E e@", "ER": "3 3: VR IR", "EY": "eI", "IH": "I I2", "IY": "i i: i@3 i@", "OW": "oU", "OY": "OI",
        "UH": "U U@", "UW": "u u:", "B": "b", "CH": "tS", "D": "d", "DH": "D", "F": "f", "G": "g", "HH": "h",
        "JH": "dZ", "K": "k x", "L": "l @L", "M": "m", "N": "n n-", "NG": "N", "P": "p", "R": "r r-", "S": "s",
        "SH": "S", "T": "t t# t2 t[ ?", "TH": "T", "V": "v", "W": "w w#", "Y": "j", "Z": "z", "ZH": "Z",
    }.items()
    for espeak in names.split()
}  # fmt: skip
_NOT_A_PHONE = {"_", "_:", "_^_", ";", "", "_!", "_|"}  # pauses and marks


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("unique", ctypes.c_uint), ("text_position", ctypes.c_int), ("length", ctypes.c_int),
        ("audio_ms", ctypes.c_int), ("sample", ctypes.c_int), ("user", ctypes.c_void_p), ("id", ctypes.c_char * 8),
    ]  # fmt: skip


@dataclass(frozen=True)
class Voice:
    """Who speaks and how: `accent` and `variant` name espeak's voice; pitches are 0..100, rate in words a minute."""

    accent: str
    variant: str
    pitch: int = 50
    pitch_range: int = 50
    rate: int = 160


def _speak_here(text: str, voice: Voice) -> tuple[np.ndarray, list[tuple[str, float]], int]:
    """Speak in this process: (samples float32, [(espeak phone, start second)], sample rate)."""
    import espeakng_loader

    lib = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = lib.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _PHONEME_EVENTS)
    if lib.espeak_SetVoiceByName(f"{voice.accent}+{voice.variant}".encode()) != 0:
        raise SuperbLiteError(f"espeak has no voice {voice.accent}+{voice.variant}")
    for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range)):
        lib.espeak_SetParameter(parameter, value, 0)
    chunks: list[bytes] = []
    phones: list[tuple[str, float]] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
    def collect(wav, count, events):
        if wav and count > 0:
            chunks.append(ctypes.string_at(wav, 2 * count))
        i = 0
        while events[i].type != _EVENT_END:
            if events[i].type == _EVENT_PHONEME:
                phones.append((events[i].id.decode("utf-8", "replace"), events[i].audio_ms / 1000))
            i += 1
        return 0

    lib.espeak_SetSynthCallback(collect)
    data = text.encode() + b"\0"
    lib.espeak_Synth(data, len(data), 0, 0, 0, 1, None, None)  # 1: espeakCHARS_UTF8
    lib.espeak_Synchronize()
    return np.frombuffer(b"".join(chunks), np.int16).astype(np.float32) / 32768, phones, rate


def _read_all(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as pipe:
        return pipe.read()


def speak(text: str, voice: Voice) -> tuple[np.ndarray, int, list[tuple[str, float, float]]]:
    """Speak `text` in a fresh process.

    Returns (samples,) float32 in -1..1, the sample rate (22050) and ``(espeak phone, start_sec, end_sec)``
    for every sound, pauses left out. Raises SuperbLiteError when espeak is missing, the voice does not
    exist or nothing was said.
    """
    try:
        import espeakng_loader  # noqa: F401  (found here, so that the message comes from the parent)
    except ImportError:
        raise SuperbLiteError(
            "making new speech needs espeak-ng, which is not installed; run: pip install 'superb-lite[make]'"
        ) from None
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # the child speaks, answers through the pipe and is gone
        os.close(reader)
        with os.fdopen(writer, "wb") as pipe:
            try:
                samples, starts, rate = _speak_here(text, voice)
                head = json.dumps({"starts": starts, "rate": rate}).encode()
                pipe.write(head + b"\n" + samples.tobytes())
            except BaseException as error:
                pipe.write(json.dumps({"error": str(error)}).encode() + b"\n")
        os._exit(0)
    os.close(writer)
    answer = _read_all(reader)
    os.waitpid(child, 0)
    head, _, body = answer.partition(b"\n")
    told = json.loads(head) if head else {"error": "the espeak process died"}
    if "error" in told or not body:
        raise SuperbLiteError(f"espeak could not say {text!r} as {voice}: {told.get('error', 'silence came back')}")
    samples = np.frombuffer(body, np.float32)
    starts = told["starts"] + [["_", len(samples) / told["rate"]]]
    phones = [
        (name.lstrip("',%="), start, end)
        for (name, start), (_, end) in zip(starts[:-1], starts[1:], strict=True)
        if name.lstrip("',%=") not in _NOT_A_PHONE and end > start  # some letters are reported, but not sounded
    ]
    return samples, told["rate"], phones


def arpabet(phones: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Rename espeak's phones to ARPAbet. Raises SuperbLiteError naming a phone we have no name for."""
    unknown = sorted({name for name, _, _ in phones} - set(_ARPABET))
    if unknown:
        raise SuperbLiteError(f"espeak used phones without an ARPAbet name: {unknown}; add them to {__file__}")
    return [(_ARPABET[name], start, end) for name, start, end in phones]
