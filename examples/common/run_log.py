"""What a run writes for people to read: settings, metrics and the learning curve."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from importlib import metadata

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from .checkpoints import CHECKPOINT, settings_of
from .options import Parser


class RunLog:
    """config.json, metrics.csv, TensorBoard scalars and learning_curve.png in one folder.

    ``curves`` says what to draw: names of metrics, and what to call them.
    """

    outcome = ""  # how the run ended
    unit = "environment steps"  # what the steps are

    def __init__(self, parser: Parser, args: argparse.Namespace, rows: list[dict[str, float]]) -> None:
        self.folder, self.rows, self.title = args.out, rows, f"{args.env}, seed {args.seed}"
        self.curves = {"return": "mean return"}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"argument --out: cannot make the folder: {error}")
        if not rows:  # a new run must not be mistaken for the one that it overwrites
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        versions = {name: metadata.version(name) for name in ("tritonrl", "torch", "tensordict", "gymnasium", "numpy")}
        config = {**settings_of(args), "versions": {"python": sys.version.split()[0], **versions}}
        (self.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        # A resumed run writes its past anew, because a killed one may have logged more than its last checkpoint knows.
        self.file = open(self.folder / "metrics.csv", "w", newline="")  # noqa: SIM115 (closed in `close`)
        self.csv = csv.writer(self.file)
        self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=0)
        for row in rows:
            self._write(row)

    def add(self, row: dict[str, float]) -> None:
        """One line for one update. Every row must have the names of the first: NaN stands for what is not there yet.

        Raises:
            ValueError: if a name is missing or new.
        """
        if self.rows and row.keys() != self.rows[0].keys():
            raise ValueError(f"add: expected the names {list(self.rows[0])}, got {list(row)}")
        self.rows.append(row)
        self._write(row)
        self.file.flush()

    def _write(self, row: dict[str, float]) -> None:
        if row is self.rows[0]:
            self.csv.writerow(row)
        self.csv.writerow([row[name] for name in self.rows[0]])
        for name, value in row.items():
            if name != "step":
                self.board.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Draw the learning curve and close the files."""
        figure = Figure(figsize=(7, 1 + 3 * len(self.curves)), layout="constrained")
        panels = figure.subplots(len(self.curves), sharex=True, squeeze=False)[:, 0]
        for axes, (name, label) in zip(panels, self.curves.items(), strict=True):
            axes.plot([row["step"] for row in self.rows], [row[name] for row in self.rows])
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
        panels[0].set_title(f"{self.title} ({self.outcome or 'broken off'})")
        panels[-1].set_xlabel(self.unit)
        figure.savefig(self.folder / "learning_curve.png", dpi=120)
        self.file.close()
        self.board.close()
