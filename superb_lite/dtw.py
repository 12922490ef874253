"""Where in a document does a query sound? Subsequence dynamic time warping, exact, all pairs at once.

Each frame of the query is laid on one frame of the document; from one query frame to the next, the document
moves on by 0, 1 or 2 frames; the query may begin and end anywhere in it. With d the local distances,

    best[i, j] = d[i, j] + min(best[i - 1, j], best[i - 1, j - 1], best[i - 1, j - 2])      best[-1, j] = 0
    score      = -min over j of best[last, j] / query frames

A row needs only the row before, and nothing of its own: `scores` computes the distances of many queries and
documents as one matrix product, and Numba compiles the walk through it, whole rows at a time.

Source: superb/protocol.md section 3.6 (dtw-python's step pattern ``asymmetric``, open begin and end).
Taught in notebook 06 (query by example).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

MIN_FRAMES = 5  # queries with fewer frames score 0 with every document
STD_FLOOR = 1e-9  # of features, and of the scores of a query
RANGE_FLOOR = 1e-9  # of the local distances of one query frame

ROWS, COLUMNS = 512, 2048  # about so many query and document frames in one matrix, to stay in the processor's cache
FLOOR = RANGE_FLOOR / math.e  # of what is compared here, see `_costs`
_SERIES = tuple(np.float32((-1) ** n / math.factorial(n)) for n in reversed(range(11)))  # what is left out: 3e-8
CLIPS = 16  # see `_cosines`
NARROW = 0.1  # a row whose range is below this part of its largest value is too flat for float32

_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine_exp": lambda x, y: torch.expm1(1 - _unit(x) @ _unit(y).T),
    "cosine": lambda x, y: 1 - _unit(x) @ _unit(y).T,
    "cosine_neg_log": lambda x, y: -torch.log(_unit(x) @ _unit(y).T),
    "cityblock": lambda x, y: torch.cdist(x, y, p=1),
    "euclidean": lambda x, y: torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist"),
}
DISTANCES = tuple(_DISTANCES)


# ---------------------------------------------------------------------------------------- before and after


def standardise(features: Sequence[Any]) -> list[Tensor]:
    """Give every dimension mean 0 and standard deviation 1 over all frames of all these clips together.

    features: (frames, dim) each, the queries and the documents of one run. The deviation is the unbiased one, at
    least 1e-9. Returns float32 tensors in the same order. Raises ValueError for unequal or wrong shapes.
    Taught in notebook 06.
    """
    clips = _check("clip", features)
    count = sum(len(clip) for clip in clips)
    mean = sum(clip.double().sum(0) for clip in clips) / count
    squares = sum((clip.double() - mean).square().sum(0) for clip in clips)
    std = (squares / max(1, count - 1)).sqrt().clamp_min(STD_FLOOR)
    return [((clip.double() - mean) / std).float() for clip in clips]


def standardise_scores(raw: Tensor) -> Tensor:
    """(queries, documents) scores to mean 0 and (biased) standard deviation 1 in each row: one threshold fits all.

    A row of equal scores becomes zeros. Taught in notebook 06.

    >>> standardise_scores(torch.tensor([[1.0, 3.0], [5.0, 5.0]])).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    centred = raw.double() - raw.double().mean(dim=1, keepdim=True)
    return centred / raw.double().std(dim=1, correction=0, keepdim=True).clamp_min(STD_FLOOR)


# -------------------------------------------------------------------------------------------------- one pair


@dataclass(frozen=True)
class Alignment:
    """How a query lies in a document.

    distances: (query frames, document frames) float64, what the path has to pay at each pair of frames
    path:      (query frame, document frame) from first to last, one for each query frame
    score:     minus the mean distance on the path; 0 is the best there is
    """

    distances: Tensor
    path: list[tuple[int, int]]
    score: float


def distances(query: Any, document: Any, *, kind: str = "cosine_exp", scaled: bool = True) -> Tensor:
    """(query frames, document frames) float64: how unlike two frames are.

    Args:
        query, document: (frames, dim)
        kind: ``cosine_exp`` is exp(1 - cosine) - 1, SUPERB's default; see `DISTANCES`. A frame of zeros has cosine 0
            with everything
        scaled: stretch each row to 0..1, so that no query frame counts more than another

    Raises:
        ValueError: an unknown kind, or arrays that are not (frames, dim) with the same dim.
    """
    if kind not in _DISTANCES:
        raise ValueError(f"no distance is called {kind!r}; expected one of {', '.join(DISTANCES)}")
    (query,), (document,) = _check("query", [query]), _check("document", [document])
    _same_dim(query, document)
    found = _DISTANCES[kind](query.double(), document.double())
    if not scaled:
        return found
    low, high = found.amin(1, keepdim=True), found.amax(1, keepdim=True)
    return (found - low) / (high - low).clamp_min(RANGE_FLOOR)


def align(
    query: Any, document: Any, *, kind: str = "cosine_exp", scaled: bool = True, open_ends: bool = True
) -> Alignment:
    """The best path of one query through one document, for looking at; `scores` is for many pairs.

    Args:
        query, document, kind, scaled: as for `distances`; MIN_FRAMES is not applied
        open_ends: False makes the path begin at the document's first frame and end at its last

    Raises:
        ValueError: as `distances`; or, without open ends, the document is too long or too short for any path.
    """
    local = distances(query, document, kind=kind, scaled=scaled)
    frames, columns = local.shape
    rows, steps = local.numpy(force=True), []
    best = [0.0] * columns if open_ends else [0.0, *[math.inf] * (columns - 1)]
    for number, row in enumerate(rows.tolist()):
        if number == 0:
            steps.append([0] * columns)
        else:
            before = [math.inf, math.inf, *best]
            choices = [before[j + 2 : (j - 1 if j else None) : -1] for j in range(columns)]  # j, j - 1, j - 2
            steps.append([choice.index(min(choice)) for choice in choices])  # the first of equals: the smallest step
            best = [min(choice) for choice in choices]
        best = [here + so_far for here, so_far in zip(row, best, strict=True)]
    end = best.index(min(best)) if open_ends else columns - 1
    if best[end] == math.inf:
        raise ValueError(
            f"no path leads through {columns} document frames in {frames} query frames when both ends are tied: each "
            "query frame moves by 0, 1 or 2; allow open ends"
        )
    path, at = [], end
    for number in reversed(range(frames)):
        path.append((number, at))
        at -= steps[number][at]
    return Alignment(local, path[::-1], -best[end] / frames)


# ------------------------------------------------------------------------------------------------- all pairs


def scores(queries: Sequence[Any], documents: Sequence[Any]) -> Tensor:
    """(queries, documents) float64: the score of every query in every document, at most 0, on the CPU.

    Distances are ``cosine_exp``, scaled. Queries shorter than MIN_FRAMES score 0. Equal to `align` to 1e-6. What else
    is in the lists does not matter to a pair. As many threads work as torch may use, each on its own documents.

    Args:
        queries, documents: (frames, dim) each, arrays or tensors, already standardised

    Raises:
        ValueError: a list is empty, or a clip is not (frames, dim), has another dim, or has a value that is not finite.

    >>> word = torch.eye(6)
    >>> scores([word], [torch.cat([word, word]), word.flip(0)])[0, 0].item()
    0.0
    """
    queries, documents = _check("query", queries), _check("document", documents)
    for clip in (*queries, *documents):
        _same_dim(clip, documents[0])
    cost = np.zeros((len(queries), len(documents)))
    asked = [_Block.of(queries, places) for places in _shares(queries, MIN_FRAMES, ROWS)]

    def search(places: list[int]) -> None:
        block = _Block.of(documents, places)
        for some in asked:
            cost[np.ix_(some.places, places)] = _costs(some, block)

    with _one_thread_each() as pool:
        list(pool.map(search, _shares(documents, 1, COLUMNS)))
    return torch.from_numpy(0.0 - cost / np.array([[len(query)] for query in queries]))


def _shares(clips: list[Tensor], shortest: int, size: int) -> list[list[int]]:
    """Places of the clips that have at least `shortest` frames, together about `size` frames in each share."""
    shares: list[list[int]] = []
    room = 0
    for place, clip in enumerate(clips):
        if len(clip) < shortest:
            continue
        if not shares or len(clip) > room:
            shares.append([])
            room = size
        shares[-1].append(place)
        room -= len(clip)
    return shares


@dataclass(frozen=True)
class _Block:
    """Clips that are worked on together. places: in the list they come from; starts: of each, and the end of the last.

    frames: of all clips, one behind the other, (frames, dim) float32, with length 1.
    """

    places: list[int]
    clips: list[Tensor]
    starts: np.ndarray
    frames: Tensor

    @classmethod
    def of(cls, everyone: list[Tensor], places: list[int]) -> _Block:
        clips = [everyone[place] for place in places]
        return cls(places, clips, np.cumsum([0, *map(len, clips)]), _unit(torch.cat(clips).float().cpu()))


def _costs(queries: _Block, documents: _Block) -> np.ndarray:
    """(queries, documents) float64: the price of the best path of every pair."""
    matrix = _cosines(queries.frames, documents.frames).numpy()
    _exp_of_minus(matrix)  # up to a factor and a constant this is exp(1 - cosine) - 1, and scaling removes both
    cost, narrow = _priced(matrix, queries.starts, documents.starts)
    for i, j in zip(*narrow.nonzero(), strict=True):  # stretching a flat row magnifies rounding: once more, precisely
        query, document = (_unit(clip.double().cpu()) for clip in (queries.clips[i], documents.clips[j]))
        ends = np.array([0, len(query)]), np.array([0, len(document)])
        cost[i, j] = _priced(torch.exp(-query @ document.T).numpy(), *ends)[0].item()
    return cost


def _cosines(queries: Tensor, documents: Tensor) -> Tensor:
    """(query frames, dim) and (document frames, dim) of length 1 -> (query frames, document frames).

    A matrix product, written as a convolution over single points: from 16 clips in a batch on, torch leaves those to
    oneDNN. Its plain product is MKL's, which needs more than twice as long on a processor that is not Intel's.
    """
    rows, dim = queries.shape
    points = torch.nn.functional.pad(queries, (0, 0, 0, -rows % CLIPS)).view(CLIPS, -1, 1, dim)
    found = torch.nn.functional.conv2d(points.permute(0, 3, 1, 2), documents[:, :, None, None])
    return found.permute(0, 2, 3, 1).reshape(-1, len(documents))[:rows]


def _priced(unlike: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """What `_walk` finds, float64 prices and bool marks, in either precision."""
    cost = np.zeros((len(rows) - 1, len(columns) - 1))
    narrow = np.zeros(cost.shape, dtype=bool)
    ends = np.zeros(2, unlike.dtype)
    bits = f"i{unlike.itemsize}"
    _walk(unlike, unlike.view(bits), rows, columns, ends, ends.view(bits), cost, narrow)
    return cost, narrow


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _exp_of_minus(matrix):
    """Numbers between -1 and 1 become exp(-number), as exactly as float32 can say it: ten terms of the series."""
    c10, c9, c8, c7, c6, c5, c4, c3, c2, c1, c0 = _SERIES  # by name: a loop over them would not run in vectors
    for number in range(len(matrix)):
        row = matrix[number]
        for place in range(len(row)):
            x = row[place]
            high = c4 + x * (c5 + x * (c6 + x * (c7 + x * (c8 + x * (c9 + x * c10)))))
            row[place] = c0 + x * (c1 + x * (c2 + x * (c3 + x * high)))


@numba.njit(nogil=True, cache=True, fastmath={"nnan", "nsz", "contract"})
def _walk(unlike, bits, rows, columns, ends, end_bits, cost, narrow):
    """Best path of every pair. unlike: (query frames, document frames), above 0; bits, end_bits: same memory, integers.

    Numbers above 0 are in the order of their bits, and a processor finds the extremes of integers in vectors.
    """
    for document in range(len(columns) - 1):
        first, behind = columns[document], columns[document + 1]
        best, new = np.empty(behind - first + 2, unlike.dtype), np.empty(behind - first + 2, unlike.dtype)
        best[:2] = new[:2] = np.inf  # two columns before the first frame
        for query in range(len(rows) - 1):
            best[2:] = 0
            for row in range(rows[query], rows[query + 1]):
                _extremes(bits[row, first:behind], end_bits)
                low, span = ends[0], ends[1] - ends[0]
                narrow[query, document] |= span < NARROW * ends[1]
                ends[1] = 1 / max(span, FLOOR)  # in an array, to stay in the matrix' precision
                _step(best, unlike[row, first:behind], low, ends[1], new)
                best, new = new, best
            cost[query, document] = best[2:].min()


@numba.njit(nogil=True, cache=True)
def _extremes(values, ends):
    low = high = values[0]
    for place in range(len(values)):  # an iterator would not run in vectors
        low, high = min(low, values[place]), max(high, values[place])
    ends[0], ends[1] = low, high


@numba.njit(nogil=True, cache=True, fastmath={"nnan", "nsz", "contract"})
def _step(best, unlike, low, scale, new):
    """One query frame further: new = unlike, scaled, + the cheapest of three places before."""
    for j in range(len(unlike)):
        near = best[j + 2] if best[j + 2] < best[j + 1] else best[j + 1]
        new[j + 2] = (best[j] if best[j] < near else near) + (unlike[j] - low) * scale


@contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch may use, in each of which torch uses no more than that one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------------- checks


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1; rows of zeros stay zeros."""
    return torch.nn.functional.normalize(x, dim=1)


def _tensor(clip: Any) -> Tensor:
    if not isinstance(clip, Tensor):
        clip = torch.from_numpy(np.array(clip))  # a copy: arrays that are views into files cannot be written to
    return clip if clip.dtype == torch.float64 else clip.float()


def _check(what: str, clips: Sequence[Any]) -> list[Tensor]:
    """Tensors (float64 stays, the rest becomes float32). Raises ValueError."""
    if len(clips) == 0:
        raise ValueError(f"got no {what} at all; expected a list of arrays (frames, dim)")
    tensors = [_tensor(clip) for clip in clips]
    for place, tensor in enumerate(tensors):
        if tensor.ndim != 2 or 0 in tensor.shape:
            raise ValueError(
                f"{what} {place} has the shape {tuple(tensor.shape)}, expected (frames, dim) with at least one frame; "
                "choose one layer of its hidden states"
            )
        _same_dim(tensor, tensors[0])
        if not math.isfinite(tensor.sum(dtype=torch.float64)):  # one look is enough, and four times faster than all()
            raise ValueError(f"{what} {place} has values that are not finite; expected finite features")
    return tensors


def _same_dim(one: Tensor, other: Tensor) -> None:
    if one.shape[1] != other.shape[1]:
        raise ValueError(
            f"frames have {one.shape[1]} and {other.shape[1]} dimensions, expected as many in all clips; are they "
            "states of one upstream?"
        )
