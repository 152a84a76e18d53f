"""Free memory of the machine: main memory within the control group, or the GPU's."""

import ctypes
from pathlib import Path

import llama_cpp

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def available_bytes(*, on_gpu: bool) -> int | None:
    """Return the bytes that a model may take now, or None if the machine does not report them."""
    return _gpu_free() if on_gpu else main_memory_free(MEMINFO, CGROUP)


def main_memory_free(meminfo: Path, cgroup: Path) -> int | None:
    """Return the smaller of the kernel's available memory and the rest of the container's limit.

    Args:
        meminfo: Path of the kernel's `meminfo` file.
        cgroup: Folder of the control group.
    """
    limits = [value for value in (_meminfo_available(meminfo), _cgroup_left(cgroup)) if value is not None]
    return min(limits, default=None)


def _meminfo_available(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_left(folder: Path) -> int | None:
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used, 0)


def _gpu_free() -> int | None:
    """Return the free memory of the first GPU, from ggml directly: the Python binding does not expose it."""
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml.so"))
    library.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    device = library.ggml_backend_dev_by_type(1)  # GGML_BACKEND_DEVICE_TYPE_GPU
    if not device:
        return None
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    base = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    base.ggml_backend_dev_memory(ctypes.c_void_p(device), ctypes.byref(free), ctypes.byref(total))
    return free.value or None
