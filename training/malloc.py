"""The environment of processes that run models on a CPU."""

from __future__ import annotations

WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
"""glibc gives large buffers back to the system after every operator, and gets them again with pages to be zeroed: an
augmentation batch took 30 times as long, a forward of a small convolutional tower twice as long."""
