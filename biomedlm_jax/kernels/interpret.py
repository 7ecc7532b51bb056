"""Interpreted kernels under `jax.shard_map`.

JAX's interpreter of Pallas starts its buffers as equal on all devices and then fails to write
values that differ into them (`check_vma`). So the arguments of all devices are brought to each,
which makes them equal, every device runs the kernel for all, and takes its own result. That costs
devices times the work, of a thing that is slow by nature and there to see what a kernel computes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from biomedlm_jax.kernels.varying import axes_of


def everywhere(run: Callable, inputs: Any) -> Any:
    """run(inputs) of this device; `inputs` and the result are trees of arrays."""
    names = tuple(sorted(axes_of(inputs)))
    if not names:
        return run(inputs)
    mine, devices = jax.lax.axis_index(names), jax.lax.axis_size(names)

    def of_all(x: jax.Array) -> jax.Array:
        here = jnp.arange(devices).reshape(-1, *[1] * x.ndim) == mine
        return jax.lax.psum(jnp.where(here, x, jnp.zeros_like(x)), names)

    found = jax.lax.map(run, jax.tree.map(of_all, inputs))
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, mine, keepdims=False), found)
