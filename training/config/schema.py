"""Dataclasses from nested mappings, with errors that name the key; and the YAML and command line they come from.

A config is a tree of plain dataclasses that hold every default. :func:`build` fills one in from the differences
that a YAML file or the command line gives, and refuses what does not fit: an unknown key is answered with the
nearest right one, a wrong type with the dotted key, the value and what was expected.
"""

import copy
import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from worldmodel.training.config import yaml_text

T = TypeVar("T")

LARGEST = 2**63  # whole numbers of this size and more fit no size, count or seed
SHOWN = 200  # characters of a value in a message


class ConfigError(ValueError):
    """A config that cannot be built. The message names the dotted key."""


# ------------------------------------------------------------------------------------------------ building


def build(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """An instance of the dataclass `cls` with the values of `mapping` and defaults for the rest.

    Args:
        where: dotted path of this section, for messages only.
    Raises:
        ConfigError: for an unknown key, a missing or mistyped value, or one that `__post_init__` refuses.
    """
    return _build(cls, mapping, where, list(_dotted_keys(cls, where)))


def _build(cls: type[T], mapping: Any, where: str, known: list[str]) -> T:
    mapping = {} if mapping is None else mapping  # a YAML section whose every line is commented out
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where or 'config'}: {shown(mapping)} is not a section of keys and values")
    hints = _hints(cls)
    for key in mapping:
        if key not in hints:
            raise ConfigError(_unknown(where, str(key), list(hints), known))
    values = {}
    for field in _init_fields(cls):
        dotted = _join(where, field.name)
        if field.name in mapping:
            values[field.name] = _value(hints[field.name], mapping[field.name], dotted, known)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{dotted}: missing, and it has no default")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{where or 'config'}: {error}") from error


def _value(hint: Any, value: Any, dotted: str, known: list[str]) -> Any:
    section = _section(hint)
    if section is None:
        return _leaf(hint, value, dotted)
    if value is None and hint is not section:  # Optional section
        return None
    if isinstance(value, str) and str in get_args(hint):  # a section that may be given in one word
        return value
    return _build(section, value, dotted, known)


_adapter = cache(TypeAdapter)


def _leaf(hint: Any, value: Any, dotted: str) -> Any:
    if _is_open(hint):
        return _arguments(value, dotted)
    if _too_large(value):
        raise ConfigError(f"{dotted}: {shown(value)} is too large for a whole number of 64 bits")
    adapter = _adapter(hint)
    for candidate in _readings(value):
        try:
            # Strict, so that no bool becomes an int; as JSON, so that a list becomes a tuple and a string a Path.
            return adapter.validate_json(json.dumps(candidate, allow_nan=False), strict=True)
        except (ValidationError, TypeError, ValueError):
            continue
    raise ConfigError(f"{dotted}: {shown(value)} is not {_describe(hint)}")


def _is_open(hint: Any) -> bool:
    """Whether a field holds arguments of somebody else's, by name, of whatever kind."""
    return get_origin(hint) is dict and get_args(hint) == (str, Any)


def _arguments(value: Any, dotted: str) -> dict[str, Any]:
    """Arguments by name, as they are: no key becomes a text and no tuple a list."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{dotted}: {shown(value)} is no section of names and values")
    for name in value:
        if not isinstance(name, str):
            raise ConfigError(f"{dotted}: the key {shown(name)} is not text, as the name of an argument is")
    return {str(name): _argument(item, f"{dotted}.{name}", 1) for name, item in value.items()}


def _argument(value: Any, dotted: str, depth: int) -> Any:
    """A value that YAML can hold, and give back as it was; NumPy's scalars are the numbers that they are.

    Raises:
        ConfigError: naming the value that it cannot hold.
    """
    if depth > yaml_text.DEEPEST:
        raise ConfigError(f"{dotted}: nested deeper than {yaml_text.DEEPEST} levels")
    if isinstance(value, Mapping):
        keys = [_argument(key, f"{dotted}: the key {shown(key)}", depth + 1) for key in value]
        items = [_argument(item, f"{dotted}.{key}", depth + 1) for key, item in value.items()]
        return dict(zip(keys, items, strict=True))
    if isinstance(value, list | tuple):
        parts = [_argument(item, f"{dotted}[{at}]", depth + 1) for at, item in enumerate(value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if _too_large(value):
        raise ConfigError(f"{dotted}: {shown(value)} is too large for a whole number of 64 bits")
    for kind in (int, float, str):
        if isinstance(value, kind):
            break
    else:
        raise ConfigError(
            f"{dotted}: {shown(value)} is a {type(value).__name__}, which no config can hold: {_instead(value)}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{dotted}: {value} is not a finite number")
    return kind(value)


def _instead(value: Any) -> str:
    """What to write in place of a value that a config cannot hold."""
    if isinstance(value, Path):
        return "give its text, str(path)"
    if hasattr(value, "tolist"):
        return "give a list, array.tolist()"
    return "give numbers, texts, lists, tuples, or mappings of these"


def shown(value: Any) -> str:
    """A value in a message: as Python writes it, without the middle where that is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}...{text[-SHOWN // 2 :]}"


def _too_large(value: Any) -> bool:
    """Whether a whole number somewhere in a value has more than 64 bits."""
    if isinstance(value, Mapping):
        return any(map(_too_large, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_too_large, value))
    return isinstance(value, int) and not -LARGEST <= value < LARGEST


def _readings(value: Any) -> Iterator[Any]:
    """The value; a number written as a string; a whole number written as a float (1e6 steps)."""
    yield value
    if isinstance(value, str) and yaml_text.NUMBER.match(value):
        value = float(value)
        yield value
    if isinstance(value, float) and value.is_integer() and not _too_large(int(value)):
        yield int(value)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_describe(arg) for arg in get_args(hint))
    if hint in (bool, type(None)):
        return "true or false" if hint is bool else "null"
    if get_origin(hint) is None and isinstance(hint, type):
        return f"of type {hint.__name__}"
    return f"of type {str(hint).replace('typing.', '')}"


# ------------------------------------------------------------------------------------------- keys and hints


def _init_fields(cls: Any) -> list[Field[Any]]:
    return [field for field in fields(cls) if field.init]


def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in _init_fields(cls)}


def _section(hint: Any) -> Any | None:
    """The dataclass that a field holds, also where it is Optional; None for a leaf."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next((option for option in options if isinstance(option, type) and is_dataclass(option)), None)


def _dotted_keys(cls: Any, where: str) -> Iterator[str]:
    for name, hint in _hints(cls).items():
        dotted = _join(where, name)
        yield dotted
        if (section := _section(hint)) is not None:
            yield from _dotted_keys(section, dotted)


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


ELSEWHERE = 0.8  # how similar a name in another section has to be: two letters of ten may differ


def _unknown(where: str, key: str, siblings: list[str], known: list[str]) -> str:
    """The message for a key that does not exist: the same name elsewhere, else the most similar, else what there is."""
    names = {dotted: dotted.rpartition(".")[2] for dotted in known}
    near = [dotted for dotted, name in names.items() if name == key]
    near = near or [_join(where, name) for name in difflib.get_close_matches(key, siblings, n=1)]
    similar = difflib.get_close_matches(key, names.values(), cutoff=ELSEWHERE)
    near = near or [dotted for dotted, name in names.items() if name in similar]
    if near:
        return f"unknown key '{_join(where, key)}': did you mean {' or '.join(near[:3])}?"
    return f"unknown key '{_join(where, key)}': {where or 'the config'} has {', '.join(siblings) or 'no keys'}"


# ------------------------------------------------------------------------------ YAML, command line, mappings


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `overrides`, section by section; lists are replaced, not joined."""
    merged = dict(base)
    for key, value in overrides.items():
        if isinstance(key, str) and key not in merged:  # on the command line every key is text, also of a number
            key = next((other for other in merged if str(other) == key), key)
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`["--section.key", "value", "--a.b=3"]` -> `{"section": {"key": "value"}, "a": {"b": 3}}`; values are YAML."""
    nested: dict[str, Any] = {}
    for dotted, text in _pairs(arguments):
        *sections, last = dotted.split(".")
        at = nested
        for section in sections:
            at = at.setdefault(section, {})
            if not isinstance(at, dict):
                raise ConfigError(f"--{dotted}: '{section}' was given a value before, so it has no '{last}'")
        at[last] = _parse(text, f"--{dotted}")
    return nested


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = iter(arguments)
    for argument in rest:
        key, has_value, value = argument.partition("=")
        dotted = key.removeprefix("--")
        if not key.startswith("--") or not all(dotted.split(".")):
            raise ConfigError(f"{shown(argument)} is not an override: write --section.key value")
        if dotted.count(".") > yaml_text.DEEPEST:
            raise ConfigError(f"--{dotted}: nested deeper than {yaml_text.DEEPEST} levels")
        if not has_value:
            value = next(rest, "--")
            if value.startswith("--"):
                raise ConfigError(f"{argument} has no value: write {argument} VALUE")
        yield dotted, value


EXTENDS = "extends"


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; `{}` for an empty one.

    Where it says `extends: FILE`, a path from where it lies, it holds differences from that file.

    Raises:
        ConfigError: if a file does not exist, is not YAML, holds something else than keys and values, or extends one
            that extends it.
    """
    return _load(Path(path), ())


def _load(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    try:
        place, is_file = path.resolve(), path.is_file()
        if not is_file:
            beside = sorted(other.name for other in path.parent.glob("*.yaml"))
    except (OSError, RuntimeError, ValueError) as error:  # a name too long or no name, links in a circle
        raise ConfigError(f"no config at {path}: {error}") from error
    if place in above:
        raise ConfigError(f"{path}: extends itself, by way of {' and '.join(file.name for file in above)}")
    by = f" (which {above[-1]} extends)" if above else ""
    if not is_file:
        raise ConfigError(f"no config at {path}{by}: {path.parent}/ holds {', '.join(beside) or 'no .yaml file'}")
    try:
        with path.open("rb") as file:
            text = file.read(yaml_text.LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{path}{by} cannot be read: {error.strerror}") from error
    content = _parse(text, str(path))
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__} at the top, not keys and values")
    content = content or {}
    base = content.pop(EXTENDS, None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ConfigError(f"{path}: {EXTENDS} is the name of a file, not {shown(base)}")
    return merge(_load(path.parent / base, (*above, place)), content)


def _parse(text: str | bytes, source: str) -> Any:
    try:
        return yaml_text.parse(text)
    except ValueError as error:
        joint = ", " if str(error).startswith("line ") else ": "
        raise ConfigError(f"{source}{joint}{error}") from error


def to_mapping(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain dictionaries, lists and scalars: what :func:`build` takes and YAML can write."""
    hints = _hints(type(config))
    values = {name: getattr(config, name) for name in hints}
    return {name: copy.deepcopy(value) if _is_open(hints[name]) else _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_mapping(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def dump_yaml(mapping: Mapping[str, Any]) -> str:
    """YAML text that :func:`load_yaml` reads back to the same mapping, in the order of its keys."""
    return yaml_text.dump(mapping)
