"""Align actions and observations: convert environment steps to time steps (rows of the replay).

A time step is an observation with the action that led to it (see :mod:`worldmodel.types`). Gymnasium has three
autoreset modes, which differ at the end of an episode. All of them are converted to the same stream of rows:

=========  ==================================================  =========================================
mode       what `step` returns at the end of an episode        rows of that environment
=========  ==================================================  =========================================
NEXT_STEP  the last observation; the next step ignores its     one per step, the second with is_first
           action and returns the reset observation
SAME_STEP  the reset observation; `final_obs` holds the last   two in this step: is_last, then is_first
DISABLED   the last observation; the caller resets             one per step, one per reset
=========  ==================================================  =========================================
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode

from worldmodel.digits import Range
from worldmodel.envs.contract.faults import (
    REWARD,
    EnvironmentFault,
    Faults,
    as_array,
    blamed,
    numbers,
    reported,
    structure_fault,
    value_faults,
)
from worldmodel.envs.contract.infos import final, final_observations, said
from worldmodel.envs.wrappers.basic import FRAMES
from worldmodel.specs import ActionSpec, ObservationSpecs, encode_observation, keyed
from worldmodel.types import TimeStep

Sink = Callable[[TimeStep, np.ndarray], None]
"""A function of n rows and the (n,) indices of their environments, without repetitions, as `SequenceReplay.add`."""

Cut = Callable[[np.ndarray], None]
"""A function that marks the last row of each given environment (n,) as the end of its episode, as
`SequenceReplay.cut`."""

Rows = dict[str, np.ndarray]  # encoded observations {key: (n, width)}


class Episode(NamedTuple):
    """A completed episode."""

    total_reward: float
    length: int  # in environment steps
    env: int


class Recorder:
    """Converts the resets and steps of n environments to time steps (derivation Eq. 32), and counts them.

    Args:
        obs_specs: the observation specs of one environment.
        action_spec: the action spec of one environment.
        num_envs: the number of environments, n.
        mode: when the environments are reset.
        sink: receives the rows.
        cut: is called when an environment has failed (`infos[FAULT]`). The failed step has no row, so the row before
            it is the last one of the episode. Without `cut`, that row is not marked as the last; the next row begins
            a new episode in both cases.
    Attributes:
        steps: the number of decisions in all environments, without resets.
        frames: the number of simulator frames in all environments, read from `infos[FRAMES]` if it is there.
        faults: how often an environment has failed and was replaced.
    """

    def __init__(
        self,
        obs_specs: ObservationSpecs,
        action_spec: ActionSpec,
        num_envs: int,
        mode: AutoresetMode,
        sink: Sink,
        cut: Cut | None = None,
    ) -> None:
        self.obs_specs, self.action_spec, self.num_envs = obs_specs, action_spec, num_envs
        self.mode, self.sink, self.cut = mode, sink, cut
        self.steps = 0
        self.frames = 0
        self.faults = 0
        self._vector_steps = 0
        self._ready = False  # True if every step since the last reset has been recorded
        self._ended = np.zeros(num_envs, bool)  # episodes that ended in the previous step; not used with SAME_STEP
        self._total_reward = np.zeros(num_envs)  # of the running episodes
        self._length = np.zeros(num_envs, np.int64)
        real = {key: spec.width for key, spec in obs_specs.items() if not (spec.classes or spec.image)}
        self._ranges = {key: Range(width) for key, width in {**real, REWARD: 1}.items()}  # in double precision
        self._episodes: list[Episode] = []
        self._failures: list[str] = []

    def pop_episodes(self) -> list[Episode]:
        """Return the episodes that were completed since the last call, oldest first."""
        episodes, self._episodes = self._episodes, []
        return episodes

    def pop_failures(self) -> list[str]:
        """Return the failures of environments since the last call, oldest first."""
        failures, self._failures = self._failures, []
        return failures

    def pop_blurred(self) -> list[str]:
        """Return a warning for each value that loses digits in single precision; each warning is returned once."""
        lines = {key: blurred(key, seen) for key, seen in self._ranges.items() if seen.coarse.any()}
        for key in lines:
            del self._ranges[key]
        return list(lines.values())

    def counters(self) -> dict[str, Any]:
        """Return the counters as numbers and arrays."""
        counted = {"steps": self.steps, "frames": self.frames, "vector_steps": self._vector_steps}
        running = {"total_reward": self._total_reward.copy(), "length": self._length.copy()}
        return {**counted, "faults": self.faults, **running}

    def count_on(self, counters: Mapping[str, Any]) -> None:
        """Continue from counters returned by :meth:`counters`, also in the middle of recorded episodes."""
        self.steps, self.frames, self._vector_steps = (counters[key] for key in ("steps", "frames", "vector_steps"))
        self.faults = counters["faults"]
        self._total_reward, self._length = counters["total_reward"].copy(), counters["length"].copy()
        self._ready = True

    def controls(self, actions: np.ndarray) -> np.ndarray:
        """Encode actions (n, *shape) as (n, A). Call this before the step, which may change the actions in place.

        Raises:
            ValueError: if an environment must be reset first, or if an action is not in the action space.
        """
        if not self._ready:
            raise ValueError("call reset() before step(): there was no reset yet, or a step after it has failed")
        if self.mode is AutoresetMode.DISABLED and self._ended.any():
            ended = np.flatnonzero(self._ended).tolist()
            raise ValueError(f"the episodes of environments {ended} have ended: reset them before the next step")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs, *self.action_spec.shape):
            expected = (self.num_envs, *self.action_spec.shape)
            raise ValueError(f"actions have shape {actions.shape}, but must have shape {expected}")
        valid = self._valid_actions(actions.reshape(self.num_envs, -1))
        if not valid.all():
            env = int(np.flatnonzero(~valid)[0])
            raise ValueError(f"action {actions[env].tolist()} of environment {env} is not in the action space")
        self._ready = False  # until the step is recorded
        return self.action_spec.encode(actions)

    def _valid_actions(self, flat: np.ndarray) -> np.ndarray:
        """Return (n,) bool. Continuous actions may be out of bounds: environments and the encoding clip them."""
        if not self.action_spec.classes:
            return np.isfinite(flat).all(axis=1)
        index = flat - np.asarray(self.action_spec.start)
        return ((index >= 0) & (index < np.asarray(self.action_spec.classes))).all(axis=1)

    def reset(self, observation: Any, mask: np.ndarray | None = None, infos: Any = None) -> None:
        """Record the observation (n, ...) of a reset of all environments, or of those in `mask` (n,) bool.

        If the reset interrupts an episode, no row of that episode is marked as last or terminal.

        Args:
            infos: the infos of the reset, which name the environments that failed in it; see
                :func:`worldmodel.envs.contract.infos.said`.
        """
        self._note_failures({} if infos is None else infos)
        first = np.ones(self.num_envs, bool) if mask is None else mask
        ready, self._ready = self._ready or mask is None, False
        self._ended = self._ended & ~first
        self._total_reward[first] = 0
        self._length[first] = 0
        self._raise_first(self._give(self._first_rows(self._encode(observation)), first, {}))
        self._ready = ready

    def step(
        self,
        controls: np.ndarray,
        observation: Any,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        infos: Any,
    ) -> None:
        """Record the result of a step with the encoded actions `controls` (n, A).

        The arguments are the results of a vector environment of Gymnasium. Rewards and ends may also have the shape
        (n, 1). The infos may have any form that :func:`worldmodel.envs.contract.infos.said` reads. If an environment
        failed in this step, only the reset of its replacement is recorded.

        Raises:
            EnvironmentFault: if an observation or reward violates the contract of the environment. All valid rows of
                this step are given to the sink before.
        """
        self._vector_steps += 1
        first = self._ended if self.mode is AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, bool)
        terminated, truncated = self._checked_ends(terminated, truncated)
        last = (terminated | truncated) & ~first
        failed = self._failed(infos) & ~first
        reward = np.where(first, 0.0, self._checked_reward(reward))
        obs = self._encode(observation)
        resets_now = last if self.mode is AutoresetMode.SAME_STEP else np.zeros(self.num_envs, bool)
        reached, faults = self._with_final(obs, infos, resets_now & ~failed)
        terminal = terminated & last
        prev_action = np.where(first[:, None], np.float32(0), controls)
        rows = TimeStep(reached, prev_action, reward.astype(np.float32), first, last, terminal)
        faults = self._give(rows, ~failed, faults)
        if failed.any() and self.cut is not None:
            self.cut(np.flatnonzero(failed))
        if resets_now.any():
            faults = self._give(self._first_rows(obs), resets_now, {}) | faults
        self._count(reward, last, ~(first | failed), infos, faults)
        self._ended = last
        self._raise_first(faults)
        self._ready = True

    def _failed(self, infos: Any) -> np.ndarray:
        """Return which environments (n,) failed in this step, not in a reset within the same step."""
        ended = final(infos)
        of_last, of_now = self._note_failures(ended), self._note_failures(infos)
        of_step = of_last if self.mode is AutoresetMode.SAME_STEP else of_now
        return np.array([bool(texts) for texts in of_step])

    def _note_failures(self, infos: Any) -> list[tuple[str, ...]]:
        """Count the failures in the infos, and return those of each environment."""
        of_each = reported(infos, self.num_envs)
        found = [text for texts in of_each for text in texts]
        self.faults += len(found)
        self._failures += found
        return of_each

    def _first_rows(self, obs: Rows) -> TimeStep:
        n = self.num_envs
        no, controls = np.zeros(n, bool), np.zeros((n, self.action_spec.width), np.float32)
        return TimeStep(obs, controls, np.zeros(n, np.float32), np.ones(n, bool), no, no)

    def _encode(self, observation: Any) -> Rows:
        fault = structure_fault(self.obs_specs, observation, (self.num_envs,))
        if fault:
            self._raise_first({0: fault})
        for key, value in keyed(self.obs_specs, observation).items():
            self._measure(key, np.asarray(value))
        return encode_observation(self.obs_specs, observation)

    def _measure(self, key: str, values: np.ndarray) -> None:
        """Include values (n, ...) in the range of the key, if single precision could lose digits of them."""
        if key in self._ranges and values.dtype.itemsize > 2 and values.dtype != np.float32:
            self._ranges[key].see(values.reshape(len(values), -1))

    def _checked_reward(self, reward: Any) -> np.ndarray:
        found = numbers(reward, self.num_envs)
        if found is None:
            wrong = as_array(reward)
            problem = f"has shape {wrong.shape[1:]} and dtype {wrong.dtype}, but must be a number"
            self._raise_first({0: (REWARD, problem)})
        found = np.asarray(found)
        self._measure(REWARD, found)
        return found.astype(np.float64)

    def _checked_ends(self, *flags: Any) -> list[np.ndarray]:
        """Return which environments have terminated and which were truncated, (n,) bool each."""
        found = [numbers(flag, self.num_envs) for flag in flags]
        for name, flag, each in zip(("terminated", "truncated"), flags, found, strict=True):
            if each is None or (each.dtype.kind == "f" and np.isnan(each).any()):
                wrong = as_array(flag)
                what = f"has shape {wrong.shape[1:]} and dtype {wrong.dtype}, but must be True or False"
                raise EnvironmentFault(f"'{name}' of an environment {what}, at step {self._vector_steps}")
        return [np.asarray(each, bool) for each in found]

    def _with_final(self, obs: Rows, infos: Any, ended: np.ndarray) -> tuple[Rows, Faults]:
        """Replace the reset observation of each ended episode by its last observation."""
        if not ended.any():
            return obs, {}
        reached = {key: values.copy() for key, values in obs.items()}
        last, faults = final_observations(infos, self.num_envs), Faults()
        for env in np.flatnonzero(ended).tolist():
            fault = structure_fault(self.obs_specs, last[env])
            if fault:
                faults[env] = fault
                continue
            for key, value in keyed(self.obs_specs, last[env]).items():
                reached[key][env] = self.obs_specs[key].encode(np.asarray(value)[None])[0]
        return reached, faults

    def _give(self, rows: TimeStep, mask: np.ndarray, faults: Faults) -> Faults:
        """Give the valid rows of `mask` to the sink. Return the faults of the others, with those already known."""
        found = {int(env): (REWARD, "is not finite") for env in np.flatnonzero(~np.isfinite(rows.reward))}
        found |= value_faults(self.obs_specs, rows.obs) | faults
        sound = mask.copy()
        sound[list(found)] = False
        envs = np.flatnonzero(sound)
        if len(envs) == self.num_envs:
            self.sink(rows, envs)
        elif len(envs):
            obs = {key: values[envs] for key, values in rows.obs.items()}
            self.sink(TimeStep(obs, *(field[envs] for field in rows[1:])), envs)
        return {env: fault for env, fault in found.items() if mask[env]}

    def _count(
        self,
        reward: np.ndarray,
        last: np.ndarray,
        live: np.ndarray,
        infos: Any,
        faults: Faults,
    ) -> None:
        self.steps += int(live.sum())
        self.frames += int(_frames(infos, self.num_envs)[live].sum())
        self._total_reward += reward
        self._length += live
        for env in np.flatnonzero(last & live).tolist():
            if env not in faults:
                self._episodes.append(Episode(float(self._total_reward[env]), int(self._length[env]), env))
        self._total_reward[last] = 0
        self._length[last] = 0

    def _raise_first(self, faults: Faults) -> None:
        if not faults:
            return
        env = min(faults)
        raise blamed(*faults[env], env, self._vector_steps)


def blurred(key: str, seen: Range) -> str:
    """Return a warning in one line: which value loses digits in single precision, and what to do."""
    entry = int(np.flatnonzero(seen.coarse)[0])
    of = "" if len(seen.low) == 1 else f", entry {entry}" + (" and others" if seen.coarse.sum() > 1 else "")
    what, wrapper = (REWARD, "TransformReward") if key is REWARD else (f"observation '{key}'", "TransformObservation")
    return (
        f"{what}{of} lies between {seen.low[entry]:.12g} and {seen.high[entry]:.12g}. It is recorded in single "
        f"precision, which has steps of {seen.step[entry]:.3g} there and loses digits. Subtract an offset in the "
        f"environment, for example with gymnasium.wrappers.{wrapper}"
    )


def _frames(infos: Any, num_envs: int) -> np.ndarray:
    """Return the simulator frames of the last decision of each environment (n,); 1 if it does not report them."""
    now, ended = said(infos, FRAMES, num_envs), said(final(infos), FRAMES, num_envs)  # SAME_STEP: in the final infos
    return np.array([1 if a is None and b is None else a if b is None else b for a, b in zip(now, ended, strict=True)])
