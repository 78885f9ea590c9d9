"""A search of settings: drawn, shared among workers, taken over from killed ones, pruned, told."""

from __future__ import annotations

import csv
import dataclasses
import re
import shlex
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest
import torch
import training

import msdata
import mstrain
import mstrain.cli
from msdata.errors import DataError, StorageError, UsageError
from mstrain import REQUEUE_EXIT_CODE
from mstrain.config import LogConfig, TrainConfig
from mstrain.distributed import Ranks, Stopped, StopRequest
from mstrain.evaluation.metrics import densities as piecewise
from mstrain.models.heads import bin_edges, crps, density
from mstrain.network_config import ModelConfig
from mstrain.overrides import apply_overrides
from mstrain.recipes import RECIPES
from mstrain.training.metrics_log import Journal, read_journal
from mstrain.training.train_step import DivergedError
from mstrain.training.trainer import Watch
from mstrain.tune.results import draw_importances
from mstrain.tune.space import LOSS, parse_space
from mstrain.tune.study import Study, StudyConfig, read_study
from mstrain.tune.worker import (
    Train,
    Worker,
    reserved_samples,
    shared_arena,
    trial_training,
    with_shared_cache,
)

SEARCH = ("optim.learning_rate=log:1e-5..1e-1", "model.hidden=128..2048", "optim.name=nadam,adamw")
BEST_RATE, BEST_HIDDEN = 1e-3, 512


@pytest.fixture(autouse=True)
def lazy_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of a journal waits for the disk, which others use, too."""
    monkeypatch.setattr("os.fsync", lambda fd: None)


def study_at(folder: Path, search: tuple[str, ...] = SEARCH, **options: Any) -> Study:
    """A study without a data set."""
    base = apply_overrides(RECIPES["demo"](), options.pop("words", ["epochs=4"]))
    space = parse_space(search, base, [], LOSS)
    fixed = {"recipe": "demo", "words": ("epochs=4",), "data": "DATA", "fingerprint": "f"}
    found = {d.name: str(d) for d in space}
    config = StudyConfig(config=base, search=found, **{**fixed, "pruner": "none", **options})
    return Study(folder, config, space)


def loss_of(config: TrainConfig) -> float:
    """A quadratic with a known optimum."""
    rate = np.log10(config.optim.learning_rate / BEST_RATE)
    hidden = (config.model.hidden - BEST_HIDDEN) / BEST_HIDDEN
    return float(rate**2 + hidden**2 + 0.1 * (config.optim.name == "adamw"))


def pretend(folder: Path, config: TrainConfig, watch: Watch, loss: float | None = None) -> None:
    """Stands for a training: writes the journal of one, an epoch after the other."""
    final = loss_of(config) if loss is None else loss
    journal = Journal(folder, LogConfig(), is_writer=True, is_quiet=True)
    path = folder / "metrics.jsonl"
    first = len(path.read_text().splitlines()) if path.exists() else 0
    for epoch in range(first, config.epochs):
        value = final + 0.5 ** (epoch + 1)
        place = {"epoch": epoch, "num_epochs": config.epochs, "step": epoch + 1, "loss": value}
        rates = dict.fromkeys(("samples_per_s", "data_wait_fraction", "seconds"), 0.0)
        journal.write("epoch", {**place, **rates, "validation_loss": value, "is_best": True})
        watch.after_epoch()


def work(study: Study, num_trials: int, train: Train = pretend) -> list[str]:
    """Works on a study to its end; what was said."""
    said: list[str] = []
    base = study.config.config
    Worker(study=study, base=base, train=train, stop=StopRequest(), say=said.append).run(num_trials)
    return said


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("optim.learning_rate", "--search must be NAME=LOW..HIGH, .* got 'optim.learning_rate'"),
        ("optim.learnin_rate=1..2", "unknown setting 'optim.learnin_rate'; did you mean"),
        ("learning_rate=1e-3..1e-4", "optim.learning_rate must have its low end below the high"),
        ("learning_rate=log:0..1", "must have a low end > 0 for log:, got 'learning_rate=log:0"),
        ("learning_rate=1e-3", "must have a range or at least two values, got 'learning_rate"),
        ("learning_rate=log:1,2", "must be a range after log:, got"),
        ("learning_rate=0..1", "optim.learning_rate must be > 0, got 0"),
        ("learning_rate=low..high", "optim.learning_rate=low cannot be read as float"),
        ("model.hidden=1.5..3", "model.hidden=1.5 cannot be read as int"),
        ("batch_size=64,sixty", "batch_size=sixty cannot be read as int"),
        ("batch_size=64,64", "batch_size must have different values"),
        ("model.depth=10,11", "model.depth must be one of 10, 18, 34, 50, got 11"),
        ("optim.name=nadam..adamw", "optim.name must be a list such as A,B,C, got"),
        ("epochs=3..9", "cannot search epochs: it is what every trial may spend"),
        ("data.threads=1,2", "cannot search data.threads: it changes results by rounding at most"),
        ("data.fraction=0.1..1", "cannot search data.fraction: it decides which objects are tr"),
        ("model.z_max=1..2", "cannot search model.z_max: it decides which objects"),
        ("model.num_bins=50,80", "cannot search model.num_bins by the loss, .* --objective crps"),
        ("weight_decay=0..1", "optim.weight_decay is searched and given"),
    ],
)
def test_a_word_of_the_search_that_cannot_be_is_named(word: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_space([word], RECIPES["demo"](), ["optim.weight_decay=0.1"], LOSS)


def test_ranges_and_choices_are_read_by_the_type_of_their_setting() -> None:
    words = [
        "learning_rate=log:1e-5..3e-3",
        "batch_size=64,128",
        "hidden=1e2..200",
        "clip_norm=0..1",
    ]
    space = parse_space([*words, "model.ebv_column=none,ebv_csfd"], TrainConfig(), [], LOSS)
    texts = {d.name: str(d) for d in space}
    assert texts["optim.learning_rate"] == "log:1e-05..0.003"
    assert [d.is_integer for d in space] == [False, False, True, False, False]
    assert space[-1].choices == (None, "ebv_csfd")
    # As study.json has them, they mean the same.
    again = parse_space([f"{n}={t}" for n, t in texts.items()], TrainConfig(), [], LOSS)
    assert again == space


def test_the_optimum_of_a_quadratic_is_found_within_a_tenth_in_40_trials(tmp_path: Path) -> None:
    study = study_at(tmp_path / "study", words=["epochs=1"], seed=7)
    work(study, 40)
    trials = study.trials()
    assert [trial.state for trial in trials] == ["complete"] * 40
    best = min(trials, key=lambda trial: trial.value or np.inf).params
    assert best["optim.learning_rate"] == pytest.approx(BEST_RATE, rel=0.1)
    assert best["model.hidden"] == pytest.approx(BEST_HIDDEN, rel=0.1)
    assert best["optim.name"] == "nadam"
    shares = study.importances()
    assert sum(shares.values()) == pytest.approx(1)
    # Over its range each adds at most 9, 4 and 0.1.
    assert list(shares) == ["model.hidden", "optim.learning_rate", "optim.name"]
    picture = draw_importances(shares)
    assert picture is not None
    assert picture.alt.startswith(f"model.hidden {shares['model.hidden']:.0%}; optim.learning")


def test_hyperband_prunes_after_an_epoch_and_keeps_what_the_trial_has(tmp_path: Path) -> None:
    study = study_at(tmp_path / "study", pruner="hyperband", words=["epochs=9"])
    work(study, 12)
    ended = {trial.number: trial for trial in study.trials()}
    pruned = [trial for trial in ended.values() if trial.state == "pruned"]
    assert len(pruned) >= 3
    assert any(trial.state == "complete" for trial in ended.values())
    for trial in ended.values():
        # Whatever has spent all of its epochs is complete.
        assert (max(trial.reported) == 9) == (trial.state == "complete")
        assert (study.trial_folder(trial.number) / "metrics.jsonl").exists()


def test_two_workers_give_together_exactly_the_trials_asked_for(tmp_path: Path) -> None:
    trained: list[str] = []

    def noted(folder: Path, config: TrainConfig, watch: Watch) -> None:
        trained.append(folder.name)
        pretend(folder, config, watch)

    studies = [study_at(tmp_path / "study") for _ in range(2)]
    threads = [threading.Thread(target=work, args=(study, 9, noted)) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(trained) == [f"trial-{number:05d}" for number in range(9)]
    trials = studies[0].trials()
    assert [trial.state for trial in trials] == ["complete"] * 9
    # They draw by number, so not alike, and as one worker would.
    assert len({trial.params["optim.learning_rate"] for trial in trials}) == 9
    alone = study_at(tmp_path / "alone", sampler="random")
    work(alone, 3)
    pair = [study_at(tmp_path / "pair", sampler="random") for _ in range(2)]
    for number in range(3):
        work(pair[number % 2], number + 1)
    assert [t.params for t in pair[0].trials()] == [t.params for t in alone.trials()]


def test_a_trial_is_left_to_its_living_worker_and_taken_over_from_a_dead_one(
    tmp_path: Path,
) -> None:
    study, other = study_at(tmp_path / "study"), study_at(tmp_path / "study")
    claim = study.claim(2)
    assert claim is not None
    work(other, 2)
    assert [trial.state for trial in study.trials()] == ["running", "complete"]
    # As the kernel does it when a process is killed.
    claim.lock.close()
    assert work(other, 2)[0].startswith("trial 0 resumed: ")
    found = study.trials()
    assert [trial.state for trial in found] == ["complete"] * 2
    assert found[0].params == claim.settings


def test_a_trial_that_ends_while_another_worker_looks_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, other = study_at(tmp_path / "study"), study_at(tmp_path / "study")
    claim = study.claim(2)
    assert claim is not None
    take = other._lock

    def take_late(number: int) -> ExitStack | None:
        if number == claim.number:
            pretend(
                study.trial_folder(number), study.config.config, Watch(after_epoch=lambda: None)
            )
            study.complete(number)
            claim.lock.close()
        return take(number)

    monkeypatch.setattr(other, "_lock", take_late)
    found = other.claim(2)
    assert found is not None
    assert (found.number, found.is_resumed) == (1, False)
    found.lock.close()


def test_a_trial_that_kills_its_workers_fails_after_five(tmp_path: Path) -> None:
    study = study_at(tmp_path / "study")
    for _ in range(5):
        claim = study.claim(1)
        assert claim is not None
        claim.lock.close()
    assert study.claim(1) is None
    (trial,) = study.trials()
    assert trial.state == "failed"
    assert "5 workers ended without a word" in trial.note


def test_a_killed_worker_may_leave_half_a_line(tmp_path: Path) -> None:
    study = study_at(tmp_path / "study")
    work(study, 1)
    path = tmp_path / "study/journal.log"
    with path.open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    again = study_at(tmp_path / "study")
    work(again, 2)
    assert [trial.state for trial in study.trials()] == ["complete"] * 2
    path.write_bytes(b'{"op_code"\n' + path.read_bytes())
    with pytest.raises(DataError, match=r"journal.log is corrupt .* restore it from a copy"):
        study_at(tmp_path / "study")


def failing(error: Exception, *, only: tuple[int, ...] = ()) -> Train:
    def train(folder: Path, config: TrainConfig, watch: Watch) -> None:
        if not only or int(folder.name[-5:]) in only:
            raise error
        pretend(folder, config, watch)

    return train


def test_a_trial_that_fails_is_recorded_with_its_sentence_and_the_search_goes_on(
    tmp_path: Path,
) -> None:
    study = study_at(tmp_path / "study")
    diverged = DivergedError("the loss is nan at step 7")
    said = work(study, 4, failing(diverged, only=(0, 2)))
    states = [trial.state for trial in study.trials()]
    assert states == ["failed", "complete", "failed", "complete"]
    assert study.trials()[2].note == "the loss is nan at step 7"
    assert "trial 0 failed: the loss is nan at step 7" in said


def test_a_loss_that_is_no_number_fails_the_trial(tmp_path: Path) -> None:
    study = study_at(tmp_path / "study")

    def train(folder: Path, config: TrainConfig, watch: Watch) -> None:
        pretend(folder, config, watch, loss=float("nan"))

    with pytest.raises(DataError, match="all 3 trials have failed"):
        work(study, 9, train)
    assert study.trials()[0].note.startswith("the validation_loss after epoch 1 is not a finite")


@pytest.mark.parametrize("error", [RuntimeError("shapes 3 and 4 differ"), UsageError("no 17")])
def test_a_search_ends_where_all_trials_fail_in_the_same_way(
    tmp_path: Path, error: Exception
) -> None:
    study = study_at(tmp_path / "study")
    with pytest.raises(DataError, match=f"all 3 trials have failed in the same way: .*{error}"):
        work(study, 9, failing(error))
    assert len(study.trials()) == 3


@pytest.mark.parametrize("error", [StorageError("the disk is full"), Stopped()])
def test_a_trial_waits_for_the_next_worker_where_the_machine_ends_it(
    tmp_path: Path, error: Exception
) -> None:
    study = study_at(tmp_path / "study")
    for _ in range(4):
        with pytest.raises(type(error)):
            work(study, 2, failing(error))
        if isinstance(error, StorageError):
            break
    assert [trial.state for trial in study.trials()] == ["running"]
    assert work(study, 2)[0].startswith("trial 0 resumed")
    assert [trial.state for trial in study.trials()] == ["complete"] * 2


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"search": SEARCH[:2]}, "--search optim.name = nadam,adamw, now it is left out"),
        ({"search": ("hidden=9..10", *SEARCH[::2])}, "--search model.hidden = 128..2048, now"),
        ({"seed": 3}, "--seed = 0, now it is 3"),
        ({"pruner": "median"}, "--pruner = none, now it is median"),
        ({"fingerprint": "g"}, "the data set = f, now it is g"),
        ({"words": ["epochs=5"]}, "epochs = 4, now it is 5"),
    ],
)
def test_a_worker_that_would_search_something_else_is_refused_with_the_difference(
    tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    study_at(tmp_path / "study")
    # What changes results by rounding at most is each worker's own.
    study_at(tmp_path / "study", words=["epochs=4", "data.threads=3", "log.every_steps=7"])
    with pytest.raises(UsageError, match=f"{re.escape(says)}.*; give the former value, or"):
        study_at(tmp_path / "study", **changed)


def test_a_folder_of_something_else_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"is not empty and not a study: study.json not found"):
        study_at(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(
        UsageError, match=r"is not a study: study.json not found; give the --out of"
    ):
        read_study(tmp_path)


def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstrain.tune.study.take_lock", lambda *_, **__: True)
    with pytest.raises(UsageError, match=r"its file system has no file locks .*Lustre: -o flock"):
        study_at(tmp_path / "study")


def tune_words(data: Path, out: Path, *more: str) -> list[str]:
    """`tune` of two trials of five steps."""
    settings = {**training.SETTINGS, "epochs": "1", "checkpoint.every_steps": "1"}
    words = ["tune", "demo", str(data), "--out", str(out), "--trials", "2", "--pruner", "none"]
    words += [
        "--search",
        "learning_rate=log:1e-4..1e-2",
        "hidden=8,16",
        "--objective",
        "crps",
        "--seed",
        "1",
    ]
    return [*words, *more, *(f"{n}={v}" for n, v in settings.items() if n != "hidden")]


def test_a_search_stopped_and_killed_ends_as_if_nothing_had_happened(
    galaxies: Path,
    ranks: training.Ranks,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study, words = tmp_path / "study", tune_words(galaxies, tmp_path / "study")

    def has_steps(number: int, count: int) -> Callable[[], bool]:
        return lambda: len(training.losses(study / f"trial-{number:05d}")) >= count

    (rank,) = started = ranks.start(words)
    assert packing.wait_for(has_steps(0, 2), rank.process)
    rank.process.send_signal(signal.SIGTERM)
    codes, said = ranks.end(started)
    assert codes == [REQUEUE_EXIT_CODE], said
    assert "stopped as asked" in said

    (rank,) = started = ranks.start(words)
    assert packing.wait_for(has_steps(1, 3), rank.process)
    rank.process.kill()
    assert ranks.end(started)[0] == [None]

    assert mstrain.cli.main(words) == 0
    shown = capsys.readouterr()
    assert "trial 1 resumed: " in shown.err
    assert "2 trials: 2 complete" in shown.out
    table = list(csv.DictReader((study / "trials.csv").read_text().splitlines()))
    best = min(table, key=lambda row: float(row["crps"]))
    words = shlex.split((study / "best.txt").read_text())
    assert words[:4] == ["mstrain", "train", "demo", str(galaxies)]
    searched = ("optim.learning_rate", "model.hidden")
    assert words[-2:] == [f"{name}={best[name]}" for name in searched]
    # The killed one, trained without a search.
    settings = [*words[6:-2], *(f"{name}={table[1][name]}" for name in searched)]
    config = apply_overrides(RECIPES["demo"](), settings)
    undisturbed = mstrain.train(config, galaxies, tmp_path / "undisturbed", is_quiet=True).run
    run = study / "trial-00001"
    assert training.losses(run).tolist() == training.losses(undisturbed).tolist()
    assert [len(training.losses(path)) for path in sorted(study.glob("trial-*"))] == [5, 5]
    # The objective is that of the best weights, as the evaluation has it.
    found = mstrain.evaluate(run, galaxies, tmp_path / "out", split="val", has_report=False)
    assert float(table[1]["crps"]) == pytest.approx(found.summary.density["crps"].value, rel=1e-6)

    assert mstrain.cli.main(["tune", "--out", str(study), "--show"]) == 0
    printed = capsys.readouterr().out
    assert "The 2 best of 2 complete trials\ntrial  validation CRPS" in printed
    assert (study / "best.txt").read_text() in printed
    page = (study / "tune.html").read_text()
    assert page.count("<figure") == 2
    assert "Too few complete trials for importances" in page


def test_four_trials_of_two_workers_on_a_node_read_storage_once(
    galaxies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[msdata.Loader] = []

    class Counted(msdata.Loader):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(msdata, "Loader", Counted)
    data = msdata.open(galaxies)
    # Batch, order and draws differ from trial to trial; the cache's table does not.
    search, said = ("batch_size=6,12", "seed=1,2,3"), []
    settings = {**training.SETTINGS, "epochs": "1"}
    words = [f"{n}={v}" for n, v in settings.items() if n != "batch_size"]
    ranks = Ranks(topology=msdata.Topology(), device=torch.device("cpu"))
    everyone = threading.Barrier(2)

    def share() -> None:
        study, stop = study_at(tmp_path / "study", search, words=words), StopRequest()
        cached = with_shared_cache(study.config.config.data, (), study.config.token)
        base = dataclasses.replace(study.config.config, data=cached)
        reserved = reserved_samples(base, study.space, 2)
        assert reserved == 2 * 64
        train = trial_training(data, ranks, stop)
        worker = Worker(study=study, base=base, train=train, stop=stop, say=said.append)
        with shared_arena(
            [data.split("train"), data.split("val")], cached, reserved, stop, said.append
        ):
            everyone.wait(60)
            worker.run(4)
            everyone.wait(60)

    threads = [threading.Thread(target=share) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("complete" in line for line in said) == 4, said
    found = [loader.stats() for loader in made]
    # Two arenas for each worker; one loader for each split of a trial.
    assert len(found) == 2 * 2 + 4 * 2
    filled = sum(stats["cache"]["filler"]["bytes"] for stats in found)
    read = sum(stats["totals"]["storage"]["bytes"] for stats in found)
    nbytes = sum(int(data.split(name).record_nbytes.sum()) for name in ("train", "val"))
    assert (filled, read) == (nbytes, 0)
    assert sum(stats["totals"]["local"]["bytes"] for stats in found) == 4 * nbytes
    for run in (tmp_path / "study").glob("trial-*"):
        (epoch,) = [line for line in read_journal(run) if line["kind"] == "epoch"]
        assert (
            epoch["hits"]
            == epoch["forecast_hits"]
            == {**epoch["hits"], "local": len(data.split("train"))}
        )
    assert not list(Path("/dev/shm").glob(f"*tune-{read_study(tmp_path / 'study').token}*"))


def test_a_cache_is_shared_unless_the_caller_asks_for_another() -> None:
    given = apply_overrides(TrainConfig(), ["data.cache_gib=2", "data.cache_val=no"]).data
    found = with_shared_cache(given, ["data.cache_gib", "data.cache_val"], "ab")
    assert (found.cache_gib, found.cache_val) == (2, False)
    assert (found.cache_job, found.cache_warmup) == ("tune-ab", "blocking")
    assert with_shared_cache(TrainConfig().data, (), "ab").cache_gib is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--search", "hiden=1..2"], "unknown setting 'hiden'; did you mean hidden?"),
        (["--trials", "0"], "--trials must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be >= 0, got -1"),
        (["epochs=4"], "epochs is given twice"),
    ],
)
def test_a_wrong_option_leaves_nothing_behind(
    change: list[str],
    says: str,
    galaxies: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert mstrain.cli.main(tune_words(galaxies, tmp_path / "study", *change)) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_crps_in_training_is_that_of_the_evaluation() -> None:
    model = ModelConfig(num_bins=7, z_max=1.4)
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 3
    label = torch.linspace(0, 1.4, 50, dtype=torch.float64)
    densities = piecewise.make_densities(density(logits, model).numpy(), bin_edges(model).numpy())
    wanted = piecewise.crps(densities, label.numpy())
    np.testing.assert_allclose(crps(logits, label, model), wanted, rtol=1e-12)
