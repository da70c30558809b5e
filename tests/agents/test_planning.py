"""Optimizers over a score function, against known optima."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from worldmodel.agents.planning.search import (
    CEM,
    ICEM,
    MPPI,
    CEMConfig,
    ICEMConfig,
    MPPIConfig,
    Optimizer,
    RandomShooting,
    RandomShootingConfig,
    Score,
    refined,
)
from worldmodel.envs.testing.exact import ExactLinearQuadratic, ExactModel, ExactTree
from worldmodel.envs.testing.probes import LinearQuadratic, Tree
from worldmodel.imagination import unroll
from worldmodel.specs import ActionSpec

CPU = torch.device("cpu")
BOX = ActionSpec((2,), low=(-1.0, -1.0), high=(1.0, 1.0))
BINARY = ActionSpec((), classes=(2,))
MANY = ActionSpec((2,), classes=(3, 2), start=(0, 0))

Build = Callable[[ActionSpec, int], Optimizer]
OPTIMIZERS: dict[str, Build] = {
    "cem": lambda spec, horizon: CEM(CEMConfig(8, 300, 30), spec, horizon),
    "icem": lambda spec, horizon: ICEM(ICEMConfig(6, 150, 15), spec, horizon),
    "mppi": lambda spec, horizon: MPPI(MPPIConfig(8, 300, 30), spec, horizon),
    "random": lambda spec, horizon: RandomShooting(RandomShootingConfig(3000), spec, horizon),
}
every = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def search(optimizer: Optimizer, score: Score, count: int = 1, rounds: int = 1) -> Tensor:
    """The plan (N, H, A), always from the start."""
    plans = optimizer.initial(count, CPU)
    for _ in range(rounds):
        found = optimizer.search(score, plans)
        plans = found.plans
    assert bool(found.sound.all())
    return found.plan


# --------------------------------------------------------------------------------------------- known optima


@every
def test_many_problems_are_solved_side_by_side(build: Build) -> None:
    """A bowl with another bottom for each of N problems, one of them outside the box."""
    goal = torch.tensor([[0.3, -0.6], [-0.9, 0.1], [2.0, 0.0]])

    def score(plans: Tensor) -> Tensor:
        assert plans.shape[0] == 3 and plans.shape[2:] == (1, 2)
        return -(plans - goal[:, None, None]).square().sum((-1, -2))

    plan = search(build(BOX, 1), score, count=3)
    torch.testing.assert_close(plan[:, 0], goal.clamp(-1, 1), rtol=0, atol=0.1)


def model_score(model: ExactModel, start: Tensor) -> Score:
    def score(plans: Tensor) -> Tensor:
        count, candidates, horizon, width = plans.shape
        state = model.initial(count * candidates)._replace(x=start.repeat_interleave(candidates, 0))
        _, features = unroll(model, state, plans.reshape(-1, horizon, width))
        outcome = model.predict(features)
        return outcome.reward.sum(-1).reshape(count, candidates)

    return score


PRECISE: dict[str, Build] = {
    "cem": lambda spec, horizon: CEM(CEMConfig(12, 500, 50), spec, horizon),
    "icem, white": lambda spec, horizon: ICEM(ICEMConfig(15, 300, 30, beta=0, decay=1), spec, horizon),
    "mppi": lambda spec, horizon: MPPI(MPPIConfig(15, 300, 30, min_std=0.01), spec, horizon),
}


@pytest.mark.parametrize("build", PRECISE.values(), ids=PRECISE.keys())
def test_the_linear_quadratic_optimum_is_reached_within_one_percent(build: Build) -> None:
    """Of the closed form, from several starts. iCEM's colour and shrinking population are made for few candidates and
    smooth plans, and MPPI's least std explores: neither is precise. The refinement of such plans is, see below."""
    horizon, start = 12, torch.rand(6, 2, dtype=torch.float64) * 2 - 1
    spec, score = ActionSpec((1,), low=(-6.0,), high=(6.0,)), model_score(ExactLinearQuadratic(), start)
    best = -torch.einsum("ni,ij,nj->n", start, torch.from_numpy(LinearQuadratic.gains(horizon)[1]), start)
    reached = score(search(build(spec, horizon), score, count=6).unsqueeze(1)).squeeze(1)
    assert bool((reached <= best + 1e-9).all())
    assert bool(((reached - best).abs() < 0.01 * best.abs()).all()), (reached, best)


@every
@pytest.mark.parametrize("seed", range(3))
def test_the_best_path_of_a_tree_is_found(build: Build, seed: int) -> None:
    """Of 243, some of which end early; where episodes end counts as it does in the tree itself."""
    env = Tree(branches=3, depth=5, seed=seed)
    model = ExactTree(env)
    spec = ActionSpec((), classes=(3,))
    plan = search(build(spec, 5), model_score(model, torch.zeros(1, 1)))
    reached = model_score(model, torch.zeros(1, 1))(plan.unsqueeze(1)).item()
    assert reached == pytest.approx(env.best(), abs=1e-5)


@every
def test_multi_discrete_plans(build: Build) -> None:
    goal = torch.tensor([[0, 0, 1, 1, 0], [1, 0, 0, 0, 1], [0, 1, 0, 0, 1.0]])
    plan = search(build(MANY, 3), lambda plans: (plans * goal).sum((-1, -2)))
    assert torch.equal(plan[0], goal)


# ------------------------------------------------------------------------------------------- hard scores


def valid(plan: Tensor, spec: ActionSpec) -> bool:
    if not spec.classes:
        return bool((plan.abs() <= 1).all())
    groups = plan.split(list(spec.classes), -1)
    return all(bool((group.amax(-1) == 1).all()) and bool((group.sum(-1) == 1).all()) for group in groups)


HARD: dict[str, Score] = {
    "constant": lambda plans: torch.zeros(plans.shape[:2]),
    "huge": lambda plans: 1e30 * plans.sum((-1, -2)),
    "huge in double": lambda plans: 1e300 * plans.double().sum((-1, -2)),
    "tiny": lambda plans: 1e-30 * plans.sum((-1, -2)),
    "huge offset": lambda plans: 1e12 + plans.sum((-1, -2)),
    "ill-conditioned": lambda plans: -(plans[..., 0] * 1e8 + plans[..., 1]).square().sum(-1),
    "nan for most": lambda plans: torch.where(torch.rand(plans.shape[:2]) < 0.99, torch.nan, plans.sum((-1, -2))),
    "infinite for half": lambda plans: torch.where(plans[..., 0, 0] > 0, torch.inf, plans.sum((-1, -2))),
    "minus infinity": lambda plans: torch.where(plans[..., 0, 0] > 0, -torch.inf, plans.sum((-1, -2))),
    "adversarial": lambda plans: plans.abs().sum((-1, -2)) * 1e4,
}


@every
@pytest.mark.parametrize("spec", [BOX, BINARY, MANY], ids=["box", "binary", "multi-discrete"])
@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("score", HARD.values(), ids=HARD.keys())
def test_hard_scores_give_valid_plans(build: Build, spec: ActionSpec, greedy: bool, score: Score) -> None:
    optimizer = build(spec, 4)
    plans = optimizer.initial(2, CPU)
    for _ in range(2):
        plan, plans, _ = optimizer.search(score, plans, greedy=greedy)
        assert valid(plan, spec) and valid(plans.elites, spec)
        assert all(bool(field.isfinite().all()) for field in plans)


@every
@pytest.mark.parametrize("spec", [BOX, MANY], ids=["box", "multi-discrete"])
def test_a_problem_without_a_finite_score_says_so_and_leaves_the_others_alone(build: Build, spec: ActionSpec) -> None:
    def score(plans: Tensor) -> Tensor:
        value = plans[..., 0].sum(-1)
        return torch.stack([value[0], value[1] * torch.nan])

    optimizer = build(spec, 2)
    found = optimizer.search(score, optimizer.initial(2, CPU), greedy=False)
    assert found.sound.tolist() == [True, False]
    assert valid(found.plan, spec)
    assert float(found.plan[0, :, 0].min()) > 0.8


@every
def test_a_search_is_sound_only_if_every_score_was_a_number_in_every_iteration(build: Build) -> None:
    for broken, expected in ((torch.nan, False), (torch.inf, False), (-torch.inf, True), (0.0, True)):
        calls: list[int] = []

        def score(plans: Tensor, broken: float = broken, calls: list[int] = calls) -> Tensor:
            value = plans.sum((-1, -2))
            if not calls:
                value[:, 0] = broken  # one plan of the first iteration
            calls.append(1)
            return value

        optimizer = build(BOX, 2)
        assert optimizer.search(score, optimizer.initial(1, CPU)).sound.tolist() == [expected]


def test_proposals_that_are_not_finite_reach_neither_the_plan_nor_the_memory() -> None:
    def score(plans: Tensor) -> Tensor:
        value = plans.sum((-1, -2))  # not a number where a proposal is none
        value[:, 3:20] = torch.nan  # and finite for three plans alone
        return value

    for optimizer in (MPPI(MPPIConfig(2, 20, 10), BOX, 2), ICEM(ICEMConfig(2, 20, 10), BOX, 2)):
        found = optimizer.search(score, optimizer.initial(1, CPU), torch.full((1, 20, 2, 2), torch.nan))
        assert valid(found.plan, BOX) and valid(found.plans.elites, BOX)
        assert bool(found.plans.params.isfinite().all()) and not bool(found.sound)


# ---------------------------------------------------------------------------------------- from step to step


def test_the_next_search_goes_on_where_the_last_plan_does() -> None:
    """A cold start cannot find this optimum with so few candidates; a warm one keeps it."""
    optimizer = ICEM(ICEMConfig(1, 20, 5, std=0.1), BOX, 4)
    plans = optimizer.initial(1, CPU)
    far = torch.full((1, 4, 2), 0.95)
    params = torch.cat([far, torch.full_like(far, 0.1)], -1)
    found = optimizer.search(lambda p: -(p - 0.95).square().sum((-1, -2)), plans._replace(params=params))
    assert float(found.plans.params[0, :3, :2].min()) > 0.75  # one step on
    torch.testing.assert_close(found.plans.params[0, 3], torch.tensor([0, 0, 0.1, 0.1]))  # and the last one open
    cold = optimizer.search(lambda p: -(p - 0.95).square().sum((-1, -2)), optimizer.initial(1, CPU))
    assert float(cold.plan.max()) < 0.5


def test_kept_elites_are_considered_again_one_step_on() -> None:
    optimizer = ICEM(ICEMConfig(1, 20, 10, keep=0.3), BOX, 3)
    seen: list[Tensor] = []

    def score(plans: Tensor) -> Tensor:
        seen.append(plans)
        return plans.sum((-1, -2))

    found = optimizer.search(score, optimizer.initial(1, CPU))
    best = seen[0][0][seen[0][0].sum((-1, -2)).topk(3).indices]
    torch.testing.assert_close(found.plans.elites[0, :, :2], best[:, 1:])
    optimizer.search(score, found.plans)
    torch.testing.assert_close(seen[1][0, 20:23], found.plans.elites[0])


def test_cem_begins_afresh_as_planet_does_unless_told_otherwise() -> None:
    for warm in (False, True):
        optimizer = CEM(CEMConfig(3, 100, 10, warm_start=warm), BOX, 3)
        found = optimizer.search(lambda plans: plans.sum((-1, -2)), optimizer.initial(1, CPU))
        assert bool((found.plans.params[0, :2, :2] > 0.5).all()) == warm


def test_the_population_shrinks() -> None:
    sizes: list[int] = []

    def score(plans: Tensor) -> Tensor:
        sizes.append(plans.shape[1])
        return plans.sum((-1, -2))

    optimizer = ICEM(ICEMConfig(4, 100, 10, decay=2.0, keep=0.0), BOX, 3)
    optimizer.search(score, optimizer.initial(1, CPU))
    assert sizes == [100, 50, 25, 20 + 1]  # the middle of the distribution at the last


def test_proposals_are_considered_in_every_iteration() -> None:
    proposals = torch.full((1, 3, 2, 2), 0.123)

    def score(plans: Tensor) -> Tensor:
        assert bool((plans == 0.123).all(-1).all(-1).sum() >= 3)
        return (plans == 0.123).float().sum((-1, -2))

    optimizer = MPPI(MPPIConfig(2, 20, 4, temperature=50, min_std=0.0), BOX, 2)
    found = optimizer.search(score, optimizer.initial(1, CPU), proposals)
    torch.testing.assert_close(found.plan, proposals[:, 0])


def test_mppi_weighs_by_the_exponential_of_the_score() -> None:
    """Two proposals whose scores differ by 2, at a temperature of 0.5: weights e : 1."""
    proposals = torch.tensor([0.5, -0.5]).reshape(1, 2, 1, 1).expand(-1, -1, -1, 2)

    def score(plans: Tensor) -> Tensor:
        first = plans[..., 0, 0]
        return torch.where(first == 0.5, 2.0, torch.where(first == -0.5, 0.0, -1e9))

    optimizer = MPPI(MPPIConfig(1, 10, 2, temperature=0.5), BOX, 1)
    middle = search_with(optimizer, score, proposals, greedy=True)
    share = torch.tensor(1.0).sigmoid()
    torch.testing.assert_close(middle, torch.full((1, 1, 2), float(share - 0.5)))
    drawn = torch.cat([search_with(optimizer, score, proposals, greedy=False) for _ in range(500)])
    assert set(drawn.unique().tolist()) == {-0.5, 0.5}
    assert float((drawn[:, 0, 0] > 0).float().mean()) == pytest.approx(float(share), abs=0.07)


def search_with(optimizer: Optimizer, score: Score, proposals: Tensor, greedy: bool) -> Tensor:
    return optimizer.search(score, optimizer.initial(1, CPU), proposals, greedy).plan


# -------------------------------------------------------------------------------------- gradient refinement


def test_refinement_climbs_to_the_top_and_never_goes_down() -> None:
    goal = torch.tensor([[[0.3, -0.7]], [[3.0, 0.0]]])
    calls: list[int] = []

    def score(plans: Tensor) -> Tensor:
        calls.append(1)
        return -(plans - goal.unsqueeze(1)).square().sum((-1, -2))

    plan = refined(score, torch.zeros(2, 1, 2), steps=40, rate=0.05)
    torch.testing.assert_close(plan, goal.clamp(-1, 1), rtol=0, atol=0.06)
    top = goal.clamp(-1, 1)
    assert torch.equal(refined(score, top, steps=5, rate=0.5)[0], top[0])


@pytest.mark.parametrize("name", ["cem", "icem"])
def test_refinement_brings_a_coarse_plan_to_the_linear_quadratic_optimum(name: str) -> None:
    """Also one of iCEM with its defaults."""
    horizon, start = 12, torch.tensor([[0.8, -0.3]], dtype=torch.float64)
    spec, score = ActionSpec((1,), low=(-6.0,), high=(6.0,)), model_score(ExactLinearQuadratic(), start)
    best = -float(start @ torch.from_numpy(LinearQuadratic.gains(horizon)[1]) @ start.T)
    coarsely: Optimizer = (
        CEM(CEMConfig(2, 100, 10), spec, horizon) if name == "cem" else ICEM(ICEMConfig(), spec, horizon)
    )
    plan = search(coarsely, score)
    coarse = float(score(plan.unsqueeze(1)))
    for rate in (0.05, 0.01, 0.003):
        plan = refined(score, plan, steps=40, rate=rate)
    assert coarse < 1.2 * best and float(score(plan.unsqueeze(1))) == pytest.approx(best, rel=0.01)


def test_refinement_of_a_score_without_a_slope_keeps_the_plan() -> None:
    start = torch.full((1, 2, 2), 0.5)

    def broken(plans: Tensor) -> Tensor:
        return (plans.sum((-1, -2)) - 2.0).sqrt()  # not a number below the start, where its slope is infinite

    assert torch.equal(refined(broken, start - 0.1, 3, 0.1), start - 0.1)
    assert bool(refined(broken, start, 3, 0.1).isfinite().all())
    assert torch.equal(refined(lambda plans: torch.zeros(plans.shape[:2]), start, 3, 0.1), start)
    cut: Score = lambda plans: (plans.detach() + 0 * torch.ones(1, requires_grad=True)).sum((-1, -2))  # noqa: E731
    assert torch.equal(refined(cut, start, 3, 0.1), start)


def test_refinement_does_not_mistake_infinity_for_a_good_score() -> None:
    plan = refined(lambda plans: (2000 * plans[..., 0, 0]).exp(), torch.zeros(1, 1, 1), 5, 0.03)
    assert 0 < float(plan) < 0.05  # beyond, the score is infinite in single precision


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CEMConfig(iterations=0), "iterations must be at least 1, got 0"),
        (lambda: CEMConfig(elites=2000), "at least the elites, got 1000 candidates and 2000 elites"),
        (lambda: CEMConfig(std=0), "std must be positive"),
        (lambda: ICEMConfig(decay=0.5), "decay at least 1"),
        (lambda: ICEMConfig(candidates=12, elites=10), "2 times the elites, got 12 candidates and 10 elites"),
        (lambda: ICEMConfig(keep=1.5), "keep must lie in"),
        (lambda: ICEMConfig(beta=math.inf), "both finite, got inf"),
        (lambda: MPPIConfig(temperature=math.nan), "temperature must be positive and finite, got nan"),
        (lambda: MPPIConfig(temperature=0), "temperature must be positive"),
        (lambda: MPPIConfig(min_std=3), "min_std must lie in"),
        (lambda: RandomShootingConfig(0), "candidates must be at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
