"""The only things that learn: the weights over an upstream's layers, and SUPERB's deliberately simple heads.

`MeanPoolLinear` and `FrameLinear` are two linear maps with **no activation** between them. So a clip's class depends on
nothing but the mean of its frames, which is why utterance tasks may train on stored means, exactly and a thousand
times faster. ASR and SF get recurrent layers (`BLSTM`), ASV an `XVector`, SD an `LSTM`.

Source: SUPERB ``upstream/interfaces.py`` (Featurizer) and ``downstream/model.py`` (UtteranceLevel, FrameLevel).
Taught in notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from superb_lite.types import ContractBroken, Layers


class Featurizer(nn.Module):
    """One sequence of vectors out of an upstream's many: the last layer, or a learned weighted sum.

    layers: number of hidden states; mode: "last" (round 1) or "sum" (round 2). The sum has one scalar per layer,
    zero at the start, so that the softmax begins as the plain average. There is nothing to learn with
    "last" or with a single layer (Fbank).

    >>> Featurizer(4).weights()
    (0.25, 0.25, 0.25, 0.25)
    """

    def __init__(self, layers: int, mode: Layers = "sum") -> None:
        super().__init__()
        if mode not in ("last", "sum"):
            raise ValueError(f"mode is {mode!r}, expected 'last' or 'sum'")
        if layers < 1:
            raise ValueError(f"layers is {layers}, expected at least 1")
        self.layers = layers
        self.mode = mode
        if mode == "sum" and layers > 1:
            self.scores = nn.Parameter(torch.zeros(layers))
        else:
            self.register_parameter("scores", None)

    def forward(self, states: Tensor) -> Tensor:
        """states: (layers, batch, frames, dim) -> (batch, frames, dim). Raises ContractBroken on another shape."""
        if states.ndim != 4 or len(states) != self.layers:
            raise ContractBroken(
                f"states have the shape {tuple(states.shape)}, expected ({self.layers}, batch, frames, dim); "
                "was this featurizer made for another upstream?"
            )
        if self.scores is None:
            return states[-1]
        return torch.tensordot(self.scores.softmax(0), states, dims=1)

    def weights(self) -> tuple[float, ...]:
        """The share of each layer, first to last; they add up to 1."""
        if self.scores is None:
            return (0.0,) * (self.layers - 1) + (1.0,)
        return tuple(self.scores.detach().softmax(0).tolist())


class MeanPoolLinear(nn.Module):
    """SUPERB's head for one label per clip (KS, SID, IC, ER): linear, mean over valid frames, linear.

    dim: size of a frame; classes: number of labels. About 200 thousand parameters for dim 768.
    """

    def __init__(self, dim: int, classes: int, hidden: int = 256) -> None:
        super().__init__()
        self.project = nn.Linear(dim, hidden)
        self.classify = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: (batch, frames, dim); lengths: (batch,) valid frames -> (batch, classes) logits."""
        valid = _valid(x, lengths)  # (batch, frames, 1)
        hidden = self.project(x).masked_fill(~valid, 0.0)
        mean = hidden.sum(dim=1) / valid.sum(dim=1)
        return self.classify(mean)


class FrameLinear(nn.Module):
    """SUPERB's head for one symbol per frame (PR): linear, linear. CTC does the rest."""

    def __init__(self, dim: int, vocab: int, hidden: int = 256) -> None:
        super().__init__()
        self.project = nn.Linear(dim, hidden)
        self.classify = nn.Linear(hidden, vocab)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: (batch, frames, dim); lengths: (batch,) valid frames -> (batch, frames, vocab) logits, 0 in the padding.

        Differs: SUPERB leaves the bias in the padding, where its training log decodes it as phones.
        """
        valid = _valid(x, lengths)
        return self.classify(self.project(x)).masked_fill(~valid, 0.0)


class XVector(nn.Module):
    """SUPERB's head for speaker verification: a whole clip becomes one vector, whoever speaks.

    A linear map of each frame, then five layers of convolution over time (a TDNN), each with a ReLU; then the mean and
    the standard deviation of every channel over time; then two linear maps with a ReLU each. What is learned
    with the second goes into the loss; speakers are compared by what comes out of the first. Together the
    convolutions look at 15 frames, so a clip of T frames leaves T - 14. A shorter clip is lengthened
    to 15 by repeating its last frame; the deviation of a single frame counts as 0.

    dim: size of a frame; width: channels of the first map and of four TDNN layers; last: of the fifth; embedding:
    size of the vector. About 6.1 million parameters for dim 768.

    Differs: SUPERB's pooling takes one frame of padding too many for every clip but the longest of a batch; ours none.
    Source: superb/protocol.md section 3.5 (``downstream/sv_voxceleb1``). Taught in notebook 08 (speaker verification).
    """

    TDNN = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))  # frames seen by each layer, and their distance
    SHRINK = sum((context - 1) * dilation for context, dilation in TDNN)  # 14 frames are lost

    def __init__(self, dim: int, width: int = 512, last: int = 1500, embedding: int = 512) -> None:
        super().__init__()
        self.connect = nn.Linear(dim, width)
        self.layers = nn.ModuleList(
            nn.Conv1d(width, out, context, dilation=dilation)
            for (context, dilation), out in zip(self.TDNN, (width, width, width, width, last), strict=True)
        )
        self.near = nn.Linear(2 * last, embedding)
        self.far = nn.Linear(embedding, embedding)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: (batch, frames, dim); lengths: (batch,) valid frames -> (batch, embedding), none below 0.

        Other vectors in training than in eval mode, see above.
        """
        _valid(x, lengths)
        x, lengths = _at_least(self.SHRINK + 1, x, lengths.to(x.device))
        hidden = self.connect(x).transpose(1, 2)  # (batch, width, frames)
        for layer in self.layers:
            hidden = layer(hidden).relu()
        near = self.near(mean_and_deviation(hidden, lengths - self.SHRINK)).relu()
        return self.far(near).relu() if self.training else near


def mean_and_deviation(hidden: Tensor, lengths: Tensor) -> Tensor:
    """The mean of every channel over time, then its standard deviation (divided by n - 1; 0 for a single frame).

    hidden: (batch, channels, frames); lengths: (batch,) valid frames -> (batch, 2 * channels).
    """
    valid = torch.arange(hidden.shape[2], device=hidden.device) < lengths[:, None, None]
    count = lengths[:, None].to(hidden.dtype)
    mean = hidden.masked_fill(~valid, 0.0).sum(2) / count
    spread = (hidden - mean[:, :, None]).masked_fill(~valid, 0.0).square().sum(2) / (count - 1).clamp(min=1)
    flat = spread == 0  # a silent channel: the slope of the root would be infinite there
    deviation = spread.masked_fill(flat, 1.0).sqrt().masked_fill(flat, 0.0)
    return torch.cat([mean, deviation], dim=1)


def _at_least(frames: int, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Clips shorter than `frames`, lengthened by their last valid frame; x and lengths themselves if there are none."""
    if int(lengths.min()) >= frames:
        return x, lengths
    frame = torch.arange(max(frames, x.shape[1]), device=x.device)
    place = torch.minimum(frame[None, :], lengths[:, None] - 1)
    return _at(x, place), lengths.clamp(min=frames)


class LSTM(nn.Module):
    """SUPERB's head for who speaks when (SD): one LSTM that hears the past only, straight on the features, and linear.

    dim: size of a frame; speakers: outputs per frame, each a yes or no of its own (several may speak at once).
    Source: superb/protocol.md section 3.7. Taught in notebook 09 (speaker diarization).
    """

    def __init__(self, dim: int, speakers: int = 2, hidden: int = 512) -> None:
        super().__init__()
        self.rnn = nn.LSTM(dim, hidden, batch_first=True)
        self.classify = nn.Linear(hidden, speakers)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: (batch, frames, dim); lengths: (batch,) valid frames -> (batch, frames, speakers) logits, 0 in padding.

        Nothing is packed: padding lies behind the valid frames, where a network without a future does not look.
        """
        valid = _valid(x, lengths)
        hidden, _ = self.rnn(x.masked_fill(~valid, 0.0))
        return self.classify(hidden).masked_fill(~valid, 0.0)


class BLSTM(nn.Module):
    """SUPERB's head for symbols in context (ASR, SF): linear, LSTM layers that hear past and future, linear.

    In training SpecAugment comes first, and dropout behind every LSTM layer. CTC does the rest.

    dim: size of a frame; vocab: symbols; projector: width of the first linear map; hidden: units per direction;
    augment: what hides parts of the input, None for nothing. About 43 million parameters for dim 768.

    >>> head = BLSTM(24, 32, projector=16, hidden=16)
    >>> tuple(head(torch.zeros(2, 50, 24), torch.tensor([50, 41])).shape)
    (2, 50, 32)

    Source: superb/protocol.md section 1.6 (``downstream/asr/model.py``). Taught in notebook 05 (speech recognition).
    """

    def __init__(
        self,
        dim: int,
        vocab: int,
        *,
        projector: int = 1024,
        hidden: int = 1024,
        layers: int = 2,
        dropout: float = 0.2,
        augment: SpecAugment | None = None,
    ) -> None:
        super().__init__()
        self.augment = augment
        self.project = nn.Linear(dim, projector)
        widths = [projector] + [2 * hidden] * (layers - 1)
        self.layers = nn.ModuleList(_BothWays(width, hidden) for width in widths)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(2 * hidden, vocab)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: (batch, frames, dim); lengths: (batch,) valid frames -> (batch, frames, vocab) logits, 0 in the padding.

        Differs: SUPERB leaves the bias in the padding.
        """
        valid = _valid(x, lengths)
        lengths = lengths.to(x.device)
        x = x.masked_fill(~valid, 0.0)
        if self.augment is not None:
            x = self.augment(x, lengths)
        hidden = self.project(x)
        for layer in self.layers:
            hidden = self.dropout(layer(hidden, lengths))
        return self.classify(hidden).masked_fill(~valid, 0.0)


class _BothWays(nn.Module):
    """One bidirectional LSTM layer as two LSTMs, the second of which reads every clip from its own last frame.

    The same numbers as a packed ``nn.LSTM(bidirectional=True)``, which is six times slower on a CPU: each direction
    meets the padding last, so padding never reaches a valid frame.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.ahead = nn.LSTM(width, hidden, batch_first=True)
        self.back = nn.LSTM(width, hidden, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, width) -> (batch, frames, 2 * hidden); the padding holds anything."""
        frame = torch.arange(x.shape[1], device=x.device)
        mirror = torch.where(frame < lengths[:, None], lengths[:, None] - 1 - frame, frame)  # (batch, frames)
        ahead, _ = self.ahead(x)
        back, _ = self.back(_at(x, mirror))
        return torch.cat([ahead, _at(back, mirror)], dim=-1)


def _at(x: Tensor, places: Tensor) -> Tensor:
    """x: (batch, frames, dim) at the frames `places`: (batch, n) -> (batch, n, dim)."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))


class SpecAugment(nn.Module):
    """Hide parts of what the head sees, so that it cannot learn the training clips by heart. Does nothing in eval mode.

    Each clip is stretched before some frame and squeezed behind it (or the reverse) so that the frame moves by at
    most `warp` frames; then `freq_masks` ranges of dimensions and `time_masks` ranges of frames are set to 0. A
    range is 0 to width - 1 wide. Everything is drawn for each clip from torch's global generator.

    Source: superb/protocol.md section 1.5 (``downstream/specaug.py``); Park et al. 2019.
    Differs: a range of frames lies inside the clip; in SUPERB it may begin in the padding.
    Taught in notebook 05 (speech recognition).
    """

    def __init__(
        self, warp: int = 5, freq_masks: int = 4, freq_width: int = 50, time_masks: int = 2, time_width: int = 40
    ) -> None:
        super().__init__()
        self.warp = warp
        self.freq_masks, self.freq_width = freq_masks, freq_width
        self.time_masks, self.time_width = time_masks, time_width

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: (batch, frames, dim), zero in the padding; lengths: (batch,) -> the same shape, x itself in eval mode."""
        if not self.training:
            return x
        batch, frames, dim = x.shape
        if self.warp > 0:
            x = _time_warp(x, lengths, self.warp)
        dims = torch.full_like(lengths, dim)
        hidden = _ranges(dims, dim, self.freq_masks, self.freq_width)[:, None, :]
        hidden = hidden | _ranges(lengths, frames, self.time_masks, self.time_width)[:, :, None]
        return x.masked_fill(hidden, 0.0)


def _ranges(sizes: Tensor, longest: int, count: int, width: int) -> Tensor:
    """(batch, longest) bool: `count` random ranges within the first `sizes` places of each row, 0 to width - 1 wide."""
    shape = (len(sizes), count)
    wide = torch.randint(max(1, width), shape, device=sizes.device)
    room = (sizes[:, None] - wide).clamp(min=1)
    first = (torch.rand(shape, device=sizes.device) * room).long()
    place = torch.arange(longest, device=sizes.device)
    inside = (place >= first[..., None]) & (place < (first + wide)[..., None])  # (batch, count, longest)
    return inside.any(dim=1)


def _time_warp(x: Tensor, lengths: Tensor, window: int) -> Tensor:
    """x: (batch, frames, dim) with one random frame of each clip moved by at most `window` frames.

    The stretches before and behind it are resampled by cubic interpolation. Clips of up to 2 * window frames stay.
    """
    size = lengths[:, None].float()
    centre = window + (torch.rand_like(size) * (size - 2 * window)).floor().clamp(min=0)
    moved = centre - window + 1 + torch.randint(2 * window, size.shape, device=x.device)
    still = size <= 2 * window
    centre, moved = torch.where(still, size, centre), torch.where(still, size, moved)
    frame = torch.arange(x.shape[1], device=x.device)
    early = frame < moved  # (batch, frames): before the moved frame?
    old = torch.where(early, centre, size - centre)  # frames of this stretch before and after warping
    new = torch.where(early, moved, size - moved).clamp(min=1)
    start, fresh_start = torch.where(early, 0.0, centre), torch.where(early, 0.0, moved)
    where = (frame - fresh_start + 0.5) * old / new - 0.5
    low = where.floor()
    mix = x.new_zeros(len(x), x.shape[1], x.shape[1])  # each new frame's share of the old ones, a product is fastest
    for tap in (-1, 0, 1, 2):
        place = start + (low + tap).clamp(min=0).minimum((old - 1).clamp(min=0))
        mix.scatter_add_(2, place.long().clamp(max=x.shape[1] - 1)[..., None], _cubic(low + tap - where)[..., None])
    return (mix @ x).masked_fill(frame[:, None] >= lengths[:, None, None], 0.0)


def _cubic(distance: Tensor, a: float = -0.75) -> Tensor:
    """The weight of a sample at this distance (0..2 frames) in cubic interpolation."""
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return torch.where(d <= 1, near, far)


def _valid(x: Tensor, lengths: Tensor) -> Tensor:
    """(batch, frames, 1) bool, True where a frame is no padding. Raises ContractBroken if lengths do not fit x."""
    if x.ndim != 3 or lengths.shape != x.shape[:1]:
        raise ContractBroken(
            f"head got x {tuple(x.shape)} and lengths {tuple(lengths.shape)}; "
            "expected (batch, frames, dim) and (batch,)"
        )
    if int(lengths.min()) < 1 or int(lengths.max()) > x.shape[1]:
        raise ContractBroken(
            f"lengths go from {int(lengths.min())} to {int(lengths.max())}, expected 1 to {x.shape[1]} frames; "
            "are they in samples, or is a clip shorter than one frame?"
        )
    frame = torch.arange(x.shape[1], device=x.device)
    return (frame[None, :] < lengths.to(x.device)[:, None])[..., None]
