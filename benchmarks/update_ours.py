"""One update of DreamerV3 made ready, and timed when asked: what benchmarks/update.py starts beside those of peers.

    echo update 3 | python benchmarks/update_ours.py --size S --threads 1

It answers every line of its standard input with a line of JSON: `update N` with the seconds of N updates
{"wall": [...], "cpu": [...]}, `parts N` with those of each part, {part: seconds, the least of N}, `peak` with what the
machine's matrix products reach, {"gflops": ...}, `memory` with {"peak_mb": ...}. The first line says what it is.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.agents.actor_critic.actor_critic import ActorCritic, Replayed
from worldmodel.agents.actor_critic.returns import lambda_returns, percentile_spread
from worldmodel.imagination import starts
from worldmodel.kernels.memory import room_for_tensors
from worldmodel.kernels.precision import PRECISIONS
from worldmodel.learning.learner import Learner
from worldmodel.learning.objective import annealed, model_loss
from worldmodel.model import WorldModel
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.training.config.config import Config, load_config
from worldmodel.types import Batch, State

# Sizes as people compare them: a GRU whose memory is not in blocks, two hidden layers in every network.
PLAIN = {"encoder_layers": 2, "decoder_layers": 2, "head_layers": 2}


def compared(width: int, groups: int) -> dict[str, Any]:
    """The memory and all layers so wide, and so many one-hot variables of as many classes."""
    dynamics = {"rssm": {"deter": width, "hidden": width, "cell": "norm", "prior_layers": 1}}
    model = {**PLAIN, "hidden": width, "latent": {"groups": groups, "classes": groups}, "dynamics": dynamics}
    model["image_depth"] = groups
    return {"model": model, "behaviour": {"actor_critic": {"hidden": width, "actor_layers": 2, "critic_layers": 2}}}


SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "S": ("configs/dreamer_v3.yaml", compared(256, 16)),
    "M": ("configs/dreamer_v3.yaml", compared(512, 32)),
    "V3-1m": ("configs/dreamer_v3/1m.yaml", {}),
    "V3-12m": ("configs/dreamer_v3.yaml", {}),
}


class Clock(NamedTuple):
    """Wall and CPU seconds of this process; a device has finished what it was given."""

    wall: float
    cpu: float

    @staticmethod
    def now() -> "Clock":
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return Clock(time.perf_counter(), time.process_time())


def random_batch(batch: int, window: int, pixels: bool, device: str) -> Batch:
    """As from a replay: no episode ends in it."""
    pictures = torch.randint(256, (batch, window, 64 * 64 * 3), dtype=torch.uint8)
    obs = pictures if pixels else torch.randn(batch, window, 3)
    never = torch.zeros(batch, window, dtype=torch.bool, device=device)
    control, reward = torch.rand(batch, window, 1) * 2 - 1, torch.randn(batch, window)
    mask = torch.ones(batch, window, device=device)
    return Batch({"observation": obs.to(device)}, control.to(device), reward.to(device), never, never, never, mask)


def doubling_flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """Of `worldmodel.convolutions.doubled`: each of 16 entries of a kernel meets each pixel of the small image once."""
    return 2 * x[0] * x[2] * x[3] * weight.numel()


OURS = {torch.ops.worldmodel.doubled: doubling_flops}


class Subject:
    """Model, behaviour and what makes them learn, on one batch that never changes."""

    def __init__(self, config: Config, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        image = ObservationSpec((64, 64, 3), image=True)
        specs = {"observation": image if options.pixels else ObservationSpec((3,))}
        action = ActionSpec((1,), low=(-1.0,), high=(1.0,))
        config.learner.compile, config.learner.precision = options.compile, options.precision
        config.behaviour.actor_critic.learner = config.learner
        self.config, self.device = config, options.device
        self.model = WorldModel.build(config.model, specs, action).to(options.device)
        self.behaviour = ActorCritic(config.behaviour.actor_critic, self.model.feature_size, action).to(options.device)
        self.batch = random_batch(options.batch, options.window, options.pixels, options.device)
        self.now = annealed(config.objective, 0, options.device)
        self.parameters = [*self.model.parameters(), *self.behaviour.trained]
        self.joint = not self.behaviour.pathwise  # see `together` in training/loop/updater.py
        trained = self.parameters if self.joint else list(self.model.parameters())
        self.learner = Learner(self.loss, trained, config.learner, self.steps)

    def loss(self, batch: Batch) -> tuple[Tensor, tuple[State, dict[str, Tensor]]]:
        """Of the model, and where both have one loss of the behaviour."""
        loss, (states, metrics) = model_loss(self.model, self.config.objective, batch, self.now)
        if self.joint:
            more, metrics = self.behaviour.loss(self.model, *self.behaviour.given(self.model, states, batch))
            loss = loss + more
        return loss, (type(states)(*(field.detach() for field in states)), metrics)

    def steps(self, *_: Any) -> list[tuple[object, str]]:
        """The methods that `--compile step` compiles."""
        return [*self.model.steps(), *(self.behaviour.steps(self.model) if self.joint else [])]

    def update(self) -> None:
        (states, metrics), _ = self.learner.update(self.batch)
        if self.joint:
            self.behaviour.update_slow_copies(metrics)
        else:
            self.behaviour.learn(self.model, states, self.batch)

    # The parts, each with its gradient, from states that are given; of score-function gradients.

    def parts(self) -> dict[str, Callable[[], Any]]:
        model, batch, behaviour = self.model, self.batch, self.behaviour
        config = self.config.behaviour.actor_critic
        embedding = model.encoder(batch.obs).detach()
        inference = model.observe(batch)
        states = type(inference.states)(*(field.detach().requires_grad_() for field in inference.states))
        begin, _ = starts(states, batch, config.starts)
        trajectory = behaviour.imagine(model, begin)
        feature = trajectory.features.transpose(0, 1)[:-1].detach()
        value = behaviour.value(trajectory.features.transpose(0, 1)).detach().t()
        returns = lambda_returns(trajectory.reward, trajectory.cont, value, config.discount, config.lambda_).detach()
        spread = percentile_spread(returns)

        def observe() -> Tensor:
            found = model.dynamics.observe(embedding, batch.prev_action, batch.is_first)
            return model.dynamics.latent.kl(found.posterior, found.prior).mean() + found.sample.mean()

        def decode() -> Tensor:
            return torch.stack(list(model.log_likelihood(batch, model.feature(states)).values())).mean()

        def imagine() -> None:
            behaviour.imagine(model, begin)

        def actor() -> Tensor:
            asked = trajectory._replace(policy=behaviour.actor(feature).transpose(0, 1))
            return behaviour.actor_loss(asked, returns, value, behaviour.scale.after(spread))[0].mean()

        def critic() -> Tensor:
            loss = behaviour.critic_loss(behaviour.critic(feature), feature, returns.t()).mean()
            replayed = Replayed(model.feature(states), batch)
            return loss + behaviour.replay_loss(replayed, returns[:, 0]).mean() if config.replay_value else loss

        def optimizer() -> None:
            self.learner.clipped()
            self.learner.optimizer.step()
            behaviour.update_slow_copies({"actor_critic/return_spread": spread})

        losses = {"encode": lambda: model.encoder(batch.obs).mean(), "observe": observe, "decode": decode}
        losses |= {"actor": actor, "critic": critic}
        whole = {name: lambda loss=loss: loss().backward() for name, loss in losses.items()}
        return {**whole, "imagine": imagine, "optimiser": optimizer}


def timed(action: Callable[[], Any], count: int) -> list[Clock]:
    """What each of so many calls took."""
    taken = []
    for _ in range(count):
        begun = Clock.now()
        action()
        ended = Clock.now()
        taken.append(Clock(ended.wall - begun.wall, ended.cpu - begun.cpu))
    return taken


def peak(device: str, size: int = 2048) -> float:
    """GFLOP/s of a large product of matrices in single precision, the best of ten."""
    left, right = torch.randn(2, size, size, device=device)
    product = torch.empty(size, size, device=device)
    best = min(clock.wall for clock in timed(lambda: torch.mm(left, right, out=product), 10))
    return 2 * size**3 / best / 1e9


def answer(subject: Subject, asked: str, count: int, device: str) -> dict[str, Any]:
    if asked == "update":
        taken = timed(subject.update, count)
        return {"wall": [clock.wall for clock in taken], "cpu": [clock.cpu for clock in taken]}
    if asked == "parts":
        return {name: min(clock.wall for clock in timed(part, count + 1)[1:]) for name, part in subject.parts().items()}
    if asked == "peak":
        return {"gflops": peak(device)}
    if device != "cpu":
        return {"peak_mb": torch.cuda.max_memory_allocated() // 10**6}
    return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--pixels", action="store_true", help="64 x 64 in three colours instead of three numbers")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--horizon", type=int, default=15)
    parser.add_argument("--width", type=int, help="of every layer and of the memory, instead of the size's")
    parser.add_argument("--gradient", choices=("score", "pathwise"), default="score", help="of the actor")
    parser.add_argument("--replay-value", type=float, help="instead of the config's; the others have none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", default="off", help="learner.compile")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="learner.precision")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    path, changes = SIZES[options.size]
    if options.width:
        changes = compared(options.width, 16)
    given = {"horizon": options.horizon, "gradient": options.gradient, "replay_value": options.replay_value}
    given = {key: value for key, value in given.items() if value is not None}
    overrides = [text for key, value in given.items() for text in (f"--behaviour.actor_critic.{key}", str(value))]
    config = load_config(path, overrides, **changes)
    subject = Subject(config, options)
    begun = Clock.now()
    subject.update()
    first = Clock.now().wall - begun.wall
    subject.update()
    told = {"who": "worldmodel", "torch": torch.__version__, "first": first}
    told["parameters"] = sum(parameter.numel() for parameter in subject.parameters)
    if options.compile == "off":
        with FlopCounterMode(display=False, custom_mapping=OURS) as counter:
            subject.update()
        told["gflop"] = counter.get_total_flops() / 1e9
    print(json.dumps(told), flush=True)
    for line in sys.stdin:
        asked, _, count = line.strip().partition(" ")
        print(json.dumps(answer(subject, asked, int(count or 1), options.device)), flush=True)


if __name__ == "__main__":
    with room_for_tensors():  # as `worldmodel train` does
        main()
