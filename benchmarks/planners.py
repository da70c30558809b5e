"""One planner on every member that can imagine, and every optimiser on each: returns on `Pendulum-v1`.

    python benchmarks/planners.py --seeds 1-3 --out results/planners.csv

Each member learns while iCEM plans with it: `worldmodel train configs/planet_pendulum.yaml`, its name changed, for
2,000 steps. Then every optimiser plans with what it has learned: 192 plans of 20 steps, of which iCEM's population,
which shrinks, needs 161.
The first rows are planned with the true dynamics: what the search is worth without a model's errors. Rows that the CSV
has are not made again.
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

from learning import Curve, make, seed_range

from worldmodel.agents import Agent, Planner, PlannerConfig
from worldmodel.agents.planning.search import CEMConfig, ICEMConfig, MPPIConfig, RandomShootingConfig
from worldmodel.envs import EnvConfig, action_spec, observation_specs
from worldmodel.envs import make as make_env
from worldmodel.envs.testing.exact import ExactPendulum
from worldmodel.training.evaluation.evaluation import evaluate
from worldmodel.training.run.run import FINAL_STREAM, Run

MEMBERS = ("rssm", "dkf", "dvbf", "srnn", "rvae", "storn", "vrnn", "kvae")
OPTIMISERS = ("icem", "mppi", "cem", "random")
STEPS, EXACT = 2000, "true dynamics"
COLUMNS = ["member", "optimiser", "seed", "env_steps", "frames", "return", "std", "episodes"]
BUDGET = PlannerConfig(
    horizon=20,
    icem=ICEMConfig(iterations=3, candidates=64),
    mppi=MPPIConfig(iterations=3, candidates=64, elites=10),
    cem=CEMConfig(iterations=3, candidates=64, elites=10, warm_start=True),
    random=RandomShootingConfig(192),
)


def curve(member: str) -> Curve:
    """The training of a member."""
    rarely = ("--evaluation.every", "1000000", "--evaluation.final_episodes", "1", "--logger.wandb", "disabled")
    changes = ("--model.dynamics.name", member, "--training.steps", str(STEPS), *rarely)
    return Curve("Pendulum-v1", f"{member}-planned", "configs/planet_pendulum.yaml", changes, -200, (0, -200))


def exact() -> Agent:
    """An agent that knows the equations."""
    env = make_env(EnvConfig())
    specs, control = observation_specs(env.observation_space), action_spec(env.action_space)
    return Agent(ExactPendulum(), Planner(BUDGET, control), specs, control)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_range, default=range(1, 4), help="FIRST-LAST (default: 1-3)")
    parser.add_argument("--members", nargs="*", choices=MEMBERS, default=list(MEMBERS))
    parser.add_argument("--episodes", type=int, default=10, help="of each evaluation (default: 10)")
    parser.add_argument("--runs", type=Path, default=Path("runs/planners"), help="where the run folders go")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader(options.out.open())) if options.out.is_file() else []
    done = {(row["member"], row["optimiser"], int(row["seed"])) for row in rows}
    cells = [(EXACT, 0), *((member, seed) for seed in options.seeds for member in options.members)]
    for member, seed in cells:
        wanted = [name for name in OPTIMISERS if (member, name, seed) not in done]
        if not wanted or (member != EXACT and not make(curve(member), seed, options.runs.resolve())):
            continue
        agent = exact() if member == EXACT else Run.load(curve(member).folder(options.runs, seed)).agent
        for name in wanted:
            behaviour = Planner(replace(BUDGET, optimizer=name), agent.action_spec)
            planning = Agent(agent.model, behaviour, agent.obs_specs, agent.action_spec)
            found = evaluate(planning, EnvConfig(), options.episodes, FINAL_STREAM)
            steps = 0 if member == EXACT else STEPS
            values = [member, name, seed, steps, steps, f"{found.mean:.1f}", f"{found.std:.1f}", options.episodes]
            rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
            with options.out.open("w", newline="") as file:
                table = csv.DictWriter(file, COLUMNS)
                table.writeheader()
                table.writerows(rows)
            print(" ".join(f"{value:>14}" for value in rows[-1].values()), flush=True)


if __name__ == "__main__":
    main()
