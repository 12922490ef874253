"""What heads are trained to make small. Cross-entropy is torch's own; here is what needs a word more."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from superb_lite.types import ContractBroken


def ctc(out: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor, *, blank: int = 0) -> Tensor:
    """Connectionist temporal classification: the symbols are known, their times are not.

    out: (batch, frames, vocab) logits, not yet normalised; lengths: (batch,) valid frames; targets: (batch, symbols)
    int64, padded with anything; target_lengths: (batch,) valid symbols.
    Returns the mean over the batch of each clip's loss per target symbol. A clip with more symbols than frames can
    hold counts as zero (and is still counted) instead of making everything infinite.
    Raises ContractBroken if the shapes do not fit or a length is larger than its tensor.

    Source: SUPERB ``downstream/ctc``: ``nn.CTCLoss(blank=0, zero_infinity=True)``. Taught in notebook 02.
    """
    batch, frames, _ = out.shape
    if targets.ndim != 2 or len(targets) != batch or lengths.shape != (batch,) or target_lengths.shape != (batch,):
        raise ContractBroken(
            f"ctc got out {tuple(out.shape)}, lengths {tuple(lengths.shape)}, targets {tuple(targets.shape)}, "
            f"target_lengths {tuple(target_lengths.shape)}; "
            "expected (batch, frames, vocab), (batch,), (batch, symbols), (batch,)"
        )
    if int(lengths.max()) > frames or int(target_lengths.max()) > targets.shape[1]:
        raise ContractBroken(
            f"ctc got lengths up to {int(lengths.max())} of {frames} frames and target_lengths up to "
            f"{int(target_lengths.max())} of {targets.shape[1]} symbols; are they in samples?"
        )
    log_probs = torch.log_softmax(out, dim=-1).transpose(0, 1)  # (frames, batch, vocab)
    return functional.ctc_loss(
        log_probs, targets, lengths, target_lengths, blank=blank, reduction="mean", zero_infinity=True
    )


class AMSoftmax(nn.Module):
    """Cross-entropy on angles, with a margin: a clip must be nearer to its speaker than to all others by a distance.

    Clips and speakers are vectors of length 1, one learned vector per speaker, so a logit is `scale` times a cosine;
    `margin` is taken off the cosine with the right speaker. The vectors learn with the head they belong to.

    Source: superb/protocol.md section 3.5 (AM-softmax, arXiv:1801.05599). Taught in notebook 08 (speaker verification).
    """

    def __init__(self, dim: int, speakers: int, scale: float = 30.0, margin: float = 0.4) -> None:
        super().__init__()
        self.scale, self.margin = scale, margin
        self.speakers = nn.Parameter(nn.init.xavier_normal_(torch.empty(dim, speakers)))

    def forward(self, embeddings: Tensor, numbers: Tensor) -> Tensor:
        """embeddings: (batch, dim); numbers: (batch,) int64, the right speakers -> scalar. Raises ContractBroken."""
        dim, speakers = self.speakers.shape
        if embeddings.ndim != 2 or embeddings.shape[1] != dim or numbers.shape != embeddings.shape[:1]:
            raise ContractBroken(
                f"AM-softmax got embeddings {tuple(embeddings.shape)} and speaker numbers {tuple(numbers.shape)}; "
                f"expected (batch, {dim}) and (batch,)"
            )
        if int(numbers.min()) < 0 or int(numbers.max()) >= speakers:
            raise ContractBroken(
                f"AM-softmax got speaker numbers from {int(numbers.min())} to {int(numbers.max())}, expected 0 to "
                f"{speakers - 1}; only clips of the training speakers can be learned from"
            )
        cosines = functional.normalize(embeddings, dim=1) @ functional.normalize(self.speakers, dim=0)
        margins = self.margin * functional.one_hot(numbers, speakers)
        return functional.cross_entropy(self.scale * (cosines - margins), numbers)


# ------------------------------------------------------------------------------------------ diarization


def pit_bce(out: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, whichever output is which speaker: the cheapest assignment of each clip counts.

    out: (batch, frames, speakers) logits; lengths: (batch,) valid frames; targets: (batch, frames, speakers) 0 or 1.
    Returns the mean over all valid frames of the batch. Raises ContractBroken if the shapes do not fit.

    Source: superb/protocol.md section 3.7. Taught in notebook 09 (speaker diarization).
    """
    losses, _ = pit_losses(out, lengths, targets)
    return losses.min(dim=1).values.sum() / lengths.sum()


def pit_losses(out: Tensor, lengths: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What every assignment costs. Arguments and errors as `pit_bce`.

    Returns (batch, permutations): cross-entropy, mean over speakers and sum over valid frames; and the permutations,
    (permutations, speakers) int64: with ``[1, 0]``, output 0 is held against target 1 and output 1 against target 0.
    """
    batch, frames, speakers = out.shape
    if targets.shape != out.shape or lengths.shape != (batch,):
        raise ContractBroken(
            f"PIT loss got out {tuple(out.shape)}, lengths {tuple(lengths.shape)}, targets {tuple(targets.shape)}; "
            "expected (batch, frames, speakers), (batch,) and targets like out"
        )
    if int(lengths.max()) > frames:
        raise ContractBroken(
            f"PIT loss got lengths up to {int(lengths.max())} of {frames} frames; are they in samples?"
        )
    permutations = torch.tensor(list(itertools.permutations(range(speakers))), device=out.device)
    valid = (torch.arange(frames, device=out.device)[None, :] < lengths.to(out.device)[:, None])[..., None]
    # The cross-entropy of output i against target j is softplus(i) - i * j; all pairs at once, then any permutation.
    logits = out.masked_fill(~valid, 0.0)
    offset = functional.softplus(logits).masked_fill(~valid, 0.0).sum(dim=1)  # (batch, speakers)
    pairs = offset[:, :, None] - logits.transpose(1, 2) @ targets.to(out.dtype)  # (batch, outputs, targets)
    return pairs[:, torch.arange(speakers, device=out.device), permutations].mean(dim=-1), permutations
