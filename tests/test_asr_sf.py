"""Letters, slots, the BLSTM head, SpecAugment, and the beam search with its language model.

``head_asr_blstm.npz``, ``head_sf_blstm.npz`` and ``slots.json`` hold numbers of the official toolkit (s3prl 0.4.18, its
own classes at reduced width, CPU).
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from superb_lite.heads import BLSTM, SpecAugment
from superb_lite.lm import Lexicon, NGram, beam_search
from superb_lite.losses import ctc
from superb_lite.metrics import slot_type_f1, slot_value_cer, wer
from superb_lite.tasks import asr, sf
from superb_lite.tasks._shared import blstm
from superb_lite.text import (
    collapse,
    letter_classes,
    letter_tokens,
    letters_text,
    read_slots,
    slot_classes,
    slot_markup,
    slot_tokens,
)
from superb_lite.types import Clip, ContractBroken, LabelMissing, Recipe, Split

FIXTURES = Path(__file__).parent / "fixtures"
SLOTS = json.loads((FIXTURES / "slots.json").read_text())
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
CLASSES = letter_classes()


def stored(name):
    with np.load(FIXTURES / f"head_{name}.npz", allow_pickle=False) as arrays:
        return {
            key: torch.from_numpy(value) if value.dtype.kind in "fi" else value.tolist()
            for key, value in arrays.items()
        }


def official_head(arrays, vocab):
    """A BLSTM with the stored weights."""
    head = BLSTM(14, vocab, projector=12, hidden=10).eval()
    with torch.no_grad():
        for ours, name in parameters(head):
            ours.copy_(arrays[f"state.{name}"])
    return head


def parameters(head):
    """(parameter, its name in the official toolkit) of every parameter."""
    for name, parameter in head.named_parameters():
        part, *rest = name.split(".")
        if part == "project":
            official = f"projector.{rest[0]}"
        elif part == "classify":
            official = f"model.linear.{rest[0]}"
        else:
            layer, direction, weight = rest
            official = f"model.rnns.{layer}.layer.{weight}{'_reverse' if direction == 'back' else ''}"
        yield parameter, official


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------- BLSTM: parity


@pytest.mark.parametrize(
    ("name", "classes", "targets", "out"),
    [
        ("asr_blstm", "dictionary_symbols", "in.labels_padded_with_pad", "out.log_probs"),
        ("sf_blstm", "vocab", "in.labels_padded_legacy", "out.logits"),
    ],
)
def test_head_agrees_with_the_official_toolkit(name, classes, targets, out):
    arrays = stored(name)
    head = official_head(arrays, len(arrays[classes]))
    lengths = arrays["in.lens"]
    logits = head(arrays["in.feats_padded"], lengths)
    for row, length in enumerate(lengths.tolist()):
        got = logits[row, :length]
        got = got.log_softmax(-1) if out == "out.log_probs" else got
        assert_close(got, arrays[out][row, :length], **CLOSE)
    loss = ctc(logits, lengths, arrays[targets], arrays["in.label_lens"])
    assert_close(loss, arrays["loss.ctc"], **CLOSE)
    loss.backward()
    compared = 0
    for parameter, official in parameters(head):
        if f"grad.{official}" in arrays:
            assert_close(parameter.grad, arrays[f"grad.{official}"], **CLOSE)
            compared += 1
    assert compared == 8


def test_a_clip_too_short_for_its_text_counts_as_zero_as_officially():
    arrays = stored("asr_blstm")
    head = official_head(arrays, 32)
    lengths = arrays["in.zero_inf.lens"]
    logits = head(arrays["in.feats_padded"][arrays["in.zero_inf.feat_idx"]], lengths)
    labels = arrays["in.zero_inf.labels_idx"]
    loss = ctc(logits, lengths, arrays["in.labels_padded_with_pad"][labels], arrays["in.label_lens"][labels])
    assert_close(loss, arrays["loss.zero_infinity_case"], **CLOSE)


def test_asr_writes_and_reads_as_the_official_toolkit():
    arrays = stored("asr_blstm")
    symbols = tuple(arrays["dictionary_symbols"])
    split = Split("x", "test", (), symbols)
    for row, transcript in enumerate(arrays["transcripts"]):
        clip = Clip("a", "a.wav", 1.0, "0", {"text": transcript.lower()})
        (ids,), count = asr.encode([clip], torch.tensor([50]), 320, split)
        assert ids.tolist() == arrays["in.labels_padded_with_pad"][row, : int(count)].tolist()
        assert int(count) == int(arrays["in.label_lens"][row])
    heard = asr.decode(arrays["out.log_probs"], arrays["in.lens"], 320, split)
    assert [one.text for one in heard] == [words.lower() for words in arrays["out.pred_words"]]
    refs = [words.lower() for words in arrays["out.target_words"]]
    assert wer(refs, [one.text for one in heard]) == pytest.approx(float(arrays["out.wer_percent"]))


def test_sf_writes_and_reads_as_the_official_toolkit():
    arrays = stored("sf_blstm")
    symbols = tuple(arrays["vocab"])
    split = Split("x", "test", (), symbols)
    for row, (sentence, tags) in enumerate(zip(arrays["sentences"], arrays["iobs"], strict=True)):
        labels = {"text": " ".join(sentence.lower().split()[1:-1]), "tags": tags.split()[1:-1]}
        clip = Clip("a", "a.wav", 1.0, "0", labels)
        (ids,), count = sf.encode([clip], torch.tensor([90]), 320, split)
        assert ids.tolist() == arrays["in.labels_padded_legacy"][row, : int(count)].tolist()
        assert sf.marked(clip) == arrays["out.groundtruth"][row] == arrays["out.decoded_labels_legacy"][row]
    # the official hypotheses include what the head says in the padding
    whole = torch.full_like(arrays["in.lens"], 90)
    assert sf.decode(arrays["out.logits"], whole, 320, split) == arrays["out.hypothesis"]


# ---------------------------------------------------------------------------------------- BLSTM: shape


def test_official_sizes_are_the_defaults():
    with torch.device("meta"):
        head = blstm(768, Split("x", "train", (), CLASSES), asr.SUPERB)
    assert head.project.out_features == head.layers[0].ahead.hidden_size == head.layers[1].back.hidden_size == 1024
    assert (len(head.layers), head.dropout.p) == (2, 0.2)
    assert sum(parameter.numel() for parameter in head.parameters()) == 42_828_832
    augment = head.augment
    assert (augment.warp, augment.freq_masks, augment.freq_width) == (5, 4, 50)
    assert (augment.time_masks, augment.time_width) == (2, 40)


def test_recipe_sizes_reach_the_head_and_unknown_ones_are_refused():
    sizes = {"projector": 6, "hidden": 5, "layers": 3, "dropout": 0.5, "warp": 1, "freq_masks": 2, "freq_width": 3,
             "time_masks": 4, "time_width": 7}  # fmt: skip
    recipe = Recipe("x", steps=1, batch=1, lr=1.0, eval_every=1, sizes=sizes)
    head = blstm(8, Split("x", "train", (), CLASSES), recipe)
    assert (head.project.out_features, head.layers[2].back.hidden_size, len(head.layers)) == (6, 5, 3)
    assert head.dropout.p == 0.5
    assert {name: getattr(head.augment, name) for name in list(sizes)[4:]} == dict(list(sizes.items())[4:])
    with pytest.raises(TypeError, match="hiden"):
        blstm(8, Split("x", "train", (), CLASSES), replace(recipe, sizes={"hiden": 5}))


def test_padding_and_batch_mates_do_not_matter():
    head = BLSTM(6, 5, projector=8, hidden=7).eval()
    x, lengths = random(3, 20, 6), torch.tensor([20, 11, 1])
    out = head(x, lengths)
    assert out.shape == (3, 20, 5)
    for row, length in enumerate(lengths.tolist()):
        assert_close(head(x[row : row + 1, :length], lengths[row : row + 1])[0], out[row, :length])
        assert bool((out[row, length:] == 0).all())
    x[1, 11:] = torch.nan
    assert_close(head(x, lengths), out)


def test_both_ways_is_a_packed_bidirectional_lstm():
    head = BLSTM(6, 5, projector=6, hidden=4, layers=1).eval()
    packed = nn.LSTM(6, 4, batch_first=True, bidirectional=True)
    for name, weight in head.layers[0].ahead.named_parameters():
        getattr(packed, name).data = weight.data
    for name, weight in head.layers[0].back.named_parameters():
        getattr(packed, f"{name}_reverse").data = weight.data
    x, lengths = random(3, 9, 6), torch.tensor([9, 2, 5])
    sequence = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    want, _ = nn.utils.rnn.pad_packed_sequence(packed(sequence)[0], batch_first=True)
    got = head.layers[0](x, lengths)
    for row, length in enumerate(lengths.tolist()):
        assert_close(got[row, :length], want[row, :length])


def test_dropout_and_augmentation_are_for_training_only():
    head = BLSTM(6, 5, projector=8, hidden=7, augment=SpecAugment(2, 1, 3, 1, 3))
    x, lengths = random(2, 20, 6), torch.tensor([20, 15])
    with torch.random.fork_rng():
        assert not torch.equal(head(x, lengths), head(x, lengths))
    head.eval()
    assert_close(head(x, lengths), head(x, lengths), rtol=0, atol=0)


def test_wrong_lengths_are_refused():
    with pytest.raises(ContractBroken, match="lengths go from"):
        BLSTM(6, 5, projector=8, hidden=7)(random(2, 20, 6), torch.tensor([21, 3]))


# ------------------------------------------------------------------------------------------ SpecAugment


def augmented(module, x, lengths, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return module.train()(x, lengths)


def test_augment_is_off_in_eval_mode():
    x = random(2, 30, 8)
    assert SpecAugment().eval()(x, torch.tensor([30, 30])) is x


def test_masks_have_the_promised_number_and_width():
    x, lengths = torch.ones(40, 60, 32), torch.randint(20, 61, (40,), generator=torch.Generator().manual_seed(1))
    widest = {"dims": 0, "frames": 0}
    for seed in range(20):
        out = augmented(SpecAugment(0, 2, 6, 0, 0), x, lengths, seed)
        hidden = (out == 0).all(dim=1)  # (batch, dims)
        assert torch.equal((out == 0).any(dim=1), hidden)  # a dimension is hidden in all frames or in none
        widest["dims"] = max(widest["dims"], int(hidden.sum(1).max()))
        out = augmented(SpecAugment(0, 0, 0, 3, 5), x, lengths, seed)
        hidden = (out == 0).all(dim=2)  # (batch, frames)
        assert not bool((hidden & (torch.arange(60) >= lengths[:, None])).any())  # inside the clip
        assert len({int(number) for number in hidden.sum(1)}) > 3  # drawn for each clip
        widest["frames"] = max(widest["frames"], int(hidden.sum(1).max()))
    assert widest == {"dims": 10, "frames": 12}  # 2 x (6 - 1) and 3 x (5 - 1) at most, and reached


def test_a_mask_wider_than_the_clip_is_possible_and_harmless():
    x, lengths = torch.ones(3, 4, 2), torch.tensor([4, 3, 1])
    assert augmented(SpecAugment(5, 4, 50, 2, 40), x, lengths).shape == (3, 4, 2)


def test_time_warp_is_two_bicubic_stretches():
    x, lengths = random(2, 24, 3), torch.tensor([24, 17])
    x[1, 17:] = 0
    out = augmented(SpecAugment(4, 0, 0, 0, 0), x, lengths, seed=2)
    for row, length in enumerate(lengths.tolist()):
        gaps = {}
        for centre, moved in itertools.product(range(4, length - 4), range(1, length)):
            if -4 < moved - centre <= 4:
                pieces = [(x[row, :centre], moved), (x[row, centre:length], length - moved)]
                stretched = [
                    functional.interpolate(piece[None, None], (size, 3), mode="bicubic", align_corners=False)[0, 0]
                    for piece, size in pieces
                ]
                gaps[centre, moved] = float((torch.cat(stretched) - out[row, :length]).abs().max())
        assert min(gaps.values()) < 2e-5
        assert sorted(gaps.values())[1] > 1e-3 or min(gaps, key=gaps.get)[0] == min(gaps, key=gaps.get)[1]
        assert float(out[row, length:].abs().sum()) == 0.0


def test_time_warp_moves_something_and_leaves_short_clips():
    x, lengths = random(8, 40, 3), torch.tensor([40] * 7 + [10])
    out = augmented(SpecAugment(5, 0, 0, 0, 0), x, lengths)
    changed = [bool((out[row] != x[row]).any()) for row in range(7)]
    assert sum(changed) >= 5  # one in ten draws leaves the frame where it is
    assert_close(out[7, :10], x[7, :10], rtol=1e-5, atol=1e-5)


def test_augmentation_follows_the_global_generator_and_passes_gradients():
    x, lengths = random(2, 40, 8).requires_grad_(), torch.tensor([40, 33])
    module = SpecAugment(5, 2, 3, 2, 5)
    assert torch.equal(augmented(module, x, lengths, 1), augmented(module, x, lengths, 1))
    assert not torch.equal(augmented(module, x, lengths, 1), augmented(module, x, lengths, 2))
    augmented(module, x, lengths).sum().backward()
    assert bool((x.grad != 0).any()) and bool(torch.isfinite(x.grad).all())


# -------------------------------------------------------------------------------------- letters and slots


def test_letters_there_and_back():
    tokens = letter_tokens("don't  stop")
    assert tokens == ["D", "O", "N", "'", "T", "|", "S", "T", "O", "P", "|", "</s>"]
    assert letters_text(tokens) == "don't stop"
    assert letters_text(["<s>", "|", "A", "|", "|", "<unk>", "<pad>", "</s>"]) == "a <unk><pad>"
    assert set(tokens) <= set(CLASSES) and CLASSES.index("<s>") == 0


def test_asr_decoding_collapses_before_it_drops_blanks_and_crops():
    split = Split("x", "test", (), CLASSES)
    place = CLASSES.index
    path = [place("S"), place("E"), place("E"), 0, place("E"), place("|"), place("</s>"), place("X")]
    out = 20 * functional.one_hot(torch.tensor([path, path]), len(CLASSES)).float()
    assert [one.text for one in asr.decode(out, torch.tensor([7, 3]), 320, split)] == ["see", "se"]


def test_slots_there_and_back():
    tags = ["O", "artist", "artist", "O", "city", "city", "day", "day"]
    tokens = slot_tokens("play new order in new york o o", tags)
    assert slot_markup(tokens) == "PLAY B-artist NEW ORDER E-artist IN B-city NEW YORK E-city B-day O O E-day"
    assert tokens[-1] == "<eos>" and tokens.count(" ") == 7
    assert set(tokens) <= set(slot_classes(["artist", "city", "day"]))
    assert read_slots(slot_markup(tokens)) == [("artist", "NEW ORDER"), ("city", "NEW YORK"), ("day", "O O")]
    with pytest.raises(ValueError, match="2 words but 1 tags"):
        slot_tokens("a b", ["O"])


def test_malformed_markup_is_never_an_error():
    pieces = ["B-x ", " E-x", "B-y ", " E-y", "A", " ", "<unk>", "B-", "E-", "(", "\\", ":", ";", "*"]
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        count = int(torch.randint(0, 12, (), generator=generator))
        picked = torch.randint(len(pieces), (count,), generator=generator).tolist()
        hyp = "".join(pieces[number] for number in picked)
        assert 0 <= slot_type_f1(["B-x A E-x"], [hyp]) <= 100
        assert slot_value_cer(["B-x A E-x"], [hyp]) >= 0
    assert read_slots("B-x A E-y") == read_slots("A E-x B-x") == read_slots("B-x  E-x") == read_slots("") == []
    assert read_slots("B-x A B-y B E-y E-x", strip=True) == [("x", "A B")]


# ------------------------------------------------------------------------------------------ slot metrics


@pytest.mark.parametrize("case", SLOTS["cases"] + SLOTS["edge_cases"], ids=str)
def test_slot_scores_agree_with_the_official_toolkit(case):
    official = case["slot_type_f1"]
    if isinstance(official, float):  # a value with : or ; breaks the official parser, not ours
        assert slot_type_f1(case["refs"], case["hyps"]) == pytest.approx(100 * official, rel=1e-12)
    official = case["slot_value_cer"]
    if isinstance(official, float):
        assert slot_value_cer(case["refs"], case["hyps"]) == pytest.approx(100 * official, rel=1e-12)
    elif official["error"] == "ZeroDivisionError":
        with pytest.raises(ValueError, match="no symbol"):
            slot_value_cer(case["refs"], case["hyps"])


def test_slot_scores_by_hand():
    refs = ["FLY TO B-city ROME E-city B-day NOW E-day", "STOP"]
    hyps = ["FLY TO B-city ROAD E-city B-city HOME E-city", "STOP"]
    # first sentence: city of {city, day} against {city}: F1 2/3; second: nothing to find, nothing found: 1
    assert slot_type_f1(refs, hyps) == pytest.approx(100 * (2 / 3 + 1) / 2)
    # the nearer of ROAD (2 edits) and HOME (1 edit); NOW is missing (3 edits); 4 of 7 characters
    assert slot_value_cer(refs, hyps) == pytest.approx(100 * 4 / 7)
    with pytest.raises(ValueError, match="nothing to score"):
        slot_type_f1([], [])
    with pytest.raises(ValueError, match="1 references but 2"):
        slot_value_cer(["A"], ["A", "B"])


# -------------------------------------------------------------------------------------- language model


def test_probabilities_add_up_to_one():
    lm = NGram(["the cat sat", "the dog sat down", "the cat ran"], order=3)
    for context in [(), ("the",), ("the", "cat"), ("<s>", "<s>"), ("down", "the"), ("never", "heard")]:
        total = sum(lm.probability(word, context) for word in [*lm.words, "</s>", "<unk>"])
        assert total == pytest.approx(1.0)


def test_probability_by_hand():
    lm = NGram(["a b", "a a"], order=2)
    # single words: a 3, b 1, end 2 of 6, three kinds; uniform over a, b, end, unknown is 1/4
    assert lm.probability("a") == pytest.approx((3 + 3 * 0.25) / 9)
    # after a: b 1, a 1, end 1 of 3, three kinds
    assert lm.probability("b", ("a",)) == pytest.approx((1 + 3 * lm.probability("b")) / 6)
    assert lm.probability("b", ("b", "a")) == lm.probability("b", ("a",))  # only the last word counts
    # the first word of a sentence: always a
    assert lm.probability("a", lm.start) == pytest.approx((2 + 1 * lm.probability("a")) / 3)


def test_perplexity_prefers_what_was_seen():
    lm = NGram(["turn the light on", "turn the light off"])
    assert lm.perplexity(["turn the light off"]) < lm.perplexity(["light the off turn"])
    assert NGram(["a"], order=1).perplexity(["a"]) == pytest.approx(1 / math.sqrt(lm_one() * lm_one()))
    with pytest.raises(ValueError, match="no word"):
        NGram(["", " "])
    with pytest.raises(ValueError, match="order is 0"):
        NGram(["a"], order=0)
    with pytest.raises(ValueError, match="no sentence"):
        lm.perplexity([])


def lm_one():
    # "a" and the end once each, two kinds, uniform over three: (1 + 2/3) / (2 + 2)
    return (1 + 2 / 3) / 4


# ------------------------------------------------------------------------------------------ beam search

TINY = letter_classes("AB")  # blank, three specials, |, A, B


def brute_force(log_probs, lexicon):
    """{words: log-probability} over all paths; everything but | A B is silence."""
    found = defaultdict(float)
    for path in itertools.product(range(len(TINY)), repeat=len(log_probs)):
        text = "".join(TINY[number] for number in collapse([number if number > 3 else 0 for number in path]))
        *words, rest = text.split("|")
        words = (*words, rest) if rest else tuple(words)
        if all(word.lower() in lexicon.lm.words for word in words):
            found[words] += math.exp(sum(float(row[number]) for row, number in zip(log_probs, path, strict=True)))
    return {" ".join(words).lower(): math.log(value) for words, value in found.items()}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.3, -0.5), (0.5, 2.0)])
def test_beam_search_is_brute_force_on_tiny_cases(seed, weights):
    lexicon = Lexicon(NGram(["a ab", "b a", "aa"], order=2), TINY)
    log_probs = (2 * random(5, len(TINY), seed=seed)).double().log_softmax(-1)
    want = brute_force(log_probs, lexicon)
    found = beam_search(
        log_probs, lexicon, lm_weight=weights[0], word_score=weights[1], beam=10_000, floor=-math.inf
    )
    assert {one.text: pytest.approx(one.sound, abs=1e-9) for one in found} == want
    for one in found:
        context, language = lexicon.lm.start, 0.0
        for word in [*one.text.split(), "</s>"]:
            language += math.log(lexicon.lm.probability(word, context))
            context = (*context, word)[-1:]
        assert one.language == pytest.approx(language)
        assert one.words == len(one.text.split())
    scores = [one.score(*weights) for one in found]
    assert scores == sorted(scores, reverse=True)


def spoken(text, wrong=(), classes=CLASSES):
    """(frames, vocab) log-probabilities of a recogniser that hears `text`, with (place, letter) nearly as likely."""
    tokens = letter_tokens(text)
    rows = torch.full((2 * len(tokens), len(classes)), -12.0)
    for place, token in enumerate(tokens):
        rows[2 * place, classes.index(token)] = 0.0
        rows[2 * place + 1, 0] = 0.0
    for place, letter in wrong:
        rows[2 * place, classes.index(letter)] = 0.5
    return rows.log_softmax(-1)


def test_the_language_model_helps_where_the_ear_fails():
    lexicon = Lexicon(NGram(["we see the ship", "we see the sea", "the sea is wide", "sea and ship"]), CLASSES)
    log_probs = spoken("we see the sea", wrong=[(5, "A"), (13, "E")])  # heard: "we sea the see"
    (heard,) = asr.decode(log_probs[None], torch.tensor([len(log_probs)]), 320, Split("x", "test", (), CLASSES))
    assert heard.text == "we sea the see"
    assert heard.log_probs.shape == log_probs.shape
    assert beam_search(log_probs, lexicon, lm_weight=0.0)[0].text == "we sea the see"
    assert beam_search(log_probs, lexicon, lm_weight=1.0)[0].text == "we see the sea"
    assert beam_search(heard.log_probs, lexicon, lm_weight=1.0)[0].text == "we see the sea"


def test_the_lexicon_is_closed():
    lexicon = Lexicon(NGram(["cat", "dog"]), CLASSES)
    assert beam_search(spoken("cab"), lexicon, floor=-20.0)[0].text == "cat"  # there is no cab in it


def test_half_a_word_at_the_end_is_left_out():
    lexicon = Lexicon(NGram(["go", "stop"]), CLASSES)
    log_probs = spoken("go sto")[:10]  # G O | S T
    assert [one.text for one in beam_search(log_probs, lexicon, beam=1)] == ["go"]
    assert beam_search(spoken("go")[:4], lexicon)[0].text == "go"  # a whole one without its | is kept


def test_words_that_cannot_be_written_are_left_out_of_the_lexicon():
    lexicon = Lexicon(NGram(["ab", "abc", "a-b"]), TINY)
    assert sorted(filter(None, lexicon.word)) == ["ab"]


# -------------------------------------------------------------------------------------------- the tasks


def test_settle_chooses_on_dev_and_score_obeys(monkeypatch):
    lexicon = Lexicon(NGram(["we see the ship", "we see the sea", "the sea is wide", "sea and ship"]), CLASSES)
    monkeypatch.setattr(asr, "_lexicon", lambda *key: lexicon)
    clips = tuple(Clip(f"c{n}", "c.wav", 1.0, str(n), {"text": "we see the sea"}) for n in range(2))
    split = Split("mini", "dev", clips, CLASSES)
    log_probs = spoken("we see the sea", wrong=[(5, "A"), (13, "E")])
    heard = dict.fromkeys(["c0", "c1"], asr.Heard("we sea the see", log_probs.half()))
    settings = asr.settle(heard, split)
    assert set(settings) == {"lm_weight", "word_score"}
    assert asr.score(heard, split, **settings) == {"wer": 50.0, "cer": pytest.approx(100 * 2 / 14), "wer_lm": 0.0}
    assert asr.score(heard, split, lm_weight=0.0)["wer_lm"] == 50.0
    assert asr.score(heard, split)["wer_lm"] == 50.0  # no settings, no language model


def test_without_training_text_there_is_no_language_model(caplog):
    split = replace(asr.toy("dev", 0), corpus="my own")
    heard = {clip.id: asr.Heard("ab", torch.zeros(3, len(split.classes))) for clip in split.clips}
    with caplog.at_level(logging.WARNING):
        assert asr.settle(heard, split) == {}
    assert "no language model for corpus 'my own'" in caplog.text
    assert asr.score(heard, split)["wer"] == asr.score(heard, split)["wer_lm"]


@pytest.mark.parametrize("task", [asr, sf])
def test_missing_and_strange_labels_are_named(task):
    split = task.toy("test", 0)
    clip = split.clips[0]
    lengths = torch.tensor([10])
    for labels, message in [
        ({}, "no label 'text'"),
        ({**clip.labels, "text": "zz", "tags": ["O"]}, "'Z', which is not one of|'text and tags' 'Z'"),
        ({**clip.labels, "text": "", "tags": []}, "has text"),
    ]:
        if task is sf and labels.get("text") == "zz":
            message = "not one of"  # Z is a letter of slot filling: use a character that is none
            labels = {**labels, "text": "a-b"}
        with pytest.raises(LabelMissing, match=message) as error:
            task.encode([replace(clip, labels=labels)], lengths, 320, split)
        assert clip.id in str(error.value) and clip.audio in str(error.value)


@pytest.mark.parametrize(
    ("tags", "message"), [(None, "no label 'tags'"), (["O"] * 9, "9 tags"), (["planet"], "B-planet")]
)
def test_slots_that_do_not_fit_are_named(tags, message):
    split = sf.toy("test", 0)
    clip = replace(split.clips[0], labels={"text": "ab"} | ({} if tags is None else {"tags": tags}))
    with pytest.raises(LabelMissing, match=message) as error:
        sf.encode([clip], torch.tensor([10]), 320, split)
    assert clip.id in str(error.value)


def test_sf_scores_look_predictions_up():
    split = sf.toy("test", 0)
    right = {clip.id: sf.marked(clip) for clip in reversed(split.clips)}
    assert sf.score(right, split) == {"slot_f1": 100.0, "slot_cer": 0.0}
    assert sf.score(dict.fromkeys(right, ""), split) == {"slot_f1": 0.0, "slot_cer": 100.0}


def test_published_recipes_are_the_official_ones():
    for task, batch in ((asr, 16), (sf, 32)):
        recipe = task.TASK.published
        assert (recipe.steps, recipe.batch, recipe.lr, recipe.eval_every) == (200_000, batch, 1e-4, 2_000)
        assert (recipe.accumulate, recipe.clip_norm, recipe.optimizer, recipe.crop_sec) == (1, 1.0, "adam", None)


def test_every_word_of_the_test_sentences_is_in_the_lexicon_of_mini():
    splits = [asr.TASK.corpora["mini"].load(name, 0) for name in ("train", "test")]
    train, test = ({word for clip in split.clips for word in clip.label("text").split()} for split in splits)
    assert test <= train
