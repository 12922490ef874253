"""PASE+: the official states, exact per clip, files read safely, and workers that learn."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from superb_lite import parity
from superb_lite.testing import check_upstream
from superb_lite.types import CheckpointRefused, SuperbLiteError
from superb_lite.upstreams import get_card, pase
from superb_lite.upstreams._pretext import load_tiny

OFFICIAL = Path(__file__).resolve().parents[2] / "shared" / "parity" / "upstreams"
SIZES = {**pase.OFFICIAL, "fmaps": [6, 6, 8, 8, 8, 8, 10, 10], "rnn_dim": 10, "emb_dim": 12}


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def waves(*samples, seed=0):
    generator = random(seed)
    return [0.1 * torch.randn(n, generator=generator) * torch.linspace(0.1, 1, n) for n in samples]


def network(seed=0):
    """Norms with statistics of their own and slopes below zero: nothing is simple by accident."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = pase.PaseNetwork(**SIZES)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
            if isinstance(module, torch.nn.PReLU):
                module.weight.data.uniform_(0, 0.5)
    return net


def write(folder, net, config=SIZES, bare=True):
    """The two files of the official toolkit. Returns the path of the weights."""
    weights = {name.replace("rnn.", "rnn.layers.0."): value for name, value in net.state_dict().items()}
    torch.save(weights if bare else {"step": 3, "state_dict": weights}, folder / "weights.ckpt")
    always = {"denseskips": True, "norm_out": True, "rnn_pool": True, "rnn_layers": 1}
    (folder / "PASE+.cfg").write_text(json.dumps({**always, **config}))
    return folder / "weights.ckpt"


# ------------------------------------------------------------------------------------------ parity


def test_the_official_states():
    folder = OFFICIAL / "pase_plus"
    if not folder.is_dir():
        pytest.skip(f"no reference states at {folder}")
    agreement = parity.compare_folder(folder)
    assert agreement.states == 13 and agreement.gap < 2e-4


def test_as_many_parameters_as_published():
    card = get_card("pase_plus")
    with torch.device("meta"):
        upstream = pase.Pase("it", pase.PaseNetwork(**pase.OFFICIAL), "0")
    assert sum(p.numel() for p in upstream.parameters()) == card.parameters
    assert (upstream.layers, upstream.dim, upstream.stride) == (card.layers, card.dim, card.stride)


# ------------------------------------------------------------------------------------------ exact per clip


def test_batch_mates_do_not_matter():
    upstream, wavs = pase.Pase("some", network(), "0"), waves(16000, 800, 33125, 9777, 2415)
    together = upstream(wavs)
    for n, wav in enumerate(wavs):
        alone, frames = upstream([wav]), math.ceil(len(wav) / 10) // 16
        assert int(together.lengths[n]) == int(alone.lengths[0]) == frames
        torch.testing.assert_close(together.states[:, n, :frames], alone.states[:, 0], atol=1e-5, rtol=0)


def test_padding_leaks_as_published():
    upstream, wavs = pase.Pase("some", network(), "0"), waves(16000, 9777)
    padded, samples = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True), torch.tensor([16000, 9777])
    with torch.no_grad():
        leaky = upstream.published(padded, samples)
    longer, shorter = (upstream([wav]).states[:, 0] for wav in wavs)
    torch.testing.assert_close(leaky[:, 0], longer, atol=1e-5, rtol=0)
    assert leaky.shape[2] == longer.shape[1]
    gaps = (leaky[:, 1, : shorter.shape[1]] - shorter).abs().amax(dim=(1, 2))
    assert gaps.min() > 2e-5, "the mirror at the end of the clip is missing in every state"


def test_the_mirror_stands_at_the_end_of_each_clip():
    x = torch.arange(1.0, 7.0).reshape(1, 1, 6).repeat(2, 1, 1)
    x[1, 0, 4:] = 99
    found = pase.mirrored(x, torch.tensor([6, 4]), 2, 1)
    assert found[0, 0].tolist() == [3, 2, 1, 2, 3, 4, 5, 6, 5]
    assert found[1, 0, :7].tolist() == [3, 2, 1, 2, 3, 4, 3]


def test_the_recurrent_layer_is_the_written_recurrence():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = pase.QuasiRecurrent(3, 2)
    x = torch.randn(2, 3, 37, generator=random(2))
    memory, previous, shown = torch.zeros(2, 2), torch.zeros(2, 3), []
    for now in x.unbind(2):
        z, f, o = layer.linear(torch.cat([now, previous], dim=1)).chunk(3, dim=1)
        memory = f.sigmoid() * z.tanh() + (1 - f.sigmoid()) * memory
        shown.append(o.sigmoid() * memory)
        previous = now
    torch.testing.assert_close(layer(x), torch.stack(shown, dim=2), atol=1e-6, rtol=0)


def test_band_filters_pass_their_band():
    filters = pase.BandFilters(4, 251)
    heard = torch.fft.rfft(filters.kernels(), n=16000).abs().detach()  # one bin is 1 Hz
    low = 50 + filters.low_hz_[:, 0].detach()
    high = low + 50 + filters.band_hz_[:, 0].detach()
    for band in range(4):
        middle, outside = int((low[band] + high[band]) / 2), int(high[band] + 400)
        assert heard[band, middle] > 20 * heard[band, min(outside, 7999)] or outside > 7999


def test_the_tiny_one_keeps_the_contract():
    check_upstream(pase.Pase("tiny", pase.tiny_network(), "0"))


# ------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("bare", [True, False])
def test_official_files_are_read_back(tmp_path, bare):
    net = network()
    upstream = pase.read_pase_plus(write(tmp_path, net, bare=bare))
    assert (upstream.name, upstream.layers, upstream.dim, len(upstream.revision)) == ("pase_plus", 9, 12, 12)
    wavs = waves(5000)
    torch.testing.assert_close(upstream(wavs).states, pase.Pase("it", net, "0")(wavs).states, atol=0, rtol=0)


def test_without_a_second_file_the_official_sizes_are_taken(tmp_path):
    path = write(tmp_path, network())
    (tmp_path / "PASE+.cfg").rename(tmp_path / "elsewhere.json")
    with pytest.raises(CheckpointRefused, match="weights.ckpt.*of another shape .*W.weight"):
        pase.read_pase_plus(path)
    assert pase.read_pase_plus(path, tmp_path / "elsewhere.json").dim == 12


class Bomb:
    def __reduce__(self):
        return (Path("exploded").touch, ())


def test_other_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.ckpt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointRefused, match="bomb.ckpt"):
        pase.read_pase_plus(tmp_path / "bomb.ckpt")
    assert not (tmp_path / "exploded").exists()
    net = network()
    path = write(tmp_path, net)
    good = torch.load(path, weights_only=True)
    cases = {
        "expected tensors": {"model": {}},
        "missing .*W.bias": {name: value for name, value in good.items() if name != "W.bias"},
        "unexpected .*encoder.layer": {**good, "encoder.layer": torch.zeros(1)},
    }
    for message, weights in cases.items():
        torch.save(weights, path)
        with pytest.raises(CheckpointRefused, match=f"weights.ckpt.*{message}"):
            pase.read_pase_plus(path)
    for config, message in (
        ({"fmaps": [6, 0]}, "PASE.*fmaps is"),
        ({"strides": [1]}, "weights.ckpt: no network has the sizes"),
        ({"emb_dim": "big"}, "PASE.*emb_dim is 'big'"),
        ({"norm_out": False}, "expected a dictionary with"),
    ):
        with pytest.raises(CheckpointRefused, match=message):
            pase.read_pase_plus(write(tmp_path, net, config={**SIZES, **config}))
    (tmp_path / "PASE+.cfg").write_text("{not json")
    with pytest.raises(CheckpointRefused, match="PASE.*should be a JSON file"):
        pase.read_pase_plus(path)


def test_tiny_weights_are_read(tmp_path):
    net = pase.tiny_network()
    (tmp_path / "it.safetensors").write_bytes(safetensors.torch.save(net.state_dict()))
    upstream = load_tiny("tiny_pase", pase.PRETEXTS["tiny_pase"], tmp_path / "it.safetensors")
    assert (upstream.name, upstream.layers, upstream.dim) == ("tiny_pase", 9, 128)
    assert 0.4e6 < sum(p.numel() for p in upstream.parameters()) < 0.65e6


# ------------------------------------------------------------------------------------------ the objective


def objective(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return pase.PaseObjective(pase.tiny_network())


def test_the_loss_falls_and_everything_learns():
    learner, batch = objective(), torch.stack(waves(6400, 6400))
    optimiser = torch.optim.Adam(learner.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        loss, seen = learner(batch, random(1))
        optimiser.zero_grad()
        loss.backward()
        # a norm right behind takes the bias of a convolution out again; a slope of zero is where ramps begin
        assert all(p.grad.abs().sum() > 0 for name, p in learner.named_parameters() if not name.endswith("conv.bias"))
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert set(seen) == {"spectrum", "cepstrum", "change", "prosody", "local", "whole"}


def test_dice_come_from_the_generator_only():
    learner, batch = objective(), torch.stack(waves(6400, 6400))
    first, again, other = (learner(batch, random(seed))[0].item() for seed in (1, 1, 2))
    assert first == again != other


def test_one_clip_is_too_few():
    with pytest.raises(SuperbLiteError, match="got 1 clip.*at least 2"):
        objective()(torch.stack(waves(6400)), random(1))


def test_the_questions_are_about_the_sound():
    """A buzz of 200 Hz that gets louder, then hiss: loudness rises, the pitch is there, the hiss has none."""
    time = torch.arange(16000) / 16000
    buzz = sum(torch.sin(2 * torch.pi * 200 * n * time) for n in range(1, 9)) * 0.05 * (0.2 + time)
    hiss = 0.05 * torch.randn(16000, generator=random(1))
    asked = pase.prosody(torch.cat([buzz, hiss])[None])[0]
    loud, crossings, periodic, pitch = asked[5:95].T
    assert loud[-10:].mean() > loud[:10].mean() + 1
    assert periodic.min() > 0.5 and asked[105:, 2].mean() < 0.4
    torch.testing.assert_close(pitch / periodic, torch.full((90,), math.log(200 / 150)), atol=0.03, rtol=0)
    assert crossings.mean() < asked[105:, 1].mean() / 2
    shapes = {name: tuple(x.shape) for name, x in pase.questions(hiss[None]).items()}
    sizes = {"spectrum": 257, "cepstrum": 20, "change": 20, "prosody": 4}
    assert shapes == {name: (1, 100, size) for name, size in sizes.items()}


def test_distortions_come_and_go():
    batch = torch.stack(waves(*[8000] * 40))
    noisy = pase.distort(batch, random(1))
    gap = (noisy - batch).abs().amax(1)
    assert noisy.shape == batch.shape and torch.isfinite(noisy).all()
    assert 0.05 < (gap < 1e-4).float().mean() < 0.5, "some clips stay clean, most do not"
    silent = (noisy == 0).float().mean(1)
    assert 0 < (silent > 0.01).sum() < 20 and silent.max() < 0.16


def test_the_picture():
    learner, (wav,) = objective().train(), waves(16000)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    shown = learner.picture(wav)
    wanted = dict.fromkeys(["heard", "hidden", "rebuilt"], (100, 257))
    assert {name: tuple(image.shape) for name, image in shown.items()} == wanted
    assert learner.training and not shown["rebuilt"].requires_grad
    assert all(bool((value == before[name]).all()) for name, value in learner.state_dict().items()), "norms learned"
