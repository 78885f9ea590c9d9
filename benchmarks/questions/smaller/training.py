"""Does quantization cost accuracy? The same network trained on cutouts that were coded before.

It is the study of policies with other arms: all train by `shuffle`, and a seed draws the same
split, shards, weights and orders for each. The cutouts are quantized as `msdata pack` does, before
they become stamps. Coarse steps are the control: without harm there, the study would be blind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.questions.policies import LEAST_OBJECTS, Design
from benchmarks.questions.policies_data import Arm, Stamps, make_coded_stamps, pack_stamps
from benchmarks.questions.policies_effects import HARM, verdict_of
from msdata.errors import UsageError

REFERENCE = "float32"


@dataclass(frozen=True, kw_only=True)
class CodedArm(Arm):
    """An arm whose cutouts have some steps per sigma; None for float32."""

    quantize: float | None

    @property
    def title(self) -> str:
        """For people."""
        return REFERENCE if self.quantize is None else f"q = {self.quantize:g}"


@dataclass(frozen=True, kw_only=True)
class CodedDesign(Design):
    """What the study of coded cutouts does.

    Attributes:
        quantize: steps per sigma of its arms beside float32.
        controls: steps that are known to harm.
    """

    quantize: tuple[float, ...]
    controls: tuple[float, ...]
    buffers: tuple[int, ...] = ()

    @property
    def arms(self) -> list[Arm]:
        """Float32, then the steps, then the controls."""
        arms: list[Arm] = [
            CodedArm(name=REFERENCE, policy="shuffle", shards=REFERENCE, quantize=None)
        ]
        for steps in (*self.quantize, *self.controls):
            name = f"q{steps:g}"
            arms.append(
                CodedArm(
                    name=name, policy="shuffle", shards=name, reference=REFERENCE, quantize=steps
                )
            )
        return arms

    def make_stamps(self, data: Path | None, folder: Path, jobs: int) -> int:
        """Writes the stamps of all arms, unless it was done; returns how many each has."""
        paths = [folder / f"{arm.name}.npz" for arm in self.arms]
        if not all(path.is_file() for path in paths):
            folder.mkdir(parents=True, exist_ok=True)
            print(f"  making stamps of {self.num_objects:,} objects", flush=True)
            steps = (None, *self.quantize, *self.controls)
            made = make_coded_stamps(data, self.num_objects, jobs, steps)
            for path, stamps in zip(paths, made, strict=True):
                stamps.write(path)
        count = len(Stamps.read(paths[0]))
        if count < LEAST_OBJECTS:
            raise UsageError(
                f"{data} has {count} objects with redshift and E(B-V); a network learns nothing "
                f"from so few: give a data set of at least {LEAST_OBJECTS}"
            )
        return count

    def prepare(self, folder: Path, seed: int) -> None:
        """Packs a seed's data sets, unless it was done: the same objects in the same shards."""
        for arm in self.arms:
            stamps = Stamps.read(folder / f"{arm.name}.npz")
            out = folder / f"data-{seed}" / arm.shards
            pack_stamps(stamps, out, np.arange(len(stamps)), (seed, self.num_shards))


def sentences_of(result: Mapping[str, Any]) -> list[str]:
    """What was found, one sentence per arm, after whether the study sees harm at all."""
    design, arms = result["design"], [a for a in result["arms"] if a["reference"]]
    is_control = {f"q{steps:g}" for steps in design["controls"]}
    harmed = [a["title"] for a in arms if a["name"] in is_control and verdict_of(a) == HARM]
    found = [
        f"Trainings: {design['num_seeds']} seeds, {result['num_train']:,} stamps for "
        f"{design['epochs']} epochs, {result['num_test']:,} measured; differences are paired by "
        "seed, intervals are 95 % t intervals."
    ]
    found.append(
        f"The control works: the study sees harm at {'; '.join(harmed)}."
        if harmed
        else "THE CONTROL FAILED: no harm was seen even with coarse steps, so 'no harm seen' means "
        "little; take more seeds, objects or epochs."
    )
    return found + [
        f"{arm['title']} against float32: {verdict_of(arm)}; NMAD {interval_of(arm)}, harm from "
        f"{percent_of(arm, 'smallest_seen'):.1f} % on would have been seen in four of five such "
        "studies."
        for arm in arms
    ]


def percent_of(arm: Mapping[str, Any], name: str) -> float:
    """A figure of an arm's effect on the NMAD, in percent of float32's."""
    effect = arm["effects"]["nmad"]
    return 100 * float(effect[name]) / float(effect["reference"])


def interval_of(arm: Mapping[str, Any]) -> str:
    """The difference of the NMAD with its interval, for people."""
    low, high = percent_of(arm, "low"), percent_of(arm, "high")
    return f"{percent_of(arm, 'difference'):+.1f} % ({low:+.1f} to {high:+.1f})"
