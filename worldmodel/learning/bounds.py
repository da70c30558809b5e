"""Bounds on log p(x_{1:T} | u_{0:T-1}) from K weighted samples: IWAE, FIVO, and importance sampling.

Each sample, or particle, carries a weight that every step multiplies by

    w_t = p(x_t | s_t) p(z_t | .) / q(z_t | .)

and the estimate of the evidence is the mean weight. It is unbiased, so that its logarithm is below the evidence on
average, and by less the more particles there are: ELBO = IWAE_1 <= IWAE_K <= log p (Burda et al. 2016). Over long
sequences a few particles take all the weight; a particle filter resamples them before that happens, and its estimate
is unbiased as well (FIVO; Maddison et al. 2017). Results are the increments log Z_t / Z_{t-1} of every step, (B, T)
in nats, zero where padded, as those of the ELBO are; an episode that begins inside a window has an estimate of its
own.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.dynamics.scan import scan
from worldmodel.model import WorldModel
from worldmodel.types import Batch, Inference, State, restart

AT_A_TIME = 50  # samples of a log-likelihood


def importance_bound(
    model: WorldModel, batch: Batch, particles: int, resample: float = 0.0, beta: Tensor | float = 1.0
) -> Tensor:
    """(B, T): IWAE_K where `resample` is 0, else FIVO_K with that threshold. Differentiable: it can be trained.

    `beta`: see :func:`log_weights`.

    Raises:
        ValueError: if there is no particle, or the threshold is not in [0, 1].
    """
    if particles < 1 or not 0 <= resample <= 1:
        raise ValueError(f"a bound needs particles >= 1 and resample in [0, 1]: {particles}, {resample}")
    return fivo(model, batch, particles, resample, beta) if resample else iwae(model, batch, particles, beta)


def log_weights(model: WorldModel, batch: Batch, inference: Inference, beta: Tensor | float = 1.0) -> Tensor:
    """(B, T): log w_t of the inferred samples (derivation Eq. 45). Its expectation is the ELBO; its variance is larger.

    With beta below 1 the ratio p / q counts by that power, as its logarithm, the KL, does in an annealed ELBO; then
    it is no bound.
    """
    logs = model.log_likelihood(batch, model.feature(inference.states))
    family, z = model.dynamics.latent, inference.sample
    ratio = family.log_prob(inference.prior, z) - family.log_prob(inference.posterior, z)
    return (torch.stack(list(logs.values())).sum(0) + beta * ratio) * batch.mask


def iwae(model: WorldModel, batch: Batch, particles: int, beta: Tensor | float = 1.0) -> Tensor:
    """(B, T): increments of log 1/K sum_k prod_t w_t^k (derivation Eq. 46 to 48; Burda et al. 2016, Eq. 8)."""
    return increments(_log_sums(model, batch, particles, beta), batch.is_first, particles)


@torch.no_grad()
def log_likelihood(model: WorldModel, batch: Batch, samples: int, chunk: int = AT_A_TIME) -> Tensor:
    """(B, T): the importance-sampled log-likelihood, IWAE of many samples taken `chunk` at a time.

    Raises:
        ValueError: if either number is below 1.
    """
    if min(samples, chunk) < 1:
        raise ValueError(f"samples and chunk must be at least 1: {samples}, {chunk}")
    sizes = [min(chunk, samples - done) for done in range(0, samples, chunk)]
    sums = torch.stack([_log_sums(model, batch, size) for size in sizes])
    return increments(sums.logsumexp(0), batch.is_first, samples)


def _log_sums(model: WorldModel, batch: Batch, count: int, beta: Tensor | float = 1.0) -> Tensor:
    """(B, T): log sum_k prod_{s <= t} w_s^k, products since the episode began."""
    many = repeated(batch, count)
    weights = log_weights(model, many, model.observe(many), beta)

    def step(total: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        weight, is_first = inputs
        total = torch.where(is_first, weight, total + weight)
        return total, (total,)

    _, (totals,) = scan(step, torch.zeros_like(weights[:, 0]), (weights, many.is_first))
    return totals.unflatten(0, (-1, count)).logsumexp(1)


def increments(log_sums: Tensor, is_first: Tensor, count: int) -> Tensor:
    """log sums of `count` weights (B, T) -> log Z_t - log Z_{t-1} (B, T), with Z = 1 before an episode begins."""
    log_z = log_sums - math.log(count)
    before = torch.cat([torch.zeros_like(log_z[:, :1]), log_z[:, :-1]], 1)
    return log_z - before.masked_fill(is_first, 0)


class Particles(NamedTuple):
    state: State  # fields (B * K, ...)
    log_weights: Tensor  # (B, K), normalised


def fivo(model: WorldModel, batch: Batch, particles: int, threshold: float = 0.5, beta: Tensor | float = 1.0) -> Tensor:
    """(B, T): increments log sum_k W_{t-1}^k w_t^k of a particle filter (Maddison et al. 2017, Algorithm 1).

    Derivation Eq. 47 and 52. W are the normalised weights; see :func:`resampled` for when they start again. What
    resampling adds to the gradient (Eq. 54) is left out: its variance costs more than its bias, as the authors found.
    """
    dynamics, many = model.dynamics, repeated(batch, particles)
    many = many._replace(prev_action=many.prev_action * ~many.is_first.unsqueeze(-1))
    embed, start = model.encoder(many.obs), dynamics.initial(len(many.reward))
    evidence = dynamics.evidence(embed, many.prev_action, many.is_first, start)
    uniform = many.reward.new_full((len(batch.reward), particles), -math.log(particles))

    def step(carry: Particles, inputs: tuple[Tensor, ...]) -> tuple[Particles, tuple[Tensor, ...]]:
        embed, evidence, *leaves = inputs
        now = _batch(list(batch.obs), [leaf.unsqueeze(1) for leaf in leaves])
        is_first = now.is_first[:, 0]
        context = dynamics.advance(restart(carry.state, start, is_first), now.prev_action[:, 0])
        posterior = dynamics.posterior(context, evidence)
        z = dynamics.latent.sample(posterior)
        state = dynamics.with_observation(dynamics.with_latent(context, z), embed)
        states = type(state)(*(field.unsqueeze(1) for field in state))
        here = Inference(states, dynamics.prior(context).unsqueeze(1), posterior.unsqueeze(1), z.unsqueeze(1))
        before = torch.where(is_first.view_as(uniform), uniform, carry.log_weights)
        joint = before + log_weights(model, now, here, beta).view_as(uniform)
        increment = joint.logsumexp(1)
        return resampled(Particles(state, joint - increment.unsqueeze(1)), threshold), (increment,)

    _, (result,) = scan(step, Particles(start, uniform), (embed, evidence, *many.obs.values(), *many[1:]))
    return result


def resampled(particles: Particles, threshold: float) -> Particles:
    """Draw ancestors where the effective sample size (derivation Eq. 51) is below `threshold` K; the rest stays.

    Systematic resampling: one random number per sequence, and every particle is drawn W^k K times up to one.
    """
    logs = particles.log_weights.detach()
    count = logs.shape[1]
    poor = (-(2 * logs).logsumexp(1) < math.log(threshold * count)).unsqueeze(1)
    own = torch.arange(count, device=logs.device)
    comb = (own + torch.rand(len(logs), 1, dtype=logs.dtype, device=logs.device)) / count
    ancestor = torch.searchsorted(logs.exp().cumsum(1), comb).clamp(max=count - 1)
    ancestor = torch.where(poor, ancestor, own)
    rows = (ancestor + count * torch.arange(len(logs), device=logs.device).unsqueeze(1)).flatten()
    fresh = torch.full_like(logs, -math.log(count))
    state = type(particles.state)(*(field[rows] for field in particles.state))
    return Particles(state, torch.where(poor, fresh, particles.log_weights))


def repeated(batch: Batch, count: int) -> Batch:
    """(B, T, ...) -> (B * count, T, ...), the copies of a sequence side by side."""
    leaves = [leaf.repeat_interleave(count, 0) for leaf in (*batch.obs.values(), *batch[1:])]
    return _batch(list(batch.obs), leaves)


def _batch(keys: list[str], leaves: list[Tensor]) -> Batch:
    return Batch(dict(zip(keys, leaves[: len(keys)], strict=True)), *leaves[len(keys) :])
