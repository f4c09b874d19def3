"""Measure the built-in models on what their trainings never saw.

Every number is what ``segearth evaluate`` gives; the tables are those of the models' cards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from segearth_cli.device import autocast, pick_device, pick_precision
from segearth_cli.evaluate import EvaluateResult, measure
from segearth_cli.geo.datasets import Dataset, Layout, Sample, find_samples
from segearth_cli.model.folder import open_model_folder
from segearth_cli.model.text import text_features
from segearth_cli.options import ATTENTIONS, EvaluateOptions
from segearth_cli.training.mini_augment import resized
from segearth_cli.training.mini_data import (
    BUILDINGS_HELD_OUT,
    DUBAI_HELD_OUT,
    SCENE_CLASSES,
    chip_classes,
    read_chips,
    stacked,
)
from segearth_cli.training.mini_words import HELD_OUT_NAMES, SYNONYMS

BATCH = 32
KNOWN = ("building", "road", "water", "vegetation", "tree", "grass", "cropland", "land")


def plain(suffix: str, images: str = "images", labels: str = "labels") -> Layout:
    """Images of a suffix beside PNG labels of the same stem."""
    return Layout(images, labels, suffix, ".png")


DUBAI = Dataset(
    "Dubai, tiles 5 and 6",
    tuple((name,) for name in ("building", "land", "road", "vegetation", "water")),
    (plain(".jpg"),),
    reduce_zero_label=True,
)
KAMPALA = Dataset("Kampala, drone", (("background",), ("building",)), (plain(".jpg"),))
SCENES = Dataset(
    "rendered scenes",
    tuple(("background",) if name == "rest" else (name,) for name in SCENE_CLASSES),
    (Layout(".", ".", ".tif", "_labels.tif"),),
)
NAMED = replace(  # what is left are cars and the like, smaller than a patch
    SCENES,
    name="rendered scenes, named",
    classes=SCENES.classes[1:],
    reduce_zero_label=True,
)
FLOODS = Dataset(
    "Sen1Floods11, radar",
    (("land",), ("water",)),
    (Layout("s1", "labels", ".tif", ".tif"),),
    sensor="sar",
    ignore=(-1,),
)


def held_out_samples(
    data: Path, scenes: Path | None, sensor: str = "optical"
) -> list[tuple[Dataset, list[Sample]]]:
    """The sensor's datasets with the samples that no training sees."""
    if sensor == "sar":
        return [(FLOODS, find_samples(FLOODS, data / "sen1floods11"))]
    found = [
        (DUBAI, _of(find_samples(DUBAI, data / "dubai"), DUBAI_HELD_OUT)),
        (KAMPALA, _of(find_samples(KAMPALA, data / "buildings"), BUILDINGS_HELD_OUT)),
    ]
    if scenes is not None:
        found += [(scored, find_samples(scored, scenes)) for scored in (SCENES, NAMED)]
    return found


def _of(samples: Iterable[Sample], places: tuple[str, ...]) -> list[Sample]:
    return [sample for sample in samples if sample.image.name.startswith(places)]


def evaluate(folder: Path, data: Path, scenes: Path | None, compare: bool) -> dict[str, Any]:
    """Scores of a model folder; with ``compare`` by attention, upsampler and lambda too.

    Args:
        folder: the model.
        data: the collections.
        scenes: rendered scenes of seeds that no training sees.
        compare: every attention, with and without Global Bias Alleviation and the upsampler.
    """
    options = EvaluateOptions(dataset="", root=data, models=(str(folder),), progress=False)
    if compare:
        options = replace(
            options,
            attentions=ATTENTIONS,
            global_biases=(0.0, 0.3),
            upsamplers=("bilinear", "auto")
            if (folder / "upsampler.safetensors").is_file()
            else ("bilinear",),
        )
    scores: dict[str, Any] = {}
    sensor = open_model_folder(folder).card.sensor
    for dataset, samples in held_out_samples(data, scenes, sensor):
        scores[dataset.name] = rows_of(measure(dataset, samples, options))
    if sensor == "sar":  # no chips of one class each
        return scores
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    for name in ("eurosat", "ucmerced"):
        scores[f"{name}, a tenth"] = accuracy(model, tokenizer, data / name)
        print(f"{name:24} accuracy {scores[f'{name}, a tenth']:.3f}", file=sys.stderr, flush=True)
    scores["unseen words"] = unseen_words(model, tokenizer)
    return scores


def rows_of(result: EvaluateResult) -> list[dict[str, Any]]:
    """Settings and IoU per class, printed as they come."""
    rows = []
    for row in result.rows:
        ious = {"mIoU": row.scores.miou, **{c.name: c.iou for c in row.scores.classes}}
        rows.append(
            {
                "attention": row.attention,
                "upsampler": row.upsampler,
                "global_bias": row.global_bias,
                **{name: round(value, 4) for name, value in ious.items()},
            }
        )
        cells = "  ".join(f"{name} {value:.3f}" for name, value in ious.items())
        setting = f"{row.attention} {row.upsampler} {row.global_bias:g}"
        print(f"{result.dataset:24} {setting:26} {cells}", file=sys.stderr, flush=True)
    return rows


@torch.inference_mode()
def accuracy(model: Any, tokenizer: Any, folder: Path) -> float:
    """Share of held-out chips whose class token is nearest to the words of their class."""
    names = tuple(SYNONYMS[name][0] for name in chip_classes(folder))
    text = text_features(model, tokenizer, names, None, "")
    images, labels = read_chips(folder, measuring=True)
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (model.visual.image_mean, model.visual.image_std)
    )
    right = 0
    device = pick_device("cpu")
    for start in range(0, len(images), BATCH):
        pixels = stacked([resized(image, 224, 224) for image in images[start : start + BATCH]])
        with autocast(device, pick_precision("auto", device)):
            tokens = model.encode_image((pixels / 255 - mean) / std)
        nearest = (tokens.float() @ text.T).argmax(dim=-1).numpy()
        right += int((nearest == labels[start : start + BATCH]).sum())
    return round(right / len(images), 4)


def unseen_words(model: Any, tokenizer: Any) -> dict[str, str]:
    """For each name that was kept out of the training, the known word it is nearest to."""
    names = tuple(HELD_OUT_NAMES)
    text: Tensor = text_features(model, tokenizer, (*names, *KNOWN), None, "")
    nearest = (text[: len(names)] @ text[len(names) :].T).argmax(dim=1).tolist()
    return {name: KNOWN[index] for name, index in zip(names, nearest, strict=True)}
