import math

import pytest
import torch
from safetensors.torch import save_file

from segearth_cli.errors import ModelError
from segearth_cli.model.clip import DenseEncoder
from segearth_cli.model.folder import open_model_folder
from segearth_cli.model.segmenter import upsampler_path
from segearth_cli.model.upsampler import (
    JBU,
    JBUOne,
    JBUStack,
    build_upsampler,
    read_upsampler_state,
)
from segearth_cli.options import ModelOptions


@pytest.mark.parametrize(("name", "kind"), [("jbu_one", JBUOne), ("jbu_stack", JBUStack)])
def test_upsampled_features_are_those_of_the_reference(reference, name, kind):
    upsampler = build_upsampler(reference.weights(name), 64, name)
    window = reference.normalised(slice(0, 224), slice(0, 224))

    with torch.inference_mode():
        features, _ = DenseEncoder(reference.visual())(window)
        upsampled = upsampler(features, window)

    assert isinstance(upsampler, kind)
    assert upsampled.shape == (1, 64, 224, 224)
    expected = reference[f"upsampled/{name}/stride8"]
    torch.testing.assert_close(upsampled[0, :, ::8, ::8], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("patch", "side"), [(2, 14), (8, 56), (16, 112), (32, 224)])
def test_one_module_serves_any_power_of_two(patch, side):
    upsampler = JBUOne(8, radius=2).eval()

    upsampled = upsampler(torch.rand(1, 8, 7, 7), torch.rand(1, 3, 7 * patch, 7 * patch))

    assert upsampled.shape == (1, 8, side, side)


def test_patch_14_is_doubled_four_times():
    upsampled = JBUOne(8, radius=2).eval()(torch.rand(1, 8, 7, 7), torch.rand(1, 3, 98, 98))

    assert upsampled.shape[-1] == 112


def test_a_stack_refuses_other_patches():
    with pytest.raises(ModelError, match="patches of 32 pixels"):
        JBUStack(8)(torch.rand(1, 8, 7, 7), torch.rand(1, 3, 224, 224))


def test_gradients_of_the_upsampler_are_right():
    torch.manual_seed(0)
    jbu = JBU(radius=1).double().eval()
    features = torch.rand(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    guidance = torch.rand(1, 3, 6, 6, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(jbu, (features, guidance))


def test_the_authors_checkpoint_is_read(reference, tmp_path):
    weights = reference.weights("jbu_one")
    state = {f"upsampler.{name}": value for name, value in weights.items()}
    state["downsampler.weight"] = torch.zeros(3)
    path = tmp_path / "xclip_jbu_one_million_aid.ckpt"
    torch.save({"epoch": 1, "state_dict": state}, path)

    loaded = read_upsampler_state(path)

    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_our_own_file_is_read(reference, tmp_path):
    weights = reference.weights("jbu_stack")
    save_file(weights, tmp_path / "upsampler.safetensors")

    upsampler = build_upsampler(read_upsampler_state(tmp_path / "upsampler.safetensors"), 64, "it")

    assert torch.equal(upsampler.state_dict()["up3.range_temp"], weights["up3.range_temp"])


def test_a_missing_file_is_named(tiny_model, tmp_path):
    options = ModelOptions(upsampler=str(tmp_path / "up.ckpt"))

    with pytest.raises(ModelError, match=r"no upsampler at .*up\.ckpt"):
        upsampler_path(open_model_folder(tiny_model), options)


@pytest.mark.parametrize("name", ["broken.ckpt", "broken.safetensors"])
def test_a_damaged_file_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 not a checkpoint")

    with pytest.raises(ModelError) as error:
        read_upsampler_state(tmp_path / name)

    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [math.nan, -math.inf])
def test_weights_that_are_no_numbers_are_refused(reference, tmp_path, wrong):
    weights = {name: value.clone() for name, value in reference.weights("jbu_one").items()}
    weights["fixup_proj.1.bias"][3] = wrong
    save_file(weights, tmp_path / "upsampler.safetensors")
    with pytest.raises(ModelError, match=r"that are no numbers \(fixup_proj\.1\.bias\)"):
        read_upsampler_state(tmp_path / "upsampler.safetensors")


def test_an_upsampler_for_other_features_is_refused(reference):
    with pytest.raises(ModelError, match=r"features of 512 channels \(it has 64\)"):
        build_upsampler(reference.weights("jbu_one"), 512, "jbu.ckpt")


@pytest.mark.parametrize("radius", [1, 5, 6, 9])
def test_the_smallest_grid_is_large_enough_for_the_neighbourhood(radius):
    upsampler = JBUOne(4, radius).eval()
    side = upsampler.smallest_grid

    with torch.inference_mode():
        features = upsampler(torch.rand(1, 4, side, side), torch.rand(1, 3, 4 * side, 4 * side))

    assert features.shape == (1, 4, 4 * side, 4 * side)
