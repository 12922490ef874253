"""SUPERB, the decathlon of self-supervised speech models, small enough to read and to run on a laptop.

>>> import superb_lite
>>> superb_lite.list_tasks()  # doctest: +SKIP
('ks', 'pr', 'sid')

The names below are stable. They are imported when first used, so that ``import superb_lite`` costs nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; nothing is imported at run time
    from superb_lite.heads import Featurizer
    from superb_lite.probe import evaluate, fit, predict
    from superb_lite.published import published_table, superb_rank, superb_score, tournament_table
    from superb_lite.results import ResultsTable
    from superb_lite.rounds import ROUND_1, ROUND_2, ROUND_3, olympics
    from superb_lite.tasks import get_task, list_tasks
    from superb_lite.upstreams import list_upstreams, load_upstream

_HOMES = {
    "load_upstream": "upstreams",
    "list_upstreams": "upstreams",
    "get_task": "tasks",
    "list_tasks": "tasks",
    "Featurizer": "heads",
    "fit": "probe",
    "predict": "probe",
    "evaluate": "probe",
    "olympics": "rounds",
    "ROUND_1": "rounds",
    "ROUND_2": "rounds",
    "ROUND_3": "rounds",
    "ResultsTable": "results",
    "published_table": "published",
    "superb_score": "published",
    "superb_rank": "published",
    "tournament_table": "published",
}

__all__ = [
    "ROUND_1",
    "ROUND_2",
    "ROUND_3",
    "Featurizer",
    "ResultsTable",
    "evaluate",
    "fit",
    "get_task",
    "list_tasks",
    "list_upstreams",
    "load_upstream",
    "olympics",
    "predict",
    "published_table",
    "superb_rank",
    "superb_score",
    "tournament_table",
]


def __getattr__(name: str) -> Any:
    """Import a stable name when it is first asked for (PEP 562)."""
    if name == "__version__":
        value: Any = importlib.metadata.version("superb-lite")
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"superb_lite.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'superb_lite' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
