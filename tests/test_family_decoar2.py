"""DeCoAR 2.0: the official states, exact per clip, files read safely, and an objective that learns."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from superb_lite import parity
from superb_lite.testing import check_upstream
from superb_lite.types import CheckpointRefused
from superb_lite.upstreams import decoar2, get_card
from superb_lite.upstreams._pretext import load_tiny

OFFICIAL = Path(__file__).resolve().parents[2] / "shared" / "parity" / "upstreams"


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def waves(*samples, seed=0):
    generator = random(seed)
    return [0.1 * torch.randn(n, generator=generator) * torch.linspace(0.1, 1, n) for n in samples]


def network(layers=3, kernel=16, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return decoar2.decoar2_network(24, layers, heads=12, wide=40, kernel=kernel, groups=4)


def official_names(net):
    """The weights under the names of the official files, written out by hand: the reader has to find its way back."""
    found = {}
    for name, value in net.state_dict().items():
        name = name.replace("encoder.feature_projection.projection", "post_extract_proj")
        name = name.replace("encoder.transformer.", "encoder.").replace("pos_conv_embed.conv.", "pos_conv.0.")
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        if ".layers." in name:
            name = name.replace(".layer_norm", ".self_attn_layer_norm").replace(".attention.", ".self_attn.")
            name = name.replace("feed_forward.intermediate_dense", "fc1").replace("feed_forward.output_dense", "fc2")
        found[name] = value
    return found


def write(folder, weights):
    torch.save({"model": weights}, folder / "official.pt")
    return folder / "official.pt"


# ------------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize(("name", "states"), [("decoar2", 39), ("decoar2_reduced", 12)])
def test_the_official_states(name, states):
    folder = OFFICIAL / name
    if not folder.is_dir():
        pytest.skip(f"no reference states at {folder}")
    agreement = parity.compare_folder(folder)
    assert agreement.states == states and agreement.gap < 2e-4


def test_as_many_parameters_as_published():
    card = get_card("decoar2")
    with torch.device("meta"):
        net = decoar2.decoar2_network()
    assert sum(p.numel() for p in net.parameters()) == card.parameters
    upstream = decoar2.Decoar2("it", net, "0")
    assert (upstream.layers, upstream.dim, upstream.stride) == (card.layers, card.dim, card.stride)


# ------------------------------------------------------------------------------------------ exact per clip


@pytest.mark.parametrize("kernel", [16, 15, 128])
def test_batch_mates_do_not_matter(kernel):
    upstream, wavs = decoar2.Decoar2("some", network(kernel=kernel), "0"), waves(16000, 800, 33120, 9777)
    together = upstream(wavs)
    for n, wav in enumerate(wavs):
        alone, frames = upstream([wav]), (2 + (len(wav) - 400) // 160) // 2  # every second one, the first included
        assert int(together.lengths[n]) == int(alone.lengths[0]) == frames
        torch.testing.assert_close(together.states[:, n, :frames], alone.states[:, 0], atol=1e-5, rtol=0)
    samples = torch.tensor([len(wav) for wav in wavs])
    with torch.no_grad():
        theirs = upstream.published(torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True), samples)
    inside = torch.arange(theirs.shape[2]) < together.lengths[:, None]
    assert ((theirs - together.states) * inside[None, ..., None]).abs().max() == 0


def test_the_tiny_one_keeps_the_contract():
    check_upstream(decoar2.Decoar2("tiny", decoar2.tiny_network(), "0"))


# ------------------------------------------------------------------------------------------ files


def test_an_official_file_is_read_back(tmp_path):
    net = network()
    rest = {"mask_emb": torch.zeros(24), "quantizer.vars": torch.zeros(1, 8, 4), "encoder.more": torch.zeros(1)}
    upstream = decoar2.read_decoar2(write(tmp_path, official_names(net) | rest))
    assert (upstream.name, upstream.layers, upstream.dim, len(upstream.revision)) == ("decoar2", 4, 24, 12)
    wavs = waves(5000)
    torch.testing.assert_close(upstream(wavs).states, decoar2.Decoar2("it", net, "0")(wavs).states, atol=0, rtol=0)


class Bomb:
    def __reduce__(self):
        return (Path("exploded").touch, ())


def test_other_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointRefused, match="bomb.pt"):
        decoar2.read_decoar2(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()
    good = official_names(network())
    projection, deeper, norm = "post_extract_proj.weight", "encoder.layers.9.fc1.weight", "encoder.layer_norm.bias"
    cases = {
        "has no 'post_extract_proj.weight'": {"w": torch.zeros(3)},
        "expected tensors": {projection: 3},
        "other shapes": good | {projection: torch.zeros(24)},
        "missing .*encoder.transformer.layer_norm.bias": {k: v for k, v in good.items() if k != norm},
        "another network": good | {deeper: torch.zeros(40, 24)},
        "of another shape .*projection": good | {"post_extract_proj.bias": torch.zeros(25)},
        "no network has the sizes": good | {projection: torch.zeros(25, 80)},
    }
    for message, weights in cases.items():
        with pytest.raises(CheckpointRefused, match=f"official.pt.*{message}"):
            decoar2.read_decoar2(write(tmp_path, weights))
    with pytest.raises(CheckpointRefused, match="no network has the sizes .*7"):
        decoar2.read_decoar2(write(tmp_path, good), heads=7)
    torch.save({"weights": good}, tmp_path / "official.pt")
    with pytest.raises(CheckpointRefused, match="has no 'model'"):
        decoar2.read_decoar2(tmp_path / "official.pt")


def test_tiny_weights_are_read(tmp_path):
    net = decoar2.tiny_network()
    (tmp_path / "it.safetensors").write_bytes(safetensors.torch.save(net.state_dict()))
    upstream = load_tiny("tiny_decoar2", decoar2.PRETEXTS["tiny_decoar2"], tmp_path / "it.safetensors")
    assert (upstream.name, upstream.layers, upstream.dim) == ("tiny_decoar2", 4, 128)
    assert 0.4e6 < sum(p.numel() for p in upstream.parameters()) < 0.65e6


# ------------------------------------------------------------------------------------------ the objective


def objective(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return decoar2.Decoar2Objective(decoar2.tiny_network())


def test_the_loss_falls_and_everything_learns():
    learner, batch = objective(), torch.stack(waves(12000, 12000))
    optimiser = torch.optim.Adam(learner.parameters(), 3e-3)
    losses = []
    for _ in range(20):
        loss, seen = learner(batch, random(1))
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0] and set(seen) == {"of_mean", "codes"}


def test_dice_come_from_the_generator_only():
    learner, batch = objective(), torch.stack(waves(8000, 8000))
    first, again, other = (learner(batch, random(seed))[0].item() for seed in (1, 1, 2))
    assert first == again != other


def test_the_mask_hides_about_half_in_spans():
    hide = objective().mask(100, 200, random(3))
    assert 0.4 < hide.float().mean() < 0.55
    for row in hide.tolist():
        runs = "".join("x" if h else "." for h in row).rstrip("x").split(".")
        assert all(len(run) >= 10 for run in runs if run)
    assert objective().mask(5, 3, random(3)).any(1).all(), "even the shortest clip hides something"


def test_hidden_frames_are_neither_seen_nor_forgotten():
    """What is hidden changes: the rebuilt spectrogram does not, the loss does. What is seen changes: the first does."""
    learner = objective()
    mels, hide = torch.randn(1, 40, 80, generator=random(1)), learner.mask(1, 40, random(2))
    with torch.no_grad():
        before = learner.rebuild(mels, hide, None)[0]
        after = learner.rebuild(mels + hide[..., None].float(), hide, None)[0]
        other = learner.rebuild(mels + 5 * (~hide[..., None]).float() * torch.randn(80), hide, None)[0]
    assert (before == after).all() and (before != other).any()


def test_the_picture():
    learner, (wav,) = objective().train(), waves(16000)
    shown = learner.picture(wav)
    wanted = dict.fromkeys(["heard", "hidden", "rebuilt"], (49, 80))
    assert {name: tuple(x.shape) for name, x in shown.items()} == wanted
    holes = (shown["hidden"] == 0).all(1)
    assert 0.2 < holes.float().mean() < 0.8 and learner.training
    for name in ("hidden", "rebuilt"):
        assert (shown[name][~holes] == shown["heard"][~holes]).all()
        assert (shown[name][holes] != shown["heard"][holes]).any()
