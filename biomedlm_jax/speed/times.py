"""Times of attention on a GPU that is here: forward and backward, medians, beside cuDNN and XLA."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DEVICE = Path("/dev/nvidia0")
IMPLEMENTATIONS = ("pallas_gpu", "cudnn", "reference")
ROUNDS = 20


def on_gpu(shape: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    """Rows {implementation, milliseconds}, or why there are none. In a process of its own, since
    the compiler's processes and this one must not start the GPU.

    Raises:
      RuntimeError: there is a GPU, and measuring on it failed.
    """
    if not DEVICE.exists():
        return [{"missing": f"no GPU here ({DEVICE} does not exist), so no times"}]
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.times", json.dumps(shape)],
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"no times of the GPU: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(shape: tuple[int, int, int, int], implementations: tuple[str, ...]) -> list[dict]:
    """Medians on the default device, after one round that compiles; they take turns."""
    import jax

    from biomedlm_jax.speed import attention

    device, ready, rows = jax.devices()[0], {}, []
    for name in implementations:
        function, structs = attention.ours(device, shape=shape, impl=name)
        draws = [jax.random.normal(jax.random.key(i), s.shape) for i, s in enumerate(structs[:4])]
        draws.append(jax.numpy.full((), shape[3] ** -0.5))
        operands = [
            jax.device_put(x.astype(s.dtype), s.sharding)
            for x, s in zip(draws, structs, strict=True)
        ]
        call = jax.jit(function)
        try:
            jax.block_until_ready(call(*operands))
        except NotImplementedError as reason:
            rows.append({"implementation": name, "refused": str(reason)})
            continue
        ready[name] = (call, operands, [])
    for _ in range(ROUNDS):
        for call, operands, seconds in ready.values():
            started = time.perf_counter()
            jax.block_until_ready(call(*operands))
            seconds.append(time.perf_counter() - started)
    return rows + [
        {
            "implementation": name,
            "device": device.device_kind,
            "milliseconds": 1e3 * statistics.median(seconds),
        }
        for name, (_, _, seconds) in ready.items()
    ]


if __name__ == "__main__":
    print(json.dumps(measure(tuple(json.loads(sys.argv[1])), IMPLEMENTATIONS)))
