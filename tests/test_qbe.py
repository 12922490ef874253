"""Query by example: alignment, scores, MTWV and the file of the official scorer.

fixtures/qbe_dtw.json holds every case of the parity file and its run from end to end, without what can be worked out;
fixtures/mtwv.json a quarter of its random cases and all worked examples. Both were made with the official toolkit, but
for MTWV, whose official scorer was not to be had: that file is written from the published definition.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from superb_lite import dtw
from superb_lite.features import FeatureStore
from superb_lite.metrics import MISSING_SCORE, average_precision, mtwv, twv, twv_curve
from superb_lite.tasks import get_task
from superb_lite.tasks.qbe import compare, rounded, score, toy, write_stdlist
from superb_lite.testing import TinyUpstream
from superb_lite.types import Clip, ContractBroken, Split

FIXTURES = Path(__file__).parent / "fixtures"
PAIRS = json.loads((FIXTURES / "qbe_dtw.json").read_text())
VALUES = json.loads((FIXTURES / "mtwv.json").read_text())
CASES = {name: [case for case in PAIRS["cases"] if case["step_pattern"] == name]
         for name in ("asymmetric", "symmetric1", "symmetric2")}  # fmt: skip


def frames_of(rows):
    return np.array(rows, dtype=np.float32)  # the precision of the official run


def settings(case):
    return {"kind": case["dist_method"], "scaled": case["minmax_norm"]}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_clips(count, low, high, dim=12, seed=0):
    sizes = np.random.default_rng(seed).integers(low, high + 1, count)
    return [noise(int(size), dim, seed=seed * 1000 + place) for place, size in enumerate(sizes)]


# ------------------------------------------------------------------------------ alignment: parity


def test_the_parity_file_is_complete():
    assert {name: len(cases) for name, cases in CASES.items()} == {
        "asymmetric": 44, "symmetric1": 3, "symmetric2": 3}  # fmt: skip


@pytest.mark.parametrize("case", CASES["asymmetric"], ids=lambda case: f"case{case['id']}")
def test_one_pair_is_as_official(case):
    query, document = frames_of(case["query"]), frames_of(case["doc"])
    if isinstance(case["score"], dict):
        with pytest.raises(ValueError, match="no path leads through 12 document frames in 5 query frames"):
            dtw.align(query, document, **settings(case), open_ends=case["subsequence"])
        return
    found = dtw.align(query, document, **settings(case), open_ends=case["subsequence"])
    assert found.score == pytest.approx(case["score"], abs=1e-12)
    if "local_distance" in case:
        expected = torch.tensor(case["local_distance"], dtype=torch.float64)
        torch.testing.assert_close(found.distances, expected, rtol=0, atol=6e-8)  # stored with seven decimals
        assert -found.score * len(query) == pytest.approx(case["total_distance"], abs=1e-12)
        assert [row for row, _ in found.path] == list(range(len(query)))
        assert found.path[-1][1] == case["jmin"]
    if "path" in case:
        assert list(map(list, zip(*found.path, strict=True))) == case["path"]


def test_all_pairs_at_once_are_as_official():
    cases = [case for case in CASES["asymmetric"]
             if case["dist_method"] == "cosine_exp" and case["minmax_norm"] and case["subsequence"]]  # fmt: skip
    for case in cases:
        found = dtw.scores([frames_of(case["query"])], [frames_of(case["doc"])])
        assert found.item() == pytest.approx(case["score"], abs=1e-7)
    assert len(cases) == 21


@pytest.mark.parametrize("case", CASES["symmetric2"], ids=lambda case: f"case{case['id']}")
def test_distances_are_right_with_a_step_pattern_that_is_not_ours(case):
    """symmetric2: to the right, up, or diagonally at double price; divided by both lengths; both ends tied."""
    local = dtw.distances(frames_of(case["query"]), frames_of(case["doc"]), **settings(case)).numpy()
    best = np.full((len(local) + 1, local.shape[1] + 1), np.inf)
    best[0, 0] = -local[0, 0]  # the first cell costs once, although one comes to it diagonally
    for i in range(1, len(best)):
        for j in range(1, best.shape[1]):
            here = local[i - 1, j - 1]
            best[i, j] = min(best[i - 1, j] + here, best[i, j - 1] + here, best[i - 1, j - 1] + 2 * here)
    assert -best[-1, -1] / sum(local.shape) == pytest.approx(case["score"], abs=1e-12)


def test_from_end_to_end_as_official(tmp_path):
    """Standardised features, short query, standardised scores, decisions, and the file."""
    end = PAIRS["end_to_end"]
    clips = [Clip(name, name, 1.0, name, {"role": role}) for role in ("query", "document")
             for name in end["queries" if role == "query" else "docs"]]  # fmt: skip
    trials = tuple((query, document, False) for query in end["scores_as_written"] for document in end["docs"])
    split = Split("parity", "test", tuple(clips), (), trials=trials)
    features = {name: frames_of(frames) for name, frames in (end["queries"] | end["docs"]).items()}
    found = compare(features, split)
    root = ElementTree.parse(write_stdlist(found, tmp_path / "benchmark.stdlist.xml")).getroot()
    assert (root.tag, root.attrib) == ("stdlist", end["xml_root_attributes"])
    written = {part.get("termid"): {term.get("file"): [term.get("score"), term.get("decision")] for term in part}
               for part in root}  # fmt: skip
    assert {part.tag for part in root} == {"detected_termlist"}
    assert root[0].attrib == end["xml_termlist_attributes_example"]
    assert (root[0][0].tag, root[0][0].attrib) == ("term", end["xml_term_attributes_example"])
    expected = end["scores_as_written"]
    assert list(written) == list(expected)
    for query, terms in expected.items():
        for document, (value, decision) in terms.items():
            assert abs(float(written[query][document][0]) - float(value)) < 1.01e-4, (query, document)
            assert written[query][document][1] == decision
    assert all(found["q2", document] == 0 for document in end["docs"])  # four frames


def test_dtw_python_agrees_on_random_pairs():
    from superb_lite.bench.alignment import compare as race
    from superb_lite.bench.alignment import official

    found = race(random_clips(9, 3, 40, seed=1), random_clips(23, 1, 120, seed=2), official())
    assert found.gap < 1e-6
    assert (found.pairs, found.cells > 10_000) == (9 * 23, True)


# ---------------------------------------------------------------------------- alignment: properties


def test_a_pair_by_hand():
    # frames are unit vectors e0, e1: equal 0, different 1 after scaling. Query 0 0 1 1 1 in document 1 0 1 0:
    # stay on the 0 for two frames, on the 1 for three: nothing to pay
    e = torch.eye(2)
    query, document = e[[0, 0, 1, 1, 1]], e[[1, 0, 1, 0]]
    found = dtw.align(query, document)
    assert (found.score, found.path) == (0.0, [(0, 1), (1, 1), (2, 2), (3, 2), (4, 2)])
    # from the first frame of 1 1 0 0 there is no way back to a 1: cheapest is to stay on a 1 and pay for two zeros
    found = dtw.align(query, e[[1, 1, 0, 0]])
    assert found.score == pytest.approx(-2 / 5)
    assert dtw.scores([query], [document, e[[1, 1, 0, 0]]]).tolist() == [[0.0, pytest.approx(-2 / 5)]]


def test_steps_are_0_1_or_2():
    e = torch.eye(6)
    assert dtw.align(e[[0, 1, 2, 3, 4]], e[[0, 5, 1, 5, 2, 5, 3, 5, 4]]).score == 0.0  # every second frame
    assert dtw.align(e[[0, 1, 2, 3, 4]], e[[0, 1, 5, 5, 2, 3, 4]]).score < 0.0  # a gap of three cannot be jumped


def test_ties_take_the_smallest_step_and_the_first_end():
    flat = torch.ones(5, 3)
    found = dtw.align(flat, torch.ones(4, 3))
    assert (found.score, found.path) == (0.0, [(row, 0) for row in range(5)])
    assert dtw.scores([flat], [torch.ones(4, 3), torch.zeros(2, 3)]).tolist() == [[0.0, 0.0]]


def test_a_pair_alone_is_the_pair_in_a_batch():
    queries, documents = random_clips(21, 2, 60, seed=3), random_clips(70, 1, 400, seed=4)
    together = dtw.scores(queries, documents)
    assert together.shape == (21, 70)
    for i, j in ((0, 0), (3, 69), (20, 1), (11, 35)):
        alone = dtw.scores([queries[i]], [documents[j]])
        assert alone.item() == pytest.approx(together[i, j].item(), abs=1e-6)
        if len(queries[i]) >= dtw.MIN_FRAMES:
            assert alone.item() == pytest.approx(dtw.align(queries[i], documents[j]).score, abs=1e-6)
    backwards = dtw.scores(queries[::-1], documents[::-1]).flip(0, 1)
    torch.testing.assert_close(backwards, together, rtol=0, atol=1e-6)


def test_blocks_and_threads_change_nothing(monkeypatch):
    queries, documents = random_clips(14, 5, 20, seed=5), random_clips(12, 3, 90, seed=6)
    together = dtw.scores(queries, documents)
    threads = torch.get_num_threads()
    monkeypatch.setattr(dtw, "COLUMNS", 1)  # every document in a block of its own
    monkeypatch.setattr(dtw, "ROWS", 30)
    assert dtw._shares(queries, 1, 30) != [list(range(14))]
    torch.testing.assert_close(dtw.scores(queries, documents), together, rtol=0, atol=1e-6)
    assert torch.get_num_threads() == threads


def test_documents_shorter_than_the_query_and_of_one_frame():
    query = noise(30, 8)
    documents = [noise(7, 8, seed=1), noise(1, 8, seed=2), noise(2, 8, seed=3)]
    found = dtw.scores([query], documents)[0]
    for value, document in zip(found.tolist(), documents, strict=True):
        assert value == pytest.approx(dtw.align(query, document).score, abs=1e-6)
    assert found[1] == 0.0  # one frame: no range, nothing to pay


def test_flat_documents_are_scored_precisely():
    """Stretching rows that hardly vary magnifies float32's rounding: they must be worked in float64."""
    base = noise(1, 16)
    documents = [base + 1e-3 * noise(50, 16, seed=7), noise(40, 16, seed=8), base.repeat(9, 1)]
    query = noise(12, 16, seed=9)
    found = dtw.scores([query], documents)[0].tolist()
    for value, document in zip(found, documents, strict=True):
        assert value == pytest.approx(dtw.align(query, document).score, abs=1e-6)


def test_short_queries_score_0():
    found = dtw.scores([noise(4, 6), noise(5, 6, seed=1)], [noise(20, 6, seed=2), noise(30, 6, seed=3)])
    assert found[0].tolist() == [0.0, 0.0]
    assert bool((found[1] < 0).all())
    assert dtw.scores([noise(4, 6)], [noise(20, 6)]).tolist() == [[0.0]]


def test_features_are_standardised_together():
    clips = [noise(10, 3, seed=1) * 5 + 2, noise(30, 3, seed=2)]
    clips[0][:, 2], clips[1][:, 2] = 7.0, 7.0  # a dimension that says nothing
    done = torch.cat(dtw.standardise([clips[0].numpy(), clips[1]])).double()
    torch.testing.assert_close(done.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(done[:, :2].std(0), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)
    assert done[:, 2].tolist() == [0.0] * 40
    half = dtw.standardise([noise(6, 3).half().numpy()])[0]
    assert half.dtype == torch.float32
    assert dtw.standardise([torch.ones(1, 2)])[0].tolist() == [[0.0, 0.0]]


def test_scores_are_standardised_per_query():
    raw = torch.tensor([[-0.5, -0.1, -0.3], [-0.2, -0.2, -0.2]])
    done = dtw.standardise_scores(raw)
    assert done[0].tolist() == pytest.approx([-math.sqrt(1.5), math.sqrt(1.5), 0.0], abs=1e-6)
    assert done[1].tolist() == [0.0, 0.0, 0.0]


def test_wrong_shapes_are_refused():
    good = noise(6, 3)
    with pytest.raises(ValueError, match=r"query 1 has the shape \(2, 6, 3\), expected \(frames, dim\)"):
        dtw.scores([good, noise(2, 6, 3)], [good])
    with pytest.raises(ValueError, match=r"document 0 has the shape \(0, 3\)"):
        dtw.scores([good], [noise(0, 3)])
    with pytest.raises(ValueError, match="3 and 4 dimensions|4 and 3 dimensions"):
        dtw.scores([good], [noise(6, 4)])
    with pytest.raises(ValueError, match="got no document at all"):
        dtw.scores([good], [])
    with pytest.raises(ValueError, match="query 0 has values that are not finite"):
        dtw.scores([good * float("nan")], [good])
    with pytest.raises(ValueError, match="no distance is called 'manhattan'; expected one of cosine_exp"):
        dtw.align(good, good, kind="manhattan")
    with pytest.raises(ValueError, match="dimensions"):
        dtw.align(good, noise(6, 4))


# ----------------------------------------------------------------------------------------------- MTWV


def read(case):
    trials = [(query, document, document in case["targets"][query])
              for query in case["queries"] for document in case["docs"]]  # fmt: skip
    scores = {(query, document): value for query, row in case["scores"].items() for document, value in row.items()}
    return scores, trials


@pytest.mark.parametrize("case", VALUES["cases"], ids=lambda case: f"case{case['id']}")
def test_mtwv_as_in_the_parity_file(case):
    scores, trials = read(case)
    assert mtwv(scores, trials) == pytest.approx(case["mtwv"], abs=1e-12)
    thresholds, values = twv_curve(scores, trials)
    best = thresholds[values >= values.max() - 1e-12].tolist()
    assert best == [float(value) for value in case["argmax_thresholds_ge"]]
    above_2 = float(np.nextafter(2.0, 3.0))  # the benchmark's decision is score > 2
    expected = case["twv_at_decision_score_gt_2"]
    asked = [value for (query, _), value in scores.items() if case["targets"][query]]
    assert (expected is None) == (max(asked) <= 2.0)  # nothing accepted, nothing stored: that is worth 0
    assert twv(scores, trials, above_2) == pytest.approx(0.0 if expected is None else expected, abs=1e-12)


@pytest.mark.parametrize("case", VALUES["worked_examples"], ids=lambda case: case["name"])
def test_mtwv_by_hand(case):
    scores, trials = read(case)
    assert mtwv(scores, trials) == pytest.approx(case["mtwv"], abs=1e-12)
    for threshold, value in case["curve_threshold_twv"]:
        assert twv(scores, trials, float(threshold)) == pytest.approx(value, abs=1e-12)


def test_a_query_in_no_document_is_left_out():
    trials = [("q", "a", True), ("q", "b", False), ("lost", "a", False), ("lost", "b", False)]
    scores = {("q", "a"): 2.0, ("q", "b"): 0.0, ("lost", "a"): 9.0, ("lost", "b"): 9.0}
    assert mtwv(scores, trials) == 1.0
    assert average_precision(scores, trials) == 1.0


def test_a_query_in_every_document_has_no_false_alarms():
    assert mtwv({("q", "a"): 1.0, ("q", "b"): 0.0}, [("q", "a", True), ("q", "b", True)]) == 1.0


def test_missing_trials_have_the_default_score():
    trials = [("q", "a", True), ("q", "b", False)]
    assert mtwv({}, trials) == 0.0  # all equal: accepting costs more than it brings
    assert mtwv({("q", "b"): MISSING_SCORE - 1}, trials) == 1.0
    assert twv({}, trials, MISSING_SCORE) == pytest.approx(1 - 12.49)


def test_mtwv_refuses_what_cannot_be_scored():
    with pytest.raises(ValueError, match=r"no query is in any document \(1 trials\)"):
        mtwv({("q", "a"): 1.0}, [("q", "a", False)])
    with pytest.raises(ValueError, match="no query is in any document"):
        average_precision({}, [])
    with pytest.raises(ValueError, match="query 'q' in document 'b' is not a number"):
        mtwv({("q", "a"): 1.0, ("q", "b"): math.nan}, [("q", "a", True), ("q", "b", False)])


def test_average_precision_by_hand():
    # right, wrong, right from the top: (1/1 + 2/3) / 2
    trials = [("q", "a", True), ("q", "b", False), ("q", "c", True)]
    scores = {("q", "a"): 3.0, ("q", "b"): 2.0, ("q", "c"): 1.0}
    assert average_precision(scores, trials) == pytest.approx(5 / 6)


# ------------------------------------------------------------------------------------------- the task


@pytest.fixture(scope="module")
def toy_features(tmp_path_factory):
    """{clip id: (layers, frames, dim)} of the toy test split, by the tiny upstream."""
    split = toy("test", 0)
    store = FeatureStore(tmp_path_factory.mktemp("features"))
    arrays = store.get(TinyUpstream(), split.clips, pooled=False)
    return split, {clip.id: array for clip, array in zip(split.clips, arrays, strict=True)}


def test_the_toy_is_solved_and_noise_is_not(toy_features):
    split, states = toy_features
    found = score(compare({name: array[0] for name, array in states.items()}, split), split)
    assert 0.9 < found["mtwv"] <= 1.0
    dice = np.random.default_rng(0)
    chance = {name: dice.normal(size=array[0].shape) for name, array in states.items()}
    assert score(compare(chance, split), split)["mtwv"] < 0.5


def test_the_toy_has_answers_of_both_kinds_in_every_split():
    for name in ("train", "dev", "test"):
        split = toy(name, 0)
        asked = {query for query, _, contains in split.trials if contains}
        assert (split.name, len(split.trials), len(asked)) == (name, 4 * 25, 4)
        assert sum(contains for _, _, contains in split.trials) == 20
    assert toy("dev", 0).data_hash != toy("test", 0).data_hash != toy("test", 1).data_hash


def test_every_trial_has_a_score_in_any_order(toy_features):
    split, states = toy_features
    layer = {name: array[1] for name, array in states.items()}
    found = compare(layer, split)
    assert list(found) == [(query, document) for query, document, _ in split.trials]
    turned = replace(split, clips=split.clips[::-1], trials=split.trials[::-1])
    for pair, value in compare(dict(reversed(layer.items())), turned).items():
        assert value == pytest.approx(found[pair], abs=1e-4)
    assert score(dict(reversed(found.items())), split) == score(found, split)


def test_scores_are_rounded_before_they_are_scored():
    split = Split("x", "test", (), (), trials=(("q", "a", True), ("q", "b", False)))
    found = {("q", "a"): 1.00004, ("q", "b"): 1.00001}
    assert rounded(found) == {("q", "a"): 1.0, ("q", "b"): 1.0}
    assert score(found, split) == {"mtwv": 0.0}  # a tie: the right one comes with a false alarm
    assert mtwv(found, split.trials) == 1.0


def test_compare_refuses_what_it_cannot_compare(toy_features):
    split, states = toy_features
    layer = {name: array[0] for name, array in states.items()}
    with pytest.raises(ContractBroken, match="the test split of toy has no trials"):
        compare(layer, replace(split, trials=()))
    absent = split.trials[3][1]
    with pytest.raises(ContractBroken, match=f"clip {absent!r} is in a trial of toy test, but has no features"):
        compare({name: array for name, array in layer.items() if name != absent}, split)


def test_only_trials_say_what_is_a_query(toy_features):
    split, states = toy_features
    layer = {name: array[0] for name, array in states.items()}
    bare = replace(split, clips=tuple(replace(clip, labels={}) for clip in split.clips))
    assert compare(layer, bare) == compare(layer, split)


def test_the_task_trains_nothing():
    task = get_task("qbe")
    assert task.head is task.loss is task.decode is task.encode is None
    assert task.compare is compare
    assert {recipe.steps for recipe in (task.published, *(view.recipe for view in task.corpora.values()))} == {0}


def test_names_are_safe_in_the_file(tmp_path):
    found = {('a "b" & <c>', "d'é"): 2.00001, ('a "b" & <c>', "e"): -0.5}
    path = write_stdlist(found, tmp_path / "some" / "my.xml")
    root = ElementTree.parse(path).getroot()
    assert root.get("termlist_filename") == "my.xml"
    assert root[0].get("termid") == 'a "b" & <c>'
    assert [(term.get("file"), term.get("score"), term.get("decision")) for term in root[0]] == [
        ("d'é", "2.0000", "YES"), ("e", "-0.5000", "NO")]  # fmt: skip


# ------------------------------------------------------------------------------------------ benchmark


def test_the_benchmark_command_prints_a_comparison():
    from typer.testing import CliRunner

    from superb_lite.cli import app

    done = CliRunner().invoke(app, "bench qbe --corpus generated --queries 4 --documents 5".split())
    assert done.exit_code == 0, done.output
    for part in ("20 pairs", "M cells/s", "by processor time", "largest difference", "dtw-python, 1 thread"):
        assert part in done.output


def test_the_benchmark_does_not_believe_the_clock_of_a_busy_machine():
    from superb_lite.bench.alignment import Comparison, Took

    alone = Comparison(10, 10_000, ours=Took(0.5, 1.0), theirs=Took(11.0, 10.0), gap=1e-7, threads=2)
    assert (alone.ratio, alone.processor_ratio, alone.busy) == (22.0, 10.0, False)
    assert "other programs" not in str(alone)
    shared = replace(alone, theirs=Took(80.0, 10.0))
    assert shared.busy and "believe the processor time" in str(shared)


def test_the_benchmark_fails_if_scores_differ(monkeypatch):
    from typer.testing import CliRunner

    from superb_lite import cli
    from superb_lite.bench import alignment

    monkeypatch.setattr(alignment, "official", lambda: lambda query, document: -0.123)
    done = CliRunner().invoke(cli.app, "bench qbe --corpus generated --queries 2 --documents 2".split())
    assert done.exit_code == 1
    assert "differs from dtw-python's by" in done.output


def test_the_benchmark_says_what_it_needs(monkeypatch):
    import sys

    from superb_lite.bench import alignment
    from superb_lite.types import SuperbLiteError

    monkeypatch.setitem(sys.modules, "dtw", None)
    with pytest.raises(SuperbLiteError, match="pip install dtw-python"):
        alignment.qbe("generated")
