"""A small typed registry: names to objects, with errors that list and suggest."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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

    def __init__(self, kind: str) -> None:
        """Create an empty registry of `kind` (a singular noun used in errors)."""
        self.kind = kind
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T) -> T:
        """Register `item` as `name` and return it.

        Raises:
            RegistryError: `name` is already taken by another object.
        """
        if name in self._items:
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
        """
        try:
            return self._items[name]
        except KeyError:
            raise unknown_name(self.kind, name, self._items) from None

    def names(self) -> tuple[str, ...]:
        """Return the registered names, sorted."""
        return tuple(sorted(self._items))

    def __contains__(self, name: object) -> bool:
        """Tell whether `name` is registered."""
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        return iter(self.names())

    def __len__(self) -> int:
        """Return the number of registered names."""
        return len(self._items)
