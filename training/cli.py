"""The command line: `worldmodel train | fit | evaluate | diagnose | imagine | play | collect | export`.

Torch is imported only after the arguments were parsed, so that `--help` is fast.
"""

import argparse
import json
import math
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

FAILED, INTERRUPTED, UNHEARD = 2, 130, 141  # exit codes; a shell gives the last two after SIGINT and SIGPIPE
LONGEST = 2_000  # characters of an error message
OVERRIDES = "Any key of the config can be set with --section.key value, for example --model.hidden 128."


class Parser(argparse.ArgumentParser):
    """A parser that reports wrong arguments in one line, as the commands report all other errors."""

    def error(self, message: str) -> NoReturn:
        self.exit(FAILED, f"{self.prog}: error: {printable(message)}. {self.prog} --help lists the arguments.\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = Parser(
        prog="worldmodel",
        description="Learn a world model of a Gymnasium environment, and an agent in its imagination.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    _that_learn(commands)
    _that_look(commands)
    _that_record(commands)
    return top


def _that_learn(commands: Any) -> None:
    train = commands.add_parser("train", help="train a world model and an agent", epilog=OVERRIDES)
    train.add_argument("config", nargs="?", help="YAML file, for example configs/pendulum.yaml")
    train.add_argument("--seed", type=int, help="seed of everything random; default: the config's")
    train.add_argument("--run", metavar="DIR", help="the run folder to make; default: a free one under runs/")
    train.add_argument(
        "--resume",
        metavar="RUN",
        help="continue an interrupted run instead; --training.steps gives it more steps, --training.device another "
        "device, and --evaluation.videos true films its evaluations from now on",
    )
    fit = commands.add_parser("fit", help="fit a world model to recorded sequences", epilog=OVERRIDES)
    fit.add_argument("config", help="YAML file, for example configs/tanks.yaml")
    fit.add_argument("data", metavar="DATA", help="a .csv or .npz file, a run folder, or minari:DATASET_ID")
    fit.add_argument("--seed", type=int, help="seed of everything random but the split; default: the config's")
    fit.add_argument("--run", metavar="DIR", help="the run folder to make; default: a free one under runs/")


def _that_look(commands: Any) -> None:
    which = Parser(add_help=False)
    which.add_argument(
        "--checkpoint", default="latest", help="latest, best, or the number of a kept checkpoint; default: %(default)s"
    )
    evaluate = commands.add_parser("evaluate", parents=[which], help="measure the returns of an agent on unseen seeds")
    evaluate.add_argument("run", metavar="RUN", help="a run folder")
    evaluate.add_argument("--episodes", type=int, help="default: evaluation.final_episodes of the run's config")
    evaluate.add_argument("--device", help="default: the one it was trained on")
    evaluate.add_argument("--json", action="store_true", help="end with one line of JSON")
    diagnose = commands.add_parser(
        "diagnose",
        parents=[which],
        help="measure a model: forecasts, calibration, latent state, use of actions",
    )
    diagnose.add_argument("run", metavar="RUN", help="a run folder; figures and numbers are written to RUN/media")
    diagnose.add_argument(
        "data", nargs="?", metavar="DATA", help="a recording; default: the replay of the run, or the test data of a fit"
    )
    diagnose.add_argument(
        "--context", type=int, default=8, help="observed steps before a forecast; default: %(default)s"
    )
    diagnose.add_argument("--horizon", type=int, default=15, help="imagined steps; default: %(default)s")
    diagnose.add_argument("--samples", type=int, default=64, help="sampled paths per forecast; default: %(default)s")
    diagnose.add_argument("--state", default="", metavar="NAME,NAME", help="columns of a fit's data that it ignores")
    diagnose.add_argument(
        "--against",
        metavar="RUN2",
        help="another run: compare the ELBO on data that neither was trained on",
    )
    diagnose.add_argument("--device", help="default: the one it was trained on")
    diagnose.add_argument("--json", action="store_true", help="end with one line of JSON")
    imagine = commands.add_parser(
        "imagine", parents=[which], help="make videos of forecasts, imagined episodes and real episodes"
    )
    imagine.add_argument("run", metavar="RUN", help="a run folder; videos and pictures are written to RUN/media")
    imagine.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        type=Path,
        help="a recording; default: the replay of the run, or the test data of a fit",
    )
    imagine.add_argument(
        "--context", type=int, default=5, help="observed steps before a forecast; default: %(default)s"
    )
    imagine.add_argument("--horizon", type=int, help="imagined steps; default: 45, or fewer if episodes are shorter")
    imagine.add_argument("--count", type=int, default=4, help="sequences side by side; default: %(default)s")
    imagine.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of everything random; default: %(default)s",
    )
    imagine.add_argument("--start", type=int, help="show the sequence from this recorded step on; 0 is the oldest")
    imagine.add_argument("--device", help="default: the one it was trained on")
    play = commands.add_parser(
        "play", parents=[which], help="act in the imagination of a trained model; every key is an action"
    )
    play.add_argument("run", metavar="RUN", help="a run folder; a video of the game is written to RUN/media")
    play.add_argument("--seed", type=int, default=0, help="seed of everything random; default: %(default)s")
    play.add_argument("--start", type=int, help="begin at this recorded step; 0 is the oldest; default: a random one")
    play.add_argument("--device", help="default: the one it was trained on")


def _that_record(commands: Any) -> None:
    collect = commands.add_parser("collect", help="record random trajectories of an environment", epilog=OVERRIDES)
    collect.add_argument("config", help="YAML file; its env section is used")
    collect.add_argument("--steps", type=int, required=True, help="environment steps")
    collect.add_argument("--out", type=Path, required=True, metavar="PATH", help="an .npz file")
    collect.add_argument("--seed", type=int, help="default: the config's")
    export = commands.add_parser("export", help="convert a recording to a Minari dataset")
    export.add_argument("source", metavar="RUN_OR_NPZ", help="a run folder, or a file written by `collect`")
    export.add_argument("target", metavar="minari:ID", help="for example minari:pendulum/random-v0")
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    The code is 0, or 2 after an error. An error is shown in one line; with `--debug`, after its traceback. The code is
    130 after an interrupt. If the reader of the output has gone (`| head`), it is 141 and no message is shown.
    """
    given, overrides = split_overrides(sys.argv[1:] if arguments is None else arguments)
    options, rest = parser().parse_known_args(given)
    overrides += rest  # top-level keys; the config reports those that do not exist
    if overrides and options.command in ("evaluate", "diagnose", "imagine", "play", "export"):
        parser().error(f"unknown arguments: {' '.join(overrides)}")
    signal.signal(signal.SIGTERM, _interrupt)  # batch systems send this: save, as after Ctrl-C
    try:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # for `module:EnvId` in the current folder; last, so that it hides no module
        COMMANDS[options.command](options, overrides)
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        print("; ".join(filter(None, (f"worldmodel {options.command}: interrupted", str(interrupt)))), file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # every error is shown in one line
        if isinstance(error, BrokenPipeError) and _unheard():
            return UNHEARD
        if options.debug:
            traceback.print_exception(error)
        print(f"worldmodel {options.command}: error: {told(error, options.debug)}", file=sys.stderr)
        return FAILED
    return 0


def told(error: Exception, debug: bool = False) -> str:
    """Return the message of an error. Errors that are not caused by the user's input also name their type."""
    text = str(error)
    if isinstance(error, ValueError | FloatingPointError):
        return printable(text)
    if isinstance(error, OSError) and error.strerror:
        return printable(f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror)
    if isinstance(error, MemoryError) or "not enough memory" in text or "out of memory" in text:
        text = f"out of memory ({' '.join(text.split())}): lower the sizes of the model, the batch or the replay"
    else:
        cause = f", from {type(error.__cause__).__name__}: {error.__cause__}" if error.__cause__ else ""
        text = f"{type(error).__name__}: {text}{cause}"
    return printable(" ".join(text.split())) + ("" if debug else " (--debug shows where)")


def printable(text: str) -> str:
    """Return a message without control characters, shortened to LONGEST. Only indented lines stay separate."""
    text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    shown = "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)
    shown = (
        shown if len(shown) <= LONGEST else f"{shown[: LONGEST // 2]} ... {shown[-LONGEST // 2 :]}"
    )  # escaped characters are longer
    first, *rest = shown.split("\n")
    return first + "".join(f"\n{line}" if line.startswith("  ") else f" {line}" for line in rest)


def _unheard() -> bool:
    """Return True if the reader of standard output has gone. Then the output at exit is discarded, too."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # it is not a file
        return False
    if hasattr(select, "poll"):  # not on Windows
        poll = select.poll()
        poll.register(descriptor, 0)
        if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the arguments `--section.key value` and `--section.key=value` from the others."""
    rest, overrides = [], []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        key, has_value, _ = argument.partition("=")
        if key.startswith("--") and "." in key:
            overrides += [argument] if has_value or not queue else [argument, queue.pop(0)]
        else:
            rest.append(argument)
    return rest, overrides


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _seed(options: argparse.Namespace) -> dict[str, int]:
    return {} if options.seed is None else {"seed": options.seed}


def _train(options: argparse.Namespace, overrides: list[str]) -> None:
    from worldmodel.training.start import resume, train

    if options.resume is not None:
        if options.config or options.run or options.seed is not None:
            raise ValueError(
                "--resume continues a run with its own config, so it takes no config, --run or --seed. It can be "
                "combined with --training.steps, --training.device and --evaluation.videos."
            )
        resume(options.resume, *changes(overrides))
        return
    if options.config is None:
        raise ValueError(
            "No config is given. Name one, for example configs/pendulum.yaml, or use --resume RUN to continue a run."
        )
    train(options.config, overrides, run=options.run, **_seed(options))


CHANGES = {"training": ("steps", "device"), "evaluation": ("videos",)}  # possible when a run is resumed


def changes(overrides: Sequence[str]) -> tuple[int | None, str | None, bool | None]:
    """Return the steps, the device and the videos that a resumed run gets; None for each that stays as it was.

    Raises:
        ValueError: for a change of any other key: what the run has learned depends on it.
    """
    from worldmodel.training.config.schema import parse_overrides

    given = parse_overrides(overrides)
    for section, values in given.items():
        if not isinstance(values, dict) or values.keys() - set(CHANGES.get(section, ())):
            known = ", ".join(f"--{name}.{key}" for name, keys in CHANGES.items() for key in keys)
            raise ValueError(f"--resume cannot change the config except by {known}. Given: {' '.join(overrides)}")
    training = given.get("training", {})
    device, videos = training.get("device"), given.get("evaluation", {}).get("videos")
    if not isinstance(videos, bool | None):
        raise ValueError(f"--evaluation.videos must be true or false, not {videos}")
    return _more_steps(training.get("steps")), None if device is None else str(device), videos


def _more_steps(steps: Any) -> int | None:
    if steps is None:
        return None
    whole = isinstance(steps, int | float) and not isinstance(steps, bool) and math.isfinite(steps) and steps % 1 == 0
    if not whole or not 1 <= steps < 2**63:
        raise ValueError(f"--training.steps must be a whole number of at least 1 that fits into 64 bits, not {steps}")
    return int(steps)


def _fit(options: argparse.Namespace, overrides: list[str]) -> None:
    from worldmodel.training.fitting.fit import fit
    from worldmodel.training.fitting.scores import table

    made = fit(options.config, options.data, overrides, run=options.run, **_seed(options))
    print(table(made.results))


def _evaluate(options: argparse.Namespace, _: list[str]) -> None:
    from worldmodel.training.evaluation.imagined_vs_real import promise
    from worldmodel.training.logging.lines import json_safe
    from worldmodel.training.loop.evaluations import describe
    from worldmodel.training.run.run import Run

    run = Run.load(options.run, options.device, checkpoint=options.checkpoint)
    result = run.evaluate(options.episodes)
    print(f"{run.folder}: {describe(result)}, after {run.env_steps} environment steps")
    if result.promise is not None:
        print(promise(result))
    if options.json:
        summary = {
            "mean_return": result.mean,
            "std_return": result.std,
            "returns": result.returns,
            "imagined_return": result.promise,
            "imagined_return_weighed": None if result.weighed is None else sum(result.weighed) / len(result.weighed),
            "success_rate": result.success_rate,
            "lengths": result.lengths,
            "env_steps": run.env_steps,
            "unsound_from_step": result.unsound,
            "environment_faults": len(result.faults),
        }
        print(json.dumps(json_safe(summary), allow_nan=False))


def _diagnose(options: argparse.Namespace, _: list[str]) -> None:
    from worldmodel.training.report.diagnose import DiagnoseConfig, diagnose
    from worldmodel.training.report.publish import publish

    config = DiagnoseConfig(options.context, options.horizon, options.samples)
    states = [name.strip() for name in options.state.split(",") if name.strip()]
    given = options.against, options.device, states, options.checkpoint
    found = publish(diagnose(options.run, options.data, config, *given))
    if options.json:
        print(json.dumps(found))


def _imagine(options: argparse.Namespace, _: list[str]) -> None:
    from worldmodel.training.report.imagine import ImagineConfig, imagine
    from worldmodel.training.report.subject import load

    config = ImagineConfig(options.context, options.horizon, options.count, options.seed, options.start)
    run = load(options.run, options.device, options.checkpoint)
    if blind := [key for key in run.obs_specs if key not in run.model.keys]:
        print(
            f"The videos do not show {', '.join(blind)}: the model has no decoder for it (model.images: "
            f"{run.config.model.images}). Train a model with model.images: reconstruction to see it.",
            file=sys.stderr,
        )
    for path in imagine(run, config, data=options.data, note=lambda line: print(line, file=sys.stderr)):
        print(path)


def _play(options: argparse.Namespace, _: list[str]) -> None:
    from worldmodel.training.report.keyboard import typed
    from worldmodel.training.report.play import play
    from worldmodel.training.run.run import Run

    run = Run.load(options.run, options.device, checkpoint=options.checkpoint)
    with typed() as keys:
        print(play(run, keys, options.seed, start=options.start))


def _collect(options: argparse.Namespace, overrides: list[str]) -> None:
    from worldmodel.training.config.config import load_config
    from worldmodel.training.loop.collect import collect

    rows, steps = collect(load_config(options.config, overrides, **_seed(options)), options.steps, options.out)
    print(f"{options.out}: {rows} rows, from {steps} environment steps and the resets before them")


def _export(options: argparse.Namespace, _: list[str]) -> None:
    from worldmodel.training.data.minari_export import export

    print(f"{options.target}: {export(options.source, options.target)} episodes written")


COMMANDS = {
    "train": _train,
    "fit": _fit,
    "evaluate": _evaluate,
    "diagnose": _diagnose,
    "imagine": _imagine,
    "play": _play,
    "collect": _collect,
    "export": _export,
}
