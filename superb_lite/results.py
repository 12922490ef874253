"""Results in long format: a row is one number with its whole origin, and rows are only ever appended.

A new metric or task changes no file format. Tables are made for display only, from the rows.

Taught in notebooks 14 (round one) to 16 (against Fbank).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from superb_lite.tasks import get_task
from superb_lite.types import Metric, ResultsBroken, Score, Task, UnknownName

if TYPE_CHECKING:
    import pandas

# The columns of the paper's tables; tasks that are not in it come last, in the order of the rows.
TASK_ORDER = ("pr", "asr", "ks", "qbe", "sid", "asv", "sd", "ic", "sf", "er")


# ------------------------------------------------------------------------------------------------ file


class ResultsFile:
    """A file of rows (JSON lines). A row is on the disk when `append` comes back.

    A process killed while it wrote leaves a torn last line: reading skips it, the next `append` cuts it off.

    >>> rows = ResultsFile("superb_lite_results/results.jsonl").rows()  # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"ResultsFile({str(self.path)!r})"

    def append(self, score: Score) -> None:
        """Write one row and wait until the disk has it.

        Raises:
            ResultsBroken: the file cannot be written (full disk, no right to). Rows already in it stay, and
                a part of this row that was written is taken back.
            ValueError: the value is not finite; a metric that cannot be computed must not become a row.
        """
        line = json.dumps(asdict(score), allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b", buffering=0) as file:
                start = _mend(file)
                try:
                    _write_all(file, line.encode())
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(start)
                    raise
        except OSError as error:
            raise ResultsBroken(
                f"cannot write to {self.path}: {error.strerror}; the rows already in it are untouched. "
                "Free some space or choose another folder, and run again: finished rows are not computed twice"
            ) from error

    @contextlib.contextmanager
    def reserved(self) -> Iterator[None]:
        """Inside the block no other process that reserves the file may write to it; ends with the process if killed.

        Raises ResultsBroken if another one has it, or if the folder cannot be written.
        """
        lock = FileLock(self.path.with_name(f".{self.path.stem}.lock"), timeout=0)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise ResultsBroken(
                f"another run is writing to {self.path}; wait for its end, or choose another folder for this one"
            ) from None
        except OSError as error:
            where = self.path.parent
            raise ResultsBroken(f"cannot write to {where}: {error.strerror}; choose another folder") from error
        try:
            yield
        finally:
            lock.release()

    def rows(self) -> list[Score]:
        """All rows in the order they were written; an empty list if there is no file.

        Raises:
            ResultsBroken: the file cannot be read, or a line that is not the torn last one is no row.
        """
        try:
            with self.path.open("rb") as file:
                data = file.read(os.fstat(file.fileno()).st_size)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ResultsBroken(f"cannot read {self.path}: {error.strerror}") from error
        lines = data.split(b"\n")
        if not _is_row(lines[-1]):  # empty after a final newline, else torn
            lines.pop()
        return [self._row(number, line) for number, line in enumerate(lines, start=1) if line.strip()]

    def _row(self, number: int, line: bytes) -> Score:
        try:
            return _parse(line)
        except (ValueError, TypeError, KeyError) as error:
            raise ResultsBroken(
                f"{self.path}, line {number} is no row of results ({error!r}); expected a JSON object with the fields "
                f"{', '.join(_FIELDS)}. Repair or remove that line; nothing was changed"
            ) from error


_TAIL_BYTES = 1 << 16  # far more than a row: where to look for a torn last line
_FIELDS = tuple(field.name for field in fields(Score))


def _parse(line: bytes) -> Score:
    """One line to a Score. Fields of later versions are skipped; a missing one is a KeyError."""
    record = json.loads(line)
    values = {name: record[name] for name in _FIELDS}
    values["layer_weights"] = tuple(float(weight) for weight in values["layer_weights"])
    values["value"] = float(values["value"])
    return Score(**values)


def _is_row(line: bytes) -> bool:
    try:
        _parse(line)
    except (ValueError, TypeError, KeyError):
        return False
    return True


def _mend(file: Any) -> int:
    """Cut a torn last line, or end a whole one that lacks its newline. Returns where the next row starts."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL_BYTES))
    tail = file.read(_TAIL_BYTES)
    torn = tail[tail.rfind(b"\n") + 1 :]
    if not torn:
        return size
    if _is_row(torn):
        _write_all(file, b"\n")
        return size + 1
    file.truncate(size - len(torn))
    return size - len(torn)


def _write_all(file: Any, data: bytes) -> None:
    """Write all of `data` to an unbuffered file: a nearly full disk may take only a part at a time."""
    while data:
        data = data[file.write(data) :]


# ----------------------------------------------------------------------------------------------- table


class ResultsTable:
    """Rows of results, and the views of them that people read.

    `tasks` are needed only for tasks that are not in the registry (your own): they say in which direction
    a metric is better. `reference` is the upstream below which a cell is black, unless a caller names another.

    >>> table = ResultsTable(ResultsFile("results.jsonl").rows())  # doctest: +SKIP
    >>> table.pivot(2)                                             # doctest: +SKIP
    """

    def __init__(self, scores: Iterable[Score], tasks: Iterable[Task] = (), *, reference: str = "fbank") -> None:
        self.scores, self.reference = tuple(scores), reference
        self._tasks = {task.key: task for task in tasks}

    def __repr__(self) -> str:
        def count(name: str) -> int:
            return len({getattr(score, name) for score in self.scores})

        return (
            f"<ResultsTable: {len(self.scores)} rows, {count('upstream')} upstreams, {count('task')} tasks, "
            f"{count('round')} rounds, {count('seed')} seeds>"
        )

    def __len__(self) -> int:
        return len(self.scores)

    def metric(self, task: str, metric: str) -> Metric:
        """The record of a metric: its title and its direction. Raises UnknownName."""
        found = self._tasks[task] if task in self._tasks else get_task(task)
        for known in found.metrics:
            if known.key == metric:
                return known
        raise UnknownName.among(f"metric of task {task!r}", metric, [known.key for known in found.metrics])

    def heading(self, task: str, metric: str) -> str:
        """The title of a column, with the direction that is better, such as ``KS acc ↑``."""
        return f"{task.upper()} {metric} {'↑' if self.metric(task, metric).higher_is_better else '↓'}"

    def to_frame(self) -> pandas.DataFrame:
        """All rows as they are: a column per field of `Score`."""
        import pandas

        return pandas.DataFrame([asdict(score) for score in self.scores], columns=list(_FIELDS))

    def pivot(self, round: int | None = None, stat: str = "mean") -> pandas.DataFrame:
        """Upstreams against tasks.

        Args:
            round: one round (the index is the upstream), or None for all (the index is round and upstream)
            stat: ``"mean"`` over seeds, ``"spread"`` (standard deviation over seeds with n - 1; NaN for a
                single seed) or ``"seeds"`` (how many). Folds are averaged first, inside each seed.

        Returns a frame with columns (task, metric) in the order of the paper; NaN where a score is missing.
        Only rows of the test split are in it, and only the newest of rows that differ in nothing but value.
        """
        import pandas

        if stat not in ("mean", "spread", "seeds"):
            raise UnknownName.among("statistic", stat, ("mean", "spread", "seeds"))
        index = self._index(round)
        table = pandas.DataFrame(index=index, columns=self._columns(), dtype=float)
        for (row, column), by_seed in self._cells(round).items():
            values = pandas.Series({seed: sum(folds.values()) / len(folds) for seed, folds in by_seed.items()})
            table.loc[row, column] = {"mean": values.mean(), "spread": values.std(), "seeds": len(values)}[stat]
        return table

    def black(self, reference: str | None = None, *, round: int | None = None) -> pandas.DataFrame:
        """True where the mean score is worse than that of `reference` in the same round: the black cells.

        Same shape as `pivot`. A missing score is not black; without the reference nothing is. The reference is that
        of the table unless given.
        """
        reference = self.reference if reference is None else reference
        means = self.pivot(round)
        result = means.notna() & False
        for row in means.index:
            line = (row[0], reference) if round is None else reference
            if line not in means.index:
                continue
            for task, metric in means.columns:
                better = self.metric(task, metric).better
                ours, theirs = means.loc[row, (task, metric)], means.loc[line, (task, metric)]
                result.loc[row, (task, metric)] = bool(better(theirs, ours))
        return result

    def _columns(self) -> pandas.MultiIndex:
        import pandas

        found = dict.fromkeys(
            (score.task, score.metric)
            for score in self._counting(None)
            if self.metric(score.task, score.metric).in_table
        )
        place = {key: number for number, key in enumerate(TASK_ORDER)}
        ordered = sorted(found, key=lambda column: place.get(column[0], len(place)))
        return pandas.MultiIndex.from_tuples(ordered, names=["task", "metric"])

    def _index(self, round: int | None) -> pandas.Index:
        import pandas

        upstreams = list(dict.fromkeys(score.upstream for score in self._counting(None)))
        pairs = {(score.round, score.upstream) for score in self._counting(round)}
        if round is not None:
            return pandas.Index([name for name in upstreams if (round, name) in pairs], name="upstream")
        ordered = sorted(pairs, key=lambda pair: (pair[0], upstreams.index(pair[1])))
        return pandas.MultiIndex.from_tuples(ordered, names=["round", "upstream"])

    def _counting(self, round: int | None) -> list[Score]:
        """The rows that count: those of the test split, in this round or in all."""
        return [score for score in self.scores if score.split == "test" and round in (None, score.round)]

    def _cells(self, round: int | None) -> dict[tuple[Any, tuple[str, str]], dict[int, dict[int, float]]]:
        """(row, column) -> seed -> fold -> value; a later row replaces an earlier one of the same origin."""
        cells: dict[tuple[Any, tuple[str, str]], dict[int, dict[int, float]]] = {}
        for score in self._counting(round):
            if not self.metric(score.task, score.metric).in_table:
                continue
            row = score.upstream if round is not None else (score.round, score.upstream)
            by_seed = cells.setdefault((row, (score.task, score.metric)), {})
            by_seed.setdefault(score.seed, {})[score.fold] = score.value
        return cells

    def _repr_html_(self) -> str:
        """Small tables for a notebook, one per round; cells worse than the reference are black."""
        rounds = sorted({score.round for score in self._counting(None)})
        return "".join(self._html(number) for number in rounds) if rounds else "<p>no results yet</p>"

    def _html(self, round: int) -> str:
        means, spreads, black = self.pivot(round), self.pivot(round, "spread"), self.black(round=round)
        heads = "".join(f"<th>{escape(self.heading(task, metric))}</th>" for task, metric in means.columns)
        lines = []
        for name in means.index:
            cells = ""
            for column in means.columns:
                text = show(means.loc[name, column], spreads.loc[name, column], self.metric(*column).decimals)
                cells += f"<td{_PAINT if black.loc[name, column] else ''}>{escape(text)}</td>"
            lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
        return f"<table><caption>round {round}</caption><tr><th></th>{heads}</tr>{''.join(lines)}</table>"


_PAINT = ' style="background:#000;color:#fff"'


def show(mean: float, spread: float, decimals: int = 1) -> str:
    """One cell as text: ``93.1``, or ``93.1 ± 0.4`` over several seeds, or a dash where there is no score."""
    if mean != mean:  # NaN
        return "–"
    return f"{mean:.{decimals}f}" if spread != spread else f"{mean:.{decimals}f} ± {spread:.{decimals}f}"
