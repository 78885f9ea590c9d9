"""What do coded samples save, and what do they cost? Bytes, rates, hits, errors, trainings."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Settings, interval_text
from benchmarks.questions.policies import chart_of, shown_tables, size_of_study
from benchmarks.questions.smaller.forms import (
    FEWER_FORMS,
    FORMS,
    MEMORY_SHARE,
    NUM_THREADS,
    measure_forms,
)
from benchmarks.questions.smaller.training import coded_study
from benchmarks.report import Chart, Series, Shown, Table, spread_series, write_shown
from benchmarks.workloads import make_objects, make_source, size_of
from msdata.errors import UsageError
from mstrain.study.section import sentences_of

_NUM_OBJECTS, _NUM_QUICK = 640, 200
_RATIOS = ("pack_of_float32", "hot_of_limit", "cold_of_float32")


def answer(settings: Settings) -> int:
    """Measures, trains and writes `smaller.json`; returns the exit code 0."""
    if settings.workload != "mantis":
        raise UsageError(
            f"--workload must be mantis, got {settings.workload!r}: noise without a sky, as other "
            "workloads have, tells nothing of coding"
        )
    # First, since only it resumes where it was stopped.
    trained = coded_study(settings, size_of_study(settings, 400, 1600))
    objects, count = _objects(settings)
    folder = settings.work / "smaller"
    print(f"  measuring {count:,} samples", flush=True)
    repeats, forms = (2, FEWER_FORMS) if settings.quick else (3, FORMS)
    found = measure_forms(objects, count, folder, repeats, forms)
    shutil.rmtree(folder)
    result = {
        "quick": settings.quick,
        "num_samples": count,
        "forms": found,
        "study": trained,
        "ratios": {
            f"{form['title']}: {name.replace('_', ' ')}": form[name]
            for form in found
            for name in _RATIOS
        },
    }
    write_shown("smaller", result, show(result), settings)
    return 0


def _objects(settings: Settings) -> tuple[Path, int]:
    """Mock galaxies, whose sky has the surveys' noise, or the first samples of a data set."""
    count = settings.mock or (_NUM_QUICK if settings.quick else _NUM_OBJECTS)
    if settings.data is None:
        return make_objects(settings.work, count), count
    count = min(count, size_of(settings)[0])
    return make_source(settings, count).objects, count


def show(result: Mapping[str, Any]) -> Shown:
    """What the report shows."""
    forms, study_found = result["forms"], result["study"]
    charts = [
        Chart(
            title="Rates of epochs, beside bare decoding or copying",
            kind="bars",
            labels=[form["title"] for form in forms],
            x_label="samples/s; whiskers: least and greatest over turns",
            series=[
                spread_series(title, [form[name] for form in forms])
                for name, title in (("limit", "bare"), ("hot", "hot"), ("cold", "cold"))
            ],
        ),
        Chart(
            title="Bytes, hits and packing against float32",
            kind="bars",
            labels=[form["title"] for form in forms],
            x_label="float32 has 1",
            series=[
                Series(name="bytes", values=[1 / form["ratio"] for form in forms]),
                Series(name="hits at equal memory", values=[form["hits"] for form in forms]),
                spread_series("packing rate", [form["pack_of_float32"] for form in forms]),
            ],
        ),
        chart_of(study_found),
    ]
    return Shown(
        title="What do coded samples save, and what do they cost?",
        sentences=[*_sentences(forms), *sentences_of(study_found)],
        tables=[_forms_table(forms), *shown_tables(study_found)],
        charts=charts,
    )


def _sentences(forms: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for form in forms:
        if form["quantize"] != 4:
            continue
        binds = "decoding" if form["limit"]["median"] < forms[0]["limit"]["median"] else "copying"
        found.append(
            f"{form['title']}: {form['ratio']:.2f} times smaller, packed at "
            f"{interval_text(form['pack_of_float32'])} of float32's rate, cold epochs "
            f"{interval_text(form['cold_of_float32'])} of float32's, hot ones "
            f"{interval_text(form['hot_of_limit'])} of bare {binds} by {NUM_THREADS} threads; "
            f"{form['hits']:.0%} hits where float32 has {forms[0]['hits']:.0%}."
        )
    changed = [f["title"] for f in forms[1:] if not f["same"]]
    if changed:
        found.append(f"FAULT: zeros or unquantized pixels were changed: {', '.join(changed)}.")
    return found


def _forms_table(forms: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            form["title"],
            form["record_nbytes"] / 1024,
            f"{form['ratio']:.2f}",
            f"{form['hits']:.0%}",
            f"{form['pack']['median']:,.0f}",
            interval_text(form["pack_of_float32"]),
            form["pack_cpu_ms"]["median"],
            f"{form['cold']['median']:,.0f}",
            f"{form['hot']['median']:,.0f}",
            f"{form['limit']['median']:,.0f}",
            interval_text(form["hot_of_limit"]),
            *(form.get(name) for name in ("variance", "worst")),
        ]
        for form in forms
    ]
    return Table(
        title="Forms of the same samples",
        columns=(
            *("stored as", "KiB per sample", "ratio", "hits", "packing, samples/s"),
            *("of float32", "CPU ms", "cold, samples/s", "hot", "bare", "hot of bare"),
            *("variance", "largest error, steps"),
        ),
        rows=rows,
        in_readme=True,
        note=(
            f"Hits: of the second epoch on one node whose memory holds {MEMORY_SHARE:.0%} of the "
            "float32 data, by the plan. Packing with two processes, start included; CPU ms: "
            "processor time per sample of the same. Cold: page cache dropped before the epoch. "
            f"Bare: {NUM_THREADS} threads decode the same records from memory (float32: copy "
            "them). Variance: the added one over step^2 / 12. Ratios are of the same turn: median "
            "(least to greatest)."
        ),
    )
