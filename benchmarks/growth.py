"""How the cost of an update grows with what it is given: steps of a window, windows, imagined steps, width.

    python benchmarks/growth.py --out results/growth.csv

The update is that of size S in benchmarks/update.py (batch 16 x 64, 15 imagined steps, 256 units), on one thread, and
one of its four numbers is changed at a time; at last, the shape of a batch of as many steps. `seconds` is the median of
the updates, `gflop` what their products count, and NAME.png shows the growth of both. How sampling and memory grow with
the steps of a replay is in benchmarks/replay.py.
"""

import argparse
import csv
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from update import HERE, OURS, Worker

SAMPLES = 1024  # of a batch
AXES = {
    "window": [8, 16, 32, 64, 128],
    "batch": [2, 4, 8, 16, 32],
    "horizon": [2, 4, 8, 15, 30, 60],
    "width": [32, 64, 128, 256, 512],
    "shape": [8, 16, 32, 64, 128],
}
NAMES = {"window": "steps in a window T", "batch": "windows B", "horizon": "imagined steps H", "width": "width"}
NAMES["shape"] = f"steps in a window T, {SAMPLES} / T windows"
Row = tuple[str, int, float, float]


def measured(axis: str, value: int, updates: int) -> Row:
    given = [f"--{axis}", str(value)]
    if axis == "shape":
        given = ["--window", str(value), "--batch", str(SAMPLES // value)]
    worker = Worker(OURS, [sys.executable, str(HERE / "update_ours.py"), *given], 1)
    worker.turn(updates)
    worker.close()
    return axis, value, statistics.median(worker.wall[0]), worker.told["gflop"]


def draw(rows: list[Row], picture: Path) -> None:
    """Seconds of an update, and what they would be if they grew with the products alone, or in proportion."""
    figure, panels = plt.subplots(1, len(AXES), figsize=(4 * len(AXES), 3.4), layout="constrained")
    for panel, axis in zip(panels, AXES, strict=True):
        values, seconds, gflop = zip(*(row[1:] for row in rows if row[0] == axis), strict=True)
        panel.loglog(values, seconds, "o-", label="an update")
        panel.loglog(values, [seconds[-1] * each / gflop[-1] for each in gflop], ":", label="as its products")
        if axis != "shape":
            panel.loglog(values, [seconds[-1] * each / values[-1] for each in values], "--", label="in proportion")
        panel.set(xlabel=NAMES[axis], ylabel="seconds", ylim=(0.05, 6))
        panel.set_xticks(values, [str(value) for value in values])
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.3, which="both")
        panel.legend(fontsize=8)
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=3, help="of each; default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [measured(axis, value, options.updates) for axis, values in AXES.items() for value in values]
    with options.out.open("w", newline="") as file:
        for table in (csv.writer(file), csv.writer(sys.stdout)):
            table.writerow(("changed", "value", "seconds", "gflop"))
            table.writerows((axis, value, f"{seconds:.4g}", f"{gflop:.4g}") for axis, value, seconds, gflop in rows)
    draw(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
