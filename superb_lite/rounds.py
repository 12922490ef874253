"""The rounds of the competition, and `olympics`: every upstream through every task in every round.

Round 1: hands tied, the head sees the last layer. Round 2: one rope loosened, the head sees a weighted sum of all
layers. Round 3 is the lecture's dashed arrow: the upstream may be fine-tuned too.

Taught in notebooks 14 (round one) and 15 (round two).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import superb_lite
from superb_lite.features import FeatureStore
from superb_lite.probe import check_labels, evaluate, fit
from superb_lite.results import ResultsFile, ResultsTable
from superb_lite.tasks import get_task, list_tasks
from superb_lite.types import (
    Clip,
    Corpus,
    Layers,
    Progress,
    Recipe,
    Score,
    SuperbLiteError,
    Task,
    UnknownName,
    Upstream,
)
from superb_lite.upstreams import check_name, load_upstream

DEFAULT_UPSTREAMS = ("fbank", "random", "tiny_hubert")
RESULTS = "results.jsonl"

Adjust = Callable[[Task, Recipe], Recipe]
OnScore = Callable[[Score], None]


@dataclass(frozen=True)
class Round:
    """The rules of one round, as data. `reference` is the upstream below which a cell is black."""

    number: int
    name: str
    title: str
    layers: Layers
    reference: str = "fbank"
    frozen: bool = True


ROUND_1 = Round(1, "round 1", "hands tied: the last layer", "last")
ROUND_2 = Round(2, "round 2", "one rope loosened: a weighted sum of all layers", "sum")
ROUND_3 = Round(3, "round 3", "the dashed arrow: the upstream is fine-tuned too", "last", frozen=False)
ROUNDS = (ROUND_1, ROUND_2, ROUND_3)


def get_round(round: int | Round) -> Round:
    """The round of that number; a `Round` is given back as it is. Raises UnknownName."""
    if isinstance(round, Round):
        return round
    for known in ROUNDS:
        if known.number == round:
            return known
    raise UnknownName.among("round", str(round), [str(known.number) for known in ROUNDS])


def quick(task: Task, recipe: Recipe) -> Recipe:
    """A fifth of the steps, for a first look; the rows say ``quick``, and must not be compared with others."""
    steps = max(1, recipe.steps // 5)
    return replace(recipe, name="quick", steps=steps, eval_every=max(1, steps // 2))


# ------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Event:
    """A task on a fold of a corpus, with everything that all upstreams share: data, labels checked, recipe."""

    task: Task  # its `corpora` has only this corpus, and loads each split once
    corpus: str
    fold: int
    recipe: Recipe
    data_hash: str
    clips: tuple[Clip, ...]
    test_clips: int
    by_key: bool  # is the task one that another process finds under the same key?


@dataclass(frozen=True)
class Job:
    """One head to train: the rounds it counts for are more than one when there is only one layer to see."""

    event: Event
    seed: int
    rounds: tuple[Round, ...]


def plan_events(tasks: Iterable[str | Task], corpus: str, adjust: Adjust | None = None) -> list[Event]:
    """Load and check the data of all tasks, the quick ones first, so that the table starts to fill at once.

    Raises:
        UnknownName, CorpusMissing, LabelMissing: before anything is computed.
    """
    events = []
    for task in map(get_task, tasks):
        view = task.corpus(corpus)
        recipe = view.recipe if adjust is None else adjust(task, view.recipe)
        once = replace(task, corpora={corpus: Corpus(functools.cache(view.load), recipe)})
        for fold in range(task.folds):
            splits = [once.corpora[corpus].load(name, fold) for name in ("train", "dev", "test")]
            for split in splits:
                check_labels(task, split, stride=320)
            digest = hashlib.sha256("|".join(split.data_hash for split in splits).encode()).hexdigest()[:12]
            clips = tuple(clip for split in splits for clip in split.clips)
            by_key = task.key in list_tasks() and get_task(task.key) is task
            events.append(Event(once, corpus, fold, recipe, digest, clips, len(splits[-1]), by_key))
    return sorted(events, key=_effort)


def _effort(event: Event) -> float:
    """What an event costs, roughly: seconds of audio to extract and, unless the head sees only means, to train on."""
    extract = sum(clip.seconds for clip in event.clips)
    if event.task.pooled:
        return extract
    if event.task.compare is not None:
        return 10 * extract
    typical = extract / len(event.clips)
    return 10 * extract + event.recipe.steps * event.recipe.accumulate * event.recipe.batch * typical


def plan_jobs(upstream: Upstream, events: Sequence[Event], rounds: Sequence[Round], seeds: Sequence[int]) -> list[Job]:
    """The heads to train for one upstream, in order. With one layer, last layer and weighted sum are the same head."""
    groups = [tuple(rounds)] if upstream.layers == 1 else [(round,) for round in rounds]
    return [Job(event, seed, group) for event in events for seed in seeds for group in groups]


def recipe_name(recipe: Recipe) -> str:
    """The recipe as it stands in a row: name, steps and batch, so that a changed recipe is another row."""
    return f"{recipe.name} {recipe.steps}x{recipe.batch}"


def blank_scores(job: Job, upstream: Upstream, device: str) -> Iterator[Score]:
    """The rows that a job will fill, one per round and metric, with everything but the outcome."""
    for round in job.rounds:
        for metric in job.event.task.metrics:
            yield Score(
                corpus=job.event.corpus,
                task=job.event.task.key,
                metric=metric.key,
                value=float("nan"),
                upstream=upstream.name,
                revision=upstream.revision,
                round=round.number,
                seed=job.seed,
                split="test",
                fold=job.event.fold,
                lr=job.event.recipe.lr,
                recipe=recipe_name(job.event.recipe),
                clips=job.event.test_clips,
                layer_weights=(),
                seconds=0.0,
                version=superb_lite.__version__,
                data_hash=job.event.data_hash,
                device=device,
            )


def origin(score: Score) -> tuple[object, ...]:
    """What makes two rows the same result: all that decides the value, and nothing else."""
    return (
        score.corpus, score.task, score.metric, score.upstream, score.revision, score.round, score.seed, score.split,
        score.fold, score.lr, score.recipe, score.data_hash,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- run


def olympics(
    upstreams: Iterable[str | Upstream] | None = None,
    tasks: Iterable[str | Task] | None = None,
    rounds: Iterable[int | Round] = (ROUND_1, ROUND_2),
    *,
    corpus: str = "mini",
    seeds: int | Sequence[int] = 1,
    device: str = "cpu",
    out: str | Path = "superb_lite_results",
    store: FeatureStore | None = None,
    progress: Progress | None = None,
    on_score: OnScore | None = None,
    adjust: Adjust | None = None,
    workers: int = 1,
) -> ResultsTable:
    """Run the competition. Every row is on the disk at once; run it again after a kill and it goes on.

    Args:
        upstreams, tasks: keys or objects; the usual three and all tasks that the corpus has unless given
        seeds: how many (0, 1, ...), or which
        out: folder of ``results.jsonl``; rows in it of the same origin are not computed again
        progress: called as (what, done, all): ``"olympics"`` counts cells of the table (per seed and fold),
            other names what is being done for the next one
        on_score: called with every row of the table when it is known, also with those that were there before
        adjust: changes recipes, as `quick` does
        workers: heads to train at the same time, each in a process and one thread of its own. The table is the same.
            What is not given by its key is trained in this process

    Raises:
        SuperbLiteError: round 3 is asked for (other rounds need no fine-tuning), or a worker was killed.
        UnknownName, CorpusMissing, LabelMissing: before anything is computed.
        ResultsBroken: results.jsonl cannot be read or written; rows in it are untouched.

    >>> olympics(["fbank", "tiny_hubert"], ["ks"], seeds=3)  # doctest: +SKIP
    """
    chosen = [get_round(round) for round in rounds]
    for round in chosen:
        if not round.frozen:
            raise SuperbLiteError(
                f"{round.name} ({round.title}) cannot be run: this version keeps every upstream frozen; "
                "ask for rounds 1 and 2"
            )
    if tasks is None:
        tasks = [key for key in list_tasks() if corpus in get_task(key).corpora]
    events = plan_events(tasks, corpus, adjust)
    contestants = DEFAULT_UPSTREAMS if upstreams is None else tuple(upstreams)
    for name in contestants:
        if isinstance(name, str):
            check_name(name)  # an unknown name must not show up after hours
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    file = ResultsFile(Path(out) / RESULTS)
    games = _Games(file, FeatureStore() if store is None else store, device, progress, on_score)
    games.total = len(contestants) * len(events) * len(numbers) * len(chosen)
    with _pool(workers) as pool:
        for name in contestants:
            upstream = load_upstream(name)  # one at a time: large ones would not fit together
            jobs = plan_jobs(upstream, events, chosen, numbers)
            games.run(upstream, jobs, name if isinstance(name, str) else None, pool, workers)
    return ResultsTable(games.table, [event.task for event in events])


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Executor | None]:
    """Processes that live as long as the block; None for a single worker, who is this process."""
    if workers == 1:
        yield None
        return
    from loky import ProcessPoolExecutor  # unlike the standard library's, works in notebooks and in bare scripts

    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(os.getpid(),))
    try:
        with warnings.catch_warnings():
            # they map feature files into memory; Loky takes that for a leak and starts a fresh one, which does no harm
            warnings.filterwarnings("ignore", message="A worker was restarted")
            yield pool
    except BrokenExecutor as error:
        raise SuperbLiteError(
            f"a worker was killed: was the memory too small for {workers} of them? What was finished is kept; run it "
            "again with fewer workers"
        ) from error
    finally:
        pool.shutdown(wait=True, kill_workers=True)


def _start_worker(parent: int) -> None:
    """One thread for the work, and one that ends the process when its parent has been killed."""
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def train_and_score(
    task: str | Task, upstream: str | Upstream, store: FeatureStore | str, *, layers: Layers, corpus: str, fold: int,
    recipe: Recipe, seed: int, device: str, progress: Progress | None = None,
) -> tuple[dict[str, float], tuple[float, ...], float]:  # fmt: skip
    """One head from its first weights to its test scores: {metric: value}, layer weights, seconds.

    With keys and a folder instead of objects, another process can do it.
    """
    start = time.perf_counter()
    upstream = load_upstream(upstream)
    store = FeatureStore(store) if isinstance(store, str) else store
    probe = fit(
        task, upstream, corpus=corpus, layers=layers, recipe=recipe, seed=seed, fold=fold, device=device, store=store,
        progress=progress,
    )  # fmt: skip
    values = evaluate(probe, upstream, store=store, device=device)
    return values, probe.layer_weights, round(time.perf_counter() - start, 3)


class _Games:
    """The state of one run: which rows exist, how far it is, and whom to tell."""

    def __init__(
        self, file: ResultsFile, store: FeatureStore, device: str, progress: Progress | None, on_score: OnScore | None
    ) -> None:
        self.file, self.store, self.device = file, store, device
        self.progress, self.on_score = progress, on_score
        self.known = {origin(score): score for score in file.rows()}
        self.table: list[Score] = []
        self.done = self.total = 0

    def run(
        self, upstream: Upstream, jobs: Sequence[Job], key: str | None, pool: Executor | None, workers: int
    ) -> None:
        """All jobs of one upstream, head by head; each clip goes through the upstream once, when it is first needed.

        key: what another process loads the upstream by, None for an object
        """
        pending = [job for job in jobs if self._missing(job, upstream)]
        framed = {clip.key for job in pending if not job.event.task.pooled for clip in job.event.clips}
        running: dict[Future, Job] = {}
        for job in jobs:
            if not self._missing(job, upstream):
                self._tell(job, upstream)
                continue
            self._extract(upstream, job.event.clips, framed)
            event = job.event
            how = {
                "layers": job.rounds[-1].layers, "corpus": event.corpus, "fold": event.fold, "recipe": event.recipe,
                "seed": job.seed, "device": self.device,
            }  # fmt: skip
            if pool is None or key is None or not event.by_key:
                outcome = train_and_score(event.task, upstream, self.store, **how, progress=self.progress)
                self._keep(job, upstream, *outcome)
                continue
            if len(running) == workers:
                self._collect(running, upstream)
            running[pool.submit(train_and_score, event.task.key, key, str(self.store.root), **how)] = job
        while running:
            self._collect(running, upstream)

    def _collect(self, running: dict[Future, Job], upstream: Upstream) -> None:
        """Wait for a worker, and keep what it found."""
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            self._keep(running.pop(future), upstream, *future.result())

    def _keep(
        self, job: Job, upstream: Upstream, values: dict[str, float], weights: tuple[float, ...], seconds: float
    ) -> None:
        """Write the rows of a job to the disk."""
        for blank in self._missing(job, upstream):
            score = replace(blank, value=float(values[blank.metric]), layer_weights=weights, seconds=seconds)
            self.file.append(score)
            self.known[origin(score)] = score
        self._tell(job, upstream)

    def _tell(self, job: Job, upstream: Upstream) -> None:
        for blank in blank_scores(job, upstream, self.device):
            score = self.known[origin(blank)]
            self.table.append(score)
            if self.on_score is not None:
                self.on_score(score)
        self.done += len(job.rounds)
        self._report("olympics", self.done, self.total)

    def _missing(self, job: Job, upstream: Upstream) -> list[Score]:
        return [blank for blank in blank_scores(job, upstream, self.device) if origin(blank) not in self.known]

    def _extract(self, upstream: Upstream, clips: Sequence[Clip], framed: set[str]) -> None:
        """Fill the store: with frames for clips that any event needs them of (means come along), else with means."""
        for pooled in (False, True):
            chosen = [clip for clip in clips if (clip.key in framed) is not pooled]
            if chosen:
                self.store.extract(upstream, chosen, pooled=pooled, device=self.device, progress=self.progress)

    def _report(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)
