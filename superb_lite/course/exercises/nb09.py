"""Exercises of notebook 09: turns into frames, PIT loss, threshold and median filter, RTTM, three kinds of error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from superb_lite.course.exercises import Exercise, WrongAnswer
from superb_lite.losses import pit_bce
from superb_lite.metrics import Turns, count_errors
from superb_lite.tasks import sd
from superb_lite.types import RATE

# ------------------------------------------------------------------------------ q1: turns into frames


def labels_of(turns: Turns, speakers: Sequence[str], frames: int, stride: int) -> np.ndarray:
    """Turns in seconds -> (frames, speakers) float32, 1 where a speaker speaks."""
    return sd.frame_labels(turns, speakers, frames, stride)


def _rounded_down(turns, speakers, frames, stride):
    labels = np.zeros((frames, len(speakers)), dtype=np.float32)
    for speaker, start, end in turns:
        labels[int(start * RATE / stride) : int(end * RATE / stride), speakers.index(speaker)] = 1
    return labels


def _end_included(turns, speakers, frames, stride):
    step = stride / RATE
    return labels_of([(speaker, start, end + step) for speaker, start, end in turns], speakers, frames, stride)


def _one_at_a_time(turns, speakers, frames, stride):
    labels = np.zeros((frames, len(speakers)), dtype=np.float32)
    for turn in turns:
        mine = labels_of([turn], speakers, frames, stride)
        labels[mine.any(axis=1)] = mine[mine.any(axis=1)]
    return labels


def _always_fifty(turns, speakers, frames, stride):
    return labels_of(turns, speakers, frames, 320)


def _first_come(turns, speakers, frames, stride):
    return labels_of(turns, list(dict.fromkeys(speaker for speaker, _, _ in turns)), frames, stride)


def _turn_inputs(rng: np.random.Generator) -> list[tuple]:
    def time(frame: int, stride: int) -> float:
        """Clearly nearer to `frame` than to its neighbours, on either side of it."""
        return round(max(0.0, frame + float(rng.choice([-0.3, 0.3]))) * stride / RATE, 4)

    def case(frames: int, stride: int) -> tuple:
        one, two, three, four = (int(share * frames) for share in (0.1, 0.4, 0.55, 0.8))
        turns = [("rob", time(one, stride), time(three, stride)), ("ann", time(two, stride), time(four, stride))]
        turns += [("rob", (four + 1.3) * stride / RATE, (four + 3.7) * stride / RATE)]
        return turns, ["ann", "rob"], frames, stride

    whole = [("rob", 0.0, 0.2), ("ann", 0.0, 0.2)], ["ann", "rob"], 10, 320
    return [case(30, 320), case(50, 160), whole]


# --------------------------------------------------------------------------------------- q2: PIT loss


def pit_loss(out: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
    """out, targets: (batch, frames, 2); lengths: (batch,) -> cross-entropy per valid frame, the cheaper order counts
    for each clip."""
    return pit_bce(out, lengths, targets)


def _both_orders(out: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
    """(2, batch, frames): the cross-entropy of either order, mean over the speakers; 0 in padding."""
    valid = torch.arange(out.shape[1]) < lengths[:, None]
    costs = [
        functional.binary_cross_entropy_with_logits(out, order, reduction="none").mean(2)
        for order in (targets, targets.flip(2))
    ]
    return torch.stack(costs) * valid


def _fixed_order(out, lengths, targets):
    return _both_orders(out, lengths, targets)[0].sum() / lengths.sum()


def _per_frame(out, lengths, targets):
    return _both_orders(out, lengths, targets).amin(0).sum() / lengths.sum()


def _one_for_all(out, lengths, targets):
    return _both_orders(out, lengths, targets).sum((1, 2)).min() / lengths.sum()


def _padding_too(out, lengths, targets):
    return pit_loss(out, torch.full_like(lengths, out.shape[1]), targets)


def _clips_alike(out, lengths, targets):
    return (_both_orders(out, lengths, targets).sum(2).amin(0) / lengths).mean()


def with_slopes(answer: Callable, arguments: tuple) -> Any:
    """[loss, slope for the outputs]: without slopes nothing would be learned."""
    out, *rest = arguments
    out = out.clone().requires_grad_()
    loss = answer(out, *rest)
    if not isinstance(loss, Tensor):
        return loss
    loss.sum().backward()
    return [loss.detach(), out.grad]


def _loss_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(lengths: list[int]) -> tuple:
        frames = max(lengths)
        targets = torch.from_numpy(rng.integers(2, size=(len(lengths), frames, 2))).float()
        targets[:, :3] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        out = 2 * (2 * targets - 1) + torch.from_numpy(rng.normal(size=targets.shape)).float()
        out[:, 2] = 3.0 * (1 - 2 * targets[:, 2])  # a frame that prefers the other order, in the middle of the clip
        out[::2] = out[::2].flip(2)  # every second clip is right in the other order
        for row, length in enumerate(lengths):  # what stands in the padding is wrong on purpose
            out[row, length:] = 3.0 * (1 - 2 * targets[row, length:])
        return out, torch.tensor(lengths), targets

    return [case([12, 9, 6]), case([7, 14]), case([8, 5, 6, 9])]


# ------------------------------------------------------------------- q3: threshold and median filter


def speaking(values: np.ndarray, threshold: float, width: int) -> np.ndarray:
    """(frames, 2) probabilities -> (frames, 2) bool: above the threshold, then the majority of `width` frames."""
    return sd.speaking(values, threshold, width)


def _windows(values: np.ndarray, width: int, mode: str = "constant") -> np.ndarray:
    """(frames, 2, width): every frame with its neighbours."""
    padded = np.pad(values, ((width // 2, width // 2), (0, 0)), mode=mode)
    return np.lib.stride_tricks.sliding_window_view(padded, width, axis=0)


def _at_least(values, threshold, width):
    return _windows(values >= threshold, width).sum(-1) > width // 2


def _ends_repeated(values, threshold, width):
    return _windows(values > threshold, width, "edge").sum(-1) > width // 2


def _average(values, threshold, width):
    return _windows(values, width).mean(-1) > threshold


def _looks_back(values, threshold, width):
    active = np.pad(values > threshold, ((width - 1, 0), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(active, width, axis=0).sum(-1) > width // 2


def _unfiltered(values, threshold, width):
    return values > threshold


def _probability_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(frames: int, threshold: float, width: int) -> tuple:
        steps = np.repeat(rng.uniform(size=(frames // 4 + 1, 2)), 4, axis=0)[:frames]
        values = np.clip(steps + 0.25 * rng.normal(size=(frames, 2)), 0.02, 0.98)
        values[:1], values[-1:] = 0.95, 0.95  # speech at both ends
        values[1 : width // 2 + 1], values[-width // 2 : -1] = 0.02, 0.02
        values[frames // 2 - 1 : frames // 2 + 2] = [[0.9, 0.1], [threshold, threshold], [0.1, 0.9]]
        for odd in (0, 1):  # a loud stretch of less than half a window, which the mean would keep
            values[4 * width : 5 * width, odd] = np.where(np.arange(width) < width // 2, 0.98, threshold - 0.05)
        return values.astype(np.float32), threshold, width

    return [case(60, 0.5, 5), case(90, 0.25, 11), case(40, 0.5, 1)]


# ------------------------------------------------------------------------------------------- q4: RTTM


def rttm_lines(recording: str, active: np.ndarray, step: float) -> list[str]:
    """(frames, 2) bool, seconds per frame -> one line of RTTM per turn."""
    return _lines(recording, _stretches(active), step)


def _stretches(active: np.ndarray) -> list[tuple[int, int, int]]:
    """(speaker, first frame, the frame behind the last) of every turn."""
    found = []
    for speaker, column in enumerate(np.asarray(active, dtype=bool).T):
        edges = np.flatnonzero(np.diff(np.pad(column, 1).astype(np.int8))).reshape(-1, 2)
        found += [(speaker, int(first), int(end)) for first, end in edges]
    return found


def _lines(recording: str, stretches: Sequence[tuple[int, int, float]], step: float) -> list[str]:
    return [
        f"SPEAKER {recording} 1 {first * step:.2f} {(end - first) * step:.2f} <NA> <NA> {recording}_{speaker} <NA>"
        for speaker, first, end in stretches
    ]


def _end_for_length(recording, active, step):
    return _lines(recording, [(who, first, end + first) for who, first, end in _stretches(active)], step)


def _still_running(recording, active, step):
    return _lines(recording, [turn for turn in _stretches(active) if turn[2] < len(active)], step)


def _in_frames(recording, active, step):
    return rttm_lines(recording, active, 1)


def _a_frame_short(recording, active, step):
    return _lines(recording, [(who, first, end - 1) for who, first, end in _stretches(active)], step)


def _nameless(recording, active, step):
    return [line.replace(f"{recording}_", "") for line in rttm_lines(recording, active, step)]


def as_fields(answer: Callable, arguments: tuple) -> Any:
    """The fields of every line, times as numbers, by speaker and start: spaces and the order do not matter."""
    lines = answer(*arguments)
    lines = lines.splitlines() if isinstance(lines, str) else lines
    if not isinstance(lines, list | tuple) or not all(isinstance(line, str) for line in lines):
        return lines
    rows = [line.split() for line in lines]
    try:
        return sorted(([*row[:3], float(row[3]), float(row[4]), *row[5:]] for row in rows), key=lambda r: (r[7], r[3]))
    except (ValueError, IndexError):
        return rows


def _activity_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(name: str, frames: int, step: float) -> tuple:
        active = np.repeat(rng.integers(2, size=(frames // 5, 2)), 5, axis=0).astype(bool)
        active[4:9] = [[True, False]]
        active[:2], active[-7:, 1], active[-8, 1] = False, True, False  # the last turn runs to the end
        return name, active, step

    return [case("mix-1", 40, 0.02), case("meeting", 60, 0.01), ("dull", np.zeros((12, 2), dtype=bool), 0.02)]


# ------------------------------------------------------------------------ q5: three kinds of error


def error_seconds(ref: np.ndarray, hyp: np.ndarray, step: float) -> tuple[float, float, float, float]:
    """(frames, 2) bool, the same, seconds per frame -> missed, false alarm, confusion, speaker time in all."""
    errors = count_errors(np.asarray(ref).T, np.asarray(hyp).T[None], np.full(len(ref), step))[0]
    return errors.missed, errors.false_alarm, errors.confusion, errors.total


def _as_they_come(ref, hyp, step):
    (errors,) = count_errors(ref.T, hyp.T[None], np.full(len(ref), step), matched=True)
    return errors.missed, errors.false_alarm, errors.confusion, errors.total


def _frame_by_frame(ref, hyp, step):
    missed, alarm, _, total = error_seconds(ref, hyp, step)
    best = np.maximum((ref & hyp).sum(1), (ref & hyp[:, ::-1]).sum(1))
    return missed, alarm, step * float((np.minimum(ref.sum(1), hyp.sum(1)) - best).sum()), total


def _without_overlap(ref, hyp, step):
    kept = ref.sum(1) < 2
    return error_seconds(ref[kept], hyp[kept], step)


def _cell_by_cell(ref, hyp, step):
    other = hyp[:, ::-1]
    hyp = other if (ref & other).sum() > (ref & hyp).sum() else hyp
    return step * float((ref & ~hyp).sum()), step * float((~ref & hyp).sum()), 0.0, step * float(ref.sum())


def _time_of_anybody(ref, hyp, step):
    return *error_seconds(ref, hyp, step)[:3], step * float(ref.any(axis=1).sum())


def _pair_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(frames: int, step: float, swapped: bool) -> tuple:
        ref = np.zeros((frames, 2), dtype=bool)
        ref[2 : frames // 2, 0] = ref[frames // 3 : frames - 4, 1] = True  # with overlap in the middle
        hyp = ref ^ (rng.random(ref.shape) < 0.12)
        hyp[4:7], hyp[frames - 8 : frames - 5] = [[False, True]], [[True, False]]  # taken for each other
        hyp[frames // 3 + 1, 1], hyp[0, 0] = False, True  # one of two is missed; a voice in silence
        return ref, hyp[:, ::-1].copy() if swapped else hyp, step

    silent = np.zeros((30, 2), dtype=bool)
    return [case(60, 0.02, True), case(45, 0.01, False), (case(30, 0.02, False)[0], silent, 0.02)]


EXERCISES = {
    "sd.q1": Exercise(
        key="sd.q1",
        title="turns into frames",
        reference=labels_of,
        inputs=_turn_inputs,
        wrong=(
            WrongAnswer(
                "rounded down", _rounded_down, "the times are cut down to the frame before; take the nearest frame "
                "(round, not int)"
            ),
            WrongAnswer(
                "end included", _end_included, "turns are one frame too long: the frame nearest to the end does not "
                "belong to the turn any more"
            ),
            WrongAnswer(
                "one at a time", _one_at_a_time, "where two people speak at once only the later turn is marked; each "
                "column is a yes or no of its own"
            ),
            WrongAnswer(
                "always 50 frames", _always_fifty, "it takes 50 frames a second for granted; there are "
                "16,000 / stride of them"
            ),
            WrongAnswer(
                "first come", _first_come, "the columns follow who speaks first; they should follow the list of "
                "speakers"
            ),
        ),
        hints=(
            "A frame every `stride` samples, 16,000 samples a second: a second has 16000 / stride frames.",
            "Start from np.zeros((frames, len(speakers))) and go through the turns; the column is "
            "speakers.index(speaker).",
            "first, end = round(start * 16000 / stride), round(end * 16000 / stride); labels[first:end, column] = 1",
        ),
    ),
    "sd.q2": Exercise(
        key="sd.q2",
        title="the permutation-invariant loss",
        reference=pit_loss,
        inputs=_loss_inputs,
        call=with_slopes,
        wrong=(
            WrongAnswer(
                "fixed order", _fixed_order, "output 0 is always held against column 0: if the labels are swapped the "
                "loss changes. Try the other order as well, targets.flip(2)"
            ),
            WrongAnswer(
                "per frame", _per_frame, "the cheaper order is chosen anew in every frame, so the two outputs may "
                "exchange people in the middle of a word for free. Sum over the frames first, then take the minimum"
            ),
            WrongAnswer(
                "one for all", _one_for_all, "one order is chosen for the whole batch; each clip has two people of "
                "its own, so it chooses for itself"
            ),
            WrongAnswer(
                "padding too", _padding_too, "padded frames count; only the first lengths[i] frames of clip i do"
            ),
            WrongAnswer(
                "clips alike", _clips_alike, "it is the mean of the clips' means, which gives short clips too much "
                "weight: divide the sum over everything by the number of all valid frames"
            ),
        ),
        hints=(
            "functional.binary_cross_entropy_with_logits(out, targets, reduction='none') has the shape of out. Average "
            "over the speakers: .mean(2).",
            "Multiply by torch.arange(frames) < lengths[:, None] and sum over time: one number per clip. The same with "
            "targets.flip(2) for the other order.",
            "torch.minimum(straight, swapped).sum() / lengths.sum()",
        ),
    ),
    "sd.q3": Exercise(
        key="sd.q3",
        title="threshold and median filter",
        reference=speaking,
        inputs=_probability_inputs,
        wrong=(
            WrongAnswer(
                "at least", _at_least, "a probability equal to the threshold counts as speech; it has to be above"
            ),
            WrongAnswer(
                "ends repeated", _ends_repeated, "the first and last frames are repeated beyond the ends; there it is "
                "silent, so pad with False"
            ),
            WrongAnswer(
                "average", _average, "it averages the probabilities and then decides, so a few loud frames outvote "
                "the others; decide first, then let the frames vote"
            ),
            WrongAnswer(
                "looks back", _looks_back, "the window lies behind the frame; the frame should be in its middle, else "
                "every turn comes late"
            ),
            WrongAnswer("no filter", _unfiltered, "the threshold is right, but nothing is filtered"),
        ),
        hints=(
            "active = values > threshold; for a frame, look at active[frame - width // 2 : frame + width // 2 + 1].",
            "np.pad(active, ((half, half), (0, 0))) adds silence at both ends; then frame t is in the middle of "
            "padded[t : t + width].",
            "np.stack([padded[t : t + width].sum(0) > half for t in range(len(values))])",
        ),
    ),
    "sd.q4": Exercise(
        key="sd.q4",
        title="turns as RTTM",
        reference=rttm_lines,
        inputs=_activity_inputs,
        call=as_fields,
        wrong=(
            WrongAnswer(
                "end for length", _end_for_length, "the fifth field is the time at which the turn ends; RTTM wants how "
                "long it lasts"
            ),
            WrongAnswer(
                "still running", _still_running, "a turn that is still running when the recording ends is lost; close "
                "it there"
            ),
            WrongAnswer("in frames", _in_frames, "the times are frame numbers; multiply them by step"),
            WrongAnswer(
                "a frame short", _a_frame_short, "every turn is one frame short: three frames last three steps, not two"
            ),
            WrongAnswer(
                "nameless", _nameless, "the speaker is only 0 or 1, so speaker 0 of all recordings would be one "
                "person: write the recording and an underscore before it"
            ),
        ),
        hints=(
            "np.pad(column, 1) puts silence before and behind. Then every turn has a beginning and an end.",
            "np.flatnonzero(np.diff(np.pad(column, 1).astype(int))) is first, end, first, end, ... with `end` the "
            "frame behind the last. reshape(-1, 2) makes pairs of it.",
            'f"SPEAKER {recording} 1 {first * step:.2f} {(end - first) * step:.2f} <NA> <NA> {recording}_{number} '
            '<NA>"',
        ),
    ),
    "sd.q5": Exercise(
        key="sd.q5",
        title="missed, false alarm, confusion",
        reference=error_seconds,
        inputs=_pair_inputs,
        wrong=(
            WrongAnswer(
                "as they come", _as_they_come, "hypothesis 0 is held against person 0 only; names are free, so look "
                "for the order that fits better"
            ),
            WrongAnswer(
                "frame by frame", _frame_by_frame, "the better order is chosen in each frame, so nobody is ever taken "
                "for the other; there is one order for the whole recording"
            ),
            WrongAnswer(
                "without overlap", _without_overlap, "frames in which both speak are left out; they count, and twice"
            ),
            WrongAnswer(
                "cell by cell", _cell_by_cell, "A taken for B is counted as a miss of A and a false alarm of B, two "
                "errors for one; compare how many speak and how many were found, then ask how many of these are right"
            ),
            WrongAnswer(
                "time of anybody", _time_of_anybody, "the last number is the time in which somebody speaks; speaker "
                "time counts a second of two people as two"
            ),
        ),
        hints=(
            "truth, found = ref.sum(1), hyp.sum(1): how many speak in each frame, and how many were found. What is too "
            "few is missed, what is too many is a false alarm.",
            "np.minimum(truth, found) voices were found in each frame. (ref & hyp).sum() of them are right, or "
            "(ref & hyp[:, ::-1]).sum() in the other order.",
            "confusion = np.minimum(truth, found).sum() - max(the two); everything times step; total = truth.sum()",
        ),
    ),
}
