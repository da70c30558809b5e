"""Acting: the environments of a run, and the agent that steps them."""

from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
from gymnasium.vector import SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array

from worldmodel.agents import Agent, AgentState, Behaviour, Plan2Explore
from worldmodel.envs import Episode, RecordTrajectories, RepeatableEpisodes, Restart, make_vector
from worldmodel.envs.contract.faults import named
from worldmodel.envs.wrappers.episodes import episode_seed
from worldmodel.envs.wrappers.process import begin
from worldmodel.training.run.run import Run
from worldmodel.training.run.tree import shaped
from worldmodel.types import pack


class Collector:
    """Steps the environments of a run and records every step in the replay of the run.

    Call :meth:`reset` or :meth:`resume` before the first step.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config
        self.doing: Literal["nothing", "acting", "collecting"] = "nothing"  # an error leaves it at what it interrupted
        self.envs = RecordTrajectories(make_vector(run.config.env, training=True), run.replay.add, run.replay.cut)
        self.agent: Agent | None = None
        self.acting: AgentState | None = None  # the state of the agent after its last step
        self.pending: tuple[np.ndarray, AgentState] | None = None  # actions that are decided but not yet recorded
        self.before = run.env_steps  # environment steps of the run before this object was made
        self.unsound = 0  # decisions that rest on predictions that are not finite
        self.lost = 0  # running episodes that could not be resumed
        self.observation: Any = None
        # The results of the last step:
        self.ended: list[Episode] = []
        self.failures: list[str] = []
        self.actions = np.zeros(0)
        self.reward = np.zeros(self.envs.num_envs)
        self.limited = np.zeros(self.envs.num_envs, bool)  # episodes that were truncated and not terminated
        self.finals: Any = None  # the last observations of the episodes that ended, by environment
        self.start = np.ones(self.envs.num_envs, bool)  # whether an observation is the first of its episode

    @property
    def vector(self) -> SyncVectorEnv:
        """The vector environment below the recorder."""
        return cast(SyncVectorEnv, self.envs.unwrapped)

    @property
    def lent(self) -> list[Restart]:
        """The environments, for an evaluation to play in. They do not record, count or repeat these episodes."""
        return [cast(Restart, env.env if isinstance(env, RepeatableEpisodes) else env) for env in self.vector.envs]

    def reset(self) -> None:
        """Begin the first episodes, with the seed of the config."""
        self.observation, _ = self.envs.reset(seed=self.config.seed)

    def begin_episodes(self) -> None:
        """Truncate the running episodes and begin new ones. Needed after someone else has stepped the environments."""
        self.pending = None
        self.run.replay.cut(np.arange(self.envs.num_envs))
        self.observation, _ = self.envs.reset()
        self.start, self.acting = np.ones(self.envs.num_envs, bool), None

    def decide(self, behaviour: Behaviour) -> None:
        """Choose the actions of the next step. Environments in processes of their own begin the step at once.

        Raises:
            FloatingPointError: if an action is not finite.
        """
        if isinstance(behaviour, Plan2Explore):
            behaviour.begin_step(self.run.env_steps)
        if self.agent is None or self.agent.behaviour is not behaviour:
            self.agent = self.agent_of(behaviour)
        self.doing = "acting"
        actions, acting = self.agent.predict(self.observation, self.acting, self.start)
        self.doing = "nothing"
        if not np.isfinite(actions).all():
            raise FloatingPointError(f"an action at step {self.run.env_steps} is not finite")
        begin(self.vector, actions)
        self.pending = actions, acting

    def collect(self, behaviour: Behaviour) -> None:
        """Take and record one step of every environment, with the pending actions if there are any."""
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

    def agent_of(self, behaviour: Behaviour) -> Agent:
        """Return the agent that acts by a behaviour. The behaviour of the run is compiled if the config says so."""
        run = self.run
        compiled = self.config.training.acting == "compiled" and behaviour is run.behaviour
        return Agent(run.model, behaviour, run.obs_specs, run.action_spec, compiled)

    def forget_states(self) -> None:
        """Infer latent states anew. Needed after a change of the weights, which gave the present states."""
        self.acting = None
        if self.pending is not None and self.agent is not None:
            actions, decided = self.pending
            self.pending = actions, self.agent.initial(self.envs.num_envs)._replace(control=decided.control)

    def episodes(self) -> dict[str, Any] | None:
        """Return the positions of the running episodes.

        None after an error in the middle of a step, and if an environment cannot repeat its episodes.
        """
        envs = self.vector.envs
        if self.doing == "collecting" or not all(isinstance(env, RepeatableEpisodes) for env in envs):
            return None
        return {
            "positions": [cast(RepeatableEpisodes, env).position() for env in envs],
            "observation": named(self.observation),
            "start": self.start,
            "acting": self.acting,
        }

    def resume(self, episodes: Mapping[str, Any] | None, counters: Mapping[str, Any], behaviour: Behaviour) -> None:
        """Bring the environments back to where they were, by playing their episodes again.

        An episode that does not repeat itself is truncated in the replay, and a new one begins.

        Args:
            episodes: what :meth:`episodes` returned. With None, no episode is resumed.
            counters: those of the recorder.
            behaviour: what acted when the episodes were saved.
        """
        if isinstance(self.run.behaviour, Plan2Explore):  # as when the last actions were decided
            self.run.behaviour.begin_step(self.before + counters["steps"] - self.envs.num_envs)
        found = np.zeros(self.envs.num_envs, bool) if episodes is None else self._replayed(episodes, behaviour)
        self.envs.recorder.count_on(counters)
        self.lost = int((~found).sum())
        if not self.lost:
            return
        self.run.replay.cut(np.flatnonzero(~found))
        if episodes is not None:
            self.start = self.start | ~found
            self.envs.recorder.reset(self.observation, ~found)
            return
        self.start = ~found
        below = self.config.env.evaluation_seeds[0] - self.envs.num_envs + 1  # environment i gets the seed plus i
        unused = episode_seed(self.config.seed, 1 + self.envs.steps, below)  # no earlier episode had these seeds
        self.observation, _ = self.envs.reset(seed=unused)

    def _replayed(self, episodes: Mapping[str, Any], behaviour: Behaviour) -> np.ndarray:
        """Play the episodes again; return which environments (num_envs,) reached the same observation."""
        found, reached = [], []
        saved = episodes["observation"]
        for place, (env, position) in enumerate(zip(self.vector.envs, episodes["positions"], strict=True)):
            observation = cast(RepeatableEpisodes, env).go_to(position)
            same = observation is not None and all(
                np.array_equal(value, saved[key][place]) for key, value in named(observation).items()
            )
            if not same:
                observation, _ = env.reset()
            found.append(same)
            reached.append(observation)
        space = self.vector.single_observation_space
        self.observation = concatenate(space, reached, cast(Any, create_empty_array(space, len(reached))))
        self.start = episodes["start"].copy()
        if episodes["acting"] is not None:
            self.agent = self.agent_of(behaviour)
            self.acting = shaped(self.agent.initial(len(reached)), episodes["acting"])
        return np.array(found)
