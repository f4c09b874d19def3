import contextlib
import errno
import fcntl
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from scenes import names_in, options_for

from segearth_cli import staging
from segearth_cli.errors import OutputError
from segearth_cli.geo.companions import companions
from segearth_cli.outputs import check_outputs
from segearth_cli.staging import PREFIX, Staging, publish, remove_abandoned, shown

COMPANIONS = [
    ("map.shp", "map.dbf"),
    ("map.shp", "map.qix"),
    ("map.gpkg", "map.gpkg-wal"),
    ("map.tif", "map.tif.ovr"),
    ("map.tif", "map.tif.aux.xml"),
]


@pytest.mark.parametrize(("output", "companion"), COMPANIONS)
def test_a_file_that_would_go_with_an_output_needs_overwrite(tmp_path, output, companion):
    (tmp_path / companion).write_text("not ours")
    options = options_for(tmp_path, tmp_path / output)
    with pytest.raises(OutputError, match=f"{companion} exists; use --overwrite"):
        check_outputs([], options)
    check_outputs([], options_for(tmp_path, tmp_path / output, overwrite=True))


@pytest.mark.parametrize(("output", "companion"), COMPANIONS)
def test_nothing_of_a_replaced_file_stays(tmp_path, output, companion):
    for name in (output, companion, "other.dbf"):
        (tmp_path / name).write_text("old")
    with contextlib.ExitStack() as stack:
        made = Staging(stack).beside(tmp_path / output) / output
        made.write_text("new")
        publish({made: tmp_path / output})
    assert names_in(tmp_path) == sorted([output, "other.dbf"])
    assert (tmp_path / output).read_text() == "new"


def test_parts_that_were_made_stay(tmp_path):
    with contextlib.ExitStack() as stack:
        folder = Staging(stack).beside(tmp_path / "map.shp")
        made = {folder / f"map.{end}": tmp_path / f"map.{end}" for end in ("dbf", "shp", "shx")}
        for file in made:
            file.write_text("new")
        publish(made)
    assert names_in(tmp_path) == ["map.dbf", "map.shp", "map.shx"]
    assert companions(tmp_path / "map.geojson") == []


def test_a_folder_that_another_run_removes_while_it_is_still_empty_is_made_again(
    tmp_path, monkeypatch
):
    make, taken = Path.mkdir, []

    def mkdir(path, *args, **more):
        if path.name.startswith(PREFIX) and not taken:
            taken.append(path)
            path.parent.rmdir()
        make(path, *args, **more)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with contextlib.ExitStack() as stack:
        assert Staging(stack).beside(tmp_path / "new" / "map.tif").is_dir()
    assert len(taken) == 1
    assert names_in(tmp_path) == []


def test_a_disk_that_has_no_room_for_the_lock_is_one_line(tmp_path, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("segearth_cli.staging._lock", full)
    with contextlib.ExitStack() as stack, pytest.raises(OutputError, match="No space left"):
        Staging(stack).beside(tmp_path / "map.tif")
    assert names_in(tmp_path) == []


def test_messages_name_the_place_and_not_the_staging_folder(tmp_path):
    with contextlib.ExitStack() as stack:
        staged = Staging(stack).beside(tmp_path / "map.tif") / "map.tif"

        assert staged != tmp_path / "map.tif"
        assert shown(staged) == tmp_path / "map.tif"


def left_by(folder, host, process, *names):
    left = folder / f"{PREFIX}{host}-{process}-0123456789abcdef"
    left.mkdir()
    for name in names:
        (left / name).touch()
    return left


@pytest.mark.parametrize("name", ["lock", "nolock", "lock.new"])
def test_of_another_machine_only_what_a_lost_process_left_goes(tmp_path, name):
    stays = left_by(tmp_path, "another-machine", 7, name)
    goes = left_by(tmp_path, "another-machine", 8, name)
    unnamed = tmp_path / f"{PREFIX}9"  # it does not say whose it is
    unnamed.mkdir()

    remove_abandoned(tmp_path, [("another-machine", 8), ("a-third", 7)])

    assert not goes.exists()
    assert stays.is_dir()
    assert unnamed.is_dir()


def test_what_another_machine_left_long_ago_is_named(tmp_path, caplog):
    recent, old = (left_by(tmp_path, host, 7, "lock", "map.tif") for host in ("pod-a", "pod-b"))
    for path in (old, *old.iterdir()):
        os.utime(path, (0, time.time() - 2 * 24 * 3600))

    remove_abandoned(tmp_path)

    assert recent.is_dir()
    assert old.is_dir()
    (said,) = caplog.messages
    assert said.startswith(f"{old} is of a run on pod-b and a day old; remove it if")


@pytest.mark.parametrize("names", [(), ("lock.new",)])
def test_what_a_run_left_that_was_killed_before_it_locked_goes(tmp_path, names):
    (ended := subprocess.Popen(["true"])).wait()
    dead = left_by(tmp_path, socket.gethostname(), ended.pid, *names)
    alive = left_by(tmp_path, socket.gethostname(), os.getpid(), *names)
    without_locks = left_by(tmp_path, socket.gethostname(), f"0{ended.pid}", "nolock")
    too_large = left_by(tmp_path, socket.gethostname(), 10**30, *names)

    remove_abandoned(tmp_path)

    assert not dead.exists()
    assert all(stays.is_dir() for stays in (alive, without_locks, too_large))


def test_where_nothing_can_be_locked_folders_of_runs_stay(tmp_path, monkeypatch):
    def flock(stream, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(staging.fcntl, "flock", flock)
    with contextlib.ExitStack() as stack:
        own = Staging(stack).beside(tmp_path / "map.tif")
        assert names_in(own) == ["nolock"]
        remove_abandoned(tmp_path)
        assert own.is_dir()


def test_a_folder_that_is_locked_here_stays_whoever_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "_DYING_SECONDS", 0)
    with contextlib.ExitStack() as stack:
        own = Staging(stack).beside(tmp_path / "map.tif")
        remove_abandoned(tmp_path, [(socket.gethostname(), os.getpid())])
        assert own.is_dir()


def test_what_a_lost_process_left_goes_when_it_has_ended(tmp_path, monkeypatch):
    left = left_by(tmp_path, socket.gethostname(), 7, "lock")
    stream = (left / "lock").open("rb")
    fcntl.flock(stream, fcntl.LOCK_EX)  # as if it lived
    monkeypatch.setattr(staging.time, "sleep", lambda seconds: stream.close())

    remove_abandoned(tmp_path, [(socket.gethostname(), 7)])

    assert stream.closed
    assert not left.exists()
