"""What a chip costs, the only place where a price stands.

Google's list prices on demand in US regions, dollars of a chip-hour, from the pages "Cloud TPU
pricing" and "GPU pricing" (GPUs with their share of the machine). They differ between regions,
change, and are not what a contract says; --price gives another. What Spot costs changes from day to
day and is in no table: at most as much, mostly a third of it or less.
"""

from launch.machines import Machine
from launch.spec import Launch

AS_OF = "2025"
CHIP_HOUR = {
    "v4": 3.22,
    "v5e": 1.20,
    "v5p": 4.20,
    "v6e": 2.70,
    "h100": 11.06,
    "a100-80": 5.07,
    "a100-40": 3.67,
    "l4": 1.00,
}
# Dollars of a GB that leaves its region or multi-region: on one continent, as of "Cloud Storage
# pricing"; between continents up to 0.14.
EGRESS_GB = 0.02
# Dollars of an hour of a batch worker of Dataflow in US regions: of a vCPU, of a GB of memory, of a
# GB of disk, as of "Dataflow pricing".
WORKER_VCPU, WORKER_GB, WORKER_DISK_GB = 0.056, 0.003557, 0.000054
GB_OF_VCPU = {"standard": 4, "highmem": 8, "highcpu": 1}  # of a machine type's second part


def chip_hour(machine: Machine, price: float = 0.0) -> float:
    """Dollars of a chip-hour. price: the user's own; 0 is the list price."""
    return price or CHIP_HOUR[machine.kind]


def costs(launch: Launch) -> str:
    """Of an hour, for people."""
    hour = chip_hour(launch.machine, launch.price) * launch.chips
    whose = "--price" if launch.price else "the list price"
    most = "at most " if launch.capacity == "spot" else ""
    return f"{launch.chips} chips cost {most}${hour:,.2f} an hour at {whose}"


def worker_hour(machine_type: str, disk_gb: int) -> float | None:
    """Dollars of an hour of a Dataflow worker; None of a machine type that is not named by its
    number of processors, as n2-standard-8 is."""
    _, kind, count = [*machine_type.split("-"), "", ""][:3]
    if kind not in GB_OF_VCPU or not count.isdecimal():
        return None
    cpus = int(count)
    memory = cpus * GB_OF_VCPU[kind] * WORKER_GB
    return cpus * WORKER_VCPU + memory + disk_gb * WORKER_DISK_GB
