"""Does an order made for the cache cost accuracy? The same network trained under each policy.

Every arm is trained with the same seeds: a seed draws the split, the shards, the initial weights
and the orders. Each training leaves a small file, whole or not at all, so that a study that was
stopped resumes where it was; only the same design over the same objects takes them up.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import msdata
from benchmarks.harness import Settings, json_text
from benchmarks.questions.policies_data import (
    Arm,
    Stamps,
    config_of,
    make_arms,
    make_stamps,
    measure_quality,
    pack_both,
)
from benchmarks.questions.policies_effects import holm, paired_effect, show
from benchmarks.report import write_shown
from msdata.core.files import write_whole
from msdata.errors import MsdataError, UsageError

METRICS = ("nmad", "loss", "crps")
LEAST_OBJECTS = 200


@dataclass(frozen=True, kw_only=True)
class Design:
    """What the study does.

    Attributes:
        num_objects: stamps, of which 70 % are trained on and 30 % measured.
        num_seeds: trainings of each arm.
        epochs: of each training.
        num_shards: about so many in split "train".
        buffers: of policy "block", in samples.
        data: the data set that the stamps are made of; None for mock objects.
    """

    num_objects: int
    num_seeds: int
    epochs: int
    num_shards: int
    buffers: tuple[int, ...]
    data: str | None

    @property
    def label(self) -> str:
        """A name that no other design has; more seeds are the same design, taken further."""
        fields = {n: v for n, v in asdict(self).items() if n != "num_seeds"}
        arms = [config_of(arm, seed=0, epochs=self.epochs).as_dict() for arm in self.arms]
        text = json.dumps([fields, arms], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    @property
    def arms(self) -> list[Arm]:
        """All arms."""
        return make_arms(self.buffers)

    def prepare(self, folder: Path, seed: int) -> None:
        """Packs a seed's data sets, unless it was done."""
        stamps = Stamps.read(folder / "stamps.npz")
        pack_both(stamps, folder / f"data-{seed}", seed=seed, num_shards=self.num_shards)


def size_of_study(settings: Settings, quick: int, full: int) -> tuple[int, str | None]:
    """Number of mock objects, and the fingerprint of the data that are given.

    Args:
        settings: what was typed.
        quick: objects of a quick run.
        full: objects of a full run.

    Raises:
        UsageError: there would be too few objects to train on.
    """
    num = settings.mock or (quick if settings.quick else full)
    if num < LEAST_OBJECTS:
        raise UsageError(
            f"--mock must be at least {LEAST_OBJECTS}, got {num}: a network learns nothing from "
            "so few"
        )
    if settings.data is None:
        return num, None
    return num, msdata.open(settings.data).manifest.fingerprint


def design_of(settings: Settings) -> Design:
    """The design that the settings ask for.

    Raises:
        UsageError: there would be too few objects to train on.
    """
    (num, data), is_quick = size_of_study(settings, 600, 4000), settings.quick
    # Shards of a batch or two; buffers of a batch, of a tenth and of a third of an epoch.
    return Design(
        num_objects=num,
        num_seeds=2 if is_quick else 6,
        epochs=6 if is_quick else 4,
        num_shards=8 if is_quick else 32,
        buffers=(64,) if is_quick else (64, 256, 1024),
        data=data,
    )


def answer(settings: Settings) -> int:
    """Trains all arms and writes `policies.json`; returns the exit code 0."""
    design = design_of(settings)
    folder = settings.work / f"policies-{design.label}"
    jobs = len(os.sched_getaffinity(0))
    stamps = _stamps(settings, design, folder, jobs)
    cells = train_all(design, folder, jobs)
    for seed in range(design.num_seeds):
        shutil.rmtree(folder / f"data-{seed}", ignore_errors=True)
    result: dict[str, Any] = {
        "quick": settings.quick,
        "design": asdict(design),
        "num_train": round(float(np.mean([c["num_train"] for c in cells]))),
        "num_test": round(float(np.mean([c["num_test"] for c in cells]))),
        "num_stamps": len(stamps),
        "arms": summarize(design.arms, cells),
        # Differences, not ratios that a regression could be read from.
        "ratios": {},
    }
    write_shown("policies", result, show(result), settings, raw={"cells": cells})
    return 0


def _stamps(settings: Settings, design: Design, folder: Path, jobs: int) -> Stamps:
    path = folder / "stamps.npz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"  making stamps of {design.num_objects:,} objects", flush=True)
        stamps = make_stamps(settings.data, design.num_objects, jobs)
        if len(stamps) < LEAST_OBJECTS:
            raise UsageError(
                f"{settings.data} has {len(stamps)} objects with redshift and E(B-V); a network "
                f"learns nothing from so few: give a data set of at least {LEAST_OBJECTS}"
            )
        stamps.write(path)
    return Stamps.read(path)


def train_all(design: Design, folder: Path, jobs: int) -> list[dict[str, Any]]:
    """Trains what has not been trained yet, several networks side by side.

    Args:
        design: what to train.
        folder: holds `stamps.npz`; gets data sets and results.
        jobs: processes.

    Returns:
        The result of every training, seed by seed.

    Raises:
        MsdataError: a training failed, or a process died.
    """
    keys = [(seed, arm.name) for seed in range(design.num_seeds) for arm in design.arms]
    paths = {key: folder / f"seed-{key[0]}-{key[1]}.json" for key in keys}
    missing = {key for key, path in paths.items() if not path.is_file()}
    if len(missing) < len(paths):
        print(f"  {len(paths) - len(missing)} of {len(paths)} trainings are done already")
    if missing:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_one_thread) as pool:
            try:
                _run_missing(pool, design, folder, missing)
            except BrokenProcessPool as error:
                raise MsdataError(
                    "a process that trained was killed; the same command resumes with what is "
                    "missing"
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    return [json.loads(path.read_bytes()) for path in paths.values()]


def _run_missing(
    pool: ProcessPoolExecutor, design: Design, folder: Path, missing: set[tuple[int, str]]
) -> None:
    """By seeds, so that what a stopped study leaves is whole seeds; packs one seed ahead."""
    seeds = sorted({seed for seed, _ in missing})
    futures: list[Future[dict[str, Any]]] = []
    packs = [pool.submit(design.prepare, folder, seeds[0])]
    for place, seed in enumerate(seeds):
        if place + 1 < len(seeds):
            packs.append(pool.submit(design.prepare, folder, seeds[place + 1]))
        packs[place].result()
        for arm in design.arms:
            if (seed, arm.name) in missing:
                futures.append(pool.submit(run_cell, design, folder, arm, seed))
    for done, future in enumerate(as_completed(futures), 1):
        cell = future.result()
        print(
            f"  {done} of {len(missing)}: seed {cell['seed']}, {cell['title']}: NMAD "
            f"{cell['nmad']:.4f}, loss {cell['loss']:.4f}",
            flush=True,
        )


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def run_cell(design: Design, folder: Path, arm: Arm, seed: int) -> dict[str, Any]:
    """Trains and measures one arm with one seed, and writes what came of it.

    Args:
        design: of the study.
        folder: holds the seed's data sets.
        arm: what to train.
        seed: of everything.

    Returns:
        Metrics on split "test", quality of the order, losses of the training.
    """
    from benchmarks.questions.policies_data import TOPOLOGY
    from benchmarks.questions.policies_training import PlayedRanks, measure_network

    config = config_of(arm, seed=seed, epochs=design.epochs)
    data = msdata.open(folder / f"data-{seed}" / arm.shards)
    split = data.split("train")
    scratch = folder / f"cache-{seed}-{arm.name}"
    shutil.rmtree(scratch, ignore_errors=True)
    with PlayedRanks(split=split, config=config, topology=TOPOLOGY, scratch=scratch) as played:
        losses = list(played.train())
        owners = played.owners
        metrics = measure_network(played.train_step, data, "test", config)
    shutil.rmtree(scratch, ignore_errors=True)
    cell = {
        "seed": seed,
        "arm": arm.name,
        "title": arm.title,
        "num_train": len(split),
        "num_test": len(data.split("test")),
        "num_shards": len(split.shard_sizes),
        "num_steps": len(losses),
        "first_loss": losses[0],
        "last_loss": float(np.mean(losses[-len(losses) // design.epochs :])),
        **metrics,
        "quality": measure_quality(arm, split, owners, seed=seed, epochs=design.epochs),
    }
    write_whole(folder / f"seed-{seed}-{arm.name}.json", (json_text(cell) + "\n").encode())
    return cell


def summarize(arms: Iterable[Arm], cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, quality, and effects against the references.

    Returns:
        For each arm `name`, `title`, `reference`, `mean` and `std` by metric, `quality`, and
        `effects` by metric (none for references).
    """
    arms, cells = list(arms), sorted(cells, key=lambda cell: int(cell["seed"]))
    by_arm = {a.name: [c for c in cells if c["arm"] == a.name] for a in arms}
    values = {n: {m: [c[m] for c in found] for m in METRICS} for n, found in by_arm.items()}
    effects = holm(
        {
            (arm.name, metric): paired_effect(
                values[arm.name][metric], values[arm.reference][metric]
            )
            for arm in arms
            if arm.reference is not None
            for metric in METRICS
        }
    )
    return [
        {
            "name": arm.name,
            "title": arm.title,
            "reference": arm.reference,
            "mean": {m: float(np.mean(v)) for m, v in values[arm.name].items()},
            "std": {m: float(np.std(v, ddof=1)) for m, v in values[arm.name].items()},
            "quality": {
                name: float(np.mean([cell["quality"][name] for cell in by_arm[arm.name]]))
                for name in by_arm[arm.name][0]["quality"]
            },
            "effects": {m: effects[arm.name, m] for m in METRICS if arm.reference},
        }
        for arm in arms
    ]
