"""Which score finds planted mislabels: loss, margin, self-influence, in and out of fold, chance.

Makes mock objects of which a share has the redshift of another object, trains one network on all
training objects and one per fold, and has `mstrain attribute` score the labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

import msdata
from benchmarks.harness import add_data, part_parser, write_part
from benchmarks.workloads import make_objects, pack_objects, run_mstrain
from msdata.core.files import write_whole
from msdata.core.output_file import check_output
from msdata.core.text import table_lines
from mstrain.embedding.risk import auroc
from mstrain.evaluation.metrics.bootstrap import percentile_interval
from mstrain.evaluation.report.canvas import BLUE, GREEN, GREY, INK, ORANGE, RED, Canvas

PICTURE = "labels.svg"
RANDOM = "random"
# Column of the table -> what it is called; the others are held against the first.
SCORES = {
    "loss": "training loss",
    "margin": "margin",
    "self_influence": "self-influence",
    "oof_loss": "loss out of fold",
    "oof_margin": "margin out of fold",
    "oof_crps": "CRPS out of fold",
    RANDOM: "random",
}
_COLORS = (BLUE, ORANGE, RED, BLUE, ORANGE, GREEN, GREY)
_TITLE = "Planted mislabels found"
_MARK = _TITLE.encode()
_FOLDS, _REPLICATES = 5, 1000
_INSPECTED = 0.01
_TICKS = (0.001, 0.01, 0.1, 1)

Scores = Mapping[str, NDArray[np.float64]]


def measures_of(score_N: NDArray[np.float64], is_planted_N: NDArray[np.bool_]) -> list[float]:
    """AUROC, and the share of planted mislabels among the most suspect."""
    first = np.argsort(-score_N, kind="stable")[: max(1, round(_INSPECTED * len(score_N)))]
    return [auroc(score_N[is_planted_N], score_N[~is_planted_N]), is_planted_N[first].mean()]


def found_of(scores: Scores, is_planted: NDArray[np.bool_], seed: int = 0) -> dict[str, Any]:
    """AUROC and precision of each score, with paired 95 % intervals against the first.

    Args:
        scores: float64 (objects,) by name, the more suspect the larger.
        is_planted: bool (objects,).
        seed: of the bootstrap, which draws mislabels and others apart, the same for all scores.
    """
    random = np.random.default_rng(seed)
    planted, others = np.flatnonzero(is_planted), np.flatnonzero(~is_planted)
    drawn = [
        np.concatenate([random.choice(rows, len(rows)) for rows in (planted, others)])
        for _ in range(_REPLICATES)
    ]
    is_first = np.arange(len(is_planted)) < len(planted)
    replicates = {
        name: np.array([measures_of(score[rows], is_first) for rows in drawn]).T
        for name, score in scores.items()
    }
    less = next(iter(replicates.values()))
    return {
        name: {
            measure: {
                "value": round(float(value), 4),
                "interval": _interval(own),
                "difference_interval": _interval(own - first),
            }
            for measure, value, own, first in zip(
                *(("auroc", "precision"), measures_of(score, is_planted), replicates[name], less),
                strict=True,
            )
        }
        for name, score in scores.items()
    }


def _interval(values: NDArray[np.float64]) -> list[float]:
    return [round(v, 4) for v in percentile_interval(values, 0.95)]


def draw(scores: Scores, is_planted: NDArray[np.bool_]) -> bytes:
    """Cumulated share of the planted mislabels found against the share of labels inspected."""
    inspected = np.arange(1, len(is_planted) + 1) / len(is_planted)
    with Canvas(6.4, 4.2) as canvas:
        panel = canvas.panels[0]
        for color, (name, score) in zip(_COLORS, scores.items(), strict=False):
            found = np.cumsum(is_planted[np.argsort(-score, kind="stable")]) / is_planted.sum()
            style = "--" if name.startswith("oof_") else ":" if name == RANDOM else "-"
            panel.plot(inspected, found, style, color=color, label=SCORES[name])
        panel.axvline(float(is_planted.mean()), color=INK, linewidth=0.6)
        panel.set(
            xscale="log",
            xlabel="share inspected, most suspect first",
            ylabel="share of the mislabels found",
        )
        # The style parses no formulas, which powers of ten would be.
        panel.set_xticks(_TICKS, [f"{share:g}" for share in _TICKS])
        panel.legend(loc="upper left")
        return canvas.drawing("svg", Date=None, Creator=None, Title=_TITLE)


def scores_of(table: Path, planted: Mapping[str, str]) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """The scores that `mstrain attribute` wrote, chance beside them, and which are planted."""
    read = pq.read_table(table)
    ids = read["sample_id"].to_pylist()
    scores = {name: read[name].to_numpy() for name in SCORES if name != RANDOM}
    scores[RANDOM] = np.random.default_rng(0).random(len(ids))
    return scores, np.array([planted[i] == "mislabel" for i in ids])


def measure(folder: Path, args: argparse.Namespace, seed: int) -> tuple[dict[str, Any], Any]:
    """Plants, trains and attributes; scores, and which labels are planted."""
    plant = ("--plant", f"mislabel={args.share:g}", "--seed", str(seed))
    objects = make_objects(folder / "objects", args.objects, *plant)
    split = ("--split", "0.9,0.05,0.05", "--max-nan-fraction", "1")
    data = pack_objects(objects, folder / "data", *split)
    runs = [folder / f"fold-{n}" for n in range(_FOLDS)]
    run_mstrain("train", "demo", data, "--out", folder / "run", *args.settings)
    for number, run in enumerate(runs):
        fold = f"data.fold={number}/{_FOLDS}"
        run_mstrain("train", "demo", data, "--out", run, *args.settings, fold)
    run_mstrain("attribute", folder / "run", data, "--quiet", "--out-of-fold", *runs)
    rows = msdata.open(data).split("train").table(["sample_id", "planted"]).to_pydict()
    planted = dict(zip(rows["sample_id"], rows["planted"], strict=True))
    return scores_of(folder / "run" / "attribution.parquet", planted)


def main(words: list[str]) -> int:
    """Measures one mock after the other and counts over all; returns the exit code."""
    parser = part_parser("labels", __doc__)
    add_data(parser, 3000)
    parser.add_argument("--share", type=float, default=0.01, help="share of the labels that lie")
    parser.add_argument("--seeds", default="11,12", help="of the mocks, such as 11,12")
    parser.add_argument("settings", nargs="*", default=["epochs=6"], help="key=value, of demo")
    args = parser.parse_args(words)
    check_output(args.out / PICTURE, _MARK)
    measured = {
        seed: measure(args.data / f"labels-{args.objects}-{seed}-{args.share:g}", args, seed)
        for seed in map(int, args.seeds.split(","))
    }
    is_planted = np.concatenate([mask for _, mask in measured.values()])
    scores = {n: np.concatenate([found[n] for found, _ in measured.values()]) for n in SCORES}
    found = found_of(scores, is_planted)
    write_whole(args.out / PICTURE, draw(scores, is_planted))
    print("\n" + "\n".join(lines_of(found)))
    facts = {"objects": len(is_planted), "planted": int(is_planted.sum())}
    each = {str(seed): found_of(*values) for seed, values in measured.items()}
    result = {**facts, "settings": args.settings, "scores": found, "by_seed": each}
    write_part("labels", result, words, args.out)
    return 0


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """AUROC and precision by score, as a table."""
    rows = []
    for name, measures in found.items():
        cells = [SCORES[name]]
        for measure in measures.values():
            (low, high), (less, more) = measure["interval"], measure["difference_interval"]
            cells.append(f"{measure['value']:.3f} ({low:.3f} to {high:.3f})")
            cells.append(f"{less:+.3f} to {more:+.3f}")
        rows.append(cells)
    head = ["score", "AUROC", "less loss's", f"precision at {_INSPECTED:.0%}", "less loss's"]
    return list(table_lines(head, rows))
