"""The contestants. The folder is the registry: every file here defines ``CARDS``, one card per upstream.

Adding an upstream is adding one file with a class and a card; nothing else needs to know. A function that
wants an upstream takes a name or an object, so one written in a notebook cell works as well.

Taught in notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType

from torch import nn

from superb_lite.types import Card, CheckpointRefused, ContractBroken, UnknownName, Upstream
from superb_lite.upstreams import _pretext
from superb_lite.upstreams._pretext import Pretext, load_tiny
from superb_lite.upstreams._published import find_checkpoint
from superb_lite.upstreams.hub import PREFIXES


@cache
def _families() -> list[ModuleType]:
    names = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


@cache
def _cards() -> dict[str, Card]:
    return {card.name: card for module in _families() for card in module.CARDS}


@cache
def pretexts() -> dict[str, Pretext]:
    """How our tiny upstreams learn, {name: Pretext}: what ``superb-lite pretrain`` knows."""
    return {name: found for module in _families() for name, found in getattr(module, "PRETEXTS", {}).items()}


def list_upstreams() -> tuple[Card, ...]:
    """The cards of all upstreams, by name. Example: ``[card.name for card in list_upstreams()]``."""
    return tuple(sorted(_cards().values(), key=lambda card: card.name))


def get_card(name: str) -> Card:
    """The card of one upstream. Raises UnknownName, suggesting the nearest name."""
    if name not in _cards():
        raise UnknownName.among("upstream", name, tuple(_cards()))
    return _cards()[name]


def check_name(name: str) -> None:
    """Raises UnknownName unless `load_upstream` knows the name. Loads nothing."""
    prefix, colon, _ = name.partition(":")
    if not (colon and prefix in PREFIXES):
        get_card(name)


def _by_name(name: str, checkpoint: str | Path | None) -> Upstream:
    prefix, colon, rest = name.partition(":")
    card = None if colon and prefix in PREFIXES else get_card(name)
    if card is not None and card.read is not None:
        return card.read(find_checkpoint(card) if checkpoint is None else Path(checkpoint))
    if checkpoint is not None and card is not None and name in pretexts():
        return load_tiny(name, pretexts()[name], checkpoint)
    if checkpoint is not None:
        raise CheckpointRefused(f"{checkpoint}: {name} needs no weight file; leave it away")
    return PREFIXES[prefix](rest) if card is None else card.build()


def load_upstream(
    upstream: str | Upstream, checkpoint: str | Path | None = None, *, as_published: bool = False
) -> Upstream:
    """Build the frozen upstream of that name; an object that already is one comes back as it is.

    Args:
        checkpoint: the official file of a published upstream; fetched, once, unless given. For a tiny one, a file
            that ``superb-lite pretrain`` made, in place of the weights in the package
        as_published: give the states of the official toolkit, where a clip's batch mates may change it. Ours do not

    Raises UnknownName for a name that does not exist, CheckpointRefused for a bad or superfluous weight file,
    CorpusMissing, saying what to download to where, if there is no network, and ContractBroken for an object that is
    no upstream. Examples: ``load_upstream("tiny_hubert")``, ``load_upstream("hubert_base", "hubert_base_ls960.pt")``,
    ``load_upstream("hf:facebook/hubert-base-ls960")``, ``load_upstream("torchaudio:HUBERT_BASE")``.
    """
    if isinstance(upstream, str):
        found = _by_name(upstream, checkpoint)
        if as_published:
            found.as_published, found.revision = True, f"{found.revision} as published"
        return found
    missing = [name for name in ("name", "revision", "layers", "dim", "stride") if not hasattr(upstream, name)]
    if missing or not callable(upstream):
        what = f"lacks {', '.join(missing)}" if missing else "cannot be called with a list of waveforms"
        raise ContractBroken(
            f"{type(upstream).__name__} is not an upstream: it {what}. It needs name, revision, layers, dim, stride "
            "and a call that returns Hidden; superb_lite.testing.check_upstream tells what else is wrong"
        )
    return upstream


def load_objective(name: str, checkpoint: str | Path | None = None) -> nn.Module:
    """What a tiny upstream was trained with, as it was at the end: ``.picture(wav)`` shows what it makes of speech.

    checkpoint: a file that ``superb-lite pretrain`` made, in place of the weights in the package. Raises UnknownName
    for an upstream that was not trained by us, and CheckpointRefused for a file that is missing or of another network
    (the objective of `tiny_hubert` was not kept; that of `tiny_hubert_large` was). Taught in notebook 13.
    """
    if name not in pretexts():
        raise UnknownName.among("upstream that can be pre-trained", name, tuple(pretexts()))
    return _pretext.load_objective(name, pretexts()[name], checkpoint)
