import csv
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import rasterio
import torch
from open_clip.model import CLIP
from PIL import Image
from scenes import write_scene

from segearth_cli.training import mini, mini_data, mini_sar
from segearth_cli.training.mini_augment import (
    crop,
    dimmed,
    looks_of,
    pasted,
    random_shape,
    relit,
    repeated,
)
from segearth_cli.training.mini_data import Batches, Source, read_sources
from segearth_cli.training.mini_network import (
    architecture,
    dense_features,
    kept_tokens,
    normalised,
    run_trunk,
    start_from,
)
from segearth_cli.training.mini_sar import write_pairs
from segearth_cli.training.mini_words import sampled_vocabulary, sentence_features, tokens_of


def picture(path: Path, rng: np.random.Generator, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for collection, names, classes in (
        ("dubai", ("tile1_001", "tile5_001"), 6),
        ("buildings", ("pemba_1", "kampala_1"), 2),
    ):
        for name in names:
            picture(folder / collection / "images" / f"{name}.jpg", rng, 300)
            label = folder / collection / "labels" / f"{name}.png"
            label.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, classes, (300, 300), dtype=np.uint8)).save(label)
    for collection, classes in (("eurosat", ("Forest", "River")), ("ucmerced", ("beach", "river"))):
        for name in classes:
            for number in (1, 10):
                picture(folder / collection / name / f"{name}_{number}.jpg", rng, 64)
    return folder


@pytest.mark.slow
def test_a_run_writes_a_folder_that_open_clip_reads_and_resumes(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "mini"
    words = ["--data", str(data), "--word-steps", "2"]
    budget = [*words, "-o", str(output), "--patch", "16", "--batch-size", "8"]
    mini.main([*budget, "--images", "16"])
    mini.main([*budget, "--images", "24", "--resume"])
    finer = ["--start", str(output), "-o", str(tmp_path / "finer"), "--patch", "7"]
    mini.main([*words, *finer, "--batch-size", "2", "--images", "2"])

    for folder, patch, images in ((output, 16, 24), (tmp_path / "finer", 7, 2)):
        model = open_clip.create_model(f"local-dir:{folder}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        assert model.encode_text(tokenizer(["a road"])).shape == (1, 192)
        assert model.encode_image(torch.zeros(1, 3, 224, 224)).isfinite().all()
        assert model.visual.patch_size == (patch, patch)
        card = json.loads((folder / "segearth.json").read_text())
        assert card["training"]["images"] >= images
        assert ("--start START" in card["made_by"]) == (patch == 7)
        assert not list(folder.glob(".*")), "no half-written files stay"


def test_held_out_images_never_train(data: Path) -> None:
    sources = {source.name: source for source in read_sources(data, None)}
    assert {name: len(source.images) for name, source in sources.items()} == {
        "dubai": 1,
        "buildings": 1,
        "eurosat": 2,
        "ucmerced": 2,
    }


@pytest.mark.parametrize("side", [112, 224, 336])
def test_training_runs_the_features_that_the_tool_runs(side: int) -> None:
    from segearth_cli.model.clip import DenseEncoder

    torch.manual_seed(0)
    model = open_clip.model.CLIP(**architecture(16)).eval()
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    with torch.inference_mode():
        features, token = dense_features(model.visual, run_trunk(model.visual, normalised(images)))
        patches, class_token = DenseEncoder(model.visual)(normalised(images))
        sentence = tokens_of("an aerial image of a lake.")[None]
        torch.testing.assert_close(
            sentence_features(model, sentence), model.encode_text(sentence), atol=1e-5, rtol=1e-4
        )
    torch.testing.assert_close(features, patches / patches.norm(dim=1, keepdim=True))
    torch.testing.assert_close(token, class_token / class_token.norm(dim=1, keepdim=True))


@torch.inference_mode()
def test_a_model_with_small_patches_starts_from_one_with_large_patches() -> None:
    torch.manual_seed(0)
    coarse, fine = (open_clip.model.CLIP(**architecture(patch)) for patch in (16, 8))
    start_from(fine, coarse)
    image = torch.rand(1, 3, 28, 28).repeat_interleave(8, 2).repeat_interleave(8, 3)
    enlarged = image.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(
        fine.visual.conv1(image), coarse.visual.conv1(enlarged), atol=1e-5, rtol=1e-4
    )
    sentence = tokens_of("an aerial image of a lake.")[None]
    torch.testing.assert_close(fine.encode_text(sentence), coarse.encode_text(sentence))


def test_labels_turn_with_the_image() -> None:
    rng = np.random.default_rng(1)
    ramp = np.add.outer(np.arange(600) // 5, np.arange(600) // 9).astype(np.uint8)
    for _ in range(8):
        image, label = crop(np.repeat(ramp[..., None], 3, axis=2), ramp, 224, 56, rng)
        assert np.abs(image[2::4, 2::4, 0].astype(int) - label).max() <= 3


def test_rest_of_a_source_is_background_or_nothing() -> None:
    source = Source("x", ("rest", "road", "water"), [], [], share=1.0, rest=0)
    for seed in range(20):
        vocabulary = sampled_vocabulary(source, np.random.default_rng(seed))
        rest = vocabulary.word_of_class[0]
        assert (rest == -1) == ("background" not in vocabulary.words)
        assert rest == -1 or vocabulary.words[rest] == "background"


def test_batches_repeat_for_a_seed(data: Path) -> None:
    sources = read_sources(data, None)
    first, second = (next(iter(Batches(sources, 6, 8, seed=3))) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)


def test_radar_pairs_are_read_in_several_ways_and_held_out_together(tmp_path, monkeypatch):
    pairs, scenes = tmp_path / "data" / "sar_pairs", tmp_path / "scenes"
    rng = np.random.default_rng(0)
    for folder in (pairs / "optical", pairs / "sar", scenes):
        folder.mkdir(parents=True)
    for name in "abc":
        for kind, shape in (("optical", (40, 50, 3)), ("sar", (40, 50))):
            image = Image.fromarray(rng.integers(1, 255, shape, np.uint8))
            image.save(pairs / kind / f"{name}.jpg")
    decibels = rng.normal(-15, 5, (2, 40, 50)).astype(np.float32)
    with rasterio.open(write_scene(scenes / "x_sary_sar.tif", decibels), "r+") as dst:
        dst.descriptions = ("VV", "VH")
    monkeypatch.setattr(mini_sar, "HELD_OUT", 2)

    table = write_pairs(tmp_path / "data", scenes, tmp_path)

    rows = list(csv.DictReader(table.open()))
    places = [(Path(row["optical"]).name, row["split"]) for row in rows]
    assert places == [
        *[("a.jpg", "train")] * 4,
        *[("b.jpg", "val")] * 4,
        *[("c.jpg", "train")] * 4,
        *[("x_sary.tif", "val")] * 2,
    ]
    for row in rows:
        with Image.open(row["sar"]) as picture:
            assert (picture.mode, picture.size) == ("L", (50, 40))


def test_a_window_takes_on_the_colours_of_another_image():
    rng = np.random.default_rng(0)
    image = rng.normal((60, 120, 180), 10, (64, 64, 3)).clip(0, 255).astype(np.uint8)
    other = rng.normal((150, 100, 90), 15, (64, 64, 3)).clip(0, 255).astype(np.uint8)
    old, new = looks_of([image, other])
    np.testing.assert_allclose(looks_of([relit(image, old, new, 1.0)])[0], new, atol=0.01)
    np.testing.assert_allclose(looks_of([relit(image, old, new, 0.0)])[0], old, atol=0.01)
    half = looks_of([relit(image, old, new, 0.5)])[0]
    np.testing.assert_allclose(half, (old + new) / 2, atol=0.01)


def test_copied_plants_are_seen_where_they_are_labelled():
    rng = np.random.default_rng(0)
    ground, plants = np.full((112, 112, 3), 200, np.uint8), np.full((112, 112, 3), 90, np.uint8)
    covered = []
    for _ in range(20):
        cover = random_shape(112, rng)
        image, label = pasted(ground, np.ones((56, 56), np.uint8), dimmed(plants, rng), cover, 3)
        seen = image.min(-1)[1::2, 1::2] < 150  # plants get no lighter than they are, or hardly
        assert set(np.unique(label)) <= {1, 3}
        assert ((label == 3) == seen).mean() > 0.9  # edges are soft
        covered.append((label == 3).mean())
    assert 0.02 < min(covered) < 0.3 < max(covered) < 0.75
    assert (ground == 200).all()


def test_copied_buildings_are_seen_where_they_are_labelled(monkeypatch):
    monkeypatch.setattr(mini_data, "BUILT_UP", 1.0)
    monkeypatch.setattr(mini_data, "RELIT", 0.0)
    label = np.zeros((200, 200), np.uint8)
    label[60:120, 40:140] = 1
    white = np.full((200, 200, 3), 250, np.uint8)
    roofs = np.where(label[..., None] == 1, np.uint8([250, 20, 20]), white)
    places = Source("a", ("building", "land"), [white], [label * 0 + 1], share=1, planted=1)
    donors = Source("b", ("rest", "building"), [roofs], [label], share=0)
    batches = Batches([places, donors], 4, 8, 0)
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(10):
        image, own = batches._window(0, 112, 56, rng)
        red = (image[..., 0] > image[..., 1] + 100.0)[1::2, 1::2]
        assert (red == (own == 0)).mean() > 0.97
        found += int(red.sum())
    assert found > 500


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_repeated_image_has_no_seams(times):
    slope = np.add.outer(np.arange(96), np.arange(96)).astype(np.uint8)
    image = repeated(np.dstack([slope] * 3), 50, times)
    assert image.shape == (50, 50, 3)
    grey = image[..., 0].astype(int)
    steps = np.abs(np.diff(grey, axis=0)).max(), np.abs(np.diff(grey, axis=1)).max()
    assert max(steps) <= 2 * times + 2


@pytest.mark.parametrize(("side", "tokens"), [(112, None), (224, 197)])
def test_large_chips_are_seen_in_part(side, tokens):
    model = CLIP(quick_gelu=False, **architecture(8))
    kept = kept_tokens(torch.zeros(1, 3, side, side), model, np.random.default_rng(0))
    assert (kept if kept is None else len(kept)) == tokens
    if kept is not None:
        assert kept[0] == 0
        assert len(set(kept.tolist())) == tokens
        assert kept.max() <= (side // 8) ** 2
