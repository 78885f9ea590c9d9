"""Every file of ours, altered in hundreds of ways: refused in a sentence, or of no effect.

`FUZZ_CASES` in the environment asks for other numbers of cases per file than the few of CI.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest
import torch
from fuzzing import alter_file, copy_of, seal
from small_arena import NBYTES, SPLIT, own
from test_predictions import EDGES, columns_of, some_densities, spooled

import msdata
from msdata.augment import read_statistics
from msdata.cache.arena import Arena
from msdata.cache.config import CacheConfig
from msdata.cache.slot_file import SlotFile
from msdata.catalog.build.report_file import read_catalog_report
from msdata.cli import main
from msdata.dataset.manifest import read_manifest
from msdata.describe.card import _sample, count_rejected
from msdata.describe.info import describe
from msdata.describe.stats import measure
from msdata.errors import MsdataError
from msdata.fetch.journal import FETCHED, REFUSED, Entry, Journal, read_entries
from msdata.fetch.targets import Slice
from msdata.pack.finish import _collect, unsafe_objects, write_rejected
from msdata.pack.planning import make_tasks
from msdata.pack.run import pack
from msdata.pack.settings import PackSettings
from msdata.pack.state import PackState
from msdata.plan.machine import load_machine, machine_from, save_machine
from msdata.verify.packed_objects import PackedObjects
from msdata.verify.repair import repair
from msdata.verify.verify import Expectations, verify_dataset
from mstrain.config import ModelConfig, TrainConfig
from mstrain.evaluation.predictions import read_predictions, write_predictions
from mstrain.evaluation.run_info import open_run
from mstrain.models.redshift_net import RedshiftNet
from mstrain.training.checkpoint import (
    find_last,
    load_model,
    locked_run,
    save_best,
    save_checkpoint,
    write_config,
)
from mstrain.training.metrics_log import read_journal

NUM_CASES = int(os.environ.get("FUZZ_CASES", "0"))
NUM_OBJECTS = 60
OPTIONS = ("--format", "tar", "--shard-size", "64KiB")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few tiny objects, two of which are rejected."""
    folder = packing.make_source(tmp_path_factory.mktemp("few"), NUM_OBJECTS, packing.tiny_object)
    for number in (3, 8):
        next(folder.rglob(f"{number:07d}.*")).write_bytes(b"no")
    return folder


CODED = ("--quantize", "4", "--compress", "lz4")
LAYOUTS = {
    "tar": (),
    "hdf5": ("--format", "hdf5"),
    "coded tar": CODED,
    "coded hdf5": ("--format", "hdf5", *CODED),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def data(request: pytest.FixtureRequest, source: Path, packed: Callable[..., Path]) -> Path:
    """A data set of a few shards."""
    return packed(source, *LAYOUTS[request.param], *OPTIONS[2:])


def cases(few: int) -> range:
    """Numbers of the cases of one file."""
    return range(NUM_CASES or few)


def delivered(folder: Path) -> dict[str, bytes]:
    """What a data set gives out: every sample and label, by way of loader and single look-ups."""
    opened = msdata.open(folder)
    found: dict[str, bytes] = {}
    for name in opened.splits:
        split = opened.split(name)
        if not len(split):
            continue
        with msdata.Loader(split, 8, threads=1, prefetch=1, verify=True) as loader:
            for batch in loader:
                for i, sample_id in enumerate(batch["sample_id"].tolist()):
                    parts = (batch[n][i] for n in sorted(batch) if n != "sample_id")
                    found[f"{name}/{sample_id}"] = b"".join(np.asarray(p).tobytes() for p in parts)
        single = split[len(split) - 1]
        found[f"{name} last"] = repr(sorted(single.items())).encode()
    found["table"] = repr(opened.table.to_pydict()).encode()
    describe(folder)
    return found


def refused(use: Callable[[], Any]) -> str:
    """The sentence of what refuses to be used; empty where it was used."""
    try:
        use()
    except MsdataError as error:
        text = str(error)
        assert text
        assert "\n" not in text, text
        return text
    return ""


def check_command(*words: str) -> None:
    """A command ends with an exit code, and a failure with one sentence."""
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        code = main(words)
    assert code in (0, 1, 2), code
    assert not code or said.getvalue() or len(complained.getvalue().splitlines()) == 1


def altered_files(folder: Path) -> list[str]:
    """The files of a data set, those with most to go wrong several times."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return [*names, *["dataset.json", "index.parquet"] * 6]


def test_an_altered_data_set_is_refused_or_gives_the_same_samples(
    data: Path, tmp_path: Path
) -> None:
    wanted = delivered(data)
    num_refused = 0
    for case in cases(80):
        rng = random.Random(f"data {case}")
        name = rng.choice(altered_files(data))
        folder = copy_of(data, tmp_path / "copy")
        alter_file(folder / name, rng)
        if is_sealed := rng.random() < 0.6:
            seal(folder)
        found: list[dict[str, bytes]] = []
        says = refused(lambda: found.append(delivered(folder)))  # noqa: B023
        num_refused += bool(says)
        assert says or is_sealed or found == [wanted], (case, name)
        reports: list[Any] = []
        refused(lambda: reports.append(verify_dataset(folder)))  # noqa: B023
        if reports and case % 4 == 1:
            refused(lambda: repair(reports[0]))  # noqa: B023
        if case % 8 == 0:
            check_command(["info", "verify", "card", "plan"][case // 8 % 4], str(folder))
        shutil.rmtree(folder)
    assert num_refused


def test_sources_and_rejects_of_an_altered_data_set_are_checked(data: Path, tmp_path: Path) -> None:
    def use(folder: Path) -> Any:
        manifest = read_manifest(folder)
        objects = PackedObjects(folder, manifest, None)
        found = [objects.locations(e) for e in Expectations(folder, manifest).shards()]
        return (
            *(found, objects.label_columns(["redshift"]), objects.preparation()),
            *(objects.is_chunked, count_rejected(folder), unsafe_objects(folder)),
        )

    use(data)
    for case in cases(30):
        rng = random.Random(f"sources {case}")
        folder = copy_of(data, tmp_path / "copy")
        name = rng.choice(("sources.parquet", "rejected.csv", "dataset.json"))
        alter_file(folder / name, rng)
        seal(folder)
        refused(lambda: use(folder))  # noqa: B023
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, source: Path, packed: Callable[..., Path]
) -> Path:
    """One of each of the other files."""
    folder, data = tmp_path_factory.mktemp("files"), packed(source, *OPTIONS)
    shutil.copy(data / "dataset.json", folder)
    split = msdata.open(data).split("train")
    measure(split).write(folder / "statistics.json")
    rates = {"memory_bytes_per_s": 1e10, "samples_per_s": 100.0, "storage": {"write": None}}
    save_machine(folder / "machine.json", rates)
    (folder / "catalog.json").write_text(json.dumps(CATALOG))
    with Journal(folder, Slice()) as journal:
        journal.add(Entry(sample_id="1", state=FETCHED, ra=1.5, dec=2.0, nbytes=7, crc32c=9))
        journal.add(Entry(sample_id="2", state=REFUSED, ra=None, dec=None, reason="far"))
    return folder


CATALOG = {
    "format": "msdata-catalog",
    "format_version": 1,
    "num_objects": 10,
    "sha256": "0" * 64,
    "spec": {
        "order": ["sdss"],
        "separation_arcsec": 1.0,
        "dec_above": -30,
        "redshift": [0, 1.6],
        "previous": None,
        "ebv": {},
    },
    "surveys": [
        {
            "key": "sdss",
            "name": "SDSS",
            "files": {"a.fits": 12},
            "citation": "X",
            "licence": "Y",
            "cuts": [{"column": ["z"], "above": 0, "reason": "z"}],
            "num_available": 12,
            "num_accepted": 10,
            "num_dropped": {"z": 2},
        }
    ],
}

READERS: dict[str, Callable[[Path], Any]] = {
    "statistics.json": read_statistics,
    "machine.json": lambda path: machine_from(load_machine(path)),
    "catalog.json": lambda path: list(_sample(read_catalog_report(path))),
    ".fetch/journal.jsonl": lambda path: read_entries(path.parents[1]),
}


@pytest.mark.parametrize("name", READERS)
def test_other_files_are_read_or_refused(name: str, files: Path, tmp_path: Path) -> None:
    read = READERS[name]
    assert read(files / name)
    num_refused = 0
    for case in cases(30):
        rng = random.Random(f"{name} {case}")
        folder = copy_of(files, tmp_path / "copy")
        alter_file(folder / name, rng)
        num_refused += bool(refused(lambda: read(folder / name)))  # noqa: B023
        shutil.rmtree(folder)
    assert num_refused or name.endswith(".jsonl")


def test_the_state_of_an_unfinished_pack_is_resumed_unaltered_or_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PackSettings(
        source=source, out=tmp_path / "out", catalog=source / "catalog.csv", shard_nbytes=64 << 10
    )
    monkeypatch.setattr(PackState, "remove", lambda self: None)
    pack(settings, jobs=1, is_quiet=True)

    def use(out: Path) -> Any:
        state = PackState(out)
        plan = state.load_plan(settings)
        tasks = list(make_tasks(state, plan, settings, range(len(plan.slices))))
        table, sources, shards, _ = _collect(state, plan, settings)
        write_rejected(state, plan)
        rejects = (out / "rejected.csv").read_bytes()
        assert table is not None
        return table.to_pydict(), sources.to_pydict(), shards, rejects, [t.labels for t in tasks]

    wanted = repr(use(settings.out))
    names = sorted(p.name for p in (settings.out / ".pack").iterdir() if p.suffix)
    for case in cases(40):
        rng = random.Random(f"pack {case}")
        folder = copy_of(settings.out, tmp_path / "copy")
        alter_file(folder / ".pack" / rng.choice([*names, "plan.json"]), rng)
        found: list[str] = []
        says = refused(lambda: found.append(repr(use(folder))))  # noqa: B023
        assert says or found == [wanted], case
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, source: Path, packed: Callable[..., Path]
) -> Path:
    """A run's folder, of the smallest network."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    opened = msdata.open(packed(source, *OPTIONS))
    config = TrainConfig(model=ModelConfig(depth=10, width=2, hidden=4, num_bins=4))
    shapes = {"image": (3, 8, 8)}
    model = RedshiftNet(shapes, config.model)
    state = {
        "model": model.state_dict(),
        "average": None,
        "progress": {"step": 3, "trained": 1},
        "config": config.as_dict(),
        "fingerprint": opened.manifest.fingerprint,
        "shapes": {n: list(s) for n, s in shapes.items()},
    }
    with locked_run(folder):
        save_checkpoint(folder, state, step=3, keep=1)
        save_best(folder, state)
    write_config(
        folder,
        {
            "config": config.as_dict(),
            "data": "DATA",
            "fingerprint": opened.manifest.fingerprint,
            "schema": opened.schema.to_json(),
        },
    )
    lines = [{"kind": "epoch", "step": 3, "epoch": 0, "loss": 1.5, "hit_rate": None}] * 2
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_is_read_unaltered_or_refused(run: Path, tmp_path: Path) -> None:
    def use(folder: Path) -> Any:
        open_run(folder, "last")
        read_journal(folder)
        model, _ = load_model(folder, "best")
        find_last(folder)
        return torch.cat([p.flatten() for p in model.state_dict().values()])

    wanted = use(run)
    names = [str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and p.suffix]
    for case in cases(30):
        rng = random.Random(f"run {case}")
        folder = copy_of(run, tmp_path / "copy")
        alter_file(folder / rng.choice([*sorted(names), "checkpoints/last"]), rng)
        found: list[torch.Tensor] = []
        says = refused(lambda: found.append(use(folder)))  # noqa: B023
        assert says or torch.equal(found[0], wanted), case
        shutil.rmtree(folder)


def test_a_cache_file_is_looked_at_or_refused(tmp_path: Path) -> None:
    config = CacheConfig(shm_dir=tmp_path, job="fuzz", memory_gib=1)
    arena = Arena(config, SPLIT, 0, own)
    arena.slots.publish(4, 7, 11, [np.zeros(100, np.uint8)])
    content = arena.path.read_bytes()
    tables_at = content.index(b"\0" * 64)
    num_refused = 0
    for case in cases(40):
        rng = random.Random(f"arena {case}")
        path = tmp_path / "altered"
        path.write_bytes(content)
        # Most of a cache file is empty: what is altered is its head, or where its tables are.
        head = tmp_path / "head.json"
        start, stop = rng.choice(((12, tables_at), (0, 4096), (len(content) - 9000, len(content))))
        head.write_bytes(content[start:stop].rstrip(b"\n\0"))
        with contextlib.suppress(ValueError):
            alter_file(head, rng)
            altered = content[:start] + head.read_bytes().ljust(stop - start, b"\0")
            path.write_bytes(altered + content[len(altered) :])
        with path.open("rb") as file:
            try:
                slots = SlotFile(file.fileno(), SPLIT, is_mapped=True)
            except OSError:
                num_refused += 1
                continue
            samples, shards = np.arange(12), np.repeat([0, 1, 2], SPLIT.shard_sizes)
            found = slots.slots(samples, shards)
            slots.are_ready(found, samples, SPLIT.checksums)
            assert 0 <= slots.num_ready <= slots.header.num_entries
            for slot in found[found >= 0].tolist():
                assert len(slots.record(slot)) in NBYTES
            slots.close()
    arena.close()
    assert num_refused


def test_predictions_are_read_or_refused(tmp_path: Path) -> None:
    path, density = tmp_path / "p.parquet", some_densities(40)
    spools, together = spooled(tmp_path, density, 1)
    origin = {"run": "R", "step": 3}
    write_predictions(path, columns_of(density), together, EDGES, origin)
    for spool in spools:
        spool.__exit__(None, None, None)
    assert len(read_predictions(path)) == 40
    for case in cases(30):
        rng = random.Random(f"predictions {case}")
        shutil.copy(path, altered := tmp_path / "altered.parquet")
        alter_file(altered, rng)

        def use() -> None:
            found = read_predictions(altered)
            assert sum(map(len, found.density_parts())) == len(found)

        refused(use)
