"""Prefixes: pipelines of torchaudio in our class, encoders of transformers behind an adapter."""

import fairseq_files as files
import pytest
import torch
import torchaudio

from superb_lite.testing import check_upstream
from superb_lite.types import CheckpointRefused, CorpusMissing, SuperbLiteError, UnknownName
from superb_lite.upstreams import hub

SMALL = {"encoder_embed_dim": 32, "encoder_num_layers": 3, "encoder_num_heads": 4, "encoder_ff_interm_features": 48}
SMALL |= {"encoder_pos_conv_kernel": 16, "encoder_pos_conv_groups": 4}
CONV = [(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2


@pytest.fixture
def small_bundle(tmp_path, monkeypatch):
    """Call it with a pipeline's name: its network shrunk, and a weight file in the format of torchaudio's server."""

    def make(name, **more):
        bundle = getattr(torchaudio.pipelines, name)
        params = {**bundle._params, **SMALL, "extractor_conv_layer_config": CONV, **more}
        monkeypatch.setattr(bundle, "_params", params)
        build = torchaudio.models.wavlm_model if bundle._model_type == "WavLM" else torchaudio.models.wav2vec2_model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build(**params).eval()
        old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        weights = {}
        for key, value in network.state_dict().items():
            for new, before in old.items():
                key = key.replace(new, before)
            weights[key] = value
        path = tmp_path / bundle._path
        torch.save(weights, path)
        asked = []
        monkeypatch.setattr(hub, "fetch", lambda url, sha256, name: asked.append(url) or path)
        return network, asked

    return make


@pytest.mark.parametrize("name", ["HUBERT_BASE", "WAV2VEC2_LARGE_LV60K", "WAVLM_LARGE", "WAV2VEC2_ASR_BASE_960H"])
def test_a_pipeline_of_torchaudio(small_bundle, name):
    network, asked = small_bundle(name)
    upstream = hub.load_torchaudio(name)
    assert asked == [hub.TORCHAUDIO + getattr(torchaudio.pipelines, name)._path]
    assert (upstream.name, upstream.layers, upstream.dim) == (f"torchaudio:{name}", 4, 32)
    wav = files.noise(1.0)[0]
    heard = torch.nn.functional.layer_norm(wav, wav.shape) if "LARGE" in name else wav
    with torch.no_grad():
        inner, _ = network.extract_features(heard[None])
    for ours, theirs in zip(upstream([wav]).states[1:3], inner[:2], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    check_upstream(upstream)
    assert files.batch_gap(upstream, files.noise(1.3, 0.05, 2.07)) < 1e-5


def test_unknown_pipelines_and_broken_files(small_bundle, tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'HUBERT_BASE'"):
        hub.load_torchaudio("HUBERT_BAS")
    small_bundle("HUBERT_BASE")
    torch.save({"w": torch.zeros(3)}, tmp_path / torchaudio.pipelines.HUBERT_BASE._path)
    with pytest.raises(CheckpointRefused, match="weights are of another network"):
        hub.load_torchaudio("HUBERT_BASE")


# ------------------------------------------------------------------------------------------- transformers


def transformers():
    return pytest.importorskip(
        "transformers", reason="transformers is not installed; pip install 'superb-lite[hub]' to test its encoders"
    )


def saved(kind, folder):
    """A tiny encoder of random weights, in a folder as the hub has them."""
    t = transformers()
    sizes = dict(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    stable = dict(feat_extract_norm="layer", do_stable_layer_norm=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "hubert":
            model = t.HubertModel(t.HubertConfig(**sizes))
        elif kind == "wav2vec2_large":
            model = t.Wav2Vec2Model(t.Wav2Vec2Config(**sizes, **stable))
        else:
            small = dict(d_model=32, vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2)
            small |= {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
            model = t.WhisperModel(t.WhisperConfig(**small, encoder_ffn_dim=32, decoder_ffn_dim=32))
    masks = {"do_normalize": kind != "hubert", "return_attention_mask": kind != "hubert"}
    (t.WhisperFeatureExtractor() if kind == "whisper" else t.Wav2Vec2FeatureExtractor(**masks)).save_pretrained(folder)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2_large", "whisper"])
def test_an_encoder_of_transformers(tmp_path, kind):
    model = saved(kind, tmp_path)
    upstream = hub.load_hf(str(tmp_path))
    assert upstream.name == f"hf:{tmp_path}" and upstream.stride == 320 and upstream.dim == 32
    assert upstream.layers == (3 if kind == "whisper" else 4)
    assert upstream.together == (kind == "wav2vec2_large"), "only what masks everything may share a batch"
    check_upstream(upstream)
    wavs = files.noise(1.3, 0.4, 2.07)
    assert files.batch_gap(upstream, wavs) < 1e-5
    lengths = upstream(wavs).lengths.tolist()
    assert lengths == ([65, 20, 104] if kind == "whisper" else [64, 19, 103])
    if kind == "hubert":
        with torch.no_grad():
            theirs = model(wavs[0][None], output_hidden_states=True).hidden_states
        torch.testing.assert_close(upstream(wavs[:1]).states, torch.stack(theirs), atol=1e-5, rtol=0)


def test_what_the_hub_does_not_have(monkeypatch, tmp_path):
    transformers()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CorpusMissing, match="cannot get '.*nowhere'.*give the path of that folder"):
        hub.load_hf(str(tmp_path / "nowhere"))


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(SuperbLiteError, match=r"pip install 'superb-lite\[hub\]'"):
        hub.load_hf("facebook/hubert-base-ls960")
