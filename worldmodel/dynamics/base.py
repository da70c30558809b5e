"""The skeleton of every dynamical variational autoencoder with controls.

    log p(x_{1:T} | u_{0:T-1}) >= sum_t E_q[ log p(x_t | s_t) ] - sum_t E_q[ KL( q(z_t | .) || p(z_t | .) ) ]

A member chooses what its prior and its posterior are conditioned on; observing, filtering and imagining are the same
for all and are written here once. The state s_t is what is carried on from t (z_t, and a recurrent h_t where there is
one); the context c_t is the deterministic part of t-1 -> t, computed once and shared by prior and posterior:

    s_{t-1}, u_{t-1} --advance--> c_t --prior-----------------> p(z_t | c_t)
                                  c_t, evidence_t --posterior-> q(z_t | c_t, e_t)
                                  c_t, z_t --with_latent------> s_t --feature--> heads p(x_t | s_t)
                                  s_t, x_t --with_observation-> s_t, for members whose s_{t+1} depends on x_t
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from worldmodel.dynamics.scan import scan
from worldmodel.networks.latents import LatentFamily
from worldmodel.types import Inference, State, restart


def after_resets(control: Tensor, is_first: Tensor) -> Tensor:
    """(..., A), (...) bool -> the controls, null where an episode begins: none has led there."""
    if is_first.dtype != torch.bool:
        raise ValueError(f"is_first holds true and false, not {is_first.dtype}: give is_first.bool()")
    return control * ~is_first.unsqueeze(-1)


class SequentialVAE(nn.Module, ABC):
    """A latent dynamics model p(z_t | z_{<t}, u_{<t}) with its posterior q.

    Members define `Context` (a NamedTuple of tensors) and the methods below `contract`; states and contexts are flat
    NamedTuples of tensors with leading dimensions (B,) or (B, T), so that every method works on one step and on a
    whole window. At `is_first` the state restarts from `initial` and the control is null, so that x_1 is explained by
    p(z_1 | z_0, u_0 = 0) whatever came before.
    """

    Context: ClassVar[type]
    latent: LatentFamily
    feature_size: int  # F
    can_filter: bool = True  # whether q(z_t | .) sees no observation later than x_t
    can_imagine: bool = True  # whether there are dynamics to imagine with
    feeds_back: bool = False  # whether s_{t+1} depends on x_t: imagination then needs decoded observations

    # The contract: what a member fills in.

    @abstractmethod
    def initial(self, batch_size: int) -> State:
        """The state before x_1, each field (B, ...)."""

    @abstractmethod
    def advance(self, state: State, control: Tensor) -> Any:
        """s_{t-1}, u_{t-1} (B, A) -> context c_t."""

    @abstractmethod
    def prior(self, context: Any) -> Tensor:
        """c_t -> parameters (..., P) of p(z_t | z_{t-1}, u_{t-1})."""

    @abstractmethod
    def posterior(self, context: Any, evidence: Tensor) -> Tensor:
        """c_t, e_t -> parameters (..., P) of q(z_t | .)."""

    @abstractmethod
    def with_latent(self, context: Any, z: Tensor) -> State:
        """c_t, z_t -> s_t."""

    @abstractmethod
    def feature(self, state: State) -> Tensor:
        """s_t -> what the heads and behaviours read, (..., F)."""

    @abstractmethod
    def evidence(self, embed: Tensor, control: Tensor, is_first: Tensor, state: State) -> Tensor:
        """What the posterior at each t sees of the data, for all t at once.

        Args:
            embed: (B, T, E) embeddings of x_1..x_T. control: (B, T, A), u_0..u_{T-1}. is_first: (B, T).
            state: s_0, each field (B, ...).
        """

    def with_observation(self, state: State, embed: Tensor) -> State:
        """s_t, embedding of x_t (..., E) -> s_t that remembers x_t for t + 1. `feature` must not see it."""
        return state

    # Written once for all members.

    def observe(self, embed: Tensor, control: Tensor, is_first: Tensor, state: State | None = None) -> Inference:
        """Sample the posterior over a window, along the chain (derivation Eq. 16).

        Args:
            embed: (B, T, E). control: (B, T, A), the control that led to each x_t. is_first: (B, T) bool.
            state: s_0, if the window continues a known one; `initial` by default.
        """
        control = after_resets(control, is_first)
        start = self.initial(len(embed))
        state = start if state is None else state
        evidence = self.evidence(embed, control, is_first, state)

        def step(state: State, inputs: tuple[Tensor, ...]) -> tuple[State, tuple[Tensor, ...]]:
            return self.step(state, start, *inputs)

        _, (z, posterior, *fields) = scan(step, state, (embed, control, evidence, is_first))
        contexts = self.Context(*fields)
        states = self.with_observation(self.with_latent(contexts, z), embed)
        return Inference(states, self.prior(contexts), posterior, z)

    def step(
        self, state: State, start: State, embed: Tensor, control: Tensor, evidence: Tensor, is_first: Tensor
    ) -> tuple[State, tuple[Tensor, ...]]:
        """Take one step of :meth:`observe`: s_{t-1}, s_0 and what belongs to t, each (B, ...).

        Returns:
            s_t, and (z_t, the parameters of its posterior, the fields of the context).
        """
        context = self.advance(restart(state, start, is_first), control)
        posterior = self.posterior(context, evidence)
        z = self.latent.sample(posterior)
        return self.with_observation(self.with_latent(context, z), embed), (z, posterior, *context)

    def filter(self, state: State, embed: Tensor, control: Tensor, is_first: Tensor, sample: bool = True) -> State:
        """One step of :meth:`observe`: s_{t-1}, x_t (B, E), u_{t-1} (B, A), is_first (B,) -> s_t (derivation Eq. 26).

        Raises:
            ValueError: if this member's posterior needs the future.
        """
        if not self.can_filter:
            raise ValueError(
                f"{type(self).__name__} infers from the whole sequence and cannot act: choose its filtering posterior "
                "(posterior: filter) where it has one, or another member such as rssm"
            )
        control = after_resets(control, is_first)
        state = restart(state, self.initial(len(embed)), is_first)
        context = self.advance(state, control)
        evidence = self.evidence(embed.unsqueeze(1), control.unsqueeze(1), is_first.unsqueeze(1), state)
        posterior = self.posterior(context, evidence.squeeze(1))
        z = self.latent.sample(posterior) if sample else self.latent.mode(posterior)
        return self.with_observation(self.with_latent(context, z), embed)

    def imagine(self, state: State, control: Tensor, sample: bool = True) -> State:
        """s_{t-1}, u_{t-1} (B, A) -> s_t from the prior alone: a sample, or its mode.

        Where the member `feeds_back`, the caller gives it an imagined x_t through :meth:`with_observation`.

        Raises:
            ValueError: if this member has no dynamics.
        """
        if not self.can_imagine:
            raise ValueError(
                f"{type(self).__name__} has no dynamics and cannot imagine: choose another member such as dkf or rssm"
            )
        context = self.advance(state, control)
        prior = self.prior(context)
        return self.with_latent(context, self.latent.sample(prior) if sample else self.latent.mode(prior))
