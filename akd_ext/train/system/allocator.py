"""Memory of finished steps is kept for the next one, where glibc would give it back to the system."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to return nothing to the system; True where there is a glibc to tell.

    glibc maps every block of 32 MiB and more afresh and unmaps it when it is freed, and trims its heap besides. A
    training step on the CPU frees and asks for the same activations over and over, so the system zeroes and maps the
    same pages at every step: with plain_cnn2 and 128 images that is a fifth of a step's CPU time. The price: the process
    keeps its highest use of memory until it ends.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        return all(
            libc.mallopt(*pair) for pair in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26))
        )
    except (OSError, AttributeError):  # another C library
        return False
