"""DistilHuBERT: agrees with the official toolkit, exact per clip, reads its files safely, and learns from a teacher."""

import fairseq_files as files
import pytest
import safetensors.torch
import torch
import torchaudio

from superb_lite.testing import check_upstream
from superb_lite.types import CheckpointRefused
from superb_lite.upstreams import distilhubert, get_card, hubert
from superb_lite.upstreams._fairseq import Settings
from superb_lite.upstreams._pretext import load_tiny

CARD = get_card("distilhubert")


def test_agrees_with_the_official_toolkit():
    assert files.parity_gap("distilhubert") < 2e-4


def test_reads_the_file(tmp_path):
    upstream = distilhubert.read_distilhubert(files.distilhubert_file(tmp_path / "d.ckpt"))
    assert (upstream.name, upstream.layers, upstream.dim) == ("distilhubert", 6, files.DIM)
    wav = files.noise(1.0)[0]
    states = upstream([wav]).states
    with torch.no_grad():
        theirs, _ = upstream.network(wav[None])  # torchaudio's own forward pass: state 2, the last block
        heads = upstream.network.heads
        x = torch.nn.functional.gelu(heads.expand(theirs))[..., files.DIM : 2 * files.DIM]
        second = x @ heads.weight[1] + heads.bias[0, 0, 1]
        features, _ = upstream.network.feature_extractor(wav[None], None)
        projected = upstream.network.encoder.feature_projection.projection(features)  # and no position in it yet
    torch.testing.assert_close(states[0], projected, atol=1e-5, rtol=0)
    torch.testing.assert_close(states[2], theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(states[4], second, atol=1e-5, rtol=0)


def test_a_clip_is_the_same_in_any_batch(tmp_path):
    upstream = distilhubert.read_distilhubert(files.distilhubert_file(tmp_path / "d.ckpt"))
    wavs = files.noise(1.3, 0.05, 2.07, 0.7)
    assert files.batch_gap(upstream, wavs) < 1e-5
    check_upstream(upstream)
    assert files.leak(upstream, wavs) > 1e-2


def test_the_card_counts_as_published():
    sizes = Settings({"encoder_layers": 2}, "none").network_sizes()
    with torch.device("meta"):
        network = distilhubert.with_heads(torchaudio.models.wav2vec2_model(**sizes))
    assert sum(p.numel() for p in network.parameters()) == CARD.parameters
    assert (CARD.layers, CARD.dim) == (1 + 2 + 3, sizes["encoder_embed_dim"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Distiller": None}, "has no 'Distiller'"),
        ({"Config": {}}, "has no 'distiller'"),
        ({"Config": {"distiller": 2}}, "settings are a int"),
        ({"Config": {"distiller": files.config(final_dim=16)}}, "expected predictions as wide as the network"),
        ({"Config": {"distiller": files.config(task_emb_type="self-hidden")}}, "expected expand-last"),
        ({"Config": {"distiller": files.config(n_tasks=4)}}, "weights are of another network"),
    ],
)
def test_unfit_files_are_refused(tmp_path, change, message):
    path = files.distilhubert_file(tmp_path / "bad.ckpt", **change)
    with pytest.raises(CheckpointRefused, match=message) as error:
        distilhubert.read_distilhubert(path)
    assert str(path) in str(error.value)


def test_other_families_and_pickles_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for make in (files.wav2vec2_file, files.hubert_file, files.wavlm_file, files.hostile_file):
        path = make(tmp_path / f"{make.__name__}.pt")
        with pytest.raises(CheckpointRefused, match=make.__name__):
            distilhubert.read_distilhubert(path)
    assert not (tmp_path / "exploded").exists()


# ---------------------------------------------------------------------------------------------- objective


def distillation(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = hubert.Hubert("teacher", hubert.tiny_network(dim=64), revision="none")
        return distilhubert.Distillation(distilhubert.tiny_network(dim=64), teacher, **options)


def test_the_loss_falls_and_only_the_student_learns():
    objective, wavs = distillation(), files.speechlike()
    before = {name: value.clone() for name, value in objective.teacher.state_dict().items()}
    first, last = files.train(objective, lambda: objective(wavs)[0], 40)
    assert last < 0.6 * first
    assert files.untouched(objective) == []
    assert all(torch.equal(before[name], value) for name, value in objective.teacher.state_dict().items())
    _, seen = objective(wavs)
    assert seen["cosine"] > 0.7
    assert float(objective(wavs)[0].detach()) == float(objective(wavs)[0].detach()), "nothing is drawn"


def test_the_loss_is_size_and_direction_summed_over_layers():
    objective, wavs = distillation(targets=(1, 2, 4), direction=0.5), files.speechlike(1, 0.5)
    wanted = objective.teacher(list(wavs)).states[[1, 2, 4]]
    with torch.no_grad():
        _, said = objective._both(wavs)
        total = 0.0
        for layer in range(3):
            cosine = (said[layer] * wanted[layer]).sum(-1) / (said[layer].norm(dim=-1) * wanted[layer].norm(dim=-1))
            total += (said[layer] - wanted[layer]).abs().mean() - 0.5 * torch.log(torch.sigmoid(cosine)).mean()
        torch.testing.assert_close(objective(wavs)[0], total)


def test_which_layers_are_predicted():
    assert distillation().targets == [1, 3, 4], "a third, two thirds and all of four blocks"
    for wrong in ((1, 2), (1, 2, 9)):
        with pytest.raises(ValueError, match="expected 3 states from 0 to 4"):
            distillation(targets=wrong)


def test_the_student_begins_as_the_teacher():
    teacher, student = hubert.tiny_network(), distilhubert.tiny_network()
    distilhubert.start_from(student, teacher)
    for block in range(2):
        ours, theirs = (network.encoder.transformer.layers[block].state_dict() for network in (student, teacher))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    projections = [network.encoder.feature_projection.projection.weight for network in (student, teacher)]
    assert torch.equal(*projections)


def test_the_picture():
    shapes = {key: tuple(value.shape) for key, value in distillation().picture(files.speechlike(1)[0]).items()}
    assert shapes == {"heard": (158, 80), "wanted": (79, 64), "rebuilt": (79, 64)}


def test_the_tiny_one_keeps_the_contract(tmp_path):
    network = distilhubert.tiny_network()
    safetensors.torch.save_file(network.state_dict(), tmp_path / "t.safetensors")
    upstream = load_tiny("tiny_distilhubert", distilhubert.PRETEXTS["tiny_distilhubert"], tmp_path / "t.safetensors")
    assert upstream.layers == 6
    check_upstream(upstream)
    assert files.batch_gap(upstream, files.noise(0.8, 0.3)) < 1e-5
