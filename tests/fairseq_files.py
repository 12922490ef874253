"""Small checkpoints in the containers of fairseq, WavLM and DistilHuBERT, for the tests of those families.

Names and shapes are written down here a second time, from the official layout, so that a reader that renames wrongly
does not agree with its own mistake. Weights follow from their names.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from superb_lite.parity import compare_folder, made_up_weights

CHANNELS, DIM, INNER, HEADS = 24, 32, 64, 4
CONV = f"[({CHANNELS},10,5)] + [({CHANNELS},3,2)] * 4 + [({CHANNELS},2,2)] * 2"
PLACE = os.environ.get("SUPERB_LITE_PARITY")
PARITY = Path(PLACE) if PLACE else Path(__file__).resolve().parents[2] / "shared" / "parity" / "upstreams"


def parity_gap(folder):
    """The largest difference from the official toolkit's states, or a skip that says why."""
    if not (PARITY / folder / "io.npz").exists():
        pytest.skip(f"no reference states at {PARITY / folder}; set SUPERB_LITE_PARITY to the folder that holds them")
    return compare_folder(PARITY / folder).gap


def config(large=False, **more):
    """Settings under their official names; `large`: layer norms in the front end, norms in front of the blocks."""
    return {
        "extractor_mode": "layer_norm" if large else "default", "encoder_layers": 3, "encoder_embed_dim": DIM,
        "encoder_ffn_embed_dim": INNER, "encoder_attention_heads": HEADS, "layer_norm_first": large,
        "conv_feature_layers": CONV, "conv_bias": False, "conv_pos": 16, "conv_pos_groups": 4, "activation_fn": "gelu",
        **more,
    }  # fmt: skip


def _linear(name, out, into):
    return [(f"{name}.weight", (out, into)), (f"{name}.bias", (out,))]


def _norm(name, size):
    return [(f"{name}.weight", (size,)), (f"{name}.bias", (size,))]


def layout(large=False, bias=False, layers=3, front_norm=True):
    """(name, shape) of everything from the waveform to the last block, without the heads of pre-training."""
    rows = [("encoder.pos_conv.0.bias", (DIM,)), ("encoder.pos_conv.0.weight_g", (1, 1, 16))]
    rows += [("encoder.pos_conv.0.weight_v", (DIM, DIM // 4, 16))]
    for n, kernel in enumerate((10, 3, 3, 3, 3, 2, 2)):
        place = f"feature_extractor.conv_layers.{n}"
        rows += [(f"{place}.0.weight", (CHANNELS, 1 if n == 0 else CHANNELS, kernel))]
        rows += [(f"{place}.0.bias", (CHANNELS,))] if bias else []
        rows += _norm(f"{place}.2.1", CHANNELS) if large else _norm(f"{place}.2", CHANNELS) if n == 0 else []
    rows += _linear("post_extract_proj", DIM, CHANNELS) + _norm("encoder.layer_norm", DIM)
    rows += _norm("layer_norm", CHANNELS) if front_norm else []
    for n in range(layers):
        place = f"encoder.layers.{n}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            rows += _linear(f"{place}.self_attn.{name}", DIM, DIM)
        rows += _norm(f"{place}.self_attn_layer_norm", DIM) + _norm(f"{place}.final_layer_norm", DIM)
        rows += _linear(f"{place}.fc1", INNER, DIM) + _linear(f"{place}.fc2", DIM, INNER)
    return rows


def weights(rows):
    """{name: tensor} for rows of (name, shape)."""
    return made_up_weights([(name, shape, "float32") for name, shape in rows])


def wav2vec2_file(path, large=False, bias=False, **change):
    """wav2vec 2.0 as repacked: task_cfg, model_cfg, model_weight."""
    rows = layout(large, bias) + [("mask_emb", (DIM,)), ("quantizer.vars", (1, 16, 8))]
    rows += _linear("quantizer.weight_proj", 16, CHANNELS) + _linear("project_q", 16, 16)
    rows += _linear("final_proj", 16, DIM)
    model = config(large, conv_bias=bias, final_dim=16, latent_vars=8, latent_groups=2)
    content = {"task_cfg": {"normalize": large}, "model_cfg": model, "model_weight": weights(rows)}
    return save(path, content, change)


def hubert_file(path, large=False, **change):
    """HuBERT as repacked: the same, and the names of its units."""
    rows = layout(large) + [("mask_emb", (DIM,)), ("label_embs_concat", (12, 16))] + _linear("final_proj", 16, DIM)
    content = {
        "task_cfg": {"normalize": large, "label_rate": 50.0}, "model_weight": weights(rows),
        "model_cfg": config(large, final_dim=16, untie_final_proj=True),
        "dictionaries_symbols": [[str(n) for n in range(12)]],
    }  # fmt: skip
    return save(path, content, change)


def wavlm_file(path, large=False, **change):
    """WavLM: cfg, model."""
    rows = [*layout(large), ("mask_emb", (DIM,))]
    rows += [("encoder.layers.0.self_attn.relative_attention_bias.weight", (32, HEADS))]
    for n in range(3):
        rows += [(f"encoder.layers.{n}.self_attn.grep_a", (1, HEADS, 1, 1))]
        rows += _linear(f"encoder.layers.{n}.self_attn.grep_linear", 8, DIM // HEADS)
    bias = {"relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 32, "max_distance": 80}
    return save(path, {"cfg": config(large, normalize=large, **bias), "model": weights(rows)}, change)


def distilhubert_file(path, **change):
    """DistilHuBERT: Distiller, Config, and what the runner leaves."""
    rows = layout(layers=2, front_norm=False) + _linear("output_layer.0", 3 * DIM, DIM)
    rows += [("output_layer.2.weight", (3, DIM, DIM)), ("output_layer.2.bias", (1, 1, 3, DIM))]
    sizes = config(encoder_layers=2, final_dim=DIM, n_tasks=3, out_layer_type="expand-last")
    sizes["extractor_conv_feature_layers"] = sizes.pop("conv_feature_layers")
    return save(path, {"Distiller": weights(rows), "Config": {"distiller": sizes}, "Step": 1}, change)


def save(path, content, change):
    """Write a checkpoint; `change` replaces entries, and None takes one out."""
    content = {**content, **change}
    torch.save({name: value for name, value in content.items() if value is not None}, path)
    return path


class Bomb:
    """Leaves a file when it is unpickled without care."""

    def __reduce__(self):
        return (Path("exploded").touch, ())


def hostile_file(path):
    """A pickle that would run code."""
    with open(path, "wb") as file:
        pickle.dump({"model_weight": Bomb()}, file)
    return path


def noise(*seconds, seed=0):
    """White noise, a list of (samples,) waveforms."""
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(int(16000 * s), generator=generator) for s in seconds]


def speechlike(count=2, seconds=1.6, seed=0):
    """(count, samples): tones that change every tenth of a second, so that there is something to predict."""
    generator = torch.Generator().manual_seed(seed)
    pieces = torch.randint(4, 40, (count, round(seconds * 10)), generator=generator) * 100.0
    phase = torch.cumsum(pieces.repeat_interleave(1600, 1) / 16000, 1) * 2 * torch.pi
    return 0.2 * phase.sin() + 0.01 * torch.randn(phase.shape, generator=generator)


def batch_gap(upstream, wavs):
    """The largest difference between a clip in the batch and the clip alone; frames must be as many."""
    together, gaps = upstream(wavs), []
    for n, wav in enumerate(wavs):
        alone = upstream([wav])
        frames = int(alone.lengths[0])
        assert int(together.lengths[n]) == frames == alone.states.shape[2]
        gaps.append(float((together.states[:, n, :frames] - alone.states[:, 0]).abs().max()))
    return max(gaps)


def leak(upstream, wavs):
    """The same for the official treatment of padding."""
    padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    samples = torch.tensor([len(wav) for wav in wavs])
    with torch.no_grad():
        together = upstream.published(padded, samples)
        gaps = []
        for n, wav in enumerate(wavs):
            alone = upstream.published(wav[None], samples[n : n + 1])
            gaps.append(float((together[:, n, : alone.shape[2]] - alone[:, 0]).abs().max()))
    return max(gaps)


def train(objective, step, steps, lr=3e-3):
    """Minimise `step()` -> loss. Returns the first and the last loss."""
    optimiser = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr)
    losses = []
    for _ in range(steps):
        loss = step()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def untouched(objective):
    """Names of the parameters that should learn and got no gradient."""
    return [
        name for name, weight in objective.named_parameters()
        if weight.requires_grad and (weight.grad is None or not weight.grad.abs().sum() > 0)
    ]  # fmt: skip
