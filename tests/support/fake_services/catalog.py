"""A catalog of galaxies of the mock sky, to fetch and to train on."""

from __future__ import annotations

from pathlib import Path

from fake_services.sky import CELL_DEG, Galaxy, galaxy_of, uniform
from msdata.core.files import write_whole
from msdata.core.output_file import check_output


def galaxies(seed: int, count: int) -> list[Galaxy]:
    """Galaxies scattered over the sky north of -30 degrees, no two in one cell.

    Args:
        seed: the sky's; the same as the services'.
        count: how many.
    """
    found: dict[tuple[int, int], Galaxy] = {}
    number = 0
    while len(found) < count:
        row = int((-29.5 + 89.5 * float(uniform(seed, 91, number))) / CELL_DEG)
        column = int(uniform(seed, 92, number) * 5000)
        found.setdefault((row, column), galaxy_of(seed, row, column))
        number += 1
    return list(found.values())


def write_galaxies(path: Path, found: list[Galaxy]) -> None:
    """Writes galaxies as the CSV table that `msdata fetch` and `msdata pack` read.

    Raises:
        UsageError: something else is there.
        StorageError: the file system refused.
    """
    lines = ["mantis_id,ra,dec,redshift"]
    lines += [f"{i},{g.ra:.7f},{g.dec:.7f},{g.redshift:.6f}" for i, g in enumerate(found, 1)]
    content = ("\n".join(lines) + "\n").encode()
    # It looks like any catalog: what another sky left there, or the user, is not replaced.
    if not (path.is_file() and path.read_bytes() == content):
        check_output(path, None)
        write_whole(path, content)
