"""Corpora: one file each, and the folder is the registry.

A corpus is a module with ``KEY``, ``TITLE``, ``clips()`` and one function per task that it serves, such as
``ks(split, fold=0) -> Split``. To add one, add a file; names that begin with ``_`` are helpers.

Taught in notebook 00 (hear the decathlon).
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from superb_lite.types import UnknownName


def list_corpora() -> tuple[str, ...]:
    """The keys of all corpora, sorted; nothing is loaded or downloaded."""
    return tuple(sorted(name for _, name, _ in pkgutil.iter_modules(__path__) if not name.startswith("_")))


def get_corpus(key: str | ModuleType) -> ModuleType:
    """The corpus module of that key (a module is handed back). Raises UnknownName, suggesting the nearest key.

    Example: ``get_corpus("digits").ks("test")``.
    """
    if isinstance(key, ModuleType):
        return key
    if key not in list_corpora():
        raise UnknownName.among("corpus", key, list_corpora())
    return importlib.import_module(f"{__name__}.{key}")
