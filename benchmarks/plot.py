"""Draw the curves of a results CSV, every seed and their median: one panel per task.

python benchmarks/plot.py results/classic.csv results/classic.png [COMMIT]
"""

import statistics
import sys
from collections import defaultdict
from pathlib import Path

import learning_rows
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Points = dict[int, list[float]]  # {environment step: return of every seed}


def read(file: Path, commit: str) -> dict[str, dict[str, dict[str, list[tuple[int, float]]]]]:
    """{task: {variant: {seed: [(env_steps, return), ...]}}}."""
    tree: dict[str, dict[str, dict[str, list[tuple[int, float]]]]] = defaultdict(lambda: defaultdict(dict))
    for row in learning_rows.one_each(learning_rows.read(file), commit):
        curve = tree[row["task"]][row["variant"]].setdefault(row["seed"], [])
        curve.append((int(float(row["env_steps"])), float(row["return"])))
    return tree


def draw(file: Path, picture: Path, commit: str = "") -> None:
    """Seeds as thin lines, their median as a thick one where every seed has a point."""
    tree = read(file, commit)
    figure, panels = plt.subplots(1, len(tree), figsize=(5.2 * len(tree), 3.4), squeeze=False, layout="constrained")
    for panel, (task, variants) in zip(panels[0], tree.items(), strict=True):
        for number, (variant, seeds) in enumerate(variants.items()):
            colour = f"C{number}"
            at: Points = defaultdict(list)
            for curve in seeds.values():
                panel.plot(*zip(*curve, strict=True), color=colour, alpha=0.3, linewidth=0.8)
                for step, value in curve:
                    at[step].append(value)
            median = [(step, statistics.median(values)) for step, values in at.items() if len(values) == len(seeds)]
            panel.plot(*zip(*median, strict=True), color=colour, linewidth=2, label=f"{variant}, {len(seeds)} seeds")
        panel.set(title=task, xlabel="environment steps", ylabel="evaluation return, mean of 20 episodes")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    draw(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
