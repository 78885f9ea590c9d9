"""The race of loaders: every contestant's bytes are compared, and what is found is told truly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import msdata
from benchmarks.__main__ import main
from benchmarks.harness import Settings, interval_text, spread
from benchmarks.journal import Journal
from benchmarks.peers import PEERS
from benchmarks.peers.bare import RECORDS
from benchmarks.peers.child import Contestant, WrongBatchError, check_batch, write_decoded
from benchmarks.peers.protocol import Epochs, Peer, Reading
from benchmarks.peers.race import Contender, PeerProcess, make_race, quality_of
from benchmarks.questions.loaders import MEASUREMENTS, Effort, take_part
from benchmarks.questions.loaders_shown import leads_of, sentences_of
from benchmarks.told import ToldError, WrongDataError
from benchmarks.workloads import WORKLOADS, Source, Workload, mock_objects, write_source
from msdata.core.checksum import crc32c

NUM_SAMPLES = 24
TINY = Workload(
    name="tiny",
    arrays={"image": ((3, 8, 8), "<f4"), "spectrum": ((40,), "<f4")},
    num_samples=NUM_SAMPLES,
    num_quick=NUM_SAMPLES,
    batch_size=8,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("source") / "tiny"
    return write_source(folder, mock_objects(TINY, NUM_SAMPLES))


@pytest.fixture
def reading(source: Source) -> Reading:
    return Reading(arrays=source.arrays, num_samples=NUM_SAMPLES, batch_size=8, num_workers=2)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerProcess]:
    log = tmp_path_factory.mktemp("logs") / "bare.txt"
    with PeerProcess("bare_map", log, timeout_s=60) as process:
        yield process


def deliver(process: PeerProcess, data: Path, source: Source, reading: Reading) -> dict[str, Any]:
    fields = asdict(reading)
    try:
        process.command("open", data=str(data), truth=str(source.folder), reading=fields)
        return process.command("run", warm_ups=0, epochs=2, compute_rate=None, is_checked=True)
    finally:
        process.command("close")


def convert(process: PeerProcess, out: Path, source: Source, reading: Reading) -> None:
    objects = str(source.objects)
    process.command("convert", objects=objects, out=str(out), reading=asdict(reading))


def test_workloads_are_frozen(source: Source) -> None:
    assert {n: w.sample_nbytes for n, w in WORKLOADS.items()} == {
        "mantis": 594_384,
        "stamps": 64 * 64 * 3 * 4,
        "large": 4 << 20,
    }
    assert all(w.num_samples % w.batch_size == 0 for w in WORKLOADS.values())
    assert all(w.num_quick % w.batch_size == 0 for w in WORKLOADS.values())
    # Other bytes would make older results mean something else.
    assert source.checksums[:2].tolist() == [list(FROZEN[0]), list(FROZEN[1])]


FROZEN = ((1198197269, 2358068741), (52638081, 2308419964))


def test_a_contestant_delivers_each_sample_once_and_its_order_is_told(
    bare: PeerProcess, source: Source, reading: Reading, tmp_path: Path
) -> None:
    convert(bare, tmp_path / "out", source, reading)
    run = deliver(bare, tmp_path / "out", source, reading)
    assert [sorted(order) for order in run["orders"]] == [list(range(NUM_SAMPLES))] * 2
    assert run["orders"][0] != run["orders"][1]
    assert len(run["waits_s"]) == 6


@pytest.mark.parametrize("place", [0, 500, 928 * NUM_SAMPLES - 1])
def test_one_wrong_byte_anywhere_is_found(
    bare: PeerProcess, source: Source, reading: Reading, tmp_path: Path, place: int
) -> None:
    convert(bare, tmp_path / "out", source, reading)
    path = tmp_path / "out" / RECORDS
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(WrongDataError, match="bare_map: WrongBatchError"):
        deliver(bare, tmp_path / "out", source, reading)


def test_a_contestant_that_repeats_a_sample_or_leaves_one_out_is_found(
    source: Source, reading: Reading
) -> None:
    order = np.arange(NUM_SAMPLES).reshape(-1, 8)
    arrays = {name: np.zeros((8, *shape), dtype) for name, (shape, dtype) in source.arrays.items()}

    @contextmanager
    def open_faulty(data: Path, _: Reading) -> Iterator[Epochs]:
        order[0, 0] = int(data.name)
        yield lambda _number: ((ids, arrays) for ids in order[: 2 + (order[0, 0] == 1)])

    peer = Peer(
        title="t", packages=(), open=open_faulty, convert=None, shuffle="", resume="", advice=""
    )
    contestant = Contestant(peer)
    for data in ("1", "0"):  # sample 1 twice; the last batch left out
        contestant.open(data, str(source.folder), asdict(reading))
        contestant._edges = np.zeros_like(source.edges)
        with pytest.raises(WrongBatchError, match="not each of 24 once"):
            contestant.run(0, 1, None, False)


def test_a_batch_of_another_shape_type_or_layout_is_refused(source: Source) -> None:
    reading = Reading(arrays={"a": ((4, 2), "<f4")}, num_samples=4, batch_size=4, num_workers=1)
    ids, right = np.arange(4), np.zeros((4, 4, 2), np.float32)
    edges = np.zeros((4, 1, 8), np.uint8)
    check_batch((ids, {"a": right}), reading, edges)
    for wrong in (right[:3], right.astype(np.float64), right.transpose(0, 2, 1), right[:, ::-1]):
        with pytest.raises(WrongBatchError):
            check_batch((ids, {"a": wrong}), reading, edges)
    with pytest.raises(WrongBatchError, match="other values"):
        check_batch((ids, {"a": right + 1}), reading, edges)


def test_one_that_keeps_fewer_bytes_must_stay_within_the_error_of_its_coding(
    source: Source, reading: Reading, tmp_path: Path
) -> None:
    coded, reading = PEERS["ours_coded"], replace(reading, num_workers=1)
    assert coded.convert is not None
    assert coded.decoded is not None
    coded.convert(source.objects, tmp_path / "coded", reading)
    worst = write_decoded(coded, source.objects, tmp_path / "coded", reading)
    assert 0.5 < worst <= 1  # of half a step: some values lie near the end of their bin
    contestant = Contestant(coded)
    contestant.open(str(tmp_path / "coded"), str(source.folder), asdict(reading))
    # Compared with what the records decode to, which is not what the objects hold.
    assert not (contestant._checksums == source.checksums).all()
    assert contestant.run(0, 1, None, True)["num_samples"] == NUM_SAMPLES
    contestant.close()
    samples = list(coded.decoded(tmp_path / "coded", reading))

    def tighter(_data: Path, _reading: Reading) -> Iterator[Any]:
        return ((a, {n: bound / 2 for n, bound in bounds.items()}) for a, bounds in samples)

    with pytest.raises(WrongBatchError, match="of the allowed error off"):
        write_decoded(replace(coded, decoded=tighter), source.objects, tmp_path, reading)
    few = replace(coded, decoded=lambda *_: iter(samples[:-1]))
    with pytest.raises(WrongBatchError, match="23 samples of 24 were kept"):
        write_decoded(few, source.objects, tmp_path, reading)


def test_a_contestant_that_fails_or_dies_says_why(
    bare: PeerProcess, source: Source, reading: Reading, tmp_path: Path
) -> None:
    with pytest.raises(ToldError, match=r"bare_map: FileNotFoundError: .*absent"):
        deliver(bare, tmp_path / "absent", source, reading)
    with PeerProcess("bare_map", tmp_path / "log.txt") as process:
        process.process.kill()
        with pytest.raises(ToldError, match=r"its process ended, .*log\.txt"):
            process.command("close")


@pytest.mark.parametrize("name", PEERS)
def test_every_contestant_is_listed_without_its_package_and_says_what_it_promises(
    name: str,
) -> None:
    peer = PEERS[name]
    assert peer.resume.partition(":")[0] in ("exact", "approximate", "none")
    assert all((peer.title, peer.shuffle, peer.advice))


def test_one_yardstick_tells_uniform_shuffles_from_buffers_and_from_none() -> None:
    random = np.random.default_rng(0)
    uniform = quality_of([random.permutation(960).tolist() for _ in range(3)], 32)
    assert abs(uniform["displacement"] - 1) < 0.1
    assert abs(uniform["repeated_pairs"] - 1) < 0.1
    none = quality_of([list(range(960))] * 3, 32)
    assert none["displacement"] == 0
    assert none["repeated_pairs"] > 10


def test_a_race_is_written_shown_and_true_to_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("ours_tar", "bare_map", "h5py_straight", "mosaic_streaming")
    out = tmp_path / "out"
    words = ["loaders", "--workload", "stamps", "--mock", "512", "--quick", "--minutes", "0.1"]
    assert main([*words, "--out", str(out), "--peers", ",".join(names)]) == 0
    assert "forecast: about 1 min" in capsys.readouterr().out
    result = json.loads((out / "loaders_stamps.json").read_text())
    assert {"ours_tar", "bare_map", "h5py_straight"} <= result["contestants"].keys()
    for name in ("ours_tar", "bare_map", "h5py_straight"):
        contestant = result["contestants"][name]
        assert contestant["peak_memory_with_files"] > contestant["peak_memory"] > 1 << 20
        assert contestant["cached_share"] <= 0.01
        assert contestant["bytes_on_disk"] >= 512 * result["sample_nbytes"]
        assert 0 < result["utilization"]["2000"][name]["median"] <= 1
        assert result["hot"]["contestants"][name]["samples_per_s"]["least"] > 0
    assert result["hot"]["contestants"]["bare_map"]["of_limit"]["median"] == 1
    assert any("of the limit" in name for name in result["ratios"])
    assert not list((out / "work" / "converted").iterdir())
    # Single runs lie apart: they do not go into git.
    assert "rates" not in result
    assert len(json.loads((out / "raw" / "loaders_stamps.json").read_text())["rates"]["hot"]) == 3
    history = (out / "history.csv").read_text().splitlines()
    assert len(history) == 1 + len(result["ratios"])
    assert history[0].startswith("finished,commit,benchmark")
    assert main(["report", str(out)]) == 0
    assert main(["compare", *[str(out / "loaders_stamps.json")] * 2]) == 0
    shown = (out / "report.md").read_text()
    assert "msdata, tar, shuffle" in shown
    best = result["hot"]["contestants"]["ours_tar"]["of_limit"]
    (row,) = (line for line in shown.splitlines() if f"| {result['commit']} |" in line)
    assert f"| stamps | True | {interval_text(best)} |" in row
    assert row.count("|") == 9


def memory_of(peak: int, *, reads_ahead: bool = True) -> dict[str, Any]:
    return {"peak_memory": peak, "peak_memory_with_files": peak + 50, "reads_ahead": reads_ahead}


def result_of(ours: float, peer: float) -> dict[str, Any]:
    """A result with two contestants and their hot rates."""
    uniform = {"displacement": 1.0, "repeated_pairs": 1.0}
    base = {"is_limit": False, "is_lossy": False, "convert_per_s": None, "quality": uniform}
    rates = {"o": [ours], "p": [peer], "s": [1.0]}
    return {
        "contestants": {
            "o": {**base, "title": "Ours", "is_ours": True, **memory_of(100)},
            "p": {**base, "title": "Peer", "is_ours": False, **memory_of(200)},
            "s": {**base, "title": "Small", "is_ours": False, **memory_of(50, reads_ahead=False)},
        },
        "hot": {
            "contestants": {
                n: {"samples_per_s": spread(v), "of_limit": spread([v[0] / 100])}
                for n, v in rates.items()
            }
        },
        "cold": {},
        "utilization": {},
        "missing": {"q": "q: no module"},
        "wrong": {},
        "lost": {},
        "is_resumed": False,
        "files_nbytes": 800,
        "memory_nbytes": 1000,
        "num_samples": 10,
        "sample_nbytes": 100,
    }


def test_the_report_says_in_words_where_ours_is_not_ahead() -> None:
    ahead, behind = sentences_of(result_of(95, 50)), sentences_of(result_of(40, 50))
    assert "hot: Ours is ahead of" in ahead[0]
    assert "hot: Ours is NOT AHEAD of" in behind[0]
    memory = [s for s in ahead if s.startswith("peak memory")]
    assert "Ours is NOT AHEAD of the best of the peers that shuffle uniformly (Small)" in memory[0]
    assert "Ours is ahead of the best of the peers that read ahead" in memory[1]
    assert leads_of(result_of(95, 50)) == {"p": [], "s": ["peak memory"]}
    assert leads_of(result_of(40, 50)) == {"p": ["hot"], "s": ["peak memory"]}
    assert any("0.95 of the limit; the goal of 0.9 is reached" in s for s in ahead)
    assert any("0.40 of the limit; the goal of 0.9 is NOT reached" in s for s in behind)
    assert "Not raced: q: no module." in behind
    late = sentences_of({**result_of(95, 50), "files_nbytes": 801, "is_resumed": True})
    assert [s.split(":")[0] for s in late if s not in ahead] == [
        "Resumed after an interruption",
        "Hot figures may read the disk",
    ]


def test_coded_records_are_told_beside_ours_and_lead_nothing() -> None:
    result = result_of(95, 50)
    coded = {**result["contestants"]["o"], "title": "Coded", "is_lossy": True}
    result["contestants"]["c"] = {**coded, "bytes_on_disk": 150, "error_of_bound": 0.98}
    found = {"samples_per_s": spread([900.0]), "of_limit": spread([9.0])}
    result["hot"]["contestants"]["c"] = found
    sentences = sentences_of(result)
    assert not any(s.startswith("hot: Coded") for s in sentences)
    told = [s for s in sentences if s.startswith("Coded keeps 0.15 of the bytes")]
    assert "largest error 0.98 of what its coding allows" in told[0]
    assert "hot 9.47, peak memory 1.00" in told[0]
    assert "hot: 0.95 of the limit; the goal of 0.9 is reached." in sentences
    assert "c" not in leads_of(result)


def test_a_race_runs_on_whole_batches_of_the_users_own_data(
    packed: Callable[..., Path], tiny_source: Path, tmp_path: Path
) -> None:
    data = packed(tiny_source, "--split", "1,0,0")
    race = make_race(Settings(data=data, out=tmp_path, quick=True))
    assert race.reading.num_samples == 256
    assert len(race.source.checksums) == 256
    split = msdata.open(data).split("train")
    names = split.schema.names
    assert race.source.checksums[9].tolist() == [crc32c(split[9][name]) for name in names]


def test_an_epoch_of_milliseconds_is_repeated_until_it_was_timed_for_long_enough(
    bare: PeerProcess, source: Source, reading: Reading, tmp_path: Path
) -> None:
    convert(bare, tmp_path / "out", source, reading)
    told = {"data": str(tmp_path / "out"), "truth": str(source.folder), "reading": asdict(reading)}
    bare.command("open", **told)
    run = bare.command(
        "run", warm_ups=1, epochs=2, compute_rate=10_000, is_checked=True, least_s=0.2
    )
    bare.command("close")
    assert run["num_epochs"] > 2
    assert run["num_samples"] == run["num_epochs"] * NUM_SAMPLES
    assert run["seconds"] >= 0.2
    assert run["compute_s"] < run["seconds"]
    # Epochs that follow each other without a break are each an epoch, and all shuffled afresh.
    assert len({tuple(order) for order in run["orders"]}) == run["num_epochs"]


class PlayedTurns:
    """Contestants that take a second of a clock that only they move, and may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails_after: int = 99) -> None:
        self.now_s, self.runs, self.fails_after = 0.0, 0, fails_after
        monkeypatch.setattr("benchmarks.journal.time.perf_counter", lambda: self.now_s)

    def run(self, contender: Contender, **_how: Any) -> dict[str, Any]:
        self.runs += 1
        self.now_s += 1.0
        if contender.name == "b" and self.runs > self.fails_after:
            raise ToldError("b: it ended")
        return {"num_samples": self.runs, "seconds": 2.0}

    def take(self, journal: Journal, minutes: float, turns: int = 50) -> dict[str, Any]:
        race: Any = self
        process: Any = None
        contenders = [Contender(n, PEERS["bare_map"], process, Path(n)) for n in "ab"]
        effort = Effort(turns={"hot": turns}, least_s=0.1, minutes=minutes)
        return take_part(race, contenders, MEASUREMENTS[0], effort, journal)


def test_no_turn_starts_that_would_go_past_the_minutes_and_all_have_as_many(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number, (minutes, turns) in enumerate([(1, 10), (0.01, 2), (99, 50)]):
        found = PlayedTurns(monkeypatch).take(Journal(tmp_path / f"{number}", {}), minutes)
        # 0.35 of the minute is for hot turns, two seconds each.
        assert len(found["a"]) == len(found["b"]) == turns
        assert all(run["value"] > 0 for run in found["a"])


def test_an_interrupted_race_keeps_whole_turns_and_takes_none_of_them_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "race.jsonl"
    whole = PlayedTurns(monkeypatch).take(Journal(path, {"samples": 8}), 99, turns=3)
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + 3 * 2 + 1
    # Killed in the middle of writing the second contestant of the second turn.
    path.write_text("\n".join(lines[:4]) + "\n" + lines[4][:9])
    journal = Journal(path, {"samples": 8})
    assert journal.was_found
    assert journal.spent_s == 3
    played = PlayedTurns(monkeypatch)
    resumed = played.take(journal, 99, turns=3)
    assert played.runs == 4
    assert resumed["a"][0] == whole["a"][0]
    assert [len(runs) for runs in resumed.values()] == [3, 3]
    again = PlayedTurns(monkeypatch)
    assert again.take(Journal(path, {"samples": 8}), 99, turns=3) == resumed
    assert again.runs == 0
    # Findings about other settings are not taken up.
    other = Journal(path, {"samples": 9})
    assert (other.was_found, other.was_other, other.spent_s) == (False, True, 0)


def test_one_that_has_all_in_memory_before_its_first_epoch_has_no_cold_figure() -> None:
    nothing: Any = None
    store = Contender("store", replace(PEERS["bare_map"], holds_all=True), nothing, Path("store"))
    cold = next(m for m in MEASUREMENTS if m.kind == "cold")
    assert "read all before its first epoch" in cold.once(nothing, store, 0.1)["lost"]


def test_one_that_fails_is_out_of_a_measurement_with_its_reason_and_does_not_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    played = PlayedTurns(monkeypatch, fails_after=2)
    found = played.take(Journal(tmp_path / "race.jsonl", {}), 99, turns=4)
    assert found["b"][1:] == [{"lost": "b: it ended"}] * 3
    assert len(found["a"]) == 4
    assert played.runs == 4 + 2


def test_a_race_that_the_disk_cannot_hold_is_refused_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["loaders", "--mock", "1000000000", "--out", str(out)]) == 2
    found = capsys.readouterr().err
    assert f"{out} has" in found
    assert "or fewer samples with --mock N" in found
    assert not out.exists()


def test_too_few_samples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loaders", "--mock", "3", "--out", str(tmp_path)]) == 2
    assert "3 samples are too few to race on" in capsys.readouterr().err
