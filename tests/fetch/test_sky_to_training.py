"""The whole way: survey tables, a catalog, cutouts from faulty services, shards, a network."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import fetching
import packing
import pytest
import training
from fake_services.catalog import galaxies
from fake_services.faults import LASTING, FaultPlan
from fake_services.sky import Galaxy

import msdata

SEED = 11
NUM_GALAXIES = 64
PLAN = FaultPlan(
    seed=SEED, passing_fraction=0.1, lasting_fraction=0.1, odd_fraction=0.1, retry_after_s=0
)


def write_surveys(folder: Path, found: list[Galaxy]) -> Path:
    """Tables of two surveys that share some galaxies, with bad rows; and the spec."""
    half = len(found) // 2
    with (folder / "sdss.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(["BESTOBJID", "PLUG_RA", "PLUG_DEC", "Z", "ZWARNING", "CLASS", "EBV"])
        for number, galaxy in enumerate(found[: half + 8]):
            table.writerow(
                [1000 + number, galaxy.ra, galaxy.dec, galaxy.redshift, 0, "GALAXY", 0.02]
            )
        table.writerow([1, 10.0, 10.0, 0.5, 4, "GALAXY", 0.02])
        table.writerow([2, 11.0, 10.0, 0.5, 0, "STAR", 0.02])
    with (folder / "desi.csv").open("w") as file:
        table = csv.writer(file)
        flags = ["OBJTYPE", "ZCAT_PRIMARY", "ZWARN", "SPECTYPE"]
        table.writerow(["TARGETID", "TARGET_RA", "TARGET_DEC", "Z", *flags, "EBV"])
        for number, galaxy in enumerate(found[half:]):
            # Half an arcsecond beside SDSS' position of the same galaxy.
            row = [2000 + number, galaxy.ra, galaxy.dec + 0.5 / 3600, galaxy.redshift]
            table.writerow([*row, "TGT", True, 0, "GALAXY", 0.03])
        table.writerow([3, 12.0, 10.0, 0.5, "TGT", True, 4, "GALAXY", 0.02])
    spec = folder / "spec.toml"
    spec.write_text(
        'order = ["sdss", "desi"]\n'
        '[surveys.sdss]\nfiles = ["sdss.csv"]\n[surveys.desi]\nfiles = ["desi.csv"]\n'
        '[ebv.csfd]\ncolumn = "EBV"\n'
    )
    return spec


def run_whole(words: list[str]) -> str:
    """Runs a command to its good end; what it printed."""
    process = packing.run([sys.executable, "-m", *words], fetching.environment())
    assert process.returncode == 0, process.stderr
    return str(process.stdout)


@pytest.mark.slow
def test_survey_tables_become_a_trained_network(tmp_path: Path) -> None:
    catalog, data, run = (tmp_path / name for name in ("catalog", "data", "run"))
    spec = write_surveys(tmp_path, galaxies(SEED, NUM_GALAXIES))
    run_whole(["msdata", "catalog", "build", str(spec), str(catalog), "--no-figure", "--quiet"])
    table = catalog / "catalog.csv"
    with table.open() as file:
        rows = [(r["sample_id"], float(r["ra"]), float(r["dec"])) for r in csv.DictReader(file)]
    # Those that both surveys have count once, at the better one's position.
    assert len(rows) == NUM_GALAXIES

    with fetching.standins(PLAN, seed=SEED) as running:
        services = fetching.services_file(
            tmp_path / "services.toml", running.url, read_timeout_s=2.0
        )
        words = ["msdata", "fetch", str(table), str(tmp_path / "objects"), "--json", "--quiet"]
        words += ["--services", str(services), "--pack", str(data)]
        report = json.loads(run_whole(words))
    num_bad = sum(PLAN.lasting_fault(ra, dec) in LASTING for _, ra, dec in rows)
    assert num_bad > 0
    assert report["num_fetched"] == report["num_packed"] == NUM_GALAXIES - num_bad
    failed = fetching.failed_rows(tmp_path / "objects")
    assert len(failed) == num_bad

    packed = msdata.open(data)
    assert packed.schema.name == "mantis_shrimp"
    by_id = {sample_id: (ra, dec) for sample_id, ra, dec in rows if sample_id not in failed}
    for split in ("train", "val", "test"):
        for sample in packed.split(split):
            ra, dec = by_id.pop(sample["sample_id"])
            sky = fetching.expected_sample(PLAN, SEED, ra, dec)
            for name in ("galex", "unwise"):
                assert sample[name].tobytes() == sky[name].tobytes()
    assert not by_id

    run_whole(["msdata", "stats", str(data), "--quiet"])
    run_whole(["mstrain", *training.words_of(data, run, epochs=12, scaling="asinh")])
    losses = training.losses(run, "epoch")
    assert losses[-3:].mean() < losses[0]
