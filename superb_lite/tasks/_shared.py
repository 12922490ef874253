"""What several tasks do alike: labels to class numbers, the best class, and generated audio for contract tests.

Tasks never inherit from each other; they call the same functions.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import soundfile
import torch
from torch import Tensor
from torch.nn import functional

from superb_lite.files import cache_root, write_atomically
from superb_lite.metrics import accuracy
from superb_lite.types import RATE, Clip, LabelMissing, Split

TOY_CLIPS = {"train": 12, "dev": 5, "test": 8}  # of each class


# ---------------------------------------------------------------------------------------------- classes


def class_numbers(clips: Sequence[Clip], label: str, split: Split) -> Tensor:
    """(clips,) int64: the place of each clip's label in the split's classes.

    Raises:
        LabelMissing: a clip has no such label, or one that is not among the classes; names clip and file.
    """
    places = {name: number for number, name in enumerate(split.classes)}
    numbers = []
    for clip in clips:
        name = clip.label(label)
        if name not in places:
            raise outside(clip, label, name, split)
        numbers.append(places[name])
    return torch.tensor(numbers, dtype=torch.int64)


def outside(clip: Clip, label: str, value: Any, split: Split) -> LabelMissing:
    """The error for a label that is not among the classes."""
    some = ", ".join(split.classes[:8]) + (", ..." if len(split.classes) > 8 else "")
    return LabelMissing(
        f"clip {clip.id!r} ({clip.audio}) has {label} {value!r}, which is not one of the {len(split.classes)} classes "
        f"of the {split.name} split ({some}); correct the manifest or the classes"
    )


def cross_entropy(head: torch.nn.Module, out: Tensor, lengths: Tensor, targets: tuple[Tensor, ...]) -> Tensor:
    """Mean cross-entropy. out: (batch, classes) logits; targets: one tensor (batch,) int64."""
    (numbers,) = targets
    return functional.cross_entropy(out, numbers)


def best_class(out: Tensor, lengths: Tensor, stride: int, split: Split) -> list[str]:
    """The class with the largest logit. out: (batch, classes)."""
    return [split.classes[number] for number in out.argmax(dim=-1).tolist()]


def class_accuracy(predictions: Mapping[str, str], label: str, split: Split) -> dict[str, float]:
    """{"acc": percent of clips whose class is right}. Every clip of the split must have a prediction."""
    refs = [clip.label(label) for clip in split.clips]
    return {"acc": accuracy(refs, [predictions[clip.id] for clip in split.clips])}


# ------------------------------------------------------------------------------------------------- toys


def toy_seed(*words: object) -> torch.Generator:
    """A generator that depends on the words only."""
    digest = hashlib.sha256(repr(words).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))


def tone(partials: Sequence[float], seconds: float, generator: torch.Generator, noise: float = 0.02) -> Tensor:
    """(samples,) a sum of sines of these frequencies in Hz, random phases and level, in a little noise."""
    count = round(seconds * RATE)
    time = torch.arange(count) / RATE
    phases = torch.rand(len(partials), generator=generator) * 2 * math.pi
    level = 0.15 + 0.2 * float(torch.rand((), generator=generator))
    waves = sum(torch.sin(2 * math.pi * hz * time + phase) for hz, phase in zip(partials, phases, strict=True))
    return level * waves / len(partials) + noise * torch.randn(count, generator=generator)


def toy_clip(name: str, wave: Tensor, labels: Mapping[str, Any]) -> Clip:
    """Keep generated audio as a WAV file in the cache (named by its content) and describe it."""
    memory = io.BytesIO()
    soundfile.write(memory, wave.clamp(-1.0, 1.0).numpy(), RATE, format="WAV", subtype="PCM_16")
    data = memory.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    path = cache_root() / "toys" / f"{digest[:24]}.wav"
    if not path.exists():
        write_atomically(path, data)
    return Clip(id=name, audio=str(path), seconds=len(wave) / RATE, digest=digest, labels=dict(labels))


def toy_classes(
    task: str, label: str, sounds: Mapping[str, Sequence[float]], split: str, fold: int, seconds: float
) -> Split:
    """A split in which every class is a sound (partials in Hz), TOY_CLIPS of each."""
    clips = []
    for number in range(TOY_CLIPS[split]):
        for name, partials in sounds.items():
            generator = toy_seed(task, name, split, fold, number)
            length = seconds * (0.7 + 0.6 * float(torch.rand((), generator=generator)))
            wave = tone(partials, length, generator)
            clips.append(toy_clip(f"{task}-{split}-{fold}-{name}-{number}", wave, {label: name}))
    return Split("toy", split, tuple(clips), tuple(sounds), fold)
