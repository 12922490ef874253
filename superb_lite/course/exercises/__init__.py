"""The exercises of the course. The folder is the registry: ``nb04.py`` holds those of notebook 04.

Each such file has ``EXERCISES``, a dict from key to `Exercise`. Nothing is stored but code: a student's
answer is compared with the live reference on random inputs, so no expected digits can go stale.

Taught in notebook 00 (welcome): the first exercise shows how a check talks.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from superb_lite.types import ContractBroken, UnknownName

Inputs = Callable[[np.random.Generator], list[tuple]]


@dataclass(frozen=True)
class WrongAnswer:
    """A typical mistake: a function that makes it, and the end of the sentence "wrong, because ..."."""

    name: str
    function: Callable
    message: str


def run_answer(answer: Callable, arguments: tuple) -> Any:
    """The usual way to run an answer: call it."""
    return answer(*arguments)


def as_module(built_with: int) -> Callable[[Callable, tuple], Any]:
    """How to run an answer that is an ``nn.Module`` class: build it, then call it.

    The first `built_with` of the arguments go to the constructor, the rest to the module. Everything runs from
    the same random state, so that two classes which make their parameters in the same order start equal.

    >>> from torch import nn, zeros
    >>> as_module(2)(nn.Linear, (3, 4, zeros(5, 3))).shape
    torch.Size([5, 4])
    """

    def run(answer: Callable, arguments: tuple) -> Any:
        return answer(*arguments[:built_with])(*arguments[built_with:])

    return run


@dataclass(frozen=True)
class Exercise:
    """One thing a student builds.

    key:       notebook prefix and number, ``"ks.q1"``
    title:     what is built, in a few words
    reference: the model answer: a function, or a class with a matching `call`
    inputs:    (rng) -> list of argument tuples, several shapes and the edge cases; all randomness from `rng`
    wrong:     3 to 5 typical wrong answers, each with a message of its own
    hints:     a ladder, the last one nearly the answer
    tolerance: relative and absolute; whole numbers, strings and shapes must agree exactly
    call:      (answer, arguments) -> what is compared; `as_module(n)` for classes
    """

    key: str
    title: str
    reference: Callable
    inputs: Inputs
    wrong: tuple[WrongAnswer, ...]
    hints: tuple[str, ...]
    tolerance: float = 1e-5
    call: Callable[[Callable, tuple], Any] = run_answer


def list_exercises() -> tuple[str, ...]:
    """The keys of all exercises, notebook by notebook."""
    return tuple(_all())


def get_exercise(key: str | Exercise) -> Exercise:
    """The exercise called `key`. Raises UnknownName with the nearest name."""
    if isinstance(key, Exercise):
        return key
    known = _all()
    if key not in known:
        raise UnknownName.among("exercise", key, tuple(known))
    return known[key]


def _all() -> dict[str, Exercise]:
    found: dict[str, Exercise] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name.startswith("nb")):
        add(found, importlib.import_module(f"{__name__}.{name}").EXERCISES, name)
    return found


def add(found: dict[str, Exercise], exercises: Mapping[str, Exercise], name: str) -> None:
    """Put the exercises of file `name` into `found`. Raises ContractBroken if a key is wrong or taken."""
    for key, exercise in exercises.items():
        if exercise.key != key:
            raise ContractBroken(f"exercises/{name}.py lists {exercise.key!r} under {key!r}; use the same key twice")
        if key in found:
            raise ContractBroken(f"exercises/{name}.py has {key!r}, which another notebook has too; rename one")
        found[key] = exercise
