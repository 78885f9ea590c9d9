"""Coded arrays: what quantization may change and what not, in C and NumPy alike; hostile bytes."""

from __future__ import annotations

import math
import mmap
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msdata.core.checksum import crc32c
from msdata.dataset import blosc_chunk
from msdata.dataset import coding as module
from msdata.dataset import quantize as reference
from msdata.dataset.coding import (
    ArrayCoding,
    Encoded,
    decode_codes,
    decode_into,
    encode,
    widened,
    wider,
)
from msdata.errors import DataError, UsageError

SPECIALS = reference.SPECIALS.view(np.float32)
SHAPES = ((5, 34, 34), (2, 32, 32), (3, 7, 9), (40, 41), (120,))


@pytest.fixture(params=["C", "NumPy"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations, each for encoding and decoding."""
    if request.param == "NumPy":
        monkeypatch.setattr(module, "_coding", None)
    elif module._coding is None:
        pytest.skip("msdata/core/coding.c was not compiled: no compiler or no Python.h")
    return str(request.param)


def sky(shape: tuple[int, ...], seed: int, sigma: float = 2.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(0.3, sigma, shape)).astype(np.float32)


def decoded(found: Encoded, coding: ArrayCoding, dtype: str = "") -> np.ndarray:
    out = np.full(coding.shape, 7, dtype or coding.dtype)
    decode_into(found.data, coding, found.steps, found.kind, out)
    return out


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def planes_of(coding: ArrayCoding, array: np.ndarray) -> np.ndarray:
    return array.reshape(coding.num_planes, -1)


# Pictures of noise with whatever else a float32 may be, band by band.
@st.composite
def pictures(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.sampled_from(SHAPES))
    array = sky(shape, draw(st.integers(0, 2**32)), draw(st.sampled_from([1e-30, 1e-3, 1.0, 1e6])))
    flat = array.reshape(-1)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    for value in draw(
        st.lists(
            st.one_of(
                st.sampled_from([*SPECIALS.tolist(), 0.0, -0.0, 3e38, -1e-45, 5e4]),
                st.floats(width=32),
            ),
            max_size=6,
        )
    ):
        flat[random.integers(0, len(flat), draw(st.sampled_from([1, 5, 300])))] = value
    for payload in draw(st.lists(st.sampled_from([0x7FC00001, 0xFFFFFFFE]), max_size=1)):
        flat.view(np.uint32)[random.integers(len(flat))] = payload
    if draw(st.booleans()):
        array[0] = draw(st.sampled_from([0.0, np.nan, 1.5]))
    return array


@settings(deadline=None, max_examples=150)
@given(pictures(), st.sampled_from([1.0, 4.0, 16.0]), st.sampled_from(module.COMPRESSORS))
def test_any_picture_comes_back_within_half_a_step_and_its_specials_bit_for_bit(
    array: np.ndarray, quantize: float, compress: str
) -> None:
    coding = ArrayCoding("a", array.shape, "<f4", quantize, compress)
    found = encode(array, coding)
    out = decoded(found, coding)
    for before, after, step in zip(
        planes_of(coding, array), planes_of(coding, out), found.steps, strict=True
    ):
        kept = ~np.isfinite(before) | (before == 0) | (step == 0)
        assert (bits(before)[kept] == bits(after)[kept]).all()
        assert (after[~kept] != 0).all()
        off = np.abs(before[~kept].astype(np.float64) - after[~kept])
        # Half a step, but for the roundings of float32 to the nearest value.
        assert (off <= step / 2 + 2.0**-23 * np.abs(before[~kept])).all()
    assert found.decoded_crc32c == crc32c(out)
    again = encode(out, coding, step=found.steps, crc=7)
    assert again.decoded_crc32c == crc32c(out, 7)
    assert bytes(again.data) == bytes(found.data)
    assert again.kind == found.kind
    assert (again.steps == found.steps).all()
    # A wider kind holds the same.
    wide = encode(array, coding, step=found.steps, kind="<i4")
    assert wide.kind == "<i4"
    assert (bits(decoded(wide, coding)) == bits(out)).all()
    # Codes, and the pixels made of them elsewhere.
    for dtype in ("<i2", "<i4") if found.kind == "<i2" else ("<i4",):
        codes = decoded(found, coding, dtype)
        assert (bits(decode_codes(codes[None], found.steps[None])[0]) == bits(out)).all()
    if found.kind == "<i2":
        assert (widened(decoded(found, coding, "<i2"), "<i4") == codes).all()


@settings(deadline=None, max_examples=150)
@given(pictures(), st.sampled_from([0.5, 4.0, 64.0]), st.booleans())
def test_c_and_numpy_give_the_same_bytes_and_pixels(
    array: np.ndarray, quantize: float, is_compressed: bool
) -> None:
    coding = ArrayCoding("a", array.shape, "<f4", quantize, "lz4" if is_compressed else "none")
    found = encode(array, coding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_coding", None)
        wanted = encode(array, coding)
        pixels = decoded(found, coding)
    assert (found.steps == wanted.steps).all()
    assert found.kind == wanted.kind
    assert bytes(found.data) == bytes(wanted.data)
    assert found.decoded_crc32c == wanted.decoded_crc32c == crc32c(pixels)
    assert (bits(decoded(found, coding)) == bits(pixels)).all()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["|b1", "|i1", "<u2", "<i4", "<i8", "<f2", "<f4", "<f8", "<c16"]),
    st.sampled_from([(3,), (), (31, 33), (5, 40, 40), (300_000,)]),
    st.sampled_from(["lz4", "zstd"]),
    st.integers(0, 2**32),
)
def test_any_dtype_is_compressed_without_loss(
    dtype: str, shape: tuple[int, ...], compress: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    high = 2 if dtype == "|b1" else int(random.choice([2, 20, 256]))
    raw = random.integers(0, high, math.prod(shape) * np.dtype(dtype).itemsize, dtype=np.uint8)
    array = raw.view(dtype).reshape(shape)
    coding = ArrayCoding("a", shape, dtype, None, compress)
    found = encode(array, coding)
    assert found.kind == dtype
    assert len(found.steps) == 0
    assert decoded(found, coding).tobytes() == array.tobytes()


def test_the_step_follows_the_noise_of_each_band_and_the_noise_added_is_that_of_the_step(
    by: str,
) -> None:
    sigmas = np.array([0.01, 1.0, 50.0])
    array = np.stack([sky((160, 160), i, s) for i, s in enumerate(sigmas)])
    coding = ArrayCoding("a", array.shape, "<f4", 4.0, "zstd")
    found = encode(array, coding)
    # Two thousand pixels measure a sigma to 3 %.
    assert found.steps == pytest.approx(sigmas / 4, rel=0.12)
    error = (decoded(found, coding) - array.astype(np.float64)).reshape(3, -1)
    assert (error**2).mean(1) == pytest.approx(found.steps.astype(float) ** 2 / 12, rel=0.02)
    standard_error = error.std(1) / math.sqrt(error.shape[1])
    assert (np.abs(error.mean(1)) < 4 * standard_error).all()


def test_sums_of_pixels_are_unbiased() -> None:
    coding = ArrayCoding("a", (40, 40), "<f4", 2.0, "none")
    offs = []
    for seed in range(300):
        array = sky((40, 40), seed) + np.float32(40 * np.exp(-seed / 50))
        out = decoded(encode(array, coding), coding)
        offs.append((out[10:20, 10:20].astype(float) - array[10:20, 10:20]).sum())
    assert abs(np.mean(offs)) < 3 * np.std(offs) / math.sqrt(len(offs))


def test_a_large_galaxy_does_not_coarsen_its_own_sky(by: str) -> None:
    y, x = np.mgrid[:170, :170] - 85.0
    galaxy = (20 * np.exp(-np.hypot(x, y) / 40)).astype(np.float32)
    coding = ArrayCoding("a", (170, 170), "<f4", 4.0, "none")
    noise = sky((170, 170), 3)
    with_galaxy, without = (encode(a, coding).steps[0] for a in (noise + galaxy, noise))
    assert np.std(noise + galaxy) > 1.8 * np.std(noise)
    assert with_galaxy < 1.5 * without


def test_what_has_no_noise_to_measure_keeps_its_values(by: str) -> None:
    random = np.random.default_rng(0)
    sparse = (random.random((32, 32)) < 0.1).astype(np.float32)
    counts = random.poisson(9.0, (32, 32)).astype(np.float32) * np.float32(0.0031)
    flat = np.full((32, 32), 2.5, np.float32)
    odd_nan = sky((32, 32), 1)
    odd_nan.view(np.uint32)[3, 3] = 0x7FC00001
    huge = sky((32, 32), 1)
    huge[5, 5] = 1e30
    for plane in (sparse, counts, flat, odd_nan, huge):
        for others, kind in (([], "<f4"), ([sky((32, 32), 2)], "<i4")):
            array = np.stack([plane, *others])
            coding = ArrayCoding("a", array.shape, "<f4", 4.0, "lz4")
            found = encode(array, coding)
            assert found.steps[0] == 0
            assert found.kind == kind
            assert (bits(decoded(found, coding))[0] == bits(plane)).all()
            assert found.decoded_crc32c == crc32c(decoded(found, coding))


def test_a_band_without_coverage_costs_no_wider_codes(by: str) -> None:
    array = np.stack([sky((32, 32), 2), np.zeros((32, 32), np.float32)])
    array[1, :4] = np.nan
    coding = ArrayCoding("a", array.shape, "<f4", 4.0, "lz4")
    assert encode(array, coding).kind == "<i2"
    assert encode(array[1:] * 1, ArrayCoding("a", (1, 32, 32), "<f4", 4.0)).steps == [1]
    bright = array.copy()
    bright[0, 0, 0] = 1e5
    found = encode(bright, coding)
    assert found.kind == "<i4"
    assert (bits(decoded(found, coding))[1] == bits(bright)[1]).all()


def test_kinds_are_joined_and_checked() -> None:
    assert [wider("<i2", k) for k in ("<i2", "<i4", "<f4")] == ["<i2", "<i4", "<i4"]
    coding = ArrayCoding("a", (2, 32, 32), "<f4", 4.0)
    bright = sky((2, 32, 32), 0)
    bright[0, 0, 0] = 1e5
    with pytest.raises(UsageError, match="kind '<i2' does not hold array 'a', which takes '<i4'"):
        encode(bright, coding, kind="<i2")
    with pytest.raises(DataError, match="cannot have kind '<i8'"):
        decode_into(b"", coding, np.ones(2, np.float32), "<i8", np.empty(coding.shape, "<f4"))
    with pytest.raises(DataError, match="must have 2 steps, got 1"):
        decode_into(b"", coding, np.ones(1, np.float32), "<i2", np.empty(coding.shape, "<f4"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"compress": "gzip"}, "compress must be one of none, lz4, zstd, got 'gzip'"),
        ({"quantize": 0.0}, "quantize must be from 0.01 to 10,000, got 0"),
        ({"quantize": math.nan}, "quantize must be from 0.01 to 10,000, got nan"),
        ({"quantize": 4.0, "dtype": "<f8"}, "its dtype must be <f4, got <f8"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ArrayCoding("a", (2, 3), **options)


def test_arrays_that_do_not_fit_are_refused() -> None:
    coding = ArrayCoding("a", (2, 3), "<f4", None, "lz4")
    with pytest.raises(UsageError, match=r"must have shape \(2, 3\) and dtype <f4, got \(3, 2\)"):
        encode(np.zeros((3, 2), np.float32), coding)
    data = encode(np.zeros((2, 3), np.float32), coding).data
    with pytest.raises(UsageError, match="cannot decode array 'a' of <f4 to <i2"):
        decode_into(data, coding, np.zeros(0, np.float32), "<f4", np.zeros((2, 3), "<i2"))
    with pytest.raises(UsageError, match="out must be C-contiguous and of shape"):
        decode_into(data, coding, np.zeros(0, np.float32), "<f4", np.zeros((3, 2), "<f4"))


def test_other_readers_of_blosc_decode_a_chunk() -> None:
    blosc2 = pytest.importorskip("blosc2")
    array = sky((5, 34, 34), 0)
    for compress in ("lz4", "zstd"):
        coding = ArrayCoding("a", array.shape, "<f4", 4.0, compress)
        found = encode(array, coding)
        words = np.frombuffer(blosc2.decompress2(found.data), "<u2")
        codes = reference.unzigzag(words).reshape(5, -1)
        pixels = reference.dequantize(codes, found.steps).reshape(array.shape)
        assert (bits(pixels) == bits(decoded(found, coding))).all()


def test_a_build_of_numcodecs_that_hides_its_functions_gives_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for compress in ("lz4", "zstd"):
        coding = ArrayCoding("a", (5, 170, 170), "<f4", 4.0, compress)
        found = encode(sky(coding.shape, 3), coding)
        pixels = decoded(found, coding)
        with monkeypatch.context() as patch:
            patch.setattr(blosc_chunk, "_address", lambda name: 0)
            assert encode(sky(coding.shape, 3), coding).data == found.data
            assert (bits(decoded(found, coding)) == bits(pixels)).all()


def test_all_of_an_array_is_shuffled_so_that_noise_is_six_times_smaller() -> None:
    for shape in ((5, 170, 170), (2, 32, 32), (7, 61, 61)):
        coding = ArrayCoding("a", shape, "<f4", 4.0, "zstd")
        ratio = 4 * math.prod(shape) / len(encode(sky(shape, 1), coding).data)
        assert ratio > 6, shape
    # Below 64 KiB, Blosc's LZ4 shuffles only what divides by eight.
    least = {(5, 170, 170): 6.4, (170, 170): 6.4, (2, 33, 35): 6.0, (25, 25): 5.4}
    for shape, ratio in least.items():
        coding = ArrayCoding("a", shape, "<f4", 4.0, "lz4")
        assert 4 * math.prod(shape) / len(encode(sky(shape, 1), coding).data) > ratio, shape


@pytest.mark.parametrize("values", [9, 625, 32_767])
def test_a_small_array_that_does_not_divide_by_eight_is_a_chunk_for_every_reader(
    values: int, by: str
) -> None:
    numcodecs = pytest.importorskip("numcodecs")
    codes = np.random.default_rng(values).integers(0, 9, values, dtype=np.uint16)
    coding = ArrayCoding("a", (values,), "<u2", None, "lz4")
    found = encode(codes, coding).data
    assert (np.frombuffer(numcodecs.Blosc().decode(found), "<u2") == codes).all()
    # The chunk that earlier versions made is read as well.
    for chunk in (found, blosc_chunk._chunk(codes, "lz4")):
        assert (decoded(Encoded(chunk, (), "<u2", 0), coding) == codes).all()


# ---- hostile bytes ----

PAGE = mmap.PAGESIZE


class Fenced:
    """Memory between canaries, whose end the decoder must not pass."""

    def __init__(self, nbytes: int) -> None:
        self._room = np.full(nbytes + 2 * PAGE, 0xA5, np.uint8)
        self.inside = self._room[PAGE : PAGE + nbytes]

    def is_whole(self) -> bool:
        return bool((self._room[:PAGE] == 0xA5).all() and (self._room[-PAGE:] == 0xA5).all())


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(["lz4", "zstd", "none"]),
    st.sampled_from([4.0, None]),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=8),
    st.lists(st.tuples(st.integers(0, 31), st.integers(0, 255)), max_size=3),
    st.one_of(st.none(), st.integers(0, 3000)),
    st.sampled_from(["<i2", "<i4", "<f4"]),
    st.lists(st.floats(width=32), min_size=3, max_size=3),
)
def test_altered_records_decode_or_are_refused_and_write_nothing_else(
    compress: str,
    quantize: float | None,
    flips: list[tuple[int, int]],
    heads: list[tuple[int, int]],
    length: int | None,
    kind: str,
    steps: list[float],
) -> None:
    array = sky((3, 20, 21), 4)
    coding = ArrayCoding("a", array.shape, "<f4", quantize, compress)
    found = encode(array, coding)
    data = np.frombuffer(found.data, np.uint8).copy()
    for place, value in flips + heads:
        data[place % len(data)] = value
    data = data[:length].copy()
    fence = Fenced(array.nbytes)
    out = fence.inside.view(np.float32).reshape(array.shape)
    with suppress(DataError):
        decode_into(data, coding, np.array(steps, np.float32), kind, out)
    assert fence.is_whole()


def test_lengths_of_a_header_are_those_of_the_record(by: str) -> None:
    array = sky((3, 20, 20), 4)
    coding = ArrayCoding("a", array.shape, "<f4", 4.0, "lz4")
    found = encode(array, coding)
    for place, value in ((4, 2401), (4, 2**31 - 1), (8, 0), (8, 2**31), (12, 15), (12, 2**32 - 1)):
        data = np.frombuffer(found.data, np.uint8).copy()
        data[place : place + 4].view("<u4")[:] = value
        with pytest.raises(DataError, match="'a' is corrupt: its Blosc header says"):
            decode_into(data, coding, found.steps, found.kind, np.empty(array.shape, "<f4"))
    for data, says in (
        (found.data[:15], "15 bytes are too few"),
        (b"\0" * 99, "not one of LZ4 or zstd"),
    ):
        with pytest.raises(DataError, match=says):
            decode_into(data, coding, found.steps, found.kind, np.empty(array.shape, "<f4"))
    plain = ArrayCoding("a", array.shape, "<f4", 4.0)
    with pytest.raises(DataError, match="9 bytes instead of 2400"):
        decode_into(b"123456789", plain, found.steps, "<i2", np.empty(array.shape, "<f4"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 1e-40, 3e38, 0.0])
def test_a_step_that_no_encoder_writes_is_refused(by: str, bad: float) -> None:
    array = sky((3, 20, 20), 4)
    coding = ArrayCoding("a", array.shape, "<f4", 4.0, "lz4")
    found = encode(array, coding)
    steps = found.steps.copy()
    steps[1] = bad
    with pytest.raises(DataError, match="is corrupt"):
        decode_into(found.data, coding, steps, "<i2", np.empty(array.shape, "<f4"))


def test_rows_are_decoded_up_to_the_first_that_is_not_sound(by: str) -> None:
    array = sky((2, 20, 20), 4)
    coding = ArrayCoding("a", array.shape, "<f4", 4.0, "lz4")
    found = encode(array, coding)
    sound = np.frombuffer(found.data, np.uint8)
    broken = sound.copy()
    broken[20:] ^= 0xFF
    out = np.zeros((5, *array.shape), np.float32)
    table = np.array(
        [
            (s.ctypes.data, len(s), o.ctypes.data, found.steps.ctypes.data, reference.SHORT)
            for s, o in zip([sound, sound, sound, broken, sound], out, strict=True)
        ],
        np.int64,
    )
    decoder = module.RecordDecoder([coding], ["<f4"])
    assert decoder.decode(table, 1, 5) == 3
    assert not out[[0, 4]].any()
    assert (out[1] == decoded(found, coding)).all()


SANITIZED = """
import sys, importlib.util
import pytest
spec = importlib.util.spec_from_file_location("msdata.core._coding", sys.argv[1])
import msdata.core
built = importlib.util.module_from_spec(spec)
spec.loader.exec_module(built)
sys.modules["msdata.core._coding"] = msdata.core._coding = built
from msdata.dataset import coding
assert coding._coding is built
import numpy as np
random = np.random.default_rng(0)
for round in range(400):
    shape = (int(random.integers(1, 4)), int(random.integers(4, 60)), int(random.integers(4, 60)))
    array = random.normal(0, 3, shape).astype(np.float32)
    raw = array.reshape(-1).view(np.uint32)
    raw[random.integers(0, raw.size, 20)] = random.integers(0, 2**32, 20, dtype=np.uint32)
    compress = coding.COMPRESSORS[round % 3]
    c = coding.ArrayCoding("a", shape, "<f4", float(random.choice([0.5, 4, 64])), compress)
    found = coding.encode(array, c)
    data = np.frombuffer(found.data, np.uint8).copy()
    if round % 2:
        data[random.integers(0, min(40, data.size), 3)] = random.integers(0, 256, 3)
        data = data[: random.integers(0, data.size + 1)].copy()
    for kind in ("<i2", "<i4", "<f4"):
        for dtype in ("<i2", "<i4", "<f4"):
            out = np.empty(shape, dtype)
            try:
                coding.decode_into(data, c, found.steps, kind, out)
            except coding.DataError:
                pass
print("clean")
"""


def test_the_c_module_is_clean_under_the_sanitizers(tmp_path) -> None:
    source = module.__file__.replace("dataset/coding.py", "core/coding.c")
    built = tmp_path / "_coding.so"
    compiler = ["gcc", "-O1", "-g", "-shared", "-fPIC", "-fsanitize=address,undefined"]
    options = ["-fno-sanitize-recover=all", f"-I{sysconfig.get_paths()['include']}"]
    names = ("libasan.so", "libubsan.so")
    gcc = shutil.which("gcc") or pytest.skip("no gcc")
    libraries = [
        subprocess.check_output([gcc, f"-print-file-name={name}"], text=True).strip()
        for name in names
    ]
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("gcc has no sanitizers")
    subprocess.run([*compiler, *options, source, "-o", str(built)], check=True)
    run = subprocess.run(
        [sys.executable, "-c", SANITIZED, str(built)],
        env={"LD_PRELOAD": ":".join(libraries), "ASAN_OPTIONS": "detect_leaks=0", "PATH": "/bin"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.stdout == "clean\n", run.stderr[-3000:]
