"""One full DreamerV3 update of another library, ready to be timed: a worker for `benchmarks/update.py`.

    python3 -m venv peers
    peers/bin/pip install torch==2.13.0 sheeprl==0.8.4 torchrl==0.14.1
    peers/bin/python benchmarks/update_peers.py sheeprl --size S

An environment of its own, with the torch that the toolkit is timed with: what these two need is no concern of ours.
TorchRL's C++ extension may not load beside this torch, and says so; no update needs it.

The first line on stdout says what was built, after one update to warm up. Then every line of stdin that holds a number
n makes n updates, and is answered with the seconds and the CPU seconds of each. Both are JSON. The libraries' own
output goes to stderr.

An update is one batch of 16 windows of 64 steps, the same random one each time: the world model (encoder, RSSM,
decoder, reward as two-hot over 255 bins, continuation, KL), imagination of 15 steps from all 1,024 posterior states,
the actor, and the critic (two-hot, with its slow copy); every loss with its gradients, clipping and optimizer step.
Eager, in float32, without metrics. Encoder, decoder, heads, actor and critic have two hidden layers, prior and
posterior one. A control's actor learns from the score of its actions, as in DreamerV3, or with `--gradient pathwise`
through the imagined steps, as sheeprl has it by default. The rest is each library's own:

- sheeprl: its `train`, on its preset XS for our S, and its S for our M. A dense GRU with layer norm, learnt initial
  states, gradients clipped by their norm, Adam. Convolutions have kernels of 4.
- torchrl: the learner and the optimisation step of the DreamerV3 example in its wheel. A GRU in 8 blocks with RMS norm,
  or with `--cell gru` a dense one without a norm; gradients clipped by the norms of the weights, momentum after RMS
  scaling. Convolutions have kernels of 5. The critic does not learn from replayed steps here, as sheeprl's never does.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

LAYERS, BINS = 2, 255
VECTOR, IMAGE, ACTION = 3, (3, 64, 64), 1


class Size(NamedTuple):
    preset: str  # of sheeprl
    deter: int
    groups: int  # of the latent state
    classes: int
    units: int
    image_depth: int  # channels of the first convolution; each further one has twice as many


SIZES = {"S": Size("XS", 256, 16, 16, 256, 16), "M": Size("S", 512, 32, 32, 512, 32)}


class Peer(NamedTuple):
    update: Callable[[], Any]
    parameters: int  # that an optimizer moves


def parameters(*optimizers: Any) -> int:
    return sum(weight.numel() for one in optimizers for group in one.param_groups for weight in group["params"])


def observation(rows: tuple[int, int], options: argparse.Namespace) -> Tensor:
    if options.pixels:
        return torch.randint(256, (*rows, *IMAGE), dtype=torch.uint8, device=options.device)
    return torch.randn(*rows, VECTOR, device=options.device)


# --- sheeprl ---


def sheeprl_config(options: argparse.Namespace) -> Any:
    """Its preset, with our sizes."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf
    from sheeprl.utils.utils import dotdict

    size, model = SIZES[options.size], "algo.world_model"
    overrides = {
        "exp": "dreamer_v3",
        "algo": f"dreamer_v3_{size.preset}",
        "env": "gym",
        "env.id": "Pendulum-v1",
        **{f"algo.cnn_keys.{part}": "[observation]" if options.pixels else "[]" for part in ("encoder", "decoder")},
        **{f"algo.mlp_keys.{part}": "[]" if options.pixels else "[observation]" for part in ("encoder", "decoder")},
        "algo.per_rank_batch_size": options.batch,
        "algo.per_rank_sequence_length": options.window,
        "algo.horizon": options.horizon,
        "algo.actor.objective_mix": float(options.gradient == "score"),
        "algo.dense_units": size.units,
        "algo.mlp_layers": LAYERS,
        f"{model}.stochastic_size": size.groups,
        f"{model}.discrete_size": size.classes,
        f"{model}.recurrent_model.recurrent_state_size": size.deter,
        f"{model}.transition_model.hidden_size": size.units,
        f"{model}.representation_model.hidden_size": size.units,
        f"{model}.encoder.cnn_channels_multiplier": size.image_depth,
        "metric.log_level": 0,
    }
    with initialize_config_module("sheeprl.configs", version_base="1.3"):
        config = compose("config", [f"{name}={value}" for name, value in overrides.items()])
    return dotdict(OmegaConf.to_container(config, resolve=True))


def sheeprl_batch(options: argparse.Namespace) -> dict[str, Tensor]:
    """Time comes first."""
    rows = options.window, options.batch
    batch = {name: torch.zeros(*rows, 1, device=options.device) for name in ("is_first", "terminated", "truncated")}
    batch["observation"] = observation(rows, options)
    batch["actions"] = torch.rand(*rows, ACTION, device=options.device) * 2 - 1
    batch["rewards"] = torch.randn(*rows, 1, device=options.device)
    return batch


def sheeprl(options: argparse.Namespace) -> Peer:
    import hydra
    from lightning.fabric import Fabric
    from sheeprl.algos.dreamer_v3.agent import build_agent
    from sheeprl.algos.dreamer_v3.dreamer_v3 import train
    from sheeprl.algos.dreamer_v3.utils import Moments
    from sheeprl.utils.metric import MetricAggregator

    config, batch = sheeprl_config(options), sheeprl_batch(options)
    MetricAggregator.disabled = True  # these two as its command line does
    torch.distributions.Distribution.set_default_validate_args(config.distribution.validate_args)
    fabric = Fabric(accelerator=options.device, devices=1, precision="32-true")
    box = gym.spaces.Box(0, 255, IMAGE, np.uint8) if options.pixels else gym.spaces.Box(-1, 1, (VECTOR,))
    *modules, _ = build_agent(fabric, (ACTION,), True, config, gym.spaces.Dict({"observation": box}))
    critic, slow_critic = modules[2:]
    settings = config.algo.world_model, config.algo.actor, config.algo.critic
    optimizers = fabric.setup_optimizers(
        *(
            hydra.utils.instantiate(one.optimizer, params=module.parameters(), _convert_="all")
            for one, module in zip(settings, modules, strict=False)  # none for the slow critic
        )
    )
    returns = config.algo.actor.moments
    moments = Moments(returns.decay, returns.max, returns.percentile.low, returns.percentile.high)

    def update() -> None:
        with torch.no_grad():  # its training loop moves the slow critic, before `train`
            for weight, slow in zip(critic.module.parameters(), slow_critic.parameters(), strict=True):
                slow.copy_(config.algo.critic.tau * weight + (1 - config.algo.critic.tau) * slow)
        train(fabric, *modules, *optimizers, batch, None, config, True, (ACTION,), moments)

    return Peer(update, parameters(*optimizers))


# --- torchrl ---

NETWORKS = {  # what its example reads; its presets are not in the wheel
    **{f"{name}_layers": LAYERS for name in ("encoder", "decoder", "reward", "actor", "value")},
    **{f"{name}_layers": 1 for name in ("dynamics", "prior", "posterior")},
    "num_blocks": 8,
    "num_reward_bins": BINS,
    "num_value_bins": BINS,
    "decoder_event_dims": None,
    "image_mults": [1, 2, 4, 8],
    "image_kernel_size": 5,
    "image_decoder_blocks": 1,
    "norm_eps": 1e-4,
    "unimix": 0.01,
    "policy_min_std": 0.1,
    "policy_max_std": 1.0,
}
LEARNING = {
    "replay_value_loss_weight": 0.0,
    "continuation_horizon": 333.0,
    "gamma": 1 - 1 / 333,
    "lmbda": 0.95,
    "free_bits": 1.0,
    "dynamic_loss_weight": 1.0,
    "representation_loss_weight": 0.1,
    "return_normalization_rate": 0.01,
    "return_normalization_min_scale": 1.0,
    "slow_critic_regularization": 1.0,
    "slow_critic_tau": 0.02,
    "lr": 4e-5,
    "adaptive_grad_clip": 0.3,
    "optimizer_eps": 1e-20,
    "warmup_steps": 1000,
    "mixed_precision": False,
}
EAGER = {
    "compile": "off",
    "compile_train_step": None,
    "compile_train_step_mode": "default",
    "compile_rssm": None,
    "rssm_scan_unroll": 1,
    "cudagraph_train_step": None,
}
ENV = {  # never stepped: it tells the shape of the actions
    "backend": "gym",
    "name": "Pendulum-v1",
    "max_episode_steps": 200,
    "use_seed": True,
    "seed": 0,
    "vector_key": "observation",
    "pixels_key": "observation",
}


def torchrl_config(options: argparse.Namespace) -> Any:
    from omegaconf import OmegaConf

    size = SIZES[options.size]
    networks = {
        "rnn_hidden_dim": size.deter,
        "num_categoricals": size.groups,
        "num_classes": size.classes,
        "hidden_dim": size.units,
        "image_depth": size.image_depth,
        "recurrent_model": options.cell,
    }
    learning = {"imagination_horizon": options.horizon, "use_reinforce": options.gradient == "score"}
    return OmegaConf.create(
        {"env": ENV, "networks": {**NETWORKS, **networks}, "optimization": {**LEARNING, **EAGER, **learning}}
    )


def torchrl_batch(options: argparse.Namespace) -> Any:
    from tensordict import TensorDict

    rows, size = (options.batch, options.window), SIZES[options.size]
    never = torch.zeros(*rows, 1, dtype=torch.bool)
    first = never.clone()
    first[:, 0] = True
    following = {
        "observation": observation(rows, options),
        "reward": torch.randn(*rows, 1),
        "done": never,
        "terminated": never.clone(),
    }
    columns = {
        "action": torch.rand(*rows, ACTION) * 2 - 1,
        "is_init": first,
        "state": torch.zeros(*rows, size.groups * size.classes),
        "belief": torch.zeros(*rows, size.deter),
        "next": following,
    }
    return TensorDict(columns, rows).to(options.device)


def torchrl(options: argparse.Namespace) -> Peer:
    import torchrl as library

    sys.path.insert(0, str(Path(library.__file__).parents[1] / "sota-implementations" / "dreamer_v3"))
    example = importlib.import_module("train")
    config, batch, device = torchrl_config(options), torchrl_batch(options), torch.device(options.device)
    vector, image = (0, IMAGE) if options.pixels else (VECTOR, None)
    learner = example._build_learner(config, device, vector, ACTION, image)
    stepper = example._make_learner_update(config, device, learner)
    return Peer(lambda: stepper.step(None, batch), parameters(learner.optimizer))


# --- the worker ---


def timed(peer: Peer, count: int, device: str) -> dict[str, list[float]]:
    """Seconds, and CPU seconds of all threads, of every update."""
    wall, cpu = [], []
    for _ in range(count):
        begun, began = time.perf_counter(), time.process_time()
        peer.update()
        if device == "cuda":
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - began)
    return {"wall": wall, "cpu": cpu}


def own_output() -> TextIO:
    """What stdout was. From now on all that is printed, by any library, goes to stderr."""
    kept = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("sheeprl", "torchrl"))
    parser.add_argument("--size", choices=SIZES, default="S", help="default: %(default)s")
    parser.add_argument("--pixels", action="store_true", help="64 x 64 pictures in three colours, not a vector of 3")
    parser.add_argument("--batch", type=int, default=16, help="windows; default: %(default)s")
    parser.add_argument("--window", type=int, default=64, help="steps; default: %(default)s")
    parser.add_argument("--horizon", type=int, default=15, help="imagined steps; default: %(default)s")
    parser.add_argument("--gradient", choices=("score", "pathwise"), default="score", help="default: %(default)s")
    parser.add_argument("--cell", choices=("block_gru", "gru"), default="block_gru", help="of torchrl")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    options = parser.parse_args()
    output = own_output()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    peer = {"sheeprl": sheeprl, "torchrl": torchrl}[options.peer](options)
    timed(peer, 1, options.device)
    built = {"peer": options.peer, "version": version(options.peer), "torch": torch.__version__}
    built["parameters"] = peer.parameters
    if options.peer == "sheeprl":  # torch's counter cannot look into the tensordicts of TorchRL's modules
        with FlopCounterMode(display=False) as counter:
            timed(peer, 1, options.device)
        built["gflop"] = counter.get_total_flops() / 1e9
    print(json.dumps(built), file=output)
    for line in sys.stdin:
        print(json.dumps(timed(peer, int(line), options.device)), file=output)


if __name__ == "__main__":
    main()
