"""Learning curves of a suite of tasks over several seeds, as a CSV that anyone can make again.

    python benchmarks/learning.py classic --seeds 11-15 --jobs 2 --out results/classic.csv

Every curve is one ordinary `worldmodel train` with a fixed config; only the seed differs. A run is resumed from its
last checkpoint, and not made again unless its config has changed: the command goes on where it was stopped. From the
repository's root; the table at the end lists every seed. Final evaluations, on seeds used nowhere else, go to
NAME_final.csv.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from training.config import load_config

COLUMNS = ["task", "variant", "seed", "env_steps", "frames", "return", "seconds"]


class Curve(NamedTuple):
    """One cell of a suite: a config and what is changed in it."""

    task: str
    variant: str
    config: str
    overrides: tuple[str, ...]
    solved: float  # mean return at which the task counts as solved
    stays: tuple[int, float]  # environment steps from which on every evaluation should reach this mean return

    def folder(self, root: Path, seed: int) -> Path:
        return root / f"{self.task}-{self.variant}-{seed}"


def _classic() -> list[Curve]:
    often = ("--evaluation.episodes", "20", "--logger.wandb", "disabled")
    pendulum = ("configs/pendulum.yaml", ("--evaluation.every", "200", *often))
    cartpole = ("configs/cartpole.yaml", ("--evaluation.every", "500", "--training.steps", "10000", *often))
    dkf, onehot = ("--model.dynamics.name", "dkf"), ("--model.latent.family", "onehot")
    return [
        Curve("Pendulum-v1", "rssm-gaussian", pendulum[0], pendulum[1], -200, (2000, -200)),
        Curve("Pendulum-v1", "dkf-gaussian", pendulum[0], (*pendulum[1], *dkf), -200, (2000, -200)),
        Curve("CartPole-v1", "rssm-gaussian", cartpole[0], cartpole[1], 500, (6000, 475)),
        Curve("CartPole-v1", "rssm-onehot", cartpole[0], (*cartpole[1], *onehot), 500, (6000, 475)),
    ]


def _family() -> list[Curve]:
    """The other members that can act, on one task, with the config of rssm and dkf in `classic` but for the name."""
    often = ("--evaluation.every", "200", "--evaluation.episodes", "20", "--logger.wandb", "disabled")
    slow = {"srnn", "kvae"}  # these two need more steps
    return [
        Curve(
            "Pendulum-v1",
            f"{name}-gaussian",
            "configs/pendulum.yaml",
            ("--model.dynamics.name", name, *(("--training.steps", "5000") if name in slow else ()), *often),
            -250,
            (4500 if name in slow else 2000, -250),
        )
        for name in ("dvbf", "storn", "vrnn", "rvae", "srnn", "kvae")
    ]


def _planning() -> list[Curve]:
    """By planning: alone, with a critic beyond the horizon, and with the proposals of an actor as well."""
    often = ("--evaluation.every", "500", "--evaluation.episodes", "20", "--logger.wandb", "disabled")
    seldom = ("--evaluation.every", "1000", *often[2:])
    return [
        Curve("Pendulum-v1", "rssm-icem", "configs/planet_pendulum.yaml", often, -200, (2000, -200)),
        Curve("CartPole-v1", "rssm-icem-value", "configs/planet_cartpole.yaml", seldom, 475, (3000, 475)),
        Curve("Pendulum-v1", "rssm-mppi-guided", "configs/guided_pendulum.yaml", often, -200, (2000, -200)),
    ]


def _dream() -> list[Curve]:
    """The preset for state on Gymnasium's classics."""
    often = ("--evaluation.episodes", "20", "--logger.wandb", "disabled")
    config = "configs/dream.yaml"
    pendulum = ("--training.steps", "2500", "--evaluation.every", "250", *often)
    cartpole = ("--env.id", "CartPole-v1", "--training.steps", "6000", "--evaluation.every", "500", *often)
    return [
        Curve("Pendulum-v1", "dream", config, pendulum, -200, (1500, -200)),
        Curve("CartPole-v1", "dream", config, cartpole, 500, (4000, 500)),
    ]


def _papers() -> list[Curve]:
    """The three Dreamers in small, on Gymnasium's classics."""
    often = ("--logger.wandb", "disabled")
    tasks = (("Pendulum-v1", -200, (6000, -250)), ("CartPole-v1", 500, (6000, 475)))
    longer = {("Pendulum-v1", "dreamer_v2"): ("--training.steps", "16000")}  # 8,000 are not enough for its REINFORCE
    return [
        Curve(
            task,
            preset,
            f"configs/laptop/{preset}.yaml",
            ("--env.id", task, *longer.get((task, preset), ()), *often),
            solved,
            stays,
        )
        for task, solved, stays in tasks
        for preset in ("dreamer_v1", "dreamer_v2", "dreamer_v3")
    ]


def _control() -> list[Curve]:
    """The same preset on the DeepMind Control Suite, from state, two frames to a step."""
    tasks = {"cartpole_swingup": 800, "pendulum_swingup": 800, "reacher_easy": 940}
    often = ("--env.action_repeat", "2", "--evaluation.episodes", "10", "--logger.wandb", "disabled")
    return [
        Curve(
            f"dmc_{task}", "dream", "configs/dream.yaml", ("--env.id", f"dmc:{task}", *often), solved, (25000, solved)
        )
        for task, solved in tasks.items()
    ]


def _sparse() -> list[Curve]:
    """A reward that random actions do not find, and a price on every action: with curiosity, and without."""
    often = ("--env.id", "MountainCarContinuous-v0", "--training.steps", "6000", "--logger.wandb", "disabled")
    often = (*often, "--evaluation.every", "500", "--evaluation.episodes", "20")
    return [
        Curve("MountainCarContinuous-v0", "dream", "configs/dream.yaml", often, 90, (4000, 90)),
        Curve(
            "MountainCarContinuous-v0",
            "without-curiosity",
            "configs/dream.yaml",
            ("--behaviour.name", "actor_critic", *often),
            90,
            (4000, 90),
        ),
    ]


def _sb3() -> list[Curve]:
    """Algorithms of Stable-Baselines3 that learn in the dream alone."""
    often = ("--evaluation.every", "250", "--evaluation.episodes", "20", "--logger.wandb", "disabled")
    return [
        Curve("Pendulum-v1", f"{name.upper()}-dreaming", f"configs/sb3_{name}_pendulum.yaml", often, -250, (4000, -250))
        for name in ("sac", "ppo")
    ]


def _pixels() -> list[Curve]:
    """From pictures alone, one at a time."""
    often = ("--evaluation.every", "1000", "--evaluation.episodes", "20", "--logger.wandb", "disabled")
    often = (*often, "--env.record_state", "true")  # for `worldmodel diagnose`
    configs = {"rssm": "configs/pendulum_pixels.yaml", "redundancy": "configs/pendulum_pixels_redundancy.yaml"}
    return [Curve("Pendulum-v1-pixels", name, file, often, -250, (15000, -250)) for name, file in configs.items()]


def _minigrid() -> list[Curve]:
    """A key, a door, and a goal whose arrival alone is rewarded; random actions get there once in ten episodes."""
    often = ("--training.steps", "20000", "--evaluation.episodes", "20", "--logger.wandb", "disabled")
    return [Curve("MiniGrid-DoorKey-5x5-v0", "actor_critic", "configs/suites/minigrid.yaml", often, 0.9, (15000, 0.9))]


def _windows() -> list[Curve]:
    """As many replayed steps an update in long windows and in short ones, which begin from nothing or from memory."""
    often = ("--training.steps", "2500", "--evaluation.every", "250", "--logger.wandb", "disabled")
    variants = {"64x16": (64, 16, "false"), "64x16-context": (64, 16, "true"), "16x64": (16, 64, "false")}
    return [
        Curve(
            "Pendulum-v1",
            name,
            "configs/pendulum.yaml",
            ("--replay.batch_size", str(count), "--replay.window", str(window), "--replay.context", context, *often),
            -200,
            (1500, -200),
        )
        for name, (count, window, context) in variants.items()
    ]


def _precision() -> list[Curve]:
    """With products in half the precision: the first of `windows` otherwise."""
    often = ("--training.steps", "2500", "--evaluation.every", "250", "--logger.wandb", "disabled")
    half = ("--learner.precision", "bfloat16", "--behaviour.actor_critic.learner.precision", "bfloat16")
    return [Curve("Pendulum-v1", "bfloat16", "configs/pendulum.yaml", (*half, *often), -200, (2000, -200))]


SUITES = {
    "classic": _classic(),
    "family": _family(),
    "planning": _planning(),
    "dream": _dream(),
    "papers": _papers(),
    "control": _control(),
    "sparse": _sparse(),
    "sb3": _sb3(),
    "pixels": _pixels(),
    "minigrid": _minigrid(),
    "windows": _windows(),
    "precision": _precision(),
}


def rows(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics, none if it has not begun."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def begun(curve: Curve, seed: int, root: Path) -> bool:
    """Whether there is a run of this very curve, with the config of today."""
    file = curve.folder(root, seed) / "config.yaml"
    return file.is_file() and load_config(file) == load_config(curve.config, curve.overrides, seed=seed)


def make(curve: Curve, seed: int, root: Path) -> bool:
    """Train one curve, from where it stands; whether it is there then."""
    folder = curve.folder(root, seed)
    command = [sys.executable, "-m", "worldmodel", "train"]
    if begun(curve, seed, root):
        if any("final/mean_reward" in row for row in rows(folder)):
            return True
        command += ["--resume", str(folder)]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        command += [curve.config, "--seed", str(seed), "--run", str(folder), *curve.overrides]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("a") as log:
        result = subprocess.run(command, stdout=log, stderr=log)
    print(f"{folder.name}: {'done' if result.returncode == 0 else f'FAILED, see {log.name}'}", flush=True)
    return result.returncode == 0


def write(out: Path, kind: str, curves: Iterable[Curve], seeds: range, root: Path) -> None:
    """Evaluations of a kind, "eval" or "final", of every curve, failed and unfinished ones too, as a CSV."""
    with out.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for curve in curves:
            for seed in seeds:
                frames = 0.0
                for row in rows(curve.folder(root, seed)):
                    frames = row.get("time/frames", frames)
                    if f"{kind}/mean_reward" in row:
                        values = (row["global_step"], frames, row[f"{kind}/mean_reward"], row["seconds"])
                        table.writerow([curve.task, curve.variant, seed, *values])


def summarise(curves: Iterable[Curve], seeds: range, root: Path) -> None:
    """Print one line per seed: when it was first solved, the worst evaluation after it should stay, how it ended."""
    for curve in curves:
        since, bar = curve.stays
        print(f"\n{curve.task} {curve.variant}: solved at {curve.solved:g}, stays at {bar:g} from step {since}")
        print("seed  first solved  worst since  final return  seconds")
        for seed in seeds:
            history = rows(curve.folder(root, seed))
            points = [(row["global_step"], row["eval/mean_reward"]) for row in history if "eval/mean_reward" in row]
            final = next((row["final/mean_reward"] for row in history if "final/mean_reward" in row), None)
            if final is None:
                print(f"{seed:>4}  unfinished")
                continue
            first = next((str(int(step)) for step, value in points if value >= curve.solved), "never")
            worst = min((value for step, value in points if step >= since), default=float("nan"))
            print(f"{seed:>4}  {first:>12}  {worst:>11.4g}  {final:>12.4g}  {history[-1]['seconds']:>7.0f}")


def seed_range(text: str) -> range:
    """ "FIRST-LAST", both included, or one."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument(
        "--seeds", type=seed_range, default=range(1, 6), help="training seeds FIRST-LAST, or one (default: 1-5)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one core each (default: 1)")
    parser.add_argument("--only", default="", help="curves whose 'task variant' contains this")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where the run folders go")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options = parser.parse_args()
    curves = [curve for curve in SUITES[options.suite] if options.only in f"{curve.task} {curve.variant}"]
    seeds, root = options.seeds, options.runs.resolve()
    with ThreadPoolExecutor(options.jobs) as pool:
        done = list(pool.map(lambda cell: make(*cell, root), [(curve, seed) for curve in curves for seed in seeds]))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write(options.out, "eval", curves, seeds, root)
    write(options.out.with_name(f"{options.out.stem}_final.csv"), "final", curves, seeds, root)
    summarise(curves, seeds, root)
    sys.exit(not all(done))


if __name__ == "__main__":
    main()
