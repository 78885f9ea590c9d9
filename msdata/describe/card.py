"""Writes the data card of a packed data set: contents, origin, processing, checksums."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msdata.core.terminal import shown
from msdata.core.text import bytes_text
from msdata.dataset.manifest import REJECTED_NAME, SOURCES_NAME
from msdata.dataset.rejected import read_rejected
from msdata.describe.info import DatasetInfo
from msdata.describe.losses import ARRAY_HEAD, BAND_HEAD, array_rows, band_rows, loss_sentences
from msdata.errors import UsageError
from msdata.schema import Survey

CARD_NAME = "CARD.md"
# The card gives the SHA-256 of these files, which contain the checksums of all others.
SUMMED_FILES = (
    "dataset.json",
    "index.parquet",
    SOURCES_NAME,
    REJECTED_NAME,
    "statistics.json",
)
_MAX_REASONS = 12
# Origin of the pixels, by array of the default schema.
IMAGING = {
    "panstarrs": (
        "Pan-STARRS 1, 3-pi survey",
        "Chambers et al. 2016, arXiv:1612.05560; Waters et al. 2020, ApJS 251, 4",
        "public; the survey asks for its acknowledgement",
    ),
    "galex": (
        "GALEX",
        "Martin et al. 2005, ApJ 619, L1; Morrissey et al. 2007, ApJS 173, 682",
        "public",
    ),
    "unwise": (
        "unWISE coadds of WISE and NEOWISE",
        "Lang 2014, AJ 147, 108; Wright et al. 2010, AJ 140, 1868",
        "public",
    ),
}
UNKNOWN = "not stated"
# Characters that start code, emphasis, a link or a cell; `<` and `&` become entities.
_ACTING = re.compile(r"[\\`*\[\]|~]")


@dataclass(frozen=True, kw_only=True)
class CardText:
    """Facts that the user supplies; None if not given.

    Attributes:
        name: name of the data set.
        description: one or two sentences.
        license: name or URL of the terms.
        url: URL of the data set.
        creator: a person or a group.
        published: date, YYYY-MM-DD.
        cite: the citation.
    """

    name: str
    description: str | None = None
    license: str | None = None
    url: str | None = None
    creator: str | None = None
    published: str | None = None
    cite: str | None = None

    def __post_init__(self) -> None:
        if self.published is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d", self.published):
            raise UsageError(f"--published must be a date YYYY-MM-DD, got {self.published!r}")


def count_rejected(folder: Path) -> Counter[str]:
    """Counts the rejected objects by kind of reason, without numbers and names.

    Args:
        folder: the data set.

    Raises:
        StorageError: the file system refused.
    """
    kinds: Counter[str] = Counter()
    try:
        for row in read_rejected(folder / REJECTED_NAME):
            reason = row.reason or UNKNOWN
            reason = re.sub(r"^\S+\.(fits|gz|fz|pkl|npy): ", "", reason.split("; ")[0])
            kinds[re.sub(r"[-+]?\d+(?:[.,]\d+)*", "N", reason)[:100]] += 1
    except FileNotFoundError:
        return Counter()
    return kinds


def default_description(info: DatasetInfo) -> str:
    """Describes the samples in a sentence."""
    schema = info.manifest.schema
    arrays = ", ".join(f"{a.name} ({'x'.join(map(str, a.shape))})" for a in schema.arrays)
    labels = " with redshifts" if info.redshifts is not None else ""
    return f"{info.manifest.num_samples:,} samples{labels}; arrays of each: {arrays}."


def card_lines(
    info: DatasetInfo,
    text: CardText,
    sums: Mapping[str, str],
    report: Mapping[str, Any] | None = None,
    deep: Mapping[str, float] | None = None,
) -> Iterator[str]:
    """Yields the card as Markdown; without times and hosts, so equal data give equal cards.

    Args:
        info: result of `describe`.
        text: facts that the user supplied.
        sums: SHA-256 by file.
        report: result of `read_catalog_report`, or None.
        deep: result of `msdata.describe.stats.depths`, or None.
    """
    yield from _head(info, text)
    sections = (
        ("Arrays", _arrays(info, deep or {})),
        ("Coding", _losses(info)),
        ("Splits", _splits(info)),
        ("Left out", _rejected(info)),
        ("Columns of the index", _columns(info)),
        ("Spectroscopic sample", _sample(report)),
        ("Imaging", _imaging(info)),
        ("How it was packed", _settings(info)),
        ("Checksums", _checks(sums)),
    )
    for title, section in sections:
        if lines := list(section):
            yield from ("", f"## {title}", "", *lines)


class Markdown(str):
    """Text in Markdown."""

    __slots__ = ()


def plain(text: str) -> Markdown:
    """Escapes text for Markdown, so that it makes no HTML, link, image or code.

    Args:
        text: untrusted text from a file; `Markdown` is returned unchanged.
    """
    if isinstance(text, Markdown):
        return text
    text = _ACTING.sub(r"\\\g<0>", shown(text.replace("\n", " ")))
    return Markdown(text.replace("&", "&amp;").replace("<", "&lt;"))


def typed(text: str) -> Markdown:
    """Returns text from the command line as Markdown without HTML."""
    return Markdown(shown(text.replace("\n", " ")).replace("<", "&lt;").replace("|", r"\|"))


def code(text: str) -> Markdown:
    """Returns text as a span of code."""
    return Markdown("`" + shown(text).replace("`", "'").replace("|", r"\|") + "`")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Formats a Markdown table with escaped cells."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(map(plain, row)) + " |"


def _head(info: DatasetInfo, text: CardText) -> Iterator[str]:
    manifest = info.manifest
    yield f"# {plain(text.name)}"
    yield ""
    yield typed(text.description) if text.description else plain(default_description(info))
    yield ""
    rows = [
        ("samples", f"{manifest.num_samples:,} of {bytes_text(manifest.schema.sample_nbytes)}"),
        ("size", bytes_text(sum(s.nbytes for s in info.splits))),
        ("format", Markdown(f"{manifest.container} shards, `index.parquet`, `dataset.json`")),
        ("fingerprint", code(manifest.fingerprint)),
        ("license", typed(text.license or f"{UNKNOWN}: see the sources' below")),
        ("creator", typed(text.creator or UNKNOWN)),
        ("published", text.published or UNKNOWN),
        ("address", typed(text.url or UNKNOWN)),
        ("cite", typed(text.cite or UNKNOWN)),
        ("made by", f"msdata {manifest.provenance.get('msdata', '?')}"),
    ]
    yield from table(("", ""), rows)


def _arrays(info: DatasetInfo, deep: Mapping[str, float]) -> Iterator[str]:
    """Describes the arrays, and how deep the images are."""
    head = ("array", "shape", "dtype", "bands", "arcsec/pixel", "unit", "AB zero-points")
    yield from table(head, [_array_row(a) for a in info.manifest.schema.arrays])
    yield ""
    rows = [
        (
            a.name,
            f"{a.num_filled_samples:,} ({a.num_filled_pixels:,} pixels)",
            f"{a.num_nan_samples:,} ({a.num_nan_pixels:,} pixels)",
            a.missing_text or "none",
        )
        for a in info.arrays
    ]
    yield from table(("array", "samples inpainted", "with NaN left", "without coverage"), rows)
    if deep:
        yield ""
        yield "Depth: the AB magnitude of five times the noise of a square arc second; the noise of"
        yield "pixels is taken as independent."
        yield ""
        found = [(name, f"{value:.2f}") for name, value in deep.items()]
        yield from table(("band", "depth"), found)


def _losses(info: DatasetInfo) -> Iterator[str]:
    """Describes how the arrays are stored, and what that lost."""
    if not info.coded:
        return
    yield " ".join(loss_sentences(info.coded, info.manifest))
    yield ""
    heads = ([name.lstrip("<") for name in head] for head in (ARRAY_HEAD, BAND_HEAD))
    yield from table(next(heads), array_rows(info.coded, info.manifest.num_samples))
    if rows := band_rows(info.coded):
        yield ""
        yield from table(next(heads), rows)


def _array_row(array: Survey) -> tuple[str, ...]:
    differ = "differ by object" if array.bands else ""
    zero_points = array.zero_points_ab
    return (
        array.name,
        " x ".join(map(str, array.shape)),
        code(array.dtype),
        ", ".join(array.bands),
        "" if array.pixel_scale_arcsec is None else f"{array.pixel_scale_arcsec:g}",
        array.unit,
        differ if zero_points is None else ", ".join(f"{z:g}" for z in zero_points),
    )


def _splits(info: DatasetInfo) -> Iterator[str]:
    rows = [
        (s.name, f"{s.num_samples:,}", f"{s.num_shards:,}", bytes_text(s.nbytes))
        for s in info.splits
    ]
    yield from table(("split", "samples", "shards", "size"), rows)


def _rejected(info: DatasetInfo) -> Iterator[str]:
    kinds = count_rejected(info.path)
    said = int(info.manifest.provenance.get("num_rejected", sum(kinds.values())))
    yield f"{said:,} objects were rejected while packing; `{REJECTED_NAME}` names each."
    if kinds:
        yield ""
        common = kinds.most_common(_MAX_REASONS)
        others = sum(kinds.values()) - sum(count for _, count in common)
        rows = [(reason, f"{count:,}") for reason, count in common]
        if others:
            rows.append(("other", f"{others:,}"))
        yield from table(("reason", "objects"), rows)


def _columns(info: DatasetInfo) -> Iterator[str]:
    if info.columns:
        rows = [c.cells("") for c in info.columns]
        yield from table(("column", "type", "empty", "smallest", "largest"), rows)


def _sample(report: Mapping[str, Any] | None) -> Iterator[str]:
    """Describes the spectroscopic sample, from the catalog's own report."""
    if report is None:
        return
    spec = report["spec"]
    low, high = spec["redshift"]
    yield (
        f"{report['num_objects']:,} objects, {low:g} < z < {high:g}, declination above "
        f"{spec['dec_above']:g} degrees, no two within {spec['separation_arcsec']:g} arcsec "
        f"(the better survey wins: {plain(', '.join(spec['order']))}). SHA-256 of "
        f"`catalog.parquet`: {code(report['sha256'])}."
    )
    yield ""
    rows = [
        (
            s["name"],
            ", ".join(s["files"]),
            f"{s['num_available']:,}",
            f"{s['num_accepted']:,}",
            "; ".join(_cut_text(c) for c in s["cuts"]),
            s["citation"],
            s["licence"],
        )
        for s in report["surveys"]
    ]
    head = ("survey", "files", "available", "accepted", "cuts", "cite", "terms")
    yield from table(head, rows)


def _cut_text(cut: Mapping[str, Any]) -> str:
    tests = [f"{n.replace('_', ' ')} {v}" for n, v in cut.items() if n not in ("column", "reason")]
    return f"{cut['column'][0]} {' and '.join(tests)}"


def _imaging(info: DatasetInfo) -> Iterator[str]:
    known = [(name, *IMAGING[name]) for name in info.manifest.schema.names if name in IMAGING]
    if not known:
        return
    yield "The arrays have the names of these surveys; msdata cannot check where pixels are from."
    yield ""
    yield from table(("array", "survey", "cite", "terms"), known)


def _settings(info: DatasetInfo) -> Iterator[str]:
    settings = info.manifest.provenance.get("settings", {})
    rows = [(code(n), code(json.dumps(v))) for n, v in settings.items() if v is not None]
    yield from table(("setting", "value"), rows)


def _checks(sums: Mapping[str, str]) -> Iterator[str]:
    yield (
        "`msdata verify` checks every byte: the index has a CRC32C of each sample, `dataset.json` "
        "one of each shard's other bytes and the SHA-256 of the index."
    )
    yield ""
    yield from table(("file", "SHA-256"), [(code(n), code(s)) for n, s in sums.items()])
