"""Workers on a Ray cluster, each given one task at a time: the only file that knows Ray.

The task of a worker that is lost, with its machine or alone, goes to another one.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segearth_cli.errors import SegEarthError, UsageError
from segearth_cli.signals import handled_by, signals_wait

MOST_LOSSES = 3  # of workers by one task, and of workers that never started in a row
USUAL_THREADS = 4  # of a worker on a CPU: several scenes at a time beat many threads
ANSWER_SECONDS = 5  # that a cluster has to take a connection
PATIENCE_SECONDS = 60  # without a single worker, before it is said
STOP_SECONDS = 60  # that workers have to let go of what they do
OBJECTS = 200 << 20  # bytes of shared memory: few workers send back more than a report
LOST = (RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError)
GIVEN_UP = (
    f"the worker that made it was lost {MOST_LOSSES} times; where memory runs out, try "
    "--max-memory, or more --threads, which makes fewer workers"
)

_TOKEN = "; if ray start said that the cluster asks for a token, set RAY_AUTH_MODE=token here too"

logger = logging.getLogger(__name__)

Task: TypeAlias = Callable[[Any], Any]  # of a worker


@dataclass(frozen=True)
class Room:
    """How many workers a cluster has room for, and what each of them takes."""

    workers: int
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Process:
    """Where a worker runs, and what its results depend on beside its task."""

    pid: int
    host: str
    node: str
    traits: Mapping[str, str]

    @classmethod
    def of(cls, traits: Mapping[str, str]) -> Process:
        """The process that asks."""
        node = ray.get_runtime_context().get_node_id()
        return cls(os.getpid(), socket.gethostname(), node, traits)


@dataclass(frozen=True)
class Answer:
    """What a worker sends back: what its task came to, and what it remarked on the way."""

    value: Any  # or a SegEarthError
    remarks: Sequence[logging.LogRecord]


@dataclass(frozen=True)
class Done:
    """A task that has been done, or given up."""

    task: Task
    value: Any  # or a SegEarthError
    seconds: float


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A session on the cluster that runs there, or on one of this machine's own.

    Raises:
        UsageError: no cluster answers, or it cannot be used from here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is not None:
        _require_answer(address)
    own = {"include_dashboard": False, "object_store_memory": OBJECTS} if address is None else {}
    # warnings about lost workers go to stdout otherwise, among the data
    ray._private.worker._worker_logs_enabled = False
    # Ray takes SIGTERM; and where it begins a cluster of its own an interrupt crashes the process
    own_handler = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    guard = signals_wait() if address is None else handled_by(own_handler, signal.SIGTERM)
    try:
        with guard:
            ray.init(address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        what = str(error).strip().partition("\n")[0]
        place = f"at {address}" if address else "of this machine's own"
        token = "" if address is None or "RAY_AUTH_MODE" in os.environ else _TOKEN
        raise UsageError(f"cannot use a Ray cluster {place}: {what}{token}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Refuse an address where nobody listens: Ray would try for minutes."""
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        if place.hostname is None or place.port is None:
            return
        socket.create_connection((place.hostname, place.port), ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Ray cluster answers at {address} ({error}); give the HOST:PORT that ray start "
            "said, or auto on one of its machines"
        ) from error


def room_for(nodes: Iterable[Mapping[str, float]], device: str, threads: int | None) -> Room:
    """The workers that nodes of such resources have room for.

    Where there are GPUs each worker has one, unless the device is ``cpu``; else some cores.

    Raises:
        UsageError: there is none, or the device is one that Ray assigns.
    """
    nodes = list(nodes)
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: Ray says which; give auto, cpu or cuda")
    has_gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
    if device == "cuda" and not has_gpus:
        raise UsageError("--device cuda: no node of the Ray cluster has a GPU; use auto or cpu")
    gpus = int(has_gpus and device != "cpu")
    cores = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    cpus = threads or (1 if gpus else max(1, min(USUAL_THREADS, cores)))
    needs = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    workers = sum(
        int(min(node.get(name, 0) // need for name, need in needs.items())) for node in nodes
    )
    if workers == 0:
        raise UsageError(
            f"no node of the Ray cluster has room for a worker with {cpus} cores"
            + (" and a GPU" if gpus else "")
            + "; try fewer --threads"
        )
    return Room(workers, cpus, gpus)


def cluster_room(device: str, threads: int | None) -> Room:
    """The workers that the connected cluster has room for.

    Raises:
        UsageError: there is none.
    """
    return room_for((node["Resources"] for node in ray.nodes() if node["Alive"]), device, threads)


def terminate(pid: int) -> None:
    """Have a process of the machine unwind, as on Ctrl-C."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


class Member:
    """A worker of the pool, on its way (``process`` is ``None``) or there."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.process: Process | None = None


class Pool:
    """Workers of one kind, each in a process of its own; those that are lost are replaced.

    Args:
        worker: their class, whose ``start`` reports a `Process` and whose ``do`` reports what a
            task came to.
        arguments: that each is made with.
        room: how many there are, and what each takes.
    """

    def __init__(self, worker: type, arguments: Sequence[Any], room: Room) -> None:
        actor = ray.remote(worker).options(num_cpus=room.cpus, num_gpus=room.gpus)
        self._make = functools.partial(actor.remote, *arguments)
        self._idle: list[Member] = []
        self._busy: dict[Future[Answer], tuple[Member, Task | None]] = {}  # None: it starts
        self._said: set[tuple[str, str]] = set()
        self._failed_starts = 0
        self._first: Process | None = None
        self.size = room.workers
        self.lost: list[Process] = []
        for _ in range(self.size):
            self._begin()

    @property
    def traits(self) -> Mapping[str, str]:
        """What results depend on beside the tasks, known when a first one is done."""
        assert self._first is not None
        return self._first.traits

    def results(self, tasks: Iterable[Task]) -> Generator[Done, None, None]:
        """Every task as it is done, or has cost too many workers.

        Who does not wait for all of them closes the pool.

        Raises:
            SegEarthError: workers do not start, or not all of them would give the same results.
        """
        waiting = deque(tasks)
        begun: dict[Task, float] = {}
        losses: Counter[Task] = Counter()
        left = len(waiting)
        try:
            while left:
                while waiting and self._idle:
                    begun.setdefault(waiting[0], time.perf_counter())
                    self._give(self._idle.pop(), waiting.popleft())
                task, report = self._next()
                if task is None:
                    continue
                losses[task] += report is None
                if report is None and losses[task] < MOST_LOSSES:
                    waiting.appendleft(task)
                    continue
                left -= 1
                value = SegEarthError(GIVEN_UP) if report is None else report.value
                yield Done(task, value, time.perf_counter() - begun[task])
        finally:
            if left:
                self.close()

    def _next(self) -> tuple[Task | None, Answer | None]:
        """The task that ended next, none of a start; no report where its worker is lost."""
        ended = self._wait()
        member, task = self._busy.pop(ended)
        try:
            report = ended.result()
        except LOST as error:
            self._replace(member, error, task is None)
            return task, None
        self._remark(report.remarks)
        if task is None:
            self._welcome(member, report.value)
        self._idle.append(member)
        return task, report

    def _wait(self) -> Future[Answer]:
        """What ends next. Not by `ray.wait`, which takes SIGTERM for Ctrl-C."""
        timeout = PATIENCE_SECONDS if self._first is None else None
        ended, _ = wait(self._busy, timeout, FIRST_COMPLETED)
        if not ended:
            logger.warning("no worker has started yet: waiting for the cluster to have room")
            ended, _ = wait(self._busy, return_when=FIRST_COMPLETED)
        return ended.pop()

    def _begin(self) -> None:
        member = Member(self._make())
        self._busy[member.actor.start.remote().future()] = member, None

    def _give(self, member: Member, task: Task) -> None:
        with signals_wait():  # or it works, and nobody knows of it
            self._busy[member.actor.do.remote(task).future()] = member, task

    def _welcome(self, member: Member, process: Process | SegEarthError) -> None:
        """Take in a worker that has started, if it is like the others."""
        if isinstance(process, SegEarthError):
            raise process
        member.process = process
        self._failed_starts = 0
        first = self._first = self._first or process
        for name, trait in process.traits.items():
            if trait != first.traits[name]:
                raise UsageError(
                    f"the cluster's machines would not make the same map: {name} is "
                    f"{first.traits[name]} on {first.host} and {trait} on {process.host}"
                )

    def _replace(self, member: Member, error: RayError, was_starting: bool) -> None:
        """Begin another worker in the place of a lost one.

        Raises:
            SegEarthError: none can be begun.
        """
        ray.kill(member.actor)
        self._failed_starts += was_starting
        what = " ".join(str(error).split())
        if self._failed_starts >= MOST_LOSSES * self.size:
            raise SegEarthError(f"no worker starts on the cluster: {what}")
        if member.process is not None:
            self.lost.append(member.process)
            logger.warning(
                "a worker on %s was lost, %d by now; another one goes on",
                member.process.host,
                len(self.lost),
            )
        logger.info("a worker was lost: %s", what)
        self._begin()

    def _remark(self, records: Iterable[logging.LogRecord]) -> None:
        """Say what workers remarked; what several say of themselves once."""
        for record in records:
            key = (record.name, record.getMessage())
            if key not in self._said:
                self._said.add(key)
                logging.getLogger(record.name).handle(record)

    def close(self) -> None:
        """Have workers let go of what they do, and end them."""
        under_way = {future: m.process for future, (m, task) in self._busy.items() if task}
        # kept until the wait is over: a task whose reference is gone is gone too
        sent = [
            ray.remote(num_cpus=0)(terminate)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(process.node, soft=False))
            .remote(process.pid)
            for process in under_way.values()
            if process is not None
        ]
        wait(under_way, STOP_SECONDS)
        self.lost += filter(None, under_way.values())  # some end before they have let go
        del sent
        for member in [*self._idle, *(member for member, _ in self._busy.values())]:
            ray.kill(member.actor)
        self._idle, self._busy = [], {}
