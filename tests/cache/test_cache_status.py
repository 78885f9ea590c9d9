"""What a run says of itself: rows in the arena, `msdata cache status`, JSON lines, Prometheus."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import caching
import loading
import packing
import pytest
from hypothesis import given
from hypothesis import strategies as st

import msdata
import msdata.cache.reporter
import msdata.cli
from msdata.cache.metrics import Family, remove_stale_metrics, render
from msdata.cache.shared_file import NUM_ROWS, ROW_NBYTES, Row, read_rows
from msdata.cache.status import bar
from msdata.dataset.dataset import Split
from msdata.topology import Topology

SAMPLE = re.compile(r'^(msdata_\w+)\{((?:\w+="(?:[^"\\\n]|\\["\\n])*",?)*)\} (\S+)$')


@pytest.fixture
def split(packed: Callable[..., Path], tiny_source: Path) -> Split:
    data = packed(tiny_source, *packing.TINY_SHARDS, *caching.CODED.split())
    return msdata.open(data).split("train")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msdata.cache.reporter, "ROW_S", 0.02)
    monkeypatch.setattr(msdata.cache.reporter, "METRICS_S", 0.02)


def parsed(text: str) -> dict[tuple[str, str], float]:
    """Values by name and labels; each metric is introduced once, before its values."""
    found: dict[tuple[str, str], float] = {}
    kinds: dict[str, str] = {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped = line.split(" ", 3)[2]
            assert helped not in kinds
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == helped
            assert (kind == "counter") == name.endswith("_total")
            kinds[name] = kind
        else:
            match = SAMPLE.match(line)
            assert match, line
            assert match[1] == name
            found[match[1], match[2]] = float(match[3])
    return found


def by_tier(found: dict[tuple[str, str], float], name: str) -> dict[str, float]:
    """Values of one metric by the label `tier`."""
    labels = ((re.search(r'tier="(\w+)"', k), v) for (n, k), v in found.items() if n == name)
    return {match[1]: value for match, value in labels if match}


def loader(split: Split, config: Any, **options: Any) -> msdata.Loader:
    return msdata.Loader(split, caching.BATCH, **{"cache": config, "threads": 1, **options})


# Rows.


def row_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows"
    path.write_bytes(bytes(NUM_ROWS * ROW_NBYTES + 100))
    return path


def open_here(path: Path) -> int:
    return os.open(path, os.O_RDWR)


def test_a_row_is_seen_while_its_process_lives_and_its_place_is_used_again(tmp_path: Path) -> None:
    path = row_file(tmp_path)
    onlooker, first, second = (open_here(path) for _ in range(3))
    for fd, name in ((first, "a"), (second, "b")):
        Row(fd, 100).write({"name": name})
    assert read_rows(onlooker, 100) == [{"name": "a"}, {"name": "b"}]
    os.close(first)
    assert read_rows(onlooker, 100) == [{"name": "b"}]
    third = open_here(path)
    row = Row(third, 100)
    assert read_rows(onlooker, 100) == [{"name": "b"}]
    row.write({"name": "c"})
    assert read_rows(onlooker, 100) == [{"name": "c"}, {"name": "b"}]
    for fd in (onlooker, second, third):
        os.close(fd)


def test_a_row_that_is_half_written_or_too_long_is_not_shown(tmp_path: Path) -> None:
    path = row_file(tmp_path)
    onlooker, fd = open_here(path), open_here(path)
    row = Row(fd, 100)
    row.write({"name": "a" * 100})
    row.write({"name": "b" * ROW_NBYTES})
    assert read_rows(onlooker, 100) == [{"name": "a" * 100}]
    os.pwrite(fd, b"x", 100 + 60)
    assert read_rows(onlooker, 100) == []
    for each in (onlooker, fd):
        os.close(each)


def test_processes_beyond_the_rows_are_not_shown_and_do_no_harm(tmp_path: Path) -> None:
    path = row_file(tmp_path)
    onlooker, *fds = (open_here(path) for _ in range(NUM_ROWS + 2))
    for number, fd in enumerate(fds):
        Row(fd, 100).write({"number": number})
    assert [r["number"] for r in read_rows(onlooker, 100)] == list(range(NUM_ROWS))
    for fd in (onlooker, *fds):
        os.close(fd)


# JSON lines and Prometheus.


def test_every_epoch_becomes_a_line_with_the_counters_that_stats_showed(
    split: Split, tmp_path: Path
) -> None:
    folder = tmp_path / "metrics"
    with loader(split, caching.config(tmp_path, metrics_dir=folder)) as run:
        shown = []
        for _ in range(2):
            loading.drain(run)
            shown.append(run.stats())
        next(iter(run))
        totals = run.stats()["totals"]
    path = folder / "msdata-test-train-rank0.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert [line["is_complete"] for line in lines] == [True, True, False]
    for line, stats in zip(lines, shown, strict=False):
        assert {k: line[k] for k in ("tiers", "samples", "wait_s")} == {
            k: stats[k] for k in ("tiers", "samples", "wait_s")
        }
    for tier, total in totals.items():
        counted = sum(stats["tiers"][tier]["samples"] for stats in shown)
        assert counted <= total["samples"] <= counted + len(split)


def test_the_collectors_file_has_the_counters_and_is_gone_with_the_run(
    split: Split, tmp_path: Path
) -> None:
    folder = tmp_path / "metrics"
    path = folder / "msdata-test-train-rank0.prom"
    with loader(split, caching.config(tmp_path, metrics_dir=folder)) as run:
        loading.drain(run)
        loading.drain(run)
        run._cache.client.filler.wait()
        totals = {t: c["samples"] for t, c in run.stats()["totals"].items()}

        def has_them() -> bool:
            if not path.exists():
                return False
            return by_tier(parsed(path.read_text()), "msdata_tier_samples_total") == totals

        assert packing.wait_for(has_them)
        found = parsed(path.read_text())
        nbytes = {t: c["bytes"] for t, c in run.stats()["totals"].items()}
        assert by_tier(found, "msdata_tier_bytes_total") == nbytes
        assert by_tier(found, "msdata_cache_slots_filled") == {"local": len(split)}
        assert all('run="test",split="train",node="0"' in labels for _, labels in found)
    assert [p.suffix for p in folder.iterdir()] == [".jsonl"]


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_labels_may_hold_any_text_and_values_come_back_exactly(text: str, value: float) -> None:
    labels = {"run": text.replace("\r", ""), "tier": "local"}
    family = Family(name="x_total", text="Words.", values=[(labels, value)])
    lines = render([family]).split("\n")
    assert len(lines) == 4
    assert float(lines[2].rpartition(" ")[2]) == value
    inner = lines[2].partition('run="')[2].rpartition('",tier=')[0]
    undone = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], inner)
    assert undone == labels["run"]


def test_only_files_of_dead_runs_are_removed(tmp_path: Path) -> None:
    names = ("msdata-old-train-rank0.prom", "msdata-new-train-rank0.prom", "other.prom")
    for name in names:
        (tmp_path / name).write_text("x")
    for name in (names[0], names[2]):
        os.utime(tmp_path / name, (1, 1))
    remove_stale_metrics(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == set(names[1:])


def test_a_folder_that_cannot_be_written_is_said_once_and_costs_nothing_else(
    split: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    config = caching.config(tmp_path, metrics_dir=tmp_path / "file" / "metrics")
    with loader(split, config) as run:
        for _ in range(3):
            assert sum(len(b["sample_id"]) for b in run) == len(split)
            time.sleep(0.1)
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == 1
    assert "cannot write counters" in said[0]


def test_an_unreferenced_loader_takes_its_threads_with_it(split: Split, tmp_path: Path) -> None:
    import gc
    import threading

    next(iter(loader(split, caching.config(tmp_path, metrics_dir=tmp_path / "metrics"))))
    gc.collect()
    assert packing.wait_for(
        lambda: not any(t.name == "msdata-report" for t in threading.enumerate())
    )
    assert not list((tmp_path / "metrics").glob("*.prom"))


# The command.


def command(*words: Any) -> list[str]:
    return [sys.executable, "-m", "msdata", "cache", "status", *map(str, words)]


def say(*words: Any) -> str:
    """What the command prints, run in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert msdata.cli.main(["cache", "status", *map(str, words)]) == 0
    return text.getvalue()


def status(data: Path, config: Any, *options: str) -> Any:
    return json.loads(say(data, "--json", "--shm-dir", config.shm_dir, *options))


def test_status_shows_ranks_and_a_hit_rate_that_is_the_forecast(
    split: Split, tmp_path: Path
) -> None:
    data = split.dataset.path
    config = caching.config(tmp_path, memory_gib=caching.gib_of(split, 0.5))
    ranks = caching.start_ranks(data, config, 1, 2, policy="locality")
    for _ in range(2):
        caching.run_epoch(ranks)
    # A second after the last batch at most, every rank has said it.
    deadline = time.monotonic() + 60
    found = status(data, config)[0]
    while sum(r["epoch"] and r["samples"] for r in found["ranks"]) < len(split):
        assert time.monotonic() < deadline, found
        found = status(data, config)[0]
    assert [r["rank"] for r in found["ranks"]] == [0, 1]
    assert 0.4 < found["forecast_hit_share"] <= 0.5
    assert found["hit_share"] == pytest.approx(found["forecast_hit_share"])
    text = say(data, "--shm-dir", config.shm_dir)
    assert f"forecast {found['forecast_hit_share']:.1%} of the whole epoch" in text
    assert len(text.splitlines()) == 5
    ranks[0].kill()
    assert [r["rank"] for r in status(data, config)[0]["ranks"]] == [1]
    ranks[1].end()
    assert status(data, config) == []
    assert not any(caching.end_idle_processes())


def test_on_a_terminal_the_table_is_redrawn_until_interrupted(split: Split, tmp_path: Path) -> None:
    config = caching.config(tmp_path)
    words = command(split.dataset.path, "--shm-dir", config.shm_dir)
    ours, theirs = pty.openpty()
    with loader(split, config) as run:
        loading.drain(run)
        process = subprocess.Popen(words, stdout=theirs, env=packing.environment())
        os.close(theirs)
        text = ""
        while text.count("epoch 0 hits") < 2:
            text += os.read(ours, 1 << 16).decode()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    os.close(ours)
    assert "\x1b[H\x1b[J" in text
    assert "Ctrl-C ends this view" in text


def test_status_of_other_data_shows_nothing_of_these(split: Split, tmp_path: Path) -> None:
    config = caching.config(tmp_path)
    with loader(split, config):
        assert len(status(split.dataset.path, config)) == 1
        assert status(split.dataset.path, config, "--split", "val") == []


def test_ranks_of_several_nodes_are_compared_with_their_own_nodes_forecast(
    split: Split, tmp_path: Path
) -> None:
    config = caching.config(tmp_path, memory_gib=caching.gib_of(split, 0.4))
    data = split.dataset.path
    ranks = [
        caching.Rank(data, Topology(num_nodes=2, rank=rank), config, policy="shuffle")
        for rank in range(2)
    ]
    caching.run_epoch(ranks)
    results = caching.run_epoch(ranks)
    hits = [r["stats"]["tiers"]["local"]["samples"] / r["stats"]["samples"] for r in results]
    deadline = time.monotonic() + 60
    found = status(data, config)
    while [a.get("hit_share") for a in found] != pytest.approx(hits):
        assert time.monotonic() < deadline, found
        found = status(data, config)
    # Without a service, what the other node holds comes from storage, and the forecast says so.
    assert [a["forecast_hit_share"] for a in found] == pytest.approx(hits)
    for rank in ranks:
        rank.end()
    assert not any(caching.end_idle_processes())


def test_a_bar_marks_the_forecast() -> None:
    assert bar(0.5) == "[############............]"
    assert bar(0.5, 0.75) == "[############......|.....]"
    assert bar(1.0, 1.0) == "[#######################|]"
    assert bar(0.0) == f"[{'.' * 24}]"
