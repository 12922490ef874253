"""Phase 2: train a small head on frozen states. One loop for every task and every upstream.

    store.get -> pad -> (layers, batch, frames, dim) -> Featurizer -> (batch, frames, dim) -> head -> out
    -> task.decode -> {id: prediction} -> task.score -> {metric: value}

A task whose head is affine in the time mean (KS, SID) gets each clip's mean as a single frame; everything else
is the same code. Training is SUPERB's: Adam, gradient norm clipped, an update with a gradient that is not
finite skipped, layer weights in the same optimiser, nothing normalised, the best dev score kept.
Differs: SUPERB's batches are consecutive in a list sorted by length (PR) or random (KS, SID); ours are cut
from a shuffled list that is sorted by length in stretches, so that little is padded and every epoch differs.

Source: superb/protocol.md section 1. Taught in notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from superb_lite.features import FeatureStore
from superb_lite.heads import Featurizer
from superb_lite.tasks import get_task
from superb_lite.types import (
    RATE,
    ContractBroken,
    Layers,
    Progress,
    Recipe,
    Split,
    Task,
    UnknownName,
    Upstream,
)
from superb_lite.upstreams import load_upstream

BUCKET = 16  # batches in one stretch that is sorted by length
EVAL_FRAMES = 60_000  # frames in one batch of prediction, padding included
REPORT_EVERY = 20  # steps between two calls of progress


@dataclass
class Probe:
    """A trained head and the layer weights that go with it. The upstream is not in it: it never learned.

    history: (step, mean training loss since the row before, dev score) at every evaluation
    dev:     best dev score, of the primary metric; featurizer and head are those of that step
    skipped: updates left out because the gradient was not finite
    seconds: training and dev scoring, without extraction
    """

    task: Task
    upstream: str
    revision: str
    corpus: str
    fold: int
    featurizer: Featurizer
    head: nn.Module
    recipe: Recipe
    seed: int
    layers: Layers
    classes: tuple[str, ...]
    history: list[tuple[int, float, float]] = field(default_factory=list)
    dev: float = float("nan")
    skipped: int = 0
    seconds: float = 0.0

    @property
    def layer_weights(self) -> tuple[float, ...]:
        """Softmax over layers; (1.0,) if there is one layer to see, one-hot on the last for ``"last"``."""
        return tuple(self.featurizer.weights())

    def __repr__(self) -> str:
        metric = self.task.metrics[0].key
        return (
            f"<Probe: {self.task.key} on {self.upstream} ({self.layers}), corpus {self.corpus}, seed {self.seed}, "
            f"dev {metric} {self.dev:.1f}>"
        )


# --------------------------------------------------------------------------------------- public functions


def fit(
    task: str | Task,
    upstream: str | Upstream,
    *,
    corpus: str = "mini",
    layers: Layers = "sum",
    recipe: Recipe | None = None,
    seed: int = 0,
    fold: int = 0,
    device: str = "cpu",
    store: FeatureStore | None = None,
    progress: Progress | None = None,
) -> Probe:
    """Train the head of `task` on the frozen states of `upstream`. Never sees the test split.

    Args:
        layers: ``"last"`` (round 1) or ``"sum"`` (round 2: a learned weight per layer)
        recipe: the task's own for this corpus unless given
        seed: decides the head's first weights and the order of the clips, and nothing else does
        progress: called as (what, steps done, steps in all)

    Raises:
        UnknownName: no such task, upstream, corpus or way to see layers.
        LabelMissing: a clip of train or dev lacks its label; raised before anything is computed.

    >>> probe = fit("ks", "tiny_hubert")                # doctest: +SKIP
    >>> evaluate(probe, "tiny_hubert")                  # doctest: +SKIP
    {'acc': 96.1}
    """
    task, upstream = get_task(task), load_upstream(upstream)
    if layers not in ("last", "sum"):
        raise UnknownName.among("way to see layers", layers, ("last", "sum"))
    view = task.corpus(corpus)
    recipe = view.recipe if recipe is None else recipe
    store = FeatureStore() if store is None else store
    train, dev = view.load("train", fold), view.load("dev", fold)
    for split in (train, dev):
        check_labels(task, split, upstream.stride)
    data = _States.load(train, task, upstream, layers, store, device, progress)
    dev_data = _States.load(dev, task, upstream, layers, store, device, progress)
    start = time.perf_counter()
    with _own_randomness(seed, device):
        probe = Probe(
            task=task, upstream=upstream.name, revision=upstream.revision, corpus=corpus, fold=fold,
            featurizer=Featurizer(upstream.layers, layers).to(device), head=task.head(upstream.dim, train).to(device),
            recipe=recipe, seed=seed, layers=layers, classes=train.classes,
        )  # fmt: skip
        _train(probe, data, dev_data, upstream.stride, progress)
    probe.seconds = time.perf_counter() - start
    return probe


def predict(
    probe: Probe,
    upstream: str | Upstream,
    split: str | Split = "test",
    *,
    store: FeatureStore | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """The probe's prediction for every clip of a split: {clip id: prediction}.

    Args:
        upstream: the one the probe was trained on
        split: a name (of the probe's corpus and fold) or a `Split` with the same classes

    Raises:
        ContractBroken: another upstream, other weights, other classes, or two clips with one id.
    """
    upstream = load_upstream(upstream)
    if (upstream.name, upstream.revision) != (probe.upstream, probe.revision):
        raise ContractBroken(
            f"this probe was trained on {probe.upstream} ({probe.revision}) and is asked to read {upstream.name} "
            f"({upstream.revision}); pass the upstream it was trained on, or fit a new probe"
        )
    split = _load_split(probe, split)
    data = _States.load(
        split, probe.task, upstream, probe.layers, FeatureStore() if store is None else store, device, None
    )
    probe.featurizer.to(device)
    probe.head.to(device)
    return _predict(probe, data, upstream.stride)


def evaluate(
    probe: Probe,
    upstream: str | Upstream,
    split: str | Split = "test",
    *,
    store: FeatureStore | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """The probe's scores on a split: {metric: value}, percentages 0..100. Arguments and errors as `predict`."""
    split = _load_split(probe, split)
    return score_split(probe.task, predict(probe, upstream, split, store=store, device=device), split)


def score_split(task: Task, predictions: Mapping[str, Any], split: Split) -> dict[str, float]:
    """The task's scores of these predictions, {metric: value}. Raises ContractBroken if a promised one is missing."""
    scores = task.score(predictions, split)
    promised = [metric.key for metric in task.metrics]
    if sorted(scores) != sorted(promised):
        raise ContractBroken(
            f"task {task.key!r} scored {sorted(scores)} but has the metrics {sorted(promised)}; "
            "name them alike in Task.metrics and in what score returns"
        )
    return scores


def check_labels(task: Task, split: Split, stride: int) -> None:
    """Encode every label of a split once, before hours of extraction. Raises LabelMissing, ContractBroken."""
    if not split.clips:
        raise ContractBroken(f"the {split.name} split of {split.corpus} has no clips for task {task.key!r}")
    ids = [clip.id for clip in split.clips]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ContractBroken(f"two clips of {split.corpus} {split.name} have the id {twice!r}; ids must be unique")
    frames = torch.tensor([max(1, round(clip.seconds * RATE / stride)) for clip in split.clips])
    task.encode(split.clips, frames, stride, split)


# ------------------------------------------------------------------------------------------------- loop


def _train(probe: Probe, data: _States, dev: _States, stride: int, progress: Progress | None) -> None:
    """Fill the probe: train, score on dev every `eval_every` steps, go back to the best."""
    recipe, metric = probe.recipe, probe.task.metrics[0]
    modules = nn.ModuleList([probe.featurizer, probe.head])
    optimizer = torch.optim.Adam(modules.parameters(), lr=recipe.lr, fused=True)
    batches = batch_order(data.lengths, recipe.batch, torch.Generator().manual_seed(probe.seed))
    best: dict[str, Tensor] | None = None
    losses: list[Tensor] = []
    modules.train()
    for step in range(1, recipe.steps + 1):
        loss, applied = _step(probe, data, next(batches), stride, optimizer)
        losses.append(loss)
        probe.skipped += not applied
        if progress is not None and (step % REPORT_EVERY == 0 or step == recipe.steps):
            progress(f"{probe.task.key} on {probe.upstream}", step, recipe.steps)
        if step % recipe.eval_every == 0 or step == recipe.steps:
            score = score_split(probe.task, _predict(probe, dev, stride), dev.split)[metric.key]
            probe.history.append((step, float(torch.stack(losses).mean()), score))
            losses.clear()
            if best is None or metric.better(score, probe.dev):
                probe.dev, best = score, {name: value.clone() for name, value in modules.state_dict().items()}
            modules.train()
    if best is not None:
        modules.load_state_dict(best)
    modules.eval()


def _step(
    probe: Probe, data: _States, index: Tensor, stride: int, optimizer: torch.optim.Optimizer
) -> tuple[Tensor, bool]:
    """One update. Returns the loss, and whether the update was applied."""
    states, lengths = data.batch(index)
    clips = [data.split.clips[place] for place in index.tolist()]
    targets = probe.task.encode(clips, lengths, stride, data.split)
    targets = tuple(target.to(lengths.device) for target in targets)
    out = probe.head(_seen(probe, states), lengths)
    loss = probe.task.loss(probe.head, out, lengths, targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = optimizer.param_groups[0]["params"]
    norm = nn.utils.clip_grad_norm_(parameters, probe.recipe.clip_norm)
    applied = bool(torch.isfinite(norm))
    if applied:
        optimizer.step()
    return loss.detach(), applied


def _predict(probe: Probe, data: _States, stride: int) -> dict[str, Any]:
    """{clip id: prediction}, in the order of the split."""
    found: dict[str, Any] = {}
    probe.featurizer.eval()
    probe.head.eval()
    with torch.no_grad():
        for index in data.eval_batches():
            states, lengths = data.batch(index)
            out = probe.head(_seen(probe, states), lengths)
            predictions = probe.task.decode(out.cpu(), lengths.cpu(), stride, data.split)
            places = index.tolist()
            found.update({data.split.clips[p].id: got for p, got in zip(places, predictions, strict=True)})
    return {clip.id: found[clip.id] for clip in data.split.clips}


def _seen(probe: Probe, states: Tensor) -> Tensor:
    """(batch, frames, dim): what the head sees. For ``"last"``, `states` holds the last layer only."""
    return states[-1] if probe.layers == "last" else probe.featurizer(states)


def batch_order(lengths: Tensor, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of clip numbers, every clip at most once per epoch.

    Each epoch: shuffle; sort stretches of `BUCKET` batches by length, so that batch mates are similar and little
    is padded; cut into batches; shuffle the batches. What does not fill a batch is left out of this epoch.

    Args:
        lengths: (clips,) frames of each clip; all equal (means) makes the sort do nothing
    """
    count = len(lengths)
    batch = min(batch, count)
    lengths = lengths.cpu()
    while True:
        order = torch.randperm(count, generator=generator)
        stretches = [part[lengths[part].argsort(stable=True)] for part in order.split(BUCKET * batch)]
        batches = torch.cat(stretches)[: count // batch * batch].view(-1, batch)
        yield from batches[torch.randperm(len(batches), generator=generator)]


@contextmanager
def _own_randomness(seed: int, device: str) -> Iterator[None]:
    """Inside, torch's global generator starts at `seed` (first weights, dropout); outside, nothing has changed."""
    where = torch.device(device)
    cards = [torch.cuda.current_device() if where.index is None else where.index] if where.type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach every device
        for card in cards:
            torch.cuda.default_generators[card].manual_seed(seed)
        yield


# ------------------------------------------------------------------------------------------------- data


@dataclass
class _States:
    """Stored states of a split (only the last layer for ``"last"``), ready to be cut into batches.

    lengths: (clips,) valid frames. whole: (layers, clips, 1, dim) on the device if every clip is one frame (means),
    else None, and batches are padded from the arrays, which are views into files.
    """

    split: Split
    arrays: Sequence[np.ndarray]
    lengths: Tensor
    device: str
    whole: Tensor | None

    @classmethod
    def load(
        cls, split: Split, task: Task, upstream: Upstream, layers: Layers, store: FeatureStore, device: str,
        progress: Progress | None,
    ) -> _States:  # fmt: skip
        """Fetch (and extract, if missing) what the head is going to see."""
        arrays = store.get(upstream, split.clips, pooled=task.pooled, device=device, progress=progress)
        if layers == "last":
            arrays = [array[-1:] for array in arrays]  # the others are not read from disk at all
        lengths = torch.tensor([array.shape[1] for array in arrays])
        whole = None
        if task.pooled:
            whole = torch.from_numpy(np.stack(arrays, axis=1).astype(np.float32)).to(device)
        return cls(split, arrays, lengths, device, whole)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(layers, batch, frames, dim) float32, zero where padded, and (batch,) lengths, both on the device."""
        lengths = self.lengths[index]
        if self.whole is not None:
            return self.whole.index_select(1, index.to(self.device)), lengths.to(self.device)
        arrays = [self.arrays[place] for place in index.tolist()]
        layers, _, dim = arrays[0].shape
        padded = np.zeros((layers, len(arrays), int(lengths.max()), dim), dtype=arrays[0].dtype)
        for place, array in enumerate(arrays):
            padded[:, place, : array.shape[1]] = array
        return torch.from_numpy(padded).to(self.device).float(), lengths.to(self.device)

    def eval_batches(self) -> Iterator[Tensor]:
        """Every clip once, the shortest first, in batches of bounded size."""
        order = self.lengths.argsort(stable=True)
        batch: list[int] = []
        for place in order.tolist():
            if batch and (len(batch) + 1) * int(self.lengths[place]) > EVAL_FRAMES:
                yield torch.tensor(batch)
                batch = []
            batch.append(place)
        yield torch.tensor(batch)


def _load_split(probe: Probe, split: str | Split) -> Split:
    if isinstance(split, str):
        if split not in ("train", "dev", "test"):
            raise UnknownName.among("split", split, ("train", "dev", "test"))
        split = probe.task.corpus(probe.corpus).load(split, probe.fold)
    if split.classes != probe.classes:
        raise ContractBroken(
            f"the {split.name} split of {split.corpus} has {len(split.classes)} classes that are not the "
            f"{len(probe.classes)} this probe was trained on; build the split with the same classes"
        )
    return split


def shuffled_labels(split: Split, seed: int = 0) -> Split:
    """The same audio with the labels dealt out anew: what a head learns from these is chance.

    Used by the contract tests, and by notebook 02 to show what chance looks like.
    """
    from dataclasses import replace

    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed)).tolist()
    labels: list[Mapping[str, Any]] = [split.clips[place].labels for place in order]
    clips = tuple(replace(clip, labels=label) for clip, label in zip(split.clips, labels, strict=True))
    return replace(split, clips=clips)
