"""A study's specification: a TOML file, read with everything checked that needs no data.

    title = "Does asinh scaling pay?"
    settings = ["epochs=10"]
    reference = "linear"

    [[arms]]
    name = "linear"
    settings = ["augment.scaling=linear10"]

Settings are those of `mstrain train`, written as there. Those of an arm replace those of the whole
study, and `key=value` of the command line stands between both.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import msdata
from msdata.core.checked_json import JsonValue
from msdata.core.files import storage_error
from msdata.errors import DataError, UsageError
from mstrain.checks import check_range
from mstrain.config import TrainConfig
from mstrain.overrides import apply_overrides
from mstrain.recipes import AUTO, auto, find_recipe

FOLDER = Path(__file__).parent / "specs"
BUILT_IN = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))
# Metrics of `mstrain evaluate` of which less is better; loss is -ln p(truth), bias its magnitude.
METRICS = (
    *("nmad", "crps", "loss", "eta_0.05", "eta_0.15", "cde_loss", "rmse", "bias", "pit_ks"),
    *("error_rate", "log_loss", "brier"),
)
MAX_SEEDS, MAX_ARMS = 1000, 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
        name: for files and tables.
        settings: `key=value`, as for `mstrain train`.
        data: the data set within DATA, "{seed}" for the seed's number; "" is DATA itself.
        reference: the arm that it is compared with; None takes the study's.
        control: the study must find that this arm is worse, else it is blind.
        title: for people; "" takes the name.
    """

    name: str
    settings: tuple[str, ...] = ()
    data: str = ""
    reference: str | None = None
    control: bool = False
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A study.

    Attributes:
        arms: all of them.
        reference: name of the arm that others are compared with.
        title: for people.
        recipe: of `mstrain train`; "auto" fits the reference arm's data.
        settings: `key=value` of all arms.
        seeds: seeds 0 to `seeds` - 1, each trained with every arm.
        split: what is measured.
        metrics: names of `METRICS`; the first decides on equivalence.
        margin: largest difference that counts as equal, as a share of the reference's metric; for
            losses, which have no zero, in nats.
        ranks: ranks of a job that one process plays; 1 is an ordinary training.
        law: fit the first metric as a power of the number of training samples.
    """

    arms: tuple[Arm, ...]
    reference: str
    title: str = "Study"
    recipe: str = AUTO
    settings: tuple[str, ...] = ()
    seeds: int = 6
    split: str = "test"
    metrics: tuple[str, ...] = ("nmad", "crps", "loss")
    margin: float = 0.01
    ranks: int = 1
    law: bool = False

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        for name in names:
            if not _NAME.fullmatch(name):
                raise UsageError(
                    f"an arm's name must be letters, digits and ._+-, at most 64, got {name!r}"
                )
            if names.count(name) > 1:
                raise UsageError(f"arm {name!r} is given twice; give each arm its own name")
        if not 2 <= len(names) <= MAX_ARMS:
            raise UsageError(f"a study must have 2 to {MAX_ARMS} arms, got {len(names)}")
        for arm in self.arms:
            self._check_reference(arm.reference or self.reference, names)
            _check_path(arm)
        if len(self.compared) == 0:
            raise UsageError("every arm is its own reference; give at least one arm to compare")
        if not 2 <= self.seeds <= MAX_SEEDS:
            raise UsageError(
                f"seeds must be 2 to {MAX_SEEDS}, got {self.seeds}: one pair has no scatter"
            )
        unknown = [m for m in self.metrics if m not in METRICS]
        if unknown or not self.metrics or len({*self.metrics}) < len(self.metrics):
            raise UsageError(
                f"metrics must be different ones of {', '.join(METRICS)}, got "
                f"{', '.join(map(repr, unknown or self.metrics)) or 'none'}"
            )
        if not 0 < self.margin < 1:
            raise UsageError(f"margin must be > 0 and < 1, got {self.margin:g}")
        check_range("ranks", self.ranks, 1)

    def _check_reference(self, name: str, names: Sequence[str]) -> None:
        if name not in names:
            raise UsageError(f"reference must be one of {', '.join(names)}, got {name!r}")
        found = next(arm for arm in self.arms if arm.name == name)
        if found.reference not in (None, name) or (
            found.reference is None and self.reference != name
        ):
            raise UsageError(
                f"arm {name!r} is a reference and cannot have another one; give it "
                f"reference = {name!r}"
            )

    def reference_of(self, arm: Arm) -> str | None:
        """Name of the arm that an arm is compared with; None for references."""
        name = arm.reference or self.reference
        return None if name == arm.name else name

    @property
    def compared(self) -> list[Arm]:
        """The arms that are not references."""
        return [arm for arm in self.arms if self.reference_of(arm) is not None]

    @property
    def cells(self) -> list[tuple[Arm, int]]:
        """Arm and seed of every training, seed by seed."""
        return [(arm, seed) for seed in range(self.seeds) for arm in self.arms]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)


def _check_path(arm: Arm) -> None:
    path = PurePosixPath(arm.data)
    if path.is_absolute() or ".." in path.parts or "\0" in arm.data:
        raise UsageError(f"data of arm {arm.name!r} must lie within DATA, got {arm.data!r}")


def read_spec(path: Path | str, settings: Sequence[str] = (), seeds: int | None = None) -> Spec:
    """Reads a specification.

    Args:
        path: a TOML file, or the bare name of one that comes with mstrain.
        settings: `key=value` for all arms, over those of the file.
        seeds: how many, in place of the file's.

    Raises:
        UsageError: it does not exist, is not TOML, or has an invalid entry.
        StorageError: the file system refused.
    """
    if str(path) in BUILT_IN:
        path = FOLDER / f"{path}.toml"
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UsageError(
            f"spec {path} is not a file; check the path; known names are {', '.join(BUILT_IN)}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"spec {path} is not TOML: {error}") from error
    except OSError as error:
        raise storage_error("read", Path(path), error) from error
    try:
        spec = JsonValue(content, f"spec {path}", "correct the file").read_as(Spec)
        changes: dict[str, Any] = {"settings": (*spec.settings, *settings)}
        return replace(spec, **changes if seeds is None else {**changes, "seeds": seeds})
    except DataError as error:
        raise UsageError(str(error).replace(" is damaged", "")) from error


def configs_of(spec: Spec, data: Path) -> dict[str, TrainConfig]:
    """The training of each arm, with seed 0; `data` is the folder of one or of the arms' data sets.

    Raises:
        UsageError: a setting is unknown or out of range; the message names the arm.
        DataError: the data set is damaged.
    """
    if spec.recipe == AUTO:
        reference = next(arm for arm in spec.arms if arm.name == spec.reference)
        base = auto(msdata.open(data_of(reference, 0, data)), spec.ranks)
    else:
        base = find_recipe(spec.recipe)
    # Of a setting that is given twice, the later one counts.
    common = {setting.partition("=")[0].strip(): setting for setting in spec.settings}
    base = _with(base, list(common.values()), "all arms")
    found = {arm.name: _with(base, arm.settings, f"arm {arm.name!r}") for arm in spec.arms}
    for name, config in found.items():
        if config.seed:
            raise UsageError(f"arm {name!r} must not set its seed: every arm gets seeds 0, 1, ...")
    return found


def _with(config: TrainConfig, settings: Sequence[str], what: str) -> TrainConfig:
    try:
        return apply_overrides(config, settings)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from error


def data_of(arm: Arm, seed: int, data: Path) -> Path:
    """The data set that an arm is trained on with a seed."""
    return data / arm.data.replace("{seed}", str(seed))
