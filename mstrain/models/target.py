"""What a network learns to tell: a redshift, another number, or a class.

All that differs between them is said here, and everything else asks: which column, how its values
become numbers, where bins lie, how residuals are scaled, and words. A class is the unit bin around
its number, so that bins, loss, weights and priors serve classes as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.dataset import Split
from msdata.errors import UsageError
from msdata.plan.weighted import is_usable
from mstrain.models.labels import class_names, count_classes, is_text
from mstrain.network_config import CLASSES, REDSHIFT, SCALAR, ModelConfig

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a network tells, and how it is spoken of.

    Attributes:
        column: the column of the index.
        kind: "redshift", "scalar" or "classes".
        low: lower end of the first bin.
        high: upper end of the last bin.
        classes: names of the classes; class k is the bin from k - 1/2 to k + 1/2.
    """

    column: str = "redshift"
    kind: str = REDSHIFT
    low: float = 0.0
    high: float = 1.6
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: ModelConfig) -> Target:
        """The target of a network.

        Raises:
            UsageError: its kind or range is still to be taken from data, see `resolve`.
        """
        column, kind = model.target, model.kind_of_target
        if kind == REDSHIFT:
            return cls(column=column, high=model.z_max)
        if kind == CLASSES and model.classes:
            high = len(model.classes) - 0.5
            return cls(column=column, kind=kind, low=-0.5, high=high, classes=model.classes)
        if kind == SCALAR and model.target_min is not None and model.target_max is not None:
            return cls(column=column, kind=kind, low=model.target_min, high=model.target_max)
        raise UsageError(
            f"model.target={column} has no bins yet; take the configuration of a run, which "
            "'mstrain train' resolves from its data"
        )

    @property
    def is_redshift(self) -> bool:
        """Whether residuals are scaled by 1 + z, and columns are called z_mean and so on."""
        return self.kind == REDSHIFT

    @property
    def is_plain(self) -> bool:
        """Whether it is what is learned unless something else is asked."""
        return self.is_redshift and self.column == "redshift"

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Sizes of d from which an object counts as an outlier; a plain number has none."""
        return (0.05, 0.15) if self.is_redshift else ()

    def scale(self, truth_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """What residuals and widths are divided by, float64 (N,)."""
        return 1 + truth_N if self.is_redshift else np.ones_like(truth_N)

    def is_usable(self, values_N: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether each label is known and within the bins."""
        return is_usable(values_N, self.high, self.low)

    @cached_property
    def _number_of(self) -> dict[str | None, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def values(self, split: Split) -> NDArray[np.float64]:
        """The labels of a split, float64 (samples,); NaN where unknown, classes as numbers."""
        if not self.classes:
            return np.asarray(split.numbers(self.column), np.float64)
        parts = [self._numbers(class_names(part)) for part in split.column_parts(self.column)]
        return np.concatenate([*parts, np.zeros(0)])

    def of_batch(self, batch: Mapping[str, Any]) -> NDArray[np.float64]:
        """The labels of a loader's batch, as `values` has them; NaN for data without the column."""
        found = batch.get(self.column)
        if found is None:
            return np.full(len(batch["sample_id"]), np.nan)
        if self.classes:
            import pyarrow as pa

            return self._numbers(class_names(pa.array(np.ma.filled(found.astype(object), None))))
        return np.ma.filled(np.ma.asarray(found, np.float64), np.nan)

    def _numbers(self, names: pa.Array) -> NDArray[np.float64]:
        numbers = self._number_of
        return np.array([numbers.get(name, np.nan) for name in names.to_pylist()], np.float64)

    def check_type(self, split: Split) -> None:
        """Raises UsageError where the column is there, and holds what cannot be compared with."""
        if self.is_plain or self.column not in split.dataset.columns:
            return
        import pyarrow as pa

        kind = split.column_type(self.column)
        is_number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
        is_name = is_text(kind) or pa.types.is_boolean(kind)
        if not is_number and not (self.classes and is_name):
            wanted = "classes" if self.classes else "numbers"
            raise UsageError(
                f"column {self.column!r} of {split.dataset.path} must hold {wanted}, got {kind}"
            )

    def unseen(self, split: Split) -> dict[str, int]:
        """Samples of each class that the network does not know, by the class's name."""
        if not self.classes:
            return {}
        counts = count_classes(split, self.column)
        return {name: count for name, count in counts.items() if name not in self.classes}

    def names_of(self, numbers_N: NDArray[np.float64], split: Split) -> pa.Array:
        """Classes by number, in the type of a split's column: integers stay integers."""
        import pyarrow as pa

        names = pa.array([self.classes[int(number)] for number in numbers_N], pa.string())
        has_column = self.column in split.dataset.columns
        kind = split.column_type(self.column) if has_column else pa.string()
        return names.cast(kind)

    def unseen_text(self, split: Split) -> str:
        """A sentence on samples of classes that the network does not know; empty without any."""
        found = self.unseen(split)
        shown = ", ".join(f"{name}: {count:,}" for name, count in list(found.items())[:12])
        return (
            f"{sum(found.values()):,} samples of split {split.name!r} are of classes that the "
            f"training did not have ({shown}): they count for nothing"
            if found
            else ""
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for files."""
        found: dict[str, Any] = {"target": self.column, "target_kind": self.kind}
        return {**found, "classes": list(self.classes)} if self.classes else found

    def public(self, name: str) -> str:
        """Name of a computed column in tables and JSON: `mass_mean` for `z_mean`."""
        if name == "redshift":
            return self.column
        is_renamed = name.startswith("z_") and not self.is_redshift
        return f"{self.column}{name[1:]}" if is_renamed else name

    @property
    def noun(self) -> str:
        """What the number is called."""
        return "redshift" if self.is_redshift else self.column

    @property
    def symbol(self) -> str:
        """The truth in formulas: "z" for a redshift."""
        return "z" if self.is_redshift else self.column

    @property
    def mean(self) -> str:
        """The estimate in formulas: "z_mean"."""
        return self.public("z_mean")

    @property
    def truth_words(self) -> str:
        """The truth in a sentence."""
        return "spectroscopic redshift" if self.is_redshift else f"true {self.column}"

    @property
    def truth_label(self) -> str:
        """The truth on axes."""
        return f"{self.truth_words} z" if self.is_redshift else self.truth_words

    @property
    def estimate_label(self) -> str:
        """The estimate on axes."""
        return f"photometric redshift {self.mean}" if self.is_redshift else f"predicted {self.mean}"

    @property
    def axis_label(self) -> str:
        """The number itself on axes."""
        return "redshift z" if self.is_redshift else self.column

    @property
    def residual_text(self) -> str:
        """How d is defined."""
        difference = f"{self.mean} - {self.symbol}"
        return f"({difference}) / (1 + z)" if self.is_redshift else difference

    def per_scale(self, text: str) -> str:
        """A formula divided by the scale of residuals."""
        return f"{text} / (1 + z)" if self.is_redshift else text

    @property
    def known(self) -> str:
        """What a usable label is, such as "redshift in [0, 1.6]"."""
        if self.classes:
            return f"{self.column} among the {len(self.classes)} classes"
        return f"{self.noun} in [{self.low:g}, {self.high:g}]"

    @property
    def known_at_all(self) -> str:
        """What a label is that can be compared with."""
        return self.known if self.classes else self.noun

    @property
    def range_settings(self) -> str:
        """The settings that choose the range."""
        if self.classes:
            return "model.classes"
        return "model.z_max" if self.is_redshift else "model.target_min and model.target_max"

    def told(self) -> str:
        """One line on what is learned; empty for what is learned unless something else is asked."""
        if self.is_plain:
            return ""
        if self.classes:
            shown = ", ".join(self.classes[:12]) + (", ..." if len(self.classes) > 12 else "")
            return f"learning {len(self.classes)} classes of {self.column}: {shown}"
        return f"learning a density of {self.column} in [{self.low:g}, {self.high:g}]"


REDSHIFT_TARGET = Target()
