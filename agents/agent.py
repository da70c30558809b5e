"""An agent: a latent filter and a behaviour, with the `predict` method of Stable-Baselines3."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldmodel.agents.acting.behaviour import Behaviour, Memory
from worldmodel.kernels.compiling import compiled
from worldmodel.model import LatentModel
from worldmodel.specs import ActionSpec, ObservationSpecs, encode_observation, keyed, observed
from worldmodel.types import State, restart


class AgentState(NamedTuple):
    """The memory of an agent between two observations."""

    latent: State  # s_{t-1} of N environments
    control: Tensor  # u_{t-1} (N, A), the last action
    memory: Memory  # the memory of the behaviour
    sound: Tensor  # (N,) bool: whether all values behind the last action are finite


class Agent:
    """Infers latent states from observations, and lets a behaviour choose actions from them.

    An agent works in the same way in real and imagined environments. Its whole memory is the :class:`AgentState` that
    `predict` returns and accepts, so one agent can serve any number of environments.

    Args:
        compile: whether to compile a step. It is compiled in the first call, for that number of environments. A
            compiled step draws different random numbers.
    Raises:
        ValueError: if `compile` is set, but there is no C++ compiler.
    """

    def __init__(
        self,
        model: LatentModel,
        behaviour: Behaviour,
        obs_specs: ObservationSpecs,
        action_spec: ActionSpec,
        compile: bool = False,
    ) -> None:
        self.model, self.behaviour = model, behaviour
        self.obs_specs, self.action_spec = obs_specs, action_spec
        self._act = compiled(self.act, "training.acting", dynamic=False) if compile else self.act

    @property
    def device(self) -> torch.device:
        return self.model.initial(1)[0].device

    @torch.no_grad()
    def act(
        self, state: AgentState, obs: dict[str, Tensor], is_first: Tensor, deterministic: bool = False
    ) -> AgentState:
        """Take one step with tensors, and return the next state. Its field `control` is the chosen action.

        Args:
            obs: {key: (N, width)} the encoded observations.
            is_first: (N,) bool, True at the beginning of an episode.
            deterministic: whether to use modes instead of samples.
        """
        latent = self.model.filter(state.latent, obs, state.control, is_first, sample=not deterministic)
        memory = restart(state.memory, self.behaviour.initial(len(is_first)), is_first)
        return AgentState(latent, *self.behaviour.act(self.model, latent, memory, deterministic))

    def initial(self, count: int) -> AgentState:
        """Return the memory of `count` environments before their first observation."""
        control = torch.zeros(count, self.action_spec.width, device=self.device)
        sound = torch.ones(count, dtype=torch.bool, device=self.device)
        return AgentState(self.model.initial(count), control, self.behaviour.initial(count), sound)

    def predict(
        self,
        observation: np.ndarray | Mapping[str, np.ndarray],
        state: AgentState | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Choose actions for one observation or for a batch (N, ...).

        Args:
            observation: observations of the environment.
            state: the state returned by the previous call, None at the start.
            episode_start: (N,) bool, True if the observation is that of a reset. Without a state, all are True.
            deterministic: whether to use the modes of posterior and policy instead of samples, without exploration. A
                planner still samples its candidates.
        Returns:
            The actions of the environment, and the next state.
        Raises:
            ValueError: if the observation has a different shape than in training, or is not finite.
        """
        named = observed(keyed(self.obs_specs, observation))
        single = self._is_single(named)
        if single:
            named = {key: np.asarray(values)[None] for key, values in named.items()}
        device = self.device
        encoded = encode_observation(self.obs_specs, named)
        for key, spec in self.obs_specs.items():
            if not spec.valid(encoded[key]).all():
                raise ValueError(f"observation '{key}' is not finite or lies outside its space: {named[key]}")
        obs = {key: torch.from_numpy(rows).to(device) for key, rows in encoded.items()}
        count = len(next(iter(obs.values())))
        first = np.full(count, state is None) if episode_start is None or state is None else np.asarray(episode_start)
        is_first = torch.from_numpy(np.broadcast_to(first, count).astype(bool)).to(device)
        state = self._act(self.initial(count) if state is None else state, obs, is_first, deterministic)
        actions = self.action_spec.decode(state.control.cpu().numpy())
        return (actions[0] if single else actions), state

    def _is_single(self, named: Mapping[str, Any]) -> bool:
        """Return True if the observations have no batch dimension.

        Raises:
            ValueError: if a shape fits neither with nor without a batch dimension.
        """
        if set(named) != set(self.obs_specs):
            raise ValueError(
                f"the observation has the keys {sorted(named)}, but the agent was trained on {sorted(self.obs_specs)}"
            )
        single = set()
        for key, spec in self.obs_specs.items():
            shape = np.shape(named[key])
            if shape != spec.shape and shape[1:] != spec.shape:
                raise ValueError(f"observation '{key}' has shape {shape}, but the agent was trained on {spec.shape}")
            single.add(shape == spec.shape)
        if len(single) > 1:
            raise ValueError(f"either all observations {sorted(named)} must be batches, or none of them")
        return single == {True}
