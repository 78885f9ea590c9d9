"""Training, evaluation and prediction as functions, for a notebook or a script of one process.

Nothing is left behind: no signal handler, no process group, no thread, and torch's number of
threads and random state are what they were. Errors are exceptions. Several processes (GPUs, nodes)
are what the commands are for: `torchrun --nproc-per-node 4 -m mstrain.train ...`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msdata
from msdata.errors import UsageError
from mstrain.calibration.calibrate import Calibrated, CalibrationConfig, calibrate_on_ranks
from mstrain.config import TrainConfig, batch_per_rank
from mstrain.distributed import StopRequest
from mstrain.distributed import one_rank as _one_rank
from mstrain.embedding.embed import EmbeddingConfig, embed_on_ranks
from mstrain.embedding.embeddings import Embeddings, read_embeddings
from mstrain.embedding.ood_fit import flags_of
from mstrain.evaluation.baseline import Baseline, BaselineConfig, run_baseline
from mstrain.evaluation.evaluation import evaluate_on_ranks
from mstrain.evaluation.prediction import PredictionConfig, predict_on_ranks
from mstrain.evaluation.predictions import Predictions, read_predictions
from mstrain.evaluation.results import Evaluation, EvaluationConfig
from mstrain.models.model_file import results_folder
from mstrain.perception.exchange import PerceptionConfig
from mstrain.perception.perceive import Perception, perceive_on_ranks
from mstrain.training.checkpoint import check_run_folder, locked_run
from mstrain.training.run import train_on_ranks

Data = msdata.Dataset | Path | str


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training left.

    Attributes:
        run: its folder, which `evaluate`, `predict` and `load_model` take.
        num_steps: optimizer steps, those before a resume included.
        best_validation_loss: least mean cross-entropy of split "val", in nats; None without one.
    """

    run: Path
    num_steps: int
    best_validation_loss: float | None


def train(
    config: TrainConfig,
    data: Data,
    out: Path | str,
    *,
    init: Path | str | None = None,
    is_quiet: bool = False,
) -> TrainResult:
    """Trains a network in this process, or resumes a run from its last checkpoint.

    `mstrain train RECIPE DATA --out RUN` writes the same run. Ctrl-C raises KeyboardInterrupt; the
    same call then resumes from the last checkpoint.

        config = dataclasses.replace(mstrain.RECIPES["demo"](), epochs=5)
        result = mstrain.train(config, "DATA", "RUN")

    Args:
        config: a recipe's, `mstrain.RECIPES[name]()`, or one of your own. Its `batch_size` counts
            the samples of a step over all ranks, which here are one; `msdata.Loader`'s counts
            those of one rank.
        data: a data set, or its folder; with split "train", and "val" to validate on.
        out: the run's folder; made if it does not exist.
        init: weights to start from: a run's folder, a model file of `mstrain.export`,
            `.safetensors`, or `.pt` with a state dict. What fits by name and shape is loaded;
            `config.json` keeps what that was.
        is_quiet: print no progress to stderr.

    Returns:
        The run's folder and its best validation loss.

    Raises:
        UsageError: the folder holds another run, the data lack what the settings ask for, or a
            launcher started several ranks.
        DataError: the data or the last checkpoint are damaged, or E(B-V) is unknown or implausible.
        DivergedError: the loss is NaN or infinite; earlier checkpoints are kept.
        StorageError: the file system refused.
    """
    out = Path(out)
    opened = data if isinstance(data, msdata.Dataset) else msdata.open(data)
    with _one_rank("train", config.compute.device, config.compute.threads) as ranks:
        batch_per_rank(config, ranks.count)
        check_run_folder(out)
        with locked_run(out):
            # Not entered: signals stay the caller's.
            progress = train_on_ranks(
                *(out, config, opened, ranks, StopRequest()),
                init=None if init is None else Path(init),
                is_quiet=is_quiet,
            )
    best = progress.best_loss
    return TrainResult(
        run=out,
        num_steps=progress.step,
        best_validation_loss=best if math.isfinite(best) else None,
    )


def evaluate(
    run: Path | str,
    data: Data,
    out: Path | str | None = None,
    *,
    device: str = "auto",
    **options: Any,
) -> Evaluation:
    """Measures a trained network on a split, and draws a report.

    `mstrain evaluate RUN DATA` writes the same files.

        found = mstrain.evaluate("RUN", "DATA", split="val", has_report=False)
        found.summary.points["z_mean"]["nmad"].value  # of classes: summary.overall["accuracy"]

    Args:
        run: the run's folder, or a model file of `mstrain.export`.
        data: a data set, or its folder.
        out: folder of the predictions, metrics and report; None means the run's.
        device: "auto", "cpu" or "cuda".
        **options: fields of `mstrain.evaluation.results.EvaluationConfig`: split ("test"),
            checkpoint ("best" or "last"), prior ("natural", "as-trained" or a CSV file),
            calibration ("none", "global" or "local"), has_any_pixels, batch_size,
            magnitude_column, redshift_edges, magnitude_edges, bin_by, bootstrap, has_report
            (True), is_quiet (False).

    Returns:
        The metrics with their intervals, and the paths of the files.

    Raises:
        UsageError: the run, the data or the options do not go together, or a launcher started
            several ranks.
        DataError: something is damaged, no sample has a redshift, or the network's densities are
            not finite.
        StorageError: the file system refused.
        TypeError: an option is unknown.
    """
    config = EvaluationConfig(**options)
    folder = results_folder(None if out is None else Path(out), Path(run))
    with _one_rank("evaluate", device) as ranks:
        found = evaluate_on_ranks(Path(run), _folder(data), folder, config, ranks)
    assert found is not None
    return found


def calibrate(run: Path | str, data: Data, *, device: str = "auto", **options: Any) -> Calibrated:
    """Fits what recalibrates a network's densities, and writes it into the run.

    `mstrain calibrate RUN DATA` writes the same files.

        mstrain.calibrate("RUN", "DATA")
        mstrain.evaluate("RUN", "DATA", calibration="global")

    Args:
        run: the run's folder.
        data: a data set, or its folder.
        device: "auto", "cpu" or "cuda".
        **options: fields of `mstrain.calibration.calibrate.CalibrationConfig`: split ("val"),
            checkpoint, prior, by, has_local, has_any_pixels, batch_size, seed, is_quiet.

    Returns:
        Kolmogorov-Smirnov statistics before and after, and the paths of the files.

    Raises:
        UsageError: the run, the data or the options do not go together, or a launcher started
            several ranks.
        DataError: something is damaged, or too few samples have a redshift.
        StorageError: the file system refused.
        TypeError: an option is unknown.
    """
    config = CalibrationConfig(**options)
    with _one_rank("calibrate", device) as ranks:
        found = calibrate_on_ranks(Path(run), _folder(data), config, ranks)
    assert found is not None
    return found


def predict(
    run: Path | str,
    data: Data,
    out: Path | str,
    *,
    columns: Sequence[str] = (),
    device: str = "auto",
    **options: Any,
) -> Predictions:
    """Writes a table of densities, or of class probabilities, as `mstrain predict` does.

        mstrain.predict("RUN", "DATA", "out.parquet").columns["z_mean"]  # float64 (N,)

    Args:
        run: the run's folder, or a model file of `mstrain.export`.
        data: a data set, or its folder; it needs no labels.
        out: the table's file, *.parquet; replaced if it is a table of predictions.
        columns: columns of the index to copy into the table.
        device: "auto", "cpu" or "cuda".
        **options: fields of `mstrain.evaluation.prediction.PredictionConfig`: split (None takes all
            that have samples, one after the other), checkpoint ("best" or "last"), prior
            ("natural", "as-trained", or a CSV file with columns z_low, z_high, count), calibration
            ("none", "global" or "local", from `calibrate`), has_flags (True; also tells how odd
            each object is, where `flag(keep=run)` kept what tells), has_any_pixels, batch_size
            (256), is_quiet (False).

    Returns:
        The open table, a row per sample in the order of the index.

    Raises:
        UsageError: run, data or options do not go together, or a launcher started several ranks.
        DataError: something is damaged, or the network's densities are not finite.
        StorageError: the file system refused.
        TypeError: an option is unknown.
    """
    config = PredictionConfig(columns=tuple(columns), **options)
    if Path(out).suffix != ".parquet":
        raise UsageError(f"the name of a table to be read back must end in .parquet, got {out}")
    with _one_rank("predict", device) as ranks:
        further = flags_of(Path(run), config)
        predict_on_ranks(Path(run), _folder(data), Path(out), config, ranks, further)
    return read_predictions(out)


def embed(
    run: Path | str, data: Data, out: Path | str, *, device: str = "auto", **options: Any
) -> Embeddings:
    """Writes a table of what a network makes of samples before it says anything of redshift.

    `mstrain embed RUN DATA OUT.parquet` writes the same table.

        found = mstrain.embed("RUN", "DATA", "embeddings.parquet", layer="hidden")
        for part in found.parts():  # float16 (n, D), rows in the order of found.columns
            ...

    Args:
        run: the run's folder, or a model file of `mstrain.export`.
        data: a data set, or its folder.
        out: the table's file, *.parquet; replaced if it is a table of embeddings.
        device: "auto", "cpu" or "cuda".
        **options: fields of `mstrain.embedding.embed.EmbeddingConfig`: layer ("features",
            "hidden" or "pixels"), split, columns, checkpoint, has_any_pixels, batch_size (256),
            is_quiet.

    Returns:
        The open table, a row per sample in the order of the index.

    Raises:
        UsageError: run, data or options do not go together, or a launcher started several ranks.
        DataError: something is damaged, or an embedding does not fit float16.
        StorageError: the file system refused.
        TypeError: an option is unknown.
    """
    config = EmbeddingConfig(**options)
    with _one_rank("embed", device) as ranks:
        embed_on_ranks(Path(run), _folder(data), Path(out), config, ranks)
    return read_embeddings(out)


def baseline(
    run: Path | str, data: Data, out: Path | str | None = None, **options: Any
) -> Baseline:
    """Compares an evaluated network with nearest neighbors in colors of the same cutouts.

    `mstrain baseline RUN DATA` writes the same files.

        mstrain.evaluate("RUN", "DATA")
        found = mstrain.baseline("RUN", "DATA")
        found.result["baseline"]["metrics"]["difference"]["nmad"]

    Args:
        run: the run's folder.
        data: a data set, or its folder; neighbors are taken from its split "train".
        out: folder of the evaluation, which gets the results; None means the run's.
        **options: fields of `mstrain.evaluation.baseline.BaselineConfig`: split ("test"),
            num_neighbors (10), max_objects (20,000 of each split), bootstrap, has_report (True),
            is_quiet (False).

    Returns:
        Metrics as plain values, and the paths of the files.

    Raises:
        UsageError: the run, the data or the options do not go together, or nothing was evaluated.
        DataError: something is damaged, or too few objects have a redshift.
        StorageError: the file system refused.
        TypeError: an option is unknown.
    """
    config = BaselineConfig(**options)
    return run_baseline(Path(run), _folder(data), Path(run if out is None else out), config)


def perceive(
    run: Path | str | Sequence[Path | str],
    data: Data,
    out: Path | str | None = None,
    *,
    device: str = "auto",
    **options: Any,
) -> Perception:
    """Measures which bands, surveys and parts of images a trained network listens to.

    `mstrain perceive RUN DATA` writes the same files.

        found = mstrain.perceive("RUN", "DATA", within="magnitude")
        found.result["perception"]["runs"][0]["scores"]["crps"]["modalities"]["unwise.W1"]

    Args:
        run: the run's folder or a model file, or several, compared on the same samples.
        data: a data set, or its folder.
        out: folder of the results; None means the first run's.
        device: "auto", "cpu" or "cuda".
        **options: fields of `mstrain.perception.exchange.PerceptionConfig`: split ("test"),
            checkpoint ("best", "last" or "all"), prior, has_any_pixels, num_permutations (4),
            within ("none", "magnitude" or "redshift"), level ("input" or "features"), mask
            ("none", "center" or "surroundings"), magnitude_column, redshift_edges, group_size
            (256), seed, bootstrap, has_report (True), is_quiet (False).

    Returns:
        Scores as plain values, and the paths of the files.

    Raises:
        UsageError: the run, the data or the options do not go together, or a launcher started
            several ranks.
        DataError: something is damaged, or no sample has a redshift.
        StorageError: the file system refused.
        TypeError: an option is unknown.
    """
    config = PerceptionConfig(**options)
    runs = [Path(run)] if isinstance(run, Path | str) else [Path(one) for one in run]
    folder = results_folder(None if out is None else Path(out), runs[0])
    with _one_rank("perceive", device) as ranks:
        found = perceive_on_ranks(runs, _folder(data), folder, config, ranks)
    assert found is not None
    return found


def _folder(data: Data) -> Path:
    return data.path if isinstance(data, msdata.Dataset) else Path(data)
