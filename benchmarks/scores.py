"""Results as others publish them: tables with intervals, and the JSON form of DreamerV3's published scores.

    python benchmarks/scores.py results/control.csv --at 50000 100000 --json results/control.json

At a number of frames a seed's score is that of its last evaluation by then. Reported are mean, interquartile mean
and a 95 % bootstrap interval of the mean over seeds (Agarwal et al. 2021, "Deep RL at the Edge of the Statistical
Precipice"); with few seeds the interval is wide, and says so. The JSON holds {task, method, seed, xs, ys}, xs in
frames, for overlays with other people's curves.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import learning_rows
import numpy as np

Curves = dict[tuple[str, str], dict[int, list[tuple[float, float]]]]
"""{(task, method): {seed: [(frames, return), ...]}}"""


def read(file: Path, commit: str = "") -> Curves:
    """The curves of a file, by the code of one commit."""
    curves: Curves = defaultdict(lambda: defaultdict(list))
    for row in learning_rows.one_each(learning_rows.read(file), commit):
        point = (float(row["frames"]), float(row["return"]))
        curves[row["task"], row["variant"]][int(row["seed"])].append(point)
    return curves


def at(curve: list[tuple[float, float]], frames: float) -> float:
    """The last return by then; nan if there is none yet."""
    return next((value for place, value in sorted(curve, reverse=True) if place <= frames), float("nan"))


def iqm(scores: np.ndarray) -> np.ndarray:
    """(..., n) -> (...): the mean of the middle half; a score on its border counts by its share in it."""
    count = scores.shape[-1]
    edges = np.arange(count + 1) / count
    inside = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0, None)
    return np.sort(scores, -1) @ inside / inside.sum()


def interval(scores: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean over seeds."""
    rng = np.random.default_rng(0)
    means = scores[rng.integers(len(scores), size=(draws, len(scores)))].mean(-1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="CSV of benchmarks/learning.py")
    parser.add_argument("--at", type=float, nargs="+", required=True, help="frames")
    parser.add_argument("--commit", default="", help="that made the rows, or how it begins, where there are several")
    parser.add_argument("--json", type=Path, help="where to write the curves")
    options = parser.parse_args()
    curves = read(options.file, options.commit)
    print("| task | method | frames | seeds | mean | IQM | 95 % interval | by seed |")
    print("|---|---|---|---|---|---|---|---|")
    for (task, method), seeds in curves.items():
        for frames in options.at:
            scores = np.array([at(curve, frames) for curve in seeds.values()])
            low, high = interval(scores)
            each = ", ".join(f"{score:.0f}" for score in scores)
            numbers = f"{scores.mean():.0f} | {iqm(scores):.0f} | {low:.0f} to {high:.0f}"
            print(f"| {task} | {method} | {frames:,.0f} | {len(seeds)} | {numbers} | {each} |")
    if options.json:
        entries = [
            {"task": task, "method": method, "seed": seed, "xs": [x for x, _ in curve], "ys": [y for _, y in curve]}
            for (task, method), seeds in curves.items()
            for seed, curve in seeds.items()
        ]
        options.json.write_text(json.dumps(entries) + "\n")


if __name__ == "__main__":
    main()
