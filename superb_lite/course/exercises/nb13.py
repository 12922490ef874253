"""Exercises of notebook 13: what has to be guessed, the nearest code, sizes, windows, and fair pairs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from superb_lite.course.exercises import Exercise, WrongAnswer


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.normal(size=shape)).float()


# --------------------------------------------------------------------------- q1: from a symbol to the target


def target(symbol: str, heard: Tensor, units: Tensor, book: Tensor, place: int, ahead: int) -> Tensor | int:
    """heard: (frames, dim); units: (frames,) numbers; book: (units, dim) -> what has to be guessed at `place`.

    F asks for the frame `ahead` frames later, M for the one at `place`. G wants the frame; C the frame, or with VQ the
    vector of its unit; P the number of its unit.
    """
    where = place + ahead if "F-" in symbol else place
    if "-P" in symbol:
        return int(units[where])
    return book[units[where]] if "-C" in symbol and "VQ" in symbol else heard[where]


def _always_now(symbol, heard, units, book, place, ahead):
    return target(symbol, heard, units, book, place, 0)


def _always_later(symbol, heard, units, book, place, ahead):
    return target(symbol, heard, units, book, place + (0 if "F-" in symbol else ahead), ahead)


def _codes_wherever_vq(symbol, heard, units, book, place, ahead):
    return target(symbol.replace("-G", "-C"), heard, units, book, place, ahead)


def _vector_of_the_unit(symbol, heard, units, book, place, ahead):
    return target(symbol.replace("-P", "-C"), heard, units, book, place, ahead)


def _never_codes(symbol, heard, units, book, place, ahead):
    return target(symbol.replace(" + VQ", ""), heard, units, book, place, ahead)


def target_inputs(rng: np.random.Generator) -> list[tuple]:
    """Every symbol of the programme that has a hyphen; no frame is like another one, nor like its code."""

    def case(symbol: str, ahead: int) -> tuple:
        heard, book = _normal(rng, 12, 4), _normal(rng, 12, 4)
        return symbol, heard, torch.from_numpy(rng.permutation(12)), book, int(rng.integers(2, 6)), ahead

    symbols = "F-G", "time/freq M-G", "F-C", "M-C + VQ", "M-P + VQ", "F-G + VQ", "M-G + VQ", "F-C + VQ", "time M-G"
    return [case(symbol, 2 + number % 3) for number, symbol in enumerate(symbols)]


# --------------------------------------------------------------------------------------- q2: the nearest code


def choose_codes(z: Tensor, books: Tensor) -> Tensor:
    """z: (frames, groups * size); books: (groups, codes, size) -> (frames, groups), numbers of the nearest codes."""
    pieces = z.unflatten(1, (len(books), -1)).transpose(0, 1)  # (groups, frames, size)
    return torch.cdist(pieces, books).argmin(2).T


def _largest_product(z, books):
    pieces = z.unflatten(1, (len(books), -1)).transpose(0, 1)
    return (pieces @ books.transpose(1, 2)).argmax(2).T


def _farthest(z, books):
    pieces = z.unflatten(1, (len(books), -1)).transpose(0, 1)
    return torch.cdist(pieces, books).argmax(2).T


def _first_book(z, books):
    return choose_codes(z, books[:1].expand_as(books))


def _one_for_all(z, books):
    far = torch.cdist(z.unflatten(1, (len(books), -1)).transpose(0, 1), books).square().sum(0)
    return far.argmin(1)[:, None].expand(-1, len(books))


def _one_number(z, books):
    chosen = choose_codes(z, books)
    return (chosen * books.shape[1] ** torch.arange(len(books))).sum(1)


def code_inputs(rng: np.random.Generator) -> list[tuple]:
    """Codes of different lengths, so that the largest product is not the smallest distance."""

    def case(frames: int, groups: int, codes: int, size: int) -> tuple[Tensor, Tensor]:
        lengths = torch.from_numpy(rng.uniform(0.3, 2.0, size=(groups, codes, 1))).float()
        return _normal(rng, frames, groups * size), _normal(rng, groups, codes, size) * lengths

    return [case(12, 2, 6, 3), case(1, 2, 4, 5), case(9, 1, 8, 4), case(20, 3, 5, 2)]


# ------------------------------------------------------------------------------------ q4: parameters of a GRU


def gru_parameters(inputs: int, dim: int, layers: int) -> int:
    """Weights and biases of `layers` GRU layers of size `dim`; the first one reads `inputs` numbers a frame."""
    return sum(3 * dim * ((dim if layer else inputs) + dim + 2) for layer in range(layers))


def _inputs_everywhere(inputs, dim, layers):
    return layers * 3 * dim * (inputs + dim + 2)


def _one_bias(inputs, dim, layers):
    return gru_parameters(inputs, dim, layers) - 3 * dim * layers


def _four_gates(inputs, dim, layers):
    return gru_parameters(inputs, dim, layers) // 3 * 4


def _no_memory(inputs, dim, layers):
    return gru_parameters(inputs, dim, layers) - 3 * dim * dim * layers


def _no_bias(inputs, dim, layers):
    return gru_parameters(inputs, dim, layers) - 6 * dim * layers


def gru_inputs(rng: np.random.Generator) -> list[tuple]:
    drawn = tuple(int(number) for number in rng.integers(5, 60, size=2))
    return [(40, 64, 2), (80, 512, 3), (7, 7, 1), (*drawn, 4)]


# ------------------------------------------------------------------------------ q3: window, stride and frames


def geometry(layers: Sequence[tuple[int, int]], samples: int) -> tuple[int, int, int]:
    """layers: (kernel, stride) of convolutions without padding -> samples a frame sees, samples to the next, frames."""
    window, stride = 1, 1
    for kernel, step in layers:
        window, stride = window + (kernel - 1) * stride, stride * step
    return window, stride, (samples - window) // stride + 1


def _kernels_summed(layers, samples):
    _, stride, frames = geometry(layers, samples)
    return 1 + sum(kernel - 1 for kernel, _ in layers), stride, frames


def _strides_summed(layers, samples):
    window, _, frames = geometry(layers, samples)
    return window, sum(step for _, step in layers), frames


def _window_forgotten(layers, samples):
    window, stride, _ = geometry(layers, samples)
    return window, stride, samples // stride


def _post_missing(layers, samples):
    window, stride, frames = geometry(layers, samples)
    return window, stride, frames - 1


def _own_stride(layers, samples):
    window, stride = 1, 1
    for kernel, step in layers:
        stride *= step
        window += (kernel - 1) * stride
    return window, stride, geometry(layers, samples)[2]


def geometry_inputs(rng: np.random.Generator) -> list[tuple]:
    """The last two end exactly with a window and one sample before it."""
    small = [(4, 2), (3, 2), (2, 1)]
    window, stride, _ = geometry(small, 100)
    count = int(rng.integers(5, 20))
    official = [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]
    exact = window + count * stride
    return [([(10, 5), (4, 2)], 1000), (official, 16_000), ([(400, 160)], 16_000), (small, exact), (small, exact - 1)]


# -------------------------------------------------------------------------------------------- q5: fair pairs


def fair_pairs(rows: Mapping[str, Mapping[str, str]], claim: str) -> list[tuple[str, str]]:
    """rows: {name: {column: value}} -> the pairs, in the order of the table, that differ in column `claim` only."""
    found = []
    for one, other in itertools.combinations(rows, 2):
        if [column for column in rows[one] if rows[one][column] != rows[other][column]] == [claim]:
            found.append((one, other))
    return found


def _differs_there(rows, claim):
    return [pair for pair in itertools.combinations(rows, 2) if rows[pair[0]][claim] != rows[pair[1]][claim]]


def _same_elsewhere(rows, claim):
    def rest(name):
        return {column: value for column, value in rows[name].items() if column != claim}

    return [pair for pair in itertools.combinations(rows, 2) if rest(pair[0]) == rest(pair[1])]


def _both_ways(rows, claim):
    found = fair_pairs(rows, claim)
    return sorted([*found, *((other, one) for one, other in found)])


def _any_column(rows, claim):
    return [
        (one, other)
        for one, other in itertools.combinations(rows, 2)
        if sum(rows[one][column] != rows[other][column] for column in rows[one]) == 1
    ]


def pair_inputs(rng: np.random.Generator) -> list[tuple]:
    """Twins, pairs that differ in one column, and pairs that differ in more."""
    fixed = {
        "anna": {"network": "3-GRU", "corpus": "360 hr", "method": "F-G"},
        "ben": {"network": "3-GRU", "corpus": "360 hr", "method": "F-C"},
        "cleo": {"network": "3-GRU", "corpus": "960 hr", "method": "F-G"},
        "dan": {"network": "12-Trans", "corpus": "960 hr", "method": "M-G"},
        "anna's twin": {"network": "3-GRU", "corpus": "360 hr", "method": "F-G"},
    }
    columns = {"network": ("3-GRU", "12-Trans"), "corpus": ("50 hr", "960 hr"), "method": ("F-G", "M-G", "M-C")}
    drawn = {
        f"upstream {number}": {column: str(rng.choice(values)) for column, values in columns.items()}
        for number in range(10)
    }
    return [(fixed, "method"), (fixed, "corpus"), (fixed, "network"), (drawn, "method")]


EXERCISES = {
    "con.q1": Exercise(
        key="con.q1",
        title="from a symbol to what has to be guessed",
        reference=target,
        inputs=target_inputs,
        wrong=(
            WrongAnswer("never ahead", _always_now, "F asks for the frame `ahead` later, not for the one at place"),
            WrongAnswer(
                "always ahead", _always_later, "M asks for the frame at `place` itself: it is hidden, not in the future"
            ),
            WrongAnswer(
                "codes rebuilt", _codes_wherever_vq, "with G the spectrogram has to be rebuilt, VQ or not: there the "
                "codebook stands in the network's way, and the target stays a frame"
            ),
            WrongAnswer(
                "the unit's vector", _vector_of_the_unit, "P asks for the number of a unit, as a classifier does; not "
                "for its vector"
            ),
            WrongAnswer(
                "exact frames", _never_codes, "in C + VQ the candidates are codes: look the frame's unit up in `book`"
            ),
        ),
        hints=(
            "Two questions, one after the other. Where: F or M? What: G, C or P?",
            "where = place + ahead if 'F-' in symbol else place. Then P gives int(units[where]), G gives heard[where].",
            "C gives book[units[where]] if 'VQ' is in the symbol, else heard[where].",
        ),
    ),
    "con.q2": Exercise(
        key="con.q2",
        title="the nearest code of each book",
        reference=choose_codes,
        inputs=code_inputs,
        wrong=(
            WrongAnswer(
                "largest product", _largest_product, "you take the code with the largest inner product, which favours "
                "long vectors; here the smallest distance is wanted"
            ),
            WrongAnswer("farthest", _farthest, "these are the farthest codes: argmin, not argmax"),
            WrongAnswer("one book", _first_book, "every piece is looked up in the first book; each has its own"),
            WrongAnswer(
                "one code for all", _one_for_all, "all pieces of a frame got the same number; each chooses for itself"
            ),
            WrongAnswer(
                "one number", _one_number, "the numbers of a frame are merged into one; give back one per book, "
                "(frames, groups)"
            ),
        ),
        hints=(
            "Cut every frame into as many pieces as there are books: z.unflatten(1, (groups, size)).",
            "Move the groups to the front; torch.cdist(pieces, books) is then (groups, frames, codes).",
            "torch.cdist(z.unflatten(1, (len(books), -1)).transpose(0, 1), books).argmin(2).T",
        ),
    ),
    "con.q4": Exercise(
        key="con.q4",
        title="the parameters of a stack of GRU layers",
        reference=gru_parameters,
        inputs=gru_inputs,
        wrong=(
            WrongAnswer(
                "inputs everywhere", _inputs_everywhere, "only the first layer reads `inputs` numbers; the others read "
                "the `dim` numbers of the layer below"
            ),
            WrongAnswer("one bias", _one_bias, "PyTorch's GRU has two biases a map: for input and for memory"),
            WrongAnswer("four gates", _four_gates, "that is an LSTM, which has four maps; a GRU has three"),
            WrongAnswer(
                "no memory", _no_memory, "the maps from the layer's own last output are missing, dim times dim each"
            ),
            WrongAnswer("no biases", _no_bias, "the biases are missing: two of length dim for each of the three maps"),
        ),
        hints=(
            "Three maps (reset, update, new). Each reads the input and the layer's last output, and has two biases.",
            "One layer: 3 * (dim * n + dim * dim + 2 * dim), n being what it reads.",
            "sum(3 * dim * ((dim if layer else inputs) + dim + 2) for layer in range(layers))",
        ),
    ),
    "con.q3": Exercise(
        key="con.q3",
        title="window, stride and frames of a stack of convolutions",
        reference=geometry,
        inputs=geometry_inputs,
        wrong=(
            WrongAnswer(
                "kernels summed", _kernels_summed, "a kernel of a higher layer counts in steps of the layers below: "
                "multiply kernel - 1 by the stride so far"
            ),
            WrongAnswer("strides summed", _strides_summed, "strides multiply: two layers of stride 2 make one of 4"),
            WrongAnswer(
                "window forgotten", _window_forgotten, "samples // stride counts windows that begin inside the clip; "
                "the last ones do not fit"
            ),
            WrongAnswer("one frame lost", _post_missing, "a clip as long as one window has one frame, not none: + 1"),
            WrongAnswer(
                "own stride", _own_stride, "a layer's window grows by the stride of the layers BELOW it; its own "
                "stride counts from the next layer on"
            ),
        ),
        hints=(
            "Start with a window of 1 and a stride of 1 (a sample) and go from the first layer to the last.",
            "In each layer: window += (kernel - 1) * stride, and only then stride *= step.",
            "The first window begins at 0, the last one must end inside: (samples - window) // stride + 1.",
        ),
    ),
    "con.q5": Exercise(
        key="con.q5",
        title="pairs that differ in one thing only",
        reference=fair_pairs,
        inputs=pair_inputs,
        wrong=(
            WrongAnswer(
                "differs there", _differs_there, "some of these pairs differ in other columns as well, so nobody knows "
                "which difference made the result"
            ),
            WrongAnswer(
                "twins", _same_elsewhere, "some of these pairs do not differ in `claim` at all: nothing to compare"
            ),
            WrongAnswer("both ways", _both_ways, "every pair is there twice, once the other way round"),
            WrongAnswer(
                "any column", _any_column, "these pairs differ in exactly one column, but not always in that of "
                "the claim"
            ),
        ),
        hints=(
            "itertools.combinations(rows, 2) gives every pair of names once, in the order of the table.",
            "List the columns in which the two differ. What must this list be?",
            "[column for column in rows[one] if rows[one][column] != rows[other][column]] == [claim]",
        ),
    ),
}
