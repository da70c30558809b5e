"""A fit and its folder, which holds `config.yaml  metrics.jsonl  results.json  checkpoint/  wandb/`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from worldmodel.learning.objective import check_objective
from worldmodel.model import WorldModel
from worldmodel.networks.outputs import Normalizer
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

MODEL_PATH, SPECS_PATH = "checkpoint/model.safetensors", "checkpoint/specs.json"  # in the folder of a fit
RESULTS_FILE = "results.json"


class FitRun:
    """The parts of one fit, new or loaded: `config`, `model`, `obs_specs`, `normalizer` of the controls, `results`.

    Args:
        normalizer: the normalizer of the controls after the subtraction of `control_offset`; see
            :class:`worldmodel.training.data.dataset.Dataset`.
    Raises:
        ValueError: if the device cannot be used, or the objective has a weight for an output that the model lacks.
    """

    def __init__(
        self,
        folder: Path,
        config: FitConfig,
        obs_specs: ObservationSpecs,
        normalizer: Normalizer,
        control_offset: Sequence[float] = (),
    ) -> None:
        self.folder, self.config, self.obs_specs, self.normalizer = folder, config, obs_specs, normalizer
        self.control_offset = tuple(control_offset)
        check_device(config.fit.device, "fit.device")
        self.decided = decide(config)
        control = ActionSpec((len(normalizer.loc),))
        outlined(lambda: WorldModel.build(config.model, obs_specs, control, heads=config.data.rewards), "the model")
        torch.manual_seed(config.seed)
        model = WorldModel.build(config.model, obs_specs, control, heads=config.data.rewards)
        self.model = model.to(config.fit.device)
        check_objective(self.model, config.objective)
        self.results: dict[str, dict[str, float]] = {}  # the content of results.json; empty before the end

    def begin(self) -> None:
        """Claim the folder and write config and specs, which are needed to load weights that are saved later.

        Raises:
            ValueError: if another run has claimed the folder in the meantime.
        """
        claim(self.folder, self.config)
        specs = {
            "observations": {key: asdict(spec) for key, spec in self.obs_specs.items()},
            "control": {
                "loc": self.normalizer.loc.tolist(),
                "scale": self.normalizer.scale.tolist(),
                "offset": list(self.control_offset),
            },
        }
        write_text_atomic(self.folder / SPECS_PATH, json.dumps(specs, indent=1) + "\n")

    @staticmethod
    def load(folder: str | Path, device: str | None = None) -> "FitRun":
        """Load a finished or interrupted fit with its best weights. The random state of torch does not change.

        Args:
            device: the device to load it on; by default the one it was made on.
        Raises:
            ValueError: if the folder holds no fit, or a file in it does not fit its config.
        """
        folder = Path(folder)
        config = read_config(folder, saved_config(folder, "fit"), lambda saved: load_fit_config(renamed(saved)))
        config.fit.device = device or config.fit.device
        missing = [name for name in (SPECS_PATH, MODEL_PATH) if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{folder} holds no complete fit: {', '.join(missing)} is missing. The fit stopped too early, or files "
                "were removed."
            )
        with torch.random.fork_rng():
            run = FitRun(folder, config, *_specs(folder / SPECS_PATH))
        load_module(folder / MODEL_PATH, run.model)
        if (folder / RESULTS_FILE).is_file():
            try:
                run.results = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{folder / RESULTS_FILE} cannot be read as the scores of a fit: {error}.") from error
        return run

    @property
    def summary(self) -> str:
        """Return a line that describes the fit: its data, model and device."""
        model, fit = self.config.model, self.config.fit
        size = sum(parameter.numel() for parameter in self.model.parameters())
        what = f"{model.dynamics.name} with {model.latent.family} latents, {size:,} parameters"
        inputs = f"{len(self.normalizer.loc)} control(s)" if len(self.normalizer.loc) else "no controls"
        return f"{self.config.data.file}: {what}, {inputs}, {fit.device}, {fit.threads} torch thread(s)"

    def read(self, file: str | None = None, **source: Any) -> Dataset:
        """Read sequences of another file, or other columns, with the controls normalized as in this fit.

            run.read("tanks.csv", observations=["yVal"], controls=["uVal"])

        Raises:
            ValueError: for the reasons given at :func:`worldmodel.training.data.dataset_io.read`.
        """
        config = {**vars(self.config.data), **source, "file": file or self.config.data.file}
        found = matching(
            read(DataConfig(**config)), self.obs_specs, len(self.normalizer.loc), "data.file", self.control_offset
        )
        if self.config.data.rewards and not found.from_env:
            raise ValueError(f"{found.names[0]} has no rewards, but this model predicts them. Give a recording.")
        return found.normalized(self.normalizer)

    def states(self, names: Sequence[str], file: str | None, part: str) -> Dataset:
        """Read other columns or arrays, with the same rows as the observations of the fit.

        Args:
            names: the columns or arrays.
            file: the file to read; None for the data of this fit.
            part: the part of the data of this fit.
        Raises:
            ValueError: for the reasons given at :func:`worldmodel.training.data.dataset_io.read`.
        """
        config, own = self.config.data, getattr(self.config.data, part)
        if file is not None:
            return read(replace(config, file=file, observations=list(names)))
        if own is not None:
            return read(replace(config.source(part), observations=list(names)))
        return divided(read(replace(config, observations=list(names))), config)[part]

    def parts(self) -> dict[str, Dataset]:
        """Read the training, validation and test data again, with the controls normalized as in this fit.

        Raises:
            ValueError: if the files are missing or have changed.
        """
        return {name: part.normalized(self.normalizer) for name, part in read_parts(self.config.data).items()}

    def save_model(self) -> None:
        """Replace the saved weights by the current ones, in one step."""
        save_module(self.folder / MODEL_PATH, self.model)

    def score(self, dataset: Dataset, samples: int = 0) -> Score:
        """Score the model on whole sequences with normalized controls; see
        :func:`worldmodel.training.fitting.scores.score`."""
        return score(self.model, dataset, self.config.fit.device, samples, self.config.objective)

    def finish(self, parts: Mapping[str, Dataset]) -> None:
        """Load the saved weights, which are the best, and write the table of their scores."""
        load_module(self.folder / MODEL_PATH, self.model)
        samples = self.config.fit.samples
        self.results = as_results({part: self.score(dataset, samples) for part, dataset in parts.items()})
        write_text_atomic(self.folder / RESULTS_FILE, json.dumps(self.results, indent=1) + "\n")


def is_fit(folder: str | Path) -> bool:
    """Return whether a folder is that of a fit."""
    return (Path(folder) / SPECS_PATH).is_file()


def _specs(file: Path) -> tuple[ObservationSpecs, Normalizer, list[float]]:
    """Read the observation specs, the normalizer of the controls and the offset of the controls."""
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        observations = {key: _spec(key, spec) for key, spec in saved["observations"].items()}
        loc, scale = (torch.tensor(saved["control"][name], dtype=torch.float32) for name in ("loc", "scale"))
        offset = _numbers(saved["control"].get("offset", []), len(loc))
        if not observations or loc.ndim != 1 or loc.shape != scale.shape or not (scale > 0).all():
            raise ValueError(f"{len(observations)} observations, loc {loc.tolist()}, scale {scale.tolist()}")
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as the specs of a fit: {error!r}") from error
    normalizer = Normalizer(len(loc))
    normalizer.change(loc, scale)
    return observations, normalizer, offset


def _numbers(saved: Any, count: int) -> list[float]:
    """Check that a list has `count` finite numbers, or none, and return it as floats."""
    if not isinstance(saved, list) or len(saved) not in (0, count) or not all(map(math.isfinite, saved)):
        raise ValueError(f"{saved} does not hold {count} finite numbers")
    return [float(number) for number in saved]


def _spec(key: str, saved: Mapping[str, Any]) -> ObservationSpec:
    """Build the spec of one observation from its saved form.

    Raises:
        ValueError: if the saved values do not form a valid spec.
    """
    shape, classes, start, image = (saved[name] for name in ("shape", "classes", "start", "image"))
    for numbers, least in ((shape, 1), (classes, 1), (start, -(2**63))):
        if not all(type(number) is int and least <= number < 2**63 for number in numbers):
            raise ValueError(f"'{key}' is {saved}")
    if type(image) is not bool or (image and (len(shape) != 3 or classes)) or len(start) != len(classes):
        raise ValueError(f"'{key}' is {saved}")
    spec = ObservationSpec(tuple(shape), tuple(classes), tuple(start), image)
    names = saved.get("names", [])  # the first fits were saved without names and offset
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"'{key}' is {saved}")
    return replace(spec, names=tuple(names), offset=tuple(_numbers(saved.get("offset", []), spec.width)))
