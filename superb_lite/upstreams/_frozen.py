"""What all upstreams share: they are frozen, check their input, and read weight files safely."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from superb_lite.types import RATE, AudioError, CheckpointRefused, Hidden

MIN_SAMPLES = RATE // 20  # 0.05 s: the shortest clip any upstream has to accept


class Frozen(nn.Module):
    """An upstream: always in eval mode, never with gradients, whatever a parent module does.

    A subclass sets `name`, `revision`, `layers`, `dim` and `stride` and writes `hidden(wavs, samples)`: exact, whatever
    a clip's batch mates are. Where the official toolkit lets padding leak into a clip, it writes `published` too.
    """

    as_published = False  # True: states as the official toolkit gives them, padding and all

    name: str
    revision: str
    layers: int
    dim: int
    stride: int

    def freeze(self) -> Frozen:
        """Switch to eval mode and drop all gradients; call it at the end of ``__init__``."""
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stay in eval mode. ``parent.train()`` reaches every child, and would wake dropout up."""
        return super().train(False)

    def hidden(self, wavs: Tensor, samples: Tensor) -> Hidden:
        """wavs: (batch, samples) zero-padded; samples: (batch,) valid samples of each."""
        raise NotImplementedError

    def published(self, wavs: Tensor, samples: Tensor) -> Tensor:
        """(layers, batch, frames, dim): what the official toolkit returns for this padded batch, nothing cut away.

        Arguments as for `hidden`. Source: superb/protocol.md section 2.3, and the parity files.
        """
        return self.hidden(wavs, samples).states

    @torch.no_grad()  # not inference_mode: the weighted sum must be able to save the states for its gradient
    def forward(self, wavs: Sequence[Tensor]) -> Hidden:
        """A list of (samples,) float32 waveforms at 16 kHz -> Hidden. Raises AudioError for anything else."""
        check_wavs(wavs)
        samples = torch.tensor([len(wav) for wav in wavs], device=wavs[0].device)
        padded = nn.utils.rnn.pad_sequence(list(wavs), batch_first=True)
        result = self._as_published(padded, samples) if self.as_published else self.hidden(padded, samples)
        inside = torch.arange(result.states.shape[2], device=samples.device) < result.lengths[:, None]
        return Hidden(result.states * inside[None, :, :, None], result.lengths)

    def _as_published(self, wavs: Tensor, samples: Tensor) -> Hidden:
        """The benchmark cuts a clip to round(samples / stride) frames, or to as many as there are."""
        states = self.published(wavs, samples)
        return Hidden(states, (samples / self.stride).round().long().clamp(max=states.shape[2]))

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.parameters())
        return f"<{self.name}: {self.layers} x {self.dim}, every {self.stride} samples, {size:,} parameters, frozen>"


def check_wavs(wavs: Sequence[Tensor]) -> None:
    """Raise AudioError unless `wavs` is a list of finite float32 waveforms with sane peaks."""
    if len(wavs) == 0:
        raise AudioError("an upstream got no waveform; expected a list of (samples,) tensors")
    for n, wav in enumerate(wavs):
        if not isinstance(wav, Tensor) or wav.ndim != 1 or wav.dtype != torch.float32:
            got = f"{tuple(wav.shape)} {wav.dtype}" if isinstance(wav, Tensor) else type(wav).__name__
            raise AudioError(f"waveform {n} is {got}; expected a (samples,) float32 tensor at {RATE} Hz")
        if len(wav) < MIN_SAMPLES:
            raise AudioError(f"waveform {n} has {len(wav)} samples; expected at least {MIN_SAMPLES} (0.05 s)")
        peak = float(wav.abs().max())
        if not peak <= 1.5:  # also true for NaN
            raise AudioError(f"waveform {n} has a peak of {peak:g}; expected -1..1: was it left in 16-bit integers?")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file as float32 tensors.

    Raises CheckpointRefused naming the file when it is missing, broken or another format. Nothing in the
    file is ever executed: a pickle is refused, not opened.
    """
    import safetensors.torch

    path = Path(path)
    if not path.is_file():
        raise CheckpointRefused(f"{path}: no such weight file; expected a .safetensors file")
    try:
        weights = safetensors.torch.load_file(path)
    except Exception as error:
        with open(path, "rb") as file:
            head = file.read(2)
        pickled = head[:1] == b"\x80" or head == b"PK"
        why = "it holds a pickle, which could run code when read" if pickled else f"it is broken ({error})"
        raise CheckpointRefused(f"{path}: refused, {why}; expected safetensors weights") from None
    return {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}


def digest(module: nn.Module) -> str:
    """Twelve hex digits that change with any weight or name: the revision of weights that come from no file."""
    sha = hashlib.sha256(str(module).encode())
    for name, value in sorted(module.state_dict().items()):
        sha.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:12]


def fill(module: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy weights into `module`. Raises CheckpointRefused naming `path` if one is missing, extra or misshapen."""
    ours = module.state_dict()
    missing, extra = sorted(ours.keys() - weights.keys()), sorted(weights.keys() - ours.keys())
    shapes = [k for k in ours.keys() & weights.keys() if ours[k].shape != weights[k].shape]
    if missing or extra or shapes:
        problem = f"missing {missing[:3]}, unexpected {extra[:3]}, of another shape {sorted(shapes)[:3]}"
        raise CheckpointRefused(f"{path}: these weights are of another network ({problem})")
    module.load_state_dict(weights)


def revision_of(path: str | Path) -> str:
    """12 hex digits of the file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def load_weights(module: nn.Module, path: str | Path) -> str:
    """Fill `module` from a safetensors file and return its revision. Raises CheckpointRefused, see `fill`."""
    fill(module, read_weights(path), path)
    return revision_of(path)
