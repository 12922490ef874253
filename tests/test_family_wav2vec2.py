"""wav2vec 2.0: agrees with the official toolkit, exact per clip, reads its files safely, and its objective learns."""

import argparse

import fairseq_files as files
import pytest
import safetensors.torch
import torch
import torchaudio

from superb_lite.testing import check_upstream
from superb_lite.types import CheckpointRefused
from superb_lite.upstreams import wav2vec2
from superb_lite.upstreams._fairseq import Settings
from superb_lite.upstreams._pretext import load_tiny

CARDS = {card.name: card for card in wav2vec2.CARDS if card.read is not None}
READ = {False: wav2vec2.read_wav2vec2_base, True: wav2vec2.read_wav2vec2_large}


@pytest.mark.parametrize("folder", ["wav2vec2_base", "wav2vec2_large"])
def test_agrees_with_the_official_toolkit(folder):
    assert files.parity_gap(folder) < 2e-4


@pytest.mark.parametrize("large", [False, True])
def test_reads_the_repacked_file(tmp_path, large):
    upstream = READ[large](files.wav2vec2_file(tmp_path / "w.pt", large, bias=large))
    assert (upstream.name, upstream.layers, upstream.dim) == (CARDS[upstream.name].name, 4, files.DIM)
    wav = files.noise(1.0)[0]
    hidden = upstream([wav])
    heard = torch.nn.functional.layer_norm(wav, wav.shape) if large else wav
    with torch.no_grad():
        theirs, _ = upstream.network(heard[None])  # torchaudio's own forward pass: the last state
    torch.testing.assert_close(hidden.states[-1], theirs, atol=1e-5, rtol=0)
    assert hidden.states.shape == (4, 1, 49, files.DIM)
    projection = files.weights([("post_extract_proj.weight", (files.DIM, files.CHANNELS))])
    torch.testing.assert_close(
        upstream.network.encoder.feature_projection.projection.weight, projection["post_extract_proj.weight"]
    )


@pytest.mark.parametrize("container", ["args", "cfg"])
def test_reads_what_fairseq_itself_wrote(tmp_path, container):
    path = files.wav2vec2_file(tmp_path / "new.pt")
    content = torch.load(path, weights_only=True)
    flat = {**content["model_cfg"], "normalize": False}
    whole = {"task": content["task_cfg"], "model": content["model_cfg"]}
    old = {"args": argparse.Namespace(**flat)} if container == "args" else {"cfg": whole}
    torch.save({**old, "model": content["model_weight"]}, tmp_path / "old.pt")
    wavs = files.noise(0.5)
    torch.testing.assert_close(
        wav2vec2.read_wav2vec2_base(tmp_path / "old.pt")(wavs).states, wav2vec2.read_wav2vec2_base(path)(wavs).states
    )


@pytest.mark.parametrize("large", [False, True])
def test_a_clip_is_the_same_in_any_batch(tmp_path, large):
    upstream = READ[large](files.wav2vec2_file(tmp_path / "w.pt", large))
    wavs = files.noise(1.3, 0.05, 2.07, 0.7)
    assert files.batch_gap(upstream, wavs) < 1e-5
    check_upstream(upstream)
    # in the official way, padding enters the group norm of Base; Large has none, and masks by the exact rule
    assert files.leak(upstream, wavs) < 5e-5 if large else files.leak(upstream, wavs) > 1e-2


@pytest.mark.parametrize("name", sorted(CARDS))
def test_the_card_counts_as_published(name):
    large = name.endswith("large")
    options = {"encoder_layers": 24, "encoder_embed_dim": 1024, "encoder_ffn_embed_dim": 4096, "conv_bias": True}
    options |= {"encoder_attention_heads": 16, "extractor_mode": "layer_norm", "layer_norm_first": True}
    sizes = Settings(options if large else {}, "none").network_sizes()
    with torch.device("meta"):
        network = wav2vec2.with_contrast(torchaudio.models.wav2vec2_model(**sizes), 512, 768 if large else 256)
    assert sum(p.numel() for p in network.parameters()) == CARDS[name].parameters
    assert CARDS[name].layers == sizes["encoder_num_layers"] + 1 and CARDS[name].dim == sizes["encoder_embed_dim"]
    assert CARDS[name].url.startswith("https://") and CARDS[name].licence == "MIT"


def refused(path, message):
    with pytest.raises(CheckpointRefused, match=message) as error:
        wav2vec2.read_wav2vec2_base(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_cfg": None}, "has no 'model_cfg'"),
        ({"model_cfg": 3}, "settings are a int"),
        ({"model_cfg": {}}, "weights are of another network"),
        ({"model_cfg": files.config(encoder_layers=10**9)}, "encoder_layers is 1000000000"),
        ({"model_cfg": files.config(encoder_embed_dim="768")}, "encoder_embed_dim is '768'"),
        ({"model_cfg": files.config(encoder_embed_dim=90_000, encoder_layers=200)}, "weights are of another network"),
        ({"model_cfg": files.config(encoder_attention_heads=5)}, "cannot be shared by 5 heads"),
        ({"model_cfg": files.config(activation_fn="relu")}, "activation_fn is 'relu', expected gelu"),
        ({"model_cfg": files.config(conv_feature_layers="__import__('os').getcwd()")}, "expected something like"),
        ({"model_cfg": files.config(conv_feature_layers="[(24,10,0)]")}, "a layer without size"),
        ({"model_weight": {"a": 1}}, "expected tensors under their names"),
        ({"model_weight": {"a": torch.zeros(3)}}, r"weights are of another network \(missing"),
    ],
)
def test_unfit_files_are_refused(tmp_path, change, message):
    refused(files.wav2vec2_file(tmp_path / "bad.pt", **change), message)


def test_other_families_and_pickles_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(files.hubert_file(tmp_path / "hubert.pt"), "weights are of another network")
    refused(files.wavlm_file(tmp_path / "wavlm.pt"), "has no 'task'")
    refused(files.distilhubert_file(tmp_path / "distil.pt"), "has no 'task_cfg'")
    refused(files.hostile_file(tmp_path / "bomb.pt"), "opening it could run code")
    torch.save({"cfg": 5, "model": {}}, tmp_path / "odd.pt")
    refused(tmp_path / "odd.pt", "cfg is a int")
    assert not (tmp_path / "exploded").exists()


# ---------------------------------------------------------------------------------------------- objective


def contrast(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return wav2vec2.Contrast(wav2vec2.tiny_network(dim=64), distractors=20, **options)


def test_the_loss_falls_and_everything_learns():
    objective, wavs, steps = contrast(), files.speechlike(), iter(range(1000))

    def step():
        return objective(wavs, torch.Generator().manual_seed(next(steps) % 3))[0]

    first, last = files.train(objective, step, 45)
    assert last < 0.7 * first
    assert files.untouched(objective) == []
    _, seen = objective(wavs, torch.Generator().manual_seed(0))
    assert seen["right"] > 40 and seen["entries"] > 10


def test_the_generator_decides():
    objective, wavs = contrast(), files.speechlike()
    objective.eval()
    losses = [objective(wavs, torch.Generator().manual_seed(seed))[0].item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_the_temperature_falls_in_training_only():
    objective, wavs = contrast(cooling=0.5, cold=0.9), files.speechlike(seconds=0.5)
    seen = []
    for training in (False, True, True):
        objective.train(training)
        objective(wavs, torch.Generator().manual_seed(0))
        seen.append(float(objective.temperature))
    assert seen == pytest.approx([2.0, 1.0, 0.9])


def test_the_loss_is_about_hidden_and_visible_frames():
    losses = {}
    for share in (0.0, 0.5, 1.0):
        objective = contrast(visible=share).eval()
        losses[share] = objective(files.speechlike(), torch.Generator().manual_seed(0))[0].item()
    assert losses[0.0] != losses[1.0]
    assert losses[0.5] == pytest.approx((losses[0.0] + losses[1.0]) / 2, rel=1e-5)


def test_who_speaks_is_taken_out_of_what_is_quantised():
    """Another colour, the same through the clip, and another loudness: the targets stay."""
    objective, features = contrast(), torch.randn(1, 60, 160)
    hide = objective.mask(1, 60, torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain, coloured = (objective._context(x, hide)[1] for x in (features, 3 * features + torch.randn(160)))
    torch.testing.assert_close(plain, coloured, atol=1e-2, rtol=0)


def test_false_candidates_are_other_frames_of_the_same_clip_and_kind():
    hide = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 1]], dtype=torch.bool)
    others = wav2vec2.others_of(hide, 200, torch.Generator().manual_seed(0))
    assert [sorted(set(row)) for row in others.tolist()] == [[1, 2], [0, 2], [0, 1], [3], [5], [4]]
    counts = torch.bincount(others[0], minlength=3)
    assert 70 < counts[1] < 130, "evenly drawn"


def test_a_false_candidate_equal_to_the_true_one_is_left_out():
    objective = contrast()
    context, targets = torch.randn(3, 8), torch.tensor([[1.0] * 8, [1.0] * 8, [-2.0] * 8])
    scores = objective._scores(context, targets, torch.tensor([[1, 2], [0, 2], [0, 1]]))
    assert torch.isinf(scores[:2, 1]).all() and torch.isfinite(scores[:, 0]).all() and torch.isfinite(scores[2]).all()


def test_what_is_hidden_is_not_seen():
    """Other sound under the mask: the context vectors stay the same, the targets change."""
    objective = contrast()
    features = torch.randn(1, 40, 160)
    hide = objective.mask(1, 40, torch.Generator().manual_seed(0))
    assert 10 <= hide.sum() < 40
    found = []
    for sound in (features, torch.where(hide[..., None], -features, features)):
        with torch.no_grad():
            found.append(objective._context(sound, hide))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert (found[0][1] - found[1][1]).abs().max() > 1e-2


def test_the_quantiser_takes_one_entry_of_each_book():
    quantizer = wav2vec2.Quantizer(6, 8, groups=2, entries=5)
    x = torch.randn(50, 6)
    chosen, used = quantizer(x, 1.0, None)
    best = quantizer.score(x).unflatten(-1, (2, 5)).argmax(-1)
    books = quantizer.codes[0].view(2, 5, 4)
    torch.testing.assert_close(chosen, torch.cat([books[0][best[:, 0]], books[1][best[:, 1]]], dim=1))
    assert used.shape == (2, 5) and float(used.detach().sum()) == pytest.approx(2, abs=1e-5)
    drawn, _ = quantizer(x, 1.0, torch.Generator().manual_seed(0))
    assert (drawn != chosen).any(dim=1).float().mean() > 0.2, "with noise, other entries are chosen"
    (gradient,) = torch.autograd.grad(drawn.square().sum(), quantizer.score.weight)
    assert gradient.abs().max() > 1e-3, "the choice is hard, and yet the scores learn from it"


def test_the_picture(tmp_path):
    picture = contrast().picture(files.speechlike(1)[0])
    assert {key: tuple(value.shape) for key, value in picture.items()} == {
        "heard": (158, 80), "hidden": (158, 80), "scores": (79, 79),
    }  # fmt: skip
    assert (picture["heard"] != picture["hidden"]).any() and picture["scores"].abs().max() <= 1 + 1e-5
    upstream = wav2vec2.read_wav2vec2_base(files.wav2vec2_file(tmp_path / "w.pt"))
    published = wav2vec2.Contrast(upstream.network).picture(files.speechlike(1)[0])
    assert published["scores"].shape == (79, 79)


@pytest.mark.parametrize(("name", "layers"), [("tiny_wav2vec2", 5), ("tiny_wav2vec2_large", 9)])
def test_the_tiny_ones_keep_the_contract(tmp_path, name, layers):
    network = wav2vec2.PRETEXTS[name].network()
    assert 400_000 < sum(p.numel() for p in network.parameters()) < 900_000
    half = {name: value.half() for name, value in network.state_dict().items()}
    safetensors.torch.save_file(half, tmp_path / "t.safetensors")
    upstream = load_tiny(name, wav2vec2.PRETEXTS[name], tmp_path / "t.safetensors")
    assert upstream.layers == layers
    check_upstream(upstream)
    assert files.batch_gap(upstream, files.noise(0.8, 0.3)) < 1e-5
