"""Models by name: built in, in the cache, and pulled from a server of our own."""

import errno
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from model_server import TINY, Server, git_blob, names, serving, sha256

from segearth_cli.errors import ModelError, OutputError, UsageError
from segearth_cli.model import download as downloads
from segearth_cli.model import weights
from segearth_cli.model.download import RemoteFile
from segearth_cli.model.files import read_checkpoint
from segearth_cli.model.folder import load_clip
from segearth_cli.model.weights import KnownModel, list_models, model_path, pull, resolve_model


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGEARTH_CACHE", str(tmp_path / "cache"))
    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN", "SEGEARTH_MODELS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    return tmp_path / "cache"


class TestNames:
    @pytest.fixture(autouse=True)
    def builtin(
        self,
        tiny_folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> Path:
        folder = tmp_path / "builtin"
        folder.mkdir()
        tiny_folder.rename(folder / "mini")
        monkeypatch.setattr(weights, "BUILTIN", folder)
        return folder

    def test_auto_is_built_in_and_says_so(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            folder = resolve_model("auto", "optical")
        assert folder.path.name == "mini"
        assert [r.message for r in caplog.records] == [
            "using the small built-in model mini; for the paper's run: segearth models pull "
            "vit-b-16"
        ]

    def test_auto_without_a_sar_model(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            assert resolve_model("auto", "sar").path.name == "mini"
        assert "made for optical images" in caplog.text
        assert "models pull alignearth-sar" in caplog.text

    def test_auto_takes_the_papers_model_from_the_cache(
        self, own_cache: Path, builtin: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (own_cache / "models").mkdir(parents=True)
        os.symlink(builtin / "mini", own_cache / "models" / "vit-b-16")
        with caplog.at_level(logging.WARNING):
            assert resolve_model("auto", "optical").path == own_cache / "models" / "vit-b-16"
        assert caplog.records == []

    def test_folder_by_path(self, builtin: Path) -> None:
        assert resolve_model(str(builtin / "mini"), "sar").path == builtin / "mini"
        assert model_path("mini") == builtin / "mini"

    def test_known_name_that_was_not_pulled(self) -> None:
        with pytest.raises(ModelError, match="segearth models pull vit-b-16"):
            resolve_model("vit-b-16")

    def test_unknown_name_is_answered_with_the_nearest(self) -> None:
        with pytest.raises(UsageError, match="did you mean vit-b-16"):
            resolve_model("vit-b16")
        with pytest.raises(UsageError, match=r"known names: auto, .*mini"):
            pull("no-such-model")

    def test_list(self, builtin: Path, own_cache: Path) -> None:
        (own_cache / "models" / "vit-l-14").mkdir(parents=True)
        rows = {row.name: row for row in list_models()}
        assert rows["mini"].where == "built in"
        assert rows["mini"].path == builtin / "mini"
        assert rows["mini"].size
        assert rows["mini"].size > 1000
        assert (rows["vit-b-16"].where, rows["vit-b-16"].path) == ("not pulled", None)
        assert rows["skyclip-vit-b-32"].where == "your file"
        assert rows["vit-l-14"].where == "damaged"
        assert rows["alignearth-sar"].sensor == "sar"


def test_every_known_model_is_one_that_open_clip_can_build() -> None:
    import open_clip

    for model in weights.known_models().values():
        config = open_clip.get_model_config(model.architecture)
        assert config is not None
        if model.upsampler is not None:  # the authors' SimFeatUp: 512 channels, patches of 16
            assert (config["embed_dim"], config["vision_cfg"]["patch_size"]) == (512, 16)
        for source in model.sources:
            assert re.fullmatch("([0-9a-f]{64})?", source.sha256)


class TestPull:
    """A whole model from a Hub and a web server, into the cache."""

    @pytest.fixture(autouse=True)
    def architecture(self, tmp_path: Path) -> None:
        import open_clip

        (tmp_path / "ViT-tiny-test.json").write_text(json.dumps(TINY))
        open_clip.add_model_config(tmp_path / "ViT-tiny-test.json")

    @pytest.fixture
    def checkpoint(self, tmp_path: Path, tiny_state: dict[str, Any]) -> Path:
        import torch

        path = tmp_path / "tiny.pt"
        state = {f"module.{name}": value for name, value in tiny_state.items()}
        torch.save({"epoch": 20, "state_dict": state}, path)
        return path

    @pytest.fixture
    def model(
        self, server: Server, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> KnownModel:
        import torch

        from segearth_cli.model.upsampler import JBUOne

        state = {f"upsampler.{k}": v for k, v in JBUOne(16).state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / "up.ckpt")
        upsampler = (tmp_path / "up.ckpt").read_bytes()
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        body = checkpoint.read_bytes()
        server.serve(
            "/some/clip/resolve/main/tiny.pt", body, headers={"X-Linked-Etag": sha256(body)}
        )
        model = KnownModel(
            "tiny",
            "a test",
            "sar",
            "ViT-tiny-test",
            "MIT",
            RemoteFile(repo="some/clip", file="tiny.pt"),
            RemoteFile(url=server.serve("/up.ckpt", upsampler), git_blob=git_blob(upsampler)),
        )
        own = KnownModel("own", "a test", "optical", "ViT-tiny-test", "MIT")
        monkeypatch.setattr(weights, "known_models", lambda: {"tiny": model, "own": own})
        return model

    def test_whole_model(
        self,
        model: KnownModel,
        server: Server,
        own_cache: Path,
        tiny_state: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        import torch

        from segearth_cli.model.upsampler import build_upsampler, read_upsampler_state

        folder = pull("tiny")
        assert folder.path == own_cache / "models" / "tiny"
        assert names(own_cache / "models") == {"tiny"}
        assert list((own_cache / "downloads").iterdir()) == []
        assert (folder.card.attention, folder.card.modulated_blocks) == ("sclip", 2)
        assert [s["digest_known_by"] for s in folder.card.extra["sources"]] == [
            "the project",
            "the server",
        ]
        clip, _ = load_clip(folder)
        for name, value in clip.state_dict().items():
            assert torch.equal(value, tiny_state[name])
        assert folder.upsampler is not None
        build_upsampler(read_upsampler_state(folder.upsampler), 16, "here")

        requests = len(server.requests)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert pull("tiny").digest() == folder.digest()
        assert resolve_model("tiny", "sar") == folder
        assert len(server.requests) == requests

    def test_failed_pull_leaves_no_model(
        self, model: KnownModel, server: Server, own_cache: Path
    ) -> None:
        del server.files["/some/clip/resolve/main/tiny.pt"]
        with pytest.raises(ModelError, match=r"404.*segearth models pull tiny --file tiny.pt"):
            pull("tiny")
        assert not (own_cache / "models").exists()
        with pytest.raises(ModelError, match="segearth models pull tiny"):
            resolve_model("tiny")

    def test_failed_pull_by_force_keeps_the_old_model(
        self, model: KnownModel, server: Server
    ) -> None:
        before = pull("tiny").digest()
        server.files["/some/clip/resolve/main/tiny.pt"].body += b"more"
        with pytest.raises(ModelError, match="digest"):
            pull("tiny", force=True)
        assert resolve_model("tiny").digest() == before

    def test_a_model_that_cannot_be_put_into_place_leaves_the_old_one(
        self, model: KnownModel, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = pull("tiny")
        rename = os.rename

        def fail(source: Path, target: Path) -> None:
            if target == before.path and "old" not in Path(source).suffix:
                raise OSError(errno.EIO, "Input/output error")
            rename(source, target)

        monkeypatch.setattr("os.rename", fail)
        with pytest.raises(OutputError, match="Input/output error"):
            pull("tiny", force=True)
        assert resolve_model("tiny").digest() == before.digest()
        assert [path.name for path in before.path.parent.iterdir()] == ["tiny"]

    def test_files_from_another_machine(
        self, model: KnownModel, server: Server, checkpoint: Path, tmp_path: Path
    ) -> None:
        folder = pull("tiny", files=[checkpoint, tmp_path / "up.ckpt"])
        assert folder.upsampler is not None
        assert server.requests == []
        (tmp_path / "up.ckpt").write_bytes(b"other")
        with pytest.raises(ModelError, match=r"bytes|digest"):
            pull("tiny", force=True, files=[checkpoint, tmp_path / "up.ckpt"])
        with pytest.raises(UsageError, match=r"its files are up.ckpt, tiny.pt"):
            pull("tiny", force=True, files=[tmp_path / "ViT-tiny-test.json"])

    def test_model_that_only_the_user_has(self, model: KnownModel, checkpoint: Path) -> None:
        with pytest.raises(UsageError, match="pull own --file FILE"):
            pull("own")
        assert pull("own", files=[checkpoint]).card.attention == "segearth"

    def test_a_checkpoint_by_its_architecture(
        self, architecture: None, checkpoint: Path, own_cache: Path
    ) -> None:
        folder = resolve_model(f"ViT-tiny-test:{checkpoint}", "sar")

        assert (folder.card.name, folder.card.sensor) == ("tiny", "sar")
        assert (folder.card.attention, folder.card.modulated_blocks) == ("sclip", 2)
        before = folder.weights.stat().st_mtime_ns
        assert resolve_model(f"ViT-tiny-test:{checkpoint}", "sar").digest() == folder.digest()
        assert folder.weights.stat().st_mtime_ns == before, "converted once"
        assert folder.path.is_relative_to(own_cache)
        model, _ = load_clip(folder)
        assert model.visual.output_dim == TINY["embed_dim"]
        with pytest.raises(UsageError, match="'ViT-huge-test' is no plain CLIP vision transformer"):
            resolve_model(f"ViT-huge-test:{checkpoint}")
        for other in ("coca_ViT-B-32", "ViT-B-16-SigLIP", "roberta-ViT-B-32", "RN50"):
            with pytest.raises(UsageError, match=f"'{other}' is no plain CLIP vision transformer"):
                resolve_model(f"{other}:{checkpoint}")
        with pytest.raises(ModelError, match="is not a checkpoint of ViT-B-32"):
            resolve_model(f"ViT-B-32:{checkpoint}")
        with pytest.raises(UsageError, match=r"there is no file nowhere\.pt"):
            resolve_model("ViT-B-32:nowhere.pt")
        with pytest.raises(UsageError, match="name its architecture too, as ViT-B-16-quickgelu:"):
            resolve_model(str(checkpoint))

    @pytest.mark.parametrize("prefix", ["", "model.", "clip_model.", "_orig_mod.model."])
    @pytest.mark.parametrize("nests", [[], ["model"], ["state_dict"], ["model", "state_dict"]])
    def test_weights_as_trainers_wrap_them(
        self, tmp_path: Path, tiny_state: dict[str, Any], prefix: str, nests: list[str]
    ) -> None:
        import torch

        sizes = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77)}
        content: dict[str, Any] = {
            f"{prefix}{name}": value for name, value in {**tiny_state, **sizes}.items()
        }
        for nest in nests:
            content = {"epoch": 3, nest: content}
        torch.save(content, tmp_path / "wrapped.pt")

        model, _ = load_clip(resolve_model(f"ViT-tiny-test:{tmp_path / 'wrapped.pt'}"))

        for name, value in model.state_dict().items():
            assert torch.equal(value, tiny_state[name])

    @pytest.mark.parametrize(
        ("without", "more", "said"),
        [
            (["visual.proj"], {}, "visual.proj is missing;"),
            (["visual.proj", "ln_final.bias"], {}, "ln_final.bias and 1 other are missing;"),
            ([], {"model.a": (1,), "b": (1,), "c": (2,)}, "b and 2 others are unknown;"),
            ([], {"visual.proj": (32, 8)}, r"visual.proj is of another shape \(32x8, not 32x16\);"),
            (
                ["ln_final.bias"],
                {"head": (1,), "visual.proj": (32, 8)},
                "ln_final.bias is missing, head is unknown, visual.proj is of another shape",
            ),
        ],
    )
    def test_weights_that_do_not_fit_are_named(
        self,
        tmp_path: Path,
        own_cache: Path,
        tiny_state: dict[str, Any],
        without: list[str],
        more: dict[str, tuple[int, ...]],
        said: str,
    ) -> None:
        import torch

        state = {name: value for name, value in tiny_state.items() if name not in without}
        torch.save(
            {**state, **{name: torch.zeros(shape) for name, shape in more.items()}},
            tmp_path / "other.pt",
        )
        with pytest.raises(ModelError, match=f"is not a checkpoint of ViT-tiny-test: {said}"):
            resolve_model(f"ViT-tiny-test:{tmp_path / 'other.pt'}")
        assert not own_cache.exists()

    def test_a_checkpoint_without_the_scale_that_only_training_needs(
        self, tmp_path: Path, tiny_state: dict[str, Any]
    ) -> None:
        import open_clip
        import torch

        state = {name: value for name, value in tiny_state.items() if name != "logit_scale"}
        torch.save(state, tmp_path / "tiny.pt")
        model, _ = load_clip(resolve_model(f"ViT-tiny-test:{tmp_path / 'tiny.pt'}"))
        assert torch.equal(model.logit_scale, open_clip.CLIP(**TINY).logit_scale)

    @pytest.mark.parametrize("content", [b"", b"words ", b"<!DOCTYPE html>", b"II*\0" + bytes(99)])
    def test_a_file_that_is_no_checkpoint_at_all(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "page.pt").write_bytes(content)
        with pytest.raises(ModelError, match=r"page\.pt is no checkpoint: torch did not write it"):
            resolve_model(f"ViT-tiny-test:{tmp_path / 'page.pt'}")

    @pytest.mark.filterwarnings("ignore:.*torch.jit")
    def test_a_program_is_refused_and_how_to_take_its_weights_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch

        layer = torch.nn.Linear(2, 3)
        torch.jit.script(layer).save(tmp_path / "clip.pt")

        with pytest.raises(ModelError, match=r"clip\.pt is a TorchScript program") as refused:
            resolve_model(f"ViT-tiny-test:{tmp_path / 'clip.pt'}")

        said = str(refused.value)
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        exec(said[said.index("import torch;") : said.rindex('"')], {})
        assert torch.equal(read_checkpoint(Path("weights.pt"))["weight"], layer.weight)

    def test_averages_beside_the_weights_are_said_to_be_there(
        self, tmp_path: Path, tiny_state: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        import torch

        both = {"state_dict": tiny_state, "state_dict_ema": tiny_state, "epoch": 3}
        torch.save(both, tmp_path / "both.pt")
        read_checkpoint(tmp_path / "both.pt")
        assert "both.pt state_dict is read, and state_dict_ema is not" in caplog.text
        torch.save({"ema": tiny_state, "epoch": 3}, tmp_path / "ema.pt")
        with pytest.raises(ModelError, match="holds no weights by name, but ema, epoch; give a"):
            read_checkpoint(tmp_path / "ema.pt")

    def test_a_damaged_archive_is_one_line(
        self, tmp_path: Path, tiny_state: dict[str, Any]
    ) -> None:
        import torch

        file = tmp_path / "tiny.pt"
        torch.save(tiny_state, file)
        file.write_bytes(file.read_bytes().replace(b"PK\x01\x02", b"PK\x01\x00", 1))
        with pytest.raises(ModelError, match=r"tiny\.pt is not a checkpoint .* get another copy"):
            resolve_model(f"ViT-tiny-test:{file}")

    @pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1], {"model": {"lr": 0.1}}])
    def test_a_checkpoint_without_weights(self, tmp_path: Path, content: Any) -> None:
        import torch

        torch.save(content, tmp_path / "empty.pt")
        with pytest.raises(ModelError, match=r"empty\.pt holds no weights by name"):
            resolve_model(f"ViT-tiny-test:{tmp_path / 'empty.pt'}")

    @pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
    def test_weights_that_are_no_numbers(
        self, architecture: None, tmp_path: Path, tiny_state: dict[str, Any], wrong: float
    ) -> None:
        import torch

        proj = tiny_state["visual.proj"].clone()
        proj[1, 2] = wrong
        torch.save({**tiny_state, "visual.proj": proj}, tmp_path / "bad.pt")
        with pytest.raises(ModelError, match=r"bad.pt holds weights that are no numbers \(visual"):
            resolve_model(f"ViT-tiny-test:{tmp_path / 'bad.pt'}")

    def test_code_in_a_checkpoint_is_not_run(self, model: KnownModel, tmp_path: Path) -> None:
        import torch

        marker = tmp_path / "ran"

        class Malice:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return os.mkdir, (str(marker),)

        torch.save({"state_dict": Malice()}, tmp_path / "bad.pt")
        with pytest.raises(ModelError, match="could run code") as caught:
            pull("own", files=[tmp_path / "bad.pt"])
        assert "\n" not in str(caught.value)
        assert not marker.exists()

    @pytest.mark.parametrize(
        "content", [b"", b"not a checkpoint", 99 * b"words ", b"PK\x03\x04 broken"]
    )
    def test_damaged_checkpoint(self, model: KnownModel, tmp_path: Path, content: bytes) -> None:
        for name in ("bad.pt", "bad.safetensors"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ModelError, match=name) as caught:
                pull("own", files=[tmp_path / name])
            assert "\n" not in str(caught.value)

    def test_checkpoint_of_another_architecture(
        self,
        model: KnownModel,
        tmp_path: Path,
        tiny_state: dict[str, Any],
    ) -> None:
        import torch

        state = {k: v for k, v in tiny_state.items() if k != "visual.proj"}
        torch.save(state, tmp_path / "bad.pt")
        with pytest.raises(ModelError, match=r"not a checkpoint of ViT-tiny-test: visual.proj"):
            pull("own", files=[tmp_path / "bad.pt"])
