"""Learned posteriors against the exact evidence of a linear-Gaussian system with controls (Gedon et al. 2021).

    python benchmarks/evidence.py --updates 3000 --out results/evidence.csv

1. The true p is given to `dkf`, and only its posterior is learned: by how many nats per frame does the smoother fall
   short of the evidence, and the filter of the best causal one? All on the same test sequences, so that their noise
   drops out. IWAE and FIVO of the learned filter, for rising K.
2. p is learned as well, from 2,000 noisy samples in sequences of 64: root mean square error of a free run over 5,000
   test samples, the noise of the test included; 1.391 with the true parameters.
"""

import argparse
import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.diagnostics.windows import crop
from worldmodel.dynamics import DKF, DKFConfig, DynamicsConfig
from worldmodel.dynamics.linear_gaussian import (
    LinearGaussian,
    LinearGaussianEmission,
    LinearGaussianEncoder,
    example_system,
)
from worldmodel.learning.bounds import importance_bound
from worldmodel.learning.learner import Learner, LearnerConfig
from worldmodel.learning.objective import ObjectiveConfig, objective
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.networks.encoder import Encoder
from worldmodel.networks.latents import Gaussian, LatentConfig
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.types import Batch

SYSTEM = example_system(torch.float32)
SPECS = {"x": ObservationSpec((1,))}
CONTROL = ActionSpec((1,), low=(-2.5,), high=(2.5,))
CAUSAL = 1.8217 - 1.657723  # what the best causal linear filter falls short of the evidence by, when stationary
LATE = 10  # frames until the system has become stationary
PARTICLES = (4, 16, 64)
SAMPLES = 20  # of the posterior, for its ELBO


def simulate(count: int, length: int, generator: torch.Generator) -> Batch:
    """`count` sequences from z_0 = 0 under u ~ U(-2.5, 2.5); row t holds x_t and u_{t-1}."""
    control = 5 * torch.rand(count, length, 1, generator=generator) - 2.5
    z, rows = torch.zeros(count, 2), []
    for t in range(length):
        z = z @ SYSTEM.A.mT + control[:, t] @ SYSTEM.B.mT + 0.5 * torch.randn(z.shape, generator=generator)
        rows.append(z @ SYSTEM.C.mT + torch.randn(count, 1, generator=generator))
    ones, never = torch.ones(count, length), torch.zeros(count, length, dtype=torch.bool)
    return Batch({"x": torch.stack(rows, 1)}, control, 0 * ones, never, never, never, ones)


def with_true_p(posterior: Any, hidden: int = 64) -> tuple[WorldModel, list[torch.nn.Parameter]]:
    """A `dkf` whose p is the system, and the parameters of its posterior."""
    latent = Gaussian(2)
    encoder = Encoder(SPECS, hidden, 1)
    dynamics = DKF(DKFConfig(hidden, posterior), latent, 1, encoder.size)
    raw = math.log(math.expm1(0.5 - latent.min_std))
    with torch.no_grad():
        dynamics.linear.weight.copy_(torch.cat([torch.cat([SYSTEM.A, SYSTEM.B], 1), torch.zeros(2, 3)]))
        dynamics.linear.bias.copy_(torch.tensor([0.0, 0.0, raw, raw]))
        dynamics.gate.weight.zero_()
        dynamics.gate.bias.fill_(-100.0)  # all weight on the linear part
    given = {*dynamics.linear.parameters(), *dynamics.gate.parameters(), *dynamics.nonlinear.parameters()}
    model = WorldModel(encoder, dynamics, {"x": LinearGaussianEmission(SYSTEM)})  # type: ignore[dict-item]
    return model, [p for p in model.parameters() if p not in given]


def train(model: WorldModel, parameters: list[Any], updates: int, draw: Callable[[], Batch], lr: float = 3e-3) -> None:
    """Maximise the ELBO, the learning rate falling to nothing."""

    def loss(batch: Batch) -> tuple[Tensor, None]:
        return objective(model, batch, ObjectiveConfig(free_nats=0))[0].mean(), None

    learner = Learner(loss, parameters, LearnerConfig(lr=lr, clip=10.0))
    for update in range(updates):
        learner.slow_down(0.5 * (1 + math.cos(math.pi * update / updates)))
        learner.update(draw())


def late(per_step: Tensor) -> float:
    """(B, T) -> nats per frame after the first LATE, when the system has become stationary."""
    return float(per_step[:, LATE:].mean())


@torch.no_grad()
def bounds(model: WorldModel, test: Batch) -> Iterator[tuple[str, float]]:
    """Tighter ones than the ELBO, of whole sequences, in nats per frame."""
    for name, resample in (("iwae", 0.0), ("fivo", 0.5)):
        for k in PARTICLES:
            yield f"{name}_{k}", float(importance_bound(model, test, k, resample).mean())


@torch.no_grad()
def free_run(model: WorldModel, test: Batch, samples: int = 64) -> float:
    """RMSE of the mean of `samples` imagined runs, from the initial state on controls alone, against the noisy test."""
    state, total = model.initial(samples), []
    for t in range(test.reward.shape[1]):
        state = model.imagine(state, test.prev_action[:, t].expand(samples, -1))
        total.append(model.predict(model.feature(state)).obs["x"].mean(0))
    return float((torch.stack(total) - test.obs["x"][0]).square().mean().sqrt())


def given_p(options: argparse.Namespace, generator: torch.Generator) -> Iterator[tuple[str, str, float]]:
    """The first question."""
    test, few = simulate(2000, 60, generator), simulate(200, 60, generator)
    exact = WorldModel(LinearGaussianEncoder(), LinearGaussian(SYSTEM), {"x": LinearGaussianEmission(SYSTEM)})  # type: ignore[arg-type, dict-item]
    whole = importance_bound(exact, test, 1)  # of the exact posterior every sample has the evidence as its weight
    before = importance_bound(exact, crop(test, 0, LATE), 1)
    evidence, later = float(whole.mean()), float((whole.sum(1) - before.sum(1)).mean()) / (whole.shape[1] - LATE)
    yield "exact", "evidence", evidence
    yield "exact", f"evidence after {LATE} frames", later
    yield "any smoother with diagonal covariances", "short of the evidence, at least", diagonal_gap()
    for posterior in ("smoother", "filter"):
        model, parameters = with_true_p(posterior)
        drawn = simulate(500, 40, generator)
        model.encoder.fit(drawn.obs, drawn.mask)
        train(model, parameters, options.updates, lambda: simulate(128, 40, generator))
        with torch.no_grad():
            elbo = torch.stack([model.elbo(test).total for _ in range(SAMPLES)]).mean(0)
        name = f"dkf {posterior}, true p"
        yield name, "elbo", float(elbo.mean())
        if posterior == "smoother":
            yield name, "short of the evidence", evidence - float(elbo.mean())
        else:
            yield name, "short of the best causal one", later - CAUSAL - late(elbo)
    for name, value in bounds(model, few):
        yield "dkf filter, true p, 200 sequences", name, value
    yield "exact, the same 200", "evidence", float(importance_bound(exact, few, 1).mean())


def diagonal_gap() -> float:
    """Nats per frame between the exact smoother's q(z_t | z_{t-1}, .) and the best one of diagonal covariance.

    With precision L that is sum_i log(L_ii) / 2 - log(det L) / 2, where a chain costs as much as its links.
    """
    smoother, blank = LinearGaussian(SYSTEM), torch.zeros(1, 60, 1)
    never = torch.zeros(1, 60, dtype=torch.bool)
    _, information = smoother.split(smoother.evidence(blank, blank, never, smoother.initial(1)))
    precision = smoother.precision + information[0, 10]
    return 0.5 * float(precision.diagonal().log().sum() - precision.logdet())


def learned_p(options: argparse.Namespace, generator: torch.Generator) -> Iterator[tuple[str, str, float]]:
    """The second question."""
    data, test = simulate(31, 64, generator), simulate(1, 5000, generator)
    config = ModelConfig(DynamicsConfig("dkf", dkf=DKFConfig(32, "smoother")), LatentConfig(size=4), hidden=32)
    model = WorldModel.build(config, SPECS, CONTROL, heads=False)
    model.fit_normalizers(data)
    train(model, list(model.parameters()), options.updates, lambda: data, lr=1e-3)
    yield "dkf smoother, learned p", "free-run RMSE", free_run(model, test)
    exact = WorldModel(LinearGaussianEncoder(), LinearGaussian(SYSTEM, "prior"), {"x": LinearGaussianEmission(SYSTEM)})  # type: ignore[arg-type, dict-item]
    yield "true p", "free-run RMSE", free_run(exact, test, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=3000, help="of each training (default: 3000)")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    table = []
    for part in (given_p, learned_p):
        for row in part(options, generator):
            print(f"{row[0]:<40} {row[1]:<32} {row[2]:8.4f}", flush=True)
            table.append(row)
    with options.out.open("w", newline="") as file:
        csv.writer(file).writerows([("model", "measure", "value"), *table])


if __name__ == "__main__":
    main()
