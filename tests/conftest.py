"""One thread, small world models of every member, and random windows for them."""

from collections.abc import Callable

import pytest
import torch

from worldmodel.distributions import LatentConfig
from worldmodel.dynamics import DynamicsConfig
from worldmodel.dynamics.dkf import DKFConfig
from worldmodel.dynamics.rssm import RSSMConfig
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.spaces import ActionSpec, ObservationSpec
from worldmodel.types import Batch

torch.set_num_threads(1)  # small tensors, and other processes share the machine

OBS = {"x": ObservationSpec((2,)), "phase": ObservationSpec((), classes=(3,), start=(0,))}
ACTION = ActionSpec((2,), low=(-1.0, -1.0), high=(1.0, 1.0))
MEMBERS = ("rssm", "dkf filter", "dkf smoother")
FAMILIES = ("gaussian", "onehot")


def build(member: str, family: str = "gaussian", size: int = 4, seed: int = 0) -> WorldModel:
    """A small untrained world model of two observation keys, all its parameters away from zero."""
    name, _, posterior = member.partition(" ")
    width = 2 * size
    dynamics = DynamicsConfig(name, RSSMConfig(width, width), DKFConfig(width, posterior or "filter"))
    latent = LatentConfig(family, size=size, groups=size, classes=3)
    torch.manual_seed(seed)
    model = WorldModel.build(ModelConfig(dynamics, latent, hidden=2 * width), OBS, ACTION)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def window(batch_size: int, length: int, seed: int = 0) -> Batch:
    """Random arrivals (B, T) of one episode that has begun before the window."""
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


@pytest.fixture(params=MEMBERS)
def member(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(name="build")
def build_fixture() -> Callable[..., WorldModel]:
    return build


@pytest.fixture(name="window")
def window_fixture() -> Callable[..., Batch]:
    return window


@pytest.fixture(name="without_noise")
def without_noise_fixture() -> Callable[[WorldModel], WorldModel]:
    return without_noise
