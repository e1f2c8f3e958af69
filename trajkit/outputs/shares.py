"""What changed a linear layer's output, in numbers (:mod:`trajkit.outputs.decomposition`); no torch."""

from dataclasses import dataclass, fields

PARTS = ("input", "weight", "product")


@dataclass(frozen=True, slots=True)
class Shares:
    """One layer's change, as sums over the places; those of several layers add up with ``+``."""

    places: float
    output: float
    """Σ |y0|"""
    change: float
    """Σ |Δy|"""
    input: float
    """Σ |W0 Δx|"""
    weight: float
    """Σ |ΔW x0 + Δb|"""
    product: float
    """Σ |ΔW Δx|"""
    square: float
    """Σ |Δy|²"""
    along_input: float
    """Σ <W0 Δx, Δy>"""
    along_weight: float
    along_product: float
    rounding: float
    """Σ |Δy less its parts|: what the model's own rounding leaves"""

    def __add__(self, other: "Shares") -> "Shares":
        """The sums of both."""
        return Shares(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[float, ...]:
        """In the order in which they are kept."""
        return tuple(getattr(self, name) for name in SUMS)

    def describe(self) -> dict[str, float | None]:
        """Mean lengths over that of Δy, and lengths along it over its own; None where nothing moved."""
        found: dict[str, float | None] = {
            "relative_change": self.change / self.output if self.output else None
        }
        for part in PARTS:
            size, along = getattr(self, part), getattr(self, f"along_{part}")
            found[part] = size / self.change if self.change else None
            found[f"along_{part}"] = along / self.square if self.square else None
        found["rounding"] = self.rounding / self.change if self.change else None
        return found


SUMS = tuple(f.name for f in fields(Shares))
"""what is kept of a layer and a checkpoint"""
