"""How fast plans are made: decisions per second by horizon, candidates, iterations, environments and precision.

    python benchmarks/planning.py --out results/planning.csv

One torch thread. Models are untrained: their speed does not depend on what they know. A decision is one search for
each of the environments, filtering not included. Every row is the best of several rounds in CPU time, so that other
work on the machine counts little; the peak is that of a square matrix product in the same precision, in the same run.
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.agents import Planner, PlannerConfig
from worldmodel.agents.planning.search import CEMConfig, ICEMConfig, MPPIConfig
from worldmodel.dynamics import DynamicsConfig, RSSMConfig
from worldmodel.kernels.memory import room_for_tensors
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.networks.latents import LatentConfig
from worldmodel.specs import OBSERVATION, ActionSpec, ObservationSpec

TORQUE = ActionSpec((1,), low=(-2.0,), high=(2.0,))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COLUMNS = [
    *("model", "optimiser", "horizon", "iterations", "candidates", "environments", "precision", "compiled"),
    *("cpu_seconds", "decisions_per_second", "gflop", "gflop_per_second", "peak", "share_of_peak"),
]


class Case(NamedTuple):
    """One row of the table."""

    model: str  # "default", or "200/30": PlaNet's
    optimiser: Any
    horizon: int
    iterations: int
    candidates: int
    environments: int = 1
    precision: Any = "float32"
    compiled: bool = False


def cases() -> Iterator[Case]:
    """PlaNet's search and TD-MPC2's first, then one change at a time to the default."""
    for precision in DTYPES:
        for compiled in (False, True):
            yield Case("200/30", "cem", 12, 10, 1000, 1, precision, compiled)
            yield Case("200/30", "mppi", 3, 6, 512, 1, precision, compiled)
    yield Case("default", "icem", 20, 3, 64)
    yield from (Case("default", "icem", horizon, 3, 64) for horizon in (5, 10, 40))
    yield from (Case("default", "icem", 20, iterations, 64) for iterations in (1, 6))
    yield from (Case("default", "icem", 20, 3, candidates) for candidates in (32, 256, 1024))
    yield from (Case("default", "icem", 20, 3, 64, environments) for environments in (4, 16, 64))
    yield from (Case("default", name, 20, 3, 64) for name in ("cem", "mppi", "random"))


def build(case: Case) -> tuple[Planner, WorldModel]:
    """The planner and an untrained model of that size."""
    torch.manual_seed(0)
    wide = case.model == "200/30"  # and reward alone, as PlaNet
    config = ModelConfig()
    if wide:
        sizes = DynamicsConfig("rssm", rssm=RSSMConfig(deter=200, hidden=200))
        config = ModelConfig(sizes, LatentConfig(size=30), hidden=200, continuation=False)
    size = {"candidates": case.candidates, "iterations": case.iterations}
    planner = Planner(
        PlannerConfig(
            case.optimiser,
            horizon=case.horizon,
            particles=1 if wide else 0,
            precision=case.precision,
            compile=case.compiled,
            cem=CEMConfig(**size, elites=case.candidates // 10),
            icem=ICEMConfig(**size),
            mppi=MPPIConfig(**size, elites=case.candidates // 8),
        ),
        TORQUE,
    )
    return planner, WorldModel.build(config, {OBSERVATION: ObservationSpec((3,))}, TORQUE)


def fastest(work: Callable[[], object], seconds: float = 3.0) -> float:
    """CPU seconds of one call: the best of as many as fit into `seconds`, three at least."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def peak(precision: str, size: int = 1024) -> float:
    """GFLOP/s of a square matrix product."""
    a, b = (torch.randn(size, size).to(DTYPES[precision]) for _ in range(2))
    return 2 * size**3 / fastest(lambda: a @ b, 1.0) / 1e9


def measured(case: Case, peaks: dict[str, float]) -> dict[str, object]:
    """One row."""
    planner, model = build(case)
    state, memory = model.initial(case.environments), planner.initial(case.environments)
    with FlopCounterMode(display=False) as counter:  # sees nothing inside of what is compiled
        build(case._replace(compiled=False))[0].act(model, state, memory, deterministic=True)
    seconds = fastest(lambda: planner.act(model, state, memory, deterministic=True))
    gflop = counter.get_total_flops() / 1e9
    rate, top = gflop / seconds, peaks[case.precision]
    numbers = (seconds, case.environments / seconds, gflop, rate, top)
    return dict(zip(COLUMNS, [*case, *(f"{value:.4g}" for value in numbers), f"{rate / top:.0%}"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    peaks = {precision: peak(precision) for precision in DTYPES}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for case in cases():
            row = measured(case, peaks)
            table.writerow(row)
            print("  ".join(f"{value!s:>9}" for value in row.values()), flush=True)


if __name__ == "__main__":
    with room_for_tensors():  # as `worldmodel train` does
        main()
