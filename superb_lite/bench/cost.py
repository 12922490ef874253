"""``superb-lite bench``: what a stage costs, and what freezing saves, measured on this machine in one run.

Every function measures one thing and returns `Figure` records; a time is the median of several, a ratio has both sides
from the same run.

Taught in notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
import torchaudio

from superb_lite import dtw
from superb_lite.bench.alignment import generated
from superb_lite.bench.extraction import stages, twice_the_hours
from superb_lite.bench.figures import FULL, Effort, Figure, Report, shown
from superb_lite.bench.machine import facts, matmul_peak, peak_bytes, peak_dtype, timed, typical
from superb_lite.bench.steps import head_steps, twice_the_rates
from superb_lite.files import cache_root, temporary_folder
from superb_lite.types import Progress, Upstream
from superb_lite.upstreams.hubert import Hubert

TARGET = 30.0  # times less than a step that runs the upstream: simple heads, a network of HuBERT Base's size, two cores


# ---------------------------------------------------------------------------------------------------- all


def measure(
    *,
    device: str = "cpu",
    effort: Effort = FULL,
    networks: Iterable[str | Upstream] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Everything, in about three minutes on two cores.

    networks: whose head steps are timed, by default tiny_hubert and networks of official size with random weights; the
    first one also serves for the rest. progress: called as (what, done, all)
    """
    chosen = default_networks(device) if networks is None else tuple(networks)
    machine, found = facts(device), multiplication(device)
    with temporary_folder(cache_root()) as folder:
        plan = _plan(chosen, device, effort, folder, peak=found[0].value)
        for done, (what, work) in enumerate(plan.items()):
            if progress is not None:
                progress(what, done, len(plan))
            found += work()
    return Report(machine, tuple(found))


def _plan(
    networks: Sequence[str | Upstream], device: str, effort: Effort, folder: Path, peak: float
) -> dict[str, Callable[[], list[Figure]]]:
    """{what is measured: how}, in order."""
    small = networks[0]
    heads = {}
    for network in networks:
        target = TARGET if device == "cpu" and network is not small else None
        work = partial(head_steps, network, device, effort, folder / "steps", peak=peak, target=target)
        heads[f"head steps on {network if isinstance(network, str) else network.name}"] = work
    return {
        "stages of extraction": partial(stages, small, device, effort, folder / "stages"),
        **heads,
        "twice the hours": partial(twice_the_hours, small, device, effort, folder / "hours"),
        "twice the learning rates": partial(twice_the_rates, small, device, effort, folder / "rates"),
        "alignment": partial(alignment, effort),
        "memory": partial(memory, device),
    }


def default_networks(device: str) -> tuple[str | Upstream, ...]:
    """tiny_hubert and one of HuBERT Base's size; on a GPU also one of HuBERT Large's."""
    large = (official_size("hubert_large"),) if torch.device(device).type == "cuda" else ()
    return ("tiny_hubert", official_size("hubert_base"), *large)


def official_size(name: str) -> Hubert:
    """``hubert_base`` or ``hubert_large`` with random weights: as slow as the real one, and nothing to download."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = official_network(name)
    return Hubert(f"{name} (random)", network, revision="seed0", normalise=name == "hubert_large")


def official_network(name: str) -> torchaudio.models.Wav2Vec2Model:
    """The bare network in the sizes of the paper (arXiv:2106.07447, table 1)."""
    return {"hubert_base": torchaudio.models.hubert_base, "hubert_large": torchaudio.models.hubert_large}[name]()


# ------------------------------------------------------------------------------------ once for each machine


def multiplication(device: str) -> list[Figure]:
    """The yardstick of what follows: how fast this machine multiplies two large matrices."""
    kind = str(peak_dtype(device)).removeprefix("torch.")
    means = f"{kind}, large: the most that can be had here"
    return [Figure("matmul", "this machine", "matrix product", matmul_peak(device), "FLOP/s", means)]


def alignment(effort: Effort) -> list[Figure]:
    """Query by example: pairs of frames that are compared and walked through in a second."""
    queries, documents = generated(effort.pairs, effort.pairs)
    frames = dtw.standardise([*queries, *documents])
    queries, documents = frames[: effort.pairs], frames[effort.pairs :]
    dtw.scores(queries, documents)  # compiles
    took = typical([timed(lambda: dtw.scores(queries, documents))[1] for _ in range(effort.repeats)])
    cells = sum(map(len, queries)) * sum(map(len, documents))
    means = f"query by example: {len(queries) * len(documents):,} pairs in {shown(took.wall, 's')}"
    parts = {"seconds": took.wall, "cells": cells}
    return [Figure("dtw", "this machine", "alignment (DTW)", cells / took.wall, "cells/s", means, parts)]


def memory(device: str) -> list[Figure]:
    """The most memory at once, of this whole run."""
    sizes = {"process": peak_bytes()}
    if torch.device(device).type == "cuda":
        sizes["GPU"] = torch.cuda.max_memory_allocated(torch.device(device))
    means = "the most at once in this run, all networks in one process"
    return [
        Figure(f"memory.{where.lower()}", "this machine", f"peak memory, {where}", size, "B", means)
        for where, size in sizes.items()
        if size  # some systems do not tell
    ]
