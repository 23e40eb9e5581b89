"""`make serve`: ComfyUI with the pack in it and the page open on the demo's workflow, until Ctrl-C.

Models, uploads and results stay in `output/serve/` from one time to the next.
"""

from __future__ import annotations

import shutil
import signal
import sys
import webbrowser

from dev.comfy import EXAMPLES, PACK_NAME, ROOT, ComfyError, ComfyServer

BASE = ROOT / "output" / "serve"


def main() -> None:
    """Serves until Ctrl-C or until ComfyUI ends."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    (BASE / "input").mkdir(parents=True, exist_ok=True)
    for name in EXAMPLES:
        shutil.copy(ROOT / "assets" / name, BASE / "input")
    print("Starting ComfyUI ...")
    with ComfyServer(BASE) as server:
        page = f"{server.url}/?template=image_to_video_and_motion&source={PACK_NAME}"
        print(f"{page}\nThe log is {server.log}. Ctrl-C stops the server.", flush=True)
        webbrowser.open(page)
        server.wait()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
    except ComfyError as error:
        sys.exit(str(error))
