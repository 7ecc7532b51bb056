"""Runs one step on this machine's CPU and says what it allocated, beside what
`compilers.whole.memory` says of the same program: python -m tests.allocates '{"model__layers": 4}'
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np

from biomedlm_jax.compilers import whole
from biomedlm_jax.planning.target import program
from tests.conftest import TINY, changed


def resident() -> int:
    """Bytes of this process in memory."""
    (line,) = re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024


def main() -> None:
    experiment = changed(TINY, **json.loads(sys.argv[1]))
    function, operands = program(jax.devices()[0], experiment=dataclasses.asdict(experiment))
    compiled = function.lower(*operands).compile()
    before = resident()
    operands = jax.tree.map(lambda x: jax.device_put(np.ones(x.shape, x.dtype)), operands)
    jax.block_until_ready(operands)
    whole.forget_peak()
    jax.block_until_ready(compiled(*operands))
    print(json.dumps({"memory": whole.memory(compiled), "allocated": whole.peak() - before}))


if __name__ == "__main__":
    main()
