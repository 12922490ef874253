"""Exercises of notebook 00: what a guesser gets, mixing two sounds, a pooled error rate, and the black cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from superb_lite import audio, metrics
from superb_lite.course.exercises import Exercise, WrongAnswer

# ------------------------------------------------------------- q1: what does a guesser get?


def majority_baseline(labels: Sequence[str]) -> float:
    """Accuracy in percent of a guesser who always says the most frequent of the labels."""
    return 100 * max(Counter(labels).values()) / len(labels)


def _alike(labels: Sequence[str]) -> float:
    return 100 / len(set(labels))


def _fraction(labels: Sequence[str]) -> float:
    return max(Counter(labels).values()) / len(labels)


def _count(labels: Sequence[str]) -> int:
    return max(Counter(labels).values())


def _first_label(labels: Sequence[str]) -> float:
    return 100 * list(labels).count(labels[0]) / len(labels)


def _label_inputs(rng: np.random.Generator) -> list[tuple]:
    uneven = ["no"] * 2 + ["yes"] * 5 + ["up"] * 3
    drawn = [str(label) for label in rng.choice(["neutral", "happy", "angry", "sad"], size=41, p=[0.2, 0.5, 0.2, 0.1])]
    return [(uneven,), (["b", *drawn],), (["left", "right", "right", "left"],), (["only"],)]


# ------------------------------------------------------------------------------ q2: mixing


def _no_root(speech: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    ratio = speech.square().mean() / noise.square().mean()
    return speech + ratio * 10 ** (-snr_db / 10) * noise


def _ten_instead_of_twenty(speech: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    ratio = (speech.square().mean() / noise.square().mean()).sqrt()
    return speech + ratio * 10 ** (-snr_db / 10) * noise


def _wrong_sign(speech: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    ratio = (speech.square().mean() / noise.square().mean()).sqrt()
    return speech + ratio * 10 ** (snr_db / 20) * noise


def _level_ignored(speech: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    return speech + 10 ** (-snr_db / 20) * noise


def _only_noise(speech: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    return audio.mix(speech, noise, snr_db) - speech


def _sound_inputs(rng: np.random.Generator) -> list[tuple]:
    def pair(samples: int, loud: float, quiet: float, snr_db: float) -> tuple:
        sounds = (torch.from_numpy(rng.standard_normal(samples).astype(np.float32)) for _ in range(2))
        return (*(level * sound for level, sound in zip((loud, quiet), sounds, strict=True)), snr_db)

    return [pair(6, 0.3, 0.1, 6.0), pair(400, 0.2, 0.5, -10.0), pair(1600, 0.1, 0.02, 20.0), pair(50, 0.1, 0.3, 0.0)]


# ---------------------------------------------------------------------- q3: phone error rate


def _mean_of_rates(refs: list[list[str]], hyps: list[list[str]]) -> float:
    rates = [metrics.edits(ref, hyp).total / len(ref) for ref, hyp in zip(refs, hyps, strict=True)]
    return 100 * sum(rates) / len(rates)


def _by_hypothesis(refs: list[list[str]], hyps: list[list[str]]) -> float:
    edits = sum(metrics.edits(ref, hyp).total for ref, hyp in zip(refs, hyps, strict=True))
    return 100 * edits / sum(map(len, hyps))


def _place_by_place(refs: list[list[str]], hyps: list[list[str]]) -> float:
    wrong = sum(a != b for ref, hyp in zip(refs, hyps, strict=True) for a, b in zip(ref, hyp, strict=False))
    return 100 * wrong / sum(map(len, refs))


def _no_percent(refs: list[list[str]], hyps: list[list[str]]) -> float:
    return metrics.error_rate(refs, hyps) / 100


def _edits_per_utterance(refs: list[list[str]], hyps: list[list[str]]) -> float:
    return sum(metrics.edits(ref, hyp).total for ref, hyp in zip(refs, hyps, strict=True)) / len(refs)


def _phone_inputs(rng: np.random.Generator) -> list[tuple]:
    phones = ["AA", "B", "CH", "D", "EH", "F", "G"]

    def heard(ref: list[str]) -> list[str]:
        kept = [p if rng.random() > 0.2 else str(rng.choice(phones)) for p in ref if rng.random() > 0.15]
        return [*kept, "K"]

    first = ([["N", "OW"], ["S", "T", "AA", "P", "IH", "NG"]], [["G", "OW"], ["S", "AA", "P", "IH", "NG"]])
    refs = [[str(p) for p in rng.choice(phones, size=size)] for size in (2, 17, 5, 9)]
    empty = ([["UH", "P"], ["R", "AY", "T"]], [["AH", "P", "S", "S"], []])
    return [first, (refs, [heard(ref) for ref in refs]), empty, ([["G", "OW"]], [["N", "OW", "T", "D", "AH"]])]


# ---------------------------------------------------------------------------- q4: black cells


def black_cells(row: Sequence[float], fbank: Sequence[float], higher_is_better: Sequence[bool]) -> list[bool]:
    """One True or False per column: is the number in `row` worse than the one of Fbank?"""
    columns = zip(row, fbank, higher_is_better, strict=True)
    return [ours < line if higher else ours > line for ours, line, higher in columns]


def _higher_always(row: Sequence[float], fbank: Sequence[float], higher_is_better: Sequence[bool]) -> list[bool]:
    return [ours < line for ours, line in zip(row, fbank, strict=True)]


def _lower_always(row: Sequence[float], fbank: Sequence[float], higher_is_better: Sequence[bool]) -> list[bool]:
    return [ours > line for ours, line in zip(row, fbank, strict=True)]


def _better_ones(row: Sequence[float], fbank: Sequence[float], higher_is_better: Sequence[bool]) -> list[bool]:
    columns = zip(row, fbank, higher_is_better, strict=True)
    return [ours > line if higher else ours < line for ours, line, higher in columns]


def _ties_too(row: Sequence[float], fbank: Sequence[float], higher_is_better: Sequence[bool]) -> list[bool]:
    columns = zip(row, fbank, higher_is_better, strict=True)
    return [ours <= line if higher else ours >= line for ours, line, higher in columns]


def _any_difference(row: Sequence[float], fbank: Sequence[float], higher_is_better: Sequence[bool]) -> list[bool]:
    return [ours != line for ours, line in zip(row, fbank, strict=True)]


def _row_inputs(rng: np.random.Generator) -> list[tuple]:
    first = ([90.0, 30.0, 7.0, 50.0, 12.0], [80.0, 40.0, 7.0, 60.0, 10.0], [True, False, False, True, False])
    fbank = [round(float(value), 2) for value in rng.uniform(5, 95, size=12)]
    row = [round(value + float(change), 2) for value, change in zip(fbank, rng.normal(0, 4, size=12), strict=True)]
    up = [bool(flip) for flip in rng.random(12) < 0.5]
    ties = ([9.56, 0.0058], [9.56, 0.0058], [False, True])
    return [first, (row, fbank, up), ties, (fbank, row, up)]


EXERCISES = {
    "welcome.q1": Exercise(
        key="welcome.q1",
        title="what does a guesser get?",
        reference=majority_baseline,
        inputs=_label_inputs,
        wrong=(
            WrongAnswer(
                "all classes alike", _alike, "that is right only if all labels are equally frequent: count them instead"
            ),
            WrongAnswer("fraction", _fraction, "it is a fraction, and percent was asked for: multiply by 100"),
            WrongAnswer("count", _count, "it counts the right guesses: divide by the number of labels, times 100"),
            WrongAnswer(
                "first label", _first_label, "it always says the first label: find the one that occurs most often"
            ),
        ),
        hints=(
            "Imagine an exam with the same answer written under every question. How many are right?",
            "collections.Counter(labels) counts each label; .values() are the counts.",
            "100 * max(Counter(labels).values()) / len(labels)",
        ),
    ),
    "welcome.q2": Exercise(
        key="welcome.q2",
        title="mix two sounds",
        reference=audio.mix,
        inputs=_sound_inputs,
        wrong=(
            WrongAnswer(
                "no square root", _no_root, "the factor belongs to the power: an amplitude needs its square root"
            ),
            WrongAnswer(
                "ten for twenty",
                _ten_instead_of_twenty,
                "10 ** (-snr_db / 10) is a ratio of powers: for amplitudes divide by 20",
            ),
            WrongAnswer("wrong sign", _wrong_sign, "a higher ratio must make the noise softer: mind the minus sign"),
            WrongAnswer(
                "level ignored", _level_ignored, "how loud the noise was before still matters: divide by its own level"
            ),
            WrongAnswer("speech forgotten", _only_noise, "only the noise comes back: add the speech"),
        ),
        hints=(
            "Power of a sound: x.square().mean(). Which power must the noise have afterwards?",
            "It must have power_speech / 10 ** (snr_db / 10). Its own power is power_noise; "
            "to multiply a power by r, multiply the amplitude by r ** 0.5.",
            "factor = (power_speech / power_noise / 10 ** (snr_db / 10)) ** 0.5; then speech + factor * noise",
        ),
    ),
    "welcome.q3": Exercise(
        key="welcome.q3",
        title="the phone error rate of a whole test set",
        reference=metrics.per,
        inputs=_phone_inputs,
        wrong=(
            WrongAnswer(
                "mean of rates",
                _mean_of_rates,
                "it averages one rate per sentence, so a two-phone word counts as much as a long sentence: "
                "add up all edits, add up all phones, divide once",
            ),
            WrongAnswer(
                "by hypothesis", _by_hypothesis, "it divides by what the machine said: divide by the reference phones"
            ),
            WrongAnswer(
                "place by place",
                _place_by_place,
                "it compares place by place, so one lost phone spoils all that follow: use edits(ref, hyp).total",
            ),
            WrongAnswer("fraction", _no_percent, "it is a fraction, and percent was asked for: multiply by 100"),
            WrongAnswer(
                "per utterance",
                _edits_per_utterance,
                "it divides by the number of sentences: divide by the number of reference phones, times 100",
            ),
        ),
        hints=(
            "Two sums over the test set and one division at the very end.",
            "edits(ref, hyp).total for each pair on top, len(ref) for each reference below.",
            "errors = sum(edits(r, h).total for r, h in zip(refs, hyps)); return 100 * errors / sum(map(len, refs))",
        ),
    ),
    "welcome.q4": Exercise(
        key="welcome.q4",
        title="which cells are black?",
        reference=black_cells,
        inputs=_row_inputs,
        wrong=(
            WrongAnswer(
                "higher always better", _higher_always, "in an error rate lower is better: look at higher_is_better"
            ),
            WrongAnswer("lower always better", _lower_always, "an accuracy should be high: look at higher_is_better"),
            WrongAnswer("better ones", _better_ones, "these are the cells that beat Fbank: black is for worse"),
            WrongAnswer("ties", _ties_too, "a tie is black too, but equal is not worse: compare with < and >"),
            WrongAnswer("any difference", _any_difference, "all cells that differ are black: only worse ones should"),
        ),
        hints=(
            "Worse means smaller where higher is better, and larger where lower is better.",
            "Walk through three lists at once: for ours, line, higher in zip(row, fbank, higher_is_better)",
            "[ours < line if higher else ours > line for ours, line, higher in zip(row, fbank, higher_is_better)]",
        ),
    ),
}
