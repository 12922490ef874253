"""Exercises of notebook 14 (round one): worse, painted black, how strong a head is, how loud a layer is."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from superb_lite.course.exercises import Exercise, WrongAnswer

# ------------------------------------------------------------------------------------------- q1: worse


def worse(value: float, reference: float, higher_is_better: bool) -> bool:
    """True if `value` is strictly worse than `reference`; a missing score (NaN) is not worse than anything."""
    return value < reference if higher_is_better else value > reference


def _always_lower(value: float, reference: float, higher_is_better: bool) -> bool:
    return value < reference


def _reversed(value: float, reference: float, higher_is_better: bool) -> bool:
    return value > reference if higher_is_better else value < reference


def _tie_loses(value: float, reference: float, higher_is_better: bool) -> bool:
    return value <= reference if higher_is_better else value >= reference


def _missing_loses(value: float, reference: float, higher_is_better: bool) -> bool:
    return not (value >= reference if higher_is_better else value <= reference)


def _rounded(value: float, reference: float, higher_is_better: bool) -> bool:
    if math.isnan(value) or math.isnan(reference):
        return False
    return worse(round(value), round(reference), higher_is_better)


def worse_inputs(rng: np.random.Generator) -> list[tuple]:
    """Clear cases, near misses, ties and holes, in both directions."""
    low, high = (float(number) for number in np.sort(rng.uniform(5, 95, 2)) + (-1.0, 1.0))
    near = round(float(rng.uniform(5, 95)), 0) + 0.1
    close, holes = ((near, near + 0.2), (near + 0.2, near)), ((math.nan, high), (low, math.nan))
    pairs = ((low, high), (high, low), *close, (low, low), *holes)
    return [(value, reference, up) for value, reference in pairs for up in (True, False)]


# --------------------------------------------------------------------------------- q2: the black cells


def black_cells(means: np.ndarray, row: int, up: np.ndarray) -> np.ndarray:
    """means: (upstreams, columns), NaN: no score; row: the reference's; up: (columns,) -> bool, True is black."""
    return np.where(up, means < means[row], means > means[row])


def _first_row(means: np.ndarray, row: int, up: np.ndarray) -> np.ndarray:
    return black_cells(means, 0, up)


def _one_direction(means: np.ndarray, row: int, up: np.ndarray) -> np.ndarray:
    return means < means[row]


def _holes_black(means: np.ndarray, row: int, up: np.ndarray) -> np.ndarray:
    return ~np.where(up, means >= means[row], means <= means[row])


def _reference_black(means: np.ndarray, row: int, up: np.ndarray) -> np.ndarray:
    return np.where(up, means <= means[row], means >= means[row])


def _below_average(means: np.ndarray, row: int, up: np.ndarray) -> np.ndarray:
    average = np.nanmean(means, axis=0)
    return np.where(up, means < average, means > average)


def black_inputs(rng: np.random.Generator) -> list[tuple]:
    """The reference in the middle, at the end and first; a hole and a tie in each table."""
    cases = []
    for rows, columns, row in ((6, 4, 2), (5, 7, 4), (4, 3, 0)):
        means = rng.uniform(5, 95, (rows, columns)).round(2)
        others = [number for number in range(rows) if number != row]
        means[others[0], 0] = np.nan
        means[others[1], 1] = means[row, 1]
        cases.append((means, row, np.arange(columns) % 2 == 0))
    return cases


# ----------------------------------------------------------------------------- q3: parameters of an LSTM


def lstm_parameters(dim: int, units: int, layers: int, directions: int) -> int:
    """How many numbers `layers` LSTM layers learn, `units` in each of 1 or 2 directions, on frames of size `dim`."""
    count = 0
    for _ in range(layers):
        count += directions * 4 * (units * dim + units * units + 2 * units)
        dim = directions * units
    return count


def _three_gates(dim: int, units: int, layers: int, directions: int) -> int:
    return lstm_parameters(dim, units, layers, directions) * 3 // 4


def _one_bias(dim: int, units: int, layers: int, directions: int) -> int:
    return lstm_parameters(dim, units, layers, directions) - layers * directions * 4 * units


def _same_input(dim: int, units: int, layers: int, directions: int) -> int:
    return layers * lstm_parameters(dim, units, 1, directions)


def _half_input(dim: int, units: int, layers: int, directions: int) -> int:
    first = lstm_parameters(dim, units, 1, directions)
    return first + (layers - 1) * lstm_parameters(units, units, 1, directions)


def _one_gate(dim: int, units: int, layers: int, directions: int) -> int:
    return lstm_parameters(dim, units, layers, directions) // 4


def lstm_inputs(rng: np.random.Generator) -> list[tuple]:
    dim, units = (int(number) for number in rng.integers(3, 40, 2))
    return [(dim, units, 2, 2), (dim, units, 1, 1), (dim, units + dim, 1, 2), (units + dim, units, 3, 1)]


# -------------------------------------------------------------------------------- q4: how loud a layer is


def layer_scale(states: Tensor, lengths: Tensor) -> Tensor:
    """states: (layers, batch, frames, dim); lengths: (batch,) -> (layers,): root mean square over all valid numbers."""
    valid = torch.arange(states.shape[2]) < lengths[:, None]
    return states[:, valid].square().mean(dim=(1, 2)).sqrt()


def _padding_counts(states: Tensor, lengths: Tensor) -> Tensor:
    return states.square().mean(dim=(1, 2, 3)).sqrt()


def _no_root(states: Tensor, lengths: Tensor) -> Tensor:
    return layer_scale(states, lengths).square()


def _mean_size(states: Tensor, lengths: Tensor) -> Tensor:
    valid = torch.arange(states.shape[2]) < lengths[:, None]
    return states[:, valid].abs().mean(dim=(1, 2))


def _frame_norm(states: Tensor, lengths: Tensor) -> Tensor:
    valid = torch.arange(states.shape[2]) < lengths[:, None]
    return states[:, valid].norm(dim=-1).mean(dim=1)


def _clip_by_clip(states: Tensor, lengths: Tensor) -> Tensor:
    ours = [states[:, clip, :n].square().mean(dim=(1, 2)).sqrt() for clip, n in enumerate(lengths.tolist())]
    return torch.stack(ours).mean(dim=0)


def scale_inputs(rng: np.random.Generator) -> list[tuple]:
    """Layers and clips of unequal loudness, and a padding that is not zero."""
    cases = []
    for layers, lengths, dim in ((4, [7, 3], 5), (2, [4, 9, 1], 3), (9, [2, 6], 8)):
        loud = rng.uniform(0.2, 4.0, (layers, len(lengths), 1, 1))
        states = torch.from_numpy(loud * rng.normal(size=(layers, len(lengths), max(lengths) + 2, dim))).float()
        cases.append((states, torch.tensor(lengths)))
    return cases


# ---------------------------------------------------------------------------------------- the records

EXERCISES = {
    "round1.q1": Exercise(
        key="round1.q1",
        title="worse than the reference",
        reference=worse,
        inputs=worse_inputs,
        wrong=(
            WrongAnswer("lower is always worse", _always_lower,
                        "a lower number counts as worse everywhere; in a column of errors it is better"),
            WrongAnswer("reversed", _reversed, "the two directions have changed places: try it with an accuracy"),
            WrongAnswer("a tie loses", _tie_loses,
                        "an equal score counts as worse; black is what is strictly worse"),
            WrongAnswer("a missing score loses", _missing_loses,
                        "a missing score (NaN) counts as worse; nobody has lost who has not run. "
                        "Ask `worse`, not `not better`"),
            WrongAnswer("rounded first", _rounded,
                        "the numbers are rounded before they are compared, so a near miss becomes a tie"),
        ),
        hints=(
            "Two cases: where higher is better, worse means lower; else it means higher.",
            "Every comparison with NaN is False in Python. So ask whether it is worse, never whether it is not better.",
            "return value < reference if higher_is_better else value > reference",
        ),
    ),
    "round1.q2": Exercise(
        key="round1.q2",
        title="the black cells of a table",
        reference=black_cells,
        inputs=black_inputs,
        wrong=(
            WrongAnswer("the first row is the reference", _first_row,
                        "you compare with the first row; the reference may stand anywhere, `row` says where"),
            WrongAnswer("one direction", _one_direction,
                        "all columns are painted in one direction; `up` says for each column whether higher is better"),
            WrongAnswer("holes are black", _holes_black, "cells without a score are black; they should stay unpainted"),
            WrongAnswer("the reference is black", _reference_black,
                        "ties are black, so the reference itself is a black row: compare strictly"),
            WrongAnswer("below average", _below_average,
                        "you compare with the average of the column; black means worse than the reference's own score"),
        ),
        hints=(
            "means[row] is the reference's line. numpy compares it with all lines at once: means < means[row].",
            "You need that comparison in some columns and the other one in the rest: np.where(up, ..., ...).",
            "return np.where(up, means < means[row], means > means[row])",
        ),
    ),
    "round1.q3": Exercise(
        key="round1.q3",
        title="how many numbers an LSTM learns",
        reference=lstm_parameters,
        inputs=lstm_inputs,
        wrong=(
            WrongAnswer("three gates", _three_gates,
                        "there are three groups of weights, as in a GRU; an LSTM has four"),
            WrongAnswer("one bias", _one_bias,
                        "each group has one bias; PyTorch keeps two, one beside each of its two matrices"),
            WrongAnswer("the same input everywhere", _same_input,
                        "every layer reads `dim` numbers; from the second on they read what the layer below says"),
            WrongAnswer("one direction is read", _half_input,
                        "the second layer reads one direction only; it gets both, directions * units numbers"),
            WrongAnswer("one group", _one_gate, "this is one group of weights; an LSTM has four"),
        ),
        hints=(
            "One group of one direction of one layer: a matrix for the input, one for the own past, and two biases.",
            "units * dim + units * units + 2 * units. Times four groups, times directions. What does layer two read?",
            "per layer: count += directions * 4 * (units * dim + units * units + 2 * units); dim = directions * units",
        ),
    ),
    "round1.q4": Exercise(
        key="round1.q4",
        title="how loud each layer is",
        reference=layer_scale,
        inputs=scale_inputs,
        wrong=(
            WrongAnswer("padding counts", _padding_counts, "the padding is in the mean: cut to lengths first"),
            WrongAnswer("no root", _no_root, "this is the mean square; the last step, the root, is missing"),
            WrongAnswer("mean size", _mean_size, "this is the mean of absolute values: square, mean, root"),
            WrongAnswer("norm of a frame", _frame_norm,
                        "this is the mean length of a frame's vector, which grows with dim: average over dims as well"),
            WrongAnswer("clip by clip", _clip_by_clip,
                        "each clip has its own root mean square, and then they are averaged, so a short clip counts "
                        "as much as a long one. Put all valid frames together first"),
        ),
        hints=(
            "First choose the valid frames, then square, then mean, then root.",
            "valid = torch.arange(states.shape[2]) < lengths[:, None]; states[:, valid] has all of them.",
            "return states[:, valid].square().mean(dim=(1, 2)).sqrt()",
        ),
    ),
}  # fmt: skip
