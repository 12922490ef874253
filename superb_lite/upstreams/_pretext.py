"""Phase 1 as data: which network learns from which objective, and what comes out of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from superb_lite.types import Card, CheckpointRefused, Upstream
from superb_lite.upstreams._frozen import digest, load_weights, read_weights

WEIGHTS = Path(str(files("superb_lite.upstreams") / "weights"))


@dataclass(frozen=True)
class Stage:
    """A part of a pre-training run. share: of all steps.

    Where units are guessed, a stage begins by clustering `source` (``mfcc``, or the state of that number, of the
    network as it is) into `units`; they come from the dry voice, while the network hears it in a room with noise: what
    is worth guessing is what was said, not where (the idea of WavLM's denoising, arXiv:2110.13900, section III-B).
    """

    share: float = 1.0
    source: str | int | None = None
    units: int = 0


@dataclass(frozen=True)
class Pretext:
    """How a tiny upstream learns. A family file names its own in ``PRETEXTS``, {name: Pretext}.

    network:   makes the untrained network
    objective: makes what is trained, of a network and, where `stages` have units, their number. Called with waveforms
               (batch, samples) of equal length, the units if there are any, and a generator on the CPU, it returns
               the loss and what to log, the most telling number first
    wrap:      makes the frozen upstream, of its name, a trained network and a revision
    lr:        the largest learning rate
    """

    method: str
    network: Callable[[], nn.Module]
    objective: Callable[..., nn.Module]
    wrap: Callable[[str, nn.Module, str], Upstream]
    stages: tuple[Stage, ...] = (Stage(),)
    lr: float = 1e-3


def load_tiny(name: str, pretext: Pretext, path: str | Path | None = None) -> Upstream:
    """The upstream with the weights in the package, or with those of a safetensors file that pre-training made.

    Raises CheckpointRefused naming the file.
    """
    network = pretext.network()
    return pretext.wrap(name, network, load_weights(network, WEIGHTS / f"{name}.safetensors" if path is None else path))


def head_file(weights: Path) -> Path:
    """Where pre-training keeps what is thrown away after phase 1, beside the weights of the network."""
    return weights.with_suffix(".head.safetensors")


def head_weights(objective: nn.Module, network: nn.Module) -> dict[str, Tensor]:
    """What an objective learned besides its network: a decoder, unit vectors, the frame shown for hidden ones."""
    ours = {id(weights) for weights in network.parameters()}
    return {
        name: weights
        for name, weights in objective.named_parameters()
        if weights.requires_grad and id(weights) not in ours
    }


def load_objective(name: str, pretext: Pretext, path: str | Path | None = None) -> nn.Module:
    """The objective as it was when pre-training ended; path: as of `load_tiny`. Raises CheckpointRefused."""
    path, units = WEIGHTS / f"{name}.safetensors" if path is None else Path(path), pretext.stages[-1].units
    network = pretext.network()
    objective = pretext.objective(network, *((units,) if units else ()))
    load_weights(network, path)
    heads = head_weights(objective, network)
    if heads:
        found = read_weights(head_file(path))
        if {key: value.shape for key, value in found.items()} != {key: value.shape for key, value in heads.items()}:
            raise CheckpointRefused(f"{head_file(path)}: these weights are of another objective than that of {name}")
        objective.load_state_dict(found, strict=False)
    return objective.eval()


def untrained(name: str, pretext: Pretext) -> Upstream:
    """The network of `pretext` as it is before pre-training, the same on every machine: a control called `name`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = pretext.network()
    return pretext.wrap(name, network, digest(network))


def tiny_card(name: str, pretext: Pretext, *, control: str = "random", **facts) -> Card:
    """The card of an upstream with weights in the package; facts: the fields of `Card` that differ between them."""
    return Card(
        name=name, corpus="synthetic English", licence="MIT", source="in the package",
        build=partial(load_tiny, name, pretext), control=control, **facts,
    )  # fmt: skip


def control_card(name: str, pretext: Pretext, **facts) -> Card:
    """The card of an untrained network; facts: the fields of `Card` that differ between them."""
    return Card(
        name=name, method="-", corpus="none", licence="MIT", source="drawn, seed 0",
        build=partial(untrained, name, pretext), **facts,
    )  # fmt: skip


def weights_card(name: str) -> dict:
    """How the weights of `name` in the package were made: recipe, data, steps, loss curve, licence."""
    return json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
