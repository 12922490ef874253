"""Modified CPC: the official states, exact per clip, files read safely, and an objective that learns."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from superb_lite import parity
from superb_lite.testing import check_upstream
from superb_lite.types import CheckpointRefused
from superb_lite.upstreams import cpc, get_card
from superb_lite.upstreams._pretext import load_tiny
from superb_lite.upstreams.cpc import Cpc, CpcObjective

OFFICIAL = Path(__file__).resolve().parents[2] / "shared" / "parity" / "upstreams"
CARD = get_card("modified_cpc")


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def waves(*samples, seed=0):
    generator = random(seed)
    return [0.1 * torch.randn(n, generator=generator) * torch.linspace(0.1, 1, n) for n in samples]


def melodies(clips, samples):
    """A tone of another height every 50 ms."""
    steps = torch.rand(clips, samples // 800, generator=random()) * 0.9 + 0.1
    return 0.3 * torch.sin(steps.repeat_interleave(800, 1).cumsum(1))


def network(levels=1, kind="LSTM", seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = cpc.Network(cpc.Encoder(24), 24, 24, levels, kind)
        for value in net.parameters():  # norms too: a forgotten one must show
            value.data += 0.1 * torch.randn(value.shape)
        return net


def objective(seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CpcObjective(cpc.tiny_network(), **options)


def write(folder, net, *, kind="LSTM", name="official.pt", **changes):
    """A file as the authors of CPC write them, with what their objective needed."""
    weights = {}
    for key, value in net.state_dict().items():
        key = re.sub(r"^encoder\.convs\.(\d+)", r"gEncoder.conv\1", key)
        key = re.sub(r"^encoder\.norms\.(\d+)", r"gEncoder.batchNorm\1", key)
        weights[re.sub(r"^recurrent\.(\d+)\.(\w+)_l0$", r"gAR.baseNet.\2_l\1", key)] = value
    config = {
        "hiddenEncoder": 24, "hiddenGar": 24, "arMode": kind, "nLevelsGRU": len(net.recurrent),
        "normMode": "layerNorm", "encoder_type": "cpc", "samplingType": "samespeaker", "cpc_mode": None, **changes,
    }  # fmt: skip
    extra = {"cpcCriterion.wPrediction.predictors.0.weight": torch.zeros(2, 2)}
    torch.save({"config": config, "weights": {**weights, **extra}}, folder / name)
    return folder / name


# ------------------------------------------------------------------------------------------ parity


def test_the_official_states():
    folder = OFFICIAL / "modified_cpc"
    if not folder.is_dir():
        pytest.skip(f"no reference states at {folder}")
    agreement = parity.compare_folder(folder)
    assert agreement.states == 6 and agreement.gap < 2e-4


def test_as_many_parameters_as_published():
    with torch.device("meta"):
        net = cpc.Network(cpc.Encoder())
    assert sum(p.numel() for p in net.parameters()) == CARD.parameters
    upstream = Cpc("some", network(), "0")
    assert (upstream.layers, net.dim, upstream.stride) == (CARD.layers, CARD.dim, CARD.stride)


def test_the_norm_uses_the_unbiased_variance():
    x = torch.randn(2, 5, 3, generator=random())
    expected = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) ** 2 + 1e-5).sqrt()
    torch.testing.assert_close(cpc.ChannelNorm(5)(x), expected)


# ------------------------------------------------------------------------------------------ exact per clip


@pytest.mark.parametrize(("levels", "kind"), [(1, "LSTM"), (2, "GRU"), (3, "RNN")])
@pytest.mark.parametrize("all_levels", [False, True])
def test_batch_mates_do_not_matter(levels, kind, all_levels):
    upstream = Cpc("some", network(levels, kind), "0", all_levels=all_levels)
    wavs = waves(16000, 800, 33120, 20800)
    together = upstream(wavs)
    assert together.lengths.tolist() == [100, 5, 207, 130]
    assert together.states.shape[0] == upstream.layers == (1 + levels if all_levels else 2)
    for n, wav in enumerate(wavs):
        alone = upstream([wav]).states
        torch.testing.assert_close(together.states[:, n, : alone.shape[2]], alone[:, 0], atol=1e-5, rtol=0)
        with torch.no_grad():  # alone, nothing leaks: ours and the official states are the same
            published = upstream.published(wav[None], torch.tensor([len(wav)]))
        torch.testing.assert_close(published, alone, atol=1e-6, rtol=0)


def test_the_official_padding_leaks_and_ours_does_not():
    upstream, wavs = Cpc("some", network(), "0"), waves(9600, 16000)
    padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    with torch.no_grad():
        published = upstream.published(padded, torch.tensor([9600, 16000]))
    alone = upstream(wavs[:1]).states[:, 0]
    assert alone.shape[1] == 60 and (published[:, 0, :60] - alone).abs().max() > 0.05
    torch.testing.assert_close(published[:, 0, :50], alone[:, :50], atol=1e-5, rtol=0)  # only the end is concerned


def test_the_recurrent_part_looks_back_only():
    upstream = Cpc("some", network(2), "0")
    one, other = waves(16000, 16000)
    other[:8000] = one[:8000]
    first, second = (upstream([wav]).states[:, 0] for wav in (one, other))
    torch.testing.assert_close(first[:, :48], second[:, :48], atol=1e-6, rtol=0)
    assert (first[:, 52:] - second[:, 52:]).abs().max() > 0.1


def test_the_tiny_one_keeps_the_contract():
    net = objective().network
    check_upstream(Cpc("tiny", net, "0", 320, all_levels=True))
    assert sum(p.numel() for p in net.parameters()) == 464_320


def test_the_tiny_one_reads_its_weights(tmp_path):
    net = objective(3).network
    safetensors.torch.save_file(net.state_dict(), tmp_path / "tiny.safetensors")
    upstream = load_tiny("tiny_cpc", cpc.PRETEXTS["tiny_cpc"], tmp_path / "tiny.safetensors")
    assert (upstream.name, upstream.layers, upstream.dim, upstream.stride) == ("tiny_cpc", 3, 160, 320)
    assert torch.equal(upstream.network.encoder.convs[0].weight, net.encoder.convs[0].weight)


# ------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize(("levels", "kind"), [(1, "LSTM"), (2, "LSTM"), (1, "GRU")])
def test_an_official_file_is_read(tmp_path, levels, kind):
    net = network(levels, kind)
    upstream = cpc.read_cpc(write(tmp_path, net, kind=kind))
    assert upstream.name == "modified_cpc" and len(upstream.revision) == 12
    wavs = waves(16000, 5000)
    torch.testing.assert_close(upstream(wavs).states, Cpc("same", net, "0")(wavs).states, atol=0, rtol=0)


def test_settings_may_be_a_namespace(tmp_path):
    path = write(tmp_path, network())
    content = torch.load(path)
    torch.save({**content, "config": argparse.Namespace(**content["config"])}, path)
    assert cpc.read_cpc(path).dim == 24


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c.pop("weights"), "has no 'weights'"),
    (lambda c: c.pop("config"), "has no 'config'"),
    (lambda c: c.update(config=[3]), "settings are a list"),
    (lambda c: c.update(weights={"a": 1}), "weights are a dict"),
    (lambda c: c["weights"].pop("gAR.baseNet.bias_hh_l0"), r"another network .*recurrent\.0\.bias_hh_l0"),
    (lambda c: c["weights"].update({"gEncoder.conv0.bias": torch.zeros(3)}), "another network"),
    (lambda c: c["config"].update(hiddenEncoder=99_999, hiddenGar=99_999), "another network"),
    (lambda c: c["config"].update(hiddenGar=32), "z has 24 dimensions and c has 32"),
    (lambda c: c["config"].update(nLevelsGRU=0), "nLevelsGRU is 0"),
    (lambda c: c["config"].update(arMode="transformer"), "arMode is 'transformer'"),
    (lambda c: c["config"].update(normMode="batchNorm"), "normMode is 'batchNorm'"),
])  # fmt: skip
def test_other_files_are_refused(tmp_path, change, message):
    path = write(tmp_path, network())
    content = torch.load(path)
    change(content)
    torch.save(content, path)
    with pytest.raises(CheckpointRefused, match=f"official.pt: .*{message}"):
        cpc.read_cpc(path)


class Bomb:
    def __reduce__(self):
        return (Path("exploded").touch, ())


def test_a_file_that_wants_to_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": {}, "config": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(CheckpointRefused, match="bomb.pt: refused"):
        cpc.read_cpc(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


# ------------------------------------------------------------------------------------------ phase 1


def test_others_are_never_the_frame_itself():
    wrong = cpc.others(3, 20, 500, random())
    assert wrong.shape == (3, 20, 500) and not (wrong == torch.arange(20)[None, :, None]).any()
    for frame in (0, 7, 19):
        assert set(wrong[0, frame].tolist()) == set(range(20)) - {frame}, "all other frames may be drawn"


def test_compare_takes_the_products_of_the_right_frames():
    guess, truth = torch.randn(2, 9, 4, generator=random(1)), torch.randn(2, 9, 4, generator=random(2))
    wrong = cpc.others(2, 9, 3, random())
    scores = cpc.compare(guess, truth, 2, wrong)
    assert scores.shape == (2, 7, 4)
    torch.testing.assert_close(scores[1, 5, 0], guess[1, 5] @ truth[1, 7])
    torch.testing.assert_close(scores[1, 5, 3], guess[1, 5] @ truth[1, wrong[1, 7, 2]])


def test_the_loss_is_the_cross_entropy_of_the_true_future():
    learner, wavs = objective(steps=2, negatives=5), torch.stack(waves(8000, 8000))
    loss, seen = learner(wavs, random())
    scores = learner._scores(wavs, random())
    each = [torch.nn.functional.cross_entropy(s.flatten(0, 1), torch.zeros(s[..., 0].numel()).long()) for s in scores]
    torch.testing.assert_close(loss, torch.stack(each).mean())
    assert seen.keys() == {"right"} and 0 <= seen["right"] <= 100


def test_the_loss_falls():
    learner, wavs = objective(), melodies(3, 8000)
    optimiser = torch.optim.AdamW(learner.parameters(), 3e-3)
    losses, right = [], []
    for step in range(40):
        loss, seen = learner(wavs, random(step % 4))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        right.append(seen["right"])
    assert np.mean(losses[-4:]) < 0.4 * losses[0] and np.mean(right[-4:]) > 50  # chance: 1.5 %


def test_all_weights_get_a_gradient_and_dice_decide():
    learner, wavs = objective(), torch.stack(waves(12000, 12000))
    loss, _ = learner(wavs, random(1))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.parameters())
    assert torch.equal(learner(wavs, random(1))[0], loss) and not torch.equal(learner(wavs, random(2))[0], loss)


def test_the_picture():
    shown = objective(steps=4).picture(waves(16000)[0])
    assert {name: tuple(values.shape) for name, values in shown.items()} == {"heard": (98, 80), "scores": (49, 4)}
    assert shown["scores"].min() == 0 and shown["scores"].max() <= 1 and (shown["scores"][-4:, 3] == 0).all()
