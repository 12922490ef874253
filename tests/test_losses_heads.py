"""SUPERB's featurizer, heads and CTC: stored numbers of the official toolkit, shapes, and what must not matter."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from superb_lite.heads import Featurizer, FrameLinear, MeanPoolLinear
from superb_lite.losses import ctc
from superb_lite.metrics import per
from superb_lite.text import PhoneVocab, collapse
from superb_lite.types import ContractBroken

FIXTURES = Path(__file__).parent / "fixtures"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def stored(request):
    with np.load(FIXTURES / f"head_{request.param}.npz", allow_pickle=False) as arrays:
        return {
            key: torch.from_numpy(value) if value.dtype.kind in "fi" else value for key, value in arrays.items()
        }


def copy_linear(linear, weight, bias):
    linear.weight.data, linear.bias.data = weight.clone(), bias.clone()


# ----------------------------------------------------------------------------------------- featurizer


@pytest.mark.parametrize("stored", ["featurizer"], indirect=True)
def test_weighted_sum_agrees_with_the_official_toolkit(stored):
    states = torch.stack([stored[f"in.hs_{layer}"] for layer in range(5)])
    featurizer = Featurizer(5)
    featurizer.scores.data = stored["in.weights"].clone()
    out = featurizer(states)
    assert_close(out, stored["out.nn.norm0.hs"], **CLOSE)
    out.square().mean().backward()
    assert_close(featurizer.scores.grad, stored["out.nn.norm0.grad_weights_of_mean_square"], **CLOSE)


def test_sum_starts_as_the_plain_average():
    states = torch.arange(24.0).reshape(4, 1, 2, 3)
    featurizer = Featurizer(4)
    assert_close(featurizer(states), states.mean(0))
    assert featurizer.weights() == (0.25, 0.25, 0.25, 0.25)


def test_weights_are_a_softmax_in_layer_order():
    featurizer = Featurizer(3)
    featurizer.scores.data = torch.log(torch.tensor([1.0, 2.0, 5.0]))
    assert featurizer.weights() == pytest.approx((0.125, 0.25, 0.625))


@pytest.mark.parametrize(
    ("layers", "mode", "share"), [(3, "last", (0.0, 0.0, 1.0)), (1, "sum", (1.0,)), (1, "last", (1.0,))]
)
def test_nothing_to_learn(layers, mode, share):
    states = torch.randn(layers, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    featurizer = Featurizer(layers, mode)
    assert list(featurizer.parameters()) == []
    assert_close(featurizer(states), states[-1], rtol=0, atol=0)
    assert featurizer.weights() == share


def test_featurizer_refuses_other_numbers_of_layers():
    with pytest.raises(ContractBroken, match=r"\(13, 1, 5, 8\), expected \(5, batch"):
        Featurizer(5)(torch.zeros(13, 1, 5, 8))
    with pytest.raises(ContractBroken, match="expected"):
        Featurizer(5)(torch.zeros(5, 5, 8))
    with pytest.raises(ValueError, match="'first', expected 'last' or 'sum'"):
        Featurizer(5, "first")
    with pytest.raises(ValueError, match="layers is 0"):
        Featurizer(0)


# ---------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("stored", ["utterance_linear"], indirect=True)
def test_utterance_head_agrees_with_the_official_toolkit(stored):
    head = MeanPoolLinear(20, 7, hidden=16)
    copy_linear(head.project, stored["legacy.projector.weight"], stored["legacy.projector.bias"])
    prefix = "legacy.model.state.post_net.linear"
    copy_linear(head.classify, stored[f"{prefix}.weight"], stored[f"{prefix}.bias"])
    logits = head(stored["in.feats_padded"], stored["in.lens"])
    assert_close(logits, stored["out.legacy.logits"], **CLOSE)
    loss = functional.cross_entropy(logits, stored["in.labels"])
    assert_close(loss, stored["loss.legacy"], **CLOSE)
    loss.backward()
    assert_close(head.project.weight.grad, stored["grad.projector.weight"], **CLOSE)


@pytest.fixture(params=[MeanPoolLinear, FrameLinear])
def head(request):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return request.param(6, 4)


def batch(frames=9, lengths=(9, 4)):
    x = torch.randn(2, frames, 6, generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(lengths):
        x[row, length:] = 0
    return x, torch.tensor(lengths)


def test_default_width_is_256_and_there_is_no_activation(head):
    assert head.project.out_features == 256
    assert [type(module) for module in head.children()] == [nn.Linear, nn.Linear]
    x, lengths = batch(lengths=(9, 9))
    affine = head(x, lengths) - head(torch.zeros_like(x), lengths)
    assert_close(head(-2 * x, lengths) - head(torch.zeros_like(x), lengths), -2 * affine, rtol=1e-4, atol=1e-5)


def test_padding_and_batch_mates_do_not_matter(head):
    x, lengths = batch()
    out = head(x, lengths)
    alone = head(x[1:, :4], lengths[1:])
    assert_close(out[1] if out.ndim == 2 else out[1, :4], alone[0])
    x[1, 4:] = torch.nan  # whatever lies in the padding
    assert_close(head(x, lengths), out)


def test_frame_head_is_zero_in_the_padding(head):
    if isinstance(head, FrameLinear):
        out = head(*batch()).detach()
        assert out.shape == (2, 9, 4)
        assert float(out[1, 4:].abs().max()) == 0.0
        assert float(out[1, :4].abs().min()) > 0.0


def test_mean_pool_head_sees_only_the_time_mean(head):
    if isinstance(head, MeanPoolLinear):
        x, lengths = batch()
        means = x.sum(1, keepdim=True) / lengths[:, None, None]
        assert_close(head(means, torch.ones(2, dtype=torch.int64)), head(x, lengths))


@pytest.mark.parametrize("lengths", [(18, 8), (9, 0)])
def test_lengths_that_do_not_fit_are_refused(head, lengths):
    x, _ = batch()
    with pytest.raises(ContractBroken, match="lengths go from"):
        head(x, torch.tensor(lengths))


def test_wrong_shapes_are_refused(head):
    x, lengths = batch()
    with pytest.raises(ContractBroken, match=r"lengths \(1,\)"):
        head(x, lengths[:1])
    with pytest.raises(ContractBroken, match="expected .batch, frames, dim."):
        head(x[0], lengths)


# ------------------------------------------------------------------------------------------------ CTC


@pytest.mark.parametrize("stored", ["pr_linear_ctc"], indirect=True)
def test_phone_recogniser_agrees_with_the_official_toolkit(stored):
    vocab = PhoneVocab(tuple(stored["vocab"].tolist()))
    refs = [transcript.split() for transcript in stored["transcripts"].tolist()]
    label_lengths = stored["in.label_lens"]
    for row, ref in enumerate(refs):
        assert vocab.ids(ref) == stored["in.labels_padded"][row, : label_lengths[row]].tolist()
    head = FrameLinear(14, len(vocab), hidden=12)
    copy_linear(head.project, stored["state.projector.weight"], stored["state.projector.bias"])
    copy_linear(head.classify, stored["state.model.linear.weight"], stored["state.model.linear.bias"])
    x, lengths = stored["in.feats_padded"], stored["in.lens"]
    out = head(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        assert_close(out[row, :length], stored["out.logits"][row, :length], **CLOSE)
    loss = ctc(out, lengths, stored["in.labels_padded"], label_lengths)
    assert_close(loss, stored["loss.ctc"], **CLOSE)
    loss.backward()
    assert_close(head.project.weight.grad, stored["grad.projector.weight"], rtol=1e-4, atol=1e-4)
    # The official hypotheses include what the head says in the padding: decode the stored logits, padding and all.
    said = [vocab.phones(collapse(row.argmax(-1))) for row in stored["out.logits"]]
    assert [" ".join(phones) for phones in said] == stored["out.hypothesis"].tolist()
    assert per(refs, said) == pytest.approx(100 * float(stored["out.per"]))


def test_ctc_by_hand():
    # Two frames, blank and one symbol at even odds: the paths "a a", "blank a", "a blank" say "a": 3/4 of all.
    out, lengths = torch.zeros(1, 2, 2), torch.tensor([2])
    loss = ctc(out, lengths, torch.tensor([[1]]), torch.tensor([1]))
    assert float(loss) == pytest.approx(-math.log(0.75), abs=1e-6)
    # "a a" needs a blank between: one of eight paths of three frames; the mean is per target symbol.
    loss = ctc(torch.zeros(1, 3, 2), torch.tensor([3]), torch.tensor([[1, 1]]), torch.tensor([2]))
    assert float(loss) == pytest.approx(math.log(8) / 2, abs=1e-6)


def test_ctc_ignores_padding_of_frames_and_targets():
    out = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    lengths, sizes = torch.tensor([6, 3]), torch.tensor([2, 1])
    loss = ctc(out, lengths, torch.tensor([[1, 2], [3, 0]]), sizes)
    out[1, 3:] = 50.0
    assert_close(ctc(out, lengths, torch.tensor([[1, 2], [3, 4]]), sizes), loss)


def test_ctc_counts_an_impossible_clip_as_zero():
    out = torch.zeros(2, 2, 3)
    lengths, targets = torch.tensor([2, 2]), torch.tensor([[1, 0, 0], [1, 2, 1]])
    both = ctc(out, lengths, targets, torch.tensor([1, 3]))
    alone = ctc(out[:1], lengths[:1], targets[:1], torch.tensor([1]))
    assert_close(both, alone / 2)


def test_ctc_refuses_lengths_in_samples_and_wrong_shapes():
    out, targets = torch.zeros(1, 4, 3), torch.tensor([[1]])
    with pytest.raises(ContractBroken, match="lengths up to 1280 of 4 frames"):
        ctc(out, torch.tensor([1280]), targets, torch.tensor([1]))
    with pytest.raises(ContractBroken, match=r"targets \(1,\)"):
        ctc(out, torch.tensor([4]), targets[0], torch.tensor([1]))
