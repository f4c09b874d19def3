"""Measure the built-in model on what its training never saw."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from segearth_cli.device import autocast, pick_device, pick_precision
from segearth_cli.model.clip import DenseEncoder
from segearth_cli.model.mosaic import image_logits
from segearth_cli.model.prompts import text_features
from segearth_cli.model.segmenter import Segmenter
from segearth_cli.training.mini_data import (
    IGNORE,
    Pixels,
    chip_classes,
    read_buildings,
    read_chips,
    read_dubai,
    read_labels,
    read_rgb,
    resized,
)
from segearth_cli.training.mini_words import SYNONYMS

Labelled = Iterable[tuple[Pixels, Pixels]]

DUBAI = ("building", "land", "road", "vegetation", "water")
TOWN = ("background", "building", "road", "water")
LONG_SIDE = 448
BATCH = 32


def evaluate(folder: Path, data: Path, samples: Path | None) -> dict[str, Any]:
    """Scores of a model folder by data set; the table goes to stderr as well.

    Segmentation is what the tool runs: windows and stride of segearth.json, mean logits, softmax.
    """
    card = json.loads((folder / "segearth.json").read_text())
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    dubai = list(zip(*read_dubai(data / "dubai", measuring=True), strict=True))
    kampala = zip(*read_buildings(data / "buildings", measuring=True), strict=True)
    tests: dict[str, tuple[tuple[str, ...], Labelled]] = {
        "dubai tiles 5-6, native": (DUBAI, dubai),
        f"dubai tiles 5-6, long side {LONG_SIDE}": (DUBAI, (shrunk(*pair) for pair in dubai)),
        "kampala": (("background", "building"), kampala),
    }
    if samples is not None:
        label = read_labels(samples / "town_labels.tif")
        label = np.where((label > 3) & (label != IGNORE), 0, label).astype(np.uint8)
        tests["town.tif"] = (TOWN, [(read_rgb(samples / "town.tif"), label)])
    scores: dict[str, Any] = {}
    for name, (classes, pairs) in tests.items():
        segmenter = build_segmenter(model, tokenizer, classes, card)
        counts = sum(confusion(segmenter, card, *pair) for pair in pairs)
        scores[name] = intersection_over_union(classes, np.asarray(counts))
        print_row(name, scores[name])
    for name in ("eurosat", "ucmerced"):
        scores[f"{name}, a tenth"] = {"accuracy": accuracy(model, tokenizer, data / name)}
        print_row(name, scores[f"{name}, a tenth"])
    return scores


def build_segmenter(
    model: Any, tokenizer: Any, classes: tuple[str, ...], card: dict[str, Any]
) -> Segmenter:
    """The tool's segmenter with one query per class."""
    segmenter = Segmenter(
        DenseEncoder(model.visual, card["attention"], card["modulated_blocks"]),
        None,
        text_features(model, tokenizer, classes, None, ""),
        mean=model.visual.image_mean,
        std=model.visual.image_std,
        global_bias=card["global_bias"],
        logit_scale=card["logit_scale"],
        query_class=range(len(classes)),
        precision=pick_precision("auto", pick_device("cpu")),
    )
    return segmenter.eval().requires_grad_(False)


def shrunk(image: Pixels, label: Pixels) -> tuple[Pixels, Pixels]:
    """The image at the authors' long side; the label stays as it is."""
    factor = LONG_SIDE / max(image.shape[:2])
    height, width = (round(side * factor) for side in image.shape[:2])
    return resized(image, height, width), label


@torch.inference_mode()
def confusion(
    segmenter: Segmenter, card: dict[str, Any], image: Pixels, label: Pixels
) -> npt.NDArray[np.int64]:
    """Pixels by true class and predicted class: Q x Q."""
    logits = scene_logits(segmenter, card, image)[None]  # 1 Q H W
    if logits.shape[-2:] != label.shape:
        logits = F.interpolate(logits, label.shape, mode="bilinear")
    predicted = logits[0].argmax(dim=0).numpy()
    known = label != IGNORE
    queries = logits.shape[1]
    pairs = label[known].astype(np.int64) * queries + predicted[known]
    return np.bincount(pairs, minlength=queries**2).reshape(queries, queries)


def scene_logits(segmenter: Segmenter, card: dict[str, Any], image: Pixels) -> Tensor:
    """Mean logits of all windows: Q x H x W."""
    pixels = np.divide(image.transpose(2, 0, 1), 255, dtype=np.float32)
    return image_logits(segmenter, pixels, card["window"], card["stride"], BATCH)


def intersection_over_union(
    classes: tuple[str, ...], counts: npt.NDArray[np.int64]
) -> dict[str, float]:
    """IoU per class and their mean, in 0..1, of a whole data set's confusion."""
    union = counts.sum(axis=0) + counts.sum(axis=1) - counts.diagonal()
    iou = counts.diagonal() / np.maximum(union, 1)
    return {"mIoU": round(float(iou.mean()), 4)} | {
        name: round(float(value), 4) for name, value in zip(classes, iou, strict=True)
    }


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
        part = [resized(image, 224, 224) for image in images[start : start + BATCH]]
        pixels = torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2) / 255
        with autocast(device, pick_precision("auto", device)):
            tokens = model.encode_image((pixels - mean) / std)
        nearest = (tokens.float() @ text.T).argmax(dim=-1).numpy()
        right += int((nearest == labels[start : start + BATCH]).sum())
    return round(right / len(images), 4)


def print_row(name: str, scores: dict[str, float]) -> None:
    """One line of the table."""
    cells = "  ".join(f"{key} {value:.3f}" for key, value in scores.items())
    print(f"{name:32} {cells}", file=sys.stderr, flush=True)
