"""Scenes and panels on a Ray cluster: the same bytes, whatever becomes of its machines."""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
from scenes import blocks, ctrl_c_heard, names_in, options_for, stopped_in_the_middle, write_scene
from typer.testing import CliRunner

from segearth_cli import batch
from segearth_cli.batch import segment_all
from segearth_cli.cli import app
from segearth_cli.errors import UsageError
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.options import BatchOptions
from segearth_cli.results import Failure, SegmentResult
from segearth_cli.staging import PREFIX

ray = pytest.importorskip("ray")

from segearth_cli.cluster import Orders, Worker, shared_panels  # noqa: E402  (needs ray)
from segearth_cli.pool import (  # noqa: E402
    Answer,
    Pool,
    Process,
    Room,
    connected,
    room_for,
    terminate,
)

WORDS = ("--classes", "building,road", "--device", "cpu", "--precision", "fp32")


@pytest.fixture(autouse=True)
def same_time(monkeypatch):
    """Files do not say when they were made."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with a core each."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    made.add_node(**node)
    yield made
    made.shutdown()


@pytest.fixture
def sources(tmp_path):
    (tmp_path / "in").mkdir()
    return [write_scene(tmp_path / "in" / f"{n}.tif", blocks(1, 40 + n, 50)) for n in range(3)]


def contents(folder):
    return {n: (folder / n).read_bytes() for n in names_in(folder) if (folder / n).is_file()}


def processes(link, target):
    """Other processes with a link below /proc/PID (cwd, fd/*) to such a path."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(fnmatch(place.readlink(), target) for place in process.glob(link)):
                if int(process.name) != os.getpid():
                    yield int(process.name)


def parent_of(process):
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[1])


def run(*args):
    return CliRunner().invoke(app, [*map(str, args)])


def made_here_and_there(sources, tmp_path, how, model, names, **more):
    """What the local engine writes and what the cluster does, with its outcomes."""
    here, there = tmp_path / "here", tmp_path / "there"
    list(segment_all(sources, options_for(model, *(here / name for name in names), **more)))
    outcomes = list(
        segment_all(sources, options_for(model, *(there / name for name in names), **more), how)
    )
    return contents(here), contents(there), outcomes


# --- without a cluster -------------------------------------------------------------------------


def test_an_address_needs_its_engine():
    with pytest.raises(UsageError, match="give --engine ray"):
        BatchOptions(address="head:6379")
    with pytest.raises(UsageError, match="--engine is 'dask'; choose one of local, ray"):
        BatchOptions(engine="dask")


def test_without_ray_a_line_says_what_to_install(sources, tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(batch, "find_spec", lambda name: None)
    args = ("segment", *sources, *WORDS, "--model", tiny_model, "-o", tmp_path / "{stem}.gpkg")
    result = run(*args, "--engine", "ray")
    assert result.exit_code == 2
    assert result.stderr == "error: --engine ray needs Ray: pip install 'segearth-cli[ray]'\n"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no-port"])
def test_an_address_where_nobody_answers_is_one_line(sources, tmp_path, tiny_model, address):
    args = ("segment", *sources, *WORDS, "--model", tiny_model, "-o", tmp_path / "{stem}.gpkg")
    result = run(*args, "--engine", "ray", "--address", address)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert address in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("nodes", "device", "threads", "room"),
    [
        ([{"CPU": 2}], "auto", None, Room(1, 2, 0)),
        ([{"CPU": 16}, {"CPU": 6}, {}], "auto", None, Room(5, 4, 0)),
        ([{"CPU": 16}, {"CPU": 6}], "cpu", 3, Room(7, 3, 0)),
        ([{"CPU": 16, "GPU": 4}, {"CPU": 64}], "auto", None, Room(4, 1, 1)),
        ([{"CPU": 16, "GPU": 4}], "cuda", 8, Room(2, 8, 1)),
        ([{"CPU": 16, "GPU": 4}], "cpu", None, Room(4, 4, 0)),
    ],
)
def test_workers_take_a_gpu_each_or_some_cores(nodes, device, threads, room):
    assert room_for(nodes, device, threads) == room


@pytest.mark.parametrize(
    ("device", "threads", "message"),
    [
        ("auto", 3, "no node of the Ray cluster has room for a worker with 3 cores; try fewer"),
        ("cuda", None, "no node of the Ray cluster has a GPU"),
        ("cuda:1", None, "Ray says which"),
    ],
)
def test_workers_that_no_node_has_room_for(device, threads, message):
    with pytest.raises(UsageError, match=message):
        room_for([{"CPU": 2}, {"CPU": 2}], device, threads)


@pytest.mark.parametrize(
    ("width", "window", "fewest", "workers", "panels"),
    [
        (20_000, 224, 1, 4, 4),
        (20_000, 224, 5, 4, 8),
        (1_500, 224, 1, 8, 3),  # no narrower than two windows
        (1_500, 0, 1, 8, 1),  # a window of the whole scene
        (1_500, 224, 6, 2, 6),  # for memory's sake
    ],
)
def test_panels_are_as_many_as_workers_share_evenly(width, window, fewest, workers, panels):
    parts = shared_panels(WindowGrid(3000, width, window, 112), fewest, workers)
    assert len(parts) == panels
    assert parts[-1].columns_wanted[1] == width


def test_machines_that_do_not_share_a_folder_are_told(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Process, "of", dict)  # which asks Ray
    beside = [tmp_path / "maps" / f"{PREFIX}m1-1-0"]
    beside[0].mkdir(parents=True)
    options = options_for(tiny_model, "maps/{stem}.tif")
    orders = Orders.here(options, resume=False, alone=False, threads=1, beside=beside)
    assert "precision" in Worker(orders).start().value
    beside[0].rmdir()  # as on a machine that has another folder of that name
    lost = Worker(replace(orders, host="m1")).start().value
    assert f"does not see what m1 writes into {tmp_path / 'maps'};" in str(lost)
    lost = Worker(replace(orders, folder=str(tmp_path / "nowhere"))).start().value
    assert f"has no folder {tmp_path / 'nowhere'};" in str(lost)


# --- on two nodes ------------------------------------------------------------------------------


@pytest.mark.slow
def test_scenes_are_the_same_and_one_that_fails_stops_no_other(
    cluster, sources, tmp_path, tiny_model, caplog
):
    names = ("{stem}.tif", "{stem}.geojsonl", "{stem}.png")
    how = BatchOptions(engine="ray", address=cluster.address, resume=True)
    (tmp_path / "in" / "bad.tif").write_text("no raster")
    named = [*sources, str(tmp_path / "in" / "bad.tif")]
    here, there, outcomes = made_here_and_there(named, tmp_path, how, tiny_model, names)
    assert there == here
    assert len(here) == 15  # with .aux.xml beside rasters, records beside lines of GeoJSON
    (failure,) = (outcome for outcome in outcomes if isinstance(outcome, Failure))
    assert "bad.tif" in str(failure.error)
    assert "Traceback" not in caplog.text

    words = ("--classes", "building|roof,road,water", "--device", "cpu", "--precision", "fp32")
    outputs = [word for name in names for word in ("-o", tmp_path / "there" / name)]
    engine = ("--engine", "ray", "--address", cluster.address)
    again = run("segment", *named, *words, "--model", tiny_model, *outputs, *engine, "--resume",
                "--json")  # fmt: skip
    assert again.exit_code == 3
    lines = [json.loads(line) for line in again.stdout.splitlines()]
    assert sorted(line["status"] for line in lines) == ["failed", *["skipped"] * 3]
    assert contents(tmp_path / "there") == here


@pytest.mark.slow
def test_features_of_all_workers_come_to_stdout(cluster, sources, tmp_path, tiny_model):
    args = ("segment", *sources[:2], *WORDS, "--model", tiny_model, "-q", "-o", "-")
    here = run(*args)
    there = run(*args, "--engine", "ray", "--address", cluster.address)
    assert (there.exit_code, here.exit_code) == (0, 0)
    assert sorted(there.stdout.splitlines()) == sorted(here.stdout.splitlines())
    assert here.stdout


@pytest.mark.slow
def test_the_panels_of_a_scene_are_computed_by_all_workers(cluster, tmp_path, upsampled_model):
    source = write_scene(tmp_path / "wide.tif", blocks(3, 150, 700))
    names = ("{stem}.tif", "{stem}.geojsonl")
    how = BatchOptions(engine="ray", address=cluster.address, resume=True)
    here, there, outcomes = made_here_and_there(
        [source], tmp_path, how, upsampled_model, names, min_area=30.0
    )
    assert there == here
    assert [type(outcome) for outcome in outcomes] == [SegmentResult]


@pytest.mark.slow
def test_a_panel_whose_worker_is_killed_is_made_by_another(
    cluster, tmp_path, upsampled_model, caplog
):
    source = write_scene(tmp_path / "wide.tif", blocks(3, 150, 450))
    killed = threading.Event()

    def kill_who_writes_a_panel():
        while not (writing := list(processes("fd/*", "*/panel-*"))):
            time.sleep(0.02)
        os.kill(writing[0], signal.SIGKILL)
        killed.set()

    threading.Thread(target=kill_who_writes_a_panel, daemon=True).start()
    how = BatchOptions(engine="ray", address=cluster.address)
    here, there, outcomes = made_here_and_there(
        [source], tmp_path, how, upsampled_model, ("{stem}.tif",), stride=32
    )
    assert killed.is_set()
    assert [type(outcome) for outcome in outcomes] == [SegmentResult]
    assert "was lost, 1 by now; another one goes on" in caplog.text
    assert there == here


class Fragile:
    """A worker whose tasks may end it."""

    def start(self):
        return Answer(Process.of({}), [])

    def do(self, task):
        return Answer(task(self), [])


@pytest.mark.slow
def test_a_task_that_costs_three_workers_is_given_up(cluster):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with connected(cluster.address):
        pool = Pool(Fragile, [], Room(1, 1, 0))
        deadly, harmless = (lambda worker: os._exit(1)), (lambda worker: "done")
        done = {result.task: result for result in pool.results([deadly, harmless])}
        pool.close()
    assert len(pool.lost) == 3
    assert done[harmless].value == "done"
    assert str(done[deadly].value).startswith("the worker that made it was lost 3 times; ")
    assert done[deadly].seconds > 0


@pytest.mark.slow
def test_scenes_of_a_node_that_dies_are_made_by_others(
    cluster, tmp_path, tiny_model, caplog, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    sources = [write_scene(tmp_path / "in" / f"{n}.tif", blocks(1, 300, 300 + n)) for n in range(6)]
    names = ("{stem}/map.tif", "{stem}/map.geojsonl")
    killed = threading.Event()
    (mortal,) = cluster.worker_nodes

    def under_way():
        return {path.parent for path in (tmp_path / "there").glob(f"*/{PREFIX}*")}

    def kill_when_both_are_busy():
        (raylet,) = mortal.all_processes["raylet"]
        stopped = []
        while len(under_way()) < 2:
            for worker in stopped:  # it was done before it was stopped
                os.kill(worker, signal.SIGCONT)
            while len(under_way()) < 2:
                time.sleep(0.01)
            workers = processes("cwd", tmp_path)  # they work where the driver does
            stopped = [w for w in workers if parent_of(w) == raylet.process.pid]
            for worker in stopped:
                os.kill(worker, signal.SIGSTOP)
        cluster.remove_node(mortal, allow_graceful=False)
        for worker in stopped:
            with contextlib.suppress(ProcessLookupError):  # it has gone with its node
                os.kill(worker, signal.SIGKILL)
        killed.set()

    threading.Thread(target=kill_when_both_are_busy, daemon=True).start()
    caplog.set_level(logging.INFO, "segearth_cli")
    how = BatchOptions(engine="ray", address=cluster.address)
    here, there, outcomes = made_here_and_there(sources, tmp_path, how, tiny_model, names, stride=8)
    assert killed.is_set()
    assert [type(outcome) for outcome in outcomes] == [SegmentResult] * 6
    assert sorted(outcome.source for outcome in outcomes) == sources
    assert caplog.text.count("was lost, 1 by now; another one goes on") == 1
    assert there == here
    assert not list((tmp_path / "there").glob(f"*/{PREFIX}*"))  # which the lost worker left
    assert capsys.readouterr().out == ""  # Ray says nothing where data goes


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_cluster_and_leave_whole_scenes(tmp_path, tiny_model, sent, code):
    out = tmp_path / "out"
    engine = ("--threads", "1", "--engine", "ray")
    outputs = ("-o", out / "{stem}.tif")
    stopped_in_the_middle(tmp_path, sent, code, *WORDS, "--model", tiny_model, *outputs, *engine)
    assert names_in(out) == ["a.tif", "a.tif.aux.xml"]


def test_ctrl_c_while_a_task_is_given_ends_its_worker_too(monkeypatch):
    started, under_way, told = Future(), Future(), []
    started.set_result(Answer(Process(12345, "here", "0" * 56, {}), []))

    def give(task):
        signal.raise_signal(signal.SIGINT)
        return SimpleNamespace(future=lambda: under_way)

    def tell(pid):
        told.append(pid)
        under_way.set_result(Answer(None, []))

    def remote(what=None, **resources):
        if what is None:
            return remote
        made = {object: lambda: actor, terminate: tell}[what]
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=made))

    start = SimpleNamespace(remote=lambda: SimpleNamespace(future=lambda: started))
    actor = SimpleNamespace(start=start, do=SimpleNamespace(remote=give))
    stub = SimpleNamespace(remote=remote, kill=lambda actor: None)
    monkeypatch.setattr("segearth_cli.pool.ray", stub)
    with pytest.raises(KeyboardInterrupt), ctrl_c_heard():
        list(Pool(object, [], Room(1, 1, 0)).results([len]))
    assert told == [12345]
