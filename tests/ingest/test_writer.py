"""`msdata.Writer`: what it makes is what `msdata pack` makes, whole or absent."""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest

import msdata
from msdata.schema import Schema, Survey
from msdata.verify.verify import verify_dataset

NUM_SAMPLES = 60


def image_of(number: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).normal(5, 2, (3, 8, 8)).astype(np.float32)


def write_some(
    out: Path, *, first: int = 0, step: int = 1, num_samples: int = NUM_SAMPLES, **options: Any
) -> None:
    with msdata.Writer(out, jobs=1, **options) as writer:
        for n in range(first, num_samples, step):
            labels = {"redshift": n / 100, "ra": n + 0.5, "dec": -0.25, "object_id": f"{n:04d}"}
            writer.write(f"{n:04d}", {"image": image_of(n)}, **labels)


def contents(data: Path) -> dict[str, bytes]:
    names = ("*/*.tar", "*/*.idx", "*/*.h5", "index.parquet")
    return {
        str(p.relative_to(data)): p.read_bytes() for name in names for p in sorted(data.glob(name))
    }


def fields_of(data: Path) -> dict[str, tuple[bytes, float]]:
    return {
        s["sample_id"]: (s["image"].tobytes(), s["redshift"]) for s in iter_all(msdata.open(data))
    }


def iter_all(data: msdata.Dataset) -> list[dict[str, Any]]:
    return [data[n] for n in range(len(data))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"container": "hdf5", "chunked": True},
        {"quantize": {"*": 8.0}, "compress": "lz4"},
    ],
)
def test_the_writer_makes_the_bytes_that_pack_makes(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    shards = {"shard_nbytes": 1 << 16, "seed": 3}
    objects = tmp_path / "objects"
    for n in range(NUM_SAMPLES):
        packing.write_object(objects / f"{n:04d}.pkl", {"image": image_of(n)})
    with (tmp_path / "c.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["object_id", "redshift", "ra", "dec"])
        rows.writerows([f"{n:04d}", n / 100, n + 0.5, -0.25] for n in range(NUM_SAMPLES))
    msdata.pack(objects, tmp_path / "PACKED", catalog=tmp_path / "c.csv", **shards, **options)
    write_some(tmp_path / "DATA", **shards, **options)
    found = contents(tmp_path / "DATA")
    assert found == contents(tmp_path / "PACKED")
    assert len(found) > 3
    assert not verify_dataset(tmp_path / "DATA").faults
    assert not (tmp_path / "DATA.parts").exists()


def test_a_batch_of_the_loader_holds_the_arrays_and_labels(tmp_path: Path) -> None:
    write_some(tmp_path / "DATA")
    split = msdata.open(tmp_path / "DATA").split("train")
    seen = 0
    for batch in msdata.Loader(split, batch_size=7, seed=0, remainder="pad", cache=None):
        for image, name, z in zip(
            batch["image"], batch["sample_id"], batch["redshift"], strict=True
        ):
            assert np.array_equal(image, image_of(int(name)))
            assert z == int(name) / 100
            seen += 1
    assert seen >= len(split)


def test_four_writers_at_once_lose_no_sample(tmp_path: Path) -> None:
    write_some(tmp_path / "ONE")
    out = tmp_path / "DATA"
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[2:4]; import test_writer; "
        "n, out = int(sys.argv[4]), Path(sys.argv[1]); "
        "test_writer.write_some(out, first=n, step=4, part=n, num_parts=4)"
    )
    places = [str(Path(__file__).parent), str(packing.ROOT / "tests" / "support")]
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(out), *places, str(n)]) for n in range(4)
    ]
    assert [process.wait(60) for process in running] == [0] * 4
    assert not out.exists()
    data = msdata.join_parts(out, jobs=1)
    assert len(data) == NUM_SAMPLES
    assert contents(out) == contents(tmp_path / "ONE")
    assert not verify_dataset(out).faults


# Imports once; forks a process per line of stdin, which is killed at the given one of its moments.
KILLED = """
import json, os, signal, sys
sys.path[:0] = sys.argv[1:]
from pathlib import Path
import test_writer

def write(out, moment):
    left = moment
    def hook(event, args):
        nonlocal left
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "subprocess.Popen"):
            if ".parts" in str(args) or event == "subprocess.Popen":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    test_writer.write_some(Path(out), num_samples=20)
    return moment - left

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        print(write(*json.loads(line)), flush=True)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_a_whole_data_set_or_none(tmp_path: Path) -> None:
    places = [str(Path(__file__).parent), str(packing.ROOT / "tests" / "support")]
    words = [sys.executable, "-c", KILLED, *places]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, text=True, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None

        def ask(out: Path, moment: int) -> str:
            process.stdin.write(json.dumps([str(out), moment]) + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        num_moments = int(ask(tmp_path / "WHOLE", 1 << 30))
        assert process.stdout.readline() == "0\n"
        expected = fields_of(tmp_path / "WHOLE")
        assert num_moments > 20
        out = tmp_path / "DATA"
        for moment in random.Random(5).sample(range(1, num_moments + 1), 20):
            # Each starts on what the one before left.
            answer = ask(out, moment)
            if out.exists():
                assert fields_of(out) == expected
                assert not verify_dataset(out).faults
                out.rename(tmp_path / f"DATA-{moment}")
                if answer != str(-signal.SIGKILL):
                    assert process.stdout.readline() == "0\n"
            else:
                assert answer == str(-signal.SIGKILL)
        process.stdin.close()
        assert process.wait(60) == 0
    write_some(out, num_samples=20)
    assert fields_of(out) == expected
    assert not (tmp_path / "DATA.parts").exists()


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), msdata.Writer(tmp_path / "DATA") as writer:
        writer.write("a", {"image": image_of(0)})
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


IMAGE = image_of(0)
WITH_NAN = np.where(np.arange(192).reshape(3, 8, 8) == 7, np.nan, IMAGE).astype(np.float32)
REFUSALS: dict[str, tuple[Callable[[Any], None], str]] = {
    "an id twice": (lambda w: w.write("a", {"image": IMAGE}), "its id was written already"),
    "an empty id": (lambda w: w.write("", {"image": IMAGE}), "must be a printable text"),
    "a number as id": (lambda w: w.write(7, {"image": IMAGE}), "printable text, got 7"),
    "a long id": (lambda w: w.write("x" * 99, {"image": IMAGE}), "99 of at most 90"),
    "another shape": (lambda w: w.write("b", {"image": IMAGE[:2]}), r"shape \(2, 8, 8\) instead"),
    "another dtype": (
        lambda w: w.write("b", {"image": IMAGE.astype(np.float64)}),
        "float64, which does not fit float32",
    ),
    "a list": (lambda w: w.write("b", {"image": IMAGE.tolist()}), "is a list, not an array"),
    "another array": (lambda w: w.write("b", {"img": IMAGE}), "must be image, got img"),
    "no array": (lambda w: w.write("b", {}), "must be image, got none"),
    "NaN": (lambda w: w.write("b", {"image": WITH_NAN}), "holds 1 NaN; give nan='keep'"),
    "a reserved label": (lambda w: w.write("b", {"image": IMAGE}, crc32c=1), "uses itself"),
    "a label of the plan": (lambda w: w.write("b", {"image": IMAGE}, path="x"), "uses itself"),
    "a label named as an array": (lambda w: w.write("b", {"image": IMAGE}, image=1), "uses itself"),
    "a redshift for none": (
        lambda w: w.write("b", {"image": IMAGE}, redshift=-99.0),
        "from -0.01 to 8, or None where unknown, got -99.0",
    ),
    "a declination beyond the pole": (
        lambda w: w.write("b", {"image": IMAGE}, dec=95),
        "from -90 to 90",
    ),
    "a list as label": (lambda w: w.write("b", {"image": IMAGE}, kind=[1]), "a finite number"),
    "infinity": (lambda w: w.write("b", {"image": IMAGE}, mass=np.inf), "a finite number"),
    "text after a number": (
        lambda w: w.write("b", {"image": IMAGE}, mass="big"),
        "a text after a number",
    ),
    "a split for some": (lambda w: w.write("b", {"image": IMAGE}, split="val"), "for all samples"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_sample_that_does_not_fit_is_refused_and_the_others_are_kept(
    tmp_path: Path, name: str
) -> None:
    act, message = REFUSALS[name]
    with msdata.Writer(tmp_path / "DATA", jobs=1) as writer:
        writer.write("a", {"image": IMAGE}, mass=1.5)
        with pytest.raises(msdata.MsdataError, match=message):
            act(writer)
        writer.write("c", {"image": image_of(2)}, mass=2)
    data = msdata.open(tmp_path / "DATA")
    assert sorted(s["sample_id"] for s in iter_all(data)) == ["a", "c"]
    assert sorted(s["mass"] for s in iter_all(data)) == [1.5, 2.0]


def test_arrays_with_reserved_names_are_refused(tmp_path: Path) -> None:
    for name in ("redshift", "crc32c", "is_real"):
        with msdata.Writer(tmp_path / "DATA", jobs=1) as writer:
            with pytest.raises(msdata.MsdataError, match="uses for something else"):
                writer.write("a", {name: IMAGE})
            writer.write("a", {"image": IMAGE})
        (tmp_path / "DATA").rename(tmp_path / name)


def test_a_schema_is_kept_with_its_bands_units_and_fills(tmp_path: Path) -> None:
    survey = Survey(
        name="image", shape=(3, 8, 8), bands=("g", "r", "i"), unit="nJy", may_have_nan=True
    )
    hsc = Schema(name="hsc", arrays=(survey,))
    with (
        pytest.raises(msdata.MsdataError, match="NaN, more than 1 %"),
        msdata.Writer(tmp_path / "D1", schema=hsc) as writer,
    ):
        writer.write("a", {"image": WITH_NAN})
    with msdata.Writer(tmp_path / "D2", nan="keep", jobs=1) as writer:
        writer.write("a", {"image": WITH_NAN}, split="train", big=2**60)
    sample = msdata.open(tmp_path / "D2")[0]
    assert np.array_equal(sample["image"], WITH_NAN, equal_nan=True)
    assert sample["nan_image"] == 1
    assert sample["big"] == 2**60
    large = Survey(name="image", shape=(1, 32, 32), bands=("g",), may_have_nan=True)
    image = np.ones((1, 32, 32), np.float32)
    image[0, 5, 5] = np.nan
    with msdata.Writer(
        tmp_path / "D3", schema=Schema(name="hsc", arrays=(large,)), jobs=1
    ) as writer:
        writer.write("a", {"image": image})
    data = msdata.open(tmp_path / "D3")
    assert data.schema.name == "hsc"
    assert data[0]["filled_image"] == 1
    assert np.array_equal(data[0]["image"], np.ones_like(image))


def test_named_splits_are_kept_and_labels_may_be_absent(tmp_path: Path) -> None:
    with msdata.Writer(tmp_path / "DATA", jobs=1) as writer:
        writer.write("a", {"image": IMAGE}, split="train", name="NGC 1", ok=True)
        writer.write("b", {"image": IMAGE}, split="holdout", redshift=float("nan"), n=np.int64(4))
        with pytest.raises(msdata.MsdataError, match=r"got '\.\./x'"):
            writer.write("c", {"image": IMAGE}, split="../x")
    data = msdata.open(tmp_path / "DATA")
    assert set(data.splits) == {"train", "holdout"}
    first, second = data.split("train")[0], data.split("holdout")[0]
    assert (first["name"], first["ok"], first["n"]) == ("NGC 1", True, None)
    assert (second["name"], second["ok"], second["n"]) == (None, None, 4)
    assert second["redshift"] is None


def test_parts_that_do_not_belong_together_are_not_joined(tmp_path: Path) -> None:
    out = tmp_path / "DATA"
    with pytest.raises(msdata.MsdataError, match="does not exist; write parts"):
        msdata.join_parts(out)
    write_some(out, part=0, num_parts=2, num_samples=10)
    with pytest.raises(msdata.MsdataError, match="part 1 is not complete"):
        msdata.join_parts(out)
    write_some(out, part=1, num_parts=2, num_samples=3)
    with pytest.raises(msdata.MsdataError, match="3 ids are in two parts; the first is '0000'"):
        msdata.join_parts(out)
    write_some(out, part=1, num_parts=2, num_samples=12, first=10, seed=4)
    with pytest.raises(msdata.MsdataError, match="part 1 has other settings than part 0"):
        msdata.join_parts(out)
    write_some(out, part=1, num_parts=2, num_samples=12, first=10)
    with (tmp_path / "DATA.parts" / "part-00001" / "samples.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(msdata.MsdataError, match=r"must have 1536 bytes, got 1537"):
        msdata.join_parts(out)
    write_some(out, part=1, num_parts=2, num_samples=12, first=10)
    assert len(msdata.join_parts(out, jobs=1)) == 12


def test_a_writer_refuses_a_folder_that_holds_something_and_a_part_in_use(tmp_path: Path) -> None:
    write_some(tmp_path / "DATA")
    with pytest.raises(msdata.MsdataError, match="is not empty: it holds"):
        write_some(tmp_path / "DATA")
    with pytest.raises(msdata.MsdataError, match="part must be 0 to num_parts - 1"):
        msdata.Writer(tmp_path / "X", part=2, num_parts=2)
    with pytest.raises(msdata.MsdataError, match="no sample was written"):
        write_some(tmp_path / "EMPTY", num_samples=0)
    with msdata.Writer(tmp_path / "BUSY", jobs=1) as writer:
        writer.write("a", {"image": IMAGE})
        with pytest.raises(msdata.MsdataError, match="another Writer is writing part 0"):
            write_some(tmp_path / "BUSY")
    with pytest.raises(msdata.MsdataError, match=r"write\(\) needs the open Writer"):
        writer.write("b", {"image": IMAGE})
    assert len(msdata.open(tmp_path / "BUSY")) == 1


def test_a_link_in_the_place_of_a_part_leads_nowhere(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    folder = tmp_path / "DATA.parts" / "part-00000"
    folder.mkdir(parents=True)
    (folder / "samples.bin").symlink_to(precious)
    with pytest.raises(msdata.MsdataError, match="it is a link or a special file"):
        write_some(tmp_path / "DATA")
    assert precious.read_text() == "mine"
