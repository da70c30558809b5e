"""Does the model use the actions, and those that it was trained to?

The same sequences are explained with the recorded controls, with those of another sequence, and with their own one step
late or early. A model that uses its actions is worse off with any but its own: recordings aligned otherwise than those
it was trained on are found out. That the training data themselves were misaligned cannot be seen here: a model of
them is at home in them, and only explains them less well.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.diagnostics.evidence import sequence_elbo
from worldmodel.diagnostics.open_loop import open_loop
from worldmodel.diagnostics.scores import Paired, paired
from worldmodel.diagnostics.windows import crop, unbroken
from worldmodel.model import WorldModel
from worldmodel.types import Batch

SIGNIFICANT = 3.0
"""Standard errors that a difference must exceed to count."""

FEWEST = 8
"""Sequences below which a standard error is itself too uncertain to decide anything."""

NEGLIGIBLE = 0.1
"""Nats per step: that the actions are ignored is said only where a larger loss can be excluded."""

RIGHT, SHUFFLED, LATE, EARLY = "recorded", "of another sequence", "one step late", "one step early"


class ActionTest(NamedTuple):
    """By variant of the controls, one number per sequence (B,); empty where there is nothing to vary."""

    elbo: dict[str, Tensor]  # nats per step; what the verdict rests on: every member of the family has it
    log_likelihood: dict[str, Tensor]  # nats per imagined step, open loop; empty if the model cannot imagine
    width: int  # A
    varied: bool  # whether the recorded controls differ at all

    def loss(self, variant: str) -> Paired:
        """What the ELBO loses by controls other than the recorded ones, in nats per step."""
        return paired(self.elbo[RIGHT], self.elbo[variant])

    def verdict(self, significant: float = SIGNIFICANT) -> str:
        """`uses its actions`, `ignores its actions`, `actions look misaligned by one step`, or why none can be given.

        By paired tests over sequences, of the mean and of the sign. They must be independent: any that share steps
        would look surer than they are.
        """
        if not self.width:
            return "no controls"
        if not self.varied:
            return "controls never vary"
        count = len(self.elbo[RIGHT])
        undecided = f"undecided, {count} sequences are too few to tell"
        if count < FEWEST:
            return undecided
        if any(bool(self.loss(variant).clearest < -significant) for variant in (LATE, EARLY)):
            return "actions look misaligned by one step"
        loss = self.loss(SHUFFLED)
        if loss.clearest > significant:
            return "uses its actions"
        if loss.mean + significant * loss.error < NEGLIGIBLE:
            return "ignores its actions"
        return undecided


def action_test(model: WorldModel, batch: Batch, context: int, samples: int = 8) -> ActionTest:
    """Explain sequences with their own controls and with wrong ones.

    Args:
        batch: (B, T) sequences that share no step. Those in which an episode begins after the first step are left
            out, and the first and the last step serve only to shift the controls.
        context: steps before the imagined ones of the open-loop log-likelihood, where only the latter have the
            wrong controls.
        samples: of the posterior.
    Raises:
        ValueError: if fewer than two sequences of four steps are left.
    """
    batch = unbroken(batch, 1)
    count, length = batch.reward.shape
    if count < 2 or length < 4:
        raise ValueError(f"an action test needs two sequences of four steps, there are {count} of {length}")
    control = batch.prev_action
    width, varied = control.shape[-1], bool((control[:, 1:] != control[:1, 1:2]).any())
    if not width or not varied:
        return ActionTest({}, {}, width, varied)
    inner = crop(batch, 1, -1)
    inner = inner._replace(is_first=torch.zeros_like(inner.is_first))
    controls = variants(batch)
    elbo = {name: sequence_elbo(model, inner._replace(prev_action=each), samples) for name, each in controls.items()}
    ahead = {}
    if model.dynamics.can_imagine and context < length - 2:
        ahead = {name: _open_loop(model, inner, each, context, samples) for name, each in controls.items()}
    return ActionTest(elbo, ahead, width, varied)


def variants(batch: Batch) -> dict[str, Tensor]:
    """Controls (B, T - 2, A) of steps 2 to T - 1: right, of the sequence half the batch away, shifted either way."""
    control = batch.prev_action
    right = control[:, 1:-1]
    return {
        RIGHT: right,
        SHUFFLED: right.roll(len(right) // 2, 0),
        LATE: control[:, :-2],  # u_{t-2} where u_{t-1} led to x_t
        EARLY: control[:, 2:],  # u_t
    }


def _open_loop(model: WorldModel, batch: Batch, control: Tensor, context: int, samples: int) -> Tensor:
    """(B,): log-likelihood of everything emitted in nats per step, with other controls after the context."""
    joined = torch.cat([batch.prev_action[:, :context], control[:, context:]], 1)
    forecasts = open_loop(model, batch._replace(prev_action=joined), context, samples)
    return torch.stack([forecast.log_prob for forecast in forecasts.values()]).sum(0).mean(1)
