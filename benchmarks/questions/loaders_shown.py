"""What the report shows of the race of loaders: where ours leads, and in words where not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness import interval_text
from benchmarks.report import Chart, Shown, Table, bars_of
from msdata.core.text import bytes_text

# Shuffles that differ from uniform by less than this are as good: the scatter of few batches.
UNIFORM_WITHIN = 0.1
GOAL_OF_LIMIT, GOAL_UTILIZATION = 0.9, 0.9
MEMORY = "peak memory"
# Of the memory that is left, files beside what processes and the loaders' own caches hold.
_CACHED_AT_MOST = 0.8

Contestants = Mapping[str, Mapping[str, Any]]
Figures = Mapping[str, Mapping[str, float | None]]


def is_uniform(quality: Mapping[str, float]) -> bool:
    """Whether an order is as good as a uniform shuffle by both measures."""
    moved, repeated = quality["displacement"], quality["repeated_pairs"]
    return moved > 1 - UNIFORM_WITHIN and repeated < 1 + UNIFORM_WITHIN


def figures_of(result: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """The figures by which contestants are compared.

    Returns:
        For each contestant: `hot`, `cold` (samples/s), `conversion` (samples/s), `peak memory`
        (bytes; less is better), and utilization by the stub's rate.
    """
    hot, cold = (result[kind].get("contestants", {}) for kind in ("hot", "cold"))
    return {
        name: {
            "hot": hot[name]["samples_per_s"]["median"] if name in hot else None,
            "cold": cold[name]["samples_per_s"]["median"] if name in cold else None,
            "conversion": contestant["convert_per_s"],
            MEMORY: contestant["peak_memory"],
            **{
                _utilization(rate): by_name.get(name, {}).get("median")
                for rate, by_name in result["utilization"].items()
            },
        }
        for name, contestant in result["contestants"].items()
    }


def _utilization(rate: str) -> str:
    return f"utilization at {int(rate):,} samples/s"


def leads_of(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """For each peer the measures by which it is ahead of the best of ours; limits have none."""
    figures, ours = figures_of(result), _ours(result)
    return {
        name: [
            measure
            for measure, value in figures[name].items()
            if _is_ahead(measure, value, _best(measure, ours, figures)[0])
        ]
        for name in _peers(result)
    }


def _ours(result: Mapping[str, Any]) -> list[str]:
    """Those of ours that keep all bytes and shuffle uniformly."""
    return [
        name
        for name, c in result["contestants"].items()
        if c["is_ours"] and not c["is_lossy"] and is_uniform(c["quality"])
    ]


def _peers(result: Mapping[str, Any]) -> list[str]:
    """Those of others that keep all bytes."""
    found = result["contestants"].items()
    return [n for n, c in found if not (c["is_ours"] or c["is_limit"] or c["is_lossy"])]


def _is_ahead(measure: str, value: float | None, other: float | None) -> bool:
    if value is None or other is None:
        return False
    return value < other if measure == MEMORY else value > other


def _best(measure: str, names: list[str], figures: Figures) -> tuple[float | None, str]:
    """The best figure of some contestants, and whose it is; None where none has one."""
    found = [(v, n) for n in names if (v := figures[n][measure]) is not None]
    return (min if measure == MEMORY else max)(found, default=(None, ""))


def sentences_of(result: Mapping[str, Any]) -> list[str]:
    """Where ours leads and where not, against peers whose shuffle is as good and against all."""
    contestants: Contestants = result["contestants"]
    figures, ours = figures_of(result), _ours(result)
    peers = _peers(result)
    uniform = [n for n in peers if is_uniform(contestants[n]["quality"])]
    ahead = [n for n in peers if contestants[n]["reads_ahead"]]
    groups = {
        "that shuffle uniformly": uniform,
        "that shuffle less": [n for n in peers if n not in uniform],
        "that read ahead while the training computes": ahead,
    }
    measures, (*whoms, reading_ahead) = next(iter(figures.values()), {}), groups
    asked = [(measure, whom) for measure in measures for whom in whoms]
    asked += [(MEMORY, reading_ahead)] if len(ahead) < len(peers) else []
    found = []
    for measure, whom in asked:
        own, own_name = _best(measure, ours, figures)
        best, best_name = _best(measure, groups[whom], figures)
        if own is not None and best is not None:
            word = "ahead" if _is_ahead(measure, own, best) else "NOT AHEAD"
            found.append(
                f"{measure}: {contestants[own_name]['title']} is {word} of the best of the peers "
                f"{whom} ({contestants[best_name]['title']}): "
                f"{own / best if best else float('inf'):.2f} of its figure."
            )
    if result["is_resumed"]:
        found.append("Resumed after an interruption: turns are of two or more runs of the command.")
    if result["files_nbytes"] > _CACHED_AT_MOST * result["memory_nbytes"]:
        files, memory = (bytes_text(result[f"{key}_nbytes"]) for key in ("files", "memory"))
        found.append(
            f"Hot figures may read the disk: all contestants' files take {files}, and memory that "
            f"could hold them is {memory}."
        )
    found += [*_goals(result, ours), *_lossy(result, ours)]
    for kind, text in (("missing", "Not raced"), ("wrong", "Delivered wrong samples")):
        found += [f"{text}: {reason}." for reason in result[kind].values()]
    for kind, lost in result["lost"].items():
        found += [f"No {kind} figure: {reason}." for reason in lost.values()]
    return found


def _goals(result: Mapping[str, Any], ours: list[str]) -> list[str]:
    found = []
    for kind in ("hot", "cold"):
        ratios = result[kind].get("contestants", {})
        best = max((ratios[n]["of_limit"]["median"] for n in ours if n in ratios), default=None)
        if best is not None:
            word = "reached" if best >= GOAL_OF_LIMIT else "NOT reached"
            found.append(f"{kind}: {best:.2f} of the limit; the goal of {GOAL_OF_LIMIT} is {word}.")
        if best is not None and best > 1.05:
            found.append(
                f"{kind}: above 1, so the bare reads, in Python, are not the machine's limit "
                "at this size of a sample."
            )
    for rate, by_name in result["utilization"].items():
        best = max((by_name[n]["median"] for n in ours if n in by_name), default=None)
        if best is not None:
            word = "reached" if best >= GOAL_UTILIZATION else "NOT reached"
            goal = f"the goal of {GOAL_UTILIZATION:.0%} is {word}."
            found.append(f"{_utilization(rate)}: {best:.1%}; {goal}")
    return found


def _lossy(result: Mapping[str, Any], ours: list[str]) -> list[str]:
    """What contestants that keep fewer bytes give, beside the best of ours that keep all."""
    found, figures = [], figures_of(result)
    whole = result["num_samples"] * result["sample_nbytes"]
    for name, contestant in result["contestants"].items():
        if not contestant["is_lossy"]:
            continue
        ratios = []
        for measure, value in figures[name].items():
            best = _best(measure, ours, figures)[0]
            if value is not None and best:
                ratios.append(f"{measure} {value / best:.2f}")
        found.append(
            f"{contestant['title']} keeps {contestant['bytes_on_disk'] / whole:.2f} of the bytes "
            f"(largest error {contestant['error_of_bound']:.2f} of what its coding allows), so it "
            f"is compared with no peer; of the best of ours that keep all: {', '.join(ratios)}."
        )
    return found


def _charts(result: Mapping[str, Any]) -> list[Chart]:
    contestants: Contestants = result["contestants"]

    def bars(title: str, x_label: str, tables: Mapping[str, Mapping[str, Any]]) -> Chart:
        names = [n for n in contestants if all(n in table for table in tables.values())]
        if len(tables) == 1:
            (only,) = tables.values()
            names.sort(key=lambda name: -only[name]["median"])
        titles = [contestants[name]["title"] for name in names]
        series = {name: [table[n] for n in names] for name, table in tables.items()}
        return bars_of(title, x_label, titles, series)

    rates = "samples/s, median; whiskers: least and greatest over turns"
    found = []
    for kind in ("hot", "cold"):
        of_kind = result[kind].get("contestants", {})
        speeds = {name: measured["samples_per_s"] for name, measured in of_kind.items()}
        found.append(bars(f"Samples per second, {kind}", rates, {kind: speeds}))
    title = "Accelerator utilization with a compute stub"
    stubs = {f"{int(rate):,} samples/s": table for rate, table in result["utilization"].items()}
    found.append(bars(title, "compute time over run time", stubs))
    return [chart for chart in found if chart.series and chart.labels]


def _table(result: Mapping[str, Any]) -> Table:
    figures, rates, leads = figures_of(result), list(result["utilization"]), leads_of(result)
    turns = ", ".join(f"{kind} {n} turns" for kind, n in result["num_turns"].items())
    rows = []
    for name, contestant in result["contestants"].items():
        quality, waits = contestant["quality"], contestant["waits"].get(rates[0], {})
        row: list[Any] = [contestant["title"], figures[name]["conversion"]]
        row += [contestant["bytes_on_disk"] / (1 << 30)]
        for kind in ("hot", "cold"):
            found = result[kind].get("contestants", {}).get(name)
            row += [figures[name][kind], found and interval_text(found["of_limit"])]
        row += [waits.get(key) for key in ("p50_ms", "p95_ms", "p99_ms")]
        row += [figures[name][_utilization(rate)] for rate in rates]
        row += [contestant[key] / (1 << 20) for key in ("peak_memory", "peak_memory_with_files")]
        row += [quality["displacement"], quality["repeated_pairs"]]
        row += [contestant["resume"].partition(":")[0]]
        rows.append([*row, ", ".join(leads[name]) or "nothing" if name in leads else None])
    heads = ["contestant", "converts/s", "GiB on disk", "hot/s", "of the limit", "cold/s"]
    heads += ["of the limit", "wait p50 ms", "p95", "p99"]
    heads += [f"AU at {int(rate):,}/s" for rate in rates]
    heads += ["peak MiB", "with mapped files", "displacement", "repeated pairs", "resume"]
    heads += ["ahead of ours in"]
    return Table(
        title="Contestants",
        columns=heads,
        rows=rows,
        in_readme=True,
        note=(
            f"{result['num_samples']:,} samples of {result['sample_nbytes']:,} bytes, batches of "
            f"{result['batch_size']}, {result['num_workers']} workers; {turns}. AU: time of a stub "
            "that sleeps as long as a step at that rate would take, over the time of the epochs; "
            f"waits are those at {int(rates[0]):,}/s. Peak: PSS of anonymous and shared "
            "memory of the process tree while every byte is compared; beside it with pages of "
            "mapped files, which the kernel drops when it needs room. Displacement and repeated "
            "pairs: over those of a uniform shuffle, 1 is uniform. Ahead of ours in: of the best "
            "of ours, by medians. A dash in converts/s: reads the objects as they are. Hot and AU: "
            "after each contestant's files were read from front to back. Cold "
            "includes the start of workers. Peers with a shuffle buffer are measured as they were "
            "here: a buffer that holds the whole of so few samples shuffles them uniformly, one of "
            "millions does not. Contestants that keep fewer bytes than they were given (coded) are "
            "compared byte for byte with what their records decode to one by one, and those with "
            "the objects within the error that the coding allows; no peer is compared with them."
        ),
    )


def show(result: Mapping[str, Any]) -> Shown:
    """What the report shows of the race, as `benchmarks.questions.loaders.answer` collects it."""
    used = Table(
        title="How each was used",
        columns=("contestant", "versions", "shuffle", "resume", "advice followed"),
        rows=[
            [
                contestant["title"],
                ", ".join(f"{k} {v}" for k, v in contestant["versions"].items()) or None,
                *(contestant[key] for key in ("shuffle", "resume", "advice")),
            ]
            for contestant in result["contestants"].values()
        ],
    )
    size = bytes_text(result["sample_nbytes"])
    return Shown(
        title=f"How fast are we, and everyone else, on the same bytes? Samples of {size}",
        sentences=sentences_of(result),
        tables=[_table(result), used],
        charts=_charts(result),
    )
