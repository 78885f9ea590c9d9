"""What `msdata plan` shows: the report as text for a terminal, and a figure against nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msdata.core.files import whole_file
from msdata.core.text import bytes_text, table_lines
from msdata.errors import needing
from msdata.plan.forecast import TIERS
from msdata.plan.timing import Variant

_SHOWN_EPOCHS = 12

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
        _render_head(report),
        _render_epochs(report),
        *_render_kinds(report["kinds_of_nodes"]),
        _render_closed_form(report),
        _render_what_if(report["what_if"]),
        *_render_by_nodes(report["by_nodes"]),
        _render_quality(report["quality"]),
        *_notes(report),
    ]
    return "\n\n".join(parts)


def _render_head(report: dict[str, Any]) -> str:
    data, job, caches = report["data"], report["job"], report["caches"]
    capacity = caches["memory_capacity_bytes"] + caches["ssd_capacity_bytes"]
    lines = [
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
    return "\n".join(lines)


def _coding_lines(data: dict[str, Any]) -> list[str]:
    if not data["decoded_bytes"]:
        return []
    recoded = data.get("recoded")
    lines = [
        f"        coded: {data['decoded_bytes'] / data['sample_bytes']:.2f} times smaller than the "
        f"{data['decoded_bytes']:,} bytes that a sample decodes to"
    ]
    if recoded is None:
        return lines
    if "num_samples" not in recoded:
        return [f"{lines[0]} (assumed)"]
    return [
        *lines,
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


def _render_epochs(report: dict[str, Any]) -> str:
    epochs = report["epochs"]
    shown = [e for e in epochs if e["exact"] or e["epoch"] == 0][:_SHOWN_EPOCHS]
    rows = [_epoch_row(_epoch_name(e), e) for e in shown]
    if len(epochs) > len(shown):
        rest = _range(len(shown), len(epochs) - 1)
        rows.append(_epoch_row(rest if epochs[-1]["exact"] else f"{rest} ~", epochs[-1]))
    header = ["epoch", *(f"{t} %" for t in TIERS), "from storage", "time", "bound by", "GPU wait"]
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
    return "\n".join([legend, *table_lines(header, rows), total, *_trials_lines(report["trials"])])


def _trials_lines(trials: dict[str, Any]) -> list[str]:
    if trials["trials"] == 1:
        return []
    shared, one = trials["storage_bytes_shared"], trials["storage_bytes_one"]
    return [
        f"{trials['trials']:,} trials that share this node's cache: {bytes_text(shared)} from "
        f"storage, {shared / one:.2f} of one trial's; "
        f"{bytes_text(trials['storage_bytes_apart'])} if each reads by itself"
    ]


def _render_kinds(kinds: Sequence[dict[str, Any]]) -> list[str]:
    if len(kinds) < 2:
        return []
    rows = [
        [
            str(kind["nodes"]),
            bytes_text(kind["memory_capacity_bytes"]),
            bytes_text(kind["ssd_capacity_bytes"]),
            bytes_text(kind["held_bytes_a_node"]),
            *(f"{100 * kind['shares'][t]:.2f}" for t in TIERS),
            bytes_text(kind["storage_bytes_a_node"]),
        ]
        for kind in kinds
    ]
    header = ["nodes", "memory", "SSD", "cached", *(f"{t} %" for t in TIERS), "from storage"]
    title = f"nodes by capacity, each of them in epoch {kinds[0]['epoch']}"
    return ["\n".join([title, *table_lines(header, rows)])]


def _epoch_name(epoch: dict[str, Any]) -> str:
    name = f"{epoch['epoch']} cold" if epoch["epoch"] == 0 else str(epoch["epoch"])
    return name if epoch["exact"] else f"{name} ~"


def _epoch_row(name: str, epoch: dict[str, Any]) -> list[str]:
    time = epoch["time"]
    return [
        name,
        *(f"{100 * epoch['shares'][t]:.2f}" for t in TIERS),
        bytes_text(epoch["storage_bytes"]),
        _duration(time["epoch_s"]),
        time["binds"] or "-",
        _duration(time["gpu_wait_s"]),
    ]


def _render_closed_form(report: dict[str, Any]) -> str:
    closed = report["closed_form"]
    rows = [
        ["these shards", *(f"{100 * closed['shares'][t]:.2f}" for t in TIERS)],
        ["many small shards", *(f"{100 * closed['shares_for_many_shards'][t]:.2f}" for t in TIERS)],
    ]
    lines = [
        "closed form, epochs after the first",
        *table_lines(["", *(f"{t} %" for t in TIERS)], rows),
        f"hits min(1, C/N) = {closed['hit_share']:.2%}",
    ]
    if report["job"]["policy"] == "locality":
        lines[-1] += (
            f"; moved with all cached sqrt((1 - 1/P)/(2 pi b)) = "
            f"{closed['moved_share_all_cached']:.2%}"
        )
    return "\n".join(lines)


def _render_what_if(variants: Sequence[dict[str, Any]]) -> str:
    rows = [[v["name"], str(v["nodes"]), *_epoch_row("", v)[1:]] for v in variants]
    header = ["", "nodes", *(f"{t} %" for t in TIERS)]
    header += ["from storage", "time", "bound by", "GPU wait"]
    title = "what would change, expected for an epoch after the first"
    return "\n".join([title, *table_lines(header, rows)])


def _render_by_nodes(variants: Sequence[dict[str, Any]]) -> list[str]:
    if not variants:
        return []
    rows = [[str(v["nodes"]), *_epoch_row("", v)[1:]] for v in variants]
    header = ["nodes", *(f"{t} %" for t in TIERS), "from storage", "time", "bound by", "GPU wait"]
    title = "on other numbers of nodes, expected for an epoch after the first"
    return ["\n".join([title, *table_lines(header, rows)])]


def _render_quality(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return "shuffle quality: not measured: the data do not fill one global batch"
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
    return "\n".join(table_lines(header, rows))


def _notes(report: dict[str, Any]) -> list[str]:
    notes = (_note_of_draws, _note_of_shards, _note_of_policy, _note_of_decoding)
    return [line for note in notes for line in note(report)]


def _note_of_decoding(report: dict[str, Any]) -> list[str]:
    times = [e["time"] for e in report["epochs"]]
    cores = max((t["decode_cores"] or 0 for t in times), default=0)
    if cores:
        return [
            f"note: decoding binds with {report['machine']['cores']:g} cores per node; {cores:,} "
            "lift it"
        ]
    machine = report["machine"]
    if not report["data"]["decoded_bytes"] or (machine["decode"] and machine["cores"]):
        return []
    return ["note: decoding may bind; 'msdata probe' measures what a core decodes"]


def _note_of_policy(report: dict[str, Any]) -> list[str]:
    job, closed = report["job"], report["closed_form"]
    if job["policy"] != "shuffle" or job["nodes"] == 1 or not closed["hit_share"]:
        return []
    return [
        "note: slurm/train_ddp.sh deals samples to the nodes that cache them (--policy locality), "
        'and so does\nLoader(policy="locality"); shuffle, the Loader\'s default, reads most of '
        "them from peers"
    ]


def _note_of_draws(report: dict[str, Any]) -> list[str]:
    if report["job"]["weights"] is None:
        return []
    return [
        "note: in the cold epoch a sample that is drawn again counts as read from storage; if "
        "its owner holds it by\nthen, it is one more hit"
    ]


def _note_of_shards(report: dict[str, Any]) -> list[str]:
    closed, caches = report["closed_form"], report["caches"]
    extra = closed["shares"]["peer"] - closed["shares_for_many_shards"]["peer"]
    fewest, most = caches["fewest_shards_of_a_node"], caches["most_shards_of_a_node"]
    if report["job"]["policy"] != "locality" or extra < 0.005 or most - fewest > 1:
        return []
    return [
        f"note: nodes hold {_range(fewest, most)} shards, and {extra:.2%} of the samples cross the "
        "network for that reason alone;\nto avoid it pack smaller shards, or a multiple of the "
        "number of nodes"
    ]


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
