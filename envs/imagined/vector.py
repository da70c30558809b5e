"""The learned model as a vector environment of Gymnasium: N imagined episodes in one batch."""

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
"""A function of features (N, F) and the actions (N, A) taken there. Its result (N,) is subtracted from the reward."""

FEATURE = "feature"
Observed = Literal["feature"] | spaces.Space[Any]


class ImaginedVectorEnv(VectorEnv[Any, np.ndarray, np.ndarray]):
    """A world model that is stepped like a real environment.

        s_t ~ p(s_t | s_{t-1}, u_{t-1}),   reward E[r_t | s_t],   terminated ~ Bernoulli(1 - E[continue_t | s_t])

    An episode is truncated after `horizon` steps, because the errors of a model grow with time. All N episodes are
    computed in one batch on the model's device. The results are copied to NumPy once per step, and once more if new
    episodes begin in the same step.

    Args:
        model: a learned model, or the true dynamics.
        action_space: the action space of one real environment.
        begin: returns the initial states of episodes.
        num_envs: the number of imagined episodes, N.
        horizon: the number of steps of an episode.
        observations: "feature" to observe the features (F,) that behaviours read, or the observation space of the real
            environment to observe decoded observations.
        autoreset_mode: one of the three modes of Gymnasium.
        penalty: subtracted from the reward, for example where an ensemble disagrees, so that an agent does not exploit
            the errors of the model.
        render_mode: "rgb_array" to allow :meth:`render`. Every step is then decoded.
        rendered: the observation space of the real environment, to render images while features are observed.
    Raises:
        ValueError: if a number is below 1, if a space is not supported, if actions or observations do not fit the
            model, or if an image is to be observed or rendered that the model does not decode.
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
            raise ValueError(f"render_mode must be 'rgb_array' or None, got '{render_mode}'")
        if min(num_envs, horizon) < 1:
            raise ValueError(f"num_envs and horizon must be at least 1, got {num_envs} and {horizon}")
        if isinstance(observations, str) and observations != FEATURE:
            raise ValueError(f"observations must be '{FEATURE}' or a space, got '{observations}'")
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
            observations = spaces.Dict(observed(whole.spaces))  # drop the keys that the model does not see
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
        generator.seed()  # without a given seed, every environment imagines different episodes
        self.random = generator.get_state()

    # Gymnasium's interface.

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes in all environments, or in those of `options={"reset_mask": mask}`.

        Args:
            seed: the seed of all later random numbers, which all episodes share. All numbers of a list are used.
        """
        if seed is not None:
            entropy = [int(number) for number in np.atleast_1d(np.asarray(seed, object)) if number is not None]
            if entropy:
                number = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1)
                self.random = torch.Generator().manual_seed(int(number)).get_state()
                if isinstance(self.begin, ReplayedStarts):
                    self.begin.refresh()  # the initial states must depend on the seed alone
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        with self._randomness():
            self._begin(np.asarray(mask, bool))
            observation, _ = self._look()
        self._show()
        return observation, {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one step with actions (N, ...) of the real action space.

        Raises:
            RuntimeError: if the environment has not been reset, or if an episode has ended in the mode DISABLED.
            ValueError: if the number of actions is wrong, or if an action is not finite or not in the action space.
        """
        if self.state is None:
            raise RuntimeError("call reset() before the first step()")
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
            truncated = (self.age >= self.horizon) & ~again  # also if it terminates, as in Gymnasium
            self.over = terminated | truncated
            infos: dict[str, Any] = {}
            if self.mode == AutoresetMode.SAME_STEP and self.over.any():
                infos = self._final(observation)
                self._begin(self.over)
                observation, _ = self._look()
        self._show()
        return observation, reward, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return an image of each episode (see :class:`worldmodel.envs.rendering.screen.Screen`).

        Return None without a render mode.
        """
        return None if self.screen is None or self.state is None else self.screen.frames()

    def close_extras(self, **kwargs: Any) -> None:
        self.state = None

    # Private parts.

    @contextmanager
    def _randomness(self) -> Iterator[None]:
        """Use a separate stream of random numbers, so that imagined episodes and training are independent."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.random.set_rng_state(self.random)
            if devices:
                torch.cuda.manual_seed(int(torch.randint(2**62, ())))
            yield
            self.random = torch.random.get_rng_state()

    def _begin(self, mask: np.ndarray) -> None:
        """Begin new episodes where `mask` (N,) is True."""
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
        """Encode actions (N, ...) as (N, A)."""
        spec = self.spec_of_action
        if actions.shape != (self.num_envs, *spec.shape):
            raise ValueError(f"actions have shape {actions.shape}, but must have shape {(self.num_envs, *spec.shape)}")
        index = actions.reshape(self.num_envs, -1) - np.asarray(spec.start or 0)
        valid = (index >= 0) & (index < np.asarray(spec.classes)) if spec.classes else np.isfinite(actions)
        if not valid.all():
            raise ValueError(f"actions {actions.tolist()} are not in {self.single_action_space}")
        return spec.encode(actions)

    def _outcome(self, price: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the rewards minus the penalty `price` (N,), and 1 for each episode that ends in this step (N,)."""
        prediction = self.model.predict(self.model.feature(self.state), decode=False)
        goes_on = prediction.cont / self.model.discount
        gain = prediction.reward if price is None else prediction.reward - price
        return gain, (torch.rand_like(goes_on) >= goes_on).to(gain)

    def _look(self, *more: Tensor) -> tuple[Any, np.ndarray]:
        """Return the observations of the current states and other tensors (N,), copied from the device at once."""
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
        """Return the last values in the form of the observation space."""
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
        """Return the last observations of ended episodes, in the form of Gymnasium's vector environments."""
        infos: dict[str, Any] = {}
        for env in np.flatnonzero(self.over):
            one = {key: rows[env] for key, rows in observation.items()} if isinstance(observation, Mapping) else None
            final = {"final_obs": observation[env] if one is None else one, "final_info": {}}
            infos = self._add_info(infos, final, int(env))
        return infos


def check_spaces(
    model: LatentModel, control: ActionSpec, specs: ObservationSpecs | None, drawn: ObservationSpecs | None = None
) -> int:
    """Check that a model fits the action and observation specs, and return the width of its feature.

    Args:
        specs: the specs of the observations that are decoded, None if there are none.
        drawn: the specs of the observations that are rendered; an empty mapping means everything that is decoded, and
            None means that nothing is rendered.
    Raises:
        ValueError: if the model does not accept such actions, or does not decode such observations.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        state = model.initial(1)
        try:
            feature = model.feature(model.imagine(state, torch.zeros(1, control.width, device=state[0].device)))
        except RuntimeError as error:
            raise ValueError(f"the model does not accept actions of width {control.width}: {error}") from error
        known = {key: value.shape[-1] for key, value in model.predict(feature).obs.items()}
    images = {key for key, spec in {**(specs or {}), **(drawn or {})}.items() if spec.image}
    blind = sorted(images - known.keys())
    if blind or (drawn is not None and not known):
        raise ValueError(
            f"the model decodes {sorted(known)}, but not the images {blind or 'that it observes'}. Use observations="
            f"'{FEATURE}' and no render_mode, or train the model with model.images: reconstruction"
        )
    if specs is not None:
        asked = {key: spec.width if spec.binary else sum(spec.classes) or spec.width for key, spec in specs.items()}
        if asked != known:
            raise ValueError(f"the observation space has the widths {asked}, but the model decodes {known}")
    return feature.shape[-1]


def decoded(spec: ObservationSpec, space: spaces.Space[Any], mean: np.ndarray) -> np.ndarray:
    """Convert predicted means (N, width) to observations (N, *shape) of a space.

    A discrete variable takes its most likely class. If the space holds integers, the nearest integer is taken.
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
    """Return the nearest values of a space to real numbers (..., *shape).

    A bound such as 2^63 - 1 is not a double. Rounded up it would overflow the dtype, so it is rounded down.
    """
    if space.dtype.kind not in "biu":
        return np.clip(values, space.low, space.high).astype(space.dtype)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if space.dtype.itemsize == 8:
        high = np.where(high > 2.0**53, np.nextafter(high, 0), high)
    return np.clip(np.rint(values.astype(np.float64)), low, high).astype(space.dtype)


class ImaginedEnv(gym.Env[Any, Any]):
    """A single imagined environment. Its arguments are those of :class:`ImaginedVectorEnv`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - declared as in Gymnasium

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
