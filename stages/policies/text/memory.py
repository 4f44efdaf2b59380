"""Give memory back to the system that the C library keeps."""

from __future__ import annotations

import ctypes
import sys


def trim() -> None:
    """Return the free pages of the heap; nothing where the C library is not glibc.

    What was freed between tensors that stay is else kept: of a model that was let go, two thirds.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
