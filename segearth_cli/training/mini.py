"""Train the built-in model: a small CLIP whose dense features are trained as they are used.

    python -m segearth_cli.training.mini --data DIR --scenes DIR -o COARSE --patch 16 --minutes 104
    python -m segearth_cli.training.mini --data DIR --scenes DIR -o FINE --start COARSE --minutes 60
    python -m segearth_cli.training.mini --data DIR --scenes DIR -o OUT --start FINE --patch 7
    python -m segearth_cli.training.mini --data DIR --unseen DIR --evaluate MODEL_FOLDER

Two losses share the image tower. The dense one runs the modulated last block (SegEarth attention,
no residual, no feed-forward), compares every patch with freshly sampled words for that
collection's classes, and takes the cross-entropy against the label raster. The caption one is the
usual contrast between the plain class token and sentences, so that the model stays a CLIP.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from safetensors.torch import save
from torch import Tensor, nn

from segearth_cli.device import autocast, pick_precision
from segearth_cli.model.card import CARD, ModelCard
from segearth_cli.model.folder import CONFIG, WEIGHTS, load_clip
from segearth_cli.model.weights import resolve_model
from segearth_cli.training.mini_data import Batch, Batches, Source, read_sources
from segearth_cli.training.mini_network import (
    LOGIT_SCALE,
    PREPROCESS,
    START_IMAGES,
    architecture,
    batch_losses,
    pixel_weights,
    start_from,
    start_locally,
)
from segearth_cli.training.mini_words import learn_words, taught_words, text_parameters

log = logging.getLogger("segearth_cli.training.mini")  # __name__ is __main__ when run

AVERAGE_EVERY = 4  # steps
GSD_M = (0.1, 1.0)  # of the images with dense labels: what the model is made for
TEXT_SPEED = 0.2  # learning rate of the text tower beside the image tower's


@dataclass(frozen=True)
class MiniOptions:
    """What a run is told: where, how long, how fast."""

    data: Path
    output: Path
    scenes: Path | None = None
    start: Path | None = None  # a model to start from, of the same patches or larger ones
    patch: int = 8  # pixels a side
    images: int = 1_000_000
    minutes: float = 43.0
    batch_size: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    word_steps: int = 250  # of the text tower alone, before
    warmup_steps: int = 60
    ema_decay: float = 0.9995
    caption_weight: float = 0.3
    save_minutes: float = 5.0
    threads: int = 2
    seed: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        """Refuse a budget of nothing."""
        if min(self.images, self.minutes, self.batch_size) <= 0:
            raise ValueError("--images, --minutes and --batch-size must be above zero")

    @property
    def checkpoint(self) -> Path:
        """Beside the model folder, not in it."""
        return self.output.with_name(self.output.name + ".checkpoint.pt")


@dataclass
class State:
    """Everything that a resumed run needs."""

    model: CLIP
    average: CLIP  # exponential moving average of the weights: what is exported
    optimizer: torch.optim.Optimizer
    step: int = 0
    images: int = 0
    seconds: float = 0.0


def train(options: MiniOptions) -> None:
    """Setup, fit, export."""
    torch.set_num_threads(options.threads)
    sources = read_sources(options.data, options.scenes)
    for source in sources:
        log.info("%-9s %5d images", source.name, len(source.images))
    state = build_state(options)
    if options.resume:
        load_checkpoint(state, options.checkpoint)
    elif options.start is not None:
        start_from(state.model, load_clip(resolve_model(str(options.start), "optical"))[0])
        state.average.load_state_dict(state.model.state_dict())
    else:
        batches = Batches(sources, START_IMAGES, options.patch, seed=options.seed)
        sample = next(iter(batches))
        start_locally(state.model, sample.images)
        learn_words(state.model, options.word_steps, np.random.default_rng(options.seed))
        state.average.load_state_dict(state.model.state_dict())
    fit(state, sources, options)
    save_checkpoint(state, options.checkpoint)
    export(state, sources, options)


def build_state(options: MiniOptions) -> State:
    """A fresh model, its average and its optimizer."""
    torch.manual_seed(options.seed)
    model = CLIP(quick_gelu=False, **architecture(options.patch))
    visual = [*model.visual.parameters(), model.logit_scale]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in visual if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in visual if p.ndim <= 1]},
        {"params": text_parameters(model), "speed": TEXT_SPEED},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    return State(model, copy.deepcopy(model).requires_grad_(False), optimizer)


def fit(state: State, sources: list[Source], options: MiniOptions) -> None:
    """Steps until the budget of images or of minutes is spent."""
    rng = np.random.default_rng(options.seed + state.step)
    weights = [pixel_weights(source) for source in sources]
    seed = options.seed + state.step
    dataset = Batches(sources, options.batch_size, options.patch, seed)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=3)
    started = saved = time.monotonic() - state.seconds
    saved += state.seconds
    recent: list[dict[str, float]] = []
    for batch in loader:
        state.seconds = time.monotonic() - started
        spent = max(state.images / options.images, state.seconds / (60 * options.minutes))
        if spent >= 1:
            break
        set_learning_rate(state, spent, options)
        recent.append(step(state, batch, sources, weights, rng, options))
        if state.step % 50 == 0:
            report(state, recent)
            recent = []
        if time.monotonic() - saved > 60 * options.save_minutes:
            save_checkpoint(state, options.checkpoint)
            export(state, sources, options)
            saved = time.monotonic()


def set_learning_rate(state: State, spent: float, options: MiniOptions) -> None:
    """Linear warm-up, then a cosine over the budget (`spent` is the share of it used)."""
    warm = min(1.0, (state.step + 1) / options.warmup_steps)
    rate = options.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * spent)))
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group.get("speed", 1.0)


def step(
    state: State,
    batch: Batch,
    sources: list[Source],
    weights: list[Tensor],
    rng: np.random.Generator,
    options: MiniOptions,
) -> dict[str, float]:
    """One update; the losses by name."""
    device = torch.device("cpu")
    with autocast(device, pick_precision("auto", device)):
        losses = batch_losses(state.model, batch, sources, weights, rng)
    total = sum(
        share * loss * (options.caption_weight if name.startswith("caption") else 1.0)
        for name, (loss, share) in losses.items()
    )
    assert isinstance(total, Tensor)
    state.optimizer.zero_grad(set_to_none=True)
    total.backward()
    nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimizer.step()
    with torch.no_grad():
        state.model.logit_scale.clamp_(0, math.log(100))
    state.step += 1
    state.images += len(batch.images)
    if state.step % AVERAGE_EVERY == 0:
        update_average(state, options.ema_decay)
    return {name: float(loss.detach()) for name, (loss, _) in losses.items()}


@torch.no_grad()
def update_average(state: State, decay: float) -> None:
    """Move the average towards the model, faster in the beginning."""
    decay = min(decay, (1 + state.step) / (10 + state.step)) ** AVERAGE_EVERY
    old, new = list(state.average.parameters()), list(state.model.parameters())
    torch._foreach_lerp_(old, new, 1 - decay)


def report(state: State, recent: list[dict[str, float]]) -> None:
    """One line of mean losses."""
    names = sorted({name for losses in recent for name in losses})
    means = {n: np.mean([losses[n] for losses in recent if n in losses]) for n in names}
    line = " ".join(f"{name} {mean:.3f}" for name, mean in means.items())
    rate = state.images / max(state.seconds, 1)
    log.info("step %d, %d images, %.1f/s: %s", state.step, state.images, rate, line)


def save_checkpoint(state: State, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    counters = {"step": state.step, "images": state.images, "seconds": state.seconds}
    parts = {n: getattr(state, n).state_dict() for n in ("model", "average", "optimizer")}
    torch.save({**parts, **counters}, part)
    os.replace(part, path)


def load_checkpoint(state: State, path: Path) -> None:
    """Carry on where a run stopped."""
    saved = torch.load(path, weights_only=True)
    for name in ("model", "average", "optimizer"):
        getattr(state, name).load_state_dict(saved[name])
    state.step, state.images, state.seconds = saved["step"], saved["images"], saved["seconds"]
    log.info("resumed at step %d, %d images", state.step, state.images)


def export(state: State, sources: list[Source], options: MiniOptions) -> None:
    """The model folder: open_clip's local-directory layout, float16, plus segearth.json."""
    options.output.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in state.average.state_dict().items()
    }
    card = ModelCard(
        name="mini",
        global_bias=0.3,
        logit_scale=LOGIT_SCALE,
        description="Small CLIP trained from scratch; works offline, far below the paper's model.",
        licence="MIT",
        made_by=command(options),
        gsd_m=GSD_M,
        words=taught_words(),
        extra={
            "training": {
                "images": state.images,
                "seconds": round(state.seconds),
                "data": [source.name for source in sources],
            },
        },
    )
    config = {"model_cfg": architecture(options.patch), "preprocess_cfg": PREPROCESS}
    content = {
        WEIGHTS[0]: save(weights),
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
        CARD: card.to_json().encode(),
    }
    for name, data in content.items():
        part = options.output / f".{name}.part"
        part.write_bytes(data)
        os.replace(part, options.output / name)
    log.info("exported %s at %d images", options.output.name, state.images)


def command(options: MiniOptions) -> str:
    """The command line of a run; folders are called by their options' names."""
    words = ["python -m segearth_cli.training.mini"]
    for field in fields(options):
        value = getattr(options, field.name)
        if value != field.default and field.name != "resume":
            shown = field.name.upper() if isinstance(value, Path) else value
            words.append(f"--{field.name.replace('_', '-')} {shown}")
    return " ".join(words)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m segearth_cli.training.mini")
    parser.add_argument("--data", type=Path, required=True, help="folder of the collections")
    parser.add_argument("--scenes", type=Path, help="folder of rendered scenes")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="model to start from")
    parser.add_argument("-o", "--output", type=Path, help="model folder to write")
    parser.add_argument("--evaluate", type=Path, metavar="FOLDER", help="measure this model")
    parser.add_argument("--unseen", type=Path, help="rendered scenes, for --evaluate")
    parser.add_argument("--compare", action="store_true", help="measure every attention, lambda")
    for field in fields(MiniOptions):
        if field.name not in ("data", "output", "scenes", "start", "resume"):
            kind = {"int": int, "float": float}[str(field.type)]
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, type=kind, default=field.default)
    parser.add_argument("--resume", action="store_true", help="carry on from the checkpoint")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or measure."""
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("segearth_cli").setLevel(logging.INFO)
    given = vars(parsed(arguments))
    folder, unseen, compare = (given.pop(name) for name in ("evaluate", "unseen", "compare"))
    if folder is not None:
        from segearth_cli.training.mini_scores import evaluate

        torch.set_num_threads(given["threads"])
        logging.getLogger("segearth_cli.geo").setLevel(logging.ERROR)  # pictures lie nowhere
        print(json.dumps(evaluate(folder, given["data"], unseen, compare), indent=2))
        return
    if given["output"] is None:
        raise SystemExit("-o names the model folder to write")
    options = MiniOptions(**given)
    log.info(
        "%s",
        {k: str(v) for k, v in asdict(options).items() if k not in ("data", "scenes", "start")},
    )
    train(options)


if __name__ == "__main__":
    main()
