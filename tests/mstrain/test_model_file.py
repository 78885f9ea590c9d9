"""A network as one file: the same densities elsewhere; damage and strangers' archives refused."""

from __future__ import annotations

import hashlib
import io
import json
import pickletools
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import qp
import torch

import msdata
import mstrain
from msdata.errors import DataError, MsdataError, UsageError
from mstrain.cli import main
from mstrain.evaluation.predictions import read_predictions
from mstrain.evaluation.run_info import find_prior, open_run
from mstrain.evaluation.variants import find_calibrations
from mstrain.models import model_file
from mstrain.models.model_file import MARK, companion, read_model_file
from mstrain.training.checkpoint import checkpoint_sha256


@pytest.fixture(scope="module")
def model(weighted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's file, with a calibration, on another path, the run being elsewhere."""
    folder = tmp_path_factory.mktemp("exported")
    run = shutil.copytree(weighted_run, folder / "run")
    (run / "calibration-global.json").write_text('{"levels": [0, 1]}')
    path = folder / "MODEL.msz"
    assert main(["export", str(run), str(path), "--license", "CC0", "--cite", "Doe 2026"]) == 0
    shutil.rmtree(run)
    return path


def sealed(content: bytes) -> bytes:
    """An archive with the digest that a forger would compute."""
    body = content[:-64]
    return body + hashlib.sha256(body).hexdigest().encode()


def archive_of(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
        archive.comment = MARK + b"0" * 64
    return sealed(file.getvalue())


def members_of(path: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def test_the_file_gives_the_densities_and_metrics_of_the_run_bit_for_bit(
    weighted_run: Path,
    model: Path,
    galaxies: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    moved = tmp_path / "else where.msz"
    moved.write_bytes(model.read_bytes())
    words = [str(galaxies), "--split", "val", "--replicates", "20", "--no-report", "--quiet"]
    assert main(["evaluate", str(moved), *words]) == 2
    assert f"{moved} is a file: give a folder for the results" in capsys.readouterr().err
    found, metrics = [], []
    for run, name in ((weighted_run, "a"), (moved, "b")):
        out = tmp_path / name
        assert main(["evaluate", str(run), *words, "--out", str(out)]) == 0
        found.append(read_predictions(out / "predictions-val.parquet"))
        metrics.append(json.loads((out / "evaluation-val.json").read_text()))
    densities = [np.concatenate(list(table.density_parts())) for table in found]
    assert densities[0].tobytes() == densities[1].tobytes()
    assert densities[0].std(axis=0).max() > 0
    # Under the natural prior, and as trained with weights.
    assert metrics[0]["metrics"] == metrics[1]["metrics"]
    assert metrics[0]["other_priors"] == metrics[1]["other_priors"]
    assert metrics[0]["other_priors"].keys() == {"as-trained"}
    assert found[1].origin["run"] == str(moved)
    out = tmp_path / "p.hdf5"
    words = ["predict", str(moved), str(galaxies), str(out), "--split", "val", "--quiet"]
    assert main(words) == 0
    ensemble = qp.read(str(out))
    np.testing.assert_allclose(ensemble.objdata["pdfs"], densities[0], rtol=3e-7)
    assert list(ensemble.ancil["sample_id"]) == list(found[0].columns["sample_id"])
    # The second time it replaces its own file.
    assert main(words) == 0
    assert {**found[1].origin, "run": ""} == {**found[0].origin, "run": ""}


def test_the_loaded_network_is_the_run_s_and_the_file_says_what_it_is(
    weighted_run: Path, model: Path
) -> None:
    ours, config = mstrain.load_model(weighted_run)
    theirs, same = mstrain.load_model(model)
    assert config == same
    states = ours.state_dict(), theirs.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    found = read_model_file(model)
    assert found.fields["license"].value == "CC0"
    assert found.fields["citation"].value == "Doe 2026"
    assert len(found.fields["bin_edges"].value) == config.model.num_bins + 1
    digest = hashlib.sha256((weighted_run / "checkpoints" / "best.pt").read_bytes()).hexdigest()
    assert checkpoint_sha256(model, "best") == checkpoint_sha256(weighted_run, "best") == digest
    calibration = companion(model, "calibration-global.json")
    assert calibration is not None
    assert calibration.value == {"levels": [0, 1]}
    assert companion(model, "calibration-local.json") is None
    assert set(found.companions) == {"statistics.json", "calibration-global.json"}


def test_calibrations_of_a_model_file_cost_one_reading_of_it(
    model: Path, galaxies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data, readings = open_run(model, "best"), msdata.open(galaxies), []
    prior, read = find_prior(run, "natural"), model_file._bytes_of
    monkeypatch.setattr(model_file, "_bytes_of", lambda p: readings.append(p) or read(p))
    variants, notes = find_calibrations(run, data, prior, "none")
    assert [variant.calibration_name for variant in variants] == ["none"]
    assert notes[0].startswith("The global calibration is left out: ") and len(notes) == 1
    assert readings == [model]
    with pytest.raises(UsageError, match="has no local calibration; fit one"):
        find_calibrations(run, data, prior, "local")


def test_the_file_holds_no_pickle_and_the_same_run_gives_the_same_bytes(
    weighted_run: Path, tmp_path: Path
) -> None:
    first, second = (mstrain.export(weighted_run, tmp_path / f"{n}.msz") for n in "ab")
    assert first.sha256 == second.sha256
    assert first.path.read_bytes() == second.path.read_bytes()
    for name, content in members_of(first.path):
        assert name.endswith((".json", ".safetensors"))
        with pytest.raises(Exception, match=r"pickle|opcode|stack|newline|string"):
            list(pickletools.genops(content))


def test_any_altered_byte_is_refused(
    model: Path, galaxies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = model.read_bytes(), tmp_path / "bad.msz"
    # Headers and content of the archive, its directory, its comment and the digest itself.
    places = np.random.default_rng(0).integers(2, len(good), 40).tolist()
    for place in [0, 1, 2, len(good) // 2, len(good) - 200, len(good) - 1, *places]:
        content = bytearray(good)
        content[place] ^= 1
        bad.write_bytes(content)
        with pytest.raises(MsdataError, match=r"corrupt|truncated|is not a model file"):
            read_model_file(bad)
    assert main(["predict", str(bad), str(galaxies), str(tmp_path / "p.parquet")]) == 1
    assert "is corrupt: SHA-256" in capsys.readouterr().err
    for short in (good[:-1], good[: len(good) // 2]):
        bad.write_bytes(short)
        with pytest.raises(DataError, match="truncated"):
            read_model_file(bad)


def test_strangers_archives_are_refused_though_their_digest_is_right(
    model: Path, tmp_path: Path
) -> None:
    members = dict(members_of(model))
    fields, weights = members["model.json"], members["weights.safetensors"]
    plain = [("model.json", fields), ("weights.safetensors", weights)]
    long_header = (1 << 60).to_bytes(8, "little") + weights[8:]
    cases = {
        "does not belong": [
            archive_of([*plain, ("../../evil.json", b"{}")]),
            archive_of([*plain, ("/etc/passwd", b"")]),
            archive_of([*plain, ("best.pt", b"\x80\x02.")]),
            archive_of([*plain, ("calibration-/../x.json", b"{}")]),
            archive_of(plain, zipfile.ZIP_DEFLATED),
        ],
        "weights.safetensors is missing": [archive_of(plain[:1])],
        "weights of .* cannot be read": [
            archive_of([plain[0], ("weights.safetensors", b"\x80\x02.")]),
            archive_of([plain[0], ("weights.safetensors", long_header)]),
        ],
        "not valid JSON": [archive_of([("model.json", b"{"), plain[1]])],
    }
    path = tmp_path / "m.msz"
    for message, contents in cases.items():
        for content in contents:
            path.write_bytes(content)
            with pytest.raises(DataError, match=message):
                read_model_file(path)
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = archive_of([*plain, plain[0]])
    path.write_bytes(twice)
    with pytest.raises(DataError, match="overlap"):
        read_model_file(path)
    # The weights of another network, and fields of another shape.
    said = json.loads(fields)
    for change in ({"shapes": {"image": [3, 24, 24]}}, {"config": {**said["config"], "model": 1}}):
        forged = json.dumps({**said, **change}).encode()
        path.write_bytes(archive_of([("model.json", forged), plain[1]]))
        with pytest.raises(MsdataError, match=r"does not fit|another version"):
            mstrain.load_model(path)


BAD = {
    "name": (["{run}", "{out}/m.zip"], "must end in .msz"),
    "no run": (["nowhere", "{out}/m.msz"], "nowhere is not a run"),
    "file": (["{model}", "{out}/m.msz"], "RUN must be the folder of a training"),
    "taken": (["{run}", "{out}/notes.msz"], "this command did not make it"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_exports_say_why_and_write_nothing(
    case: str,
    weighted_run: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "notes.msz").write_text("the user's own")
    words, message = BAD[case]
    places = {"run": weighted_run, "model": model, "out": tmp_path}
    assert main(["export", *(word.format(**places) for word in words)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["notes.msz"]
    assert (tmp_path / "notes.msz").read_text() == "the user's own"


def test_a_file_holds_one_checkpoint_and_says_so(
    model: Path, galaxies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(model), str(galaxies), str(tmp_path / "p.parquet")]
    assert main([*words, "--checkpoint", "last"]) == 2
    assert "was exported from the best checkpoint" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "typo.msz"), *words[2:]]) == 2
    assert "typo.msz does not exist" in capsys.readouterr().err
