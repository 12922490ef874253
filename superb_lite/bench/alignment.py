"""``superb-lite bench qbe``: our alignment and dtw-python's side by side, the same pairs, the same scores?

dtw-python is what SUPERB's own query by example calls, once per pair. It is licensed under the GPL, so it is
imported here and in tests only, if it is installed; nothing else in the package knows it.

Taught in notebook 06 (query by example).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from superb_lite import dtw
from superb_lite.bench.machine import BUSY, Took, timed, typical
from superb_lite.corpora import get_corpus
from superb_lite.features import FeatureStore
from superb_lite.types import Progress, Split, SuperbLiteError
from superb_lite.upstreams import load_upstream

TOLERANCE = 1e-6  # between our score of a pair and dtw-python's
REPEATS = 3  # of our run, spread over theirs, so that both meet the same neighbours; the median counts


@dataclass(frozen=True)
class Comparison:
    """What two programs needed for the same pairs, from standardised features to scores.

    cells: query frames x document frames, over all pairs; gap: the largest difference between two scores of a pair;
    threads: ours (dtw-python has one)
    """

    pairs: int
    cells: int
    ours: Took
    theirs: Took
    gap: float
    threads: int

    @property
    def ratio(self) -> float:
        """How many times faster we are, by the clock on the wall: only fair on an idle machine, see `busy`."""
        return self.theirs.wall / self.ours.wall

    @property
    def processor_ratio(self) -> float:
        """How many times less work we are, whoever else is working."""
        return self.theirs.processor / self.ours.processor

    @property
    def busy(self) -> bool:
        """Was the machine doing something else? Then a long run waits more than a short one and `ratio` flatters us."""
        return self.theirs.wall > BUSY * self.theirs.processor

    def __str__(self) -> str:
        lines = [f"{self.pairs} pairs, {self.cells / 1e6:.1f} M cells (query frames x document frames)"]
        for name, took in ((f"superb_lite, {self.threads} threads", self.ours), ("dtw-python, 1 thread", self.theirs)):
            wall, processor = (f"{sec:8.3f} s {self.cells / sec / 1e6:7.1f} M cells/s"
                               for sec in (took.wall, took.processor))  # fmt: skip
            lines.append(f"{name:24} wall {wall}   processor {processor}")
        lines.append(f"{self.ratio:.1f} times faster by the wall clock, {self.processor_ratio:.1f} by processor time")
        if self.busy:
            lines.append("other programs had the processor too: believe the processor time, or run it again alone")
        lines.append(f"largest difference between two scores of a pair: {self.gap:.1e}")
        return "\n".join(lines)


def qbe(
    corpus: str = "mini",
    upstream: str = "tiny_hubert",
    *,
    queries: int = 90,
    documents: int = 90,
    store: FeatureStore | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Align some queries of the test split with some documents, by us and by dtw-python, on the last layer.

    Args:
        corpus: one that has QbE, or ``generated``: random walks, for which `upstream` is not used

    Raises:
        SuperbLiteError: dtw-python is not installed, or a pair's scores differ by more than TOLERANCE.
    """
    theirs = official()
    if corpus == "generated":
        asked, searched = generated(queries, documents)
    else:
        split = get_corpus(corpus).qbe("test", 0)
        asked, searched = _features(split, upstream, queries, documents, store, progress)
    found = compare(asked, searched, theirs)
    if not found.gap <= TOLERANCE:
        raise SuperbLiteError(f"a score differs from dtw-python's by {found.gap:.2e}, expected at most {TOLERANCE:g}")
    return found


def compare(
    queries: Sequence[Any], documents: Sequence[Any], theirs: Callable[[np.ndarray, np.ndarray], float]
) -> Comparison:
    """Time both on (frames, dim) clips. theirs: (query, document) -> score, called for every pair."""
    frames = dtw.standardise([*queries, *documents])
    queries, documents = frames[: len(queries)], frames[len(queries) :]
    arrays = [[clip.numpy() for clip in clips] for clips in (queries, documents)]
    theirs(arrays[0][0], arrays[1][0])
    runs, parts, rows = [], [], []
    for share in np.array_split(np.arange(len(queries)), REPEATS):
        dtw.scores(queries, documents)  # wakes the threads and the memory, which slept while the other ran
        ours, took = timed(lambda: dtw.scores(queries, documents))
        runs.append(took)
        for place in share.tolist():
            row, took = timed(lambda query=arrays[0][place]: [theirs(query, document) for document in arrays[1]])
            rows.append(row)
            parts.append(took)
    return Comparison(
        pairs=len(queries) * len(documents),
        cells=sum(map(len, queries)) * sum(map(len, documents)),
        ours=typical(runs),
        theirs=Took(sum(part.wall for part in parts), sum(part.processor for part in parts)),
        gap=float(np.abs(ours.numpy() - np.array(rows)).max()),
        threads=torch.get_num_threads(),
    )


def official() -> Callable[[np.ndarray, np.ndarray], float]:
    """SUPERB's way to score one pair: SciPy's cosine distances, scaled, then dtw-python.

    Raises SuperbLiteError if dtw-python is not installed.
    """
    from scipy.spatial.distance import cdist

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it greets
            from dtw import dtw as align
    except ImportError as error:
        raise SuperbLiteError(f"dtw-python is not installed ({error}): pip install dtw-python") from error

    def one(query: np.ndarray, document: np.ndarray) -> float:
        if len(query) < dtw.MIN_FRAMES:
            return 0.0
        local = np.exp(cdist(query, document, "cosine")) - 1
        low, high = local.min(axis=1, keepdims=True), local.max(axis=1, keepdims=True)
        local = (local - low) / np.maximum(high - low, dtw.RANGE_FLOOR)
        return -align(local, step_pattern="asymmetric", open_begin=True, open_end=True).normalizedDistance

    return one


def generated(queries: int, documents: int, *, dim: int = 128, seed: int = 0) -> tuple[list[np.ndarray], ...]:
    """Random walks of 15 to 40 and 150 to 350 frames, which drift the way speech features do."""
    dice = np.random.default_rng(seed)

    def walks(count: int, shortest: int, longest: int) -> list[np.ndarray]:
        sizes = dice.integers(shortest, longest + 1, count)
        return [np.cumsum(dice.normal(size=(size, dim)), axis=0).astype(np.float32) for size in sizes]

    return walks(queries, 15, 40), walks(documents, 150, 350)


def _features(
    split: Split, upstream: str, queries: int, documents: int, store: FeatureStore | None, progress: Progress | None
) -> tuple[list[np.ndarray], ...]:
    """The last layer of some queries and some documents, evenly spread over the split."""
    network = load_upstream(upstream)
    store = FeatureStore() if store is None else store
    picked = []
    for role, wanted in (("query", queries), ("document", documents)):
        clips = [clip for clip in split.clips if clip.label("role") == role]
        places = np.unique(np.linspace(0, len(clips) - 1, min(wanted, len(clips))).round().astype(int))
        states = store.get(network, [clips[place] for place in places], pooled=False, progress=progress)
        picked.append([array[-1] for array in states])
    return tuple(picked)
