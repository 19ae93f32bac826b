"""Memory settings for processes that run models on a CPU."""

from __future__ import annotations

MALLOC_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
"""Environment variables that make glibc keep freed buffers. By default it returns large ones to the system after every
operator and gets zeroed pages back: an augmentation batch took 30 times as long, a forward pass of a small
convolutional encoder twice as long."""
