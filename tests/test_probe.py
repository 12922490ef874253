"""One loop for every task: exact on means, repeatable, honest about dev and test, and red when sabotaged."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from superb_lite import batches
from superb_lite.batches import batch_order
from superb_lite.features import FeatureStore
from superb_lite.heads import Featurizer
from superb_lite.probe import evaluate, fit, predict, shuffled_labels
from superb_lite.tasks import get_task
from superb_lite.testing import TOY_RECIPE, TinyUpstream
from superb_lite.types import ContractBroken, Corpus, Hidden, LabelMissing, Metric, Recipe, UnknownName

SHORT = replace(TOY_RECIPE, steps=40, eval_every=20)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FeatureStore(tmp_path_factory.mktemp("features"))


def toy(key, recipe=TOY_RECIPE, change=None, **fields):
    """A task whose corpus "toy" is its generated data, perhaps changed: change(split) -> split."""
    task = get_task(key)

    def load(split, fold):
        found = task.toy(split, fold)
        return found if change is None else change(found)

    return replace(task, corpora={"toy": Corpus(load, recipe)}, **fields)


def train(task, store, upstream=None, **options):
    return fit(task, TinyUpstream() if upstream is None else upstream, corpus="toy", store=store, **options)


def weights(probe):
    return torch.cat([value.flatten() for value in (*probe.head.state_dict().values(), probe.featurizer.scores)])


# ------------------------------------------------------------------------------------------------ means


@pytest.mark.parametrize("key", ["ks", "sid"])
def test_training_on_means_is_training_on_frames(key):
    """Same logits, same loss, same gradients of head and layer weights: the head is affine in the time mean."""
    task = get_task(key)
    split = task.toy("train", 0)
    generator = torch.Generator().manual_seed(0)
    head = task.head(24, split, task.published).double()
    featurizer = Featurizer(3, "sum").double()
    featurizer.scores.data.copy_(torch.tensor([0.3, -0.7, 0.1]))
    lengths = torch.tensor([30, 1, 17, 8])
    frames = torch.randn(3, 4, 30, 24, generator=generator, dtype=torch.float64)
    for place, length in enumerate(lengths.tolist()):
        frames[:, place, length:] = 0
    means = frames.sum(2, keepdim=True) / lengths[None, :, None, None]
    targets = task.encode(split.clips[:4], lengths, 320, split)
    outcome = []
    for states, counts in ((frames, lengths), (means, torch.ones(4, dtype=torch.int64))):
        out = head(featurizer(states), counts)
        loss = task.loss(head, out, counts, targets)
        gradients = torch.autograd.grad(loss, [*head.parameters(), *featurizer.parameters()])
        outcome.append([out, loss, *gradients])
    assert len(outcome[0]) == 7
    for ours, theirs in zip(*outcome, strict=True):
        assert ours.abs().sum() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_whole_fit_on_means_and_on_frames_agree(store):
    pooled, framed = toy("sid", SHORT), toy("sid", SHORT, pooled=False)
    one, other = train(pooled, store), train(framed, store)
    losses = [torch.tensor([row[1] for row in probe.history]) for probe in (one, other)]
    torch.testing.assert_close(*losses, rtol=5e-2, atol=5e-3)  # float16 frames, and bucketed batches differ
    scores = [evaluate(probe, TinyUpstream(), store=store)["acc"] for probe in (one, other)]
    assert abs(scores[0] - scores[1]) < 7


# ----------------------------------------------------------------------------------------------- seeds


@pytest.mark.parametrize("key", ["ks", "pr"])
def test_same_seed_same_bits_other_seed_other_head(store, key):
    task = toy(key, SHORT)
    first, again, other = (train(task, store, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(weights(first), weights(again))
    assert first.history == again.history
    assert not torch.equal(weights(first), weights(other))


def test_global_randomness_is_neither_used_nor_changed(store):
    task = toy("ks", SHORT)
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = train(task, store)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    torch.manual_seed(2)
    assert torch.equal(weights(first), weights(train(task, store)))


@pytest.mark.parametrize(
    "change",
    [{"steps": 39}, {"batch": 8}, {"lr": 5e-3}, {"eval_every": 15}, {"clip_norm": 1e-8}],
    ids=lambda change: next(iter(change)),
)
def test_every_field_of_the_recipe_matters(store, change):
    plain = train(toy("pr", SHORT), store)
    changed = train(toy("pr"), store, recipe=replace(SHORT, **change))
    assert plain.history != changed.history


# ------------------------------------------------------------------------------------------------ loop


def test_best_dev_score_is_kept(store):
    scores = iter([10.0, 90.0, 50.0])
    task = toy("ks", replace(SHORT, steps=60), score=lambda predictions, split: {"acc": next(scores)})
    probe = train(task, store)
    assert [(step, dev) for step, _, dev in probe.history] == [(20, 10.0), (40, 90.0), (60, 50.0)]
    assert probe.dev == 90.0
    forty = train(toy("ks", SHORT, score=lambda predictions, split: {"acc": 1.0}), store)
    sixty = train(toy("ks", replace(SHORT, steps=60, eval_every=60), score=lambda p, s: {"acc": 1.0}), store)
    assert not torch.equal(weights(probe), weights(sixty))
    assert not torch.equal(weights(forty), weights(sixty))
    at_forty = train(toy("ks", replace(SHORT, eval_every=40), score=lambda p, s: {"acc": 1.0}), store)
    assert torch.equal(weights(probe), weights(at_forty))


def test_lower_is_better_for_error_rates(store):
    scores = iter([90.0, 10.0])
    probe = train(toy("pr", SHORT, score=lambda predictions, split: {"per": next(scores)}), store)
    assert probe.dev == 10.0


def test_heads_learn_on_one_thread_without_denormals_and_leave_both_as_they_were(store):
    """Also after a dev score: forgetting it there once made LSTMs on raw Fbank nine times slower."""
    task, tiny = get_task("ks"), torch.tensor([1e-40])
    seen = []

    def loss(*args):
        seen.append((torch.get_num_threads(), float((tiny * 1.0).item())))
        return task.loss(*args)

    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        train(toy("ks", SHORT, loss=loss), store)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert len(seen) == SHORT.steps and set(seen) == {(1, 0.0)}
    assert (tiny * 1.0).item() > 0


def test_update_with_a_broken_gradient_is_skipped(store):
    plain = get_task("ks").loss
    calls = []

    def loss(head, out, lengths, targets):
        calls.append(len(out))
        return plain(head, out, lengths, targets) * (float("nan") if len(calls) == 7 else 1.0)

    probe = train(toy("ks", SHORT, loss=loss), store)
    assert probe.skipped == 1 and len(calls) == 40
    assert torch.isfinite(weights(probe)).all()
    assert train(toy("ks", SHORT), store).skipped == 0


def test_fit_never_asks_for_test(store):
    asked = []

    def note(split):
        asked.append(split.name)
        return split

    probe = train(toy("ks", SHORT, change=note), store)
    assert sorted(asked) == ["dev", "train"]
    evaluate(probe, TinyUpstream(), store=store)
    assert sorted(asked) == ["dev", "test", "train"]


def test_progress_reaches_the_end(store):
    heard = []
    train(toy("ks", SHORT), store, progress=lambda *said: heard.append(said))
    assert heard == [("ks on tiny", 20, 40), ("ks on tiny", 40, 40)]


def test_batches_cover_an_epoch_once_and_hold_similar_lengths():
    lengths = torch.randint(10, 500, (103,), generator=torch.Generator().manual_seed(0))
    order = batch_order(lengths, 10, torch.Generator().manual_seed(5))
    epochs = [[next(order) for _ in range(10)] for _ in range(2)]
    for epoch in epochs:
        seen = torch.cat(epoch).tolist()
        assert len(set(seen)) == 100
        assert max(int(lengths[b].max() - lengths[b].min()) for b in epoch) < 150
    assert [b.tolist() for b in epochs[0]] != [b.tolist() for b in epochs[1]]
    first = next(batch_order(lengths, 10, torch.Generator().manual_seed(5)))
    assert torch.equal(first, epochs[0][0])
    few = next(batch_order(lengths[:4], 10, torch.Generator().manual_seed(5)))
    assert sorted(few.tolist()) == [0, 1, 2, 3]


def test_batch_mates_do_not_change_a_prediction(store, monkeypatch):
    probe = train(toy("pr"), store)
    together = predict(probe, TinyUpstream(), store=store)
    monkeypatch.setattr(batches, "EVAL_FRAMES", 1)
    assert predict(probe, TinyUpstream(), store=store) == together
    assert list(together) == [clip.id for clip in get_task("pr").toy("test", 0).clips]


# ------------------------------------------------------------------------------------------------ layers


class OneGoodLayer(TinyUpstream):
    """Three layers, all noughts but the first."""

    name = "onegood"

    def forward(self, wavs):
        hidden = super().forward(wavs)
        hidden.states[1:] = 0
        return hidden


def test_last_sees_the_last_layer_and_sum_finds_the_good_one(store):
    last = train(toy("ks"), store, OneGoodLayer(), layers="last")
    assert last.layer_weights == (0.0, 0.0, 1.0)
    assert evaluate(last, OneGoodLayer(), store=store)["acc"] == 25.0
    both = train(toy("ks"), store, OneGoodLayer(), layers="sum")
    assert evaluate(both, OneGoodLayer(), store=store)["acc"] >= 90
    assert both.layer_weights[0] == max(both.layer_weights) > 0.4
    assert sum(both.layer_weights) == pytest.approx(1)


@pytest.mark.parametrize("key", ["ks", "pr"])
def test_last_is_the_featurizer_in_its_mode_last(store, key):
    """The loop reads the last layer only; a probe used by hand on all layers must say the same."""
    probe = train(toy(key), store, layers="last")
    clip = get_task(key).toy("test", 0).clips[0]
    (array,) = store.get(TinyUpstream(), [clip], pooled=probe.task.pooled)
    states = torch.tensor(np.array(array)).float()[:, None]
    lengths = torch.tensor([states.shape[2]])
    with torch.no_grad():
        out = probe.head(probe.featurizer(states), lengths)
    by_hand = probe.task.decode(out, lengths, 320, get_task(key).toy("test", 0))[0]
    assert predict(probe, TinyUpstream(), store=store)[clip.id] == by_hand


# -------------------------------------------------------------------------------------------- bad input


def without_label(name):
    def change(split):
        bare = replace(split.clips[2], labels={})
        return replace(split, clips=(*split.clips[:2], bare, *split.clips[3:])) if split.name == name else split

    return change


@pytest.mark.parametrize("key", ["ks", "sid", "pr"])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_missing_label_is_told_before_anything_is_computed(tmp_path, key, split):
    clip = get_task(key).toy(split, 0).clips[2]
    upstream = TinyUpstream()
    with pytest.raises(LabelMissing, match=f"{clip.id}.*{clip.audio}"):
        train(toy(key, change=without_label(split)), FeatureStore(tmp_path), upstream)
    assert upstream.calls == 0


@pytest.mark.parametrize(
    ("key", "strange"), [("ks", "banana"), ("sid", "nobody"), ("pr", [["zh", 0.0, 0.1]]), ("pr", [])]
)
def test_label_outside_the_classes_names_clip_and_file(store, key, strange):
    label = {"ks": "keyword", "sid": "speaker", "pr": "phones"}[key]
    clip = get_task(key).toy("train", 0).clips[0]

    def change(split):
        odd = replace(split.clips[0], labels={label: strange})
        return replace(split, clips=(odd, *split.clips[1:])) if split.name == "train" else split

    with pytest.raises(LabelMissing, match=f"{clip.id}.*{clip.audio}.* is not one of the [47] classes"):
        train(toy(key, change=change), store)


def test_empty_split_and_doubled_ids_are_refused(store):
    with pytest.raises(ContractBroken, match="train split of toy has no clips"):
        train(toy("ks", change=lambda split: replace(split, clips=())), store)
    with pytest.raises(ContractBroken, match="have the id 'ks-train-0-low-0'"):
        train(toy("ks", change=lambda split: replace(split, clips=split.clips + split.clips[:1])), store)


def test_wrong_names_suggest_the_nearest(store):
    with pytest.raises(UnknownName, match="did you mean 'sum'"):
        train(toy("ks"), store, layers="summ")
    with pytest.raises(UnknownName, match="did you mean 'toy'"):
        fit(toy("ks"), TinyUpstream(), corpus="toyy", store=store)
    with pytest.raises(UnknownName, match="did you mean 'test'"):
        predict(train(toy("ks", SHORT), store), TinyUpstream(), "tset", store=store)


def test_probe_refuses_other_weights_and_other_classes(store):
    probe = train(toy("ks", SHORT), store)
    with pytest.raises(ContractBroken, match="seed0.*seed1"):
        predict(probe, TinyUpstream(seed=1), store=store)
    with pytest.raises(ContractBroken, match="classes"):
        predict(probe, TinyUpstream(), replace(get_task("ks").toy("test", 0), classes=("a", "b")), store=store)


# --------------------------------------------------------------------------------------------- sabotage


@pytest.mark.parametrize(("key", "good", "chance"), [("ks", 95, 45), ("sid", 95, 45)])
def test_shuffled_labels_bring_classes_to_chance(store, key, good, chance):
    right = evaluate(train(toy(key), store), TinyUpstream(), store=store)["acc"]
    wrong = evaluate(train(toy(key, change=shuffled_labels), store), TinyUpstream(), store=store)["acc"]
    assert right >= good
    assert wrong <= chance  # four classes: 25 on average


def test_shuffled_labels_bring_phones_to_chance(store):
    right = evaluate(train(toy("pr"), store), TinyUpstream(), store=store)["per"]
    wrong = evaluate(train(toy("pr", change=shuffled_labels), store), TinyUpstream(), store=store)["per"]
    assert right <= 15
    assert wrong >= 55


def test_two_swapped_labels_cost_their_classes(store):
    swap = {"low": "high", "high": "low"}

    def change(split):
        words = [clip.labels["keyword"] for clip in split.clips]
        clips = [
            replace(clip, labels={"keyword": swap.get(word, word)})
            for clip, word in zip(split.clips, words, strict=True)
        ]
        return replace(split, clips=tuple(clips)) if split.name == "train" else split

    task = toy("ks", change=change)
    assert evaluate(train(task, store), TinyUpstream(), store=store)["acc"] == 50.0


def test_dropped_layer_is_noticed(store):
    class Dropped(TinyUpstream):
        name = "dropped"

        def forward(self, wavs):
            hidden = super().forward(wavs)
            return Hidden(hidden.states[1:], hidden.lengths)

    with pytest.raises(ContractBroken, match="2 layers .* promised 3"):
        train(toy("ks"), store, Dropped())


def test_repr_is_one_short_line(store):
    probe = train(toy("ks", SHORT), store)
    assert repr(probe).startswith("<Probe: ks on tiny (sum), corpus toy, seed 0, dev acc ")
    assert probe.seconds > 0
    assert isinstance(probe.recipe, Recipe)


# ---------------------------------------------------------------------------- recipes and tasks of other kinds


def test_accumulating_is_a_larger_batch(store):
    """With every clip in one update, two half batches give the same gradient as one whole batch."""
    task = toy("ks")
    clips = len(task.corpora["toy"].load("train", 0))
    whole = replace(SHORT, steps=1, batch=clips, lr=0.1, eval_every=1, optimizer="adamw", clip_norm=1e9)
    halves = replace(whole, batch=clips // 2, accumulate=2)
    heads = [fit(task, TinyUpstream(), corpus="toy", recipe=r, store=store).head for r in (whole, halves)]
    one, two = (torch.cat([weight.flatten() for weight in head.parameters()]) for head in heads)
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_cropping_trains_on_stretches_of_frames(store, monkeypatch):
    task, seen = toy("ks"), []

    def loss(head, out, lengths, targets):
        seen.append(int(lengths.max()))
        return get_task("ks").loss(head, out, lengths, targets)

    recipe = replace(SHORT, steps=4, eval_every=4, crop_sec=0.1)
    fit(replace(task, loss=loss), TinyUpstream(), corpus="toy", recipe=recipe, store=store)
    assert set(seen) == {5}, "0.1 s is five frames of 20 ms, although KS could train on means"
    seen.clear()
    fit(replace(task, loss=loss), TinyUpstream(), corpus="toy", recipe=replace(recipe, crop_sec=60.0), store=store)
    assert set(seen) == {1}, "no clip is longer than a minute: means"


def test_what_is_chosen_on_dev_reaches_the_score_on_test(store):
    def settle(predictions, split):
        assert split.name == "dev" and set(predictions) == {clip.id for clip in split.clips}
        return {"bonus": 1000.0}

    def score(predictions, split, bonus=0.0):
        return {"acc": get_task("ks").score(predictions, split)["acc"] + bonus}

    task = replace(toy("ks"), settle=settle, score=score)
    probe = fit(task, TinyUpstream(), corpus="toy", store=store)
    assert probe.settings == {"bonus": 1000.0} and probe.dev <= 100
    assert evaluate(probe, TinyUpstream(), store=store)["acc"] >= 1000


def test_snapshots_report_the_best_head_on_the_split_itself(store):
    metrics = (*get_task("ks").metrics, Metric("acc_published", "best of all heads", True, in_table=False))
    task = replace(toy("ks"), snapshots=True, metrics=metrics)
    probe = fit(task, TinyUpstream(), corpus="toy", recipe=replace(SHORT, eval_every=5), store=store)
    assert len(probe.snapshots) == len(probe.history) == SHORT.steps // 5
    before = {name: weight.clone() for name, weight in probe.head.state_dict().items()}
    scores = evaluate(probe, TinyUpstream(), store=store)
    assert scores["acc_published"] >= scores["acc"]
    assert all(torch.equal(weight, before[name]) for name, weight in probe.head.state_dict().items())


def test_a_task_without_a_head_chooses_its_layer_on_dev(store):
    """Layer 1 holds the answer on dev; layer 2 would be better on test, and must not be taken."""

    def load(name, fold):
        split = get_task("ks").toy(name, fold)
        first, second = split.clips[0].id, split.clips[1].id
        return replace(split, trials=((first, second, True),))

    def compare(features, split):
        sizes = {key: float(value.square().sum()) for key, value in features.items()}
        return {(first, second): sizes[first] for first, second, _ in split.trials}

    def score(predictions, split):
        (value,) = predictions.values()
        return {"acc": -abs(value - wanted[split.name])}

    arrays = {
        name: store.get(TinyUpstream(), load(name, 0).clips[:1], pooled=False)[0].astype(np.float32)
        for name in ("dev", "test")
    }
    wanted = {name: float(np.square(arrays[name][layer]).sum()) for name, layer in (("dev", 1), ("test", 2))}
    task = replace(
        get_task("ks"), corpora={"toy": Corpus(load, SHORT)}, score=score, compare=compare, pooled=False, head=None,
        encode=None, loss=None, decode=None,
    )  # fmt: skip
    probe = fit(task, TinyUpstream(), corpus="toy", store=store)
    assert probe.layer_weights == (0.0, 1.0, 0.0) and [row[0] for row in probe.history] == [0, 1, 2]
    assert evaluate(probe, TinyUpstream(), store=store)["acc"] < -1e-3
    last = fit(task, TinyUpstream(), corpus="toy", layers="last", store=store)
    assert last.layer_weights == (0.0, 0.0, 1.0)
    assert evaluate(last, TinyUpstream(), store=store)["acc"] == pytest.approx(0, abs=1e-3)


def test_a_trial_must_name_clips_of_its_split(store):
    def load(name, fold):
        return replace(get_task("ks").toy(name, fold), trials=(("nobody", "nobody", True),))

    task = replace(get_task("ks"), corpora={"toy": Corpus(load, SHORT)})
    with pytest.raises(ContractBroken, match="names 'nobody', which is no clip"):
        fit(task, TinyUpstream(), corpus="toy", store=store)
