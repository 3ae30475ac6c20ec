"""A CUDA driver that does nothing: Triton's real launch path, down to its C launcher, on a machine without a GPU.

Triton's own driver module is built and used as it is, against a ``libcuda.so.1`` of a few lines made here with the C compiler
(that Triton itself needs anyway). It accepts every pointer, calls every module loaded and every launch done. So all that
Python and Triton do for a launch is really done, for CPU tensors too; nothing is computed. Only for a process of its own,
because the driver that Triton uses is swapped for good.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

LIBRARY = "libcuda.so.1"
_SOURCE = r"""
#include <stdint.h>
typedef uint64_t u64;
static u64 handles = 0x1000;
u64 launches = 0;
int cuInit(unsigned f) { return 0; }
int cuGetErrorString(int e, const char **s) { *s = "no CUDA"; return 0; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = 227 * 1024; return 0; }
int cuDevicePrimaryCtxRetain(u64 *c, int d) { *c = 1; return 0; }
int cuCtxGetCurrent(u64 *c) { *c = 1; return 0; }
int cuCtxSetCurrent(u64 c) { return 0; }
int cuCtxGetLimit(u64 *v, int l) { *v = 0; return 0; }
int cuCtxSetLimit(int l, u64 v) { return 0; }
int cuModuleLoadData(u64 *m, const void *image) { *m = ++handles; return 0; }
int cuModuleGetFunction(u64 *f, u64 m, const char *name) { *f = ++handles; return 0; }
int cuFuncGetAttribute(int *v, int a, u64 f) { *v = a == 0 ? 1024 : 0; return 0; } /* 0: the most threads of a block */
int cuFuncSetAttribute(u64 f, int a, int v) { return 0; }
int cuFuncSetCacheConfig(u64 f, int c) { return 0; }
int cuOccupancyMaxActiveClusters(int *n, u64 f, const void *c) { *n = 1; return 0; }
int cuPointerGetAttribute(u64 *out, int a, u64 p) { *out = p; return 0; }
int cuTensorMapEncodeTiled(void) { return 0; }
int cuLaunchKernelEx(const void *c, u64 f, void **p, void **e) { launches++; return 0; }
"""


def install(folder: Path) -> ctypes.CDLL:
    """Build the library in ``folder`` and make Triton launch on it, as on an H100.

    Returns:
        The library; its ``launches`` (a ``c_uint64``) counts.

    Raises:
        subprocess.CalledProcessError: if there is no working C compiler.
    """
    source, library = folder / "no_cuda.c", folder / LIBRARY
    source.write_text(_SOURCE)
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", "-o", library, source], check=True)
    loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # from now on the library of this name is this one
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver

    class Driver(CudaDriver):
        """The CUDA driver of Triton for the one GPU that is not there, without PyTorch's CUDA behind it."""

        def __init__(self) -> None:
            super().__init__()
            self.get_current_device = lambda: 0
            self.get_current_stream = lambda device: 0
            self.get_device_capability = lambda device=None: (9, 0)

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    triton.runtime.driver.set_active(Driver())
    return loaded
