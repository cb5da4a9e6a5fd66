"""Plug-ins: code outside the package, found by import path or by name, imported and called.

A setting names a plug-in as Lightning's command line does, `{class_path: package.module.Name,
init_args: {...}}`; the path alone is enough, and so is a name that a package offers in the entry
points `recame.plugins`. A plug-in is imported only if settings name it, and only when it is needed,
because importing runs code.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from importlib.metadata import (
    EntryPoint,
    PackageNotFoundError,
    entry_points,
    packages_distributions,
    version,
)
from typing import Any, ClassVar

from recame.errors import PluginError

logger = logging.getLogger(__name__)

#: Entry points in which a package offers names for what it has.
GROUP = "recame.plugins"

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_HOW = "write package.module.Name, or {class_path: package.module.Name, init_args: {...}}"


@dataclass(frozen=True)
class Plugin:
    """Something outside the package that a setting names.

    Attributes:
        class_path: `package.module.Name` of a class, a function or an object.
        init_args: with which it is called, beside what its place gives it.
        package: the distribution that holds it and its version, as `boards==1.2`; None: it is not
            installed as one.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)
    package: str | None = None

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.class_path.rpartition(".")[2]

    def load(self, setting: str) -> Any:
        """Import it.

        Args:
            setting: that names it, for the error.

        Raises:
            PluginError: it cannot be imported; says which package to install.
        """
        module, _, name = self.class_path.rpartition(".")
        try:
            found = getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            missing = error.name or module
            if missing != module and not module.startswith(f"{missing}."):
                raise PluginError(
                    f"{setting} names {self.class_path}, whose package needs {missing!r}, which is "
                    f"not installed: pip install {missing}."
                ) from error
            raise PluginError(
                f"{setting} names {self.class_path}, but there is no module {missing!r} here, so "
                f"the run cannot be used as it was made. {self._way_out()}"
            ) from error
        except AttributeError as error:
            raise PluginError(
                f"{setting} names {self.class_path}, but {module} has no {name}. Correct the name, "
                "or install the version that has it"
                f"{f' ({self.package})' if self.package else ''}."
            ) from error
        except Exception as error:
            raise PluginError(
                f"{setting} names {self.class_path}, but importing {module} fails "
                f"({type(error).__name__}: {error}): correct that module."
            ) from error
        self._warn_of_another_version(setting)
        return found

    def make(self, setting: str, *args: Any, **words: Any) -> Any:
        """Import it and call it with its `init_args` beside these arguments.

        Raises:
            PluginError: it cannot be imported, or does not take the arguments.
        """
        made = self.load(setting)
        try:
            return made(*args, **words, **self.init_args)
        except TypeError as error:
            raise PluginError(
                f"{setting} names {self.class_path}, which cannot be called with "
                f"init_args={self.init_args} ({error}): correct init_args, or the signature."
            ) from error

    def factory(self, setting: str) -> Callable[..., Any]:
        """`make` to be called later."""
        return partial(self.make, setting)

    def _way_out(self) -> str:
        if self.package is not None:
            return f"Install the package that the run was made with: pip install '{self.package}'"
        top = self.class_path.partition(".")[0]
        return (
            f"Install the package that holds {top}, or put the folder that {top} lies in on "
            "PYTHONPATH."
        )

    def _warn_of_another_version(self, setting: str) -> None:
        distribution, _, noted = (self.package or "").partition("==")
        try:
            found = version(distribution) if noted else noted
        except (PackageNotFoundError, ValueError):
            found = "none"
        if found != noted:
            logger.warning(
                "%s comes from %s %s, but the run was made with %s: it may behave differently.",
                setting,
                distribution,
                found,
                noted,
            )


def as_plugin(value: object) -> object:
    """Convert what a person writes to a plug-in.

    Args:
        value: an import path, a name of the entry points, or a mapping with `class_path`.

    Raises:
        ValueError: the value has another form.
    """
    if isinstance(value, Plugin):
        return value
    if isinstance(value, str):
        value = {"class_path": value}
    if not isinstance(value, Mapping) or "class_path" not in value:
        raise ValueError(f"{_HOW}{_offered()}")
    path, package = value["class_path"], value.get("package")
    if isinstance(path, str) and path in registered():
        point = registered()[path]
        path, package = point.value.replace(":", "."), package or _package_of_point(point)
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise ValueError(f"{path!r} is not an import path: {_HOW}{_offered()}")
    return {**value, "class_path": path, "package": package or _package_of(path)}


def offered(name: str) -> Plugin | None:
    """The plug-in that the entry points offer under a name, if there is one."""
    point = registered().get(name)
    if point is None:
        return None
    return Plugin(point.value.replace(":", "."), package=_package_of_point(point))


def plugin_of(made: Any) -> Plugin | None:
    """The plug-in by which another process can import a function or class; None: it cannot.

    A `functools.partial` gives its keywords as `init_args`, where JSON can say them.
    """
    words: dict[str, Any] = {}
    while isinstance(made, partial):
        if made.args:
            return None
        words, made = {**made.keywords, **words}, made.func
    path = f"{getattr(made, '__module__', '')}.{getattr(made, '__qualname__', '')}"
    if not _PATH.fullmatch(path) or path.startswith("__main__."):
        return None
    try:
        if json.loads(json.dumps(words)) != words:
            return None
        plugin = Plugin(path, words, _package_of(path))
        return plugin if plugin.load("it") is made else None
    except (TypeError, ValueError, PluginError):
        return None


def takes(made: Callable[..., Any], word: str) -> bool:
    """Whether something can be called with a keyword of this name."""
    import inspect

    target = getattr(made, "forward", made)
    try:
        return word in inspect.signature(target).parameters
    except (TypeError, ValueError):  # of C
        return False


@cache
def registered() -> dict[str, EntryPoint]:
    """Name -> entry point, of every installed package that offers some."""
    return {point.name: point for point in entry_points(group=GROUP)}


def _offered() -> str:
    names = ", ".join(sorted(registered()))
    return f", or a name that an installed package offers ({names})" if names else ""


def _package_of_point(point: EntryPoint) -> str | None:
    return None if point.dist is None else f"{point.dist.name}=={point.dist.version}"


@cache
def _package_of(path: str) -> str | None:
    """The distribution that holds a module, with its version, if there is one."""
    top = path.partition(".")[0]
    for point in registered().values():  # what is installed to be edited lists no files
        if point.value.partition(":")[0].partition(".")[0] == top:
            return _package_of_point(point)
    names = packages_distributions().get(top, ())
    return f"{names[0]}=={version(names[0])}" if names else None
