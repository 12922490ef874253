"""HuBERT: agrees with the official toolkit, exact per clip, reads its files safely; the tiny ones are as they were."""

import fairseq_files as files
import pytest
import safetensors.torch
import torch
import torchaudio

from superb_lite import load_upstream
from superb_lite.testing import check_upstream
from superb_lite.types import CheckpointRefused
from superb_lite.upstreams import hubert
from superb_lite.upstreams._fairseq import Settings
from superb_lite.upstreams._pretext import load_tiny

CARDS = {card.name: card for card in hubert.CARDS if card.read is not None}
READ = {False: hubert.read_hubert_base, True: hubert.read_hubert_large}


@pytest.mark.parametrize("folder", ["hubert_base", "hubert_large"])
def test_agrees_with_the_official_toolkit(folder):
    assert files.parity_gap(folder) < 2e-4


def test_the_tiny_ones_are_what_their_results_were_made_with():
    """Stored features and results carry the revision; a change of it would orphan them."""
    assert load_upstream("tiny_hubert").revision == "39ec54d7d58c"
    assert load_upstream("random").revision == "c83e4b50b016"


@pytest.mark.parametrize("large", [False, True])
def test_reads_the_repacked_file(tmp_path, large):
    upstream = READ[large](files.hubert_file(tmp_path / "h.pt", large))
    assert (upstream.name, upstream.layers, upstream.dim) == ("hubert_large" if large else "hubert_base", 4, files.DIM)
    wav = files.noise(1.0)[0]
    heard = torch.nn.functional.layer_norm(wav, wav.shape) if large else wav
    with torch.no_grad():
        theirs, _ = upstream.network(heard[None])
    torch.testing.assert_close(upstream([wav]).states[-1], theirs, atol=1e-5, rtol=0)
    assert upstream.network.codebook.shape == (12, 16) and upstream.network.hidden_frame.shape == (files.DIM,)


@pytest.mark.parametrize("large", [False, True])
def test_a_clip_is_the_same_in_any_batch(tmp_path, large):
    upstream = READ[large](files.hubert_file(tmp_path / "h.pt", large))
    wavs = files.noise(1.3, 0.05, 2.07, 0.7)
    assert files.batch_gap(upstream, wavs) < 1e-5
    check_upstream(upstream)
    # in the official way one frame too many counts as sound, so that even Large depends on batch mates
    assert files.leak(upstream, wavs) > 1e-2


def test_states_before_the_last_have_seen_no_norm_in_a_pre_norm_network(tmp_path):
    upstream = hubert.read_hubert_large(files.hubert_file(tmp_path / "h.pt", large=True))
    spread = [float(state.std()) for state in upstream(files.noise(2.0)).states]
    assert spread[0] < spread[1] < spread[2] and spread[3] == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("name", ["hubert_base", "hubert_large"])
def test_the_card_counts_as_published(name):
    large = name.endswith("large")
    options = {"encoder_layers": 24, "encoder_embed_dim": 1024, "encoder_ffn_embed_dim": 4096}
    options |= {"encoder_attention_heads": 16, "extractor_mode": "layer_norm", "layer_norm_first": True}
    sizes = Settings(options if large else {}, "none").network_sizes()
    with torch.device("meta"):
        network = hubert.with_codebook(torchaudio.models.wav2vec2_model(**sizes), 768 if large else 256, 504)
    assert sum(p.numel() for p in network.parameters()) == CARDS[name].parameters
    assert CARDS[name].layers == sizes["encoder_num_layers"] + 1 and CARDS[name].dim == sizes["encoder_embed_dim"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dictionaries_symbols": None}, "has no 'dictionaries_symbols'"),
        ({"dictionaries_symbols": 7}, "no list of lists"),
        ({"dictionaries_symbols": [["a"]]}, "of another shape .'codebook'"),
        ({"model_cfg": files.config(final_dim=0)}, "final_dim is 0"),
        ({"task_cfg": [1]}, "settings are a list"),
        ({"model_weight": {}}, "weights are of another network"),
    ],
)
def test_unfit_files_are_refused(tmp_path, change, message):
    path = files.hubert_file(tmp_path / "bad.pt", **change)
    with pytest.raises(CheckpointRefused, match=message) as error:
        hubert.read_hubert_base(path)
    assert str(path) in str(error.value)


def test_other_families_and_pickles_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for make in (files.wav2vec2_file, files.wavlm_file, files.distilhubert_file, files.hostile_file):
        path = make(tmp_path / f"{make.__name__}.pt")
        with pytest.raises(CheckpointRefused, match=make.__name__):
            hubert.read_hubert_base(path)
    assert not (tmp_path / "exploded").exists()


# ---------------------------------------------------------------------------------------------- objective


def masked_units(make=hubert.tiny_network, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return hubert.MaskedUnits(make(**options), units=7)


@pytest.mark.parametrize("make", [hubert.tiny_network, hubert.tiny_large_network])
def test_the_loss_falls_and_everything_learns(make):
    objective, steps = masked_units(make, dim=64), iter(range(1000))
    wavs = files.speechlike()
    units = torch.randint(7, (2, 8), generator=torch.Generator().manual_seed(0)).repeat_interleave(10, 1)[:, :79]

    def step():
        return objective(wavs, units, torch.Generator().manual_seed(next(steps) % 3))[0]

    first, last = files.train(objective, step, 40)
    assert last < 0.6 * first
    assert files.untouched(objective) == []


def test_the_picture():
    picture = masked_units().picture(files.speechlike(1)[0])
    shapes = {key: tuple(value.shape) for key, value in picture.items()}
    assert shapes == {"heard": (158, 80), "hidden": (158, 80), "guessed": (79, 7)}
    torch.testing.assert_close(picture["guessed"].sum(1), torch.ones(79))
    gone = (picture["heard"] != picture["hidden"]).any(dim=1)
    assert 20 <= gone.sum() < 158 and (picture["hidden"][gone] == picture["heard"].min()).all()


def test_the_deep_thin_one_keeps_the_contract(tmp_path):
    network = hubert.tiny_large_network()
    assert 400_000 < sum(p.numel() for p in network.parameters()) < 900_000
    safetensors.torch.save_file(network.state_dict(), tmp_path / "t.safetensors")
    upstream = load_tiny("tiny_hubert_large", hubert.PRETEXTS["tiny_hubert_large"], tmp_path / "t.safetensors")
    assert upstream.layers == 9
    check_upstream(upstream)
    assert files.batch_gap(upstream, files.noise(0.8, 0.3)) < 1e-5
