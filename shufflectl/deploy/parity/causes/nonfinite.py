"""Values that are no longer finite: overflow of half precision, or NaN from finite inputs."""

from typing import Final

import numpy as np

from shufflectl.deploy.parity.case import Case, Diagnosis

__all__ = ["nonfinite"]

_HALF_MAX: Final = 65504.0


def nonfinite(case: Case) -> Diagnosis | None:
    """Return why values are NaN or infinite; None where none is."""
    bad = ~np.isfinite(case.actual)
    if not bad.any():
        return None
    count = f"{np.count_nonzero(bad)} of {bad.size} values are NaN or infinite"
    if not all(np.isfinite(value).all() for group in case.sources for value in group.values()):
        return Diagnosis("nan", f"{count}, and so are some that the layer reads")
    inner = {name for index in case.segment.nodes for name in case.graph.nodes[index].output if name}
    peaks = {name: float(np.abs(case.run(output=name)).max()) for name in inner}
    name = max(sorted(peaks), key=peaks.__getitem__)
    if peaks[name] > _HALF_MAX:
        return Diagnosis(
            "overflow",
            f"overflow of half precision: {count}; {name} reaches {peaks[name]:.4g}, "
            f"and fp16 ends at {_HALF_MAX:.0f}",
        )
    area = _summed(case)
    if area > _HALF_MAX:
        return Diagnosis(
            "overflow",
            f"overflow of half precision inside the layer: {count}; its sums reach {area:.4g} before they "
            f"are divided, and fp16 ends at {_HALF_MAX:.0f}",
        )
    peak = float(np.abs(case.expected).max())
    return Diagnosis(
        "nan", f"{count} though all that the layer reads is finite and at most {peak:.4g} is expected"
    )


def _summed(case: Case) -> float:
    """Return the largest sum that a mean in the layer forms."""
    largest = 0.0
    for index in case.segment.nodes:
        node = case.graph.nodes[index]
        if node.op_type in ("ReduceMean", "GlobalAveragePool", "AveragePool"):
            source, mean = case.tensor(node.input[0]), case.tensor(node.output[0])
            largest = max(largest, float(np.abs(mean).max()) * source.size / max(1, mean.size))
    return largest
