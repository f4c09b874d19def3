import numpy as np
import pytest
import torch

from segearth_cli.errors import UsageError
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model.clip import DenseEncoder
from segearth_cli.model.mosaic import image_logits
from segearth_cli.model.prompts import Vocabulary
from segearth_cli.model.segmenter import Segmenter, load_segmenter
from segearth_cli.model.upsampler import build_upsampler
from segearth_cli.options import ModelOptions

SETUPS = {  # attention, upsampler, lambda
    "SegEarth+jbu_one+gba": ("segearth", "jbu_one", 0.3),
    "SCLIP+jbu_stack": ("sclip", "jbu_stack", 0.0),
    "ClearCLIP": ("clearclip", None, 0.0),
}
SIZES = ["336x336", "300x251", "130x150"]


def segmenter(reference, setup, exact=False, precision="fp32"):
    attention, upsampler, global_bias = SETUPS[setup]
    return Segmenter(
        DenseEncoder(reference.visual(), attention),
        build_upsampler(reference.weights(upsampler), 64, upsampler) if upsampler else None,
        reference["queries"],
        mean=reference.mean,
        std=reference.std,
        global_bias=global_bias,
        logit_scale=50.0,
        query_class=reference["query_class"].tolist(),
        exact=exact,
        precision=precision,
    ).eval()


@pytest.mark.slow
@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
def test_slid_windows_give_the_logits_and_classes_of_the_reference(reference, size, setup, exact):
    key = f"slide/{size}/{setup}"
    if f"{key}/classes" not in reference:
        pytest.skip("the reference has no such entry")
    model = segmenter(reference, setup, exact)
    height, width = map(int, size.split("x"))

    image = np.ascontiguousarray(reference.image[:, :height, :width])
    logits = image_logits(model, image, WindowGrid(*image.shape[1:], 224, 112), size=4)
    probabilities = model.class_probabilities(logits)
    classes = probabilities.argmax(0)

    torch.testing.assert_close(
        logits[:, ::6, ::6], reference[f"{key}/logits_stride6"], atol=1e-4, rtol=0
    )
    assert (classes != reference[f"{key}/classes"]).float().mean() < 3e-4
    if f"{key}/classes_threshold0.3" in reference:
        classes[probabilities.amax(0) < 0.3] = 0
        assert (classes != reference[f"{key}/classes_threshold0.3"]).float().mean() < 3e-4


@pytest.mark.slow
@pytest.mark.parametrize("setup", ["SegEarth+jbu_one+gba", "ClearCLIP"])
def test_bf16_gives_all_but_a_few_in_a_hundred_pixels_the_class_of_the_reference(reference, setup):
    model = segmenter(reference, setup, precision="bf16")
    logits = image_logits(model, reference.image, WindowGrid(336, 336, 224, 112), size=4)
    classes = model.class_probabilities(logits).argmax(0)
    key = f"slide/336x336/{setup}"
    torch.testing.assert_close(
        logits[:, ::6, ::6].float(), reference[f"{key}/logits_stride6"], atol=3e-3, rtol=0
    )
    assert (classes != reference[f"{key}/classes"]).float().mean() < 8e-3


def test_a_class_takes_its_best_query(reference):
    model = segmenter(reference, "ClearCLIP")
    logits = torch.randn(14, 3, 5) / 50

    probabilities = model.class_probabilities(logits)

    softmax = (logits * 50).softmax(0)
    query_class = reference["query_class"]
    for index in range(int(query_class.max()) + 1):
        assert torch.equal(probabilities[index], softmax[query_class == index].amax(0))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 1), (15, 300)])
def test_images_of_any_size_are_padded_and_cut_back(reference, size):
    model = segmenter(reference, "SegEarth+jbu_one+gba")

    with torch.inference_mode():
        logits = model(torch.rand(1, 3, *size))

    assert logits.shape == (1, 14, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    "images",
    [torch.rand(3, 8, 8), torch.rand(1, 8, 8, 3), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)],
)
def test_what_are_no_images_is_refused(reference, images):
    with pytest.raises(ValueError, match=r"the images are .*; give B x 3 x H x W floating point"):
        segmenter(reference, "ClearCLIP")(images)


def test_a_sensor_that_there_is_not_is_refused():
    words = Vocabulary((("a",), ("b",)), False, ((0, 0, 0), (1, 1, 1)))
    for model in ("auto", "mini"):
        with pytest.raises(UsageError, match="no sensor 'radar'; choose one of optical, sar"):
            load_segmenter(ModelOptions(model=model), words, "radar")


def test_global_bias_takes_the_class_tokens_share_off_every_pixel(reference):
    plain, alleviated = segmenter(reference, "ClearCLIP"), segmenter(reference, "ClearCLIP")
    alleviated.global_bias = 0.3
    image = reference.image[None, :, :224, :224]

    with torch.inference_mode():
        difference = plain(image) - alleviated(image)
        _, class_token = plain.encoder(reference.normalised(slice(224), slice(224)))

    cosine = torch.nn.functional.normalize(class_token, dim=-1) @ reference["queries"].T
    expected = (0.3 * cosine[0])[:, None, None].expand(14, 224, 224)
    torch.testing.assert_close(difference[0], expected, atol=1e-5, rtol=0)


def test_what_was_made_for_a_device_does_not_follow_to_another(upsampled_model):
    words = Vocabulary((("road",),), False, ((0, 0, 0),))
    segmenter, _ = load_segmenter(ModelOptions(model=str(upsampled_model)), words, "optical")
    before = segmenter.fast_upsampler
    assert segmenter.fast_upsampler is before
    assert segmenter.to("cpu").fast_upsampler is not before
