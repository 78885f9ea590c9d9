"""`make demo`: mock objects to shards to a trained network, by the commands a user would type.

Everything happens in one folder, which is marked as the demo's own and emptied every time.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import msdata
from benchmarks.comparison import read_result
from benchmarks.harness import host_facts, interval_text
from benchmarks.parts.photoz import against_the_mean, quality_lines
from benchmarks.workloads import run_command, run_msdata, run_mstrain

_MARK = ".msdata-demo"
BATCH_SIZE, NUM_THREADS = 128, 2
# Several shards per split, so that the demo crosses from one to the next.
_SHARD_SIZE = "128MiB"
_NUM_SHEET_OBJECTS = 16
# A job on two nodes, each with room for half of the shards.
_PLAN = (
    *("--nodes", "2", "--ranks-per-node", "2", "--batch-per-rank", "32", "--epochs", "2"),
    *("--policy", "locality", "--memory-gib", "0.3"),
)
# Of the network's NMAD to that of always saying the mean.
_MAX_NMAD_RATIO = 0.5


def take_folder(folder: Path) -> None:
    """Empties the demo's folder, or creates it.

    Raises:
        SystemExit: the folder holds something that no demo has made.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARK).exists():
            raise SystemExit(
                f"{folder} is not empty and was not made by the demo; nothing was removed: "
                "choose another folder with DEMO_DIR=..."
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()


def make_data(folder: Path, num_objects: int) -> Path:
    """Makes mock objects, packs, verifies, describes and plans; returns the data set's folder."""
    objects, data = folder / "objects", folder / "data"
    run_msdata("mock", objects, "--n", str(num_objects), "--seed", "0")
    catalog = objects / "catalog.csv"
    run_msdata("pack", objects, data, "--catalog", catalog, "--shard-size", _SHARD_SIZE)
    run_msdata("verify", data)
    run_msdata("info", data)
    run_msdata("plan", data, *_PLAN)
    return data


def load_epochs(data: Path, num_epochs: int = 3) -> None:
    """Epochs of batches as a training script would take them, with what came out of them."""
    print(
        f'\n>>> loader = msdata.Loader(msdata.open("{data}").split("train"), '
        f"batch_size={BATCH_SIZE}, threads={NUM_THREADS})\n>>> for batch in loader: ..."
    )
    split = msdata.open(data).split("train")
    with msdata.Loader(split, batch_size=BATCH_SIZE, threads=NUM_THREADS) as loader:
        for epoch in range(num_epochs):
            redshift_sum = sum(float(batch["redshift"].sum()) for batch in loader)
            stats = loader.stats()
            print(
                f"epoch {epoch}: {stats['samples']:,} samples in {stats['steps']} steps, "
                f"{stats['samples_per_s']:,.0f} samples/s, mean redshift "
                f"{redshift_sum / stats['samples']:.4f}",
                flush=True,
            )
        batch = next(iter(loader))
        shapes = ", ".join(f"{n} {batch[n].dtype} {batch[n].shape}" for n in split.schema.names)
    print(f"a batch: {shapes}")


def race(folder: Path, data: Path) -> list[str]:
    """The loader beside bare reads of the same bytes."""
    out = folder / "race"
    words = ["--quick", "--data", data, "--peers", "ours_tar,ours_cached,bare_map,bare_preadv"]
    run_command("benchmarks", "loaders", *words, "--out", out)
    result = read_result(out / "loaders.json")
    shutil.rmtree(out / "work")
    lines = [
        f"samples/s of {result['num_samples']:,} samples, every batch checked, and of a limit:"
    ]
    for name, found in result["hot"]["contestants"].items():
        rate, title = found["samples_per_s"]["median"], result["contestants"][name]["title"]
        lines.append(f"  {title:<38}{rate:>9,.0f}  {interval_text(found['of_limit'])}")
    return lines


def train_network(folder: Path, data: Path) -> list[str]:
    """Trains by the recipe `demo`; lines that say how good it is on objects it never saw.

    Raises:
        SystemExit: the network has not learned: its NMAD is more than half of that of always
            saying the mean redshift.
    """
    run = folder / "run"
    run_mstrain("train", "demo", data, "--out", run)
    opened = msdata.open(data)
    found = against_the_mean(run, opened)
    nmad, limit = found["network"]["nmad"], found["mean redshift"]["nmad"] * _MAX_NMAD_RATIO
    if nmad > limit:
        raise SystemExit(f"the network has not learned: NMAD {nmad:.4f}, more than {limit:.4f}")
    num_train, num_test = len(opened.split("train")), len(opened.split("test"))
    lines = [f"redshifts of {num_test:,} held-out objects, after training on {num_train:,}:"]
    lines += [f"  {line}" for line in quality_lines(found)]
    return [*lines, f"run:           {run}", f"its report:    {run / 'report.html'}"]


def main(words: list[str]) -> int:
    """Runs the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks demo")
    parser.add_argument("--dir", type=Path, default=Path("demo"), help="its own folder")
    parser.add_argument("--objects", type=int, default=1200, help="mock objects, 580 KiB each")
    args = parser.parse_args(words)
    started_s = time.monotonic()
    take_folder(args.dir)
    data = make_data(args.dir, args.objects)
    load_epochs(data)
    run_msdata("sheet", data, args.dir / "sheet.png", "--n", str(_NUM_SHEET_OBJECTS))
    run_msdata("stats", data, "--quiet")
    learned = train_network(args.dir, data)
    host = host_facts()
    lines = [
        f"msdata {msdata.__version__} demo, on {host['cores']} cores of {host['processor']}",
        *race(args.dir, data),
        *learned,
        f"data set:      {data}",
        f"contact sheet: {args.dir / 'sheet.png'}",
        f"report:        {args.dir / 'report.txt'}",
        f"took {time.monotonic() - started_s:.0f} s",
    ]
    text = "\n".join(lines)
    (args.dir / "report.txt").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}")
    return 0
