"""The learned model as a Gymnasium vector environment: N imagined episodes in one batch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs.spaces import action_spec, observation_specs
from worldmodel.imagination import starts
from worldmodel.model import LatentModel, WorldModel
from worldmodel.replay import SequenceReplay
from worldmodel.spaces import OBSERVATION, ObservationSpec, observed
from worldmodel.types import Prediction, State

Starts = Callable[[int], State]
"""How many -> latent states (N, ...) that imagined episodes begin from."""

Penalty = Callable[[Tensor, Tensor], Tensor]
"""Features (N, F) and the controls (N, A) chosen there -> what is taken from the reward, (N,)."""

Observed = Literal["feature"] | spaces.Space[Any]


class ReplayedStarts:
    """Filtered states of recorded steps, drawn alike from all that something can follow.

    A pool of them is inferred at once, and again when it is used up.

    Args:
        window: steps that each state is filtered from, at most. pool: states inferred at a time.
    Raises:
        ValueError: when called, if every recorded step is a terminal one.
    """

    def __init__(self, model: WorldModel, replay: SequenceReplay, window: int = 16, pool: int = 1024) -> None:
        self.model, self.replay, self.window, self.pool = model, replay, window, pool
        self.states: State | None = None
        self.used = 0

    def refresh(self) -> None:
        """Forget the pool: the model has learned, or there is more to begin from."""
        self.states = None

    @torch.no_grad()
    def _filled(self, count: int) -> State:
        rows = -(-max(count, self.pool) // self.window)
        batch = self.replay.sample(2 * rows, self.window, self.model.initial(1)[0].device)
        begin, alive = starts(self.model.observe(batch).states, batch)
        if not alive.any():
            raise ValueError("every recorded step is a terminal one: there is nothing to imagine from")
        chosen = torch.multinomial(alive, max(count, self.pool), replacement=True)
        return type(begin)(*(field[chosen] for field in begin))

    def __call__(self, count: int) -> State:
        if self.states is None or self.used + count > len(self.states[0]):
            self.states, self.used = self._filled(count), 0
        self.used += count
        return type(self.states)(*(field[self.used - count : self.used] for field in self.states))


class PriorStarts:
    """Samples of p(z_1 | z_0, u_0 = 0): episodes as the model imagines that they begin."""

    def __init__(self, model: LatentModel, control_size: int) -> None:
        self.model, self.control_size = model, control_size

    def __call__(self, count: int) -> State:
        state = self.model.initial(count)
        return self.model.imagine(state, torch.zeros(count, self.control_size, device=state[0].device))


class ImaginedVectorEnv(VectorEnv[Any, np.ndarray, np.ndarray]):
    """A world model that is stepped like the world.

        s_t ~ p(s_t | s_{t-1}, u_{t-1}),   reward E[r_t | s_t],   terminated ~ Bernoulli(1 - E[continue_t | s_t])

    An episode is truncated after `horizon` steps: what a model imagines is worth less the longer it goes on. Everything
    is computed for all N episodes at once, on the model's device; what crosses to NumPy does so once per step.

    Args:
        model: learned, or the true dynamics.
        action_space: of one real environment, whose actions are taken.
        begin: the states that episodes begin from.
        observations: "feature", what behaviours read (F,), or the space of the real environment's observations, which
            are then decoded.
        autoreset_mode: all three of Gymnasium's.
        penalty: against exploiting a model's mistakes, as where an ensemble disagrees.
    Raises:
        ValueError: if a number is below 1, a space is not supported, or the observations are not the model's.
    """

    def __init__(
        self,
        model: LatentModel,
        action_space: spaces.Space[Any],
        begin: Starts,
        num_envs: int,
        horizon: int = 50,
        observations: Observed = "feature",
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
        penalty: Penalty | None = None,
    ) -> None:
        if min(num_envs, horizon) < 1:
            raise ValueError(f"num_envs and horizon must be at least 1: {num_envs}, {horizon}")
        self.model, self.begin, self.num_envs, self.horizon = model, begin, num_envs, horizon
        self.penalty = penalty
        self.spec_of_action = action_spec(action_space)
        self.obs_specs = None if isinstance(observations, str) else observed(observation_specs(observations))
        self.device = model.initial(1)[0].device
        with torch.no_grad():
            feature = model.feature(model.initial(1))
            known = set(model.predict(feature).obs)
        if self.obs_specs is not None and set(self.obs_specs) != known:
            raise ValueError(f"observations {sorted(self.obs_specs)} are asked for; the model has {sorted(known)}")
        self.single_observation_space = (
            spaces.Box(-np.inf, np.inf, (feature.shape[-1],), np.float32)
            if isinstance(observations, str)
            else observations
        )
        self.single_action_space = action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.mode = AutoresetMode(autoreset_mode)
        self.metadata = {"autoreset_mode": self.mode, "render_modes": []}
        self.state: State | None = None
        self.age = np.zeros(num_envs, np.int64)
        self.over = np.zeros(num_envs, bool)  # episodes that have ended and have not been reset
        self.random = torch.random.get_rng_state()

    # Gymnasium's interface.

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin all episodes, or with `options={"reset_mask": mask}` some.

        Args:
            seed: of everything drawn from here on, by all episodes together; of a list, all numbers count.
        """
        if seed is not None:
            entropy = [int(number) for number in np.atleast_1d(np.asarray(seed, object)) if number is not None]
            if entropy:
                number = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1)
                self.random = torch.Generator().manual_seed(int(number)).get_state()
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        with self._randomness():
            self._begin(np.asarray(mask, bool))
            return self._observation(), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Actions as the real environment takes them (N, ...)."""
        if self.state is None:
            raise RuntimeError("reset the environment before its first step")
        if self.mode == AutoresetMode.DISABLED and self.over.any():
            raise RuntimeError(f"episodes {np.flatnonzero(self.over).tolist()} have ended: reset them first")
        control = torch.from_numpy(self.spec_of_action.encode(np.asarray(actions))).to(self.device)
        again = self.over.copy() if self.mode == AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, bool)
        with self._randomness():
            price = None if self.penalty is None else self.penalty(self.model.feature(self.state), control)
            self.state = self.model.imagine(self.state, control)
            reward, terminated = self._outcome(price)
            self.age += 1
            if again.any():
                self._begin(again)
            reward, terminated = np.where(again, 0, reward), terminated & ~again
            truncated = (self.age >= self.horizon) & ~again  # also where it terminates, as Gymnasium has it
            self.over = terminated | truncated
            infos: dict[str, Any] = {}
            observation = self._observation()
            if self.mode == AutoresetMode.SAME_STEP and self.over.any():
                infos = self._final(observation)
                self._begin(self.over)
                observation = self._observation()
        return observation, reward, terminated, truncated, infos

    def refresh(self) -> None:
        """Be told that the model has learned: episodes begin from states inferred anew. Call :meth:`reset` next."""
        if isinstance(self.begin, ReplayedStarts):
            self.begin.refresh()

    def close_extras(self, **kwargs: Any) -> None:
        self.state = None

    # What it is made of.

    @contextmanager
    def _randomness(self) -> Iterator[None]:
        """Draws from a stream of its own, so that it neither disturbs training nor is disturbed by it."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.random.set_rng_state(self.random)
            if devices:
                torch.cuda.manual_seed(int(torch.randint(2**62, ())))
            yield
            self.random = torch.random.get_rng_state()

    def _begin(self, mask: np.ndarray) -> None:
        """New episodes where `mask` (N,) is set."""
        count = int(mask.sum())
        if count == self.num_envs or self.state is None:
            self.state = self.begin(self.num_envs)
        elif count:
            where = torch.from_numpy(np.flatnonzero(mask)).to(self.device)
            fresh = self.begin(count)
            fields = zip(self.state, fresh, strict=True)
            self.state = type(self.state)(*(old.index_copy(0, where, new.to(old)) for old, new in fields))
        self.age[mask] = 0
        self.over = self.over & ~mask

    def _prediction(self, decode: bool) -> Prediction:
        return self.model.predict(self.model.feature(self.state), decode=decode)

    def _outcome(self, price: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """Rewards (N,) less a price (N,), and which episodes end here (N,)."""
        prediction = self._prediction(decode=False)
        goes_on = prediction.cont / self.model.discount
        gain = prediction.reward if price is None else prediction.reward - price
        pair = torch.stack([gain, (torch.rand_like(goes_on) >= goes_on).to(gain)])
        reward, ends = pair.cpu().numpy().astype(np.float64)
        return reward, ends > 0

    def _observation(self) -> Any:
        if self.obs_specs is None:
            return self.model.feature(self.state).cpu().numpy().astype(np.float32)
        means = self._prediction(decode=True).obs
        single = self.single_observation_space
        if isinstance(single, spaces.Dict):
            return {key: decoded(spec, single[key], means[key]) for key, spec in self.obs_specs.items()}
        return decoded(self.obs_specs[OBSERVATION], single, means[OBSERVATION])

    def _final(self, observation: Any) -> dict[str, Any]:
        """The last observations of episodes that have ended, in the form of Gymnasium's own vector environments."""
        infos: dict[str, Any] = {}
        for env in np.flatnonzero(self.over):
            one = {key: rows[env] for key, rows in observation.items()} if isinstance(observation, Mapping) else None
            final = {"final_obs": observation[env] if one is None else one, "final_info": {}}
            infos = self._add_info(infos, final, int(env))
        return infos


def decoded(spec: ObservationSpec, space: spaces.Space[Any], mean: Tensor) -> np.ndarray:
    """Predicted means (N, width) -> observations (N, *shape) of a space; the likeliest where discrete."""
    count = len(mean)
    if not spec.classes:
        assert isinstance(space, spaces.Box)
        values = mean.cpu().numpy().reshape(count, *spec.shape)
        return np.clip(values, space.low, space.high).astype(space.dtype)
    if spec.binary:
        index = (mean > 0.5).long()
    else:
        index = torch.stack([group.argmax(-1) for group in mean.split(list(spec.classes), -1)], -1)
    values = index.cpu().numpy() + np.asarray(spec.start or 0, np.int64)
    return values.reshape(count, *spec.shape).astype(space.dtype)


class ImaginedEnv(gym.Env[Any, Any]):
    """One imagined episode after the other, behind the interface of a single environment.

    Arguments as those of :class:`ImaginedVectorEnv`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self,
        model: LatentModel,
        action_space: spaces.Space[Any],
        begin: Starts,
        horizon: int = 50,
        observations: Observed = "feature",
    ) -> None:
        self.many = ImaginedVectorEnv(model, action_space, begin, 1, horizon, observations, AutoresetMode.DISABLED)
        self.observation_space, self.action_space = self.many.single_observation_space, self.many.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        observation, infos = self.many.reset(seed=seed)
        return self._first(observation), infos

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, infos = self.many.step(np.asarray(action)[None])
        return self._first(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), infos

    def _first(self, observation: Any) -> Any:
        return {key: rows[0] for key, rows in observation.items()} if isinstance(observation, dict) else observation[0]
