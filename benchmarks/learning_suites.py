"""The suites of benchmarks/learning.py: which configs are trained, and when a task counts as solved."""

from typing import NamedTuple


class Curve(NamedTuple):
    """One cell of a suite: a config and what is changed in it."""

    task: str
    variant: str
    config: str
    overrides: tuple[str, ...]
    solved: float | None = None  # mean return at which the task counts as solved; None: judged by its table alone
    stays: tuple[int, float] = (0, 0.0)  # environment steps from which on every evaluation should reach this return


def _classic() -> list[Curve]:
    often = ("--evaluation.episodes", "20", "--logger.wandb", "disabled")
    pendulum = ("configs/pendulum.yaml", ("--evaluation.every", "200", *often))
    cartpole = ("configs/cartpole.yaml", ("--evaluation.every", "500", "--training.steps", "10000", *often))
    dkf, onehot = ("--model.dynamics.name", "dkf"), ("--model.latent.family", "onehot")
    return [
        Curve("Pendulum-v1", "rssm-gaussian", pendulum[0], pendulum[1], -200, (2000, -200)),
        Curve("Pendulum-v1", "dkf-gaussian", pendulum[0], (*pendulum[1], *dkf), -200, (2000, -200)),
        Curve("CartPole-v1", "rssm-gaussian", cartpole[0], cartpole[1], 500, (6000, 475)),
        Curve("CartPole-v1", "rssm-onehot", cartpole[0], (*cartpole[1], *onehot), 500, (6000, 475)),
    ]


def _family() -> list[Curve]:
    """The other members that can act, on one task, with the config of rssm and dkf in `classic` but for the name."""
    often = ("--evaluation.every", "200", "--evaluation.episodes", "20", "--logger.wandb", "disabled")
    slow = {"srnn", "kvae"}  # these two need more steps
    return [
        Curve(
            "Pendulum-v1",
            f"{name}-gaussian",
            "configs/pendulum.yaml",
            ("--model.dynamics.name", name, *(("--training.steps", "5000") if name in slow else ()), *often),
            -250,
            (4500 if name in slow else 2000, -250),
        )
        for name in ("dvbf", "storn", "vrnn", "rvae", "srnn", "kvae")
    ]


def _planning() -> list[Curve]:
    """By planning: alone, with a critic beyond the horizon, and with the proposals of an actor as well."""
    often = ("--evaluation.every", "500", "--evaluation.episodes", "20", "--logger.wandb", "disabled")
    seldom = ("--evaluation.every", "1000", *often[2:])
    return [
        Curve("Pendulum-v1", "rssm-icem", "configs/planet_pendulum.yaml", often, -200, (2000, -200)),
        Curve("CartPole-v1", "rssm-icem-value", "configs/planet_cartpole.yaml", seldom, 475, (3000, 475)),
        Curve("Pendulum-v1", "rssm-mppi-guided", "configs/guided_pendulum.yaml", often, -200, (2000, -200)),
    ]


def _dream() -> list[Curve]:
    """The preset for state on Gymnasium's classics."""
    often = ("--evaluation.episodes", "20", "--logger.wandb", "disabled")
    config = "configs/dream.yaml"
    pendulum = ("--training.steps", "2500", "--evaluation.every", "250", *often)
    cartpole = ("--env.id", "CartPole-v1", "--training.steps", "6000", "--evaluation.every", "500", *often)
    return [
        Curve("Pendulum-v1", "dream", config, pendulum, -200, (1500, -200)),
        Curve("CartPole-v1", "dream", config, cartpole, 500, (4000, 500)),
    ]


def _papers() -> list[Curve]:
    """The three Dreamers in small, on Gymnasium's classics."""
    often = ("--logger.wandb", "disabled")
    tasks = (("Pendulum-v1", -200, (6000, -250)), ("CartPole-v1", 500, (6000, 475)))
    longer = {("Pendulum-v1", "dreamer_v2"): ("--training.steps", "16000")}  # 8,000 are not enough for its REINFORCE
    return [
        Curve(
            task,
            preset,
            f"configs/laptop/{preset}.yaml",
            ("--env.id", task, *longer.get((task, preset), ()), *often),
            solved,
            stays,
        )
        for task, solved, stays in tasks
        for preset in ("dreamer_v1", "dreamer_v2", "dreamer_v3")
    ]


def _control() -> list[Curve]:
    """The same preset on the DeepMind Control Suite, from state, two frames to a step."""
    tasks = {"cartpole_swingup": 800, "pendulum_swingup": 800, "reacher_easy": 940}
    often = ("--env.action_repeat", "2", "--evaluation.episodes", "10", "--logger.wandb", "disabled")
    return [
        Curve(
            f"dmc_{task}", "dream", "configs/dream.yaml", ("--env.id", f"dmc:{task}", *often), solved, (25000, solved)
        )
        for task, solved in tasks.items()
    ]


def _sparse() -> list[Curve]:
    """A reward that random actions do not find, and a price on every action: with curiosity, and without."""
    often = ("--env.id", "MountainCarContinuous-v0", "--training.steps", "6000", "--logger.wandb", "disabled")
    often = (*often, "--evaluation.every", "500", "--evaluation.episodes", "20")
    return [
        Curve("MountainCarContinuous-v0", "dream", "configs/dream.yaml", often, 90, (4000, 90)),
        Curve(
            "MountainCarContinuous-v0",
            "without-curiosity",
            "configs/dream.yaml",
            ("--behaviour.name", "actor_critic", *often),
            90,
            (4000, 90),
        ),
    ]


def _sb3() -> list[Curve]:
    """Algorithms of Stable-Baselines3 that learn in the dream alone."""
    often = ("--evaluation.every", "250", "--evaluation.episodes", "20", "--logger.wandb", "disabled")
    return [
        Curve("Pendulum-v1", f"{name.upper()}-dreaming", f"configs/sb3_{name}_pendulum.yaml", often, -250, (4000, -250))
        for name in ("sac", "ppo")
    ]


def _pixels() -> list[Curve]:
    """From pictures alone, one at a time."""
    often = ("--evaluation.every", "1000", "--evaluation.episodes", "20", "--logger.wandb", "disabled")
    often = (*often, "--env.record_state", "true")  # for `worldmodel diagnose`
    configs = {"rssm": "configs/pendulum_pixels.yaml", "redundancy": "configs/pendulum_pixels_redundancy.yaml"}
    return [Curve("Pendulum-v1-pixels", name, file, often, -250, (15000, -250)) for name, file in configs.items()]


def _minigrid() -> list[Curve]:
    """A key, a door, and a goal whose arrival alone is rewarded; random actions get there once in ten episodes."""
    often = ("--training.steps", "20000", "--evaluation.episodes", "20", "--logger.wandb", "disabled")
    return [Curve("MiniGrid-DoorKey-5x5-v0", "actor_critic", "configs/suites/minigrid.yaml", often, 0.9, (15000, 0.9))]


def _windows() -> list[Curve]:
    """As many replayed steps an update in long windows and in short ones, which begin from nothing or from memory."""
    often = ("--training.steps", "2500", "--evaluation.every", "250", "--logger.wandb", "disabled")
    variants = {"64x16": (64, 16, "false"), "64x16-context": (64, 16, "true"), "16x64": (16, 64, "false")}
    return [
        Curve(
            "Pendulum-v1",
            name,
            "configs/pendulum.yaml",
            ("--replay.batch_size", str(count), "--replay.window", str(window), "--replay.context", context, *often),
            -200,
            (1500, -200),
        )
        for name, (count, window, context) in variants.items()
    ]


def _precision() -> list[Curve]:
    """With products in half the precision: the first of `windows` otherwise."""
    often = ("--training.steps", "2500", "--evaluation.every", "250", "--logger.wandb", "disabled")
    half = ("--learner.precision", "bfloat16", "--behaviour.actor_critic.learner.precision", "bfloat16")
    return [Curve("Pendulum-v1", "bfloat16", "configs/pendulum.yaml", (*half, *often), -200, (2000, -200))]


CONTROL18 = (
    *("cartpole_balance", "cartpole_balance_sparse", "cartpole_swingup", "cartpole_swingup_sparse"),
    *("pendulum_swingup", "reacher_easy", "reacher_hard", "ball_in_cup_catch"),
    *("finger_spin", "finger_turn_easy", "finger_turn_hard"),
    *("walker_stand", "walker_walk", "walker_run"),
    *("cheetah_run", "hopper_hop", "hopper_stand", "acrobot_swingup"),
)
"""The eighteen tasks of the DeepMind Control Suite that learners from state are compared on."""


def _control18() -> list[Curve]:
    """100,000 frames, two to a step; 50 episodes at 50,000 and 100,000 frames for the table of control18.py."""
    table = ("--evaluation.milestones", "[25000]", "--evaluation.final_episodes", "50", "--logger.wandb", "disabled")
    return [
        Curve(f"dmc_{task}", "dream", "configs/suites/dmc.yaml", ("--env.id", f"dmc:{task}", *table))
        for task in CONTROL18
    ]


SUITES = {
    "classic": _classic(),
    "family": _family(),
    "planning": _planning(),
    "dream": _dream(),
    "papers": _papers(),
    "control": _control(),
    "sparse": _sparse(),
    "sb3": _sb3(),
    "pixels": _pixels(),
    "minigrid": _minigrid(),
    "windows": _windows(),
    "precision": _precision(),
    "control18": _control18(),
}
