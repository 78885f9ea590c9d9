"""What do coded samples save, and what do they cost? Bytes, rates, hits, errors, trainings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Settings, interval_text
from benchmarks.questions.policies import size_of_study, summarize, train_all
from benchmarks.questions.policies_effects import verdict_of
from benchmarks.questions.smaller.forms import (
    FEWER_FORMS,
    FORMS,
    MEMORY_SHARE,
    NUM_THREADS,
    measure_forms,
)
from benchmarks.questions.smaller.training import (
    CodedDesign,
    interval_of,
    percent_of,
    sentences_of,
)
from benchmarks.report import Chart, Series, Shown, Table, spread_series, write_shown
from benchmarks.workloads import make_objects, make_source, size_of
from msdata.errors import UsageError

_NUM_OBJECTS, _NUM_QUICK = 640, 200
_RATIOS = ("pack_of_float32", "hot_of_limit", "cold_of_float32")


def design_of(settings: Settings) -> CodedDesign:
    """The trainings that the settings ask for.

    Raises:
        UsageError: there would be too few objects to train on.
    """
    (num, data), is_quick = size_of_study(settings, 400, 1600), settings.quick
    return CodedDesign(
        num_objects=num,
        num_seeds=6,
        epochs=4,
        num_shards=8 if is_quick else 16,
        quantize=(4.0,),
        controls=(0.25, 0.05),
        data=data,
    )


def answer(settings: Settings) -> int:
    """Measures, trains and writes `smaller.json`; returns the exit code 0."""
    if settings.workload != "mantis":
        raise UsageError(
            f"--workload must be mantis, got {settings.workload!r}: noise without a sky, as other "
            "workloads have, tells nothing of coding"
        )
    design = design_of(settings)
    # First, since only it resumes where it was stopped.
    trained = study(settings, design)
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


def study(settings: Settings, design: CodedDesign) -> dict[str, Any]:
    """Trains all arms; takes up what an earlier run of the same design left."""
    folder = settings.work / f"smaller-{design.label}"
    jobs = len(os.sched_getaffinity(0))
    design.make_stamps(settings.data, folder, jobs)
    cells = train_all(design, folder, jobs)
    for seed in range(design.num_seeds):
        shutil.rmtree(folder / f"data-{seed}", ignore_errors=True)
    return {
        "design": asdict(design),
        "num_train": round(float(np.mean([c["num_train"] for c in cells]))),
        "num_test": round(float(np.mean([c["num_test"] for c in cells]))),
        "arms": summarize(design.arms, cells),
    }


def show(result: Mapping[str, Any]) -> Shown:
    """What the report shows."""
    forms, study_found = result["forms"], result["study"]
    arms = [arm for arm in study_found["arms"] if arm["reference"]]
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
        Chart(
            title="NMAD, float32's being 100 %",
            kind="bars",
            labels=[arm["title"] for arm in arms],
            x_label="percent; above 100 is worse; whiskers: 95 % intervals of paired differences",
            series=[
                Series(
                    name="NMAD",
                    values=[100 + percent_of(arm, "difference") for arm in arms],
                    least=[100 + percent_of(arm, "low") for arm in arms],
                    greatest=[100 + percent_of(arm, "high") for arm in arms],
                )
            ],
        ),
    ]
    return Shown(
        title="What do coded samples save, and what do they cost?",
        sentences=[*_sentences(forms), *sentences_of(study_found)],
        tables=[_forms_table(forms), _study_table(study_found["arms"])],
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


def _study_table(arms: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for arm in arms:
        row: list[Any] = [arm["title"], f"{arm['mean']['nmad']:.4f}", f"{arm['mean']['loss']:.3f}"]
        if arm["effects"]:
            nmad = arm["effects"]["nmad"]
            row += [verdict_of(arm), interval_of(arm), f"{nmad['p_holm']:.2g}"]
            row += [f"{percent_of(arm, 'smallest_seen'):.1f} %"]
        rows.append(row + [None] * (7 - len(row)))
    return Table(
        title="Networks trained on coded cutouts",
        columns=(
            *("cutouts", "NMAD", "loss", "harm", "NMAD against float32 (95 %)", "p (Holm)"),
            "80 % power from",
        ),
        rows=rows,
        in_readme=True,
        note="Means over seeds; paired by seed, above 0 is worse.",
    )
