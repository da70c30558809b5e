"""What a member infers that no single image shows: a pendulum in 16 x 16 pixels (Karl et al. 2017, Section 5.1).

    python benchmarks/pendulum_images.py --seeds 11-15 --out results/pendulum_images.csv

m = l = 1, friction 0.5, g = 9.81, steps of 0.1 s, torque u ~ U(-5, 5), sequences of 15 steps from rest or not; the
image is a blob at the pendulum's tip. A member learns from 500 sequences; reported is R^2 of a linear fit to sin, cos
and velocity on 500 others, cross-validated: from the sampled latent z_t alone, and from the whole state, deterministic
memory included. Velocity is the test of collapse. Published, for z_t: DVBF .961 / .982 / .916, DKF .929 / .979 / .035.

beta falls from 30 to 1: at first the KL is dear, and what is not predicted cannot be had cheaply from the next image
instead. From 0 on, a member whose z_t is all it carries learns to copy every image and never finds the velocity.
"""

import argparse
import csv
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from worldmodel.diagnostics.open_loop import open_loop
from worldmodel.diagnostics.probe import probe
from worldmodel.dynamics import DYNAMICS, DynamicsConfig
from worldmodel.dynamics.kvae import KVAE
from worldmodel.learning.learner import Learner, LearnerConfig
from worldmodel.learning.objective import Annealed, ObjectiveConfig, annealed, objective
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.networks.latents import LatentConfig
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.types import Batch, Inference

PIXELS, STEPS, DT, TORQUE = 16, 15, 0.1, 5.0
SEEN = 5  # of the steps, where the rest is to be foreseen
SPECS = {"image": ObservationSpec((PIXELS, PIXELS))}
CONTROL = ActionSpec((1,), low=(-TORQUE,), high=(TORQUE,))
MEMBERS = ("rssm", "dvbf", "dvbf:smoother", "dkf", "dkf:smoother", "kvae")
KNOWN = ("sin", "cos", "velocity")
COLUMNS = [
    *("member", "seed", "restart", "size", "updates", "beta_start", "seconds", "foresight", "elbo", "kl"),
    *(f"z_{name}" for name in KNOWN),
    *(f"state_{name}" for name in KNOWN),
]


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


def build(member: str, size: int) -> WorldModel:
    """A member, as NAME or NAME:POSTERIOR, with latents of that size; the rest of it at its default width."""
    name, _, posterior = member.partition(":")
    dynamics = DynamicsConfig(name)
    section = getattr(dynamics, name)
    if posterior:
        section.posterior = posterior
    if hasattr(section, "size"):
        section.size = size
    config = ModelConfig(dynamics, LatentConfig(size=size), hidden=128)
    return WorldModel.build(config, SPECS, CONTROL, heads=False)


def train(model: WorldModel, data: Batch, updates: int, config: ObjectiveConfig) -> None:
    """Maximise the ELBO, the learning rate falling to nothing."""

    def loss(batch: Batch, now: Annealed) -> tuple[Tensor, None]:
        return objective(model, batch, config, now)[0].mean(), None

    learner = Learner(loss, model.parameters(), LearnerConfig(lr=3e-3, clip=10.0))
    for update in range(updates):
        learner.slow_down(0.5 * (1 + math.cos(math.pi * update / updates)))
        rows = torch.randint(len(data.reward), (64,))
        batch = Batch({key: value[rows] for key, value in data.obs.items()}, *(each[rows] for each in data[1:]))
        learner.update(batch, annealed(config, update))


@torch.no_grad()
def measure(model: WorldModel, batch: Batch, state: Tensor) -> Iterator[float]:
    """ELBO and KL in nats per frame, then R^2 of sin, cos and velocity from z_t, then from all of the state."""
    inference = model.observe(batch)
    elbo = model.elbo(batch, inference)
    yield float(elbo.total.mean())
    yield float(elbo.kl.mean())
    for feature in (sampled(model, inference), model.feature(inference.states)):
        yield from probe(feature, state, batch.mask).tolist()


def sampled(model: WorldModel, inference: Inference) -> Tensor:
    """z_t (B, T, Z) as the posterior draws it.

    What is drawn is not always z_t: of `dvbf` it is w_t, of which z_t is made, and of `kvae` a_t, given which z_t has
    the moments of the Kalman filter.
    """
    states, dynamics = inference.states, model.dynamics
    if isinstance(dynamics, KVAE):
        factor = torch.linalg.cholesky(dynamics.moments(states).covariance)
        return states.mean + (factor @ torch.randn_like(states.mean).unsqueeze(-1)).squeeze(-1)
    return getattr(states, "latent", inference.sample)


def foresight(model: WorldModel, batch: Batch) -> float:
    """log p(x_t) of the images after the first five, imagined from those, in nats per frame: restarts are chosen by it.

    Known states have no part in it. The ELBO does not tell: a state that copies every image has a higher one.
    """
    return float(open_loop(model, batch, SEEN, samples=8)["image"].log_prob.mean())


def made(member: str, seed: int, restart: int, options: argparse.Namespace) -> dict[str, str]:
    """One row of the table: the same data for every restart, other initial weights and batches."""
    generator = torch.Generator().manual_seed(seed)
    data, test = simulate(500, generator), simulate(500, generator)
    torch.manual_seed(seed + 1000 * restart)
    model, began = build(member, options.size), time.monotonic()
    model.fit_normalizers(data[0])
    config = ObjectiveConfig(free_nats=0, anneal=3 * options.updates // 4, beta_start=options.beta_start)
    train(model, data[0], options.updates, config)
    about = (member, seed, restart, options.size, options.updates, options.beta_start, round(time.monotonic() - began))
    numbers = (f"{value:.4f}" for value in (foresight(model, data[0]), *measure(model, *test)))
    return dict(zip(COLUMNS, [*map(str, about), *numbers], strict=True))


def foreseen(row: dict[str, str]) -> float:
    """Its foresight; of rows made before that was measured, less than any."""
    return float(row["foresight"] or "-inf")


def chosen(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Of every seed's restarts, the one that foresees its training sequences best."""
    best: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("member", "seed", "size", "updates", "beta_start"))
        if key not in best or foreseen(row) > foreseen(best[key]):
            best[key] = row
    return list(best.values())


def show(row: dict[str, str]) -> None:
    print(" ".join(f"{value:>8}" for value in row.values()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=3000, help="of each training (default: 3000)")
    parser.add_argument("--seeds", default="1-5", help="FIRST-LAST (default: 1-5)")
    parser.add_argument(
        "--restarts", type=int, default=1, help="trainings per seed; the one of most foresight counts (default: 1)"
    )
    parser.add_argument("--size", type=int, default=4, help="of the latent (default: 4; the paper has 3)")
    parser.add_argument("--beta-start", type=float, default=30.0, help="falls to 1 over 3/4 (default: 30)")
    parser.add_argument(
        "--members", nargs="*", default=list(MEMBERS), help=f"of {', '.join(DYNAMICS)}, or dkf:smoother"
    )
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write; rows that it has are not made again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader(options.out.open())) if options.out.is_file() else []
    key = [options.size, options.updates, options.beta_start]
    done = {tuple(row[name] for name in COLUMNS[:6]) for row in rows}
    first, last = map(int, options.seeds.split("-"))
    cells = itertools.product(options.members, range(first, last + 1), range(options.restarts))
    for member, seed, restart in cells:
        if tuple(map(str, [member, seed, restart, *key])) in done:
            continue
        rows.append(made(member, seed, restart, options))
        with options.out.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows(rows)
        show(rows[-1])
    print("\nthe restart of most foresight, by seed")
    show({name: name for name in COLUMNS})
    for row in chosen(rows):
        show(row)


if __name__ == "__main__":
    main()
