"""Pictures for notebooks and reports: axes in, axes out, nothing is shown or saved here.

Every function takes ``ax=None`` and returns the axes it drew on. Colours stand in one place, this one. Lines
and markers use five colours of Okabe and Ito that keep at least 3:1 contrast on white and stay apart under
the three kinds of colour blindness (a test computes both). The background of the figure is always painted
white, so that black axes stay readable when a notebook is in dark mode.

Taught in notebooks 00 (welcome) and 02 (freeze, weigh, probe).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, ListedColormap

from superb_lite.types import RATE

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from superb_lite.results import ResultsTable

# Source: M. Okabe and K. Ito, "Color universal design", 2008: the five that can be seen as thin lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
BLUE, VERMILLION, GREEN, PURPLE, BLACK = PALETTE
FILLS = ("#56B4E9", "#E69F00")  # two more of theirs, for areas only: too pale for lines
INK, PAPER, NOTHING = "#000000", "#FFFFFF", "#D9D9D9"  # text, background, "no score here"
_GRID = {"linewidths": 1, "linecolor": "#BFBFBF", "cbar": False}


def colours() -> LinearSegmentedColormap:
    """The colour map of tables: nearly white to sky blue. No cell looks black, and all carry black letters."""
    return LinearSegmentedColormap.from_list("superb_lite", ["#FAFCFE", FILLS[0]])


# ----------------------------------------------------------------------------------------------- sound


def waveform(wav: Tensor, *, phones: Sequence[Sequence[Any]] = (), ax: Axes | None = None, title: str = "") -> Axes:
    """Draw a waveform over time.

    Args:
        wav: (samples,) at 16 kHz
        phones: ``[[phone, start_sec, end_sec], ...]`` to mark; entries without times are left out

    Example: ``waveform(audio.load(clip), phones=clip.label("phones"))``; used in notebook 00.
    """
    ax = _axes(ax, (8, 2))
    samples = _samples(wav)
    ax.plot(np.arange(len(samples)) / RATE, samples, color=BLUE, linewidth=0.6)
    ax.set(xlim=(0, len(samples) / RATE), xlabel="seconds", ylabel="amplitude", title=title)
    _mark(ax, phones)
    return ax


def spectrogram(
    wav: Tensor,
    *,
    phones: Sequence[Sequence[Any]] = (),
    ax: Axes | None = None,
    title: str = "",
    mels: int = 80,
    window_sec: float = 0.025,
    hop_sec: float = 0.010,
    range_db: float = 50.0,
) -> Axes:
    """Draw the log-mel spectrogram of a waveform: bright is loud, low sounds are at the bottom.

    Args: as in `waveform`; `mels` bands, `window_sec` and `hop_sec` of the analysis. The loudest `range_db` are shown:
    with many more, a room's noise hides the voice.

    Example: ``spectrogram(audio.load(clip), phones=clip.label("phones"))``; used in notebook 00.
    """
    ax = _axes(ax, (8, 3))
    samples = _samples(wav)
    picture = log_mel(samples, mels=mels, window_sec=window_sec, hop_sec=hop_sec)
    seconds = len(samples) / RATE
    ax.imshow(
        picture,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=picture.max() - range_db,
        extent=(0, seconds, 0, mels),
        interpolation="nearest",
    )
    ax.set(xlabel="seconds", ylabel="mel band", title=title)
    _mark(ax, phones, line=PAPER)
    return ax


def pretext(found: Mapping[str, Any], *, title: str = "") -> Figure:
    """What a pretext objective makes of one clip, as its ``picture(wav)`` gives it: a panel below the other.

    found: {"heard": (frames, bins), "hidden": what the network saw, "rebuilt" or "guessed" ...}, arrays or tensors.
    Panels of spectrograms that can be compared share their colours. Used in notebooks 01 and 13.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.1 * len(found)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(found), 1))
    heard = np.asarray(found["heard"])
    for ax, (name, values) in zip(panels, found.items(), strict=True):
        values = np.asarray(values)
        like = values.shape[-1] == heard.shape[-1] and name != "guessed"
        limits = {"vmin": np.quantile(heard, 0.02), "vmax": heard.max()} if like else {}
        ax.imshow(values.T, origin="lower", aspect="auto", cmap="magma", interpolation="nearest", **limits)
        ax.set(ylabel=name, yticks=[])
        if ax is not panels[-1]:
            ax.set(xticks=[])
    panels[-1].set(xlabel="frame")
    panels[0].set(title=title)
    return figure


def log_mel(samples: np.ndarray, *, mels: int = 80, window_sec: float = 0.025, hop_sec: float = 0.010) -> np.ndarray:
    """(samples,) at 16 kHz to (mels, frames) in dB. For pictures; the Fbank upstream is another matter."""
    import torch
    from torchaudio.functional import melscale_fbanks

    size, hop, points = round(window_sec * RATE), round(hop_sec * RATE), 512
    wav = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    if len(wav) < points:
        wav = torch.nn.functional.pad(wav, (0, points - len(wav)))
    window = torch.hann_window(size)
    spectrum = torch.stft(wav, points, hop, size, window, return_complex=True, pad_mode="constant").abs() ** 2
    bands = melscale_fbanks(points // 2 + 1, 20.0, RATE / 2, mels, RATE, mel_scale="htk")
    power = spectrum.T @ bands  # (frames, mels)
    return (10 * torch.log10(power.clamp_min(1e-10))).T.numpy()


def _samples(wav: Tensor) -> np.ndarray:
    """(samples,) as float numpy. Raises ValueError for anything but one channel."""
    samples = np.asarray(wav, dtype=np.float32)
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"wav has shape {samples.shape}, expected (samples,), at least one; load it with audio.load")
    return samples


def _mark(ax: Axes, phones: Sequence[Sequence[Any]], line: str = INK) -> None:
    """Draw phone boundaries, and the phones in a row above the picture."""
    for phone, start, end in phones:
        if start is None or end is None:
            continue
        for edge in (start, end):
            ax.axvline(edge, color=line, linewidth=0.6, alpha=0.7)
        ax.annotate(
            str(phone),
            ((start + end) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            annotation_clip=True,
        )
    if len(phones):
        ax.title.set_position((0.5, 1.0))
        ax.set_title(ax.get_title(), pad=16)  # the phones stand where the title was


# --------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class View:
    """One round of a table, ready to be drawn: the reference first, the same cells in all frames.

    means, spreads: upstreams x (task, metric), NaN where there is no score (spreads: where there is one seed)
    black:          True where the mean is worse than the reference's
    place:          0 (last in the column) to 1 (first), see `standing`
    titles:         one per column, with the direction that is better
    decimals:       one per column
    """

    round: int
    reference: str
    means: pandas.DataFrame
    spreads: pandas.DataFrame
    black: pandas.DataFrame
    place: pandas.DataFrame
    titles: tuple[str, ...]
    decimals: tuple[int, ...]

    def text(self, row: int, column: int) -> str:
        """One cell, such as ``93.1 ± 0.4``."""
        from superb_lite.results import show

        return show(self.means.iloc[row, column], self.spreads.iloc[row, column], self.decimals[column])

    @property
    def says(self) -> str:
        """What black means here, in a sentence."""
        if self.reference in self.means.index:
            return f"black is worse than {self.reference}"
        return f"no {self.reference} here, so no cell is black"


def view(table: ResultsTable, round: int, reference: str | None = None) -> View:
    """Arrange one round for drawing. Raises ValueError if the table has no rows of that round."""
    reference = table.reference if reference is None else reference
    means = table.pivot(round)
    if not len(means):
        raise ValueError(f"the table has no rows of round {round}; it has: {rounds_of(table)}")
    names = [name for name in means.index if name == reference] + [name for name in means.index if name != reference]
    return View(
        round=round,
        reference=reference,
        means=means.loc[names],
        spreads=table.pivot(round, "spread").loc[names],
        black=table.black(reference, round=round).loc[names].astype(bool),
        place=standing(table, round).loc[names],
        titles=tuple(table.heading(task, metric) for task, metric in means.columns),
        decimals=tuple(table.metric(task, metric).decimals for task, metric in means.columns),
    )


def rounds_of(table: ResultsTable) -> list[int]:
    """The rounds that have at least one score that counts."""
    return sorted({score.round for score in table.scores if score.split == "test"})


def standing(table: ResultsTable, round: int) -> pandas.DataFrame:
    """The place of each score in its column, from 0 (last) to 1 (first); NaN where there is no score.

    Same shape as ``table.pivot(round)``. Equal scores share a place; where all are equal, all are first.
    """
    means = table.pivot(round)
    result = means.copy()
    for task, metric in means.columns:
        up = table.metric(task, metric).higher_is_better
        places = means[(task, metric)].rank(ascending=up)  # the worst has the lowest place
        last, best = places.min(), places.max()
        result[(task, metric)] = (places - last) / (best - last) if best > last else places * 0 + 1
    return result


def table_heatmap(
    table: ResultsTable,
    *,
    round: int = 2,
    reference: str | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw one round: upstreams against tasks, and every cell worse than the reference is black.

    The colour is the place in the column (the bluer, the better). A value has a spread over seeds if there are several;
    an empty cell is grey. The reference is the first row.

    Example: ``table_heatmap(olympics(), round=2)``; used in notebooks 14 to 16.
    """
    import seaborn

    seen = view(table, round, reference)
    rows, columns = seen.means.shape
    ax = _axes(ax, (2.4 + 1.5 * columns, 1.4 + 0.45 * rows))
    ax.set_facecolor(NOTHING)
    text = np.array([[seen.text(row, column) for column in range(columns)] for row in range(rows)])
    style = {"ax": ax, "fmt": "", "annot": text, **_GRID}
    black, empty = seen.black.to_numpy(), seen.means.isna().to_numpy()
    painted = (
        (colours(), INK, black | empty),
        (ListedColormap([INK]), PAPER, ~black),
        (ListedColormap([NOTHING]), INK, ~empty),
    )
    for shades, letters, hidden in painted:
        if not hidden.all():
            place, words = seen.place.fillna(0.0), {"color": letters}
            seaborn.heatmap(place, cmap=shades, vmin=0, vmax=1, mask=hidden, annot_kws=words, **style)
    ax.set_xticks(np.arange(columns) + 0.5, seen.titles, rotation=0)
    ax.set_yticks(np.arange(rows) + 0.5, seen.means.index, rotation=0)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set(xlabel="", ylabel="")
    if seen.reference in seen.means.index and rows > 1:
        ax.axhline(1, color=INK, linewidth=2)
    ax.set_title(f"round {round}: {seen.says}" if title is None else title, pad=10)
    return ax


def layer_weights(
    weights: Sequence[float] | Mapping[str, Sequence[float]], *, ax: Axes | None = None, title: str = ""
) -> Axes:
    """Draw which layers a head listens to: bars for one head, a table of shades for several.

    Args:
        weights: softmax over layers, input first; or ``{name: weights}`` (rows may differ in length)

    Example: ``layer_weights(probe.layer_weights)``; used in notebooks 02 and 17.
    """
    if isinstance(weights, Mapping):
        return _weights_table(weights, ax, title)
    ax = _axes(ax, (1.5 + 0.6 * len(weights), 2.6))
    ax.bar(range(len(weights)), weights, color=BLUE, width=0.8)
    ax.axhline(1 / len(weights), color=VERMILLION, linestyle="--", linewidth=1.2, label="all layers alike")
    ax.set_xticks(range(len(weights)), _layer_names(len(weights)))
    ax.set(xlabel="layer", ylabel="weight", ylim=(0, None), title=title)
    ax.legend(frameon=False, fontsize=8)
    return ax


def _weights_table(weights: Mapping[str, Sequence[float]], ax: Axes | None, title: str) -> Axes:
    import seaborn

    layers = max(len(row) for row in weights.values())
    grid = np.full((len(weights), layers), np.nan)
    for line, row in zip(grid, weights.values(), strict=True):
        line[: len(row)] = row
    ax = _axes(ax, (2 + 0.7 * layers, 1 + 0.4 * len(weights)))
    ax.set_facecolor(NOTHING)
    seaborn.heatmap(
        grid, ax=ax, cmap=colours(), vmin=0, annot=True, fmt=".2f", annot_kws={"color": INK}, **_GRID
    )
    ax.set_xticks(np.arange(layers) + 0.5, _layer_names(layers))
    ax.set_yticks(np.arange(len(weights)) + 0.5, list(weights), rotation=0)
    ax.set(xlabel="layer", title=title)
    return ax


def _layer_names(layers: int) -> list[str]:
    """``input 1 2 ...``: layer 0 is what goes into the first block."""
    return ["input", *map(str, range(1, layers))]


def learning_curve(
    history: Sequence[tuple[int, float, float | None]],
    *,
    metric: str = "dev score",
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw the loss on train (left scale, line) and the score on dev (right scale, dots) over the steps.

    Args:
        history: ``[(step, loss, dev score or None), ...]``, as in ``Probe.history``

    Example: ``learning_curve(probe.history, metric="accuracy on dev")``; used in notebook 02.
    """
    ax = _axes(ax, (6, 2.8))
    steps, losses, _ = zip(*history, strict=True) if history else ((), (), ())
    ax.plot(steps, losses, color=BLUE, label="loss on train")
    ax.set(xlabel="step", title=title)
    ax.set_ylabel("loss on train", color=BLUE)
    scored = [(step, dev) for step, _, dev in history if dev is not None and dev == dev]
    if scored:
        right = ax.twinx()
        right.plot(*zip(*scored, strict=True), color=VERMILLION, linestyle="--", marker="o", label=metric)
        right.set_ylabel(metric, color=VERMILLION)
    return ax


def confusion(
    truth: Sequence[str], guesses: Sequence[str], *, classes: Sequence[str], ax: Axes | None = None, title: str = ""
) -> Axes:
    """Draw what was taken for what: rows are the truth, and each row adds up to 100 percent.

    Raises:
        ValueError: a label that is not among the classes, or lists of unequal length.

    Example: ``confusion(truth, guesses, classes=split.classes)``; used in notebook 04.
    """
    import seaborn

    place = {name: number for number, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)))
    for true, guess in zip(truth, guesses, strict=True):
        if true not in place or guess not in place:
            raise ValueError(f"{true!r} taken for {guess!r}: expected two of the classes {', '.join(classes)}")
        counts[place[true], place[guess]] += 1
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax = _axes(ax, (2 + 0.45 * len(classes), 1.5 + 0.4 * len(classes)))
    text = np.where(counts > 0, np.char.mod("%.0f", percent), "")
    letters = {"color": INK}
    seaborn.heatmap(percent, ax=ax, cmap=colours(), vmin=0, vmax=100, annot=text, fmt="", annot_kws=letters, **_GRID)
    ticks = np.arange(len(classes)) + 0.5
    ax.set_xticks(ticks, list(classes), rotation=90)
    ax.set_yticks(ticks, list(classes), rotation=0)
    ax.set(xlabel="taken for", ylabel="truth", title=title or "percent of each row")
    return ax


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The given axes, or new ones of `size` inches; either way the figure behind them is white."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.figure.set_facecolor(PAPER)
    ax.set_facecolor(PAPER)
    return ax
