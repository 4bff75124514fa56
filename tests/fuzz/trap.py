"""Code that no file may make run: importing or calling it is told as a fault."""

from fuzz import guard

guard.tell("the trap was imported: a file named code that was loaded")


class Trap:
    """Tells that it was made."""

    def __init__(self, *args: object, **settings: object) -> None:
        guard.tell("the trap was called: a file named code that was run")
