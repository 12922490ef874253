"""APC and VQ-APC: the official states, exact per clip, files read safely, and an objective that learns."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchaudio

from superb_lite import parity
from superb_lite.testing import check_upstream
from superb_lite.types import CheckpointRefused
from superb_lite.upstreams import apc
from superb_lite.upstreams._pretext import load_tiny

OFFICIAL = Path(__file__).resolve().parents[2] / "shared" / "parity" / "upstreams"
AUDIO = {"feat_type": "fbank", "feat_dim": 80, "frame_length": 25, "frame_shift": 10, "decode_wav": False, "cmvn": True}
VQ = {"codebook_size": [8, 8], "code_dim": [8, 8], "gumbel_temperature": 0.5}


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def waves(*samples, seed=0):
    generator = random(seed)
    return [0.1 * torch.randn(n, generator=generator) * torch.linspace(0.1, 1, n) for n in samples]


def network(*, books=(), layers=3, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return apc.ApcNetwork(16, layers, [apc.Codebook(8, 8, 0.5) for _ in books])


def write(folder, net, *, vq=None, audio=AUDIO, name="official.ckpt", **paras):
    """A file as the official toolkit writes them."""
    sizes = {"num_layers": len(net.rnn_layers), "hidden_size": net.dim, "dropout": 0.1, "residual": True, **paras}
    config = {"model": {"paras": sizes if vq is None else {**sizes, "vq": vq}}, "data": {"audio": audio}}
    torch.save({"config": config, "model": net.state_dict(), "Optimizer": {}, "Step": 1}, folder / name)
    return folder / name


# ------------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("name", ["apc", "vq_apc"])
def test_the_official_states(name):
    folder = OFFICIAL / name
    if not folder.is_dir():
        pytest.skip(f"no reference states at {folder}")
    agreement = parity.compare_folder(folder)
    assert agreement.states == 9 and agreement.gap < 2e-4


def test_the_official_guesses():
    """What no hidden state shows: the codebook and the map behind it, as the official toolkit computes them."""
    folder = OFFICIAL / "vq_apc"
    if not folder.is_dir():
        pytest.skip(f"no reference states at {folder}")
    import numpy as np

    stored = np.load(folder / "io.npz")
    upstream = apc.read_vq_apc(folder / "checkpoint.ckpt")
    (wav,) = (torch.from_numpy(stored["wav_1"].astype(np.float32) / 32768),)
    mels, _ = apc.clean_mels(wav[None])
    with torch.no_grad():
        guess, _ = apc.ApcObjective(upstream.network).guess(mels, None)
    assert (guess[0] - torch.from_numpy(stored["batch.pred"][1])).abs().max() < 2e-4


@pytest.mark.parametrize(("name", "books"), [("apc", []), ("vq_apc", [apc.Codebook(512, 512)])])
def test_as_many_parameters_as_published(name, books):
    card = next(card for card in apc.CARDS if card.name == name)
    with torch.device("meta"):
        net = apc.ApcNetwork(books=[apc.Codebook(512, 512) for _ in books])
    assert sum(p.numel() for p in net.parameters()) == card.parameters
    assert (len(net.rnn_layers), net.dim, apc.Apc.stride) == (card.layers, card.dim, card.stride)


def test_the_spectrogram_is_kaldis():
    (wav,) = waves(9777)
    theirs = torchaudio.compliance.kaldi.fbank(
        wav[None], num_mel_bins=80, sample_frequency=16000, window_type="hamming"
    )
    theirs = (theirs - theirs.mean(0)) / theirs.std(0)
    torch.testing.assert_close(apc.clean_mel(wav), theirs, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------------ exact per clip


@pytest.mark.parametrize("layers", [1, 3, 4])
def test_batch_mates_do_not_matter(layers):
    upstream, wavs = apc.Apc("some", network(layers=layers), "0"), waves(16000, 800, 33120, 9777)
    together = upstream(wavs)
    assert together.states.shape[0] == upstream.layers == layers
    for n, wav in enumerate(wavs):
        alone, frames = upstream([wav]), 1 + (len(wav) - 400) // 160
        assert int(together.lengths[n]) == int(alone.lengths[0]) == frames
        torch.testing.assert_close(together.states[:, n, :frames], alone.states[:, 0], atol=1e-5, rtol=0)
    samples = torch.tensor([len(wav) for wav in wavs])
    padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    with torch.no_grad():
        assert (upstream.published(padded, samples) - together.states).abs().max() == 0


@pytest.mark.parametrize("codes", [0, 128])
def test_the_tiny_one_keeps_the_contract(codes):
    check_upstream(apc.Apc("tiny", apc.tiny_network(codes=codes), "0"))


# ------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(("read", "vq"), [(apc.read_apc, None), (apc.read_vq_apc, VQ)])
def test_an_official_file_is_read_back(tmp_path, read, vq):
    net = network(books=vq["codebook_size"] if vq else ())
    upstream = read(write(tmp_path, net, vq=vq))
    assert upstream.name == ("vq_apc" if vq else "apc") and len(upstream.revision) == 12
    assert (upstream.layers, upstream.dim) == (3, 16)
    wavs = waves(5000)
    torch.testing.assert_close(upstream(wavs).states, apc.Apc("it", net, "0")(wavs).states, atol=0, rtol=0)


class Bomb:
    def __reduce__(self):
        return (Path("exploded").touch, ())


def test_a_hostile_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.ckpt").write_bytes(pickle.dumps(Bomb()))
    torch.save({"config": Bomb(), "model": {}}, tmp_path / "bomb2.ckpt")
    for name in ("bomb.ckpt", "bomb2.ckpt"):
        with pytest.raises(CheckpointRefused, match=name):
            apc.read_apc(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_other_files_are_refused(tmp_path):
    net = network()
    good = torch.load(write(tmp_path, net), weights_only=True)
    cases = {
        "no 'config'": {"model": good["model"]},
        "its config lacks model.paras": {**good, "config": {"model": 3}},
        "lacks": {**good, "config": {"model": {"paras": [1]}, "data": {}}},
        "unexpected .*rnn_layers.2": {**good, "config": good["config"] | {"model": {"paras": {"num_layers": 2}}}},
        "num_layers is 'many'": {**good, "config": good["config"] | {"model": {"paras": {"num_layers": "many"}}}},
        "hidden_size is 10000000": {**good, "config": good["config"] | {"model": {"paras": {"hidden_size": 10**7}}}},
        "of another shape": {**good, "config": good["config"] | {"model": {"paras": {"hidden_size": 99_999}}}},
        "missing .*postnet.bias": {**good, "model": {k: v for k, v in good["model"].items() if k != "postnet.bias"}},
        "expected tensors": {**good, "model": {**good["model"], "postnet.bias": "nothing"}},
    }
    for message, content in cases.items():
        torch.save(content, tmp_path / "bad.ckpt")
        with pytest.raises(CheckpointRefused, match=f"bad.ckpt.*{message}"):
            apc.read_apc(tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointRefused, match="nowhere"):
        apc.read_apc(tmp_path / "nowhere.ckpt")
    with pytest.raises(CheckpointRefused, match="of apc, expected vq_apc"):
        apc.read_vq_apc(write(tmp_path, net))
    with pytest.raises(CheckpointRefused, match="never published.*frame_shift.: 20"):
        apc.read_apc(write(tmp_path, net, audio={**AUDIO, "frame_shift": 20}))
    with pytest.raises(CheckpointRefused, match="never published.*residual"):
        apc.read_apc(write(tmp_path, net, residual=False))
    with pytest.raises(CheckpointRefused, match="no network has the sizes"):
        apc.read_vq_apc(write(tmp_path, net, vq={"codebook_size": [8], "code_dim": [8, 8], "gumbel_temperature": 1}))


@pytest.mark.parametrize(("name", "codes"), [("tiny_apc", 0), ("tiny_vq_apc", 128)])
def test_tiny_weights_are_read(tmp_path, name, codes):
    net = apc.tiny_network(codes=codes)
    half = {name: value.half() for name, value in net.state_dict().items()}
    (tmp_path / "it.safetensors").write_bytes(safetensors.torch.save(half))
    upstream = load_tiny(name, apc.PRETEXTS[name], tmp_path / "it.safetensors")
    assert upstream.name == name and (upstream.layers, upstream.dim) == (3, 176)
    assert 0.4e6 < sum(p.numel() for p in upstream.parameters()) < 0.65e6


# ------------------------------------------------------------------------------------------ the objective


def objective(codes=0, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return apc.ApcObjective(apc.tiny_network(codes=codes))


@pytest.mark.parametrize("codes", [0, 128])
def test_the_loss_falls_and_everything_learns(codes):
    learner, batch = objective(codes), torch.stack(waves(8000, 8000))
    optimiser = torch.optim.Adam(learner.parameters(), 1e-2)
    losses = []
    for step in range(12):
        loss, seen = learner(batch, random(step))
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert set(seen) == ({"of_copying", "codes"} if codes else {"of_copying"})


def test_dice_come_from_the_generator_only():
    learner, batch = objective(128), torch.stack(waves(8000, 8000))
    first, again, other = (learner(batch, random(seed))[0].item() for seed in (1, 1, 2))
    assert first == again != other
    state = torch.random.get_rng_state()
    learner(batch, random(1))
    assert bool((torch.random.get_rng_state() == state).all())


def test_the_future_is_guessed_not_seen():
    """Frames from 30 on change; guesses made from earlier ones stay."""
    learner = objective()
    mels = torch.randn(1, 60, 80, generator=random(3))
    changed = torch.cat([mels[:, :30], torch.zeros(1, 30, 80)], dim=1)
    with torch.no_grad():
        one, other = (learner.guess(x, None)[0] for x in (mels, changed))
    assert (one[:, :30] == other[:, :30]).all() and (one[:, 30:] != other[:, 30:]).any()


def test_the_codebook_chooses_and_lets_the_gradient_through():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        book = apc.Codebook(6, 5)
    x = torch.randn(2, 7, 6, generator=random(1), requires_grad=True)
    rows = book.codebook_CxE.weight.T
    for generator in (None, random(2)):
        chosen, wanted = book(x, generator)
        distance = (chosen[..., None, :] - rows).abs().sum(-1).min(-1).values
        assert distance.max() < 1e-5 and abs(float(wanted.detach().sum()) - 1) < 1e-5
    chosen.sum().backward()
    assert x.grad.abs().sum() > 0
    likeliest = book(x)[0]
    assert (likeliest == rows[book.vq_logits(x).argmax(-1)]).all()
    drawn = torch.cat([book(x, random(seed))[0] for seed in range(50)])
    assert (drawn - likeliest.repeat(50, 1, 1)).abs().sum(-1).gt(1e-5).float().mean() > 0.1, "dice must matter"
    none, used = apc.quantise([], x, None)
    assert none is x and float(used) == 1


def test_the_picture():
    learner, (wav,) = objective(128).train(), waves(16000)
    shown = learner.picture(wav)
    assert {name: tuple(image.shape) for name, image in shown.items()} == {"heard": (93, 80), "rebuilt": (93, 80)}
    assert learner.training and not shown["rebuilt"].requires_grad
    torch.testing.assert_close(shown["heard"], apc.clean_mel(wav)[5:])
