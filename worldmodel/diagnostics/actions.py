"""A test of whether a model uses the actions, and at the right time step.

The model explains the same sequences with four variants of the actions: the recorded ones, those of another sequence,
and the recorded ones shifted by one step in either direction. A model that uses its actions explains the data best
with the recorded ones. If a shifted variant is better, the recordings are aligned differently from the training data.
The test cannot detect that the training data were misaligned themselves: the model has learned them that way.
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
"""The number of standard errors that a difference must exceed to count."""

FEWEST_SEQUENCES = 8
"""With fewer sequences, the standard error itself is too uncertain for a verdict."""

NEGLIGIBLE = 0.1
"""Nats per step. The verdict is "ignores its actions" only if a larger loss can be excluded."""

RIGHT, SHUFFLED, LATE, EARLY = "recorded", "of another sequence", "one step late", "one step early"


class ActionTest(NamedTuple):
    """One number for each sequence (B,), by variant of the actions. The mappings are empty if no actions vary."""

    elbo: dict[str, Tensor]  # nats per step; the verdict uses the ELBO, because every model has one
    log_likelihood: dict[str, Tensor]  # nats per imagined step, open loop; empty if the model cannot imagine
    width: int  # A, the width of an action
    varied: bool  # whether the recorded actions differ from each other

    def loss(self, variant: str) -> Paired:
        """Return the ELBO with the recorded actions minus the ELBO with a variant, in nats per step."""
        return paired(self.elbo[RIGHT], self.elbo[variant])

    def verdict(self, significant: float = SIGNIFICANT) -> str:
        """Return the verdict, or the reason why there is none.

        The verdict is `uses its actions`, `ignores its actions` or `actions look misaligned by one step`. It rests on
        paired tests of the mean and of the sign over the sequences. The sequences must be independent: with shared
        steps, the result would look more certain than it is.

        Args:
            significant: the number of standard errors that a difference must exceed.
        """
        if not self.width:
            return "there are no actions"
        if not self.varied:
            return "the actions never vary"
        count = len(self.elbo[RIGHT])
        undecided = f"undecided: {count} sequences are too few for a verdict"
        if count < FEWEST_SEQUENCES:
            return undecided
        if any(bool(self.loss(variant).clearest < -significant) for variant in (LATE, EARLY)):
            return "the actions look misaligned by one step"
        loss = self.loss(SHUFFLED)
        if loss.clearest > significant:
            return "the model uses its actions"
        if loss.mean + significant * loss.error < NEGLIGIBLE:
            return "the model ignores its actions"
        return undecided


def action_test(model: WorldModel, batch: Batch, context: int, samples: int = 8) -> ActionTest:
    """Measure how well a model explains sequences with their own actions and with wrong ones.

    Args:
        model: the model to test.
        batch: (B, T) sequences that share no step. Sequences in which an episode begins after the first step are left
            out. The first and the last step are used only to shift the actions.
        context: the number of steps before the imagined ones, for the open-loop log-likelihood. Only the imagined
            steps have wrong actions.
        samples: the number of samples of the posterior.
    Raises:
        ValueError: if fewer than two sequences of four steps are left.
    """
    batch = unbroken(batch, 1)
    count, length = batch.reward.shape
    if count < 2 or length < 4:
        raise ValueError(
            f"an action test needs at least two sequences of four steps, but there are {count} of {length} steps"
        )
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
    """Return the four variants of the actions (B, T - 2, A) for the steps 2 to T - 1.

    The actions of another sequence are those of the sequence half a batch away.
    """
    control = batch.prev_action
    right = control[:, 1:-1]
    return {
        RIGHT: right,
        SHUFFLED: right.roll(len(right) // 2, 0),
        LATE: control[:, :-2],  # u_{t-2} where u_{t-1} led to x_t
        EARLY: control[:, 2:],  # u_t
    }


def _open_loop(model: WorldModel, batch: Batch, control: Tensor, context: int, samples: int) -> Tensor:
    """Return the log-likelihood of all emissions in nats per step (B,), with other actions after the context."""
    joined = torch.cat([batch.prev_action[:, :context], control[:, context:]], 1)
    forecasts = open_loop(model, batch._replace(prev_action=joined), context, samples)
    return torch.stack([forecast.log_prob for forecast in forecasts.values()]).sum(0).mean(1)
