"""What is compiled learns and acts as it would without, and `auto` compiles where it pays, and says so."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from worldmodel.agents import Agent
from worldmodel.agents.actor_critic.actor_critic import ActorCritic
from worldmodel.dynamics.scan import divided, scan
from worldmodel.kernels import compiling
from worldmodel.learning.learner import Learner, LearnerConfig
from worldmodel.training import Run, train
from worldmodel.training.config import compilation
from worldmodel.training.config.compilation import decide, learners, taken_along
from worldmodel.training.config.config import Config, load_config
from worldmodel.training.config.fit_config import load_fit_config
from worldmodel.training.loop.faults import _repeated
from worldmodel.training.loop.trainer import Trainer

TINY: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "time_limit": 10},
    "model": {"hidden": 8, "latent": {"family": "onehot", "groups": 3, "classes": 4}},
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 5, "horizon": 3, "gradient": "score"}},
    "replay": {"batch_size": 3, "window": 6},
    "training": {"steps": 40, "prefill": 30, "pretrain": 2, "replay_ratio": 9},
    "evaluation": {"every": 100, "episodes": 1, "final_episodes": 1},
    "logger": {"wandb": "disabled"},
}
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.fixture(params=["eager", pytest.param("inductor", marks=[pytest.mark.slow, NEEDS_COMPILER])])
def built(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each function was compiled: traced and run again as it is, or by torch's compiler."""
    found, compiler = Counter[str](), torch.compile

    def compile_with_backend(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        found[getattr(function, "__qualname__", "")] += 1  # a partial has no name
        return compiler(function, backend=request.param, **options)

    monkeypatch.setattr(torch, "compile", compile_with_backend)
    monkeypatch.setattr(compiling, "has_compiler", lambda: True)
    monkeypatch.setattr(compiling, "MADE", {})  # what others have compiled, with another backend
    torch.compiler.reset()
    yield found
    torch.compiler.reset()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 13, 20])
def test_compiled_steps_are_the_steps(length: int, reverse: bool, built: Counter[str]) -> None:
    """Values, and gradients through all of them; with whatever the step closes over at the time."""
    inputs = torch.randn(2, length, 16)

    def summed(factor: float, steps: bool) -> tuple[Any, ...]:
        start, weight = torch.ones(2, 16, requires_grad=True), torch.eye(16, requires_grad=True)

        def step(carry: torch.Tensor, slices: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, tuple[torch.Tensor]]:
            carry = (factor * carry @ weight + slices[0]).tanh()
            return carry, (carry,)

        def loss() -> tuple[torch.Tensor, torch.Tensor]:
            last, (every,) = scan(step, start, (inputs,), reverse=reverse)
            return (last * every.sum(1)).sum(), every

        learner = Learner(loss, [torch.nn.Parameter(torch.zeros(1))], LearnerConfig(compile="step" if steps else "off"))
        value, every = learner.loss()
        return value.detach(), every.detach(), *torch.autograd.grad(value, (start, weight))

    for factor in (0.1, 0.2):
        torch.testing.assert_close(summed(factor, True), summed(factor, False))
    assert built == {"unrolled": 1}


@pytest.mark.parametrize("built", ["eager"], indirect=True)
def test_a_step_may_be_a_partial_and_leave_the_last_inputs_alone(built: Counter[str]) -> None:
    def summed(factor: float, carry: torch.Tensor, slices: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, Any]:
        carry = factor * carry + slices[0]
        return carry, (carry,)

    start, inputs = torch.ones(2, 3), torch.randn(2, 20, 3)
    expected = scan(partial(summed, 0.5), start, (inputs,), length=13)
    with compiling.compiled_regions("cpu"):
        found = scan(partial(summed, 0.5), start, (inputs,), length=13)
    assert built.total() == 1 and found[1][0].shape == (2, 13, 3)
    torch.testing.assert_close(found, expected)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def test_all_but_few_steps_are_compiled_together(threads: int) -> None:
    for length in range(1, 130):
        alone, together = divided(length, 16)
        assert (length - alone) % together == 0 and alone <= 4
        assert together > 1 or length <= 4
        assert divided(length, 1000) == (0, 1)
    imagined = [divided(length, None) for length in (1, 4, 7, 10, 15)]
    assert imagined == [(0, size) for size in ((1, 1, 1, 1, 1) if threads == 1 else (1, 4, 1, 5, 5))]


KINDS = pytest.mark.parametrize(
    "changes",
    [
        {"behaviour.actor_critic.gradient": "pathwise", "model.latent.family": "gaussian"},
        {
            "training.joint": "true",
            "model.reward_output": "twohot",
            "behaviour.actor_critic.value_output": "twohot",
            "behaviour.actor_critic.bootstrap": "own",
            "behaviour.actor_critic.slow_regulariser": "1",
            "behaviour.actor_critic.starts": "0",
            "behaviour.actor_critic.replay_value": "0.3",
        },
        *(
            pytest.param(changes, marks=pytest.mark.slow)
            for changes in (
                {"env.id": "CartPole-v1", "behaviour.actor_critic.gradient": "auto", "model.reward_output": "twohot"},
                {
                    "replay.context": "true",
                    "behaviour.actor_critic.starts": "0",
                    "behaviour.actor_critic.replay_value": "0.3",
                },
                {"behaviour.name": "plan2explore", "behaviour.actor_critic.gradient": "pathwise"},
                {"objective.bound": "fivo", "objective.particles": "2", "model.dynamics.name": "dkf"},
                {"model.dynamics.name": "vrnn", "model.latent.family": "gaussian"},
                {"env.pixels": "true", "env.image_size": "32", "model.image_depth": "2", "model.images": "redundancy"},
            )
        ),
    ],
    ids=["pathwise", "joint", "discrete", "replayed values", "plan2explore", "fivo", "feeds back", "redundancy"],
)


def test_what_was_decided_for_another_device_is_told() -> None:
    config = load_config(TINY, ["--training.device", "cuda", "--learner.compile", "update"])
    lines = taken_along(config, "cpu")
    assert "learner.compile: update, as on cpu" in lines and len(lines) == len(list(learners(config)))
    assert taken_along(config, "cuda:1") == []


def learned(config: Config, folder: Path) -> tuple[Trainer, list[torch.Tensor]]:
    """All weights after three updates."""
    trainer = Trainer(Run.create(folder, config))
    trainer.prefill(30)
    torch.manual_seed(3)
    losses = [trainer.update()[0] for _ in range(3)]
    assert all(torch.isfinite(value).all() for metrics in losses for value in metrics.values())
    return trainer, [*trainer.run.model.parameters(), *trainer.run.behaviour.parameters()]


def in_parts(changes: list[str], folder: Path) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What is learned as it is, and compiled."""
    found = []
    for mode in ("off", "step"):
        config = load_config(TINY, changes)
        for _, learner in learners(config):
            learner.compile = mode
        found.append(learned(config, folder / mode)[1])
    plain, compiled = found
    return plain, compiled


def test_a_run_that_compiles_its_parts_learns_the_same(threads: int, built: Counter[str], tmp_path: Path) -> None:
    """The model, the imagination, and all that is between: from the same random numbers."""
    both = in_parts(["--behaviour.actor_critic.horizon", "6"], tmp_path)  # two times three steps, on two threads
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)
    names = sorted(name.rpartition("<locals>.")[2] for name in built)
    regions = ["ActorCritic.judge", "WorldModel.log_likelihood", "WorldModel.predict", "trained_kl"]
    assert names == [*regions, "unrolled"] and built["unrolled"] == 2  # filtered, imagined


@pytest.mark.parametrize(("threads", "built"), [(2, "eager")], indirect=True)
def test_so_does_one_that_learns_through_several_steps_at_once(
    threads: int, built: Counter[str], tmp_path: Path
) -> None:
    changes = ["--behaviour.actor_critic.horizon", "6", "--behaviour.actor_critic.gradient", "pathwise"]
    torch.testing.assert_close(*in_parts(changes, tmp_path), rtol=1e-4, atol=1e-5)
    assert built["unrolled"] == 2


@KINDS
def test_so_does_every_kind(changes: dict[str, str], built: Counter[str], tmp_path: Path) -> None:
    both = in_parts([f"--{key}={value}" for key, value in changes.items()], tmp_path)
    assert built
    torch.testing.assert_close(*both, rtol=1e-3, atol=1e-5)


@KINDS
def test_no_loss_changes_anything(changes: dict[str, str], tmp_path: Path) -> None:
    """A compiled one may read again, for its gradient, what was changed since."""
    trainer = Trainer(Run.create(tmp_path, load_config(TINY, [f"--{key}={value}" for key, value in changes.items()])))
    trainer.prefill(30)
    changed: list[set[str]] = []

    def now() -> dict[str, torch.Tensor]:
        modules = (trainer.run.model, trainer.run.behaviour)
        named = [each for module in modules for each in (*module.named_parameters(), *module.named_buffers())]
        return {name: value.detach().clone() for name, value in named}

    def watched(loss: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            before = now()
            result = loss(*args)
            changed.append({name for name, value in now().items() if not torch.equal(value, before[name])})
            return result

        return called

    for learner in trainer.learners():
        learner.loss = watched(learner.loss)
    trainer.update()
    assert changed and not set.union(*changed)


def test_an_actor_gives_the_weights_of_its_model_no_gradient(tmp_path: Path) -> None:
    """Nor leaves them without one for the model's own next update."""
    trainer, _ = learned(load_config(TINY, ["--behaviour.actor_critic.gradient", "pathwise"]), tmp_path)
    behaviour, model = cast(ActorCritic, trainer.run.behaviour), trainer.run.model
    asked = []
    behaviour.learner.loss = lambda *args: asked.append([each.requires_grad for each in model.parameters()])
    with pytest.raises(TypeError):
        behaviour.update(model, model.initial(2), torch.ones(2))
    assert not any(asked[0]) and all(each.requires_grad for each in model.parameters())


@pytest.mark.parametrize("built", ["eager"], indirect=True)
@pytest.mark.parametrize("mode", ["off", "step", "update"])
def test_what_failed_is_found_in_a_compiled_run(mode: str, built: Counter[str], tmp_path: Path) -> None:
    """In copies, which leave the behaviour as it was."""
    changes = ["--learner.compile", mode, "--behaviour.actor_critic.learner.compile", mode]
    trainer, _ = learned(load_config(TINY, changes), tmp_path)
    behaviour, update = cast(ActorCritic, trainer.run.behaviour), trainer.last
    assert update is not None
    seen = behaviour.scale.seen.clone()
    assert _repeated(trainer, update) == ([], []) and torch.equal(behaviour.scale.seen, seen)
    with torch.no_grad():
        next(behaviour.critic.parameters())[0, 0] = float("nan")
    outputs, metrics = _repeated(trainer, update)
    assert outputs[0] == "behaviour.critic.net.0" and "actor_critic/grad_norm" in metrics


def test_a_compiled_agent_decides_the_same(built: Counter[str], tmp_path: Any) -> None:
    run = Run.create(tmp_path / "run", load_config(TINY))
    with torch.no_grad():
        for parameter in run.behaviour.parameters():
            parameter.copy_(torch.randn_like(parameter))
    quick = Agent(run.model, run.behaviour, run.obs_specs, run.action_spec, compile=True)
    state = other = start = None
    for step in range(4):
        observation = np.random.default_rng(step).uniform(-1, 1, (2, 3)).astype(np.float32)
        start = np.array([step == 0, step in (0, 2)])
        expected, state = run.agent.predict(observation, state, start, deterministic=True)
        decided, other = quick.predict(observation, other, start, deterministic=True)
        np.testing.assert_allclose(decided, expected, rtol=1e-4, atol=1e-5)
        assert expected.std() > 0
    one, two = (quick.predict(observation, other, start)[0] for _ in range(2))
    assert not np.array_equal(one, two)
    assert built == {"Agent.act": 1}


def test_a_run_acts_compiled_once_it_has_learned(built: Counter[str], tmp_path: Any) -> None:
    """Not while it draws at random, not in evaluations of another number of environments, and only once."""
    changes = {**TINY, "training": TINY["training"] | {"acting": "compiled"}}
    run = train(changes, run=tmp_path / "run")
    assert run.env_steps == 40 and built == {"Agent.act": 1}
    again = Run.load(run.folder)
    assert again.config.training.acting == "compiled" and built == {"Agent.act": 1}


# ------------------------------------------------------------------------------------------------------- auto


AUTO = ["--learner.compile", "auto", "--behaviour.actor_critic.learner.compile", "auto", "--training.acting", "auto"]


@pytest.mark.parametrize(
    ("device", "hidden", "steps", "compiler", "learning", "acting"),
    [
        ("cpu", 64, 10**6, True, "step, because 125,000 updates of this size pay", "compiled, because 1,000,000"),
        ("cpu", 64, 95_000, True, "off, because 11,875 updates of this size do not pay", "eager, because 95,000"),
        ("cpu", 256, 99_999, True, "step, because 12,500 updates of this size pay", "eager, because 99,999"),
        ("cpu", 256, 10**6, False, "off, because there is no C++ compiler", "eager, because there is no C++ compiler"),
        ("mps", 64, 10**7, True, "off, because nobody has measured", "compiled"),
        ("cuda", 64, 10**6, True, "update, because 125,000 updates pay", "compiled"),
        ("cuda", 64, 10**5, True, "step, because 12,500 updates pay for two steps", "compiled"),
        ("cuda", 64, 15_999, True, "off, because 2,000 updates do not pay", "eager"),
        (
            "cuda:1",
            64,
            10**6,
            False,
            "off, because there is no C++ compiler",
            "eager, because there is no C++ compiler",
        ),
    ],
)
def test_auto(
    device: str,
    hidden: int,
    steps: int,
    compiler: bool,
    learning: str,
    acting: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiling, "has_compiler", lambda: compiler)
    size = ["--replay.batch_size", "16", "--replay.window", "64", "--training.replay_ratio", "128"]
    size += ["--model.hidden", str(hidden), "--training.steps", str(steps), "--training.device", device]
    config = load_config({}, [*AUTO, *size])
    acted, learned = decide(config)
    assert learned.startswith(f"learner.compile, behaviour.actor_critic.learner.compile: {learning}")
    assert acted.startswith(f"training.acting: {acting}")
    mode = learning.partition(",")[0]
    assert (config.learner.compile, config.behaviour.actor_critic.learner.compile) == (mode, mode)
    assert config.training.acting == acting.partition(",")[0]
    assert decide(config) == []


def test_no_more_is_imagined_from_than_is_replayed() -> None:
    sizes = ["--replay.batch_size", "4", "--replay.window", "16", "--model.hidden", "256", "--training.steps", "10000"]
    starts = [load_config({}, [*AUTO, *sizes, "--behaviour.actor_critic.starts", str(count)]) for count in (64, 0, 500)]
    assert len({decide(config)[1] for config in starts}) == 1


def test_what_was_decided_is_said_and_kept(tmp_path: Any, capsys: Any) -> None:
    run = train(TINY, AUTO, run=tmp_path / "run")
    said = capsys.readouterr().err
    assert "learner.compile: off, because" in said and "training.acting: eager, because 40 decisions" in said
    assert run.decided and not Run.load(run.folder).decided
    fitted = load_fit_config({"learner": {"compile": "auto"}})
    whole = load_fit_config({"learner": {"compile": "auto"}, "data": {"window": None}, "fit": {"updates": 10**6}})
    assert decide(whole)[0].startswith("learner.compile: off, because whole sequences differ in length")
    assert decide(fitted) == ["learner.compile: off, because 5,000 updates of this size do not pay for it on a CPU"]


def test_who_cannot_decide_says_so() -> None:
    with pytest.raises(ValueError, match="auto is decided by whoever knows how long is learned"):
        Learner(lambda: (torch.zeros(()), None), [torch.nn.Parameter(torch.zeros(1))], LearnerConfig(compile="auto"))
    with pytest.raises(
        ValueError, match=r"training\.acting: compiled is for actor-critics, not behaviour.name planner"
    ):
        load_config({"behaviour": {"name": "planner"}, "training": {"acting": "compiled"}})
    config = load_config({"behaviour": {"name": "planner"}, "training": {"acting": "auto", "steps": 10**7}})
    assert decide(config)[0].startswith("training.acting: eager")
    with pytest.raises(ValueError, match=r"acting is eager, compiled or auto|'fast' is not one of"):
        load_config({"training": {"acting": "fast"}})


def test_a_run_that_was_compiled_can_be_used_where_nothing_can_be(
    built: Counter[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**TINY, "learner": {"compile": "step"}, "training": TINY["training"] | {"acting": "compiled"}}
    run = train(changes, run=tmp_path / "run")
    monkeypatch.setattr(compilation, "has_compiler", lambda: False)
    monkeypatch.setattr(compiling, "has_compiler", lambda: False)
    again = Run.load(run.folder)
    assert again.decided == ["there is no C++ compiler: nothing is compiled from here on"]
    assert (again.config.learner.compile, again.config.training.acting) == ("off", "eager")
    with pytest.raises(ValueError, match=r"learner\.compile needs a C\+\+ compiler"):
        train(changes, run=tmp_path / "other")
