"""YAML files and command-line overrides in, a typed config out, and back.

A file may name another as `base:` (a path relative to itself) and overlay it. Overlays merge key
by key; where an overlay changes a `type`, that whole section is replaced, since the other type's
fields mean nothing to the new one. Errors name where the key came from, the key, and a remedy.
"""

import difflib
import os
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import draccus
import yaml

from simple_diffusion.config import Precision, RunConfig
from simple_diffusion.config_checks import RefusedValueError
from simple_diffusion.config_precision import AUTO, fastest_precision

MAX_FILE_BYTES = 1_000_000
COMMAND_LINE = "command line"
Sources = dict[str, str]  # dotted key -> where it was set
T = TypeVar("T")


class ConfigError(ValueError):
    """A config that cannot be read; the message names the source, the key and the remedy."""


def load_config(
    path: Path, overrides: Sequence[str] = (), auto: Precision | None = None
) -> RunConfig:
    """Read a YAML file, its bases, and overrides like ``--optim.lr=1e-3``.

    `auto` is what `precision: auto` means; None for what this machine is fastest in.

    Raises:
        ConfigError: missing or malformed file, unknown key, wrong type, or a refused value.
    """
    tree, sources = read_tree(path)
    command_line = parse_overrides(overrides)
    sources.update(dict.fromkeys(dotted_keys(command_line), COMMAND_LINE))
    return decode(_with_precision(merge(tree, command_line), auto), sources, str(path))


def parse_config(text: str, origin: str) -> RunConfig:
    """Read what `dump_config` wrote.

    Raises:
        ConfigError: as `load_config`, blaming `origin`.
    """
    tree = _parse_yaml(text, origin)
    if not isinstance(tree, dict):
        raise ConfigError(f"{origin}: holds no config")
    return decode(tree, {}, origin)


def decode(tree: dict[str, Any], sources: Sources, origin: str) -> RunConfig:
    """Check a nested dict against the dataclasses of a run, and build the config.

    Args:
        tree: sections, keys and values.
        sources: what to blame for each dotted key.
        origin: what to blame for the others.

    Raises:
        ConfigError: unknown key, wrong type, or a refused value.
    """
    return decode_as(RunConfig, _with_precision(tree), sources, origin)


def _with_precision(tree: dict[str, Any], auto: Precision | None = None) -> dict[str, Any]:
    """`precision: auto` made definite, so that a saved config says what was computed."""
    sections = {
        name: section | {"precision": auto or fastest_precision()}
        for name, section in tree.items()
        if isinstance(section, dict) and section.get("precision") == AUTO
    }
    return tree | sections


def decode_as(cls: type[T], tree: dict[str, Any], sources: Sources, origin: str) -> T:
    """As `decode`, for any dataclass of plain values and sections."""
    _check(cls, tree, "", sources, origin, tuple(_keys_of(cls)))
    try:
        value: T = draccus.decode(cls, tree)
        return value
    except (draccus.utils.ParsingError, ValueError) as error:
        refused = _refused_value(error)
        if refused is not None:
            raise ConfigError(f"{sources.get(refused.split()[0], origin)}: {refused}") from None
        key = ".".join(getattr(error, "key_path", ()))
        message = " ".join(str(getattr(error, "message", error)).split())
        where = sources.get(key, origin)
        raise ConfigError(f"{where}: {key}: {message}" if key else f"{where}: {message}") from None


def _refused_value(error: BaseException) -> str | None:
    """The message of a dataclass that refused its values (it starts with the dotted key)."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RefusedValueError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def dump_config(config: RunConfig) -> str:
    """The config as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(draccus.encode(config), sort_keys=False, allow_unicode=True)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Nested dict of ``--a.b=value`` and ``--a.b value`` words; values are YAML."""
    tree: dict[str, Any] = {}
    words = iter(overrides)
    for word in words:
        if not word.startswith("--") or len(word) < 3:
            raise ConfigError(
                f"{COMMAND_LINE}: unexpected {word!r}; overrides are --section.key=value"
            )
        key, equals, text = word[2:].partition("=")
        if not equals:
            value_word = next(words, None)
            if value_word is None or value_word.startswith("--"):
                raise ConfigError(f"{COMMAND_LINE}: --{key} needs a value: --{key}=VALUE")
            text = value_word
        node = tree
        *sections, leaf = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{COMMAND_LINE}: {key} is inside {section}, which has a value")
        node[leaf] = _parse_yaml(text, COMMAND_LINE)
    return tree


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without aliases, whose expansion can exhaust memory, or repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if len(set(map(str, keys))) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.YAMLError(
                f"key {twice!r} stands twice, near line {node.start_mark.line + 1}"
            )
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, _PlainLoader)  # a SafeLoader: builds plain values only
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"{origin}: not valid YAML: {message}") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that one YAML file holds; a `base` in it is a key like any other.

    Raises:
        ConfigError: missing, too large, not YAML, or no mapping.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes; that is not a config")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file, so not a config") from None
    tree = _parse_yaml(text, str(path))
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must be a mapping of sections, not a {type(tree).__name__}")
    return tree


def read_tree(path: Path) -> tuple[dict[str, Any], Sources]:
    """A config file over its bases, not yet checked, and which file set each dotted key.

    Raises:
        ConfigError: as `read_mapping`, and for bases that lead back to themselves.
    """
    return _read(path, ())


def _read(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], Sources]:
    real = Path(os.path.realpath(path))
    if real in seen:
        raise ConfigError(f"{path}: its bases lead back to itself; remove one `base:`")
    tree = read_mapping(path)
    base = tree.pop("base", None)
    sources = dict.fromkeys(dotted_keys(tree), str(path))
    if base is None:
        return tree, sources
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base must be the path of a config file")
    base_tree, base_sources = _read(path.parent / base, (*seen, real))
    return merge(base_tree, tree), base_sources | sources


def merge(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """`overlay` over `base`, key by key; a section that changes its `type` is replaced."""
    if "type" in overlay and overlay["type"] != base.get("type"):
        return overlay
    merged = dict(base)
    for key, value in overlay.items():
        old = merged.get(key)
        merged[key] = (
            merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged


def dotted_keys(tree: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    """Every key of a nested dict, sections included: ``a``, ``a.b``, ..."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from dotted_keys(value, f"{prefix}{key}.")


def _check(
    cls: type,
    tree: dict[str, Any],
    prefix: str,
    sources: Sources,
    origin: str,
    everywhere: Sequence[str],
) -> None:
    """Refuse unknown keys, sections that are no mappings, and null where a value is needed."""
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls) if f.init}
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        where = sources.get(dotted, origin)
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {dotted}{_suggestion(dotted, cls, everywhere)}"
            )
        hint = hints[key]
        if value is None and type(None) not in typing.get_args(hint):
            raise ConfigError(f"{where}: {dotted} must not be null")
        if isinstance(value, bool) and not _allows(hint, bool):
            raise ConfigError(f"{where}: {dotted} must be {_type_name(hint)}, not {value}")
        if not is_dataclass(hint):
            if isinstance(value, dict):
                raise ConfigError(f"{where}: {dotted} is a value, not a section")
            if isinstance(value, list) and not _allows_list(hint):
                raise ConfigError(f"{where}: {dotted} must be one value, not the list {value!r}")
            if typing.get_origin(hint) is tuple and not isinstance(value, list):
                raise ConfigError(f"{where}: {dotted} must be a list like [a, b], not {value!r}")
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {dotted} is a section: give it keys, not {value!r}")
        assert isinstance(hint, type)
        section = _choice(hint, value, dotted, where)
        body = {k: v for k, v in value.items() if section is hint or k != "type"}
        _check(section, body, f"{dotted}.", sources, origin, everywhere)


def _choice(hint: type, tree: dict[str, Any], dotted: str, where: str) -> type:
    """The dataclass of a section: the one its `type` names, where it has types."""
    if not issubclass(hint, draccus.ChoiceRegistry):
        return hint
    choices: dict[str, type] = hint.get_known_choices()  # type: ignore[attr-defined]
    name = tree.get("type")
    if name is None:
        raise ConfigError(f"{where}: {dotted} needs a type: one of {', '.join(choices)}")
    if not isinstance(name, str) or name not in choices:
        close = difflib.get_close_matches(str(name), choices, 1)
        hinted = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"{where}: {dotted}.type {name!r} is not one of {', '.join(choices)}{hinted}"
        )
    return choices[name]


def _allows(hint: Any, wanted: type) -> bool:
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return hint is wanted or (is_union and wanted in typing.get_args(hint))


def _allows_list(hint: Any) -> bool:
    return any(typing.get_origin(h) is tuple for h in (hint, *typing.get_args(hint)))


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _suggestion(dotted: str, cls: type, everywhere: Sequence[str]) -> str:
    """The nearest valid key: a sibling first, then anywhere."""
    prefix, _, leaf = dotted.rpartition(".")
    siblings = [f.name for f in fields(cls) if f.init]
    close = difflib.get_close_matches(leaf, siblings, 1)
    if close:
        return f"; did you mean {prefix}.{close[0]}?" if prefix else f"; did you mean {close[0]}?"
    by_leaf = {key.rpartition(".")[2]: key for key in everywhere}
    close = difflib.get_close_matches(leaf, by_leaf, 1)
    if close:
        return f"; did you mean {by_leaf[close[0]]}?"
    return f"; {prefix or 'the config'} has {', '.join(siblings)}"


def all_keys() -> list[str]:
    """Every dotted key of the default config."""
    return list(_keys_of(RunConfig))


def _keys_of(cls: type) -> Iterator[str]:
    return dotted_keys(draccus.encode(cls()))
