"""The table in all its forms: the same cells, the same black, self-contained files; and the colours themselves."""

from __future__ import annotations

import csv
import html.parser
import io
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from superb_lite import plots, report
from superb_lite.results import ResultsTable
from superb_lite.types import Score, SuperbLiteError

# (round, upstream) -> (ks acc up, pr per down); "random" beats fbank in ks and loses in pr
VALUES = {
    (1, "random"): (60.0, 99.0),
    (1, "fbank"): (40.0, 90.0),
    (1, "tiny"): (80.0, 50.0),
    (2, "random"): (70.0, 95.0),
    (2, "fbank"): (40.0, 90.0),
    (2, "tiny"): (92.0, 90.0),
}


def make_score(**changes) -> Score:
    usual = Score(
        corpus="mini", task="ks", metric="acc", value=50.0, upstream="fbank", revision="r1", round=1, seed=0,
        split="test", fold=0, lr=1e-3, recipe="mini 100x32", clips=24, layer_weights=(0.25, 0.75), seconds=1.5,
        version="0.1.0", data_hash="0123456789ab", device="cpu",
    )  # fmt: skip
    return replace(usual, **changes)


def make_table(seeds: int = 1) -> ResultsTable:
    scores = []
    for (round_, upstream), (ks, per) in VALUES.items():
        for seed in range(seeds):
            usual = {"round": round_, "upstream": upstream, "seed": seed}
            scores.append(make_score(value=ks + seed, **usual))
            scores.append(make_score(task="pr", metric="per", value=per - seed, data_hash="pr0123456789", **usual))
    return ResultsTable(scores)


class Page(html.parser.HTMLParser):
    """The parts of a page that the tests ask about; unbalanced tags are an error."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.cells, self.row = [], [], [], None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.cells[-1][2] += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "deep" / "folder"
    return {path.name: path for path in report.write_report(make_table(seeds=3), out)}


def test_three_files_are_written(written):
    assert sorted(written) == ["table.csv", "table.html", "table.png"]
    assert all(path.stat().st_size > 0 for path in written.values())
    assert len(list(written["table.csv"].parent.iterdir())) == 3, "a temporary file was left behind"


def test_csv_has_mean_spread_seeds_and_black(written):
    rows = {(row["round"], row["upstream"]): row for row in csv.DictReader(written["table.csv"].open())}
    assert len(rows) == 6
    random = rows["1", "random"]
    # seeds add 0, 1, 2 to acc and take them from per: means 61 and 98, standard deviation 1
    assert (float(random["ks_acc"]), float(random["pr_per"])) == (61.0, 98.0)
    assert (float(random["ks_acc_spread"]), random["ks_acc_seeds"]) == (1.0, "3")
    assert (random["ks_acc_black"], random["pr_per_black"]) == ("False", "True")
    assert random["ks_acc_lr"] == "0.001"
    assert rows["2", "tiny"]["pr_per_black"] == "False", "equal to the reference is not worse"


def test_png_is_a_picture_with_black_cells(written):
    from matplotlib.image import imread

    pixels = imread(written["table.png"])[..., :3]
    black = np.all(pixels == 0, axis=-1)
    # two of twelve cells are black; a cell is some 100 x 45 points at 150 dpi, letters are thinner
    assert black.mean() > 0.02
    assert np.all(pixels[0] == 1), "the background must be white, for readers in dark mode"


def test_page_needs_nothing_else(written):
    text = written["table.html"].read_text(encoding="utf-8")
    tags = Page(text).tags
    assert tags[0] == ("html", {"lang": "en"})
    assert not [tag for tag, attrs in tags if tag in ("link", "iframe", "object", "embed")]
    addresses = [attrs[key] for _, attrs in tags for key in ("src", "href", "srcset") if key in attrs]
    assert addresses and all(address.startswith("data:image/png;base64,") for address in addresses)
    assert not re.search(r"@import|url\(|fetch\(|https?://", text)
    assert text.count("<h1>") == 1


def test_page_shows_both_rounds_reference_first_and_black_cells(written):
    page = Page(written["table.html"].read_text(encoding="utf-8"))
    names = [attrs["data-value"] for tag, attrs, _ in page.cells if attrs.get("scope") == "row"]
    assert names == ["fbank", "random", "tiny"] * 2
    black = [(text, attrs["data-value"]) for _, attrs, text in page.cells if attrs.get("class") == "black"]
    # per means over seeds are one lower: 98 > 89 and 94 > 89; tiny's equal 89 is not black
    assert black == [("worse than fbank: 98.0 ± 1.0", "98"), ("worse than fbank: 94.0 ± 1.0", "94")]


def test_page_tells_where_a_number_comes_from(written):
    page = Page(written["table.html"].read_text(encoding="utf-8"))
    hover = next(attrs["title"] for tag, attrs, text in page.cells if tag == "td" and "81.0" in text)
    assert len(hover.splitlines()) == 3
    for part in ("seed 2", "lr 0.001", "layer weights 0.25 0.75", "weights r1", "mini 0123456789ab"):
        assert part in hover
    image = next(attrs for tag, attrs in page.tags if tag == "img")
    assert "Round 1: 1 of 6 cells are black" in image["alt"]
    assert "KS acc ↑ tiny 93.0 ± 1.0" in image["alt"]
    assert "PR per ↓ fbank 89.0 ± 1.0" in image["alt"], "the first of equals"


def test_page_can_be_sorted_from_the_keyboard(written):
    page = Page(written["table.html"].read_text(encoding="utf-8"))
    heads = [attrs for tag, attrs, _ in page.cells if tag == "th" and "data-first" in attrs]
    assert [head["data-first"] for head in heads] == ["ascending", "ascending", "descending"] * 2
    buttons = [attrs for tag, attrs in page.tags if tag == "button"]
    assert len(buttons) == len(heads)
    values = [attrs["data-value"] for tag, attrs, _ in page.cells if tag == "td" and "data-value" in attrs]
    assert all(float(value) >= 0 for value in values) and len(values) == 12


def test_names_are_escaped():
    table = ResultsTable([make_score(upstream="<script>alert(1)</script>"), make_score()])
    page = report.page(table, b"png")
    assert "<script>alert" not in page and page.count("&lt;script&gt;alert") >= 2


def test_empty_table_is_refused(tmp_path):
    with pytest.raises(SuperbLiteError, match="nothing can be reported"):
        report.write_report(ResultsTable([make_score(split="dev")]), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_keeps_its_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((SuperbLiteError, OSError), match="file"):
        report.write_report(make_table(), tmp_path / "file" / "out")


# ------------------------------------------------------------------------------------------ comparable


def test_a_fair_table_has_no_caveat():
    assert report.caveats(make_table(seeds=2)) == []


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (make_score(corpus="digits", upstream="tiny", seed=9), "column KS acc mixes 2 corpora: mini; digits"),
        (make_score(data_hash="ffffffffffff", upstream="tiny"), "column KS acc mixes 2 versions of the data"),
        (make_score(revision="r2", upstream="tiny"), "upstream tiny mixes 2 revisions of the weights: r1; r2"),
        (make_score(recipe="mini 50x32", upstream="tiny"), "column KS acc mixes 2 recipes: mini 100x32, lr 0.001"),
        (make_score(lr=0.01, upstream="tiny"), "column KS acc mixes 2 recipes"),
        (make_score(version="0.2.0", upstream="tiny"), "column KS acc mixes 2 versions of superb_lite"),
        (make_score(seed=1, upstream="tiny"), "round 1: cells are means over unequal numbers of seeds (1, 2)"),
        (make_score(upstream="other"), "round 1: 1 of 8 cells have no score"),
    ],
)
def test_what_is_not_comparable_is_said_everywhere(extra, expected, tmp_path):
    table = ResultsTable([*make_table().scores, extra])
    assert [note for note in report.caveats(table) if note.startswith(expected)]
    assert expected in " ".join(printed(table).split())
    page = next(path for path in report.write_report(table, tmp_path) if path.suffix == ".html").read_text("utf-8")
    assert "Not everything here is comparable" in page and expected in page


def test_without_the_reference_nothing_is_black_and_it_says_so():
    table = ResultsTable([score for score in make_table().scores if score.upstream != "fbank"])
    assert "round 1 has no fbank, so no cell is black" in report.caveats(table)
    assert report.MARK not in printed(table)


# -------------------------------------------------------------------------------------------- terminal


def printed(table: ResultsTable, width: int = 100, **options) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(report.terminal(table))
    return console.file.getvalue()


def test_terminal_marks_black_cells_also_without_colours():
    text = printed(make_table())
    first, second = text.split("Round 2")
    assert [line.split() for line in first.splitlines() if "random" in line] == [["random", "■", "99.0", "60.0"]]
    assert text.count("■") == 2 + 2, "two cells, two captions"
    assert first.index("fbank  ") < first.index("random") < first.index("tiny")
    assert "KS acc ↑" in first and "PR per ↓" in first


def test_terminal_paints_black_cells_and_shows_spread():
    text = printed(make_table(seeds=2), force_terminal=True, color_system="truecolor")
    assert re.search(r"\x1b\[37;40m■ 98\.5 ± 0\.7", text)


@pytest.mark.parametrize("table", ["tournament", "published"])
def test_a_large_table_fits_a_terminal_of_80_characters(table):
    from superb_lite.published import published_table, tournament_table

    table = tournament_table() if table == "tournament" else published_table()
    text = printed(table, width=80)
    assert "…" not in text, "nothing is cut off"
    for name in table.pivot(2).index:
        assert len(re.findall(rf"^ *{name} ", text, flags=re.M)) >= 3, "in every block of tasks"
    for mean in table.pivot(2).loc["tiny_hubert" if "tiny_hubert" in table.pivot(2).index else "hubert_base"]:
        assert f"{mean:.1f}" in text or f"{mean:.3f}" in text


def test_a_table_with_spread_fits_too():
    names = ("fbank", "fbank_cmvn", "random", "tiny_wav2vec2_large", "tiny_hubert")
    tasks = (("pr", "per"), ("asr", "wer"), ("qbe", "mtwv"), ("asv", "eer"), ("sd", "der"), ("er", "acc"))
    scores = [
        make_score(upstream=name, task=task, metric=metric, value=50.0 + number + seed, seed=seed)
        for number, name in enumerate(names)
        for task, metric in tasks
        for seed in range(3)
    ]
    text = printed(ResultsTable(scores), width=80)
    assert "…" not in text and text.count("±") == len(names) * len(tasks)


def test_of_a_published_number_the_source_is_told():
    from superb_lite.published import published_table

    told = report.origin_in_words(published_table(2).scores[0])
    assert "nan" not in told and "0 clips" not in told and "superbbenchmark" in told


def test_terminal_of_nothing():
    assert printed(ResultsTable([])).strip() == "no results yet"


# ---------------------------------------------------------------------------------------------- colours

# Source: G. Machado et al., "A physiologically-based model for simulation of color vision deficiency", 2009,
# severity 1.0, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour) -> np.ndarray:
    from matplotlib.colors import to_rgb

    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(a, b) -> float:
    """Source: WCAG 2.2, contrast ratio."""
    dark, light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (a, b))
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of linear RGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x = to_xyz @ np.clip(rgb, 0, 1) / [0.95047, 1.0, 1.08883]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", BLINDNESS)
def test_lines_stay_apart_for_colour_blind_readers(kind):
    seen = [lab(np.array(BLINDNESS[kind]) @ linear(colour)) for colour in plots.PALETTE]
    for i, first in enumerate(seen):
        for second in seen[:i]:
            assert np.linalg.norm(first - second) > 15


def test_lines_are_visible_on_paper_and_ink_is_readable_on_table_colours():
    assert all(contrast(colour, plots.PAPER) >= 3 for colour in plots.PALETTE)
    shades = plots.colours()(np.linspace(0, 1, 9))
    assert all(contrast(shade, plots.INK) > 4.5 for shade in shades), "no cell may look like a black one"


# ------------------------------------------------------------------------------------------------ plots


@pytest.fixture
def ax():
    from matplotlib.figure import Figure

    return Figure().subplots()


def test_heatmap_has_reference_first_and_says_what_is_black(ax):
    same = plots.table_heatmap(make_table(), round=2, ax=ax)
    assert same is ax
    assert [label.get_text() for label in ax.get_yticklabels()] == ["fbank", "random", "tiny"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["PR per ↓", "KS acc ↑"]
    texts = [text.get_text() for text in ax.texts if text.get_text()]
    assert sorted(texts) == sorted(["90.0", "40.0", "95.0", "70.0", "90.0", "92.0"])
    white = [text.get_text() for text in ax.texts if text.get_text() and text.get_color() == plots.PAPER]
    assert white == ["95.0"], "white letters on black only"
    assert "black is worse than fbank" in ax.get_title()


def test_heatmap_shows_a_dash_where_there_is_no_score(ax):
    scores = [s for s in make_table().scores if not (s.upstream == "tiny" and s.task == "ks")]
    plots.table_heatmap(ResultsTable(scores), round=1, ax=ax)
    assert "–" in [text.get_text() for text in ax.texts]


def test_heatmap_of_a_round_that_was_not_run(ax):
    with pytest.raises(ValueError, match=r"no rows of round 3; it has: \[1, 2\]"):
        plots.table_heatmap(make_table(), round=3, ax=ax)


def test_standing_is_first_to_last_in_the_better_direction():
    place = plots.standing(make_table(), 1)
    assert place[("ks", "acc")].to_dict() == {"random": 0.5, "fbank": 0.0, "tiny": 1.0}
    assert place[("pr", "per")].to_dict() == {"random": 0.0, "fbank": 0.5, "tiny": 1.0}


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return (np.sin(2 * np.pi * hertz * np.arange(int(16_000 * seconds)) / 16_000) / 2).astype(np.float32)


def test_spectrogram_is_in_seconds_with_low_sounds_at_the_bottom(ax):
    plots.spectrogram(tone(400), ax=ax)
    low = ax.images[0].get_array().mean(axis=1).argmax()
    high = plots.log_mel(tone(4000)).mean(axis=1).argmax()
    assert low < 20 < 50 < high
    assert ax.get_xlim() == (0, 1)


def test_phones_are_marked_where_they_are(ax):
    plots.waveform(tone(200), phones=[["AH", 0.25, 0.5], ["B", None, None]], ax=ax)
    edges = sorted(line.get_xdata()[0] for line in ax.lines[1:])
    assert edges == [0.25, 0.5]
    assert [text.get_text() for text in ax.texts] == ["AH"]


def test_very_short_and_wrong_sound(ax):
    plots.spectrogram(tone(400, seconds=0.01), ax=ax)
    with pytest.raises(ValueError, match=r"shape \(2, 100\), expected \(samples,\)"):
        plots.waveform(np.zeros((2, 100)), ax=ax)


def test_layer_weights_of_one_head_and_of_several(ax):
    plots.layer_weights((0.1, 0.2, 0.7), ax=ax)
    assert [bar.get_height() for bar in ax.patches] == [0.1, 0.2, 0.7]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["input", "1", "2"]
    from matplotlib.figure import Figure

    grid = plots.layer_weights({"ks": (0.4, 0.6), "fbank": (1.0,)}, ax=Figure().subplots())
    assert [text.get_text() for text in grid.texts] == ["0.40", "0.60", "1.00"]


def test_learning_curve_skips_steps_that_were_not_scored(ax):
    plots.learning_curve([(10, 2.0, None), (20, 1.0, 55.0), (30, 0.5, 60.0)], ax=ax)
    assert list(ax.lines[0].get_ydata()) == [2.0, 1.0, 0.5]
    right = [other for other in ax.figure.axes if other is not ax]
    assert len(right) == 1 and list(right[0].lines[0].get_ydata()) == [55.0, 60.0]


def test_confusion_rows_are_percent_of_the_truth(ax):
    plots.confusion(["a", "a", "a", "a", "b"], ["a", "b", "b", "b", "b"], classes=("a", "b"), ax=ax)
    assert ax.collections[0].get_array().reshape(2, 2).tolist() == [[25.0, 75.0], [0.0, 100.0]]
    assert [text.get_text() for text in ax.texts] == ["25", "75", "", "100"]
    with pytest.raises(ValueError, match="'c' taken for 'a'"):
        plots.confusion(["c"], ["a"], classes=("a", "b"), ax=ax)


def test_importing_changes_no_global_setting():
    code = (
        "import matplotlib, pooch, random, sys, torch, warnings;"  # these do add warning filters
        "state = lambda: (dict(matplotlib.rcParams), list(warnings.filters), random.getstate());"
        "before = state();"
        "import superb_lite.plots, superb_lite.report;"
        "assert before == state(); assert 'seaborn' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
