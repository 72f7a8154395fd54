"""How the process gets its memory from the system."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)
LARGEST_KEPT, KEPT_AT_MOST = 2**25, 2**28  # bytes; 2**25 is the most that every glibc accepts


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free for the next ones, up to 256 MB, instead of returning it to the system.

    Every batch needs the same large arrays anew, and memory fresh from the system costs a page fault per 4 KB: about
    a tenth of an update on a CPU. Does nothing where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, KEPT_AT_MOST)
