"""Speaker diarization: two people talk, also at once. Who speaks when?

Source: superb/protocol.md section 3.7 (Libri2Mix, a one-directional LSTM, permutation-invariant cross-entropy,
diarization error rate without collar, overlapped speech scored).
Differs:
- Labels have the upstream's own rate. So has the official code today; the published table was made when every
  upstream was brought to one frame per 160 samples, 20 ms frames by saying each of them twice.
- A recording is one piece. SUPERB cuts it into chunks of 2,000 label frames (which leaves all but a few of its
  recordings whole), and drops a turn that begins before a chunk and ends after it; `frame_labels` never does.
- The head is chosen by the error rate on dev, SUPERB's by the share of right frame labels there.
- Threshold and median filter are chosen on dev and give ``der``. SUPERB reports the best of its ten settings on
  the test set itself; that number is ``der_published``, and too good by construction.
- The reference keeps the exact times of the corpus instead of two decimals.

Taught in notebook 09 (speaker diarization).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from superb_lite.corpora import get_corpus
from superb_lite.heads import LSTM
from superb_lite.losses import pit_bce
from superb_lite.metrics import DiarizationErrors, Turns, active, count_errors, diarization_errors
from superb_lite.tasks._rttm import read_rttm, write_rttm
from superb_lite.tasks._shared import tone, toy_clip, toy_seed
from superb_lite.types import RATE, Clip, ContractBroken, Corpus, LabelMissing, Metric, Recipe, Split, Task

__all__ = [
    "TASK", "Posteriors", "SETTINGS", "always_on", "best_setting", "errors_of", "frame_labels", "match_length",
    "perfect_detection", "read_rttm", "sweep", "turns_of", "write_rttm",
]  # fmt: skip

LABEL = "turns"
CLASSES = ("first", "second")
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
MEDIANS = (1, 11)  # frames; 1 is no filter
SETTINGS = tuple((threshold, median) for threshold in THRESHOLDS for median in MEDIANS)
LATE = 0.1  # seconds that a turn may end behind its clip: codecs and phone times round
TOLERANCE = 5  # frames that an upstream may have more or less than the clip has strides

# 20 s are the official chunk of 2,000 frames of 160 samples. A clip that is longer would need its turns cropped like
# its frames; as long as nothing does that, `encode` refuses it.
SUPERB = Recipe(
    "superb", steps=30_000, batch=8, accumulate=4, lr=1e-4, eval_every=500, crop_sec=20.0, sizes={"hidden": 512}
)
# A fiftieth of the steps, a quarter of the clips in each, a quarter of the units; lr chosen on dev with tiny_hubert.
MINI = Recipe("mini", steps=600, batch=8, lr=5e-3, eval_every=100, sizes={"hidden": 128})
DIGITS = Recipe("digits", steps=600, batch=8, lr=5e-3, eval_every=100, sizes={"hidden": 128})

TOY_VOICES = {"bass": (240.0, 480.0), "alto": (1500.0, 2300.0)}
TOY_CLIPS = {"train": 48, "dev": 12, "test": 16}


class Posteriors(NamedTuple):
    """The head's opinion about one recording.

    values: (frames, speakers) float32, how likely each one speaks; stride: samples per frame.
    """

    values: np.ndarray
    stride: int


# ----------------------------------------------------------------------------------------- from labels


def encode(clips: Sequence[Clip], lengths: Tensor, stride: int, split: Split) -> tuple[Tensor, ...]:
    """((clips, frames, speakers) float32,): 1 where a speaker speaks. The columns are the sorted names of the clip.

    Raises:
        LabelMissing: a clip has no turns, a turn that is no turn, or more speakers than there are classes.
        ContractBroken: a clip has far fewer or more frames than its seconds ask for: its labels would not fit.
    """
    targets = torch.zeros(len(clips), int(lengths.max()), len(split.classes))
    for row, (clip, frames) in enumerate(zip(clips, lengths.tolist(), strict=True)):
        turns, speakers = spoken(clip, split), names(clip)
        _check_frames(clip, frames, stride)
        targets[row, :frames, : len(speakers)] = torch.from_numpy(frame_labels(turns, speakers, frames, stride))
    return (targets,)


def spoken(clip: Clip, split: Split) -> Turns:
    """The turns of a clip. Raises LabelMissing."""
    turns = clip.label(LABEL)
    where = f"clip {clip.id!r} ({clip.audio})"
    for turn in turns:
        if len(turn) != 3 or not 0 <= turn[1] <= turn[2] <= clip.seconds + LATE:
            raise LabelMissing(
                f"{where} has the turn {turn!r}; expected (speaker, start, end), seconds within {clip.seconds:g}"
            )
    speakers = names(clip)
    if not 1 <= len(speakers) <= len(split.classes):
        raise LabelMissing(f"{where} has {len(speakers)} speakers {speakers}, expected 1 to {len(split.classes)}")
    return turns


def names(clip: Clip) -> list[str]:
    """Who speaks in a clip, sorted."""
    return sorted({turn[0] for turn in clip.label(LABEL)})


def frame_labels(turns: Turns, speakers: Sequence[str], frames: int, stride: int, start: int = 0) -> np.ndarray:
    """(frames, speakers) float32, 1 where a speaker speaks: from the frame nearest to the start of a turn (the even one
    of two) to the one before the frame nearest to its end.

    start: frame of the recording at which the labels begin.

    >>> frame_labels([("ann", 0.0, 0.04), ("bob", 0.02, 0.08)], ["ann", "bob"], 4, 320).T
    array([[1., 1., 0., 0.],
           [0., 1., 1., 1.]], dtype=float32)
    """
    labels = np.zeros((frames, len(speakers)), dtype=np.float32)
    column = {speaker: place for place, speaker in enumerate(speakers)}
    for speaker, *times in turns:
        first, end = (max(0, int(np.rint(time * RATE / stride)) - start) for time in times)
        labels[first:end, column[speaker]] = 1.0
    return labels


def match_length(values: np.ndarray, frames: int) -> np.ndarray:
    """(..., length, dim) -> (..., frames, dim): each frame is repeated if that comes nearer; then the end is cut off,
    or the last frame repeated. Frames that are too fine are cut as well, not thinned out: give each its own label.
    """
    length = values.shape[-2]
    repeats = max(1, round(frames / length))
    return values[..., np.minimum(np.arange(frames) // repeats, length - 1), :]


def _check_frames(clip: Clip, frames: int, stride: int) -> None:
    wanted = round(clip.seconds * RATE) // stride
    if abs(frames - wanted) > TOLERANCE:
        raise ContractBroken(
            f"clip {clip.id!r} lasts {clip.seconds:g} s, which is {wanted} frames of {stride} samples, but it has "
            f"{frames}; are the frames of another rate, or is it a part of the clip (then crop its turns alike)?"
        )


# ------------------------------------------------------------------------------------------------ head


def head(dim: int, split: Split, recipe: Recipe) -> LSTM:
    """SUPERB's LSTM with one output per speaker; `recipe.sizes` may give another ``hidden`` than 512."""
    return LSTM(dim, len(split.classes), recipe.sizes.get("hidden", 512))


def loss(head: nn.Module, out: Tensor, lengths: Tensor, targets: tuple[Tensor, ...]) -> Tensor:
    """Permutation-invariant cross-entropy. out: (batch, frames, speakers) logits; targets as from `encode`."""
    return pit_bce(out, lengths, targets[0])


def decode(out: Tensor, lengths: Tensor, stride: int, split: Split) -> list[Posteriors]:
    """The sigmoid of each clip's valid frames."""
    values = out.sigmoid().float().numpy()
    return [Posteriors(row[:length].copy(), stride) for row, length in zip(values, lengths.tolist(), strict=True)]


# --------------------------------------------------------------------------------------------- scoring


def speaking(values: np.ndarray, threshold: float, median: int) -> np.ndarray:
    """(frames, speakers) bool: above the threshold, then the majority of the `median` frames around.

    Beyond the ends is silence. median: an odd number of frames; 1 does nothing. Raises ValueError for an even one.
    """
    if median < 1 or median % 2 == 0:
        raise ValueError(f"the median filter is {median} frames wide, expected an odd number, such as 11")
    half = median // 2
    counts = np.pad(values > threshold, ((half + 1, half), (0, 0))).cumsum(axis=0)
    return counts[median:] - counts[:-median] > half


def turns_of(posteriors: Posteriors, threshold: float = 0.5, median: int = 1, prefix: str = "") -> Turns:
    """Posteriors to turns of speakers called `prefix` + "0", "1" ..., ready for `write_rttm`.

    Source: superb/protocol.md section 3.7, where the prefix is the recording and an underscore.
    """
    step = posteriors.stride / RATE
    turns = []
    for number, column in enumerate(speaking(posteriors.values, threshold, median).T):
        changes = np.flatnonzero(np.diff(np.pad(column, 1).astype(np.int8))).reshape(-1, 2)
        turns += [(f"{prefix}{number}", int(first) * step, int(end) * step) for first, end in changes]
    return turns


def sweep(
    predictions: Mapping[str, Posteriors], split: Split, settings: Sequence[tuple[float, int]] = SETTINGS
) -> dict[tuple[float, int], DiarizationErrors]:
    """The errors of a whole split at every (threshold, median filter), with misses, false alarms and confusions apart.

    Posteriors shorter than their clip last by the length of the last one. Raises ContractBroken if they have another
    rate than they say, ValueError for an even filter.
    """
    sums = [DiarizationErrors() for _ in settings]
    for clip in split.clips:
        found = _clip_errors(clip, spoken(clip, split), predictions[clip.id], settings)
        sums = [one + other for one, other in zip(sums, found, strict=True)]
    return dict(zip(settings, sums, strict=True))


def _clip_errors(
    clip: Clip, turns: Turns, posteriors: Posteriors, settings: Sequence[tuple[float, int]]
) -> list[DiarizationErrors]:
    """One per setting. The clip is cut at every frame and at every start and end of a turn, once for all settings."""
    values, stride = posteriors
    _check_frames(clip, len(values), stride)
    frames = round(clip.seconds * RATE) // stride
    values = match_length(values, max(1, frames))
    grid = np.arange(len(values) + 1) * stride / RATE
    edges = np.unique(np.concatenate([grid, [time for _, *times in turns for time in times]]))
    middles = (edges[1:] + edges[:-1]) / 2
    frame = np.searchsorted(grid, middles) - 1  # len(values) for what lies behind the last frame
    silence = np.zeros((1, values.shape[1]), dtype=bool)
    hyps = np.stack([np.concatenate([speaking(values, *setting), silence])[frame].T for setting in settings])
    return count_errors(active(turns, middles), hyps, np.diff(edges))


def best_setting(errors: Mapping[tuple[float, int], DiarizationErrors]) -> tuple[float, int]:
    """The (threshold, median filter) with the lowest error rate, the first of several."""
    return min(errors, key=lambda setting: errors[setting].percent)


def settle(predictions: Mapping[str, Posteriors], split: Split) -> dict[str, float | int]:
    """{"threshold": ..., "median": ...}: the best of SUPERB's ten settings, on dev."""
    threshold, median = best_setting(sweep(predictions, split))
    return {"threshold": threshold, "median": median}


def score(
    predictions: Mapping[str, Posteriors], split: Split, threshold: float = 0.5, median: int = 1
) -> dict[str, float]:
    """{"der": percent at this threshold and filter, "der_published": the lowest of the ten settings on this split}."""
    errors = sweep(predictions, split, tuple(dict.fromkeys([*SETTINGS, (threshold, median)])))
    lowest = min(errors[setting].percent for setting in SETTINGS)
    return {"der": errors[threshold, median].percent, "der_published": lowest}


# --------------------------------------------------------------------------- turns of other origin, baselines


def errors_of(hypotheses: Mapping[str, Turns], split: Split) -> DiarizationErrors:
    """The errors of {clip id: turns} (an RTTM file, a baseline) on a whole split; a clip without turns is silent.

    Raises ContractBroken for a recording that the split does not have.
    """
    strangers = sorted(hypotheses.keys() - {clip.id for clip in split.clips})
    if strangers:
        raise ContractBroken(
            f"there are turns for {strangers[0]!r}, which is no clip of the {split.name} split of {split.corpus} "
            f"(nor {len(strangers) - 1} more); names of recordings are clip ids"
        )
    found = (diarization_errors(spoken(clip, split), hypotheses.get(clip.id, ())) for clip in split.clips)
    return sum(found, DiarizationErrors())


def always_on(split: Split) -> dict[str, Turns]:
    """A baseline that has heard nothing: one speaker, from the first to the last second of every clip."""
    return {clip.id: [("0", 0.0, clip.seconds)] for clip in split.clips}


def perfect_detection(split: Split, overlap: bool = False) -> dict[str, Turns]:
    """A baseline that knows from the labels when anybody speaks, and takes everybody for one speaker.

    overlap: it also knows when two speak at once, and puts a second speaker there. Then it is always right about how
    many speak and never tells who: what is wrong is all confusion.
    """
    found = {}
    for clip in split.clips:
        turns = spoken(clip, split)
        edges = np.unique([time for _, *times in turns for time in times])
        count = active(turns, (edges[1:] + edges[:-1]) / 2).sum(axis=0)
        spans = list(zip(count, edges[:-1].tolist(), edges[1:].tolist(), strict=True))
        found[clip.id] = [("0", start, end) for many, start, end in spans if many > 0]
        found[clip.id] += [("1", start, end) for many, start, end in spans if many > 1 and overlap]
    return found


# ------------------------------------------------------------------------------------------------ toys


def toy(split: str, fold: int) -> Split:
    """A low and a high voice, one or two tones of each in 0.6 s, at any time, so also at once."""
    clips = []
    for number in range(TOY_CLIPS[split]):
        generator = toy_seed("sd", split, fold, number)
        samples = round(0.6 * RATE)  # all alike, so that the turns of one clip would fit another
        wave = 0.01 * torch.randn(samples, generator=generator)
        names = [("ada", "ben"), ("ben", "ada")][number % 2]  # a name says nothing about the voice
        turns = []
        for name, partials in zip(names, TOY_VOICES.values(), strict=True):
            for place in range(1 + int(torch.randint(2, (), generator=generator))):
                first = round(samples * (0.5 * place + 0.25 * float(torch.rand((), generator=generator))))
                seconds = samples / RATE * (0.1 + 0.15 * float(torch.rand((), generator=generator)))
                sound = tone(partials, seconds, generator)
                wave[first : first + len(sound)] += sound[: samples - first]
                turns.append([name, first / RATE, min(samples, first + len(sound)) / RATE])
        clips.append(toy_clip(f"sd-{split}-{fold}-{number}", wave, {LABEL: sorted(turns)}))
    return Split("toy", split, tuple(clips), CLASSES, fold)


TASK = Task(
    key="sd",
    title="Speaker diarization",
    domain="speaker",
    metrics=(
        Metric("der", "diarization error rate", higher_is_better=False),
        Metric("der_published", "diarization error rate, best of ten settings", higher_is_better=False, in_table=False),
    ),
    corpora={
        "mini": Corpus(lambda split, fold: get_corpus("mini").sd(split, fold), MINI),
        "digits": Corpus(lambda split, fold: get_corpus("digits").sd(split, fold), DIGITS),
    },
    published=SUPERB,
    encode=encode,
    head=head,
    loss=loss,
    decode=decode,
    settle=settle,
    score=score,
    toy=toy,
    toy_sizes={"hidden": 32},
)
