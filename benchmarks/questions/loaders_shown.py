"""What the report shows of the race of loaders: where ours leads, and in words where not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.question import Chart, Series, Shown, Table

# Shuffles that differ from uniform by less than this are as good: the scatter of few batches.
UNIFORM_WITHIN = 0.1
GOAL_OF_LIMIT, GOAL_UTILISATION = 0.9, 0.9

MEMORY = "peak memory"

Contestants = Mapping[str, Mapping[str, Any]]


def is_uniform(quality: Mapping[str, float]) -> bool:
    """Whether an order is as good as a uniform shuffle by both measures."""
    moved, repeated = quality["displacement"], quality["repeated_pairs"]
    return moved > 1 - UNIFORM_WITHIN and repeated < 1 + UNIFORM_WITHIN


def figures_of(result: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """The figures by which contestants are held against each other.

    Returns:
        For each contestant: `hot`, `cold` (samples/s), `convert` (samples/s), `memory` (bytes; less
        is better), and utilisation by the stub's rate.
    """
    found = {}
    for name, contestant in result["contestants"].items():
        figures: dict[str, float | None] = {
            kind: result[kind]
            .get("contestants", {})
            .get(name, {})
            .get("samples_per_s", {})
            .get("median")
            for kind in ("hot", "cold")
        }
        figures |= {
            "conversion": contestant["convert_per_s"],
            MEMORY: contestant["peak_memory"],
        }
        for rate, utilisation in result["utilisation"].items():
            figures[f"utilisation at {int(rate):,} samples/s"] = utilisation.get(name, {}).get(
                "median"
            )
        found[name] = figures
    return found


def leads_of(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """For each peer the measures by which it is ahead of the best of ours; limits have none."""
    contestants: Contestants = result["contestants"]
    figures = figures_of(result)
    ours = [n for n, c in contestants.items() if c["is_ours"] and is_uniform(c["quality"])]
    found = {}
    for name, contestant in contestants.items():
        if contestant["is_ours"] or contestant["is_limit"]:
            continue
        found[name] = [
            measure
            for measure, value in figures[name].items()
            if value is not None and _is_ahead(measure, value, _best(measure, ours, figures)[0])
        ]
    return found


def _is_ahead(measure: str, value: float, other: float | None) -> bool:
    if other is None:
        return False
    return value < other if measure == MEMORY else value > other


def _best(
    measure: str, names: list[str], figures: Mapping[str, Mapping[str, float | None]]
) -> tuple[float | None, str]:
    """The best figure of some contestants, and whose it is; None where none has one."""
    found = [(v, n) for n in names if (v := figures[n][measure]) is not None]
    if not found:
        return None, ""
    return min(found) if measure == MEMORY else max(found)


def sentences_of(result: Mapping[str, Any]) -> list[str]:
    """Where ours leads and where not, against peers whose shuffle is as good and against all."""
    contestants: Contestants = result["contestants"]
    figures = figures_of(result)
    ours = [n for n, c in contestants.items() if c["is_ours"] and is_uniform(c["quality"])]
    peers = [n for n, c in contestants.items() if not c["is_ours"] and not c["is_limit"]]
    found = []
    for measure in next(iter(figures.values()), {}):
        for names, whom in (
            ([n for n in peers if is_uniform(contestants[n]["quality"])], "that shuffle uniformly"),
            ([n for n in peers if not is_uniform(contestants[n]["quality"])], "that shuffle less"),
        ):
            sentence = _standing(measure, ours, names, contestants, figures)
            if sentence:
                found.append(sentence.format(whom=whom))
    reading_ahead = [n for n in peers if contestants[n]["reads_ahead"]]
    if len(reading_ahead) < len(peers):
        sentence = _standing(MEMORY, ours, reading_ahead, contestants, figures)
        if sentence:
            found.append(sentence.format(whom="that read ahead while the training computes"))
    found += _goals(result, ours)
    for kind, text in (("missing", "Not raced"), ("wrong", "Delivered wrong samples")):
        found += [f"{text}: {reason}." for reason in result[kind].values()]
    for kind, lost in result["lost"].items():
        found += [f"No {kind} figure: {reason}." for reason in lost.values()]
    return found


def _standing(
    measure: str,
    ours: list[str],
    peers: list[str],
    contestants: Contestants,
    figures: Mapping[str, Mapping[str, float | None]],
) -> str | None:
    own, own_name = _best(measure, ours, figures)
    best, best_name = _best(measure, peers, figures)
    if own is None or best is None:
        return None
    ratio = own / best if best else float("inf")
    word = "ahead" if _is_ahead(measure, own, best) else "NOT AHEAD"
    return (
        f"{measure}: {contestants[own_name]['title']} is {word} of the best of the peers {{whom}} "
        f"({contestants[best_name]['title']}): {ratio:.2f} of its figure."
    )


def _goals(result: Mapping[str, Any], ours: list[str]) -> list[str]:
    found = []
    for kind in ("hot", "cold"):
        ratios = result[kind].get("contestants", {})
        best = max((ratios[n]["of_limit"]["median"] for n in ours if n in ratios), default=None)
        if best is not None:
            word = "reached" if best >= GOAL_OF_LIMIT else "NOT reached"
            found.append(f"{kind}: {best:.2f} of the limit; the goal of {GOAL_OF_LIMIT} is {word}.")
            if best > 1.05:
                found.append(
                    f"{kind}: above 1, so the bare reads, in Python, are not the machine's limit "
                    "at this size of a sample."
                )
    for rate, utilisation in result["utilisation"].items():
        best = max((utilisation[n]["median"] for n in ours if n in utilisation), default=None)
        if best is not None:
            word = "reached" if best >= GOAL_UTILISATION else "NOT reached"
            found.append(
                f"utilisation at {int(rate):,} samples/s: {best:.1%}; the goal of "
                f"{GOAL_UTILISATION:.0%} is {word}."
            )
    return found


def _rate_chart(result: Mapping[str, Any], kind: str) -> Chart | None:
    found = result[kind].get("contestants", {})
    if not found:
        return None
    names = sorted(found, key=lambda n: -found[n]["samples_per_s"]["median"])
    rates = [found[name]["samples_per_s"] for name in names]
    return Chart(
        title=f"Samples per second, {kind}",
        kind="bars",
        labels=[result["contestants"][name]["title"] for name in names],
        x_label="samples/s, median; whiskers: least and greatest over turns",
        series=[
            Series(
                name=kind,
                values=[rate["median"] for rate in rates],
                least=[rate["least"] for rate in rates],
                greatest=[rate["greatest"] for rate in rates],
            )
        ],
    )


def _utilisation_chart(result: Mapping[str, Any]) -> Chart | None:
    tables = result["utilisation"]
    names = [n for n in result["contestants"] if all(n in table for table in tables.values())]
    if not names:
        return None
    return Chart(
        title="Accelerator utilisation with a compute stub",
        kind="bars",
        labels=[result["contestants"][name]["title"] for name in names],
        x_label="compute time over run time",
        series=[
            Series(
                name=f"{int(rate):,} samples/s",
                values=[table[name]["median"] for name in names],
                least=[table[name]["least"] for name in names],
                greatest=[table[name]["greatest"] for name in names],
            )
            for rate, table in tables.items()
        ],
    )


def _ratio_text(result: Mapping[str, Any], kind: str, name: str) -> str | None:
    found = result[kind].get("contestants", {}).get(name)
    if found is None:
        return None
    ratio = found["of_limit"]
    return f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['greatest']:.2f})"


def _num_turns(result: Mapping[str, Any]) -> dict[str, int]:
    return {
        kind: max(map(len, rates.values()), default=0) for kind, rates in result["rates"].items()
    }


def _table(result: Mapping[str, Any]) -> Table:
    figures, rates = figures_of(result), list(result["utilisation"])
    leads = leads_of(result)
    turns = ", ".join(f"{kind} {n} turns" for kind, n in _num_turns(result).items())
    rows = []
    for name, contestant in result["contestants"].items():
        quality, waits = contestant["quality"], contestant["waits"].get(rates[0], {})
        row: list[Any] = [contestant["title"], figures[name]["conversion"]]
        row += [contestant["bytes_on_disk"] / 1e9]
        for kind in ("hot", "cold"):
            row += [figures[name][kind], _ratio_text(result, kind, name)]
        row += [waits.get(key) for key in ("p50_ms", "p95_ms", "p99_ms")]
        row += [figures[name][f"utilisation at {int(rate):,} samples/s"] for rate in rates]
        row += [contestant[key] / (1 << 20) for key in ("peak_memory", "peak_memory_with_files")]
        row += [quality["displacement"], quality["repeated_pairs"]]
        row += [contestant["resume"].partition(":")[0]]
        rows.append([*row, ", ".join(leads[name]) or "nothing" if name in leads else None])
    heads = ["contestant", "converts/s", "GB on disk", "hot/s", "of the limit", "cold/s"]
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
            "millions does not."
        ),
    )


def _documentation_table(result: Mapping[str, Any]) -> Table:
    rows = []
    for contestant in result["contestants"].values():
        versions = ", ".join(f"{k} {v}" for k, v in contestant["versions"].items())
        words = [contestant[key] for key in ("shuffle", "resume", "advice")]
        rows.append([contestant["title"], versions or None, *words])
    return Table(
        title="How each was used",
        columns=("contestant", "versions", "shuffle", "resume", "advice followed"),
        rows=rows,
    )


def show(result: Mapping[str, Any]) -> Shown:
    """What the report shows of the race.

    Args:
        result: as `benchmarks.questions.loaders.answer` collects it.
    """
    charts = [_rate_chart(result, "hot"), _rate_chart(result, "cold"), _utilisation_chart(result)]
    return Shown(
        title="How fast are we, and everyone else, on the same bytes?",
        sentences=sentences_of(result),
        tables=[_table(result), _documentation_table(result)],
        charts=[chart for chart in charts if chart is not None],
    )
