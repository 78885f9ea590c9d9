"""msdata sheet: stamps where they belong, in the colors that were promised."""

import csv
import json
import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest

import msdata
from msdata.augment import AugmentConfig, open_augmenter
from msdata.augment.augmenter import preview
from msdata.augment.geometry import survey_names
from msdata.cli import main
from msdata.core.stretch import stretch
from msdata.describe.sheet import (
    CELL_MAX,
    CELL_MIN,
    NAN_COLOR,
    draw_cell,
    draw_sheet,
    sheet_columns,
)
from msdata.errors import UsageError
from msdata.pack.run import pack
from msdata.pack.settings import PackSettings
from msdata.schema import MANTIS_SHRIMP, Schema, Survey


def blob(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).normal(size=(height, width))
    return (noise + 50 * np.exp(-((y - height / 2) ** 2 + (x - width / 2) ** 2) / 20)).astype("f4")


def generic(**shapes) -> Schema:
    return Schema(name="inferred", arrays=tuple(Survey(name=n, shape=s) for n, s in shapes.items()))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("sheet")
    (root / "objects").mkdir()
    with (root / "catalog.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "redshift"))
        for i in range(6):
            rows.writerow((f"g{i}", 0.1234 + i))
            panstarrs = np.stack([blob(170, 170)] * 5)
            galex = np.stack([blob(32, 32), np.zeros((32, 32), np.float32)])
            unwise = np.stack([blob(32, 32)] * 2)
            sample = {"panstarrs": panstarrs, "galex": galex, "unwise": unwise}
            (root / "objects" / f"g{i}.pkl").write_bytes(pickle.dumps(sample))
    pack(
        PackSettings(
            source=root / "objects",
            out=root / "data",
            catalog=root / "catalog.csv",
            split_fractions=(0.0, 0.0, 1.0),
        )
    )
    return root / "data"


def test_the_picture_is_a_png_of_all_objects_and_bands(data, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert main(["sheet", str(data), str(out), "--n", "4"]) == 0
    picture = cv2.imread(str(out))
    assert picture.shape[1] > 9 * 170
    assert 4 * 170 < picture.shape[0] < 4 * 230 + 200
    assert f"drew 4 objects into {out}" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]


def test_the_same_seed_draws_the_same_bytes_and_ids_choose(data, tmp_path):
    pictures = []
    for name, options in {
        "a": ["--n", "2", "--seed", "1"],
        "b": ["--n", "2", "--seed", "1"],
        "c": ["--ids", "g3,g0", "--columns", "galex_missing"],
        "d": ["--ids", "g3,g0", "--columns", "crc32c,missing_bands"],
    }.items():
        code = main(["sheet", str(data), str(tmp_path / f"{name}.png"), *options])
        assert code == (2 if name == "c" else 0)
        if code == 0:
            pictures.append((tmp_path / f"{name}.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["x.jpg"], "out must be a .png file, got x.jpg"),
        (["x.png", "--n", "0"], "--n must be 1 to 200, got 0"),
        (["x.png", "--ids", "g0,nobody"], "has no sample nobody"),
        (["x.png", "--split", "train"], "has no split 'train'"),
        (["x.png", "--draws", "2"], "--draws shows versions of augmentation; add --augment"),
        (["x.png", "--augment", "early", "--draws", "17"], "--draws must be 1 to 16"),
        (["x.png", "--augment", "earl"], "must be early, late or the folder of a run, got earl"),
    ],
)
def test_wrong_wishes_are_refused_by_a_sentence(data, options, message, capsys):
    assert main(["sheet", str(data), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_band_without_coverage_is_hatched_not_drawn():
    columns, _ = sheet_columns(MANTIS_SHRIMP)
    fuv = next(c for c in columns if c.label == "FUV")
    zeros = np.zeros((2, 32, 32), np.float32)
    hatched = draw_cell(fuv, {"galex": zeros, "missing_bands": "galex.NUV,galex.FUV"}, 170)
    drawn = draw_cell(fuv, {"galex": zeros, "missing_bands": ""}, 170)
    assert len(np.unique(hatched.reshape(-1, 3), axis=0)) > 10
    assert not np.array_equal(hatched, drawn)


def test_nan_pixels_have_their_color_and_small_stamps_whole_multiples():
    schema = generic(image=(32, 32))
    image = blob(32, 32)
    image[0, 0] = np.nan
    cell = draw_cell(sheet_columns(schema)[0][0], {"image": image}, 170)
    assert np.all(cell[5:10, 5:10] == NAN_COLOR)
    assert int((cell == NAN_COLOR).all(axis=2).sum()) == 25
    gray = cell[5:165, 5:165, 0].reshape(32, 5, 32, 5)
    assert np.array_equal(gray[1:].min(axis=(1, 3)), stretch(image)[1:])


def test_arrays_of_any_shape_are_drawn_or_named():
    schema = generic(
        curve=(50,), image=(40, 30), rgb=(20, 20, 3), cube=(2, 2, 2, 2), big=(1, 300, 400)
    )
    columns, notes = sheet_columns(schema)
    assert [(c.array.name, c.number) for c in columns] == [
        ("curve", None),
        ("image", None),
        *(("rgb", i) for i in range(3)),
        ("big", 0),
    ]
    assert notes == ["'cube' (2x2x2x2) is neither curve nor image and is not drawn"]
    sample = {a.name: np.random.default_rng(0).normal(size=a.shape) for a in schema.arrays}
    sample["curve"][3:9] = np.nan
    sheet = draw_sheet([sample], schema, captions=["ä 1"], title="all")
    assert sheet.shape[1] < 7 * (CELL_MAX + 40)
    with pytest.raises(UsageError, match="cannot draw a sheet: 'cube'"):
        draw_sheet([sample], generic(cube=(2, 2, 2, 2)), captions=[""], title="")


def test_the_stretch_keeps_the_order_of_pixels_and_shows_faint_and_bright():
    image = blob(64, 64)
    gray = stretch(image)
    order = np.argsort(image.ravel())
    assert np.all(np.diff(gray.ravel()[order].astype(int)) >= 0)
    assert gray.max() == 255
    assert np.median(gray) < 90
    assert np.all(stretch(np.full((4, 4), 7)) == 128)
    assert not stretch(np.full((4, 4), np.nan)).any()
    counts = np.zeros((32, 32))
    counts[::8, ::8] = 3
    assert np.median(stretch(counts)) == 0


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_augmented_objects_are_drawn_as_a_training_of_that_seed_sees_them(data, tmp_path, fusion):
    pictures = {}
    for name, options in {
        "plain": (),
        "drawn": ("--augment", fusion),
        "again": ("--augment", fusion),
        "other": ("--augment", fusion, "--seed", "1"),
    }.items():
        out = tmp_path / f"{name}.png"
        assert main(["sheet", str(data), str(out), "--ids", "g1,g4", *options]) == 0
        pictures[name] = out.read_bytes()
    assert pictures["drawn"] == pictures["again"]
    assert len(set(pictures.values())) == 3


def test_draws_are_rows_of_the_first_epochs_with_the_settings_and_seed_of_a_run(data, tmp_path):
    split = msdata.open(data).split("test")
    config = AugmentConfig(fusion="late", rotation="none", band_dropout=0.5, surveys=("unwise",))
    run = tmp_path / "run"
    run.mkdir()
    settings = {"config": {"augment": config.as_dict(), "seed": 7}}
    (run / "config.json").write_text(json.dumps(settings))
    sheets = {}
    for name, options in {
        "once": ("--augment", str(run)),
        "drawn": ("--augment", str(run), "--draws", "3"),
        "again": ("--augment", str(run), "--draws", "3"),
    }.items():
        out = tmp_path / f"{name}.png"
        assert main(["sheet", str(data), str(out), "--ids", "g1,g4", *options]) == 0
        sheets[name] = out.read_bytes()
    assert sheets["drawn"] == sheets["again"] != sheets["once"]
    pictures = {name: cv2.imread(str(tmp_path / f"{name}.png")) for name in sheets}
    row = CELL_MIN + 30
    assert pictures["drawn"].shape[0] - pictures["once"].shape[0] == 4 * row
    # Each stamp is what the augmenter of a training gives in that epoch.
    samples = split[1], split[4]
    batch = {"unwise": np.stack([s["unwise"] for s in samples]), "sample_id": ["g1", "g4"]}
    raw = replace(config, scaling="none")
    with open_augmenter(split.schema, raw, seed=7, batch_size=2) as augmenter:
        images = [augmenter.run(batch, epoch)["unwise"] for epoch in range(3)]
    schema = Schema(name="", arrays=(replace(MANTIS_SHRIMP["unwise"], shape=images[0].shape[1:]),))
    columns, _ = sheet_columns(schema)
    for number in range(6):
        sample = {"unwise": images[number % 3][number // 3]}
        top = 20 + 58 + number * row
        for k, column in enumerate(columns):
            left = 20 + k * (CELL_MIN + 4)
            stamp = pictures["drawn"][top : top + CELL_MIN, left : left + CELL_MIN]
            assert np.array_equal(stamp, draw_cell(column, sample, CELL_MIN)), (number, k)
    assert any(not image.any(axis=(2, 3)).all() for image in images), "a band was dropped"


def test_an_augmented_sample_is_what_the_augmenter_gives(data):
    split = msdata.open(data).split("test")
    samples = [split[i] for i in range(3)]
    turned, schema = preview(
        samples, split.schema, AugmentConfig(fusion="early"), seed=5, epochs=[2]
    )
    assert schema["unwise"].shape == (2, 120, 120)
    assert schema["unwise"].pixel_scale_arcsec == pytest.approx(0.25)
    batch = {name: np.stack([s[name] for s in samples]) for name in schema.names}
    batch["sample_id"] = [s["sample_id"] for s in samples]
    config = AugmentConfig(scaling="none")
    with open_augmenter(split.schema, config, seed=5, batch_size=3) as augmenter:
        image = augmenter.run(batch, 2)["image"]
    for i, sample in enumerate(turned):
        assert np.array_equal(np.concatenate([sample[n] for n in schema.names]), image[i])
        assert sample["redshift"] == samples[i]["redshift"]


def test_north_is_up_and_east_is_left_and_both_are_marked(data):
    column = sheet_columns(MANTIS_SHRIMP)[0][0]
    image = np.zeros((5, 170, 170), np.float32)
    # Rows run from south to north, columns from east to west: a source in the north-east.
    image[0, 150:160, 10:20] = 100
    gray = draw_cell(column, {"panstarrs": image}, 170)[..., 0]
    rows, places = np.nonzero(gray == gray.max())
    assert rows.max() < 20, "up"
    assert places.max() < 20, "left"
    sample = msdata.open(data).split("test")[0]
    sheets = [
        draw_sheet([sample], MANTIS_SHRIMP, captions=[""], title="", is_turned=is_turned)
        for is_turned in (False, True)
    ]
    marks = [(sheet == (120, 210, 250)).all(axis=2) for sheet in sheets]
    assert marks[0].sum() > 20 and not marks[1].any()
    # One mark for each of the three arrays, in the lower right corner of its first stamp.
    rows, places = np.nonzero(marks[0])
    assert rows.min() > 20 + 58 + 170 - 45
    assert 20 + 170 - 45 < places.min() < 20 + 170
    assert np.count_nonzero(np.diff(np.unique(places)) > 100) == 2


def test_images_whose_place_on_the_sky_is_unknown_keep_their_first_row_on_top():
    schema = generic(image=(2, 40, 40))
    image = np.zeros((2, 40, 40), np.float32)
    image[0, :5] = 9
    gray = draw_cell(sheet_columns(schema)[0][0], {"image": image}, 160)[..., 0]
    assert (gray[:20] == gray.max()).all() and (gray[20:] < gray.max()).all()


@pytest.mark.parametrize(
    ("shape", "is_last"),
    [
        ((64, 64, 3), True),
        ((256, 256, 3), True),
        ((170, 170, 5), True),
        ((64, 48, 4), True),
        ((120, 100, 12), True),
        ((32, 32, 1), True),
        ((3, 64, 64), False),
        ((64, 64, 64), False),
        ((5, 170, 170), False),
        ((100, 32, 30), False),
        ((1, 300, 400), False),
        ((4, 5, 3), False),
    ],
)
def test_the_sheet_shows_the_bands_that_a_training_takes(shape, is_last):
    schema = generic(image=shape)
    (column, *_), _ = sheet_columns(schema)
    assert column.is_last_axis == is_last == schema["image"].has_bands_last
    if is_last:
        with pytest.raises(UsageError, match=r"has its bands last, but networks take \(bands, h"):
            survey_names(schema, AugmentConfig())
    else:
        assert survey_names(schema, AugmentConfig()) == ("image",)


def test_arrays_with_their_bands_last_are_packed_with_a_note_and_not_inpainted(tmp_path, capsys):
    (tmp_path / "objects").mkdir()
    image = np.random.default_rng(0).normal(size=(16, 16, 3)).astype(np.float32)
    (tmp_path / "objects" / "a.pkl").write_bytes(pickle.dumps({"image": image}))
    command = ["pack", str(tmp_path / "objects"), str(tmp_path / "data"), "--quiet"]
    assert main([*command, "--inpaint", "image"]) == 2
    assert (
        "--inpaint image: the array must be float32 (bands, height, width)"
        in capsys.readouterr().err
    )
    assert main(command) == 0
    said = capsys.readouterr()
    assert "'image' (16x16x3) is stored unchanged, bands last" in said.out + said.err
    assert np.array_equal(msdata.open(tmp_path / "data")[0]["image"], image)
