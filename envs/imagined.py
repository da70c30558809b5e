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

from envs.charts import chart
from envs.spaces import action_spec, observation_specs
from envs.starts import ReplayedStarts, Starts
from worldmodel.model import LatentModel
from worldmodel.spaces import OBSERVATION, ObservationSpec, observed
from worldmodel.types import Prediction, State

Penalty = Callable[[Tensor, Tensor], Tensor]
"""Features (N, F) and the controls (N, A) chosen there -> what is taken from the reward, (N,)."""

Observed = Literal["feature"] | spaces.Space[Any]


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
        render_mode: "rgb_array" for :meth:`render`, which decodes every step.
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
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is rgb_array or None: '{render_mode}'")
        if min(num_envs, horizon) < 1:
            raise ValueError(f"num_envs and horizon must be at least 1: {num_envs}, {horizon}")
        self.model, self.begin, self.num_envs, self.horizon = model, begin, num_envs, horizon
        self.penalty, self.render_mode = penalty, render_mode
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
        self.metadata = {"autoreset_mode": self.mode, "render_modes": ["rgb_array"]}
        self.trace: np.ndarray | None = None  # (horizon + 1, N, D) decoded since each episode began, else NaN
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
            self._remember()
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
            self._remember()
        return observation, reward, terminated, truncated, infos

    def refresh(self) -> None:
        """Be told that the model has learned: episodes begin from states inferred anew. Call :meth:`reset` next."""
        if isinstance(self.begin, ReplayedStarts):
            self.begin.refresh()

    def render(self) -> tuple[np.ndarray, ...] | None:
        """What is imagined, decoded: for each episode a chart (160, 240, 3) of its observations from its start on."""
        if self.trace is None:
            return None
        low, high = np.nanmin(self.trace, (0, 1)), np.nanmax(self.trace, (0, 1))
        return tuple(chart(self.trace[:, env], low, high) for env in range(self.num_envs))

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

    def _remember(self) -> None:
        """For :meth:`render`: the decoded observations of this step."""
        if self.render_mode is None:
            return
        means = self._prediction(decode=True).obs
        now = torch.cat([means[key].flatten(1) for key in sorted(means)], -1).cpu().numpy()
        if self.trace is None or len(self.trace) != self.horizon + 1:
            self.trace = np.full((self.horizon + 1, *now.shape), np.nan, np.float32)
        self.trace[:, self.age == 0] = np.nan
        self.trace[self.age, np.arange(self.num_envs)] = now

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
        if spec.image:
            values = (values * 255).round()
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

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self,
        model: LatentModel,
        action_space: spaces.Space[Any],
        begin: Starts,
        horizon: int = 50,
        observations: Observed = "feature",
        render_mode: str | None = None,
    ) -> None:
        self.many = ImaginedVectorEnv(
            model, action_space, begin, 1, horizon, observations, AutoresetMode.DISABLED, render_mode=render_mode
        )
        self.render_mode = render_mode
        self.observation_space, self.action_space = self.many.single_observation_space, self.many.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        observation, infos = self.many.reset(seed=seed)
        return self._first(observation), infos

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, infos = self.many.step(np.asarray(action)[None])
        return self._first(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), infos

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        frames = self.many.render()
        return None if frames is None else frames[0]

    def _first(self, observation: Any) -> Any:
        return {key: rows[0] for key, rows in observation.items()} if isinstance(observation, dict) else observation[0]
