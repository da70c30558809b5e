"""What is compiled learns and acts as it would without, and `auto` compiles where it pays, and says so."""

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from worldmodel.agents import Agent
from worldmodel.agents.actor_critic.actor_critic import ActorCritic
from worldmodel.dynamics.scan import scan
from worldmodel.kernels import compiling
from worldmodel.learning.learner import Learner, LearnerConfig
from worldmodel.networks.encoder import Head
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


class Chain(torch.nn.Module):
    """A loop over time whose step is a method."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.weight = factor, torch.nn.Parameter(torch.eye(16))

    def step(self, carry: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return (self.factor * carry @ self.weight + inputs).tanh()

    def loss(self, inputs: torch.Tensor, reverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
        def step(carry: torch.Tensor, slices: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, tuple[torch.Tensor]]:
            carry = self.step(carry, slices[0])
            return carry, (carry,)

        last, (every,) = scan(step, torch.ones(2, 16), (inputs,), reverse=reverse)
        return (last * every.sum(1)).sum(), every


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 13])
def test_a_compiled_method_gives_the_same_values_and_gradients(length: int, reverse: bool, built: Counter[str]) -> None:
    inputs = torch.randn(2, length, 16)

    def result(factor: float, mode: Any) -> tuple[torch.Tensor, ...]:
        chain = Chain(factor)
        config = LearnerConfig(compile=mode)
        learner = Learner(chain.loss, chain.parameters(), config, lambda *_: [(chain, "step")])
        value, every = learner.loss(inputs, reverse)
        assert "step" not in vars(chain)  # the compiled method does not outlive the loss
        return value.detach(), every.detach(), *torch.autograd.grad(value, chain.weight)

    for factor in (0.1, 0.2):
        torch.testing.assert_close(result(factor, "step"), result(factor, "off"))
    assert built == {"Chain.step": 1}


def test_a_loss_without_steps_is_compiled_as_one_part(built: Counter[str]) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    learner = Learner(lambda: (weight.square().sum(), None), [weight], LearnerConfig(lr=0.1, compile="step"))
    learner.update()
    assert built.total() == 1 and not torch.equal(weight, torch.ones(3))


def test_without_a_private_part_of_torch_nothing_is_compiled(
    built: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer torch may move it: then a warning is given, and the plain methods compute the same."""
    monkeypatch.setitem(sys.modules, "torch._functorch", None)
    chain, inputs = Chain(0.1), torch.randn(2, 5, 16)
    learner = Learner(chain.loss, chain.parameters(), LearnerConfig(compile="step"), lambda *_: [(chain, "step")])
    with pytest.warns(UserWarning, match="nothing is compiled"):
        value, _ = learner.loss(inputs, False)
    torch.testing.assert_close(value, chain.loss(inputs, False)[0])
    with pytest.warns(UserWarning, match="nothing is compiled"):
        whole = Learner(chain.loss, chain.parameters(), LearnerConfig(compile="update"))
    torch.testing.assert_close(whole.loss(inputs, False)[0], value)
    assert not built


def test_hooks_run_in_a_compiled_update(built: Counter[str], tmp_path: Path) -> None:
    """Forward and backward hooks on the layers of a model are called, in every mode."""
    for mode in ("off", "step"):
        config = load_config(TINY, ["--learner.compile", mode])
        trainer = Trainer(Run.create(tmp_path / mode, config))
        trainer.prefill(30)
        assert isinstance(trainer.run.model.reward, Head)
        called = Counter[str]()
        layer = trainer.run.model.reward.net[0]
        layer.register_forward_hook(lambda *_, called=called: called.update(["forward"]))
        layer.register_full_backward_hook(lambda *_, called=called: called.update(["backward"]))
        trainer.update()
        assert called["forward"] and called["backward"], mode


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
    assert "learner.compile: update, as chosen for cpu" in lines and len(lines) == len(list(learners(config)))
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


def test_a_run_that_compiles_its_steps_learns_the_same(built: Counter[str], tmp_path: Path) -> None:
    """The model, the imagination and the losses, from the same random numbers."""
    torch.testing.assert_close(*in_parts([], tmp_path), rtol=1e-4, atol=1e-5)
    of_model = [f"WorldModel.{name}" for name in ("imagine", "log_likelihood", "predict")]
    assert sorted(built) == [
        "ActorCritic.judge",
        "ActorCritic.policy",
        "LatentFamily.kl",
        "SequentialVAE.step",
        *of_model,
    ]


@KINDS
def test_every_kind_of_run_learns_the_same_compiled(
    changes: dict[str, str], built: Counter[str], tmp_path: Path
) -> None:
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
    behaviour, update = cast(ActorCritic, trainer.run.behaviour), trainer.updater.last
    assert update is not None
    seen = behaviour.scale.seen.clone()
    assert _repeated(trainer.updater, update) == ([], []) and torch.equal(behaviour.scale.seen, seen)
    with torch.no_grad():
        next(behaviour.critic.parameters())[0, 0] = float("nan")
    outputs, metrics = _repeated(trainer.updater, update)
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
    with pytest.raises(ValueError, match=r"training\.acting: compiled works only with actor-critics, .* is planner"):
        load_config({"behaviour": {"name": "planner"}, "training": {"acting": "compiled"}})
    config = load_config({"behaviour": {"name": "planner"}, "training": {"acting": "auto", "steps": 10**7}})
    assert decide(config)[0].startswith("training.acting: eager")
    with pytest.raises(ValueError, match=r"acting is 'fast'|'fast' is not one of"):
        load_config({"training": {"acting": "fast"}})


def test_a_run_that_was_compiled_can_be_used_where_nothing_can_be(
    built: Counter[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**TINY, "learner": {"compile": "step"}, "training": TINY["training"] | {"acting": "compiled"}}
    run = train(changes, run=tmp_path / "run")
    monkeypatch.setattr(compilation, "has_compiler", lambda: False)
    monkeypatch.setattr(compiling, "has_compiler", lambda: False)
    again = Run.load(run.folder)
    assert again.decided == ["There is no C++ compiler on this machine. Nothing is compiled from here on."]
    assert (again.config.learner.compile, again.config.training.acting) == ("off", "eager")
    with pytest.raises(ValueError, match=r"learner\.compile needs a C\+\+ compiler"):
        train(changes, run=tmp_path / "other")
