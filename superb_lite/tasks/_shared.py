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
from superb_lite.heads import BLSTM, SpecAugment
from superb_lite.losses import ctc
from superb_lite.metrics import accuracy
from superb_lite.types import RATE, Clip, LabelMissing, Recipe, Split

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


# ---------------------------------------------------------------------------------- letters: ASR and SF

AUGMENT_SIZES = ("warp", "freq_masks", "freq_width", "time_masks", "time_width")
TOY_BLSTM = {"projector": 32, "hidden": 32, "warp": 2, "freq_width": 3, "time_width": 3}


def blstm(dim: int, split: Split, recipe: Recipe) -> BLSTM:
    """SUPERB's head for letters behind SpecAugment. What `recipe.sizes` does not name is as large as in SUPERB.

    Raises TypeError for a size that neither of the two has.
    """
    augment = {name: size for name, size in recipe.sizes.items() if name in AUGMENT_SIZES}
    sizes = {name: size for name, size in recipe.sizes.items() if name not in AUGMENT_SIZES}
    return BLSTM(dim, len(split.classes), augment=SpecAugment(**augment), **sizes)


def ctc_loss(head: torch.nn.Module, out: Tensor, lengths: Tensor, targets: tuple[Tensor, ...]) -> Tensor:
    """CTC with class 0 as the blank. out: (batch, frames, vocab) logits; targets: symbols and their numbers."""
    symbols, counts = targets
    return ctc(out, lengths, symbols, counts)


def symbol_targets(
    clips: Sequence[Clip], label: str, rows: Sequence[Sequence[str]], split: Split
) -> tuple[Tensor, ...]:
    """((clips, symbols) int64 padded with 0, (clips,) int64 number of symbols) of one list of symbols per clip.

    Raises:
        LabelMissing: a symbol is not among the split's classes, or a list holds the closing symbol only.
    """
    places = {symbol: number for number, symbol in enumerate(split.classes)}
    targets = []
    for clip, tokens in zip(clips, rows, strict=True):
        strange = [token for token in tokens if token not in places]
        if strange or len(tokens) < 2:
            raise outside(clip, label, strange[0] if strange else "", split)
        targets.append(torch.tensor([places[token] for token in tokens]))
    padded = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True)
    return padded, torch.tensor([len(row) for row in targets])


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
