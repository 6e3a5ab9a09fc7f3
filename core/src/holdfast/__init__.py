"""Holdfast: synchronously replicated block volumes, as a library.

This package is a facade: `holdfast.api` opens volumes from a program, `holdfast.interfaces` is what
a driver implements, `holdfast.testing` holds a driver to it.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
