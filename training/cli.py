"""The command line: `worldmodel train | fit | evaluate | diagnose | imagine | play | collect | export`.

Imports torch only after the arguments are understood.
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

FAILED, INTERRUPTED, UNHEARD = 2, 130, 141  # exit codes; the last two as a shell has them for SIGINT and SIGPIPE
LONGEST = 2_000  # characters of an error
OVERRIDES = "any key of the config can be given as --section.key value, for example --model.hidden 128"


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, as all other errors are told."""

    def error(self, message: str) -> NoReturn:
        self.exit(FAILED, f"{self.prog}: error: {printable(message)}; {self.prog} --help shows what it takes\n")


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
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
    train.add_argument("--seed", type=int, help="of everything random; default: the config's")
    train.add_argument("--run", metavar="DIR", help="the run folder to make; default: a free one under runs/")
    train.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with an interrupted run instead; with --training.steps for longer, --training.device elsewhere, "
        "--evaluation.videos true to film its evaluations from here on",
    )
    fit = commands.add_parser("fit", help="fit a world model to recorded sequences", epilog=OVERRIDES)
    fit.add_argument("config", help="YAML file, for example configs/tanks.yaml")
    fit.add_argument("data", metavar="DATA", help="a .csv or .npz file, a run folder, or minari:DATASET_ID")
    fit.add_argument("--seed", type=int, help="of everything random but the split; default: the config's")
    fit.add_argument("--run", metavar="DIR", help="the run folder to make; default: a free one under runs/")


def _that_look(commands: Any) -> None:
    which = Parser(add_help=False)
    which.add_argument(
        "--checkpoint", default="latest", help="latest, best, or the number of one that was kept; default: %(default)s"
    )
    evaluate = commands.add_parser("evaluate", parents=[which], help="returns of a trained agent on seeds it never saw")
    evaluate.add_argument("run", metavar="RUN", help="a run folder")
    evaluate.add_argument("--episodes", type=int, help="default: evaluation.final_episodes of its config")
    evaluate.add_argument("--device", help="default: the one it was trained on")
    evaluate.add_argument("--json", action="store_true", help="end with one line of JSON")
    diagnose = commands.add_parser(
        "diagnose", parents=[which], help="what a trained model believes: forecasts, collapse, actions"
    )
    diagnose.add_argument("run", metavar="RUN", help="a run folder; figures and numbers go into RUN/media")
    diagnose.add_argument(
        "data", nargs="?", metavar="DATA", help="a recording; default: the run's own replay, a fit's test data"
    )
    diagnose.add_argument("--context", type=int, default=8, help="steps seen before a forecast; default: %(default)s")
    diagnose.add_argument("--horizon", type=int, default=15, help="steps imagined; default: %(default)s")
    diagnose.add_argument("--samples", type=int, default=64, help="imagined paths per forecast; default: %(default)s")
    diagnose.add_argument("--state", default="", metavar="NAME,NAME", help="unobserved columns of a fit's data")
    diagnose.add_argument(
        "--against", metavar="RUN2", help="another run, to compare the ELBO on data that neither has learned from"
    )
    diagnose.add_argument("--device", help="default: the one it was trained on")
    diagnose.add_argument("--json", action="store_true", help="end with one line of JSON")
    imagine = commands.add_parser(
        "imagine", parents=[which], help="videos of what a trained model foretells, dreams and does"
    )
    imagine.add_argument("run", metavar="RUN", help="a run folder; videos and a strip of pictures go into RUN/media")
    imagine.add_argument(
        "data", metavar="DATA", nargs="?", type=Path, help="a recording; default: the run's own, a fit's test data"
    )
    imagine.add_argument("--context", type=int, default=5, help="steps seen before a forecast; default: %(default)s")
    imagine.add_argument("--horizon", type=int, help="steps imagined; default: 45, fewer where episodes are shorter")
    imagine.add_argument("--count", type=int, default=4, help="sequences side by side; default: %(default)s")
    imagine.add_argument("--seed", type=int, default=0, help="which sequences; default: %(default)s")
    imagine.add_argument("--start", type=int, help="the one sequence from this recorded step on, 0 being the oldest")
    imagine.add_argument("--device", help="default: the one it was trained on")
    play = commands.add_parser(
        "play", parents=[which], help="step inside a trained model's dream, one action for every key"
    )
    play.add_argument("run", metavar="RUN", help="a run folder; the film of it goes into RUN/media")
    play.add_argument("--seed", type=int, default=0, help="where it begins, and of all chance; default: %(default)s")
    play.add_argument("--start", type=int, help="begin at this recorded step, 0 being the oldest; default: drawn ones")
    play.add_argument("--device", help="default: the one it was trained on")


def _that_record(commands: Any) -> None:
    collect = commands.add_parser("collect", help="record random trajectories of an environment", epilog=OVERRIDES)
    collect.add_argument("config", help="YAML file, for its env section")
    collect.add_argument("--steps", type=int, required=True, help="environment steps")
    collect.add_argument("--out", type=Path, required=True, metavar="PATH", help="an .npz file")
    collect.add_argument("--seed", type=int, help="default: the config's")
    export = commands.add_parser("export", help="turn a recording into a Minari dataset")
    export.add_argument("source", metavar="RUN_OR_NPZ", help="a run folder, or what `collect` wrote")
    export.add_argument("target", metavar="minari:ID", help="for example minari:pendulum/random-v0")
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show where an error came from")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 2 with one line that says what is wrong and what would be right.

    With `--debug` a traceback stands before that line. After an interrupt it returns 130; where nobody reads the output
    to its end (`| head`), 141 and nothing is said.
    """
    given, overrides = split_overrides(sys.argv[1:] if arguments is None else arguments)
    options, rest = parser().parse_known_args(given)
    overrides += rest  # top-level keys, and mistakes that the config will name
    if overrides and options.command in ("evaluate", "diagnose", "imagine", "play", "export"):
        parser().error(f"unknown arguments: {' '.join(overrides)}")
    signal.signal(signal.SIGTERM, _interrupt)  # what batch systems send: save, as after Ctrl-C
    try:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # for `module:EnvId` beside the user; last, so that it hides nothing of ours
        COMMANDS[options.command](options, overrides)
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        print("; ".join(filter(None, (f"worldmodel {options.command}: interrupted", str(interrupt)))), file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # whatever it is, it is told in one line
        if isinstance(error, BrokenPipeError) and _unheard():
            return UNHEARD
        if options.debug:
            traceback.print_exception(error)
        print(f"worldmodel {options.command}: error: {told(error, options.debug)}", file=sys.stderr)
        return FAILED
    return 0


def told(error: Exception, debug: bool = False) -> str:
    """What is wrong, for a person: of mistakes in what was given the text alone, of others also their kind."""
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
    """A message that leaves a terminal as it is and fits on its screen; lines that are indented go on with a list."""
    text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    shown = "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)
    shown = shown if len(shown) <= LONGEST else f"{shown[: LONGEST // 2]} ... {shown[-LONGEST // 2 :]}"  # escapes grow
    first, *rest = shown.split("\n")
    return first + "".join(f"\n{line}" if line.startswith("  ") else f" {line}" for line in rest)


def _unheard() -> bool:
    """Whether nobody reads standard output any more; then nothing is written there either, at the exit."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # it is no file
        return False
    if hasattr(select, "poll"):  # not on Windows
        poll = select.poll()
        poll.register(descriptor, 0)
        if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take `--section.key value` and `--section.key=value` out, wherever they stand."""
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
                "--resume goes on with a run as it was begun: it takes no config, --run or --seed; --training.steps "
                "gives it more steps, --training.device another device, --evaluation.videos films"
            )
        resume(options.resume, *changes(overrides))
        return
    if options.config is None:
        raise ValueError("which config? For example configs/pendulum.yaml, or --resume RUN to go on with a run")
    train(options.config, overrides, run=options.run, **_seed(options))


CHANGES = {"training": ("steps", "device"), "evaluation": ("videos",)}  # of a run that goes on


def changes(overrides: Sequence[str]) -> tuple[int | None, str | None, bool | None]:
    """What of a run can be changed on the way, as nothing of what it has learned depends on it: see CHANGES."""
    from worldmodel.training.config.schema import parse_overrides

    given = parse_overrides(overrides)
    for section, values in given.items():
        if not isinstance(values, dict) or values.keys() - set(CHANGES.get(section, ())):
            known = ", ".join(f"--{name}.{key}" for name, keys in CHANGES.items() for key in keys)
            raise ValueError(f"--resume takes no change of the config but {known}: {' '.join(overrides)}")
    training = given.get("training", {})
    device, videos = training.get("device"), given.get("evaluation", {}).get("videos")
    if not isinstance(videos, bool | None):
        raise ValueError(f"--evaluation.videos is true or false: {videos}")
    return _more_steps(training.get("steps")), None if device is None else str(device), videos


def _more_steps(steps: Any) -> int | None:
    if steps is None:
        return None
    whole = isinstance(steps, int | float) and not isinstance(steps, bool) and math.isfinite(steps) and steps % 1 == 0
    if not whole or not 1 <= steps < 2**63:
        raise ValueError(f"--training.steps must be a whole number from 1 up, of 64 bits: {steps}")
    return int(steps)


def _fit(options: argparse.Namespace, overrides: list[str]) -> None:
    from worldmodel.training.fitting.fit import fit
    from worldmodel.training.fitting.scores import table

    made = fit(options.config, options.data, overrides, run=options.run, **_seed(options))
    print(table(made.results))


def _evaluate(options: argparse.Namespace, _: list[str]) -> None:
    from worldmodel.training.evaluation.returns import promise
    from worldmodel.training.logging.lines import json_safe
    from worldmodel.training.loop.loop import describe
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
            f"{blind} left out of what is foretold and dreamt: the model has no decoder of them (model.images: "
            f"{run.config.model.images}). To see what it believes, train one with model.images: reconstruction",
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
    print(f"{options.out}: {rows} rows, of {steps} environment steps and the resets before them")


def _export(options: argparse.Namespace, _: list[str]) -> None:
    from worldmodel.training.data.minari_export import export

    print(f"{options.target}: {export(options.source, options.target)} episodes")


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
