"""Where in a document does a query sound? Subsequence dynamic time warping, exact, all pairs at once.

Each frame of the query is laid on one frame of the document; from one query frame to the next, the document
moves on by 0, 1 or 2 frames; the query may begin and end anywhere in it. With d the local distances,

    best[i, j] = d[i, j] + min(best[i - 1, j], best[i - 1, j - 1], best[i - 1, j - 2])      best[-1, j] = 0
    score      = -min over j of best[last, j] / query frames

A row needs only the row before, so `scores` walks through the frames of the queries and does one row for
several queries, many documents and all their frames in one vector operation.

Source: superb/protocol.md section 3.6 (dtw-python's step pattern ``asymmetric``, open begin and end).
Taught in notebook 06 (query by example).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

MIN_FRAMES = 5  # queries with fewer frames score 0 with every document
STD_FLOOR = 1e-9  # of features, and of the scores of a query
RANGE_FLOOR = 1e-9  # of the local distances of one query frame

COLUMNS = 8192  # document frames in one operation, padding included ...
QUERIES = 16  # ... for so many queries ...
ROWS = 1024  # ... with at most so many frames together; these three keep the work in the processor's cache
STEPS = 2  # query frames whose distances are scaled in one go
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
    is in the lists does not matter to a pair. The work is done where the documents are (CPU or CUDA).

    Args:
        queries, documents: (frames, dim) each, arrays or tensors, already standardised

    Raises:
        ValueError: a list is empty, or a clip is not (frames, dim), has another dim, or has a value that is not finite.

    >>> word = torch.eye(6)
    >>> scores([word], [torch.cat([word, word]), word.flip(0)])[0, 0].item()
    -0.0
    """
    queries, documents = _check("query", queries), _check("document", documents)
    for clip in (*queries, *documents):
        _same_dim(clip, documents[0])
    found = torch.zeros(len(queries), len(documents), dtype=torch.float64)
    units = [_unit(document.double()) for document in documents]
    stacks = _stacks([_unit(query.double()).to(units[0].device) for query in queries])
    for group in _groups([len(unit) for unit in units]):
        padded = _pad([units[place] for place in group])
        single = padded.float()
        for stack in stacks:
            cost, narrow = _costs(stack, single)
            cost = cost.double()
            if bool(narrow.any()):  # stretching a flat row magnifies rounding: those documents again, precisely
                cost[:, narrow] = _costs(stack, padded[:, narrow])[0]
            cost = cost.cpu() / torch.tensor(stack.lengths, dtype=torch.float64)[:, None]
            found[torch.tensor(stack.places)[:, None], torch.tensor(group)] = -cost
    return found


@dataclass(frozen=True)
class _Stack:
    """Queries that are matched together, the longest first, so that those still running are always the first ones.

    rows:   (frames of all queries, dim) float64: first frames of all, then second frames of those that have one ...
    counts: how many queries have a first, a second ... frame
    """

    places: list[int]
    lengths: list[int]
    counts: list[int]
    rows: Tensor


def _stacks(queries: list[Tensor]) -> list[_Stack]:
    order = sorted((place for place, query in enumerate(queries) if len(query) >= MIN_FRAMES),
                   key=lambda place: -len(queries[place]))  # fmt: skip
    stacks: list[_Stack] = []
    while order:
        size = max(1, min(QUERIES, ROWS // len(queries[order[0]])))
        places, order = order[:size], order[size:]
        lengths = [len(queries[place]) for place in places]
        counts = [sum(length > step for length in lengths) for step in range(lengths[0])]
        rows = [queries[places[at]][step] for step, count in enumerate(counts) for at in range(count)]
        stacks.append(_Stack(places, lengths, counts, torch.stack(rows)))
    return stacks


def _groups(lengths: list[int]) -> list[list[int]]:
    """Places of documents of similar length, so many that COLUMNS frames hold them (one document may be longer)."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups and (len(groups[-1]) + 1) * lengths[place] <= COLUMNS:
            groups[-1].append(place)  # sorted: this document is the longest of its group
        else:
            groups.append([place])
    return groups


def _pad(documents: list[Tensor]) -> Tensor:
    """(frames, documents, dim) float64: shorter documents repeat their last frame.

    That changes no score: the copies add nothing to a row's extremes, and whatever a path does among them it could
    have done by staying on the last frame, at the same price.
    """
    longest = max(len(document) for document in documents)
    rows = [torch.arange(longest).clamp_max(len(document) - 1) for document in documents]
    return torch.stack([document[row] for document, row in zip(documents, rows, strict=True)], dim=1)


def _costs(stack: _Stack, documents: Tensor) -> tuple[Tensor, Tensor]:
    """(queries, documents): the price of the best path; and (documents,) bool: are there rows too flat for float32?

    documents: (frames, documents, dim), rows of length 1; the work is done in their precision.
    """
    frames, count, dim = documents.shape
    # exp(-cosine) is exp(1 - cosine) - 1 up to a factor and a constant, and scaling removes both
    unlike = torch.mm(stack.rows.to(documents.dtype).neg(), documents.reshape(-1, dim).T).view(-1, frames, count)
    best = documents.new_full((len(stack.places), frames + 2, count), math.inf)  # two columns before the first frame
    best[:, 2:] = 0
    least, narrow = documents.new_empty((len(stack.places), frames, count)), documents.new_zeros(count).bool()
    at = 0
    for first in range(0, len(stack.counts), STEPS):
        counts = stack.counts[first : first + STEPS]
        local = unlike[at : at + sum(counts)].exp_()  # (rows, frames, documents)
        low, high = _extreme(local, torch.minimum), _extreme(local, torch.maximum)
        narrow |= (high - low < NARROW * high).any(0)
        local -= low[:, None]
        scale = (high - low).clamp_min_(RANGE_FLOOR / math.e).reciprocal_()[:, None]
        row = 0
        for running in counts:
            here, min_of_3 = best[:running], least[:running]
            torch.minimum(here[:, 2:], here[:, 1:-1], out=min_of_3)
            torch.minimum(min_of_3, here[:, :-2], out=min_of_3)
            torch.addcmul(min_of_3, local[row : row + running], scale[row : row + running], out=here[:, 2:])
            row += running
        at += row
    return best[:, 2:].amin(1), narrow  # the rows of queries that had ended were left as they were


def _extreme(x: Tensor, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Minimum or maximum over dim 1, by halves that may overlap: several times faster than ``amin`` over it."""
    while x.shape[1] > 1:
        half = (x.shape[1] + 1) // 2
        x = pick(x[:, :half], x[:, -half:])
    return x[:, 0]


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
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{what} {place} has values that are not finite; expected finite features")
    return tensors


def _same_dim(one: Tensor, other: Tensor) -> None:
    if one.shape[1] != other.shape[1]:
        raise ValueError(
            f"frames have {one.shape[1]} and {other.shape[1]} dimensions, expected as many in all clips; are they "
            "states of one upstream?"
        )
