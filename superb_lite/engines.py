"""Where heads are trained: in this process, in several processes of this machine (Loky), or on a Dask cluster.

All three take a `Job` and give a future of an `Outcome`, and from the same features all three find the same numbers
(the features themselves may differ in the last bit with the number of threads). Another process is told keys, not
objects: it loads the upstream and the data itself. So what was not given by its key is trained here.

Taught in notebook 14 (round one).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

import superb_lite
from superb_lite.features import FeatureStore
from superb_lite.plan import Entry, Event, Job
from superb_lite.probe import evaluate, fit
from superb_lite.tasks import get_task
from superb_lite.types import Clip, Layers, Progress, Recipe, SuperbLiteError, Task, UnknownName, Upstream
from superb_lite.upstreams import load_upstream

log = logging.getLogger(__name__)

ENGINES = ("local", "dask")
ANSWER_SEC = 10  # how long a scheduler may take to answer
_ALONE = threading.Lock()  # a head sets the process's random state and number of threads


# ----------------------------------------------------------------------------------------- one head


@dataclass(frozen=True)
class Outcome:
    """What came of a head: its best dev score, its test scores {metric: value}, and where it looked."""

    dev: float
    test: dict[str, float]
    layer_weights: tuple[float, ...]
    seconds: float


def train_and_score(
    task: str | Task, upstream: str | Upstream, store: FeatureStore | tuple[Any, ...], *, layers: Layers, corpus: str,
    fold: int, recipe: Recipe, seed: int, device: str, progress: Progress | None = None,
) -> Outcome:  # fmt: skip
    """One head from its first weights to its test scores.

    With keys, and the arguments of `FeatureStore` in place of a store, another process can do it.
    """
    start = time.perf_counter()
    upstream = load_upstream(upstream)
    store = FeatureStore(*store) if isinstance(store, tuple) else store
    probe = fit(
        task, upstream, corpus=corpus, layers=layers, recipe=recipe, seed=seed, fold=fold, device=device, store=store,
        progress=progress,
    )  # fmt: skip
    values = evaluate(probe, upstream, store=store, device=device)
    return Outcome(float(probe.dev), values, probe.layer_weights, round(time.perf_counter() - start, 3))


def extract(
    upstream: Upstream, clips: Sequence[Clip], framed: Collection[str], store: FeatureStore, device: str,
    progress: Progress | None = None,
) -> None:  # fmt: skip
    """Fill the store: with frames for the clips whose keys are `framed` (means come along), else with means."""
    for pooled in (False, True):
        chosen = [clip for clip in clips if (clip.key in framed) is not pooled]
        if chosen:
            store.extract(upstream, chosen, pooled=pooled, device=device, progress=progress)


# ------------------------------------------------------------------------------------ this process


class Here:
    """Trains in this process, one head after the other."""

    width = 1  # heads under way at the same time

    def __init__(
        self, events: Sequence[Event], store: FeatureStore, device: str, progress: Progress | None = None
    ) -> None:
        self.events, self.store, self.device, self.progress = events, store, device, progress
        self._framed = {clip.key for event in events if event.framed for clip in event.clips}
        self._ready: set[tuple[int, int]] = set()
        self._loaded: tuple[Entry, Upstream] | None = None

    def prepare(self, job: Job, others: Iterable[Job] = ()) -> Future[None] | None:
        """Extract what the head of a job is going to see. Returns None when that is done, or a future if it goes on.

        others: the jobs that come next, for engines that work ahead
        """
        key = _states(job)
        if key not in self._ready:
            upstream = self._load(job.cell.entry)
            extract(upstream, job.event.clips, self._framed, self.store, self.device, self.progress)
            self._ready.add(key)
        return None

    def train(self, job: Job) -> Future[Outcome]:
        """The future of a job that has been prepared."""
        future: Future[Outcome] = Future()
        upstream = self._load(job.cell.entry)
        future.set_result(
            train_and_score(job.event.task, upstream, self.store, **self._how(job), progress=self.progress)
        )
        return future

    def _load(self, entry: Entry) -> Upstream:
        """One upstream at a time: large ones would not fit together."""
        if self._loaded is None or self._loaded[0] is not entry:
            self._loaded = None
            self._loaded = (entry, load_upstream(entry.source))
        return self._loaded[1]

    def _how(self, job: Job) -> dict[str, Any]:
        return {
            "layers": job.cell.rounds[-1].layers, "corpus": job.event.corpus, "fold": job.event.fold,
            "recipe": job.recipe, "seed": job.seed, "device": self.device,
        }  # fmt: skip


def _states(job: Job) -> tuple[int, int]:
    """What two jobs share that see the same states."""
    return id(job.cell.entry), id(job.event)


def _by_key(job: Job) -> bool:
    """Can another process find task and upstream?"""
    return job.event.by_key and isinstance(job.cell.entry.source, str)


# ------------------------------------------------------------------------------------- this machine


class Workers(Here):
    """Trains in processes of this machine, one thread each. One thread of this one runs the upstreams, working ahead.

    What has no key is trained by that thread, too: nothing else here computes.
    """

    def __init__(self, pool: Executor, width: int, *args: Any) -> None:
        super().__init__(*args)
        self.pool, self.width = pool, width
        self._told, self.progress = self.progress, self._tell
        self._filled: dict[tuple[int, int], Future[None]] = {}
        self._over = threading.Event()
        self._thread = ThreadPoolExecutor(1, "extraction", initializer=torch.set_num_threads, initargs=(1,))

    def prepare(self, job: Job, others: Iterable[Job] = ()) -> Future[None] | None:
        following = next((other for other in others if _states(other) != _states(job)), job)
        for one in (job, following):  # no further ahead: what is extracted too early may be evicted before its turn
            if _states(one) not in self._filled:
                self._filled[_states(one)] = self._thread.submit(super().prepare, one)
        filled = self._filled[_states(job)]
        if not filled.done():
            return filled
        filled.result()  # raises what went wrong
        return None

    def train(self, job: Job) -> Future[Outcome]:
        if not _by_key(job):
            return self._thread.submit(lambda: super(Workers, self).train(job).result())
        where = (str(self.store.root), self.store.max_bytes)
        return self.pool.submit(train_and_score, job.event.task.key, job.cell.entry.source, where, **self._how(job))

    def close(self) -> None:
        """End the thread at its next word of progress: after a batch, or when a head of an own task is through."""
        self._over.set()
        try:
            self._thread.shutdown(cancel_futures=True)
        finally:
            torch.set_num_threads(torch.get_num_threads())  # a part of the setting in the thread was everybody's

    def _tell(self, what: str, done: int, total: int) -> None:
        if self._over.is_set():
            raise CancelledError(f"{what}: the run is over")
        if self._told is not None:
            self._told(what, done, total)


@contextlib.contextmanager
def _loky(workers: int) -> Iterator[Executor]:
    """Processes that live as long as the block."""
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


# ------------------------------------------------------------------------------------- a cluster


class Cluster(Here):
    """Trains on a Dask cluster. Its workers have feature stores of their own (or share one: a folder is enough)."""

    width = 1_000_000  # Dask has the queue, so that a cluster can grow with it

    def __init__(self, client: Any, *args: Any) -> None:
        super().__init__(*args)
        self.client, self.pool, self._filled = client, client.get_executor(pure=False), {}
        if not client.scheduler_info()["workers"]:
            log.warning("no worker has joined the cluster yet: waiting for one")

    def prepare(self, job: Job, others: Iterable[Job] = ()) -> Future[None] | None:
        """One worker extracts first. Workers that share its store find the features; others compute them again."""
        if not _by_key(job):
            return super().prepare(job)
        key = _states(job)
        if key not in self._filled:
            framed = [_place(event) for event in self.events if event.framed and event.by_key]
            self._filled[key] = self.client.submit(
                extract_there, superb_lite.__version__, job.cell.entry.source, _place(job.event), framed, self.device,
                pure=False,
            )  # fmt: skip
        return None

    def train(self, job: Job) -> Future[Outcome]:
        if not _by_key(job):
            return super().train(job)
        filled = self._filled[_states(job)]
        what = (superb_lite.__version__, job.event.task.key, job.cell.entry.source)
        first = int(job.split == "test")  # else the table would stay empty until the last search is over
        return self.pool.submit(train_there, filled, *what, **self._how(job), priority=first)


def _place(event: Event) -> tuple[str, str, int]:
    """Where another machine finds the clips of an event; their paths may differ there."""
    return event.task.key, event.corpus, event.fold


def _clips(task: str, corpus: str, fold: int) -> list[Clip]:
    view = get_task(task).corpus(corpus)
    return [clip for name in ("train", "dev", "test") for clip in view.load(name, fold).clips]


def extract_there(
    version: str, upstream: str, place: tuple[str, str, int], framed: Sequence[tuple[str, str, int]], device: str
) -> None:
    """`extract` on a worker of a cluster, into its own store."""
    _check_version(version)
    keys = {clip.key for other in framed for clip in _clips(*other)}
    with _ALONE:
        extract(load_upstream(upstream), _clips(*place), keys, FeatureStore(), device)


def train_there(filled: None, version: str, task: str, upstream: str, **how: Any) -> Outcome:
    """`train_and_score` on a worker of a cluster, with its own store; `filled` is what had to be ready before."""
    _check_version(version)
    with _ALONE:
        return train_and_score(task, upstream, (), **how)


def _check_version(running: str) -> None:
    if superb_lite.__version__ != running:
        raise SuperbLiteError(
            f"a worker of the cluster has superb_lite {superb_lite.__version__}, and {running} is running: install the "
            "same version everywhere"
        )


@contextlib.contextmanager
def _dask(address: Any) -> Iterator[Any]:
    """A client of the scheduler at `address`, for as long as the block."""
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise SuperbLiteError("the engine 'dask' needs Dask: run  pip install 'superb-lite[cluster]'") from None
    try:
        client = Client(address, timeout=ANSWER_SEC, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise SuperbLiteError(
            f"no Dask scheduler answers at {address!r} within {ANSWER_SEC} s ({str(error).splitlines()[0]}); start one "
            "with  dask scheduler  and pass the address that it prints, such as tcp://node7:8786"
        ) from error
    try:
        yield client
    except KilledWorker as error:
        raise SuperbLiteError(
            f"workers of the cluster died one after another over the same head ({error}): was their memory too small? "
            "What was finished is kept; run it again with larger workers"
        ) from error
    except CancelledError as error:
        raise SuperbLiteError(
            f"the Dask scheduler at {address!r} has gone. What was finished is kept; start a cluster and run it again"
        ) from error
    finally:
        client.close()


@contextlib.contextmanager
def open_engine(
    name: str, workers: int, address: Any, events: Sequence[Event], store: FeatureStore, device: str,
    progress: Progress | None,
) -> Iterator[Here]:  # fmt: skip
    """The engine of that name, for as long as the block. Raises UnknownName, SuperbLiteError (see `olympics`)."""
    common = (events, store, device, progress)
    if name == "dask":
        if address is None:
            raise SuperbLiteError("engine 'dask' needs address=..., where its scheduler listens: tcp://HOST:8786")
        with _dask(address) as client:
            yield Cluster(client, *common)
    elif name != "local":
        raise UnknownName.among("engine", name, ENGINES)
    elif workers == 1:
        yield Here(*common)
    else:
        with _loky(workers) as pool, contextlib.closing(Workers(pool, workers, *common)) as engine:
            yield engine
