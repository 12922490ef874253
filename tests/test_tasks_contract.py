"""Every task and every upstream keeps its promises, by listing; and the checks themselves can fail."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from torch import nn

from superb_lite.heads import FrameLinear
from superb_lite.tasks import get_task, list_tasks
from superb_lite.testing import TinyUpstream, check_task, check_upstream
from superb_lite.types import ContractBroken, Hidden, LabelMissing, UnknownName
from superb_lite.upstreams import list_upstreams

# ------------------------------------------------------------------------------------------- by listing


@pytest.mark.parametrize("key", list_tasks())
def test_task_keeps_its_contract(key):
    scores = check_task(key)
    assert list(scores) == [metric.key for metric in get_task(key).metrics]


@pytest.mark.parametrize("name", [card.name for card in list_upstreams() if card.build is not None])
def test_upstream_keeps_its_contract(name):
    assert check_upstream(name) is None


@pytest.mark.parametrize("key", list_tasks())
def test_task_is_complete(key):
    task = get_task(key)
    assert task.key == key and task.title and task.metrics
    assert task.domain in ("content", "speaker", "semantics", "paralinguistics")
    assert "mini" in task.corpora and (task.key in ("ic", "sf", "er") or "digits" in task.corpora)
    for name, corpus in task.corpora.items():
        assert corpus.recipe.name == name
        assert corpus.recipe.steps % corpus.recipe.eval_every == 0
    text = importlib.import_module(f"superb_lite.tasks.{key}").__doc__
    assert "Source: superb/protocol.md section" in text and "Taught in notebook" in text
    splits = [task.toy(name, 0) for name in ("train", "dev", "test")]
    assert len({split.classes for split in splits}) == 1
    assert len({clip.key for split in splits for clip in split.clips}) == sum(map(len, splits))  # no sound twice


def test_three_tasks_are_there_and_others_are_guessed():
    assert {"ks", "pr", "sid"} <= set(list_tasks())
    assert get_task(get_task("ks")) is get_task("ks")
    with pytest.raises(UnknownName, match="no task is called 'kss'; did you mean 'ks'"):
        get_task("kss")
    with pytest.raises(UnknownName):
        get_task("_shared")


# ------------------------------------------------------------------------------------------- PR by hand


def test_pr_decodes_collapses_and_crops():
    split = get_task("pr").toy("test", 0)
    assert split.classes == ("<pad>", "<eos>", "<unk>", "a", "b", "c", "d")
    path = [0, 3, 3, 0, 3, 4, 1, 5, 5]  # a a-blank-a b <eos>, then c in the padding
    out = nn.functional.one_hot(torch.tensor([path, path]), 7).float()
    got = get_task("pr").decode(out, torch.tensor([7, 3]), 320, split)
    assert got == [["a", "a", "b"], ["a"]]


def test_pr_encodes_with_eos_and_scores_pooled():
    task, split = get_task("pr"), get_task("pr").toy("test", 0)
    clips = tuple(
        replace(clip, labels={"phones": [[phone, None, None] for phone in said]})
        for clip, said in zip(split.clips, ["abc", "d"], strict=False)
    )
    split = replace(split, clips=clips)
    symbols, counts = task.encode(clips, torch.tensor([20, 20]), 320, split)
    assert symbols.tolist() == [[3, 4, 5, 1], [6, 1, 0, 0]]
    assert counts.tolist() == [4, 2]
    # one substitution and one insertion in four phones; averaging per clip would give (33 + 100) / 2
    assert task.score({clips[0].id: list("abd"), clips[1].id: list("dd")}, split) == {"per": 50.0}


def test_a_prediction_for_every_clip_is_needed():
    split = get_task("ks").toy("test", 0)
    with pytest.raises(KeyError):
        get_task("ks").score({}, split)


# ----------------------------------------------------------------------------- the checks can fail: tasks


def quiet_label(clips, lengths, stride, split):
    return (torch.tensor([split.classes.index(clip.labels.get("keyword", "low")) for clip in clips]),)


def from_global_state(dim, split, recipe):
    torch.manual_seed(0)
    return get_task("ks").head(dim, split, recipe)


class Curved(nn.Module):
    """A head with an activation before the mean: not affine in it."""

    def __init__(self, dim, classes):
        super().__init__()
        self.linear = FrameLinear(dim, classes)

    def forward(self, x, lengths):
        out = 5 * self.linear(x, lengths).tanh()
        return out.sum(1) / lengths[:, None]


def by_position(predictions, split):
    hits = [clip.labels["keyword"] == said for clip, said in zip(split.clips, predictions.values(), strict=True)]
    return {"acc": 100.0 * sum(hits) / len(hits)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score": by_position}, "look them up by clip id"),
        ({"score": lambda predictions, split: {"acc": float("nan")}}, "acc = nan"),
        ({"score": lambda predictions, split: {"accuracy": 1.0}}, "has the metrics"),
        ({"score": lambda predictions, split: {"acc": 25.0}}, "expected to beat chance"),
        ({"encode": quiet_label}, "raise LabelMissing"),
        ({"head": from_global_state}, "same head with another seed"),
        ({"head": lambda dim, split, recipe: Curved(dim, len(split.classes))}, "needs pooled=False"),
    ],
)
def test_check_task_finds(fields, message):
    with pytest.raises(ContractBroken, match=message):
        check_task(replace(get_task("ks"), **fields))


def test_check_task_finds_randomness_from_outside():
    def toy(split, fold):
        torch.manual_seed(3)
        return get_task("ks").toy(split, fold)

    with pytest.raises(ContractBroken, match="global random state"):
        check_task(replace(get_task("ks"), toy=toy))


def test_missing_label_names_clip_and_file():
    split = get_task("sid").toy("test", 0)
    bare = replace(split.clips[0], labels={"keyword": "x"})
    with pytest.raises(LabelMissing, match=f"{bare.id}.*{bare.audio}.*no label 'speaker'"):
        get_task("sid").encode([bare], torch.tensor([1]), 320, split)


# ------------------------------------------------------------------------- the checks can fail: upstreams


class Spoilt(TinyUpstream):
    """A TinyUpstream with one promise broken by `how(self, hidden, wavs)`."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, wavs):
        return self.how(self, super().forward(wavs), wavs)


def noisy(self, hidden, wavs):
    return Hidden(hidden.states + self.calls * 1e-3 * (hidden.states != 0), hidden.lengths)


def wakes_up(self, hidden, wavs):
    return Hidden(hidden.states * (0.5 if self.training and self.calls > 2 else 1.0), hidden.lengths)


def hears_mates(self, hidden, wavs):
    return Hidden(hidden.states / hidden.states.abs().max(), hidden.lengths)


def other_length(self, hidden, wavs):
    lengths = hidden.lengths - 1 if len(wavs) > 1 else hidden.lengths
    lengths = lengths.clamp(min=1)
    valid = torch.arange(hidden.states.shape[2]) < lengths[:, None]
    return Hidden(hidden.states * valid[None, :, :, None], lengths)


def scribbles(self, hidden, wavs):
    wavs[0][0] += 1
    return hidden


def rolls_dice(self, hidden, wavs):
    torch.rand(1)
    return hidden


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (noisy, "two answers"),
        (wakes_up, "after train"),
        (hears_mates, "between alone and in a batch"),
        (other_length, "alone and .* in a batch"),
        (scribbles, "changed the waveforms"),
        (rolls_dice, "global random state"),
        (lambda self, h, w: Hidden(h.states + 1, h.lengths), "beyond the valid length"),
        (lambda self, h, w: Hidden(h.states.double(), h.lengths), "expected float32"),
        (lambda self, h, w: Hidden(h.states.clone().requires_grad_(), h.lengths), "with a gradient"),
        (lambda self, h, w: Hidden(h.states * float("nan"), h.lengths), "not finite"),
        (lambda self, h, w: Hidden(h.states[1:], h.lengths), "promised 3 layers"),
        (lambda self, h, w: Hidden(h.states.repeat(1, 1, 2, 1), h.lengths * 2), "correct the stride or the lengths"),
    ],
)
def test_check_upstream_finds(how, message):
    upstream = Spoilt(how)
    with pytest.raises(ContractBroken, match=message):
        check_upstream(upstream.eval() if how is wakes_up else upstream)


def test_check_upstream_finds_weights_that_could_learn():
    upstream = Spoilt(lambda self, hidden, wavs: hidden)
    assert check_upstream(upstream) is None
    upstream.weight.requires_grad_(True)
    with pytest.raises(ContractBroken, match="ask for a gradient"):
        check_upstream(upstream)


@pytest.mark.parametrize(("field", "value"), [("revision", ""), ("dim", 0), ("stride", 320.0), ("name", None)])
def test_check_upstream_finds_bad_attributes(field, value):
    upstream = TinyUpstream()
    setattr(upstream, field, value)
    with pytest.raises(ContractBroken, match=f"{field} is {value!r}"):
        check_upstream(upstream)
