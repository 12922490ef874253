"""Speaker diarization: stored numbers of the official toolkit, a second opinion, and what must not matter.

Fixtures: head_sd_lstm_pit.npz (s3prl 0.4.18, random weights and inputs, CPU float32) and diarization.json, whose
``about`` says where each list comes from.
"""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from superb_lite.heads import LSTM
from superb_lite.losses import pit_bce, pit_losses
from superb_lite.metrics import DiarizationErrors, count_errors, diarization_errors
from superb_lite.tasks import get_task, sd
from superb_lite.tasks.sd import Posteriors, errors_of, frame_labels, match_length, read_rttm, turns_of, write_rttm
from superb_lite.types import RATE, Clip, ContractBroken, LabelMissing, Recipe, ResultsBroken, Split

FIXTURES = Path(__file__).parent / "fixtures"
STORED = json.loads((FIXTURES / "diarization.json").read_text())
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
# the weights of the official head, in the order of ours
OFFICIAL = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
OFFICIAL = [*(f"rnn.{name}_l0" for name in OFFICIAL), "linear.weight", "linear.bias"]


@pytest.fixture(scope="module")
def head():
    with np.load(FIXTURES / "head_sd_lstm_pit.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(value) for key, value in arrays.items() if value.dtype.kind in "fi"}


def random_turns(generator, speakers=2, longest=8.0):
    """Turns in which nobody overlaps with himself (packages differ in how they count that)."""
    turns = []
    for number in range(speakers):
        times = np.sort(generator.uniform(0.0, longest, 2 * generator.integers(1, 6)))
        turns += [(f"s{number}", float(start), float(end)) for start, end in times.reshape(-1, 2)]
    return turns


def clip_of(turns, name="mix", seconds=8.0):
    return Clip(name, f"{name}.wav", seconds, "0" * 64, {"turns": turns})


def split_of(*clips):
    return Split("made", "test", clips, sd.CLASSES)


def parts(errors):
    return errors.missed, errors.false_alarm, errors.confusion, errors.total


# --------------------------------------------------------------------------------------- head and loss


def official_head(head):
    ours = LSTM(14, 2, hidden=10)
    names = zip(ours.state_dict(), OFFICIAL, strict=True)
    ours.load_state_dict({mine: head[f"state.{theirs}"] for mine, theirs in names})
    return ours


def test_head_and_loss_agree_with_the_official_toolkit(head):
    ours, lengths, labels = official_head(head), head["in.lens"], head["in.labels"]
    out = ours(head["in.feats"], lengths)
    for row, length in enumerate(lengths.tolist()):
        assert_close(out[row, :length], head["out.logits"][row, :length], **CLOSE)
    losses, permutations = pit_losses(out, lengths, labels)
    assert permutations.tolist() == head["out.perm_list"].tolist()
    assert_close(losses, head["out.loss_per_item_per_perm"], **CLOSE)
    assert losses.argmin(1).tolist() == head["out.perm_idx"].tolist()
    loss = pit_bce(out, lengths, labels)
    assert_close(loss, head["loss.pit"], **CLOSE)
    loss.backward()
    gradients = [weight.grad for weight in ours.parameters()]
    stored = [value for key, value in head.items() if key.startswith("grad.")]
    for mine, theirs in zip(gradients, stored, strict=True):
        assert_close(mine, theirs, **CLOSE)


def test_three_speakers_agree_with_the_official_toolkit(head):
    out, labels, lengths = (head[f"in.spk3.{key}"] for key in ("logits", "labels", "lens"))
    losses, permutations = pit_losses(out, lengths, labels)
    assert permutations.tolist() == head["out.spk3.perm_list"].tolist()
    assert losses.argmin(1).tolist() == head["out.spk3.perm_idx"].tolist()  # two that are each other's inverse
    assert_close(pit_bce(out, lengths, labels), head["loss.spk3.pit"], **CLOSE)


@pytest.mark.parametrize("case", ["same", "longer", "shorter", "double", "triple"])
def test_features_are_matched_to_labels_as_in_the_official_toolkit(head, case):
    matched = match_length(head["in.feats"].numpy(), int(head[f"in.match_length_{case}.target"]))
    assert_close(matched.sum(-1), head[f"out.match_length_{case}"].numpy(), **CLOSE)
    if case == "double":
        assert_close(matched[:, :6], head["out.match_length_double_head"].numpy(), rtol=0, atol=0)


def random_batch():
    generator = torch.Generator().manual_seed(1)
    out = torch.randn(3, 12, 2, generator=generator)
    targets = (torch.rand(3, 12, 2, generator=generator) > 0.5).float()
    return out, torch.tensor([12, 7, 3]), targets


def test_loss_by_hand():
    out = torch.tensor([[[2.0, -2.0], [2.0, -2.0]]])
    labels = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])  # just the other way round
    assert float(pit_bce(out, torch.tensor([2]), labels)) == pytest.approx(np.log1p(np.exp(-2.0)))
    stubborn = torch.nn.functional.binary_cross_entropy_with_logits(out, labels)
    assert float(stubborn) == pytest.approx(2 + np.log1p(np.exp(-2.0)))


def test_loss_does_not_care_who_is_first_but_keeps_to_it():
    out, lengths, targets = random_batch()
    loss = pit_bce(out, lengths, targets)
    assert_close(pit_bce(out.flip(2), lengths, targets), loss)
    swapped = targets.clone()
    swapped[1] = targets[1].flip(1)
    assert_close(pit_bce(out, lengths, swapped), loss)
    alternating = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(1, 6, 1)
    right, all_of_it = 4.0 * (2 * alternating - 1), torch.tensor([12])
    halfway = alternating.clone()
    halfway[0, 6:] = alternating[0, 6:].flip(1)  # the speakers change places in the middle of a recording
    assert float(pit_bce(right, all_of_it, alternating)) < 0.02
    assert float(pit_bce(right, all_of_it, halfway)) > 2.0


def test_padding_does_not_matter_to_head_and_loss():
    out, lengths, targets = random_batch()
    loss = pit_bce(out, lengths, targets)
    spoilt = out.clone()
    spoilt[1, 7:], spoilt[2, 3:] = torch.nan, 50.0
    targets[2, 3:] = 1.0
    spoilt.requires_grad_(True)
    again = pit_bce(spoilt, lengths, targets)
    assert_close(again, loss)
    again.backward()
    assert torch.isfinite(spoilt.grad).all() and float(spoilt.grad[1, 7:].abs().sum()) == 0.0
    ours = LSTM(5, 2, hidden=7)
    x = torch.randn(3, 12, 5, generator=torch.Generator().manual_seed(2))
    found = ours(x, lengths)
    assert_close(found[1, :7], ours(x[1:2, :7], lengths[1:2])[0])
    x[1, 7:] = torch.nan
    assert_close(ours(x, lengths), found)
    assert float(found[1, 7:].detach().abs().sum()) == 0.0


def test_head_does_not_hear_the_future():
    ours = LSTM(5, 2, hidden=7)
    x = torch.randn(1, 9, 5, generator=torch.Generator().manual_seed(2))
    found = ours(x, torch.tensor([9]))
    x[0, 5:] += 1.0
    other = ours(x, torch.tensor([9]))
    assert_close(other[0, :5], found[0, :5])
    assert float((other - found)[0, 5:].abs().max().detach()) > 1e-3


def test_loss_refuses_what_does_not_fit():
    out, lengths, targets = random_batch()
    with pytest.raises(ContractBroken, match=r"targets \(3, 12, 1\)"):
        pit_bce(out, lengths, targets[..., :1])
    with pytest.raises(ContractBroken, match="lengths up to 3840 of 12 frames"):
        pit_bce(out, lengths * 320, targets)


# --------------------------------------------------------------------------------------- frames, turns


@pytest.mark.parametrize("case", STORED["chunks"], ids=lambda case: str(case["id"]))
def test_labels_of_a_part_agree_but_for_the_dropped_turns(case):
    speakers = sorted({name for name, *_ in case["segments"]})
    frames = case["end_frame"] - case["start_frame"]
    ours = frame_labels(case["segments"], speakers, frames, case["frame_shift"], start=case["start_frame"])
    theirs = np.zeros_like(ours)
    for column, runs in enumerate(case["active_runs_per_speaker"]):
        for first, end in runs:
            theirs[first:end, column] = 1
    if not case["differs_from_geometric_overlap"]:
        np.testing.assert_array_equal(ours, theirs)
    else:  # there, a turn that begins before the part and ends behind it is silence
        assert (ours >= theirs).all() and ours.sum() > theirs.sum()


def test_labels_round_to_even_frames_and_stay_inside():
    half = 0.5 * 320 / RATE  # exactly between two frames
    labels = frame_labels([("a", half, 3 * half), ("b", 3 * half, 99.0)], ["a", "b"], 5, 320)
    assert labels.T.tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]


@pytest.mark.parametrize("case", STORED["frame"], ids=lambda case: str(case["id"]))
@pytest.mark.parametrize("stride", [160, 320])
def test_frame_errors_agree_with_the_official_toolkit(case, stride):
    stored = case["frame"][str(stride)]
    frames = int(case["duration"] * RATE / stride)
    ref, hyp = (
        frame_labels(case[side], sorted({name for name, *_ in case[side]}), frames, stride) for side in ("ref", "hyp")
    )
    losses, permutations = pit_losses(
        torch.from_numpy(hyp)[None] * 8 - 4, torch.tensor([frames]), torch.from_numpy(ref)[None]
    )
    order = permutations[losses.argmin()].tolist()
    assert order == stored["perm"]
    assert float(losses.min()) / frames == pytest.approx(stored["pit_loss_logit4"], rel=1e-5)
    (errors,) = count_errors(ref.T[order] > 0, (hyp.T > 0)[None], np.ones(frames), matched=True)
    assert errors == DiarizationErrors(*stored["stats"][6:], stored["stats"][5])
    assert errors.percent == pytest.approx(100 * stored["der"])


@pytest.mark.parametrize("case", STORED["soft"], ids=lambda case: str(case["id"]))
def test_pit_of_random_logits_agrees_with_the_official_toolkit(case):
    logits, labels = torch.tensor(case["logits"]), torch.tensor(case["labels"]).float()
    lengths = torch.tensor(case["lens"])
    assert float(pit_bce(logits, lengths, labels)) == pytest.approx(case["pit_loss"], rel=1e-5)
    losses, permutations = pit_losses(logits, lengths, labels)
    total = DiarizationErrors()
    for row, best in enumerate(losses.argmin(1).tolist()):
        order, length = permutations[best].tolist(), case["lens"][row]
        assert order == case["perms"][row]
        ref, hyp = labels[row, :length, order].T.numpy() > 0, logits[row, :length].T.numpy() > 0
        total += count_errors(ref, hyp[None], np.ones(length), matched=True)[0]
        (best_mapping,) = count_errors(ref, hyp[None], np.ones(length))
        assert best_mapping.confusion <= total.confusion
    assert total == DiarizationErrors(*case["stats"][6:], case["stats"][5])


def rttm_lines(tmp_path, *arguments):
    write_rttm(tmp_path / "found.rttm", *arguments)
    return (tmp_path / "found.rttm").read_text().splitlines()


@pytest.mark.parametrize("case", STORED["rttm"], ids=lambda case: case["session"])
def test_posteriors_to_rttm_agrees_with_the_official_toolkit(case, tmp_path):
    posteriors = Posteriors(np.array(case["posteriors"], dtype=np.float32), case["frame_shift"])
    for name, lines in case["rttm"].items():
        threshold, median = name.removeprefix("th").split("_med")
        turns = turns_of(posteriors, float(threshold), int(median), prefix=f"{case['session']}_")
        assert rttm_lines(tmp_path, {case["session"]: turns}) == lines


def test_median_filter_is_scipys():
    from scipy.signal import medfilt

    values = np.random.default_rng(0).random((50, 2))
    for width in (1, 3, 11, 49):
        theirs = medfilt((values > 0.4).astype(float), (width, 1))
        np.testing.assert_array_equal(sd.speaking(values, 0.4, width), theirs > 0)
    with pytest.raises(ValueError, match="10 frames wide, expected an odd number"):
        sd.speaking(values, 0.4, 10)


# -------------------------------------------------------------------------------------------- error rate


@pytest.mark.parametrize("case", STORED["der"], ids=lambda case: str(len(case["ref"])))
def test_errors_agree_with_two_published_scorers(case):
    errors = diarization_errors(case["ref"], case["hyp"])
    theirs = case["pyannote"]
    assert parts(errors) == pytest.approx(
        [theirs["missed"], theirs["false_alarm"], theirs["confusion"], theirs["total"]], abs=1e-9
    )
    assert errors.percent == pytest.approx(100 * theirs["der"], abs=1e-9)
    assert errors.percent == pytest.approx(case["md_eval"]["der_percent_as_printed"], abs=0.0051)


def test_errors_agree_with_pyannote_on_random_pairs():
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    def annotation(turns):
        found = Annotation()
        for number, (speaker, start, end) in enumerate(turns):
            found[Segment(start, end), number] = speaker
        return found

    generator = np.random.default_rng(5)
    pooled, second_opinion = DiarizationErrors(), DiarizationErrorRate(collar=0.0, skip_overlap=False)
    for number in range(200):
        ref, hyp = (random_turns(generator, speakers=1 + generator.integers(3)) for _ in range(2))
        times = [time for _, *pair in ref + hyp for time in pair]
        theirs = second_opinion(
            annotation(ref), annotation(hyp), uem=Timeline([Segment(min(times), max(times))]), detailed=True
        )
        errors = diarization_errors(ref, hyp)
        assert parts(errors) == pytest.approx(
            [theirs["missed detection"], theirs["false alarm"], theirs["confusion"], theirs["total"]], abs=1e-6
        ), number
        pooled += errors
    assert pooled.percent == pytest.approx(100 * abs(second_opinion), abs=1e-6)


def test_errors_by_hand():
    ref = [("a", 0.0, 2.0), ("b", 1.0, 3.0)]
    assert parts(diarization_errors(ref, ref)) == (0.0, 0.0, 0.0, 4.0)
    assert parts(diarization_errors(ref, [])) == (4.0, 0.0, 0.0, 4.0)
    assert parts(diarization_errors(ref, [("x", 0.0, 4.0)])) == (1.0, 1.0, 1.0, 4.0)
    assert parts(diarization_errors(ref, [("x", 0.0, 1.5), ("x", 0.5, 2.0), ("y", 1.0, 3.0)])) == (0.0, 0.0, 0.0, 4.0)
    assert diarization_errors(ref, []).percent == 100.0
    with pytest.raises(ValueError, match="nobody speaks"):
        _ = diarization_errors([], ref).percent
    assert parts(diarization_errors([], [])) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("turn", [("a", 2.0, 1.0), ("a", float("nan"), 1.0), ("a", 0.0, float("inf"))])
def test_broken_turns_are_refused(turn):
    with pytest.raises(ValueError, match="expected start <= end"):
        diarization_errors([("a", 0.0, 1.0)], [turn])


def test_swapping_speakers_changes_nothing_but_halfway_does():
    generator = np.random.default_rng(2)
    turns = [("a", 0.0, 1.0), ("b", 1.0, 2.0), ("a", 2.0, 3.0), ("b", 2.5, 4.0)]
    other = {"a": "b", "b": "a"}
    swapped = [(other[name], start, end) for name, start, end in turns]
    halfway = turns[:2] + swapped[2:]
    assert diarization_errors(turns, swapped).percent == 0.0
    assert parts(diarization_errors(turns, halfway)) == (0.0, 0.0, 1.5, 4.5)
    values = generator.random((400, 2)).astype(np.float32)
    split = split_of(clip_of(random_turns(generator)))
    found, mirrored = (sd.score({"mix": Posteriors(one, 320)}, split) for one in (values, values[:, ::-1]))
    assert found == pytest.approx(mirrored)


# -------------------------------------------------------------------------------------------------- RTTM


def test_rttm_round_trip(tmp_path):
    turns = {"one": [("a", 0.0, 1.25), ("b", 1.0, 12.5)], "two": [("x_1", 3.07, 3.09)]}
    write_rttm(tmp_path / "new" / "found.rttm", turns)
    assert read_rttm(tmp_path / "new" / "found.rttm") == turns
    assert (tmp_path / "new" / "found.rttm").read_text().endswith("two 1    3.07    0.02 <NA> <NA> x_1 <NA>\n")


def test_rttm_leaves_out_what_rounds_to_nothing_and_refuses_names_with_spaces(tmp_path):
    assert rttm_lines(tmp_path, {"one": [("a", 1.0, 1.004)], "silent": []}) == []
    for recordings in ({"my mix": [("a", 0.0, 1.0)]}, {"mix": [("", 0.0, 1.0)]}, {"mix": [("a\n", 0.0, 1.0)]}):
        with pytest.raises(ValueError, match="expected no spaces"):
            write_rttm(tmp_path / "found.rttm", recordings)


def test_rttm_reads_what_others_write(tmp_path):
    path = tmp_path / "theirs.rttm"
    path.write_text(
        ";; a comment\n\nSPKR-INFO rec 1 <NA> <NA> <NA> unknown ann <NA>\n"
        "SPEAKER rec 1 0.500 1.25 <NA> <NA> ann 0.9\r\nSPEAKER\trec\t1\t2\t1e0\t<NA>\t<NA>\tbob\t<NA>\t<NA>\n"
    )
    assert read_rttm(path) == {"rec": [("ann", 0.5, 1.75), ("bob", 2.0, 3.0)]}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("SPEAKER rec 1 0.5", "4 fields, expected 9 or 10"),
        ("SPEAKER rec 1 half 1.0 <NA> <NA> ann <NA>", "'half' is no number of seconds"),
        ("SPEAKER rec 1 0.5 nan <NA> <NA> ann <NA>", "'nan' is no number of seconds"),
        ("SPEAKER rec 1 -0.5 1.0 <NA> <NA> ann <NA>", "starts at -0.5 s"),
        ("SPEAKER rec 1 0.5 0.0 <NA> <NA> ann <NA>", "lasts 0.0 s"),
        ("rec 1 0.5 1.0 <NA> <NA> ann <NA> <NA>", "starts with 'rec', expected SPEAKER"),
    ],
)
def test_a_broken_rttm_line_is_named(tmp_path, line, says):
    path = tmp_path / "broken.rttm"
    path.write_text(f"SPEAKER rec 1 0.5 1.0 <NA> <NA> ann <NA>\n{line}\n")
    with pytest.raises(ResultsBroken, match=f"broken.rttm, line 2: .*{says}"):
        read_rttm(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultsBroken, match="no text file"):
        read_rttm(path)


def test_rttm_of_a_split_scores_like_its_posteriors(tmp_path):
    split = get_task("sd").toy("test", 0)
    generator = np.random.default_rng(0)
    found = {clip.id: Posteriors(generator.random((60, 2)), 160) for clip in split.clips}
    turns = {name: turns_of(one, 0.6, 11, prefix=f"{name}_") for name, one in found.items()}
    write_rttm(tmp_path / "found.rttm", turns)
    expected = sd.score(found, split, threshold=0.6, median=11)["der"]
    assert errors_of(read_rttm(tmp_path / "found.rttm"), split).percent == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ContractBroken, match="'stranger', which is no clip of the test split"):
        errors_of({**turns, "stranger": []}, split)


# -------------------------------------------------------------------------------------------------- task


def test_encode_sorts_speakers_and_pads():
    turns = [["zoe", 0.0, 0.04], ["abe", 0.02, 0.08]], [["zoe", 0.0, 0.02]]
    clips = [clip_of(said, seconds=seconds) for said, seconds in zip(turns, (0.1, 0.06), strict=True)]
    (targets,) = sd.encode(clips, torch.tensor([5, 3]), 320, split_of(*clips))
    assert targets.shape == (2, 5, 2)
    assert targets[0].T.tolist() == [[0, 1, 1, 1, 0], [1, 1, 0, 0, 0]]
    assert targets[1].T.tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    (finer,) = sd.encode(clips[:1], torch.tensor([10]), 160, split_of(*clips))
    assert finer[0].T.tolist() == [[0, 0, 1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ([["a", 0.0, 9.0]], "expected .speaker, start, end., seconds within 8"),
        ([["a", 2.0, 1.0]], "has the turn"),
        ([["a", 2.0]], "has the turn"),
        ([["a", 0, 1], ["b", 0, 1], ["c", 0, 1]], "has 3 speakers .*expected 1 to 2"),
        ([], "has 0 speakers"),
    ],
)
def test_bad_turns_are_named(turns, says):
    clip = clip_of(turns)
    with pytest.raises(LabelMissing, match=f"'mix' .mix.wav. {says}" if "has" in says else says):
        sd.encode([clip], torch.tensor([400]), 320, split_of(clip))


def test_frames_of_another_rate_or_a_part_are_refused():
    clip = clip_of([["a", 0.0, 1.0]])
    with pytest.raises(ContractBroken, match="which is 400 frames of 320 samples, but it has 800"):
        sd.encode([clip], torch.tensor([800]), 320, split_of(clip))
    with pytest.raises(ContractBroken, match="800 frames of 160 samples, but it has 400"):
        sd.score({"mix": Posteriors(np.zeros((400, 2)), 160)}, split_of(clip))


def test_sizes_come_from_the_recipe():
    split = split_of(clip_of([]))
    assert sd.head(24, split, Recipe("x", 1, 1, 1.0, 1)).rnn.hidden_size == 512
    assert sd.head(24, split, sd.SUPERB).rnn.hidden_size == 512
    assert sd.head(24, split, replace(sd.MINI, sizes={"hidden": 9})).rnn.hidden_size == 9
    assert (sd.SUPERB.steps, sd.SUPERB.batch, sd.SUPERB.accumulate, sd.SUPERB.lr) == (30_000, 8, 4, 1e-4)
    assert (sd.SUPERB.eval_every, sd.SUPERB.clip_norm, sd.SUPERB.optimizer) == (500, 1.0, "adam")
    assert sd.SUPERB.crop_sec * RATE / 160 == 2000


def random_split(clips, seconds=8.0):
    """Clips, and posteriors that know a little about them."""
    generator = np.random.default_rng(7)
    made = [clip_of(random_turns(generator, longest=seconds), f"mix{number}", seconds) for number in range(clips)]
    found = {}
    for clip in made:
        truth = frame_labels(clip.labels["turns"], sd.names(clip), int(seconds * 50), 320)
        found[clip.id] = Posteriors(np.clip(0.35 * truth + generator.normal(0.4, 0.2, truth.shape), 0, 1), 320)
    return split_of(*made), found


def test_sweep_is_turn_by_turn_scoring_and_pools():
    split, found = random_split(6)
    errors = sd.sweep(found, split)
    assert tuple(errors) == tuple(itertools.product((0.3, 0.4, 0.5, 0.6, 0.7), (1, 11)))
    for setting, one in errors.items():
        slow = errors_of({name: turns_of(posteriors, *setting) for name, posteriors in found.items()}, split)
        assert parts(one) == pytest.approx(parts(slow), abs=1e-9)
    best = min(errors, key=lambda setting: errors[setting].percent)
    assert sd.settle(found, split) == {"threshold": best[0], "median": best[1]}
    scores = sd.score(found, split, threshold=0.35, median=5)
    assert scores["der_published"] == errors[best].percent < scores["der"]
    assert sd.score(found, split, *best) == {"der": errors[best].percent, "der_published": errors[best].percent}
    assert errors[best].percent < errors[0.3, 1].percent - 5


def test_short_posteriors_last_to_the_end_of_their_clip():
    clip = clip_of([["a", 0.0, 8.0], ["b", 1.0, 2.0]])
    values = np.zeros((398, 2))
    values[:, 0], values[50:100, 1] = 1.0, 1.0
    assert sd.score({"mix": Posteriors(values, 320)}, split_of(clip))["der"] == 0.0
    with pytest.raises(KeyError):
        sd.score({}, split_of(clip))


def test_ten_settings_of_two_hundred_mixtures_are_quick():
    split, found = random_split(200)
    start = time.process_time()
    sd.score(found, split)
    assert time.process_time() - start < 5.0


def test_baselines():
    split = split_of(clip_of([["a", 1.0, 3.0], ["b", 2.0, 5.0], ["a", 6.0, 7.0]]))
    assert parts(errors_of(sd.always_on(split), split)) == (1.0, 3.0, 2.0, 6.0)
    assert parts(errors_of(sd.perfect_detection(split), split)) == (1.0, 0.0, 2.0, 6.0)
    assert parts(errors_of(sd.perfect_detection(split, overlap=True), split)) == (0.0, 0.0, 2.0, 6.0)
    assert parts(errors_of({}, split)) == (6.0, 0.0, 0.0, 6.0)


def test_decode_keeps_the_valid_frames():
    out = torch.zeros(2, 4, 2)
    out[0, :, 0] = 30.0
    first, second = sd.decode(out, torch.tensor([4, 3]), 320, split_of())
    assert first.values.shape == (4, 2) and second.values.shape == (3, 2) and first.stride == 320
    assert first.values[:, 0].tolist() == [1.0] * 4 and second.values[0].tolist() == [0.5, 0.5]
