"""One environment step, and one update of the model and of the behaviour that imagines in it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from torch import Tensor

from worldmodel.agents import ActorCritic, Agent, AgentState, Behaviour, Plan2Explore, RandomBehaviour
from worldmodel.envs import Episode, RecordTrajectories, RepeatableEpisodes, Restart, make_vector
from worldmodel.envs.contract.faults import named
from worldmodel.envs.wrappers.episodes import episode_seed
from worldmodel.envs.wrappers.process import begin
from worldmodel.learning.learner import Learner
from worldmodel.learning.objective import Annealed, Metrics, annealed, model_loss
from worldmodel.networks.images import ENOUGH
from worldmodel.replay.places import Places
from worldmodel.training.loop.units import Reach, unsuited
from worldmodel.training.run.run import Run
from worldmodel.training.run.tree import shaped
from worldmodel.types import Batch, State, pack, restart, unpack

ROOM = 2**28  # bytes of recorded numbers that units are taken from; of more, every second step, or third, ...

SKIPPED = "/skipped"  # ends the names of the metrics that say whether an update was

OnStep = Callable[[], bool]
"""Called after each step of the environments; whether to go on."""


def unbothered() -> bool:
    """Go on."""
    return True


class Update(NamedTuple):
    """What an update begins from, besides the weights: enough to compute it again."""

    batch: Batch
    places: Places
    now: Annealed
    start: State | None
    random: Tensor  # the state of torch's generator


class Trainer:
    """Collects arrivals for a run, replays them, and updates its model and its behaviour.

    Args:
        state: to go on as another trainer of this run would have: what it gave as :meth:`state`.
    """

    def __init__(self, run: Run, state: Mapping[str, Any] | None = None) -> None:
        self.run, self.config = run, run.config
        self.doing: Literal["nothing", "acting", "collecting", "updating"] = "nothing"  # what an error has interrupted
        self.agent: Agent | None = None  # that collects
        self.envs = RecordTrajectories(make_vector(run.config.env, training=True), run.replay.add, run.replay.cut)
        self.loss = partial(model_loss, run.model, run.config.objective)
        self.joint = together(run) if run.config.training.joint else None
        trained = list(run.model.parameters())
        if self.joint is None:
            self.learner = Learner(self.loss, trained, run.config.learner)
        else:
            self.learner = Learner(self.joint_loss, [*trained, *self.joint.trained], run.config.learner)
        self.before = run.env_steps  # that it had been trained for
        self.prefilled = False
        self.reach = Reach()
        self._warnings = list[str]()
        self._unsuited = set[str]()  # emissions of which it was told
        self.updates = 0
        self.last: Update | None = None
        self.unsound = 0  # decisions on predictions that were not finite
        self.acting: AgentState | None = None
        self.pending: tuple[np.ndarray, AgentState] | None = None  # actions that are being carried out
        self.ended: list[Episode] = []  # episodes that ended in the last step
        self.failures: list[str] = []  # what went wrong in environments in the last step
        self.actions = np.zeros(0)  # of the last step, and what came of it
        self.reward = np.zeros(self.envs.num_envs)
        self.limited = np.zeros(self.envs.num_envs, bool)  # which episodes a limit has ended, and nothing else
        self.finals: Any = None  # the last observations of those that have ended, by environment
        self.start = np.ones(self.envs.num_envs, bool)  # which observations are those of a reset
        self.lost = 0  # episodes that could not be taken up again
        self.overwritten = False  # whether a replay on the disk, being full, no longer holds what it did then
        if state is None:
            self.observation, _ = self.envs.reset(seed=run.config.seed)
        else:
            self._load_state(state)

    def decide(self, behaviour: Behaviour) -> None:
        """Choose the actions of the next step, which environments in processes of their own begin at once."""
        if isinstance(behaviour, Plan2Explore):
            behaviour.begin_step(self.run.env_steps)
        if self.agent is None or self.agent.behaviour is not behaviour:
            self.agent = self.acted_by(behaviour)
        self.doing = "acting"
        actions, acting = self.agent.predict(self.observation, self.acting, self.start)
        self.doing = "nothing"
        if not np.isfinite(actions).all():
            raise FloatingPointError(f"an action at step {self.run.env_steps} is not finite")
        begin(cast(SyncVectorEnv, self.envs.unwrapped), actions)
        self.pending = actions, acting

    def collect(self, behaviour: Behaviour) -> None:
        """One step of every environment, recorded; its actions may have been decided before."""
        if self.pending is None:
            self.decide(behaviour)
        assert self.pending is not None
        (actions, self.acting), self.pending = self.pending, None
        self.unsound += int((~self.acting.sound).sum())
        if self.config.replay.context:
            latent = type(self.acting.latent)(*(field.unsqueeze(1) for field in self.acting.latent))
            self.run.replay.remember(self.run.replay.newest(), pack(latent))
        self.doing = "collecting"
        self.observation, self.reward, terminated, truncated, infos = self.envs.step(actions)
        self.start, self.limited = terminated | truncated, truncated & ~terminated
        self.actions, self.finals = actions, infos.get("final_obs")
        self.ended, self.failures = self.envs.pop_episodes(), self.envs.pop_failures()
        self.run.env_steps = self.before + self.envs.steps
        self.doing = "nothing"

    def acted_by(self, behaviour: Behaviour) -> Agent:
        """The agent that collects; what has been learned acts compiled, where the config says so."""
        run = self.run
        compiled = self.config.training.acting == "compiled" and behaviour is run.behaviour
        return Agent(run.model, behaviour, run.obs_specs, run.action_spec, compiled)

    def forget_states(self) -> None:
        """Infer latent states anew: those until now are of weights that are gone."""
        self.acting = None
        if self.pending is not None and self.agent is not None:
            actions, decided = self.pending
            self.pending = actions, self.agent.initial(self.envs.num_envs)._replace(control=decided.control)

    @property
    def lent(self) -> list[Restart]:
        """The environments, for an evaluation to play in: nothing of that is recorded, counted or played again."""
        envs = cast(SyncVectorEnv, self.envs.unwrapped).envs
        return [cast(Restart, env.env if isinstance(env, RepeatableEpisodes) else env) for env in envs]

    def begin_episodes(self) -> None:
        """Let every environment begin a new episode, the running one being truncated: someone else has stepped it."""
        self.pending = None
        self.run.replay.cut(np.arange(self.envs.num_envs))
        self.observation, _ = self.envs.reset()
        self.start, self.acting = np.ones(self.envs.num_envs, bool), None

    def prefill(self, steps: int, on_step: OnStep = unbothered) -> bool:
        """Record random actions, and take the units of model and behaviour from what they showed.

        A run that was trained before acts as it has learned, and its weights mean what they meant.

        Args:
            on_step: called after each step; the recording ends when it answers False.
        Returns:
            Whether it never did.
        """
        trained, behaviour, goes_on = self.before > 0, self.before_learning, True
        while goes_on and self.envs.steps < steps:
            self.collect(behaviour)
            goes_on = on_step()
        if self.envs.steps < steps:  # interrupted
            return False
        self.fit_units(keep=trained)
        images = self.run.model.image_keys
        if images:
            every = max(len(self.run.replay) // ENOUGH, 1)
            self.run.model.fit_images(self.run.replay.everything(images, every))
        self.acting = None  # it was filtered in other units
        self.prefilled = True
        return goes_on

    @property
    def before_learning(self) -> Behaviour:
        """What acts until there are units: at random, unless the run was trained before."""
        return self.run.behaviour if self.before > 0 else RandomBehaviour(self.run.action_spec)

    def refit_units(self, before: int) -> None:
        """Measure in the units of everything recorded, each time that has doubled since the prefill.

        And at once when a value is far outside, see :class:`worldmodel.training.loop.units.Reach`.

        Args:
            before: environment steps before the last one of each environment.
        """
        prefill = max(self.config.training.prefill, 1)
        doubled = (self.envs.steps // prefill).bit_length() > (before // prefill).bit_length()
        if doubled or self.reach.exceeded(self.observation, self.reward):
            self.fit_units(keep=True)

    def fit_units(self, keep: bool) -> None:
        """Units of model and behaviour, but for those of images, from everything recorded; with `keep` both go on."""
        replay, model = self.run.replay, self.run.model
        keys = [key for key in model.keys if key not in model.image_keys]
        recorded = replay.everything(keys, -(-replay.nbytes(keys) // ROOM) or 1)
        model.fit_units(recorded, keep)
        self.run.behaviour.fit_units(recorded, keep)
        self.reach.take(model, len(replay))
        told = unsuited(model, recorded)
        self._warnings += [line for name, line in told.items() if name not in self._unsuited]
        self._unsuited |= told.keys()
        self._warnings += self.envs.recorder.pop_blurred()

    def pop_warnings(self) -> list[str]:
        """What a person should know of the values recorded since the last call."""
        warnings, self._warnings = self._warnings, []
        return warnings

    def learners(self) -> list[Learner]:
        """Of the model, and of each part of the behaviour that has one."""
        parts = [self, *self.run.behaviour.modules()]
        found = [getattr(part, "learner", None) for part in parts]
        return [learner for learner in found if isinstance(learner, Learner)]

    def update(self) -> tuple[Metrics, Tensor]:
        """One update of the model on a replayed batch, and one of the behaviour imagined from its states.

        Returns:
            Metrics, and whether numbers were not finite and a part of the update was skipped.
        """
        self.doing = "updating"
        self.last = self.drawn()
        metrics = self.learn(self.last)
        self.doing = "nothing"
        skipped = [metrics.pop(name) for name in list(metrics) if name.endswith(SKIPPED)]
        return metrics, torch.stack(skipped).amax()

    def drawn(self) -> Update:
        """What the next update begins from."""
        config, replay, device = self.config.replay, self.run.replay, self.config.training.device
        places = replay.draw(config.batch_size, config.window)
        start = self.context(places, device) if config.context else None
        now = annealed(self.config.objective, self.updates, device)
        return Update(replay.gather(places, device), places, now, start, torch.get_rng_state())

    def learn(self, update: Update) -> Metrics:
        """The update itself."""
        model, behaviour, batch = self.run.model, self.run.behaviour, update.batch
        (states, metrics), report = self.learner.update(batch, update.now, update.start)
        self.updates += 1
        states = type(states)(*(field.detach() for field in states))
        if self.config.replay.context:
            self.run.replay.remember(update.places, pack(states))
        if self.joint is None:
            metrics |= {f"world_model/{name}": value for name, value in report.items()}
            return {**metrics, **behaviour.learn(model, states, batch)}
        self.joint.follow(metrics)
        return {**metrics, **{f"joint/{name}": value for name, value in report.items()}}

    # To go on as if nothing had happened.

    def state(self) -> dict[str, Any]:
        """What the next steps depend on besides weights and recorded rows, as nested mappings of arrays and numbers.

        After an error in the middle of a step of the environments their episodes are not in it.
        """
        return {
            "learned": self.learned(),
            "replay": self.run.replay.training_state(),
            "numbers": [self.before, self.prefilled, self.unsound],
            "measured": self.reach.rows,
            "recorder": self.envs.recorder.counters(),
            "episodes": None if self.doing == "collecting" else self._episodes(),
        }

    def learned(self) -> dict[str, Any]:
        """What the next update of the model depends on besides its weights."""
        return {"learner": self.learner.state(), "updates": self.updates}

    def learn_on(self, learned: Mapping[str, Any]) -> None:
        """Go on from what :meth:`learned` gave."""
        self.learner.load(learned["learner"])
        self.updates = learned["updates"]

    def _episodes(self) -> dict[str, Any] | None:
        """Where the episodes of the environments stand; None where they cannot be played again."""
        envs = cast(SyncVectorEnv, self.envs.unwrapped).envs
        if not all(isinstance(env, RepeatableEpisodes) for env in envs):
            return None
        return {
            "positions": [cast(RepeatableEpisodes, env).position() for env in envs],
            "observation": named(self.observation),
            "start": self.start,
            "acting": self.acting,
        }

    def _load_state(self, state: Mapping[str, Any]) -> None:
        """See the class."""
        self.learn_on(state["learned"])
        same = self.run.replay.load_training_state(state["replay"])
        self.overwritten = not same
        self.before, self.prefilled, self.unsound = state["numbers"]
        if self.prefilled:
            self.reach.take(self.run.model, state.get("measured", len(self.run.replay)))  # newer than format 2
        if isinstance(self.run.behaviour, Plan2Explore):  # as when the last actions were decided
            self.run.behaviour.begin_step(self.before + state["recorder"]["steps"] - self.envs.num_envs)
        whole = same and state["episodes"] is not None
        found = self._taken_up(state["episodes"]) if whole else np.zeros(self.envs.num_envs, bool)
        self.envs.recorder.count_on(state["recorder"])
        self.lost = int((~found).sum())
        if self.lost:
            self.run.replay.cut(np.flatnonzero(~found))
            self.start = ~found if not whole else self.start | ~found
            if not whole:  # in seeds that no episode before had
                below = self.config.env.evaluation_seeds[0] - self.envs.num_envs + 1  # each has the next seed
                self.observation, _ = self.envs.reset(seed=episode_seed(self.config.seed, 1 + self.envs.steps, below))
            else:
                self.envs.recorder.reset(self.observation, ~found)

    def _taken_up(self, episodes: Mapping[str, Any]) -> np.ndarray:
        """Play the episodes again up to where they were; which environments (num_envs,) have repeated themselves."""
        vector, found, reached = cast(SyncVectorEnv, self.envs.unwrapped), [], []
        saved = episodes["observation"]
        for place, (env, position) in enumerate(zip(vector.envs, episodes["positions"], strict=True)):
            observation = cast(RepeatableEpisodes, env).go_to(position)
            same = observation is not None and all(
                np.array_equal(value, saved[key][place]) for key, value in named(observation).items()
            )
            if not same:
                observation, _ = env.reset()
            found.append(same)
            reached.append(observation)
        space = vector.single_observation_space
        self.observation = concatenate(space, reached, cast(Any, create_empty_array(space, len(reached))))
        self.start = episodes["start"].copy()
        if episodes["acting"] is not None:
            behaviour = self.run.behaviour if self.prefilled else self.before_learning
            self.agent = self.acted_by(behaviour)
            self.acting = shaped(self.agent.initial(len(reached)), episodes["acting"])
        return np.array(found)

    def joint_loss(self, batch: Batch, now: Annealed, start: State | None) -> tuple[Tensor, tuple[State, Metrics]]:
        """That of the model, and that of the behaviour, of which the values of replayed states shape the model."""
        assert self.joint is not None
        loss, (states, metrics) = self.loss(batch, now, start)
        more, learned = self.joint.loss(self.run.model, *self.joint.given(self.run.model, states, batch))
        return loss + more, (states, {**metrics, **learned})

    def context(self, places: Places, device: str) -> State:
        """The state before each window, as it was last inferred; the initial one where none has been."""
        start = self.run.model.initial(len(places.env))
        stored = self.run.replay.context(places, device)
        if stored is None:
            return start
        packed, known = stored
        return restart(unpack(packed, start), start, ~known)


def together(run: Run) -> ActorCritic:
    """The behaviour of a run whose model and behaviour are to have one loss.

    Raises:
        ValueError: if its gradients would change the model.
    """
    behaviour = run.behaviour
    assert isinstance(behaviour, ActorCritic), type(behaviour)  # the config has refused others
    if behaviour.pathwise:
        raise ValueError(
            "training.joint would let the actor's pathwise gradients change the model to please it: set "
            "behaviour.actor_critic.gradient to score, or training.joint to false"
        )
    return behaviour
