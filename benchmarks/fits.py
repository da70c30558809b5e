"""Fits that a benchmark makes once: read back where the folder holds a finished one with the very same config."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from worldmodel.training import fit
from worldmodel.training.config.fit_config import load_fit_config
from worldmodel.training.fitting.fit_run import RESULTS_FILE, FitRun


def fitted(config: str, data: str | Path, overrides: Sequence[str], folder: Path, seed: int = 0) -> FitRun:
    """`worldmodel fit CONFIG DATA`, made anew unless it is there."""
    if (folder / RESULTS_FILE).is_file():
        wanted = load_fit_config(config, overrides, seed=seed, data={"file": str(data)})
        if load_fit_config(folder / "config.yaml") == wanted:
            return FitRun.load(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return fit(config, data, overrides, run=folder, seed=seed)


def seconds(run: FitRun) -> int:
    """How long it took."""
    return round(json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])["seconds"])
