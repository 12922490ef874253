"""Any audio encoder of the Hugging Face hub, and torchaudio's pipelines, as upstreams.

    load_upstream("hf:facebook/hubert-base-ls960")     # needs transformers: pip install 'superb-lite[hub]'
    load_upstream("torchaudio:HUBERT_BASE")

States are exact per clip. torchaudio's weights run in the same class as ours; encoders of `transformers` see one clip
at a time, unless they were trained with an attention mask and have no norm that runs over time.

Taught in notebook 13 (the contestants). Source: the state count and order of superb/protocol.md section 2.3.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn

from superb_lite.files import fetch
from superb_lite.types import (
    RATE,
    AudioError,
    Card,
    CheckpointRefused,
    CorpusMissing,
    Hidden,
    SuperbLiteError,
    UnknownName,
)
from superb_lite.upstreams._fairseq import build, weights_of
from superb_lite.upstreams._frozen import Frozen, digest
from superb_lite.upstreams._published import read_checkpoint
from superb_lite.upstreams._transformer import SpeechTransformer

CARDS: tuple[Card, ...] = ()  # there is no list of what the hub holds
TORCHAUDIO = "https://download.pytorch.org/torchaudio/models/"


# --------------------------------------------------------------------------------------------- torchaudio


def _bundles() -> dict[str, Any]:
    kind = torchaudio.pipelines.Wav2Vec2Bundle
    return {name: value for name, value in vars(torchaudio.pipelines).items() if isinstance(value, kind)}


def load_torchaudio(name: str) -> SpeechTransformer:
    """The frozen network of a pipeline such as ``HUBERT_BASE``; a head for speech recognition is left away.

    Raises UnknownName with the nearest name, CorpusMissing without a network, CheckpointRefused for a broken file.
    """
    if name not in _bundles():
        raise UnknownName.among("speech network of torchaudio", name, tuple(_bundles()))
    bundle = _bundles()[name]
    path = fetch(TORCHAUDIO + bundle._path, None, name=Path(bundle._path).name)
    sizes = {**bundle._params, "aux_num_out": None}
    make = torchaudio.models.wavlm_model if bundle._model_type == "WavLM" else torchaudio.models.wav2vec2_model
    weights = weights_of(read_checkpoint(path), path)
    network, revision = build(lambda: make(**sizes), _new_names(weights), path)
    return SpeechTransformer(f"torchaudio:{name}", network, revision, normalise=bundle._normalize_waveform)


def _new_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the head, and with weight norm under the names it has had since torch 2.0."""
    new = {"g": "parametrizations.weight.original0", "v": "parametrizations.weight.original1"}
    kept = {name: value for name, value in weights.items() if not name.startswith("aux.")}
    return {re.sub(r"weight_([gv])$", lambda found: new[found[1]], name): value for name, value in kept.items()}


# ------------------------------------------------------------------------------------------- transformers


class HubEncoder(Frozen):
    """An audio encoder of `transformers` with its feature extractor. States: whatever it calls hidden states.

    encoder: the module; prepare: the feature extractor; together: clips may share a batch, with an attention mask
    """

    def __init__(self, name: str, encoder: nn.Module, prepare: Any, *, together: bool):
        super().__init__()
        self.name, self.encoder, self.prepare, self.together = name, encoder, prepare, together
        self.freeze()
        self.revision = digest(encoder)
        self._measure()

    @torch.no_grad()
    def _measure(self) -> None:
        """Find out states, size and stride: two clips of noise, 2 and 4 seconds long."""
        noise = 0.1 * torch.randn(4 * RATE, generator=torch.Generator().manual_seed(0))
        short, long = (self._encode([noise[: seconds * RATE]]) for seconds in (2, 4))
        self.layers, self.dim = len(long), long.shape[-1]
        more = long.shape[2] - short.shape[2]
        self.fixed = more == 0 and hasattr(self.prepare, "n_samples")  # Whisper pads everything to half a minute
        if more <= 0 and not self.fixed:
            raise CheckpointRefused(f"{self.name} gives as many frames for 4 s as for 2 s; expected a frame rate")
        samples = self.prepare.n_samples if self.fixed else 2 * RATE
        self.stride = round(samples / (long.shape[2] if self.fixed else more))

    def _encode(self, wavs: list[Tensor]) -> Tensor:
        """A list of (samples,) -> (layers, batch, frames, dim), padding included."""
        device = next(self.encoder.parameters()).device
        several = {"padding": True, "return_attention_mask": True} if len(wavs) > 1 else {}
        arrays = [wav.cpu().numpy() for wav in wavs]
        inputs = self.prepare(arrays, sampling_rate=RATE, return_tensors="pt", **several).to(device)
        out = self.encoder(**inputs, output_hidden_states=True, return_dict=True)
        states = getattr(out, "hidden_states", None)
        shapes = set() if states is None else {tuple(state.shape) for state in states}
        if len(shapes) != 1 or len(next(iter(shapes))) != 3:
            found = f"states of the shapes {sorted(shapes)}" if shapes else "no hidden states"
            raise CheckpointRefused(f"{self.name} gives {found}; expected (batch, frames, dim), alike in all layers")
        return torch.stack([state.float() for state in states])

    def hidden(self, wavs: Tensor, samples: Tensor) -> Hidden:
        clips = [wav[:n] for wav, n in zip(wavs, samples.tolist(), strict=True)]
        if self.fixed and max(len(clip) for clip in clips) > self.prepare.n_samples:
            raise AudioError(f"{self.name} hears at most {self.prepare.n_samples // RATE} s at a time; cut the clip")
        if self.together and len(clips) > 1:
            states = self._encode(clips)
            lengths = self.encoder._get_feat_extract_output_lengths(samples)
            return Hidden(states.to(wavs.device), lengths.to(wavs.device))
        alone = [self._encode([clip])[:, 0].transpose(0, 1) for clip in clips]  # (frames, layers, dim)
        if self.fixed:
            alone = [x[: -(-len(clip) // self.stride)] for x, clip in zip(alone, clips, strict=True)]
        lengths = torch.tensor([len(x) for x in alone], device=wavs.device)
        padded = nn.utils.rnn.pad_sequence(alone, batch_first=True)
        return Hidden(padded.permute(2, 0, 1, 3).to(wavs.device), lengths)


def load_hf(name: str) -> HubEncoder:
    """An encoder of the hub (``facebook/hubert-base-ls960``) or of a folder that `transformers` wrote.

    Of a model with a decoder, such as Whisper, the encoder is taken. Code that lies in a repository is never run.
    Raises SuperbLiteError without `transformers`, CorpusMissing if the model cannot be had, CheckpointRefused if it
    is no audio encoder.
    """
    try:
        import transformers
    except ImportError:
        raise SuperbLiteError("models of the hub need transformers: run  pip install 'superb-lite[hub]'") from None
    try:
        prepare = transformers.AutoFeatureExtractor.from_pretrained(name)
        model = transformers.AutoModel.from_pretrained(name, dtype=torch.float32)
    except OSError as error:
        why = str(error).strip().splitlines()[0]
        raise CorpusMissing(
            f"cannot get {name!r} from the hub: {why} Expected owner/name, or the folder of a model; without a network "
            f"run  hf download {name}  elsewhere and give the path of that folder"
        ) from error
    except ValueError as error:
        raise CheckpointRefused(f"{name} is no model that transformers can build: {error}") from error
    if getattr(prepare, "sampling_rate", None) != RATE:
        raise CheckpointRefused(f"{name} does not hear audio at {RATE} Hz; expected a speech encoder")
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    return HubEncoder(f"hf:{name}", encoder, prepare, together=_masks(encoder, prepare))


def _masks(encoder: nn.Module, prepare: Any) -> bool:
    """True if a clip is the same in any batch: trained with attention masks, and no group norm over time."""
    known = hasattr(encoder, "_get_feat_extract_output_lengths")
    layer_norm = getattr(encoder.config, "feat_extract_norm", None) == "layer"
    return known and layer_norm and bool(getattr(prepare, "return_attention_mask", False))


PREFIXES = {"hf": load_hf, "torchaudio": load_torchaudio}  # what stands before the colon -> (name) -> upstream
