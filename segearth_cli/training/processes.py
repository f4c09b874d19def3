"""The processes of a run: started by torchrun, joined by accelerate, or just this one."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import GradientAccumulationPlugin
from torch import nn

from segearth_cli.device import pick_device, pick_precision, random_numbers_kept
from segearth_cli.errors import UsageError
from segearth_cli.options import TrainOptions

MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
LONGEST_WAIT = timedelta(hours=12)
STATES = (AcceleratorState, PartialState, GradientState)  # each one for the whole process
PLUGINS = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG")  # they take weights apart

package_logger = logging.getLogger("segearth_cli")


@contextlib.contextmanager
def started(options: TrainOptions) -> Iterator[Accelerator]:
    """This process's part of the run; nothing of it is left afterwards, whatever happens.

    An `Accelerator` and the random numbers of whoever calls are as they were before.

    Raises:
        UsageError: the device is not there, the batch cannot be shared out, or accelerate is set
            up for something else.
    """
    level = package_logger.level
    with states_kept():
        try:
            accelerator = start(options)
            if not accelerator.is_main_process:  # the main process says it
                package_logger.setLevel(logging.ERROR)
            with random_numbers_kept(accelerator.device):
                yield accelerator
        finally:
            package_logger.setLevel(level)


@contextlib.contextmanager
def states_kept() -> Iterator[None]:
    """Room for an `Accelerator` of one's own, beside what the process has of another one."""
    kept = [dict(state._shared_state) for state in STATES]
    is_joined = torch.distributed.is_initialized()
    for state in STATES:
        state._shared_state.clear()
    try:
        yield
    finally:
        if torch.distributed.is_initialized() and not is_joined:
            torch.distributed.destroy_process_group()
        for state, before in zip(STATES, kept, strict=True):
            state._shared_state.clear()
            state._shared_state.update(before)


def start(options: TrainOptions) -> Accelerator:
    """The run's device, its number format, the other processes."""
    for plugin in PLUGINS:
        if os.environ.get(f"ACCELERATE_USE_{plugin}", "").lower() in ("true", "1", "yes"):
            raise UsageError(
                f"accelerate is set up for {plugin} (ACCELERATE_USE_{plugin}), which these "
                "trainings do not use; start them with torchrun, or without that setting"
            )
    device = pick_device(options.device)
    if device.index is not None:
        raise UsageError(
            f"--device {options.device}: say cuda, and choose with CUDA_VISIBLE_DEVICES or torchrun"
        )
    precision = pick_precision(options.precision, device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=MIXED[precision],
        # one per process: the environment must not divide gradients by a number of its own
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # the others wait while the main process measures
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
    )
    shares = options.accumulate * accelerator.num_processes
    if options.batch_size % shares:
        raise UsageError(
            f"--batch-size {options.batch_size} cannot be shared out evenly to "
            f"{accelerator.num_processes} processes in {options.accumulate} parts"
        )
    return accelerator


def agreed(wish: bool, accelerator: Accelerator) -> bool:
    """Whether any process wishes it."""
    if accelerator.num_processes == 1:
        return wish
    return bool(accelerator.reduce(torch.tensor(float(wish), device=accelerator.device)) > 0)


def share_gradients(module: nn.Module, accelerator: Accelerator) -> None:
    """Mean of all processes' gradients, in one message."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    flat = accelerator.reduce(flat, reduction="mean")
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
