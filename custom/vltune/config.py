"""YAML or JSON to frozen dataclasses: an unknown, missing or wrongly typed key is an error."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from vltune.yaml_reader import read_yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration is wrong; the message names the file, the key, the value and the cure."""


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML (or JSON) file whose top level is a mapping.

    Raises:
        ConfigError: The file is missing, is not YAML, or holds no mapping.
    """
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file. Give the path of an existing configuration."
        ) from error
    # A path with a zero byte is a ValueError, as bytes that are not UTF-8 are.
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}. Correct the file.") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: expected a mapping of keys at the top, got {type(content).__name__}"
        )
    return content


def load_config(cls: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Read `path` into the frozen dataclass `cls`; `overrides` are `key.sub=value` in YAML."""
    mapping = apply_overrides(read_mapping(path), overrides)
    return from_mapping(cls, mapping, str(path))


def apply_overrides(mapping: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `mapping` with `key.sub=value` applied; values are read as YAML.

    Raises:
        ConfigError: An override is not `key=value`, or goes below a key that holds no mapping.
    """
    result = {key: _copy(value) for key, value in mapping.items()}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(
                f"override {override!r}: expected key=value, such as federation.rounds=2"
            )
        *parents, last = key.strip().split(".")
        node = result
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(
                    f"override {override!r}: {parent!r} holds {child!r}, which has no keys"
                )
            node = child
        try:
            node[last] = read_yaml(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: {text!r} is not a YAML value") from error
    return result


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value


def from_part(cls: type[T], mapping: Mapping[str, Any], source: str) -> T:
    """Build `cls` from those keys of a larger mapping that are fields of it; see `from_mapping`."""
    fields = cls.__dataclass_fields__  # type: ignore[attr-defined] # cls is a dataclass
    return from_mapping(cls, {key: mapping[key] for key in fields if key in mapping}, source)


def from_mapping(cls: type[T], mapping: Mapping[str, Any], source: str) -> T:
    """Build the frozen dataclass `cls` (nested ones too) from `mapping`.

    Args:
        cls: A dataclass; fields without a default must be present.
        mapping: Keys and values as YAML gives them.
        source: File (and key) the mapping comes from, for messages.

    Raises:
        ConfigError: Unknown or missing key, wrong type, NaN, or a value that `__post_init__`
            refuses.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{source}: expected a mapping of keys, got {mapping!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type] # cls is a dataclass
    unknown = sorted(str(key) for key in mapping if key not in fields)
    if unknown:
        raise ConfigError(
            f"{source}: unknown key {', '.join(unknown)}; known keys: {', '.join(fields)}"
        )
    missing = [
        name
        for name, field in fields.items()
        if name not in mapping
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{source}: missing key {', '.join(missing)}")
    values = {
        name: _convert(hints[name], value, f"{source}: {name}") for name, value in mapping.items()
    }
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def _convert(hint: Any, value: Any, source: str) -> Any:
    """Convert one YAML value to the annotated type, or raise ConfigError."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(hint, value, source)
    if origin is typing.Literal:
        return _convert_literal(hint, value, source)
    if origin in (tuple, list):
        return _convert_sequence(hint, value, source)
    if origin is dict:
        return _convert_dict(hint, value, source)
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, source)  # type: ignore[arg-type] # a dataclass type
    return _convert_scalar(hint, value, source)


def _convert_union(hint: Any, value: Any, source: str) -> Any:
    options = typing.get_args(hint)
    if value is None and type(None) in options:
        return None
    chosen = [option for option in options if option is not type(None)]
    return _convert(chosen[0], value, source)


def _convert_literal(hint: Any, value: Any, source: str) -> Any:
    allowed = typing.get_args(hint)
    if value not in allowed or isinstance(value, bool):
        raise ConfigError(
            f"{source}: expected one of {', '.join(map(str, allowed))}, got {value!r}"
        )
    return value


def _convert_sequence(hint: Any, value: Any, source: str) -> Any:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{source}: expected a list, got {value!r}")
    (item_hint, *_rest) = typing.get_args(hint)
    items = [_convert(item_hint, item, f"{source}[{index}]") for index, item in enumerate(value)]
    return tuple(items) if typing.get_origin(hint) is tuple else items


def _convert_dict(hint: Any, value: Any, source: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{source}: expected a mapping, got {value!r}")
    _key_hint, item_hint = typing.get_args(hint)
    return {str(key): _convert(item_hint, item, f"{source}.{key}") for key, item in value.items()}


def _convert_scalar(hint: Any, value: Any, source: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            raise ConfigError(f"{source}: expected a number that a float can hold") from None
        if math.isnan(number):
            raise ConfigError(f"{source}: expected a number, got NaN")
        return number
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3 (no dot) as a string.
        try:
            return _convert_scalar(float, float(value), source)
        except ValueError:
            raise ConfigError(f"{source}: expected a number, got {value!r}") from None
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{source}: expected {hint.__name__}, got {value!r}")


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a dataclass as JSON-able nested dicts; paths become strings, tuples lists."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_mapping(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
