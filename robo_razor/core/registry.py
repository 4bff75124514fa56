"""A small typed registry: names to objects, with errors that list and suggest.

A registry looks in three places: first among what was registered already; then among the files of
its own package (the file `ppo.py` registers `ppo`, and is imported when somebody gets `ppo`); last
among installed packages with an entry point in the registry's group.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType

from robo_razor.core.errors import RegistryError, unknown_name


class Registry[T]:
    """Names mapped to objects of one kind.

    Example:
        >>> METHODS: Registry[type] = Registry("method")
        >>> @METHODS.register("ppo")
        ... class PPO: ...
        >>> METHODS.get("ppo") is PPO
        True
    """

    def __init__(self, kind: str, package: str = "", groups: tuple[str, ...] = ()) -> None:
        """Create an empty registry.

        Args:
            kind: What is registered, a singular noun used in errors.
            package: Package of the built-in ones, a file for each name; empty: there is none.
            groups: Entry-point groups of installed packages. In the first group an entry point
                leads to the object itself. In any group it may lead to a module, which registers
                its objects when it is imported.
        """
        self.kind = kind
        self.package = package
        self.groups = groups
        self._items: dict[str, T] = {}
        self._entry_points_loaded = False

    def add(self, name: str, item: T) -> T:
        """Register `item` as `name` and return it.

        Raises:
            RegistryError: `name` is already taken by another object.
        """
        if self._items.get(name, item) is not item:
            raise RegistryError(
                f"The {self.kind} {name!r} is already registered as {self._items[name]!r}",
                remedy=f"Choose another name for {item!r}.",
            )
        self._items[name] = item
        return item

    def register[U](self, name: str) -> Callable[[U], U]:
        """Return a decorator that registers what it decorates as `name`."""

        def decorate(item: U) -> U:
            self.add(name, item)  # type: ignore[arg-type]  # a decorated class or function is the T
            return item

        return decorate

    def get(self, name: str) -> T:
        """Return the object registered as `name`.

        Raises:
            UnknownNameError: Nothing is registered as `name`; lists the names and suggests one.
            RegistryError: An installed package cannot be imported.
        """
        if name not in self._items and name in self.built_in():
            importlib.import_module(f"{self.package}.{name}")
        if name not in self._items:
            self._load_entry_points()
        try:
            return self._items[name]
        except KeyError:
            raise unknown_name(self.kind, name, self.names()) from None

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted, without importing the built-in files."""
        self._load_entry_points()
        return tuple(sorted({*self._items, *self.built_in()}))

    def built_in(self) -> tuple[str, ...]:
        """Return the names of the files in the registry's own package."""
        spec = importlib.util.find_spec(self.package) if self.package else None
        if spec is None:
            return ()
        places = spec.submodule_search_locations or ()
        return tuple(module.name for module in pkgutil.iter_modules(places))

    def _load_entry_points(self) -> None:
        """Register what installed packages offer, once."""
        if self._entry_points_loaded:
            return
        self._entry_points_loaded = True
        for group in self.groups:
            for point in importlib.metadata.entry_points(group=group):
                try:
                    item = point.load()
                except Exception as error:
                    raise RegistryError(
                        f"The {self.kind} {point.name!r} cannot be imported from "
                        f"{point.value!r}: {error}",
                        remedy="Mend or uninstall the package that offers it.",
                    ) from error
                if group == self.groups[0] and not isinstance(item, ModuleType):
                    self.add(point.name, item)

    def __contains__(self, name: object) -> bool:
        """Return whether something is registered, or built in, as `name`."""
        return name in self._items or name in self.names()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        return iter(self.names())

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self.names())
