"""What `msdata plan` shows: the report as text for a terminal, and a figure against nodes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msdata.core.files import whole_file
from msdata.core.text import bytes_text, table_lines
from msdata.errors import needing
from msdata.plan.forecast import TIERS
from msdata.plan.timing import Variant

_SHOWN_EPOCHS = 12
_SHARES = tuple(f"{tier} %" for tier in TIERS)
_READS = (*_SHARES, "from storage", "time", "bound by", "GPU wait")

_LAST = {
    "drop": "the rest left out",
    "pad": "the last one filled up",
    "short": "the last one short",
}
_QUALITY = {
    "same_shard_pairs_per_batch": "pairs of one shard per batch",
    "repeated_pairs_per_batch": "pairs that shared a batch in the epoch before",
    "drawn_in_an_epoch": "data drawn at least once per epoch",
    "displacement": "displacement between epochs, share of the epoch",
    "redshift_mean_scatter": "scatter of the mean redshift of batches",
    "redshift_distribution_distance": "distance of redshift distributions (KS)",
    "seen_by_one_rank": "data one rank has seen after {} epochs",
}

# Told apart by readers with any color vision, and in print. Source: Okabe & Ito, "Color Universal
# Design" (2008).
TIER_COLORS = ("#0072b2", "#56b4e9", "#f0e442", "#d55e00")
_PART_COLORS = ("#0072b2", "#56b4e9", "#e69f00", "#d55e00", "#000000", "#cc79a7", "#009e73")
_MARKERS = "osD^vPX"
_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def render_report(report: dict[str, Any]) -> str:
    """Lay out a report for people.

    Args:
        report: of `build_report`.

    Returns:
        Lines of at most 120 characters, for the numbers of usual jobs.
    """
    parts = [
        _head_lines(report),
        _epoch_lines(report),
        _kind_lines(report["kinds_of_nodes"]),
        _closed_form_lines(report),
        _what_if_lines(report["what_if"]),
        _by_nodes_lines(report["by_nodes"]),
        _quality_lines(report["quality"]),
        *([f"note: {note}"] for note in _notes(report)),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _head_lines(report: dict[str, Any]) -> list[str]:
    data, job, caches = report["data"], report["job"], report["caches"]
    capacity = caches["memory_capacity_bytes"] + caches["ssd_capacity_bytes"]
    return [
        f"data    {data.get('name', '')}: {data['samples']:,} samples of "
        f"{data['sample_bytes']:,.0f} bytes, {bytes_text(data['bytes'])} in {data['shards']:,} "
        "shards",
        *_coding_lines(data),
        f"job     {job['nodes']:,} nodes x {job['ranks_per_node']} ranks x "
        f"{job['batch_per_rank']} samples = {job['global_batch']:,} per step, "
        f"{job['steps_per_epoch']:,} steps per epoch ({_LAST[job['last']]})",
        f"        policy {job['policy']}, seed {job['seed']}, {job['epochs']} epochs",
        *_weights_lines(job),
        f"caches  memory {bytes_text(caches['memory_capacity_bytes'])}, "
        f"SSD {bytes_text(caches['ssd_capacity_bytes'])}: room for {capacity / data['bytes']:.1%} "
        f"of the data; {caches['cached_share']:.2%} of the samples cached, "
        f"{_range(caches['fewest_shards_of_a_node'], caches['most_shards_of_a_node'])} shards "
        "per node",
    ]


def _coding_lines(data: dict[str, Any]) -> list[str]:
    if not data["decoded_bytes"]:
        return []
    recoded = data.get("recoded")
    line = (
        f"        coded: {data['decoded_bytes'] / data['sample_bytes']:.2f} times smaller than the "
        f"{data['decoded_bytes']:,} bytes that a sample decodes to"
    )
    if recoded is None:
        return [line]
    if "num_samples" not in recoded:
        return [f"{line} (assumed)"]
    return [
        line,
        f"        as packed with {recoded['options']}, measured on {recoded['num_samples']:,} "
        f"samples (+- {recoded['relative_error']:.1%})",
    ]


def _weights_lines(job: dict[str, Any]) -> list[str]:
    weights = job["weights"]
    if weights is None:
        return []
    return [
        f"        drawn with replacement by {job.get('weights_of', 'weights')}: "
        f"{weights['effective_samples']:,.0f} effective samples,",
        f"        the largest weight {weights['largest_over_mean']:,.4g} times the mean, "
        f"{weights['never_drawn']:,} samples never drawn",
    ]


def _epoch_lines(report: dict[str, Any]) -> list[str]:
    epochs = report["epochs"]
    shown = [e for e in epochs if e["exact"] or e["epoch"] == 0][:_SHOWN_EPOCHS]
    named = [("0 cold" if e["epoch"] == 0 else str(e["epoch"]), e) for e in shown]
    if len(epochs) > len(shown):
        named.append((_range(len(shown), len(epochs) - 1), epochs[-1]))
    rows = [[name if e["exact"] else f"{name} ~", *_reads(e)] for name, e in named]
    whole = report["whole_job"]
    total = f"whole job: {bytes_text(whole['storage_bytes'])} from storage"
    if whole["seconds"] is not None:
        total += f", {_duration(whole['seconds'])}"
    legend = "reads by tier; exact, replayed from the loader's own functions"
    num_exact = sum(e["exact"] for e in epochs)
    if num_exact < len(epochs):
        legend += (
            f";\n~ expected, by the closed form; {num_exact} of {len(epochs)} epochs were "
            "replayed, --replay-epochs N replays more"
        )
    table = table_lines(("epoch", *_READS), rows)
    return [legend, *table, total, *_trials_lines(report["trials"])]


def _trials_lines(trials: dict[str, Any]) -> list[str]:
    if trials["trials"] == 1:
        return []
    shared, one = trials["storage_bytes_shared"], trials["storage_bytes_one"]
    return [
        f"{trials['trials']:,} trials that share this node's cache: {bytes_text(shared)} from "
        f"storage, {shared / one:.2f} of one trial's; "
        f"{bytes_text(trials['storage_bytes_apart'])} if each reads by itself"
    ]


def _kind_lines(kinds: Sequence[dict[str, Any]]) -> list[str]:
    if len(kinds) < 2:
        return []
    rows = [
        [
            str(kind["nodes"]),
            bytes_text(kind["memory_capacity_bytes"]),
            bytes_text(kind["ssd_capacity_bytes"]),
            bytes_text(kind["held_bytes_a_node"]),
            *_percents(kind["shares"]),
            bytes_text(kind["storage_bytes_a_node"]),
        ]
        for kind in kinds
    ]
    title = f"nodes by capacity, each of them in epoch {kinds[0]['epoch']}"
    head = ("nodes", "memory", "SSD", "cached", *_SHARES, "from storage")
    return [title, *table_lines(head, rows)]


def _percents(shares: dict[str, float]) -> list[str]:
    return [f"{100 * shares[tier]:.2f}" for tier in TIERS]


def _reads(epoch: dict[str, Any]) -> list[str]:
    """The cells of `_READS`."""
    time = epoch["time"]
    return [
        *_percents(epoch["shares"]),
        bytes_text(epoch["storage_bytes"]),
        _duration(time["epoch_s"]),
        time["binds"] or "-",
        _duration(time["gpu_wait_s"]),
    ]


def _closed_form_lines(report: dict[str, Any]) -> list[str]:
    closed = report["closed_form"]
    rows = [
        ["these shards", *_percents(closed["shares"])],
        ["many small shards", *_percents(closed["shares_for_many_shards"])],
    ]
    last = f"hits min(1, C/N) = {closed['hit_share']:.2%}"
    if report["job"]["policy"] == "locality":
        last += (
            f"; moved with all cached sqrt((1 - 1/P)/(2 pi b)) = "
            f"{closed['moved_share_all_cached']:.2%}"
        )
    return ["closed form, epochs after the first", *table_lines(("", *_SHARES), rows), last]


def _what_if_lines(variants: Sequence[dict[str, Any]]) -> list[str]:
    rows = [[v["name"], str(v["nodes"]), *_reads(v)] for v in variants]
    title = "what would change, expected for an epoch after the first"
    return [title, *table_lines(("", "nodes", *_READS), rows)]


def _by_nodes_lines(variants: Sequence[dict[str, Any]]) -> list[str]:
    rows = [[str(v["nodes"]), *_reads(v)] for v in variants]
    title = "on other numbers of nodes, expected for an epoch after the first"
    return [title, *table_lines(("nodes", *_READS), rows)] if rows else []


def _quality_lines(measured: dict[str, Any] | None) -> list[str]:
    if measured is None:
        return ["shuffle quality: not measured: the data do not fill one global batch"]
    rows = []
    for name, words in _QUALITY.items():
        if name in measured:
            one = measured[name]
            ratio = "-" if one["ratio"] is None else f"{one['ratio']:.3f}"
            label = words.format(measured["seen_after_epochs"])
            rows.append([label, f"{one['value']:.4g}", f"{one['uniform']:.4g}", ratio])
    header = ["shuffle quality", "measured", "uniform draw", "ratio"]
    if "drawn_in_an_epoch" in measured:
        header[2] = "independent"
    return list(table_lines(header, rows))


def _notes(report: dict[str, Any]) -> Iterator[str]:
    job, closed, caches = report["job"], report["closed_form"], report["caches"]
    if job["weights"] is not None:
        yield (
            "in the cold epoch a sample that is drawn again counts as read from storage; if "
            "its owner holds it by\nthen, it is one more hit"
        )
    extra = closed["shares"]["peer"] - closed["shares_for_many_shards"]["peer"]
    fewest, most = caches["fewest_shards_of_a_node"], caches["most_shards_of_a_node"]
    if job["policy"] == "locality" and extra >= 0.005 and most - fewest <= 1:
        yield (
            f"nodes hold {_range(fewest, most)} shards, and {extra:.2%} of the samples cross the "
            "network for that reason alone;\nto avoid it pack smaller shards, or a multiple of the "
            "number of nodes"
        )
    if job["policy"] == "shuffle" and job["nodes"] > 1 and closed["hit_share"]:
        yield (
            "slurm/train_ddp.sh deals samples to the nodes that cache them (--policy locality), "
            'and so does\nLoader(policy="locality"); shuffle, the Loader\'s default, reads most of '
            "them from peers"
        )
    machine = report["machine"]
    cores = max((e["time"]["decode_cores"] or 0 for e in report["epochs"]), default=0)
    if cores:
        yield f"decoding binds with {machine['cores']:g} cores per node; {cores:,} lift it"
    elif report["data"]["decoded_bytes"] and not (machine["decode"] and machine["cores"]):
        yield "decoding may bind; 'msdata probe' measures what a core decodes"


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def draw_by_nodes(variants: Sequence[Variant], path: Path) -> None:
    """Draw the shares of reads by tier, and the time per epoch, against the number of nodes.

    Args:
        variants: one per number of nodes, ascending.
        path: PNG file to write.

    Raises:
        MissingPackageError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    figure = figure_of(variants)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": "msdata"})


def figure_of(variants: Sequence[Variant]) -> Any:
    """The figure, a matplotlib `Figure` of one panel, or two where rates are known.

    Args:
        variants: one per number of nodes, ascending.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    with needing("a figure needs matplotlib", "bench"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    has_times = any(v.time.epoch_s is not None for v in variants)
    figure = Figure(figsize=(9 if has_times else 5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if has_times else 1, squeeze=False)[0]
    _draw_tiers(panels[0], variants)
    if has_times:
        _draw_times(panels[1], variants)
    names = [f"{v.num_nodes:,}" for v in variants]
    for panel in panels:
        panel.set(xlabel="nodes", xticks=range(len(names)), xticklabels=names)
    return figure


def _draw_tiers(panel: Any, variants: Sequence[Variant]) -> None:
    bottoms = [0.0] * len(variants)
    for number, (tier, color) in enumerate(zip(TIERS, TIER_COLORS, strict=True)):
        heights = [100 * float(v.forecast.shares[number]) for v in variants]
        panel.bar(
            range(len(variants)),
            heights,
            bottom=bottoms,
            label=tier,
            color=color,
            edgecolor="white",
            width=0.8,
        )
        bottoms = [b + h for b, h in zip(bottoms, heights, strict=True)]
    panel.set(ylabel="reads [%]", ylim=(0, 100), title="where samples come from")
    panel.legend(loc="lower right", fontsize="small")


def _draw_times(panel: Any, variants: Sequence[Variant]) -> None:
    parts = variants[0].time.busy_s
    longest_s = max(v.time.busy_s[part] or 0.0 for v in variants for part in parts)
    unit, unit_s = next((u for u in _UNITS if longest_s >= 2 * u[1]), _UNITS[-1])
    for number, part in enumerate(parts):
        # A logarithmic axis has no place for a part with nothing to do.
        times = [(v.time.busy_s[part] or math.nan) / unit_s for v in variants]
        panel.plot(
            range(len(variants)),
            times,
            marker=_MARKERS[number % len(_MARKERS)],
            color=_PART_COLORS[number % len(_PART_COLORS)],
            label=part,
        )
    panel.set(ylabel=f"{unit} per epoch", yscale="log", title="what limits an epoch")
    panel.legend(fontsize="small")
