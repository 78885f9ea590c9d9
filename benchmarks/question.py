"""What all questions share: their options, the result they write, and how it is to be shown.

A question says itself what the report shows of it (`Table`, `Chart`, sentences), so that the report
knows no question, and a result file is readable without the program that wrote it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from msdata.errors import UsageError

_MARK = ".msdata-benchmarks"
WORKLOAD_NAMES = ("mantis", "stamps", "large")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a question is asked with.

    Attributes:
        data: a packed data set; None for mock samples.
        mock: number of mock samples; None means the question's own number.
        out: folder of the results; `out/work` holds data that is made.
        quick: fewer samples and repeats, to see that all works; not figures to publish.
        workload: name of the mock samples' kind, see `benchmarks.workloads.WORKLOADS`.
        peers: question `loaders`: contestants to race; empty for all.
        machine: question `scale`: rates of `msdata probe`; None has them measured.
        command: what was typed.
    """

    out: Path
    data: Path | None = None
    mock: int | None = None
    quick: bool = False
    workload: str = "mantis"
    peers: tuple[str, ...] = ()
    machine: Path | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if self.data is not None and not (self.data / "dataset.json").is_file():
            raise UsageError(
                f"{self.data} is not an msdata dataset (dataset.json not found): give the folder "
                "that `msdata pack` wrote, or --mock N"
            )
        if self.mock is not None and self.mock < 1:
            raise UsageError(f"--mock {self.mock} makes no samples; at least 1 is needed")
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"--out {self.out} is a file; name a folder")

    @property
    def work(self) -> Path:
        """Where data is made; safe to delete."""
        return self.out / "work"


@contextmanager
def claimed_folder(out: Path) -> Iterator[None]:
    """Takes a folder for results: below it `work` and `logs` are emptied as need be.

    A question that is refused leaves nothing behind.

    Raises:
        UsageError: it has one of them already, and no benchmark made it.
    """
    mark = out / _MARK
    if mark.exists():
        yield
        return
    # Folders of earlier versions have results, but no mark.
    has_results = any(b'"benchmark": ' in path.read_bytes() for path in out.glob("*.json"))
    for name in ("work", "logs"):
        if (out / name).exists() and not has_results:
            raise UsageError(
                f"--out: {out / name} exists, and no benchmark made it; it would be emptied: give "
                "another folder"
            )
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        yield
    except UsageError:
        if list(out.iterdir()) == [mark]:
            mark.unlink()
            out.rmdir()
        raise


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the report.

    Attributes:
        title: what it shows.
        columns: their heads, with units.
        rows: cells, as text or numbers; None is shown as a dash.
        in_readme: whether it belongs to the Markdown for the README.
        note: how to read it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    in_readme: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart, or one group of bars.

    Attributes:
        name: for the legend.
        values: numbers; for lines the y of each x.
        least: lower ends of the intervals; empty for none.
        greatest: upper ends.
        x: for lines, the x of each value; empty for bars.
    """

    name: str
    values: Sequence[float]
    least: Sequence[float] = ()
    greatest: Sequence[float] = ()
    x: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of the report.

    Attributes:
        title: what it shows.
        kind: "bars", horizontal, one a label; or "lines".
        series: what is drawn.
        labels: names of the bars, the same for all series.
        x_label: unit of the horizontal axis (of the values, for bars).
        y_label: unit of the vertical axis of lines.
        is_log: logarithmic axis of values; for lines both axes.
    """

    title: str
    kind: str
    series: Sequence[Series]
    labels: Sequence[str] = ()
    x_label: str = ""
    y_label: str = ""
    is_log: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("bars", "lines"):
            raise UsageError(f"chart {self.title!r}: kind {self.kind!r} is neither bars nor lines")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the report shows of a result.

    Attributes:
        title: the question.
        sentences: what was found, in words.
        tables: in order.
        charts: in order.
    """

    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = field(default_factory=tuple)
    charts: Sequence[Chart] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """For the result file's `shown`."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Shown:
        """The inverse of `to_json`."""
        charts = [
            Chart(**{**chart, "series": [Series(**s) for s in chart["series"]]})
            for chart in fields["charts"]
        ]
        tables = [Table(**table) for table in fields["tables"]]
        return cls(
            title=fields["title"], sentences=fields["sentences"], tables=tables, charts=charts
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every question."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, metavar="DATA", help="a data set of `msdata pack`")
    source.add_argument("--mock", type=int, metavar="N", help="so many mock samples (the default)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for results")
    parser.add_argument("--quick", action="store_true", help="minutes, not for publication")
    parser.add_argument(
        "--workload", choices=WORKLOAD_NAMES, default="mantis", help="kind of mock samples"
    )


def settings_of(args: argparse.Namespace, command: str) -> Settings:
    """The settings that the options give.

    Raises:
        UsageError: they make no sense.
    """
    return Settings(
        out=args.out,
        data=args.data,
        mock=args.mock,
        quick=args.quick,
        workload=args.workload,
        peers=getattr(args, "peers", ()),
        machine=getattr(args, "machine", None),
        command=command,
    )
