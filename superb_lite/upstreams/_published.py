"""Published checkpoints: fetched once, read without running anything that is in them.

Most of the paper's models come as PyTorch pickles of 2019 to 2021. They are opened with ``weights_only=True``, which
builds tensors and plain containers and refuses the rest; only `argparse.Namespace`, in which several toolkits left
their settings, is allowed besides.

Taught in notebook 13 (the contestants).
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from superb_lite.files import fetch
from superb_lite.types import Card, CheckpointRefused
from superb_lite.upstreams._frozen import fill, revision_of

ALLOWED = [argparse.Namespace]  # holds attributes and does nothing


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a PyTorch checkpoint, on the CPU, as plain values.

    Raises CheckpointRefused, naming the file, if it is missing, broken, no dictionary, or asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointRefused(f"{path}: there is no such checkpoint; check the path")
    try:
        with torch.serialization.safe_globals(ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        why = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0]
        raise CheckpointRefused(
            f"{path}: refused, it wants more than tensors and plain values ({why}); opening it could run code. "
            "Get it from the place that its card names"
        ) from None
    except Exception as error:
        raise CheckpointRefused(f"{path}: broken, or no PyTorch checkpoint ({error}); download it again") from None
    if not isinstance(content, Mapping):
        raise CheckpointRefused(f"{path}: holds a {type(content).__name__}, expected a dictionary of weights")
    return dict(content)


def part(content: Mapping[str, Any], names: Sequence[str], path: str | Path) -> list[Any]:
    """The entries of these names. Raises CheckpointRefused if one is missing: the file is of another family."""
    missing = [name for name in names if name not in content]
    if missing:
        raise CheckpointRefused(
            f"{path}: has no {missing[0]!r} (only {', '.join(map(str, list(content)[:8]))}); is it of another model?"
        )
    return [content[name] for name in names]


def settings(config: Any) -> dict[str, Any]:
    """A configuration as a dictionary, whether it came as one or as a Namespace."""
    return dict(vars(config)) if isinstance(config, argparse.Namespace) else dict(config)


def load_published(module: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> str:
    """Fill `module` with weights of these names; returns the revision, of the file. Raises CheckpointRefused."""
    fill(module, weights, path)
    return revision_of(path)


def find_checkpoint(card: Card) -> Path:
    """The checkpoint of a card in the cache, fetched if it is not there yet. Raises CorpusMissing without a network."""
    return fetch(card.url, card.sha256, name=f"{card.name}{Path(urlsplit(card.url).path).suffix}")
