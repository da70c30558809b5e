"""The folder of a fit and what lives in it: `config.yaml  metrics.jsonl  results.json  checkpoint/  wandb/`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from worldmodel.learning.objective import check_objective
from worldmodel.model import WorldModel
from worldmodel.networks.outputs import Standardise
from worldmodel.specs import ActionSpec, ObservationSpec, ObservationSpecs
from worldmodel.training.config.compilation import decide
from worldmodel.training.config.data_config import DataConfig
from worldmodel.training.config.fit_config import FitConfig, load_fit_config, renamed
from worldmodel.training.data.dataset import Dataset, matching
from worldmodel.training.data.dataset_io import divided, read, read_parts
from worldmodel.training.fitting.scores import Score, as_results, score
from worldmodel.training.run.errors import check_device
from worldmodel.training.run.folder import claim, read_config, saved_config
from worldmodel.training.run.weights import load_module, save_module, write_text_atomic
from worldmodel.validation import outlined

MODEL, SPECS, RESULTS = "checkpoint/model.safetensors", "checkpoint/specs.json", "results.json"


class FitRun:
    """The parts of one fit, new or read back: `config`, `model`, `obs_specs`, `units` of the controls, `results`.

    Args:
        units: of the controls, less `control_offset`; see :class:`worldmodel.training.data.dataset.Dataset`.
    Raises:
        ValueError: if the device cannot be used, or the objective weighs what the model does not emit.
    """

    def __init__(
        self,
        folder: Path,
        config: FitConfig,
        obs_specs: ObservationSpecs,
        units: Standardise,
        control_offset: Sequence[float] = (),
    ) -> None:
        self.folder, self.config, self.obs_specs, self.units = folder, config, obs_specs, units
        self.control_offset = tuple(control_offset)
        check_device(config.fit.device, "fit.device")
        self.decided = decide(config)
        control = ActionSpec((len(units.loc),))
        outlined(lambda: WorldModel.build(config.model, obs_specs, control, heads=config.data.rewards), "the model")
        torch.manual_seed(config.seed)
        model = WorldModel.build(config.model, obs_specs, control, heads=config.data.rewards)
        self.model = model.to(config.fit.device)
        check_objective(self.model, config.objective)
        self.results: dict[str, dict[str, float]] = {}  # what results.json holds; empty before the end

    def begin(self) -> None:
        """Claim the folder: config and specs, so that weights saved at any time later can be read back.

        Raises:
            ValueError: if another run claimed it in the meantime.
        """
        claim(self.folder, self.config)
        specs = {
            "observations": {key: asdict(spec) for key, spec in self.obs_specs.items()},
            "control": {
                "loc": self.units.loc.tolist(),
                "scale": self.units.scale.tolist(),
                "offset": list(self.control_offset),
            },
        }
        write_text_atomic(self.folder / SPECS, json.dumps(specs, indent=1) + "\n")

    @staticmethod
    def load(folder: str | Path, device: str | None = None) -> "FitRun":
        """Open a finished or interrupted fit with its best weights, on the device it was made on or on another.

        The random state of torch is left as it was.

        Raises:
            ValueError: if the folder holds no fit, or a file in it does not fit its config.
        """
        folder = Path(folder)
        config = read_config(folder, saved_config(folder, "fit"), lambda saved: load_fit_config(renamed(saved)))
        config.fit.device = device or config.fit.device
        missing = [name for name in (SPECS, MODEL) if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder} holds no complete fit, {', '.join(missing)} missing: it stopped too early")
        with torch.random.fork_rng():
            run = FitRun(folder, config, *_specs(folder / SPECS))
        load_module(folder / MODEL, run.model)
        if (folder / RESULTS).is_file():
            try:
                run.results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{folder / RESULTS} cannot be read as the scores of a fit: {error}") from error
        return run

    @property
    def summary(self) -> str:
        """One line for a person: what is fitted."""
        model, fit = self.config.model, self.config.fit
        size = sum(parameter.numel() for parameter in self.model.parameters())
        what = f"{model.dynamics.name} with {model.latent.family} latents, {size:,} parameters"
        inputs = f"{len(self.units.loc)} control(s)" if len(self.units.loc) else "no controls"
        return f"{self.config.data.file}: {what}, {inputs}, {fit.device}, {fit.threads} torch thread(s)"

    def read(self, file: str | None = None, **source: Any) -> Dataset:
        """Sequences of another file, or other columns, in the units of this fit.

            run.read("tanks.csv", observations=["yVal"], controls=["uVal"])

        Raises:
            ValueError: as :func:`worldmodel.training.data.dataset_io.read` says.
        """
        config = {**vars(self.config.data), **source, "file": file or self.config.data.file}
        found = matching(
            read(DataConfig(**config)), self.obs_specs, len(self.units.loc), "data.file", self.control_offset
        )
        if self.config.data.rewards and not found.from_env:
            raise ValueError(f"{found.names[0]} holds no rewards, which this model explains: give a recording")
        return found.in_units(self.units)

    def states(self, names: Sequence[str], file: str | None, part: str) -> Dataset:
        """Other columns or arrays of a file, or of a part of this fit's own data, row by row beside what it observes.

        Raises:
            ValueError: as :func:`worldmodel.training.data.dataset_io.read` says.
        """
        config, own = self.config.data, getattr(self.config.data, part)
        if file is not None:
            return read(replace(config, file=file, observations=list(names)))
        if own is not None:
            return read(replace(config.source(part), observations=list(names)))
        return divided(read(replace(config, observations=list(names))), config)[part]

    def parts(self) -> dict[str, Dataset]:
        """The training, validation and test data again, in the units of this fit.

        Raises:
            ValueError: if the files are gone, or have changed.
        """
        return {name: part.in_units(self.units) for name, part in read_parts(self.config.data).items()}

    def save_model(self) -> None:
        """Replace the saved weights by the present ones, in one step."""
        save_module(self.folder / MODEL, self.model)

    def score(self, dataset: Dataset, samples: int = 0) -> Score:
        """How well the model explains whole sequences in the units of this fit; see
        :func:`worldmodel.training.fitting.scores.score`."""
        return score(self.model, dataset, self.config.fit.device, samples, self.config.objective)

    def finish(self, parts: Mapping[str, Dataset]) -> None:
        """Go back to the saved weights, the best, and write the table of their scores."""
        load_module(self.folder / MODEL, self.model)
        samples = self.config.fit.samples
        self.results = as_results({part: self.score(dataset, samples) for part, dataset in parts.items()})
        write_text_atomic(self.folder / RESULTS, json.dumps(self.results, indent=1) + "\n")


def is_fit(folder: str | Path) -> bool:
    """Whether a folder is that of a `fit`."""
    return (Path(folder) / SPECS).is_file()


def _specs(file: Path) -> tuple[ObservationSpecs, Standardise, list[float]]:
    """Observation specs, and the units and the offset of controls."""
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        observations = {key: _spec(key, spec) for key, spec in saved["observations"].items()}
        loc, scale = (torch.tensor(saved["control"][name], dtype=torch.float32) for name in ("loc", "scale"))
        offset = _numbers(saved["control"].get("offset", []), len(loc))
        if not observations or loc.ndim != 1 or loc.shape != scale.shape or not (scale > 0).all():
            raise ValueError(f"{len(observations)} observations, and units {loc.tolist()}, {scale.tolist()}")
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as the specs of a fit: {error!r}") from error
    units = Standardise(len(loc))
    units.change(loc, scale)
    return observations, units, offset


def _numbers(saved: Any, count: int) -> list[float]:
    """So many finite numbers, or none."""
    if not isinstance(saved, list) or len(saved) not in (0, count) or not all(map(math.isfinite, saved)):
        raise ValueError(f"{saved} is not {count} numbers")
    return [float(number) for number in saved]


def _spec(key: str, saved: Mapping[str, Any]) -> ObservationSpec:
    """One observation as a file describes it.

    Raises:
        ValueError: if it says what none can be.
    """
    shape, classes, start, image = (saved[name] for name in ("shape", "classes", "start", "image"))
    for numbers, least in ((shape, 1), (classes, 1), (start, -(2**63))):
        if not all(type(number) is int and least <= number < 2**63 for number in numbers):
            raise ValueError(f"'{key}' is {saved}")
    if type(image) is not bool or (image and (len(shape) != 3 or classes)) or len(start) != len(classes):
        raise ValueError(f"'{key}' is {saved}")
    spec = ObservationSpec(tuple(shape), tuple(classes), tuple(start), image)
    names = saved.get("names", [])  # and the offset: newer than the first fits
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"'{key}' is {saved}")
    return replace(spec, names=tuple(names), offset=tuple(_numbers(saved.get("offset", []), spec.width)))
