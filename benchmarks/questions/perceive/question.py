"""Which band matters at which redshift, and is it the one that can tell?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import msdata
from benchmarks.harness import Settings
from benchmarks.questions.perceive.findings import (
    GOAL_RHO,
    LEAST_ONLY,
    LEAST_SHARE,
    MOST_DEAF,
    MOST_OTHER,
    OPTICAL,
    Objects,
    check_controls,
    is_in_order,
    leading_bands,
    maps_of,
    rank_correlations,
    read_objects,
)
from benchmarks.questions.perceive.fisher import FLOOR, mock_shares
from benchmarks.questions.perceive.trainings import (
    EARLY,
    FUSIONS,
    PAIR,
    WITHIN,
    Design,
    make_data,
    measure_all,
    scores_folder,
)
from benchmarks.report import Chart, Series, Shown, Table, write_shown
from msdata.core.files import write_whole
from msdata.core.output_file import check_output
from msdata.errors import UsageError
from msdata.mock.filters import find_crossings, load_filters
from msdata.mock.photometry import BANDS
from mstrain.evaluation.report.canvas import COLOUR_MAP, Canvas
from mstrain.perception.section import draw_tracks

PICTURE = "perceive.svg"
_TITLE = "Bands against redshift"
_MARK = f"<title>{_TITLE}</title>".encode()
_EDGES = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.6)
_QUICK_EDGES = (0, 0.2, 0.4, 0.8, 1.6)
_REPLICATES = 500
# Name of a measure -> what it is called.
_MEASURES = {"salience": "salience V", "score": "perceptual score P"}
_EXCHANGED = {EARLY: "drawn from all", WITHIN: "near in r magnitude"}
# Maps in the order of the table, and how their values are shown.
_FORMS = {"fisher": ".0%", "score": ".2f", "salience": ".1e"}


def design_of(settings: Settings) -> Design:
    """What the settings ask for."""
    is_quick = settings.quick
    return Design(
        num_objects=settings.mock or (600 if is_quick else 10_000),
        epochs=2 if is_quick else 6,
        num_control=300 if is_quick else 1_500,
        control_epochs=2 if is_quick else 8,
        permutations=2,
        redshift_edges=_QUICK_EDGES if is_quick else _EDGES,
        has_pair=settings.has_pair,
    )


def answer(settings: Settings) -> int:
    """Trains, perceives, and writes `perceive.json` and `perceive.svg`; returns the exit code 0.

    Raises:
        UsageError: a data set or another workload is asked for.
    """
    if settings.data is not None or settings.workload != "mantis":
        raise UsageError(
            "perceive must make its own mock objects, whose spectra it knows: give --mock N in "
            "place of --data or --workload"
        )
    design = design_of(settings)
    check_output(settings.out / PICTURE, _MARK)
    folder = settings.work / f"perceive-{design.num_objects}{'-quick' if settings.quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    scores = measure_all(design, folder)
    result = {
        "quick": settings.quick,
        "design": asdict(design),
        **findings_of(design, folder, scores),
        # Scores, not ratios that a regression could be read from.
        "ratios": {},
    }
    write_whole(settings.out / PICTURE, draw_headline(result))
    write_shown("perceive", result, show(result), settings)
    return 0


def findings_of(
    design: Design, folder: Path, scores: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """All numbers of the study, as plain values for JSON."""
    split = msdata.open(make_data("standard", design, folder)).split("test")
    ids = split.table(["sample_id"]).column(0).to_pylist()
    share_NB = mock_shares(ids, split.numbers("ebv_csfd"), design.num_objects)
    shares, num_bins = dict(zip(ids, share_NB, strict=True)), len(design.redshift_edges) - 1
    exchanges = {}
    for name in (EARLY, WITHIN):
        table = scores_folder(folder, name) / "perceive-test.parquet"
        objects = read_objects(table, design.redshift_edges, shares)
        exchanges[name] = _exchange_findings(objects, num_bins)
    bins = objects["bin"][(objects["bin"] >= 0) & (objects["bin"] < num_bins)]
    pair = scores.get(PAIR, {"perception": {"runs": []}, "differences": [{"by_task": {}}]})
    runs = [*scores[EARLY]["perception"]["runs"], *pair["perception"]["runs"]]
    return {
        "num_test": len(ids),
        "objects_in_bins": np.bincount(bins, minlength=num_bins).tolist(),
        "exchanges": exchanges,
        "networks": dict(zip((EARLY, *FUSIONS), map(_scores_of, runs), strict=False)),
        "late_minus_early": pair["differences"][0]["by_task"],
        "controls": check_controls(scores["deaf"], scores["only"]),
    }


def _exchange_findings(objects: Objects, num_bins: int) -> dict[str, Any]:
    """Maps of one kind of exchange, the bands that lead in each bin, and rank correlations."""
    maps = maps_of(objects, num_bins)
    return {
        "maps": {measure: _plain(found) for measure, found in maps.items()},
        "leading": {measure: leading_bands(found) for measure, found in maps.items()},
        "leading_optical": {m: leading_bands(found, OPTICAL) for m, found in maps.items()},
        "rho": rank_correlations(objects, num_bins, replicates=_REPLICATES),
    }


def _scores_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """Scores by task of the CRPS, by modality; and the NMAD as "NMAD"."""
    found = run["scores"]["crps"]["modalities"]
    scores = {name: m["by_task"] for name, m in found.items()}
    return {"NMAD": run["scores"]["nmad"]["loss"], "CRPS": run["scores"]["crps"]["loss"], **scores}


def _plain(found: Any) -> list[list[float | None]]:
    return [[float(f"{v:.4g}") if np.isfinite(v) else None for v in row] for row in found]


def show(result: Mapping[str, Any]) -> Shown:
    """What the report shows."""
    networks = result["networks"]
    names = [n for n in networks[EARLY] if n not in ("NMAD", "CRPS")]
    chart = Chart(
        title="Perceptual scores by task (CRPS)",
        kind="bars",
        labels=names,
        x_label="0: ignored, 1: as bad as knowing nothing; whiskers: 95 % intervals",
        series=[_series(name, scores, names) for name, scores in networks.items()],
    )
    return Shown(
        title="Which band matters at which redshift?",
        sentences=sentences_of(result),
        tables=[_bins_table(result), _scores_table(result, names)],
        charts=[chart],
    )


def _series(name: str, scores: Mapping[str, Any], names: Sequence[str]) -> Series:
    found = [scores.get(n) or {"value": 0.0, "low": 0.0, "high": 0.0} for n in names]
    middle, low, high = ([e[end] for e in found] for end in ("value", "low", "high"))
    return Series(name=name, values=middle, least=low, greatest=high)


def sentences_of(result: Mapping[str, Any]) -> list[str]:
    """What was found, first whether the controls hold."""
    controls, design = result["controls"], result["design"]
    deaf, only = controls["deaf"], controls["only"]
    found = [
        f"Networks: `demo` on {design['num_objects']:,} mock objects for {design['epochs']} epochs "
        f"(NMAD {result['networks'][EARLY]['NMAD']:.4f} on {result['num_test']:,} test objects); "
        f"controls{', and the pair of fusions,' if len(result['networks']) > 1 else ''} on "
        f"{design['num_control']:,} for "
        f"{design['control_epochs']} epochs; one training each.",
        f"Control, {deaf['band']} taken from other objects: P = {_text(deaf['score'], 4)}; its "
        f"interval must hold 0 and |P| be below {MOST_DEAF:g}: {_verdict(deaf['holds'])}.",
        f"Control, all but {only['band']} taken from other objects: P = {_text(only['score'])}, "
        f"must be above {LEAST_ONLY:g}; the largest other is {only['largest_other']} with "
        f"{_text(only['other_score'])}, must be below {MOST_OTHER:g}: {_verdict(only['holds'])}.",
    ]
    for name, exchange in result["exchanges"].items():
        found += _exchange_sentences(_EXCHANGED[name], exchange)
    return found


def _exchange_sentences(partners: str, exchange: Mapping[str, Any]) -> list[str]:
    found = []
    for measure, title in _MEASURES.items():
        rho, within = exchange["rho"][measure], exchange["rho"][f"{measure} within bins"]
        reached = "is" if (rho["value"] or 0) > GOAL_RHO else "is NOT"
        found.append(
            f"Partners {partners}: Spearman's rho of {title} with the shares of information is "
            f"{_text(rho)} over the {rho['cells']} cells of more than {LEAST_SHARE:.0%}; the goal "
            f"of {GOAL_RHO} {reached} reached. Over the nine bands, mean over bins: "
            f"{_text(within)}."
        )
    for measure, title in {"fisher": "the information", **_MEASURES}.items():
        leading = exchange["leading_optical"][measure]
        order = "in" if is_in_order(leading) else "NOT in"
        bands = " ".join(band or "-" for band in leading)
        found.append(
            f"Partners {partners}: largest of g r i z in {title}, by bin: {bands}; {order} the "
            "order g r i z."
        )
    return found


def _verdict(holds: bool) -> str:
    return "it holds" if holds else "IT FAILS"


def _text(found: Mapping[str, Any] | None, digits: int = 3) -> str:
    if found is None or found["value"] is None:
        return "n/a"
    ends = f"{found['low']:.{digits}f} to {found['high']:.{digits}f}"
    return f"{found['value']:.{digits}f} ({ends})"


def _bins_table(result: Mapping[str, Any]) -> Table:
    edges = result["design"]["redshift_edges"]
    shown = [(EARLY, "fisher"), *((name, m) for name in (EARLY, WITHIN) for m in _MEASURES)]
    maps = [_map(result, name, measure) for name, measure in shown]
    rows = [
        [
            f"{edges[z]:g} to {edges[z + 1]:g}",
            count,
            *(_strongest(f[:, z], _FORMS[m]) for f, (_, m) in zip(maps, shown, strict=True)),
        ]
        for z, count in enumerate(result["objects_in_bins"])
    ]
    return Table(
        title="The bands that matter most, by redshift",
        columns=(
            *("redshift", "test objects", "information lost", "V", "P"),
            *("V, near in r", "P, near in r"),
        ),
        rows=rows,
        in_readme=True,
        note=(
            "The three largest of each, partners drawn from all or near in r magnitude. "
            "Information: share of the Fisher information on z that is "
            "lost with the band; mock spectra, point sources at the mock's depths, errors of at "
            f"least {FLOOR:.0%}, free amplitude; medians. P: perceptual score by task of the CRPS. "
            "V: median variance of the estimate when the band is another object's, over (1 + z)^2."
        ),
    )


def _strongest(values: Any, form: str) -> str:
    order = np.argsort(-np.nan_to_num(values, nan=-1.0))[:3]
    return ", ".join(f"{BANDS[b]} {values[b]:{form}}" for b in order if np.isfinite(values[b]))


def _scores_table(result: Mapping[str, Any], names: Sequence[str]) -> Table:
    columns = {f"P, {name}": scores for name, scores in result["networks"].items()}
    if result["late_minus_early"]:
        columns["late minus early, paired"] = result["late_minus_early"]
    rows = [[name, *(_text(scores.get(name)) for scores in columns.values())] for name in names]
    return Table(
        title="Perceptual scores by task (CRPS)",
        columns=("exchanged", *columns),
        rows=rows,
        in_readme=True,
        note="With 95 % bootstrap intervals over objects, of one training each.",
    )


def _map(result: Mapping[str, Any], name: str, measure: str) -> Any:
    return np.array(result["exchanges"][name]["maps"][measure], np.float64)


def draw_headline(result: Mapping[str, Any]) -> bytes:
    """Heat maps of bands against redshift, breaks over them, beside the information, as SVG."""
    edges = np.asarray(result["design"]["redshift_edges"], np.float64)
    panels = [("information lost with the band", _map(result, EARLY, "fisher"), (0.0, 0.6))]
    for name, partners in ((EARLY, "all"), (WITHIN, "near in r")):
        with np.errstate(divide="ignore", invalid="ignore"):
            salience = np.log10(_map(result, name, "salience"))
        salience = np.where(np.isfinite(salience), salience, np.nan)
        panels.append((f"log10 of salience V, partners {partners}", salience, None))
        panels.append((f"score P, partners {partners}", _map(result, name, "score"), None))
    crossings = find_crossings(load_filters(), float(edges[-1]))
    rows = np.arange(len(BANDS) + 1) - 0.5
    with Canvas(12.6, 7.6, rows=2, columns=3, sharey=True) as canvas:
        # The yardstick on the left of the upper row; the place below it is left for the legend.
        *places, empty = [canvas.panels[n] for n in (0, 1, 2, 4, 5, 3)]
        empty.set_axis_off()
        for panel, (title, values, limits) in zip(places, panels, strict=True):
            low, high = limits or (None, None)
            shown = np.ma.masked_invalid(values)
            drawn = panel.pcolormesh(
                edges, rows, shown, cmap=COLOUR_MAP, vmin=low, vmax=high, rasterized=True
            )
            canvas.figure.colorbar(drawn, ax=panel, pad=0.01)
            panel.set(title=title, xlabel="redshift", xlim=(edges[0], edges[-1]))
            panel.set(ylim=(len(BANDS) - 0.5, -0.5), yticks=range(len(BANDS)), yticklabels=BANDS)
            draw_tracks(panel, BANDS, crossings)
        places[3].tick_params(labelleft=True)
        handles, labels = canvas.panels[0].get_legend_handles_labels()
        # One of the lines is white.
        box = {"frameon": True, "facecolor": "#8fa3b3", "framealpha": 1}
        title = "a feature lies within the band"
        empty.legend(handles, labels, loc="center", title=title, **box)
        return canvas.drawing("svg", Date=None, Creator=None, Title=_TITLE)
