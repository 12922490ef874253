"""RTTM, the text file in which the field exchanges who spoke when: one line a turn.

    SPEAKER mix-17 1    0.40    1.25 <NA> <NA> mix-17_0 <NA>

Type, recording, channel, start and duration in seconds, two empty fields, the speaker, an empty field.
Source: superb/protocol.md section 3.7. Taught in notebook 09 (speaker diarization).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from superb_lite.files import write_atomically
from superb_lite.metrics import Turns
from superb_lite.types import ResultsBroken

# the other kinds of line that the format knows; they say nothing about who speaks when
OTHERS = {
    "SPKR-INFO", "SEGMENT", "NOSCORE", "NO_RT_METADATA", "LEXEME", "NON-LEX", "NON-SPEECH", "FILLER", "EDIT", "IP",
    "SU", "CB", "A/P",
}  # fmt: skip


def write_rttm(path: str | Path, recordings: Mapping[str, Turns]) -> None:
    """Write {recording: turns} as RTTM, seconds with two decimals.

    A turn that rounds to 0.00 s is left out, because scoring tools refuse it.

    Raises:
        ValueError: the name of a recording or speaker is empty or has white space in it, which separates the fields.
    """
    lines = []
    for recording, turns in recordings.items():
        for speaker, start, end in turns:
            for name in (recording, speaker):
                if len(str(name).split()) != 1 or str(name) != str(name).strip():
                    raise ValueError(f"{name!r} cannot be a name in an RTTM file; expected no spaces, such as 'mix_17'")
            if round(end - start, 2) > 0:
                times = f"{start:7.2f} {end - start:7.2f}"
                lines.append(f"SPEAKER {recording} 1 {times} <NA> <NA> {speaker} <NA>\n")
    write_atomically(Path(path), "".join(lines).encode())


def read_rttm(path: str | Path) -> dict[str, list[tuple[str, float, float]]]:
    """{recording: [(speaker, start in seconds, end in seconds), ...]} of an RTTM file, in the order of its lines.

    Empty lines, comments (``;;``) and lines of other types are skipped. A recording in which nobody speaks has no line.

    Raises:
        ResultsBroken: a line that is no RTTM; names file and line.
    """
    found: dict[str, list[tuple[str, float, float]]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ResultsBroken(f"{path} is no text file ({error.reason} at byte {error.start}); expected RTTM") from None
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields or fields[0].startswith(";") or fields[0] in OTHERS:
            continue
        try:
            recording, turn = _turn(fields)
        except ValueError as error:
            raise ResultsBroken(f"{path}, line {number}: {error}; the line is {line.strip()[:120]!r}") from None
        found.setdefault(recording, []).append(turn)
    return found


def _turn(fields: list[str]) -> tuple[str, tuple[str, float, float]]:
    """The recording and the turn of a line. Raises ValueError, saying what is wrong."""
    if fields[0] != "SPEAKER":
        raise ValueError(f"it starts with {fields[0]!r}, expected SPEAKER")
    if len(fields) not in (9, 10):
        raise ValueError(f"it has {len(fields)} fields, expected 9 or 10")
    start, seconds = (_number(text) for text in fields[3:5])
    if start < 0 or seconds <= 0:
        raise ValueError(f"it starts at {start} s and lasts {seconds} s, expected a start from 0 and a length above 0")
    return fields[1], (fields[7], start, round(start + seconds, 6))  # a sum of two decimals has no eighth


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number of seconds") from None
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is no number of seconds")
    return number
