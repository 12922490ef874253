"""Numbers worked by hand, edge cases, and agreement with two other implementations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from superb_lite.metrics import Edits, accuracy, cer, edits, error_rate, per, wer

STORED = json.loads((Path(__file__).parent / "fixtures" / "error_rates.json").read_text())


def single_space(sentences):
    return [sentence.split(" ") for sentence in sentences]


def test_edits_by_hand():
    # K AE T -> K AH T S: AE became AH (1 substitution), S was invented (1 insertion); nothing was deleted
    assert edits("K AE T".split(), "K AH T S".split()) == Edits(1, 0, 1, 3)
    # S IH K S -> S K S: IH was deleted
    assert edits("S IH K S".split(), "S K S".split()) == Edits(0, 1, 0, 4)
    assert edits([], ["A"]) == Edits(0, 0, 1, 0)
    assert edits(["A", "B"], []) == Edits(0, 2, 0, 2)
    assert edits([], []) == Edits()


def test_edits_pool_before_the_ratio():
    # 1 edit of 1 and 0 edits of 9: pooled 1/10 = 10 %; the mean of the ratios would be 50 %
    refs, hyps = [["A"], list("BCDEFGHIJ")], [["X"], list("BCDEFGHIJ")]
    assert error_rate(refs, hyps) == pytest.approx(10.0)
    total = edits(refs[0], hyps[0]) + edits(refs[1], hyps[1])
    assert total == Edits(1, 0, 0, 10)
    assert total.percent == pytest.approx(10.0)


def test_order_of_arguments_matters():
    assert error_rate([["A", "B", "C", "D"]], [["A"]]) == pytest.approx(75.0)
    assert error_rate([["A"]], [["A", "B", "C", "D"]]) == pytest.approx(300.0)


def test_symbols_are_whole_words_not_letters():
    assert per([["AH", "HH"]], [["AHH", "H"]]) == pytest.approx(100.0)


def test_empty_hypotheses_and_references():
    assert error_rate([["A", "B"]], [[]]) == pytest.approx(100.0)
    assert error_rate([[], ["A", "B"]], [["X"], ["A", "B"]]) == pytest.approx(50.0)  # 1 insertion / 2
    with pytest.raises(ValueError, match="no symbol at all"):
        error_rate([[]], [["A"]])
    with pytest.raises(ValueError, match="no symbol at all"):
        error_rate([], [])


def test_unequal_numbers_and_forgotten_split_are_refused():
    with pytest.raises(ValueError, match="1 references but 2 predictions"):
        error_rate([["A"]], [["A"], ["B"]])
    with pytest.raises(TypeError, match=r"the string 'K AE T'.*split"):
        per([["K", "AE", "T"]], ["K AE T"])


@pytest.mark.parametrize("case", STORED["cases"], ids=lambda case: f"case{case['id']}")
def test_error_rates_agree_with_the_official_toolkit(case):
    refs, hyps = single_space(case["refs"]), single_space(case["hyps"])
    assert per(refs, hyps) == pytest.approx(100 * case["per"], rel=1e-12)
    distances = [edits(ref, hyp).total for ref, hyp in zip(refs, hyps, strict=True)]
    assert distances == case["edit_distances_split_on_single_space"]
    if isinstance(case["cer"], float):
        assert cer(case["refs"], case["hyps"]) == pytest.approx(100 * case["cer"], rel=1e-12)
    else:
        with pytest.raises(ValueError, match="no symbol"):
            cer(case["refs"], case["hyps"])
    if any(ref.split() for ref in case["refs"]):
        assert wer(case["refs"], case["hyps"]) == pytest.approx(case["legacy_asr_uer_wer_percent"][1], rel=1e-12)
    else:
        with pytest.raises(ValueError, match="no symbol"):
            wer(case["refs"], case["hyps"])


def test_edge_cases_of_the_official_toolkit():
    compared = 0
    for case in STORED["edge_cases"]:
        if isinstance(case["cer"], float) and len(case["refs"]) == len(case["hyps"]):
            assert cer(case["refs"], case["hyps"]) == pytest.approx(100 * case["cer"], rel=1e-12)
            assert per(single_space(case["refs"]), single_space(case["hyps"])) == pytest.approx(100 * case["per"])
            compared += 1
    assert compared == 4


def test_word_error_rate_agrees_with_jiwer():
    import jiwer

    refs = ["turn the light off", "seven", "play the next song please"]
    hyps = ["turn light of", "seven eleven", "next song pleas play"]
    assert wer(refs, hyps) == pytest.approx(100 * jiwer.wer(refs, hyps))
    assert cer(refs, hyps) == pytest.approx(100 * jiwer.cer(refs, hyps))


def test_accuracy():
    assert accuracy(["a", "b", "c"], ["a", "x", "c"]) == pytest.approx(200 / 3)
    assert accuracy([0], [1]) == 0.0
    assert accuracy([("on", "light")], [("on", "light")]) == 100.0


def test_accuracy_refuses_nothing_and_unequal_numbers():
    with pytest.raises(ValueError, match="nothing to score"):
        accuracy([], [])
    with pytest.raises(ValueError, match="3 references but 2 predictions"):
        accuracy([1, 2, 3], [1, 2])
