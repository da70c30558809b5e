"""A run folder and what lives in it: `config.yaml  metrics.jsonl  checkpoint/  replay/  wandb/`.

`checkpoint/` holds the newest checkpoints and the best, see :mod:`worldmodel.training.run.checkpoint`. `replay/`
holds `replay.npz`,
written at every save; with `replay.disk` it is where the replay lives, see :mod:`worldmodel.replay.disk`.
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
from worldmodel.replay.replay import LATENT_BYTES, SequenceReplay
from worldmodel.specs import observed
from worldmodel.training.config.compilation import decide, taken_along, without_compiler
from worldmodel.training.config.config import Config, ReplayConfig, load_config
from worldmodel.training.evaluation.evaluation import Evaluation, evaluate
from worldmodel.training.evaluation.returns import ReturnRange
from worldmodel.training.logging.progress import whisper
from worldmodel.training.run.checkpoint import Checkpoint, find, new_checkpoint, prune
from worldmodel.training.run.errors import check_device
from worldmodel.training.run.folder import CHECKPOINT, ROWS, claim, link, read_config, saved_config, unclaimed
from worldmodel.training.run.tree import fitting_state, load_tree, save_tree
from worldmodel.training.run.weights import load_module, save_module
from worldmodel.types import State, pack
from worldmodel.validation import check_memory, outlined

if TYPE_CHECKING:
    from worldmodel.agents.build import Trained
    from worldmodel.agents.sb3.behaviour import SB3Behaviour

REPLAY = f"{ROWS}/replay.npz"
MODEL, BEHAVIOUR = "model.safetensors", "behaviour.safetensors"  # in a checkpoint
TRAINING = "training.safetensors"  # there: what going on needs, besides the weights
ROWS_THEN = "replay.npz"  # there: REPLAY as it was then, the same file until more has been recorded
FINAL = 2  # stream of evaluation seeds, used by the final evaluation and `worldmodel evaluate` alone


class Run:
    """The parts of one run, new or read back: `config`, `model`, `behaviour`, `agent`, `replay`.

    Raises:
        ValueError: if the device or the environment cannot be used, its spaces are not supported, the model cannot
            act, the objective weighs what it does not emit, or the replay does not hold a window.
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
            what = "filter: its posterior needs the future" if dynamics.can_imagine else "imagine: it has no dynamics"
            smoother = hasattr(getattr(config.model.dynamics, name), "posterior")
            own = f"model.dynamics.{name}.posterior to filter, or " if smoother else ""
            raise ValueError(
                f"model.dynamics: an agent needs to filter and to imagine, and {name} as configured cannot {what}; "
                f"set {own}model.dynamics.name to rssm"
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
        self.env_steps = 0  # that the agent has been trained for
        self.returns = ReturnRange()  # that were seen in its environment
        self.checkpoint: Checkpoint | None = None  # that it was read from

    def _check_sizes(self) -> None:
        """Refuse networks that do not fit into the memory, before any of it is asked for."""
        config = self.config
        model = outlined(lambda: WorldModel.build(config.model, self.obs_specs, self.action_spec), "the model")
        if config.behaviour.name != "sb3":
            size, spec = model.feature_size, self.action_spec
            outlined(lambda: build_behaviour(config.behaviour, size, spec), "the behaviour")

    def _behaviour(self, action_space: Space[Any]) -> "Trained | SB3Behaviour":
        if self.config.behaviour.name != "sb3":
            return build_behaviour(self.config.behaviour, self.model.feature_size, self.action_spec)
        from worldmodel.training.run.imagined import dreaming  # Stable-Baselines3 takes a second to import

        return dreaming(self.config, self.model, self.replay, action_space, self.action_spec)

    def __repr__(self) -> str:
        return f"<Run {self.folder}: {self.config.env.id} after {self.env_steps} environment steps>"

    @staticmethod
    def create(folder: str | Path, config: Config) -> "Run":
        """A new run for a folder that holds none; nothing is written before :meth:`begin`.

        Raises:
            ValueError: if the folder already holds a run, its disk has no room for the replay, rounds in the dream are
                no whole number of rollouts, or as the class says.
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
        """Refuse what so many environment steps would store, if the memory does not hold it; files are no memory.

        Raises:
            ValueError: with what it takes and what there is.
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
        """Claim the folder, with the resolved config in it, and take the replay there if that is where it belongs.

        Raises:
            ValueError: if another run claimed it in the meantime.
        """
        claim(self.folder, self.config)
        self.keep_rows()

    def keep_rows(self) -> None:
        """Take the replay to the disk, if that is where it belongs."""
        if self.config.replay.disk and not isinstance(self.replay.storage, Disk):
            self.replay.move(self.folder / ROWS)

    @staticmethod
    def load(
        folder: str | Path,
        device: str | None = None,
        env: str | None = None,
        checkpoint: str = "latest",
        at_checkpoint: bool = False,
        say: Callable[[str], None] = whisper,
    ) -> "Run":
        """Open a finished or interrupted run, on the device it was trained on or on another.

        The random state of torch is left as it was. A replay on the disk stays there as it is, until a row is added.

        Args:
            env: the id of another environment than its own, with the same spaces.
            checkpoint: "latest"; "best", that with the best evaluation; or the number of one that was kept.
            at_checkpoint: with what was recorded when the weights were saved, and not what came after.
            say: gets a line for each damaged checkpoint in whose place an older one is used.
        Raises:
            ValueError: if the folder holds no run or no such checkpoint, or a file in it does not fit its config.
        """
        folder = Path(folder)
        config = read_config(folder, saved_config(folder, "train"), load_config)
        before, config.training.device = config.training.device, device or config.training.device
        elsewhere, config.env.id = env not in (None, config.env.id), env or config.env.id
        found, problems = find(folder / CHECKPOINT, checkpoint, () if at_checkpoint else (ROWS_THEN,))
        for problem in problems:
            say(f"{problem}; {found.folder.name}, of {found.env_steps} environment steps, takes its place")
        said = without_compiler(config)
        with torch.random.fork_rng():
            run = Run(folder, config)
        run.decided += said + taken_along(config, before)
        run.take(found)
        if elsewhere:
            run.returns = ReturnRange()
        if isinstance(run.behaviour, Plan2Explore):
            run.behaviour.begin_step(run.env_steps)
        if config.replay.disk and (folder / ROWS / MANIFEST).is_file():
            run.replay.open(folder / ROWS)
        elif at_checkpoint:
            run.replay.load(found.folder / ROWS_THEN)
        elif (folder / REPLAY).is_file():
            run.replay.load(folder / REPLAY)
        return run

    def take(self, checkpoint: Checkpoint) -> None:
        """Weights, what the behaviour needs to learn on, and how long they have been trained for."""
        load_module(checkpoint.folder / MODEL, self.model)
        load_module(checkpoint.folder / BEHAVIOUR, self.behaviour)
        with fitting_state(checkpoint.folder / TRAINING):
            state = load_tree(checkpoint.folder / TRAINING)
            self.behaviour.load_training_state(state["behaviour"])
            self.returns = ReturnRange(**state.get("returns", {}))  # newer than format 2
        self.env_steps, self.checkpoint = checkpoint.env_steps, checkpoint

    @property
    def summary(self) -> str:
        """One line for a person: what is trained, and on what."""
        config, model = self.config, self.config.model
        size = sum(p.numel() for p in (*self.model.parameters(), *self.behaviour.parameters()) if p.requires_grad)
        what = f"{model.dynamics.name} with {model.latent.family} latents, {size:,} parameters"
        return f"{config.env.id}: {what}, {config.training.device}, {config.training.threads} torch thread(s)"

    def save(self, training: Mapping[str, Any] | None, mean_return: float | None = None) -> None:
        """Write the replay, and then a new checkpoint.

        A replay on the disk is there already. Weights that are not finite are of no use: the last good ones stay, with
        what belongs to them.

        Args:
            training: what going on needs, see :func:`worldmodel.training.start.resume`; None where an update has been
            interrupted,
                and the weights are those of no moment.
            mean_return: of an evaluation of these weights.
        """
        self.keep_rows()
        if self.config.replay.disk:
            self.replay.flush()
        else:
            self.replay.save(self.folder / REPLAY)
        weights = [*self.model.parameters(), *self.behaviour.parameters()]
        if training is None or not all(bool(parameter.isfinite().all()) for parameter in weights):
            return
        with new_checkpoint(self.folder / CHECKPOINT, self.env_steps, mean_return) as folder:
            self._write_weights(folder, training)
            if not self.config.replay.disk:
                link(self.folder / REPLAY, folder / ROWS_THEN)
        with suppress(OSError):  # of what cannot be removed; the checkpoint is there
            prune(self.folder / CHECKPOINT, self.config.training.keep, drop=(ROWS_THEN,))

    def write(self, folder: Path, training: Mapping[str, Any]) -> None:
        """A copy of this run without its replay, in an empty folder."""
        claim(folder, self.config)
        with new_checkpoint(folder / CHECKPOINT, self.env_steps) as checkpoint:
            self._write_weights(checkpoint, training)

    def _write_weights(self, checkpoint: Path, training: Mapping[str, Any]) -> None:
        save_module(checkpoint / MODEL, self.model)
        save_module(checkpoint / BEHAVIOUR, self.behaviour)
        save_tree(checkpoint / TRAINING, training)

    def evaluate(
        self,
        episodes: int | None = None,
        deterministic: bool = True,
        say: Callable[[str], None] = whisper,
        lent: Sequence[gym.Env[Any, Any]] = (),
    ) -> Evaluation:
        """Whole episodes in new environments, on seeds never used in training, and the same ones as imagined.

        Nothing is imagined by a model that has learned that a lost life is the end. `say`, `lent`: see
        :func:`worldmodel.training.evaluation.evaluation.evaluate`.

        Raises:
            ValueError: if no number of episodes is given, and the config has none.
        """
        count = self.config.evaluation.final_episodes if episodes is None else episodes
        if episodes is None and not count:
            raise ValueError("evaluation.final_episodes is 0: say how many episodes, as with --episodes 20")
        promises = self.config.env.life_loss == "ignore"  # a model of single lives knows nothing of whole games
        beside = self.config.side_by_side
        result = evaluate(self.agent, self.config.env, count, FINAL, deterministic, promises, say, beside, lent, True)
        return result._replace(spread=self.returns.spread(result.mean))


def check_window(replay: SequenceReplay, config: ReplayConfig) -> None:
    """Refuse a replay that is filled before there is anything to sample.

    Raises:
        ValueError: if it does not hold a window of each environment.
    """
    if replay.length < config.window:
        count = len(replay.written)
        raise ValueError(
            f"the replay keeps {replay.length} steps of each of {count} environment(s), less than a window of "
            f"{config.window}: raise replay.capacity to {count * config.window} or more, and replay.capacity_bytes, if "
            f"it is set, to {count * config.window * replay.row_bytes}"
        )
