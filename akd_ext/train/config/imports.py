"""Finds what a dotted name in a YAML file refers to, or says what it could have meant."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
from typing import Any

from akd_ext.train.system.errors import ConfigError, nearest, one_sentence, resembles


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
    """Follows the name as far as it exists, then looks for a module there whose name is nearly the same."""
    parent, paths = "", None
    for part in name.split("."):
        found = {module.name for module in pkgutil.iter_modules(paths)}
        if part not in found:
            near = resembles(part, found)
            meant = f"; the nearest valid choice is '{parent}{near}'" if near else ""
            return meant if parent or near else f"; put the folder that holds it on PYTHONPATH{_beside(part)}"
        parent += part + "."
        spec = importlib.util.find_spec(parent[:-1])
        if spec is None or not spec.submodule_search_locations:
            return ""
        paths = list(spec.submodule_search_locations)
    return ""


def _beside(name: str) -> str:
    """A command that finds a module of the user's in the current folder, where Python does not look by itself."""
    is_here = os.path.isfile(f"{name}.py") or os.path.isdir(name)
    return ": PYTHONPATH=. akd-train ..." if is_here else ""
