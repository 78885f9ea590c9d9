"""Report of a network that tells classes: accuracy, confusion, reliability, and some objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.schema import Schema
from mstrain.evaluation.metrics.classes import ClassesBy, ClassMetrics, ClassSummary
from mstrain.evaluation.metrics.estimates import Estimate
from mstrain.evaluation.report.canvas import BLUE, COLOUR_MAP, GREY, INK, ORANGE, Canvas, Picture
from mstrain.evaluation.report.gallery import object_canvas
from mstrain.evaluation.report.page import (
    document,
    facts_html,
    notes_html,
    section_body,
    settings_html,
    tiles_html,
    training_html,
)
from mstrain.evaluation.report.wording import (
    HEADINGS,
    TextTable,
    count_notes,
    estimate_text,
    interval_text,
    printable,
    tables_text,
)

_DEFINITIONS = (
    ("accuracy", "share of samples whose most probable class is theirs"),
    ("balanced accuracy", "mean of the classes' recalls, each class alike"),
    ("recall", "share of a class's samples that are taken for it"),
    ("precision", "share of the samples taken for a class that are of it"),
    ("F1", "harmonic mean of recall and precision"),
    ("confidence", "mean of the largest probability; the accuracy, if probabilities are right"),
    ("log-loss", "mean of -ln of the probability of the true class, floored at 1e-10"),
    ("Brier score", "mean of the sum over classes of (probability - truth)^2"),
    (
        "ECE",
        "expected calibration error: mean |accuracy - largest probability| over ten bins of it, "
        "weighted by samples; 0 if calibrated",
    ),
)
# More rows and columns than a terminal or a page has room for.
_MAX_SHOWN = 30
_MAX_BARS = 6
_MAX_NAME = 18


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassObject:
    """One object to show.

    Attributes:
        place: its place by log-loss, from 0 (best) to 1 (worst).
        sample: what `Split.__getitem__` gives.
        truth: number of its class.
        probability: float (K,).
    """

    place: float
    sample: Mapping[str, Any]
    truth: int
    probability: NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassContent:
    """Everything a report of classes shows.

    Attributes:
        title: the page's title.
        facts: rows of the table at the top.
        notes: sentences the reader should know before the numbers.
        summary: the metrics.
        priors: those of several priors side by side; None where there is one.
        schema: arrays of the gallery's objects.
        gallery: objects to show.
        journal: lines of the run's metrics.jsonl.
        settings: the run's configuration, name and value.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    summary: ClassSummary
    schema: Schema
    notes: Sequence[str] = ()
    priors: TextTable | None = None
    gallery: Sequence[ClassObject] = ()
    journal: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def class_tables(summary: ClassSummary) -> list[TextTable]:
    """Metrics over all, by class, and the confusion matrix where it is small enough to read."""
    level = f"with {summary.bootstrap.level:.0%} intervals"
    overall = TextTable(
        caption=f"Classes, {level}",
        head=["metric", "value"],
        rows=[
            *([HEADINGS[n][0], estimate_text(n, found)] for n, found in summary.overall.items()),
            ["always the most frequent class", f"{100 * summary.majority:.2f} %"],
        ],
    )
    each = TextTable(
        caption=f"By class, {level}",
        head=["class", "samples", "taken for it", "recall", "precision", "F1"],
        rows=[_class_cells(found) for found in summary.classes],
    )
    binned = [_binned_table(found, level) for found in summary.binned]
    if len(summary.classes) > _MAX_SHOWN:
        return [overall, each, *binned]
    names = [printable(found.name, _MAX_NAME) for found in summary.classes]
    confusion = TextTable(
        caption="Confusion: samples by class (rows), and by the class they are taken for (columns)",
        head=["", *names],
        rows=[
            [name, *(f"{count:,}" for count in row)]
            for name, row in zip(names, summary.confusion, strict=True)
        ],
    )
    return [overall, each, *binned, confusion]


def _binned_table(found: ClassesBy, level: str) -> TextTable:
    of = "" if found.column == found.name else f" ({printable(found.column)})"
    without = f"; {found.num_without:,} samples in no bin" if found.num_without else ""
    return TextTable(
        caption=f"By {printable(found.name)}{of}, {level}{without}",
        head=[printable(found.name, _MAX_NAME), "samples", "accuracy", "confidence", "log-loss"],
        rows=[
            [
                printable(b.label, _MAX_NAME),
                f"{b.num_samples:,}",
                _share_text(b.accuracy),
                "" if b.confidence is None else f"{100 * b.confidence:.2f} %",
                "" if b.log_loss is None else f"{b.log_loss:.4f}",
            ]
            for b in found.bins
        ],
    )


def class_summary_text(summary: ClassSummary, priors: TextTable | None = None) -> str:
    """All tables for a terminal."""
    tables = [*class_tables(summary), *([] if priors is None else [priors])]
    return tables_text(tables, count_notes(summary))


def _share_text(found: Estimate | None) -> str:
    return "" if found is None else interval_text(found, is_share=True)


def _class_cells(found: ClassMetrics) -> list[str]:
    shares = [_share_text(s) for s in (found.recall, found.precision)]
    f1 = "" if found.f1 is None else f"{found.f1:.3f}"
    return [found.name, f"{found.num_samples:,}", f"{found.num_predicted:,}", *shares, f1]


def render_class_page(content: ClassContent) -> str:
    """The report as one HTML document."""
    summary = content.summary
    tables, count = class_tables(summary), 2 + len(summary.binned)
    binned, confusion = tables[2:count], tables[count:]
    tiles = []
    for name in summary.overall:
        value, _, interval = estimate_text(name, summary.overall[name]).partition(" [")
        ends = interval.removesuffix("]").replace(", ", " to ")
        tiles.append((HEADINGS[name][0], value, ends))
    priors = [] if content.priors is None else [content.priors]
    how = summary.bootstrap
    intervals = (
        f"Intervals of shares are Wilson's, others hold the central {how.level:.0%} of "
        f"{how.num_replicates:,} bootstrap replicates (Poisson weights, seed {how.seed})."
    )
    places = (
        "Objects at fixed places in the order of log-loss, from good to worst. Stamps are "
        "stretched each on its own."
    )
    sections = [
        ("points", "Classes", section_body([], [*tables[:2], *priors], [])),
        *([("binned", "Accuracy by column", section_body([], binned, []))] if binned else []),
        ("confusion", "Confusion", section_body([], confusion, [draw_confusion(summary)])),
        ("calibration", "Calibration", section_body([], [], [draw_reliability(summary)])),
        (
            "gallery",
            "Gallery",
            section_body([places], [], [draw_class_object(o, content) for o in content.gallery]),
        ),
        ("training", "Training", training_html(content.journal)),
        (
            "method",
            "Definitions and settings",
            facts_html(_DEFINITIONS)
            + section_body([intervals], [], [])
            + settings_html(content.settings),
        ),
    ]
    head = tiles_html(tiles) + notes_html([*content.notes, *count_notes(summary)])
    return document(content.title, head + facts_html(content.facts), sections)


def draw_confusion(summary: ClassSummary) -> Picture:
    """Shares of each class that are taken for each."""
    counts = np.array(summary.confusion, np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [printable(found.name, _MAX_NAME) for found in summary.classes]
    side = float(np.clip(1.8 + 0.42 * len(names), 3.6, 9.6))
    with Canvas(side + 0.9, side) as canvas:
        (panel,) = canvas.panels
        mesh = panel.imshow(shares, cmap=COLOUR_MAP, vmin=0, vmax=1, interpolation="nearest")
        canvas.figure.colorbar(mesh, ax=panel, label="share of the class", fraction=0.046, pad=0.02)
        if len(names) <= _MAX_SHOWN:
            ticks = range(len(names))
            panel.set_xticks(ticks, names, rotation=60, ha="right", fontsize=7.5)
            panel.set_yticks(ticks, names, fontsize=7.5)
        if len(names) <= 12:
            for row, column in np.ndindex(*shares.shape):
                color = INK if shares[row, column] < 0.55 else "#ffffff"
                text = f"{100 * shares[row, column]:.0f}"
                panel.text(column, row, text, ha="center", va="center", color=color, fontsize=7.5)
        panel.set(xlabel="taken for", ylabel="class")
        return canvas.picture(
            "Confusion matrix",
            alt="Share of the samples of each class that are taken for each class.",
            caption="Each row is a class; numbers are percent of its samples. On the diagonal: "
            "recall.",
        )


def draw_reliability(summary: ClassSummary) -> Picture:
    """Accuracy against the largest probability, and how many samples have it."""
    bins = summary.reliability
    with Canvas(8.2, 3.4, columns=2) as canvas:
        left, right = canvas.panels
        left.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        for found in bins:
            ends = [found.accuracy.low, found.accuracy.high]
            left.plot([found.confidence] * 2, ends, color=BLUE)
            left.plot(found.confidence, found.accuracy.value, "o", color=BLUE, markersize=4)
        left.set(xlabel="probability of the predicted class", ylabel="share that is right")
        left.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title="Reliability")
        left.grid(visible=True)
        widths = [found.high - found.low for found in bins]
        counts = [found.num_samples for found in bins]
        right.bar([f.low for f in bins], counts, widths, align="edge", color=BLUE, alpha=0.35)
        right.set(xlabel="probability of the predicted class", ylabel="samples", xlim=(0, 1))
        right.set_title("How sure")
        ece = summary.overall["ece"]
        return canvas.picture(
            "Reliability",
            alt="Share of right answers against the probability that the network gave them, and a "
            "histogram of these probabilities.",
            caption="Calibrated probabilities lie on the diagonal; below it the network is too "
            f"sure. Bars: intervals. Expected calibration error {ece.value:.4f} "
            f"[{ece.low:.4f}, {ece.high:.4f}].",
        )


def draw_class_object(found: ClassObject, content: ClassContent) -> Picture:
    """Cutouts of an object, and its most probable classes."""
    names = [c.name for c in content.summary.classes]
    best = np.argsort(-found.probability, kind="stable")[:_MAX_BARS]
    with object_canvas(found.sample, content.schema) as canvas:
        panel = canvas.panels[-1]
        colors = [ORANGE if number == found.truth else BLUE for number in best]
        panel.barh(range(len(best)), found.probability[best], color=colors, alpha=0.7)
        panel.set_yticks(range(len(best)), [printable(names[n], _MAX_NAME) for n in best])
        panel.invert_yaxis()
        panel.set(xlim=(0, 1), xlabel="probability")
        truth, sample_id = printable(names[found.truth]), found.sample["sample_id"]
        share = f"{1 - found.place:.0%} of the objects have a larger log-loss"
        return canvas.picture(
            f"{sample_id}: {share}",
            alt=f"Cutouts of object {sample_id} and its most probable classes.",
            caption=f"class {truth}, probability {found.probability[found.truth]:.4f}; taken for "
            f"{printable(names[best[0]])}, probability {found.probability[best[0]]:.4f}",
        )
