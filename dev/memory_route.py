"""A custom node pack that only the soak's server has: GET /soak/memory, which counts what the process needs.

It collects Python's garbage and gives the free parts of the C heap back first (`malloc_trim`, with glibc), so that the
resident set that is read after it holds what is in use, and not what the allocators keep for later.
"""

import ctypes
import gc
import sys

from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}


class HeapInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`: bytes in all arenas."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


@PromptServer.instance.routes.get("/soak/memory")
async def memory(_request: web.Request) -> web.Response:
    """Bytes of the C heap in use and free, before the free ones were given back, and blocks of Python objects."""
    gc.collect()
    counted = {"blocks": sys.getallocatedblocks(), "heap": 0, "free": 0}
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallinfo2"):  # glibc 2.33 or newer
        libc.mallinfo2.restype = HeapInfo
        info = libc.mallinfo2()
        counted |= {"heap": info.uordblks + info.hblkhd, "free": info.fordblks}
        libc.malloc_trim(0)
    return web.json_response(counted)
