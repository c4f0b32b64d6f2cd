"""Finds what a dotted name in a YAML file refers to, or says what it could have meant."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import Any

from akd_ext.train.system.errors import ConfigError, nearest, one_sentence


def import_module(name: str, key_path: str, package: str | None = None) -> Any:
    """Imports a module.

    Raises:
        ConfigError: there is no such module (names the nearest one), or it fails while it is being imported.
    """
    try:
        return importlib.import_module(name, package)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name and (name + ".").startswith(error.name + "."):
            raise ConfigError(f"{key_path}: there is no module '{name}'{_hint(name)}") from error
        raise ConfigError(f"{key_path}: importing '{name}' failed: {one_sentence(error)}") from error
    except Exception as error:
        raise ConfigError(
            f"{key_path}: importing '{name}' failed with {type(error).__name__}: {one_sentence(error)}"
        ) from error


def import_attribute(key: str, key_path: str, package: str | None = None) -> Any:
    """Imports ``package.key`` (or the dotted ``key``) the way torchdistill's ``import_get`` does.

    Raises:
        ConfigError: names the key path, the missing part, and the nearest name that exists.
    """
    if package is None:
        package, _, key = key.rpartition(".")
    if not package:
        raise ConfigError(f"{key_path}: '{key}' is not a dotted name such as torchvision.datasets.CIFAR10")
    module = import_module(package, key_path)
    if not hasattr(module, key):
        near = nearest(key, [name for name in dir(module) if not name.startswith("_")])
        hint = f"; the nearest valid choice is '{package}.{near}'" if near else ""
        raise ConfigError(f"{key_path}: the module '{package}' has no '{key}'{hint}")
    return getattr(module, key)


def _hint(name: str) -> str:
    """Follows the name as far as it exists, then looks for the nearest module there."""
    parent, paths = "", None
    for part in name.split("."):
        found = {module.name for module in pkgutil.iter_modules(paths)}
        if part not in found:
            near = nearest(part, found)
            return f"; the nearest valid choice is '{parent}{near}'" if near else ""
        parent += part + "."
        spec = importlib.util.find_spec(parent[:-1])
        if spec is None or not spec.submodule_search_locations:
            return ""
        paths = list(spec.submodule_search_locations)
    return ""
