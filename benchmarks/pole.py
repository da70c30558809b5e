"""How far the pole of an imagined Pendulum strays from the real one, in degrees, and what the latent state knows of it.

    python benchmarks/pole.py RUN [RUN ...] --out results/pole.csv

Episodes on seeds used nowhere else: of random actions, under which the pole never comes to rest, and where RUN is one
of `worldmodel train`, not of `fit`, of its agent, which observes pictures alone. The model is shown the first pictures
of each, and foretells the next ones from the actions that were taken. The angle in a picture, foretold or real, is that
of the nearest of 720 drawn ones, so that nothing but pixels is measured.
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from worldmodel.agents import RandomBehaviour
from worldmodel.agents.agent import Agent
from worldmodel.diagnostics.probe import linear_probe
from worldmodel.envs import EnvConfig, RecordTrajectories, action_spec, make_vector, observation_specs
from worldmodel.envs.rendering.images import Images, Rendered
from worldmodel.envs.wrappers.episodes import evaluation_seeds
from worldmodel.replay.replay import SequenceReplay
from worldmodel.specs import OBSERVATION, STATE
from worldmodel.training.config.config import load_config
from worldmodel.training.fitting.fit_run import FitRun, is_fit
from worldmodel.training.report.imagine import OpenLoop, open_loop
from worldmodel.training.run.run import FINAL_STREAM, Run
from worldmodel.types import Batch, join

CONFIG = Path(__file__).parents[1] / "configs" / "pendulum_pixels.yaml"  # whose environment a fit has learned from
ANGLES = 720
COLUMNS = ["run", "actions", "context", "steps", "episodes", "median_degrees", "worst_degrees", "median_last_degrees"]
COLUMNS += ["r2_cos", "r2_sin", "r2_velocity"]


def drawn(config: EnvConfig) -> np.ndarray:
    """(720, W) in [0, 1]: pictures of the pole at angles from -180 to 180 degrees, as the model takes them."""
    env = gym.make("Pendulum-v1", render_mode="rgb_array")
    rendered = Rendered(env)
    images = Images(rendered, config.image_size, config.grey)
    pendulum, found = env.unwrapped, []
    for angle in np.linspace(-np.pi, np.pi, ANGLES, endpoint=False):
        pendulum.state, pendulum.last_u = np.array([angle, 0.0]), None
        found.append(images.observation(rendered.observation(None)).ravel() / 255)
    env.close()
    return np.stack(found)


def degrees(pictures: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(..., W) -> (...): the angle of the nearest known picture."""
    flat = pictures.reshape(-1, pictures.shape[-1])
    distance = (known**2).sum(1) - 2 * flat @ known.T  # squared, but for what is the same for all
    return (distance.argmin(1) * 360 / ANGLES - 180).reshape(pictures.shape[:-1])


def played(run: Run | FitRun, config: EnvConfig, episodes: int, steps: int, at_random: bool) -> Batch:
    """The first `steps` rows of each episode, (N, steps, ...)."""
    envs = make_vector(replace(config, restarts=0), episodes)
    controls = action_spec(envs.single_action_space)
    if at_random or isinstance(run, FitRun):
        agent = Agent(run.model, RandomBehaviour(controls), run.obs_specs, controls)
    else:
        agent = run.agent
    replay = SequenceReplay(observation_specs(envs.single_observation_space), controls, episodes, episodes * steps)
    recorded = RecordTrajectories(envs, replay.add)
    observation, _ = recorded.reset(seed=list(evaluation_seeds(episodes, FINAL_STREAM)))
    state, start = None, np.ones(episodes, bool)
    for _ in range(steps - 1):
        action, state = agent.predict(observation, state, start, deterministic=not at_random)
        observation, *_ = recorded.step(action)
        start = np.zeros(episodes, bool)
    recorded.close()
    return join([replay.stream(env) for env in range(episodes)], 0)


def strayed(found: OpenLoop, known: np.ndarray) -> np.ndarray:
    """(N, K): degrees between the foretold pole and the real one at each step after the context."""
    truth, model = (degrees(values[:, found.context :], known) for values in (found.truth, found.model))
    return np.abs((model - truth + 180) % 360 - 180)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a train or a fit, of Pendulum-v1 from pictures"
    )
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--context", type=int, default=5, help="pictures that the model is shown")
    parser.add_argument("--steps", type=int, default=45, help="that it foretells")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for folder in options.runs:
            run = FitRun.load(folder) if is_fit(folder) else Run.load(folder)
            config = load_config(CONFIG).env if isinstance(run, FitRun) else run.config.env
            config, known = replace(config, record_state=True), drawn(config)
            for name in ("random",) if isinstance(run, FitRun) else ("agent", "random"):
                torch.manual_seed(0)
                batch = played(run, config, options.episodes, options.context + options.steps, name == "random")
                found, values = open_loop(run, batch, options.context), ["", "", ""]
                if OBSERVATION in found:
                    error = strayed(found[OBSERVATION], known)
                    mean, last = error.mean(1), error[:, -1]
                    values = [f"{float(each):.1f}" for each in (np.median(mean), mean.max(), np.median(last))]
                states = {"": batch.obs[STATE + OBSERVATION]}
                read = linear_probe(run.model, batch, states, skip=options.context)[""]
                values += [f"{float(each):.3f}" for each in read]
                row = [folder.name, name, options.context, options.steps, options.episodes, *values]
                table.writerow(row)
                print(*row)


if __name__ == "__main__":
    main()
