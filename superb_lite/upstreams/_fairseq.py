"""Checkpoints of the fairseq kind: settings and weights under their official names, turned into torchaudio's.

Sizes come from the file's settings. The network is first built without memory, and gets some only when it has as many
weights as the file, so that absurd settings cost nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from superb_lite.types import CheckpointRefused
from superb_lite.upstreams._published import load_published, settings

CONV_LAYERS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2"  # channels, kernel, stride
MOST = 100_000  # no size in a settings file is larger; a larger one is an attack or a mistake
MOST_LAYERS = 200

_BLOCK = r"encoder\.layers\.(\d+)\."
_OURS = r"encoder.transformer.layers.\1."
# (official name, torchaudio's), tried in this order
NAMES = (
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.(?:1\.)?", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"post_extract_proj\.", "encoder.feature_projection.projection."),
    (r"layer_norm\.", "encoder.feature_projection.layer_norm."),
    (r"encoder\.pos_conv\.0\.weight_g", "encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"encoder\.pos_conv\.0\.weight_v", "encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"encoder\.pos_conv\.0\.", "encoder.transformer.pos_conv_embed.conv."),
    (r"encoder\.layer_norm\.", "encoder.transformer.layer_norm."),
    (_BLOCK + r"self_attn\.", _OURS + "attention."),
    (_BLOCK + r"self_attn_layer_norm\.", _OURS + "layer_norm."),
    (_BLOCK + r"fc1\.", _OURS + "feed_forward.intermediate_dense."),
    (_BLOCK + r"fc2\.", _OURS + "feed_forward.output_dense."),
    (_BLOCK + r"final_layer_norm\.", _OURS + "final_layer_norm."),
    (r"mask_emb$", "hidden_frame"),
)


def rename(weights: Mapping[str, Tensor], more: tuple[tuple[str, str], ...] = ()) -> dict[str, Tensor]:
    """The weights under our names; a name that no rule (ours, or `more` of a family) knows stays as it is."""
    renamed = {}
    for name, value in weights.items():
        for official, ours in more + NAMES:
            found, times = re.subn("^" + official, ours, name)
            if times:
                name = found
                break
        renamed[name] = value
    return renamed


def weights_of(entry: Any, path: str | Path) -> dict[str, Tensor]:
    """Check that an entry of a checkpoint is {name: tensor}. Raises CheckpointRefused."""
    good = isinstance(entry, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in entry.items())
    if not good:
        raise CheckpointRefused(f"{path}: the weights are a {type(entry).__name__}, expected tensors under their names")
    return dict(entry)


class Settings:
    """The settings of a checkpoint, each checked when it is asked for. A missing one has the Base model's value."""

    def __init__(self, config: Any, path: str | Path):
        self.path = path
        try:
            self.values = settings(config)
        except (TypeError, ValueError):
            what = type(config).__name__
            raise CheckpointRefused(f"{path}: the settings are a {what}, expected a dictionary") from None

    def number(self, name: str, default: int, most: int = MOST) -> int:
        value = self.values.get(name, default)
        if not isinstance(value, int) or not 1 <= value <= most:
            raise CheckpointRefused(f"{self.path}: {name} is {value!r}, expected a whole number from 1 to {most}")
        return int(value)

    def flag(self, name: str) -> bool:
        return bool(self.values.get(name, False))

    def choice(self, name: str, *allowed: str) -> str:
        value = self.values.get(name, allowed[0])
        if value not in allowed:
            raise CheckpointRefused(f"{self.path}: {name} is {value!r}, expected {' or '.join(allowed)}")
        return value

    def conv_layers(self, name: str = "conv_feature_layers") -> list[tuple[int, int, int]]:
        """``[(512, 10, 5)] + [(512, 3, 2)] * 4`` as a list of (channels, kernel, stride), read and never run."""
        text, layers = str(self.values.get(name, CONV_LAYERS)).replace(" ", ""), []
        for group in text.split("+"):
            found = re.fullmatch(r"\[((?:\(\d{1,5},\d{1,5},\d{1,5}\),?)+)\](?:\*(\d{1,2}))?", group)
            if found is None:
                raise CheckpointRefused(f"{self.path}: {name} is {text[:80]!r}, expected something like {CONV_LAYERS}")
            rows = [tuple(int(n) for n in row.split(",")) for row in re.findall(r"\(([\d,]+)\)", found[1])]
            layers += rows * int(found[2] if found[2] is not None else 1)
        if not layers or min(min(layer) for layer in layers) == 0:
            raise CheckpointRefused(f"{self.path}: {name} is {text[:80]!r}: a layer without size")
        return layers

    def network_sizes(self, conv_layers: str = "conv_feature_layers") -> dict[str, Any]:
        """The arguments of ``torchaudio.models.wav2vec2_model``, without any dropout: nothing is trained here."""
        self.choice("activation_fn", "gelu")
        mode = self.choice("extractor_mode", "default", "layer_norm")
        dim, heads = self.number("encoder_embed_dim", 768), self.number("encoder_attention_heads", 12)
        groups = self.number("conv_pos_groups", 16)
        if dim % heads or dim % groups:
            raise CheckpointRefused(f"{self.path}: {dim} dimensions cannot be shared by {heads} heads, {groups} groups")
        return dict(
            extractor_mode="group_norm" if mode == "default" else mode,
            extractor_conv_layer_config=self.conv_layers(conv_layers), extractor_conv_bias=self.flag("conv_bias"),
            encoder_embed_dim=dim, encoder_projection_dropout=0.0,
            encoder_pos_conv_kernel=self.number("conv_pos", 128), encoder_pos_conv_groups=groups,
            encoder_num_layers=self.number("encoder_layers", 12, MOST_LAYERS), encoder_num_heads=heads,
            encoder_attention_dropout=0.0, encoder_ff_interm_features=self.number("encoder_ffn_embed_dim", 3072),
            encoder_ff_interm_dropout=0.0, encoder_dropout=0.0,
            encoder_layer_norm_first=self.flag("layer_norm_first"), encoder_layer_drop=0.0, aux_num_out=None,
        )  # fmt: skip


def build(make: Callable[[], nn.Module], weights: Mapping[str, Tensor], path: str | Path) -> tuple[nn.Module, str]:
    """The network that `make` makes, filled with weights of our names, and its revision. Raises CheckpointRefused."""
    with torch.device("meta"):
        network = make()
    if sum(p.numel() for p in network.parameters()) == sum(w.numel() for w in weights.values()):
        network.to_empty(device="cpu")  # else the next line says which weight is missing, extra or of another shape
    return network, load_published(network, weights, path)
