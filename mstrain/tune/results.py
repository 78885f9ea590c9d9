"""What a study found: a table of its trials, the command that repeats the best, a page of figures.

STUDY/trials.csv   STUDY/best.txt   STUDY/tune.html
"""

from __future__ import annotations

import csv
import io
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msdata.core.files import write_whole
from msdata.core.output_file import check_output
from msdata.core.text import duration_text
from mstrain.evaluation.report.page import MARK, page_with_section, section_body
from mstrain.evaluation.report.wording import TextTable
from mstrain.tune.figures import draw_coordinates, draw_history, draw_importances
from mstrain.tune.journal import COMPLETE, Trial
from mstrain.tune.space import LOSS, setting_text, setting_words
from mstrain.tune.study import Study

_TABLE, _BEST, _PAGE = "trials.csv", "best.txt", "tune.html"
_HEAD = ("trial", "state", "epochs", "seconds")
_BEST_MARK = b"mstrain train "


def check_results(folder: Path) -> None:
    """Refuses to replace files in a study's folder that no search made.

    Raises:
        UsageError: there is such a file.
    """
    for name, mark in ((_TABLE, b"trial,state,"), (_BEST, _BEST_MARK), (_PAGE, MARK)):
        check_output(folder / name, mark)


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The complete trial with the least objective; None without one."""
    done = [trial for trial in trials if trial.value is not None]
    return min(done, key=lambda trial: trial.value or 0.0, default=None)


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
    done = sorted((t for t in trials if t.state == COMPLETE), key=lambda t: t.value or 0.0)
    return TextTable(
        caption=f"The {min(len(done), num_rows)} best of {len(done)} complete trials",
        head=["trial", objective_text(objective), "epochs", "time", *names],
        rows=[_cells(trial, names) for trial in done[:num_rows]],
    )


def objective_text(objective: str) -> str:
    """The objective in words."""
    return "validation loss [nats]" if objective == LOSS else "validation CRPS"


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
