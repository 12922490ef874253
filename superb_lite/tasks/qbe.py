"""Query by example: in which documents is the spoken query heard? Nothing is trained.

Every query is laid over every document by `superb_lite.dtw`, on the states of one layer. The scores of a query are
standardised over all documents, so that one threshold serves all queries. Its quality is the maximum term-weighted
value (MTWV), 0..1: 1 is perfect, 0 is worth no more than never answering. A false alarm is dear.
Trivial baselines: MTWV 0; average precision, which the notebook shows beside it, the share of true trials.

Source: superb/protocol.md section 3.6 (QUESST 2014, English subset; each layer alone, the best one on dev is
reported on eval; features standardised over all frames of a run; queries under 5 frames score 0).
Differs: the data. The published numbers cannot be compared with ours at all, not even in size: as far as can be
told without running it, the official scorer counts the queries of every language while only the English ones are
submitted, which holds the published MTWV below about 0.25.

Taught in notebook 06 (query by example).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from superb_lite import dtw
from superb_lite.corpora import get_corpus
from superb_lite.files import write_atomically
from superb_lite.metrics import mtwv
from superb_lite.tasks._shared import tone, toy_clip, toy_seed
from superb_lite.types import Clip, ContractBroken, Corpus, Metric, Recipe, Split, Task

LABEL = "role"
DIGITS = 4  # of a score as the benchmark writes and scores it
DECISION = 2.0  # the benchmark answers YES above this many standard deviations

# There is nothing to train: SUPERB's recipe and ours are the same.
NOTHING = {"steps": 0, "batch": 1, "lr": 0.0, "eval_every": 1}
SUPERB, MINI = Recipe("superb", **NOTHING), Recipe("mini", **NOTHING)

TOY_TONES = {"a": (350.0,), "b": (900.0,), "c": (1800.0,), "d": (3200.0,)}
TOY_QUERIES = ("abcd", "dacb", "bdab", "cadc")
TOY_DOCUMENTS = 5  # with each query, and as many with none


def compare(features: Mapping[str, Any], split: Split) -> dict[tuple[str, str], float]:
    """{(query id, document id): score} for every trial of the split, as the benchmark computes it, not yet rounded.

    Args:
        features: {clip id: (frames, dim)}, arrays or tensors: the states of one layer, not standardised

    Raises:
        ContractBroken: there are no trials, or a clip in one of them has no features.
    """
    if not split.trials:
        raise ContractBroken(
            f"the {split.name} split of {split.corpus} has no trials; give it Split.trials, (query id, document id, "
            "True if it is in it) for every pair"
        )
    queries = list(dict.fromkeys(query for query, _, _ in split.trials))
    documents = list(dict.fromkeys(document for _, document, _ in split.trials))
    missing = [name for name in (*queries, *documents) if name not in features]
    if missing:
        raise ContractBroken(
            f"clip {missing[0]!r} is in a trial of {split.corpus} {split.name}, but has no features; extract all clips "
            "of the split, or correct Split.trials"
        )
    frames = dtw.standardise([features[name] for name in (*queries, *documents)])
    table = dtw.standardise_scores(dtw.scores(frames[: len(queries)], frames[len(queries) :])).tolist()
    row, column = ({name: place for place, name in enumerate(names)} for names in (queries, documents))
    return {(query, document): table[row[query]][column[document]] for query, document, _ in split.trials}


def rounded(predictions: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """The scores with four decimals: what the benchmark's scorer gets to see."""
    return {pair: round(value, DIGITS) for pair, value in predictions.items()}


def score(predictions: Mapping[tuple[str, str], float], split: Split) -> dict[str, float]:
    """{"mtwv": 0..1} of the rounded scores; see `superb_lite.metrics.mtwv`."""
    return {"mtwv": mtwv(rounded(predictions), split.trials)}


def write_stdlist(predictions: Mapping[tuple[str, str], float], path: str | Path) -> Path:
    """Write scores the way the benchmark hands them to its scorer, as ``benchmark.stdlist.xml``. Returns the path.

    Per query one ``detected_termlist`` with one ``term`` per document: score with four decimals, YES above 2. Raises
    SuperbLiteError if the file cannot be written.
    Source: superb/protocol.md section 3.6. Taught in notebook 06 (query by example).
    """
    path = Path(path)
    root = ElementTree.Element(
        "stdlist", termlist_filename=path.name, indexing_time="1.00", language="english", index_size="1",
        system_id="benchmark",
    )  # fmt: skip
    lists: dict[str, ElementTree.Element] = {}
    for (query, document), value in predictions.items():
        if query not in lists:
            lists[query] = ElementTree.SubElement(
                root, "detected_termlist", termid=query, term_search_time="1.0", oov_term_count="1"
            )
        decision = "YES" if value > DECISION else "NO"
        ElementTree.SubElement(
            lists[query], "term", file=document, channel="1", tbeg="0.000", dur="0.00",
            score=f"{value:.{DIGITS}f}", decision=decision,
        )  # fmt: skip
    ElementTree.indent(root)
    return write_atomically(path, ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True) + b"\n")


# -------------------------------------------------------------------------------------------------- toy


def toy(split: str, fold: int) -> Split:
    """Queries are four tones in a row, documents seven or eight; a query's tones are there in its order, or not."""
    queries = [_melody(f"qbe-{split}-{fold}-{word}", word, "query") for word in TOY_QUERIES]
    documents = []
    for number in range(TOY_DOCUMENTS * (len(TOY_QUERIES) + 1)):
        name = f"qbe-{split}-{fold}-{number}"
        word = (*TOY_QUERIES, "")[number % (len(TOY_QUERIES) + 1)]
        documents.append(_melody(name, _around(name, word), "document"))
    trials = tuple(
        (query.id, document.id, query.labels["text"] in document.labels["text"])
        for query in queries
        for document in documents
    )
    return Split("toy", split, (*queries, *documents), (), fold, trials)


def _around(name: str, word: str) -> str:
    """`word` between two tones before and after it; without a word, tones that contain none of the queries."""
    generator = toy_seed("around", name)
    while True:
        some = "".join(list(TOY_TONES)[place] for place in torch.randint(4, (8,), generator=generator).tolist())
        text = some[:2] + word + some[2:4] if word else some
        if [query for query in TOY_QUERIES if query in text] == ([word] if word else []):
            return text


def _melody(name: str, text: str, role: str) -> Clip:
    """Each tone is as long as it likes."""
    generator = toy_seed("melody", name)
    lengths = (0.08 + 0.05 * torch.rand(len(text), generator=generator)).tolist()
    waves = [tone(TOY_TONES[key], seconds, generator) for key, seconds in zip(text, lengths, strict=True)]
    return toy_clip(name, torch.cat(waves), {LABEL: role, "text": text})


TASK = Task(
    key="qbe",
    title="Query by example",
    domain="content",
    metrics=(Metric("mtwv", "maximum term-weighted value", higher_is_better=True, decimals=3),),
    corpora={
        "mini": Corpus(lambda split, fold: get_corpus("mini").qbe(split, fold), MINI),
        "digits": Corpus(lambda split, fold: get_corpus("digits").qbe(split, fold), Recipe("digits", **NOTHING)),
    },
    score=score,
    toy=toy,
    published=SUPERB,
    compare=compare,
)
