"""Intent classification: what shall be done, with what, and where? Three answers to one spoken command.

The head has one output per value of each slot; each slot is a choice of its own, and a command counts as understood
only if all three are right. Trivial baseline: always the most frequent command, right in 3 to 4 % of `mini`.

Source: superb/protocol.md section 3.8 (Fluent Speech Commands: 6 actions, 14 objects, 4 locations, sum of three
cross-entropies, accuracy with all three slots right).
The split's classes are ``action=...``, then ``object=...``, then ``location=...``; "none" is a value like any other.

Taught in notebook 10 (intent classification).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from superb_lite.corpora import get_corpus
from superb_lite.heads import MeanPoolLinear
from superb_lite.metrics import accuracy
from superb_lite.tasks._shared import TOY_CLIPS, outside, tone, toy_clip, toy_seed
from superb_lite.types import Clip, ContractBroken, Corpus, Metric, Recipe, Split, Task

SLOTS = ("action", "object", "location")

SUPERB = Recipe("superb", steps=200_000, batch=32, lr=1e-4, eval_every=5_000)
# A two-hundredth of the steps, so 50 times the lr.
MINI = Recipe("mini", steps=1000, batch=32, lr=5e-3, eval_every=100)


class SlotsLinear(MeanPoolLinear):
    """One `MeanPoolLinear` for all slots. values: how many each slot has; the logits stand side by side."""

    def __init__(self, dim: int, values: Sequence[int], hidden: int = 256) -> None:
        super().__init__(dim, sum(values), hidden)
        self.values = tuple(values)


def slot_values(classes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The values of action, object and location, in the order of the classes.

    Raises:
        ContractBroken: a class is no ``slot=value``, or the slots are not grouped in that order.

    >>> slot_values(["action=on", "action=off", "object=lamp", "location=none"])
    (('on', 'off'), ('lamp',), ('none',))
    """
    grouped = tuple(
        tuple(name.removeprefix(f"{slot}=") for name in classes if name.startswith(f"{slot}=")) for slot in SLOTS
    )
    rebuilt = [f"{slot}={value}" for slot, values in zip(SLOTS, grouped, strict=True) for value in values]
    if rebuilt != list(classes) or not all(grouped):
        raise ContractBroken(
            f"the classes are {', '.join(classes[:6])} ...; expected all 'action=...', then 'object=...', then "
            "'location=...', at least one of each"
        )
    return grouped


def encode(clips: Sequence[Clip], lengths: Tensor, stride: int, split: Split) -> tuple[Tensor, ...]:
    """((clips, 3) int64: the place of each value within its slot,). Raises LabelMissing, ContractBroken."""
    places = [{value: place for place, value in enumerate(values)} for values in slot_values(split.classes)]
    rows = []
    for clip in clips:
        wanted = intent(clip)
        for slot, value, known in zip(SLOTS, wanted, places, strict=True):
            if value not in known:
                raise outside(clip, slot, value, split)
        rows.append([known[value] for value, known in zip(wanted, places, strict=True)])
    return (torch.tensor(rows, dtype=torch.int64),)


def intent(clip: Clip) -> tuple[str, str, str]:
    """What the speaker wants: (action, object, location). Raises LabelMissing."""
    action, thing, location = (clip.label(slot) for slot in SLOTS)
    return action, thing, location


def head(dim: int, split: Split, recipe: Recipe) -> SlotsLinear:
    """SUPERB's utterance head: linear to 256, mean over valid frames, linear to the values of all slots."""
    return SlotsLinear(dim, [len(values) for values in slot_values(split.classes)], **recipe.sizes)


def loss(head: SlotsLinear, out: Tensor, lengths: Tensor, targets: tuple[Tensor, ...]) -> Tensor:
    """Sum of the slots' mean cross-entropies. out: (batch, values of all slots); targets: one tensor (batch, 3)."""
    (places,) = targets
    slots = zip(out.split(head.values, dim=1), places.unbind(1), strict=True)
    return sum((functional.cross_entropy(logits, place) for logits, place in slots), out.new_zeros(()))


def decode(out: Tensor, lengths: Tensor, stride: int, split: Split) -> list[tuple[str, str, str]]:
    """The best (action, object, location) of each clip, each slot by itself."""
    values = slot_values(split.classes)
    best = [logits.argmax(1).tolist() for logits in out.split([len(slot) for slot in values], dim=1)]
    return [
        (values[0][action], values[1][thing], values[2][location])
        for action, thing, location in zip(*best, strict=True)
    ]


def score(predictions: Mapping[str, tuple[str, str, str]], split: Split) -> dict[str, float]:
    """{"acc": percent of clips with all three slots right}."""
    refs = [intent(clip) for clip in split.clips]
    return {"acc": accuracy(refs, [tuple(predictions[clip.id]) for clip in split.clips])}


def slot_accuracy(predictions: Mapping[str, tuple[str, str, str]], split: Split) -> dict[str, float]:
    """{"action": percent, "object": percent, "location": percent}: each slot alone, to see which one is hard."""
    refs, hyps = [intent(clip) for clip in split.clips], [predictions[clip.id] for clip in split.clips]
    return {
        slot: accuracy([ref[place] for ref in refs], [hyp[place] for hyp in hyps]) for place, slot in enumerate(SLOTS)
    }


# ------------------------------------------------------------------------------------------------- toys

TOY_SOUNDS = {
    "action": {"on": 250.0, "off": 500.0},
    "object": {"lamp": 900.0, "radio": 1400.0, "heat": 2000.0},
    "location": {"none": 2900.0, "kitchen": 4200.0},
}


def toy(split: str, fold: int) -> Split:
    """Commands of three sines, one for each slot, in every combination."""
    clips = []
    for number in range(TOY_CLIPS[split]):
        for wanted in itertools.product(*TOY_SOUNDS.values()):
            generator = toy_seed("ic", wanted, split, fold, number)
            said = dict(zip(SLOTS, wanted, strict=True))
            partials = [TOY_SOUNDS[slot][value] for slot, value in said.items()]
            wave = tone(partials, 0.2 + 0.1 * float(torch.rand((), generator=generator)), generator)
            clips.append(toy_clip(f"ic-{split}-{fold}-{'-'.join(wanted)}-{number}", wave, said))
    classes = tuple(f"{slot}={value}" for slot, values in TOY_SOUNDS.items() for value in values)
    return Split("toy", split, tuple(clips), classes, fold)


TASK = Task(
    key="ic",
    title="Intent classification",
    domain="semantics",
    metrics=(Metric("acc", "accuracy, all slots right", higher_is_better=True),),
    corpora={"mini": Corpus(lambda split, fold: get_corpus("mini").ic(split, fold), MINI)},
    pooled=True,
    encode=encode,
    head=head,
    loss=loss,
    decode=decode,
    score=score,
    toy=toy,
    published=SUPERB,
)
