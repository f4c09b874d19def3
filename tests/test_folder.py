"""A model folder: what open_clip reads, the card, and what a damaged one answers."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from model_server import TINY
from safetensors.torch import load_file, save_file

from segearth_cli.errors import ModelError, OutputError, SegEarthError
from segearth_cli.model.card import ModelCard
from segearth_cli.model.files import read_checkpoint
from segearth_cli.model.folder import load_clip, open_model_folder, save_model_folder
from segearth_cli.model.segmenter import load_segmenter
from segearth_cli.options import ModelOptions
from segearth_cli.words import Words


class Roads(Words):
    classes = (("road",),)


class TestFolder:
    def test_open_clip_loads_what_was_saved(
        self, tiny_folder: Path, tiny_state: dict[str, Any]
    ) -> None:
        import open_clip
        import torch

        model, tokenizer = load_clip(open_model_folder(tiny_folder))
        for name, value in model.state_dict().items():
            assert torch.equal(value, tiny_state[name])
        assert isinstance(model.visual.transformer.resblocks[0].mlp.gelu, open_clip.model.QuickGELU)
        assert model.visual.image_mean == open_clip.OPENAI_DATASET_MEAN
        assert tokenizer(["a road"]).shape == (1, 77)

    @pytest.mark.slow
    def test_loading_leaves_the_log_alone(self, tiny_folder: Path) -> None:
        code = (
            "import logging, sys; from pathlib import Path;"
            "from segearth_cli.model.folder import load_clip, open_model_folder;"
            "load_clip(open_model_folder(Path(sys.argv[1]))); print(logging.root.handlers)"
        )
        command = [sys.executable, "-c", code, str(tiny_folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert (result.stdout, result.stderr) == ("[]\n", "")

    def test_card_round_trip(self, tiny_folder: Path) -> None:
        folder = open_model_folder(tiny_folder)
        assert folder.card.extra == {"trained_on": "nothing"}
        assert (folder.card.attention, folder.card.window, folder.card.stride) == (
            "segearth",
            224,
            112,
        )
        assert folder.upsampler is None
        content = json.loads((tiny_folder / "segearth.json").read_text())
        assert content["trained_on"] == "nothing"

    def test_a_misspelt_key_is_warned_of(
        self, tiny_folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        card = tiny_folder / "segearth.json"
        card.write_text(json.dumps({"name": "tiny", "global_bais": 0.1, "trained_on": "nothing"}))
        assert open_model_folder(tiny_folder).card.global_bias == 0.3
        assert caplog.messages == [
            f"{card}: 'global_bais' is no setting, and has no effect; 'global_bias' is"
        ]

    def test_sensor_settings_are_the_papers(self) -> None:
        sar = ModelCard.for_sensor("x", "sar")
        assert (sar.attention, sar.modulated_blocks, sar.global_bias) == ("sclip", 2, 0.3)
        optical = ModelCard.for_sensor("x", "optical")
        assert (optical.attention, optical.modulated_blocks) == ("segearth", 1)

    def test_digest_follows_the_content(self, tiny_folder: Path) -> None:
        before = open_model_folder(tiny_folder).digest()
        assert open_model_folder(tiny_folder).digest() == before
        card = tiny_folder / "segearth.json"
        card.write_text(card.read_text().replace("0.3", "0.25"))
        assert open_model_folder(tiny_folder).digest() != before

    @pytest.mark.parametrize(
        "part", ["segearth.json", "open_clip_config.json", "open_clip_model.safetensors"]
    )
    def test_missing_part_is_named(self, tiny_folder: Path, part: str) -> None:
        (tiny_folder / part).unlink()
        with pytest.raises(ModelError, match=f"has no {part}; .*"):
            open_model_folder(tiny_folder)

    @pytest.mark.parametrize("part", ["segearth.json", "open_clip_config.json"])
    @pytest.mark.parametrize("content", ["{", "[]", '{"model_cfg": 1, "sensor": "radio"}'])
    def test_broken_json_is_named(self, tiny_folder: Path, part: str, content: str) -> None:
        (tiny_folder / part).write_text(content)
        with pytest.raises(ModelError, match=part) as caught:
            open_model_folder(tiny_folder)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"attention": "magic"},
            {"modulated_blocks": 0},
            {"modulated_blocks": "2"},
            {"global_bias": None},
            {"logit_scale": -1},
            {"window": 1.5},
            {"gsd_m": "coarse"},
            {"gsd_m": [1, 0.1]},
            {"stride": True},
            {"attention": ["segearth"]},
        ],
    )
    def test_wrong_card_value_is_named(self, tiny_folder: Path, wrong: dict[str, Any]) -> None:
        (tiny_folder / "segearth.json").write_text(json.dumps(wrong))
        with pytest.raises(ModelError, match=f"{next(iter(wrong))} is "):
            open_model_folder(tiny_folder)

    @pytest.mark.parametrize("size", [0, 7, 100, -1])
    def test_truncated_weights(self, tiny_folder: Path, size: int) -> None:
        file = tiny_folder / "open_clip_model.safetensors"
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(ModelError, match="not a whole safetensors file"):
            open_model_folder(tiny_folder)

    def test_weights_of_another_architecture(self, tiny_folder: Path) -> None:
        other = {**TINY, "embed_dim": 24}
        (tiny_folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": other}))
        with pytest.raises(ModelError, match="cannot be loaded") as caught:
            load_clip(open_model_folder(tiny_folder))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("edited", [{"image_size": 64}, {"patch_size": 8}])
    @pytest.mark.parametrize("is_half", [False, True])
    def test_another_grid_of_patches_than_that_of_the_weights(
        self, tiny_folder: Path, edited: dict[str, int], is_half: bool
    ) -> None:
        weights = tiny_folder / "open_clip_model.safetensors"
        if is_half:
            save_file({k: v.half() for k, v in load_file(weights).items()}, weights)
        config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], **edited}}
        (tiny_folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        said = r"make 16 patches, and the weights have positions for 4; .* must belong together"
        with pytest.raises(ModelError, match=said):
            load_clip(open_model_folder(tiny_folder))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"mean": [120, 120, 120]},
            {"mean": [0.5, 0.5, -0.1]},
            {"mean": [0.5, 0.5]},
            {"mean": "grey"},
            {"std": [60.0, 60.0, 60.0]},
            {"std": [0.2, 0, 0.2]},
            {"std": [0.2, float("nan"), 0.2]},
        ],
    )
    def test_a_scale_that_images_from_0_to_1_cannot_have(
        self, tiny_folder: Path, wrong: dict[str, Any]
    ) -> None:
        content = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0] * 3, "std": [1] * 3, **wrong}}
        (tiny_folder / "open_clip_config.json").write_text(json.dumps(content))
        (name,) = wrong
        with pytest.raises(ModelError, match=f"gives {name} as .* needs three numbers, of red, gr"):
            load_clip(open_model_folder(tiny_folder))

    def test_counts_that_are_no_whole_numbers(self, tiny_folder: Path) -> None:
        path = tiny_folder / "open_clip_config.json"
        config = json.loads(path.read_text())
        config["model_cfg"]["text_cfg"]["heads"] = 0.5  # open_clip would build it
        path.write_text(json.dumps(config))
        with pytest.raises(ModelError, match=r"gives text_cfg heads 0\.5; it must be a whole"):
            open_model_folder(tiny_folder)

    def test_existing_folder_is_kept(self, tiny_folder: Path, tiny_state: dict[str, Any]) -> None:
        before = open_model_folder(tiny_folder).digest()
        card = ModelCard("other")
        with pytest.raises(OutputError, match="exists already"):
            save_model_folder(tiny_folder, tiny_state, {"model_cfg": TINY}, card)
        with pytest.raises(ModelError):  # refused before it takes the old one's place
            save_model_folder(tiny_folder, tiny_state, {}, card, overwrite=True)
        assert open_model_folder(tiny_folder).digest() == before
        save_model_folder(tiny_folder, tiny_state, {"model_cfg": TINY}, card, overwrite=True)
        assert open_model_folder(tiny_folder).card.name == "other"
        assert [p.name for p in tiny_folder.parent.iterdir() if p.name.startswith(".")] == []

    def test_too_little_memory_is_no_damage(
        self, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import safetensors.torch

        def refused(path: Path) -> None:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")

        monkeypatch.setattr(safetensors.torch, "load_file", refused)
        with pytest.raises(MemoryError):
            read_checkpoint(tiny_folder / "open_clip_model.safetensors")
        monkeypatch.undo()
        monkeypatch.setattr("open_clip.create_model", lambda *_, **__: refused(tiny_folder))
        with pytest.raises(SegEarthError, match="out of memory; tiny does not fit cpu"):
            load_segmenter(ModelOptions(model=str(tiny_folder), device="cpu"), Roads(), "optical")

    def test_a_full_disk_is_one_line_and_leaves_the_model_that_is_there(
        self, tiny_folder: Path, tiny_state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = open_model_folder(tiny_folder).digest()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
        try:
            with pytest.raises(OutputError, match="cannot write the model folder"):
                save_model_folder(
                    tiny_folder, tiny_state, {"model_cfg": TINY}, ModelCard("x"), overwrite=True
                )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert open_model_folder(tiny_folder).digest() == before
        assert [path.name for path in tiny_folder.parent.iterdir()] == [tiny_folder.name]
