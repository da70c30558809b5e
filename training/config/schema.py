"""Build config dataclasses from YAML files, mappings and the command line.

A config is a tree of plain dataclasses that hold every default. :func:`build` fills one in with the differences from
a YAML file or the command line. It refuses values that do not fit. For an unknown key, the message suggests the most
similar key that exists. For a wrong type, it names the dotted key, the value and the expected type.
"""

import copy
import difflib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from worldmodel.training.config import yaml_text

T = TypeVar("T")

INTEGER_LIMIT = 2**63  # integers must fit into 64 bits, since sizes, counts and seeds have to
MAX_SHOWN_CHARACTERS = 200  # of a value in a message


class ConfigError(ValueError):
    """The error of a config that cannot be built. The message names the dotted key."""


# ------------------------------------------------------------------------------------------------ building


def build(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """Return an instance of the dataclass `cls` with the values of `mapping` and defaults for the rest.

    Args:
        where: the dotted path of this section, used only in messages.
    Raises:
        ConfigError: for an unknown key, a missing value, a value of the wrong type, or one that `__post_init__`
            refuses.
    """
    return _build(cls, mapping, where, list(_dotted_keys(cls, where)))


def _build(cls: type[T], mapping: Any, where: str, known: list[str]) -> T:
    mapping = {} if mapping is None else mapping  # a YAML section whose every line is commented out
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where or 'config'}: {shown(mapping)} is not a section of keys and values.")
    mapping = _with_new_names(cls, mapping, where)
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
            raise ConfigError(f"{dotted}: this key is missing and has no default.")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{where or 'config'}: {error}") from error


def _with_new_names(cls: type, mapping: Mapping[Any, Any], where: str) -> Mapping[Any, Any]:
    """Replace old keys of a section by their new names, and warn about each.

    A dataclass lists them as `RENAMED = {old: new}`. If a mapping has both, the later key counts: an override comes
    after the saved config that it is merged into.
    """
    new_names: Mapping[str, str] = getattr(cls, "RENAMED", {})
    for old, new in new_names.items():
        if old in mapping:
            before, after = _join(where, old), _join(where, new)
            warnings.warn(f"the key '{before}' was renamed: write '{after}'", FutureWarning, stacklevel=2)
    return {new_names.get(key, key): value for key, value in mapping.items()} if new_names else mapping


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
        raise ConfigError(f"{dotted}: {shown(value)} does not fit into an integer of 64 bits.")
    adapter = _adapter(hint)
    for candidate in _readings(value):
        try:
            # Strict mode does not turn a bool into an int. JSON input turns a list into a tuple, and a str into a Path.
            return adapter.validate_json(json.dumps(candidate, allow_nan=False), strict=True)
        except (ValidationError, TypeError, ValueError):
            continue
    raise ConfigError(f"{dotted}: {shown(value)} is not {_describe(hint)}.")


def _is_open(hint: Any) -> bool:
    """Return whether a field holds named arguments of any type, which are passed on to other code."""
    return get_origin(hint) is dict and get_args(hint) == (str, Any)


def _arguments(value: Any, dotted: str) -> dict[str, Any]:
    """Return named arguments unchanged: keys below the top keep their type, and tuples stay tuples."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{dotted}: {shown(value)} is not a section of names and values.")
    for name in value:
        if not isinstance(name, str):
            raise ConfigError(f"{dotted}: the key {shown(name)} is not text. The name of an argument must be text.")
    return {str(name): _argument(item, f"{dotted}.{name}", 1) for name, item in value.items()}


def _argument(value: Any, dotted: str, depth: int) -> Any:
    """Return a value that survives being written to YAML and read back. NumPy scalars become Python numbers.

    Raises:
        ConfigError: for a value that YAML cannot hold. The message names it.
    """
    if depth > yaml_text.MAX_DEPTH:
        raise ConfigError(f"{dotted}: nested deeper than {yaml_text.MAX_DEPTH} levels.")
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
        raise ConfigError(f"{dotted}: {shown(value)} does not fit into an integer of 64 bits.")
    for kind in (int, float, str):
        if isinstance(value, kind):
            break
    else:
        raise ConfigError(
            f"{dotted}: {shown(value)} is a {type(value).__name__}, which a config cannot hold. {_instead(value)}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{dotted}: {value} is not a finite number.")
    return kind(value)


def _instead(value: Any) -> str:
    """Return what to use in place of a value that a config cannot hold."""
    if isinstance(value, Path):
        return "Use its text, str(path)."
    if hasattr(value, "tolist"):
        return "Use a list, array.tolist()."
    return "Use numbers, strings, lists, tuples, or mappings of these."


def shown(value: Any) -> str:
    """Return the `repr` of a value for a message. The middle of a long one is left out."""
    text = repr(value)
    return (
        text
        if len(text) <= MAX_SHOWN_CHARACTERS
        else f"{text[: MAX_SHOWN_CHARACTERS // 2]}...{text[-MAX_SHOWN_CHARACTERS // 2 :]}"
    )


def _too_large(value: Any) -> bool:
    """Return whether a value contains an integer that does not fit into 64 bits."""
    if isinstance(value, Mapping):
        return any(map(_too_large, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_too_large, value))
    return isinstance(value, int) and not -INTEGER_LIMIT <= value < INTEGER_LIMIT


def _readings(value: Any) -> Iterator[Any]:
    """Yield the value, then the number that it spells as a string, then the integer that equals it (1e6 steps)."""
    yield value
    if isinstance(value, str) and yaml_text.EXPONENT_NUMBER.match(value):
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
    """Return the dataclass that a field holds, also if the field is Optional, or None for a leaf."""
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


MIN_SIMILARITY = 0.8  # of a name in another section: two letters of ten may differ


def _unknown(where: str, key: str, siblings: list[str], known: list[str]) -> str:
    """Return the message for a key that does not exist.

    It suggests the same name in another section, else the most similar names, else it lists the keys of the section.
    """
    names = {dotted: dotted.rpartition(".")[2] for dotted in known}
    near = [dotted for dotted, name in names.items() if name == key]
    near = near or [_join(where, name) for name in difflib.get_close_matches(key, siblings, n=1)]
    similar = difflib.get_close_matches(key, names.values(), cutoff=MIN_SIMILARITY)
    near = near or [dotted for dotted, name in names.items() if name in similar]
    if near:
        return f"unknown key '{_join(where, key)}': did you mean {' or '.join(near[:3])}?"
    return f"unknown key '{_join(where, key)}': {where or 'the config'} has {', '.join(siblings) or 'no keys'}."


# ------------------------------------------------------------------------------ YAML, command line, mappings


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `overrides`, section by section. Lists are replaced, not joined."""
    merged = dict(base)
    for key, value in overrides.items():
        if isinstance(key, str) and key not in merged:  # on the command line, a number as a key is text
            key = next((other for other in merged if str(other) == key), key)
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn command-line overrides into a nested mapping. The values are YAML.

    `["--section.key", "value", "--a.b=3"]` becomes `{"section": {"key": "value"}, "a": {"b": 3}}`.
    """
    nested: dict[str, Any] = {}
    for dotted, text in _pairs(arguments):
        *sections, last = dotted.split(".")
        at = nested
        for section in sections:
            at = at.setdefault(section, {})
            if not isinstance(at, dict):
                raise ConfigError(f"--{dotted}: '{section}' was given a value before, so it cannot have a '{last}'.")
        at[last] = _parse(text, f"--{dotted}")
    return nested


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = iter(arguments)
    for argument in rest:
        key, has_value, value = argument.partition("=")
        dotted = key.removeprefix("--")
        if not key.startswith("--") or not all(dotted.split(".")):
            raise ConfigError(f"{shown(argument)} is not an override. Write --section.key value.")
        if dotted.count(".") > yaml_text.MAX_DEPTH:
            raise ConfigError(f"--{dotted}: nested deeper than {yaml_text.MAX_DEPTH} levels.")
        if not has_value:
            value = next(rest, "--")
            if value.startswith("--"):
                raise ConfigError(f"{argument} has no value. Write {argument} VALUE.")
        yield dotted, value


EXTENDS_KEY = "extends"


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, `{}` for an empty file.

    A file with `extends: FILE` holds differences from that file. The path is relative to the folder of the first file.

    Raises:
        ConfigError: if a file does not exist, is not YAML, does not hold keys and values, or extends itself through
            other files.
    """
    return _load(Path(path), ())


def _load(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    try:
        place, is_file = path.resolve(), path.is_file()
        if not is_file:
            beside = sorted(other.name for other in path.parent.glob("*.yaml"))
    except (OSError, RuntimeError, ValueError) as error:  # the name is too long or empty, or links form a circle
        raise ConfigError(f"no config at {path}: {error}") from error
    if place in above:
        raise ConfigError(f"{path}: the file extends itself, through {' and '.join(file.name for file in above)}.")
    by = f" (which {above[-1]} extends)" if above else ""
    if not is_file:
        raise ConfigError(f"no config at {path}{by}: {path.parent}/ holds {', '.join(beside) or 'no .yaml file'}.")
    try:
        with path.open("rb") as file:
            text = file.read(yaml_text.MAX_CHARACTERS + 1)
    except OSError as error:
        raise ConfigError(f"{path}{by} cannot be read: {error.strerror}") from error
    content = _parse(text, str(path))
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path}: the file holds a {type(content).__name__}. It must hold keys and values.")
    content = content or {}
    base = content.pop(EXTENDS_KEY, None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ConfigError(f"{path}: {EXTENDS_KEY} is {shown(base)}. It must be the name of a file.")
    return merge(_load(path.parent / base, (*above, place)), content)


def _parse(text: str | bytes, source: str) -> Any:
    try:
        return yaml_text.parse(text)
    except ValueError as error:
        joint = ", " if str(error).startswith("line ") else ": "
        raise ConfigError(f"{source}{joint}{error}") from error


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a dataclass as nested dictionaries, lists and scalars, which :func:`build` reads and YAML can hold."""
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
    """Return YAML text, in the order of the keys, that :func:`load_yaml` reads back to the same mapping."""
    return yaml_text.dump(mapping)
