"""What the benchmark and the tests compile: attention forward and backward, ours and of peers.

Each function takes a device and options, and returns what to compile and its operands. Operands and
gradients are [B, T, N * H], as the model's projections have them, unless said otherwise; a layout
that a kernel wants besides is part of what is measured.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxlib._jax import Device

from biomedlm_jax.kernels.attention import api

Work = tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]


def ours(
    device: Device,
    *,
    shape: tuple[int, int, int, int],
    segments: bool = False,
    dropout: float = 0.0,
    dtype: str = "bfloat16",
    impl: str = "pallas_tpu",
) -> Work:
    """The project's attention under a `shard_map`, as the step calls it. shape: B, N, T, H."""
    batch, heads, length, head_dim = shape

    def both(q, k, v, dout, scale, *rest):
        rest = list(rest)
        options = {}
        if segments:
            options["segment_ids"] = rest.pop(0)
        if dropout:
            options |= dict(dropout_rate=dropout, dropout_seed=rest.pop(0))

        def attend(*operands):
            parts = (x.reshape(-1, length, heads, head_dim) for x in operands)
            return api.attention(*parts, scale=scale, impl=impl, **options).reshape(q.shape)

        out, backward = jax.vjp(attend, q, k, v)
        return out, *backward(dout)

    mesh = Mesh(np.array(device).reshape(1, 1, 1), ("data", "fsdp", "model"))
    rows, alike = PartitionSpec(("data", "fsdp")), PartitionSpec()
    wide = ((batch, length, heads * head_dim), dtype, rows)
    operands = [wide] * 4 + [((), "float32", alike)]
    operands += [((batch, length), "int32", rows)] * segments
    operands += [((), "uint32", alike)] * bool(dropout)
    structs = tuple(
        jax.ShapeDtypeStruct(size, jnp.dtype(kind), sharding=NamedSharding(mesh, spec))
        for size, kind, spec in operands
    )
    in_specs = tuple(spec for _, _, spec in operands)
    return jax.shard_map(both, mesh=mesh, in_specs=in_specs, out_specs=rows), structs


def jax_splash(device: Device, **options: Any) -> Work:
    """JAX's splash attention; see `_splash`."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    def make(heads, length, blocks):
        mask = masks.MultiHeadMask([masks.CausalMask((length, length)) for _ in range(heads)])
        sizes = kernel.BlockSizes(use_fused_bwd_kernel=True, **blocks)
        return kernel.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)

    return _splash(device, make, kernel.SegmentIds, **options)


def tokamax_splash(device: Device, **options: Any) -> Work:
    """Tokamax's splash attention; see `_splash`."""
    from tokamax._src.ops.experimental.tpu.splash_attention import (  # pyright: ignore[reportMissingImports]
        base,
    )
    from tokamax._src.ops.experimental.tpu.splash_attention import (  # pyright: ignore[reportMissingImports]
        splash_attention_kernel as kernel,
    )
    from tokamax._src.ops.experimental.tpu.splash_attention import (  # pyright: ignore[reportMissingImports]
        splash_attention_mask as masks,
    )

    def make(heads, length, blocks):
        mask = masks.CausalMask((length, length))
        config = kernel.SplashConfig(**blocks)
        return kernel.make_splash_mha_single_device(mask, config=config)

    return _splash(device, make, base.SegmentIds, **options)


def _splash(
    device: Device,
    make: Callable,
    segment_ids: Callable,
    *,
    shape: tuple[int, int, int, int],
    blocks: dict[str, Any],
    segments: bool = False,
    heads_first: bool = True,
) -> Work:
    """heads_first: operands are [B, N, T, H], the layout that splash likes best."""
    batch, heads, length, head_dim = shape
    kernel = make(heads, length, blocks)

    def attend(q, k, v, *ids):
        if not heads_first:
            parts = (x.reshape(batch, length, heads, head_dim) for x in (q, k, v))
            q, k, v = (x.transpose(0, 2, 1, 3) for x in parts)
        ids = [segment_ids(q=x, kv=x) for x in ids]
        out = jax.vmap(kernel)(q, k, v, *ids)
        if not heads_first:
            out = out.transpose(0, 2, 1, 3).reshape(batch, length, heads * head_dim)
        return out

    def both(q, k, v, dout, *ids):
        out, backward = jax.vjp(lambda *operands: attend(*operands, *ids), q, k, v)
        return out, *backward(dout)

    here = jax.sharding.SingleDeviceSharding(device)
    wide = shape if heads_first else (batch, length, heads * head_dim)
    structs = [jax.ShapeDtypeStruct(wide, jnp.bfloat16, sharding=here)] * 4
    structs += [jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=here)] * segments
    return both, tuple(structs)
