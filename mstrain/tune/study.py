"""A study's folder: what its trials share, who works on which trial, and how each ends.

STUDY/study.json    what every worker must agree on
STUDY/journal.log   trials, see `mstrain.tune.journal`
STUDY/trial-00012   an ordinary run, locked while a worker trains it
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from msdata.core.checked_json import read_json
from msdata.core.files import locked, open_known, take_lock, write_whole
from msdata.core.output_file import make_folder
from msdata.core.terminal import shown_line
from msdata.errors import DataError, UsageError
from mstrain.checks import check_choice, check_range
from mstrain.config import TrainConfig
from mstrain.overrides import changed_settings
from mstrain.training.checkpoint import RunLockedError, locked_run
from mstrain.training.metrics_log import read_journal
from mstrain.tune.journal import (
    COMPLETE,
    FAILED,
    PRUNED,
    PRUNERS,
    RUNNING,
    SAMPLERS,
    Trial,
    TrialJournal,
)
from mstrain.tune.space import LOSS, OBJECTIVES, Dimension

_FILE = "study.json"
_LOCK = ".lock"
# Of a trial that kills its workers, by taking more memory than there is.
_MOST_STARTS = 5
# Failures that are alike among the first trials are of the study, not of a trial.
_SAME_FAILURES = 3
_NUMBER = re.compile(r"-?\d[\d.,e+-]*")
_METRICS = {LOSS: "validation_loss"}


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What all workers of a study agree on.

    Attributes:
        recipe: name of the recipe.
        words: the caller's own settings, `key=value`.
        config: settings of all trials.
        search: what is searched, by full name.
        data: the data set's folder.
        fingerprint: of the data set.
        objective: "loss" (cross-entropy of split "val") or "crps", of the best weights.
        sampler: how settings are drawn: "tpe" or "random".
        pruner: what ends trials early: "hyperband", "median" or "none".
        seed: of the draws.
        token: names the study's cache on every node.
    """

    recipe: str
    words: tuple[str, ...]
    config: TrainConfig
    search: Mapping[str, str]
    data: str
    fingerprint: str
    objective: str = LOSS
    sampler: str = "tpe"
    pruner: str = "hyperband"
    seed: int = 0
    token: str = field(default_factory=lambda: secrets.token_hex(4))

    def __post_init__(self) -> None:
        check_choice("--objective", self.objective, OBJECTIVES)
        check_choice("--sampler", self.sampler, SAMPLERS)
        check_choice("--pruner", self.pruner, PRUNERS)
        check_range("--seed", self.seed, 0)

    def check_same(self, now: StudyConfig, folder: Path) -> None:
        """Raises UsageError where a worker would search something else."""
        pairs: list[tuple[str, Any, Any]] = []
        for name in {**self.search, **now.search}:
            before, value = (found.search.get(name, "left out") for found in (self, now))
            pairs.append((f"--search {name}", before, value))
        pairs.append(("the data set", self.fingerprint, now.fingerprint))
        options = ("objective", "sampler", "pruner", "seed")
        pairs += [(f"--{name}", getattr(self, name), getattr(now, name)) for name in options]
        pairs += changed_settings(self.config, now.config)
        for name, before, value in pairs:
            if before != value:
                raise UsageError(
                    f"{folder} is a study with {name} = {before}, now it is {value}: its trials "
                    "could not be compared; give the former value, or another --out"
                )


def read_study(folder: Path) -> StudyConfig:
    """Reads `STUDY/study.json`.

    Raises:
        UsageError: the folder is not a study.
        DataError: the file is damaged.
        StorageError: the file system refused.
    """
    cure = "restore it from a copy, or start a new study"
    try:
        return read_json(folder / _FILE, cure=cure, has_paths=True).read_as(StudyConfig)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{folder} is not a study: {_FILE} not found; give the --out of 'mstrain tune'"
        ) from None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A trial that this worker trains, and no other while `lock` is open.

    Attributes:
        number: the trial's number.
        settings: its searched settings.
        is_resumed: another worker had begun it.
        lock: of its folder.
    """

    number: int
    settings: dict[str, Any]
    is_resumed: bool
    lock: ExitStack


class Study:
    """A study that workers share; see the module's docstring.

    Args:
        folder: the study's; made if it does not exist.
        config: what this worker takes it for.
        space: what is searched.

    Attributes:
        folder: the folder.
        config: as the study's first worker wrote it.
        space: what is searched.

    Raises:
        UsageError: the folder is another study, or something else, or lacks file locks.
        DataError: the study is damaged.
        StorageError: the file system refused.
    """

    def __init__(self, folder: Path, config: StudyConfig, space: tuple[Dimension, ...]) -> None:
        self.folder, self.space = folder, space
        make_folder(folder)
        self._check_folder()
        with locked(self.folder / _LOCK, waits=True):
            self._check_locks()
            if not (folder / _FILE).exists():
                self._make(config)
            self.config = read_study(folder)
            self.config.check_same(config, folder)
            options = {name: getattr(self.config, name) for name in ("sampler", "pruner", "seed")}
            self._journal = TrialJournal(folder, space, epochs=self.config.config.epochs, **options)

    def _check_folder(self) -> None:
        """Raises UsageError where the folder is something else's; leaves nothing there."""
        found = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        if found - {"logs"} and not (self.folder / _FILE).exists():
            raise UsageError(
                f"{self.folder} is not empty and not a study: {_FILE} not found; give another --out"
            )

    def _make(self, config: StudyConfig) -> None:
        self._check_folder()
        content = {**asdict(config), "config": config.config.as_dict()}
        write_whole(self.folder / _FILE, json.dumps(content, indent=1).encode() + b"\n")

    def _check_locks(self) -> None:
        """Raises UsageError where the file system locks nothing, as this process holds the lock."""
        fd = open_known(self.folder / _LOCK)
        try:
            if take_lock(fd):
                raise UsageError(
                    f"cannot share {self.folder} among workers: its file system has no file locks "
                    "(flock); mount it with them (Lustre: -o flock), or give an --out elsewhere"
                )
        finally:
            os.close(fd)

    def trial_folder(self, number: int) -> Path:
        """Where a trial's run is."""
        return self.folder / f"trial-{number:05d}"

    def trials(self) -> list[Trial]:
        """All trials, by number."""
        return self._journal.trials()

    def importances(self) -> dict[str, float]:
        """See `TrialJournal.importances`."""
        return self._journal.importances()

    def has_work(self, num_trials: int) -> bool:
        """Whether trials are left to begin or run; another worker may have those that run."""
        trials = self.trials()
        return len(trials) < num_trials or any(trial.state == RUNNING for trial in trials)

    def claim(self, num_trials: int) -> Claim | None:
        """Takes a trial whose worker is gone, or begins one; None where there is nothing to do.

        Failed ones count among the study's `num_trials`.
        """
        with locked(self.folder / _LOCK, waits=True):
            trials = self.trials()
            for trial in trials:
                if trial.state != RUNNING or (lock := self._lock(trial.number)) is None:
                    continue
                # Its worker may have ended it meanwhile.
                is_left = self.trials()[trial.number].state == RUNNING
                if is_left and trial.starts < _MOST_STARTS:
                    self._journal.note_starts(trial.number, trial.starts + 1)
                    return self._claimed(trial.number, lock, is_resumed=True)
                lock.close()
                if is_left:
                    note = (
                        f"{trial.starts} workers ended without a word before an epoch of it was "
                        "over; did they run out of memory?"
                    )
                    self._journal.finish(trial.number, FAILED, note=note)
            if len(trials) >= num_trials:
                return None
            number = self._journal.ask()
            new = self._lock(number)
            if new is None:
                raise RunLockedError(f"another training writes to {self.trial_folder(number)}")
            return self._claimed(number, new, is_resumed=False)

    def _claimed(self, number: int, lock: ExitStack, *, is_resumed: bool) -> Claim:
        settings = self._journal.settings(number)
        return Claim(number=number, settings=settings, is_resumed=is_resumed, lock=lock)

    def _lock(self, number: int) -> ExitStack | None:
        """Takes the lock of a trial's folder; None where a worker holds it."""
        lock = ExitStack()
        with suppress(RunLockedError):
            lock.enter_context(locked_run(self.trial_folder(number), patience_s=0))
            return lock
        return None

    def report(self, number: int) -> bool:
        """Takes over what the trial's run has in its journal; returns whether to prune it.

        A trial that has spent all of its epochs is never pruned.

        Raises:
            DataError: an objective is not a number.
        """
        values = {}
        for line in self._epochs(number):
            value = line.get(self._metric)
            if value is None:
                raise DataError(
                    f"the {self._metric} after epoch {line['epoch'] + 1} is not a finite number: "
                    "the training has diverged"
                )
            values[line["epoch"] + 1] = float(value)
        is_bad = bool(values) and self._journal.report(number, values)
        return is_bad and max(values) < self.config.config.epochs

    def complete(self, number: int) -> float:
        """Ends a trial with the objective of its best weights, which it returns."""
        best = [line for line in self._epochs(number) if line.get("is_best")]
        if not best:
            raise DataError("the run has no epoch with a finite validation loss")
        value = float(best[-1][self._metric])
        self._journal.finish(number, COMPLETE, value)
        return value

    def prune(self, number: int) -> None:
        """Ends a trial early; its folder keeps its checkpoint."""
        self._journal.finish(number, PRUNED)

    def fail(self, number: int, note: str) -> None:
        """Ends a trial that cannot be trained.

        Raises:
            DataError: all trials so far have failed in the same way.
        """
        note = shown_line(note)
        self._journal.finish(number, FAILED, note=note)
        ended = [trial for trial in self.trials() if trial.state != RUNNING]
        same = Counter(_NUMBER.sub("#", trial.note) for trial in ended)
        if len(ended) >= _SAME_FAILURES and same == {_NUMBER.sub("#", note): len(ended)}:
            raise DataError(f"all {len(ended)} trials have failed in the same way: {note}")

    def put_back(self, number: int) -> None:
        """Leaves a trial, whose state was saved, to the next worker."""
        self._journal.note_starts(number, 0)

    @property
    def _metric(self) -> str:
        return _METRICS.get(self.config.objective, f"validation_{self.config.objective}")

    def _epochs(self, number: int) -> list[dict[str, Any]]:
        lines = read_journal(self.trial_folder(number))
        return [line for line in lines if line["kind"] == "epoch"]
