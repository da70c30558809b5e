"""Wrappers that record an environment: they pass every step to a sink, such as a replay."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

from worldmodel.envs.contract.faults import as_array
from worldmodel.envs.contract.spaces import action_spec, observation_specs
from worldmodel.envs.recording.alignment import Cut, Episode, Recorder, Sink
from worldmodel.envs.wrappers.basic import Owned
from worldmodel.envs.wrappers.vector import SameStepVectorEnv
from worldmodel.specs import keyed


class _Counted:
    """A wrapper that offers the counters of its recorder."""

    recorder: Recorder

    @property
    def steps(self) -> int:
        """The number of recorded decisions in all environments, without resets."""
        return self.recorder.steps

    @property
    def frames(self) -> int:
        """The number of recorded simulator frames: decisions times action repeat, less where an episode ended early."""
        return self.recorder.frames

    @property
    def faults(self) -> int:
        """How often an environment has failed and was replaced; see :class:`worldmodel.envs.Restart`."""
        return self.recorder.faults

    def pop_episodes(self) -> list[Episode]:
        """Return the episodes that were completed since the last call, oldest first."""
        return self.recorder.pop_episodes()

    def pop_failures(self) -> list[str]:
        """Return the failures of environments since the last call, oldest first."""
        return self.recorder.pop_failures()


class RecordTrajectories(_Counted, VectorWrapper[Any, Any, Any, Any, Any]):
    """Records every step of a vector environment, in any autoreset mode.

    The environments of a `SyncVectorEnv` are wrapped in :class:`worldmodel.envs.wrappers.basic.Owned`. In the mode
    SAME_STEP, a `SyncVectorEnv` keeps the last observation of an episode while it resets the environment, which may
    reuse the same array. The environments of an `AsyncVectorEnv` cannot be wrapped.

    Args:
        env: a vector environment that declares `metadata["autoreset_mode"]`.
        sink: receives the rows, as `SequenceReplay.add` does.
        cut: ends the episode of an environment that failed, as `SequenceReplay.cut` does; see
            :class:`worldmodel.envs.recording.alignment.Recorder`.
    Raises:
        ValueError: if the spaces are not supported, or if the autoreset mode is not declared.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], sink: Sink, cut: Cut | None = None) -> None:
        super().__init__(env)
        if "autoreset_mode" not in env.metadata:
            raise ValueError(f"{env} must declare metadata['autoreset_mode'], which is needed to align actions")
        vector = env.unwrapped
        if isinstance(vector, SyncVectorEnv) and not isinstance(vector, SameStepVectorEnv):
            vector.envs = [each if isinstance(each, Owned) else Owned(each) for each in vector.envs]
        self.recorder = Recorder(
            observation_specs(env.single_observation_space),
            action_spec(env.single_action_space),
            env.num_envs,
            AutoresetMode(env.metadata["autoreset_mode"]),
            sink,
            cut,
        )

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those in `options={"reset_mask": mask}`, and record their observations."""
        mask = (options or {}).get("reset_mask")  # read first: the vector environment removes it
        observation, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self.recorder.reset(observation, mask, infos)
        return observation, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        controls = self.recorder.controls(actions)
        result = self.env.step(actions)
        self.recorder.step(controls, *result)
        return result


class RecordEnvTrajectories(_Counted, gym.Wrapper[Any, Any, Any, Any]):
    """Records every step of a single environment. Its rows have the environment index 0.

    Example:
        env = RecordEnvTrajectories(gymnasium.make("Pendulum-v1"), replay.add)
    """

    def __init__(self, env: gym.Env[Any, Any], sink: Sink, cut: Cut | None = None) -> None:
        super().__init__(env)
        specs, control = observation_specs(env.observation_space), action_spec(env.action_space)
        self.recorder = Recorder(specs, control, 1, AutoresetMode.DISABLED, sink, cut)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self.recorder.reset(self._batched(observation), None, [info])
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        controls = self.recorder.controls(np.asarray(action)[None])
        observation, reward, terminated, truncated, info = self.env.step(action)
        total, end, limit = (as_array(value)[None] for value in (reward, terminated, truncated))
        self.recorder.step(controls, self._batched(observation), total, end, limit, [info])
        return observation, reward, terminated, truncated, info

    def _batched(self, observation: Any) -> dict[str, np.ndarray]:
        return {key: as_array(value)[None] for key, value in keyed(self.recorder.obs_specs, observation).items()}
