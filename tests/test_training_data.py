import logging
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from PIL import Image
from rasterio import Affine
from rasterio.warp import Resampling, reproject
from scenes import UTM, blocks, options_for, write_scene

from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo import raster
from segearth_cli.options import SceneOptions
from segearth_cli.segment import segment
from segearth_cli.training import sources as sources_module
from segearth_cli.training.data import Batch, Opener, RandomCrops, collate, cut, fixed_crops
from segearth_cli.training.loop import StepBatches
from segearth_cli.training.sources import Place, Sources, image_sources, pair_sources


def opener(**options):
    return Opener(SceneOptions(stretch="none", **options))


def whole(source, **options):
    return Place.of((source,), SceneOptions(**options))


def pair_opener():
    return Opener(SceneOptions(sensor="optical"), SceneOptions(sensor="sar"))


def test_crops_are_windows_of_the_images_and_the_same_again(tmp_path):
    array = blocks()
    scene = write_scene(tmp_path / "a.tif", array)
    crops = RandomCrops([whole(scene)], opener(), 64, seed=3)
    windows = {
        (array[:, y : y + 64, x : x + 64] / np.float32(255)).astype(np.float32).tobytes()
        for y in range(37)
        for x in range(67)
    }

    found = [crops[i].images[0] for i in range(8)]
    again = RandomCrops([whole(scene)], opener(), 64, seed=3)

    assert all(crop.numpy().tobytes() in windows for crop in found)
    assert len({crop.numpy().tobytes() for crop in found}) > 4
    torch.testing.assert_close(again[5].images[0], found[5], atol=0, rtol=0)
    assert not torch.equal(RandomCrops([whole(scene)], opener(), 64, 4)[5].images[0], found[5])


def test_large_scenes_have_as_large_a_share(tmp_path):
    large = write_scene(tmp_path / "large.tif", blocks(3, 130, 130))
    small = write_scene(tmp_path / "small.tif", blocks(3, 64, 64))

    crops = RandomCrops([whole(large), whole(small)], opener(), 64, 0)

    assert len(crops) == 5
    assert sorted(crops[i].source for i in range(5)) == [large] * 4 + [small]


def test_small_images_are_reflected_and_nodata_is_avoided(tmp_path, caplog):
    tiny = write_scene(tmp_path / "tiny.tif", blocks(3, 20, 30))
    array = blocks(3, 200, 200)
    array[:, :, 64:] = 0
    partly = write_scene(tmp_path / "partly.tif", array, nodata=0)

    image = RandomCrops([whole(tiny)], opener(), 64, 0)[0].images[0]
    assert "--crop 64 is more than any image has: the largest has 30 x 20 pixels" in caplog.text
    crops = RandomCrops([whole(partly)], opener(), 64, 0)
    valid = [crops[i].images[0] for i in range(6)]

    torch.testing.assert_close(image[:, 20:39, :30], image[:, :19, :30].flip(1))
    grey = [float(((crop - 0.45).abs() < 1e-6).all(0).float().mean()) for crop in valid]
    assert max(grey) <= 0.5


def test_what_cannot_be_used_is_left_out_and_named(tmp_path):
    good = write_scene(tmp_path / "good.tif")
    empty = write_scene(tmp_path / "empty.tif", np.zeros((3, 100, 130), np.uint8), nodata=0)
    crops = RandomCrops([whole(good), whole(empty)], opener(), 64, 0)

    batch = collate([crops[i] for i in range(len(crops))])

    assert set(batch.sources) == {good}
    assert len(set(batch.skipped)) == 1
    assert "empty.tif holds hardly any data" in batch.skipped[0]
    with pytest.raises(SceneError, match="not one image can be used"):
        RandomCrops([whole(empty)], opener(), 64, 0)[0]


def test_held_out_images_that_cannot_be_used_are_named(tmp_path, caplog):
    for name in ("a", "b", "c"):
        write_scene(tmp_path / f"{name}.tif", blocks(3, 128, 128))
    cut_short(tmp_path / "b.tif")
    empty = write_scene(tmp_path / "empty.tif", np.zeros((3, 128, 128), np.uint8), nodata=0)
    held_out = tuple(whole(str(tmp_path / f"{name}.tif")) for name in ("b", "empty", "c"))
    sources = Sources((whole(str(tmp_path / "a.tif")),), held_out, ())

    crops, unusable = fixed_crops(held_out, opener(), 64, 100)
    left = sources.without(unusable)

    assert [crop.source.split()[0] for crop in crops] == [str(tmp_path / "c.tif")] * 4
    assert left.held_out == held_out[2:]
    assert len(left.skipped) == 2
    assert "b.tif" in left.skipped[0]
    assert left.skipped[1] == f"{empty} holds hardly any data"
    assert caplog.text.count("skipped: ") == 2


def cut_short(path):
    """Of the pixels the last ones are missing, and the head is whole."""
    path.write_bytes(path.read_bytes()[:-100])


def test_images_held_out_are_named_from_the_folder_of_all(tmp_path, monkeypatch):
    for name in ("x/a", "x/b", "y/z/a", "y/z/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_scene(tmp_path / f"{name}.tif")
    monkeypatch.chdir(tmp_path)

    def names(*paths):
        return image_sources(paths, 0.5, SceneOptions()).names_held_out

    assert names("x", str(tmp_path / "y")) == ["x/b.tif", "y/z/b.tif"]
    assert names("y") == ["b.tif"]
    assert names("x/a.tif") == ["a.tif"]
    assert names("y/z/a.tif", f"file://{tmp_path}/x/b.tif") == [f"file://{tmp_path}/x/b.tif"]


def test_images_are_found_in_folders_and_some_held_out(tmp_path, tiny_model, caplog):
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    for number in range(9):
        Image.fromarray(np.moveaxis(blocks(), 0, -1)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "broken.jpg").write_bytes(b"no image either")
    (folder / "._0.png").write_bytes(b"what macOS leaves beside an image")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:20])
    maps = options_for(tiny_model, folder / "map.tif", folder / "map.png")
    segment(str(folder / "0.png"), maps)

    sources = image_sources([str(tmp_path)], 0.2, SceneOptions())

    assert (len(sources.train), len(sources.held_out)) == (7, 2)
    assert "skipped: cannot open" in caplog.text
    assert "broken.jpg" in caplog.text
    assert "cut.png" in caplog.text
    assert "._0.png" not in caplog.text
    assert "left out 2 rasters that segearth made" in caplog.text
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no image in"):
        image_sources([str(tmp_path / "empty")], 0.2, SceneOptions())


def test_of_a_lone_scene_some_rows_are_held_out(tmp_path):
    scene = write_scene(tmp_path / "a.tif", blocks(3, 200, 130))

    sources = image_sources([scene], 0.1, SceneOptions())
    train = RandomCrops(sources.train, opener(), 32, 0)
    held_out, _ = fixed_crops(sources.held_out, opener(), 32, 100)

    assert [place.rows(200) for place in sources.train + sources.held_out] == [(0, 150), (150, 50)]
    assert len(train) == 150 * 130 // 32**2
    assert [crop.source.split()[-1] for crop in held_out] == ["0,150", "32,150", "64,150", "96,150"]


def test_the_digest_is_that_of_the_files(tmp_path):
    first, second = write_scene(tmp_path / "a.tif"), write_scene(tmp_path / "b.tif")
    before = image_sources([first, second], 0.5, SceneOptions()).digest

    assert image_sources([first, second], 0.5, SceneOptions()).digest == before
    write_scene(tmp_path / "b.tif", blocks()[:, ::-1].copy())
    assert image_sources([first, second], 0.5, SceneOptions()).digest != before


def test_the_digest_is_of_what_a_mosaic_is_made_of(tmp_path):
    own = write_scene(tmp_path / "own.tif", blocks(3, 64, 64))
    mosaic = str(tmp_path / "mosaic.vrt")
    rasterio.shutil.copy(own, mosaic, driver="VRT")
    before = image_sources([mosaic], 0.5, SceneOptions()).digest
    write_scene(tmp_path / "own.tif", 255 - blocks(3, 64, 64))
    assert image_sources([mosaic], 0.5, SceneOptions()).digest != before


def test_the_digest_tells_what_is_held_out_and_which_rows(tmp_path):
    a, b, c = (whole(write_scene(tmp_path / f"{name}.tif")) for name in "abc")
    above, below = replace(a, last=0.75), replace(a, first=0.75)

    digests = {
        Sources(train, held_out, ()).digest
        for train, held_out in (
            ((a,), (b, c)), ((a, b), (c,)), ((a, c), (b,)), ((above,), (below,)),
            ((replace(a, last=0.5),), (replace(a, first=0.5),)),
        )
    }  # fmt: skip

    assert len(digests) == 5


def test_a_lone_image_of_two_rows_is_shared_out_and_one_of_a_single_row_is_refused(tmp_path):
    scene = write_scene(tmp_path / "two.tif", blocks(3, 2, 130))
    sources = image_sources([scene], 0.1, SceneOptions())

    assert [place.rows(2) for place in sources.train + sources.held_out] == [(0, 1), (1, 1)]
    assert RandomCrops(sources.train, opener(), 32, 0)[0].images[0].shape == (3, 32, 32)
    assert len(fixed_crops(sources.held_out, opener(), 32, 2)[0]) == 2
    scene = write_scene(tmp_path / "one.tif", blocks(3, 1, 130))
    with pytest.raises(UsageError, match="of 1 images 1 can be used"):
        image_sources([scene], 0.1, SceneOptions())


def test_what_is_named_and_not_there_is_an_error(tmp_path):
    here = str(tmp_path)
    write_scene(tmp_path / "a.tif")
    with pytest.raises(UsageError, match="there is no image or folder nowhere"):
        image_sources([here, "nowhere"], 0.1, SceneOptions())
    with pytest.raises(UsageError, match="--sar: there is no image or folder nowhere"):
        pair_sources(here, "nowhere", None, 0.1, SceneOptions())
    with pytest.raises(UsageError, match="only one is a folder"):
        pair_sources(here, str(tmp_path / "a.tif"), None, 0.1, SceneOptions())


def test_an_epoch_counts_the_pixels_that_are_read(tmp_path):
    scene = write_scene(tmp_path / "a.tif", blocks(3, 128, 128))  # pixels of 2 m

    counts = {
        gsd: len(RandomCrops([whole(scene, gsd=gsd)], opener(gsd=gsd), 64, 0))
        for gsd in (None, 1.0, 4.0)
    }

    assert counts == {None: 4, 1.0: 16, 4.0: 1}


def test_heads_are_read_once_and_values_looked_at_once(tmp_path, monkeypatch):
    scenes = [write_scene(tmp_path / f"{n}.tif", blocks().astype(np.uint16)) for n in range(3)]
    heads, looks = [], []
    read_head, found = sources_module.read_head, raster.found_reading
    monkeypatch.setattr(sources_module, "read_head", lambda s: heads.append(s) or read_head(s))
    monkeypatch.setattr(raster, "found_reading", lambda *a: looks.append(1) or found(*a))
    monkeypatch.setattr("segearth_cli.training.data.OPEN_AT_ONCE", 1)

    sources = image_sources(scenes, 0.1, SceneOptions())
    crops = RandomCrops(sources.train, Opener(SceneOptions()), 64, 0)
    assert heads == scenes
    first = [crops[i].images[0] for i in range(len(crops))]
    again = [crops[i].images[0] for i in range(len(crops))]

    assert len({crops[i].source for i in range(len(crops))}) == 2
    assert len(looks) == 2
    torch.testing.assert_close(again, first, atol=0, rtol=0)


def test_a_radar_scene_opened_again_is_read_as_before(tmp_path):
    from segearth_cli.geo.raster import open_scene

    values = np.random.default_rng(0).gamma(4, 0.1, (2, 100, 130))
    scene = write_radar(tmp_path / "a.tif", values)
    options = SceneOptions(sensor="sar", speckle=5)

    with open_scene(scene, options) as first:
        expected, _ = first.read(0, 100)
    with open_scene(scene, options, reading=first.reading) as again:
        found, _ = again.read(0, 100)

    assert first.reading.speckle is not None
    np.testing.assert_array_equal(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_batch_is_pinned():
    batch = Batch((torch.zeros(2, 3, 8, 8),) * 2, ("a", "b"), ())

    assert all(image.is_pinned() for image in batch.pin_memory().images)


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

    sources = pair_sources(str(tmp_path / "rgb"), str(tmp_path / "vh"), None, 0.3, SceneOptions())

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

    sources = pair_sources(str(tmp_path / "rgb"), str(tmp_path / "vh"), None, 0.5, SceneOptions())

    found = [
        Path(p).parent.name for place in sources.train + sources.held_out for p in place.sources
    ]
    assert found == ["a", "a", "b", "b"]
    assert len(sources.skipped) == 1


def test_an_image_that_the_options_do_not_fit_is_left_out(tmp_path):
    four = write_scene(tmp_path / "four.tif", blocks(4))
    three = write_scene(tmp_path / "three.tif", blocks(3))
    crops = RandomCrops([whole(four), whole(three)], opener(bands=("4", "3", "2")), 64, 0)

    batch = collate([crops[i] for i in range(len(crops))])

    assert set(batch.sources) == {four}
    assert "three.tif" in batch.skipped[0]


def test_what_one_view_lacks_no_view_shows(tmp_path):
    optical, radar = blocks(3, 64, 64), blocks(1, 64, 64) / 10.0 - 30
    optical[:, :10] = 0
    radar[:, :, :10] = -999
    pair = (
        write_scene(tmp_path / "a.tif", optical, nodata=0),
        write_radar(tmp_path / "b.tif", radar, nodata=-999),
    )

    images, valid = cut(pair_opener()(pair), (0, 64), 0, 64)

    lacking = torch.zeros(64, 64, dtype=torch.bool)
    lacking[:10] = lacking[:, :10] = True
    assert valid == pytest.approx(1 - float(lacking.float().mean()))
    for image in images:
        assert ((image - 0.45).abs() < 1e-6).all(0).equal(lacking)


def test_options_of_radar_images_are_named_as_they_are_given(tmp_path, caplog):
    pair = (
        write_scene(tmp_path / "a.tif"),
        write_radar(tmp_path / "b.tif", np.where(blocks(1) < 100, 0, blocks(1))),
    )
    optical = SceneOptions(sensor="optical")

    Opener(optical, SceneOptions(sensor="sar"))(pair)
    assert "say --sar-nodata 0" in caplog.text
    with pytest.raises(SceneError, match="--sar-bands: the scene has no band '7'"):
        Opener(optical, SceneOptions(sensor="sar", bands=("7",)))(pair)
    decibels = write_radar(tmp_path / "c.tif", blocks(1) / 10 - 30)
    with pytest.raises(SceneError, match=r"--sar-stretch none cannot.*--sar-stretch -25,0"):
        Opener(optical, SceneOptions(sensor="sar", stretch="none"))((pair[0], decibels))
    with pytest.raises(SceneError, match=r"b\.tif: --bands: the scene has no band '7'"):
        Opener(SceneOptions(sensor="optical", bands=("7",)), SceneOptions(sensor="sar"))(pair)


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


def table_of_pairs(folder, text):
    """A table of pairs, of which the first three are called a, b and c; link is the folder."""
    for name in "abc":
        write_scene(folder / f"{name}.tif")
        write_radar(folder / f"{name}_vh.tif", blocks(1) / 10 - 30)
    (folder / "link").symlink_to(folder)
    table = folder / "pairs.csv"
    table.write_text(text.format(**{name: f"{name}.tif,{name}_vh.tif" for name in "abc"}))
    return str(table)


def test_a_table_names_pairs_and_their_parts(tmp_path, caplog):
    for name in ("a", "b", "c"):
        write_scene(tmp_path / f"{name}.tif")
        write_radar(tmp_path / f"{name}_vh.tif", blocks(1) / 10 - 30)
    table = tmp_path / "pairs.csv"
    table.write_text(
        "optical,sar,split\na.tif,a_vh.tif,train\nb.tif,b_vh.tif,val\nc.tif,missing.tif,\n,,\n"
    )

    sources = pair_sources(None, None, str(table), 0.1, SceneOptions())

    assert [place.sources[0][-5:] for place in sources.held_out] == ["b.tif"]
    assert len(sources.train) == 1
    assert "missing.tif: there is no such file" in caplog.text
    assert "line 5" in caplog.text
    table.write_text(
        "optical,sar,split\na.tif,a_vh.tif,train\nb.tif,b_vh.tif,\nc.tif,gone.tif,val\n"
    )
    with pytest.raises(UsageError, match="at least one to train on and one to measure on"):
        pair_sources(None, None, str(table), 0.5, SceneOptions())  # holds out no others
    table.write_text("optical,sar,split\na.tif,a_vh.tif,test\n")
    with pytest.raises(UsageError, match="has the split 'test'"):
        pair_sources(None, None, str(table), 0.1, SceneOptions())
    assert "--held-out changes nothing" in caplog.text
    for text, why in (
        ("left,right\n", "parted by commas; it has 'left', 'right'"),
        ("optical;sar\na.tif;b.tif\n", "parted by commas; it has 'optical;sar'"),
        ("optical,sar\n", "names no pair"),
    ):
        table.write_text(text)
        with pytest.raises(UsageError, match=why):
            pair_sources(None, None, str(table), 0.1, SceneOptions())


def test_headings_of_a_table_come_in_any_case_and_with_blanks(tmp_path):
    table = table_of_pairs(tmp_path, " Optical,SAR , Split\n{a},train\n{b},val\n{c},\n")

    sources = pair_sources(None, None, table, 0.1, SceneOptions())

    assert [Path(place.sources[0]).name for place in sources.held_out] == ["b.tif"]
    assert len(sources.train) == 2


def test_a_pair_that_is_named_twice_is_taken_once(tmp_path, caplog):
    rows = ("{a}", "{b}", "{a}", "{c}", f"{tmp_path}/a.tif,link/a_vh.tif", "{b}")
    table = table_of_pairs(tmp_path, "optical,sar\n" + "\n".join(rows))

    sources = pair_sources(None, None, table, 0.5, SceneOptions())

    named = [Path(place.sources[0]).name for place in sources.train + sources.held_out]
    assert sorted(named) == ["a.tif", "b.tif", "c.tif"]
    assert caplog.text.count("named more than once, and taken once: ") == 1
    assert f"link/a_vh.tif (it is {tmp_path}/a.tif and {tmp_path}/a_vh.tif)" in caplog.text


@pytest.mark.parametrize("splits", [("train", "val"), ("val", "train"), ("", "val")])
def test_a_pair_to_train_on_and_to_hold_out_is_refused(tmp_path, splits):
    first, second = splits
    rows = ("{a}," + first, "link/a.tif,a_vh.tif," + second, "{b},val", "{c},train")
    table = table_of_pairs(tmp_path, "optical,sar,split\n" + "\n".join(rows))

    with pytest.raises(UsageError, match=r"a\.tif and .*a_vh\.tif is named twice.*one split"):
        pair_sources(None, None, table, 0.1, SceneOptions())


def test_a_folder_of_two_names_is_taken_once(tmp_path, monkeypatch, caplog):
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for number in range(4):
        write_scene(tmp_path / "images" / "deep" / f"{number}.tif")
    (tmp_path / "link").symlink_to("images")
    monkeypatch.chdir(tmp_path)

    for paths in (["images", f"{tmp_path}/images"], ["images", "link"], ["images", "images/deep"]):
        caplog.clear()
        sources = image_sources(paths, 0.25, SceneOptions())

        found = [place.sources[0] for place in sources.train + sources.held_out]
        assert sorted(found) == [f"images/deep/{number}.tif" for number in range(4)]
        assert "named more than once, and taken once: " in caplog.text
        assert "and 1 more" in caplog.text


def test_a_table_may_name_urls_and_paths_of_gdal(tmp_path, caplog):
    (tmp_path / "files").mkdir()
    optical = write_scene(tmp_path / "files" / "a.tif")
    radar = write_radar(tmp_path / "files" / "a_vh.tif", blocks(1) / 10 - 30)
    with zipfile.ZipFile(tmp_path / "files" / "all.zip", "w") as packed:
        packed.write(optical, "b.tif")
        packed.write(radar, "b_vh.tif")
    write_scene(tmp_path / "10:30.tif")
    inside = f"/vsizip/{tmp_path}/files/all.zip"
    table = tmp_path / "pairs.csv"
    table.write_text(
        f"optical,sar\nfile://{optical},file://{radar}\n{inside}/b.tif,{inside}/b_vh.tif\n"
        f"10:30.tif,{radar}\n"
    )

    sources = pair_sources(None, None, str(table), 0.1, SceneOptions())

    assert not sources.skipped, caplog.text
    crops = RandomCrops(sources.train, pair_opener(), 64, 0)
    found = {crops[i].source for i in range(len(crops))} | {sources.held_out[0].sources[0]}
    assert found == {f"file://{optical}", f"{inside}/b.tif", str(tmp_path / "10:30.tif")}


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
