"""Runs batches that are killed at given moments; the tests look at what is left.

A program of its own, which forks before any network has run: ``killed.py SPEC.json``.
"""

import json
import os
import signal
import sys
from pathlib import Path

from scenes import options_for

from segearth_cli.batch import segment_all
from segearth_cli.options import BatchOptions
from segearth_cli.prefetch import prefetched  # noqa: F401  (imported once, not in every fork)
from segearth_cli.segment import segment  # noqa: F401


def run(spec, folder: Path, moment: int | None) -> int:
    """A batch in a process of its own, killed at its ``moment``-th call; how many it made.

    Two runs make nearly as many calls: the end may come before the moment. Without one calls are
    not counted, which takes most of the time.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        calls = 0

        def count(frame, event, argument):
            nonlocal calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        if moment is not None:
            sys.setprofile(count)
        options = options_for(spec["model"], *(folder / name for name in spec["outputs"]))
        for outcome in segment_all(spec["sources"], options, BatchOptions(resume=True)):
            assert not hasattr(outcome, "error"), outcome.error
        sys.setprofile(None)
        os.write(writing, str(calls).encode())
        os._exit(0)
    os.close(writing)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(reading) as said:
        made = said.read()
    if status == 0:
        return int(made)
    assert moment
    assert os.WTERMSIG(status) == signal.SIGKILL
    return moment


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text())
    made = [run(spec, Path(folder), moment) for folder, moment in spec["runs"]]
    print(json.dumps(made))
