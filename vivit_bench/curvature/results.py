"""What the engine returns. Every number is on the CPU in float64 unless a field says otherwise."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class BatchInfo:
    """The mini-batch and curvature approximation a result belongs to."""

    num_params: int
    """D, trainable parameters."""
    batch_size: int
    """N, samples of the mini-batch (gradient, loss)."""
    num_samples: int
    """Samples that carry the curvature (N, or N // 8 for ``frac``)."""
    num_outputs: int
    """C, model outputs per sample."""
    num_columns: int
    """M, columns of V: ``num_samples`` times C - 1 for every term (exact cross-entropy),
    times the outputs (other exact losses), or times mc_samples."""
    loss: float
    """Loss of the mini-batch."""
    solver_dtype: str
    """Precision the eigenproblem was solved in, e.g. ``"float64"``."""


@dataclass(frozen=True)
class Certificate:
    """What a result's check by plain autograd compared, and how far off it was.

    Covered: the loss and its Hessian at the outputs of the whole mini-batch; for the drawn
    samples their outputs and derivatives alone and in company of others, their blocks of the Gram
    matrix layer by layer, and the products of what is handed out with their vectors. Not seen:
    samples that were not drawn, and what plain autograd itself gets wrong.
    """

    samples: tuple[int, ...]
    """Those that were drawn, of the ones that carry the curvature."""
    num_samples: int
    """How many carry the curvature."""
    errors: dict[str, float]
    """What was compared -> largest deviation, relative as the engine's documentation says."""
    tolerance: float
    """Every error is below it: 1e-9 in float64, 1e-4 in float32."""
    notes: tuple[str, ...]
    """Layers that were computed by plain autograd because their rule failed this check, and why."""
    seconds: float
    """Wall time of the check."""

    @property
    def worst(self) -> float:
        """The largest error."""
        return max(self.errors.values(), default=0.0)

    def line(self) -> str:
        """In one line, for people."""
        noted = "".join(f"; {note}" for note in self.notes)
        return (
            f"certified by plain autograd on {len(self.samples)} of {self.num_samples} samples: "
            f"largest error {self.worst:.1e} ({', '.join(self.errors)}), tolerance "
            f"{self.tolerance:.0e}, in {self.seconds:.2f} s{noted}"
        )


@dataclass(frozen=True)
class Dropped:
    """Columns of V that were left out because they cannot matter."""

    num_columns: int
    """How many, of ``BatchInfo.num_columns``; none where too few are small to be worth it."""
    trace: float
    """Sum of their squared norms. No eigenvalue of the GGN, or of a diagonal block, is smaller
    than stated, nor larger by more than this (Weyl), beside the rounding of the result."""

    def line(self, of: int) -> str:
        """In one line, for people; ``of`` is the number of all columns."""
        if not self.num_columns:
            return f"dropped none of {of:,} columns: too few are small enough"
        return (
            f"dropped {self.num_columns:,} of {of:,} columns: no eigenvalue is larger than stated "
            f"by more than {self.trace:.2e}, beside rounding"
        )


@dataclass(frozen=True)
class Choice:
    """What a result was computed from."""

    method: str
    """``"gram"`` or ``"lanczos"``."""
    reason: str

    def line(self) -> str:
        """In one line, for people."""
        return f"method {self.method}: {self.reason}"


@dataclass(frozen=True)
class Iterations:
    """How a matrix-free result came about, and how good it is."""

    method: str
    """``"lanczos"`` or ``"conjugate gradients"``."""
    derivative: str
    """How J x was computed."""
    products: int
    """Products with G that were used, all told."""
    residual: float
    """The largest one, by a product of its own: |G u - l u| / l_1 of eigenpairs, or
    |(G + d I) s + grad L| / |grad L| of a step over the whole space."""
    tolerance: float
    """The residual is not above it."""
    seconds: float
    """Wall time of everything."""

    def line(self) -> str:
        """In one line, for people."""
        return (
            f"{self.method}, {self.products} products with the GGN ({self.derivative}) in "
            f"{self.seconds:.2f} s: largest residual {self.residual:.1e}, tolerance "
            f"{self.tolerance:.0e}"
        )


@dataclass(frozen=True)
class Spectrum:
    """Non-trivial eigenvalues of the GGN (or of its diagonal blocks)."""

    info: BatchInfo
    eigenvalues: Tensor
    """[min(num_columns, D)], descending; of all blocks together if there are blocks.
    The remaining eigenvalues of the GGN are exactly zero."""
    trace: float
    """Trace of the GGN, from the Gram matrix's diagonal; with that of dropped columns."""
    blocks: dict[str, Tensor] = field(default_factory=dict)
    """Layer name -> its block's eigenvalues, descending; empty for the full GGN."""
    gradient: list[Tensor] | None = None
    """Gradient of the loss in the format of a step; None unless asked for."""
    certificate: Certificate | None = None
    """None if it was switched off."""
    dropped: Dropped | None = None
    """None unless asked for."""


@dataclass(frozen=True)
class LeadingEigenvalues:
    """The K largest eigenvalues of the GGN (or of its diagonal blocks, all together)."""

    info: BatchInfo
    eigenvalues: Tensor
    """[K] float64, descending."""
    blocks: dict[str, Tensor] = field(default_factory=dict)
    """Layer name -> its block's leading eigenvalues, descending; empty for the full GGN."""
    residuals: Tensor | None = None
    """[K] |G u_k - l_k u_k| / l_1: an eigenvalue is within |residual| l_1 of l_k. None from the
    Gram matrix, whose eigenvalues have no vectors."""
    vectors: list[list[Tensor]] | None = None
    """For each eigenvalue its eigenvector, one tensor a parameter; None unless asked for."""
    iterations: Iterations | None = None
    """None from the Gram matrix."""
    choice: Choice | None = None
    """Of the method."""
    certificate: Certificate | None = None
    """None if it was switched off."""


@dataclass(frozen=True)
class DirectionalDerivatives:
    """Per-sample slopes and curvatures along the GGN eigenvectors (Equation 8)."""

    info: BatchInfo
    eigenvalues: Tensor
    """[K], descending, those above the cutoff."""
    gammas: Tensor
    """[N, K], gamma_nk = e_k^T grad l_n, over the whole mini-batch."""
    lambdas: Tensor
    """[num_samples, K], lambda_nk = e_k^T J_n^T H_n J_n e_k."""
    gradient: list[Tensor] | None = None
    """Gradient of the loss in parameter format; None unless asked for."""
    certificate: Certificate | None = None
    """None if it was switched off."""
    dropped: Dropped | None = None
    """None unless asked for."""


@dataclass(frozen=True)
class NewtonStep:
    """A damped Newton step in parameter format (Equation 9)."""

    info: BatchInfo
    step: list[Tensor]
    """One tensor per trainable parameter, its shape, dtype and device: theta + step."""
    eigenvalues: dict[str, Tensor]
    """Block name ("" for the full GGN) -> [K] eigenvalues above the cutoff, descending."""
    dampings: dict[str, Tensor]
    """Block name -> [K] damping of each direction, in the same order."""
    gradient: list[Tensor] | None = None
    """Gradient of the loss in the format of ``step``; None unless asked for."""
    certificate: Certificate | None = None
    """None if it was switched off."""
    iterations: Iterations | None = None
    """None from the Gram matrix."""
    choice: Choice | None = None
    """Of the method."""
