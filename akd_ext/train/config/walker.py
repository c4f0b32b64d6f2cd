"""Holds the sections of a YAML file against the table in `schema`.

Each check raises `ConfigError` with one sentence: the key's path, its line in the file, the nearest valid choice.
"""

from __future__ import annotations

from typing import Any

from akd_ext.train.system.errors import ConfigError, nearest, resembles

from . import registries
from .document import Tagged, YamlTree
from .schema import OLD_NAMES, SECTIONS, Key, is_known
from .values import TYPES, arguments_of, number_in_text, type_of_argument


class Walker:
    """Holds sections of one file against the table in `schema`."""

    def __init__(self, tree: YamlTree):
        self.tree = tree
        self.root = tree.plain()
        self.ignored: list[str] = []  # the paths of keys that nothing reads

    def fail(self, key_path: str, problem: str, given: Any = None, valid: Any = ()) -> None:
        raise ConfigError(f"{key_path}: {problem}{_hint(given, valid)} ({self.tree.location(key_path)})")

    def section(self, parent: dict, path: str, key: str, *, kind: str | None = None, required: bool = False) -> Any:
        """The mapping at ``path.key``, checked as ``kind``; None where it is absent or made by a tag, {} if empty."""
        inner, value = join(path, key), parent.get(key)
        if value is not None and not isinstance(value, (dict, Tagged)):
            self.fail(inner, f"'{key}' must be a mapping, not {value!r}")
        if value is None:
            if required:
                self._missing(parent, path, key)
            return {} if key in parent else None
        if isinstance(value, Tagged):
            return None
        if kind is not None:
            self.keys(value, inner, kind)
        return value

    def _missing(self, parent: dict, path: str, key: str) -> None:
        others = [other for other in parent if other != key and not is_known(str(other))]
        meant = [other for other in others if resembles(other, [key], 0.6)]
        if key not in parent and meant:
            self.fail(join(path, meant[0]), f"torchdistill reads no '{meant[0]}' here", meant[0], [key])
        self.fail(join(path, key), f"the section '{key}' {'is empty' if key in parent else 'is missing'}")

    def keys(self, section: dict, path: str, kind: str) -> None:
        """Every key of one section by the table; then what the table cannot say, in ``also_KIND``."""
        known = SECTIONS[kind]
        self.unknown_keys(section, path, known)
        for name, key in known.items():
            if key.section and (section.get(name) or key.required):
                self.section(section, path, name, kind=key.section, required=key.required)
            elif key.registry and (name in section or key.required):
                found = self.registered(section, path, name, key)
                if key.given is not None:
                    self.call(found, str(section[name]), section, path, given=key.given)
                if key.registry in ("optimizer", "scheduler"):
                    self.typed_arguments(found, section, path, key.given)
            elif key.type and (section.get(name) is not None or key.required):
                self.typed(section, path, name, key.type)
        more = getattr(self, "also_" + kind.replace(" ", "_"), None)
        if more is not None:
            more(section, path)

    def unknown_keys(self, section: dict, path: str, known: Any, reader: str = "torchdistill") -> None:
        """Refuses keys that must be typing errors, or are of an old version; takes note of others that nothing reads."""
        for key in section:
            if not isinstance(key, str):
                self.fail(join(path, key), f"a key must be text, not {key!r}", key, known)
            if key in known or key.startswith("_"):  # torchdistill's files keep anchors under such keys
                continue
            inner, new = join(path, key), OLD_NAMES.get(key)
            if new in known and new not in section and not getattr(known[new], "required", False):
                self.fail(inner, f"before version 1 torchdistill called it '{key}', now it is '{new}'")
            near = resembles(key, known)
            if near:
                self.fail(inner, f"{reader} reads no '{key}' here", key, [near])
            if section[key] is not None:
                self.ignored.append(inner)

    def registered(self, section: dict, path: str, name: str, key: Key) -> Any:
        """What the key names in its registry; None if it is absent or not known yet."""
        value, inner, valid = section.get(name), join(path, name), registries.choices(key.registry)
        if isinstance(value, Tagged):
            return None
        if value is None:
            if key.required:
                old = "; before version 1 torchdistill called it 'name'" if name == "key" and "name" in section else ""
                self.fail(
                    inner, f"'{name}' is missing; it names a {key.registry}, for example '{_example(valid)}'{old}"
                )
            return None
        if not isinstance(value, str) or value not in valid:
            none = "" if valid else "; none is registered"
            self.fail(inner, f"'{value}' is not a registered {key.registry}{none}", value, valid)
        return valid[value]

    def typed(self, section: dict, path: str, name: str, type_name: str) -> None:
        """One value of a type in `values.TYPES`."""
        value, inner = section.get(name), join(path, name)
        if isinstance(value, Tagged):
            return
        if name not in section:
            near = [key for key in section if resembles(key, [name], 0.6)]
            self.fail(inner, f"'{name}' is missing{_old_name(name, section)}", name, near)
        self.no_number_in_text(value, inner)
        wanted, is_valid = TYPES[type_name]
        if not is_valid(value):
            self.fail(inner, f"'{name}' must be {wanted}, not {value!r}")

    def no_number_in_text(self, value: Any, key_path: str) -> None:
        meant = number_in_text(value)
        if meant is not None:
            self.fail(key_path, f"YAML reads '{value}' as text, not as a number; write {meant!r}")

    def call(self, function: Any, label: str, section: dict, path: str, *, given: int) -> None:
        """Checks the kwargs at ``path.kwargs``: no numbers that YAML reads as text, and the `signature`."""
        kwargs = section.get("kwargs")
        if function is not None and isinstance(kwargs, dict):
            for key, value in kwargs.items():
                self.no_number_in_text(value, f"{path}.kwargs.{key}")
        self.signature(function, label, section, path, given=given)

    def signature(self, function: Any, label: str, section: dict, path: str, *, given: int) -> None:
        """Holds the kwargs at ``path.kwargs`` against the signature of what will be called with them."""
        kwargs, inner = section.get("kwargs"), join(path, "kwargs")
        if isinstance(kwargs, Tagged) or function is None:
            return
        if kwargs is not None and not isinstance(kwargs, dict):
            self.fail(inner, f"'kwargs' must be a mapping, not {kwargs!r}")
        arguments = arguments_of(function, given)
        if arguments is None:
            return
        if arguments.drops_others:
            self.unknown_keys(kwargs or {}, inner, arguments.named, label)
        for key in [] if arguments.takes_any else kwargs or {}:
            if key not in arguments.named:
                self.fail(join(inner, key), f"{label} takes no '{key}'", key, arguments.named)
        for name in () if arguments.takes_more or section.get("args") else arguments.required:
            if name not in (kwargs or {}):
                self.fail(inner, f"{label} needs '{name}'")

    def typed_arguments(self, function: Any, section: dict, path: str, given: int) -> None:
        """The kwargs of an optimizer or a scheduler: most of them take a text, or a fraction, and go wrong later."""
        arguments = arguments_of(function, given) if function is not None else None
        kwargs = section.get("kwargs") or {}
        for name, parameter in arguments.named.items() if arguments is not None else ():
            wanted = type_of_argument(parameter)
            if wanted is not None and kwargs.get(name) is not None:
                self.typed(kwargs, f"{path}.kwargs", name, wanted)


def join(path: str, key: Any) -> str:
    """``path.key``, where ``path`` may be the file itself."""
    return f"{path}.{key}" if path else str(key)


def _hint(given: Any, valid: Any) -> str:
    valid = [str(choice) for choice in valid]
    if not valid:
        return ""
    if resembles(given, valid, 0.5) or len(valid) > 15 or len(valid) == 1:
        return f"; the nearest valid choice is '{nearest(given, valid)}'"
    return f"; the valid choices are {', '.join(valid)}"


def _example(valid: Any) -> str:
    usual = ("forward_batch_only", "WeightedSumLoss", "KDLoss", "SimpleLossWrapper", "SGD", "MultiStepLR", "resnet18")
    return next((name for name in usual if name in valid), None) or next(iter(valid))


def _old_name(name: str, section: dict) -> str:
    old = [key for key in section if OLD_NAMES.get(key) == name]
    return f"; before version 1 torchdistill called it '{old[0]}'" if old else ""
