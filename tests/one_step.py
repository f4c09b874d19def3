"""One step of an upsampler's training without dropout, by as many processes as run this."""

import sys
from pathlib import Path

import torch
from torch import nn

from segearth_cli.options import UpsamplerOptions
from segearth_cli.training.checkpoint import Run
from segearth_cli.training.data import collate
from segearth_cli.training.loop import StepBatches, take_step
from segearth_cli.training.processes import started
from segearth_cli.training.upsampler import CAREFUL_STEPS, UpsamplerTraining


def one_step(model, images, destination):
    """Save how far plain gradient descent moves each parameter."""
    number = CAREFUL_STEPS  # before it, gradients are cut short
    options = UpsamplerOptions(
        output=Path(destination), model=model, images=(images,), batch_size=4, jitters=2, crop=64,
        kernel=3, device="cpu", precision="fp32",
    )  # fmt: skip
    with started(options) as accelerator:
        torch.manual_seed(0)
        trainee = UpsamplerTraining(options, accelerator.device)
        for layer in trainee.module.modules():
            if isinstance(layer, nn.Dropout | nn.Dropout2d):
                layer.p = 0.0
        before = {name: p.detach().clone() for name, p in trainee.module.named_parameters()}
        optimizer = accelerator.prepare(torch.optim.SGD(trainee.module.parameters()))
        own = StepBatches(
            range(number, number + 1), 4, 1, accelerator.process_index, accelerator.num_processes
        )
        parts = [collate([trainee.crops[i] for i in indices]) for indices in own]
        run = Run({}, steps=2 * number, step=number)
        take_step(run, parts, trainee, optimizer, accelerator, options)
        moved = {name: p.detach() - before[name] for name, p in trainee.module.named_parameters()}
        if accelerator.is_main_process:
            torch.save(moved, destination)


if __name__ == "__main__":
    one_step(*sys.argv[1:])
