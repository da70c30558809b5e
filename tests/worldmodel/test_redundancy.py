"""Images without a decoder: the redundancy against NumPy, where its gradient goes, what is learned from it alone."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.diagnostics.probe import probe
from worldmodel.learning.objective import ObjectiveConfig, check_objective, objective
from worldmodel.learning.redundancy import redundancy
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.types import Batch

ACTION = ActionSpec((1,), low=(-1.0,), high=(1.0,))
EYE = {"eye": ObservationSpec((16, 16, 1), image=True)}
BESIDE = {**EYE, "x": ObservationSpec((2,)), "map": ObservationSpec((32, 32, 3), image=True)}
ALONE = {"weights": {"reward": 0.0, "continue": 0.0}}  # nothing but images is learned from


def orthogonal(count: int, width: int) -> Tensor:
    """(count, width): columns of mean 0 that have nothing to do with each other."""
    ones = torch.ones(count, 1, dtype=torch.float64)
    return torch.linalg.qr(torch.cat([ones, torch.randn(count, width, dtype=torch.float64)], 1)).Q[:, 1:]


def moving(count: int, steps: int, seed: int = 0) -> tuple[Batch, Tensor]:
    """Windows of a bright square on a noisy ground that goes where the control pushes it, and where it is (B, T, 2)."""
    random = torch.Generator().manual_seed(seed)
    control = torch.rand(count, steps, 1, generator=random) * 2 - 1
    begin = 10 * torch.rand(count, 1, 1, generator=random)
    along = (begin + 3 * control.cumsum(1)).remainder(20)
    across = torch.where(along > 10, 20 - along, along)  # there and back
    down = torch.rand(count, 1, 1, generator=random).expand_as(across) * 10
    at = torch.cat([across, down], -1)
    grid = torch.arange(16.0)
    near = [(1.8 - (grid - at[..., i : i + 1] - 2.5).abs()).clamp(0, 1) for i in range(2)]
    image = near[1].unsqueeze(-1) * near[0].unsqueeze(-2)
    image = (200 * image + 20 * torch.rand(image.shape, generator=random)).to(torch.uint8)
    nothing, never = torch.zeros(count, steps), torch.zeros(count, steps, dtype=torch.bool)
    first = never.clone()
    first[:, 0] = True
    return Batch({"eye": image.flatten(2)}, control, nothing, first, never, never, nothing + 1), at


def model_of(specs: dict[str, ObservationSpec] | None = None, **config: Any) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel.build(ModelConfig(hidden=32, image_depth=4, images="redundancy", **config), specs or EYE, ACTION)


def beside(count: int = 3, steps: int = 5) -> Batch:
    """A batch of `BESIDE` whose last step is padding."""
    batch, at = moving(count, steps)
    batch.mask[:, -1], batch.is_first[:, -1] = 0, True
    big = torch.randint(0, 256, (count, steps, 32 * 32 * 3), dtype=torch.uint8)
    return batch._replace(obs={**batch.obs, "x": at, "map": big})


def test_it_is_that_of_numpy() -> None:
    torch.manual_seed(0)
    own, other = torch.randn(4, 6, 5), torch.randn(4, 6, 5)
    other[..., 1] += 2 * own[..., 1]
    correlation = np.corrcoef(own.reshape(-1, 5).T, other.reshape(-1, 5).T)[:5, 5:]
    pairs = correlation[~np.eye(5, dtype=bool)]
    expected = ((1 - np.diag(correlation)) ** 2).sum() + 0.3 * (pairs**2).sum()
    assert float(redundancy(own, other, torch.ones(4, 6), 0.3)) == pytest.approx(expected, rel=1e-5)


def test_it_is_zero_for_the_same_without_redundancy_and_counts_what_is_not() -> None:
    torch.manual_seed(0)
    columns, mask = orthogonal(24, 8).view(4, 6, 8) * 3, torch.ones(4, 6, dtype=torch.float64)
    one, two = columns.split(4, -1)
    assert float(redundancy(one, one, mask, 0.5)) == pytest.approx(0, abs=1e-6)
    assert float(redundancy(one, two, mask, 0.5)) == pytest.approx(4, abs=1e-6)  # nothing to do with each other
    twice = one[..., [0, 1, 2, 2]]
    assert float(redundancy(twice, twice, mask, 0.5)) == pytest.approx(0.5 * 2, abs=1e-6)  # a pair, both ways
    assert float(redundancy(-one, one, mask, 0.5)) == pytest.approx(4 * 4, abs=1e-6)


def test_units_are_of_no_consequence() -> None:
    torch.manual_seed(0)
    own, other, mask = torch.randn(4, 6, 5), torch.randn(4, 6, 5), torch.ones(4, 6)
    scale, offset = torch.tensor([0.1, 1.0, 7.0, 30.0, 0.5]), torch.tensor([5.0, 0.0, -20.0, 1.0, 2.0])
    expected = redundancy(own, other, mask, 0.1)
    torch.testing.assert_close(redundancy(own * scale + offset, other, mask, 0.1), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(redundancy(own, other * scale + offset, mask, 0.1), expected, rtol=1e-4, atol=0)


def test_padding_does_not_count() -> None:
    torch.manual_seed(0)
    own, other, mask = torch.randn(2, 6, 5), torch.randn(2, 6, 5), torch.ones(2, 6)
    mask[1, 2:] = 0
    rows = mask > 0
    expected = redundancy(own[rows].unsqueeze(0), other[rows].unsqueeze(0), torch.ones(1, 8), 0.1)
    own[1, 2:], other[1, 2:] = 1e3, -5.0
    own.requires_grad_()
    found = redundancy(own, other, mask, 0.1)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert own.grad is not None and (own.grad[1, 2:] == 0).all() and own.grad[rows].abs().min() > 0


def test_what_never_changes_agrees_with_nothing_and_breaks_nothing() -> None:
    own, other = torch.randn(4, 6, 3), torch.randn(4, 6, 3)
    other[..., 0], own[..., 0] = 3.0, 2.0
    own.requires_grad_()
    found = redundancy(own, other, torch.ones(4, 6), 0.1)
    found.backward()
    rest = redundancy(own[..., 1:], other[..., 1:], torch.ones(4, 6), 0.1)
    torch.testing.assert_close(found, rest + 1)
    assert own.grad is not None and own.grad.isfinite().all()


def test_it_is_added_once_to_the_mean_of_the_steps_and_not_to_the_elbo() -> None:
    model, batch = model_of(BESIDE), beside()
    model.fit_normalizers(batch)
    config = ObjectiveConfig(free_nats=0, redundancy=0.7, redundancy_pairs=0.01)
    found = objective(model, batch, config)
    assert list(found.elbo.log_likelihood) == ["x", "reward", "continue"]
    assert found.redundancy is not None
    steps = batch.mask.sum()
    expected = -found.elbo.total.sum() / steps + 0.7 * found.redundancy
    torch.testing.assert_close(found.loss.sum() / steps, expected)
    assert (found.loss[:, -1] == 0).all()
    torch.testing.assert_close(found.elbo.total, sum(found.elbo.log_likelihood.values()) - found.elbo.kl)
    both = torch.cat(
        [part(batch.obs[key]) for key, part in zip(BESIDE, model.encoder.entrances, strict=True) if key != "x"], -1
    )
    torch.testing.assert_close(model.observe_images(batch)[1], both)
    projected = model.projector(model.feature(found.inference.states))  # type: ignore[misc]
    torch.testing.assert_close(found.redundancy, redundancy(projected, both, batch.mask, 0.01))


def test_where_the_gradient_goes() -> None:
    """Into all that makes the state of the images, by way of the posterior alone: what it is held against stays put."""
    model, batch = model_of(BESIDE), beside()
    model.fit_normalizers(batch)
    still = ObjectiveConfig(beta=0, redundancy=1.0, weights={**ALONE["weights"], "x": 0.0})
    torch.manual_seed(1)
    found = objective(model, batch, still)
    (found.loss.sum() / batch.mask.sum()).backward()
    moved = {name: float(p.grad.abs().sum()) if p.grad is not None else 0.0 for name, p in model.named_parameters()}
    for part in ("projector", "encoder.entrances.0.net", "encoder.entrances.2.net", "encoder.mlp", "dynamics.core"):
        assert all(value > 0 for name, value in moved.items() if name.startswith(part)), part
    assert all(moved[name] == 0 for name in moved if name.startswith(("decoders", "reward", "cont", "dynamics.prior")))
    convolution = model.encoder.entrances[0].net[0].weight
    torch.manual_seed(1)
    inference, seen = model.observe_images(batch)
    projected = model.projector(model.feature(inference.states))  # type: ignore[misc]
    constant = torch.from_numpy(seen.detach().numpy().copy())
    (expected,) = torch.autograd.grad(redundancy(projected, constant, batch.mask, 5e-4), convolution)
    torch.testing.assert_close(convolution.grad, expected)


def trained(weight: float, updates: int = 60) -> float:
    """The worse R^2 of the two coordinates of a moving object, read off the states of windows not trained on."""
    model = model_of()
    batch, at = moving(100, 8)
    model.fit_normalizers(batch)
    config = ObjectiveConfig(free_nats=5, redundancy=weight, **ALONE)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(updates):
        loss = objective(model, moving(16, 8, 1 + step)[0], config).loss
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    with torch.no_grad():
        feature = model.feature(model.observe(batch).states)
    return float(probe(feature, at, batch.mask).min())


def test_a_state_learns_where_an_object_is_from_nothing_but_agreement() -> None:
    assert trained(ObjectiveConfig.redundancy) > 0.6
    assert trained(0.0) < 0.2


@pytest.mark.parametrize(
    ("config", "specs", "message"),
    [
        ({}, {"x": ObservationSpec((2,))}, r"none of the observations \['x'\] is one.*env\.pixels"),
        ({"dynamics": "vrnn"}, EYE, r"vrnn imagines by looking.*rssm"),
        ({"heads": False}, EYE, "would emit nothing.*build it with heads"),
    ],
)
def test_models_that_cannot_do_without_decoders_are_refused(
    config: dict[str, Any], specs: dict[str, ObservationSpec], message: str
) -> None:
    chosen = ModelConfig(images="redundancy")
    chosen.dynamics.name = config.get("dynamics", "rssm")
    with pytest.raises(ValueError, match=message):
        WorldModel.build(chosen, specs, ACTION, config.get("heads", True))


def test_settings_that_do_nothing_or_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images is one of reconstruction, redundancy: 'pixels'"):
        ModelConfig(images="pixels")  # type: ignore[arg-type]
    for wrong in ({"image_std": 1.5}, {"image_std_learned": True}):
        with pytest.raises(ValueError, match=r"of no effect with images: redundancy"):
            ModelConfig(images="redundancy", **wrong)  # type: ignore[arg-type]
    for name in ("redundancy", "redundancy_pairs"):
        with pytest.raises(ValueError, match=rf"{name} must not be negative, and finite: -0\.5"):
            ObjectiveConfig(**{name: -0.5})  # type: ignore[arg-type]
    decoding = WorldModel.build(ModelConfig(image_depth=2), EYE, ACTION)
    with pytest.raises(ValueError, match=r"no effect without model\.images: redundancy.*2, 0\.0005"):
        check_objective(decoding, ObjectiveConfig(redundancy=2))
    with pytest.raises(ValueError, match=r"for objective\.bound elbo, not iwae"):
        check_objective(model_of(), ObjectiveConfig(bound="iwae"))
    with pytest.raises(ValueError, match=r"\['eye'\]; the model emits \['continue', 'reward'\]"):
        check_objective(model_of(), ObjectiveConfig(weights={"eye": 2.0}))


def test_it_is_one_graph() -> None:
    model, batch, config = model_of(BESIDE), beside(), ObjectiveConfig()
    model.fit_normalizers(batch)
    traced = torch.compile(lambda batch: objective(model, batch, config).loss, fullgraph=True, backend="eager")
    torch.manual_seed(1)
    found = traced(batch)
    torch.manual_seed(1)
    torch.testing.assert_close(found, objective(model, batch, config).loss)
