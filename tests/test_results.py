"""Rows that stay whole whatever happens to the process or the disk, and tables worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest

from superb_lite.results import ResultsFile, ResultsTable, show
from superb_lite.tasks import get_task
from superb_lite.types import Metric, ResultsBroken, Score, UnknownName

ROW = Score(
    corpus="mini", task="ks", metric="acc", value=50.0, upstream="fbank", revision="r1", round=1, seed=0, split="test",
    fold=0, lr=1e-3, recipe="mini 1000x32", clips=8, layer_weights=(1.0,), seconds=1.5, version="0.1.0",
    data_hash="abcdefabcdef", device="cpu",
)  # fmt: skip


def rows(*changes):
    return [replace(ROW, **change) for change in changes]


# ------------------------------------------------------------------------------------------------ file


def test_rows_come_back_as_they_were(tmp_path):
    file = ResultsFile(tmp_path / "deep" / "results.jsonl")
    assert file.rows() == []
    wanted = rows({}, {"task": "pr", "metric": "per", "value": 1 / 3, "layer_weights": (0.25, 0.75)})
    for row in wanted:
        file.append(row)
    assert file.rows() == wanted
    lines = file.path.read_text().splitlines()
    assert list(json.loads(lines[0])) == (
        "corpus task metric value upstream revision round seed split fold lr recipe clips layer_weights seconds "
        "version data_hash device"
    ).split()


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_torn_last_line_is_skipped_and_then_cut(tmp_path, cut):
    file = ResultsFile(tmp_path / "results.jsonl")
    file.append(ROW)
    file.append(replace(ROW, seed=1))
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[: len(whole) - 1 - cut])
    assert file.rows() == [ROW]
    file.append(replace(ROW, seed=2))
    assert [row.seed for row in file.rows()] == [0, 2]
    assert file.path.read_bytes().count(b"\n") == 2


def test_last_line_that_lacks_only_its_newline_is_kept(tmp_path):
    file = ResultsFile(tmp_path / "results.jsonl")
    file.append(ROW)
    file.path.write_bytes(file.path.read_bytes()[:-1])
    assert file.rows() == [ROW]
    file.append(replace(ROW, seed=1))
    assert [row.seed for row in file.rows()] == [0, 1]


@pytest.mark.parametrize("line", ["not json", '{"task": "ks"}', "[1, 2]", "null"])
def test_broken_line_in_the_middle_names_file_and_line(tmp_path, line):
    path = tmp_path / "results.jsonl"
    good = json.dumps(asdict(ROW))
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(ResultsBroken, match=r"results\.jsonl, line 2 is no row"):
        ResultsFile(path).rows()


def test_fields_of_later_versions_are_skipped(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(asdict(ROW) | {"colour": "blue"}) + "\n")
    assert ResultsFile(path).rows() == [ROW]


def test_full_disk_names_the_file_and_keeps_earlier_rows(tmp_path, file_limit):
    file = ResultsFile(tmp_path / "results.jsonl")
    file.append(ROW)
    before = file.path.read_bytes()
    file_limit(len(before) + 40)  # room for a part of the next row
    with pytest.raises(ResultsBroken, match=r"cannot write to .*results\.jsonl.*untouched"):
        file.append(replace(ROW, seed=1))
    file_limit(None)
    assert file.path.read_bytes() == before
    file.append(replace(ROW, seed=1))
    assert [row.seed for row in file.rows()] == [0, 1]


def test_folder_in_the_place_of_the_file(tmp_path):
    with pytest.raises(ResultsBroken, match="cannot write to"):
        ResultsFile(tmp_path).append(ROW)
    with pytest.raises(ResultsBroken, match="cannot read"):
        ResultsFile(tmp_path).rows()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused(tmp_path, value):
    file = ResultsFile(tmp_path / "results.jsonl")
    with pytest.raises(ValueError):
        file.append(replace(ROW, value=value))
    assert not file.path.exists()


# ----------------------------------------------------------------------------------------------- table

PR = {"task": "pr", "metric": "per"}
TABLE = ResultsTable(
    rows(
        {"value": 50.0}, {"value": 53.0, "seed": 1}, PR | {"value": 90.0},
        {"value": 80.0, "upstream": "net"}, {"value": 84.0, "upstream": "net", "seed": 1},
        PR | {"value": 95.0, "upstream": "net"},
        {"value": 40.0, "upstream": "bad", "round": 2}, {"value": 51.5, "round": 2}, PR | {"value": 90.0, "round": 2},
        {"value": 99.0, "upstream": "cheat", "split": "dev"},
    )
)  # fmt: skip


def test_pivot_worked_by_hand():
    means = TABLE.pivot(1)
    assert list(means.index) == ["fbank", "net"]
    assert list(means.columns) == [("pr", "per"), ("ks", "acc")]  # the order of the paper
    assert means.loc["fbank", ("ks", "acc")] == 51.5
    assert means.loc["net", ("ks", "acc")] == 82.0
    spread = TABLE.pivot(1, "spread")
    assert spread.loc["net", ("ks", "acc")] == pytest.approx(math.sqrt(8))  # (80, 84): n - 1
    assert math.isnan(spread.loc["net", ("pr", "per")])
    assert TABLE.pivot(1, "seeds").loc["net", ("ks", "acc")] == 2
    assert list(TABLE.pivot().index) == [(1, "fbank"), (1, "net"), (2, "fbank"), (2, "bad")]
    assert TABLE.pivot().loc[(2, "bad"), ("ks", "acc")] == 40.0
    assert math.isnan(TABLE.pivot(2).loc["bad", ("pr", "per")])
    with pytest.raises(UnknownName, match="mean"):
        TABLE.pivot(1, "meen")


def test_folds_are_averaged_inside_a_seed():
    values = [(0, 0, 10.0), (0, 1, 20.0), (1, 0, 40.0), (1, 1, 60.0)]  # seeds: 15 and 50
    table = ResultsTable(rows(*({"seed": seed, "fold": fold, "value": value} for seed, fold, value in values)))
    assert table.pivot(1).loc["fbank", ("ks", "acc")] == 32.5
    assert table.pivot(1, "spread").loc["fbank", ("ks", "acc")] == pytest.approx(35 / math.sqrt(2))


def test_black_cells_know_the_direction_of_each_metric():
    black = TABLE.black(round=1)
    assert black.loc["net", ("pr", "per")] and not black.loc["net", ("ks", "acc")]  # 95 > 90 errors; 82 > 51.5 right
    assert not black.loc["fbank"].any()
    everywhere = TABLE.black()
    assert everywhere.loc[(2, "bad"), ("ks", "acc")] and not everywhere.loc[(2, "bad"), ("pr", "per")]  # missing
    other = TABLE.black("net", round=1)
    assert other.loc["fbank", ("ks", "acc")] and not other.loc["fbank", ("pr", "per")]
    assert not TABLE.black("nobody").to_numpy().any()


def test_black_cells_of_a_task_of_your_own():
    mine = replace(get_task("ks"), key="mine", metrics=(Metric("loss", "loss", higher_is_better=False),))
    own = {"task": "mine", "metric": "loss"}
    scores = rows(own | {"value": 1.0}, own | {"value": 2.0, "upstream": "net"})
    assert ResultsTable(scores, [mine]).black(round=1).loc["net", ("mine", "loss")]
    with pytest.raises(UnknownName, match="mine"):
        ResultsTable(scores).black(round=1)


def test_long_frame_and_representations():
    frame = TABLE.to_frame()
    assert len(frame) == len(TABLE.scores) == 10
    assert frame["value"].tolist()[:2] == [50.0, 53.0]
    assert "10 rows" in repr(TABLE)
    html = TABLE._repr_html_()
    assert html.count("background:#000") == 2 and "82.0 ± 2.8" in html and "PR per ↓" in html
    assert html == TABLE._repr_html_()


def test_empty_table():
    table = ResultsTable([])
    assert table.to_frame().empty and table.pivot(1).empty and table.pivot().empty and table.black().empty
    assert "no results" in table._repr_html_()


def test_names_are_escaped():
    assert "<script>" not in ResultsTable(rows({"upstream": "<script>"}))._repr_html_()


def test_show():
    assert [show(93.14, math.nan), show(93.14, 0.36), show(math.nan, math.nan)] == ["93.1", "93.1 ± 0.4", "–"]


def test_one_run_at_a_time_writes_a_file(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    with ResultsFile(path).reserved():
        with pytest.raises(ResultsBroken, match=r"another run is writing to .*results\.jsonl; wait"):
            with ResultsFile(path).reserved():
                raise AssertionError("two at a time")
    with ResultsFile(path).reserved():
        assert not path.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsBroken, match="cannot write to .*file"):
        with ResultsFile(tmp_path / "file" / "results.jsonl").reserved():
            raise AssertionError("a folder that is a file")
