"""One short real run of every suite from its config, interrupted half way and resumed, without a display.

    python benchmarks/suites.py --out results/suites.csv [--only minigrid]

Each is begun with `worldmodel train`, stopped by SIGTERM, and resumed with `worldmodel train --resume`. The table says
how the ELBO rose and what the evaluations returned, each of which is in NAME_curves.csv: short runs solve nothing, they
show that a suite works.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from worldmodel.training.run.checkpoint import find

STEPS = {  # environment steps, a few minutes of one core each
    "halfcheetah": 4000,
    "minigrid": 6000,
    "dmc_pixels": 7500,
    "atari": 2500,
    "crafter": 2000,
    "carracing": 2000,
}
COLUMNS = [
    "config",
    "env",
    "env_steps",
    "frames",
    "resumed_at",
    "elbo_first",
    "elbo_last",
    "return_first",
    "return_last",
]
COLUMNS += ["final_return", "seconds"]
CURVES = ["config", "env_steps", "frames", "return", "seconds"]
TRAIN = [sys.executable, "-m", "worldmodel", "train"]


def rows(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics, none if it has not begun."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def make(name: str, steps: int, folder: Path) -> int:
    """Train, interrupt and resume, unless that has been done; the environment steps at which it was interrupted."""
    stopped = folder / "interrupted_at"
    if any("final/mean_reward" in row for row in rows(folder)):
        return int(stopped.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    settings = {"training.steps": steps, "training.log_every": 100, "evaluation.every": steps // 4}
    settings |= {"evaluation.episodes": 3, "evaluation.final_episodes": 5, "logger.wandb": "disabled"}
    overrides = [str(part) for key, value in settings.items() for part in (f"--{key}", value)]
    environ = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "MUJOCO_GL")}
    with folder.with_suffix(".log").open("w") as log:
        config = f"configs/suites/{name}.yaml"
        first = subprocess.Popen(
            [*TRAIN, config, "--run", str(folder), *overrides], env=environ, stdout=log, stderr=log
        )
        while first.poll() is None and not any(row["global_step"] >= steps / 2 for row in rows(folder)):
            time.sleep(0.2)
        first.send_signal(signal.SIGTERM)
        if first.wait() != 130:
            raise SystemExit(f"{name}: the interrupted run ended with {first.returncode}, see {log.name}")
        stopped.write_text(str(find(folder / "checkpoint")[0].env_steps))
        subprocess.run([*TRAIN, "--resume", str(folder)], env=environ, stdout=log, stderr=log, check=True)
    return int(stopped.read_text())


def summary(name: str, folder: Path, interrupted: int) -> list[object]:
    """A line of the table."""
    history = rows(folder)
    env = next(
        line.split(":", 1)[1].strip() for line in (folder / "config.yaml").read_text().splitlines() if "  id:" in line
    )
    elbo = [row["world_model/elbo"] for row in history if "world_model/elbo" in row]
    returns = [row["eval/mean_reward"] for row in history if "eval/mean_reward" in row]
    final, last = history[-1]["final/mean_reward"], history[-1]
    frames = max(row.get("time/frames", 0) for row in history)
    steps = [last["global_step"], frames, interrupted]
    assert [row["global_step"] for row in history] == sorted(row["global_step"] for row in history), "no gap, no repeat"
    numbers = (elbo[0], elbo[-1], returns[0], returns[-1], final)
    return [name, env, *steps, *(f"{number:.4g}" for number in numbers), round(last["seconds"])]


def curve(name: str, folder: Path) -> list[list[object]]:
    """Every evaluation of a run."""
    columns = ("global_step", "time/frames", "eval/mean_reward", "seconds")
    return [[name, *(row[column] for column in columns)] for row in rows(folder) if "eval/mean_reward" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=STEPS, help="one of them")
    parser.add_argument("--runs", type=Path, default=Path("runs/suites"), help="where the run folders go")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    root = options.runs.resolve()
    chosen = [options.only] if options.only else list(STEPS)
    found = [summary(name, root / name, make(name, STEPS[name], root / name)) for name in chosen]
    curves = [line for name in chosen for line in curve(name, root / name)]
    for out, columns, lines in (
        (options.out, COLUMNS, found),
        (options.out.with_name(f"{options.out.stem}_curves.csv"), CURVES, curves),
    ):
        with out.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(columns)
            table.writerows(lines)
    for line in found:
        print(*line)


if __name__ == "__main__":
    main()
