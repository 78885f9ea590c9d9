"""Made-up tables of the eight surveys, in their true column layouts, with planted faults.

Objects lie on a jittered lattice, minutes of arc apart, so that the only close pairs are those that
are planted: companions at 2.9 and 3.1 arcsec, chains of three, also across right ascension 0 and
beside the pole, and rows that fail a cut a second of arc beside good ones. Each row's end is known.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.catalog.build.build import CLOSE_TO_OTHER, CLOSE_TO_OWN, REPEATED
from msdata.catalog.build.recipe import BUILT_IN, SPEED_OF_LIGHT_KM_S
from msdata.catalog.build.select import NO_POSITION, NO_REDSHIFT, OUTSIDE_REDSHIFT, OUTSIDE_SKY

NEAR_ARCSEC, FAR_ARCSEC = 2.9, 3.1
# Shares of the paper's sample, in the order of BUILT_IN.
SHARES = np.array([2617955, 1124604, 204508, 34111, 49284, 10296, 148563, 56959], float)

# Columns of each release's table, with NumPy dtypes; those that the recipes need are filled, the
# others are zero or empty. SDSS and DESI have more columns of the same kinds.
LAYOUTS: dict[str, dict[str, str]] = {
    "sdss": {
        **dict.fromkeys(("SURVEY", "INSTRUMENT", "CHUNK", "RUN2D", "RUN1D"), "S6"),
        **dict.fromkeys(("PROGRAMNAME", "PLATEQUALITY", "TARGETTYPE", "SOURCETYPE"), "S16"),
        **dict.fromkeys(("SPECOBJID", "FLUXOBJID", "BESTOBJID", "TARGETOBJID", "PLATEID"), "S22"),
        **dict.fromkeys(("NSPECOBS", "PLATE", "TILE", "MJD", "FIBERID", "OBJID", "DOF"), "i4"),
        **dict.fromkeys(("XFOCAL", "YFOCAL", "SN_MEDIAN_ALL", "CHI68P", "VDISP"), "f4"),
        **{"CLASS": "S6", "SUBCLASS": "S21", "ZWARNING": "i4", "RCHI2": "f4"},
        **dict.fromkeys(("Z", "Z_ERR", "Z_NOQSO", "Z_ERR_NOQSO", "Z_PERSON"), "f4"),
        **{"ZWARNING_NOQSO": "i4", "CLASS_NOQSO": "S6", "CLASS_PERSON": "i4", "SPECPRIMARY": "u1"},
        **{"PLUG_RA": "f8", "PLUG_DEC": "f8", "CX": "f8", "CY": "f8", "CZ": "f8"},
    },
    "desi": {
        **{"TARGETID": "i8", "SURVEY": "S7", "PROGRAM": "S6", "HEALPIX": "i4", "SPGRPVAL": "i4"},
        **{"Z": "f8", "ZERR": "f8", "ZWARN": "i8", "CHI2": "f8", "NPIXELS": "i8"},
        **{"SPECTYPE": "S6", "SUBTYPE": "S20", "DELTACHI2": "f8", "COADD_FIBERSTATUS": "i4"},
        **{"TARGET_RA": "f8", "TARGET_DEC": "f8", "OBJTYPE": "S3", "FLUX_G": "f4", "FLUX_R": "f4"},
        **{"MEAN_FIBER_RA": "f8", "MEAN_FIBER_DEC": "f8", "ZCAT_NSPEC": "i2", "ZCAT_PRIMARY": "?"},
    },
    "gama": {
        **{"SPECID": "S24", "SURVEY": "S12", "SURVEY_CODE": "i4", "RA": "f8", "DEC": "f8"},
        **{"WMIN": "f4", "WMAX": "f4", "Z": "f4", "NQ": "i2", "PROB": "f4", "FILENAME": "S60"},
        **{"URL": "S60", "URL_IMG": "S60", "CATAID": "i4", "GAMA_NAME": "S23", "IC_FLAG": "i2"},
        **{"DIST": "f4", "IS_SBEST": "i2", "IS_BEST": "i2"},
    },
    "deep2": {
        **{"OBJNO": "i4", "RA": "f8", "DEC": "f8", "MAGB": "f4", "MAGR": "f4", "MAGI": "f4"},
        **{"PGAL": "f4", "SFD_EBV": "f4", "M_B": "f4", "UB": "f4", "OBJNAME": "S8", "MASK": "i4"},
        **{"SLIT": "i4", "DATE": "S11", "MJD": "f8", "Z": "f8", "ZBEST": "f8", "ZERR": "f4"},
        **{"ZQUALITY": "i4", "CLASS": "S6", "SUBCLASS": "S6", "COMMENT": "S20"},
    },
    "vipers": {
        **{"id_IAU": "S26", "num": "i8", "alpha": "f8", "delta": "f8", "selmag": "f4"},
        **{"errselmag": "f4", "pointing": "S6", "quadrant": "i2", "zspec": "f8", "zflg": "f8"},
        **{"norm": "i2", "epoch": "i2", "photoMask": "i2", "tsr": "f4", "ssr": "f4"},
        **{"classFlag": "i2"},
    },
    "vvds": {
        **{"NUM": "i4", "ID": "i8", "ALPHA": "f8", "DELTA": "f8", "Z": "f8", "ZFLAGS": "i4"},
        **{"MAGI": "f4", "MAG_U_CFH12K": "f4", "MAGERR_AUTO_U": "f4", "AGE": "f4", "EBV": "f4"},
    },
    "wigglez": {
        **{"WiggleZ_Name": "S20", "RA": "f8", "Dec": "f8", "redshift": "f8", "Dredshift": "f4"},
        **{"Q": "i2", "FUV": "f4", "NUV": "f4", "u": "f4", "g": "f4", "r": "f4", "i": "f4"},
        **{"z": "f4", "E(B-V)": "f4", "class": "i2", "UTdate": "S12", "SpecFile": "S24"},
    },
    "sixdf": {
        **{"TARGETID": "S14", "RA": "S12", "DEC": "S12", "NMEAS": "i2", "NQUALITY": "i2"},
        **{"BJ": "f4", "PROGID": "i4", "RF": "f4", "SGCLASS": "i4", "COMPARISON": "i4"},
        **{"CZ": "f8", "CZERR": "f4", "CZSRC": "i4", "QUALITY": "i2"},
    },
}

# What spoils a row, by survey: reason -> column and value. Reasons stand in the order of the cuts.
FAULTS: dict[str, dict[str, tuple[str, Any]]] = {
    "sdss": {
        **{"not the primary spectrum": ("SPECPRIMARY", 0), "redshift warning": ("ZWARNING", 4)},
        "no galaxy": ("CLASS", b"QSO"),
    },
    "desi": {
        **{"sky or a broken fiber": ("OBJTYPE", b"SKY"), "no target id": ("TARGETID", -1)},
        "not the primary spectrum": ("ZCAT_PRIMARY", False),
        **{"redshift warning": ("ZWARN", 1024), "no galaxy": ("SPECTYPE", b"STAR")},
    },
    "gama": {
        **{"other survey": ("SURVEY", b"MGC"), "insecure redshift": ("NQ", 2)},
        "star": ("Z", 1e-3),
    },
    "deep2": {"insecure redshift": ("ZQUALITY", 2), "no galaxy": ("CLASS", b"AGN")},
    "vipers": {"insecure redshift": ("zflg", 12.5), "no galaxy target": ("classFlag", 2)},
    **{"vvds": {"insecure redshift": ("ZFLAGS", 23)}, "wigglez": {"insecure redshift": ("Q", 6)}},
    "sixdf": {"insecure redshift": ("QUALITY", 6)},
}
_COLUMNS = {  # id, right ascension, declination, redshift
    "sdss": ("BESTOBJID", "PLUG_RA", "PLUG_DEC", "Z"),
    "desi": ("TARGETID", "TARGET_RA", "TARGET_DEC", "Z"),
    **{"gama": ("CATAID", "RA", "DEC", "Z"), "sixdf": ("TARGETID", "RA", "DEC", "CZ")},
    **{"deep2": ("OBJNO", "RA", "DEC", "ZBEST"), "vvds": ("NUM", "ALPHA", "DELTA", "Z")},
    "vipers": ("id_IAU", "alpha", "delta", "zspec"),
    "wigglez": ("WiggleZ_Name", "RA", "Dec", "redshift"),
}
_FIRST_ID = {"sdss": 1237645879551000001, "desi": 39627000000000001}

_Float = NDArray[np.float64]
_Int = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What has to become of the rows.

    Attributes:
        num_rows: rows of each survey's table.
        num_dropped: by survey and reason; reasons without rows are absent.
        kept: (survey's key, id) of every object of the catalog.
    """

    num_rows: dict[str, int]
    num_dropped: dict[str, Counter[str]]
    kept: set[tuple[str, str]]


@dataclass
class _Rows:
    """All rows of all surveys, in the order of the tables."""

    survey: _Int
    ra: _Float
    dec: _Float
    number: _Int  # of its id
    reason: NDArray[np.object_]  # None for rows that end in the catalogue


def lattice(count: int) -> tuple[_Float, _Float]:
    """Positions north of -29.9 degrees that are nowhere nearer than some 100 arcsec."""
    low, high = np.radians(-29.9), np.radians(89.5)
    area = 2 * np.pi * (np.sin(high) - np.sin(low))
    step = np.degrees(np.sqrt(area / count)) * 0.98
    assert step > 0.06, "too many objects for one sky"
    ra, dec = [], []
    for ring in np.arange(-29.9, 89.5, step):
        num = max(1, int(360 * np.cos(np.radians(ring)) / step))
        ra.append(np.arange(num) * 360 / num)
        dec.append(np.full(num, ring))
    return np.concatenate(ra)[:count], np.concatenate(dec)[:count]


def shifted(ra: _Float, dec: _Float, bearing_deg: _Float, arcsec: float) -> tuple[_Float, _Float]:
    """Positions at a distance and a bearing from others, on the sphere."""
    phi, theta = np.radians(dec), np.radians(bearing_deg)
    delta = np.radians(arcsec / 3600)
    sine = np.sin(phi) * np.cos(delta) + np.cos(phi) * np.sin(delta) * np.cos(theta)
    east = np.sin(theta) * np.sin(delta) * np.cos(phi)
    step = np.arctan2(east, np.cos(delta) - np.sin(phi) * sine)
    return (ra + np.degrees(step)) % 360, np.degrees(np.arcsin(np.clip(sine, -1, 1)))


def make_tables(folder: Path, count: int, seed: int = 0) -> Truth:
    """Writes the tables and `spec.toml` into a folder.

    Args:
        folder: new or empty.
        count: rows in all, nearly.
        seed: of everything that is drawn.
    """
    random = np.random.default_rng(seed)
    rows = _draw_rows(random, count)
    folder.mkdir(parents=True, exist_ok=True)
    truth = Truth(num_rows={}, num_dropped={}, kept=set())
    names = {}
    for k, key in enumerate(BUILT_IN):
        mine = np.flatnonzero(rows.survey == k)
        table = _fill(key, rows, mine, random)
        names[key] = _write(folder, key, table)
        reasons = Counter(r for r in rows.reason[mine].tolist() if r is not None)
        is_kept = np.array([r is None for r in rows.reason[mine]], bool)
        ids = _id_texts(key, rows.number[mine[is_kept]])
        truth.num_rows[key], truth.num_dropped[key] = len(mine), reasons
        truth.kept.update((key, text) for text in ids)
    lines = [f'[surveys.{key}]\nfiles = ["{name}"]\n' for key, name in names.items()]
    (folder / "spec.toml").write_text("\n".join(lines))
    return truth


def _draw_rows(random: np.random.Generator, count: int) -> _Rows:
    """Good objects, then their companions and spoilt rows, shuffled within the tables."""
    num_good = int(count * 0.8)
    ra, dec = lattice(num_good)
    num_good = len(ra)
    jitter = min(60.0, 0.2 * 3600 * float(np.sqrt(32000 / num_good)))
    ra, dec = shifted(ra, dec, random.uniform(0, 360, num_good), jitter)
    # Some beside the seam and some beside the pole.
    ra[:40:4] = 1e-5 * np.arange(10)
    dec[:40:4] = np.linspace(-25, 80, 10)
    ra[1:41:4], dec[1:41:4] = np.arange(10) * 36.0, 89.99
    special = np.arange(40)
    shares = SHARES / SHARES.sum()
    survey = random.choice(len(BUILT_IN), num_good, p=shares)
    base = np.concatenate([special, 40 + random.permutation(num_good - 40)])
    num_pairs = max(30, int(count * 0.02))
    parts = [(survey, ra, dec, np.full(num_good, None, object))]
    used = 0

    def companions(num: int, arcsec: float) -> tuple[_Int, _Float, _Float, _Int]:
        nonlocal used
        # Half of the special places get a near one, half a far one.
        half = slice(0, 20, 4) if used == 0 else slice(20, 40, 4)
        places = [special[half], special[1:][half]]
        at = np.concatenate([*places, base[40 + used : 40 + used + num]])
        used += num
        # Across the seam, where the place is on it.
        bearing = np.where(at < 40, 270.0, random.uniform(0, 360, len(at)))
        other = random.choice(len(BUILT_IN), len(at), p=shares)
        return at, *shifted(ra[at], dec[at], bearing, arcsec), other

    links = []
    total = num_good
    for arcsec in (NEAR_ARCSEC, FAR_ARCSEC):
        at, x, y, other = companions(num_pairs, arcsec)
        parts.append((other, x, y, np.full(len(at), None, object)))
        if arcsec == NEAR_ARCSEC:
            links.append(np.stack([at, total + np.arange(len(at))], axis=1))
        total += len(at)
    return _spoil(random, parts, links, base[40 + used :])


def _spoil(random: np.random.Generator, parts: list[Any], links: list[_Int], free: _Int) -> _Rows:
    """Adds chains, repeated ids and rows that fail a cut; then decides what is dropped."""
    _, ra, dec, _ = parts[0]
    total = sum(len(p[0]) for p in parts)
    num = max(20, len(ra) // 100)
    # Chains: base, middle 2.9 arcsec beside it, end 2.9 arcsec beside the middle, in one line.
    at, free = free[:num], free[num:]
    bearing = random.uniform(0, 360, num)
    middle = total + np.arange(num)
    for step, arcsec in enumerate((NEAR_ARCSEC, 2 * NEAR_ARCSEC)):
        other = random.choice(len(BUILT_IN), num, p=SHARES / SHARES.sum())
        x, y = shifted(ra[at], dec[at], bearing, arcsec)
        parts.append((other, x, y, np.full(num, None, object)))
        before = at if step == 0 else middle
        links.append(np.stack([before, total + np.arange(num)], axis=1))
        total += num
    # Rows that fail, a second beside good ones: they must not cost these their place.
    for k, key in enumerate(BUILT_IN):
        reasons = [*FAULTS[key], NO_POSITION, NO_REDSHIFT, OUTSIDE_SKY, OUTSIDE_REDSHIFT]
        for reason in reasons:
            few = max(4, num // 20)
            at, free = free[:few], free[few:]
            x, y = shifted(ra[at], dec[at], random.uniform(0, 360, few), 1.0)
            parts.append((np.full(few, k), x, y, np.full(few, reason, object)))
            total += few
    columns = [np.concatenate([p[i] for p in parts]) for i in range(4)]
    rows = _Rows(columns[0], columns[1], columns[2], np.arange(total), columns[3])
    _repeat(rows, free[:num], random)
    return _settle(rows, np.concatenate(links), random)


def _repeat(rows: _Rows, at: _Int, random: np.random.Generator) -> None:
    """Gives some objects a second row with the same id, elsewhere on the sky."""
    copies = at[random.permutation(len(at))]
    moved = shifted(rows.ra[copies], rows.dec[copies], np.full(len(copies), 45.0), 12.0)
    rows.survey = np.concatenate([rows.survey, rows.survey[copies]])
    rows.ra, rows.dec = (
        np.concatenate([a, b]) for a, b in zip((rows.ra, rows.dec), moved, strict=True)
    )
    rows.number = np.concatenate([rows.number, rows.number[copies]])
    rows.reason = np.concatenate([rows.reason, np.full(len(copies), REPEATED, object)])


def _settle(rows: _Rows, links: _Int, random: np.random.Generator) -> _Rows:
    """Shuffles the rows, then drops from each link what is worse, walking from the best."""
    total = len(rows.survey)
    place = random.permutation(total)
    # A second row of an id comes after the first.
    repeated = np.flatnonzero(rows.reason == REPEATED)
    first = rows.number[repeated]
    swap = place[first] > place[repeated]
    a, b = first[swap], repeated[swap]
    place[a], place[b] = place[b], place[a]
    neighbors: dict[int, list[int]] = {}
    for one, two in links.tolist():
        neighbors.setdefault(one, []).append(two)
        neighbors.setdefault(two, []).append(one)
    standing = sorted(neighbors, key=lambda n: (rows.survey[n], place[n]))
    kept: set[int] = set()
    for number in standing:
        near = [n for n in neighbors[number] if n in kept]
        if not near:
            kept.add(number)
            continue
        best = min(near, key=lambda n: (rows.survey[n], place[n]))
        is_own = rows.survey[best] == rows.survey[number]
        rows.reason[number] = CLOSE_TO_OWN if is_own else CLOSE_TO_OTHER
    order = np.argsort(place)
    return _Rows(
        rows.survey[order], rows.ra[order], rows.dec[order], rows.number[order], rows.reason[order]
    )


def _id_texts(key: str, numbers: _Int) -> list[str]:
    if key == "vipers":
        return [f"VIPERS 1{n:08d}" for n in numbers.tolist()]
    if key == "wigglez":
        return [f"S{n % 24:02d}J{n:09d}" for n in numbers.tolist()]
    if key == "sixdf":
        return [f"g{n:07d}" for n in numbers.tolist()]
    return [str(n + _FIRST_ID.get(key, 1)) for n in numbers.tolist()]


def _fill(key: str, rows: _Rows, mine: _Int, random: np.random.Generator) -> NDArray[Any]:
    """The survey's table: a structured array in its layout."""
    table = np.zeros(len(mine), list(LAYOUTS[key].items()))
    id_name, ra_name, dec_name, z_name = _COLUMNS[key]
    table[id_name] = _id_texts(key, rows.number[mine])
    reason = rows.reason[mine]
    dec = rows.dec[mine].copy()
    dec[reason == OUTSIDE_SKY] = -30.5
    dec[reason == NO_POSITION] = np.nan
    redshift = random.uniform(0.01, 1.55, len(mine))
    redshift[reason == OUTSIDE_REDSHIFT] = 1.61
    redshift[reason == NO_REDSHIFT] = np.nan
    _fill_good(key, table)
    if key == "sixdf":
        table[ra_name] = [_sexagesimal(v / 15) for v in rows.ra[mine].tolist()]
        table[dec_name] = [_sexagesimal(v) for v in dec.tolist()]
        redshift = redshift * SPEED_OF_LIGHT_KM_S
    else:
        table[ra_name], table[dec_name] = rows.ra[mine], dec
    table[z_name] = redshift
    if key == "deep2":
        table["Z"] = redshift + 1e-4
    if key == "sdss":
        _fill_sdss_redshifts(table, redshift)
    for fault, (column, value) in FAULTS[key].items():
        table[column][reason == fault] = value
    return table


def _fill_good(key: str, table: NDArray[Any]) -> None:
    values: Mapping[str, Any] = {
        "sdss": {"CLASS": b"GALAXY", "SURVEY": b"boss", "SPECPRIMARY": 1},
        "desi": {"SPECTYPE": b"GALAXY", "ZCAT_PRIMARY": True, "OBJTYPE": b"TGT"},
        **{"gama": {"NQ": 4, "SURVEY": b"GAMA"}, "deep2": {"ZQUALITY": 4, "CLASS": b"GALAXY"}},
        "vipers": {"zflg": 3.5, "classFlag": 1},
        **{"vvds": {"ZFLAGS": 3}, "wigglez": {"Q": 4}, "sixdf": {"QUALITY": 4}},
    }[key]
    for column, value in values.items():
        table[column] = value
    # Both ends of what is accepted.
    other: Mapping[str, Any] = {"gama": {"NQ": 3}, "deep2": {"ZQUALITY": 3}, "vvds": {"ZFLAGS": 4}}
    others = {**other, "vipers": {"zflg": 2.0, "classFlag": 0}, "sixdf": {"QUALITY": 3}}
    for column, value in others.get(key, {}).items():
        table[column][::2] = value


def _fill_sdss_redshifts(table: NDArray[Any], redshift: _Float) -> None:
    """A third inspected by eye, a third with a fit without quasars; there Z itself is wrong."""
    for start, column in ((0, "Z_PERSON"), (1, "Z_NOQSO")):
        table[column][start::3] = redshift[start::3]
        table["Z"][start::3] = np.where(np.isfinite(redshift[start::3]), 3.3, np.nan)
    table["Z_PERSON"][2::3] = -9.0


def _sexagesimal(value: float) -> str:
    """`-12 34 56.789`; an empty text for NaN."""
    if np.isnan(value):
        return ""
    thousandths = round(abs(value) * 3_600_000)
    minutes, rest = divmod(thousandths, 60_000)
    sign = "-" if value < 0 else ""
    return f"{sign}{minutes // 60:02d} {minutes % 60:02d} {rest / 1000:06.3f}"


def _write(folder: Path, key: str, table: NDArray[Any]) -> str:
    if key in ("wigglez", "sixdf"):
        name = f"{key}.csv"
        with (folder / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(table.dtype.names or ())
            text = [
                c.astype("U") if c.dtype.kind == "S" else np.where(c != c, "", c.astype("U"))
                for c in (table[n] for n in table.dtype.names or ())
            ]
            writer.writerows(zip(*text, strict=True))
        return name
    from astropy.io import fits

    name = f"{key}.fits"
    hdu = fits.BinTableHDU(table, name="ZCATALOG" if key == "desi" else None)
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(folder / name, overwrite=True)
    return name
