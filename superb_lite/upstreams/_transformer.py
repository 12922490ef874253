"""What wav2vec 2.0, HuBERT, WavLM and DistilHuBERT share: frames, a positional convolution, a transformer.

The networks are torchaudio's. Written here is what makes a clip independent of its batch mates, and what the official
toolkit does instead. Three places can leak: the group norm behind the first convolution (its mean and variance run
over time, so over padding too), the positional convolution (it reaches 64 frames to both sides) and attention.

Source: superb/protocol.md section 2.3; Baevski et al. 2020, arXiv:2006.11477, section 2.
Taught in notebooks 01 (pre-train an upstream) and 13 (the contestants).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchaudio.models.wav2vec2.components import FeatureExtractor
from torchaudio.models.wav2vec2.wavlm_attention import WavLMSelfAttention

from superb_lite.types import Hidden
from superb_lite.upstreams._frozen import Frozen
from superb_lite.upstreams.fbank import log_mel


def spans(starts: Tensor, span: int) -> Tensor:
    """(batch, frames) bool, True where a span begins -> True on all `span` frames of every span; spans may overlap."""
    earlier = nn.functional.pad(starts.float(), (span - 1, 0))
    return nn.functional.max_pool1d(earlier[:, None], span, stride=1)[:, 0] > 0


def heard_and_hidden(wav: Tensor, hide: Tensor) -> dict[str, Tensor]:
    """Two pictures, (10 ms frames, 80) both: the log-mel spectrogram, and the same without `hide` (20 ms frames,)."""
    mel = log_mel(wav).cpu()
    gone = hide.cpu().repeat_interleave(2)[: len(mel)]
    gone = nn.functional.pad(gone, (0, len(mel) - len(gone)))
    return {"heard": mel, "hidden": torch.where(gone[:, None], mel.min(), mel)}


# ------------------------------------------------------------------------------------------- forward pass


def conv_frames(extractor: FeatureExtractor, samples: Tensor) -> Tensor:
    """(batch,) samples -> (batch,) frames that fit into them: a window that would stick out is left out."""
    for layer in extractor.conv_layers:
        samples = torch.div(samples - layer.kernel_size, layer.stride, rounding_mode="floor") + 1
    return samples.clamp(min=0)


def _norm_per_clip(norm: nn.GroupNorm, x: Tensor, frames: Tensor) -> Tensor:
    """Group norm of (batch, channels, frames), each clip over its own `frames` only; zeros beyond."""
    out = torch.zeros_like(x)
    for n, valid in enumerate(frames.tolist()):
        out[n, :, :valid] = norm(x[n : n + 1, :, :valid])[0]
    return out


def extract(extractor: nn.Module, wavs: Tensor, samples: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """wavs: (batch, samples), samples: (batch,) valid ones or None for all -> (batch, frames, dim), valid frames.

    No window of a convolution that is valid sees padding, so of torchaudio's extractor only the group norm needs care.
    """
    if samples is None or not isinstance(extractor, FeatureExtractor):
        return extractor(wavs, samples)
    x, frames = wavs[:, None], samples
    for layer in extractor.conv_layers:
        x = layer.conv(x)
        frames = torch.div(frames - layer.kernel_size, layer.stride, rounding_mode="floor") + 1
        if isinstance(layer.layer_norm, nn.GroupNorm):
            x = _norm_per_clip(layer.layer_norm, x, frames)
        elif layer.layer_norm is not None:
            x = layer.layer_norm(x)
        x = nn.functional.gelu(x)
    return x.transpose(1, 2), frames


def _has_relative_bias(network: nn.Module) -> bool:
    return isinstance(network.encoder.transformer.layers[0].attention, WavLMSelfAttention)


def project(network: nn.Module, features: Tensor, frames: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Frames of the front end (batch, frames, any), valid ones -> frames for the transformer, attention mask.

    Frames beyond the valid ones become zeros: what the positional convolution sees around a clip that is alone.
    """
    if not _has_relative_bias(network):
        return network.encoder._preprocess(features, frames)
    x = network.encoder.feature_projection(features)
    if frames is None:
        return x, None
    beyond = torch.arange(x.shape[1], device=x.device) >= frames[:, None]
    mask = torch.zeros(beyond.shape, device=x.device).masked_fill(beyond, float("-inf"))
    return x.masked_fill(beyond[:, :, None], 0.0), mask


def blocks(network: nn.Module, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """Projected frames -> [input of the first block, output of block 1, ..., output of the last block].

    In a pre-norm network (the Large ones) the norm behind the last block belongs to the last state; the states before
    it are sums that no norm has seen, and grow from block to block.
    """
    transformer, position_bias = network.encoder.transformer, None
    masks = {"key_padding_mask": mask} if _has_relative_bias(network) else {"attention_mask": mask}
    x = transformer._preprocess(x)
    states = [x]
    for block in transformer.layers:
        x, position_bias = block(x, position_bias=position_bias, **masks)
        states.append(x)
    if not transformer.layer_norm_first:  # torchaudio's word for: no norm in front of the blocks, hence one behind
        states[-1] = transformer.layer_norm(states[-1])
    return states


def normalised(wavs: Tensor, samples: Tensor) -> Tensor:
    """(batch, samples) -> every clip with zero mean and unit variance over its own samples, zeros beyond."""
    out = torch.zeros_like(wavs)
    for n, valid in enumerate(samples.tolist()):
        out[n, :valid] = nn.functional.layer_norm(wavs[n, :valid], (valid,))
    return out


class SpeechTransformer(Frozen):
    """A frozen network of this kind: states are the input of the first block and the output of every block.

    network: a ``torchaudio.models.Wav2Vec2Model``, or one with another front end
    normalise: scale every waveform to zero mean and unit variance first, as the Large models were trained
    frame_rule: which frames of a padded batch the official toolkit takes for sound; ``conv``: those whose window fits
        into the clip, ``share``: HuBERT's and WavLM's rule, see `published`; None: there is no official toolkit
    """

    stride = 320

    def __init__(
        self, name: str, network: nn.Module, revision: str, *, normalise: bool = False, frame_rule: str | None = None
    ):
        super().__init__()
        self.name, self.revision, self.network = name, revision, network
        self.normalise, self.frame_rule = normalise, frame_rule
        self.layers = self.count()
        self.dim = network.encoder.transformer.layer_norm.normalized_shape[0]
        self.freeze()

    def count(self) -> int:
        """How many states there are."""
        return len(self.network.encoder.transformer.layers) + 1

    def states(self, features: Tensor, frames: Tensor) -> Tensor:
        """(batch, frames, any) of the front end, valid ones of each -> (layers, batch, frames, dim)."""
        x, mask = project(self.network, features, frames)
        return torch.stack(blocks(self.network, x, mask))

    def hidden(self, wavs: Tensor, samples: Tensor) -> Hidden:
        wavs = normalised(wavs, samples) if self.normalise else wavs
        features, frames = extract(self.network.feature_extractor, wavs, samples)
        return Hidden(self.states(features, frames), frames)

    def published(self, wavs: Tensor, samples: Tensor) -> Tensor:
        if self.frame_rule is None:
            return super().published(wavs, samples)
        wavs = normalised(wavs, samples) if self.normalise else wavs
        # the quirks: group norm runs over the padding too, and by the share rule the batch is cut into as many equal
        # pieces as there are frames, and a frame counts if its piece holds any sound: often one frame too many
        features, _ = extract(self.network.feature_extractor, wavs, None)
        if self.frame_rule == "share":
            piece = wavs.shape[1] // features.shape[1]
            frames = torch.div(samples + piece - 1, piece, rounding_mode="floor").clamp(max=features.shape[1])
        else:
            frames = conv_frames(self.network.feature_extractor, samples)
        return self.states(features, frames)
