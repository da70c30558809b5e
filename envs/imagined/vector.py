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

from worldmodel.envs.contract.spaces import action_spec, as_dict, observation_specs
from worldmodel.envs.imagined.starts import ReplayedStarts, Starts
from worldmodel.envs.rendering.screen import Screen
from worldmodel.model import LatentModel
from worldmodel.specs import OBSERVATION, ActionSpec, ObservationSpec, ObservationSpecs, observed
from worldmodel.types import State

Penalty = Callable[[Tensor, Tensor], Tensor]
"""Features (N, F) and the controls (N, A) chosen there -> what is taken from the reward, (N,)."""

FEATURE = "feature"
Observed = Literal["feature"] | spaces.Space[Any]


class ImaginedVectorEnv(VectorEnv[Any, np.ndarray, np.ndarray]):
    """A world model that is stepped like the world.

        s_t ~ p(s_t | s_{t-1}, u_{t-1}),   reward E[r_t | s_t],   terminated ~ Bernoulli(1 - E[continue_t | s_t])

    An episode is truncated after `horizon` steps: what a model imagines is worth less the longer it goes on. Everything
    is computed for all N episodes at once, on the model's device; what crosses to NumPy does so once per step, and once
    more where new episodes begin in the same step.

    Args:
        model: learned, or the true dynamics.
        action_space: of one real environment, whose actions are taken.
        begin: the states that episodes begin from.
        observations: "feature", what behaviours read (F,), or the space of the real environment's observations, which
            are then decoded.
        autoreset_mode: all three of Gymnasium's.
        penalty: against exploiting a model's mistakes, as where an ensemble disagrees.
        render_mode: "rgb_array" for :meth:`render`; every step is decoded then.
        rendered: the space of the real environment's observations, for pictures where features are observed.
    Raises:
        ValueError: if a number is below 1, a space is not supported, actions or observations are not the model's, or
            an image is to be observed or rendered that it does not decode.
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
        rendered: spaces.Space[Any] | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is rgb_array or None: '{render_mode}'")
        if min(num_envs, horizon) < 1:
            raise ValueError(f"num_envs and horizon must be at least 1: {num_envs}, {horizon}")
        if isinstance(observations, str) and observations != FEATURE:
            raise ValueError(f"observations are '{FEATURE}' or a space: '{observations}'")
        self.model, self.begin, self.num_envs, self.horizon = model, begin, num_envs, horizon
        self.penalty, self.render_mode = penalty, render_mode
        self.spec_of_action = action_spec(action_space)
        self.obs_specs = None if isinstance(observations, str) else observed(observation_specs(observations))
        self.device = model.initial(1)[0].device
        shown = self.obs_specs if rendered is None else observed(observation_specs(rendered))
        width = check_spaces(model, self.spec_of_action, self.obs_specs, (shown or {}) if render_mode else None)
        if isinstance(observations, str):
            observations = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        elif isinstance(whole := as_dict(observations), spaces.Dict):
            observations = spaces.Dict(observed(whole.spaces))  # without what no model sees
        self.single_observation_space = observations
        self.single_action_space = action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.mode = AutoresetMode(autoreset_mode)
        self.metadata = {"autoreset_mode": self.mode, "render_modes": ["rgb_array"], "render_fps": 20}
        self.screen = Screen(num_envs, shown) if render_mode else None
        self.state: State | None = None
        self.age = np.zeros(num_envs, np.int64)
        self.over = np.zeros(num_envs, bool)  # episodes that have ended and have not been reset
        generator = torch.Generator()
        generator.seed()  # until a seed is given, no two environments dream the same
        self.random = generator.get_state()

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
                if isinstance(self.begin, ReplayedStarts):
                    self.begin.refresh()  # so that it depends on the seed alone where episodes begin
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        with self._randomness():
            self._begin(np.asarray(mask, bool))
            observation, _ = self._look()
        self._show()
        return observation, {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Actions as the real environment takes them (N, ...).

        Raises:
            RuntimeError: before the first reset, or where an episode has ended in the mode DISABLED.
            ValueError: for another number of actions than episodes, or one that is no number or no choice there is.
        """
        if self.state is None:
            raise RuntimeError("reset the environment before its first step")
        if self.mode == AutoresetMode.DISABLED and self.over.any():
            raise RuntimeError(f"episodes {np.flatnonzero(self.over).tolist()} have ended: reset them first")
        control = torch.from_numpy(self._controls(np.asarray(actions))).to(self.device)
        again = self.over.copy() if self.mode == AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, bool)
        with self._randomness():
            price = None if self.penalty is None else self.penalty(self.model.feature(self.state), control)
            self.state = self.model.imagine(self.state, control)
            outcome = self._outcome(price)
            self.age += 1
            if again.any():
                self._begin(again)
            observation, (reward, ends) = self._look(*outcome)
            reward, terminated = np.where(again, 0, reward), (ends > 0) & ~again
            truncated = (self.age >= self.horizon) & ~again  # also where it terminates, as Gymnasium has it
            self.over = terminated | truncated
            infos: dict[str, Any] = {}
            if self.mode == AutoresetMode.SAME_STEP and self.over.any():
                infos = self._final(observation)
                self._begin(self.over)
                observation, _ = self._look()
        self._show()
        return observation, reward, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """What is imagined, decoded, for each episode: see :class:`worldmodel.envs.rendering.screen.Screen`. None
        without a render mode."""
        return None if self.screen is None or self.state is None else self.screen.frames()

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

    def _controls(self, actions: np.ndarray) -> np.ndarray:
        """(N, ...) -> (N, A)."""
        spec = self.spec_of_action
        if actions.shape != (self.num_envs, *spec.shape):
            raise ValueError(f"actions have the shape {actions.shape}, not {(self.num_envs, *spec.shape)}")
        index = actions.reshape(self.num_envs, -1) - np.asarray(spec.start or 0)
        valid = (index >= 0) & (index < np.asarray(spec.classes)) if spec.classes else np.isfinite(actions)
        if not valid.all():
            raise ValueError(f"actions that are not in {self.single_action_space}: {actions.tolist()}")
        return spec.encode(actions)

    def _outcome(self, price: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rewards (N,) less a price (N,), and 1 where an episode ends here (N,)."""
        prediction = self.model.predict(self.model.feature(self.state), decode=False)
        goes_on = prediction.cont / self.model.discount
        gain = prediction.reward if price is None else prediction.reward - price
        return gain, (torch.rand_like(goes_on) >= goes_on).to(gain)

    def _look(self, *more: Tensor) -> tuple[Any, np.ndarray]:
        """The observations of the present states, and other numbers (N,) each: read from the device in one transfer."""
        feature = self.model.feature(self.state)
        read: dict[str, Tensor] = {} if self.obs_specs is not None else {FEATURE: feature}
        if self.obs_specs is not None or self.screen is not None:
            read |= self.model.predict(feature).obs
        parts = [*(each.unsqueeze(1) for each in more), *(each.to(feature.dtype) for each in read.values())]
        numbers = torch.cat(parts, 1).cpu().numpy()
        ends = len(more) + np.cumsum([0, *(each.shape[1] for each in read.values())])
        self.seen = {key: numbers[:, ends[k] : ends[k + 1]] for k, key in enumerate(read)}
        return self._observation(), numbers[:, : len(more)].T.astype(np.float64)

    def _observation(self) -> Any:
        """What was looked at last, as the space has it."""
        if self.obs_specs is None:
            return self.seen[FEATURE].astype(np.float32)
        single = self.single_observation_space
        if isinstance(single, spaces.Dict):
            return {key: decoded(spec, single[key], self.seen[key]) for key, spec in self.obs_specs.items()}
        return decoded(self.obs_specs[OBSERVATION], single, self.seen[OBSERVATION])

    def _show(self) -> None:
        if self.screen is not None:
            self.screen.see(self.age, {key: values for key, values in self.seen.items() if key != FEATURE})

    def _final(self, observation: Any) -> dict[str, Any]:
        """The last observations of episodes that have ended, in the form of Gymnasium's own vector environments."""
        infos: dict[str, Any] = {}
        for env in np.flatnonzero(self.over):
            one = {key: rows[env] for key, rows in observation.items()} if isinstance(observation, Mapping) else None
            final = {"final_obs": observation[env] if one is None else one, "final_info": {}}
            infos = self._add_info(infos, final, int(env))
        return infos


def check_spaces(
    model: LatentModel, control: ActionSpec, specs: ObservationSpecs | None, drawn: ObservationSpecs | None = None
) -> int:
    """The width of the model's feature.

    Args:
        specs: of observations that are decoded; None where none are.
        drawn: of those that are rendered; none by name is everything that is decoded. None where nothing is.
    Raises:
        ValueError: if the model does not take such controls, or does not decode such observations.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        state = model.initial(1)
        try:
            feature = model.feature(model.imagine(state, torch.zeros(1, control.width, device=state[0].device)))
        except RuntimeError as error:
            raise ValueError(f"the model does not take controls of width {control.width}: {error}") from error
        known = {key: value.shape[-1] for key, value in model.predict(feature).obs.items()}
    images = {key for key, spec in {**(specs or {}), **(drawn or {})}.items() if spec.image}
    blind = sorted(images - known.keys())
    if blind or (drawn is not None and not known):
        raise ValueError(
            f"the model decodes {sorted(known)}, not the images {blind or 'it observes'}: take observations "
            f"'{FEATURE}' and no render_mode, or train it with model.images: reconstruction"
        )
    if specs is not None:
        asked = {key: spec.width if spec.binary else sum(spec.classes) or spec.width for key, spec in specs.items()}
        if asked != known:
            raise ValueError(f"observations are asked for of the widths {asked}; the model has {known}")
    return feature.shape[-1]


def decoded(spec: ObservationSpec, space: spaces.Space[Any], mean: np.ndarray) -> np.ndarray:
    """Predicted means (N, width) -> observations (N, *shape) of a space; the likeliest where discrete.

    Where the space holds integers, the nearest one in it.
    """
    count = len(mean)
    if not spec.classes:
        assert isinstance(space, spaces.Box)
        values = mean.reshape(count, *spec.shape) * (255 if spec.image else 1)
        return nearest_in(space, values)
    groups = np.split(mean, np.cumsum(spec.classes)[:-1], -1)
    index = mean > 0.5 if spec.binary else np.stack([group.argmax(-1) for group in groups], -1)
    values = index.astype(np.int64) + np.asarray(spec.start or 0, np.int64)
    return values.reshape(count, *spec.shape).astype(space.dtype)


def nearest_in(space: spaces.Box, values: np.ndarray) -> np.ndarray:
    """Real numbers (..., *shape) -> the nearest of a space.

    A bound such as 2^63 - 1 is no double; the one above would leave the dtype, so that the one below takes its place.
    """
    if space.dtype.kind not in "biu":
        return np.clip(values, space.low, space.high).astype(space.dtype)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if space.dtype.itemsize == 8:
        high = np.where(high > 2.0**53, np.nextafter(high, 0), high)
    return np.clip(np.rint(values.astype(np.float64)), low, high).astype(space.dtype)


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
        penalty: Penalty | None = None,
        render_mode: str | None = None,
        rendered: spaces.Space[Any] | None = None,
    ) -> None:
        mode, drawn = AutoresetMode.DISABLED, (render_mode, rendered)
        self.many = ImaginedVectorEnv(model, action_space, begin, 1, horizon, observations, mode, penalty, *drawn)
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
