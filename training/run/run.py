"""A run and its folder, which holds `config.yaml  metrics.jsonl  checkpoint/  replay/  wandb/`.

`checkpoint/` holds the newest checkpoints and the best one, see :mod:`worldmodel.training.run.checkpoint`. `replay/`
holds `replay.npz`, which is written at every save. With `replay.disk` it holds the replay itself instead, see
:mod:`worldmodel.replay.disk`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gymnasium as gym
import torch
from gymnasium import Space

from worldmodel.agents import Agent, Plan2Explore, build_behaviour
from worldmodel.envs import action_spec, make, observation_specs
from worldmodel.learning.objective import check_objective
from worldmodel.model import WorldModel
from worldmodel.replay.disk import MANIFEST, Disk, check_room
from worldmodel.replay.latents import LATENT_BYTES
from worldmodel.replay.replay import SequenceReplay
from worldmodel.specs import observed
from worldmodel.training.config.compilation import decide, taken_along, without_compiler
from worldmodel.training.config.config import Config, ReplayConfig, load_config
from worldmodel.training.evaluation.evaluation import Evaluation, evaluate
from worldmodel.training.evaluation.imagined_vs_real import ReturnRange
from worldmodel.training.logging.progress import whisper
from worldmodel.training.run.checkpoint import Checkpoint, find, new_checkpoint, prune
from worldmodel.training.run.errors import check_device
from worldmodel.training.run.folder import (
    CHECKPOINT_FOLDER,
    REPLAY_FILE,
    REPLAY_FOLDER,
    claim,
    link,
    read_config,
    saved_config,
    unclaimed,
)
from worldmodel.training.run.tree import fitting_state, load_tree, save_tree
from worldmodel.training.run.weights import load_module, save_module
from worldmodel.types import State, pack
from worldmodel.validation import check_memory, outlined

if TYPE_CHECKING:
    from worldmodel.agents.build import Trained
    from worldmodel.agents.sb3.behaviour import SB3Behaviour

MODEL_FILE, BEHAVIOUR_FILE = "model.safetensors", "behaviour.safetensors"  # in a checkpoint
TRAINING_FILE = "training.safetensors"  # in a checkpoint: what training needs to continue, besides the weights
REPLAY_COPY = "replay.npz"  # in a checkpoint: REPLAY_FILE at that time, hard-linked until more is recorded
FINAL_STREAM = 2  # stream of evaluation seeds that only the final evaluation and `worldmodel evaluate` use


class Run:
    """The parts of one run, new or loaded: `config`, `model`, `behaviour`, `agent`, `replay`.

    Raises:
        ValueError: if the device or the environment cannot be used, the spaces are not supported, the model cannot
            act, the objective has a weight for an output that the model lacks, or the replay is too small for a window.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        check_device(config.training.device)
        self.decided = decide(config)
        env = make(config.env)
        recorded, self.action_spec = observation_specs(env.observation_space), action_spec(env.action_space)
        self.obs_specs = observed(recorded)
        env.close()
        self._check_sizes()
        torch.manual_seed(config.seed)
        self.model = WorldModel.build(config.model, self.obs_specs, self.action_spec).to(config.training.device)
        name, dynamics = config.model.dynamics.name, self.model.dynamics
        if not (dynamics.can_filter and dynamics.can_imagine):
            what = (
                "filter, because its posterior needs the future"
                if dynamics.can_imagine
                else "imagine, because it has no dynamics"
            )
            smoother = hasattr(getattr(config.model.dynamics, name), "posterior")
            own = f"model.dynamics.{name}.posterior to filter, or " if smoother else ""
            raise ValueError(
                f"model.dynamics: an agent needs a model that can filter and imagine. {name} as configured cannot "
                f"{what}. Set {own}model.dynamics.name to rssm."
            )
        check_objective(self.model, config.objective)
        self.replay = SequenceReplay(
            recorded,
            self.action_spec,
            config.env.num_envs,
            config.replay.capacity,
            config.seed,
            config.replay.online,
            config.replay.max_bytes,
        )
        check_window(self.replay, config.replay)
        self.behaviour = self._behaviour(env.action_space).to(config.training.device)
        self.agent = Agent(self.model, self.behaviour, self.obs_specs, self.action_spec)
        self.env_steps = 0  # environment steps that the agent has been trained for
        self.returns = ReturnRange()  # of the episodes in its environment so far
        self.checkpoint: Checkpoint | None = None  # the one that the run was loaded from

    def _check_sizes(self) -> None:
        """Refuse networks that do not fit into memory, before allocating them."""
        config = self.config
        model = outlined(lambda: WorldModel.build(config.model, self.obs_specs, self.action_spec), "the model")
        if config.behaviour.name != "sb3":
            size, spec = model.feature_size, self.action_spec
            outlined(lambda: build_behaviour(config.behaviour, size, spec), "the behaviour")

    def _behaviour(self, action_space: Space[Any]) -> "Trained | SB3Behaviour":
        if self.config.behaviour.name != "sb3":
            return build_behaviour(self.config.behaviour, self.model.feature_size, self.action_spec)
        from worldmodel.training.run.sb3_behaviour import (
            build_sb3_behaviour,  # Stable-Baselines3 takes a second to import
        )

        return build_sb3_behaviour(self.config, self.model, self.replay, action_space, self.action_spec)

    def __repr__(self) -> str:
        return f"<Run {self.folder}: {self.config.env.id} after {self.env_steps} environment steps>"

    @staticmethod
    def create(folder: str | Path, config: Config) -> "Run":
        """Make a new run for a folder that holds none. Nothing is written before :meth:`begin`.

        Raises:
            ValueError: if the folder already holds a run, its disk has no room for the replay, the steps of a round in
                imagination are not a multiple of a rollout, or for the reasons given at the class.
        """
        run = Run(unclaimed(folder), config)
        if config.behaviour.name == "sb3":
            cast("SB3Behaviour", run.behaviour).check_rounds()
        if config.replay.disk:
            check_room(run.folder, run.replay.max_bytes)
        run.check_rows(config.training.steps)
        batch = config.replay.batch_size * config.replay.window * (run.replay.row_bytes + 4 * run.model.feature_size)
        check_memory(batch, "the batches of the replay", "lower replay.batch_size or replay.window")
        return run

    def check_rows(self, steps: int) -> None:
        """Refuse a number of environment steps whose recording does not fit into memory. A replay on disk always fits.

        Raises:
            ValueError: if it does not fit. The message gives the memory that it needs and that is available.
        """
        if self.config.replay.disk:
            return
        rows = min(steps, len(self.replay.written) * self.replay.length)
        latent = LATENT_BYTES * pack(self._one_state()).numel() if self.config.replay.context else 0
        remedy = "set replay.disk: true, or lower replay.capacity or training.steps"
        check_memory(rows * (self.replay.row_bytes + latent), "the rows of the replay", remedy)

    def _one_state(self) -> State:
        state = self.model.initial(1)
        return type(state)(*(field.unsqueeze(1) for field in state))

    def begin(self) -> None:
        """Claim the folder by writing the resolved config, and move the replay there if it is kept on disk.

        Raises:
            ValueError: if another run has claimed the folder in the meantime.
        """
        claim(self.folder, self.config)
        self.keep_rows()

    def keep_rows(self) -> None:
        """Move the replay to the disk, if `replay.disk` is set."""
        if self.config.replay.disk and not isinstance(self.replay.storage, Disk):
            self.replay.move(self.folder / REPLAY_FOLDER)

    @staticmethod
    def load(
        folder: str | Path,
        device: str | None = None,
        env: str | None = None,
        checkpoint: str = "latest",
        at_checkpoint: bool = False,
        say: Callable[[str], None] = whisper,
    ) -> "Run":
        """Load a finished or interrupted run.

        The random state of torch does not change. A replay on the disk stays unchanged until a row is added.

        Args:
            device: the device to load it on; by default the one it was trained on.
            env: the id of an environment with the same spaces, to use instead of its own.
            checkpoint: "latest"; "best", the one with the best evaluation; or the number of a checkpoint that was kept.
            at_checkpoint: load the replay as it was when the weights were saved, without later steps.
            say: receives a line for each damaged checkpoint that an older one replaces.
        Raises:
            ValueError: if the folder holds no run or no such checkpoint, or a file in it does not fit its config.
        """
        folder = Path(folder)
        config = read_config(folder, saved_config(folder, "train"), load_config)
        before, config.training.device = config.training.device, device or config.training.device
        elsewhere, config.env.id = env not in (None, config.env.id), env or config.env.id
        found, problems = find(folder / CHECKPOINT_FOLDER, checkpoint, () if at_checkpoint else (REPLAY_COPY,))
        for problem in problems:
            say(f"{problem}. Checkpoint {found.folder.name} (environment step {found.env_steps}) is used instead.")
        said = without_compiler(config)
        with torch.random.fork_rng():
            run = Run(folder, config)
        run.decided += said + taken_along(config, before)
        run.take(found)
        if elsewhere:
            run.returns = ReturnRange()
        if isinstance(run.behaviour, Plan2Explore):
            run.behaviour.begin_step(run.env_steps)
        if config.replay.disk and (folder / REPLAY_FOLDER / MANIFEST).is_file():
            run.replay.open(folder / REPLAY_FOLDER)
        elif at_checkpoint:
            run.replay.load(found.folder / REPLAY_COPY)
        elif (folder / REPLAY_FILE).is_file():
            run.replay.load(folder / REPLAY_FILE)
        return run

    def take(self, checkpoint: Checkpoint) -> None:
        """Load the weights, the training state of the behaviour and the number of environment steps."""
        load_module(checkpoint.folder / MODEL_FILE, self.model)
        load_module(checkpoint.folder / BEHAVIOUR_FILE, self.behaviour)
        with fitting_state(checkpoint.folder / TRAINING_FILE):
            state = load_tree(checkpoint.folder / TRAINING_FILE)
            self.behaviour.load_training_state(state["behaviour"])
            self.returns = ReturnRange(**state.get("returns", {}))  # missing in the first checkpoints of format 2
        self.env_steps, self.checkpoint = checkpoint.env_steps, checkpoint

    @property
    def summary(self) -> str:
        """Return a line that describes the run: its environment, model and device."""
        config, model = self.config, self.config.model
        size = sum(p.numel() for p in (*self.model.parameters(), *self.behaviour.parameters()) if p.requires_grad)
        what = f"{model.dynamics.name} with {model.latent.family} latents, {size:,} parameters"
        return f"{config.env.id}: {what}, {config.training.device}, {config.training.threads} torch thread(s)"

    def save(self, training: Mapping[str, Any] | None, mean_return: float | None = None) -> None:
        """Write the replay, and then a new checkpoint.

        A replay on the disk is only flushed. If a weight is not finite, no checkpoint is written, so the last good one
        remains.

        Args:
            training: what training needs to continue, see :func:`worldmodel.training.start.resume`. It is None if an
                update was interrupted. The weights are then inconsistent, and no checkpoint is written.
            mean_return: the mean return of an evaluation of these weights.
        """
        self.keep_rows()
        if self.config.replay.disk:
            self.replay.flush()
        else:
            self.replay.save(self.folder / REPLAY_FILE)
        weights = [*self.model.parameters(), *self.behaviour.parameters()]
        if training is None or not all(bool(parameter.isfinite().all()) for parameter in weights):
            return
        with new_checkpoint(self.folder / CHECKPOINT_FOLDER, self.env_steps, mean_return) as folder:
            self._write_weights(folder, training)
            if not self.config.replay.disk:
                link(self.folder / REPLAY_FILE, folder / REPLAY_COPY)
        with suppress(OSError):  # an old file cannot be removed, but the new checkpoint is complete
            prune(self.folder / CHECKPOINT_FOLDER, self.config.training.keep, drop=(REPLAY_COPY,))

    def write(self, folder: Path, training: Mapping[str, Any]) -> None:
        """Write a copy of this run without its replay into an empty folder."""
        claim(folder, self.config)
        with new_checkpoint(folder / CHECKPOINT_FOLDER, self.env_steps) as checkpoint:
            self._write_weights(checkpoint, training)

    def _write_weights(self, checkpoint: Path, training: Mapping[str, Any]) -> None:
        save_module(checkpoint / MODEL_FILE, self.model)
        save_module(checkpoint / BEHAVIOUR_FILE, self.behaviour)
        save_tree(checkpoint / TRAINING_FILE, training)

    def evaluate(
        self,
        episodes: int | None = None,
        deterministic: bool = True,
        say: Callable[[str], None] = whisper,
        lent: Sequence[gym.Env[Any, Any]] = (),
    ) -> Evaluation:
        """Evaluate the agent on whole episodes with seeds that training never uses, and imagine the same episodes.

        With `env.life_loss: end` nothing is imagined, because the model predicts the end of an episode at a lost life.
        `say` and `lent` are those of :func:`worldmodel.training.evaluation.evaluation.evaluate`.

        Raises:
            ValueError: if neither `episodes` nor the config gives a number of episodes.
        """
        count = self.config.evaluation.final_episodes if episodes is None else episodes
        if episodes is None and not count:
            raise ValueError("evaluation.final_episodes is 0. Give a number of episodes, for example --episodes 20.")
        promises = self.config.env.life_loss == "ignore"  # a model of single lives cannot predict whole games
        beside = self.config.side_by_side
        result = evaluate(
            self.agent, self.config.env, count, FINAL_STREAM, deterministic, promises, say, beside, lent, True
        )
        return result._replace(spread=self.returns.spread(result.mean))


def check_window(replay: SequenceReplay, config: ReplayConfig) -> None:
    """Refuse a replay that is too small to sample from.

    Raises:
        ValueError: if the replay cannot hold a window of each environment.
    """
    if replay.length < config.window:
        count = len(replay.written)
        raise ValueError(
            f"The replay keeps {replay.length} steps of each of {count} environment(s), less than a window of "
            f"{config.window}. Raise replay.capacity to {count * config.window} or more, and replay.capacity_bytes, if "
            f"it is set, to {count * config.window * replay.row_bytes}."
        )
