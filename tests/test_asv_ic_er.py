"""Verification, intents and emotions: stored numbers of the official toolkit, sums by hand, what must not matter."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from superb_lite.corpora import get_corpus
from superb_lite.features import FeatureStore
from superb_lite.heads import XVector, mean_and_deviation
from superb_lite.losses import AMSoftmax
from superb_lite.metrics import det_points, eer
from superb_lite.probe import check_labels, evaluate, fit
from superb_lite.tasks import asv, er, get_task, ic
from superb_lite.testing import TinyUpstream
from superb_lite.types import Clip, ContractBroken, Corpus, LabelMissing, Recipe, Split

FIXTURES = Path(__file__).parent / "fixtures"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
LENGTHS = torch.tensor([1])


def arrays(name):
    with np.load(FIXTURES / f"head_{name}.npz", allow_pickle=False) as stored:
        return {key: torch.from_numpy(value) if value.dtype.kind in "fi" else value for key, value in stored.items()}


# ------------------------------------------------------------------------------------------- x-vector


def tdnn_weight(weight, context):
    """(out, context * in), the official order, to (out, in, context)."""
    return weight.view(len(weight), context, -1).transpose(1, 2)


def official(stored, kind):
    """(name of ours, official array) of every weight (kind "state") or gradient (kind "grad")."""
    dot = "." if kind == "state" else ".grad."
    network = f"legacy.model.{kind}"
    yield "connect.weight", stored[f"legacy.connector{dot}weight"]
    if kind == "state":
        yield "connect.bias", stored["legacy.connector.bias"]  # its gradient was not kept
    for layer, (context, _) in enumerate(XVector.TDNN):
        kernel = f"{network}.framelevel_feature_extractor.module.{layer}.kernel"
        yield f"layers.{layer}.weight", tdnn_weight(stored[f"{kernel}.weight"], context)
        yield f"layers.{layer}.bias", stored[f"{kernel}.bias"]
    for ours, theirs in (("near", "linear1"), ("far", "linear2")):
        for part in ("weight", "bias"):
            yield f"{ours}.{part}", stored[f"{network}.utterancelevel_feature_extractor.{theirs}.{part}"]


@pytest.fixture
def stored():
    return arrays("xvector_amsoftmax")


@pytest.fixture
def network(stored):
    network = XVector(20, width=16, last=18, embedding=16)
    network.load_state_dict(dict(official(stored, "state")))
    return network


@pytest.fixture
def margin(stored):
    margin = AMSoftmax(16, 6)
    margin.load_state_dict({"speakers": stored["legacy.amsoftmax.W"]})
    return margin


def test_training_agrees_with_the_official_toolkit(stored, network, margin):
    # The published pooling counts one frame of padding; told so, ours gives the same numbers and gradients.
    lengths = stored["out.legacy.effective_pool_lengths"] + XVector.SHRINK
    out = network.train()(stored["in.feats_padded"], lengths)
    assert_close(out, stored["out.legacy.embedding_train"], **CLOSE)
    loss = margin(out, stored["in.labels"])
    assert_close(loss, stored["loss.legacy.amsoftmax"], **CLOSE)
    loss.backward()
    gradients = {name: weight.grad for name, weight in network.named_parameters()}
    expected = dict(official(stored, "grad"))
    assert gradients.keys() - expected.keys() == {"connect.bias"}
    for name, gradient in expected.items():
        assert_close(gradients[name], gradient, **CLOSE)
    assert_close(margin.speakers.grad, stored["legacy.amsoftmax.grad.W"], **CLOSE)


def test_exact_lengths_agree_with_the_newer_classes(stored, network, margin):
    out = network.train()(stored["in.feats_padded"], stored["in.lens"])
    assert_close(out, stored["out.nn.embedding_train"], **CLOSE)
    assert_close(margin(out, stored["in.labels"]), stored["loss.nn.amsoftmax"], **CLOSE)
    vectors = network.eval()(stored["in.feats_padded"], stored["in.lens"])
    assert_close(vectors, stored["out.nn.embedding_eval"], **CLOSE)
    # one clip at a time, as published scores are made: no padding, so no difference
    assert_close(functional.normalize(vectors), stored["out.legacy.embedding_inference_batch1"], **CLOSE)


@pytest.mark.parametrize("frames", [1, 2, 14, 15, 16, 40])
@pytest.mark.parametrize("training", [True, False])
def test_only_valid_frames_matter(network, frames, training):
    network.train(training)
    x = torch.randn(2, 60, 20, generator=torch.Generator().manual_seed(frames))
    lengths = torch.tensor([60, frames])
    vectors = network(x, lengths)
    assert_close(vectors[1:], network(x[1:, :frames], lengths[1:]), **CLOSE)
    x[1, frames:] = 1e3  # whatever lies in the padding
    assert_close(network(x, lengths), vectors, **CLOSE)
    assert not torch.allclose(network(x, torch.tensor([60, 60]))[1], vectors[1])


@pytest.mark.parametrize("frames", [1, 14])
def test_short_clips_are_lengthened_by_their_last_frame(network, frames):
    x = torch.randn(1, frames, 20, generator=torch.Generator().manual_seed(1))
    longer = torch.cat([x, x[:, -1:].expand(1, 15 - frames, 20)], dim=1)
    vectors = network(x, torch.tensor([frames]))
    assert_close(vectors, network(longer, torch.tensor([15])))
    vectors.sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in network.parameters())


def test_mean_and_deviation_by_hand():
    longer = [[1.0, 2.0, 6.0, 99.0], [5.0, 5.0, 5.0, -9.0]]
    hidden = torch.tensor([longer, [[4.0, 7.0, 7.0, 7.0], [0.0, 1.0, 1.0, 1.0]]])
    hidden.requires_grad_(True)
    got = mean_and_deviation(hidden, torch.tensor([3, 1]))
    assert_close(got, torch.tensor([[3.0, 5.0, math.sqrt(7), 0.0], [4.0, 0.0, 0.0, 0.0]]))
    got.sum().backward()
    assert torch.isfinite(hidden.grad).all()  # the root of 0 has no slope
    assert hidden.grad[0, :, 3].abs().max() == 0


def test_xvector_has_the_published_size():
    head = asv.head(768, Split("x", "train", (), tuple("ab")), asv.SUPERB)
    layers = [(tdnn.in_channels, tdnn.out_channels, tdnn.kernel_size, tdnn.dilation) for tdnn in head.network.layers]
    assert layers == [
        (512, 512, (5,), (1,)), (512, 512, (3,), (2,)), (512, 512, (3,), (3,)), (512, 512, (1,), (1,)),
        (512, 1500, (1,), (1,)),
    ]  # fmt: skip
    assert head.network.near.weight.shape == (512, 3000)
    assert head.margin.speakers.shape == (512, 2)
    assert sum(weight.numel() for weight in head.network.parameters()) == 6_110_172
    with pytest.raises(TypeError, match="channels"):
        asv.head(768, Split("x", "train", (), tuple("ab")), replace(asv.SUPERB, sizes={"channels": 5}))


# ----------------------------------------------------------------------------------------- AM-softmax


def test_margin_by_hand():
    margin = AMSoftmax(2, 2, scale=2.0, margin=0.5)
    margin.speakers.data = torch.tensor([[3.0, 0.0], [0.0, 0.1]])  # the two axes; lengths do not matter
    loss = margin(torch.tensor([[7.0, 0.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(2 * (0 - (1 - 0.5)))))
    wrong = margin(torch.tensor([[7.0, 0.0]]), torch.tensor([1]))
    assert wrong.item() == pytest.approx(math.log(1 + math.exp(2 * (1 - (0 - 0.5)))))


def test_margin_defaults_and_first_vectors():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        margin = AMSoftmax(300, 200)
    assert (margin.scale, margin.margin) == (30.0, 0.4)
    assert float(margin.speakers.std()) == pytest.approx(math.sqrt(2 / 500), rel=0.02)  # xavier normal


@pytest.mark.parametrize(
    ("embeddings", "numbers", "message"),
    [
        (torch.ones(1, 4), torch.tensor([-1]), "from -1 to -1, expected 0 to 2"),
        (torch.ones(1, 4), torch.tensor([3]), "from 3 to 3, expected 0 to 2"),
        (torch.ones(1, 5), torch.tensor([0]), r"embeddings \(1, 5\)"),
        (torch.ones(2, 4), torch.tensor([0]), r"speaker numbers \(1,\)"),
    ],
)
def test_margin_refuses(embeddings, numbers, message):
    with pytest.raises(ContractBroken, match=message):
        AMSoftmax(4, 3)(embeddings, numbers)


# ------------------------------------------------------------------------------------------------ EER

STORED_EER = json.loads((FIXTURES / "eer.json").read_text())


@pytest.mark.parametrize("case", STORED_EER["cases"] + STORED_EER["edge_cases"], ids=lambda case: str(case.get("id")))
def test_eer_agrees_with_the_official_toolkit(case):
    if case["eer"] is None:
        with pytest.raises(ValueError, match="trials are by the same speaker"):
            eer(case["labels"], case["scores"])
    else:
        assert eer(case["labels"], case["scores"]) == pytest.approx(100 * case["eer"], abs=1e-8)


def test_eer_by_hand():
    # Accepting the best two of four: one of two friends is refused, one of two strangers let in.
    assert eer([True, False, True, False], [0.9, 0.8, 0.3, 0.1]) == pytest.approx(50.0)
    assert eer([True, True, False], [3, 2, 1]) == 0.0
    assert eer([False, True], [2, 1]) == 100.0
    # between two thresholds: strangers 0 -> 1/2 and friends refused 1/3 stays; they meet at a third
    assert eer([True, True, False, True, False], [5, 4, 3, 2, 1]) == pytest.approx(100 / 3)


def test_eer_depends_on_the_order_of_the_scores_only():
    rng = np.random.default_rng(0)
    same, scores = rng.random(200) < 0.3, rng.normal(size=200)
    order = rng.permutation(200)
    assert eer(same[order], np.exp(scores[order])) == pytest.approx(eer(same, scores), abs=1e-9)
    assert eer(~same, -scores) == pytest.approx(eer(same, scores), abs=1e-9)
    assert eer(same, -scores) == pytest.approx(100 - eer(same, scores), abs=1e-9)


def test_equal_scores_are_accepted_together():
    thresholds, accepts, rejects = det_points([True, False, True, False], [0.5, 0.5, 0.5, 0.2])
    assert thresholds.tolist() == [math.inf, 0.5, 0.2]
    assert accepts.tolist() == [0, 50, 100]
    assert rejects.tolist() == [100, 0, 0]


def test_eer_refuses():
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        eer([True, False], [float("nan"), 0.0])
    with pytest.raises(ValueError, match="2 references but 1 predictions"):
        eer([True, False], [0.0])


# ------------------------------------------------------------------------------------------------ ASV


@pytest.fixture
def four():
    """Four clips by two speakers who are not in training, and all their trials."""
    clips = tuple(Clip(name, f"{name}.wav", 2.0, name, {"speaker": name[0]}) for name in ("a1", "a2", "b1", "b2"))
    return Split("x", "test", clips, ("s", "t"), trials=asv.every_pair(clips))


PERFECT = {"a1": [1.0, 0.0], "a2": [5.0, 1.0], "b1": [0.0, 0.1], "b2": [-1.0, 3.0]}


def trials_that_lie(split):
    """Trials whose answer is not what the labels say."""
    speakers = {clip.id: clip.label("speaker") for clip in split.clips}
    return [trial for trial in split.trials if (speakers[trial[0]] == speakers[trial[1]]) != trial[2]]


def test_trials_are_scored_by_cosine(four):
    vectors = {name: np.array(vector, dtype=np.float32) for name, vector in PERFECT.items()}
    scores = asv.trial_scores(vectors, four)
    assert [trial[:2] for trial in four.trials][:2] == [("a1", "a2"), ("a1", "b1")]
    assert scores[:2] == pytest.approx([5 / math.sqrt(26), 0.0])
    assert asv.score(vectors, four) == {"eer": 0.0}
    vectors["a1"], vectors["b1"] = vectors["b1"], vectors["a1"]
    assert asv.score(vectors, four)["eer"] == pytest.approx(50.0)


def test_swapped_speakers_are_found(four):
    """Two clips that change speakers: the trials lie, and the score of a perfect system falls."""
    assert trials_that_lie(four) == []
    first, _, third, _ = four.clips
    swapped = [replace(first, labels=third.labels), four.clips[1], replace(third, labels=first.labels), four.clips[3]]
    assert len(trials_that_lie(replace(four, clips=tuple(swapped)))) == 4
    vectors = {name: np.array(vector) for name, vector in PERFECT.items()}
    assert asv.score(vectors, replace(four, trials=asv.every_pair(swapped)))["eer"] == pytest.approx(50.0)


@pytest.mark.parametrize("name", ["dev", "test"])
@pytest.mark.parametrize("load", [asv.toy, lambda name, fold: get_corpus("mini").asv(name, fold)], ids=["toy", "mini"])
def test_trials_tell_the_truth_about_unseen_speakers(load, name):
    split, train = load(name, 0), load("train", 0)
    assert trials_that_lie(split) == []
    assert {same for _, _, same in split.trials} == {True, False}
    assert split.classes == train.classes == tuple(sorted({clip.label("speaker") for clip in train.clips}))
    assert not {clip.label("speaker") for clip in split.clips} & set(split.classes)
    check_labels(asv.TASK, split, 320)
    (numbers,) = asv.encode(train.clips, LENGTHS, 320, train)
    assert numbers.unique().tolist() == list(range(len(train.classes)))


def test_speakers_outside_training(four):
    assert asv.encode(four.clips, LENGTHS, 320, four)[0].tolist() == [-1] * 4
    with pytest.raises(LabelMissing, match="'a1'.*speaker 'a', which is not one of the 2 classes"):
        asv.encode(four.clips, LENGTHS, 320, replace(four, name="train"))
    with pytest.raises(ContractBroken, match="the test split of x has no trials"):
        asv.encode(four.clips, LENGTHS, 320, replace(four, trials=()))
    with pytest.raises(ContractBroken, match="names 'b2', which has no embedding"):
        asv.score({name: np.ones(2) for name in ("a1", "a2", "b1")}, four)


def test_embeddings_have_length_one():
    vectors = asv.decode(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([5, 5]), 320, asv.toy("test", 0))
    assert [vector.tolist() for vector in vectors] == [pytest.approx([0.6, 0.8]), [0.0, 0.0]]
    assert all(isinstance(vector, np.ndarray) for vector in vectors)


# ------------------------------------------------------------------------------------------------- IC

INTENTS = ("action=on", "action=off", "object=lamp", "object=none", "location=none", "location=hall")


def command(name, *wanted):
    return Clip(name, f"{name}.wav", 1.0, name, dict(zip(ic.SLOTS, wanted, strict=True)))


@pytest.fixture
def commands():
    wanted = {"c1": ("on", "lamp", "hall"), "c2": ("off", "none", "none"), "c3": ("on", "lamp", "none")}
    return Split("x", "test", tuple(command(name, *values) for name, values in wanted.items()), INTENTS)


def test_slots_agree_with_the_official_toolkit():
    stored, slots = arrays("utterance_linear"), arrays("intent_slots")
    head = ic.SlotsLinear(20, slots["ic.values_per_slot"].tolist(), hidden=16)
    linear = "legacy.model.state.post_net.linear"
    weights = {"project.weight": "legacy.projector.weight", "project.bias": "legacy.projector.bias"}
    weights |= {"classify.weight": f"{linear}.weight", "classify.bias": f"{linear}.bias"}
    head.load_state_dict({ours: stored[theirs] for ours, theirs in weights.items()})
    out = head(stored["in.feats_padded"], stored["in.lens"])
    assert_close(ic.loss(head, out, stored["in.lens"], (slots["ic.labels"],)), slots["ic.loss"], **CLOSE)
    names = [f"{slot}={value}" for slot, count in zip(ic.SLOTS, head.values, strict=True) for value in range(count)]
    split = Split("x", "test", (), tuple(names))
    said = ic.decode(out, stored["in.lens"], 320, split)
    assert [[int(value) for value in row] for row in said] == slots["ic.pred"].tolist()


def test_joint_accuracy_by_hand(commands):
    said = {"c1": ("on", "lamp", "none"), "c3": ("on", "lamp", "none"), "c2": ("off", "none", "none")}
    assert ic.score(said, commands) == {"acc": pytest.approx(200 / 3)}  # two thirds of the slots would be 8/9
    assert ic.slot_accuracy(said, commands) == {"action": 100, "object": 100, "location": pytest.approx(200 / 3)}
    said["c2"] = ("off", "lamp", "hall")
    assert ic.score(said, commands) == {"acc": pytest.approx(100 / 3)}


def test_intents_there_and_back(commands):
    (places,) = ic.encode(commands.clips, LENGTHS, 320, commands)
    assert places.tolist() == [[0, 0, 1], [1, 1, 0], [0, 0, 0]]
    out = torch.cat([functional.one_hot(column, 2) for column in places.unbind(1)], dim=1).float()
    assert ic.decode(out, LENGTHS, 320, commands) == [ic.intent(clip) for clip in commands.clips]


def test_intents_outside_the_classes(commands):
    with pytest.raises(LabelMissing, match="'c9'.*object 'hall', which is not one of the 6 classes"):
        ic.encode([command("c9", "on", "hall", "hall")], LENGTHS, 320, commands)
    for classes in [INTENTS[::-1], INTENTS[:4], ("lamp", *INTENTS)]:
        with pytest.raises(ContractBroken, match="expected all 'action=...', then 'object=...'"):
            ic.slot_values(classes)


# ----------------------------------------------------------------------------------------- all three


def test_published_recipes_to_the_letter():
    adam = {"clip_norm": 1.0, "optimizer": "adam"}
    assert ic.SUPERB == Recipe("superb", steps=200_000, batch=32, accumulate=1, lr=1e-4, eval_every=5_000, **adam)
    assert er.SUPERB == Recipe("superb", steps=30_000, batch=4, accumulate=8, lr=1e-4, eval_every=1_000, **adam)
    assert asv.SUPERB == Recipe(
        "superb", steps=200_000, batch=10, accumulate=5, lr=1e-4, eval_every=20_000, clip_norm=1000.0,
        optimizer="adamw", crop_sec=8.0, sizes={"width": 512, "last": 1500, "embedding": 512},
    )  # fmt: skip
    assert (asv.TASK.published, ic.TASK.published, er.TASK.published) == (asv.SUPERB, ic.SUPERB, er.SUPERB)


def test_what_kind_of_task():
    assert [get_task(key).pooled for key in ("asv", "ic", "er")] == [False, True, True]
    assert [get_task(key).folds for key in ("asv", "ic", "er")] == [1, 1, 5]
    assert asv.TASK.snapshots and not ic.TASK.snapshots
    assert er.toy("test", 0).classes == ("neu", "hap", "ang", "sad")
    assert len({er.toy("test", fold).data_hash for fold in range(5)}) == 5


@pytest.mark.parametrize("name", ["train", "dev", "test"])
@pytest.mark.parametrize("key", ["asv", "ic", "er"])
def test_a_bare_clip_is_named(key, name):
    task, split = get_task(key), get_task(key).toy(name, 0)
    bare = replace(split.clips[0], labels={"text": "hello"})
    with pytest.raises(LabelMissing, match=f"{bare.id}.*{bare.audio}.*has no label"):
        task.encode([split.clips[1], bare], torch.tensor([10, 10]), 320, split)


@pytest.mark.parametrize(("key", "reached"), [("asv", 20.0), ("ic", 95.0), ("er", 95.0)])
def test_toys_are_learned(key, reached, tmp_path):
    task = get_task(key)
    recipe = Recipe("toy", steps=150, batch=16, lr=1e-3 if key == "asv" else 2e-2, eval_every=50, sizes=task.toy_sizes)
    toy = replace(task, corpora={"toy": Corpus(task.toy, recipe)})
    store, upstream, metric = FeatureStore(tmp_path), TinyUpstream(), task.metrics[0]
    scores = evaluate(fit(toy, upstream, corpus="toy", store=store), upstream, store=store)
    assert metric.better(scores[metric.key], reached)
    first = fit(toy, upstream, corpus="toy", store=store, recipe=replace(recipe, steps=1, lr=0.0))
    assert metric.better(scores[metric.key], evaluate(first, upstream, store=store)[metric.key])
    if key == "asv":
        assert scores["eer_published"] <= scores["eer"]
