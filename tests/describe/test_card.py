"""The data card: what it says is so, and Croissant's own reader accepts it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import packing
import pytest

import msdata
from msdata.cli import main
from msdata.dataset.manifest import fingerprint_of
from msdata.describe.card import count_rejected

SAID = {
    "--name": "Galaxies",
    "--license": "https://creativecommons.org/licenses/by/4.0/",
    "--url": "https://example.org/galaxies",
    "--creator": "A group",
    "--published": "2026-11-21",
    "--cite": "A group 2026",
}
# Reads the records as somebody else would; runs in a process of its own for its warnings.
READER = """
import json, sys
import mlcroissant
data = mlcroissant.Dataset(jsonld=sys.argv[1])
assert not data.metadata.issues.errors, data.metadata.issues.errors
rows = list(data.records("samples"))
arrays = list(data.records("arrays"))
text = lambda v: v.decode() if isinstance(v, bytes) else v
print(json.dumps({
    "warnings": sorted(map(str, data.metadata.issues.warnings)),
    "ids": [text(r["samples/sample_id"]) for r in rows],
    "redshifts": [float(r["samples/redshift"]) for r in rows],
    "arrays": [text(a["arrays/name"]) for a in arrays],
}))
"""


def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "data"))


def card(data: Path, *options: str) -> int:
    return main(["card", str(data), "--quiet", *options])


def said() -> list[str]:
    return [word for pair in SAID.items() for word in pair]


def test_the_card_has_counts_license_and_checksums_that_hold(mantis_source, packed, tmp_path):
    data = copy(packed(mantis_source), tmp_path)
    assert card(data, "--sums", *said()) == 0
    text = (data / "CARD.md").read_text()
    manifest = msdata.open(data).manifest
    assert text.startswith("# Galaxies\n")
    for words in (
        *SAID.values(),
        f"{manifest.num_samples:,} of",
        f"`{manifest.fingerprint}`",
        f"| `index.parquet` | `{manifest.index_sha256}` |",
        "| panstarrs | 5 x 170 x 170 | `<f4` | g, r, i, z, y | 0.25 | count | differ by object |",
        "20.08, 18.82",
        "Morrissey et al. 2007",
        "`split_fractions` | `[0.7, 0.1, 0.2]`",
    ):
        assert words in text
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=data, capture_output=True).returncode == 0
    listed = {line.split("  ")[1] for line in (data / "SHA256SUMS").read_text().splitlines()}
    assert {s.relative_path for s in manifest.shards} < listed
    assert main(["verify", str(data), "--quiet"]) == 0


def test_croissants_own_reader_accepts_the_card_and_finds_the_samples(
    mantis_source, packed, tmp_path
):
    data = copy(packed(mantis_source), tmp_path)
    assert card(data, *said()) == 0
    command = [sys.executable, "-c", READER, str(data / "croissant.json")]
    process = packing.run(command)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    table = msdata.open(data).table
    assert found["warnings"] == []
    assert found["ids"] == table["sample_id"].to_pylist()
    assert found["redshifts"] == pytest.approx(table["redshift"].to_pylist())
    assert found["arrays"] == ["panstarrs", "galex", "unwise"]


def test_equal_data_give_equal_cards_and_a_second_one_replaces_the_first(
    tiny_source, packed, tmp_path, capsys
):
    data = copy(packed(tiny_source), tmp_path)
    assert card(data) == 0
    assert "the card lacks --license, --creator, --url, --published" in capsys.readouterr().out
    first = packing.content(data)
    assert card(data, "--name", "other") == 0
    assert card(data) == 0
    assert packing.content(data) == first


def test_reasons_of_rejected_objects_are_counted_by_kind(flawed_source, packed, tmp_path):
    data = copy(packed(flawed_source), tmp_path)
    assert card(data) == 0
    kinds = count_rejected(data)
    assert sum(kinds.values()) == msdata.open(data).manifest.provenance["num_rejected"]
    assert kinds["no row in the catalog"] == 6
    assert kinds["array 'image' has shape (N, N, N) instead of (N, N, N)"] == 6
    assert "| no row in the catalog | 6 |" in (data / "CARD.md").read_text()


def test_the_catalogs_cuts_counts_and_citations_are_on_the_card(tiny_source, packed, tmp_path):
    (tmp_path / "gama.csv").write_text(
        "CATAID,RA,DEC,Z,NQ,SURVEY\n1,10,1,0.1,4,GAMA\n2,11,1,0.1,2,GAMA\n"
    )
    (tmp_path / "spec.toml").write_text('[surveys.gama]\nfiles = "gama.csv"\n')
    build = ["catalog", "build", str(tmp_path / "spec.toml"), str(tmp_path / "c"), "--quiet"]
    assert main([*build, "--no-figure"]) == 0
    data = copy(packed(tiny_source), tmp_path)
    assert card(data, "--catalog", str(tmp_path / "c")) == 0
    text = (data / "CARD.md").read_text()
    cuts = r"SURVEY one of \['GAMA', 'GAMA_LT'\]; NQ at least 3; Z at least 0.002"
    assert f"| GAMA | gama.csv | 2 | 1 | {cuts} | Driver et al. 2022" in text
    assert "1 objects, 0 < z < 1.6, declination above -30 degrees, no two within 3 arcsec" in text


def test_what_is_wrong_is_one_sentence_and_nothing_is_written(
    tiny_source, packed, tmp_path, capsys
):
    data = copy(packed(tiny_source), tmp_path)
    (tmp_path / "other.json").write_text("{}")
    wrong = [
        ([str(tmp_path)], 2, "is not an msdata dataset"),
        ([str(data), "--published", "yesterday"], 2, "must be a date YYYY-MM-DD, got 'yesterday'"),
        ([str(data), "--catalog", str(tmp_path / "absent")], 2, "does not exist"),
        (
            [str(data), "--catalog", str(tmp_path / "other.json")],
            1,
            "give the catalog.json of msdata catalog",
        ),
    ]
    for arguments, code, says in wrong:
        assert main(["card", *arguments]) == code
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    index = data / "index.parquet"
    index.write_bytes(index.read_bytes() + b" ")
    assert main(["card", str(data)]) == 1
    assert not (data / "CARD.md").exists()


def test_a_column_whose_name_is_no_iri_gives_a_croissant_that_its_reader_accepts(
    tiny_source, tmp_path
):
    lines = (tiny_source / "catalog.csv").read_text().splitlines()
    catalog = tmp_path / "catalog.csv"
    names = 'mag g [AB],"100% <b>","grün/2"'
    lines = [f"{lines[0]},{names}", *(f"{line},1,2,3" for line in lines[1:])]
    catalog.write_text("\n".join(lines) + "\n")
    data = tmp_path / "data"
    packed = packing.pack(tiny_source, data, "--catalog", str(catalog), "--jobs", "1")
    assert packed.returncode == 0, packed.stderr
    assert card(data, *said()) == 0
    fields = json.loads((data / "croissant.json").read_bytes())["recordSet"][0]["field"]
    found = {f["source"]["extract"]["column"]: f["@id"] for f in fields}
    assert found["mag g [AB]"] == "samples/mag%20g%20%5BAB%5D"
    assert {"100% <b>", "grün_2"} < found.keys()
    assert all(i.isascii() and " " not in i for i in found.values())
    process = packing.run([sys.executable, "-c", READER, str(data / "croissant.json")])
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1])["warnings"] == []


def test_what_strangers_named_is_shown_on_the_card_and_is_neither_html_nor_a_link(
    tiny_source, packed, tmp_path
):
    data = copy(packed(tiny_source), tmp_path)
    bad = "<img src=x onerror=alert(1)>`|[a](javascript:b)\x9b2J\nx"
    content = json.loads((data / "dataset.json").read_bytes())
    content["schema"]["arrays"][0]["unit"] = bad
    content["provenance"]["settings"]["seed"] = bad
    del content["fingerprint"]
    content["fingerprint"] = fingerprint_of(content)
    (data / "dataset.json").write_text(json.dumps(content))
    (data / "rejected.csv").write_text(f'sample_id,path,row,reason\n1,x,0,"{bad}"\n')
    assert card(data, "--description", "See [here](https://example.org) <b>") == 0
    text = (data / "CARD.md").read_text()
    shown = "&lt;img src=x onerror=alert(1)>\\`\\|\\[a\\](javascript:b)\\\\u009b2J x"
    assert f"| {shown} |" in text
    outside_code = re.sub(r"`[^`\n]*(?<!\\)`", "", text)
    assert "<" not in outside_code
    assert not re.search(r"(?<!\\)\]\(javascript", outside_code)
    assert "See [here](https://example.org) &lt;b>" in text
    # A table's rows keep its number of cells.
    row = next(line for line in text.splitlines() if line.startswith("| image "))
    assert len(re.findall(r"(?<!\\)\|", row)) == 8
    assert all(c == "\n" or c.isprintable() for c in text)
    croissant = (data / "croissant.json").read_text()
    assert all(c == "\n" or c.isprintable() for c in croissant)
