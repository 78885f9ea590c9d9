"""Settings of the network: what it is made of, and what it learns to tell."""

from __future__ import annotations

import math
from dataclasses import dataclass

from msdata.errors import UsageError
from mstrain.checks import check_choice, check_positive, check_range

DEPTHS = (10, 18, 34, 50)
NORMS = ("batch", "group")
REDSHIFT, SCALAR, CLASSES = "redshift", "scalar", "classes"
TARGET_KINDS = (REDSHIFT, SCALAR, CLASSES)
# Columns that hold the answer, or say of it whether it is right: never an input.
_ANSWER_COLUMNS = ("redshift", "redshift_true", "planted", "planted_detail", "is_disputed")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network; its encoders follow `augment.fusion`.

    Attributes:
        depth: layers of each ResNet, one of `DEPTHS`.
        width: channels of the first stage; 64 in the paper.
        small_stem_below: images of fewer pixels per side get a 3x3 stem without pooling, since the
            usual one would leave a 22-pixel stamp a single pixel in the last stage.
        norm: "batch", or "group", which no batch size and no number of ranks touches.
        sync_batch_norm: take batch statistics over all ranks.
        ebv_column: column of the index, joined after pooling; None joins nothing.
        ebv_columns: several columns of E(B-V), of different maps, in place of `ebv_column`, which
            is None then.
        ebv_min: smallest E(B-V) that is believed, in magnitudes: noise takes maps a little below
            0, marks of unknown values (-1, -999) are far below.
        ebv_max: the greatest; only lines of sight through the Galactic plane have more than 10.
        hidden: units between the joined features and the bins, so that reddening may act on
            colors; 0 has none.
        target: column of the index that is learned.
        target_kind: "redshift" (bins of [0, z_max], residuals over 1 + z), "scalar" (a density of
            any number) or "classes"; None: "redshift" for the column of that name, else by the
            column's type.
        target_min: lower end of the first bin of a scalar; None takes that of the training split.
        target_max: upper end of the last; None likewise.
        classes: names of the classes; empty takes all of the training split.
        num_bins: bins of redshift or of a scalar; classes have one each.
        z_max: upper end of the last redshift bin; the first begins at 0.
    """

    depth: int = 18
    width: int = 64
    small_stem_below: int = 64
    norm: str = "batch"
    sync_batch_norm: bool = True
    ebv_column: str | None = "ebv_csfd"
    ebv_columns: tuple[str, ...] = ()
    ebv_min: float = -0.05
    ebv_max: float = 10.0
    hidden: int = 256
    target: str = REDSHIFT
    target_kind: str | None = None
    target_min: float | None = None
    target_max: float | None = None
    classes: tuple[str, ...] = ()
    num_bins: int = 400
    z_max: float = 1.6

    def __post_init__(self) -> None:
        check_choice("model.depth", self.depth, DEPTHS)
        check_choice("model.norm", self.norm, NORMS)
        if not self.ebv_min < self.ebv_max:
            raise UsageError(
                f"model.ebv_min must be < model.ebv_max, got {self.ebv_min:g} and {self.ebv_max:g}"
            )
        self._check_target()
        self._check_reddening()
        check_range("model.width", self.width, 1)
        check_range("model.hidden", self.hidden, 0)
        check_range("model.num_bins", self.num_bins, 2)
        check_positive("model.z_max", self.z_max)

    @property
    def kind_of_target(self) -> str | None:
        """One of `TARGET_KINDS`; None where the data are to tell."""
        is_plain = self.target == REDSHIFT and self.target_kind is None
        return REDSHIFT if is_plain else self.target_kind

    @property
    def reddening(self) -> tuple[str, ...]:
        """Columns of E(B-V) that the network takes, in its order."""
        return self.ebv_columns or (() if self.ebv_column is None else (self.ebv_column,))

    @property
    def other_reddening(self) -> str:
        """The setting that does without a column of E(B-V), for messages."""
        return "other model.ebv_columns" if self.ebv_columns else "model.ebv_column=none"

    def _check_reddening(self) -> None:
        """Raises UsageError where columns of E(B-V) are given twice, or hold the answer."""
        found = self.ebv_columns
        is_text = isinstance(found, list | tuple) and all(isinstance(n, str) and n for n in found)
        if not is_text or len(set(found)) < len(found):
            raise UsageError(f"model.ebv_columns must be a list of different texts, got {found!r}")
        # JSON has lists.
        columns = tuple(found)
        object.__setattr__(self, "ebv_columns", columns)
        if columns:
            if self.ebv_column not in (None, ModelConfig.ebv_column):
                raise UsageError(
                    "model.ebv_columns takes the place of model.ebv_column, got both: "
                    f"{', '.join(columns)} and {self.ebv_column}; name all in model.ebv_columns"
                )
            # One column is the network that `ebv_column` makes.
            one = columns[0] if len(columns) == 1 else None
            object.__setattr__(self, "ebv_column", one)
            object.__setattr__(self, "ebv_columns", () if one else columns)
        for column in self.reddening:
            if column in (*_ANSWER_COLUMNS, self.target):
                name = "ebv_columns" if self.ebv_columns else "ebv_column"
                raise UsageError(
                    f"model.{name} must not hold the answer, got {column}; give a column of "
                    f"E(B-V), or {self.other_reddening}"
                )

    def _check_target(self) -> None:
        """Raises UsageError where settings of one kind of target are given for another."""
        check_choice("model.target_kind", self.target_kind, (None, *TARGET_KINDS))
        # JSON has lists.
        object.__setattr__(self, "classes", tuple(self.classes))
        kind, ends = self.kind_of_target, (self.target_min, self.target_max)
        is_text = all(isinstance(name, str) and name for name in self.classes)
        if not is_text or len(set(self.classes)) < len(self.classes):
            raise UsageError(f"model.classes must be different texts, got {list(self.classes)}")
        if self.classes and kind not in (None, CLASSES):
            raise UsageError(f"model.classes needs model.target_kind=classes, got {kind}")
        if ends != (None, None) and kind not in (None, SCALAR):
            cure = "; the bins of a redshift are [0, model.z_max]" if kind == REDSHIFT else ""
            raise UsageError(f"model.target_min and target_max are for scalars, got {kind}{cure}")
        if self.z_max != ModelConfig.z_max and kind != REDSHIFT:
            raise UsageError(
                f"model.z_max is for redshifts, got model.target={self.target}; give "
                "model.target_min and model.target_max"
            )
        for end in ends:
            if end is not None and not math.isfinite(end):
                raise UsageError(f"model.target_min and target_max must be finite, got {end}")
        if None not in ends and not ends[0] < ends[1]:  # type: ignore[operator]
            raise UsageError(
                f"model.target_min must be < model.target_max, got {ends[0]:g} and {ends[1]:g}"
            )
