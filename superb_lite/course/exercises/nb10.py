"""Exercises of notebook 10: slice the logits, add losses, joint accuracy, a blind baseline, legal intents only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from superb_lite.course.exercises import Exercise, WrongAnswer

Intent = tuple[str, str, str]

# ------------------------------------------------------------------- q1: one row of logits, three answers


def slot_answers(logits: Tensor, sizes: Sequence[int]) -> Tensor:
    """logits: (batch, sum of sizes) -> (batch, slots) int64: the place of the best value within each slot."""
    return torch.stack([slot.argmax(1) for slot in logits.split(list(sizes), dim=1)], dim=1)


def _places_in_the_row(logits, sizes):
    starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    return slot_answers(logits, sizes) + starts


def _equal_parts(logits, sizes):
    return torch.stack([slot.argmax(1) for slot in logits.tensor_split(len(sizes), dim=1)], dim=1)


def _along_the_batch(logits, sizes):
    return torch.stack([slot.argmax(0)[0].expand(len(logits)) for slot in logits.split(list(sizes), dim=1)], dim=1)


def _the_best_few(logits, sizes):
    return logits.topk(len(sizes), dim=1).indices


def _size_as_end(logits, sizes):
    starts = [0, *sizes[:-1]]
    ends = [start + 1 if end <= start else end for start, end in zip(starts, sizes, strict=True)]
    return torch.stack([logits[:, a:b].argmax(1) for a, b in zip(starts, ends, strict=True)], dim=1)


def _logits(rng: np.random.Generator, batch: int, sizes: Sequence[int], scale: float = 2.0) -> Tensor:
    return torch.from_numpy(scale * rng.normal(size=(batch, sum(sizes)))).float()


def _answer_inputs(rng: np.random.Generator) -> list[tuple]:
    return [
        (_logits(rng, 6, (6, 12, 4)), (6, 12, 4)),
        (_logits(rng, 40, (2, 3, 5)), (2, 3, 5)),
        (_logits(rng, 1, (4, 1, 2)), (4, 1, 2)),
        (_logits(rng, 9, (3, 7)), (3, 7)),
    ]


# ------------------------------------------------------------------------------- q2: three losses


def slots_loss(logits: Tensor, targets: Tensor, sizes: Sequence[int]) -> Tensor:
    """logits: (batch, sum of sizes); targets: (batch, slots) int64 -> sum over slots of the mean cross-entropy."""
    slots = zip(logits.split(list(sizes), dim=1), targets.unbind(1), strict=True)
    return sum((functional.cross_entropy(slot, target) for slot, target in slots), logits.new_zeros(()))


def _mean_of_slots(logits, targets, sizes):
    return slots_loss(logits, targets, sizes) / len(sizes)


def _one_softmax(logits, targets, sizes):
    starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    chosen = logits.log_softmax(1).gather(1, targets + starts)
    return -chosen.sum(1).mean()


def _no_offset(logits, targets, sizes):
    chosen = [functional.cross_entropy(logits, target) for target in targets.unbind(1)]
    return sum(chosen, logits.new_zeros(()))


def _summed_over_clips(logits, targets, sizes):
    return slots_loss(logits, targets, sizes) * len(logits)


def _twice_softmax(logits, targets, sizes):
    soft = torch.cat([slot.softmax(1) for slot in logits.split(list(sizes), dim=1)], dim=1)
    return slots_loss(soft, targets, sizes)


def _loss_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(batch: int, sizes: tuple[int, ...]) -> tuple:
        targets = np.stack([rng.integers(size, size=batch) for size in sizes], axis=1)
        return _logits(rng, batch, sizes), torch.from_numpy(targets), sizes

    return [case(5, (6, 12, 4)), case(8, (2, 3, 5)), case(1, (3, 1, 2)), case(4, (4, 3))]


# --------------------------------------------------------------------------- q3: understood or not


def slot_and_joint(truth: Tensor, guess: Tensor) -> list[float]:
    """truth, guess: (clips, slots) -> percent right of each slot, and last the percent with all slots right."""
    right = truth == guess
    return [100 * float(share) for share in [*right.float().mean(0), right.all(1).float().mean()]]


def _slots_of(truth, guess):
    return slot_and_joint(truth, guess)[:-1]


def _product(truth, guess):
    slots = _slots_of(truth, guess)
    return [*slots, 100 * float(np.prod([share / 100 for share in slots]))]


def _average(truth, guess):
    slots = _slots_of(truth, guess)
    return [*slots, float(np.mean(slots))]


def _any_right(truth, guess):
    return [*_slots_of(truth, guess), 100 * float((truth == guess).any(1).float().mean())]


def _weakest(truth, guess):
    slots = _slots_of(truth, guess)
    return [*slots, min(slots)]


def _fractions(truth, guess):
    return [share / 100 for share in slot_and_joint(truth, guess)]


def _guess_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(clips: int, sizes: tuple[int, ...]) -> tuple:
        truth = np.stack([rng.integers(size, size=clips) for size in sizes], axis=1)
        other = np.stack([rng.integers(size, size=clips) for size in sizes], axis=1)
        kept = rng.random(truth.shape) < 0.7
        return torch.from_numpy(truth), torch.from_numpy(np.where(kept, truth, other))

    apart = torch.tensor([[0, 0, 0], [0, 0, 0]]), torch.tensor([[0, 0, 1], [1, 0, 0]])  # no clip has all three right
    return [case(30, (6, 12, 4)), apart, case(1, (3, 3, 3)), case(17, (2, 5))]


# ------------------------------------------------------------------------------ q4: blind baselines


def blind(train: Sequence[Intent], test: Sequence[Intent]) -> tuple[float, float]:
    """Two programs that never listen, in percent of `test`: (joint accuracy, mean of the slot accuracies).

    The first always answers the most frequent intent of `train`, the second the most frequent value of each slot.
    """
    favourite = _most(train)
    values = [_most(column) for column in zip(*train, strict=True)]
    slots = [np.mean([intent[place] == value for intent in test]) for place, value in enumerate(values)]
    return 100 * float(np.mean([intent == favourite for intent in test])), 100 * float(np.mean(slots))


def _most(things):
    return Counter(things).most_common(1)[0][0]


def _peeks(train, test):
    return blind(test, test)


def _scored_on_train(train, test):
    return blind(train, train)


def _slots_of_the_intent(train, test):
    favourite = _most(train)
    slots = [np.mean([intent[place] == favourite[place] for intent in test]) for place in range(3)]
    return blind(train, test)[0], 100 * float(np.mean(slots))


def _joint_of_the_values(train, test):
    values = tuple(_most(column) for column in zip(*train, strict=True))
    return 100 * float(np.mean([intent == values for intent in test])), blind(train, test)[1]


def _blind_fractions(train, test):
    joint, slots = blind(train, test)
    return joint / 100, slots / 100


def _intent_inputs(rng: np.random.Generator) -> list[tuple]:
    intents = [
        ("bring", "shoes", "none"), ("bring", "juice", "none"), ("activate", "heat", "kitchen"),
        ("activate", "heat", "bedroom"), ("activate", "lights", "kitchen"), ("decrease", "heat", "none"),
    ]  # fmt: skip

    def drawn(counts: Sequence[int]) -> list[Intent]:
        clips = [intent for intent, count in zip(intents, counts, strict=True) for _ in range(count)]
        return [clips[place] for place in rng.permutation(len(clips))]

    # The most frequent intent of train is shoes, its most frequent values are activate, heat, none: no intent at all.
    test = list(rng.integers(2, 5, size=len(intents)))
    return [
        (drawn([6, 3, 5, 4, 2, 1]), drawn([2, 4, 3, 9, 1, 3])),
        (drawn([9, 3, 7, 5, 3, 2]), drawn([*test[:3], 8, *test[4:]])),
        (drawn([0, 0, 3, 2, 0, 0]), drawn([0, 0, 1, 1, 0, 1])),
    ]


# ------------------------------------------------------------------------------- q5: legal intents only


def best_legal(logits: Tensor, sizes: Sequence[int], legal: Tensor) -> Tensor:
    """logits: (batch, sum of sizes); legal: (intents, slots) places -> (batch, slots): the best legal intent."""
    return legal[_legal_scores(logits.split(list(sizes), dim=1), legal).argmax(1)]


def _legal_scores(slots, legal):
    """(batch, intents): the sum over slots of what each intent picks there."""
    return torch.stack([slot[:, legal[:, place]] for place, slot in enumerate(slots)]).sum(0)


def _each_for_itself(logits, sizes, legal):
    return slot_answers(logits, sizes)


def _adds_probabilities(logits, sizes, legal):
    slots = [slot.softmax(1) for slot in logits.split(list(sizes), dim=1)]
    return legal[_legal_scores(slots, legal).argmax(1)]


def _nearest_legal(logits, sizes, legal):
    agree = (slot_answers(logits, sizes)[:, None] == legal[None]).sum(2)
    return legal[agree.argmax(1)]


def _without_starts(logits, sizes, legal):
    return legal[_legal_scores([logits] * len(sizes), legal).argmax(1)]


def _number_of_the_intent(logits, sizes, legal):
    return _legal_scores(logits.split(list(sizes), dim=1), legal).argmax(1)


def _legal_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(batch: int, sizes: tuple[int, ...], intents: int) -> tuple:
        every = np.stack(np.unravel_index(rng.permutation(int(np.prod(sizes)))[:intents], sizes), axis=1)
        return _logits(rng, batch, sizes), sizes, torch.from_numpy(every)

    return [case(30, (6, 12, 4), 29), case(40, (2, 3, 5), 6), case(25, (4, 3), 5), case(1, (2, 2, 2), 1)]


EXERCISES = {
    "ic.q1": Exercise(
        key="ic.q1",
        title="one row of logits, three answers",
        reference=slot_answers,
        inputs=_answer_inputs,
        wrong=(
            WrongAnswer(
                "places in the row", _places_in_the_row, "these are places in the whole row: each slot counts its own "
                "values from 0"
            ),
            WrongAnswer(
                "equal parts", _equal_parts, "the row is cut into equal parts; the slots have different sizes, which "
                "stand in `sizes`"
            ),
            WrongAnswer(
                "along the batch", _along_the_batch, "the largest is looked for along the batch, so all clips get one "
                "answer: use dimension 1"
            ),
            WrongAnswer(
                "the best few", _the_best_few, "the best logits of the whole row are taken, and they may all be of one "
                "slot: take the best of each slot"
            ),
            WrongAnswer(
                "size as end", _size_as_end, "a slot does not end at its size but at its start plus its size; the "
                "starts add up"
            ),
        ),
        hints=(
            "Where does each slot start? At 0, at sizes[0], at sizes[0] + sizes[1]",
            "logits.split(list(sizes), dim=1) cuts the row into its slots",
            "torch.stack([slot.argmax(1) for slot in logits.split(list(sizes), dim=1)], dim=1)",
        ),
    ),
    "ic.q2": Exercise(
        key="ic.q2",
        title="the sum of the slots' losses",
        reference=slots_loss,
        inputs=_loss_inputs,
        wrong=(
            WrongAnswer("mean of slots", _mean_of_slots, "the slots are averaged: SUPERB adds their losses up"),
            WrongAnswer(
                "one softmax", _one_softmax, "there is one softmax over all values, so that 'kitchen' competes with "
                "'lights': cut first, then one cross-entropy for each slot"
            ),
            WrongAnswer(
                "no slicing", _no_offset, "every target is looked up in the whole row: cut the logits into slots first"
            ),
            WrongAnswer(
                "sum over clips", _summed_over_clips, "the clips are added up too: mean over the batch, sum over slots"
            ),
            WrongAnswer(
                "softmax twice", _twice_softmax, "functional.cross_entropy has a softmax inside: give it the logits"
            ),
        ),
        hints=(
            "Three independent choices: three cross-entropies, and the sum of them",
            "targets[:, 0] belongs to the first slice, targets[:, 1] to the second, and so on",
            "slots = logits.split(list(sizes), dim=1); return sum(functional.cross_entropy(slot, targets[:, n]) for n, "
            "slot in enumerate(slots))",
        ),
    ),
    "ic.q3": Exercise(
        key="ic.q3",
        title="slot accuracies and joint accuracy",
        reference=slot_and_joint,
        inputs=_guess_inputs,
        wrong=(
            WrongAnswer(
                "product", _product, "the joint accuracy is multiplied from the slots; that would hold if their errors "
                "were independent: count the clips"
            ),
            WrongAnswer(
                "average", _average, "the slots are averaged; joint means that all of them are right in the same clip"
            ),
            WrongAnswer("any", _any_right, "one right slot is enough for it; all are needed: all, not any"),
            WrongAnswer(
                "weakest slot", _weakest, "the weakest slot is the most that joint accuracy can reach, not what it is: "
                "count the clips"
            ),
            WrongAnswer("fractions", _fractions, "these are fractions: times 100, please"),
        ),
        hints=(
            "right = truth == guess is (clips, slots): True where a slot is right",
            "Mean over dimension 0 for the slots; for the joint accuracy first ask all of dimension 1",
            "[100 * float(share) for share in [*right.float().mean(0), right.all(1).float().mean()]]",
        ),
    ),
    "ic.q4": Exercise(
        key="ic.q4",
        title="two programs that never listen",
        reference=blind,
        inputs=_intent_inputs,
        wrong=(
            WrongAnswer(
                "peeks", _peeks, "the favourites were counted in test: a program may only know its training data"
            ),
            WrongAnswer("scored on train", _scored_on_train, "it is scored on train: count in train, score on test"),
            WrongAnswer(
                "slots of the intent", _slots_of_the_intent, "the second program answers the slots of the most "
                "frequent intent; let it choose the most frequent value of each slot by itself"
            ),
            WrongAnswer(
                "joint of the values", _joint_of_the_values, "the first program answers the three most frequent values "
                "together, which need not be an intent at all: count whole intents"
            ),
            WrongAnswer("fractions", _blind_fractions, "these are fractions: times 100, please"),
        ),
        hints=(
            "collections.Counter(train).most_common(1)[0][0] is the most frequent intent; tuples can be counted",
            "The values of slot number n: [intent[n] for intent in train]",
            "joint: percent of test equal to the favourite. slots: np.mean over n of the percent of test with "
            "intent[n] == favourite value of slot n",
        ),
    ),
    "ic.q5": Exercise(
        key="ic.q5",
        title="the most probable legal intent",
        reference=best_legal,
        inputs=_legal_inputs,
        wrong=(
            WrongAnswer(
                "each slot for itself", _each_for_itself, "some of these answers are not in `legal`: score whole "
                "intents, and choose among those"
            ),
            WrongAnswer(
                "adds probabilities", _adds_probabilities, "probabilities of independent choices are multiplied, not "
                "added: add their logarithms, or simply the logits"
            ),
            WrongAnswer(
                "nearest legal", _nearest_legal, "it takes the legal intent that shares most slots with the free "
                "answer; how certain each slot was is forgotten"
            ),
            WrongAnswer(
                "without slicing", _without_starts, "the places of `legal` count within a slot: cut the logits into "
                "slots before you look them up"
            ),
            WrongAnswer(
                "number of the intent", _number_of_the_intent, "this is the number of the intent in `legal`; give the "
                "row itself: legal[number]"
            ),
        ),
        hints=(
            "slot[:, legal[:, n]] is (batch, intents): what every legal intent gets from slot n",
            "log p(intent) = sum of log p(value) over the slots; log-softmax only subtracts the same number from all "
            "values of a slot, so that the sum of plain logits has the same winner",
            "scores = sum(slot[:, legal[:, n]] for n, slot in enumerate(slots)); return legal[scores.argmax(1)]",
        ),
    ),
}
