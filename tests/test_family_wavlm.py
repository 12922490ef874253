"""WavLM: agrees with the official toolkit, exact per clip, reads its files safely, and its objective learns."""

import fairseq_files as files
import pytest
import safetensors.torch
import torch
import torchaudio

from superb_lite.testing import check_upstream
from superb_lite.types import CheckpointRefused
from superb_lite.upstreams import wavlm
from superb_lite.upstreams._fairseq import Settings
from superb_lite.upstreams._pretext import load_tiny

CARDS = {card.name: card for card in wavlm.CARDS if card.read is not None}
READ = {False: wavlm.read_wavlm_base, True: wavlm.read_wavlm_large}


@pytest.mark.parametrize("folder", ["wavlm_base", "wavlm_large"])
def test_agrees_with_the_official_toolkit(folder):
    assert files.parity_gap(folder) < 2e-4


@pytest.mark.parametrize("large", [False, True])
def test_reads_the_file(tmp_path, large):
    upstream = READ[large](files.wavlm_file(tmp_path / "w.pt", large))
    assert (upstream.name, upstream.layers, upstream.dim) == ("wavlm_large" if large else "wavlm_base", 4, files.DIM)
    wav = files.noise(1.0)[0]
    heard = torch.nn.functional.layer_norm(wav, wav.shape) if large else wav
    with torch.no_grad():
        theirs, _ = upstream.network(heard[None])
    torch.testing.assert_close(upstream([wav]).states[-1], theirs, atol=1e-5, rtol=0)
    names = [f"encoder.layers.1.self_attn.{letter}_proj.weight" for letter in "qkv"]
    trio = torch.cat(list(files.weights([(name, (files.DIM, files.DIM)) for name in names]).values()))
    attention = upstream.network.encoder.transformer.layers[1].attention
    torch.testing.assert_close(attention.attention.in_proj_weight, trio)  # in this order


@pytest.mark.parametrize("large", [False, True])
def test_a_clip_is_the_same_in_any_batch(tmp_path, large):
    upstream = READ[large](files.wavlm_file(tmp_path / "w.pt", large))
    wavs = files.noise(1.3, 0.05, 2.07, 0.7)
    assert files.batch_gap(upstream, wavs) < 1e-5
    check_upstream(upstream)
    assert files.leak(upstream, wavs) > 1e-2


def test_the_largest_distance_is_read_from_the_settings(tmp_path):
    """It is in no shape: a reader that took a default would give other states without a word."""
    content = torch.load(files.wavlm_file(tmp_path / "w.pt"), weights_only=True)
    files.wavlm_file(tmp_path / "far.pt", cfg={**content["cfg"], "max_distance": 20})
    near, far = (wavlm.read_wavlm_base(tmp_path / name)(files.noise(1.0)).states for name in ("w.pt", "far.pt"))
    assert (near - far).abs().max() > 1e-3


@pytest.mark.parametrize("name", sorted(CARDS))
def test_the_card_counts_as_published(name):
    options = {"encoder_layers": 24, "encoder_embed_dim": 1024, "encoder_ffn_embed_dim": 4096}
    options |= {"encoder_attention_heads": 16, "extractor_mode": "layer_norm", "layer_norm_first": True}
    sizes = Settings(options if name.endswith("large") else {}, "none").network_sizes()
    sizes |= {"encoder_num_buckets": 320, "encoder_max_distance": 800}
    with torch.device("meta"):
        network = wavlm.with_hidden_frame(torchaudio.models.wavlm_model(**sizes))
    assert sum(p.numel() for p in network.parameters()) == CARDS[name].parameters
    assert CARDS[name].layers == sizes["encoder_num_layers"] + 1 and CARDS[name].dim == sizes["encoder_embed_dim"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cfg": None}, "has no 'cfg'"),
        ({"cfg": files.config()}, "no gated relative position bias"),
        ({"model": None}, "has no 'model'"),
        ({"model": 3}, "the weights are a int"),
        ({"model": {"encoder.layers.0.self_attn.q_proj.bias": torch.zeros(3)}}, "has no key or value"),
    ],
)
def test_unfit_files_are_refused(tmp_path, change, message):
    path = files.wavlm_file(tmp_path / "bad.pt", **change)
    with pytest.raises(CheckpointRefused, match=message) as error:
        wavlm.read_wavlm_base(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("bias", [{"num_buckets": 2}, {"max_distance": 8}, {"num_buckets": 320}])
def test_unfit_buckets_are_refused(tmp_path, bias):
    content = torch.load(files.wavlm_file(tmp_path / "w.pt"), weights_only=True)
    files.wavlm_file(tmp_path / "bad.pt", cfg={**content["cfg"], **bias})
    with pytest.raises(CheckpointRefused, match="bad.pt"):
        wavlm.read_wavlm_base(tmp_path / "bad.pt")


def test_other_families_and_pickles_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for make in (files.wav2vec2_file, files.hubert_file, files.distilhubert_file, files.hostile_file):
        path = make(tmp_path / f"{make.__name__}.pt")
        with pytest.raises(CheckpointRefused, match=make.__name__):
            wavlm.read_wavlm_base(path)
    assert not (tmp_path / "exploded").exists()


# ---------------------------------------------------------------------------------------------- objective


def denoised(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return wavlm.DenoisedUnits(wavlm.tiny_network(dim=64), units=7, **options)


def test_the_loss_falls_and_everything_learns():
    objective, wavs, steps = denoised(share=0.5), files.speechlike(), iter(range(1000))
    units = torch.randint(7, (2, 8), generator=torch.Generator().manual_seed(0)).repeat_interleave(10, 1)[:, :79]

    def step():
        return objective(wavs, units, torch.Generator().manual_seed(next(steps) % 3))[0]

    first, last = files.train(objective, step, 50)
    assert last < 0.6 * first
    assert files.untouched(objective) == []
    same = [float(objective(wavs, units, torch.Generator().manual_seed(seed))[0].detach()) for seed in (1, 1, 2)]
    assert same[0] == same[1] != same[2]


def test_a_second_voice_covers_at_most_half_of_some_clips():
    wavs = files.speechlike(40)
    mixed = wavlm.mix(wavs, torch.Generator().manual_seed(0), share=0.5)
    changed = mixed != wavs
    assert 10 < changed.any(dim=1).sum() < 30
    assert changed.sum(dim=1).max() <= wavs.shape[1] // 2 + 1
    for n in changed.any(dim=1).nonzero()[:, 0].tolist():
        where = changed[n].nonzero()[:, 0]
        added = (mixed - wavs)[n, where[0] : where[-1] + 1]
        level = 10 * torch.log10(added.square().mean() / wavs[n].square().mean())
        assert abs(level) < 5.1, "as loud as the clip, give or take 5 dB"
    assert torch.equal(wavlm.mix(wavs[:1], torch.Generator(), share=1.0), wavs[:1]), "nobody is there to be mixed in"


def test_the_picture():
    picture = denoised().picture(files.speechlike(1)[0])
    assert picture["guessed"].shape == (79, 7) and picture["heard"].shape == picture["hidden"].shape == (158, 80)


def test_the_tiny_one_keeps_the_contract(tmp_path):
    network = wavlm.tiny_network()
    assert 400_000 < sum(p.numel() for p in network.parameters()) < 900_000
    safetensors.torch.save_file(network.state_dict(), tmp_path / "t.safetensors")
    upstream = load_tiny("tiny_wavlm", wavlm.PRETEXTS["tiny_wavlm"], tmp_path / "t.safetensors")
    assert upstream.layers == 5
    check_upstream(upstream)
    assert files.batch_gap(upstream, files.noise(0.8, 0.3)) < 1e-5
