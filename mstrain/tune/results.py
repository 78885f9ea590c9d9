"""What a study found: a table of its trials, the command that repeats the best, a page of figures.

STUDY/trials.csv   STUDY/best.txt   STUDY/tune.html
"""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msdata.core.files import write_whole
from msdata.core.output_file import check_output
from msdata.core.text import duration_text
from mstrain.evaluation.report.canvas import BLUE, GREY, INK, ORANGE, RED, Canvas, Picture
from mstrain.evaluation.report.page import MARK, page_with_section, section_body
from mstrain.evaluation.report.wording import TextTable
from mstrain.tune.journal import FAILED, PRUNED, Trial
from mstrain.tune.space import LOSS, Dimension, setting_text, setting_words
from mstrain.tune.study import Study

_TABLE, _BEST, _PAGE = "trials.csv", "best.txt", "tune.html"
_HEAD = ("trial", "state", "epochs", "seconds")
_BEST_MARK = b"mstrain train "
# What is worse than so many of the trials would flatten the axis.
_SHOWN_SHARE = 0.9


def check_results(folder: Path) -> None:
    """Refuses to replace files in a study's folder that no search made.

    Raises:
        UsageError: there is such a file.
    """
    for name, mark in ((_TABLE, b"trial,state,"), (_BEST, _BEST_MARK), (_PAGE, MARK)):
        check_output(folder / name, mark)


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The complete trial with the least objective; None without one."""
    return next(iter(_by_value(trials)), None)


def _by_value(trials: Sequence[Trial]) -> list[Trial]:
    """The complete trials, the least objective first."""
    done = [trial for trial in trials if trial.value is not None]
    return sorted(done, key=lambda trial: trial.value or 0.0)


def best_command(study: Study, trial: Trial) -> str:
    """The command line that trains a trial's settings again."""
    words = ["mstrain", "train", study.config.recipe, study.config.data, "--out", "RUN"]
    return shlex.join([*words, *study.config.words, *setting_words(trial.params)])


def write_tables(study: Study) -> list[Trial]:
    """Writes `trials.csv` and `best.txt`; returns the trials.

    Raises:
        UsageError: a file of that name is not a search's.
        StorageError: the file system refused.
    """
    trials = study.trials()
    check_results(study.folder)
    names = [dimension.name for dimension in study.space]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*_HEAD, study.config.objective, *names, "note"])
    for trial in trials:
        params = [setting_text(trial.params[n]) if n in trial.params else "" for n in names]
        seconds = "" if trial.seconds is None else f"{trial.seconds:.1f}"
        value = "" if trial.value is None else repr(trial.value)
        table.writerow(
            [*(trial.number, trial.state, len(trial.reported), seconds, value), *params, trial.note]
        )
    write_whole(study.folder / _TABLE, text.getvalue().encode())
    if (best := best_trial(trials)) is not None:
        line = f"{best_command(study, best)}\n"
        write_whole(study.folder / _BEST, line.encode("utf-8", "surrogateescape"))
    return trials


def write_page(study: Study, trials: Sequence[Trial]) -> Path:
    """Writes `tune.html`: figures, the best trials, what was searched.

    Raises:
        StorageError: the file system refused.
    """
    importances = study.importances()
    objective, names = study.config.objective, [d.name for d in study.space]
    drawn = (
        draw_history(trials, objective),
        draw_coordinates(trials, study.space, objective),
        draw_importances(importances),
    )
    notes = [count_text(trials)]
    if not importances:
        notes.append("Too few complete trials for importances, or a single setting.")
    best = best_trial(trials)
    if best is not None:
        notes.append(f"The best again: {best_command(study, best)}")
    tables = [best_table(trials, names, objective, 10), _space_table(study)]
    body = section_body(notes, tables, [picture for picture in drawn if picture is not None])
    page = page_with_section(None, "tune", f"Search of {study.config.recipe}", body)
    write_whole(study.folder / _PAGE, page.encode())
    return study.folder / _PAGE


def count_text(trials: Sequence[Trial]) -> str:
    """How many trials ended in which way."""
    counts = Counter(trial.state for trial in trials)
    return f"{len(trials):,} trials: " + ", ".join(f"{n} {state}" for state, n in counts.items())


def best_table(
    trials: Sequence[Trial], names: Sequence[str], objective: str, num_rows: int
) -> TextTable:
    """The best complete trials, a row each."""
    done = _by_value(trials)
    shown = "validation loss [nats]" if objective == LOSS else "validation CRPS"
    return TextTable(
        caption=f"The {min(len(done), num_rows)} best of {len(done)} complete trials",
        head=["trial", shown, "epochs", "time", *names],
        rows=[_cells(trial, names) for trial in done[:num_rows]],
    )


def _cells(trial: Trial, names: Sequence[str]) -> list[str]:
    time = "" if trial.seconds is None else duration_text(trial.seconds)
    params = [_short(trial.params.get(name)) for name in names]
    return [f"{trial.number}", f"{trial.value:.5g}", f"{len(trial.reported)}", time, *params]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else setting_text(value)


def _space_table(study: Study) -> TextTable:
    config = study.config
    rows = [[name, text] for name, text in config.search.items()]
    shared = [["sampler", config.sampler], ["pruner", config.pruner], ["seed", str(config.seed)]]
    shared += [["data set", config.data], ["its settings", " ".join(config.words) or "-"]]
    return TextTable(caption="What was searched, and how", head=["setting", ""], rows=rows + shared)


def draw_history(trials: Sequence[Trial], objective: str) -> Picture | None:
    """Objective by number of the trial, and the best so far; None without a complete trial."""
    done = [trial for trial in trials if trial.value is not None]
    if not done:
        return None
    values = np.array([trial.value for trial in done], np.float64)
    numbers = [trial.number for trial in done]
    pruned = [t for t in trials if t.state == PRUNED and t.reported]
    lasts = [trial.reported[max(trial.reported)] for trial in pruned]
    failed = [trial.number for trial in trials if trial.state == FAILED]
    top = max(float(np.quantile([*values, *lasts], _SHOWN_SHARE)), values[0])
    with Canvas(7.6, 3.6) as canvas:
        (panel,) = canvas.panels
        panel.scatter(
            [t.number for t in pruned], lasts, s=14, color=GREY, marker="x", label="pruned"
        )
        panel.scatter(numbers, values, s=18, color=BLUE, label="complete")
        best = np.minimum.accumulate(values)
        panel.step(numbers, best, where="post", color=ORANGE, label="best so far")
        low = values.min()
        room = 0.05 * (top - low) or 0.05 * abs(low) or 1.0
        panel.set_ylim(low - room, top + room)
        if failed:
            height = np.full(len(failed), low - 0.6 * room)
            panel.scatter(failed, height, s=18, color=RED, marker="v", label="failed")
        panel.set(xlabel="trial", ylabel=f"validation {objective}")
        panel.grid(axis="y")
        panel.legend(loc="upper left", bbox_to_anchor=(1, 1))
        return canvas.picture(
            "Course of the search",
            alt=f"{len(done)} complete, {len(pruned)} pruned and {len(failed)} failed trials by "
            f"number; the best reaches {values.min():.4g}",
            caption="Pruned trials stand where they were left. The axis ends where a tenth of the "
            "trials lies above it, unless the first complete one does.",
        )


def draw_coordinates(
    trials: Sequence[Trial], space: Sequence[Dimension], objective: str
) -> Picture | None:
    """A line for each trial through its settings, the best in color; None without a trial."""
    order = _by_value(trials)
    if not order:
        return None
    num_best = max(1, len(order) // 10)
    names = [*(dimension.name for dimension in space), f"validation {objective}"]
    values = np.array([trial.value for trial in order], np.float64)
    spread = values.max() - values.min()
    heights = [[_height(d, trial.params[d.name]) for d in space] for trial in order]
    with Canvas(max(5.0, 1.6 * len(names)), 3.8) as canvas:
        (panel,) = canvas.panels
        # The best are drawn last, above the others.
        for rank in range(len(order) - 1, -1, -1):
            is_best = rank < num_best
            last = (values[rank] - values.min()) / spread if spread else 0.5
            panel.plot(
                range(len(names)),
                [*heights[rank], last],
                color=BLUE if is_best else GREY,
                alpha=1.0 if is_best else 0.35,
                linewidth=1.6 if is_best else 0.8,
            )
        ends = [(_short(d.ends()[0]), _short(d.ends()[-1])) for d in space]
        ends.append((f"{values.min():.4g}", f"{values.max():.4g}"))
        for place, (low, high) in enumerate(ends):
            panel.vlines(place, 0, 1, color=INK, linewidth=0.8)
            panel.text(place, -0.04, low, ha="center", va="top", fontsize=8)
            panel.text(place, 1.04, high, ha="center", va="bottom", fontsize=8)
        panel.set_xticks(range(len(names)), [name.rpartition(".")[2] for name in names])
        panel.set_yticks([])
        panel.set_ylim(-0.14, 1.14)
        panel.tick_params(axis="x", length=0)
        for side in ("left", "bottom"):
            panel.spines[side].set_visible(False)
        return canvas.picture(
            "Settings of the complete trials",
            alt=f"{len(order)} lines through {', '.join(names)}; the best {num_best} in color",
            caption=f"Blue: the best {num_best} of {len(order)}. Axes of log: are logarithmic; "
            "choices stand in the order given.",
        )


def _height(of: Dimension, value: Any) -> float:
    """Where a value stands on its axis, from 0 to 1."""
    if of.choices:
        return of.choices.index(value) / (len(of.choices) - 1)
    low, high = of.ends()
    if of.is_log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return float((value - low) / (high - low))


def draw_importances(importances: Mapping[str, float]) -> Picture | None:
    """Bars of importances, the greatest on top; None where there are none."""
    if not importances:
        return None
    ordered = sorted(importances.items(), key=lambda pair: pair[1])
    with Canvas(6.0, 1.2 + 0.35 * len(ordered)) as canvas:
        (panel,) = canvas.panels
        panel.barh([name for name, _ in ordered], [share for _, share in ordered], color=BLUE)
        panel.set(xlabel="share of the objective's variance", xlim=(0, 1))
        panel.grid(axis="x")
        return canvas.picture(
            "Which settings matter",
            alt="; ".join(f"{name} {share:.0%}" for name, share in reversed(ordered)),
            caption="fANOVA over the complete trials: forests of 32 trees. Pruned trials are left "
            "out, so what the pruner cuts off early counts too little.",
        )
