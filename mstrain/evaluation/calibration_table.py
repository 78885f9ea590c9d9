"""Densities with and without recalibration, side by side.

It stands alone because the terminal and the page show it, and the report's other tables know no
calibrations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mstrain.evaluation.calibration import CALIBRATIONS
from mstrain.evaluation.metrics.summary import Summary
from mstrain.evaluation.report.wording import TextTable, prior_table

CALIBRATION_WARNING = (
    "A recalibration makes the PITs uniform and may better CDE loss and CRPS; NMAD and the shares "
    "of outliers of the mean may get worse with it, as upstream found. Compare the columns before "
    "you choose one; none is applied unless --calibration asks for it."
)


def calibration_table(found: Mapping[str, Summary], asked: str) -> TextTable | None:
    """The same network by each calibration; None where there is one column alone.

    Args:
        found: metrics by the calibration's name.
        asked: the one that all else is shown by.
    """
    ordered = {name: found[name] for name in CALIBRATIONS if name in found}
    first, *others = ordered
    table = prior_table(first, ordered[first], {name: ordered[name] for name in others})
    if table is None:
        return None
    return replace(
        table,
        caption="Recalibration side by side (CDE loss may be better, NMAD and eta may be worse); "
        f"point estimates: mean; everything else is shown by calibration {asked}",
    )
