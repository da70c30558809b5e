"""Agent = latent filter + behaviour, behind Stable-Baselines3's `predict`."""

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
    """What an agent remembers between two observations."""

    latent: State  # s_{t-1} of N environments
    control: Tensor  # u_{t-1} (N, A), the last answer
    memory: Memory  # of the behaviour
    sound: Tensor  # (N,) bool: whether the last answer rests on finite numbers


class Agent:
    """Filters observations into latent states and lets a behaviour act on them.

    The agent does not know whether its environment is real. Its whole memory is the :class:`AgentState` that
    `predict` returns and takes back, so one agent serves any number of environments.

    Args:
        compile: whether a step is compiled, when it is first taken, for as many environments as there are then. It
            draws other random numbers.
    Raises:
        ValueError: if it is to be compiled and there is no C++ compiler.
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
        """One step on tensors: {key: (N, width)}, is_first (N,) bool -> the next state, whose control is the answer."""
        latent = self.model.filter(state.latent, obs, state.control, is_first, sample=not deterministic)
        memory = restart(state.memory, self.behaviour.initial(len(is_first)), is_first)
        return AgentState(latent, *self.behaviour.act(self.model, latent, memory, deterministic))

    def initial(self, count: int) -> AgentState:
        """The memory before the first observation of `count` environments."""
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
        """Environment observations, one or a batch (N, ...) -> environment actions and the next memory.

        Args:
            state: what the previous call returned; None at the start.
            episode_start: (N,) bool, True where the observation is that of a reset; all True without a state.
            deterministic: the mode of posterior and policy instead of samples, and no exploration. A planner still
                draws its candidates at random.
        Raises:
            ValueError: if the observation has not the shape this agent was built for, or is none.
        """
        named = observed(keyed(self.obs_specs, observation))
        single = self._is_single(named)
        if single:
            named = {key: np.asarray(values)[None] for key, values in named.items()}
        device = self.device
        encoded = encode_observation(self.obs_specs, named)
        for key, spec in self.obs_specs.items():
            if not spec.valid(encoded[key]).all():
                raise ValueError(f"observation '{key}' is not finite or outside its space: {named[key]}")
        obs = {key: torch.from_numpy(rows).to(device) for key, rows in encoded.items()}
        count = len(next(iter(obs.values())))
        first = np.full(count, state is None) if episode_start is None or state is None else np.asarray(episode_start)
        is_first = torch.from_numpy(np.broadcast_to(first, count).astype(bool)).to(device)
        state = self._act(self.initial(count) if state is None else state, obs, is_first, deterministic)
        actions = self.action_spec.decode(state.control.cpu().numpy())
        return (actions[0] if single else actions), state

    def _is_single(self, named: Mapping[str, Any]) -> bool:
        """Whether observations come without a batch dimension; refuses shapes that fit neither way."""
        if set(named) != set(self.obs_specs):
            raise ValueError(f"observation keys {sorted(named)}; this agent was trained on {sorted(self.obs_specs)}")
        single = set()
        for key, spec in self.obs_specs.items():
            shape = np.shape(named[key])
            if shape != spec.shape and shape[1:] != spec.shape:
                raise ValueError(f"observation '{key}' has shape {shape}; this agent was trained on {spec.shape}")
            single.add(shape == spec.shape)
        if len(single) > 1:
            raise ValueError(f"observation keys {sorted(named)}: give all of them one by one, or all in batches")
        return single == {True}
