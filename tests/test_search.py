"""The search for a learning rate: chosen on dev and never on test, nothing trained twice, one row in the table."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
from test_rounds import OneLayer, toys

from superb_lite import engines
from superb_lite.engines import Outcome
from superb_lite.features import FeatureStore
from superb_lite.plan import LR_SEARCH, Entry, choose_rate, origin, plan_cells, plan_events
from superb_lite.report import caveats, page, picture, to_wide
from superb_lite.results import ResultsFile, ResultsTable
from superb_lite.rounds import ROUND_1, ROUND_2, olympics
from superb_lite.tasks import get_task
from superb_lite.testing import TinyUpstream
from superb_lite.types import Corpus, SuperbLiteError

FACTORS = (0.1, 1.0, 10.0)  # of 0.01


@pytest.fixture
def heads(monkeypatch):
    """Heads that need no training: dev accuracy is best at a rate of 0.1, test accuracy at 0.001. Who was trained?"""
    trained = []

    def train(task, upstream, store, *, layers, recipe, seed, fold, **how):
        trained.append((task.key, upstream.name, layers, fold, seed, recipe.lr))
        dev = {0.001: 50.0, 0.01: 60.0, 0.1: 70.0}[recipe.lr]
        values = {metric.key: 100 - dev + seed for metric in task.metrics}
        return Outcome(dev, values, (0.5, 0.25, 0.25), 0.1)

    monkeypatch.setattr(engines, "train_and_score", train)
    return trained


@pytest.fixture
def run(tmp_path):
    def go(out="out", **options):
        options = {"upstreams": [TinyUpstream()], "tasks": toys("ks"), "rounds": [2], "lr_factors": FACTORS} | options
        return olympics(**options, corpus="toy", out=tmp_path / out, store=FeatureStore(tmp_path / "features"))

    return go


def rows(tmp_path, split, out="out"):
    return [row for row in ResultsFile(tmp_path / out / "results.jsonl").rows() if row.split == split]


def test_the_rate_is_chosen_on_dev_not_on_test(run, heads, tmp_path):
    table = run()
    assert [(row.lr, row.value) for row in table.scores] == [(0.1, 30.0)]  # on test 0.001 would have had 50
    assert table.scores[0].recipe == "toy 30x16, best lr of 3" and table.scores[0].clips == 32
    assert {(row.lr, row.value, row.recipe) for row in rows(tmp_path, "dev")} == {
        (0.001, 50.0, "toy 30x16"), (0.01, 60.0, "toy 30x16"), (0.1, 70.0, "toy 30x16")
    }  # fmt: skip
    assert {row.clips for row in rows(tmp_path, "dev")} == {len(get_task("ks").toy("dev", 0))}
    assert rows(tmp_path, "test") == list(table.scores)


def test_a_lower_error_rate_is_better(run, heads):
    assert [row.lr for row in run(tasks=toys("pr")).scores] == [0.001]


def test_no_head_is_trained_twice_and_every_seed_gets_the_rate(run, heads):
    table = run(seeds=3)
    assert [(row.seed, row.lr) for row in table.scores] == [(0, 0.1), (1, 0.1), (2, 0.1)]
    assert Counter((seed, lr) for *_, seed, lr in heads) == Counter(
        [(0, 0.001), (0, 0.01), (0, 0.1), (1, 0.1), (2, 0.1)]
    )


def test_every_round_and_upstream_searches_for_itself_but_one_layer_is_one_head(run, heads):
    table = run(upstreams=[OneLayer(), TinyUpstream()], rounds=[1, 2])
    assert Counter((name, layers) for _, name, layers, *_ in heads) == {
        ("one", "sum"): 3, ("tiny", "last"): 3, ("tiny", "sum"): 3
    }  # fmt: skip
    assert len(table) == 4 and {row.lr for row in table.scores} == {0.1}


def test_folds_share_a_rate_and_all_of_them_decide(run, heads, monkeypatch):
    folded = replace(toys("ks")[0], folds=2)
    fake = engines.train_and_score

    def train(*args, fold, recipe, **how):  # the second fold is wild about 0.01: 60 + 30 beats 70 - 5 on average
        outcome = fake(*args, fold=fold, recipe=recipe, **how)
        return replace(outcome, dev=outcome.dev + {0.01: 30, 0.1: -5}.get(recipe.lr, 0) * fold)

    monkeypatch.setattr(engines, "train_and_score", train)
    table = run(tasks=[folded], seeds=2)
    assert [(row.fold, row.seed, row.lr) for row in table.scores] == [
        (0, 0, 0.01), (0, 1, 0.01), (1, 0, 0.01), (1, 1, 0.01)
    ]  # fmt: skip
    assert len(heads) == 2 * 3 + 2


def test_a_task_that_trains_nothing_has_nothing_to_choose(run, heads, tmp_path):
    table = run(tasks=toys("qbe"))
    assert [(row.lr, row.recipe) for row in table.scores] == [(0.01, "toy 30x16")]
    assert len(heads) == 1 and rows(tmp_path, "dev") == []


@pytest.mark.parametrize("after", [1, 4, 7, 11])
def test_a_search_that_was_interrupted_goes_on(run, heads, monkeypatch, after, tmp_path):
    options = {"upstreams": [OneLayer(), TinyUpstream()], "rounds": [1, 2], "seeds": 2}
    whole = run("whole", **options)
    alone, fake = len(heads), engines.train_and_score
    heads.clear()

    def train(*args, **how):
        if len(heads) == after:
            raise RuntimeError("power cut")
        return fake(*args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(engines, "train_and_score", train)
        with pytest.raises(RuntimeError, match="power cut"):
            run(**options)
    told = []
    table = run(**options, progress=lambda *said: told.append(said))
    assert table.scores == whole.scores
    assert sorted(map(repr, rows(tmp_path, "dev"))) == sorted(map(repr, rows(tmp_path, "dev", "whole")))
    assert sorted(map(repr, rows(tmp_path, "test"))) == sorted(map(repr, whole.scores))
    assert len(heads) == alone == 3 * (3 + 1)
    counts = [said[1:] for said in told if said[0] == "olympics"]
    assert counts == sorted(counts) and counts[0][0] >= after - 1 and counts[-1] == (15, 15)
    heads.clear()
    assert run(**options).scores == whole.scores and not heads


def test_a_winner_whose_score_was_lost_is_trained_again(run, heads, tmp_path):
    """As when the process was killed after the last row of dev."""
    whole = run(seeds=2)
    path = tmp_path / "out" / "results.jsonl"
    path.write_text("".join(line for line in path.open() if '"dev"' in line))
    heads.clear()
    assert run(seeds=2).scores == whole.scores
    assert [(seed, lr) for *_, seed, lr in heads] == [(0, 0.1), (1, 0.1)]


def test_the_tables_show_the_row_of_the_search(run, heads, monkeypatch, tmp_path):
    """Also those of a notebook, which reads the file with the rows of an earlier run without a search."""
    run(lr_factors=(1.0,))
    searched = run(seeds=2)
    table = ResultsTable(ResultsFile(tmp_path / "out" / "results.jsonl").rows(), toys("ks"))
    assert len(table) == 1 + 3 + 2
    assert table.pivot(2).iloc[0, 0] == searched.pivot(2).iloc[0, 0] == 30.5
    wide = to_wide(searched).iloc[0]
    assert (wide["ks_acc"], wide["ks_acc_spread"], wide["ks_acc_seeds"]) == (30.5, 0.7071, 2)
    html = page(searched, picture(searched))
    assert "30.5 ± 0.7" in html and html.count("lr 0.1, recipe toy 30x16, best lr of 3") == 2 * 2  # hover and list
    assert "layer weights 0.50 0.25 0.25" in html and "seed 1: 31 on 32 clips" in html


def test_rates_that_were_searched_for_are_comparable_others_not(run, heads, monkeypatch):
    fake = engines.train_and_score

    def train(task, upstream, *args, **how):  # one upstream likes small rates
        outcome = fake(task, upstream, *args, **how)
        return replace(outcome, dev=-outcome.dev) if upstream.name == "one" else outcome

    monkeypatch.setattr(engines, "train_and_score", train)
    both = run(upstreams=[OneLayer(), TinyUpstream()])
    assert {row.lr for row in both.scores} == {0.001, 0.1}
    assert not [line for line in caveats(both) if "recipes" in line]
    plain = run(upstreams=[TinyUpstream()], lr_factors=(1.0,))
    mixed = ResultsTable([row for row in both.scores if row.upstream == "one"] + list(plain.scores), toys("ks"))
    assert [line for line in caveats(mixed) if "mixes 2 recipes: toy 30x16, best lr of 3; toy 30x16, lr 0.01" in line]


def test_among_equals_the_recipes_own_rate_wins_then_the_nearest():
    events = plan_events(toys("ks"), "toy")
    (cell,) = plan_cells(Entry.of(TinyUpstream()), events, [ROUND_2], [0], (0.01, 0.1, 1.0, 10.0, 100.0))
    assert cell.rates == (0.0001, 0.001, 0.01, 0.1, 1.0)

    def chosen(*values):
        found = dict(zip(cell.rates, values, strict=True))
        known = {origin(row): replace(row, value=found[row.lr]) for job in cell.search() for row in job.rows()}
        return choose_rate(cell, known)

    assert chosen(1, 1, 1, 1, 1) == 0.01
    assert chosen(2, 2, 1, 2, 2) == 0.001
    assert chosen(2, 1, 1, 1, 3) == 1.0
    assert chosen(2, 1, 1, 1, 2) == 0.0001


def test_the_grid_is_centred_on_the_recipe_and_has_no_dust():
    assert len(LR_SEARCH) == 5 and LR_SEARCH[2] == 1.0
    steps = [math.log10(b / a) for a, b in itertools.pairwise(LR_SEARCH)]
    assert steps == pytest.approx([0.5] * 4, abs=0.03)
    third = replace(toys("ks")[0].corpora["toy"].recipe, lr=1 / 3)
    task = replace(toys("ks")[0], corpora={"toy": Corpus(get_task("ks").toy, third)})
    (cell,) = plan_cells(Entry.of(TinyUpstream()), plan_events([task], "toy"), [ROUND_1], [0], (0.1, 1.0))
    assert cell.rates == (0.0333333, 1 / 3)


def test_real_heads_are_searched_too(run, tmp_path):
    """Nothing faked: the rates train different heads, and the row of the table is the head that won."""
    table = run(tasks=toys("pr"), seeds=2)
    dev = {row.lr: row.value for row in rows(tmp_path, "dev")}
    assert len(dev) == 3 and len(set(dev.values())) > 1
    assert {row.lr for row in table.scores} == {min(dev, key=dev.get)}
    lr = table.scores[0].lr
    again = run("alone", tasks=toys("pr"), seeds=2, lr_factors=(lr / 0.01,))
    assert [row.value for row in again.scores] == [row.value for row in table.scores]


@pytest.mark.parametrize("factors", [(), (0.1, 0.0), (-1.0,)])
def test_senseless_factors_are_refused(run, factors):
    with pytest.raises(SuperbLiteError, match="lr_factors is .* expected positive numbers"):
        run(lr_factors=factors)
