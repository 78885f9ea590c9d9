"""The trials of a study, in a journal file that workers of many nodes share: the home of Optuna.

The file only grows: every line is one operation, appended under a lock that ends with its process.
Optuna knows nothing of workers, so a trial whose worker was killed stays running here;
`mstrain.tune.study` tells by the run's own lock that it is free.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msdata.core.files import locked, open_known, storage_error
from msdata.errors import DataError, MsdataError, needing
from mstrain.tune.space import Dimension

if TYPE_CHECKING:
    import optuna

NAME = "journal.log"
SAMPLERS = ("tpe", "random")
PRUNERS = ("hyperband", "median", "none")
RUNNING, COMPLETE, PRUNED, FAILED = "running", "complete", "pruned", "failed"
_ETA = 3
# Enough for stable importances of some ten settings.
_NUM_TREES = 32
_NOTE, _STARTS = "note", "starts"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial as the journal has it.

    Attributes:
        number: its number, from 0.
        state: "running", "complete", "pruned" or "failed".
        params: the searched settings by full name.
        reported: objective by number of epochs.
        value: objective of its best weights; None unless it is complete.
        note: why it failed.
        starts: workers that have started it since an epoch was last reported.
        seconds: from its start to its end, waiting between workers included; None while it runs.
    """

    number: int
    state: str
    params: dict[str, Any]
    reported: dict[int, float]
    value: float | None = None
    note: str = ""
    starts: int = 1
    seconds: float | None = None


class TrialJournal:
    """Asks for settings of new trials, and writes down what trials report.

    Args:
        folder: the study's.
        space: what is searched.
        sampler: one of `SAMPLERS`.
        pruner: one of `PRUNERS`.
        seed: with a trial's number it makes the draws of the trial.
        epochs: what a trial may spend.

    Raises:
        MissingPackageError: Optuna is not installed.
        DataError: the journal is damaged.
        StorageError: the file system refused.
    """

    def __init__(
        self,
        folder: Path,
        space: Sequence[Dimension],
        *,
        sampler: str,
        pruner: str,
        seed: int,
        epochs: int,
    ) -> None:
        with needing("mstrain tune needs Optuna", "tune"):
            import optuna
            from optuna.storages.journal import JournalFileBackend
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._sampler, self._seed = space, sampler, seed
        self.path = folder / NAME
        lock: Any = _AppendLock(self.path)
        with _reading(self.path):
            backend = JournalFileBackend(os.fspath(self.path), lock)
            # Hyperband's brackets depend on the name.
            self._study = optuna.create_study(
                study_name="tune",
                storage=optuna.storages.JournalStorage(backend),
                sampler=optuna.samplers.RandomSampler(seed=seed),
                pruner=_pruner(pruner, epochs),
                load_if_exists=True,
            )

    def trials(self) -> list[Trial]:
        """All trials, by number."""
        with _reading(self.path):
            return [_plain(trial) for trial in self._study.get_trials(deepcopy=False)]

    def ask(self) -> int:
        """Makes a trial and draws its settings; returns its number.

        One worker at a time, so that the draws follow from seed, number and earlier trials.
        """
        with _reading(self.path):
            self._seed_sampler(len(self._study.get_trials(deepcopy=False)))
            number = self._study.ask().number
        self.settings(number)
        return number

    def settings(self, number: int) -> dict[str, Any]:
        """Settings of a trial by full name; what a killed worker had not drawn is drawn now."""
        self._seed_sampler(number)
        with _reading(self.path):
            trial = self._open(number)
            return {d.name: _suggested(trial, d) for d in self._space}

    def note_starts(self, number: int, starts: int) -> None:
        """Writes down how many workers have started a trial without finishing an epoch."""
        with _reading(self.path):
            self._open(number).set_user_attr(_STARTS, starts)

    def report(self, number: int, values: dict[int, float]) -> bool:
        """Writes down objectives by epoch that the journal lacks; returns whether to prune."""
        with _reading(self.path):
            trial, known = self._open(number), self._frozen(number)
            new = sorted(values.keys() - known.intermediate_values.keys())
            for epoch in new:
                trial.report(values[epoch], epoch)
            if new and known.user_attrs.get(_STARTS):
                # The first start is not written down.
                trial.set_user_attr(_STARTS, 0)
            return trial.should_prune()

    def finish(self, number: int, state: str, value: float | None = None, note: str = "") -> None:
        """Ends a trial.

        Args:
            number: the trial.
            state: "complete", "pruned" or "failed".
            value: objective of a complete one.
            note: why it failed.
        """
        import optuna

        states = optuna.trial.TrialState
        kind = {COMPLETE: states.COMPLETE, PRUNED: states.PRUNED, FAILED: states.FAIL}[state]
        with _reading(self.path):
            if note:
                self._open(number).set_user_attr(_NOTE, note)
            self._study.tell(number, value, state=kind)

    def importances(self) -> dict[str, float]:
        """Share of the objective's variance by setting (fANOVA); empty for too few trials.

        Source: Hutter, Hoos, Leyton-Brown 2014 (ICML, PMLR 32, 754).
        """
        values = [t.value for t in self.trials() if t.state == COMPLETE]
        if len(values) < 2 * len(self._space) or len(set(values)) < 2 or len(self._space) < 2:
            return {}
        with needing("importances need scikit-learn", "tune"):
            # Seconds of imports.
            from optuna.importance import FanovaImportanceEvaluator, get_param_importances

            how = FanovaImportanceEvaluator(n_trees=_NUM_TREES, seed=self._seed)
            found = get_param_importances(self._study, evaluator=how)
        return {name: float(share) for name, share in found.items()}

    def _seed_sampler(self, number: int) -> None:
        import optuna

        # Workers of one seed must not draw alike, nor one that was started again.
        words = np.random.SeedSequence([self._seed, number]).generate_state(1)
        if self._sampler == "random":
            self._study.sampler = optuna.samplers.RandomSampler(seed=int(words[0]))
        else:
            # Running trials count as bad ones, so that workers do not crowd.
            self._study.sampler = optuna.samplers.TPESampler(seed=int(words[0]), constant_liar=True)

    def _frozen(self, number: int) -> optuna.trial.FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _open(self, number: int) -> optuna.trial.Trial:
        import optuna

        return optuna.trial.Trial(self._study, self._frozen(number)._trial_id)


def _pruner(name: str, epochs: int) -> Any:
    import optuna

    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(1, max(epochs, 1), reduction_factor=_ETA)
    return optuna.pruners.MedianPruner() if name == "median" else optuna.pruners.NopPruner()


def _suggested(trial: optuna.trial.Trial, of: Dimension) -> Any:
    if of.choices:
        return trial.suggest_categorical(of.name, of.choices)
    assert of.low is not None
    assert of.high is not None
    if of.is_integer:
        return trial.suggest_int(of.name, int(of.low), int(of.high), log=of.is_log)
    return trial.suggest_float(of.name, of.low, of.high, log=of.is_log)


def _plain(trial: optuna.trial.FrozenTrial) -> Trial:
    states = {"COMPLETE": COMPLETE, "PRUNED": PRUNED, "FAIL": FAILED}
    state = states.get(trial.state.name, RUNNING)
    return Trial(
        number=trial.number,
        state=state,
        params=dict(trial.params),
        reported=dict(trial.intermediate_values),
        value=trial.value if state == COMPLETE else None,
        note=str(trial.user_attrs.get(_NOTE, "")),
        starts=int(trial.user_attrs.get(_STARTS, 1)),
        seconds=None if trial.duration is None else trial.duration.total_seconds(),
    )


class _AppendLock:
    """Optuna's lock of the file for appending; it ends with its process.

    Optuna's own locks are files, which it takes to be left behind after 30 s: too short for a
    process that was paused, and long for all others where it was killed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = ExitStack()

    def acquire(self) -> bool:
        """Waits for the lock, and cuts off what a writer left unfinished when it was killed."""
        with ExitStack() as stack:
            stack.enter_context(locked(self._path.with_name(f".{NAME}.lock"), waits=True))
            try:
                _cut_tail(self._path)
            except OSError as error:
                raise storage_error("write", self._path, error) from error
            self._held = stack.pop_all()
        return True

    def release(self) -> None:
        """Lets others append."""
        self._held.close()


def _cut_tail(path: Path) -> None:
    fd = open_known(path)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            start = max(0, size - (1 << 20))
            os.ftruncate(fd, start + os.pread(fd, size - start, start).rfind(b"\n") + 1)
    finally:
        os.close(fd)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what Optuna raises of a damaged journal into a DataError."""
    try:
        yield
    except MsdataError:
        raise
    except OSError as error:
        raise storage_error("use", path, error) from error
    except (ValueError, LookupError, TypeError, AssertionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise DataError(
            f"{path} is corrupt ({reason}); restore it from a copy, or give another --out"
        ) from error
