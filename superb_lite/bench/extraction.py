"""What one pass costs: files to waveforms to stored states and back, and what twice the hours change.

Taught in notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from superb_lite import audio
from superb_lite.bench.figures import CORPUS, Effort, Figure, shown
from superb_lite.bench.machine import Took, peak_bytes, placed, timed, typical
from superb_lite.features import FeatureStore, plan_batches
from superb_lite.tasks import get_task
from superb_lite.types import RATE, Clip, Hidden, Upstream
from superb_lite.upstreams import load_upstream


class Watched:
    """An upstream that notes how long it computes."""

    def __init__(self, upstream: Upstream, device: str) -> None:
        self.upstream, self.device, self.seconds = placed(upstream, device), device, 0.0
        for name in ("name", "revision", "layers", "dim", "stride"):
            setattr(self, name, getattr(upstream, name))

    def __call__(self, wavs: Sequence[Tensor]) -> Hidden:
        hidden, took = timed(lambda: self.upstream(wavs), self.device)
        self.seconds += took.wall
        return hidden


def stages(upstream: str | Upstream, device: str, effort: Effort, folder: Path) -> list[Figure]:
    """From files to stored states and back: seconds of load, upstream pass, write and read for the same clips."""
    clips, watched = _sentences(effort.clips), Watched(load_upstream(upstream), device)
    seconds = sum(clip.seconds for clip in clips)
    rounds = [_one_pass(watched, clips, device, folder / str(n)) for n in range(effort.repeats + 1)]
    group = f"one pass of {watched.name} over {len(clips)} clips, {seconds:.0f} s of audio"
    meanings = {
        "load": "compressed files to waveforms",
        "upstream": f"waveforms to {watched.layers} layers of states",
        "write": "check, half precision, checksum, disk",
        "read": "checksum and every number",
    }
    figures = []
    for stage, means in meanings.items():
        took = median(round[stage] for round in rounds[1:])  # the first one warmed up
        speed = "" if not took else f" ({seconds / took:,.0f} x real time)"
        figures.append(Figure(f"stage.{stage}", group, stage, took, "s", means + speed, {"audio_seconds": seconds}))
    return figures


def _one_pass(watched: Watched, clips: Sequence[Clip], device: str, folder: Path) -> dict[str, float]:
    """Seconds of each stage. Loading runs beside the upstream, but for the first batch; writing is what is left."""
    watched.seconds = 0.0
    _, load = timed(lambda: [audio.load(clip) for clip in clips])
    _, extract = timed(lambda: FeatureStore(folder).extract(watched, clips, pooled=False, device=device), device)
    _, read = timed(lambda: [np.sum(one) for one in FeatureStore(folder).get(watched, clips, pooled=False)])
    _, first = timed(lambda: [audio.load(clip) for clip in plan_batches(clips)[0]])
    write = max(0.0, extract.wall - first.wall - watched.seconds)
    return {"load": load.wall, "upstream": watched.seconds, "write": write, "read": read.wall}


def _sentences(count: int) -> list[Clip]:
    """Sentences of the corpus, evenly spread over its lengths."""
    clips = sorted(get_task("pr").corpus(CORPUS).load("train", 0).clips, key=lambda clip: (clip.seconds, clip.id))
    return [clips[place] for place in np.linspace(0, len(clips) - 1, min(count, len(clips))).astype(int)]


def twice_the_hours(upstream: str | Upstream, device: str, effort: Effort, folder: Path) -> list[Figure]:
    """Extract a corpus, and one of twice the hours, each in a process of its own: twice the time, the same memory."""
    corpora = {"once": _sentences(2 * effort.clips)[1::2], "twice": _sentences(2 * effort.clips)}
    parts: dict[str, float] = {}
    for name, clips in corpora.items():
        work = (upstream, clips, device, effort.repeats, folder / name, torch.get_num_threads())
        took, parts[f"{name}_bytes"] = _in_new_process(_extract, *work)
        parts |= {f"{name}_seconds": took.wall, f"{name}_processor": took.processor}
        parts[f"{name}_audio_seconds"] = sum(clip.seconds for clip in clips)
    grown = {what: parts[f"twice_{what}"] / parts[f"once_{what}"] for what in ("audio_seconds", "seconds", "processor")}
    group = f"twice the work, {load_upstream(upstream).name}"
    means = (
        f"{shown(parts['once_seconds'], 's')}, then {shown(parts['twice_seconds'], 's')}; "
        f"{shown(grown['processor'], 'times')} the processor time; linear: {grown['audio_seconds']:.2f}"
    )
    found = [Figure("growth.hours", group, "time of extraction", grown["seconds"], "times", means, parts)]
    sizes = parts["once_bytes"], parts["twice_bytes"]
    if all(sizes):  # else the system does not tell
        means = f"{shown(sizes[0], 'B')}, then {shown(sizes[1], 'B')} more than at the start; flat: 1"
        found.append(Figure("growth.memory", group, "peak memory of it", sizes[1] / sizes[0], "times", means, parts))
    return found


def _extract(
    upstream: str | Upstream, clips: Sequence[Clip], device: str, repeats: int, folder: Path, threads: int
) -> tuple[Took, int]:
    """What extracting all clips takes, and by how many bytes the peak grew meanwhile; to be asked in a fresh process.

    Before that, half a second of audio wakes up what sleeps.
    """
    torch.set_num_threads(threads)
    upstream = placed(load_upstream(upstream), device)
    upstream([torch.zeros(RATE // 2, device=device)])
    start, runs = peak_bytes(), []
    for n in range(repeats):
        store = FeatureStore(folder / str(n))
        runs.append(timed(lambda store=store: store.extract(upstream, clips, pooled=False, device=device), device)[1])
    return typical(runs), peak_bytes() - start


def _in_new_process(work: Callable[..., Any], *arguments: Any) -> Any:
    from loky import ProcessPoolExecutor  # unlike the standard library's, works in notebooks and in bare scripts

    pool = ProcessPoolExecutor(1)
    try:
        return pool.submit(work, *arguments).result()
    finally:
        pool.shutdown(wait=True, kill_workers=True)
