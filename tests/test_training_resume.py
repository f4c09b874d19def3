"""Trainings that are stopped, gone on with, and begun anew."""

import json
import shutil

import pytest
import torch
from trainings import assert_same_weights, logged, report, run, weights

from segearth_cli.errors import TrainingError
from segearth_cli.model.folder import open_model_folder
from segearth_cli.training.data import Batch
from segearth_cli.training.loop import unusable

pytestmark = pytest.mark.slow


def words_of(result):
    return " ".join(result.output.split())


GO_ON = "and saved; go on with --resume and without --stop-at, or with a later one"


def test_a_stopped_and_resumed_run_is_one_that_never_stopped(arguments, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    own = ("--steps", "8", "--log-every", "3")

    assert run(arguments(whole, *own)).exit_code == 0
    stopped = run(arguments(parts, *own, "--stop-at", "4"))
    assert stopped.exit_code == 0
    assert f"stopped at step 4 of 8, {GO_ON}" in words_of(stopped)
    assert "error:" not in stopped.output
    resumed = run(arguments(parts, *own, "--resume"))

    assert resumed.exit_code == 0, resumed.output
    assert_same_weights(whole, parts)
    first, second = report(whole), report(parts)
    assert first["measured"] == second["measured"]
    assert first["data"] == second["data"]
    assert set(logged(whole, "train/loss")) == {3, 6, 8}
    assert logged(whole, "train/loss") == logged(parts, "train/loss")


def test_a_planned_stop_is_said_in_json_and_in_the_report(upsampler_run, tmp_path):
    output = tmp_path / "run"
    own = ("--steps", "5", "--json", "--save-every", "2", "--validate-every", "100")

    def line(*more):
        result = run(upsampler_run(output, *own, *more))
        assert result.exit_code == 0, result.output
        said = json.loads(result.stdout)
        return said["status"], said["step"], said["steps"], GO_ON in words_of(result)

    assert line("--stop-at", "1") == ("stopped", 1, 5, True)
    assert report(output)["steps_done"] == 1
    assert line("--resume", "--stop-at", "3") == ("stopped", 3, 5, True)
    assert report(output)["steps_done"] == 3
    assert line("--resume", "--stop-at", "3") == ("stopped", 3, 5, True)
    assert line("--resume", "--stop-at", "2") == ("stopped", 3, 5, True)
    assert line("--resume", "--stop-at", "9") == ("done", 5, 5, False)
    assert line("--resume", "--stop-at", "5") == ("done", 5, 5, False)


def test_the_report_is_as_far_as_the_checkpoint(upsampler_run, tmp_path, monkeypatch):
    output = tmp_path / "run"
    monkeypatch.setattr("segearth_cli.training.loop.take_step", failing_at(3))

    own = ("--steps", "9", "--save-every", "2", "--validate-every", "100")
    assert run(upsampler_run(output, *own)).exit_code == 1

    assert torch.load(output / "checkpoint.pt", weights_only=True)["step"] == 2
    assert report(output)["steps_done"] == 2


def failing_at(step):
    """A step that goes well but for one."""
    from segearth_cli.training.loop import take_step

    def take(state, *others):
        if state.step + 1 == step:
            raise TrainingError("enough")
        return take_step(state, *others)

    return take


def test_the_same_data_and_model_elsewhere_are_the_same(
    arguments, data, tiny_model, tmp_path, monkeypatch
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    own = ("--steps", "4", "--precision", "auto")
    assert run(arguments(whole, *own)).exit_code == 0
    assert run(arguments(parts, *own, "--stop-at", "2")).exit_code == 0
    where = {
        str(tiny_model): str(shutil.copytree(tiny_model, tmp_path / "model")),
        **{str(data / kind): f"data/{kind}" for kind in ("rgb", "vh")},
    }
    shutil.copytree(data, tmp_path / "data")
    monkeypatch.chdir(tmp_path)

    precision = ("--precision", report(parts)["precision"])
    more = arguments(parts, "--steps", "4", *precision, "--validate-every", "3", "--resume")
    resumed = run([where.get(argument, argument) for argument in more])

    assert resumed.exit_code == 0, resumed.output
    assert_same_weights(whole, parts)
    assert [m["step"] for m in report(parts)["measured"]][-2:] == [3, 4]


def in_the_way(output):
    (output / "open_clip_model.safetensors").unlink()
    (output / "open_clip_model.safetensors" / "in").mkdir(parents=True)


def without_a_card(output):
    (output / "segearth.json").unlink()


def cut_short(output):
    path = output / "open_clip_model.safetensors"
    content = path.read_bytes()
    path.unlink()  # the weights that were read from it still lie there
    path.write_bytes(content[:-100])


def of_another_step(output):
    card = json.loads((output / "segearth.json").read_text())
    for name in {"distillation", "upsampler_training"} & card.keys():
        card[name]["steps_done"] = 1
    (output / "segearth.json").write_text(json.dumps(card))


@pytest.mark.parametrize("damage", [without_a_card, cut_short, of_another_step])
def test_a_model_that_was_not_written_is_when_going_on(arguments, tmp_path, damage):
    output = tmp_path / "run"
    assert run(arguments(output, "--steps", "2")).exit_code == 0
    before, measured = weights(output), report(output)["measured"]
    damage(output)
    shutil.rmtree(output / "logs")

    resumed = run(arguments(output, "--steps", "2", "--resume"))

    assert resumed.exit_code == 0, resumed.output
    open_model_folder(output)
    torch.testing.assert_close(weights(output), before, atol=0, rtol=0)
    assert report(output)["measured"] == measured
    name = next(name for name in measured[-1] if name != "step")
    assert logged(output, f"held_out/{name}") == {2: pytest.approx(measured[-1][name])}


def test_a_model_that_could_not_be_written_is_when_going_on(arguments, data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    own = ("--steps", "4", "--validate-every", "2")
    assert run(arguments(whole, *own)).exit_code == 0
    assert run(arguments(parts, *own, "--stop-at", "3")).exit_code == 0
    in_the_way(parts)

    failed = run(arguments(parts, *own, "--resume"))
    assert failed.exit_code == 1
    assert "cannot write the model folder" in words_of(failed)
    assert torch.load(parts / "checkpoint.pt", weights_only=True)["step"] == 4
    words = ("--classes", "road", "-o", str(tmp_path / "map.tif"))
    unusable = run(["segment", str(data / "rgb" / "0.tif"), *words, "--model", str(parts)])
    assert "has not written its model yet" in words_of(unusable)
    assert "--resume" in unusable.output
    shutil.rmtree(parts / "open_clip_model.safetensors")
    resumed = run(arguments(parts, *own, "--resume"))

    assert resumed.exit_code == 0, resumed.output
    assert_same_weights(whole, parts)
    assert report(parts)["measured"] == report(whole)["measured"]


def test_what_is_whole_is_not_written_again(upsampler_run, tmp_path):
    output = tmp_path / "run"
    assert run(upsampler_run(output, "--steps", "1")).exit_code == 0
    before = (output / "segearth.json").stat().st_mtime_ns

    assert run(upsampler_run(output, "--steps", "1", "--resume")).exit_code == 0

    assert (output / "segearth.json").stat().st_mtime_ns == before


def test_beginning_anew_keeps_what_others_left(upsampler_run, tmp_path):
    output = tmp_path / "run"
    assert run(upsampler_run(output, "--steps", "2")).exit_code == 0
    foreign = [output / "notes.txt", output / "logs" / "notes.txt", output / "logs" / "a" / "b"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")

    again = run(upsampler_run(output, "--steps", "1", "--overwrite"))

    assert again.exit_code == 0, again.output
    assert all(path.read_text() == "mine" for path in foreign)
    assert set(logged(output, "train/loss")) == {1}


def test_beginning_anew_leaves_no_old_model_that_looks_new(
    upsampler_run, data, tmp_path, monkeypatch
):
    output = tmp_path / "run"
    assert run(upsampler_run(output, "--steps", "1")).exit_code == 0
    monkeypatch.setattr("segearth_cli.training.loop.take_step", failing_at(1))
    assert run(upsampler_run(output, "--steps", "1", "--overwrite")).exit_code == 1

    words = ("--classes", "road", "-o", str(tmp_path / "map.tif"))
    result = run(["segment", str(data / "rgb" / "0.tif"), *words, "--model", str(output)])

    assert result.exit_code == 1
    assert "has not written its model yet" in words_of(result)
    assert "begin anew (the same command and --overwrite)" in words_of(result)


def test_a_run_without_a_checkpoint_is_begun_anew(upsampler_run, tmp_path, monkeypatch):
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("segearth_cli.training.loop.take_step", failing_at(1))
        assert run(upsampler_run(output, "--steps", "1")).exit_code == 1

    resumed = run(upsampler_run(output, "--steps", "1", "--resume"))
    assert resumed.exit_code == 2
    assert "to go on from; leave --resume out" in words_of(resumed)
    assert run(upsampler_run(output, "--steps", "1")).exit_code == 0


def test_messages_name_a_few_of_many():
    crops = torch.zeros(300, 3, 8, 8)
    batch = Batch((crops,), tuple(f"{number}.tif" for number in range(300)), ())

    message = str(unusable("loss", float("nan"), 0, [batch, batch]))

    assert "over 0.tif, 1.tif, 2.tif, 3.tif and 296 more; look at these" in message


def test_other_settings_are_named_and_others_not(distill_run, tmp_path):
    output = tmp_path / "run"
    assert run(distill_run(output, "--steps", "2", "--stop-at", "1")).exit_code == 0

    other = ("--sar-stretch", "p1,99", "--bands", "3,2,1", "--log-every", "5")
    result = run(distill_run(output, "--steps", "2", "--resume", *other))

    assert result.exit_code == 1
    assert (
        "was made with other settings: optical_scene.bands [], not ['3', '2', '1'], "
        "sar_scene.stretch 'auto', not 'p1,99'; give the same ones"
    ) in words_of(result)


def test_a_folder_that_is_there_is_not_written_over(arguments, tmp_path):
    output = tmp_path / "run"

    nothing = run(arguments(output, "--steps", "2", "--resume"))
    assert "to go on from; leave --resume out" in words_of(nothing)
    assert run(arguments(output, "--steps", "2")).exit_code == 0
    again = run(arguments(output, "--steps", "2"))
    assert again.exit_code == 1
    assert "use --resume" in again.output
    other = run(arguments(output, "--steps", "2", "--resume", "--learning-rate", "0.5"))
    assert other.exit_code == 1
    assert "learning_rate" in other.output
    (output / "checkpoint.pt").write_bytes(b"PK\x03\x04 cut short")
    damaged = run(arguments(output, "--steps", "2", "--resume"))
    assert damaged.exit_code == 1
    assert "cannot be resumed from" in damaged.output
    assert run(arguments(output, "--steps", "1", "--overwrite")).exit_code == 0
    assert report(output)["steps_done"] == 1


def test_the_same_seed_gives_the_same_and_readers_change_nothing(arguments, tmp_path):
    for name, more in (("a", ()), ("b", ("--workers", "2")), ("c", ("--seed", "1"))):
        assert run(arguments(tmp_path / name, "--steps", "2", *more)).exit_code == 0

    assert_same_weights(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "a", tmp_path / "c")
