"""A driver that needs what is not there; it must be listed with the reason and harm nobody."""

from a_library_that_nobody_has import Policy as BrokenPolicy

__all__ = ["BrokenPolicy"]
