"""The published tables: their numbers, the overall scores they give, and which cells are black."""

from __future__ import annotations

import csv
import math
import runpy
from dataclasses import replace
from decimal import Decimal
from importlib.resources import files
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from superb_lite import published, report
from superb_lite.plots import table_heatmap
from superb_lite.results import ResultsTable
from superb_lite.types import SuperbLiteError, UnknownName
from superb_lite.upstreams import list_upstreams

COLUMNS = [
    ("pr", "per"), ("asr", "wer"), ("asr", "wer_lm"), ("ks", "acc"), ("qbe", "mtwv"), ("sid", "acc"), ("asv", "eer"),
    ("sd", "der"), ("ic", "acc"), ("sf", "slot_f1"), ("sf", "slot_cer"), ("er", "acc"),
]  # fmt: skip

# Worse than Fbank in the published tables, read off them by hand.
SF_F1 = {1: "pase_plus vq_apc npc mockingjay tera", 2: "pase_plus vq_apc mockingjay tera"}
BLACK = {
    1: {
        ("asv", "eer"): "pase_plus npc mockingjay tera modified_cpc wav2vec wav2vec2_base",
        ("sd", "der"): "apc vq_apc mockingjay modified_cpc wav2vec",
        ("sf", "slot_f1"): SF_F1[1],
        ("sf", "slot_cer"): SF_F1[1].replace("vq_apc ", ""),
        ("qbe", "mtwv"): "pase_plus mockingjay tera wav2vec2_base",
        ("asr", "wer"): "pase_plus mockingjay",
        ("asr", "wer_lm"): "pase_plus mockingjay vq_apc",
    },
    2: {
        ("asv", "eer"): "pase_plus mockingjay tera modified_cpc vq_wav2vec",
        ("sd", "der"): "apc vq_apc mockingjay modified_cpc",
        ("sf", "slot_f1"): SF_F1[2],
        ("sf", "slot_cer"): SF_F1[2].replace("vq_apc ", ""),
        ("qbe", "mtwv"): "mockingjay tera",
        ("asr", "wer"): "pase_plus",
        ("asr", "wer_lm"): "pase_plus mockingjay",
    },
}

# superb_s over the ten tasks, from the published table of round 2 and the reference points of the leaderboard.
SCORES = {
    "wavlm_large": 1144.5, "wavlm_base_plus": 1106.2, "wavlm_base": 1018.8, "hubert_base": 941.0, "hubert_large": 918.6,
    "wav2vec2_large": 913.6, "wav2vec2_base": 818.1, "fast_vgs_plus": 809.1, "decoar2": 721.7, "distilhubert": 717.4,
    "wav2vec": 528.9, "vq_wav2vec": 421.9, "apc": 392.3, "npc": 386.4, "vq_apc": 376.6, "modified_cpc": 278.2,
    "tera": 149.9, "pase_plus": 148.6, "mockingjay": 53.7,
}  # fmt: skip


def rows(name):
    return list(csv.DictReader((files("superb_lite.published") / name).read_text(encoding="utf-8").splitlines()))


def with_value(table, upstream, column, value):
    """The same table, one number changed (or gone, for None)."""
    task, metric = column
    mine = [score for score in table.scores if (score.upstream, score.task, score.metric) == (upstream, task, metric)]
    assert len(mine) == 1
    others = [score for score in table.scores if score is not mine[0]]
    changed = [] if value is None else [replace(mine[0], value=value)]
    return ResultsTable(others + changed, reference=table.reference)


# --------------------------------------------------------------------------------------------- numbers


# Each number times the number of its line, added up over the column: one changed, lost or moved number shows.
CHECK_SUMS = {
    "round1.csv": {
        "pr_per": "3175.20", "asr_wer": "1329.52", "asr_wer_lm": "915.02", "ks_acc": "8247.81",
        "qbe_mtwv": "2.29578900186", "sid_acc": "4596.61085", "asv_eer": "955.28", "sd_der": "812.18",
        "ic_acc": "6306.80", "sf_slot_f1": "6891.69", "sf_slot_cer": "3893.51", "er_acc": "5298.09",
    },
    "round2.csv": {
        "pr_per": "4416.49", "asr_wer": "2668.90", "asr_wer_lm": "1760.30", "ks_acc": "26077.70",
        "qbe_mtwv": "14.67892", "sid_acc": "19232.16085", "asv_eer": "1914.69", "sd_der": "1815.84",
        "ic_acc": "24656.20", "sf_slot_f1": "23239.66", "sf_slot_cer": "8631.14", "er_acc": "17584.18",
    },
}  # fmt: skip


def weighted_sum(name, column):
    return sum(
        (line * Decimal(row[column]) for line, row in enumerate(rows(name), start=1) if row[column]), start=Decimal(0)
    )


@pytest.mark.parametrize("name", ["round1.csv", "round2.csv"])
def test_no_number_was_lost_moved_or_changed(name):
    found = {f"{task}_{metric}": str(weighted_sum(name, f"{task}_{metric}")) for task, metric in COLUMNS}
    assert found == CHECK_SUMS[name]


@pytest.mark.parametrize(("round", "later", "count"), [(1, False, 13), (1, True, 13), (2, False, 15), (2, True, 23)])
def test_rows_columns_and_ranges(round, later, count):
    table = published.published_table(round, later=later)
    means = table.pivot(round)
    assert len(means) == count and list(means.columns) == COLUMNS
    assert means.index[0] == "fbank_cmvn" and means.index.is_unique
    missing = [(name, column) for name in means.index for column in COLUMNS if math.isnan(means.loc[name, column])]
    assert missing == [
        (name, ("asr", "wer_lm")) for name in ("data2vec_base", "data2vec_large") if later and round == 2
    ]
    mtwv = means.pop(("qbe", "mtwv"))
    assert ((mtwv > 0) & (mtwv < 0.1)).all()
    assert ((means > 0) & (means < 100) | means.isna()).all(axis=None)
    assert means.drop(columns=[("sid", "acc")]).min(axis=None) > 1, "percentages, not fractions"


def test_both_rounds_share_fbank_and_the_odd_numbers_are_kept():
    table = published.published_table(later=True).pivot()
    assert table.loc[(1, "fbank_cmvn")].tolist() == table.loc[(2, "fbank_cmvn")].tolist()
    assert table.loc[(1, "fbank_cmvn"), ("sid", "acc")] == 8.5e-4  # a fraction among percentages, as printed
    assert table.loc[(1, "mockingjay"), ("qbe", "mtwv")] == 3.1e-10
    again = [column for column in COLUMNS if table.loc[(2, "fbank"), column] != table.loc[(2, "fbank_cmvn"), column]]
    assert again == [("ks", "acc"), ("sid", "acc"), ("ic", "acc"), ("er", "acc")]


def test_later_rows_say_that_they_are_later():
    paper, everything = published.published_table(), published.published_table(later=True)
    assert {score.recipe for score in paper.scores} == {"superb"}
    kinds = {score.upstream: score.recipe for score in everything.scores if score not in paper.scores}
    assert kinds == {
        "fbank": "superb (rerun)",
        **dict.fromkeys(["wavlm_base", "wavlm_base_plus", "wavlm_large"], "superb (submission)"),
        **dict.fromkeys(["distilhubert", "fast_vgs_plus"], "superb (submission)"),
        **dict.fromkeys(["data2vec_base", "data2vec_large"], "superb (unverified)"),
    }
    assert report.caveats(paper) == [], "both rounds of the paper are comparable"
    assert any("superb (submission)" in note for note in report.caveats(everything))


def test_each_number_has_a_source():
    known = {row["source"]: row["what"] for row in rows("sources.csv")}
    used = {row["source"] for name in ("round1.csv", "round2.csv", "upstreams.csv") for row in rows(name)}
    assert used == set(known)
    sid = [s for s in published.published_table(1).scores if (s.upstream, s.task) == ("fbank_cmvn", "sid")]
    assert "15a56bd" in sid[0].device and "1/1251" in sid[0].device


def test_upstreams_are_those_of_the_tables_and_agree_with_our_cards():
    table = published.published_upstreams()
    assert list(table.index) == list(published.published_table(2).pivot(2).index)
    titles = {row["upstream"]: row["published_as"] for name in ("round1.csv", "round2.csv") for row in rows(name)}
    assert table["published_as"].to_dict() == {name: titles[name] for name in table.index}
    cards = {card.name: card for card in list_upstreams()}
    for name, row in table.iterrows():
        card = cards[name]
        assert (card.layers, card.dim) == (row.n_hidden_states, row.feature_dim), name
        assert row.stride_ms == (10 if name == "decoar2" else card.stride / 16), name
        assert row.parameters_millions == pytest.approx(card.parameters / 1e6, abs=0.02), name
        if name != "fbank_cmvn":
            assert (row.input, row.pretraining_corpus, row.pretraining_method) == (card.input, card.corpus, card.method)


def test_an_unknown_round_is_named():
    with pytest.raises(UnknownName, match="no published round is called '3'"):
        published.published_table(3)


# ----------------------------------------------------------------------------------------- black cells


def black_cells(table, round):
    black = table.black(round=round)
    return {column: set(black.index[black[column]]) for column in black.columns if black[column].any()}


@pytest.mark.parametrize("round", [1, 2])
def test_black_cells_of_the_published_tables(round):
    expected = {column: set(names.split()) for column, names in BLACK[round].items()}
    assert black_cells(published.published_table(round), round) == expected
    assert black_cells(published.published_table(), round) == expected


def test_counts_of_black_cells():
    counts = {r: int(published.published_table(r).black(round=r).sum(axis=None)) for r in (1, 2)}
    assert counts == {1: 30, 2: 21}


def test_a_changed_number_changes_the_black_cells():
    table = with_value(published.published_table(2), "hubert_base", ("asv", "eer"), 9.57)
    assert black_cells(table, 2)[("asv", "eer")] - set(BLACK[2][("asv", "eer")].split()) == {"hubert_base"}


def test_against_fbank_without_cmvn():
    first, second = published.published_table(1), published.published_table(2, later=True)
    rerun = [replace(score, round=1) for score in second.scores if score.upstream == "fbank"]  # it has only one layer
    black = ResultsTable([*first.scores, *rerun]).black("fbank", round=1)
    more = black & ~ResultsTable([*first.scores, *rerun]).black("fbank_cmvn", round=1)
    found = {(name, column) for column in more.columns for name in more.index[more[column]]}
    lame = {("fbank_cmvn", (task, "acc")) for task in ("ks", "sid", "ic", "er")}
    assert found == {("mockingjay", ("er", "acc")), *lame}


# -------------------------------------------------------------------------------------- overall scores


def test_scores_of_the_published_round_two():
    scores = published.superb_score(published.published_table(2, later=True))
    assert {name: round(float(scores[name]), 1) for name in SCORES} == SCORES
    assert [name for name in scores.index if name in SCORES] == list(SCORES), "best first"
    assert scores["fbank"] == pytest.approx(0, abs=0.1), "the base of the points, to the printed digits"
    paper = published.superb_score(published.published_table(2))
    assert paper.to_dict() == {name: scores[name] for name in paper.index}, "the others do not matter"


def test_score_of_round_one_by_hand():
    scores = published.superb_score(published.published_table(1), 1)
    row = published.published_table(1).pivot(1).loc["tera"]
    single = [
        (row[column] - base) / (top - base) for column, (base, top) in published.REFERENCE_POINTS.items()
        if column[0] != "sf"
    ]  # fmt: skip
    sf = ((63.28 - 69.64) / (89.81 - 69.64) + (57.91 - 52.94) / (21.76 - 52.94)) / 2
    assert scores["tera"] == pytest.approx(1000 * (sum(single) + sf) / 10)


def test_a_missing_task_leaves_no_score_and_the_language_model_none_of_its_own():
    table = published.published_table(2)
    scores = published.superb_score(with_value(table, "apc", ("sf", "slot_cer"), None))
    assert math.isnan(scores["apc"]) and scores.index[-1] == "apc" and scores.drop("apc").notna().all()
    without = with_value(table, "apc", ("asr", "wer_lm"), None)
    assert published.superb_score(without).equals(published.superb_score(table))
    assert published.superb_rank(without).equals(published.superb_rank(table))


def test_rank_counts_who_is_beaten_and_need_not_agree_with_the_score():
    table = published.published_table(2)
    ranks, means = published.superb_rank(table), table.pivot(2)
    for name in means.index:
        beaten = {
            column: sum(table.metric(*column).better(means.loc[name, column], other) for other in means[column])
            for column in COLUMNS
        }
        tasks = [count for (task, metric), count in beaten.items() if task != "sf" and metric != "wer_lm"]
        tasks.append((beaten[("sf", "slot_f1")] + beaten[("sf", "slot_cer")]) / 2)
        assert ranks[name] == pytest.approx(sum(tasks) / 10), name
    assert list(ranks.index[:3]) == ["wav2vec2_large", "hubert_large", "hubert_base"]
    assert list(published.superb_score(table).index[:3]) == ["hubert_base", "hubert_large", "wav2vec2_large"]


def test_rank_of_equals_and_of_a_missing_score():
    table = published.published_table(2)
    scores = [score for score in table.scores if score.task == "ks" and score.upstream in ("apc", "npc", "tera")]
    tied = with_value(with_value(ResultsTable(scores), "apc", ("ks", "acc"), 88.96), "tera", ("ks", "acc"), 50.0)
    assert published.superb_rank(tied).to_dict() == {"apc": 1.0, "npc": 1.0, "tera": 0.0}
    extra = next(score for score in table.scores if score.task == "pr" and score.upstream == "tera")
    lonely = ResultsTable([*tied.scores, extra])
    assert published.superb_rank(lonely).to_dict() == {"apc": 0.5, "npc": 0.5, "tera": 0.0}


def test_points_of_a_table_of_ones_own():
    table = published.published_table(2)
    points = published.reference_points(table)
    assert points[("pr", "per")] == (82.01, 3.53) and points[("asv", "eer")] == (9.56, 5.11)
    assert ("asr", "wer_lm") not in points and len(points) == 11
    scores = published.superb_score(table, points=points)
    assert scores["fbank_cmvn"] == 0 and scores.max() < 1000
    nobody = ResultsTable([score for score in table.scores if score.upstream in ("fbank_cmvn", "mockingjay")])
    assert set(published.reference_points(nobody, reference="fbank_cmvn")) == {
        ("pr", "per"), ("asr", "wer"), ("ks", "acc"), ("sid", "acc"), ("ic", "acc"), ("er", "acc"),
    }  # fmt: skip
    with pytest.raises(UnknownName, match="round 2"):
        published.reference_points(nobody)


def test_what_cannot_be_scored_is_said():
    table = published.published_table(1)
    with pytest.raises(ValueError, match=r"no rows of round 2; it has: \[1\]"):
        published.superb_score(table)
    with pytest.raises(SuperbLiteError, match="no scale for ks acc"):
        published.superb_score(table, 1, {("ks", "acc"): (90.0, 90.0), ("pr", "per"): (80.0, 3.0)})


# ------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("round", [1, 2])
def test_the_picture_shows_each_number_inside_its_cell(round):
    table = published.published_table(round)
    ax = table_heatmap(table, round=round, ax=Figure(figsize=(20, 8)).subplots())
    ax.figure.canvas.draw()
    assert ax.get_title() == f"round {round}: black is worse than fbank_cmvn"
    assert len(ax.texts) == len(table.pivot(round)) * len(COLUMNS)
    width = ax.get_window_extent().width / len(COLUMNS)
    assert max(words.get_window_extent().width for words in ax.texts) < width
    assert max(label.get_window_extent().width for label in ax.get_xticklabels()) < width


def test_a_notebook_shows_black_without_asking():
    shown = published.published_table(1)._repr_html_()
    assert shown.count("background:#000") == 30


def test_a_tournament_goes_into_the_package_by_a_script(tmp_path, monkeypatch, capsys):
    script = Path(__file__).parents[1] / "data_scripts" / "publish_tournament.py"
    rows = Path(published.__file__).with_name("mini.jsonl").read_bytes()
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("sys.argv", ["publish", str(tmp_path / "run"), "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    assert "no rows of round 2" in capsys.readouterr().err and not (tmp_path / "mini.png").exists()
    (tmp_path / "run" / "results.jsonl").write_bytes(rows)
    runpy.run_path(str(script), run_name="__main__")
    assert (tmp_path / "mini.jsonl").read_bytes() == rows
    assert (tmp_path / "mini.png").read_bytes().startswith(b"\x89PNG")
