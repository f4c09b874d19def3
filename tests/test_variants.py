from itertools import product

import numpy as np
import pytest
import torch
from open_clip.transformer import QuickGELU, VisionTransformer

from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model.clip import HEADS, DenseEncoder
from segearth_cli.model.mosaic import image_logits
from segearth_cli.model.points import point_cosines
from segearth_cli.model.segmenter import Segmenter
from segearth_cli.model.upsampler import JBUOne, JBUStack
from segearth_cli.model.variants import variant_logits
from segearth_cli.options import ATTENTIONS


@pytest.fixture(scope="module")
def segmenters():
    """Every attention with every upsampler and two lambdas, all on one tower."""
    torch.manual_seed(0)
    visual = VisionTransformer(64, 16, 48, 3, 3, 4.0, output_dim=32, act_layer=QuickGELU)
    text = torch.nn.functional.normalize(torch.randn(5, 32), dim=-1)
    upsamplers = (None, JBUOne(32), JBUStack(32))
    attentions = [*((name, 1) for name in ATTENTIONS), ("sclip", 2)]
    settings = [*product(attentions, upsamplers[:1]), *product(attentions[:2], upsamplers[1:])]
    return [
        Segmenter(
            DenseEncoder(visual, attention, blocks),
            upsampler,
            text,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            global_bias=bias,
            logit_scale=50.0,
            query_class=range(5),
        )
        .eval()
        .requires_grad_(False)
        for ((attention, blocks), upsampler), bias in product(settings, (0.0, 0.3))
    ]


def test_every_attention_is_one_that_can_be_asked_for():
    assert {*HEADS, "gem"} == {*ATTENTIONS}


@pytest.mark.parametrize(
    ("size", "blend"),
    [
        pytest.param((80, 97), "mean", marks=pytest.mark.slow),
        ((80, 97), "smooth"),
        ((20, 70), "mean"),
        ((9, 12), "mean"),
    ],
)
def test_each_setting_gets_the_logits_that_it_would_get_alone(segmenters, size, blend):
    grid = WindowGrid(*size, 64, 32, blend=blend)
    image = np.random.default_rng(0).random((3, *size)).astype(np.float32)

    with torch.inference_mode():
        together = variant_logits(segmenters, image, grid, 4)

    for segmenter, logits in zip(segmenters, together, strict=True):
        alone = image_logits(segmenter, image, grid)
        torch.testing.assert_close(logits, alone, atol=2e-4, rtol=0)


def test_the_walk_through_the_blocks_is_shared(segmenters):
    walks = []
    blocks = segmenters[0].encoder.visual.transformer.resblocks
    handle = blocks[0].ln_1.register_forward_hook(lambda *_: walks.append(1))

    with torch.inference_mode():
        variant_logits(segmenters, np.zeros((3, 64, 64), np.float32), WindowGrid(64, 64, 64, 32), 4)
    handle.remove()

    assert len(walks) == 1


@pytest.mark.parametrize("fits", [1, 3])
def test_with_less_memory_fewer_windows_go_at_once(segmenters, fits, monkeypatch):
    two, grid = [segmenters[0], segmenters[-1]], WindowGrid(80, 97, 64, 32)
    image = np.random.default_rng(0).random((3, 80, 97)).astype(np.float32)
    rows, columns = np.arange(0, 80, 3), np.arange(0, 81, 3)
    encode = two[0].encoder.block_inputs

    def read(row, height, column, width):
        part = image[:, row : row + height, column : column + width]
        return part, np.ones((height, width), bool)

    @torch.inference_mode()
    def results():
        points = point_cosines(two[0], grid, rows, columns, read, 4)
        return [*variant_logits(two, image, grid, 4), torch.from_numpy(points.cosines)]

    def small(images):
        if len(images) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return encode(images)

    expected = results()
    for segmenter in two:
        monkeypatch.setattr(segmenter.encoder, "block_inputs", small)
        monkeypatch.setattr(segmenter, "most_windows", None)
    for own, of_all in zip(results(), expected, strict=True):
        torch.testing.assert_close(own, of_all, atol=2e-4, rtol=0)
    assert two[0].most_windows == (1 if fits == 1 else 2)
