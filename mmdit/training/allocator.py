"""What the C library does with memory that is freed."""

import ctypes

# Parameters of mallopt, from glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
NEVER = 2**31 - 1
# What glibc comes to by itself at most, once blocks of that size were freed, and how many blocks it maps.
OWN_MMAP_THRESHOLD, OWN_TRIM_THRESHOLD, OWN_MMAP_MAX = 32 * 2**20, 64 * 2**20, 65_536


def keep_freed_memory(keep: bool = True) -> bool:
    """Keeps what is freed for the next step, in place of giving it back to the system.

    A training step frees what it allocated, and the next one allocates it again. Where the system takes it back in
    between, it hands out pages of zeros anew, one fault each: about 6 % of a DiT-S step on a CPU. The most that the
    process ever holds stays what it was; it holds that until it ends.

    Args:
        keep: False for what the C library does by itself; what was kept is given back, but for holes that allocations
            of the same size fill again.

    Returns:
        Whether the C library is one that can be told so: glibc.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (OSError, TypeError, AttributeError):  # other systems
        return False
    values = (NEVER, 0) if keep else (OWN_TRIM_THRESHOLD, OWN_MMAP_MAX)
    done = all([mallopt(TRIM_THRESHOLD, values[0]), mallopt(MMAP_MAX, values[1])])
    if not keep:
        done = bool(mallopt(MMAP_THRESHOLD, OWN_MMAP_THRESHOLD)) and done
        trim(0)
    return done
