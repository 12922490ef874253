"""NPC: the official states, exact per clip, files read safely, and an objective that learns."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from superb_lite import parity
from superb_lite.testing import check_upstream
from superb_lite.types import CheckpointRefused
from superb_lite.upstreams import apc, get_card, npc
from superb_lite.upstreams._pretext import load_tiny

OFFICIAL = Path(__file__).resolve().parents[2] / "shared" / "parity" / "upstreams"
AUDIO = {"feat_type": "fbank", "feat_dim": 80, "frame_length": 25, "frame_shift": 10, "decode_wav": False, "cmvn": True}


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def waves(*samples, seed=0):
    generator = random(seed)
    return [0.1 * torch.randn(n, generator=generator) * torch.linspace(0.1, 1, n) for n in samples]


def network(blocks=3, seed=0):
    """Norms with statistics of their own: padding would show in every state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = npc.NpcNetwork(16, blocks, books=[apc.Codebook(8, 4) for _ in range(2)])
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                for tensor in (module.running_mean, module.weight.data, module.bias.data):
                    tensor.normal_(0.3, 0.5)
    return net


def write(folder, net, **paras):
    """A file as the official toolkit writes them, holes and all."""
    sizes = {
        "kernel_size": 15, "mask_size": 5, "n_blocks": len(net.blocks), "hidden_size": net.dim, "dropout": 0.1,
        "residual": True, "batch_norm": True, "activate": "relu", "disable_cross_layer": False,
        "vq": {"codebook_size": [4, 4], "code_dim": [8, 8], "gumbel_temperature": 1.0}, **paras,
    }  # fmt: skip
    holes = {f"masked_convs.{n}.conv_mask": torch.ones(16, 16, 15) for n in range(len(net.blocks))}
    config = {"model": {"paras": sizes}, "data": {"audio": AUDIO}}
    torch.save({"config": config, "model": {**net.state_dict(), **holes}}, folder / "official.ckpt")
    return folder / "official.ckpt"


# ------------------------------------------------------------------------------------------ parity


def test_the_official_states():
    folder = OFFICIAL / "npc"
    if not folder.is_dir():
        pytest.skip(f"no reference states at {folder}")
    agreement = parity.compare_folder(folder)
    assert agreement.states == 13 and agreement.gap < 2e-4


def test_as_many_parameters_as_published():
    card = get_card("npc")
    with torch.device("meta"):
        net = npc.NpcNetwork(books=[apc.Codebook(128, 64) for _ in range(4)])
    assert sum(p.numel() for p in net.parameters()) == card.parameters
    assert (2 * len(net.blocks) + 1, net.dim, npc.Npc.stride) == (card.layers, card.dim, card.stride)


# ------------------------------------------------------------------------------------------ exact per clip


def both(upstream, wavs):
    """(states of the whole batch, states of each clip alone)"""
    together = upstream(wavs)
    for n, wav in enumerate(wavs):
        alone, frames = upstream([wav]), 1 + (len(wav) - 400) // 160
        assert int(together.lengths[n]) == int(alone.lengths[0]) == frames
        yield together.states[:, n, :frames], alone.states[:, 0]


def test_batch_mates_do_not_matter():
    upstream, wavs = npc.Npc("some", network(), "0"), waves(16000, 800, 33120, 9777)
    for together, alone in both(upstream, wavs):
        assert len(alone) == upstream.layers == 7
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_padding_leaks_as_published():
    upstream, wavs = npc.Npc("some", network(), "0"), waves(16000, 9777)
    padded, samples = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True), torch.tensor([16000, 9777])
    with torch.no_grad():
        leaky = upstream.published(padded, samples)
    longer, shorter = (upstream([wav]).states[:, 0] for wav in wavs)
    torch.testing.assert_close(leaky[:, 0], longer, atol=1e-5, rtol=0)
    gaps = (leaky[:, 1, : shorter.shape[1]] - shorter).abs().amax(dim=(1, 2))
    assert gaps[0] < 1e-5 and gaps[1:].min() > 1e-3, "the first block alone cannot see the padding"


def test_the_tiny_one_keeps_the_contract():
    check_upstream(npc.Npc("tiny", npc.tiny_network(), "0"))


# ------------------------------------------------------------------------------------------ the hole


def test_a_frame_is_not_seen_by_its_own_guess():
    """Change frame 50 and the two on either side: the sum at 50 stays, as far away as it stays, and close by it moves.

    Source: arXiv:2011.00406, section 2.2: with kernel 15 and four blocks, 23 frames are in reach.
    """
    net = npc.NpcNetwork(16, 4, books=()).eval()
    mels = torch.randn(1, 100, 80, generator=random(4))
    changed = mels.clone()
    changed[0, 48:53] += 1
    with torch.no_grad():
        moved = (net(mels)[-1] - net(changed)[-1])[0].abs().amax(1) > 0
    assert not moved[50] and moved[51] and moved[49]
    assert moved.nonzero().flatten().tolist() == [n for n in range(48 - 11, 53 + 11) if n != 50]


def test_a_hole_has_to_fit():
    with pytest.raises(ValueError, match="hole of 15 frames in a kernel of 15"):
        npc.MaskedConv(4, 15, 15)


# ------------------------------------------------------------------------------------------ files


def test_an_official_file_is_read_back(tmp_path):
    net = network()
    upstream = npc.read_npc(write(tmp_path, net))
    assert (upstream.name, upstream.layers, upstream.dim, len(upstream.revision)) == ("npc", 7, 16, 12)
    wavs = waves(5000)
    torch.testing.assert_close(upstream(wavs).states, npc.Npc("it", net, "0")(wavs).states, atol=0, rtol=0)


class Bomb:
    def __reduce__(self):
        return (Path("exploded").touch, ())


def test_other_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.ckpt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointRefused, match="bomb.ckpt"):
        npc.read_npc(tmp_path / "bomb.ckpt")
    assert not (tmp_path / "exploded").exists()
    net = network()
    good = torch.load(write(tmp_path, net), weights_only=True)
    cases = {
        "no 'config'": {"cfg": {}, "model": {}},
        "missing .*blocks.0.bn1.bias": {**good, "model": {**good["model"]}},
        "expected tensors": {**good, "model": [1]},
    }
    del cases["missing .*blocks.0.bn1.bias"]["model"]["blocks.0.bn1.bias"]
    for message, content in cases.items():
        torch.save(content, tmp_path / "bad.ckpt")
        with pytest.raises(CheckpointRefused, match=f"bad.ckpt.*{message}"):
            npc.read_npc(tmp_path / "bad.ckpt")
    for paras, message in (
        ({"n_blocks": 10**9}, "n_blocks is 1000000000"),
        ({"mask_size": 13}, "hole of 15 frames"),
        ({"vq": None}, "no network has the sizes"),
        ({"activate": "tanh"}, "never published.*tanh"),
        ({"dim_bottleneck": 4}, "never published.*dim_bottleneck"),
    ):
        with pytest.raises(CheckpointRefused, match=f"official.ckpt.*{message}"):
            npc.read_npc(write(tmp_path, net, **paras))


def test_tiny_weights_are_read(tmp_path):
    net = npc.tiny_network()
    (tmp_path / "it.safetensors").write_bytes(safetensors.torch.save(net.state_dict()))
    upstream = load_tiny("tiny_npc", npc.PRETEXTS["tiny_npc"], tmp_path / "it.safetensors")
    assert (upstream.name, upstream.layers, upstream.dim) == ("tiny_npc", 5, 128)
    assert 0.4e6 < sum(p.numel() for p in upstream.parameters()) < 0.65e6


# ------------------------------------------------------------------------------------------ the objective


def objective(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return npc.NpcObjective(npc.tiny_network())


def test_the_loss_falls_and_everything_learns():
    learner, batch = objective(), torch.stack(waves(8000, 8000))
    optimiser = torch.optim.Adam(learner.parameters(), 1e-2)
    losses = []
    for step in range(12):
        loss, seen = learner(batch, random(step))
        optimiser.zero_grad()
        loss.backward()
        # a norm right behind a convolution takes its bias out again
        learning = [p for name, p in learner.named_parameters() if not name.endswith(("conv.bias", "linear.bias"))]
        assert all(p.grad.abs().sum() > 0 for p in learning)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0] and set(seen) == {"of_mean", "codes"}


def test_dice_come_from_the_generator_only():
    learner, batch = objective(), torch.stack(waves(8000, 8000))
    first, again, other = (learner(batch, random(seed))[0].item() for seed in (1, 1, 2))
    assert first == again != other


def test_the_picture():
    learner, (wav,) = objective().train(), waves(16000)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    shown = learner.picture(wav)
    assert {name: tuple(image.shape) for name, image in shown.items()} == {"heard": (98, 80), "rebuilt": (98, 80)}
    assert learner.training and not shown["rebuilt"].requires_grad
    assert all(bool((value == before[name]).all()) for name, value in learner.state_dict().items()), "norms learned"
