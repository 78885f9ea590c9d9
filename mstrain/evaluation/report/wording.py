"""Metrics in words and tables: the same for the terminal and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mstrain.evaluation.metrics.binning import MIN_BIN_COUNT, Binning
from mstrain.evaluation.metrics.classes import ClassSummary
from mstrain.evaluation.metrics.estimates import (
    COVERAGE_LEVELS,
    OUTLIER_THRESHOLDS,
    Estimate,
    coverage_name,
    outlier_name,
    point_metrics,
)
from mstrain.evaluation.metrics.summary import Summary
from mstrain.models.target import REDSHIFT_TARGET, Target

# Name in results -> (heading, share shown in percent).
HEADINGS: dict[str, tuple[str, bool]] = {
    "bias": ("bias", False),
    "nmad": ("NMAD", False),
    **{outlier_name(t): (f"eta (t = {t:g})", True) for t in OUTLIER_THRESHOLDS},
    "rmse": ("RMSE", False),
    "crps": ("CRPS", False),
    "cde_loss": ("CDE loss", False),
    "log_likelihood": ("log-likelihood", False),
    **{coverage_name(level): (f"coverage {level:.0%}", True) for level in COVERAGE_LEVELS},
    # Of classes.
    "accuracy": ("accuracy", True),
    "balanced_accuracy": ("balanced accuracy", True),
    "log_loss": ("log-loss", False),
    "brier": ("Brier score", False),
    "ece": ("ECE", False),
}


def definitions(target: Target) -> tuple[tuple[str, str], ...]:
    """What the words of the tables mean; y is the truth of another number."""
    y = "z" if target.is_redshift else "y"
    d = "(estimate - z) / (1 + z)" if target.is_redshift else "estimate - y"
    eta = ("eta (t)", "share of objects with |d| >= t; the t belongs to the number")
    return (
        ("d", f"{d}, with {y} the {target.truth_words}"),
        ("bias", "mean of d"),
        ("NMAD", "1.4826 median|d - median d|"),
        eta if target.thresholds else ("RMSE", "root of the mean of d^2"),
        ("CRPS", f"mean integral of (CDF - step at {y})^2, in {target.noun}; smaller is better"),
        ("CDE loss", f"mean of (integral of p^2) - 2 p({y}); smaller is better"),
        ("log-likelihood", f"mean of ln p({y}), p({y}) floored at 1e-10; larger is better"),
        ("PIT", f"probability below {y}; uniform for calibrated densities"),
        ("KS", "largest distance of the PITs' distribution function from a uniform one"),
        (
            "coverage",
            f"share of objects whose {y} lies in the central interval of that probability",
        ),
    )


def printable(text: object, limit: int | None = None) -> str:
    """Text as it may be shown anywhere: what data sets call things may hold anything.

    Args:
        text: its `str`.
        limit: characters at most, the middle left out; None for any number.

    Returns:
        The text on one line, each control character, half of a surrogate pair or mark of direction
        as U+FFFD.
    """
    found = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    if limit is None or len(found) <= limit:
        return found
    half = (limit - 3) // 2
    return f"{found[: limit - 3 - half]}...{found[-half:]}"


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table of text.

    Attributes:
        caption: what it shows.
        head: names of the columns.
        rows: cells, the first one naming its row.
        links: for each row the address that its last cell leads to, empty for none.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    links: Sequence[str] = ()

    def as_text(self) -> str:
        """For a terminal: columns padded, numbers to the right."""
        lines = [[printable(cell) for cell in line] for line in (self.head, *self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


def number_text(name: str, value: float) -> str:
    """A metric's value: shares in percent, others with four digits after the point."""
    return f"{100 * value:.2f} %" if HEADINGS[name][1] else f"{value:.4f}"


def interval_text(found: Estimate, *, is_share: bool = False) -> str:
    """A value with its interval, such as `0.0244 [0.0240, 0.0249]`; a share in percent."""
    scale, digits, unit = (100, 2, " %") if is_share else (1, 4, "")
    value, low, high = (f"{scale * v:.{digits}f}" for v in (found.value, found.low, found.high))
    return f"{value}{unit} [{low}, {high}]"


def estimate_text(name: str, found: Estimate) -> str:
    """A metric with its interval."""
    return interval_text(found, is_share=HEADINGS[name][1])


def estimate_cells(names: Sequence[str], metrics: Mapping[str, Estimate]) -> list[str]:
    """A cell per metric; where there are none, what says why."""
    if not metrics:
        return [f"< {MIN_BIN_COUNT} objects", *[""] * (len(names) - 1)]
    return [estimate_text(n, metrics[n]) for n in names]


def tables_text(tables: Sequence[TextTable], notes: Sequence[str] = ()) -> str:
    """Tables for a terminal, then sentences."""
    texts = [f"{printable(table.caption)}\n{table.as_text()}" for table in tables]
    return "\n\n".join([*texts, *notes])


def points_table(summary: Summary) -> TextTable:
    """Metrics of point estimates: a row an estimate."""
    names = list(next(iter(summary.points.values())))
    return TextTable(
        caption=f"Point estimates, with {summary.bootstrap.level:.0%} intervals",
        head=["estimate", *(HEADINGS[n][0] for n in names)],
        rows=[
            [estimate.rpartition("_")[2], *(estimate_text(n, found[n]) for n in names)]
            for estimate, found in summary.points.items()
        ],
    )


def density_table(summary: Summary) -> TextTable:
    """Metrics of densities: a row a metric."""
    rows = [[HEADINGS[n][0], estimate_text(n, found)] for n, found in summary.density.items()]
    rows.append(["PIT, KS statistic", f"{summary.pit_ks:.4f} (p = {summary.pit_ks_p:.2g})"])
    return TextTable(
        caption=f"Densities, with {summary.bootstrap.level:.0%} intervals",
        head=["metric", "value"],
        rows=rows,
    )


def prior_table(
    name: str, summary: Summary | ClassSummary, others: Mapping[str, Summary | ClassSummary]
) -> TextTable | None:
    """The same network under several priors, side by side; None where there is one alone.

    Args:
        name: prior that all else is shown under.
        summary: its metrics.
        others: those of other priors, by name.
    """
    if not others:
        return None
    columns = {name: summary, **others}
    found = [
        s.overall if isinstance(s, ClassSummary) else {**next(iter(s.points.values())), **s.density}
        for s in columns.values()
    ]
    rows = [[HEADINGS[n][0], *(estimate_text(n, f[n]) for f in found)] for n in found[0]]
    told = ""
    if isinstance(summary, Summary):
        told = f"; point estimates: {next(iter(summary.points)).rpartition('_')[2]}"
        of_pit = [f"{s.pit_ks:.4f}" for s in columns.values() if isinstance(s, Summary)]
        rows.append(["PIT, KS statistic", *of_pit])
    return TextTable(
        caption=f"Priors side by side{told}; everything else is shown under the first, {name}",
        head=["metric", *columns],
        rows=rows,
    )


def bins_table(binning: Binning, target: Target = REDSHIFT_TARGET) -> TextTable:
    """Metrics in bins: a row a bin; the coverage of one interval stands for all."""
    names = [*point_metrics(target), "crps", coverage_name(COVERAGE_LEVELS[0])]
    return TextTable(
        caption=f"In bins of {binning.name}"
        + (f" ({binning.column})" if binning.column not in (None, binning.name) else ""),
        head=[binning.name, "objects", *(HEADINGS[n][0] for n in names)],
        rows=[
            [f"{b.low:g} to {b.high:g}", f"{b.num_samples:,}", *estimate_cells(names, b.metrics)]
            for b in binning.bins
        ],
    )


def summary_text(
    summary: Summary, priors: TextTable | None = None, target: Target = REDSHIFT_TARGET
) -> str:
    """All tables for a terminal; `priors` is from `prior_table`."""
    parts = [points_table(summary), density_table(summary)]
    parts += [] if priors is None else [priors]
    parts += [bins_table(b, target) for b in summary.binnings if b.bins]
    notes = [printable(f"No bins of {b.name}: {b.skipped}") for b in summary.binnings if b.skipped]
    return tables_text(parts, [*notes, *count_notes(summary, target)])


def count_notes(summary: Summary | ClassSummary, target: Target = REDSHIFT_TARGET) -> list[str]:
    """Sentences on samples that do not count as the others do."""
    label, floored = target.noun, f"density below 1e-10 at their {target.noun}; the log-likelihood"
    if isinstance(summary, ClassSummary):
        label = "a class that the network knows"
        floored = "probability below 1e-10 for their class; the log-loss"
    notes = []
    if summary.num_unlabelled:
        notes.append(f"{summary.num_unlabelled:,} samples without {label} count for nothing.")
    if summary.num_floored:
        notes.append(f"{summary.num_floored:,} samples have a {floored} takes 1e-10 for them.")
    return notes
