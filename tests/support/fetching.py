"""What the tests of `msdata fetch` share: stand-in services, the command, what must come out."""

from __future__ import annotations

import contextlib
import csv
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import packing
from fake_services.answers import Asked, layer_picture, neighbor_of, stack_picture
from fake_services.catalog import galaxies, write_galaxies
from fake_services.faults import LASTING, FaultPlan
from fake_services.grid import SkyCell, home_cell
from fake_services.server import StandIns, serve

from msdata.fetch.service import SERVICES, Service, changed
from msdata.schema import MANTIS_SHRIMP
from msdata.sources.pickles import read_object

# What `failed.csv` must say of each lasting fault.
REASONS = {
    "outside": "outside of the survey",
    "missing_band": "the position has no stack of band",
    "split_projections": "lie in sky cells of different projections",
    "two_stacks": "has 2 stacks of band",
    "flagged": "is flagged as bad",
    "wrong_filter": "its header says that it holds band",
    "no_exposure": "has no EXPTIME",
    "nan_band": "is NaN throughout",
    "empty_fits": "only headers",
    "no_such_layer": "the text 'no such layer'",
    "one_band": "it sent no band",
    "clamped": "24x24 pixels, asked for were 32x32",
    "off_center": "more than half a pixel",
    "no_unwise": "pixels of exactly 0: the service has no coadd there",
}
# Fast enough for a test; tests of the rate set their own.
QUICK = {"requests_per_s": 1000.0, "connections": 8, "backoff_s": 0.01, "read_timeout_s": 20.0}


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Lets no socket of this process connect to any address but loopback."""
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            assert address[0] in ("127.0.0.1", "::1", "localhost"), f"a request to {address}"
        return real(self, address)

    socket.socket.connect = connect  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        socket.socket.connect = real  # type: ignore[method-assign]


@contextlib.contextmanager
def standins(plan: FaultPlan | None = None, *, seed: int = 0) -> Iterator[StandIns]:
    """Running stand-ins, and nothing beyond loopback."""
    with loopback_only(), serve(plan or FaultPlan(), seed=seed) as running:
        yield running


def base_urls(url: str) -> dict[str, str]:
    """Base URLs of the services at stand-ins."""
    urls = {"ps1": f"{url}/cgi-bin", "legacy": f"{url}/viewer", "unwise_me": url}
    return {**urls, "hips2fits": f"{url}/hips-image-services"}


def services(url: str, **changes: Any) -> dict[str, Service]:
    """Settings of all services at stand-ins."""
    urls = base_urls(url)
    return {
        name: changed(service, {"base_url": urls[name], **QUICK, **changes})
        for name, service in SERVICES.items()
    }


def services_file(path: Path, url: str, **changes: Any) -> Path:
    """The same as a TOML file."""
    lines = []
    for name, base_url in base_urls(url).items():
        lines += [f"[{name}]", f'base_url = "{base_url}"']
        lines += [f"{key} = {value}" for key, value in {**QUICK, **changes}.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_catalog(path: Path, count: int, *, seed: int = 0) -> Path:
    """A catalog of galaxies of the mock sky."""
    write_galaxies(path, galaxies(seed, count))
    return path


def rows_of(catalog: Path) -> list[tuple[str, float, float]]:
    """Id as in file names, right ascension and declination of a catalog's objects."""
    with catalog.open() as file:
        return [
            (row["mantis_id"].zfill(7), float(row["ra"]), float(row["dec"]))
            for row in csv.DictReader(file)
        ]


def command(catalog: Path, out: Path, *options: str) -> list[str]:
    """The command line of a fetch."""
    return [sys.executable, "-m", "msdata", "fetch", str(catalog), str(out), *options]


def run(catalog: Path, out: Path, *options: str) -> Any:
    """Fetches in a process of its own, to the end."""
    return packing.run(command(catalog, out, *options), environment())


def environment() -> dict[str, str]:
    """The environment of commands that must not reach beyond loopback."""
    return packing.faulty_environment(LOOPBACK_ONLY="1", NO_PROXY="*", no_proxy="*")


def failed_rows(out: Path) -> dict[str, dict[str, str]]:
    """The rows of `failed.csv` by id."""
    with (out / "failed.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_id = {row["sample_id"]: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def object_file(out: Path, sample_id: str) -> Path:
    """Where an object's file must be."""
    return out.joinpath("photometry", *sample_id[:4], f"{sample_id}.npy")


def expected_sample(
    plan: FaultPlan, seed: int, ra: float, dec: float, unwise_scale_arcsec: float = 2.75
) -> dict[str, np.ndarray]:
    """The arrays that a good object must have, straight from the mock sky."""
    query = {"ra": f"{ra:.8f}", "dec": f"{dec:.8f}"}
    sample: dict[str, np.ndarray] = {}
    stack = Asked(seed=seed, plan=plan, query={**query, "size": "172"})
    sample["panstarrs"] = np.stack(
        [_middle(stack_picture(stack, cell_of(stack, band), band), ra, dec) for band in "grizy"]
    )
    for name, layer, scale in (
        ("galex", "galex", 1.5),
        ("unwise", "unwise-neo7", unwise_scale_arcsec),
    ):
        asked = Asked(seed=seed, plan=plan, query={**query, "size": "32", "pixscale": str(scale)})
        bands = {"galex": "nf", "unwise": "12"}[name]
        sample[name] = np.stack([layer_picture(asked, layer, band).pixels for band in bands])
    return sample


def cell_of(asked: Asked, band: str) -> SkyCell:
    """The sky cell that a band must be taken from."""
    home = home_cell(*asked.position)
    is_struck = "grizy"[asked.choice(5)] == band
    if asked.fault in ("split_bands", "ragged_cells") and is_struck:
        return neighbor_of(home)
    return home


def _middle(picture: Any, ra: float, dec: float, size: int = 170) -> np.ndarray:
    """The part of a picture whose center is nearest to a position."""
    corners = range(picture.pixels.shape[0] - size + 1)
    x, y = picture.grid.pixel(ra, dec)
    x0 = min(corners, key=lambda c: abs(c + (size - 1) / 2 - x))
    y0 = min(corners, key=lambda c: abs(c + (size - 1) / 2 - y))
    return np.asarray(picture.pixels[y0 : y0 + size, x0 : x0 + size])


def assert_object(out: Path, sample_id: str, expected: dict[str, np.ndarray]) -> None:
    """An object's file holds these pixels, bit for bit, and nothing unforeseen."""
    found = read_object(object_file(out, sample_id))
    zero_points = {f"zero_point_{a.name}_{b}" for a in MANTIS_SHRIMP.arrays for b in a.bands}
    assert set(found) == set(expected) | zero_points
    for name, array in expected.items():
        assert found[name].dtype == np.float32, name
        assert found[name].shape == MANTIS_SHRIMP[name].shape, name
        assert found[name].tobytes() == array.tobytes(), f"{sample_id} {name}"


def assert_complete(out: Path, catalog: Path, plan: FaultPlan, seed: int) -> None:
    """Every good object is there once and bit-correct, every bad one is named with its reason."""
    rows, failed = rows_of(catalog), failed_rows(out)
    good = set()
    for sample_id, ra, dec in rows:
        kind = plan.lasting_fault(ra, dec)
        if kind in LASTING:
            assert failed[sample_id]["state"] == "refused", failed[sample_id]
            assert REASONS[str(kind)] in failed[sample_id]["reason"], (kind, failed[sample_id])
        else:
            assert sample_id not in failed, failed[sample_id]
            assert_object(out, sample_id, expected_sample(plan, seed, ra, dec))
            good.add(sample_id)
    files = [path for path in (out / "photometry").rglob("*") if path.is_file()]
    assert sorted(path.stem for path in files) == sorted(good)
    assert len(failed) + len(good) == len(rows)


def most_in_a_second(times_s: Sequence[float]) -> int:
    """The most requests in any window of a second."""
    times = np.asarray(times_s)
    ends = np.searchsorted(times, times + 1.0, side="left")
    return int((ends - np.arange(len(times))).max(initial=0))
