"""Latent families: samples follow the probabilities that the divergence uses, and carry the promised gradient."""

import pytest
import torch
from torch import Tensor

from worldmodel.networks.latents import FullGaussian, Gaussian, LatentConfig, OneHot, draw, latent_family

UNIMIX = 0.2
LOGITS = torch.tensor([2.0, 0.0, -1.0, 0.5, 0.5, -30.0])  # two groups of three classes


def mixed() -> Tensor:
    """(2, 3) probabilities of LOGITS, mixed with the uniform distribution by hand."""
    return (1 - UNIMIX) * LOGITS.reshape(2, 3).softmax(-1) + UNIMIX / 3


def test_onehot_samples_with_mixed_frequencies() -> None:
    torch.manual_seed(0)
    samples = OneHot(2, 3, UNIMIX).sample(LOGITS.expand(40_000, -1)).reshape(-1, 2, 3)
    assert ((samples == 0) | (samples == 1)).all()
    assert (samples.sum(-1) == 1).all()
    error = (mixed() * (1 - mixed()) / len(samples)).sqrt()
    assert ((samples.mean(0) - mixed()).abs() < 4 * error).all()


def test_a_draw_is_never_of_a_class_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the first nor the last, at the ends of what a random number can be."""
    probs = torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0])
    for random, expected in ((0.0, 1), (0.29999, 1), (0.30001, 3), (1 - 2**-24, 3)):
        monkeypatch.setattr(torch, "rand_like", lambda like, random=random: torch.full_like(like, random))
        assert draw(probs.expand(7, 5)).tolist() == [[expected]] * 7
        assert draw(1e-30 * probs.double()).tolist() == [
            expected
        ]  # of what is not normalised, and of another precision


def test_a_rare_class_is_drawn_as_often_in_half_precision() -> None:
    """The sum of the classes before the last has no room for it there."""
    torch.manual_seed(0)
    probs = torch.tensor([0.3, 0.69, 0.01]).bfloat16()
    drawn = draw(probs.expand(100_000, 3)).flatten().bincount() / 100_000
    torch.testing.assert_close(drawn, probs.float() / probs.float().sum(), atol=2e-3, rtol=0)


def test_onehot_mixing_bounds_the_divergence() -> None:
    """The KL is that of the mixed probabilities: certain and opposite logits stay a finite distance apart."""
    family = OneHot(1, 2, UNIMIX)
    q, p = torch.tensor([1000.0, 0.0]), torch.tensor([0.0, 1000.0])
    expected = 0.9 * torch.tensor(0.9 / 0.1).log() + 0.1 * torch.tensor(0.1 / 0.9).log()
    torch.testing.assert_close(family.kl(q, p), expected)


def test_onehot_log_prob_is_of_the_mixed_probabilities() -> None:
    code = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    expected = mixed()[0, 1].log() + mixed()[1, 2].log()
    torch.testing.assert_close(OneHot(2, 3, UNIMIX).log_prob(LOGITS, code), expected)


def test_onehot_gradient_is_that_of_the_probabilities() -> None:
    weight = torch.arange(6.0)
    logits = LOGITS.clone().requires_grad_()
    torch.manual_seed(0)
    (straight_through,) = torch.autograd.grad(OneHot(2, 3, UNIMIX).sample(logits) @ weight, logits)
    probs = (1 - UNIMIX) * logits.reshape(2, 3).softmax(-1) + UNIMIX / 3
    (expected,) = torch.autograd.grad(probs.flatten() @ weight, logits)
    torch.testing.assert_close(straight_through, expected)
    assert expected.abs().max() > 0.1


def test_onehot_mode_is_the_likeliest_class_of_each_group() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 0.5, 0.7, -30.0])
    assert OneHot(2, 3, UNIMIX).mode(logits).tolist() == [1, 0, 0, 0, 1, 0]


def test_gaussian_samples_have_its_moments_and_never_less_than_the_floor() -> None:
    torch.manual_seed(0)
    family = Gaussian(2, min_std=0.3)
    params = torch.tensor([1.0, -2.0, 1.0, -100.0])
    mean, std = family.moments(params)
    torch.testing.assert_close(std, torch.tensor([torch.nn.functional.softplus(torch.tensor(1.0)) + 0.3, 0.3]))
    samples = family.sample(params.expand(40_000, -1))
    torch.testing.assert_close(samples.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(samples.std(0), std, atol=0, rtol=0.02)
    assert torch.equal(family.mode(params), params[:2])


def test_gaussian_sample_is_differentiable_in_mean_and_spread() -> None:
    params = torch.tensor([1.0, 0.5], requires_grad=True)
    torch.manual_seed(0)
    sample = Gaussian(1, min_std=0.1).sample(params)
    (gradient,) = torch.autograd.grad(sample.sum(), params)
    std = torch.nn.functional.softplus(params[1]) + 0.1
    noise = (sample[0] - params[0]) / std
    torch.testing.assert_close(gradient, torch.stack([torch.tensor(1.0), noise * params[1].sigmoid()]).detach())


def test_full_gaussian_samples_have_the_packed_covariance() -> None:
    torch.manual_seed(0)
    family = FullGaussian(2)
    mean, covariance = torch.tensor([1.0, -1.0]), torch.tensor([[1.0, 0.6], [0.6, 0.5]])
    params = family.pack(mean.expand(40_000, -1), covariance)
    samples = family.sample(params)
    torch.testing.assert_close(samples.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(samples.T.cov(), covariance, atol=0.03, rtol=0)
    assert torch.equal(family.mode(params)[0], mean)


def test_config_chooses_the_family() -> None:
    gaussian = latent_family(LatentConfig(size=5, min_std=0.2))
    onehot = latent_family(LatentConfig("onehot", groups=3, classes=4, unimix=0.05))
    assert isinstance(gaussian, Gaussian) and (gaussian.size, gaussian.parameters, gaussian.min_std) == (5, 10, 0.2)
    assert isinstance(onehot, OneHot) and (onehot.size, onehot.parameters, onehot.unimix) == (12, 12, 0.05)


WRONG = [{"size": 0}, {"classes": -1}, {"min_std": 0.0}, {"unimix": 1.0}, {"unimix": -0.1}, {"family": "one-hot"}]


@pytest.mark.parametrize("wrong", WRONG)
def test_config_refuses_what_is_no_distribution(wrong: dict[str, float | str]) -> None:
    (value,) = wrong.values()
    with pytest.raises(ValueError, match=str(value)):
        LatentConfig(**wrong)  # type: ignore[arg-type]
