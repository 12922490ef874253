"""wav2vec and vq-wav2vec: the official states, exact per clip, files read safely, objectives that learn."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from superb_lite import parity
from superb_lite.testing import check_upstream
from superb_lite.types import CheckpointRefused, SuperbLiteError
from superb_lite.upstreams import wav2vec
from superb_lite.upstreams._pretext import load_tiny
from superb_lite.upstreams.wav2vec import (
    Aggregator,
    Extractor,
    GumbelQuantizer,
    KmeansQuantizer,
    Network,
    Wav2Vec,
    Wav2VecObjective,
)

OFFICIAL = Path(__file__).resolve().parents[2] / "shared" / "parity" / "upstreams"
CONVS = [(24, 10, 5), (24, 8, 4), (24, 4, 2), (24, 4, 2), (24, 4, 2), (24, 1, 1)]
MORE = [(24, 2, 1), (24, 3, 1), (24, 4, 1)]


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def waves(*samples, seed=0):
    generator = random(seed)
    return [0.1 * torch.randn(n, generator=generator) * torch.linspace(0.1, 1, n) for n in samples]


def melodies(clips, samples):
    """A tone of another height every 50 ms."""
    steps = torch.rand(clips, samples // 800, generator=random()) * 0.9 + 0.1
    return 0.3 * torch.sin(steps.repeat_interleave(800, 1).cumsum(1))


def quantizer(kind, activation=None):
    if kind == "kmeans":
        return KmeansQuantizer(24, 12, 2, shared=True)
    return GumbelQuantizer(24, 12, 2, 2, activation=activation) if kind == "gumbel" else None


def network(kind="none", seed=0, activation=None, extract=None, aggregate=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        extractor = Extractor(CONVS, activation, **(extract or {}))
        aggregator = Aggregator(MORE, 24, activation, **(aggregate or {}))
        net = Network(extractor, aggregator, 3, quantizer(kind, activation))
        for value in net.parameters():  # norms too: a forgotten one must show
            value.data += 0.1 * torch.randn(value.shape)
        return net


def objective(codes=0, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Wav2VecObjective(wav2vec.tiny_network(codes), **options)


def write(folder, net, kind="none", *, fairseq=False, name="official.pt", **changes):
    """A file as the benchmark converts them, or as fairseq writes them."""
    weights = {}
    for key, value in net.state_dict().items():
        key = re.sub(r"^extractor\.convs\.(\d+)", r"feature_extractor.conv_layers.\1.0", key)
        key = re.sub(r"^extractor\.norms\.(\d+)", r"feature_extractor.conv_layers.\1.2", key)
        key = re.sub(r"^aggregator\.convs\.(\d+)", r"feature_aggregator.conv_layers.\1.1", key)
        key = re.sub(r"^aggregator\.norms\.(\d+)", r"feature_aggregator.conv_layers.\1.3", key)
        key = re.sub(r"^guess\.", "wav2vec_predictions.project_to_steps.", key)
        weights[re.sub(r"^quantizer\.", "vector_quantizer.", key)] = value
    config = {
        "infonce": False, "prediction_steps": 3, "num_negatives": 10, "skip_connections_agg": True,
        "residual_scale": 0.5, "log_compression": True, "offset": "auto", "activation": "relu", "no_conv_bias": False,
        "agg_zero_pad": False, "aggregator": "cnn", "conv_feature_layers": str(CONVS[:-1]) + " + [(24, 1, 1)] * 1",
        "conv_aggregator_layers": str(MORE), "vq_type": kind, "vq_vars": 12, "vq_groups": 2, "vq_depth": 2,
        "combine_groups": kind == "kmeans", "vq_temp": (2.0, 0.5, 0.999995), **changes,
    }  # fmt: skip
    ours = {"task_cfg": {"normalize": False}, "model_cfg": config, "model_weight": weights}
    theirs = {"args": argparse.Namespace(arch="wav2vec", **config), "model": weights, "extra_state": {"epoch": 1}}
    torch.save(theirs if fairseq else ours, folder / name)
    return folder / name


# ------------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("name", ["wav2vec", "vq_wav2vec", "vq_wav2vec_kmeans"])
def test_the_official_states(name):
    folder = OFFICIAL / name
    if not folder.is_dir():
        pytest.skip(f"no reference states at {folder}")
    agreement = parity.compare_folder(folder)
    assert agreement.states == 15 and agreement.gap < 2e-4


@pytest.mark.parametrize("name", ["vq_wav2vec", "vq_wav2vec_kmeans"])
def test_the_official_codes(name):
    folder = OFFICIAL / name
    if not folder.is_dir():
        pytest.skip(f"no reference states at {folder}")
    stored = np.load(folder / "io.npz")
    quantizer = wav2vec.read_wav2vec(folder / "checkpoint.pt", "vq_wav2vec").network.quantizer
    z = torch.from_numpy(stored["batch.z"])
    z = z if z.shape[1] == 24 else z.transpose(1, 2)
    with torch.no_grad():
        assert np.array_equal(quantizer.choose(z).numpy(), stored["batch.codeids"])
        assert np.abs(quantizer(z).transpose(1, 2).numpy() - stored["batch.codewords"]).max() < 1e-6


@pytest.mark.parametrize("name", ["wav2vec", "vq_wav2vec"])
def test_as_many_parameters_as_published(name):
    card = next(card for card in wav2vec.CARDS if card.name == name)
    with torch.device("meta"):
        if name == "wav2vec":
            net = Network()
        else:
            net = Network(Extractor((*wav2vec.EXTRACTOR, (512, 1, 1))), quantizer=GumbelQuantizer())
    assert sum(p.numel() for p in net.parameters()) == card.parameters
    upstream = Wav2Vec("some", net, "0")
    assert (upstream.layers, upstream.dim, upstream.stride) == (card.layers, card.dim, card.stride)


# ------------------------------------------------------------------------------------------ exact per clip


@pytest.mark.parametrize(("kind", "activation", "extract", "aggregate"), [
    ("none", None, {}, {}), ("gumbel", None, {}, {}), ("kmeans", nn.GELU(), {}, {}),
    ("none", nn.GELU(), {"compress": False, "affine": False}, {"affine": False, "bias": False}),
    ("none", None, {}, {"skip": False, "zero_pad": True}),
])  # fmt: skip
def test_batch_mates_do_not_matter(kind, activation, extract, aggregate):
    net = network(kind, activation=activation, extract=extract, aggregate=aggregate)
    upstream, wavs = Wav2Vec("some", net, "0"), waves(16000, 800, 33120, 20800)
    together = upstream(wavs)
    assert together.lengths.tolist() == [98, 3, 205, 128] and together.states.shape[0] == upstream.layers == 4
    for n, wav in enumerate(wavs):
        alone = upstream([wav]).states
        torch.testing.assert_close(together.states[:, n, : alone.shape[2]], alone[:, 0], atol=1e-5, rtol=0)
        with torch.no_grad():  # alone, nothing leaks: ours and the official states are the same
            published = upstream.published(wav[None], torch.tensor([len(wav)]))
        torch.testing.assert_close(published, alone, atol=1e-5, rtol=0)


def test_the_official_padding_leaks_and_ours_does_not():
    upstream, wavs = Wav2Vec("some", network(), "0"), waves(9600, 16000)
    with torch.no_grad():
        padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
        published = upstream.published(padded, torch.tensor([9600, 16000]))
    alone = upstream(wavs[:1]).states[:, 0]
    assert (published[:, 0, : alone.shape[1]] - alone).abs().amax((1, 2)).min() > 0.05


def test_the_first_future_frame_shares_no_sample_with_this_one():
    assert Extractor().ahead == 3  # 465 samples, a frame every 160
    assert wav2vec.tiny_network().extractor.ahead == 2  # 560 samples, a frame every 320


def test_the_tiny_ones_keep_the_contract():
    sizes = {0: 547_328, 64: 506_368}
    for codes, size in sizes.items():
        net = objective(codes).network
        check_upstream(Wav2Vec("tiny", net, "0", 320))
        assert sum(p.numel() for p in net.parameters()) == size


def test_the_tiny_ones_read_their_weights(tmp_path):
    for codes, name in ((0, "tiny_wav2vec"), (64, "tiny_vq_wav2vec")):
        net = objective(codes, seed=3).network
        safetensors.torch.save_file(net.state_dict(), tmp_path / "tiny.safetensors")
        upstream = load_tiny(name, wav2vec.PRETEXTS[name], tmp_path / "tiny.safetensors")
        assert (upstream.name, upstream.stride) == (name, 320)
        assert torch.equal(upstream.network.guess.weight, net.guess.weight)


# ------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("fairseq", [False, True])
@pytest.mark.parametrize("kind", ["none", "gumbel", "kmeans"])
def test_an_official_file_is_read(tmp_path, kind, fairseq):
    net = network(kind)
    name = "wav2vec" if kind == "none" else "vq_wav2vec"
    upstream = wav2vec.read_wav2vec(write(tmp_path, net, kind, fairseq=fairseq), name)
    assert upstream.name == name and len(upstream.revision) == 12
    wavs = waves(16000, 5000)
    torch.testing.assert_close(upstream(wavs).states, Wav2Vec("same", net, "0")(wavs).states, atol=0, rtol=0)


def test_other_settings_are_followed(tmp_path):
    net = network(
        activation=nn.GELU(), extract={"compress": False, "affine": False},
        aggregate={"affine": False, "bias": False, "skip": False, "zero_pad": True, "scale": 0.25},
    )  # fmt: skip
    path = write(
        tmp_path, net, activation="gelu", log_compression=False, non_affine_group_norm=True, no_conv_bias=True,
        skip_connections_agg=False, agg_zero_pad=True, residual_scale=0.25,
    )  # fmt: skip
    (wav,) = waves(16000)
    torch.testing.assert_close(wav2vec.read_wav2vec(path)([wav]).states, Wav2Vec("same", net, "0")([wav]).states)


def test_a_code_book_of_depth_one_is_read(tmp_path):
    net = network("gumbel")
    net.quantizer = GumbelQuantizer(24, 12, 2, depth=1)
    path = write(tmp_path, net, "gumbel", vq_depth=1)
    content = torch.load(path)
    weights = content["model_weight"]
    for part in ("weight", "bias"):  # there it is no list
        weights[f"vector_quantizer.weight_proj.{part}"] = weights.pop(f"vector_quantizer.weight_proj.0.{part}")
    torch.save(content, path)
    read = wav2vec.read_wav2vec(path, "vq_wav2vec").network.quantizer
    assert torch.equal(read.weight_proj[0].weight, net.quantizer.weight_proj[0].weight)


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c.pop("model_weight"), "has no 'model_weight'"),
    (lambda c: c.pop("model_cfg"), "has no 'args'"),
    (lambda c: c.update(model_cfg=3), "settings are a int"),
    (lambda c: c["model_cfg"].pop("conv_aggregator_layers"), "no 'conv_aggregator_layers'"),
    (lambda c: c.update(model_weight={"a": 1}), "weights are a dict"),
    (lambda c: c["model_weight"].pop("wav2vec_predictions.project_to_steps.bias"), r"another network .*guess\.bias"),
    (lambda c: c["model_weight"].update({"extra.weight": torch.zeros(3)}), r"another network .*extra\.weight"),
    (lambda c: c["model_cfg"].update(conv_feature_layers="__import__('os')"), "conv_feature_layers is"),
    (lambda c: c["model_cfg"].update(conv_feature_layers="[(24, 0, 5)]"), "layer without size"),
    (lambda c: c["model_cfg"].update(conv_aggregator_layers="[(24, 2, 2)]"), r"strides \[2\], expected 1"),
    (lambda c: c["model_cfg"].update(conv_aggregator_layers="[(32, 2, 1)]"), "different widths"),
    (lambda c: c["model_cfg"].update(aggregator="gru"), "aggregator is 'gru'"),
    (lambda c: c["model_cfg"].update(project_features="new"), "project_features is 'new'"),
    (lambda c: c["model_cfg"].update(skip_connections_feat=True), "has shortcuts"),
    (lambda c: c["model_cfg"].update(activation="tanh"), "activation is 'tanh'"),
    (lambda c: c["model_cfg"].update(residual_scale="much"), "not that of a wav2vec checkpoint .ValueError"),
    (lambda c: c["model_cfg"].update(vq_type="gumbel"), "vq_type is 'gumbel'; wav2vec has"),
])  # fmt: skip
def test_other_files_are_refused(tmp_path, change, message):
    path = write(tmp_path, network())
    content = torch.load(path)
    change(content)
    torch.save(content, path)
    with pytest.raises(CheckpointRefused, match=f"official.pt: .*{message}"):
        wav2vec.read_wav2vec(path)


def test_odd_code_books_are_refused(tmp_path):
    for changes, message in (({"vq_groups": 5}, "in 5 groups"), ({"vq_dim": 7}, "codes of 7"), ({"vq_vars": -1}, "-1")):
        path = write(tmp_path, network("gumbel"), "gumbel", **changes)
        with pytest.raises(CheckpointRefused, match=f"official.pt: .*{message}"):
            wav2vec.read_wav2vec(path, "vq_wav2vec")
    with pytest.raises(CheckpointRefused, match="vq_wav2vec has"):
        wav2vec.read_wav2vec(write(tmp_path, network()), "vq_wav2vec")


class Bomb:
    def __reduce__(self):
        return (Path("exploded").touch, ())


def test_a_file_that_wants_to_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model_weight": {}, "model_cfg": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(CheckpointRefused, match="bomb.pt: refused"):
        wav2vec.read_wav2vec(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


# ------------------------------------------------------------------------------------------ phase 1


@pytest.mark.parametrize("codes", [0, 64])
def test_the_loss_falls(codes):
    learner, wavs = objective(codes), melodies(3, 8000)
    optimiser = torch.optim.AdamW(learner.parameters(), 4e-3)
    losses = []
    for step in range(50):
        loss, _ = learner(wavs, random(step % 4))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    # who says "false" with the share of false frames, whatever it hears, has a loss of 3.35
    assert losses[0] > 7 and np.mean(losses[-4:]) < 2.9


@pytest.mark.parametrize("codes", [0, 64])
def test_all_weights_get_a_gradient_and_dice_decide(codes):
    learner, wavs = objective(codes), torch.stack(waves(12000, 12000))
    loss, seen = learner(wavs, random(1))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.parameters())
    assert torch.equal(learner(wavs, random(1))[0], loss) and not torch.equal(learner(wavs, random(2))[0], loss)
    assert seen.keys() == ({"right", "codes"} if codes else {"right"})


def test_the_loss_is_logistic():
    learner, wavs = objective(negatives=4), torch.stack(waves(8000, 8000))
    generator = random()
    scores = learner._scores(learner._heard(wavs, generator)[0], generator)
    assert [s.shape for s in scores] == [torch.Size([2, 24 - 2 - n, 5]) for n in range(6)]
    wanted = [torch.zeros_like(s) for s in scores]
    for target in wanted:
        target[..., 0] = 1
    each = [
        5 * torch.nn.functional.binary_cross_entropy_with_logits(s, t) for s, t in zip(scores, wanted, strict=True)
    ]
    torch.testing.assert_close(learner(wavs, random())[0], torch.stack(each).mean())


def test_the_choice_has_the_value_of_one_code_and_the_gradient_of_all():
    books, z = GumbelQuantizer(24, 12, 2), torch.randn(3, 24, 50, generator=random())
    vectors, chosen, wanted = books.sample(z, 1.0, random(1))
    choices = books.vars[0].unflatten(0, (2, 12))
    for group in range(2):
        found = vectors.transpose(1, 2)[:, :, 12 * group : 12 * group + 12]
        gaps = (found[:, :, None] - choices[group]).abs().amax(3)
        assert gaps.amin(2).max() < 1e-5, "every vector is one of the book"
    torch.testing.assert_close(torch.stack([chosen.sum(1), wanted.sum(1)]), torch.ones(2, 2))
    vectors.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in books.parameters())


def test_noise_matters_less_where_scores_are_clear():
    torch.manual_seed(0)  # among unlucky weights two codes are as good as equal, however large the scores
    books, z = GumbelQuantizer(24, 12, 2), torch.randn(3, 24, 50, generator=random())
    with torch.no_grad():
        books.weight_proj[-1].weight.mul_(1000)
        torch.testing.assert_close(books.sample(z, 1.0, random(1))[0], books(z), atol=1e-3, rtol=0)


def test_code_books_of_k_means_are_not_trained():
    with pytest.raises(SuperbLiteError, match="read from files only"):
        Wav2VecObjective(network("kmeans"))


def test_the_picture():
    (wav,) = waves(16000)
    shown = objective(64).picture(wav)
    assert {name: tuple(values.shape) for name, values in shown.items()} == {
        "heard": (98, 80), "scores": (49, 6), "codes": (49, 2),
    }  # fmt: skip
    assert (shown["scores"][-2:, 0] == 0).all() and (shown["scores"][-7:, 5] == 0).all()
    assert 0 < shown["scores"][:42].min() and shown["scores"].max() < 1
    assert objective().picture(wav).keys() == {"heard", "scores"}
