"""Every file may be damaged: whatever is in it, its reader answers with one sentence that names it, and runs nothing.

`SVIMO_FUZZ` sets how many damaged files there are; `make soak` tries ten thousand.
"""

import os
import sys
import time
import warnings
from collections import Counter, defaultdict
from zlib import crc32

import numpy as np
import pytest
from helpers.damage import damage, peak_memory
from helpers.readers import readables

from svimo_queue.jobs import JobFileError

COUNT = int(os.environ.get("SVIMO_FUZZ", "400"))
SECONDS, BYTES = 5, 2**31
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
)

_watched: list[str] = []
_reading = False


def _watch(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if _reading and (event in FORBIDDEN or writes):
        _watched.append(f"{event} {arguments[:2]}")


@pytest.fixture(scope="module")
def files(tmp_path_factory, checkpoint_file):
    return readables(tmp_path_factory.mktemp("sound"), checkpoint_file)


def complaint(error: Exception, names: list[str]) -> str | None:
    """What is wrong with an error, if anything; a job file's has a line for each mistake, each with its name."""
    if not isinstance(error, (ValueError, OSError)):
        return f"{type(error).__name__}: {error}"
    lines = str(error).splitlines()
    if isinstance(error, JobFileError):
        return next((f"no line: {line!r}" for line in lines if not line.startswith(names[0])), None)
    if not any(name in lines[0] for name in names):
        return f"no name: {error}"
    if len(lines) > 1 or len(lines[0]) > 700:
        return f"no sentence: {error}"
    return None


def test_every_damaged_file_is_one_clear_error(files):
    global _reading
    sys.addaudithook(_watch)
    problems, slowest, outcomes = defaultdict(list), (0.0, ""), Counter()
    memory = peak_memory()
    for seed in range(COUNT):
        kind = sorted(files)[seed % len(files)]
        file, read, folder = files[kind]
        sound = file.read_bytes()
        file.write_bytes(damage(np.random.default_rng([seed, crc32(kind.encode())]), file.name, sound))
        _reading, began = True, time.process_time()  # what else the machine does is not the file's
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
            outcomes["read"] += 1
        except Exception as error:
            problem = complaint(error, [file.name, folder or file.name])
            outcomes["refused" if problem is None else "else"] += 1
            if problem:
                problems[kind].append(f"seed {seed}: {problem[:300]}")
        finally:
            _reading = False
            slowest = max(slowest, (time.process_time() - began, f"{kind}, seed {seed}"))
            file.write_bytes(sound)
    grown = peak_memory() - memory
    told = f"{dict(outcomes)}; slowest {slowest[0]:.2f} s ({slowest[1]}); {grown / 2**20:.0f} MB more"
    sys.stdout.write(f"{COUNT} files: {told}\n")
    assert not problems, "\n".join(f"{kind}: {'; '.join(found[:3])}" for kind, found in problems.items())
    assert not _watched
    assert slowest[0] < SECONDS, slowest
    assert grown < BYTES
    assert min(outcomes["read"], outcomes["refused"]) > COUNT / 50  # or nothing was damaged, or nothing sound
