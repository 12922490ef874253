"""Exercises of notebook 06: local distances, the recursion, the way back, the term-weighted value, cutting silence."""

from __future__ import annotations

import math

import numpy as np

from superb_lite.course.exercises import Exercise, WrongAnswer
from superb_lite.metrics import TWV_BETA

STEPS = 3  # from one query frame to the next, the document moves on by 0, 1 or 2

# ----------------------------------------------------------------------- q1: local distances


def local_distances(query: np.ndarray, document: np.ndarray) -> np.ndarray:
    """(query frames, dim), (document frames, dim) -> (query frames, document frames), each row stretched to 0..1."""
    return _stretched(_cosine_exp(query, document), axis=1)


def _cosine_exp(query: np.ndarray, document: np.ndarray) -> np.ndarray:
    return np.expm1(1 - _unit(query) @ _unit(document).T)


def _unit(frames: np.ndarray) -> np.ndarray:
    return frames / np.maximum(np.linalg.norm(frames, axis=1, keepdims=True), 1e-12)


def _stretched(table: np.ndarray, axis: int | None) -> np.ndarray:
    low, high = table.min(axis=axis, keepdims=True), table.max(axis=axis, keepdims=True)
    return (table - low) / np.maximum(high - low, 1e-9)


def _not_stretched(query, document):
    return _cosine_exp(query, document)


def _whole_table(query, document):
    return _stretched(_cosine_exp(query, document), axis=None)


def _no_exponential(query, document):
    return _stretched(1 - _unit(query) @ _unit(document).T, axis=1)


def _lengths_left_in(query, document):
    return _stretched(np.expm1(1 - query @ document.T), axis=1)


def _zero_over_zero(query, document):
    found = local_distances(query, document)
    return np.where(np.abs(query).max(axis=1, keepdims=True) > 0, found, np.nan)


def _frame_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(short: int, long: int, dim: int) -> tuple:
        return rng.normal(size=(short, dim)), rng.normal(size=(long, dim)) + 0.3

    silent, document = case(4, 6, 3)
    silent[2] = 0.0  # a frame of zeros has cosine 0 with everything, so its row is flat
    return [case(5, 9, 4), case(3, 4, 2), (silent, document)]


# ----------------------------------------------------------------------- q2: the recursion


def accumulate(local: np.ndarray) -> np.ndarray:
    """(query frames, document frames) -> the same shape: the price of the best path that ends there."""
    totals = [np.asarray(local[0], dtype=float)]
    for row in local[1:]:
        totals.append(row + _choices(totals[-1], math.inf).min(axis=0))
    return np.stack(totals)


def _choices(before: np.ndarray, outside: float) -> np.ndarray:
    """(3, document frames): the price in the row before, if the document moves on by 0, 1 or 2."""
    padded = np.concatenate([np.full(STEPS - 1, outside), before])
    return np.stack([padded[STEPS - 1 - step : len(padded) - step] for step in range(STEPS)])


def _begins_at_zero(local):
    tied = np.array(local, dtype=float)
    tied[0, 1:] = math.inf
    return accumulate(tied)


def _around_the_corner(local):
    totals = [np.asarray(local[0], dtype=float)]
    for row in local[1:]:
        totals.append(row + np.min([np.roll(totals[-1], step) for step in range(STEPS)], axis=0))
    return np.stack(totals)


def _without_leaps(local):
    totals = [np.asarray(local[0], dtype=float)]
    for row in local[1:]:
        totals.append(row + _choices(totals[-1], math.inf)[:2].min(axis=0))
    return np.stack(totals)


def _never_waits(local):
    totals = [np.asarray(local[0], dtype=float)]
    for row in local[1:]:
        totals.append(row + _choices(totals[-1], math.inf)[1:].min(axis=0))
    return np.stack(totals)


def _symmetric(local):
    """The recursion of most text books: the document may move on while the query waits."""
    totals = np.array(local, dtype=float)
    for i in range(1, len(totals)):
        for j in range(totals.shape[1]):
            before = [totals[i - 1, j]] + ([totals[i, j - 1], totals[i - 1, j - 1]] if j else [])
            totals[i, j] += min(before)
    return totals


def _local_inputs(rng: np.random.Generator) -> list[tuple]:
    late = rng.random((4, 6))
    late[:, :3] += 1.0  # cheap frames at the right edge: tempting to come round the corner
    fast = rng.random((8, 20))
    fast[3] *= 0.02  # a cheap row: whoever may move along it while the query waits, does
    return [(table,) for table in (rng.random((5, 8)), fast, rng.random((1, 4)), rng.random((4, 1)), late)]


# ----------------------------------------------------------------------- q3: the way back


def trace(totals: np.ndarray) -> list[int]:
    """(query frames, document frames) -> the document frame under each query frame, on the best path."""
    path = [int(np.argmin(totals[-1]))]
    for row in totals[-2::-1]:
        here = path[-1]
        path.append(here - int(np.argmin([row[here - step] for step in range(STEPS) if here >= step])))
    return path[::-1]


def _backwards(totals):
    return trace(totals)[::-1]


def _row_by_row(totals):
    return [int(place) for place in np.argmin(totals, axis=1)]


def _from_the_end(totals):
    tied = np.array(totals)
    tied[-1, :-1] = math.inf
    return trace(tied)


def _without_end(totals):
    return trace(totals)[:-1]


def _largest_step(totals):
    path = [int(np.argmin(totals[-1]))]
    for row in totals[-2::-1]:
        here = path[-1]
        path.append(min((here - step for step in reversed(range(STEPS)) if here >= step), key=lambda j: row[j]))
    return path[::-1]


def _totals_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(short: int, long: int) -> np.ndarray:
        return accumulate(rng.random((short, long)))

    tied = np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0], [5.0, 4.0, 3.0, 3.0]])  # many paths cost the same
    return [(case(6, 9),), (case(1, 5),), (case(5, 2),), (case(12, 20),), (tied,)]


# ----------------------------------------------------------------- q4: the term-weighted value


def term_weighted_value(scores: np.ndarray, truth: np.ndarray, threshold: float, beta: float = TWV_BETA) -> float:
    """(queries, documents), (queries, documents) bool, a threshold -> 1 - mean over queries of misses + beta alarms."""
    misses, alarms = _shares(scores >= threshold, truth)
    return float(1 - (misses + beta * alarms).mean())


def _shares(accepted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(queries,) each: missed share of the documents with the query, accepted share of those without."""
    return (truth & ~accepted).sum(1) / truth.sum(1), (~truth & accepted).sum(1) / (~truth).sum(1)


def _all_trials_together(scores, truth, threshold, beta=TWV_BETA):
    accepted = scores >= threshold
    return float(1 - (~accepted)[truth].mean() - beta * accepted[~truth].mean())


def _strictly_above(scores, truth, threshold, beta=TWV_BETA):
    return term_weighted_value(scores, truth, np.nextafter(threshold, np.inf), beta)


def _cost_only(scores, truth, threshold, beta=TWV_BETA):
    return 1 - term_weighted_value(scores, truth, threshold, beta)


def _misses_dear(scores, truth, threshold, beta=TWV_BETA):
    misses, alarms = _shares(scores >= threshold, truth)
    return float(1 - (beta * misses + alarms).mean())


def _of_all_documents(scores, truth, threshold, beta=TWV_BETA):
    accepted, documents = scores >= threshold, truth.shape[1]
    return float(1 - ((truth & ~accepted).sum(1) + beta * (~truth & accepted).sum(1)).mean() / documents)


def _value_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(queries: int, documents: int, *rest: float) -> tuple:
        truth = rng.random((queries, documents)) < 0.3
        truth[:, 0], truth[:, 1] = True, False  # each query is somewhere, and not everywhere
        scores = truth + rng.normal(size=truth.shape)
        scores[0, 1] = rest[0] + 0.1  # at least one false alarm, and one miss
        scores[-1, 0] = rest[0] - 0.1
        return scores, truth, *rest

    whole = np.array([[2.0, 1.0, 2.0, 0.0], [1.0, 2.0, 0.0, 2.0]])  # scores that equal the threshold
    found = np.array([[True, False, False, False], [True, True, False, False]])
    return [case(5, 8, 0.8), case(3, 12, 0.5, 2.0), (whole, found, 2.0)]


# ----------------------------------------------------------------------- q5: cutting silence


def speech_ends(levels: np.ndarray, depth: float = 20.0) -> tuple[int, int]:
    """(frames,) dB -> the first frame at most `depth` below the loudest, and one past the last such frame."""
    loud = np.flatnonzero(levels >= levels.max() - depth)
    return int(loud[0]), int(loud[-1]) + 1


def _last_frame_lost(levels, depth=20.0):
    first, end = speech_ends(levels, depth)
    return first, end - 1


def _until_first_pause(levels, depth=20.0):
    loud = levels >= levels.max() - depth
    first = int(np.argmax(loud))
    soft = np.flatnonzero(~loud[first:])
    return first, first + int(soft[0]) if len(soft) else len(levels)


def _below_full_scale(levels, depth=20.0):
    loud = np.flatnonzero(levels >= -depth)
    return (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, len(levels))


def _below_the_mean(levels, depth=20.0):
    loud = np.flatnonzero(levels >= levels.mean() - depth)
    return int(loud[0]), int(loud[-1]) + 1


def _softer_than(levels, depth=20.0):
    loud = np.flatnonzero(levels > levels.max() - depth)
    return int(loud[0]), int(loud[-1]) + 1


def _level_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(before: int, word: int, after: int, *rest: float) -> tuple:
        speech = -18.0 - 8 * rng.random(word)
        speech[word // 2] = -50.0  # a stop in the middle of the word
        return np.concatenate([-75 - 5 * rng.random(before), speech, -75 - 5 * rng.random(after)]), *rest

    edge = np.array([-60.0, -35.0, -15.0, -40.0, -35.0, -36.0])  # exactly 20 dB below the loudest still counts
    return [case(7, 12, 9), case(3, 8, 2, 12.0), (edge,), (np.array([-30.0, -28.0]), 5.0)]


EXERCISES = {
    "qbe.q1": Exercise(
        key="qbe.q1",
        title="how unlike are two frames?",
        reference=local_distances,
        inputs=_frame_inputs,
        wrong=(
            WrongAnswer(
                "not stretched", _not_stretched, "the rows are not stretched: in each row the smallest value should "
                "become 0 and the largest 1"
            ),
            WrongAnswer(
                "whole table", _whole_table, "the table is stretched as a whole; take the smallest and the largest "
                "value of each row, axis=1"
            ),
            WrongAnswer("no exponential", _no_exponential, "the exponential is missing: exp(1 - cosine) - 1"),
            WrongAnswer(
                "lengths left in", _lengths_left_in, "it uses the dot product of the frames; divide both by their "
                "lengths first, then it is the cosine"
            ),
            WrongAnswer(
                "zero over zero", _zero_over_zero, "a row in which all values are equal becomes NaN; keep the divisor "
                "at 1e-9 or above, so that it becomes zeros"
            ),
        ),
        hints=(
            "Divide each frame by its length (np.linalg.norm along axis 1, at least 1e-12). Then one matrix product "
            "gives all cosines, (query frames, document frames).",
            "d = np.exp(1 - cosines) - 1. Then low = d.min(axis=1, keepdims=True), and high likewise.",
            "return (d - low) / np.maximum(high - low, 1e-9)",
        ),
    ),
    "qbe.q2": Exercise(
        key="qbe.q2",
        title="the recursion",
        reference=accumulate,
        inputs=_local_inputs,
        wrong=(
            WrongAnswer(
                "tied beginning", _begins_at_zero, "it forces the path to begin at the document's first frame; the "
                "query may begin anywhere, so the first row is local[0] as it stands"
            ),
            WrongAnswer(
                "round the corner", _around_the_corner, "at the left edge an index becomes negative, and Python counts "
                "from the right end then: a path comes round the corner. There is nothing before frame 0"
            ),
            WrongAnswer(
                "no leaps", _without_leaps, "the document moves on by 0 or 1 only; a fast speaker needs the step of 2, "
                "too"
            ),
            WrongAnswer(
                "never waits", _never_waits, "the document moves on by 1 or 2 only; a slow query needs the step of 0, "
                "too"
            ),
            WrongAnswer(
                "symmetric", _symmetric, "the document moves on while the query waits, as in most text books. Here "
                "each query frame is used exactly once, so a row looks only at the row before"
            ),
        ),
        hints=(
            "The first row of the answer is local[0]. From then on each row needs only the row before it.",
            "Put two columns of np.inf to the left of the row before: before = np.concatenate([[np.inf, np.inf], "
            "totals[i - 1]]). Then j, j - 1 and j - 2 are before[2:], before[1:-1] and before[:-2].",
            "totals[i] = local[i] + np.minimum(np.minimum(before[2:], before[1:-1]), before[:-2])",
        ),
    ),
    "qbe.q3": Exercise(
        key="qbe.q3",
        title="the way back",
        reference=trace,
        inputs=_totals_inputs,
        wrong=(
            WrongAnswer(
                "backwards", _backwards, "the path is the right one, but from its end to its beginning: turn it round"
            ),
            WrongAnswer(
                "row by row", _row_by_row, "it takes the smallest total of every row, so the path leaps about; only "
                "the last row is free, all others depend on where you are"
            ),
            WrongAnswer(
                "from the end", _from_the_end, "it begins at the document's last frame; the query may end anywhere, so "
                "begin where the last row is smallest"
            ),
            WrongAnswer("one short", _without_end, "the path is one frame short: it has one entry per query frame"),
            WrongAnswer(
                "largest step", _largest_step, "where two steps cost the same it takes the larger one; take the "
                "smaller step"
            ),
        ),
        hints=(
            "Begin at j = np.argmin(totals[-1]), and go through the rows above it, from the last but one to the first.",
            "In each row compare totals[i, j], totals[i, j - 1] and totals[i, j - 2], as far as they exist. np.argmin "
            "of that list is the step, and takes the first of equals.",
            "for row in totals[-2::-1]: j -= int(np.argmin([row[j - step] for step in (0, 1, 2) if step <= j])), and "
            "append j; return the list turned round",
        ),
    ),
    "qbe.q4": Exercise(
        key="qbe.q4",
        title="the term-weighted value",
        reference=term_weighted_value,
        inputs=_value_inputs,
        wrong=(
            WrongAnswer(
                "all trials together", _all_trials_together, "all trials are thrown together, so a query that is in "
                "many documents counts more; take both shares for each query, then the mean over queries"
            ),
            WrongAnswer(
                "strictly above", _strictly_above, "a score that equals the threshold is rejected; accept what is at "
                "least the threshold"
            ),
            WrongAnswer("cost only", _cost_only, "that is what the errors cost; the value is 1 minus that"),
            WrongAnswer(
                "misses dear", _misses_dear, "beta stands at the misses; it is the false alarms that it makes dear"
            ),
            WrongAnswer(
                "of all documents", _of_all_documents, "both errors are divided by all documents; a miss is a share "
                "of the documents with the query, a false alarm a share of those without"
            ),
        ),
        hints=(
            "accepted = scores >= threshold is a table of True and False, like truth.",
            "misses = (truth & ~accepted).sum(axis=1) / truth.sum(axis=1), one number for each query.",
            "alarms = (~truth & accepted).sum(axis=1) / (~truth).sum(axis=1); 1 - (misses + beta * alarms).mean()",
        ),
    ),
    "qbe.q5": Exercise(
        key="qbe.q5",
        title="where the word begins and ends",
        reference=speech_ends,
        inputs=_level_inputs,
        wrong=(
            WrongAnswer(
                "last frame lost", _last_frame_lost, "the second number is the last loud frame; asked for is one past "
                "it, so that frames[first:end] holds it"
            ),
            WrongAnswer(
                "first pause", _until_first_pause, "it stops at the first soft frame, and cuts the word at its own "
                "stops (the p of capital); what is soft in the middle stays"
            ),
            WrongAnswer(
                "full scale", _below_full_scale, "the depth is counted from 0 dB; count it from the loudest frame, or "
                "soft recordings lose everything"
            ),
            WrongAnswer(
                "below the mean", _below_the_mean, "the depth is counted from the mean level, which silence pulls "
                "down; count it from the loudest frame"
            ),
            WrongAnswer(
                "strictly above", _softer_than, "a frame exactly depth below the loudest is cut; it should stay"
            ),
        ),
        hints=(
            "Which frames are loud? levels >= levels.max() - depth",
            "np.flatnonzero gives their numbers. Only the first and the last matter.",
            "loud = np.flatnonzero(...); return int(loud[0]), int(loud[-1]) + 1",
        ),
    ),
}
