"""One thread, small world models of every member, random windows for them, and what makes two runs the same."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldmodel.dynamics import DynamicsConfig
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.networks.latents import LatentConfig
from worldmodel.networks.layers import LayerConfig
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.types import Batch

torch.set_num_threads(1)  # small tensors, and other processes share the machine

OBS = {"x": ObservationSpec((2,)), "phase": ObservationSpec((), classes=(3,), start=(0,))}
ACTION = ActionSpec((2,), low=(-1.0, -1.0), high=(1.0, 1.0))
IMAGINING = (
    *("dkf filter", "dkf smoother", "dvbf filter", "dvbf smoother", "kvae", "storn", "vrnn"),
    *("rssm", "rssm blocks", "rssm plain"),
    *("rvae filter", "rvae smoother", "srnn filter", "srnn smoother", "srnn filter feedback", "srnn smoother feedback"),
    "dsae",
)  # name, and what is not its default
MEMBERS = (*IMAGINING, "vae")
FILTERING = tuple(member for member in MEMBERS if "smoother" not in member and member != "dsae")
FAMILIES = ("gaussian", "onehot")
KINDS = {"imagining": IMAGINING, "filtering": FILTERING}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `member` every member, or those that `@pytest.mark.members("imagining")` or "not imagining" names."""
    marks = list(metafunc.definition.iter_markers())
    given = any(mark.name == "parametrize" and "member" in mark.args[0] for mark in marks)
    if "member" in metafunc.fixturenames and not given:
        kind = next((mark.args[0] for mark in marks if mark.name == "members"), "")
        able = KINDS.get(kind.removeprefix("not "), MEMBERS)
        chosen = [member for member in MEMBERS if (member in able) != kind.startswith("not ")]
        metafunc.parametrize("member", chosen)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No test of a pair that does not exist: a Kalman filter with discrete latents."""
    cases = [(item, getattr(item, "callspec", None)) for item in items]
    items[:] = [item for item, case in cases if not (case and {"kvae", "onehot"} <= _values(case.params))]


def _values(params: dict[str, object]) -> set[object]:
    return {value for value in params.values() if isinstance(value, str)}


def dynamics_config(member: str, size: int) -> DynamicsConfig:
    """The section of `member` in small sizes: "srnn smoother feedback"."""
    name, *choices = member.split()
    config = DynamicsConfig(name)
    section = getattr(config, name)
    sizes = {"deter": 2 * size, "hidden": 2 * size, "size": size, "static": size, "matrices": 2}
    for key, value in sizes.items():
        if hasattr(section, key):
            setattr(section, key, value)
    for choice in choices:
        if choice == "feedback":
            section.feedback = True
        elif choice in ("blocks", "plain"):
            section.cell, section.blocks = choice, 2
            section.layer = LayerConfig("rms") if choice == "blocks" else LayerConfig("none", "elu")
        else:
            section.posterior = choice
    return config


def build(member: str, family: str = "gaussian", size: int = 4, seed: int = 0) -> WorldModel:
    """A small untrained world model of two observation keys, all its parameters away from zero."""
    dynamics = dynamics_config(member, size)
    latent = LatentConfig(family, size=size, groups=size, classes=3)
    torch.manual_seed(seed)
    model = WorldModel.build(ModelConfig(dynamics, latent, hidden=4 * size), OBS, ACTION)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def window(batch_size: int, length: int, seed: int = 0) -> Batch:
    """Random time steps (B, T) of one episode that has begun before the window."""
    random = torch.Generator().manual_seed(seed)
    obs = {
        "x": torch.randn(batch_size, length, 2, generator=random),
        "phase": torch.randint(3, (batch_size, length, 1), generator=random),
    }
    control = torch.rand(batch_size, length, 2, generator=random) * 2 - 1
    reward = torch.randn(batch_size, length, generator=random)
    never = torch.zeros(batch_size, length, dtype=torch.bool)
    return Batch(obs, control, reward, never, never.clone(), never.clone(), torch.ones(batch_size, length))


def without_noise(model: WorldModel) -> WorldModel:
    """The model with every latent sample replaced by the mode, so that what it infers is a function of its input."""
    model.dynamics.latent.sample = model.dynamics.latent.mode  # type: ignore[method-assign]
    return model


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def members() -> tuple[str, ...]:
    """All that `member` goes through."""
    return MEMBERS


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of an environment that fails on request, where other processes find it too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "broken"))
    return importlib.import_module("failing")


@pytest.fixture(name="build")
def build_fixture() -> Callable[..., WorldModel]:
    return build


@pytest.fixture(name="window")
def window_fixture() -> Callable[..., Batch]:
    return window


@pytest.fixture(name="without_noise")
def without_noise_fixture() -> Callable[[WorldModel], WorldModel]:
    return without_noise


CLOCKS = ("seconds", "time/fps", "time_elapsed")  # end the names of what a clock says


def _outcome(folder: Path) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Metrics but for what a clock says; weights, and everything recorded."""
    from worldmodel.training import Run

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(line).items() if not k.endswith(CLOCKS)} for line in lines]
    run = Run.load(folder)
    recorded = run.replay.everything()
    tensors = {**run.model.state_dict(), **{f"behaviour/{k}": v for k, v in run.behaviour.state_dict().items()}}
    tensors |= {f"obs/{k}": v for k, v in recorded.obs.items()}
    tensors |= {name: value for name, value in recorded._asdict().items() if isinstance(value, torch.Tensor)}
    return metrics, {name: value.numpy() for name, value in tensors.items()}


@pytest.fixture
def assert_same_run() -> Callable[[Path, Path], None]:
    """Of two run folders: the same metrics, weights and rows, bit for bit."""

    def check(one: Path, other: Path) -> None:
        (metrics, arrays), (metrics2, arrays2) = _outcome(one), _outcome(other)
        assert metrics == metrics2 and arrays.keys() == arrays2.keys()
        for name, value in arrays.items():
            np.testing.assert_array_equal(value, arrays2[name], err_msg=name)

    return check
