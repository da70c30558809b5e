"""Record trajectories without learning from them."""

from pathlib import Path

import numpy as np

from worldmodel.envs import RecordTrajectories, action_spec, make_vector, observation_specs
from worldmodel.networks.images import stages
from worldmodel.replay.replay import SequenceReplay
from worldmodel.replay.storage import arrival_columns, row_bytes
from worldmodel.training.config.config import Config
from worldmodel.training.logging.progress import Progress
from worldmodel.training.run.folder import check_writable
from worldmodel.validation import check_memory


def collect(config: Config, steps: int, out: Path) -> tuple[int, int]:
    """Step the config's environment with random actions and write what happened; returns how many rows and steps.

    Rows are arrivals: there is one more of them per episode than there are steps, and all environments take the last
    one. See `SequenceReplay.save` for the file. Whatever ends the recording, the rows up to there are written, if there
    are any.

    Raises:
        ValueError: if `steps` is below 1, `out` exists or is no .npz file, or the environment cannot be used.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1: {steps}")
    if out.suffix != ".npz":
        raise ValueError(f"{out}: --out is a file that ends in .npz")
    check_writable(out.parent)
    try:
        exists = out.exists()
    except OSError as error:  # a name too long
        raise ValueError(f"{out}: {error.strerror}: give --out another name") from error
    if exists:
        raise ValueError(f"{out} exists: give --out a new file")
    envs = make_vector(config.env, training=True)
    specs, control = observation_specs(envs.single_observation_space), action_spec(envs.single_action_space)
    for spec in specs.values():
        if spec.image:
            stages(spec.shape)  # refuses what no model could learn from
    capacity = 2 * steps + 2 * envs.num_envs  # an episode of one step is two rows
    check_memory(steps * row_bytes(arrival_columns(specs, control)), "that many steps", "lower --steps")
    replay = SequenceReplay(specs, control, envs.num_envs, capacity)
    recorded = RecordTrajectories(envs, replay.add, replay.cut)
    recorded.action_space.seed(config.seed)
    try:
        with Progress(steps) as progress:
            recorded.reset(seed=config.seed)
            while recorded.steps < steps:
                recorded.step(np.asarray(recorded.action_space.sample()))
                for failure in recorded.pop_failures():
                    progress.note(f"{recorded.steps:>7} steps: {failure}")
                progress.update(recorded.steps)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"{len(replay)} rows are in {out}") from interrupt
    finally:
        if len(replay):
            replay.save(out)
        recorded.close()
    return len(replay), recorded.steps
