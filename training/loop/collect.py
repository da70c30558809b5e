"""Record trajectories without learning from them."""

from pathlib import Path

import numpy as np

from worldmodel.envs import RecordTrajectories, action_spec, make_vector, observation_specs
from worldmodel.networks.images import stages
from worldmodel.replay.replay import SequenceReplay
from worldmodel.replay.storage import row_bytes, time_step_columns
from worldmodel.training.config.config import Config
from worldmodel.training.logging.progress import Progress
from worldmodel.training.run.folder import check_writable
from worldmodel.validation import check_memory


def collect(config: Config, steps: int, out: Path) -> tuple[int, int]:
    """Step the config's environment with random actions and write the rows into a file.

    A row is a time step. Each episode has one row more than it has environment steps. All environments take the last
    step. See `SequenceReplay.save` for the format of the file. After an error or an interrupt, the rows so far are
    written.

    Returns:
        The numbers of rows and of environment steps.
    Raises:
        ValueError: if `steps` is below 1, `out` exists or does not end in .npz, or the environment cannot be used.
    """
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, not {steps}")
    if out.suffix != ".npz":
        raise ValueError(f"{out}: the name of the --out file must end in .npz")
    check_writable(out.parent)
    try:
        exists = out.exists()
    except OSError as error:  # a name too long
        raise ValueError(f"{out}: {error.strerror}. Give --out another name.") from error
    if exists:
        raise ValueError(f"{out} exists. Give --out the name of a new file.")
    envs = make_vector(config.env, training=True)
    specs, control = observation_specs(envs.single_observation_space), action_spec(envs.single_action_space)
    for spec in specs.values():
        if spec.image:
            stages(spec.shape)  # raises for a size that no model takes
    capacity = 2 * steps + 2 * envs.num_envs  # an episode of one step has two rows
    check_memory(steps * row_bytes(time_step_columns(specs, control)), "that many steps", "lower --steps")
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
        raise KeyboardInterrupt(f"{len(replay)} rows are saved in {out}") from interrupt
    finally:
        if len(replay):
            replay.save(out)
        recorded.close()
    return len(replay), recorded.steps
