"""Phase 2: train a small head on frozen states. One loop for every task and every upstream.

    store.get -> pad -> (layers, batch, frames, dim) -> Featurizer -> (batch, frames, dim) -> head -> out
    -> task.decode -> {id: prediction} -> task.score -> {metric: value}

A task whose head is affine in the time mean (KS, SID, IC, ER) gets each clip's mean as a single frame; a task that
trains nothing (QbE) compares clips in one layer; everything else is the same code. Training is SUPERB's: Adam,
gradient norm clipped, an update with a gradient that is not finite skipped, layer weights in the same optimiser,
nothing normalised, the best dev score kept.
Source: superb/protocol.md section 1. Taught in notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from superb_lite.batches import States, batch_order
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

REPORT_EVERY = 20  # steps between two calls of progress


@dataclass
class Probe:
    """A trained head and the layer weights that go with it. The upstream is not in it: it never learned.

    history:   (step, mean training loss since the row before, dev score) at every evaluation; in a task that
               trains nothing (layer, nan, dev score)
    dev:       best dev score, of the primary metric; featurizer and head are those of that step
    settings:  what the task chose on dev after training, see Task.settle
    snapshots: the weights of every evaluation, if the task asks for them
    skipped:   updates left out because the gradient was not finite
    seconds:   training and dev scoring, without extraction
    """

    task: Task
    upstream: str
    revision: str
    corpus: str
    fold: int
    featurizer: Featurizer
    head: nn.Module | None
    recipe: Recipe
    seed: int
    layers: Layers
    classes: tuple[str, ...]
    history: list[tuple[int, float, float]] = field(default_factory=list)
    dev: float = float("nan")
    settings: dict[str, Any] = field(default_factory=dict)
    snapshots: list[dict[str, Tensor]] = field(default_factory=list)
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
    load = functools.partial(
        States.load, pooled=not sees_frames(task, recipe, train), upstream=upstream, layers=layers, store=store,
        device=device, progress=progress,
    )  # fmt: skip
    data, dev_data = (None if task.compare else load(train)), load(dev)
    start = time.perf_counter()
    with _own_randomness(seed, device), _one_thread(task):
        probe = Probe(
            task=task, upstream=upstream.name, revision=upstream.revision, corpus=corpus, fold=fold,
            featurizer=Featurizer(upstream.layers, layers).to(device),
            head=None if task.compare else task.head(upstream.dim, train, recipe).to(device),
            recipe=recipe, seed=seed, layers=layers, classes=train.classes,
        )  # fmt: skip
        if task.compare:
            _choose_layer(probe, dev_data, progress)
        else:
            _train(probe, data, dev_data, upstream.stride, progress)
        if task.settle is not None:
            probe.settings = task.settle(_predict(probe, dev_data, upstream.stride), dev)
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
    data = _load_states(probe, upstream, split, store, device)
    with _one_thread(probe.task):
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
    split, upstream = _load_split(probe, split), load_upstream(upstream)
    predictions = predict(probe, upstream, split, store=store, device=device)
    extra = {}
    if probe.task.snapshots:
        data = _load_states(probe, upstream, split, store, device)
        with _one_thread(probe.task):
            extra = _best_snapshot(probe, data, upstream.stride)
    return score_split(probe.task, predictions, split, extra, **probe.settings)


def score_split(
    task: Task, predictions: Mapping[Any, Any], split: Split, extra: Mapping[str, float] | None = None, **settings: Any
) -> dict[str, float]:
    """The task's scores of these predictions, {metric: value}; `extra` ones come from elsewhere.

    Raises ContractBroken if a promised metric is missing.
    """
    scores = task.score(predictions, split, **settings) | dict(() if extra is None else extra)
    promised = [metric.key for metric in task.metrics]
    if sorted(scores) != sorted(promised):
        raise ContractBroken(
            f"task {task.key!r} scored {sorted(scores)} but has the metrics {sorted(promised)}; "
            "name them alike in Task.metrics and in what score returns"
        )
    return scores


def _primary(task: Task, predictions: Mapping[Any, Any], split: Split) -> float:
    """The score that decides in training. Raises ContractBroken if the task does not give it."""
    scores, key = task.score(predictions, split), task.metrics[0].key
    if key not in scores:
        raise ContractBroken(f"task {task.key!r} scored {sorted(scores)} but has the metrics {key} and so on")
    return scores[key]


def sees_frames(task: Task, recipe: Recipe, train: Split) -> bool:
    """Does the head train on frames? An affine head does on means, but a mean cannot be cropped as `recipe` may ask."""
    cropped = recipe.crop_sec is not None and any(clip.seconds > recipe.crop_sec for clip in train.clips)
    return cropped or not task.pooled


def check_labels(task: Task, split: Split, stride: int) -> None:
    """Encode every label of a split once, before hours of extraction. Raises LabelMissing, ContractBroken."""
    if not split.clips:
        raise ContractBroken(f"the {split.name} split of {split.corpus} has no clips for task {task.key!r}")
    _check_ids(split)
    strangers = {name for first, second, _ in split.trials for name in (first, second)}
    strangers -= {clip.id for clip in split.clips}
    if strangers:
        raise ContractBroken(f"a trial of {split.corpus} {split.name} names {sorted(strangers)[0]!r}, which is no clip")
    if task.encode is not None:
        frames = torch.tensor([max(1, round(clip.seconds * RATE / stride)) for clip in split.clips])
        task.encode(split.clips, frames, stride, split)


def _check_ids(split: Split) -> None:
    """Predictions are kept by id. Raises ContractBroken if two clips share one."""
    ids = [clip.id for clip in split.clips]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ContractBroken(f"two clips of {split.corpus} {split.name} have the id {twice!r}; ids must be unique")


# ------------------------------------------------------------------------------------------------- loop


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


@contextmanager
def _one_thread(task: Task) -> Iterator[None]:
    """Inside, sums are made in one order, whatever the machine's cores: one thread is nearly as fast for a small head.

    And numbers too small to matter count as 0: on raw Fbank an LSTM is full of them, and processors need five to ten
    times as long for those. Does nothing for a task without a head. Not to be nested: the end is the usual state.
    """
    if task.compare is not None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


def _train(probe: Probe, data: States, dev: States, stride: int, progress: Progress | None) -> None:
    """Fill the probe: train, score on dev every `eval_every` steps, go back to the best."""
    recipe, metric = probe.recipe, probe.task.metrics[0]
    modules = nn.ModuleList([probe.featurizer, probe.head])
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    optimizer = kind(modules.parameters(), lr=recipe.lr, fused=True)
    generator = torch.Generator().manual_seed(probe.seed)
    batches = batch_order(data.lengths, recipe.batch, generator)
    best: dict[str, Tensor] | None = None
    losses: list[Tensor] = []
    modules.train()
    for step in range(1, recipe.steps + 1):
        loss, applied = _step(probe, data, batches, stride, optimizer, generator)
        losses.append(loss)
        probe.skipped += not applied
        if progress is not None and (step % REPORT_EVERY == 0 or step == recipe.steps):
            progress(f"{probe.task.key} on {probe.upstream}", step, recipe.steps)
        if step % recipe.eval_every == 0 or step == recipe.steps:
            score = _primary(probe.task, _predict(probe, dev, stride), dev.split)
            probe.history.append((step, float(torch.stack(losses).mean()), score))
            losses.clear()
            weights = {name: value.clone() for name, value in modules.state_dict().items()}
            if probe.task.snapshots:
                probe.snapshots.append(weights)
            if best is None or metric.better(score, probe.dev):
                probe.dev, best = score, weights
            modules.train()
    if best is not None:
        modules.load_state_dict(best)
    modules.eval()


def _step(
    probe: Probe, data: States, batches: Iterator[Tensor], stride: int, optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> tuple[Tensor, bool]:  # fmt: skip
    """One update from `accumulate` batches. Returns the mean loss, and whether the update was applied."""
    recipe, losses = probe.recipe, []
    crop = None if recipe.crop_sec is None else round(recipe.crop_sec * RATE / stride)
    optimizer.zero_grad(set_to_none=True)
    for _ in range(recipe.accumulate):
        index = next(batches)
        states, lengths = data.batch(index, crop, generator)
        clips = [data.split.clips[place] for place in index.tolist()]
        targets = probe.task.encode(clips, lengths, stride, data.split)
        targets = tuple(target.to(lengths.device) for target in targets)
        out = probe.head(_seen(probe, states), lengths)
        loss = probe.task.loss(probe.head, out, lengths, targets) / recipe.accumulate
        loss.backward()
        losses.append(loss.detach())
    parameters = optimizer.param_groups[0]["params"]
    norm = nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
    applied = bool(torch.isfinite(norm))
    if applied:
        optimizer.step()
    return torch.stack(losses).sum(), applied


def _choose_layer(probe: Probe, dev: States, progress: Progress | None) -> None:
    """For a task that trains nothing: the last layer, or the best one on dev (one weight is 1, the others 0)."""
    metric = probe.task.metrics[0]
    if probe.featurizer.scores is None:
        score = _primary(probe.task, _compare(probe, dev, -1), dev.split)
        probe.history, probe.dev = [(probe.featurizer.layers - 1, float("nan"), score)], score
        return
    best = 0
    for layer in range(probe.featurizer.layers):
        score = _primary(probe.task, _compare(probe, dev, layer), dev.split)
        probe.history.append((layer, float("nan"), score))
        if layer == 0 or metric.better(score, probe.dev):
            probe.dev, best = score, layer
        if progress is not None:
            progress(f"{probe.task.key} on {probe.upstream}", layer + 1, probe.featurizer.layers)
    with torch.no_grad():
        probe.featurizer.scores.fill_(float("-inf"))
        probe.featurizer.scores[best] = 0.0


def _compare(probe: Probe, data: States, layer: int) -> dict[tuple[str, str], float]:
    """All pairs of a split, compared in one layer."""
    features = {
        clip.id: torch.from_numpy(np.asarray(array[layer], dtype=np.float32)).to(data.device)
        for clip, array in zip(data.split.clips, data.arrays, strict=True)
    }
    return probe.task.compare(features, data.split)


def _best_snapshot(probe: Probe, data: States, stride: int) -> dict[str, float]:
    """{"<metric>_published": the best score on this split of any evaluated head}: chosen where it is reported."""
    metric = probe.task.metrics[0]
    modules = nn.ModuleList([probe.featurizer, probe.head])
    kept = {name: value.clone() for name, value in modules.state_dict().items()}
    found: list[float] = []
    for weights in probe.snapshots:
        modules.load_state_dict(weights)
        found.append(_primary(probe.task, _predict(probe, data, stride), data.split))
    modules.load_state_dict(kept)
    return {f"{metric.key}_published": max(found) if metric.higher_is_better else min(found)}


def _predict(probe: Probe, data: States, stride: int) -> dict[Any, Any]:
    """{clip id: prediction}, in the order of the split; {(id, id): score} where clips are compared."""
    if probe.task.compare is not None:
        return _compare(probe, data, -1 if probe.layers == "last" else int(np.argmax(probe.layer_weights)))
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


def _load_states(
    probe: Probe, upstream: Upstream, split: Split, store: FeatureStore | None, device: str
) -> States:
    """What the probe's head sees of a split; featurizer and head go to the same device."""
    probe.featurizer.to(device)
    if probe.head is not None:
        probe.head.to(device)
    store = FeatureStore() if store is None else store
    return States.load(split, probe.task.pooled, upstream, probe.layers, store, device)


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
    _check_ids(split)
    return split


def shuffled_labels(split: Split, seed: int = 0) -> Split:
    """The same audio with labels and the answers to trials dealt out anew: what is learned from these is chance.

    Used by the contract tests, and by notebook 02 to show what chance looks like.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(split), generator=generator).tolist()
    labels: list[Mapping[str, Any]] = [split.clips[place].labels for place in order]
    clips = tuple(replace(clip, labels=label) for clip, label in zip(split.clips, labels, strict=True))
    answers = [split.trials[place][2] for place in torch.randperm(len(split.trials), generator=generator).tolist()]
    trials = tuple((first, second, same) for (first, second, _), same in zip(split.trials, answers, strict=True))
    return replace(split, clips=clips, trials=trials)
