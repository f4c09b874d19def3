"""Triton's interpreter, which runs kernels on a CPU, made to refuse what a GPU would not forgive.

To be imported before the kernels, in a process of its own with ``TRITON_INTERPRET=1``.
"""

import numpy as np
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

ROOM: list[tuple[int, int]] = []  # first byte and end of the tensors of a launch


def hasten():
    """More of a sum at once than a GPU has room for: here the number of steps takes the time."""
    from segearth_cli.model import fused

    compiled_for = fused.compiled_for

    def at_once(*args, **more):
        constants, how = compiled_for(*args, **more)
        wide = {name: 128 for name in ("PLACES", "COLUMNS") if name in constants}
        return {**constants, **wide}, how

    fused.compiled_for = at_once


def guard():
    """Fail where a kernel looks at memory, or writes to it, that no tensor of its own has."""
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    arguments = GridExecutor._init_args_hst

    def own_load(self, pointers, mask, *more):
        dtype = interpreter._get_np_dtype(pointers.get_element_ty())
        check(pointers.data, mask.data, np.dtype(dtype).itemsize)
        return load(self, pointers, mask, *more)

    def own_store(self, pointers, value, mask, *more):
        check(pointers.data, mask.data, value.data.dtype.itemsize)
        return store(self, pointers, value, mask, *more)

    def own_arguments(self, args, kwargs):
        here, named = arguments(self, args, kwargs)
        storages = [one.untyped_storage() for one in here if hasattr(one, "data_ptr")]
        ROOM[:] = [(one.data_ptr(), one.data_ptr() + one.nbytes()) for one in storages]
        return here, named

    InterpreterBuilder.create_masked_load = own_load
    InterpreterBuilder.create_masked_store = own_store
    GridExecutor._init_args_hst = own_arguments


def check(pointers, mask, size):
    seen = np.broadcast_to(pointers, mask.shape)[mask.astype(bool)].astype(np.int64)
    inside = np.zeros(seen.shape, bool)
    for first, end in ROOM:
        inside |= (seen >= first) & (seen + size <= end)
    assert inside.all(), "a kernel leaves its tensors"
