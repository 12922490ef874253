"""The contestants. The folder is the registry: every file here defines ``CARDS``, one card per upstream.

Adding an upstream is adding one file with a class and a card; nothing else needs to know. A function that
wants an upstream takes a name or an object, so one written in a notebook cell works as well.

Taught in notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from superb_lite.types import Card, ContractBroken, UnknownName, Upstream


@cache
def _cards() -> dict[str, Card]:
    names = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {card.name: card for module in modules for card in module.CARDS}


def list_upstreams() -> tuple[Card, ...]:
    """The cards of all upstreams, by name. Example: ``[card.name for card in list_upstreams()]``."""
    return tuple(sorted(_cards().values(), key=lambda card: card.name))


def get_card(name: str) -> Card:
    """The card of one upstream. Raises UnknownName, suggesting the nearest name."""
    if name not in _cards():
        raise UnknownName.among("upstream", name, tuple(_cards()))
    return _cards()[name]


def load_upstream(upstream: str | Upstream) -> Upstream:
    """Build the frozen upstream of that name; an object that already is one comes back as it is.

    Raises UnknownName for a name that does not exist, CheckpointRefused for a bad weight file and
    ContractBroken for an object that is no upstream. Example: ``load_upstream("tiny_hubert")``.
    """
    if isinstance(upstream, str):
        return get_card(upstream).build()
    missing = [name for name in ("name", "revision", "layers", "dim", "stride") if not hasattr(upstream, name)]
    if missing or not callable(upstream):
        what = f"lacks {', '.join(missing)}" if missing else "cannot be called with a list of waveforms"
        raise ContractBroken(
            f"{type(upstream).__name__} is not an upstream: it {what}. It needs name, revision, layers, dim, stride "
            "and a call that returns Hidden; superb_lite.testing.check_upstream tells what else is wrong"
        )
    return upstream
