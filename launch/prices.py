"""What a chip costs, the only place where a price stands.

Google's list prices on demand in US regions, dollars of a chip-hour, from the pages "Cloud TPU
pricing" and "GPU pricing" (GPUs with their share of the machine). They differ between regions,
change, and are not what a contract says; --price gives another. What Spot costs changes from day to
day and is in no table: at most as much, mostly a third of it or less.
"""

from launch.machines import Machine

AS_OF = "2025"
SOURCE = "cloud.google.com/tpu/pricing and cloud.google.com/compute/gpus-pricing"
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
EGRESS_GB = (
    0.02  # dollars, from one region of a continent to another; between continents up to 0.14
)


def chip_hour(machine: Machine, price: float = 0.0) -> float:
    """Dollars of a chip-hour. price: the user's own; 0 is the list price."""
    return price or CHIP_HOUR[machine.kind]
