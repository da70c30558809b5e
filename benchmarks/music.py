"""Polyphonic music: test bounds of members of the family, in the three units that are in use.

    python benchmarks/music.py JSB_CHORALES.json --out results/music.csv

The JSON (a dictionary of train, valid and test; sequences of frames of MIDI notes, 21 to 108) becomes binary keys, one
frame per quarter note; each model is one `worldmodel fit configs/music.yaml` on it. Negative, in nats per frame:
importance-sampled, (bound, total over total frames), {bound, mean over sequences}. Published for JSB chorales: DMM
smoothing 6.388 (6.926) {6.856}, causal 7.020 (7.519) (Krishnan et al. 2017); VRNN trained with FIVO 7.04.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from training import fit
from training.fit_run import FitRun

FIVO = ("--objective.bound", "fivo", "--objective.anneal", "0", "--objective.particles", "4")
VARIANTS = {
    "dkf-smoother": (),
    "dkf-filter": ("--model.dynamics.dkf.posterior", "filter"),
    "vrnn-fivo": ("--model.dynamics.name", "vrnn", *FIVO),
    "rssm-fivo": ("--model.dynamics.name", "rssm", *FIVO),
}
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
    """The fit of a variant, read back if it is finished."""
    if (folder / "results.json").is_file():
        return FitRun.load(folder)
    parts = ["--data.validation", files["valid"], "--data.test", files["test"], "--fit.samples", "500"]
    return fit("configs/music.yaml", files["train"], [*parts, *VARIANTS[variant], *overrides], run=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the JSON")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--runs", type=Path, default=Path("runs/music"), help="where the run folders go")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options, overrides = parser.parse_known_args()
    files = convert(options.data, options.runs / "data")
    columns = ["variant", "part", "importance_sampled", "bound", "bound_by_sequence", "seconds"]
    table = []
    for variant in options.variants:
        run = made(variant, files, options.runs / variant, overrides)
        seconds = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
        for part, found in run.results.items():
            nats = [f"{-found[name]:.4f}" for name in ("log_likelihood", "elbo", "elbo_by_sequence")]
            table.append([variant, part, *nats, f"{seconds:.0f}"])
            print(f"{variant:<14} {part:<11} {nats[0]} ({nats[1]}) {{{nats[2]}}}  {seconds:.0f} s", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *table])


if __name__ == "__main__":
    main()
