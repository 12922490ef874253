"""What heads are trained to make small. Cross-entropy is torch's own; here is what needs a word more."""

from __future__ import annotations

import torch
from torch import Tensor
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
