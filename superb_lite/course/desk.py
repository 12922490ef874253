"""The student's desk: is this machine ready, and the card on which results are kept.

Taught in notebook 00 (welcome).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superb_lite.types import Score

if TYPE_CHECKING:
    from superb_lite.probe import Probe
    from superb_lite.results import ResultsTable

CARD = "results_card.jsonl"


def preflight() -> None:
    """Print one line: this machine is ready, or what to do. Takes a second; ``superb-lite doctor`` says more.

    "Ready." means versions that we test; "Ready, though ..." names what is not tested.
    """
    print(_ready())


def _ready() -> str:
    from superb_lite import doctor

    checks = (doctor.check_python, _check_pair, doctor.check_audio, doctor.check_corpus, _check_room)
    results = [check() for check in checks]
    for result in results:
        if result.status == "fail":
            return f"Not ready: {result.says}. Do this: {result.fix}"
    for result in results:
        if result.status == "warn":
            return f"Ready, though {result.says}."
    return "Ready."


def _check_pair() -> Any:
    """The doctor's check of torch and torchaudio, without a second process: a notebook has torch in memory."""
    from superb_lite import doctor

    found: dict[str, str] = {}
    try:
        import torch

        found["torch"] = torch.__version__
        import torchaudio

        found["torchaudio"] = torchaudio.__version__
    except (ImportError, OSError, RuntimeError) as error:
        return doctor.check_torch(found, str(error))
    return doctor.check_torch(found, "")


def _check_room() -> Any:
    from superb_lite import doctor

    return doctor.check_disk(doctor.cache_folder())


# ------------------------------------------------------------------------------------------------ card


def card_path() -> Path:
    """Where the card is: SUPERB_LITE_CARD, else ``results_card.jsonl`` beside the notebook."""
    given = os.environ.get("SUPERB_LITE_CARD")
    return Path(given).expanduser() if given else Path(CARD)


def card(probe: Probe, values: Mapping[str, float], split: str = "test", *, device: str = "cpu") -> None:
    """Write scores onto the student's results card, with their whole origin. Prints what is on it, no numbers.

    Running the cell again adds nothing: a row that is there already is not written twice.

    Args:
        probe:  what `fit` gave
        values: metric -> value, what `evaluate` gave for `split`

    Raises:
        ResultsBroken: the card cannot be read or written; rows already on it are untouched.

    >>> card(probe, evaluate(probe, "tiny_hubert"))  # doctest: +SKIP
    """
    scores = scores_of(probe, values, split, device)
    write_scores(scores)
    for score in scores:
        what = f"{score.task} {score.metric}, {score.upstream}, round {score.round}, seed {score.seed}"
        print(f"on your results card: {what}")


def read_card() -> ResultsTable:
    """Everything on the card, as a table. A class leaderboard is the table of several such files."""
    from superb_lite.results import ResultsFile, ResultsTable

    return ResultsTable(ResultsFile(card_path()).rows())


def write_scores(scores: list[Score]) -> None:
    """Append to the card the rows that are not on it yet. Another value of the same origin is another row."""
    from superb_lite.plan import origin
    from superb_lite.results import ResultsFile

    file = ResultsFile(card_path())
    there = {(origin(row), row.value) for row in file.rows()}
    for score in scores:
        if (origin(score), score.value) not in there:
            file.append(score)


def scores_of(probe: Probe, values: Mapping[str, float], split: str = "test", device: str = "cpu") -> list[Score]:
    """One row per metric, with all that is needed to compute it again."""
    import superb_lite
    from superb_lite.plan import recipe_name

    data = probe.task.corpus(probe.corpus).load(split, probe.fold)
    common = {
        "corpus": probe.corpus,
        "task": probe.task.key,
        "upstream": probe.upstream,
        "revision": probe.revision,
        "round": 1 if probe.layers == "last" else 2,
        "seed": probe.seed,
        "split": split,
        "fold": probe.fold,
        "lr": probe.recipe.lr,
        "recipe": recipe_name(probe.recipe),
        "clips": len(data),
        "layer_weights": tuple(probe.layer_weights),
        "seconds": probe.seconds,
        "version": superb_lite.__version__,
        "data_hash": data.data_hash,
        "device": device,
    }
    return [Score(metric=metric, value=float(value), **common) for metric, value in values.items()]
