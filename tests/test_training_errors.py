"""What can go wrong with a training: one line that says what to do, and nothing half done."""

import json
import os
import shutil

import numpy as np
import open_clip
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from scenes import blocks, write_scene
from trainings import run, weights

from segearth_cli.errors import SceneError, TrainingError
from segearth_cli.model.card import ModelCard
from segearth_cli.model.folder import save_model_folder
from segearth_cli.training import loop
from segearth_cli.training.loop import Parts, or_raised
from segearth_cli.training.processes import started


def words_of(result):
    return " ".join(result.output.split())


def assert_one_line(result, code, *words):
    assert result.exit_code == code, result.output
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in result.output
    for word in words:
        assert word in errors[0]


@pytest.fixture
def own_data(data, tmp_path):
    """The images, which a test may change."""
    return shutil.copytree(data, tmp_path / "data")


@pytest.fixture
def stopped(distill_run, data, own_data, tiny_model, tmp_path):
    """A run of one's own images and model, stopped at step 1 of 2, and what goes on with it."""
    model = shutil.copytree(tiny_model, tmp_path / "model")

    def go(*more):
        changed = distill_run(tmp_path / "run", "--steps", "2", *more)
        where = {str(tiny_model): str(model)}
        for kind in ("rgb", "vh"):
            where[str(data / kind)] = str(own_data / kind)
        return run([where.get(argument, argument) for argument in changed])

    assert "saved" in go("--stop-at", "1").output
    return go


def test_a_run_of_other_images_is_not_gone_on_with(stopped, own_data):
    write_scene(own_data / "rgb" / "1.tif", blocks()[:, ::-1].copy())

    assert_one_line(stopped("--resume"), 1, "the images are others", "or begin anew with --over")


def test_a_run_of_another_model_is_not_gone_on_with(stopped, tmp_path):
    card = tmp_path / "model" / "segearth.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "stride": 16}))

    assert_one_line(stopped("--resume"), 1, "the model's files have changed", "--overwrite")


def test_a_run_of_another_precision_is_not_gone_on_with(stopped, monkeypatch):
    monkeypatch.setattr(
        "segearth_cli.training.pretrained.pick_precision", lambda name, device: "bf16"
    )

    assert_one_line(stopped("--resume"), 1, "it ran in fp32, not in bf16; say --precision fp32")


def test_a_run_of_other_processes_is_not_gone_on_with(stopped, tmp_path):
    path = tmp_path / "run" / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    saved["identity"]["processes"] = 2
    torch.save(saved, path)

    assert_one_line(stopped("--resume"), 1, "it ran in 2 processes, not in 1; start as many")


def test_a_damaged_checkpoint_is_one_line(stopped, tmp_path):
    path = tmp_path / "run" / "checkpoint.pt"
    whole = path.read_bytes()
    cut_short = [whole[:size] for size in (0, 10, 1000, len(whole) - 100)]

    for content in (*cut_short, b"\x80\x02K\x01.", b"hello there", b"PK\x05\x06" + bytes(18)):
        path.write_bytes(content)
        assert_one_line(stopped("--resume"), 1, "cannot be resumed from", "--overwrite")
    torch.save({}, path)
    assert_one_line(stopped("--resume"), 1, "cannot be resumed from", "--overwrite")


def test_the_model_is_not_trained_over(arguments, tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    before = weights(model)
    own = [a.replace(str(tiny_model), str(model)) for a in arguments(model, "--overwrite")]

    assert_one_line(run(own), 2, "is the model's own folder; name another one")
    torch.testing.assert_close(weights(model), before)


@pytest.mark.parametrize("what", ["logs", "training.json.part", "checkpoint.pt.part"])
def test_an_output_that_cannot_be_written_is_one_line(arguments, tmp_path, what):
    in_the_way = tmp_path / "run" / what
    if what == "logs":
        in_the_way.parent.mkdir()
        in_the_way.write_text("no folder")
    else:
        in_the_way.mkdir(parents=True)

    result = run(arguments(tmp_path / "run", "--steps", "1", "--overwrite"))

    assert_one_line(result, 1, "cannot write", str(tmp_path / "run"))


def test_running_out_of_memory_says_what_to_change(distill_run, tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("segearth_cli.training.loop.take_step", fail)

    assert_one_line(run(distill_run(tmp_path / "run")), 1, "out of memory; use more --accumulate")


def test_what_a_reader_finds_wrong_arrives_as_it_was_said():
    class Broken:
        def __getitem__(self, index):
            raise SceneError(f"crop {index} is broken")

    for workers in (0, 2):
        batches = torch.utils.data.DataLoader(
            Parts(Broken()), sampler=[[3, 4]], batch_size=None, num_workers=workers
        )
        with pytest.raises(SceneError, match=r"^crop 3 is broken$"):
            next(or_raised(batches))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_images_that_turn_out_empty_are_one_line(upsampler_run, tmp_path, workers):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, array in (("a", np.zeros((3, 100, 130), np.uint8)), ("b", blocks())):
        write_scene(folder / f"{name}.tif", array, nodata=0)
    write_scene(folder / "c.tif", np.zeros((3, 100, 130), np.uint8), nodata=0)
    named = upsampler_run(tmp_path / "run", "--workers", workers)
    named[1] = str(folder)

    assert_one_line(run(named), 1, "not one image can be used: ", "holds hardly any data")


def test_a_reader_that_is_killed_is_one_line():
    with pytest.raises(TrainingError, match="use fewer --workers"), loop.reader_guard():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    with pytest.raises(RuntimeError, match="a bug"), loop.reader_guard():
        raise RuntimeError("a bug")


def test_a_resnet_is_refused(distill_run, tiny_model, tmp_path):
    tower = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 8}
    config = json.loads((tiny_model / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] = tower
    state = open_clip.CLIP(**config["model_cfg"]).state_dict()
    model = save_model_folder(tmp_path / "resnet", state, config, ModelCard("resnet")).path
    own = [a.replace(str(tiny_model), str(model)) for a in distill_run(tmp_path / "run")]

    assert_one_line(run(own), 1, "ModifiedResNet", "use a model whose tower")
    assert not (tmp_path / "run").exists()


def test_crops_too_small_for_the_kernel_are_refused(upsampler_run, tmp_path):
    output = tmp_path / "run"

    refused = run(upsampler_run(output, "--crop", "48", "--kernel", "13"))

    assert_one_line(refused, 2, "--crop 48 is 3", "too few for --kernel 13; give 64 or more")
    assert not output.exists()
    enough = run(upsampler_run(output, "--crop", "64", "--kernel", "13", "--steps", "1"))
    assert enough.exit_code == 0, enough.output


def test_crops_too_small_for_the_regions_are_refused(distill_run, tmp_path):
    refused = run(distill_run(tmp_path / "run", "--crop", "32", "--regions", "3"))

    assert_one_line(refused, 2, "--crop 32 is 2", "--regions 3; give a --crop of 48 or more")
    assert not (tmp_path / "run").exists()


def test_a_warm_up_is_shorter_than_the_run(arguments, tmp_path):
    for more in (
        ("--steps", "3", "--warmup-steps", "3"),
        ("--epochs", "1", "--warmup-steps", "99"),
    ):
        result = run(arguments(tmp_path / "run", *more))
        assert_one_line(result, 2, f"--warmup-steps {more[-1]} are not fewer than the run's")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("plugin", ["DEEPSPEED", "FSDP"])
def test_plugins_of_accelerate_are_refused(distill_run, tmp_path, monkeypatch, plugin):
    monkeypatch.setenv(f"ACCELERATE_USE_{plugin}", "true")

    assert_one_line(run(distill_run(tmp_path / "run")), 2, plugin, "start them with torchrun")


def test_the_environment_does_not_divide_gradients(upsampling, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.ones((), requires_grad=True)

    with started(upsampling().options) as accelerator:
        accelerator.backward(3 * weight)

    assert weight.grad == 3


def test_nothing_of_a_run_is_left_in_the_process(distill_run, tmp_path):
    assert run(distill_run(tmp_path / "a", "--batch-size", "3", "--accumulate", "2")).exit_code == 2
    assert run(distill_run(tmp_path / "b", "--model", "nonesuch")).exit_code == 2
    assert run(distill_run(tmp_path / "c", "--steps", "1")).exit_code == 0

    assert not AcceleratorState._shared_state
    assert not PartialState._shared_state
    assert not GradientState._shared_state


@pytest.fixture
def of_the_caller():
    """An accelerator that whoever trains from Python has made before."""
    yield Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=7)
    for state in (AcceleratorState, PartialState, GradientState):
        state._shared_state.clear()


UNABLE = ("--steps", "9", "--learning-rate", "1e30")  # fails in the middle


@pytest.mark.parametrize("more", [("--steps", "1"), UNABLE])
def test_an_accelerator_of_the_caller_is_as_before(of_the_caller, distill_run, tmp_path, more):
    result = run(distill_run(tmp_path / "run", *more))

    assert result.exit_code == (more == UNABLE), result.output
    assert ("look at these images" in result.output) == (more == UNABLE)
    assert (of_the_caller.device.type, of_the_caller.mixed_precision) == ("cpu", "bf16")
    assert of_the_caller.gradient_accumulation_steps == 7
    Accelerator(cpu=True, mixed_precision="bf16")  # another one of the same


@pytest.mark.parametrize("more", [("--steps", "1"), UNABLE])
def test_random_numbers_of_the_caller_go_on(distill_run, tmp_path, more):
    for seed in (123, 456):
        torch.manual_seed(seed)
        expected = torch.rand(3)
        torch.manual_seed(seed)
        run(distill_run(tmp_path / str(seed), *more))

        assert torch.equal(torch.rand(3), expected)


def test_pairs_that_are_not_named_or_twice(distill_run, data, tmp_path):
    named = distill_run(tmp_path / "run")
    first, last = named.index("--sar"), named.index("-o")
    own, sar, more = named[:first], str(data / "vh"), named[last:]

    for pairs, message in (
        (["--sar", sar, "--pairs", "pairs.csv"], "--pairs excludes --optical and --sar"),
        ([], "name the pairs with --optical DIR and --sar DIR, or with --pairs FILE"),
        (["--sar", "nowhere"], "--sar: there is no image or folder nowhere; check the name"),
        (["--sar", sar, "--sar-stretch", "x"], "--sar-stretch is 'x'; give auto"),
        (["--sar", sar, "--stretch", "x"], "--stretch is 'x'; give auto"),
    ):
        assert_one_line(run([*own, *pairs, *more]), 2, message)
    bands = run([*own, "--sar", sar, "--sar-bands", "9", *more])
    assert_one_line(bands, 2, "no held-out image can be used", "--sar-bands: the scene has no band")


def test_an_image_that_is_its_own_partner_is_refused(distill_run, data, tmp_path):
    (tmp_path / "link").symlink_to(data / "rgb")
    named = distill_run(tmp_path / "run", "--steps", "1")
    named[named.index("--sar") + 1] = str(tmp_path / "link")

    assert_one_line(run(named), 2, "rgb/0.tif", "link/0.tif are one file; name two, or say with")
    one = run([*named, "--bands", "1,1,1", "--sar-bands", "2"])
    assert one.exit_code == 0, one.output


def test_a_batch_of_one_pair_gets_a_warning(distill_run, tmp_path):
    for size in ("1", "2"):
        done = run(distill_run(tmp_path / size, "--steps", "1", "--batch-size", size))
        assert done.exit_code == 0, done.output
        assert ("--batch-size 1 leaves nothing" in done.stderr) == (size == "1")


def test_pairs_the_wrong_way_round_are_said(distill_run, data, tmp_path):
    ways = {"rgb": distill_run(tmp_path / "right", "--steps", "1")}
    ways["vh"] = distill_run(tmp_path / "wrong", "--steps", "1")
    first, second = ways["vh"].index("--optical") + 1, ways["vh"].index("--sar") + 1
    ways["vh"][first], ways["vh"][second] = ways["vh"][second], ways["vh"][first]
    for words in ways.values():
        done = run(words)
        assert done.exit_code == 0, done.stderr
        assert ("the right way round?" in done.stderr) == (words is ways["vh"])
    assert "no coordinate system" not in done.stderr  # none is needed


def test_one_pair_the_wrong_way_round_is_said(distill_run, data, tmp_path):
    for kind, other in (("rgb", "vh"), ("vh", "rgb")):
        shutil.copytree(data / kind, tmp_path / kind)
        name = sorted(path.name for path in (data / kind).iterdir())[-1]
        shutil.copy(data / other / name, tmp_path / kind / name)
    words = [word.replace(str(data), str(tmp_path)) for word in distill_run(tmp_path / "run")]
    done = run([*words, "--steps", "1"])
    assert "optical images 1 look like radar" in done.stderr


def test_no_model_is_written_among_the_images(upsampler_run, own_data, data):
    words = [word.replace(str(data), str(own_data)) for word in upsampler_run(data / "rgb")]
    done = run([*words, "--steps", "1", "--overwrite"])
    assert_one_line(done, 1, f"lies in {own_data / 'rgb'}; name another folder for the model")
    assert not (own_data / "rgb" / "training.json").exists()


def test_steps_and_epochs_exclude_each_other(upsampler_run, tmp_path):
    done = run(upsampler_run(tmp_path / "run", "--steps", "1", "--epochs", "3"))
    assert_one_line(done, 2, "--steps and --epochs both say how long to train; give one")


def test_settings_are_json(upsampler_run, tmp_path):
    run(upsampler_run(tmp_path / "run", "--steps", "1", "--nodata", "none"))

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    for name in ("training.json", "segearth.json"):
        text = (tmp_path / "run" / name).read_text()
        found = json.loads(text, parse_constant=refuse)
    assert "epochs" not in found["upsampler_training"]["settings"]


def test_what_is_left_out_on_the_way_is_named(upsampler_run, own_data, data, tmp_path):
    bad = write_scene(own_data / "rgb" / "bad.tif")
    with open(bad, "r+b") as file:
        file.truncate(os.path.getsize(bad) // 2)
    words = [word.replace(str(data), str(own_data)) for word in upsampler_run(tmp_path / "run")]
    done = run([*words, "--steps", "20", "--held-out", "0.01"])
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count(f"skipped: cannot read {bad}") == 1
    assert "1 file or pair was skipped: see training.json" in done.stderr


def test_images_that_are_not_there(upsampler_run, tmp_path):
    named = upsampler_run(tmp_path / "run")
    named[1] = str(tmp_path / "nowhere")

    assert_one_line(run(named), 2, "there is no image or folder", "nowhere; check the name")


def test_an_unfinished_run_is_no_model_yet(distill_run, data, tmp_path):
    output = tmp_path / "run"
    assert run(distill_run(output, "--steps", "5", "--stop-at", "1")).exit_code == 0

    scene = str(data / "rgb" / "0.tif")
    words = ("--classes", "road", "-o", str(tmp_path / "map.tif"))
    result = run(["segment", scene, *words, "--model", str(output)])

    assert_one_line(result, 1, "has not written its model yet", "--resume")
