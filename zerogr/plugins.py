"""Plugins: a docid scheme, a ranker or a loss is chosen by its name.

A plain name is a file of ours: `keywords` among the schemes is the class `Keywords` of `zerogr/docids/schemes/keywords.py`.
`package.module:Class` is a class of anybody's, found wherever Python finds the module, on workers too. Every such class names
its settings in `Settings`.
"""

from __future__ import annotations

import importlib
import keyword
import pkgutil
from typing import Any


def load_class(name: str, package: str) -> Any:
    """Returns the class that `name` stands for.

    Args:
        name: Of a file in the package, or `package.module:Class`.
        package: Where our own are.

    Raises:
        ValueError: There is no such class, or it has no `Settings`.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in (known := built_in(package)):
            raise ValueError(f"must be one of {', '.join(known)}, or package.module:Class")
        return _class_of(name, package)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot be loaded ({error}); the workers must be able to import it, too") from None
    if not isinstance(found, type) or not hasattr(found, "Settings"):
        raise ValueError("is not a class with `Settings`")
    return found


def built_in(package: str) -> list[str]:
    """Returns the names of our own plugins of a kind, sorted."""
    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return sorted(module.name for module in modules if hasattr(_class_of(module.name, package), "Settings"))


def _class_of(name: str, package: str) -> Any:
    module = importlib.import_module(f"{package}.{name}")
    class_name = "".join(part.capitalize() for part in name.split("_"))
    return getattr(module, f"{class_name}_" if keyword.iskeyword(class_name) else class_name, None)
