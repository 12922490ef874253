"""Exercises of notebook 15 (round two): mix layers, turned cells, errors removed, spread, all-rounders."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from superb_lite.course.exercises import Exercise, WrongAnswer

# ------------------------------------------------------------------------------- q1: a mix that learns


class Mix(nn.Module):
    """A weighted sum of layers whose shares learn: softmax of one score per layer, all zero at the start."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(layers))

    def forward(self, means: Tensor) -> Tensor:
        """means: (layers, clips, dim) -> (clips, dim)."""
        return torch.tensordot(self.scores.softmax(0), means, dims=1)


class _NoSoftmax(Mix):
    def __init__(self, layers: int) -> None:
        super().__init__(layers)
        self.scores = nn.Parameter(torch.full((layers,), 1 / layers))

    def forward(self, means: Tensor) -> Tensor:
        return torch.tensordot(self.scores, means, dims=1)


class _ZeroSum(Mix):
    def forward(self, means: Tensor) -> Tensor:
        return torch.tensordot(self.scores, means, dims=1)


class _NeverLearns(Mix):
    def __init__(self, layers: int) -> None:
        nn.Module.__init__(self)
        self.scores = torch.zeros(layers)


class _WrongAxis(Mix):
    def forward(self, means: Tensor) -> Tensor:
        return (self.scores[:, None, None].softmax(-1) * means).sum(0)


class _RandomStart(Mix):
    def __init__(self, layers: int) -> None:
        super().__init__(layers)
        self.scores = nn.Parameter(torch.randn(layers))


def one_step(answer: Any, arguments: tuple) -> Any:
    """What a mix says before and after one step of gradient descent towards a target. None for a stub."""
    means, target = arguments
    mix = answer(len(means))
    before = mix(means)
    if before is None:
        return None
    learned = list(mix.parameters())
    if learned:
        optimizer = torch.optim.SGD(learned, 2.0)
        (before - target).square().mean().backward()
        optimizer.step()
    return {
        "at the start": before.detach(),
        "numbers that learn": sum(weight.numel() for weight in learned),
        "after one step": mix(means).detach(),
    }


def mix_inputs(rng: np.random.Generator) -> list[tuple]:
    cases = []
    for layers, clips, dim in ((5, 4, 6), (3, 2, 4), (9, 3, 5)):
        means = torch.from_numpy(rng.normal(size=(layers, clips, dim))).float()
        cases.append((means, means[1] + 0.1))  # the target is nearly one of the layers
    return cases


# ---------------------------------------------------------------------------------- q2: turned cells


def turned(before: Mapping[str, bool], after: Mapping[str, bool]) -> dict[str, list[str]]:
    """Cells that are in both tables and changed: {"white": were black, "black": were white}, in alphabetical order."""
    both = sorted(before.keys() & after.keys())
    return {
        "white": [cell for cell in both if before[cell] and not after[cell]],
        "black": [cell for cell in both if after[cell] and not before[cell]],
    }


def _newcomers_were_white(before: Mapping[str, bool], after: Mapping[str, bool]) -> dict[str, list[str]]:
    return turned({cell: before.get(cell, False) for cell in after}, after)


def _newcomers_were_black(before: Mapping[str, bool], after: Mapping[str, bool]) -> dict[str, list[str]]:
    return turned({cell: before.get(cell, True) for cell in after}, after)


def _dropouts_won(before: Mapping[str, bool], after: Mapping[str, bool]) -> dict[str, list[str]]:
    return turned(before, {cell: after.get(cell, False) for cell in before})


def _swapped(before: Mapping[str, bool], after: Mapping[str, bool]) -> dict[str, list[str]]:
    return turned(after, before)


def _now(before: Mapping[str, bool], after: Mapping[str, bool]) -> dict[str, list[str]]:
    both = sorted(before.keys() & after.keys())
    return {"white": [cell for cell in both if not after[cell]], "black": [cell for cell in both if after[cell]]}


def turned_inputs(rng: np.random.Generator) -> list[tuple]:
    """Some cells in both tables, some in one only, all four fates among those in both."""
    cases = []
    for _ in range(3):
        names = [f"{upstream} {task}" for upstream in ("apc", "npc", "tera") for task in ("asv", "sd", "sf", "pr")]
        names = [names[place] for place in rng.permutation(len(names))]
        fates = ((True, True), (True, False), (False, True), (False, False), (True, False))
        before = {name: was for name, (was, _) in zip(names, fates, strict=False)}
        after = {name: now for name, (_, now) in zip(names, fates, strict=False)}
        before |= {names[5]: True, names[6]: False}
        after |= {names[7]: True, names[8]: False}
        cases.append((before, after))
    return cases


# ------------------------------------------------------------------------------- q3: errors that went


def error_removed(before: float, after: float, higher_is_better: bool, top: float) -> float:
    """How much of the error in `before` is gone in `after`, in percent; negative if it grew.

    The error is the score itself, or what an accuracy lacks to its `top` (100; 1 for MTWV).
    """
    first, second = (top - before, top - after) if higher_is_better else (before, after)
    return 100 * (first - second) / first


def _of_the_score(before: float, after: float, higher_is_better: bool, top: float) -> float:
    return 100 * ((after - before) if higher_is_better else (before - after)) / before


def _one_direction(before: float, after: float, higher_is_better: bool, top: float) -> float:
    return 100 * (before - after) / before


def _of_the_rest(before: float, after: float, higher_is_better: bool, top: float) -> float:
    first, second = (top - before, top - after) if higher_is_better else (before, after)
    return 100 * (first - second) / second


def _points(before: float, after: float, higher_is_better: bool, top: float) -> float:
    return (after - before) if higher_is_better else (before - after)


def _top_is_100(before: float, after: float, higher_is_better: bool, top: float) -> float:
    return error_removed(before, after, higher_is_better, 100.0)


def removed_inputs(rng: np.random.Generator) -> list[tuple]:
    a, b, c, d, e, f = (float(number) for number in rng.uniform(10, 90, 6))
    small = tuple(float(number) for number in rng.uniform(0.01, 0.3, 2))
    return [(a, b, False, 100.0), (c, d, True, 100.0), (*small, True, 1.0), (f, e, True, 100.0), (e, f, False, 100.0)]


# ---------------------------------------------------------------------------- q4: folds inside seeds

Row = tuple[int, int, float]  # seed, fold, value


def mean_and_spread(rows: Sequence[Row]) -> list[float]:
    """[mean, standard deviation over seeds with n - 1]; folds are averaged first, inside each seed."""
    by_seed: dict[int, list[float]] = {}
    for seed, _, value in rows:
        by_seed.setdefault(seed, []).append(value)
    means = [statistics.fmean(values) for values in by_seed.values()]
    return [statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else math.nan]


def _all_together(rows: Sequence[Row]) -> list[float]:
    values = [value for _, _, value in rows]
    return [statistics.fmean(values), statistics.stdev(values)]


def _over_folds(rows: Sequence[Row]) -> list[float]:
    return mean_and_spread([(fold, seed, value) for seed, fold, value in rows])


def _divided_by_n(rows: Sequence[Row]) -> list[float]:
    mean, spread = mean_and_spread(rows)
    seeds = len({seed for seed, _, _ in rows})
    return [mean, spread * math.sqrt((seeds - 1) / seeds) if seeds > 1 else 0.0]


def _no_spread_is_zero(rows: Sequence[Row]) -> list[float]:
    mean, spread = mean_and_spread(rows)
    return [mean, 0.0 if math.isnan(spread) else spread]


def _standard_error(rows: Sequence[Row]) -> list[float]:
    mean, spread = mean_and_spread(rows)
    return [mean, spread / math.sqrt(len({seed for seed, _, _ in rows}))]


def spread_inputs(rng: np.random.Generator) -> list[tuple]:
    """Folds differ much, seeds little, as in ER; then a single fold; then a single seed."""
    cases = []
    for seeds, folds in ((3, 5), (4, 2), (5, 1), (1, 5)):
        level = rng.uniform(55, 75, folds)
        rows = [(seed, fold, float(level[fold] + rng.normal())) for seed in range(seeds) for fold in range(folds)]
        cases.append(([rows[place] for place in rng.permutation(len(rows))],))
    return cases


# ------------------------------------------------------------------------------------ q5: all-rounders


def all_round(black: np.ndarray, scored: np.ndarray, row: int) -> list[int]:
    """black, scored: (upstreams, columns) bool; row: the reference's -> rows scored everywhere and black nowhere."""
    good = scored.all(axis=1) & ~black.any(axis=1)
    return [int(number) for number in np.flatnonzero(good) if number != row]


def _holes_are_wins(black: np.ndarray, scored: np.ndarray, row: int) -> list[int]:
    return all_round(black, np.ones_like(scored), row)


def _with_reference(black: np.ndarray, scored: np.ndarray, row: int) -> list[int]:
    return [int(number) for number in np.flatnonzero(scored.all(axis=1) & ~black.any(axis=1))]


def _tasks_instead(black: np.ndarray, scored: np.ndarray, row: int) -> list[int]:
    return [int(number) for number in np.flatnonzero(scored.all(axis=0) & ~black.any(axis=0))]


def _white_somewhere(black: np.ndarray, scored: np.ndarray, row: int) -> list[int]:
    return [int(n) for n in np.flatnonzero(scored.all(axis=1) & ~black.all(axis=1)) if n != row]


def all_round_inputs(rng: np.random.Generator) -> list[tuple]:
    """An all-rounder at least, one with a hole and no black, one that is black once, the reference anywhere."""
    cases = []
    for rows, columns in ((6, 4), (8, 10), (5, 3)):
        order = rng.permutation(rows)
        black, scored = rng.random((rows, columns)) < 0.4, np.ones((rows, columns), dtype=bool)
        black[order[:3]] = False
        black[order[3], 0], black[order[3], 1:] = True, False
        scored[order[1], int(rng.integers(columns))] = False
        cases.append((black, scored, int(order[2])))
    return cases


# ---------------------------------------------------------------------------------------- the records

EXERCISES = {
    "round2.q1": Exercise(
        key="round2.q1",
        title="a mix of layers that learns",
        reference=Mix,
        inputs=mix_inputs,
        call=one_step,
        wrong=(
            WrongAnswer("no softmax", _NoSoftmax,
                        "it starts as the average, but without softmax the shares need not add up to 1 later"),
            WrongAnswer("a sum of nothing", _ZeroSum,
                        "the zeros themselves are the weights, so the head sees nothing: a softmax belongs between"),
            WrongAnswer("never learns", _NeverLearns,
                        "the scores are a plain tensor, which no optimiser finds: wrap them in nn.Parameter"),
            WrongAnswer("softmax over an axis of one", _WrongAxis,
                        "the softmax runs over an axis of length 1, so each share is 1: take it over the layers"),
            WrongAnswer("random start", _RandomStart,
                        "the scores start at random, so some layer is favoured from the start: begin with zeros"),
        ),
        hints=(
            "In __init__: one number per layer that learns. nn.Parameter(torch.zeros(layers)).",
            "In forward: shares = self.scores.softmax(0), one per layer. Then share times layer, added up.",
            "torch.tensordot(self.scores.softmax(0), means, dims=1)",
        ),
    ),
    "round2.q2": Exercise(
        key="round2.q2",
        title="cells that changed their colour",
        reference=turned,
        inputs=turned_inputs,
        wrong=(
            WrongAnswer("newcomers were white", _newcomers_were_white,
                        "a cell that only the second table has counts as white before; it was not there"),
            WrongAnswer("newcomers were black", _newcomers_were_black,
                        "a cell that only the second table has counts as black before; newcomers are no progress"),
            WrongAnswer("dropouts won", _dropouts_won,
                        "a cell that only the first table has counts as white now; whoever stays away has not won"),
            WrongAnswer("swapped", _swapped, "the two lists are swapped: white belongs to cells that were black"),
            WrongAnswer("all that are there now", _now,
                        "these are all cells of that colour now; only those of the other colour before have turned"),
        ),
        hints=(
            "Only cells in both tables can turn: before.keys() & after.keys().",
            "White: black before and not black after. Black: the other way round. Sort the names.",
            '[cell for cell in sorted(before.keys() & after.keys()) if before[cell] and not after[cell]] is one',
        ),
    ),
    "round2.q3": Exercise(
        key="round2.q3",
        title="how much of the error is gone",
        reference=error_removed,
        inputs=removed_inputs,
        wrong=(
            WrongAnswer("of the score", _of_the_score,
                        "an accuracy is divided by itself; ask what it lacks: top - before is the error that could go"),
            WrongAnswer("one direction", _one_direction,
                        "an accuracy is treated as an error: where higher is better, the error is top - score"),
            WrongAnswer("of the rest", _of_the_rest,
                        "you divide by the error that is left; divide by the one there was before"),
            WrongAnswer("points", _points,
                        "this is the difference in points; divide by the error there was before, and take percent"),
            WrongAnswer("the top is always 100", _top_is_100,
                        "the top is taken for 100 everywhere; MTWV ends at 1, and `top` says so"),
        ),
        hints=(
            "First turn both scores into errors. An accuracy of 92 is an error of 8.",
            "error = top - score where higher is better, else the score itself.",
            "100 * (first - second) / first, with the two errors",
        ),
    ),
    "round2.q4": Exercise(
        key="round2.q4",
        title="mean and spread, folds inside seeds",
        reference=mean_and_spread,
        inputs=spread_inputs,
        wrong=(
            WrongAnswer("all together", _all_together,
                        "folds and seeds are thrown into one bag, so the spread is mostly that of the folds, which are "
                        "different tests: average over the folds of each seed first"),
            WrongAnswer("over folds", _over_folds,
                        "this is the spread over folds; average them inside each seed, and take the spread over seeds"),
            WrongAnswer("divided by n", _divided_by_n,
                        "the variance is divided by n; a few runs guess the spread of all, so divide by n - 1"),
            WrongAnswer("one seed has no spread", _no_spread_is_zero,
                        "a single seed gets the spread 0; it is unknown, NaN. Zero would claim a perfect measurement"),
            WrongAnswer("standard error", _standard_error,
                        "this is the standard error of the mean; the table shows how far single runs lie apart"),
        ),
        hints=(
            "Two steps: one number per seed (the mean of its folds), then mean and spread of these numbers.",
            "by_seed = {}; by_seed.setdefault(seed, []).append(value). Then a list with one mean per seed.",
            "[statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else math.nan]",
        ),
    ),
    "round2.q5": Exercise(
        key="round2.q5",
        title="who is all-round",
        reference=all_round,
        inputs=all_round_inputs,
        wrong=(
            WrongAnswer("holes are wins", _holes_are_wins,
                        "a row with a missing score is in; nobody is all-round who has left out an event"),
            WrongAnswer("the reference too", _with_reference,
                        "the reference is in: it is never worse than itself, so leave its row out"),
            WrongAnswer("columns", _tasks_instead,
                        "these are columns in which nobody is black; you want rows, so go along axis 1"),
            WrongAnswer("white somewhere", _white_somewhere,
                        "these rows are white somewhere; all-round means black nowhere"),
        ),
        hints=(
            "Two conditions for a row: a score in every column, and black in none.",
            "scored.all(axis=1) and ~black.any(axis=1), joined with &. np.flatnonzero gives the rows where it holds.",
            "[int(n) for n in np.flatnonzero(scored.all(axis=1) & ~black.any(axis=1)) if n != row]",
        ),
    ),
}  # fmt: skip
