"""Exercises of notebook 03: collapse, CTC's sum over paths, segments, edit distance, phone error rate."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from superb_lite.course.exercises import Exercise, WrongAnswer
from superb_lite.metrics import edits, per
from superb_lite.types import RATE

# --------------------------------------------------------------------- q1: what a path says


def collapse(path: Sequence[int], blank: int = 0) -> list[int]:
    """One symbol per frame -> what they say: merge neighbours that are equal, then drop the blanks."""
    return [symbol for symbol, _ in itertools.groupby(path) if symbol != blank]


def _blanks_first(path, blank=0):
    return [symbol for symbol, _ in itertools.groupby(symbol for symbol in path if symbol != blank)]


def _no_merge(path, blank=0):
    return [symbol for symbol in path if symbol != blank]


def _keeps_blanks(path, blank=0):
    return [symbol for symbol, _ in itertools.groupby(path)]


def _only_once(path, blank=0):
    return [symbol for symbol in dict.fromkeys(path) if symbol != blank]


def _blank_is_zero(path, blank=0):
    return collapse(path, 0)


def _path_inputs(rng: np.random.Generator) -> list[tuple]:
    def path(frames: int) -> list[int]:
        return [int(symbol) for symbol in rng.integers(0, 4, size=frames).repeat(rng.integers(1, 4, size=frames))]

    double = [0, 3, 3, 0, 3, 1, 1, 0, 0, 2]  # 3 blank 3 is said twice
    return [([*double, *path(6)],), (path(12),), ([],), ([0, 0, 0],), ([2, 1, 1, 2, 0, 0, 2, 1, 2, 1], 2)]


# ------------------------------------------------------------- q2: the probability of a label


def ctc_probability(probs: Tensor, label: Sequence[int]) -> float:
    """probs: (frames, vocab), blank first -> the probability of all paths that collapse to `label`."""
    return _forward(probs, label)


def _forward(
    probs: Tensor, label: Sequence[int], *, skip: str = "right", start: int = 2, end: int = 2,
    join: Callable[[Tensor], Tensor] = torch.sum,
) -> float:  # fmt: skip
    states = [0]
    for symbol in label:
        states += [symbol, 0]
    alpha = torch.zeros(len(states), dtype=torch.float64)
    alpha[:start] = probs[0, states[:start]].double()
    for row in probs[1:].double():
        before = alpha.clone()
        for s, symbol in enumerate(states):
            ways = [before[s]] + ([before[s - 1]] if s > 0 else [])
            fresh = symbol != 0 and s > 1 and (skip == "always" or symbol != states[s - 2])
            if fresh and skip != "never":
                ways.append(before[s - 2])
            alpha[s] = join(torch.stack(ways)) * row[symbol]
    return float(join(alpha[-end:]))


def _best_path(probs, label):
    return _forward(probs, label, join=torch.max)


def _never_skips(probs, label):
    return _forward(probs, label, skip="never")


def _always_skips(probs, label):
    return _forward(probs, label, skip="always")


def _starts_in_blank(probs, label):
    return _forward(probs, label, start=1)


def _ends_in_blank(probs, label):
    return _forward(probs, label, end=1)


def _lattice_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(frames: int, vocab: int, label: list[int]) -> tuple:
        return torch.from_numpy(rng.normal(size=(frames, vocab))).softmax(-1), label

    return [
        case(5, 4, [1, 2]),
        case(6, 3, [1, 1]),  # a double: it needs a blank in between
        case(7, 4, [3, 1, 1, 2]),
        case(4, 3, []),  # nothing was said: all blanks
        case(2, 3, [1, 2, 1]),  # more symbols than frames: impossible
        case(1, 3, [2]),
    ]


# ------------------------------------------------------------------ q3: from frames to segments


def segments(path: Sequence[int], stride: int) -> list[tuple[int, float, float]]:
    """One symbol per frame -> [(symbol, start_sec, end_sec), ...] of every run that is not blank (0)."""
    return _segments(path, stride)


def _segments(path, stride, *, per_second: float = RATE, short: int = 0, blanks: bool = False):
    found, frame = [], 0
    for symbol, run in itertools.groupby(path):
        count = len(list(run))
        if symbol != 0 or blanks:
            found.append((symbol, frame * stride / per_second, (frame + count - short) * stride / per_second))
        frame += count
    return found


def _with_blanks(path, stride):
    return _segments(path, stride, blanks=True)


def _last_frame_lost(path, stride):
    return _segments(path, stride, short=1)


def _in_frames(path, stride):
    return _segments(path, stride, per_second=stride)


def _each_frame(path, stride):
    return [
        (symbol, frame * stride / RATE, (frame + 1) * stride / RATE) for frame, symbol in enumerate(path) if symbol != 0
    ]


def _bridges_blanks(path, stride):
    found: list[tuple[int, float, float]] = []
    for symbol, start, end in _segments(path, stride):
        if found and found[-1][0] == symbol:
            found[-1] = (symbol, found[-1][1], end)
        else:
            found.append((symbol, start, end))
    return found


def _run_inputs(rng: np.random.Generator) -> list[tuple]:
    def path(runs: int) -> list[int]:
        return [int(symbol) for symbol in rng.integers(0, 4, size=runs).repeat(rng.integers(1, 5, size=runs))]

    double = [0, 0, 5, 5, 0, 5, 5, 5, 2, 2, 0]
    return [(double, 320), (path(9), 160), ([0, 0, 0], 320), ([4], 320), ([1, 1, 2], 320)]


# ------------------------------------------------------------------------ q4: edit distance


def edit_distance(ref: Sequence[str], hyp: Sequence[str]) -> int:
    """The fewest substitutions, deletions and insertions between two lists of phones."""
    return edits(ref, hyp).total


def _table(ref, hyp, *, replace: int = 1, top: int = 1) -> int:
    row = [place * top for place in range(len(hyp) + 1)]
    for number, wanted in enumerate(ref, start=1):
        before, row = row, [number]
        for place, got in enumerate(hyp, start=1):
            same = before[place - 1] + (0 if wanted == got else replace)
            row.append(min(same, before[place] + 1, row[-1] + 1))
    return row[-1]


def _place_by_place(ref, hyp):
    return sum(a != b for a, b in zip(ref, hyp, strict=False)) + abs(len(ref) - len(hyp))


def _replacing_costs_two(ref, hyp):
    return _table(ref, hyp, replace=2)


def _free_start(ref, hyp):
    return _table(ref, hyp, top=0)


def _bags(ref, hyp):
    common = sum((Counter(ref) & Counter(hyp)).values())
    return max(len(ref), len(hyp)) - common


def _spoken_inputs(rng: np.random.Generator) -> list[tuple]:
    phones = np.array("T D IH IY N S K AE".split())

    def said(count: int) -> list[str]:
        return [str(phone) for phone in rng.choice(phones, size=count)]

    ref = said(9)
    shifted = ["AH", *ref[:4], "ZH", *ref[5:8]]  # one in front, one replaced, one lost
    swapped = ["K", "AE", "T"], ["T", "AE", "K"]  # the same phones in another order
    return [(ref, shifted), swapped, (said(7), said(5)), (["K"], ["AH", "K"]), (said(3), []), ([], said(2)), ([], [])]


# ------------------------------------------------------------------------ q5: phone error rate


def phone_error_rate(refs: Sequence[Sequence[str]], hyps: Sequence[Sequence[str]]) -> float:
    """All edits of a test set in percent of all phones of its references."""
    return per(refs, hyps)


def _totals(refs, hyps) -> list[int]:
    return [edit_distance(ref, hyp) for ref, hyp in zip(refs, hyps, strict=True)]


def _mean_of_rates(refs, hyps):
    return 100 * sum(n / len(ref) for n, ref in zip(_totals(refs, hyps), refs, strict=True)) / len(refs)


def _of_hypotheses(refs, hyps):
    return 100 * sum(_totals(refs, hyps)) / sum(map(len, hyps))


def _fraction(refs, hyps):
    return per(refs, hyps) / 100


def _capped(refs, hyps):
    return 100 * sum(min(n, len(ref)) for n, ref in zip(_totals(refs, hyps), refs, strict=True)) / sum(map(len, refs))


def _wrong_sentences(refs, hyps):
    return 100 * sum(list(ref) != list(hyp) for ref, hyp in zip(refs, hyps, strict=True)) / len(refs)


def _test_inputs(rng: np.random.Generator) -> list[tuple]:
    phones = np.array("T D IH IY N S K AE".split())

    def said(count: int) -> list[str]:
        return [str(phone) for phone in rng.choice(phones, size=count)]

    short, long = said(2), said(20)
    uneven = [short, long], [["ZH", *short, "ZH", "ZH"], long[1:]]  # three invented, more than the reference has
    return [uneven, ([said(8), said(5), said(3)], [said(6), [], said(4)]), ([["N", "OW"]], [["N", "OW"]])]


EXERCISES = {
    "pr.q1": Exercise(
        key="pr.q1",
        title="what a path says",
        reference=collapse,
        inputs=_path_inputs,
        wrong=(
            WrongAnswer(
                "blanks first", _blanks_first, "blanks are dropped first, so that K blank K becomes one K: merge "
                "neighbours first (this is the bug of 2021, section 6)"
            ),
            WrongAnswer("no merge", _no_merge, "only blanks are dropped: a symbol held for three frames is said once"),
            WrongAnswer("blanks kept", _keeps_blanks, "the blanks are still in it: drop them after merging"),
            WrongAnswer(
                "only once", _only_once, "each symbol appears only once in all: merge only neighbours that are equal"
            ),
            WrongAnswer(
                "blank is zero", _blank_is_zero, "the blank is taken to be 0: use the argument, it may be another"
            ),
        ),
        hints=(
            "Two steps, and their order matters: merge equal neighbours, then drop blanks.",
            "Keep a symbol if it differs from the symbol of the frame before (the first frame has none before it)",
            "[symbol for symbol, _ in itertools.groupby(path) if symbol != blank]",
        ),
    ),
    "pr.q2": Exercise(
        key="pr.q2",
        title="the probability of a label, over all paths",
        reference=ctc_probability,
        inputs=_lattice_inputs,
        tolerance=1e-7,
        wrong=(
            WrongAnswer(
                "best path", _best_path, "this is the probability of the single best path: add the ways up, do not "
                "take the largest"
            ),
            WrongAnswer(
                "never skips", _never_skips, "it always passes through the blank between two symbols: two different "
                "symbols may follow each other directly, so a third way in comes from s - 2"
            ),
            WrongAnswer(
                "always skips", _always_skips, "it jumps from a symbol to the same symbol: without a blank in between "
                "the two would be merged"
            ),
            WrongAnswer(
                "starts in blank", _starts_in_blank, "paths must begin with a blank here: the first frame may also "
                "hold the first symbol"
            ),
            WrongAnswer(
                "ends in blank", _ends_in_blank, "paths must end with a blank here: the last symbol may also be in "
                "the last frame, so add the last two places"
            ),
        ),
        hints=(
            "states = [0, label[0], 0, label[1], 0, ...]. At the first frame only states 0 and 1 are possible.",
            "new[s] = (old[s] + old[s - 1] + old[s - 2] if that jump is allowed) * probs[t, states[s]]. The jump is "
            "allowed if states[s] is not 0 and not states[s - 2].",
            "Work on a copy of the old row (alpha.clone()), mind s - 1 < 0, and return float(alpha[-2:].sum())",
        ),
    ),
    "pr.q3": Exercise(
        key="pr.q3",
        title="from frames to segments",
        reference=segments,
        inputs=_run_inputs,
        wrong=(
            WrongAnswer("blanks too", _with_blanks, "runs of blanks (0) are listed too: leave them out"),
            WrongAnswer(
                "last frame lost", _last_frame_lost, "segments end where their last frame begins: a frame lasts a "
                "whole stride, so the end is (last frame + 1) * stride"
            ),
            WrongAnswer(
                "in frames", _in_frames, "these are frame numbers: times stride, divided by 16,000, they are seconds"
            ),
            WrongAnswer(
                "each frame", _each_frame, "every frame is a segment of its own: join frames that follow each other "
                "with the same symbol"
            ),
            WrongAnswer(
                "over blanks", _bridges_blanks, "two runs of one symbol are joined although something stands between "
                "them: they were said twice"
            ),
        ),
        hints=(
            "itertools.groupby(path) gives the runs; count the frames as you go",
            "A run of n frames that starts at frame f lasts from f * stride / 16000 to (f + n) * stride / 16000",
            "for symbol, run in groupby(path): n = len(list(run)); append if symbol != 0; then f += n in any case",
        ),
    ),
    "pr.q4": Exercise(
        key="pr.q4",
        title="edit distance",
        reference=edit_distance,
        inputs=_spoken_inputs,
        wrong=(
            WrongAnswer(
                "place by place", _place_by_place, "phones are compared place by place, so that one phone lost at the "
                "start makes all others wrong"
            ),
            WrongAnswer(
                "substitution costs two", _replacing_costs_two, "a substitution costs 2 here (one lost, one invented); "
                "it is a single edit"
            ),
            WrongAnswer(
                "free start", _free_start, "phones invented before the first one are free: the top row of the table is "
                "0, 1, 2, ..."
            ),
            WrongAnswer("bags", _bags, "the order of the phones plays no part: K AE T and T AE K are two edits apart"),
        ),
        hints=(
            "A table: cell (i, j) is the distance between the first i phones of ref and the first j of hyp.",
            "Left column 0, 1, 2, ... (all lost), top row 0, 1, 2, ... (all invented)",
            "cell = min(diagonal + (ref[i-1] != hyp[j-1]), above + 1, left + 1); the answer is the last cell",
        ),
    ),
    "pr.q5": Exercise(
        key="pr.q5",
        title="phone error rate of a test set",
        reference=phone_error_rate,
        inputs=_test_inputs,
        wrong=(
            WrongAnswer(
                "mean of rates", _mean_of_rates, "it averages one rate per sentence, so that a word of two phones "
                "weighs as much as a long sentence: add all edits, divide once"
            ),
            WrongAnswer(
                "of hypotheses", _of_hypotheses, "it divides by what the recogniser wrote; divide by the phones that "
                "were really said"
            ),
            WrongAnswer("fraction", _fraction, "this is a fraction; the metric is in percent"),
            WrongAnswer(
                "capped", _capped, "no sentence can cost more than 100 percent here; who invents much can, and should"
            ),
            WrongAnswer(
                "wrong sentences", _wrong_sentences, "it counts sentences that are not perfect; count the edits in them"
            ),
        ),
        hints=(
            "Two sums over the whole test: edits, and phones of the references.",
            "100 * sum of edit_distance(ref, hyp) / sum of len(ref)",
            "100 * sum(map(edit_distance, refs, hyps)) / sum(map(len, refs))",
        ),
    ),
}
