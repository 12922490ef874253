"""The records everything else is made of, and the errors everything else raises.

Nothing in this file computes anything: a newcomer who reads it once knows the nouns of the library.
Shapes are written in one vocabulary everywhere: ``samples`` (16 kHz), ``frames`` (one every ``stride``
samples), ``dim`` (size of a frame's vector), ``layers`` (hidden states of an upstream, input first).

Taught in notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

RATE = 16_000  # samples per second, everywhere inside the library

Layers = Literal["last", "sum"]  # what the head sees: the last layer (round 1) or the weighted sum (round 2)
Progress = Callable[[str, int, int], None]  # (what is being done, how many are done, out of how many)


# ---------------------------------------------------------------------------------------------- errors


class SuperbLiteError(Exception):
    """Base of all our errors. The command line prints its message as one line and exits with code 1."""


class AudioError(SuperbLiteError, ValueError):
    """A sound file is broken, empty, silent, not finite or not what its manifest says."""


class CorpusMissing(SuperbLiteError):
    """A corpus is not on this machine; the message says how to get it."""


class LabelMissing(SuperbLiteError):
    """A clip lacks a label that the task needs, or has one outside the task's classes."""


class ContractBroken(SuperbLiteError):
    """An upstream or a task does not keep its promises (shapes, lengths, frozen weights)."""


class CheckpointRefused(SuperbLiteError):
    """A checkpoint file is broken, unfit for the network, or would run code when read."""


class ResultsBroken(SuperbLiteError):
    """A results file cannot be read or written; rows already in it are untouched."""


class UnknownName(SuperbLiteError, LookupError):
    """A task, upstream, corpus or round of that name does not exist."""

    @classmethod
    def among(cls, kind: str, name: str, known: Sequence[str]) -> UnknownName:
        """Build the error for `name`, suggesting the nearest of the `known` names."""
        near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.4)
        guess = f"did you mean {near[0]!r}? " if near else ""
        return cls(f"no {kind} is called {name!r}; {guess}There is: {', '.join(sorted(known))}")


# ------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Part:
    """A recording that sounds inside a longer clip: which one, from when on (seconds), and how much louder (dB)."""

    audio: str
    digest: str
    start: float
    gain_db: float = 0.0


@dataclass(frozen=True)
class Clip:
    """One piece of audio and all that is known about it.

    `audio` is a file path, or ``archive.zip!member`` for a file inside a zip archive. `digest` is a
    SHA-256 (hex) of the stored bytes. `gain_db` is applied when the clip is read (SUPERB turns some
    tasks down by 3 dB). `labels` holds whatever the corpus knows: ``text``, ``phones`` as
    ``[[phone, start_sec, end_sec], ...]``, ``speaker``, ``keyword`` ...

    A mixture (two speakers, a long document) is no file: it is the sum of its `parts`, made when it is
    loaded, `seconds` long, with white noise at `noise_db` dBFS (None: none). Its `audio` is its name, its
    `digest` that of the recipe; `superb_lite.audio.mixture` makes one.
    """

    id: str
    audio: str
    seconds: float
    digest: str
    labels: Mapping[str, Any] = field(default_factory=dict)
    gain_db: float = 0.0
    parts: tuple[Part, ...] = ()
    noise_db: float | None = None

    @property
    def key(self) -> str:
        """What the features of this clip depend on: the bytes and the gain (32 hex digits)."""
        return hashlib.sha256(f"{self.digest}|{self.gain_db:g}".encode()).hexdigest()[:32]

    def label(self, name: str) -> Any:
        """The label `name`. Raises LabelMissing, naming clip and file, if the corpus does not have it."""
        if name not in self.labels:
            have = ", ".join(sorted(self.labels)) or "none"
            raise LabelMissing(f"clip {self.id!r} ({self.audio}) has no label {name!r}; it has: {have}")
        return self.labels[name]


@dataclass(frozen=True)
class Split:
    """Part of a corpus, seen by one task: `name` is train, dev or test; `classes` is the task's vocabulary.

    `trials` are the pairs that ASV and QbE compare: (id of one clip, id of the other, True if they belong
    together). In QbE the first is the query, the second the document.
    """

    corpus: str
    name: str
    clips: tuple[Clip, ...]
    classes: tuple[str, ...]
    fold: int = 0
    trials: tuple[tuple[str, str, bool], ...] = ()

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def seconds(self) -> float:
        return sum(clip.seconds for clip in self.clips)

    @property
    def data_hash(self) -> str:
        """Twelve hex digits that change when any clip, label, class or the order of the clips changes."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for clip in self.clips:
            digest.update(repr((clip.id, clip.key, sorted(clip.labels.items()))).encode())
        if self.trials:
            digest.update(repr(self.trials).encode())
        return digest.hexdigest()[:12]


# ------------------------------------------------------------------------------------------- upstreams


@dataclass(frozen=True)
class Hidden:
    """What an upstream says about a batch of waveforms.

    states:  (layers, batch, frames, dim) float32; state 0 is the input of the first block, the last one
             the output of the last block
    lengths: (batch,) int64, valid frames of each clip; frames beyond are padding (zeros)
    """

    states: Tensor
    lengths: Tensor


@runtime_checkable
class Upstream(Protocol):
    """Anything that turns waveforms into hidden states and never learns from us.

    `stride` is in samples per frame (320 for most networks, 160 for Fbank). `revision` names the exact
    weights, so that stored features and results can be traced to them.
    """

    name: str
    revision: str
    layers: int
    dim: int
    stride: int

    def __call__(self, wavs: Sequence[Tensor]) -> Hidden:
        """wavs: a list of (samples,) float32 at 16 kHz, peak at most 1. Batch mates never matter."""
        ...


@dataclass(frozen=True)
class Card:
    """A contestant's entry form: what it is, where it comes from, and how to build it.

    `method` uses the paper's symbols: M masked, F future, G generation, C contrastive, P token prediction,
    VQ quantisation. An upstream that is in the package, or needs no weights, has `build`, which takes no argument and
    returns it. A published one has `read`, which takes the path of an official checkpoint (of any size), and the
    `url` of the file that the paper used, with its `sha256` if it is known. `control` is the upstream with untrained
    weights that a tiny one must beat before its pre-training has a merit.
    """

    name: str
    family: str
    method: str
    input: str
    corpus: str
    parameters: int
    layers: int
    dim: int
    stride: int
    licence: str
    source: str
    build: Callable[[], Upstream] | None = None
    read: Callable[[Path], Upstream] | None = None
    url: str = ""
    sha256: str | None = None
    notes: str = ""
    control: str = ""


# ----------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Metric:
    """A score's name and direction. Percentages are 0..100, MTWV is 0..1.

    in_table: False for a score that is kept in the results but has no column of its own (``*_published``)
    decimals: how many are shown
    """

    key: str
    title: str
    higher_is_better: bool
    in_table: bool = True
    decimals: int = 1

    def better(self, a: float, b: float) -> bool:
        """True if score `a` is strictly better than score `b`."""
        return a > b if self.higher_is_better else a < b


@dataclass(frozen=True)
class Recipe:
    """How a head is trained. Change one with ``dataclasses.replace(recipe, lr=1e-3)``.

    `steps` counts optimiser updates; each sees `accumulate` batches of `batch` clips. `clip_norm` is the global
    gradient-norm bound; every `eval_every` steps the head is scored on dev and the best one is kept; a recipe
    shorter than that is scored once, at its end. `crop_sec` cuts longer training clips to a random stretch.
    `sizes` holds what the task's head asks for (hidden units, layers, dropout ...).
    """

    name: str
    steps: int
    batch: int
    lr: float
    eval_every: int
    clip_norm: float = 1.0
    accumulate: int = 1
    optimizer: Literal["adam", "adamw"] = "adam"
    crop_sec: float | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """A task's view of a corpus: how to load a split, and the recipe that suits its size."""

    load: Callable[[str, int], Split]  # (split name, fold) -> Split
    recipe: Recipe


@dataclass(frozen=True)
class Task:
    """One event of the decathlon: a record of functions. Frames exist only between encode and decode.

    published: SUPERB's own recipe, to the letter; the corpora here have smaller ones
    pooled:    the head is affine in the time mean, so it may train on per-layer means (frames = 1)
    score:     ({clip id: prediction}, split, **settings) -> {metric key: value}; the first metric is the primary one
    toy:       (split name, fold) -> Split of a few seconds of generated audio, for the contract tests
    toy_sizes: `Recipe.sizes` of a head small enough for them

    A task that trains a head has

    encode:    (clips, lengths, stride, split) -> targets, a tuple of tensors
    head:      (dim, split, recipe) -> module; called as head(x, lengths) with x (batch, frames, dim)
    loss:      (head, out, lengths, targets) -> scalar tensor
    decode:    (out, lengths, stride, split) -> list with one prediction per clip
    settle:    ({clip id: prediction} on dev, dev split) -> settings: what is chosen on dev after training (a threshold)
               and passed on to `score`; None if there is nothing to choose
    snapshots: evaluation also tries the head of every dev scoring on the split itself and reports the best as
               ``<metric>_published``, because SUPERB does so (ASV); the row without the suffix never does

    A task that trains nothing (QbE) has `compare` in their place

    compare:   (features, split) -> {(id, id): score}; features maps clip ids to (frames, dim) float32 of one layer.
               The layer is the last one in round 1, in round 2 the best one on dev.
    """

    key: str
    title: str
    domain: str  # content, speaker, semantics or paralinguistics
    metrics: tuple[Metric, ...]
    corpora: Mapping[str, Corpus]
    score: Callable[..., dict[str, float]]
    toy: Callable[[str, int], Split]
    published: Recipe
    pooled: bool = False
    encode: Callable[[Sequence[Clip], Tensor, int, Split], tuple[Tensor, ...]] | None = None
    head: Callable[[int, Split, Recipe], nn.Module] | None = None
    loss: Callable[[nn.Module, Tensor, Tensor, tuple[Tensor, ...]], Tensor] | None = None
    decode: Callable[[Tensor, Tensor, int, Split], list[Any]] | None = None
    settle: Callable[[Mapping[str, Any], Split], dict[str, Any]] | None = None
    snapshots: bool = False
    compare: Callable[[Mapping[str, Any], Split], dict[tuple[str, str], float]] | None = None
    folds: int = 1
    toy_sizes: Mapping[str, Any] = field(default_factory=dict)

    def corpus(self, key: str) -> Corpus:
        """The task's view of corpus `key`. Raises UnknownName with the nearest name."""
        if key not in self.corpora:
            raise UnknownName.among(f"corpus for task {self.key!r}", key, tuple(self.corpora))
        return self.corpora[key]


# --------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Round:
    """The rules of one round, as data."""

    number: int
    name: str
    title: str
    layers: Layers
    frozen: bool = True


@dataclass(frozen=True)
class Score:
    """One number with its whole origin: a row of ``results.jsonl``.

    `value` is in percent (MTWV: 0..1). `round` is 1, 2 or 3. `split` is ``test`` in the rows that count; a search for
    a learning rate also leaves rows of ``dev``. `seconds` is the time the head took to train and score.
    `layer_weights` is the softmax over layers, or [1.0] when there is only one to see.
    """

    corpus: str
    task: str
    metric: str
    value: float
    upstream: str
    revision: str
    round: int
    seed: int
    split: str
    fold: int
    lr: float
    recipe: str
    clips: int
    layer_weights: tuple[float, ...]
    seconds: float
    version: str
    data_hash: str
    device: str
