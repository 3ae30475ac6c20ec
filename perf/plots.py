"""The pictures of one machine: how close to memory speed, how much faster than whom, and what a small call costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from .records import TIMED, Record, Result
from .table import duration

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")
OURS = "#1a1a1a"
TITLES = {"NT": "[N, T]: time contiguous", "TN": "[T, N]: lanes contiguous"}


def _plain(result: Result) -> bool:
    case = result.case
    same = (case.op, case.dtype, case.direction, case.mode, case.done) == ("gae", "float32", "forward", "eager", 0.01)
    return result.status == TIMED and same and not case.variants


def _finish(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
    return path


def _name(record: Record) -> str:
    about = record.machine
    name = f"{about['name']}, {about['threads']} threads" if record.device == "cpu" else str(about["name"])
    return name + (", MACHINE NOT QUIET" if record.disturbed else "")


def roofline(record: Record, path: Path) -> Path | None:
    """The fraction of ``clone()`` over T, one panel a layout; a line joins the shapes of as many lanes."""
    ours = [r for r in record.results if r.contender == "tritonrl" and _plain(r)]
    layouts = [layout for layout in ("NT", "TN") if any(r.case.layout == layout for r in ours)]
    if not layouts:
        return None
    figure, axes = plt.subplots(1, len(layouts), figsize=(5.5 * len(layouts), 4.2), sharey=True, squeeze=False)
    lane_counts = sorted({r.case.lanes for r in ours})
    for axis, layout in zip(axes[0], layouts, strict=True):
        for i, lanes in enumerate(lane_counts):
            points = sorted(
                (r for r in ours if (r.case.layout, r.case.lanes) == (layout, lanes)), key=lambda r: r.case.steps
            )
            values = [(r.case.steps, r.of_clone(m[0])) for r in points if (m := r.main(record.device)) is not None]
            values = [(t, v) for t, v in values if v is not None]
            if values:
                colour, marker = COLOURS[i % len(COLOURS)], "os^D"[i // len(COLOURS) % 4]
                axis.plot(*zip(*values, strict=True), label=f"{lanes:,}", color=colour, marker=marker)
        axis.axhline(1, color="#888888", linewidth=1, linestyle="--")
        axis.set(xscale="log", xlabel="steps T", title=TITLES[layout])
        axis.grid(alpha=0.25)
        axis.set_ylim(bottom=0)
    axes[0][0].set_ylabel("fraction of clone() of as many bytes")
    axes[0][-1].legend(title="lanes N", fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.suptitle(f"GAE forward, float32: how close to memory speed ({_name(record)})")
    return _finish(figure, path)


def speedup(record: Record, path: Path) -> Path | None:
    """The time of each peer over ours, for every plain GAE shape. Left of the line the peer is faster."""
    ours = {r.case.id: r for r in record.results if r.contender == "tritonrl" and _plain(r)}
    ours = dict(sorted(ours.items(), key=lambda item: (item[1].case.layout, item[1].bytes)))
    peers = dict.fromkeys(r.contender for r in record.results if r.case.id in ours and r.status == TIMED)
    names = [name for name in peers if not name.startswith("tritonrl")]
    if not ours or not names:
        return None
    figure, axis = plt.subplots(figsize=(8, 1.4 + 0.28 * len(ours)))
    smaller = {r.contender: bool(r.smaller) for r in record.results}
    for i, name in enumerate(names):
        points = []
        for y, (case, mine) in enumerate(ours.items()):
            main = mine.main(record.device)
            theirs = next((r for r in record.results if r.contender == name and r.case.id == case), None)
            if main is not None and theirs is not None and main[0] in theirs.clocks:
                points.append((theirs.clocks[main[0]].median / main[1].median, y))
        if points:
            label = name + (" (smaller problem)" if smaller[name] else "")
            ratios, places = zip(*points, strict=True)
            axis.scatter(ratios, places, label=label, color=COLOURS[i % len(COLOURS)], s=26, zorder=3)
    axis.axvline(1, color=OURS, linewidth=1)
    axis.set(xscale="log", xlabel="time / time of tritonrl (left of 1: faster than tritonrl)")
    axis.margins(x=0.05)
    left, right = axis.get_xlim()
    axis.set_xlim(min(left, 0.9), right)
    axis.axvspan(min(left, 0.9), 1, color="#ff725c", alpha=0.08, zorder=0)
    axis.set_yticks(range(len(ours)), [f"{r.case.shape} {r.case.layout}" for r in ours.values()], fontsize="small")
    axis.grid(alpha=0.25, axis="x")
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axis.set_title(f"GAE forward, float32: speed-up over each peer ({_name(record)})")
    return _finish(figure, path)


def overhead(record: Record, path: Path) -> Path | None:
    """What the smallest call costs, the host's time on a GPU and the full call on a CPU."""
    clock = "host" if record.device == "cuda" else "call"
    ours = [r for r in record.results if r.contender == "tritonrl" and _plain(r) and clock in r.clocks]
    if not ours:
        return None
    case = min(ours, key=lambda r: r.bytes).case
    found = [r for r in record.results if r.case == case and clock in r.clocks]
    found.sort(key=lambda r: r.clocks[clock].median, reverse=True)
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.35 * len(found)))
    times = [1e6 * r.clocks[clock].median for r in found]
    edges = [(r.clocks[clock].low, r.clocks[clock].high) for r in found]
    spread = [[t - 1e6 * low for t, (low, _) in zip(times, edges, strict=True)]]
    spread += [[1e6 * high - t for t, (_, high) in zip(times, edges, strict=True)]]
    colours = [OURS if r.contender.startswith("tritonrl") else COLOURS[0] for r in found]
    axis.errorbar(times, range(len(found)), xerr=spread, fmt="none", ecolor="#aaaaaa", zorder=2)
    axis.scatter(times, range(len(found)), color=colours, s=40, zorder=3)
    names = [r.contender + (" (smaller problem)" if r.smaller else "") for r in found]
    labels = [f"{name}: {duration(t * 1e-6)}" for name, t in zip(names, times, strict=True)]
    axis.set_yticks(range(len(found)), labels)
    axis.grid(alpha=0.25, axis="x")
    axis.set(
        xscale="log",
        xlabel=f"microseconds ({'until the call returns' if clock == 'host' else 'full call'}), median and quartiles",
    )
    axis.margins(y=0.1)
    axis.set_title(f"GAE forward at {case.shape} {case.layout}: what a small call costs ({_name(record)})")
    return _finish(figure, path)


def draw(record: Record, folder: Path, prefix: str) -> list[Path]:
    """Draw what the record has data for."""
    made = [
        roofline(record, folder / f"{prefix}-roofline.png"),
        speedup(record, folder / f"{prefix}-speedup.png"),
        overhead(record, folder / f"{prefix}-overhead.png"),
    ]
    return [path for path in made if path is not None]
