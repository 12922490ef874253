"""What a competition is going to do: which heads it trains, which rows they fill, which learning rate counts.

    Event  a task on one fold of a corpus, data loaded and labels checked
    Entry  a contestant
    Cell   an entry in a task: the folds and seeds that share a learning rate
    Job    one head to train

Nothing is trained here. Taught in notebooks 14 (round one) and 15 (round two).
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import superb_lite
from superb_lite.probe import check_labels, sees_frames
from superb_lite.tasks import get_task, list_tasks
from superb_lite.types import Clip, Corpus, Recipe, Round, Score, Task, Upstream
from superb_lite.upstreams import load_upstream

# What `--search-lr` multiplies a recipe's learning rate by: five values, as many as were tried for the paper's tables
# (s3prl issue 120), half a decade apart: on dev of KS, SID and IC, 100 times less or more was never the best.
LR_SEARCH = (0.1, 0.3, 1.0, 3.0, 10.0)
_SEARCHED = ", best lr of "  # in the recipe of a row, followed by how many there were

Adjust = Callable[[Task, Recipe], Recipe]


# ---------------------------------------------------------------------------------- events and entries


@dataclass(frozen=True)
class Event:
    """A task on a fold of a corpus, with everything that all upstreams share: data, labels checked, recipe."""

    task: Task  # its `corpora` has only this corpus, and loads each split once
    corpus: str
    fold: int
    recipe: Recipe
    data_hash: str
    clips: tuple[Clip, ...]
    sizes: Mapping[str, int]  # clips in train, dev and test
    framed: bool  # does the head see frames? Else the mean of each layer is enough
    by_key: bool  # is the task one that another process finds under the same key?


@dataclass(frozen=True)
class Entry:
    """A contestant as far as plans and rows need it; `source` is what `load_upstream` makes it from."""

    name: str
    revision: str
    layers: int
    source: str | Upstream

    @classmethod
    def of(cls, source: str | Upstream) -> Entry:
        """Load it for a moment: all of them together would not fit into memory."""
        upstream = load_upstream(source)
        return cls(upstream.name, upstream.revision, upstream.layers, source)


def plan_events(tasks: Iterable[str | Task], corpus: str, adjust: Adjust | None = None) -> list[Event]:
    """Load and check the data of all tasks, the quick ones first, so that the table starts to fill at once.

    Raises:
        UnknownName, CorpusMissing, LabelMissing: before anything is computed.
    """
    groups = [_events_of(task, corpus, adjust) for task in map(get_task, tasks)]
    groups.sort(key=lambda group: sum(map(_effort, group)))
    return [event for group in groups for event in group]


def _events_of(task: Task, corpus: str, adjust: Adjust | None) -> list[Event]:
    """One event per fold."""
    view = task.corpus(corpus)
    recipe = view.recipe if adjust is None else adjust(task, view.recipe)
    once = replace(task, corpora={corpus: Corpus(functools.cache(view.load), recipe)})
    by_key = task.key in list_tasks() and get_task(task.key) is task
    events = []
    for fold in range(task.folds):
        splits = {name: once.corpora[corpus].load(name, fold) for name in ("train", "dev", "test")}
        for split in splits.values():
            check_labels(task, split, stride=320)
        digest = hashlib.sha256("|".join(split.data_hash for split in splits.values()).encode()).hexdigest()[:12]
        clips = tuple(clip for split in splits.values() for clip in split.clips)
        sizes = {name: len(split) for name, split in splits.items()}
        framed = sees_frames(task, recipe, splits["train"])
        events.append(Event(once, corpus, fold, recipe, digest, clips, sizes, framed, by_key))
    return events


def _effort(event: Event) -> float:
    """What an event costs, roughly: seconds of audio to extract and, unless the head sees only means, to train on."""
    extract = sum(clip.seconds for clip in event.clips)
    if event.task.pooled:
        return extract
    if event.task.compare is not None:
        return 10 * extract
    typical = extract / len(event.clips)
    return 10 * extract + event.recipe.steps * event.recipe.accumulate * event.recipe.batch * typical


# -------------------------------------------------------------------------------------- cells and jobs


@dataclass(frozen=True)
class Cell:
    """What shares a learning rate: one upstream in one task, with all folds and seeds, in one round.

    events: one per fold
    rounds: more than one when there is only one layer to see: then last layer and weighted sum are the same head
    rates:  learning rates to choose from; a single one is no choice
    """

    entry: Entry
    events: tuple[Event, ...]
    rounds: tuple[Round, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]

    @property
    def heads(self) -> int:
        """How many heads count."""
        return len(self.events) * len(self.seeds)

    def search(self) -> list[Job]:
        """The heads that compete on dev, with the first seed; none if there is nothing to choose."""
        if len(self.rates) == 1:
            return []
        return [
            Job(self, event, seed, rate, "dev")
            for rate in self.rates for event in self.events for seed in self.seeds[:1]
        ]  # fmt: skip

    def final(self, rate: float) -> list[Job]:
        """The heads that count."""
        return [Job(self, event, seed, rate, "test") for event in self.events for seed in self.seeds]


@dataclass(frozen=True)
class Job:
    """One head to train. `split` is what its rows are about: ``test``, or ``dev`` for a head of a search."""

    cell: Cell
    event: Event
    seed: int
    lr: float
    split: str

    @property
    def recipe(self) -> Recipe:
        return replace(self.event.recipe, lr=self.lr)

    def rows(self, device: str = "cpu") -> list[Score]:
        """The rows that it fills, one per round and metric (on dev the primary one), without the outcome."""
        event, entry, metrics = self.event, self.cell.entry, self.event.task.metrics
        recipe = recipe_name(event.recipe)
        if self.split == "test" and len(self.cell.rates) > 1:
            recipe += f"{_SEARCHED}{len(self.cell.rates)}"
        blank = Score(
            corpus=event.corpus, task=event.task.key, metric="", value=math.nan, upstream=entry.name,
            revision=entry.revision, round=0, seed=self.seed, split=self.split, fold=event.fold, lr=self.lr,
            recipe=recipe, clips=event.sizes[self.split], layer_weights=(), seconds=0.0,
            version=superb_lite.__version__, data_hash=event.data_hash, device=device,
        )  # fmt: skip
        return [
            replace(blank, round=round.number, metric=metric.key)
            for round in self.cell.rounds
            for metric in (metrics if self.split == "test" else metrics[:1])
        ]


def plan_cells(
    entry: Entry, events: Sequence[Event], rounds: Sequence[Round], seeds: Sequence[int], factors: Sequence[float]
) -> list[Cell]:
    """All cells of one contestant, in the order of the events.

    factors: of the recipe's learning rate, to choose from; a task that trains nothing has nothing to choose
    """
    groups = [tuple(rounds)] if entry.layers == 1 else [(round,) for round in rounds]
    cells = []
    for _, folds in groupby(events, key=lambda event: id(event.task)):
        folds = tuple(folds)
        usable = (1.0,) if folds[0].task.compare else factors
        rates = _rates(folds[0].recipe.lr, usable)
        cells += [Cell(entry, folds, group, tuple(seeds), rates) for group in groups]
    return cells


def _rates(lr: float, factors: Sequence[float]) -> tuple[float, ...]:
    """The recipe's rate times each factor, without the dust of binary fractions: it is part of a row's origin."""
    return tuple(dict.fromkeys(lr if factor == 1 else float(f"{lr * factor:.6g}") for factor in factors))


def recipe_name(recipe: Recipe) -> str:
    """The recipe as it stands in a row: name, steps and batch, so that a changed recipe is another row."""
    return f"{recipe.name} {recipe.steps}x{recipe.batch}"


def searched(score: Score) -> bool:
    """Was the learning rate of this row chosen on dev? Then it may differ from cell to cell, and all is fair."""
    return _SEARCHED in score.recipe


def origin(score: Score) -> tuple[object, ...]:
    """What makes two rows the same result: all that decides the value, and nothing else."""
    return (
        score.corpus, score.task, score.metric, score.upstream, score.revision, score.round, score.seed, score.split,
        score.fold, score.lr, score.recipe, score.data_hash,
    )  # fmt: skip


def choose_rate(cell: Cell, known: Mapping[tuple[object, ...], Score]) -> float:
    """The learning rate with the best primary metric on dev, the mean over folds; among equals the recipe's nearest.

    known: rows by `origin`; those of ``cell.search()`` must be there. Test scores are never asked for.
    """
    if len(cell.rates) == 1:
        return cell.rates[0]
    found: dict[float, list[float]] = {rate: [] for rate in cell.rates}
    for job in cell.search():
        found[job.lr] += [known[origin(row)].value for row in job.rows()]
    better = cell.events[0].task.metrics[0].better
    usual = cell.events[0].recipe.lr
    best, *others = sorted(cell.rates, key=lambda rate: (round(abs(math.log10(rate / usual)), 3), rate))
    for rate in others:
        if better(sum(found[rate]) / len(found[rate]), sum(found[best]) / len(found[best])):
            best = rate
    return best
