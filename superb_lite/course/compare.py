"""Do two results agree, and if not, how to say it in a few words.

A student may return a list where the reference returns a tuple, or a float where it returns a 0-d tensor;
shapes, lengths, whole numbers and text must be the same.

Taught in notebook 00 (welcome).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from superb_lite.course.exercises import Exercise

SMALL = 8  # a tensor of at most so many numbers is shown, a larger one is described by its shape


def difference(got: Any, want: Any, tolerance: float) -> str | None:
    """The first difference as words ("it returns ..., expected ..."), or None if the two agree."""
    numbers = as_numbers(got), as_numbers(want)
    if numbers[0] is not None and numbers[1] is not None:
        return _numbers_differ(*numbers, tolerance)
    if isinstance(want, Mapping) and isinstance(got, Mapping):
        return _mappings_differ(got, want, tolerance)
    if isinstance(want, list | tuple) and isinstance(got, list | tuple):
        return _sequences_differ(got, want, tolerance)
    if _same(got, want):
        return None
    return f"it returns {describe(got)}, expected {describe(want)}"


def changed(now: tuple, before: tuple) -> bool:
    """True if arguments that hold data (numbers, lists, dictionaries) are not what they were."""
    pairs = zip(now, before, strict=True)
    data = [(a, b) for a, b in pairs if as_numbers(b) is not None or isinstance(b, list | dict)]
    return any(difference(a, b, 0.0) is not None for a, b in data)


def as_numbers(value: Any) -> np.ndarray | None:
    """A number, an array, a tensor or nested lists of numbers as an array; None for anything else."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().to(torch.float64 if value.is_floating_point() else value.dtype).numpy()
    if isinstance(value, bool | int | float | np.number | np.ndarray | np.bool_):
        array = np.asarray(value)
    elif isinstance(value, list) and value and all(isinstance(item, bool | int | float | list) for item in value):
        try:
            array = np.asarray(value)
        except ValueError:  # ragged
            return None
    else:
        return None
    return array if array.dtype.kind in "biuf" else None


def _numbers_differ(got: np.ndarray, want: np.ndarray, tolerance: float) -> str | None:
    if got.shape != want.shape:
        return f"it returns {_shape(got)}, expected {_shape(want)}"
    exact = got.dtype.kind in "biu" and want.dtype.kind in "biu"
    same = np.equal(got, want) if exact else np.isclose(got, want, tolerance, tolerance, equal_nan=True)
    if same.all():
        return None
    if want.ndim == 0:
        return f"it returns {_number(got)}, expected {_number(want)}"
    at = tuple(int(place) for place in np.argwhere(~same)[0])
    where = ", ".join(map(str, at))
    wrong = int((~same).sum())
    return (
        f"the shape is right, but {wrong} of {want.size} numbers are not: "
        f"at [{where}] it has {_number(got[at])}, expected {_number(want[at])}"
    )


def _mappings_differ(got: Mapping, want: Mapping, tolerance: float) -> str | None:
    missing = [key for key in want if key not in got]
    extra = [key for key in got if key not in want]
    if missing or extra:
        what, keys = ("lacks", missing) if missing else ("should not have", extra)
        return f"the dictionary {what} {keys[0]!r}"
    for key in want:
        words = difference(got[key], want[key], tolerance)
        if words is not None:
            return f"under {key!r} {words}"
    return None


def _sequences_differ(got: list | tuple, want: list | tuple, tolerance: float) -> str | None:
    if len(got) != len(want):
        return f"it returns {describe(got)}, expected {describe(want)}"
    for number, (a, b) in enumerate(zip(got, want, strict=True)):
        words = difference(a, b, tolerance)
        if words is not None:
            return f"at place {number} {words}"
    return None


def _same(got: Any, want: Any) -> bool:
    try:
        return bool(got == want)
    except (TypeError, ValueError, RuntimeError):  # for example text against a tensor
        return False


# ------------------------------------------------------------------------------------------- in words


def describe(value: Any) -> str:
    """A value in a few words: a shape for arrays, the items of short lists, text in quotes."""
    if isinstance(value, list | tuple) and any(as_numbers(item) is None for item in value):
        inside = ", ".join(describe(item) for item in value[:4]) + (", ..." if len(value) > 4 else "")
        return f"[{inside}]"
    numbers = as_numbers(value)
    if numbers is None and isinstance(value, list | tuple):
        return repr(value) if len(value) <= SMALL else f"{len(value)} items"
    if numbers is not None:
        return _shape(numbers)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _shape(numbers: np.ndarray) -> str:
    if numbers.ndim == 0:
        return _number(numbers)
    if numbers.ndim == 1 and numbers.size <= SMALL:
        return "[" + ", ".join(_number(item) for item in numbers) + "]"
    return "shape (" + ", ".join(map(str, numbers.shape)) + ("," if numbers.ndim == 1 else "") + ")"


def _number(value: np.ndarray) -> str:
    return f"{float(value):.4g}" if value.dtype.kind == "f" else str(value.item())


def name_inputs(exercise: Exercise, arguments: tuple) -> str:
    """The arguments with the names that the reference gives them: ``states shape (5, 2, 7, 4), lengths [7, 3]``."""
    names = _names(exercise, len(arguments))
    if not arguments:
        return "no input"
    return ", ".join(f"{name} {describe(value)}".strip() for name, value in zip(names, arguments, strict=True))


def _names(exercise: Exercise, count: int) -> list[str]:
    reference = exercise.reference
    functions = [reference.__init__, reference.forward] if hasattr(reference, "forward") else [reference]
    names = []
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        names += [p.name for p in parameters if p.name != "self"]
    return (names + [""] * count)[:count]
