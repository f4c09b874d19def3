from copy import deepcopy
from functools import partial
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, VisionTransformer

from segearth_cli.errors import ModelError
from segearth_cli.model import clip
from segearth_cli.model.clip import DenseEncoder, round_weights

NAMES = {
    "vanilla": "vanilla",
    "MaskCLIP": "maskclip",
    "SCLIP": "sclip",
    "ClearCLIP": "clearclip",
    "SegEarth": "segearth",
    "GEM_depth4": "gem",
}
WINDOW = (slice(0, 224), slice(0, 224))
OTHER_WINDOW = (slice(40, 232), slice(20, 276))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("attention", NAMES)
def test_every_attention_gives_the_numbers_of_the_reference(reference, attention, residual):
    encoder = DenseEncoder(reference.visual(), NAMES[attention], residual=residual)
    key = f"{attention}/{'res' if residual else 'nores'}"

    with torch.inference_mode():
        features, class_token = encoder(reference.normalised(*WINDOW))

    torch.testing.assert_close(
        features[0].flatten(1).T, reference[f"tokens/{key}"], atol=1e-4, rtol=0
    )
    if f"cls/{key}" in reference:
        expected = reference[f"cls/{key}"]
        torch.testing.assert_close(F.normalize(class_token[0], dim=0), expected, atol=1e-5, rtol=0)


def test_two_modulated_blocks_are_summed(reference):
    encoder = DenseEncoder(reference.visual(), "sclip", modulated_blocks=2)

    with torch.inference_mode():
        features, class_token = encoder(reference.normalised(*WINDOW))

    tokens = features[0].flatten(1).T
    torch.testing.assert_close(tokens, reference["tokens_2blocks/SCLIP/nores"], atol=1e-4, rtol=0)
    expected = reference["cls_2blocks/SCLIP/nores"]
    torch.testing.assert_close(F.normalize(class_token[0], dim=0), expected, atol=1e-5, rtol=0)


def test_window_of_another_shape_resizes_the_position_embedding(reference):
    encoder = DenseEncoder(reference.visual())

    with torch.inference_mode():
        features, _ = encoder(reference.normalised(*OTHER_WINDOW))

    assert features.shape == (1, 64, 12, 16)
    expected = reference["tokens_192x256/SegEarth/nores"]
    torch.testing.assert_close(
        features[0].flatten(1).T, expected.reshape(192, 64), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("patch", [14, 16, 32])
def test_the_walk_through_the_blocks_is_open_clips_own(patch):
    torch.manual_seed(0)
    visual = VisionTransformer(7 * patch, patch, 48, 3, 4, 4.0, output_dim=24).eval()
    images = torch.randn(2, 3, 7 * patch, 7 * patch)

    with torch.inference_mode():
        _, class_token = DenseEncoder(visual, "vanilla", residual=True)(images)

        torch.testing.assert_close(class_token, visual(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["segearth", "gem"])
def test_an_image_does_not_depend_on_its_batch(reference, attention):
    encoder = DenseEncoder(reference.visual(), attention)
    one = reference.normalised(*WINDOW)
    two = torch.cat([one, reference.normalised(slice(112, 336), slice(112, 336))])

    with torch.inference_mode():
        alone, together = encoder(one)[0], encoder(two)[0][:1]

    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "activation", [QuickGELU, torch.nn.GELU, partial(torch.nn.GELU, "tanh"), torch.nn.SiLU]
)
def test_layers_activated_in_place_or_rounded_once_give_the_same_bits(activation):
    torch.manual_seed(0)
    visual = VisionTransformer(56, 8, 48, 3, 4, 4.0, output_dim=24, act_layer=activation).eval()
    rounded = deepcopy(visual)
    round_weights(rounded, torch.bfloat16)
    images = torch.randn(2, 3, 56, 56)

    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        in_place = DenseEncoder(visual)(images)
        once = DenseEncoder(rounded)(images)
        with mock.patch.object(clip, "feed_forward", lambda mlp, tokens: mlp(tokens)):
            expected = DenseEncoder(visual)(images)

    assert rounded.transformer.resblocks[0].mlp.c_fc.weight.dtype == torch.bfloat16
    for result in (in_place, once):
        assert all(map(torch.equal, result, expected))


def test_towers_without_a_class_token_are_refused():
    with pytest.raises(ModelError, match="vision transformers"):
        DenseEncoder(torch.nn.Linear(2, 2))


def test_more_modulated_blocks_than_blocks_are_refused(reference):
    with pytest.raises(ModelError, match="only 4 blocks"):
        DenseEncoder(reference.visual(), modulated_blocks=5)
