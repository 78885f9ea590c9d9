"""Files of arrays as sources: HDF5, NPZ, Zarr, WebDataset tars, images; and their refusals."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import packing
import pytest
import webdataset
import zarr
from PIL import Image

import msdata
from msdata.errors import DataError, MsdataError, SampleError, UsageError
from msdata.pack.run import pack_folder
from msdata.sources.arrays.members import decode_npy
from msdata.sources.arrays.options import ArrayOptions, find_kind
from msdata.sources.detect import default_arrays, detect_source
from msdata.verify.repair import repair
from msdata.verify.verify import verify_dataset

COUNT = 40
RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (COUNT, 24, 20, 3), np.uint8)
FLUX = RNG.normal(size=(COUNT, 16, 16)).astype(">f4")
REDSHIFT = np.linspace(0.01, 0.4, COUNT)
REDSHIFT[3], REDSHIFT[5] = np.nan, -99
ANS = (np.arange(COUNT) % 10).astype(np.uint8)
NAMES = [f"gal{n:03d}" for n in range(COUNT)]
STACK = {"images": IMAGES, "flux": FLUX, "redshift": REDSHIFT, "ans": ANS}


def write_hdf5(folder: Path, **more: Any) -> Path:
    path = folder / "stack.h5"
    with h5py.File(path, "w") as file:
        for name, values in {**STACK, "object_id": np.array(NAMES, "S8"), **more}.items():
            file[name] = values
        file["weight"] = np.ones((COUNT, 16, 16), np.float32)
    return path


def read_hdf5(path: Path) -> Mapping[str, Any]:
    with h5py.File(path) as file:
        return {name: file[name][...] for name in STACK}


def write_npz(folder: Path) -> Path:
    np.savez(folder / "stack.npz", object_id=np.array(NAMES), **STACK)
    return folder / "stack.npz"


def write_packed_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "packed.npz", object_id=np.array(NAMES), **STACK)
    return folder / "packed.npz"


def read_npz(path: Path) -> Mapping[str, Any]:
    with np.load(path) as file:
        return {name: file[name] for name in STACK}


def write_zarr(folder: Path) -> Path:
    group = zarr.open_group(str(folder / "stack.zarr"), mode="w")
    numbers = np.arange(COUNT)
    for name, values in {**STACK, "object_id": numbers}.items():
        group.create_array(name, data=values, chunks=(7, *values.shape[1:]))
    return folder / "stack.zarr"


def read_zarr(path: Path) -> Mapping[str, Any]:
    group = zarr.open_group(str(path), mode="r")
    return {name: np.asarray(group[name][...]) for name in STACK}


STACKS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Mapping[str, Any]]]] = {
    "hdf5": (write_hdf5, read_hdf5),
    "npz": (write_npz, read_npz),
    "packed npz": (write_packed_npz, read_npz),
    "zarr": (write_zarr, read_zarr),
}


def write_tar(folder: Path) -> Path:
    with webdataset.TarWriter(str(folder / "train-000.tar")) as file:
        for n, name in enumerate(NAMES):
            redshift = None if n == 3 else float(REDSHIFT[n])
            file.write(
                {
                    "__key__": name,
                    "npy": IMAGES[n],
                    "flux.npy": FLUX[n],
                    "json": {"redshift": redshift, "more": {"not": "kept"}, "flag": n > 2},
                    "cls": int(ANS[n]),
                    "txt": f"note {n}",
                }
            )
    return folder / "train-000.tar"


def samples(data: Path) -> dict[str, dict[str, Any]]:
    found = msdata.open(data)
    return {
        s["sample_id"]: s
        for name in found.splits
        for s in (found.split(name)[i] for i in range(len(found.split(name))))
    }


@pytest.mark.parametrize("kind", STACKS)
def test_stacked_arrays_are_packed_pixel_for_pixel(kind: str, tmp_path: Path) -> None:
    write, read = STACKS[kind]
    path = write(tmp_path)
    report = pack_folder(path, tmp_path / "out", jobs=1)
    told = read(path)
    found = samples(tmp_path / "out")
    assert len(found) == COUNT
    assert any("'images' is stored channels last, (24, 20, 3)" in note for note in report.notes)
    for n in range(COUNT):
        sample = found[str(n) if kind == "zarr" else NAMES[n]]
        assert np.array_equal(sample["images"], np.moveaxis(told["images"][n], -1, 0))
        assert sample["flux"].shape == (1, 16, 16)
        assert sample["flux"].dtype == np.dtype("<f4")
        assert np.array_equal(sample["flux"][0], told["flux"][n])
        assert sample["ans"] == told["ans"][n]
        assert "weight" not in sample
        if n in (3, 5):
            assert sample["redshift"] is None or np.isnan(sample["redshift"])
        else:
            assert sample["redshift"] == told["redshift"][n]


# webdataset leaves its file open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_tar_of_webdatasets_writer_is_packed_as_webdataset_reads_it(tmp_path: Path) -> None:
    path = write_tar(tmp_path)
    pack_folder(path, tmp_path / "out", jobs=1)
    found = samples(tmp_path / "out")
    told = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert len(told) == len(found) == COUNT
    for n, sample in enumerate(told):
        packed = found[sample["__key__"]]
        assert np.array_equal(packed["image"], np.moveaxis(sample["npy"], -1, 0))
        assert np.array_equal(packed["flux"][0], sample["flux.npy"])
        assert (packed["cls"], packed["txt"]) == (sample["cls"], sample["txt"])
        assert packed["flag"] == (n > 2)
        if n not in (3, 5):
            assert packed["redshift"] == sample["json"]["redshift"]
    assert "more" not in found[NAMES[0]]


def test_images_are_packed_as_pillow_decodes_them(tmp_path: Path) -> None:
    made = {
        "elliptical/a.png": Image.fromarray(IMAGES[0]),
        "spiral/b.jpg": Image.fromarray(IMAGES[1]),
        "spiral/c.JPEG": Image.fromarray(np.tile(IMAGES[2, :1], (24, 1, 1))),
    }
    for name, image in made.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "in" / name)
    pack_folder(tmp_path / "in", tmp_path / "out", jobs=1)
    found = samples(tmp_path / "out")
    for name in made:
        told = np.asarray(Image.open(tmp_path / "in" / name))
        packed = found[Path(name).stem]
        assert packed["image"].dtype == np.uint8
        assert np.array_equal(packed["image"], np.moveaxis(told, -1, 0))
        assert packed["folder"] == name.split("/")[0]


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16"])
def test_gray_transparent_and_16_bit_images_keep_their_channels(mode: str, tmp_path: Path) -> None:
    pixels = {
        "L": IMAGES[0, :, :, 0],
        "RGBA": RNG.integers(0, 256, (24, 20, 4), np.uint8),
        "I;16": RNG.integers(0, 1 << 16, (24, 20), np.uint16),
    }[mode]
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    pack_folder(tmp_path / "in", tmp_path / "out", jobs=1)
    told = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    assert np.array_equal(samples(tmp_path / "out")["a"]["image"], told)


def make_images(folder: Path) -> Path:
    (folder / "images").mkdir()
    for n, name in enumerate(NAMES):
        Image.fromarray(IMAGES[n]).save(folder / "images" / f"{name}.png")
    return folder / "images"


@pytest.mark.parametrize("write", [write_hdf5, write_tar, make_images])
def test_any_number_of_processes_gives_the_same_bytes_and_repair_restores_them(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = write(tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    pack_folder(path, one, jobs=1, shard_nbytes=1 << 16)
    process = packing.run(packing.pack_command(path, two, "--jobs", "2", "--shard-size", "64KiB"))
    assert process.returncode == 0, process.stderr
    packing.assert_same(two, one)
    again = packing.run(packing.pack_command(path, two, "--shard-size", "64KiB", "--resume"))
    assert again.returncode == 0, again.stderr
    shards = sorted(two.rglob("*.tar"))
    shards[0].unlink()
    content = bytearray(shards[-1].read_bytes())
    content[700] ^= 8
    shards[-1].write_bytes(content)
    results = repair(verify_dataset(two))
    assert results
    assert all(r.is_repaired for r in results), results
    packing.assert_same(two, one)


def test_bands_units_and_zero_points_describe_an_array(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path)
    options = ("--arrays", "hsc=images", "--labels", "z=redshift,ans", "--bands", "hsc=g,r,i")
    more = ("--unit", "hsc=nanomaggy", "--zero-point", "hsc=22.5", "--pixel-scale", "hsc=0.168")
    process = packing.run(packing.pack_command(path, tmp_path / "out", *options, *more))
    assert process.returncode == 0, process.stderr
    data = msdata.open(tmp_path / "out")
    (survey,) = data.schema.arrays
    assert (survey.name, survey.shape, survey.bands) == ("hsc", (3, 24, 20), ("g", "r", "i"))
    assert (survey.unit, survey.zero_points_ab) == ("nanomaggy", (22.5,) * 3)
    assert survey.pixel_scale_arcsec == 0.168
    assert {"redshift", "ans", "object_id"} - set(data.columns) == {"object_id"}


def test_a_catalog_labels_the_samples_of_a_file(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path)
    rows = "\n".join(f"{name},{0.5 + n / 100}" for n, name in enumerate(NAMES))
    (tmp_path / "labels.csv").write_text(f"object_id,z\n{rows}\n")
    pack_folder(path, tmp_path / "out", catalog=tmp_path / "labels.csv", jobs=1)
    found = samples(tmp_path / "out")
    assert found[NAMES[4]]["redshift"] == 0.54
    assert found[NAMES[4]]["ans"] == 4


def test_galaxy10_and_the_multimodal_universe_are_recognized(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "Galaxy10_DECals.h5", "w") as file:
        file["images"] = np.zeros((4, 256, 256, 3), np.uint8)
        file["ans"], file["redshift"] = np.arange(4, dtype=np.uint8), np.full(4, 0.1)
    report = pack_folder(tmp_path / "Galaxy10_DECals.h5", tmp_path / "g", jobs=1)
    assert any("recognized Galaxy10 DECaLS" in note for note in report.notes)
    survey = report.manifest.schema["images"]
    assert (survey.shape, survey.pixel_scale_arcsec) == ((3, 256, 256), 0.262)
    folder = tmp_path / "mmu" / "healpix=12"
    folder.mkdir(parents=True)
    with h5py.File(folder / "001-of-001.hdf5", "w") as file:
        file["image_array"] = IMAGES[:, :16, :16].transpose(0, 3, 1, 2).astype(np.float32)
        for name in ("image_ivar", "image_mask"):
            file[name] = np.ones((COUNT, 3, 16, 16), np.float32)
        file["image_band"] = np.array([[b"hsc-g", b"hsc-r", b"hsc-i"]] * COUNT)
        file["image_scale"] = np.full((COUNT, 3), 0.168, np.float32)
        file["object_id"], file["ra"] = np.array(NAMES, "S8"), np.linspace(0, 9, COUNT)
    report = pack_folder(tmp_path / "mmu", tmp_path / "m", jobs=1)
    (survey,) = report.manifest.schema.arrays
    assert (survey.name, survey.bands) == ("image", ("hsc-g", "hsc-r", "hsc-i"))
    assert survey.pixel_scale_arcsec == pytest.approx(0.168)
    assert samples(tmp_path / "m")[NAMES[2]]["ra"] == np.linspace(0, 9, COUNT)[2]


@pytest.mark.parametrize(
    ("shape", "asked", "packed"),
    [
        ((64, 64, 3), {}, (3, 64, 64)),
        ((3, 64, 64), {}, (3, 64, 64)),
        ((64, 64), {}, (1, 64, 64)),
        ((28, 28, 1), {}, (1, 28, 28)),
        ((5, 5, 5), {"*": "HWC"}, (5, 5, 5)),
        ((8, 8, 6), {"x": "CHW"}, (8, 8, 6)),
        ((7,), {}, (7,)),
    ],
)
def test_bands_are_found_by_the_sides(
    shape: tuple[int, ...], asked: dict[str, str], packed: tuple[int, ...], tmp_path: Path
) -> None:
    values = RNG.normal(size=(3, *shape)).astype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = values
    options = ArrayOptions(kind="hdf5", layouts=asked)
    report = pack_folder(tmp_path / "x.h5", tmp_path / "out", jobs=1, arrays=options)
    assert report.manifest.schema["x"].shape == packed
    turned = (
        np.moveaxis(values[1], -1, 0) if asked.get("*") == "HWC" or shape[-1] < 5 else values[1]
    )
    assert np.array_equal(samples(tmp_path / "out")["0000001"]["x"].ravel(), turned.ravel())


def test_sides_that_do_not_say_where_the_bands_are_are_asked_about(tmp_path: Path) -> None:
    write_hdf5(tmp_path, cube=np.zeros((COUNT, 6, 6, 6)))
    with pytest.raises(UsageError, match=r"stack.h5.*cube.*\(6, 6, 6\).*--layout cube=HWC"):
        pack_folder(tmp_path / "stack.h5", tmp_path / "out", jobs=1)


def test_links_to_other_files_are_not_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["flux"] = FLUX
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["image"] = FLUX
        file["outside"] = h5py.ExternalLink("secret.h5", "/flux")
        layout = h5py.VirtualLayout((COUNT, 16, 16), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "flux", (COUNT, 16, 16))
        file.create_virtual_dataset("virtual", layout)
    report = pack_folder(tmp_path / "in.h5", tmp_path / "out", jobs=1)
    assert report.manifest.schema.names == ("image",)
    assert any("virtual is left out: its values lie in other files" in n for n in report.notes)


def test_pickled_members_are_never_loaded(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as file:
        file.write({"__key__": "a", "pyd": {"image": 1}})
    with pytest.raises(DataError, match=r"x\.tar has no \.npy, .*others: \.pyd.*never loaded"):
        pack_folder(tmp_path / "x.tar", tmp_path / "out", jobs=1)
    content = io.BytesIO()
    np.save(content, np.array({}, dtype=object), allow_pickle=True)
    with tarfile.open(tmp_path / "y.tar", "w") as tar:
        member = tarfile.TarInfo("a.npy")
        member.size = len(content.getvalue())
        tar.addfile(member, io.BytesIO(content.getvalue()))
    with pytest.raises(DataError, match=r"a\.npy: it holds object, not numbers"):
        pack_folder(tmp_path / "y.tar", tmp_path / "out", jobs=1)


@pytest.mark.parametrize(
    "header",
    ["(3, 8, [", "'''abc", "{[]: 1}", "-" * 9000 + "1", "\0", "(3,)", "{}"]
    + [
        f"{{'descr': {d}, 'fortran_order': False, 'shape': {s}}}"
        for d, s in (("'<f4'", "(-1, -4)"), ("[('a', 'x')]", "(3,)"))
    ],
)
def test_a_broken_header_of_an_array_is_refused(header: str) -> None:
    length = len(header).to_bytes(2, "little")
    content = b"\x93NUMPY\1\0" + length + header.encode() + bytes(16)
    with pytest.raises(SampleError, match=r"its \.npy header is broken"):
        decode_npy(content)


@pytest.mark.parametrize("write", [write_hdf5, write_npz, write_tar])
def test_a_truncated_file_is_refused_with_its_name(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=path.name):
        pack_folder(path, tmp_path / "out", jobs=1)


def test_a_truncated_or_huge_image_is_rejected(tmp_path: Path) -> None:
    folder = make_images(tmp_path)
    whole = (folder / "gal000.png").read_bytes()
    (folder / "gal001.png").write_bytes(whole[:-40])
    huge = (1 << 20).to_bytes(4, "big") * 2
    (folder / "gal002.png").write_bytes(whole[:16] + huge + whole[24:])
    report = pack_folder(folder, tmp_path / "out", jobs=1)
    assert report.num_rejected == 2
    told = (tmp_path / "out" / "rejected.csv").read_text()
    assert "neither a PNG nor a JPEG image, or is truncated" in told
    assert "1048576 x 1048576 pixels" in told


def test_files_that_differ_and_folders_of_several_kinds_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, side in (("a", 8), ("b", 9)):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["image"] = np.zeros((2, 3, side, side))
    with pytest.raises(DataError, match=r"b\.h5 holds image \(3, 9, 9\).*a\.h5 holds"):
        pack_folder(folder, tmp_path / "out", jobs=1)
    Image.fromarray(IMAGES[0]).save(folder / "preview.png")
    with pytest.raises(UsageError, match=r"HDF5 files and PNG and JPEG images; give a file"):
        find_kind(folder)
    (folder / "0000001.pkl").touch()
    assert find_kind(folder) is None
    (tmp_path / "x.tar.gz").touch()
    with pytest.raises(UsageError, match=r"x\.tar\.gz is a compressed tar"):
        find_kind(tmp_path / "x.tar.gz")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--arrays", "imagez"), "has no 'imagez' (--arrays); it has ans, flux, images"),
        (("--labels", "mass"), "has no 'mass' (--labels)"),
        (("--layout", "WHC"), "--layout must be HWC or CHW, got WHC"),
        (("--bands", "image=g"), "--bands must name one of flux, images, got image"),
        (("--bands", "images=g,r"), "one band per entry of its first axis, got 2 bands"),
        (("--zero-point", "images=x"), "--zero-point must be like images=27.0"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: tuple[str, str], says: str, tmp_path: Path
) -> None:
    path = write_hdf5(tmp_path)
    process = packing.run(packing.pack_command(path, tmp_path / "out", *options))
    packing.assert_sentence(process, code=2, says=[says])


def labels_alone(place: Path) -> Path:
    with h5py.File(place / "x.h5", "w") as file:
        file["z"] = REDSHIFT
    return place / "x.h5"


def texts(place: Path) -> Path:
    with h5py.File(place / "x.h5", "w") as file:
        file["names"] = np.array([[b"a", b"b"]] * 3)
    return place / "x.h5"


def pickled(place: Path) -> Path:
    np.savez(place / "x.npz", image=np.array([{}] * 3, object))
    return place / "x.npz"


def nothing(place: Path) -> Path:
    (place / "readme.txt").touch()
    return place


def no_group(place: Path) -> Path:
    (place / "x.zarr").mkdir()
    return place / "x.zarr"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (labels_alone, r"x\.h5: .* but z \(40,\); give the file with the images; .*--catalog"),
        (
            texts,
            r"x\.h5: it holds no images of numbers, but names \|S1; name an array with --arrays",
        ),
        (pickled, r"x\.npz: .*image is left out: it holds pickled objects; give the file"),
        (nothing, r"no object files .*, and no HDF5.*; it holds readme\.txt; give the folder"),
        (no_group, r"x\.zarr is not a Zarr group: it holds no zarr\.json; give a group"),
    ],
)
def test_sources_without_images_are_refused_with_what_was_found(
    make: Callable[[Path], Path], says: str, tmp_path: Path
) -> None:
    path = make(tmp_path)
    with pytest.raises(MsdataError, match=says):
        detect_source(path, None, default_arrays(path)).scan()


def test_what_is_for_files_of_arrays_is_refused_for_pickles(
    tiny_source: Path, tmp_path: Path
) -> None:
    process = packing.pack(tiny_source, tmp_path / "out", "--layout", "HWC")
    packing.assert_sentence(process, code=2, says=["--layout is for HDF5 files", "holds none"])


def test_the_settings_say_how_the_file_was_read(tmp_path: Path) -> None:
    pack_folder(write_hdf5(tmp_path), tmp_path / "out", jobs=1)
    said = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert said["provenance"]["settings"]["arrays"]["kind"] == "hdf5"
