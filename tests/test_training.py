import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import rasterio
import torch
from safetensors.torch import load_file
from scenes import interruptible, read
from torchvision.transforms.functional import gaussian_blur
from trainings import ROOT, logged, report, run, weights

from segearth_cli.errors import TrainingError, UsageError
from segearth_cli.model import clip
from segearth_cli.model.card import ModelCard
from segearth_cli.model.folder import open_model_folder, save_model_folder
from segearth_cli.options import SceneOptions
from segearth_cli.training.checkpoint import Run
from segearth_cli.training.data import collate
from segearth_cli.training.loop import take_step
from segearth_cli.training.losses import contrastive_loss, region_distance, token_distance
from segearth_cli.training.processes import started
from segearth_cli.training.trainee import Step
from segearth_cli.training.upsampler import AttentionDownsampler, Jitter


def test_a_trained_upsampler_is_a_model_that_segments(upsampler_run, tiny_model, data, tmp_path):
    output = tmp_path / "deep" / "sharp"

    result = run(upsampler_run(output, "--steps", "3", "--json", "--warmup-steps", "2"))

    assert result.exit_code == 0, result.output
    line = json.loads(result.stdout)
    assert [m["step"] for m in line["measured"]] == [0, 3]
    folder = open_model_folder(output)
    assert folder.card.name == "sharp"
    assert folder.upsampler is not None
    before = load_file(tiny_model / "open_clip_model.safetensors")
    torch.testing.assert_close(weights(output)["open_clip_model.safetensors"], before)
    facts = report(output)
    assert facts["settings"]["kernel"] == 3
    assert len(facts["data"]["digest"]) == 64
    assert facts["data"]["held_out"] == ["2.tif"]
    card = (output / "segearth.json").read_text()  # goes with the model
    assert facts["data"]["digest"] in card
    assert ".tif" not in card
    assert str(data) not in card
    assert facts["steps_done"] == 3
    assert set(logged(output, "train/reconstruction")) == {1, 2, 3}
    assert logged(output, "train/learning_rate")[1] == pytest.approx(5e-4)
    assert set(logged(output, "held_out/bilinear_by_mean")) == {0, 3}
    made = tmp_path / "map.tif"
    words = ("--classes", "building,road")
    scene = str(data / "rgb" / "0.tif")
    ran = run(["segment", scene, *words, "--model", str(output), "-o", str(made)])
    assert ran.exit_code == 0, ran.output
    assert read(made).shape == (100, 130)


def test_a_distilled_model_is_one_for_radar(distill_run, data, tiny_model, tmp_path):
    output = tmp_path / "radar"

    result = run(distill_run(output, "--steps", "2"))

    assert result.exit_code == 0, result.output
    card = open_model_folder(output).card
    assert (card.sensor, card.attention, card.modulated_blocks) == ("sar", "sclip", 2)
    before = load_file(tiny_model / "open_clip_model.safetensors")
    after = weights(output)["open_clip_model.safetensors"]
    changed = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert changed
    assert all(name.startswith("visual.") for name in changed)
    measured = report(output)["measured"][-1]
    assert {"recall_optical_to_sar", "recall_sar_to_optical", "token_cosine"} <= measured.keys()
    made = tmp_path / "map.tif"
    words = ("--classes", "building,road")
    scene = str(data / "vh" / "0.tif")
    ran = run(["segment", scene, *words, "--model", str(output), "-o", str(made), "-v"])
    assert ran.exit_code == 0, ran.output
    assert "sar, bands 1" in ran.output


def test_what_was_not_measured_on_is_said_in_the_report(arguments, data, tmp_path):
    own = shutil.copytree(data, tmp_path / "data")
    damaged = own / "rgb" / "1.tif"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    named = arguments(tmp_path / "run", "--steps", "1", "--held-out", "0.5", "--json")

    result = run([argument.replace(str(data), str(own)) for argument in named])

    assert result.exit_code == 0, result.output
    facts = report(tmp_path / "run")
    assert facts["data"]["held_out"] == ["3.tif"]
    assert facts["skipped"] == json.loads(result.stdout)["skipped"]
    (reason,) = facts["skipped"]
    assert str(damaged) in reason
    assert reason in " ".join(result.stderr.split())


def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(arguments, data, tmp_path):
    output = tmp_path / "run"
    for more, message in (
        (("--crop", "50"), "--crop 50 is no multiple of the model's patch"),
        (("--held-out", "2"), "--held-out is 2.0"),
        (("--batch-size", "3", "--accumulate", "2"), "cannot be taken in 2 equal parts"),
        (("--precision", "fp16"), "--precision fp16 needs a GPU"),
        (("--device", "cuda:7"), "--device cuda:7"),
        (("--model", "nonesuch"), "no model or folder"),
    ):
        result = run(arguments(output, *more))
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split())
        assert not output.exists()
    output.write_text("a file")
    assert "is a file; name a folder" in run(arguments(output)).output


def test_bf16_trains(arguments, tmp_path):
    result = run(arguments(tmp_path / "run", "--steps", "2", "--precision", "bf16"))

    assert result.exit_code == 0, result.output
    assert report(tmp_path / "run")["precision"] == "bf16"


def test_a_loss_that_is_no_number_names_the_images(arguments, tmp_path):
    output = tmp_path / "run"

    result = run(arguments(output, "--steps", "9", "--learning-rate", "1e30", "--save-every", "1"))

    assert result.exit_code == 1
    assert re.search("the (loss|gradient) is", result.output)
    assert ".tif" in result.output
    saved = torch.load(output / "checkpoint.pt", weights_only=True)
    assert saved["step"] < 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 0), (signal.SIGHUP, 2)]
)
def test_ctrl_c_saves_and_says_how_to_go_on(distill_run, tmp_path, number, workers):
    output = tmp_path / "run"
    own = distill_run(output, "--steps", "100000", "--workers", workers, "--json")

    process = subprocess.Popen(
        [sys.executable, "-m", "segearth_cli", *own],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        preexec_fn=interruptible, start_new_session=True,
    )  # fmt: skip
    for line in process.stderr:
        if "step 3 of" in line:
            # a terminal's Ctrl-C reaches the readers too
            (os.killpg if workers else os.kill)(process.pid, number)
            if number == signal.SIGHUP:  # which comes twice
                os.killpg(process.pid, number)
            break
    told, rest = process.communicate(timeout=120)

    assert process.returncode == 128 + number, rest
    assert rest.count("stopping after this step") == 1
    assert json.loads(told)["status"] == "stopped"
    assert "--resume" in rest
    assert (output / "checkpoint.pt").is_file()
    assert not list(output.glob("*.part"))


def gradients(trainee, parts):
    trainee.module.zero_grad()
    with started(trainee.options) as accelerator:
        step = Step(0, torch.Generator().manual_seed(0), accelerator)
        scalars = trainee.accumulate(parts, step)
    return scalars, [p.grad.clone() for p in trainee.module.parameters() if p.grad is not None]


def test_parts_of_a_batch_have_its_gradients(distillation):
    trainee = distillation()
    crops = [trainee.crops[i] for i in range(6)]

    whole, expected = gradients(trainee, [collate(crops)])
    parts, found = gradients(trainee, [collate(crops[:3]), collate(crops[3:])])

    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_gradients_are_the_same_when_activations_are_computed_twice(distillation):
    plain, checkpointing = distillation(), distillation(checkpointing=True)
    batch = [collate([plain.crops[i] for i in range(3)])]

    torch.testing.assert_close(gradients(plain, batch), gradients(checkpointing, batch))


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_gradients_are_those_of_the_whole_loss_over_the_whole_batch(distillation, parts):
    trainee = distillation()
    crops = [trainee.crops[i] for i in range(6)]
    optical, sar = (trainee.model.normalised(x) for x in collate(crops).images)
    wanted, own = trainee.teacher(optical), trainee.module.encoder(sar)  # patches, tokens
    loss = (
        contrastive_loss(wanted[1], own[1], trainee.module.log_inverse_temperature.exp())
        + token_distance(wanted[1], own[1])
        + region_distance(wanted[0], own[0], 2)
    )
    learning = [p for p in trainee.module.parameters() if p.requires_grad]
    expected = torch.autograd.grad(loss, learning, allow_unused=True)

    size = 6 // parts
    batch = [collate(crops[first : first + size]) for first in range(0, 6, size)]
    scalars, found = gradients(trainee, batch)

    torch.testing.assert_close(scalars["loss"], loss.detach())
    torch.testing.assert_close(found, [g for g in expected if g is not None], atol=1e-6, rtol=1e-4)
    assert float(trainee.module.log_inverse_temperature.grad.abs()) > 1e-4


def test_the_temperature_can_leave_its_limit(distillation):
    trainee = distillation(temperature=1e-3)
    log_inverse = trainee.module.log_inverse_temperature
    optimizer = trainee.optimizer(0.1)

    gradients(trainee, [collate([trainee.crops[i] for i in range(3)])])
    assert float(log_inverse.grad.abs()) > 0
    moved = []
    for direction in (-1.0, 1.0):  # beyond the limit, and back
        log_inverse.grad = torch.tensor(direction)
        optimizer.step()
        optimizer.state.clear()
        moved.append(float((-log_inverse.detach()).exp()))

    assert moved[0] == pytest.approx(0.01)
    assert moved[1] > 0.0105


def test_a_bad_gradient_leaves_the_weights_as_they_were(upsampling):
    trainee = upsampling()
    accumulate = trainee.accumulate

    def spoilt(parts, step):
        scalars = accumulate(parts, step)
        next(p for p in trainee.module.parameters() if p.grad is not None).grad[0] = torch.nan
        return scalars

    trainee.accumulate = spoilt
    before = {name: value.clone() for name, value in trainee.module.state_dict().items()}
    batch = [collate([trainee.crops[0]])]
    with started(trainee.options) as accelerator:
        optimizer = accelerator.prepare(trainee.optimizer(0.1))
        run = Run({}, steps=20, step=12)
        with pytest.raises(TrainingError, match=r"the gradient is nan at step 13, over .*\.tif"):
            take_step(run, batch, trainee, optimizer, accelerator, trainee.options)

    torch.testing.assert_close(trainee.module.state_dict(), before, atol=0, rtol=0)


def test_options_arrive(distill_run, tmp_path, monkeypatch):
    output, threads, again = tmp_path / "run", torch.get_num_threads(), []
    checkpoint = clip.checkpoint
    monkeypatch.setattr(clip, "checkpoint", lambda *a, **k: again.append(1) or checkpoint(*a, **k))
    said = ("--nodata", "7", "--sar-nodata", "-99", "--sar-unit", "decibels", "--steps", "1")

    try:
        result = run(distill_run(output, *said, "--checkpointing", "--threads", threads + 1))
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)

    assert result.exit_code == 0, result.output
    settings = report(output)["settings"]
    assert settings["optical_scene"]["nodata"] == 7
    assert settings["sar_scene"]["nodata"] == -99
    assert settings["sar_scene"]["sar_unit"] == "decibels"
    assert settings["checkpointing"] is True
    assert settings["threads"] == threads + 1
    assert again
    refused = run(distill_run(tmp_path / "power", "--sar-unit", "power", "--steps", "1"))
    assert "--sar-unit power cannot be used" in " ".join(refused.output.split())


def test_images_are_read_for_the_models_own_sensor(upsampling, data, tiny_model, tmp_path):
    radar = shutil.copytree(tiny_model, tmp_path / "radar")
    card = json.loads((radar / "segearth.json").read_text())
    (radar / "segearth.json").write_text(json.dumps({**card, "sensor": "sar", "speckle": 5}))
    images = (str(data / "vh"),)

    def first(model, **scene):
        trainee = upsampling(model=str(model), images=images, scene=SceneOptions(**scene))
        return trainee.fixed[0].images[0]

    own = first(radar)
    assert torch.equal(own, first(tiny_model, sensor="sar", speckle=5))
    assert not torch.equal(own, first(radar, speckle=0))
    assert torch.equal(first(radar, speckle=0), first(tiny_model, sensor="sar"))
    assert torch.equal(first(tiny_model), first(radar, sensor="optical"))
    assert not torch.equal(first(tiny_model), own)
    with pytest.raises(UsageError, match="--speckle 5 is for radar"):
        first(tiny_model, speckle=5)
    with pytest.raises(UsageError, match="--sar-unit power is for radar"):
        first(tiny_model, sar_unit="power")


def test_radar_that_nobody_has_called_so_is_asked_about(upsampling, data, caplog):
    images = (str(data / "vh"),)
    upsampling(images=images)
    assert "looks like radar: if it is, say --sensor sar" in caplog.text
    caplog.clear()
    of_radar = upsampling(images=images, scene=SceneOptions(sensor="sar"))
    assert of_radar.model.folder.card.sensor == "optical"  # a model that was named stays
    upsampling(model="auto", images=images, crop=112, scene=SceneOptions(sensor="sar"))
    assert "using the small built-in model mini-sar" in caplog.text
    assert "like radar" not in caplog.text


def test_radar_among_optical_images_is_asked_about_once(upsampling, data, tmp_path, caplog):
    for name, kind, number in (("a", "rgb", 0), ("b", "vh", 1), ("c", "rgb", 2), ("d", "vh", 3)):
        shutil.copy(data / kind / f"{number}.tif", tmp_path / f"{name}.tif")

    upsampling(images=(str(tmp_path),), held_out=0.25)  # c

    assert caplog.text.count("like radar") == 1
    assert f"among the 4 images 2 look like radar, {tmp_path}/b.tif first" in caplog.text


def test_patches_that_a_stack_cannot_serve_are_one_line(upsampler_run, tmp_path):
    output = tmp_path / "run"

    result = run(upsampler_run(output, "--model", "mini", "--crop", "112", "--stack"))

    assert result.exit_code == 2
    assert "for mini's patches of 7 pixels; leave --stack out" in " ".join(result.output.split())
    assert not output.exists()


def test_an_upsampler_is_trained_on_radar(upsampler_run, data, tmp_path):
    named = upsampler_run(tmp_path / "run", "--steps", "1", "--sensor", "sar", "--speckle", "5")
    named[1] = str(data / "vh")

    assert run([*named, "--sar-unit", "decibels"]).exit_code == 0
    scene = report(tmp_path / "run")["settings"]["scene"]
    assert (scene["sensor"], scene["sar_unit"], scene["speckle"]) == ("sar", "decibels", 5)
    refused = run([*named, "--sar-unit", "power", "--overwrite"])
    assert "--sar-unit power cannot be used" in " ".join(refused.output.split())


def test_the_loss_of_a_distillation_is_the_sum_of_its_equations(distillation):
    trainee = distillation()
    scalars, _ = gradients(trainee, [collate([trainee.crops[i] for i in range(3)])])

    total = scalars["contrast"] + scalars["token"] + scalars["region"]
    torch.testing.assert_close(scalars["loss"], total)
    assert float(scalars["temperature"]) == pytest.approx(0.07)


@pytest.mark.parametrize(
    "more",
    [
        {"stack": True},
        {"ratio": 4},
        {"features": "output"},
        {"features": "maskclip", "kernel": 5},
        {"content_weight": 0.0},
    ],
    ids=str,
)
def test_every_row_of_table_7_can_be_trained(upsampling, more):
    trainee = upsampling(**more)

    scalars, found = gradients(trainee, [collate([trainee.crops[i] for i in range(2)])])

    assert all(bool(torch.isfinite(gradient).all()) for gradient in found)
    assert ("content" in scalars) == (more.get("content_weight") != 0)
    assert all(np.isfinite(value) for value in trainee.measure().values())


def test_the_loss_of_an_upsampler_is_eq_5(upsampling):
    trainee = upsampling(content_weight=0.3)
    scalars, _ = gradients(trainee, [collate([trainee.crops[0]])])

    torch.testing.assert_close(scalars["loss"], scalars["uncertain"] + 0.3 * scalars["content"])


def test_pictures_show_an_image_beside_its_features(upsampling, distillation):
    for trainee, panels in ((upsampling(), 3), (distillation(), 4)):
        (picture,) = trainee.pictures().values()
        assert picture.shape[0] == 3
        assert picture.shape[2] == panels * 64
        assert 0 <= float(picture.min()) < float(picture.max()) <= 1


def test_a_jitter_moves_images_and_features_alike():
    image = torch.rand(1, 3, 64, 64)

    torch.testing.assert_close(Jitter()(image), image)
    torch.testing.assert_close(Jitter(mirrored=True)(image), image.flip(3))
    shifted = Jitter(x=2 * 8 / 64)(image)  # eight pixels to the right
    torch.testing.assert_close(shifted[..., :56], image[..., 8:])
    torch.testing.assert_close(shifted[..., 56:], image[..., -8:].flip(3))
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        jitter = Jitter.random(64, generator)
        assert 1 <= jitter.zoom <= 2
        assert abs(jitter.x) + 1 / jitter.zoom <= 1 + 2 * 20 / 64 + 1e-6


@pytest.mark.parametrize("kernel", [16, 32])
def test_downsampling_with_even_attention_is_the_mean_of_blurred_patches(kernel):
    down = AttentionDownsampler(4, kernel).eval()
    for parameter in down.parameters():
        torch.nn.init.zeros_(parameter)
    features = torch.ones(1, 4, 64, 64) * torch.arange(4.0)[:, None, None]

    torch.testing.assert_close(down(features), features[..., : 64 // kernel, : 64 // kernel])


@pytest.mark.parametrize("kernel", [16, 32])
def test_downsampling_is_a_mean_weighted_by_a_softmax_over_each_patch(kernel):
    torch.manual_seed(0)
    down = AttentionDownsampler(4, kernel).eval()
    features = torch.randn(2, 4, 64, 64)

    found = down(features)

    assert found.shape == (2, 4, 64 // kernel, 64 // kernel)
    blurred = gaussian_blur(features, 5, 1.0)
    patch = blurred[1, :, kernel : 2 * kernel, :kernel]  # the second row's first
    scores = torch.einsum("chw,c->hw", patch, down.attention.weight.flatten())
    scores = (scores + down.attention.bias) * down.weight + down.bias
    expected = (patch * scores.flatten().softmax(0).view_as(scores)).sum((1, 2))
    torch.testing.assert_close(found[1, :, 1, 0], expected)


def test_a_model_of_32_pixels_a_patch_can_be_trained(upsampling, tiny_model, tmp_path):
    config = json.loads((tiny_model / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["patch_size"] = 32
    state = open_clip.CLIP(**config["model_cfg"]).state_dict()
    model = save_model_folder(tmp_path / "coarse", state, config, ModelCard("coarse")).path

    trainee = upsampling(model=str(model))
    scalars, found = gradients(trainee, [collate([trainee.crops[0]])])

    assert trainee.module.downsampler.weight.shape == (32, 32)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in found)
    assert np.isfinite(float(scalars["loss"]))


def test_a_frozen_map_keeps_its_colours_while_others_change(upsampling, distillation):
    for trainee, frozen in ((upsampling(), slice(64, 128)), (distillation(), slice(192, 256))):
        (before,) = trainee.pictures().values()
        for parameter in trainee.module.parameters():
            torch.nn.init.normal_(parameter, std=3.0)
        (after,) = trainee.pictures().values()

        assert not torch.equal(after, before)
        torch.testing.assert_close(after[..., frozen], before[..., frozen])


def test_a_run_measures_after_each_epoch_and_logs_its_last_step(upsampler_run, tmp_path):
    output = tmp_path / "run"

    # 3 images of 3 crops in batches of 2: an epoch is 4.5 steps
    assert run(upsampler_run(output, "--epochs", "2", "--log-every", "7")).exit_code == 0

    assert [measured["step"] for measured in report(output)["measured"]] == [0, 5, 9]
    assert set(logged(output, "train/loss")) == {7, 9}
    short = tmp_path / "short"
    assert run(upsampler_run(short, "--steps", "2", "--log-every", "7")).exit_code == 0
    assert set(logged(short, "train/loss")) == {2}


def test_a_distilled_model_keeps_what_its_teacher_said_and_its_filter(
    distill_run, tiny_model, data, tmp_path
):
    teacher, output = shutil.copytree(tiny_model, tmp_path / "teacher"), tmp_path / "radar"
    card = json.loads((teacher / "segearth.json").read_text())
    (teacher / "segearth.json").write_text(json.dumps({**card, "trained_on": "much"}))
    own = distill_run(output, "--steps", "1", "--speckle", "5", "--model", str(teacher))
    assert run(own).exit_code == 0

    card = open_model_folder(output).card
    assert (card.speckle, card.polarisation, card.radar_db) == (5, "", None)
    assert card.extra["trained_on"] == "much"
    assert card.extra["distillation"]["steps_done"] == 1
    filters = {}
    for more in ((), ("--speckle", "0"), ("--speckle", "7")):
        made = tmp_path / f"{len(filters)}.tif"
        words = ("--classes", "building,road", "--model", str(output), *more)
        ran = run(["segment", str(data / "vh" / "0.tif"), *words, "-o", str(made)])
        assert ran.exit_code == 0, ran.output
        with rasterio.open(made) as src:
            filters[more] = src.tags()["SEGEARTH_SCENE"].partition("Lee filter of ")[2]
    assert filters == {(): "5 x 5", ("--speckle", "0"): "", ("--speckle", "7"): "7 x 7"}
    optical = run(["segment", str(data / "rgb" / "0.tif"), *words, "-o", str(tmp_path / "o.tif")])
    assert optical.exit_code == 0
    assert "is read as an optical scene, and radar was made for radar" in (
        " ".join(optical.output.split())
    )


def test_a_distilled_model_is_read_as_its_radar_was(distill_run, data, tmp_path):
    own, output = shutil.copytree(data, tmp_path / "data"), tmp_path / "radar"
    for path in (own / "vh").iterdir():
        with rasterio.open(path) as src:
            profile, vh = src.profile, src.read(1)
        with rasterio.open(path, "w", **profile | {"count": 2}) as dst:
            dst.write(np.stack([vh + 7, vh]))
            dst.descriptions = ("Sigma0_VV_db", "Sigma0_VH_db")
    more = ("--sar-bands", "VV", "--sar-stretch=-25,0", "--steps", "1")
    words = [a.replace(str(data), str(own)) for a in distill_run(output, *more)]
    assert run(words).exit_code == 0

    card = open_model_folder(output).card
    assert (card.polarisation, card.radar_db) == ("VV", (-25, 0))
    scene = str(own / "vh" / "0.tif")
    words = ["--classes", "water", "--model", str(output), "-o", str(tmp_path / "x.tif")]
    plan = run(["segment", scene, *words, "--dry-run"])
    assert "read as sar, bands 1, scaled from -25..0" in " ".join(plan.output.split())


def test_nodata_of_both_views_can_be_said(distill_run, data, tmp_path):
    own = shutil.copytree(data, tmp_path / "data")
    for kind, lacking, value in (("rgb", slice(0, 40), 0), ("vh", slice(60, 130), -99)):
        for path in (own / kind).iterdir():
            with rasterio.open(path, "r+") as dst:
                array = dst.read()
                array[:, :, lacking] = value
                dst.write(array)
    named = [argument.replace(str(data), str(own)) for argument in distill_run(tmp_path / "run")]
    optical, radar = ("--nodata", "0"), ("--sar-nodata", "-99")

    for said in (optical, radar):
        done = run([*named, "--steps", "1", "--overwrite", *said])
        assert done.exit_code == 0, done.output
    both = run([*named, "--steps", "1", "--overwrite", *optical, *radar])

    assert both.exit_code == 2  # 20 of 130 columns are left
    assert "no held-out image can be used" in both.output


def test_files_of_a_model_can_be_read_by_whom_the_umask_lets(upsampler_run, tmp_path):
    before = os.umask(0o027)
    try:
        assert run(upsampler_run(tmp_path / "run", "--steps", "1")).exit_code == 0
    finally:
        os.umask(before)

    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "run").iterdir() if p.is_file()}
    assert len(modes) == 6
    assert set(modes.values()) == {0o640}


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("train-upsampler", "SEGEARTH_TRAIN_UPSAMPLER_MODEL"),
        ("distill-sar", "SEGEARTH_DISTILL_SAR_MODEL"),
        ("segment", "SEGEARTH_SEGMENT_MODEL"),
    ],
)
def test_the_help_names_variables_that_work(command, name, monkeypatch):
    assert name in run([command, "--help"]).output
    monkeypatch.setenv(name, "nonesuch")

    arguments = {
        "train-upsampler": ["x.tif", "-o", "out"],
        "distill-sar": ["--optical", "a", "--sar", "b", "-o", "out"],
        "segment": ["x.tif", "--classes", "road", "-o", "map.tif"],
    }[command]
    result = run([command, *arguments])

    assert result.exit_code == 2
    assert "no model or folder 'nonesuch'" in " ".join(result.output.split())
