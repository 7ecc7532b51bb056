"""A compiler that says what it is told to say, for the planner's tests."""

from biomedlm_jax.compilers.child import CompileError
from biomedlm_jax.compilers.topologies import named
from biomedlm_jax.config import Experiment
from biomedlm_jax.planning import memory
from biomedlm_jax.planning.answer import ask
from biomedlm_jax.planning.target import matrix_flops, target
from biomedlm_jax.settings import build
from configs import pretrain_2p7b

PUBLISHED = build(Experiment, pretrain_2p7b.get_config().to_dict())
V5E = named("v5e:16x16")


def brought(run):
    """Bytes of the kernels of all layers and of their gradients, in bfloat16: 12 d^2 a layer."""
    model, mesh = run.model, run.mesh
    over_data = mesh.data > 1 and model.layers % mesh.data == 0
    kernels = model.layers * 12 * model.width**2 // (mesh.fsdp * mesh.model)
    return 2 * 2 * kernels if over_data else 4 * kernels // mesh.data


class Told:
    """In place of `Programs`: takes activations by remat and rows, kernels and gradients by mesh,
    cycles by what is computed twice; refuses what `refuse` names."""

    def __init__(self, activations=1e9, refuse=None):
        self.activations, self.refuse, self.asked = activations, refuse, []

    def program(self, machine, make, text_to=None, *, experiment):
        del make, text_to
        run = build(Experiment, experiment)
        self.asked.append(run)
        if self.refuse and self.refuse(run):
            raise CompileError("Mosaic failed to compile TPU kernel")
        one = target(run, named(machine))
        state = sum(memory.state(one).values())
        share = {"none": 4.0, "named": 1.0, "full": 0.2}[run.model.remat] / run.run.accumulate
        per_chip = run.data.batch / one.machine.devices
        wanted = int(share * per_chip * self.activations) + brought(run)
        twice = {"none": 1.0, "named": 1.05, "full": 1.3}[run.model.remat]
        flops = int(twice * matrix_flops(run.model, one.tokens) / one.machine.devices)
        gather = dict(kind="all-gather", runs=64, bytes=int(1e8), alone=False, block=16, group=16)
        reduce = dict(kind="all-reduce", runs=1, bytes=int(2e8), alone=True, block=None, group=None)
        dear = dict(name="fusion.1", opcode="fusion", shape="bf16[4]", operation="<b>dot</b>")
        return dict(
            trace_seconds=2.0,
            compile_seconds=30.0,
            host_bytes=int(1.5e9),
            memory=dict(arguments=state, results=0, temporary=wanted, code=10, peak=state + wanted),
            matrix_flops=flops,
            xla_cycles=flops // 100_000,
            kernel_runs={"attention_forward.1": 32},
            kernel_cycles=20_000_000,
            collectives=[one | {"operation": "psum"} for one in (gather, reduce)],
            dearest=[dear | dict(runs=32, cycles=5_000_000)],
        )


def asked(compiler, one, price=None):
    return ask(compiler, one, price)
