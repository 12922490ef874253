"""Kill the tournament at random moments: run again each time, it must end with an unbroken run's rows and features.

    python tests/kill_tournament.py 20 --seed 1

Two upstreams, two tasks, two rounds, two seeds and a search for the learning rate, on a few seconds of audio. The
process that watches has everything imported and computes nothing, so a fork of it is a fresh run without the seconds
that imports take. A tournament that finishes too early is compared, and another one begins.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from superb_lite.features import FeatureStore
from superb_lite.results import ResultsFile
from superb_lite.rounds import RESULTS, olympics
from superb_lite.tasks import get_task
from superb_lite.testing import TinyUpstream
from superb_lite.types import Corpus, Hidden, Recipe

RECIPE = Recipe("toy", steps=20, batch=16, lr=1e-2, eval_every=10)
TASKS = [replace(get_task(key), corpora={"toy": Corpus(get_task(key).toy, RECIPE)}) for key in ("pr", "ks")]


class OneLayer(TinyUpstream):
    """Its last layer is its only one, so that a head stands for two rounds."""

    name, layers = "one", 1

    def forward(self, wavs):
        hidden = super().forward(wavs)
        return Hidden(hidden.states[:1], hidden.lengths)


def tournament(folder: Path) -> None:
    torch.set_num_threads(1)
    olympics(
        [OneLayer(), TinyUpstream()], TASKS, corpus="toy", seeds=2, lr_factors=(0.3, 1.0), out=folder,
        store=FeatureStore(folder / "features"),
    )  # fmt: skip


def in_fork(what: Callable[[], None], killed_after: float | None = None) -> bool:
    """Run it in a fork of this process; True if it came to its end, False if it was killed before."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            what()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    if killed_after is not None:
        time.sleep(killed_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise SystemExit("the tournament failed: see above")
    return True


def rows(folder: Path) -> list[str]:
    """All rows but for the seconds they took, sorted: doubled and lost ones show."""
    return sorted(repr(asdict(replace(row, seconds=0.0))) for row in ResultsFile(folder / RESULTS).rows())


def features(folder: Path) -> dict[tuple[str, str, str], np.ndarray]:
    """What is stored of every clip. Raises SystemExit if something is missing and had to be computed."""
    store, found = FeatureStore(folder / "features"), {}
    for upstream in (OneLayer(), TinyUpstream()):
        for task in TASKS:
            for split in ("train", "dev", "test"):
                clips = task.toy(split, 0).clips
                arrays = store.get(upstream, clips, pooled=task.pooled)
                found |= {(upstream.name, task.key, clip.id): a for clip, a in zip(clips, arrays, strict=True)}
        if upstream.calls:
            raise SystemExit(f"{folder}: features of {upstream.name} are missing after the end")
    return found


def compare(folder: Path, whole: Path) -> None:
    """Raises SystemExit if the killed tournament in `folder` is not what the unbroken one in `whole` is."""
    if rows(folder) != rows(whole):
        raise SystemExit(f"{folder}: {len(rows(folder))} rows are not the {len(rows(whole))} of {whole}")
    ours, theirs = features(folder), features(whole)
    if ours.keys() != theirs.keys() or not all(np.array_equal(ours[key], theirs[key]) for key in theirs):
        raise SystemExit(f"{folder}: its features are not those of {whole}")


def torture(kills: int, seed: int, root: Path) -> str:
    """Kill so many times, compare, and say what was seen."""
    generator, whole = random.Random(seed), root / "whole"
    in_fork(functools.partial(tournament, root / "warm"))  # the audio of the toys is made once
    start = time.monotonic()
    in_fork(functools.partial(tournament, whole))
    longest = time.monotonic() - start
    done, finished, moments = 0, 0, []
    while done < kills:
        folder = root / f"killed-{finished}"
        run = functools.partial(tournament, folder)
        while done < kills and not in_fork(run, killed_after=generator.uniform(0, longest)):
            done += 1
            moments.append(len(rows(folder)))
        in_fork(run)
        compare(folder, whole)
        finished += 1
    expected = len(rows(whole))
    return f"{done} kills (rows then: {moments}); {finished} tournaments ended with the {expected} rows expected"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(torture(options.kills, options.seed, Path(folder)))
