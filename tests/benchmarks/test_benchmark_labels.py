"""Which score finds planted mislabels: what is counted, and what is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.parts import labels


def test_scores_are_counted_and_held_against_the_first_in_pairs(monkeypatch) -> None:
    monkeypatch.setattr(labels, "_REPLICATES", 200)
    random = np.random.default_rng(1)
    is_planted = np.arange(1000) < 10
    scores = {
        "loss": is_planted + random.normal(0, 0.3, 1000),
        "margin": is_planted.astype(float),
        "oof_loss": is_planted + random.normal(0, 0.3, 1000),
        "random": random.random(1000),
    }
    found = labels.found_of(scores, is_planted)
    assert found["margin"]["auroc"]["value"] == found["margin"]["precision"]["value"] == 1
    assert found["loss"]["auroc"]["difference_interval"] == [0, 0]
    low, high = found["oof_loss"]["auroc"]["difference_interval"]
    assert low < 0 < high
    low, high = found["random"]["auroc"]["interval"]
    assert low < 0.5 < high
    assert found["random"]["precision"]["difference_interval"][1] < 0
    # 10 of 1,000 are planted: an inspected hundredth may hold them all.
    first = np.argsort(-scores["loss"])[:10]
    assert found["loss"]["precision"]["value"] == is_planted[first].mean()
    assert any(line.startswith("margin  ") for line in labels.lines_of(found))


def test_the_curves_are_drawn_of_the_table_of_attribution(tmp_path: Path) -> None:
    names = [name for name in labels.SCORES if name != labels.RANDOM]
    columns = {name: np.arange(50.0) for name in names}
    pq.write_table(pa.table({"sample_id": [str(n) for n in range(50)], **columns}), tmp_path / "t")
    planted = {str(n): "mislabel" if n > 47 else "none" for n in range(50)}
    scores, is_planted = labels.scores_of(tmp_path / "t", planted)
    assert scores.keys() == labels.SCORES.keys()
    assert is_planted.sum() == 2
    picture = labels.draw(scores, is_planted)
    assert picture.startswith(b"<?xml")
    assert labels._MARK in picture
