import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio import Affine
from rasterio.warp import Resampling, reproject
from scenes import UTM, blocks, write_scene

from segearth_cli.errors import SceneError, UsageError
from segearth_cli.options import SceneOptions
from segearth_cli.training.data import Opener, RandomCrops, collate, fixed_crops
from segearth_cli.training.loop import StepBatches
from segearth_cli.training.sources import Place, image_sources, pair_sources


def opener(**options):
    return Opener(SceneOptions(stretch="none", **options))


def pair_opener():
    return Opener(SceneOptions(sensor="optical"), SceneOptions(sensor="sar"))


def test_crops_are_windows_of_the_images_and_the_same_again(tmp_path):
    array = blocks()
    scene = write_scene(tmp_path / "a.tif", array)
    crops = RandomCrops([Place((scene,))], opener(), 64, seed=3)
    windows = {
        (array[:, y : y + 64, x : x + 64] / np.float32(255)).astype(np.float32).tobytes()
        for y in range(37)
        for x in range(67)
    }

    found = [crops[i].images[0] for i in range(8)]
    again = RandomCrops([Place((scene,))], opener(), 64, seed=3)

    assert all(crop.numpy().tobytes() in windows for crop in found)
    assert len({crop.numpy().tobytes() for crop in found}) > 4
    torch.testing.assert_close(again[5].images[0], found[5], atol=0, rtol=0)
    assert not torch.equal(RandomCrops([Place((scene,))], opener(), 64, 4)[5].images[0], found[5])


def test_large_scenes_have_as_large_a_share(tmp_path):
    large = write_scene(tmp_path / "large.tif", blocks(3, 130, 130))
    small = write_scene(tmp_path / "small.tif", blocks(3, 64, 64))

    crops = RandomCrops([Place((large,)), Place((small,))], opener(), 64, 0)

    assert len(crops) == 5
    assert sorted(crops[i].source for i in range(5)) == [large] * 4 + [small]


def test_small_images_are_reflected_and_nodata_is_avoided(tmp_path):
    tiny = write_scene(tmp_path / "tiny.tif", blocks(3, 20, 30))
    array = blocks(3, 200, 200)
    array[:, :, 64:] = 0
    partly = write_scene(tmp_path / "partly.tif", array, nodata=0)

    image = RandomCrops([Place((tiny,))], opener(), 64, 0)[0].images[0]
    crops = RandomCrops([Place((partly,))], opener(), 64, 0)
    valid = [crops[i].images[0] for i in range(6)]

    torch.testing.assert_close(image[:, 20:39, :30], image[:, :19, :30].flip(1))
    grey = [float(((crop - 0.45).abs() < 1e-6).all(0).float().mean()) for crop in valid]
    assert max(grey) <= 0.5


def test_what_cannot_be_used_is_left_out_and_named(tmp_path):
    good = write_scene(tmp_path / "good.tif")
    empty = write_scene(tmp_path / "empty.tif", np.zeros((3, 100, 130), np.uint8), nodata=0)
    crops = RandomCrops([Place((good,)), Place((empty,))], opener(), 64, 0)

    batch = collate([crops[i] for i in range(len(crops))])

    assert set(batch.sources) == {good}
    assert len(set(batch.skipped)) == 1
    assert "empty.tif holds hardly any data" in batch.skipped[0]
    with pytest.raises(SceneError, match="not one image can be used"):
        RandomCrops([Place((empty,))], opener(), 64, 0)[0]


def test_images_are_found_in_folders_and_some_held_out(tmp_path, caplog):
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    for number in range(9):
        Image.fromarray(np.moveaxis(blocks(), 0, -1)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "broken.jpg").write_bytes(b"no image either")

    sources = image_sources([str(tmp_path)], 0.2)

    assert (len(sources.train), len(sources.held_out)) == (7, 2)
    assert "skipped: cannot open" in caplog.text
    assert "broken.jpg" in caplog.text
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no image in"):
        image_sources([str(tmp_path / "empty")], 0.2)


def test_of_a_lone_scene_some_rows_are_held_out(tmp_path):
    scene = write_scene(tmp_path / "a.tif", blocks(3, 200, 130))

    sources = image_sources([scene], 0.1)
    train = RandomCrops(sources.train, opener(), 32, 0)
    held_out = fixed_crops(sources.held_out, opener(), 32, 100)

    assert [place.rows(200) for place in sources.train + sources.held_out] == [(0, 150), (150, 50)]
    assert len(train) == 150 * 130 // 32**2
    assert [crop.source.split()[-1] for crop in held_out] == ["0,150", "32,150", "64,150", "96,150"]


def test_the_digest_is_that_of_the_files(tmp_path):
    first, second = write_scene(tmp_path / "a.tif"), write_scene(tmp_path / "b.tif")
    before = image_sources([first, second], 0.5).digest

    assert image_sources([first, second], 0.5).digest == before
    write_scene(tmp_path / "b.tif", blocks()[:, ::-1].copy())
    assert image_sources([first, second], 0.5).digest != before


def write_radar(path, array, **profile):
    return write_scene(path, array.astype(np.float32), **profile)


def test_pairs_by_stem_turn_together_and_odd_ones_are_named(tmp_path, caplog):
    for folder in ("rgb", "vh"):
        (tmp_path / folder).mkdir()
    for name in "abc":
        array = blocks(3, 100, 130)
        write_scene(tmp_path / "rgb" / f"{name}.tif", array)
        write_radar(tmp_path / "vh" / f"{name}.tif", array[:1] / 10 - 30)
    write_scene(tmp_path / "rgb" / "alone.tif")
    write_scene(tmp_path / "rgb" / "odd.tif", crs=None, transform=Affine.identity())
    write_radar(tmp_path / "vh" / "odd.tif", blocks(1, 50, 60), crs=None)
    far = {**UTM, "transform": Affine(2, 0, 900_000, 0, -2, 5_400_000)}
    write_scene(tmp_path / "rgb" / "far.tif")
    write_radar(tmp_path / "vh" / "far.tif", blocks(1), **far)

    sources = pair_sources(str(tmp_path / "rgb"), str(tmp_path / "vh"), None, 0.3)

    assert (len(sources.train), len(sources.held_out), len(sources.skipped)) == (2, 1, 3)
    assert "alone.tif has no partner" in caplog.text
    assert "100 x 130" in caplog.text or "130 x 100 pixels" in caplog.text
    assert "do not touch on the ground" in caplog.text
    crops = RandomCrops(sources.train, pair_opener(), 64, 0, turns=True)
    for index in range(6):
        optical, sar = crops[index].images
        red, radar = optical[0].flatten(), sar[0].flatten()
        assert np.corrcoef(red, radar)[0, 1] > 0.99


def test_pairs_of_equal_name_in_other_folders_are_not_mixed(tmp_path):
    for folder in ("rgb/a", "rgb/b", "rgb/c", "vh/a", "vh/b"):
        (tmp_path / folder).mkdir(parents=True)
        array = blocks(1 if folder.startswith("vh") else 3)
        write_radar(tmp_path / folder / "1.tif", array / 10 - 30)

    sources = pair_sources(str(tmp_path / "rgb"), str(tmp_path / "vh"), None, 0.5)

    found = [
        Path(p).parent.name for place in sources.train + sources.held_out for p in place.sources
    ]
    assert found == ["a", "a", "b", "b"]
    assert len(sources.skipped) == 1


def test_an_image_that_the_options_do_not_fit_is_left_out(tmp_path):
    four = write_scene(tmp_path / "four.tif", blocks(4))
    three = write_scene(tmp_path / "three.tif", blocks(3))
    crops = RandomCrops([Place((four,)), Place((three,))], opener(bands=("4", "3", "2")), 64, 0)

    batch = collate([crops[i] for i in range(len(crops))])

    assert set(batch.sources) == {four}
    assert "three.tif" in batch.skipped[0]


def test_georeferenced_pairs_of_other_grids_are_brought_onto_one(tmp_path):
    array = blocks(3, 200, 200)
    optical = write_scene(tmp_path / "rgb.tif", array)
    smooth = np.kron(blocks(1, 200, 200)[:, ::10, ::10], np.ones((10, 10)))[:, :200, :200]
    same = write_radar(tmp_path / "same.tif", smooth - 300)
    other = tmp_path / "other.tif"
    moved = Affine(3, 0, 499_990, 0, -3, 5_400_010)
    with rasterio.open(same) as src:
        data = np.full((1, 150, 150), np.nan, np.float32)
        reproject(
            src.read(),
            data,
            src_transform=src.transform,
            src_crs=src.crs,
            dst_transform=moved,
            dst_crs=src.crs,
            resampling=Resampling.bilinear,
        )
    write_radar(other, data, transform=moved, nodata=float("nan"))

    first, second = pair_opener()((optical, str(other)))
    _, straight = pair_opener()((optical, same))

    assert (second.grid.width, second.grid.height) == (200, 200)
    a, valid = second.read(20, 160, 20, 160)
    b, _ = straight.read(20, 160, 20, 160)
    assert valid.all()
    assert np.corrcoef(a[0].ravel(), b[0].ravel())[0, 1] > 0.97
    assert first.grid == straight.grid


def test_a_table_names_pairs_and_their_parts(tmp_path, caplog):
    for name in ("a", "b", "c"):
        write_scene(tmp_path / f"{name}.tif")
        write_radar(tmp_path / f"{name}_vh.tif", blocks(1) / 10 - 30)
    table = tmp_path / "pairs.csv"
    table.write_text(
        "optical,sar,split\na.tif,a_vh.tif,train\nb.tif,b_vh.tif,val\nc.tif,missing.tif,\n,,\n"
    )

    sources = pair_sources(None, None, str(table), 0.1)

    assert [place.sources[0][-5:] for place in sources.held_out] == ["b.tif"]
    assert len(sources.train) == 1
    assert "missing.tif: there is no such file" in caplog.text
    assert "line 5" in caplog.text
    table.write_text("optical,sar,split\na.tif,a_vh.tif,test\n")
    with pytest.raises(UsageError, match="has the split 'test'"):
        pair_sources(None, None, str(table), 0.1)
    table.write_text("left,right\n")
    with pytest.raises(UsageError, match="columns optical and sar"):
        pair_sources(None, None, str(table), 0.1)


def test_processes_and_parts_share_out_the_same_batches():
    whole = list(StepBatches(range(2, 4), 8, 1, 0, 1))
    parts = list(StepBatches(range(2, 4), 8, 2, 0, 1))
    shares = [list(StepBatches(range(2, 4), 8, 2, process, 2)) for process in (0, 1)]

    assert whole == [list(range(16, 24)), list(range(24, 32))]
    assert [parts[0] + parts[1], parts[2] + parts[3]] == whole
    assert [a + b for a, b in zip(*shares, strict=True)] == parts


def test_remarks_about_rasters_are_made_once():
    from segearth_cli.terminal import OnceForAllScenes

    once = OnceForAllScenes()
    record = logging.LogRecord("segearth_cli.geo.source", 30, "", 0, "%s has none", ("a",), None)
    other = logging.LogRecord("segearth_cli.training", 30, "", 0, "%s has none", ("a",), None)

    assert [once.filter(r) for r in (record, record, other, other)] == [True, False, True, True]
