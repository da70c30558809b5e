"""The papers' presets train as they are, in small sizes; and what only they use: one loss, stored states, the queue."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmodel.agents import ActorCritic
from worldmodel.learning.learner import Learner
from worldmodel.learning.objective import annealed
from worldmodel.model import WorldModel
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.training import Run
from worldmodel.training.config.config import load_config
from worldmodel.training.config.schema import merge
from worldmodel.training.loop.loop import Loop
from worldmodel.training.loop.trainer import Trainer
from worldmodel.types import pack, unpack

HOME = Path(__file__).resolve().parents[2] / "configs"
SMALL: dict[str, Any] = {
    "model": {"hidden": 16, "latent": {"groups": 4, "classes": 4}, "dynamics": {"rssm": {"deter": 16, "hidden": 8}}},
    "behaviour": {"actor_critic": {"hidden": 16, "horizon": 3}},
    "replay": {"batch_size": 4, "window": 8, "capacity": 1000},
    "training": {"steps": 60, "prefill": 40, "pretrain": 3, "replay_ratio": 16},
    "evaluation": {"every": 1000, "final_episodes": 1},
    "learner": {"warmup": 0},  # the first steps of one are too small to be seen
    "objective": {"free_nats": 0},  # below which some parts rest
    "logger": {"wandb": "disabled"},
}


def trainer(folder: Path, preset: str, name: str = "Pendulum-v1", **changes: Any) -> Trainer:
    small = merge(merge(SMALL, {"env": {"id": name, "time_limit": 20}}), changes)
    return Trainer(Run.create(folder / "run", load_config(HOME / f"{preset}.yaml", **small)))


class Quiet:
    """In place of logger and progress."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **values: None


def quiet(trainer: Trainer) -> Loop:
    """A loop that nobody hears of."""
    loop = Loop(trainer)
    loop.record.logger = loop.record.progress = Quiet()  # type: ignore[assignment]
    return loop


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("preset", ["dreamer_v1", "dreamer_v2", "dreamer_v3", "planet"])
def test_a_preset_trains_every_part_of_its_own(preset: str, env: str, tmp_path: Path) -> None:
    planner = {"behaviour": {"planner": {"cem": {"candidates": 20, "elites": 4}}}} if preset == "planet" else {}
    made = trainer(tmp_path, preset, env, **planner)
    parts = (made.run.model, made.run.behaviour)
    before = [[p.clone() for p in part.parameters()] for part in parts]
    quiet(made).run(made.config.training.steps)
    assert made.updater.updates > 3
    for part, old in zip(parts, before, strict=True):
        pairs = zip(part.named_parameters(), old, strict=True)
        still = [name for (name, p), q in pairs if p.requires_grad and torch.equal(p, q)]
        assert not still and all(p.isfinite().all() for p in part.parameters())


@pytest.mark.parametrize("preset", ["dreamer_v1", "dreamer_v2", "dreamer_v3", "planet", "dream"])
def test_a_preset_learns_from_pixels(preset: str, tmp_path: Path) -> None:
    pixels = {"id": "Pendulum-v1", "time_limit": 20, "pixels": True, "image_size": 32}
    changes: dict[str, Any] = {"env": pixels, "model": {"image_depth": 2}}
    if preset == "planet":
        changes["behaviour"] = {"planner": {"cem": {"candidates": 20, "elites": 4}}}
    made = trainer(tmp_path, preset, **changes)
    before = [parameter.clone() for parameter in made.run.model.parameters()]
    quiet(made).run(60)
    pairs = list(zip(made.run.model.named_parameters(), before, strict=True))
    assert any("encoder.entrances.0.net" in name for (name, _), _ in pairs)
    assert all(p.isfinite().all() for (_, p), _ in pairs) and not any(torch.equal(p, q) for (_, p), q in pairs)


@pytest.mark.parametrize("preset", ["dreamer_v1", "dreamer_v3", "planet", "pendulum_pixels_redundancy"])
def test_a_preset_learns_from_pixels_that_it_does_not_decode(preset: str, tmp_path: Path) -> None:
    """With an actor of pathwise gradients, one of score gradients in one loss with the model, and with none."""
    pixels = {"id": "Pendulum-v1", "time_limit": 20, "pixels": True, "image_size": 32}
    changes: dict[str, Any] = {"env": pixels, "model": {"image_depth": 2, "images": "redundancy"}}
    if preset == "planet":
        changes["behaviour"] = {"planner": {"cem": {"candidates": 20, "elites": 4}}}
    made = trainer(tmp_path, preset, **changes)
    before = [parameter.clone() for parameter in made.run.model.parameters()]
    quiet(made).run(60)
    named = list(made.run.model.named_parameters())
    assert not any(torch.equal(p, q) or not p.isfinite().all() for (_, p), q in zip(named, before, strict=True))
    assert not any(name.startswith("decoders") for name, _ in named) and "projector.weight" in dict(named)
    metrics, _ = made.update()
    assert 0 < float(metrics["world_model/redundancy"]) < made.run.model.projector.out_features * 1.1  # type: ignore
    assert "world_model/log_likelihood/observation" not in metrics


def test_redundancy_is_refused_where_it_would_do_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"redundancy is for images, and none of the observations \['observation'\] is one"
    ):
        trainer(tmp_path, "dreamer_v1", model={"images": "redundancy"})
    with pytest.raises(ValueError, match=r"no effect without model\.images: redundancy"):
        trainer(tmp_path, "dreamer_v1", objective={"redundancy": 1.0})


@pytest.mark.parametrize("preset", ["dreamer_v2", "laptop/dreamer_v2"])
def test_version_2_takes_a_millionth_of_every_weight_away_per_update(preset: str) -> None:
    """The paper's weight decay is not multiplied by the learning rate, that of AdamW is."""
    config = load_config(HOME / f"{preset}.yaml")
    for learner in (config.learner, config.behaviour.actor_critic.learner):
        weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        Learner(lambda weight=weight: (0 * weight.sum(), None), [weight], learner).update()
        assert 1 - weight.item() == pytest.approx(1e-6, rel=1e-4)


@pytest.mark.parametrize("preset", ["dreamer_v1", "dreamer_v2", "dreamer_v3", "planet", "dream"])
def test_images_enter_the_papers_models_past_the_layers_of_vectors(preset: str) -> None:
    config, spec = load_config(HOME / f"{preset}.yaml").model, ObservationSpec((64, 64, 3), image=True)
    encoder = WorldModel.build(config, {"image": spec}, ActionSpec((1,))).encoder
    assert encoder.size == (config.hidden if preset == "dream" else encoder.widths[0])


def test_the_return_scale_of_a_preset_is_that_of_its_paper() -> None:
    for preset, expected in {"dreamer_v3": 1.0, "laptop/dreamer_v3": 1.0, "pendulum": 50.0}.items():
        config = load_config(HOME / f"{preset}.yaml").behaviour.actor_critic
        scale = ActorCritic(config, 4, ActionSpec((1,))).scale.after(torch.tensor(50.0))
        assert scale.item() == pytest.approx(expected), preset


def joint_gradients(made: Trainer, weight: float) -> dict[str, Tensor]:
    """Of the model's parameters, in the one loss, on the same batch with the same noise."""
    made.run.behaviour.config.replay_value = weight  # type: ignore[union-attr]
    batch = made.run.replay.gather(made.run.replay.draw(4, 8))
    torch.manual_seed(0)
    loss, _ = made.updater.joint_loss(batch, annealed(made.config.objective, 0), None)
    named = dict(made.run.model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


def test_the_values_of_replayed_states_shape_the_model(tmp_path: Path) -> None:
    """With the weight w of the replay loss, the model's gradient is that without plus w times another, nowhere else."""
    made = trainer(tmp_path, "dreamer_v3", replay={"online": False})
    made.prefill(made.config.training.prefill)
    last = made.run.behaviour.critic.last  # type: ignore[union-attr]
    torch.nn.init.normal_(last.weight)  # it begins at zero, where no gradient passes
    gradients = []
    for weight in (1e-9, 1.0, 2.0):
        made.run.replay.sampler.rng = type(made.run.replay.sampler.rng)(
            type(made.run.replay.sampler.rng.bit_generator)(0)
        )
        gradients.append(joint_gradients(made, weight))
    none, one, two = gradients
    moved = {name for name in none if not torch.allclose(none[name], one[name], rtol=1e-3, atol=1e-7)}
    assert any(name.startswith("dynamics") for name in moved) and any(name.startswith("encoder") for name in moved)
    assert not any(name.startswith(("decoders", "reward", "cont")) for name in moved)
    for name in moved:
        torch.testing.assert_close(two[name] - none[name], 2 * (one[name] - none[name]), rtol=1e-2, atol=1e-4)


def test_pathwise_gradients_are_not_for_one_loss(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gradient to score"):
        trainer(tmp_path, "dreamer_v3", behaviour={"actor_critic": {"gradient": "pathwise"}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"behaviour": {"name": "planner"}}, "it is planner"),
        ({"objective": {"bound": "fivo", "beta": 1.0, "balance": None, "free_nats_for": "posterior"}}, "it is fivo"),
    ],
)
def test_what_does_not_go_together_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(HOME / "dreamer_v3.yaml", **changes)


def test_windows_go_on_from_the_states_that_were_stored(tmp_path: Path) -> None:
    made = trainer(tmp_path, "dreamer_v3")
    made.prefill(made.config.training.prefill)
    run = made.run
    places = run.replay.draw(50, 8)
    start = made.updater.context(places, "cpu")
    stored = run.replay.context(places)
    assert stored is not None
    packed, known = stored
    assert known.any() and torch.equal(
        pack(type(start)(*(field.unsqueeze(1) for field in start)))[known, 0], packed[known]
    )
    initial = run.model.initial(50)
    for field, first in zip(start, initial, strict=True):
        assert torch.equal(field[~known], first[~known])
    made.update()
    window = run.replay.gather(places)
    for _ in range(20):  # updates store what they infer: soon every step but a ring's last time steps
        made.update()
    assert run.replay.latents.known[:, : int(run.replay.written[0])].all()
    assert window.reward.shape == (50, 8)


def test_a_state_survives_packing(build: Callable[..., WorldModel]) -> None:
    for member in ("rssm", "kvae", "dvbf filter"):
        state = build(member).initial(3)
        filled = type(state)(*(torch.randn_like(field) for field in state))
        packed = pack(type(state)(*(field.unsqueeze(1) for field in filled)))
        for field, again in zip(filled, unpack(packed[:, 0], state), strict=True):
            assert torch.equal(field, again)


def test_a_config_extends_another(tmp_path: Path) -> None:
    config = load_config(HOME / "dreamer_v3" / "1m.yaml")
    assert config.model.dynamics.rssm.deter == 512 and config.model.dynamics.rssm.cell == "blocks"
    assert config.behaviour.actor_critic.replay_value == 0.3 and config.behaviour.actor_critic.hidden == 64
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nseed: 1")
    with pytest.raises(ValueError, match=r"extends itself, through a\.yaml and b\.yaml"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("extends: nowhere.yaml")
    with pytest.raises(ValueError, match=r"c\.yaml extends"):
        load_config(tmp_path / "c.yaml")
    (tmp_path / "d.yaml").write_text("extends: 3")
    with pytest.raises(ValueError, match=r"extends is 3\. It must be the name of a file"):
        load_config(tmp_path / "d.yaml")
