"""The competition: complete rows, each clip through each upstream once, and the same table after a kill."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from superb_lite import engines
from superb_lite.engines import extract, train_and_score
from superb_lite.features import FeatureStore
from superb_lite.plan import plan_events
from superb_lite.report import caveats
from superb_lite.results import ResultsFile
from superb_lite.rounds import ROUND_1, ROUND_2, ROUND_3, get_round, olympics, quick
from superb_lite.tasks import get_task
from superb_lite.testing import TinyUpstream
from superb_lite.types import Corpus, Hidden, LabelMissing, Recipe, ResultsBroken, SuperbLiteError, UnknownName

RECIPE = Recipe("toy", steps=30, batch=16, lr=1e-2, eval_every=15)


class OneLayer(TinyUpstream):
    name = "one"
    layers = 1

    def forward(self, wavs):
        hidden = super().forward(wavs)
        return Hidden(hidden.states[:1], hidden.lengths)


def toys(*keys):
    return [replace(get_task(key), corpora={"toy": Corpus(get_task(key).toy, RECIPE)}) for key in keys]


@pytest.fixture
def run(tmp_path):
    """olympics() on toy data, in folders of this test."""

    def go(out="out", **options):
        options = {"upstreams": [OneLayer(), TinyUpstream()], "tasks": toys("pr", "ks"), "corpus": "toy"} | options
        options = {"store": FeatureStore(tmp_path / f"features-{out}")} | options
        return olympics(**options, out=tmp_path / out)

    return go


def comparable(scores):
    return [asdict(replace(score, seconds=0.0)) for score in scores]


def test_rows_are_complete_and_on_disk(run, tmp_path):
    table = run(seeds=2)
    assert len(table) == 2 * 2 * 2 * 2  # upstreams, tasks, rounds, seeds
    on_disk = ResultsFile(tmp_path / "out" / "results.jsonl").rows()
    assert sorted(map(repr, on_disk)) == sorted(map(repr, table.scores))
    assert [score.task for score in table.scores][:2] == ["ks", "ks"]  # the quick one first
    for score in table.scores:
        assert score.split == "test" and score.corpus == "toy" and score.recipe == "toy 30x16"
        assert score.clips == {"ks": 32, "pr": 16}[score.task]
        assert score.metric == {"ks": "acc", "pr": "per"}[score.task]
        assert score.revision == "seed0" and score.lr == 1e-2 and score.seconds > 0
    weights = {(score.upstream, score.round): score.layer_weights for score in table.scores}
    assert weights["one", 1] == weights["one", 2] == (1.0,)
    assert weights["tiny", 1] == (0.0, 0.0, 1.0)
    assert len(weights["tiny", 2]) == 3 and 0 < weights["tiny", 2][0] < 1


@pytest.fixture(scope="module")
def by_key(tmp_path_factory):
    """What other processes find by its key, in few steps: five heads, one per fold."""
    return {
        "upstreams": ["fbank"], "tasks": ["er"], "corpus": "mini",
        "store": FeatureStore(tmp_path_factory.mktemp("features")),
        "adjust": lambda task, recipe: replace(recipe, name="short", steps=20, eval_every=10),
    }  # fmt: skip


def test_workers_find_the_same_table(run, by_key):
    """Keys go to other processes, objects stay here; which of the two happened is not to be seen in the table."""
    heard = []
    together = run(out="together", workers=2, on_score=heard.append, **by_key)
    alone = run(out="alone", **by_key)
    assert len(alone) == 2 * 5  # rounds, folds
    assert sorted(map(repr, comparable(together.scores))) == sorted(map(repr, comparable(alone.scores)))
    assert sorted(map(repr, heard)) == sorted(map(repr, together.scores))


def test_with_workers_one_thread_extracts_everything_once_and_trains_what_has_no_key(run, monkeypatch):
    threads = []

    def watched(upstream, clips, *more):
        threads.append((threading.current_thread().name, upstream.name, len(clips)))
        return extract(upstream, clips, *more)

    alone = run()
    monkeypatch.setattr(engines, "extract", watched)
    assert comparable(run(out="together", workers=2).scores) == comparable(alone.scores)
    assert {name for name, _, _ in threads} == {"extraction_0"}
    assert len(threads) == len(set(threads)) == 4, "two upstreams in two tasks"


@pytest.mark.parametrize("workers", [1, 2])
def test_finished_heads_are_on_the_disk_before_the_next_features_are_extracted(run, tmp_path, workers):
    def interrupt(what, done, total):
        if what == f"features of {TinyUpstream().name}":
            raise KeyboardInterrupt

    whole = len(run(out="whole", upstreams=[OneLayer()]).scores)
    with pytest.raises(KeyboardInterrupt):
        run(progress=interrupt, workers=workers)
    rows = ResultsFile(tmp_path / "out" / "results.jsonl").rows()
    assert {row.upstream for row in rows} == {"one"}
    if workers == 1:  # several are still training when the next features are extracted, which is early
        assert len(rows) == whole


def test_no_workers_are_refused(run):
    with pytest.raises(SuperbLiteError, match="workers is 0"):
        run(workers=0)


def test_no_thread_outlives_an_interrupted_run(run):
    def interrupt(score):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(workers=2, on_score=interrupt)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("extraction", "loading"))]


def test_a_killed_worker_is_told_and_costs_nothing_that_was_finished(run, by_key, tmp_path, monkeypatch):
    """As when the memory is full: the operating system kills a process without a word."""
    done, order = [], [event.fold for event in plan_events(["er"], "mini")]
    monkeypatch.setattr(engines, "train_and_score", functools.partial(killed_in, order[3]))
    with pytest.raises(SuperbLiteError, match="a worker was killed.*run it again with fewer workers"):
        run(workers=2, on_score=done.append, rounds=(2,), **by_key)
    kept = ResultsFile(tmp_path / "out" / "results.jsonl").rows()
    assert 1 <= len(kept) <= 3 and len(kept) == len(done)
    monkeypatch.undo()
    assert len(run(workers=2, rounds=(2,), **by_key)) == 5


@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell a process that its parent has gone")
def test_workers_do_not_outlive_a_killed_parent():
    program = """
import os, signal
from superb_lite.engines import _loky
with _loky(2) as pool:
    print(*{pool.submit(os.getpid).result() for _ in range(9)}, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stdout
    workers = [int(word) for word in out.split()]
    assert workers
    for _ in range(100):
        alive = [pid for pid in workers if exists(pid)]
        if not alive:
            return
        time.sleep(0.1)
    raise AssertionError(f"processes {alive} are still there, ten seconds after their parent")


def exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def killed_in(unlucky, *args, fold, **how):
    if fold == unlucky:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_and_score(*args, fold=fold, **how)


def test_one_layer_is_trained_once_for_both_rounds(run):
    heard = []
    table = run(upstreams=[OneLayer()], tasks=toys("ks"), progress=lambda *said: heard.append(said))
    assert [score.round for score in table.scores] == [1, 2]
    assert table.scores[0].value == table.scores[1].value
    assert [said for said in heard if said[0] == "ks on one" and said[1] == 30] == [("ks on one", 30, 30)]
    assert heard[-1] == ("olympics", 1, 1)


def test_each_clip_passes_each_upstream_once(run, tmp_path):
    sid_on_ks_audio = replace(
        toys("ks")[0], key="mine", corpora={"toy": Corpus(get_task("pr").toy, RECIPE)}, encode=get_task("pr").encode,
        head=get_task("pr").head, loss=get_task("pr").loss, decode=get_task("pr").decode, score=get_task("pr").score,
        metrics=get_task("pr").metrics, pooled=False,
    )  # fmt: skip
    upstream = TinyUpstream()
    store = FeatureStore(tmp_path / "counted")
    run(upstreams=[upstream], tasks=[*toys("pr", "ks"), sid_on_ks_audio], store=store)
    stored = [json.loads(path.read_text()) for path in store.root.rglob("*.json")]
    clips = [key for index in stored for key in index["clips"] if index["kind"] == "pooled"]
    assert len(clips) == len(set(clips)) == 76 + 100
    frames = [key for index in stored for key in index["clips"] if index["kind"] == "frames"]
    assert len(frames) == len(set(frames)) == 76
    calls = upstream.calls
    run("again", upstreams=[upstream], tasks=toys("pr", "ks"), store=store)
    assert upstream.calls == calls


def test_second_run_computes_nothing_and_tells_the_same(run, tmp_path):
    first = run()
    size = (tmp_path / "out" / "results.jsonl").stat().st_size
    heard, scores = [], []
    again = run(progress=lambda *said: heard.append(said), on_score=scores.append)
    assert again.scores == first.scores == tuple(scores)
    assert {said[0] for said in heard} == {"olympics"}
    assert (tmp_path / "out" / "results.jsonl").stat().st_size == size


@pytest.mark.parametrize("after", [1, 3, 6])
def test_interrupted_run_goes_on_to_the_same_table(run, tmp_path, after):
    whole = run("whole")
    heard = []

    def stop(score):
        heard.append(score)
        if len(heard) == after:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run("broken", on_score=stop)
    file = ResultsFile(tmp_path / "broken" / "results.jsonl")
    assert after <= len(file.rows()) < len(whole)
    with file.path.open("ab") as torn:
        torn.write(b'{"corpus": "toy", "ta')
    table = run("broken")
    assert comparable(table.scores) == comparable(whole.scores)
    rows = file.rows()
    assert sorted(map(repr, comparable(rows))) == sorted(map(repr, comparable(whole.scores)))  # none doubled


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_killed_at_random_moments_it_ends_with_the_same_rows_and_features(cache):
    """``python tests/kill_tournament.py 20`` does the same for longer."""
    script = Path(__file__).with_name("kill_tournament.py")
    environment = os.environ | {"SUPERB_LITE_CACHE": str(cache), "PYTHONPATH": str(script.parents[1])}
    done = subprocess.run(
        [sys.executable, str(script), "4"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 kills")


def test_what_decides_a_value_makes_another_row(run):
    first = run(upstreams=[TinyUpstream()], tasks=toys("ks"), rounds=[2])
    longer = run(
        upstreams=[TinyUpstream()], tasks=toys("ks"), rounds=[2], adjust=lambda task, recipe: replace(recipe, steps=60)
    )
    other = run(upstreams=[TinyUpstream(seed=1)], tasks=toys("ks"), rounds=[2])
    recipes = {score.recipe for score in (*first.scores, *longer.scores)}
    assert recipes == {"toy 30x16", "toy 60x16"}
    assert other.scores[0].revision == "seed1"
    assert all(len(table) == 1 for table in (first, longer, other))


def test_changed_labels_make_another_row(run):
    plain = run(upstreams=[OneLayer()], tasks=toys("ks"), rounds=[1])

    def fewer(split, fold):
        found = get_task("ks").toy(split, fold)
        return replace(found, clips=found.clips[:-1]) if split == "train" else found

    task = replace(toys("ks")[0], corpora={"toy": Corpus(fewer, RECIPE)})
    changed = run(upstreams=[OneLayer()], tasks=[task], rounds=[1])
    assert changed.scores[0].data_hash != plain.scores[0].data_hash


def test_seeds_give_a_spread(run):
    table = run(upstreams=[TinyUpstream()], tasks=toys("pr"), seeds=[0, 5], rounds=[ROUND_2])
    assert [score.seed for score in table.scores] == [0, 5]
    assert table.pivot(2, "spread").iloc[0, 0] > 0


def test_full_disk_keeps_what_was_won(run, tmp_path, file_limit):
    store = FeatureStore(tmp_path / "shared")
    run("warm", store=store)
    file = ResultsFile(tmp_path / "out" / "results.jsonl")
    run(tasks=toys("ks"), store=store)
    size = file.path.stat().st_size
    file_limit(size + 50)
    with pytest.raises(ResultsBroken, match=r"results\.jsonl"):
        run(store=store)
    file_limit(None)
    assert file.path.stat().st_size == size
    assert len(run(store=store)) == 8


def test_names_and_labels_are_checked_before_anything_is_computed(run, tmp_path):
    upstream = TinyUpstream()
    for options, error, message in [
        ({"tasks": ["kss"]}, UnknownName, "did you mean 'ks'"),
        ({"upstreams": [upstream, "fbnk"]}, UnknownName, "did you mean 'fbank'"),
        ({"corpus": "tiy"}, UnknownName, "did you mean 'toy'"),
        ({"rounds": [4]}, UnknownName, "no round is called '4'"),
        ({"rounds": [ROUND_1, ROUND_3]}, SuperbLiteError, "round 3 .*frozen; ask for rounds 1 and 2"),
    ]:
        with pytest.raises(error, match=message):
            run(**({"upstreams": [upstream]} | options))

    def bare(split, fold):
        found = get_task("ks").toy(split, fold)
        last = replace(found.clips[-1], labels={})
        return replace(found, clips=(*found.clips[:-1], last)) if split == "test" else found

    with pytest.raises(LabelMissing, match="ks-test-0-top-7"):
        run(upstreams=[upstream], tasks=[replace(toys("ks")[0], corpora={"toy": Corpus(bare, RECIPE)})])
    assert upstream.calls == 0
    assert not (tmp_path / "out").exists()


def test_rounds_are_data():
    assert [get_round(number) for number in (1, 2, 3)] == [ROUND_1, ROUND_2, ROUND_3]
    assert get_round(ROUND_2) is ROUND_2 and get_round("2") is ROUND_2
    assert (ROUND_1.layers, ROUND_2.layers) == ("last", "sum")
    assert ROUND_1.frozen and ROUND_2.frozen and not ROUND_3.frozen


def test_quick_is_a_fifth_of_the_steps_and_says_so(run):
    table = run(upstreams=[OneLayer()], tasks=toys("ks"), adjust=quick)
    assert {score.recipe for score in table.scores} == {"quick 6x16"}
    assert any("first look" in line for line in caveats(table))
    assert not any("first look" in line for line in caveats(run(upstreams=[OneLayer()], tasks=toys("ks"))))
