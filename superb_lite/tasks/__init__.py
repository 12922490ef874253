"""The events of the decathlon: one file, one ``TASK`` record each. The folder is the registry.

Adding a task is adding a file here; a notebook can also pass its own `Task` wherever a key is accepted.

Taught in notebooks 03 to 12, one for each task.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from superb_lite.types import Task, UnknownName


@functools.cache
def list_tasks() -> tuple[str, ...]:
    """Keys of all tasks, sorted: the names of the files in this folder that do not start with ``_``."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_")))


def get_task(task: str | Task) -> Task:
    """Turn a key such as ``"ks"`` into its `Task`; a `Task` is given back as it is.

    Raises:
        UnknownName: no task has that key; the message suggests the nearest one.

    >>> get_task("ks").title
    'Keyword spotting'
    """
    if isinstance(task, Task):
        return task
    if task not in list_tasks():
        raise UnknownName.among("task", task, list_tasks())
    return importlib.import_module(f"{__name__}.{task}").TASK
