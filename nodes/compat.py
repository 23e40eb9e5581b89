"""What newer ComfyUI has and 0.3.75 lacks: found by asking for it, never by the version."""

from __future__ import annotations

import inspect

from comfy_api.latest import Types, io

File3D = getattr(Types, "File3D", None)
"""Core's object for a 3D file, or None."""
File3DGLB = getattr(io, "File3DGLB", None)
"""Core's type of a GLB file, FILE_3D_GLB, or None."""

_SCHEMA_SETTINGS = frozenset(inspect.signature(io.Schema).parameters)


def aliases(*words: str) -> dict[str, list[str]]:
    """Other words under which the page's search finds a node, for `io.Schema(**aliases(...))`."""
    return {"search_aliases": list(words)} if "search_aliases" in _SCHEMA_SETTINGS else {}
