"""How fast is it, and is it still right? ``superb-lite bench qbe`` runs our alignment and dtw-python's side by side.

dtw-python is what SUPERB's own query by example calls, once per pair. It is licensed under the GPL, so it is
imported here and in tests only, if it is installed; nothing else in the package knows it.

Taught in notebook 06 (query by example).
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from superb_lite import dtw
from superb_lite.corpora import get_corpus
from superb_lite.features import FeatureStore
from superb_lite.types import Progress, Split, SuperbLiteError
from superb_lite.upstreams import load_upstream

TOLERANCE = 1e-6  # between our score of a pair and dtw-python's
REPEATS = 3  # of our run, which takes a blink; the median counts


@dataclass(frozen=True)
class Comparison:
    """What two programs needed for the same pairs.

    cells: query frames x document frames, over all pairs; seconds: (ours, dtw-python's), from standardised features
    to scores; gap: the largest difference between two scores of a pair; threads: ours (dtw-python uses one)
    """

    pairs: int
    cells: int
    seconds: tuple[float, float]
    gap: float
    threads: int

    @property
    def ratio(self) -> float:
        """How many times faster we are."""
        return self.seconds[1] / self.seconds[0]

    def __str__(self) -> str:
        ours, theirs = (f"{sec:8.3f} s  {self.cells / sec / 1e6:7.1f} M cells/s" for sec in self.seconds)
        return (
            f"{self.pairs} pairs, {self.cells / 1e6:.1f} M cells\n"
            f"superb_lite  {ours}  ({self.threads} threads)\n"
            f"dtw-python   {theirs}\n"
            f"{self.ratio:.1f} times faster; largest difference between two scores {self.gap:.1e}"
        )


def qbe(
    corpus: str = "mini",
    upstream: str = "tiny_hubert",
    *,
    queries: int = 30,
    documents: int = 30,
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
    dtw.scores(queries[:1], documents[:1])  # wakes the threads
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        ours = dtw.scores(queries, documents)
        taken.append(time.perf_counter() - start)
    arrays = [clip.numpy() for clip in documents]
    theirs(queries[0].numpy(), arrays[0])
    start = time.perf_counter()
    reference = [[theirs(query.numpy(), array) for array in arrays] for query in queries]
    seconds = time.perf_counter() - start
    return Comparison(
        pairs=len(queries) * len(documents),
        cells=sum(map(len, queries)) * sum(map(len, documents)),
        seconds=(sorted(taken)[REPEATS // 2], seconds),
        gap=float(np.abs(ours.numpy() - np.array(reference)).max()),
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
