"""The rounds of the competition, and `olympics`: every upstream through every task in every round.

Round 1: hands tied, the head sees the last layer. Round 2: one rope loosened, the head sees a weighted sum of all
layers. Round 3 is the lecture's dashed arrow: the upstream may be fine-tuned too.

Taught in notebooks 14 (round one) and 15 (round two).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from superb_lite.engines import Here, Outcome, open_engine
from superb_lite.features import FeatureStore
from superb_lite.plan import Adjust, Cell, Entry, Job, choose_rate, origin, plan_cells, plan_events
from superb_lite.results import ResultsFile, ResultsTable
from superb_lite.tasks import get_task, list_tasks
from superb_lite.types import Progress, Recipe, Round, Score, SuperbLiteError, Task, UnknownName, Upstream
from superb_lite.upstreams import check_name, list_upstreams

DEFAULT_UPSTREAMS = ("fbank", "random", "tiny_hubert")
RESULTS = "results.jsonl"
PATIENCE_SEC = 1.0  # a wait without an end cannot be interrupted everywhere

OnScore = Callable[[Score], None]

ROUND_1 = Round(1, "round 1", "hands tied: the last layer", "last")
ROUND_2 = Round(2, "round 2", "one rope loosened: a weighted sum of all layers", "sum")
ROUND_3 = Round(3, "round 3", "the dashed arrow: the upstream is fine-tuned too", "last", frozen=False)
ROUNDS = (ROUND_1, ROUND_2, ROUND_3)


def get_round(round: int | str | Round) -> Round:
    """The round of that number (or of its digits); a `Round` is given back as it is. Raises UnknownName."""
    if isinstance(round, Round):
        return round
    for known in ROUNDS:
        if str(known.number) == str(round):
            return known
    raise UnknownName.among("round", str(round), [str(known.number) for known in ROUNDS])


def quick(task: Task, recipe: Recipe) -> Recipe:
    """A fifth of the steps, for a first look; the rows say ``quick``, and must not be compared with others."""
    steps = max(1, recipe.steps // 5)
    return replace(recipe, name="quick", steps=steps, eval_every=max(1, steps // 2))


def all_upstreams() -> tuple[str, ...]:
    """Everyone who needs no file: both Fbanks, the controls, the tiny ones. Other classic features must be named."""
    names = [card.name for card in list_upstreams() if card.build is not None and card.family != "baseline"]
    return tuple(sorted(names, key=lambda name: (name.startswith("tiny"), name)))


def olympics(
    upstreams: Iterable[str | Upstream] | None = None,
    tasks: Iterable[str | Task] | None = None,
    rounds: Iterable[int | Round] = (ROUND_1, ROUND_2),
    *,
    corpus: str = "mini",
    seeds: int | Sequence[int] = 1,
    lr_factors: Sequence[float] = (1.0,),
    device: str = "cpu",
    out: str | Path = "superb_lite_results",
    store: FeatureStore | None = None,
    progress: Progress | None = None,
    on_score: OnScore | None = None,
    adjust: Adjust | None = None,
    workers: int = 1,
    engine: str = "local",
    address: Any = None,
) -> ResultsTable:
    """Run the competition. Every row is on the disk at once; run it again after a kill and it goes on.

    Args:
        upstreams, tasks: keys or objects; the usual three and all tasks that the corpus has unless given
        seeds: how many (0, 1, ...), or which
        lr_factors: what the recipe's learning rate is multiplied by. With more than one, as in `plan.LR_SEARCH`, every
            upstream gets the rate that suits it in a task and a round: each is tried with the first seed, and the best
            on dev (primary metric, mean over folds) is used for all seeds and folds. Only its heads get test rows;
            rows of the others are about dev. SUPERB allows no other setting to be tuned
        out: folder of ``results.jsonl``; rows in it of the same origin are not computed again
        progress: called as (what, done, all): ``"olympics"`` counts heads, other names what is being done for the next;
            with several workers also from another thread, but one call at a time
        on_score: called with every row of the table when it is known, also with those that were there before
        adjust: changes recipes, as `quick` does
        workers: heads to train at the same time, each in a process and one thread of its own. The table is the same.
            What is not given by its key is trained in this process
        engine: ``"local"``, or ``"dask"``: heads are trained by the workers of the Dask cluster whose scheduler listens
            at `address`, each in a feature store of its own. The table is the same again

    Raises:
        SuperbLiteError: round 3 is asked for (other rounds need no fine-tuning), workers were killed, or the cluster
            does not answer.
        UnknownName, CorpusMissing, LabelMissing, ContractBroken, CheckpointRefused: before anything is computed.
        AudioError, ContractBroken: a file or an upstream is broken; what was finished before is kept.
        ResultsBroken: results.jsonl cannot be read or written, or another run is writing it; its rows are untouched.

    >>> olympics(["fbank", "tiny_hubert"], ["ks"], seeds=3)  # doctest: +SKIP
    """
    chosen = [_playable(round) for round in rounds]
    if tasks is None:
        tasks = [key for key in list_tasks() if corpus in get_task(key).corpora]
    contestants = DEFAULT_UPSTREAMS if upstreams is None else tuple(upstreams)
    for name in contestants:
        if isinstance(name, str):
            check_name(name)
    if workers < 1:
        raise SuperbLiteError(f"workers is {workers}, expected at least 1 head at a time")
    if not lr_factors or min(lr_factors) <= 0:
        raise SuperbLiteError(f"lr_factors is {lr_factors!r}, expected positive numbers such as (0.1, 1, 10)")
    events = plan_events(tasks, corpus, adjust)
    entries = [Entry.of(source) for source in contestants]  # one without weights must not show up after hours
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    cells = [cell for entry in entries for cell in plan_cells(entry, events, chosen, numbers, lr_factors)]
    file, store = ResultsFile(Path(out) / RESULTS), FeatureStore() if store is None else store
    progress = None if progress is None else _in_turn(progress)
    with file.reserved(), open_engine(engine, workers, address, events, store, device, progress) as trainer:
        scores = _Games(file, trainer, device, progress, on_score).run(cells)
    return ResultsTable(scores, [event.task for event in events])


def _playable(round: int | Round) -> Round:
    """The round of that number. Raises UnknownName, SuperbLiteError if it asks for more than we can do."""
    found = get_round(round)
    if not found.frozen:
        raise SuperbLiteError(
            f"{found.name} ({found.title}) cannot be run: this version keeps every upstream frozen; "
            "ask for rounds 1 and 2"
        )
    return found


def _in_turn(progress: Progress) -> Progress:
    """The same, but one call at a time, whichever thread calls."""
    lock = threading.Lock()

    def tell(what: str, done: int, total: int) -> None:
        with lock:
            progress(what, done, total)

    return tell


class _Games:
    """The state of one run: which rows exist, which heads are still to be trained, and whom to tell."""

    def __init__(
        self, file: ResultsFile, engine: Here, device: str, progress: Progress | None, on_score: OnScore | None
    ) -> None:
        self.file, self.engine, self.device = file, engine, device
        self.progress, self.on_score = progress, on_score
        self.known = {origin(score): score for score in file.rows()}
        self.queue: deque[Job] = deque()
        self.running: dict[Future[Outcome], Job] = {}
        self.tried: dict[tuple[int, int, float], Outcome] = {}
        self.total = self.later = 0

    def run(self, cells: Sequence[Cell]) -> list[Score]:
        """Train what is missing, head by head. Returns the rows of the table, in the order of the plan."""
        for cell in cells:
            self.total += len(cell.search()) + cell.heads
            self.queue.extend(self._open(cell))
        self._report()
        while self.queue or self.running:
            for future in [future for future in self.running if future.done()]:
                self._keep(self.running.pop(future), future.result())  # to the disk before anything that takes long
            filling = None
            if self.queue:
                filling = self.engine.prepare(self.queue[0], islice(self.queue, 1, None))
            if self.queue and filling is None and len(self.running) < self.engine.width:
                self._start(self.queue.popleft())
            else:
                coming = [*self.running, *([] if filling is None else [filling])]
                wait(coming, timeout=PATIENCE_SEC, return_when=FIRST_COMPLETED)
        finals = [job for cell in cells for job in cell.final(choose_rate(cell, self.known))]
        return [self.known[origin(row)] for job in finals for row in job.rows()]

    def _open(self, cell: Cell) -> list[Job]:
        """The heads of a cell that can be trained now: those of its search, and once it is over those that count."""
        search = [job for job in cell.search() if self._missing(job)]
        if search:
            self.later += cell.heads
            return search
        jobs = cell.final(choose_rate(cell, self.known))
        for job in jobs:
            if not self._missing(job):
                self._tell(job)
        return [job for job in jobs if self._missing(job)]

    def _start(self, job: Job) -> None:
        """Train a head, unless it is the one that has won the search."""
        outcome = self.tried.get((id(job.event), id(job.cell), job.lr))
        if outcome is not None and job.seed == job.cell.seeds[0]:
            self._keep(job, outcome)
        else:
            self.running[self.engine.train(job)] = job

    def _keep(self, job: Job, outcome: Outcome) -> None:
        """Write the rows of a job to the disk, and go on with its cell when its search is over.

        A head is gone when it has been scored, so those of a search are scored on test too, but nobody looks: the score
        of the winner is taken from `tried` after the choice, the others' are never written or compared.
        """
        for row in self._missing(job):
            value = outcome.test[row.metric] if job.split == "test" else outcome.dev
            weights = tuple(outcome.layer_weights)
            score = replace(row, value=float(value), layer_weights=weights, seconds=outcome.seconds)
            self.file.append(score)
            self.known[origin(score)] = score
        if job.split == "test":
            self._tell(job)
        else:
            self.tried[id(job.event), id(job.cell), job.lr] = outcome
            if not any(map(self._missing, job.cell.search())):
                self.later -= job.cell.heads
                self.queue.extendleft(reversed(self._open(job.cell)))
        self._report()

    def _missing(self, job: Job) -> list[Score]:
        return [row for row in job.rows(self.device) if origin(row) not in self.known]

    def _tell(self, job: Job) -> None:
        for row in job.rows():
            if self.on_score is not None:
                self.on_score(self.known[origin(row)])

    def _report(self) -> None:
        if self.progress is not None:
            left = len(self.queue) + len(self.running) + self.later
            self.progress("olympics", self.total - left, self.total)
