"""Polyphonic music: test bounds of members of the family, in the three units that are in use.

    python benchmarks/music.py JSB_CHORALES.json --out results/music.csv

The JSON (a dictionary of train, valid and test; sequences of frames of MIDI notes, 21 to 108) becomes binary keys, one
frame per quarter note; each model is one `worldmodel fit configs/music.yaml` on it. Negative, in nats per frame:
importance-sampled, (bound, total over total frames), {bound, mean over sequences}, and FIVO where that was trained.
Published for JSB chorales: DMM smoothing 6.388 (6.926) {6.856}, causal 7.020 (7.519) (Krishnan et al. 2017); VRNN
trained with FIVO 7.04.
"""

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fits import fitted, seconds

from worldmodel.training.fitting.fit_run import FitRun
from worldmodel.training.fitting.scores import score

FIVO = ("--objective.bound", "fivo", "--objective.particles", "4")
# A wide deterministic memory learns the chorales by heart within a thousand updates: this one is narrow.
SIZES = ("--model.dynamics.rssm.deter", "16", "--model.dynamics.rssm.hidden", "100")
RSSM = ("--model.dynamics.name", "rssm", *SIZES, "--learner.weight_decay", "0.3", "--fit.updates", "6000")
VARIANTS = {
    "dkf-smoother": (),
    "dkf-filter": ("--model.dynamics.dkf.posterior", "filter"),
    "rssm-fivo": (*RSSM, *FIVO),
}
SAMPLES, PARTICLES = 500, 128  # of the importance-sampled figure, and of FIVO at test (Maddison et al. 2017)
COLUMNS = [
    *("variant", "part", "importance_sampled", "bound", "bound_by_sequence"),
    *("as_trained", "fivo_128", "updates", "seconds"),
]
LOWEST, KEYS = 21, 88  # MIDI note of the first key of a piano, and their number


def convert(source: Path, folder: Path) -> dict[str, str]:
    """Write one .npz of keys (frames, 88) and lengths for each part; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for part, sequences in json.loads(source.read_text()).items():
        keys = np.zeros((sum(map(len, sequences)), KEYS), bool)
        frames = [frame for sequence in sequences for frame in sequence]
        for row, notes in enumerate(frames):
            keys[row, [note - LOWEST for note in notes]] = True
        file = folder / f"{part}.npz"
        np.savez_compressed(file, keys=keys, lengths=[len(sequence) for sequence in sequences])
        files[part] = str(file)
    return files


def made(variant: str, files: dict[str, str], folder: Path, overrides: list[str]) -> FitRun:
    """The fit of a variant."""
    parts = ["--data.validation", files["valid"], "--data.test", files["test"]]
    return fitted("configs/music.yaml", files["train"], [*parts, *VARIANTS[variant], *overrides], folder)


def measured(variant: str, run: FitRun, part: str) -> dict[str, str | int]:
    """One row of the table: negative, in nats per frame."""
    found = score(run.model, run.parts()[part], "cpu", SAMPLES, replace(run.config.objective, particles=PARTICLES))
    trained = run.results[part].get("bound")  # FIVO with the particles it was trained with
    nats = (found.log_likelihood, found.elbo, found.elbo_by_sequence, trained, found.bound)
    numbers = ["" if value is None else f"{-value:.4f}" for value in nats]
    return dict(zip(COLUMNS, [variant, part, *numbers, run.config.fit.updates, seconds(run)], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the JSON")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--runs", type=Path, default=Path("runs/music"), help="where the run folders go")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    files = convert(options.data, options.runs / "data")
    table = []
    for variant in options.variants:
        run = made(variant, files, options.runs / variant, overrides)
        for part in ("validation", "test"):
            table.append(measured(variant, run, part))
            _, _, sampled, bound, by_sequence, fivo, updates, took = table[-1].values()
            fivo = f" FIVO_{PARTICLES} {fivo}" if fivo else ""
            line = f"{variant:<14} {part:<11} {sampled} ({bound}) {{{by_sequence}}}{fivo}"
            print(f"{line}  {updates} updates, {took} s", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
