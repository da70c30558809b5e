"""What a member infers that no single image shows: a pendulum in 16 x 16 pixels (Karl et al. 2017, Section 5.1).

    python benchmarks/pendulum_images.py --minutes 4 --seeds 1 --out results/pendulum_images.csv

m = l = 1, friction 0.5, g = 9.81, steps of 0.1 s, torque u ~ U(-5, 5), sequences of 15 steps from rest or not; the
image is a blob at the pendulum's tip. A member learns from 500 sequences; reported is R^2 of a linear fit from its
posterior samples to sin, cos and velocity on 500 others, cross-validated. Velocity is the test of collapse.
Published: DVBF .961 / .982 / .916, DKF .929 / .979 / .035.
"""

import argparse
import csv
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from worldmodel.diagnostics.probe import linear_probe
from worldmodel.distributions import LatentConfig
from worldmodel.dynamics import DYNAMICS, DynamicsConfig
from worldmodel.learner import Learner, LearnerConfig
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.objective import Annealed, ObjectiveConfig, annealed, objective
from worldmodel.spaces import ActionSpec, ObservationSpec
from worldmodel.types import Batch

PIXELS, STEPS, DT, TORQUE = 16, 15, 0.1, 5.0
SPECS = {"image": ObservationSpec((PIXELS, PIXELS))}
CONTROL = ActionSpec((1,), low=(-TORQUE,), high=(TORQUE,))


def simulate(count: int, generator: torch.Generator) -> tuple[Batch, Tensor]:
    """`count` sequences, and their states (count, STEPS, 3): sin, cos and velocity."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    angle, velocity = uniform(-math.pi, math.pi, count), uniform(-3, 3, count)
    control = uniform(-1, 1, count, STEPS)  # u_{t-1} beside x_t, in units of the torque
    states = []
    for t in range(STEPS):
        if t:
            for _ in range(10):  # finer steps than those observed
                velocity = velocity + DT / 10 * (9.81 * angle.sin() - 0.5 * velocity + TORQUE * control[:, t])
                angle = angle + DT / 10 * velocity
        states.append(torch.stack([angle.sin(), angle.cos(), velocity], -1))
    state = torch.stack(states, 1)
    grid = torch.linspace(-1.4, 1.4, PIXELS)
    across = (grid - state[..., 0:1]).square().unsqueeze(-2)
    down = (grid + state[..., 1:2]).square().unsqueeze(-1)
    image = (-(across + down) / (2 * 0.25**2)).exp()
    ones, never = torch.ones(count, STEPS), torch.zeros(count, STEPS, dtype=torch.bool)
    first = never.clone()
    first[:, 0] = True
    return Batch({"image": image.flatten(2)}, control.unsqueeze(-1), 0 * ones, first, never, never, ones), state


def build(member: str, posterior: str, size: int) -> WorldModel:
    """A member with latents of that size; what is recurrent in it stays at its default width."""
    dynamics = DynamicsConfig(member)
    section = getattr(dynamics, member)
    if posterior:
        section.posterior = posterior
    if hasattr(section, "size"):
        section.size = size
    config = ModelConfig(dynamics, LatentConfig(size=size), hidden=128)
    model = WorldModel.build(config, SPECS, CONTROL)
    model.reward = model.cont = None  # there is none to learn
    return model


def train(model: WorldModel, data: Batch, minutes: float, config: ObjectiveConfig) -> int:
    """Maximise the ELBO for that long, with a learning rate that falls to nothing; the number of updates."""

    def loss(batch: Batch, now: Annealed) -> tuple[Tensor, None]:
        return objective(model, batch, config, now)[0].mean(), None

    lr = 2e-3
    learner = Learner(loss, model.parameters(), LearnerConfig(lr=lr, clip=10.0))
    began, updates = time.monotonic(), 0
    while (share := (time.monotonic() - began) / (60 * minutes)) < 1:
        for group in learner.optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * share))
        rows = torch.randint(len(data.reward), (64,))
        batch = Batch({key: value[rows] for key, value in data.obs.items()}, *(each[rows] for each in data[1:]))
        learner.update(batch, annealed(config, updates))
        updates += 1
    return updates


@torch.no_grad()
def measure(model: WorldModel, batch: Batch, state: Tensor) -> list[float]:
    """ELBO per frame, and R^2 of sin, cos and velocity."""
    scores = linear_probe(model, batch, {"state": state})["state"]
    return [float(model.elbo(batch).total.mean()), *scores.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4, help="of each training (default: 4)")
    parser.add_argument("--seeds", type=int, default=1, help="1..N (default: 1)")
    parser.add_argument("--size", type=int, default=3, help="of the latent (default: 3, that of the paper)")
    parser.add_argument("--members", nargs="*", default=[*DYNAMICS, "dkf:smoother", "srnn:smoother", "rvae:smoother"])
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = ["member", "seed", "updates", "elbo", "r2_sin", "r2_cos", "r2_velocity"]
    with options.out.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for member in options.members:
            for seed in range(1, options.seeds + 1):
                generator = torch.Generator().manual_seed(seed)
                torch.manual_seed(seed)
                data, test = simulate(500, generator), simulate(500, generator)
                name, _, posterior = member.partition(":")
                model = build(name, posterior, options.size)
                model.fit_units(data[0])
                updates = train(model, data[0], options.minutes, ObjectiveConfig(free_nats=0, anneal=500))
                values = measure(model, *test)
                table.writerow([member, seed, updates, *(f"{value:.4f}" for value in values)])
                file.flush()
                print(f"{member:<15} {seed:>3} {updates:>6}  " + "  ".join(f"{v:8.3f}" for v in values), flush=True)


if __name__ == "__main__":
    main()
