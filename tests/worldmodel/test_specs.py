"""What specs take and refuse, and what a model says of observations that are not those it was built for."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from worldmodel import ActionSpec, ModelConfig, ObservationSpec, WorldModel, rollout
from worldmodel.types import Batch

Build, Window = Callable[..., WorldModel], Callable[..., Batch]


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: ObservationSpec((64, 64), image=True), r"\(H, W, C\)"),
        (lambda: ObservationSpec((2,), (3,)), "each of the 2 variables"),
        (lambda: ObservationSpec((0,)), "at least one number"),
        (lambda: ObservationSpec((2,), (3, 3), (1,)), "each of the 2 discrete variables"),
        (lambda: ActionSpec((), (0,)), "at least 1"),
        (lambda: ActionSpec((2,), low=(-1.0,), high=(1.0,)), "each entry"),
        (lambda: ActionSpec((1,), low=(-np.inf,), high=(1.0,)), "finite"),
        (lambda: ActionSpec((1,), low=(1.0,), high=(1.0,)), "low must be below high"),
        (lambda: ActionSpec((1,), (3,), low=(0.0,), high=(1.0,)), "continuous"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(made: Callable[[], Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        made()


def test_bounds_that_are_not_given_are_those_of_a_control() -> None:
    spec = ActionSpec((2,))
    values = np.array([[-0.5, 0.25], [3.0, -3.0]], np.float32)
    np.testing.assert_array_equal(spec.encode(values), [[-0.5, 0.25], [1, -1]])
    np.testing.assert_array_equal(spec.decode(spec.encode(values)), [[-0.5, 0.25], [1, -1]])


def test_the_code_of_an_action_costs_no_more_than_its_numbers() -> None:
    """A table of all codes would take n numbers for each of the n that the code of one action has."""
    many = 20_000
    spec = ActionSpec((2,), (3, many), (0, -5))
    actions = np.array([[2, -5], [0, many - 6]])
    tracemalloc.start()
    codes = spec.encode(actions)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * codes.nbytes
    assert codes.dtype == np.float32 and codes.shape == (2, 3 + many)
    assert [np.flatnonzero(code).tolist() for code in codes] == [[2, 3], [0, 3 + many - 1]] and codes.max() == 1
    np.testing.assert_array_equal(spec.decode(codes), actions)


@pytest.mark.parametrize("action", [-1, 0, 4])
def test_an_action_that_there_is_not_is_no_other(action: int) -> None:
    """Not the last one, as an index from behind would be."""
    spec = ActionSpec((), (3,), (1,))
    assert spec.encode(np.array([1, 3])).tolist() == [[1, 0, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match=rf"action \[{action}\] does not exist"):
        spec.encode(np.array([1, action]))


def test_what_is_no_observation() -> None:
    discrete, real = ObservationSpec((2,), (3, 2)), ObservationSpec((2,))
    assert discrete.valid(discrete.encode(np.array([[2, 1], [3, 0], [0, -1]]))).tolist() == [True, False, False]
    assert real.valid(real.encode(np.array([[0.0, 1], [np.nan, 0], [0, np.inf]]))).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="pixels from 0 to 255"):
        ObservationSpec((16, 16, 3), image=True).encode(np.zeros((1, 16, 16, 3)))


@pytest.mark.parametrize(
    ("obs", "told"),
    [
        ({"x": torch.zeros(3, 5, 1)}, r"'x' is 2 numbers wide, got \(3, 5, 1\)"),
        ({"x": torch.zeros(3, 5, 3)}, r"'x' is 2 numbers wide, got \(3, 5, 3\)"),
        ({"x": torch.zeros(3, 5, 2), "phase": torch.zeros(3, 5, 2)}, r"'phase' is 1 numbers wide, got \(3, 5, 2\)"),
        ({"y": torch.zeros(3, 5, 2)}, r"'x' is missing, there are \['phase', 'y'\]"),
    ],
)
def test_a_batch_of_other_observations_is_refused(build: Build, window: Window, obs: dict[str, Any], told: str) -> None:
    """A width of one would be broadcast by the units."""
    batch = window(3, 5)
    others = {key: value for key, value in batch.obs.items() if key not in ("x", *obs)} | obs
    with pytest.raises(ValueError, match=told):
        build("rssm").elbo(batch._replace(obs=others))


def test_resets_are_true_or_false(build: Build, window: Window) -> None:
    """The complement of the number 0 is -1."""
    batch = window(3, 5)
    with pytest.raises(ValueError, match=r"is_first\.bool"):
        build("rssm").observe(batch._replace(is_first=batch.is_first.long()))


def test_a_rollout_has_a_step(build: Build) -> None:
    model = build("rssm")
    with pytest.raises(ValueError, match="horizon must be at least 1: 0"):
        rollout(model, model.initial(2), lambda feature: (feature[:, :2], feature), 0)


def test_a_model_of_discrete_observations_alone_is_of_any_precision(build: Build, window: Window) -> None:
    model, batch = build("rssm").double(), window(3, 5)
    batch = batch._replace(
        obs={key: value.double() if value.is_floating_point() else value for key, value in batch.obs.items()},
        prev_action=batch.prev_action.double(),
        reward=batch.reward.double(),
        mask=batch.mask.double(),
    )
    assert model.elbo(batch).total.dtype == torch.float64
    only = WorldModel.build(ModelConfig(hidden=8), {"phase": ObservationSpec((), (3,))}, ActionSpec((2,))).double()
    only.fit_normalizers(batch._replace(obs={"phase": batch.obs["phase"]}))
    assert only.elbo(batch._replace(obs={"phase": batch.obs["phase"]})).total.isfinite().all()
