"""Runs ``segment`` on damaged files, each in a process of its own with little memory and time.

A program of its own, which forks before any network has run: ``fuzzed.py SPEC.json``. It prints,
for each case, ``done``, the one line of an expected error, or what nobody may see: a traceback,
the signal that ended it.
"""

import json
import os
import resource
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from scenes import options_for

from segearth_cli.errors import SegEarthError
from segearth_cli.segment import segment

ROOM = 3 << 30  # bytes beside what the imports take
SECONDS = 60


def attempt(case) -> str:
    options = options_for(Path(case["model"]), *case["outputs"])
    if case.get("upsampler"):
        options = replace(options, model=replace(options.model, upsampler=case["upsampler"]))
    try:
        segment(case["source"], options)
        return "done"
    except SegEarthError as error:
        message = str(error)
        return f"error: {message}" if "\n" not in message else f"several lines: {message}"
    except BaseException:
        return traceback.format_exc()


def run(case) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends it wherever it is
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        said = attempt(case)
        with os.fdopen(writing, "w") as stream:
            stream.write(said)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read()
    status = os.waitpid(child, 0)[1]
    return said if status == 0 else f"ended by signal {os.WTERMSIG(status)}"


if __name__ == "__main__":
    for case in json.loads(Path(sys.argv[1]).read_text()):
        print(json.dumps(run(case)), flush=True)
