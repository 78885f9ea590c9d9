"""The section of the report: heat maps of bands against redshift, bars of scores, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msdata.errors import MissingPackageError
from msdata.mock.filters import Crossing, find_crossings, load_filters
from mstrain.evaluation.report.canvas import (
    BLUE,
    COLOUR_MAP,
    GREEN,
    GREY,
    INK,
    ORANGE,
    RED,
    Canvas,
    Picture,
)
from mstrain.evaluation.report.page import section_body
from mstrain.evaluation.report.wording import TextTable
from mstrain.network_config import REDSHIFT

_COLORS = (BLUE, ORANGE, GREEN, RED, INK)


def draw_section(result: Mapping[str, Any]) -> str:
    """HTML of the section, from the content of the JSON file."""
    runs = result["perception"]["runs"]
    settings = result["perception"]["settings"]
    crossings, why_not = _crossings(runs)
    pictures = [draw_maps(run, crossings) for run in runs if _band_names(run)]
    if any(run["scores"]["crps"]["modalities"] for run in runs):
        pictures.append(draw_bars(runs))
    pictures += [draw_steps(run) for run in runs if len(run.get("checkpoints", ())) > 1]
    notes = [
        f"Exchanged: {settings['level']}, {settings['num_permutations']} partners for each sample, "
        f"within {settings['within']}, mask {settings['mask']}. By task: (loss exchanged - loss) / "
        "(loss of the marginal n(z) - loss); by model: over the loss itself.",
        *([why_not] if why_not else []),
        *(f"{run['origin']['run']}: {run['note']}" for run in runs if run["note"]),
    ]
    return section_body(notes, tables_of(result), [p for p in pictures if p is not None])


def _crossings(runs: Sequence[Mapping[str, Any]]) -> tuple[tuple[Crossing, ...], str]:
    z_max = max((b["high"] for run in runs for b in run["bins"]), default=1.6)
    if not all(_is_redshift(run) for run in runs):
        return (), ""
    try:
        return find_crossings(load_filters(), z_max), ""
    except MissingPackageError as error:
        return (), f"No tracks of spectral features are drawn: {error}"


def _is_redshift(run: Mapping[str, Any]) -> bool:
    return bool(run["origin"].get("target_kind", REDSHIFT) == REDSHIFT)


def _band_names(run: Mapping[str, Any]) -> list[str]:
    modalities = run["scores"]["crps"]["modalities"]
    return [name for name, found in modalities.items() if found["kind"] == "band"]


def draw_maps(run: Mapping[str, Any], crossings: Sequence[Crossing]) -> Picture | None:
    """Salience and perceptual score of bands against redshift, with tracks of features over them.

    None where no bin has enough objects; bands of names without `crossings` have no tracks.
    """
    names, bins = _band_names(run), run["bins"]
    edges = np.array([bins[0]["low"], *(b["high"] for b in bins)]) if bins else np.zeros(1)
    if not any(b["modalities"] for b in bins):
        return None
    is_redshift = _is_redshift(run)
    noun = "redshift" if is_redshift else run["origin"]["target"]
    variance = "Var(z_mean)/(1+z)^2" if is_redshift else f"Var({noun}_mean)"
    panels = (("salience", "log10 of salience V", True), ("by_task", "perceptual score P", False))
    with Canvas(9.4, 1.2 + 0.36 * len(names), columns=2, sharey=True) as canvas:
        for panel, (key, title, is_log) in zip(canvas.panels, panels, strict=True):
            values = _grid(bins, names, key)
            if is_log:
                values = np.log10(np.where(values > 0, values, np.nan))
            rows = np.arange(len(names) + 1) - 0.5
            if np.isfinite(values).any():
                shown = np.ma.masked_invalid(values)
                drawn = panel.pcolormesh(edges, rows, shown, cmap=COLOUR_MAP, rasterized=True)
                canvas.figure.colorbar(drawn, ax=panel, pad=0.01)
            else:
                # The network knows no more than n(z) there, or no band moves its estimate.
                title = f"{title}: n/a"
            panel.set(title=title, xlabel=noun, xlim=(edges[0], edges[-1]))
            panel.set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), yticklabels=names)
            draw_tracks(panel, names, crossings)
        handles, labels = canvas.panels[0].get_legend_handles_labels()
        if handles:
            canvas.figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        return canvas.picture(
            f"Bands against {noun}: {run['origin']['recipe'] or 'network'}, {run['fusion']} fusion",
            alt=f"Heat maps of salience and perceptual score, one row per band, against {noun}",
            caption=f"Left: median of {variance} over partners; right: score by task of CRPS. "
            + (
                "Lines: redshifts at which a feature lies within the band (10 % edges). "
                if is_redshift
                else ""
            )
            + "Empty: fewer than 10 objects, or a salience of 0.",
        )


def _grid(bins: Sequence[Mapping[str, Any]], names: Sequence[str], key: str) -> Any:
    """A value by band and bin, float64; NaN where there is none."""
    values = np.full((len(names), len(bins)), np.nan)
    for column, found in enumerate(bins):
        for row, name in enumerate(names):
            estimate = found["modalities"].get(name, {}).get(key)
            if estimate is not None:
                values[row, column] = estimate["value"]
    return values


def draw_tracks(panel: Any, names: Sequence[str], crossings: Sequence[Crossing]) -> None:
    """Lines over a heat map whose rows are bands: where features cross each with redshift.

    Bands are called "unwise.W1" or "W1".
    """
    features = list(dict.fromkeys(crossing.feature for crossing in crossings))
    shown: set[str] = set()
    for crossing in crossings:
        for row, name in enumerate(names):
            if name.rpartition(".")[2] != crossing.band:
                continue
            number = features.index(crossing.feature)
            panel.plot(
                (crossing.z_low, crossing.z_high),
                (row + 0.16 * (number - 2),) * 2,
                color=("#ffffff", RED, ORANGE, GREEN, BLUE)[number % 5],
                linewidth=2.2,
                solid_capstyle="butt",
                label=None if crossing.feature in shown else crossing.feature,
            )
            shown.add(crossing.feature)


def draw_bars(runs: Sequence[Mapping[str, Any]]) -> Picture:
    """Perceptual scores by task of the CRPS, with intervals, runs side by side."""
    names = list(dict.fromkeys(n for run in runs for n in run["scores"]["crps"]["modalities"]))
    with Canvas(7.4, 1.4 + 0.3 * len(names)) as canvas:
        (panel,) = canvas.panels
        height = 0.8 / len(runs)
        for number, run in enumerate(runs):
            found = run["scores"]["crps"]["modalities"]
            rows = [n for n in range(len(names)) if (found.get(names[n]) or {}).get("by_task")]
            estimates = [found[names[n]]["by_task"] for n in rows]
            if not estimates:
                continue
            value = np.array([e["value"] for e in estimates])
            ends = np.array([[e["value"] - e["low"], e["high"] - e["value"]] for e in estimates]).T
            panel.barh(
                np.array(rows) + height * (number - (len(runs) - 1) / 2),
                value,
                height,
                xerr=np.maximum(ends, 0),
                color=_COLORS[number % len(_COLORS)],
                error_kw={"ecolor": GREY, "linewidth": 1},
                label=_label(run),
            )
        panel.axvline(0, color=GREY, linewidth=0.8)
        panel.set(yticks=range(len(names)), yticklabels=names, xlabel="perceptual score (CRPS)")
        panel.invert_yaxis()
        if len(panel.get_legend_handles_labels()[0]) > 1:
            panel.legend()
        return canvas.picture(
            "Perceptual scores",
            alt="Bars of the perceptual score of each band, survey and E(B-V)",
            caption="0: ignored; 1: as bad as knowing nothing. Lines: 95 % bootstrap intervals.",
        )


def draw_steps(run: Mapping[str, Any]) -> Picture:
    """Perceptual scores of surveys and E(B-V) against the optimizer step."""
    steps = run["checkpoints"]
    found = run["scores"]["crps"]["modalities"]
    names = [name for name, entry in found.items() if entry["kind"] != "band"]
    with Canvas(6.2, 3.2) as canvas:
        (panel,) = canvas.panels
        for number, name in enumerate(names):
            values = [(s["by_task"].get(name) or {}).get("value", np.nan) for s in steps]
            color = _COLORS[number % len(_COLORS)]
            panel.plot([s["step"] for s in steps], values, "o-", color=color, label=name)
        panel.set(xlabel="optimizer step", ylabel="perceptual score (CRPS)")
        panel.legend()
        return canvas.picture(
            f"Perceptual scores by checkpoint: {_label(run)}",
            alt="Perceptual score of each survey against the optimizer step",
            caption="Checkpoints that the run kept.",
        )


def _label(run: Mapping[str, Any]) -> str:
    name = str(run["origin"]["run"]).rpartition("/")[2]
    return f"{name} ({run['fusion']})"


def tables_of(result: Mapping[str, Any]) -> list[TextTable]:
    """Scores by task of each run's CRPS, side by side, and their Shapley values."""
    runs = result["perception"]["runs"]
    names = list(dict.fromkeys(n for run in runs for n in run["scores"]["crps"]["modalities"]))
    rows = [
        [name, *(_score_text(run["scores"]["crps"]["modalities"].get(name)) for run in runs)]
        for name in names
    ]
    count = ", ".join(f"{run['num_samples']:,}" for run in runs)
    tables = [
        TextTable(
            caption=f"Perceptual score by task, CRPS ({count} objects)",
            head=["modality", *(_label(run) for run in runs)],
            rows=rows,
        )
    ]
    for run in runs:
        if run["shapley"] is None:
            continue
        values = {**run["shapley"]["players"], "sum": run["shapley"]["sum"]}
        rows = [[name, _number_text(found, 5)] for name, found in values.items()]
        caption = f"Shapley values: {_label(run)}"
        tables.append(TextTable(caption=caption, head=["player", "CRPS"], rows=rows))
    return tables


def _score_text(found: Mapping[str, Any] | None) -> str:
    return "n/a" if found is None else _number_text(found["by_task"], 3)


def _number_text(found: Mapping[str, float] | None, digits: int) -> str:
    if found is None:
        return "n/a"
    ends = f"{found['low']:.{digits}f} to {found['high']:.{digits}f}"
    return f"{found['value']:.{digits}f} ({ends})"
