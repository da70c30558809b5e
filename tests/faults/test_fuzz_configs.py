"""Bad configs and bad command lines, made at random from the real configs and the real schema.

`pytest tests/faults -m slow -k fuzz -s` makes ten thousand and prints what they came to.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import pytest
import yaml

from worldmodel.training.config.config import Config
from worldmodel.training.config.fit_config import FitConfig
from worldmodel.training.config.schema import _hints, _section, load_yaml, merge
from worldmodel.training.logging.logger import REPOSITORY

Random = np.random.Generator

BASES = ("cartpole", "pendulum", "dream", "planet_cartpole", "guided_pendulum", "sb3_sac_pendulum", "dreamer_v2")
QUICK, SLOW = 150, 10_000  # bad ones of the default run, and of the slow one
TABLE = "y,u\n" + "\n".join(f"{t % 5},{t % 3}" for t in range(60)) + "\n"


class Case(NamedTuple):
    """A bad command: files to write, what comes after them, and of which words the answer must hold one."""

    name: str
    files: dict[str, bytes]
    arguments: list[str]
    mentions: tuple[str, ...] = ()


class Leaf(NamedTuple):
    """One value that a config can be given."""

    path: tuple[str, ...]
    hint: Any

    @property
    def dotted(self) -> str:
        return ".".join(self.path)


def leaves(cls: Any, path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Every value of a config."""
    for name, hint in _hints(cls).items():
        section = _section(hint)
        if section is None:
            yield Leaf((*path, name), hint)
        else:
            yield from leaves(section, (*path, name))


LEAVES = list(leaves(Config))
SECTIONS = sorted({leaf.path[:k] for leaf in LEAVES for k in range(1, len(leaf.path))})


def nested(path: tuple[str, ...], value: Any) -> Any:
    """{"a": {"b": value}} for ("a", "b")."""
    for key in reversed(path):
        value = {key: value}
    return value


def text_of(mapping: Any) -> bytes:
    return yaml.safe_dump(mapping, sort_keys=False).encode()


def pick(rng: Random, options: Any) -> Any:
    """One of them, not as an array's element."""
    options = list(options)
    return options[rng.integers(len(options))]


def base(rng: Random, tiny: dict[str, Any]) -> dict[str, Any]:
    """A real config in small sizes, so that one that is good after all is quickly built."""
    return merge(
        merge(load_yaml(REPOSITORY / "configs" / f"{pick(rng, BASES)}.yaml"), {"env": {"time_limit": 10}}), tiny
    )


def changed(rng: Random, tiny: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A real config but for one value."""
    return merge(base(rng, tiny), nested(path, value))


# ----------------------------------------------------------------------------------------- bad values and keys

HUGE = ("1e400", "-1e400", ".nan", ".inf", "-.inf", "1e300", str(2**70), str(-(2**70)), str(2**62), str(10**12), "1e9")
OUTSIDE = ("0", "-1", "-0.5", "1.5", "1e-400", *HUGE)
WRONG = ("[]", "[1, 2]", "{}", "{a: 1}", "null", "true", "'text'", "''", "2026-01-01", "1:30", "!!binary aGk=", "0x1F")


def wrong_type(rng: Random, tiny: dict[str, Any]) -> Case:
    leaf = pick(rng, [leaf for leaf in LEAVES if leaf.hint is not Any])
    value = yaml.safe_load(pick(rng, WRONG))
    return Case(
        "wrong type", {"c.yaml": text_of(changed(rng, tiny, leaf.path, value))}, [], (leaf.path[-1], leaf.path[0])
    )


def out_of_range(rng: Random, tiny: dict[str, Any]) -> Case:
    leaf = pick(rng, [leaf for leaf in LEAVES if {int, float} & {leaf.hint, *get_args(leaf.hint)}])
    return Case("out of range", {"c.yaml": text_of(base(rng, tiny))}, [f"--{leaf.dotted}={pick(rng, OUTSIDE)}"])


def no_such_choice(rng: Random, tiny: dict[str, Any]) -> Case:
    leaf = pick(rng, [leaf for leaf in LEAVES if get_origin(leaf.hint) is Literal])
    value = misspelt(rng, str(pick(rng, get_args(leaf.hint))))
    return Case("no such choice", {"c.yaml": text_of(changed(rng, tiny, leaf.path, value))}, [], (leaf.path[-1],))


def misspelt(rng: Random, word: str) -> str:
    """With a letter left out, doubled, changed, or of the other case."""
    at, how = rng.integers(len(word)), rng.integers(4)
    new = ("", 2 * word[at], pick(rng, "qxz_- 7é\x1b"), word[at].swapcase() + "_")[how]
    return word[:at] + new + word[at + 1 :]


def unknown_key(rng: Random, tiny: dict[str, Any]) -> Case:
    path = pick(rng, [*SECTIONS, *(leaf.path for leaf in LEAVES)])
    key = misspelt(rng, path[-1])
    mapping = changed(rng, tiny, (*path[:-1], key), pick(rng, (1, "x", {}, None)))
    return Case("unknown key", {"c.yaml": text_of(mapping)}, [], ("unknown key", key[:3]))


def wrong_nesting(rng: Random, tiny: dict[str, Any]) -> Case:
    section, other = pick(rng, SECTIONS), pick(rng, SECTIONS)
    value = pick(rng, ([], [1], "text", 3, True, [{"name": 1}], nested(other, {})))
    return Case(
        "wrong nesting", {"c.yaml": text_of(changed(rng, tiny, section, value))}, [], (section[-1], "unknown key")
    )


# ---------------------------------------------------------------------------------------------- bad text


def bytes_of_text(rng: Random, tiny: dict[str, Any]) -> Case:
    """What an editor, a disk or a transfer makes of a file."""
    whole = text_of(base(rng, tiny))
    at = int(rng.integers(1, len(whole)))
    noise = rng.integers(256, size=64).astype(np.uint8).tobytes()
    variants = (
        whole[:at] + noise + whole[at:],
        noise,
        whole[:at] + b"\x00" + whole[at:],
        whole[:at] + b"\n\t- [" + whole[at:],
        whole[:at] + b"\xff" + whole[at:],
        whole.decode().encode("utf-16"),
        whole.decode().encode("utf-16-be"),
        b"\xef\xbb\xbf" + whole[:at] + b": :",
        whole.replace(b": ", b":\t", 1)[:at] + b"\n\tx: 1",
        whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :],
        whole[:at],
        whole[:at] + b'"' + whole[at:],
        whole[:at] + b"\r\x85\xe2\x80\xa8: " + whole[at:],
        b"%YAML 9.9\n---\n" + whole,
        whole + b"\n---\n" + whole,
    )
    return Case("bytes", {"c.yaml": pick(rng, variants)}, [])


def duplicate_key(rng: Random, tiny: dict[str, Any]) -> Case:
    mapping = base(rng, tiny)
    key = pick(rng, mapping)
    return Case("duplicate key", {"c.yaml": text_of(mapping) + f"{key}: {{}}\n".encode()}, [], (key,))


def bombs(rng: Random, tiny: dict[str, Any]) -> Case:
    """Ten lines that stand for more than any memory holds, or for themselves."""
    where, width = pick(rng, ("env", "model", "zzz")), int(rng.integers(9, 12))
    lists = ["l0: &l0 [1, 1]"] + [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * width)}]" for i in range(1, 12)]
    maps = ["m0: &m0 {a: 1}"]
    maps += [f"m{i}: &m{i} {{{', '.join(f'k{j}: *m{i - 1}' for j in range(width))}}}" for i in range(1, 12)]
    merges = ["m0: &m0 {a: 1}"] + [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * width)}]}}" for i in range(1, 12)]
    variants = (
        "\n".join([*lists, f"{where}: *l11"]),
        "\n".join([*maps, f"{where}: *m11"]),
        "\n".join([*merges, f"{where}: *m11"]),
        f"env: {{kwargs: {{x: {' '.join(lists)}}}}}",
        f"env: {{kwargs: {{{', '.join(lists)}, x: *l11}}}}",
        f"logger: {{tags: &a [*a]}}\n{where}: 1",
        f"{where}: &a {{b: *a}}",
        "&a a: *a",
        f"{where}: *nowhere",
        f"<<: {{{where}: 1}}",
    )
    return Case("bombs", {"c.yaml": pick(rng, variants).encode()}, [])


def tags(rng: Random, tiny: dict[str, Any]) -> Case:
    leaf = pick(rng, LEAVES)
    tag = pick(
        rng,
        (
            "!!python/object/apply:os.system ['touch marker']",
            "!!python/object/new:os.system ['touch marker']",
            "!!python/name:os.system",
            "!!python/module:os",
            "!!python/tuple [1, 2]",
            "!mine 3",
            "!!int ''",
            "!!int x",
            "!!float ''",
            "!!bool maybe",
            "!!timestamp yesterday",
            "!!set {a, b}",
            "!!omap [a: 1]",
            "!!pairs [a: 1]",
            "!!binary '%'",
            "!<tag:yaml.org,2002:merge> x",
            "!!null x",
        ),
    )
    path = ": {".join(leaf.path) + f": {tag}" + "}" * (len(leaf.path) - 1)
    return Case("tags", {"c.yaml": path.encode()}, [])


def long_and_deep(rng: Random, tiny: dict[str, Any]) -> Case:
    size = int(10 ** rng.uniform(2.5, 5))
    leaf, word = pick(rng, LEAVES), pick(rng, ("x", "é", "\u202e", "1", " ", "-", ".", "a.", "\\", "'"))
    variants: tuple[dict[str, bytes], ...] = (
        {"c.yaml": text_of(nested(leaf.path, word * size))},
        {"c.yaml": text_of({word * size: 1})},
        {"c.yaml": b"env: " + b"[" * size},
        {"c.yaml": b"env: {kwargs: {a: " + b"[" * size + b"]" * size + b"}}"},
        {"c.yaml": b"{a: " * size},
        {"c.yaml": b"env: " + b"- " * size + b"x"},
        {"c.yaml": b"".join(b" " * k + b"a:\n" for k in range(min(size, 400)))},
        {"c.yaml": b"a: |\n " + word.encode() * size},
        {"c.yaml": b"!" * size + b" a"},
        {"c.yaml": b"&" + b"a" * size + b" [*" + b"a" * size + b"]"},
        {"c.yaml": b"seed: " + b"9" * size},
        {"c.yaml": b"seed: 1" + b"e9" * size},
        {"c.yaml": b"seed: 0." + b"9" * size},
        {"c.yaml": b"seed: " + b"1:" * size + b"1"},
        {"c.yaml": b"\n".join(b"k%d: [1, {a: b}]" % k for k in range(min(size, 5000)))},
    )
    return Case("long and deep", pick(rng, variants), [])


def extends(rng: Random, tiny: dict[str, Any]) -> Case:
    good = text_of(base(rng, tiny))
    name = pick(
        rng, ("c.yaml", "./c.yaml", "d.yaml", "e.yaml", "", ".", "..", "/", "gone.yaml", "n" * 300, "a\tb", "~")
    )
    value = pick(rng, (name, name, name, ["d.yaml"], 3, True, {"d.yaml": 1}, "/dev/zero", "/proc/self/mem", "x/y.yaml"))
    files = {"c.yaml": text_of({"extends": value}) + good, "d.yaml": text_of({"extends": "c.yaml"}) + good}
    bad = pick(
        rng, (b"- a list\n", b"\x00", b"extends: d.yaml\n", b"modle: {}\n", b"env: [\n", text_of({"extends": 5}))
    )
    return Case("extends", files | {"e.yaml": bad}, [], ())


# ------------------------------------------------------------------------- what no value alone is wrong with

CONTRADICTIONS = yaml.safe_load((Path(__file__).parent / "contradictions.yaml").read_text())


def contradiction(rng: Random, tiny: dict[str, Any]) -> Case:
    case = pick(rng, CONTRADICTIONS)
    return Case("contradiction", {"c.yaml": text_of(merge(tiny, case["config"]))}, [], tuple(case["says"]))


UNKNOWN = (
    *("", ":", "::", "a:b:c", "Pendulm-v1", "Pendulum-v999", "Pendulum", "pendulum-v1x", "os:Pendulum-v9", "nope:X-v0"),
    *(
        "..x:X-v0",
        ".:X-v0",
        "a/b/c/d",
        "a b-v0",
        "dmc:",
        "dmc:walker",
        "dmc:walker_fly",
        "dmc:_",
        "atari:",
        "atari:pang",
    ),
    *(
        "crafter:",
        "crafter:x",
        "MiniGrid-Nowhere-v0",
        "BabyAI-v",
        "ALE/Pang-v5",
        "é-v0",
        "x\ny-v0",
        "\x1b[31m-v0",
        "-v0",
    ),
    *("faults/Fails-v0", "GymV21Environment-v0", "phys2d/CartPole-v1", "Taxi-v0", "json:X-v0", "1", "x" * 5000 + "-v0"),
)
BAD_SPACES = [(o, "box") for o in ("text", "sequence", "graph", "tuple", "dict", "empty", "none")]
BAD_SPACES += [
    ("box", a) for a in ("text", "sequence", "graph", "tuple", "dict", "empty", "unbounded", "integers", "point")
]


def environment(rng: Random, tiny: dict[str, Any]) -> Case:
    if rng.random() < 0.3:
        observed, acts = pick(rng, BAD_SPACES)
        changes = {"env": {"id": "faults/Shapeless-v0", "kwargs": {"observed": observed, "acts": acts}}}
        return Case("spaces", {"c.yaml": text_of(merge(base(rng, tiny), changes))}, [], ("space",))
    env_id = pick(rng, UNKNOWN)
    return Case(
        "environment",
        {"c.yaml": text_of(changed(rng, tiny, ("env", "id"), env_id))},
        [],
        ("env", "crafter", "ale-py", "dm_control"),
    )


# ------------------------------------------------------------------------------------------ the command line


def command_line(rng: Random, tiny: dict[str, Any]) -> Case:
    leaf = pick(rng, LEAVES)
    dotted = leaf.dotted
    arguments = pick(
        rng,
        (
            [f"--{dotted}"],
            [f"--{dotted}", "--seed", "1"],
            [f"--{dotted}=[1"],
            [f"--{dotted}={{a: "],
            [f"--{dotted}=!!python/name:os.system"],
            [f"--{dotted}.more=1"],
            [f"--{dotted}=1", f"--{dotted}.more=1"],
            [f"--.{dotted}=1"],
            [f"--{dotted}.=1"],
            [f"--{dotted}..x=1"],
            [f"--{misspelt(rng, dotted)}=1"],
            [f"--{dotted}=" + "[" * 2000],
            ["--" + "a." * 5000 + "b=1"],
            ["--=1"],
            ["--.=1"],
            ["--", "x"],
            ["extra"],
            ["extra", "--seed", "2"],
            ["--seed"],
            ["--seed", "x"],
            ["--seed", "-1"],
            ["--seed", str(2**31)],
            ["--seed", str(2**70)],
            ["--seed", "1e400"],
            ["--run"],
            ["--run", "c.yaml"],
            ["--run", "c.yaml/run"],
            ["--run", "/proc/nowhere/run"],
            ["--run", "n" * 300],
            ["--run", "taken"],
            ["--resume", "c.yaml"],
            ["--resume", "nowhere"],
            ["--steps", "3"],
            ["-x"],
            [f"--{dotted}\x00=1"],
            ["--env", "[1]"],
            ["--model=3"],
        ),
    )
    files = {"c.yaml": text_of(base(rng, tiny)), "taken/config.yaml": b"seed: 0\n"}
    return Case("command line", files, arguments)


def two_at_once(rng: Random, tiny: dict[str, Any]) -> Case:
    """Two values of one config that are wrong, or only do not go together."""
    mapping = base(rng, tiny)
    for _ in range(2):
        leaf = pick(rng, LEAVES)
        mapping = merge(mapping, nested(leaf.path, yaml.safe_load(pick(rng, (*WRONG, *OUTSIDE, "2", "3")))))
    return Case("two at once", {"c.yaml": text_of(mapping)}, [])


def of_a_fit(rng: Random, tiny: dict[str, Any]) -> Case:
    """The same for `fit`, which has sections of its own."""
    leaf = pick(rng, list(leaves(FitConfig)))
    mapping = {
        "data": {"observations": ["y"], "controls": ["u"], "window": 5},
        "model": {"hidden": 4, "latent": {"size": 2}, "dynamics": {"rssm": {"deter": 4, "hidden": 4}}},
        "logger": {"wandb": "disabled"},
    }
    value = pick(rng, (*WRONG, *OUTSIDE, "gone", "minari:", "[y]", "[u, u]"))
    files = {"c.yaml": text_of(mapping), "data.csv": TABLE.encode()}
    return Case("fit", files, [f"--{leaf.dotted}={value}"])


MAKERS: tuple[Callable[[Random, dict[str, Any]], Case], ...] = (
    *(wrong_type, out_of_range, no_such_choice, unknown_key, wrong_nesting, bytes_of_text, duplicate_key, bombs, tags),
    *(long_and_deep, extends, contradiction, environment, command_line, two_at_once, of_a_fit),
)


def refused(commands: Any, case: Case) -> None:
    """Write the files of a case, run its command, and remove them."""
    before = {path.name for path in commands.folder.iterdir()}
    for name, content in case.files.items():
        (commands.folder / name).parent.mkdir(exist_ok=True)
        (commands.folder / name).write_bytes(content)
    arguments = ["fit", "c.yaml", "data.csv"] if case.name == "fit" else ["train", "c.yaml"]
    if "--resume" in case.arguments:
        arguments = ["train"]
    commands.refusal([*arguments, *case.arguments], case.name, case.mentions)
    for name in case.files:
        (commands.folder / name).unlink()
    for left in {path.name for path in commands.folder.iterdir()} - before:
        (commands.folder / left).rmdir()


def fuzz(commands: Any, tiny: dict[str, Any], count: int, seed: int) -> None:
    rng, made = np.random.default_rng(seed), 0
    while commands.refused < count:
        refused(commands, MAKERS[made % len(MAKERS)](rng, tiny))
        made += 1
        assert made < 3 * count, f"too many were good after all: {commands.report()}"
    print(f"\nconfigs: {commands.report()}")


@pytest.mark.usefixtures("untrained")
def test_fuzz_configs(commands: Any, tiny: dict[str, Any]) -> None:
    fuzz(commands, tiny, QUICK, seed=0)


@pytest.mark.slow
@pytest.mark.usefixtures("untrained")
def test_fuzz_many_configs(commands: Any, tiny: dict[str, Any]) -> None:
    fuzz(commands, tiny, SLOW, seed=1)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("case", CONTRADICTIONS, ids=lambda case: " ".join(case["says"]))
def test_every_contradiction_is_refused(commands: Any, tiny: dict[str, Any], case: dict[str, Any]) -> None:
    Path("c.yaml").write_bytes(text_of(merge(tiny, case["config"])))
    assert commands.refusal(["train", "c.yaml"], "contradiction", tuple(case["says"])) is not None, case


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("config", BASES)
def test_what_is_changed_is_good_before(commands: Any, tiny: dict[str, Any], config: str) -> None:
    """Else everything would be refused, for a reason that has nothing to do with the change."""
    mapping = load_yaml(REPOSITORY / "configs" / f"{config}.yaml")
    Path("c.yaml").write_bytes(text_of(merge(merge(mapping, {"env": {"time_limit": 10}}), tiny)))
    assert commands.refusal(["train", "c.yaml"], "good") is None
