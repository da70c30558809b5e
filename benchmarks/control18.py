"""The eighteen tasks of the DeepMind Control Suite beside published learners: the table, and the curves.

    python benchmarks/control18.py results/control18.csv --picture results/control18.png

The returns are those of 50 episodes at 50,000 and 100,000 frames, from NAME_final.csv; the curves are those of
NAME.csv. Published returns, and how each was scored, are in results/published/. A published column is summarised twice:
over all its tasks, and over the tasks that are done here as well.

Mean, median and interquartile mean (IQM) are those of the tasks' means over seeds, ours as well as published ones.
Intervals of 95 % come from 10,000 bootstrap samples that draw the seeds of each task anew (Agarwal et al. 2021, "Deep
RL at the Edge of the Statistical Precipice"); where a task has a single seed there is none.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path

import learning_rows
import numpy as np
from learning_rows import Row
from learning_suites import CONTROL18
from scores import iqm

FRAMES = (50_000, 100_000)
PUBLISHED = Path(__file__).resolve().parent.parent / "results" / "published" / "control18.csv"
SHOWN = {
    50_000: ["DreamerV3", "MR.Q", "SimBa u2", "BRO u10"],
    100_000: ["DreamerV3", "TD-MPC2", "BMPC", "MR.Q", "SimbaV2 u8", "SimBa u8", "BRO u10"],
}
"""The columns beside ours; `--all` shows every one."""
NAMES = {"DreamerV3": "DreamerV3 (training)"}  # in the picture
TASKS = [f"dmc_{task}" for task in CONTROL18]

Scores = Mapping[str, np.ndarray]  # {task: (..., seeds) returns}
Summary = Callable[[Scores], np.ndarray]  # -> (...)


def mean(scores: Scores) -> np.ndarray:
    """Over tasks, of the mean over seeds."""
    return np.mean([values.mean(-1) for values in scores.values()], 0)


def median(scores: Scores) -> np.ndarray:
    """Over tasks, of the mean over seeds."""
    return np.median([values.mean(-1) for values in scores.values()], 0)


def middle(scores: Scores) -> np.ndarray:
    """Over the middle half of the tasks, of the mean over seeds."""
    return iqm(np.stack([values.mean(-1) for values in scores.values()], -1))


def interval(scores: Scores, summary: Summary, draws: int = 10_000) -> tuple[float, float] | None:
    """The 95 % percentile bootstrap of a summary: seeds are drawn anew within each task.

    Returns:
        Its two ends; None where a task has a single seed, of which nothing can be drawn.
    """
    if any(len(values) < 2 for values in scores.values()):
        return None
    rng = np.random.default_rng(0)
    drawn = {task: rng.choice(values, (draws, len(values))) for task, values in scores.items()}
    low, high = np.quantile(summary(drawn), [0.025, 0.975])
    return float(low), float(high)


def published(file: Path = PUBLISHED) -> dict[int, dict[str, dict[str, float]]]:
    """{frames: {method: {task: return}}}."""
    table: dict[int, dict[str, dict[str, float]]] = {}
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            methods = table.setdefault(int(row["frames"]), {})
            methods.setdefault(row["method"], {})[row["task"]] = float(row["return"])
    return table


def scored(names: Set[str]) -> str:
    """How published methods were scored, a line each."""
    lines = ["How the others were scored (frames to a decision; updates per frame):", ""]
    with PUBLISHED.with_name("control18_methods.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["method"] in names:
                numbers = f"{row['action_repeat'] or '?'}; {row['updates_per_frame'] or '?'}"
                episodes = f"{row['episodes'] or '?'} episodes, {row['seeds'] or '?'} seeds"
                lines.append(f"- {row['method']} ({numbers}): {row['scored']}, {episodes}. {row['source']}.")
    return "\n".join(lines)


def chosen(file: Path, commit: str, seeds: range | None) -> list[Row]:
    """The rows of one commit and some seeds.

    Raises:
        ValueError: if none fits, or rows of several commits do.
    """
    rows = learning_rows.read(file)
    found = [row for row in rows if row["commit"].startswith(commit) and (not seeds or int(row["seed"]) in seeds)]
    commits = sorted({row["commit"] for row in found})
    if not found:
        there = ", ".join(sorted({row["commit"][:8] for row in rows})) or "none"
        raise ValueError(f"{file} has no rows of commit '{commit}' and these seeds; the commits there: {there}")
    if len(commits) > 1:
        raise ValueError(f"{file} has rows of {len(commits)} commits: choose one with --commit: {', '.join(commits)}")
    return learning_rows.one_each(found)


def by_task(rows: Sequence[Row], frames: int, column: str = "return") -> dict[str, np.ndarray]:
    """A column at a number of frames, a seed each, in the order of the suite."""
    there = [row for row in rows if round(float(row["frames"])) == frames]
    found = {task: np.array([float(row[column]) for row in there if row["task"] == task]) for task in TASKS}
    return {task: values for task, values in found.items() if len(values)}


def table(scores: Scores, seconds: Scores, frames: int, others: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: a line per task, then the summaries."""
    lines = [f"### {frames:,} frames", "", "| task | ours | by seed | hours | " + " | ".join(others) + " |"]
    lines.append("|---|" + "--:|" * (3 + len(others)))
    for task in TASKS:
        cells = ["", "", ""]
        if task in scores:
            each = ", ".join(f"{value:.0f}" for value in scores[task])
            cells = [f"**{scores[task].mean():.0f}**", each, f"{seconds[task].mean() / 3600:.2f}"]
        cells += [f"{found[task]:.0f}" if task in found else "-" for found in others.values()]
        lines.append(f"| {task.removeprefix('dmc_')} | " + " | ".join(cells) + " |")
    for name, summary in (("mean", mean), ("median", median), ("IQM", middle)):
        lines += _summaries(name, summary, scores, others)
    return "\n".join(lines)


def _summaries(name: str, summary: Summary, scores: Scores, others: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Ours, beside those of the others over the same tasks; then those of the others over all of theirs."""
    columns = [{task: np.array([value]) for task, value in found.items()} for found in others.values()]
    here = [{task: values for task, values in column.items() if task in scores} for column in columns]
    bounds = interval(scores, summary)
    between = f"{bounds[0]:.0f} to {bounds[1]:.0f}" if bounds else "one seed a task"
    cells = [f"**{summary(scores):.0f}**", between, "", *(_summary(summary, column, len(scores)) for column in here)]
    lines = [f"| {name} of the {len(scores)} task(s) done here | " + " | ".join(cells) + " |"]
    if len(scores) < len(TASKS):
        whole = [_summary(summary, column, len(TASKS)) for column in columns]
        lines.append(f"| {name} of all {len(TASKS)} | | | | " + " | ".join(whole) + " |")
    return lines


def _summary(summary: Summary, column: Scores, expected: int) -> str:
    """A number, and of how many tasks it is where that is less than expected."""
    return f"{summary(column):.0f}" + (f" ({len(column)})" if len(column) < expected else "") if column else "-"


def draw(rows: Sequence[Row], others: Mapping[int, Mapping[str, Mapping[str, float]]], picture: Path) -> None:
    """A panel per task: every seed, their mean, and the published returns of the best learner and of DreamerV3."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(3, 6, figsize=(16, 7.5), sharex=True, sharey=True, layout="constrained")
    for panel, task in zip(panels.flat, TASKS, strict=True):
        frames = sorted({float(row["frames"]) for row in rows if row["task"] == task})
        for seed in sorted({row["seed"] for row in rows if row["task"] == task}):
            curve = [(float(r["frames"]), float(r["return"])) for r in rows if (r["task"], r["seed"]) == (task, seed)]
            panel.plot(*zip(*sorted(curve), strict=True), color="C0", alpha=0.4, linewidth=1)
        panel.plot(frames, [by_task(rows, at)[task].mean() for at in frames], color="C0", linewidth=2, label="ours")
        for method, marker, colour in (("BRO u10", "*", "C1"), ("TD-MPC2", "s", "C2"), ("DreamerV3", "o", "C7")):
            found = [(f, others[f][method][task]) for f in FRAMES if task in others[f].get(method, {})]
            panel.plot(*zip(*found, strict=True), marker, color=colour, label=NAMES.get(method, method), markersize=6)
        panel.set(title=task.removeprefix("dmc_"), xlim=(0, 104_000), ylim=(0, 1020))
        panel.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=8)
    figure.supxlabel("frames (two to an environment step)")
    figure.supylabel("evaluation return, mean of 10 episodes")
    figure.savefig(picture, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the CSV of the curves, made by learning.py control18")
    parser.add_argument("--commit", default="", help="that made the rows, or how it begins")
    parser.add_argument("--seeds", help="FIRST-LAST, or one (default: all)")
    parser.add_argument("--all", action="store_true", help="every published column")
    parser.add_argument("--picture", type=Path, help="where the curves are drawn")
    options = parser.parse_args()
    first, _, last = (options.seeds or "").partition("-")
    seeds = range(int(first), int(last or first) + 1) if first else None
    finals = chosen(learning_rows.final_file(options.file), options.commit, seeds)
    others = published()
    print(f"Commit {finals[0]['commit'][:8]}. Returns of 50 deterministic episodes, the same seeds at both numbers of")
    print("frames and never in training; hours of training by the clock, whatever else ran.\n")
    for frames in FRAMES:
        scores = by_task(finals, frames)
        if not scores:
            raise ValueError(f"{options.file} has no rows at {frames:,} frames")
        shown = {name: found for name, found in others[frames].items() if options.all or name in SHOWN[frames]}
        print(table(scores, by_task(finals, frames, "seconds"), frames, shown), end="\n\n")
    print(scored({name for frames in FRAMES for name in others[frames] if options.all or name in SHOWN[frames]}))
    if options.picture:
        draw(chosen(options.file, finals[0]["commit"], seeds), others, options.picture)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
