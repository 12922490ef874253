"""Checking a student's answer against the live reference, and never standing in the way.

``check`` prints one sentence: passed, wrong (because ...), not tried yet, or your code raised. ``carry_on``
lets the notebook continue whatever the answer is. Nothing is raised, unless a grader is running the notebook.

Taught in notebook 00 (welcome).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import os
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from superb_lite.course.compare import changed, difference, name_inputs
from superb_lite.course.exercises import Exercise, get_exercise

PACKAGE = "superb_lite"


@dataclass(frozen=True)
class Verdict:
    """What `check` has to say: one of four outcomes and a sentence with the next step."""

    outcome: Literal["passed", "wrong", "untried", "raised"]
    text: str

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


@dataclass(frozen=True)
class Ran:
    """What an answer did with one input: `value` or `error`, and its arguments as it left them."""

    value: Any
    error: Exception | None
    arguments: tuple


# ------------------------------------------------------------------------------------- what students call


def check(key: str | Exercise, answer: Any) -> None:
    """Print one line about the student's `answer` to exercise `key`.

    Never raises because of the answer, except while a grader runs the notebook (``NBGRADER_EXECUTION`` is set):
    then an answer that does not pass raises AssertionError. The environment variable SUPERB_LITE_CHECK_SEED
    chooses other random inputs.

    Raises:
        UnknownName: no exercise is called `key`.
    """
    verdict = judge(get_exercise(key), answer)
    if os.environ.get("NBGRADER_EXECUTION") and not verdict.passed:
        raise AssertionError(verdict.text)
    print(verdict.text)


def carry_on(key: str | Exercise, answer: Any) -> Callable:
    """The student's `answer` if it passes, else the reference; prints which. Use what comes back from here on."""
    exercise = get_exercise(key)
    if judge(exercise, answer).passed:
        print(f"{exercise.key}: carrying on with your answer")
        return answer
    print(f"{exercise.key}: carrying on with the reference answer, since yours does not pass yet")
    return exercise.reference


def hint(key: str | Exercise, number: int | None = None) -> None:
    """Show the hints of exercise `key` as a ladder of foldouts, or print hint `number` (from 1)."""
    from superb_lite.course.display import Ladder, show

    exercise = get_exercise(key)
    count = len(exercise.hints)
    if number is None:
        show(Ladder(exercise.key, exercise.hints))
    elif not 1 <= number <= count:
        print(f"{exercise.key} has {count} hints: hint({exercise.key!r}, 1) to hint({exercise.key!r}, {count})")
    else:
        print(f"{exercise.key}, hint {number} of {count}: {exercise.hints[number - 1]}")


# -------------------------------------------------------------------------------------------- judging


def judge(exercise: Exercise, answer: Any, seed: int | None = None, *, ours: bool = False) -> Verdict:
    """Decide on `answer`. `ours` lets functions of this package through: the test-suite judges them too."""
    if seed is None:
        seed = int(os.environ.get("SUPERB_LITE_CHECK_SEED", "0"))
    if answer is None or answer is Ellipsis:
        return _untried(exercise, "there is no answer yet")
    if not callable(answer):
        return _wrong(exercise, f"a function or class is asked for, not {type(answer).__name__} {repr(answer)[:40]}")
    if not ours and _lives_here(answer):
        return _wrong(exercise, "this is the library's own function, not yours: run your cell again, then this check")
    inputs = exercise.inputs(np.random.default_rng(seed))
    got = [_run(exercise, answer, arguments) for arguments in inputs]
    first = got[0]
    if isinstance(first.error, NotImplementedError) or (
        first.error is None and (first.value is None or first.value is Ellipsis)
    ):
        return _untried(exercise, f"it returns {first.value} (is a return missing?)" if first.error is None else "")
    return _compare(exercise, answer, inputs, got)


def _compare(exercise: Exercise, answer: Callable, inputs: list[tuple], got: list[Ran]) -> Verdict:
    want = [_run(exercise, exercise.reference, arguments) for arguments in inputs]
    for number, (theirs, right) in enumerate(zip(got, want, strict=True)):
        if right.error is not None:
            raise right.error  # a reference that fails is our bug
        words = _difference(exercise, theirs, right)
        if words is None:
            continue
        named = _typical(exercise, inputs, got)
        if named is not None:
            return _wrong(exercise, named)
        if theirs.error is not None:
            return _raised(exercise, answer, theirs.error, name_inputs(exercise, inputs[number]))
        return _wrong(exercise, f"with {name_inputs(exercise, inputs[number])} {words}")
    text = f"{exercise.key} passed: it agrees with the reference on {len(inputs)} inputs. On to the next cell."
    return Verdict("passed", text)


def _difference(exercise: Exercise, got: Ran, want: Ran) -> str | None:
    """In words how two runs differ, or None. An input changed in place counts, unless both changed it alike."""
    if got.error is not None or want.error is not None:
        return None if type(got.error) is type(want.error) else "one of the two raised"
    words = difference(got.value, want.value, exercise.tolerance)
    if words is not None:
        return words
    if changed(got.arguments, want.arguments):
        return "the result is right, but your code changes its input in place; work on a copy"
    return None


def _typical(exercise: Exercise, inputs: list[tuple], got: list[Ran]) -> str | None:
    """The message of the typical wrong answer that does what the student's answer did on every input."""
    for wrong in exercise.wrong:
        runs = [_run(exercise, wrong.function, arguments) for arguments in inputs]
        alike = all(_difference(exercise, a, b) is None for a, b in zip(got, runs, strict=True))
        if alike and any(run.error is None for run in runs):
            return wrong.message
    return None


def _run(exercise: Exercise, answer: Callable, arguments: tuple) -> Ran:
    """Run an answer on copies of the arguments: quietly, from a fixed random state, which is put back after."""
    arguments = copy.deepcopy(arguments)
    quiet = io.StringIO()
    with (
        torch.random.fork_rng(devices=[]),
        contextlib.redirect_stdout(quiet),
        contextlib.redirect_stderr(quiet),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # a word on stderr costs all points of a graded cell
        torch.random.default_generator.manual_seed(0)
        try:
            return Ran(exercise.call(answer, arguments), None, arguments)
        except Exception as error:  # noqa: BLE001  (whatever a student's code raises becomes a sentence)
            return Ran(None, error, arguments)


def _lives_here(answer: Any) -> bool:
    """True if a function, class or object, or what it wraps, was defined in this package."""
    while True:
        inner = answer.func if isinstance(answer, functools.partial) else getattr(answer, "__wrapped__", None)
        if inner is None:
            break
        answer = inner
    answer = getattr(answer, "__func__", answer)
    home = getattr(answer, "__module__", None) or type(answer).__module__
    return home == PACKAGE or home.startswith(PACKAGE + ".")


# ------------------------------------------------------------------------------------------ sentences


def _untried(exercise: Exercise, why: str) -> Verdict:
    reason = f" {why};" if why else ""
    text = f"{exercise.key} not tried yet:{reason} write your code above, run that cell, then this one."
    return Verdict("untried", text)


def _wrong(exercise: Exercise, why: str) -> Verdict:
    why = why.rstrip(".")
    text = f"{exercise.key} wrong, because {why}. Change your code and check again; hint({exercise.key!r}) helps."
    return Verdict("wrong", text)


def _raised(exercise: Exercise, answer: Callable, error: Exception, inputs: str) -> Verdict:
    said = " ".join(f"{type(error).__name__}: {error}".split())
    line = _line(answer, error)
    where = f" (line {line} of your cell)" if line is not None else ""
    text = f"{exercise.key}: your code raised {said:.200}{where}, with {inputs}. Mend that and check again."
    return Verdict("raised", text)


def _line(answer: Callable, error: Exception) -> int | None:
    """The line of the student's own code where `error` came up: the deepest one in the answer's module."""
    home = getattr(answer, "__module__", None)
    frames = traceback.walk_tb(error.__traceback__)
    lines = [number for frame, number in frames if frame.f_globals.get("__name__") == home]
    return lines[-1] if lines else None


# ------------------------------------------------------------------------------------ for the test-suite


def exercise_problems(exercise: Exercise, seeds: tuple[int, ...] = (0, 1, 2)) -> list[str]:
    """What is wrong with an exercise itself: an empty list, or a sentence per fault.

    The reference must pass; each typical wrong answer must be rejected with its own message, whatever the seed.
    """
    found = []
    if not 3 <= len(exercise.wrong) <= 5:
        found.append(f"{exercise.key}: has {len(exercise.wrong)} typical wrong answers; 3 to 5 are expected")
    if len(exercise.hints) < 2:
        found.append(f"{exercise.key}: has {len(exercise.hints)} hints; a ladder has at least 2")
    for seed in seeds:
        verdict = judge(exercise, exercise.reference, seed, ours=True)
        if not verdict.passed:
            found.append(f"{exercise.key}: the reference is rejected with seed {seed}: {verdict.text}")
        for wrong in exercise.wrong:
            verdict = judge(exercise, wrong.function, seed, ours=True)
            if verdict.outcome != "wrong" or wrong.message.rstrip(".") not in verdict.text:
                found.append(f"{exercise.key}: {wrong.name!r} with seed {seed} is told: {verdict.text}")
    return found
