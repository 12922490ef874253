"""The published tables of SUPERB as results of this library, and the benchmark's two overall scores.

Four files lie here, one line per upstream; the numbers stand in them as they were printed:

- ``round1.csv``: the last layer of each upstream, May 2021. ``round2.csv``: the weighted sum, August 2021.
  Columns are task and metric (``sf_slot_f1``), in percent, MTWV 0..1. `kind` is ``paper``; or, for rows that came to
  the leaderboard later, ``rerun`` (by the benchmark itself), ``submission``, or ``unverified``.
- ``upstreams.csv``: table 1 of the paper (arXiv:2105.01051). ``sources.csv``: what the column `source` stands for.

Two files are ours: ``mini.jsonl``, the rows that our own tournament wrote on the corpus `mini`, and ``mini.png``, its
round 2 for the README. ``data_scripts/publish_tournament.py`` puts both here.

Upstreams carry the names of this library. The paper's FBANK is `fbank_cmvn`: it was normalised per utterance, which
leaves nothing to the mean-pool heads of KS, IC, SID and ER. `fbank` is the line that replaced it on the leaderboard.

Taught in notebooks 14 (round one) to 16 (against Fbank).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from superb_lite.results import ResultsFile, ResultsTable
from superb_lite.types import Score, SuperbLiteError, UnknownName

if TYPE_CHECKING:
    import pandas

Column = tuple[str, str]  # task and metric, as in ``ResultsTable.pivot``

# Worth nothing and worth 1000: Fbank (KS, IC, SID, ER without CMVN), and the best upstream of the day.
# Source: superbbenchmark/website-react @cacb90e, frontend/src/policy.js and overall_metrics.js; MTWV is x 100 there.
REFERENCE_POINTS: Mapping[Column, tuple[float, float]] = {
    ("pr", "per"): (82.01, 3.53),
    ("asr", "wer"): (23.18, 3.62),
    ("ks", "acc"): (41.3826674, 96.66),
    ("qbe", "mtwv"): (0.0058, 0.0736),
    ("sid", "acc"): (20.058174, 90.3),
    ("asv", "eer"): (9.56, 5.11),
    ("sd", "der"): (10.05, 5.62),
    ("ic", "acc"): (9.649354219, 98.76),
    ("sf", "slot_f1"): (69.64, 89.81),
    ("sf", "slot_cer"): (52.94, 21.76),
    ("er", "acc"): (48.23672168, 67.62),
}
NEVER_SCORED: Column = ("asr", "wer_lm")  # the language model's merit, not the upstream's


# ---------------------------------------------------------------------------------------------- tables


def published_table(round: int | None = None, *, later: bool = False) -> ResultsTable:
    """A published table, as results: `pivot`, `black`, the pictures and the pages treat it as they treat ours.

    Args:
        round: 1 (last layer, 13 upstreams), 2 (weighted sum, 15 upstreams) or None for both
        later: with the rows that came to the leaderboard of round 2 after the paper; their `recipe` says so

    Black is what is worse than the paper's own Fbank, `fbank_cmvn`. What the paper does not tell (learning rate,
    seconds) is NaN; `device` tells the source of each number, with a note where it is odd.

    Raises UnknownName for another round. Example: ``published_table(2).pivot(2)``; used in notebooks 14 to 16.
    """
    if round not in (None, 1, 2):
        raise UnknownName.among("published round", str(round), ("1", "2"))
    sources = {row["source"]: row["what"] for row in _rows("sources.csv")}
    scores = [
        _score(row, number, column, sources[row["source"]])
        for number in (1, 2)
        if round in (None, number)
        for row in _rows(f"round{number}.csv")
        if later or row["kind"] == "paper"
        for column in _columns(row)
    ]
    return ResultsTable(scores, reference="fbank_cmvn")


def tournament_table() -> ResultsTable:
    """Our own tournament on `mini`: all tiny upstreams, the controls and both Fbanks, ten tasks, both rounds.

    It takes hours, so its rows come with the library; each holds its whole origin, and every cell can be computed again
    (``superb-lite olympics --all``). Used in notebooks 13 to 17.
    """
    with as_file(files(__name__) / "mini.jsonl") as path:
        return ResultsTable(ResultsFile(path).rows())


def published_upstreams() -> pandas.DataFrame:
    """Table 1 of the paper: network, parameters, stride, input, corpus and method, by the library's names."""
    import pandas

    table = pandas.DataFrame(_rows("upstreams.csv")).set_index("upstream")
    numbers = {"parameters_millions": float, "stride_ms": int, "n_hidden_states": int, "feature_dim": int}
    return table.astype(numbers)


def _rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((files(__name__) / name).read_text(encoding="utf-8").splitlines()))


def _columns(row: Mapping[str, str]) -> list[str]:
    """The columns of a row that hold a number; those of words stand around them."""
    words = ("upstream", "published_as", "kind", "source", "note")
    return [name for name, text in row.items() if name not in words and text]


def _score(row: Mapping[str, str], round: int, column: str, source: str) -> Score:
    task, _, metric = column.partition("_")
    return Score(
        corpus="superb", task=task, metric=metric, value=float(row[column]), upstream=row["upstream"],
        revision=row["published_as"], round=round, seed=0, split="test", fold=0, lr=math.nan,
        recipe="superb" if row["kind"] == "paper" else f"superb ({row['kind']})", clips=0, layer_weights=(),
        seconds=math.nan, version="published", data_hash="", device="; ".join(filter(None, [source, row["note"]])),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- scores


def superb_score(
    table: ResultsTable, round: int = 2, points: Mapping[Column, tuple[float, float]] = REFERENCE_POINTS
) -> pandas.Series:
    """The benchmark's overall score (superb_s) of each upstream, best first; NaN where a task has no score.

    A metric is worth ``1000 * (x - base) / (top - base)``: Fbank gets 0 and what was the best upstream gets 1000,
    whichever direction is better. Metrics are averaged inside their task, then tasks. The score of an upstream does
    not depend on the others in the table; tables on data of one's own need `points` of their own.

    Args:
        points: {(task, metric): (base, top)}; what is not in it does not count. See `reference_points`

    Raises:
        ValueError: the table has no rows of that round
        SuperbLiteError: a `top` that is not better than its `base`

    Example: ``superb_score(published_table(2))``; used in notebook 16.
    """
    import pandas

    means = _means(table, round)
    flat = [
        f"{task} {metric}" for (task, metric), (b, t) in points.items() if not table.metric(task, metric).better(t, b)
    ]
    if flat:
        raise SuperbLiteError(
            f"no scale for {', '.join(flat)}: the top must be better than the base, so that 0 and 1000 differ. "
            "Leave these metrics out of `points`"
        )
    columns = pandas.MultiIndex.from_tuples(points, names=["task", "metric"])
    base, top = (pandas.Series([pair[end] for pair in points.values()], index=columns) for end in (0, 1))
    worth = 1000 * (means.reindex(columns=columns) - base) / (top - base)
    return _over_tasks(worth).rename("superb_score")


def superb_rank(table: ResultsTable, round: int = 2) -> pandas.Series:
    """The benchmark's ranking (superb_r), best first: how many of the others an upstream beats, on average.

    Per metric it counts the upstreams that are strictly worse; a missing score beats nobody. Averaged inside each
    task, then over the tasks of the table. So it depends on who takes part, but not on by how much one wins.

    Raises ValueError if the table has no rows of that round. Example: ``superb_rank(published_table(2))``; used in
    notebook 16.
    """
    means = _means(table, round).drop(columns=[NEVER_SCORED], errors="ignore")
    beaten = means.copy()
    for task, metric in means.columns:
        up = table.metric(task, metric).higher_is_better
        beaten[(task, metric)] = means[(task, metric)].rank(method="min", ascending=up) - 1
    return _over_tasks(beaten.fillna(0.0)).rename("superb_rank")


def reference_points(
    table: ResultsTable, round: int = 2, reference: str | None = None
) -> dict[Column, tuple[float, float]]:
    """Points for `superb_score` from a table itself: {(task, metric): (its reference, its best upstream)}.

    Only metrics on which an upstream beats the reference, which is that of the table unless given; the others have
    no scale. Raises UnknownName if the reference is not in that round, ValueError if the round is empty.

    Example: ``superb_score(table, 2, reference_points(table, 2))``; used in notebook 16.
    """
    means = _means(table, round).drop(columns=[NEVER_SCORED], errors="ignore")
    name = table.reference if reference is None else reference
    if name not in means.index:
        raise UnknownName.among(f"upstream of round {round}", name, list(means.index))
    best = {
        column: values.max() if table.metric(*column).higher_is_better else values.min()
        for column, values in means.items()
    }
    pairs = {column: (float(means.loc[name, column]), float(top)) for column, top in best.items()}
    return {column: (base, top) for column, (base, top) in pairs.items() if table.metric(*column).better(top, base)}


def _means(table: ResultsTable, round: int) -> pandas.DataFrame:
    means = table.pivot(round)
    if not len(means):
        there = sorted({score.round for score in table.scores if score.split == "test"})
        raise ValueError(f"the table has no rows of round {round}; it has: {there}")
    return means


def _over_tasks(frame: pandas.DataFrame) -> pandas.Series:
    """Mean over the metrics of each task, then over tasks; NaN if one is missing. Best first."""
    import pandas

    tasks = dict.fromkeys(frame.columns.get_level_values("task"))
    by_task = pandas.DataFrame({task: frame[task].mean(axis=1, skipna=False) for task in tasks}, index=frame.index)
    return by_task.mean(axis=1, skipna=False).sort_values(ascending=False, kind="stable")
