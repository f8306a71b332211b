"""The approximations of the GGN that every quantity is offered under."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from vivit_bench.errors import UsageError


class Curvature(StrEnum):
    """How the loss Hessian at the model output is factorised, H_n = S_n S_n^T."""

    EXACT = "exact"
    """All columns of the exact square root: C - 1 a term (cross-entropy), else one an output."""
    MC = "mc"
    """``mc_samples`` gradients under labels drawn from the model's prediction."""


class Precision(StrEnum):
    """Floating-point type of model, data and matrix products."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


class Samples(StrEnum):
    """Which samples of the mini-batch carry the curvature."""

    FULL = "full"
    """All of them."""
    FRAC = "frac"
    """The first max(N // 8, 1); the gradient always uses the whole mini-batch."""

    def size(self, batch_size: int) -> int:
        """Number of samples that carry the curvature of a mini-batch of ``batch_size``."""
        return batch_size if self is Samples.FULL else max(batch_size // 8, 1)


class Blocks(StrEnum):
    """The block structure of the GGN."""

    NONE = "none"
    """One block: the full GGN."""
    LAYER = "layer"
    """One block per layer, weight and bias together (appendix C.2)."""


class Goal(StrEnum):
    """What is computed."""

    EIGENVALUES = "eigenvalues"
    EIGENVECTORS = "eigenvectors"
    DERIVATIVES = "directional"
    STEP = "newton"
    """With a constant damping along the directions above the cutoff."""
    POLICY_STEP = "newton-policy"
    INVERSE = "inverse"
    """A product with the damped inverse, or a step over the whole space."""

    @property
    def per_sample(self) -> bool:
        """Whether slopes and curvatures of every sample are needed."""
        return self in (Goal.DERIVATIVES, Goal.POLICY_STEP)

    @property
    def lifts(self) -> bool:
        """Whether vectors in parameter space are made of coordinates."""
        return self not in (Goal.EIGENVALUES, Goal.DERIVATIVES)


class Method(StrEnum):
    """What a quantity is computed from."""

    AUTO = "auto"
    """The Gram matrix where it fits into memory, else products with the GGN."""
    GRAM = "gram"
    """The Gram matrix, or the GGN itself where that is the smaller one."""
    LANCZOS = "lanczos"
    """Products with the GGN alone: Lanczos iterations, or conjugate gradients."""


MOST_DRAWS = 2**31 - 1
"""Sizes of tensors overflow for absurd numbers of draws."""

_Choice = TypeVar("_Choice", bound=StrEnum)


def parse_choice(kind: type[_Choice], name: str, value: str) -> _Choice:
    """One of an enumeration's values.

    Raises:
        UsageError: Another word.
    """
    try:
        return kind(value)
    except ValueError:
        known = " or ".join(repr(member.value) for member in kind)
        raise UsageError(f"{name} is {value!r}; use {known}") from None


@dataclass(frozen=True)
class Approximation:
    """Which GGN is meant: the paper's four approximations, and the seed of their draws.

    Strings are accepted for the enumerations: ``Approximation("mc", "frac")``.

    Raises:
        UsageError: A value that makes no sense, or that would be ignored.
    """

    curvature: Curvature = Curvature.EXACT
    samples: Samples = Samples.FULL
    mc_samples: int = 1
    """M, label draws per sample; 1 where the curvature is exact."""
    seed: int = 0
    """Of the Monte-Carlo draws."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "curvature", parse_choice(Curvature, "curvature", self.curvature))
        object.__setattr__(self, "samples", parse_choice(Samples, "samples", self.samples))
        for name in ("mc_samples", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise UsageError(f"{name} is {value!r}: must be a whole number")
        if self.mc_samples < 1:
            raise UsageError(f"mc_samples is {self.mc_samples}: must be at least 1")
        if self.mc_samples > MOST_DRAWS:
            raise UsageError(f"mc_samples is {self.mc_samples}: more than 2^31 - 1 make no sense")
        if self.curvature is Curvature.EXACT and self.mc_samples != 1:
            raise UsageError(
                f"mc_samples is {self.mc_samples}: exact curvature draws no samples; "
                "leave it out, or use curvature mc (--curvature mc)"
            )
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}; it must lie in 0 .. 2^63 - 1")

    @property
    def label(self) -> str:
        """Short name, e.g. ``mc (M = 2), frac``."""
        monte_carlo = f" (M = {self.mc_samples})" if self.mc_samples != 1 else ""
        return f"{self.curvature}{monte_carlo}, {self.samples}"

    def record(self) -> dict[str, str | int]:
        """As stored, in plain JSON types; the seed is recorded once, with the workload."""
        return {
            "curvature": self.curvature.value,
            "samples": self.samples.value,
            "mc_samples": self.mc_samples,
        }

    def num_samples(self, batch_size: int) -> int:
        """Samples that carry the curvature of a mini-batch of ``batch_size``."""
        return self.samples.size(batch_size)


@dataclass(frozen=True)
class Memory:
    """Memory that a computation may take over what the process holds when it begins.

    Raises:
        UsageError: It is no whole number above 0.
    """

    bytes: int
    strict: bool = True
    """Whether a computation that cannot keep to it is refused before it starts; else its leanest
    plan is run all the same."""

    def __post_init__(self) -> None:
        if isinstance(self.bytes, bool) or not isinstance(self.bytes, int) or self.bytes < 1:
            raise UsageError(f"memory is {self.bytes!r}; give a whole number of bytes above 0")


def memory_of(given: "int | Memory | None") -> Memory | None:
    """The bound that a call names.

    Raises:
        UsageError: It is no whole number above 0.
    """
    return given if given is None or isinstance(given, Memory) else Memory(given)


def approximation_of(
    given: Approximation | None,
    curvature: str | None,
    samples: str | None,
    mc_samples: int | None,
    seed: int | None,
) -> Approximation:
    """The approximation that a call names, as an object or by its parts.

    Raises:
        UsageError: Both at once, or a value that makes no sense.
    """
    parts = {
        "curvature": curvature,
        "samples": samples,
        "mc_samples": mc_samples,
        "seed": seed,
    }
    named = {name: value for name, value in parts.items() if value is not None}
    if given is None:
        return Approximation(**named)  # type: ignore[arg-type]
    if named:
        raise UsageError(
            f"both an Approximation and {', '.join(named)} are given; name the approximation once"
        )
    if not isinstance(given, Approximation):
        raise UsageError(
            f"approximation is {given!r}; use Approximation(...), or curvature=, samples=, "
            "mc_samples= and seed="
        )
    return given


VARIANTS: tuple[tuple[Curvature, Samples], ...] = (
    (Curvature.EXACT, Samples.FULL),
    (Curvature.EXACT, Samples.FRAC),
    (Curvature.MC, Samples.FULL),
    (Curvature.MC, Samples.FRAC),
)
"""The paper's four approximations, in the order of its tables and figures."""
