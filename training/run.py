"""A run folder and what lives in it: `config.yaml  metrics.jsonl  checkpoint/  replay/  wandb/`.

`replay/` holds `replay.npz`, written at every save; with `replay.disk` it is where the replay lives, see
:mod:`worldmodel.disk`.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from gymnasium import Space

from agents import Agent, build_behaviour
from envs import EnvironmentFault, action_spec, make, observation_specs
from training.checkpoint import load_module, save_module, write_text_atomic
from training.config import Config, ReplayConfig, load_config
from training.evaluation import Evaluation, evaluate
from training.schema import dump_yaml, load_yaml, to_mapping
from training.tree import load_tree, save_tree
from worldmodel.disk import MANIFEST, Disk, check_room
from worldmodel.limits import check_memory, outlined
from worldmodel.model import WorldModel
from worldmodel.objective import check_objective
from worldmodel.replay import SequenceReplay
from worldmodel.spaces import observed

if TYPE_CHECKING:
    from agents.build import Trained
    from agents.sb3 import SB3Behaviour

T = TypeVar("T")

CONFIG, CHECKPOINT, ROWS, REPLAY = "config.yaml", "checkpoint", "replay", "replay/replay.npz"
MODEL, BEHAVIOUR, STATE = "model.safetensors", "behaviour.safetensors", "state.json"  # in the checkpoint
TRAINING = "training.safetensors"  # what going on needs, besides the weights
ROWS_THEN = "replay.npz"  # in the checkpoint: REPLAY as it was then, the same file until more has been recorded
LAST = CHECKPOINT + ".last"  # the checkpoint before, while a new one takes its place
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
        from training.dream import dreaming  # Stable-Baselines3 takes a second to import

        return dreaming(self.config, self.model, self.replay, action_space, self.action_spec)

    @staticmethod
    def create(folder: str | Path, config: Config) -> "Run":
        """A new run for a folder that holds none; nothing is written before :meth:`begin`.

        Raises:
            ValueError: if the folder already holds a run, its disk has no room for the replay, or as the class says.
        """
        run = Run(unclaimed(folder), config)
        if config.replay.disk:
            check_room(run.folder, run.replay.max_bytes)
        else:
            rows = min(run.replay.max_bytes, config.training.steps * run.replay.row_bytes)
            check_memory(rows, "the rows of the replay", "set replay.disk: true, or lower replay.capacity")
        batch = config.replay.batch_size * config.replay.window * (run.replay.row_bytes + 4 * run.model.feature_size)
        check_memory(batch, "the batches of the replay", "lower replay.batch_size or replay.window")
        return run

    def begin(self) -> None:
        """Claim the folder, with the resolved config in it, and take the replay there if that is where it belongs.

        Raises:
            ValueError: if another run claimed it in the meantime.
        """
        claim(self.folder, self.config)
        self._keep_rows()

    def _keep_rows(self) -> None:
        """Take the replay to the disk, if that is where it belongs."""
        if self.config.replay.disk and not isinstance(self.replay.storage, Disk):
            self.replay.move(self.folder / ROWS)

    @staticmethod
    def load(
        folder: str | Path, device: str | None = None, env: str | None = None, at_checkpoint: bool = False
    ) -> "Run":
        """Open a finished or interrupted run, on the device it was trained on or on another.

        The random state of torch is left as it was. A replay on the disk stays there as it is, until a row is added.

        Args:
            env: the id of another environment than its own, with the same spaces.
            at_checkpoint: with what was recorded when the weights were saved, and not what came after.
        Raises:
            ValueError: if the folder holds no run, or a file in it does not fit its config.
        """
        folder = Path(folder)
        config = read_config(folder, saved_config(folder, "train"), load_config)
        config.training.device = device or config.training.device
        config.env.id = env or config.env.id
        with torch.random.fork_rng():
            run = Run(folder, config)
        checkpoint = checkpoint_of(folder)
        missing = [name for name in (MODEL, BEHAVIOUR, STATE) if not (checkpoint / name).is_file()]
        if missing:
            raise ValueError(
                f"{folder} holds no complete checkpoint, {', '.join(missing)} missing: the run stopped before its "
                "first save, or files were removed"
            )
        load_module(checkpoint / MODEL, run.model)
        load_module(checkpoint / BEHAVIOUR, run.behaviour)
        if run.config.behaviour.name == "sb3" and not at_checkpoint:
            state = load_tree(checkpoint / TRAINING)
            if "behaviour" not in state:
                raise ValueError(f"{checkpoint / TRAINING} was written by an earlier version: train the run anew")
            with fitting_state(checkpoint / TRAINING):
                run.behaviour.load_training_state(state["behaviour"])
        run.env_steps = _env_steps(checkpoint / STATE)
        if config.replay.disk and (folder / ROWS / MANIFEST).is_file():
            run.replay.open(folder / ROWS)
        elif at_checkpoint:
            run.replay.load(checkpoint / ROWS_THEN)
        elif (folder / REPLAY).is_file():
            run.replay.load(folder / REPLAY)
        return run

    @property
    def summary(self) -> str:
        """One line for a person: what is trained, and on what."""
        config, model = self.config, self.config.model
        size = sum(p.numel() for p in (*self.model.parameters(), *self.behaviour.parameters()) if p.requires_grad)
        what = f"{model.dynamics.name} with {model.latent.family} latents, {size:,} parameters"
        return f"{config.env.id}: {what}, {config.training.device}, {config.training.threads} torch thread(s)"

    def save(self, training: Mapping[str, Any] | None) -> None:
        """Write the replay, and then a checkpoint that replaces the last one in one step.

        A replay on the disk is there already. Weights that are not finite are of no use: the last good ones stay, with
        what belongs to them.

        Args:
            training: what going on needs, see :func:`training.loop.resume`; None where an update has been interrupted,
                and the weights are those of no moment.
        """
        self._keep_rows()
        if self.config.replay.disk:
            self.replay.flush()
        else:
            self.replay.save(self.folder / REPLAY)
        weights = [*self.model.parameters(), *self.behaviour.parameters()]
        if training is None or not all(bool(parameter.isfinite().all()) for parameter in weights):
            return
        now, new, old = (self.folder / name for name in (CHECKPOINT, CHECKPOINT + ".new", LAST))
        shutil.rmtree(new, ignore_errors=True)
        self._write_checkpoint(new, training)
        if not self.config.replay.disk:
            link(self.folder / REPLAY, new / ROWS_THEN)
        if now.exists():
            shutil.rmtree(old, ignore_errors=True)
            now.rename(old)
        new.rename(now)
        shutil.rmtree(old, ignore_errors=True)

    def write(self, folder: Path) -> None:
        """A copy of this run without its replay, in an empty folder."""
        claim(folder, self.config)
        self._write_checkpoint(folder / CHECKPOINT, {"behaviour": self.behaviour.training_state()})

    def _write_checkpoint(self, checkpoint: Path, training: Mapping[str, Any]) -> None:
        checkpoint.mkdir(parents=True, exist_ok=True)
        save_module(checkpoint / MODEL, self.model)
        save_module(checkpoint / BEHAVIOUR, self.behaviour)
        save_tree(checkpoint / TRAINING, training)
        write_text_atomic(checkpoint / STATE, json.dumps({"env_steps": self.env_steps}) + "\n")

    def evaluate(self, episodes: int | None = None, deterministic: bool = True) -> Evaluation:
        """Whole episodes in new environments, on seeds never used in training, and the same ones as imagined.

        Nothing is imagined by a model that has learned that a lost life is the end.
        """
        count = self.config.evaluation.final_episodes if episodes is None else episodes
        promises = self.config.env.life_loss == "ignore"  # a model of single lives knows nothing of whole games
        return evaluate(self.agent, self.config.env, count, FINAL, deterministic, imagine=promises)


def checkpoint_of(folder: Path) -> Path:
    """The checkpoint of a run folder: the one before, if a crash came between that and a new one."""
    return folder / (CHECKPOINT if (folder / CHECKPOINT).exists() or not (folder / LAST).exists() else LAST)


def link(file: Path, target: Path) -> None:
    """Another name for a file that is only ever replaced, never changed; a copy where the disk knows no such names."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)


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


def unclaimed(folder: str | Path) -> Path:
    """A folder for a new run.

    Raises:
        ValueError: if it already holds one, is a file, or cannot be made.
    """
    folder = Path(folder)
    try:
        if folder.is_file() or (folder / CONFIG).exists():
            raise ValueError(f"{folder} already holds a run: choose another --run folder, or remove it")
    except OSError as error:  # a name too long
        raise ValueError(f"{folder} can hold no run: {error.strerror}; choose another --run folder") from error
    check_writable(folder)
    return folder


def check_writable(folder: Path) -> None:
    """Refuse a folder that files cannot be put into, and that cannot be made either, before there is anything to write.

    Raises:
        ValueError: naming what is in the way.
    """
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except OSError as error:  # a name too long
        raise ValueError(f"{folder}: {error.strerror}: choose another folder") from error
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{folder}: {there} is no folder that can be written to: choose another")


def claim(folder: Path, config: Any) -> None:
    """Make `folder` that of a run, by writing its resolved config: of two that try, one succeeds.

    Raises:
        ValueError: if another run claimed it before, or it cannot be made.
        OSError: if the disk is full; the folder is no run then.
    """
    text = dump_yaml(to_mapping(config))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} can hold no run: {error.strerror}; choose another --run folder") from error
    try:
        with (folder / CONFIG).open("x", encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
            except OSError:  # a full disk: half a config would say that there is a run
                (folder / CONFIG).unlink()
                raise
    except FileExistsError as error:
        raise ValueError(f"{folder} already holds a run: choose another --run folder") from error


def saved_config(folder: Path, command: str) -> dict[str, Any]:
    """What the config file of a run says.

    Args:
        command: what made the run, "train" or "fit".
    Raises:
        ValueError: if the folder holds no run, or one of the other kind.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds no run: {CONFIG} is missing")
    mapping = load_yaml(folder / CONFIG)
    found = "fit" if "data" in mapping else "train"
    if found != command:
        raise ValueError(f"{folder} holds a run of `worldmodel {found}`; one of `worldmodel {command}` is needed here")
    return mapping


def read_config(folder: Path, saved: Mapping[str, Any], load: Callable[[Mapping[str, Any]], T]) -> T:
    """The config that was saved with a run.

    Raises:
        ValueError: naming its file, if it does not fit this version, or was changed into what it cannot be.
    """
    try:
        return load(saved)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error


def _env_steps(file: Path) -> int:
    """What the state file of a checkpoint says."""
    try:
        steps = json.loads(file.read_text(encoding="utf-8"))["env_steps"]
        if type(steps) is not int or not 0 <= steps < 2**63:
            raise ValueError(f"env_steps is {steps!r}")
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as the state of a run: {error!r}") from error
    return steps


@contextmanager
def fitting_state(file: Path) -> Iterator[None]:
    """While what a file holds is put into the parts of a run.

    Raises:
        ValueError: naming the file, for anything missing in it, or of another kind or shape than the parts have.
    """
    try:
        yield
    except EnvironmentFault:  # of an episode that is taken up again
        raise
    except (LookupError, TypeError, AttributeError, RuntimeError, AssertionError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{file} is no training state of this run: {reason}") from error


def check_device(name: str, key: str = "training.device") -> None:
    """Refuse a device that torch cannot use here.

    Args:
        key: of the config, for the message.
    Raises:
        ValueError: with torch's reason.
    """
    try:
        torch.zeros(1, device=name).cpu()  # what a device without memory, as `meta`, cannot give back
    except (RuntimeError, AssertionError, ValueError) as error:  # for an unknown name, a missing build, no memory
        reason = str(error).splitlines()[0]
        raise ValueError(f"{key}: '{name}' cannot be used here ({reason}); cpu always can") from error


def free_folder(name: str) -> Path:
    """`runs/NAME`, or the first of `runs/NAME-2`, `runs/NAME-3`, ... that holds no run."""
    folders = (Path("runs") / (name if k == 1 else f"{name}-{k}") for k in range(1, 1_000_000))
    return next(folder for folder in folders if not (folder / CONFIG).exists())
