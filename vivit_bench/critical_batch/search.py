"""The search for the critical batch size: a pure function of "does N fit?"."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from vivit_bench.critical_batch.outcomes import Outcome, Trial
from vivit_bench.errors import VivitBenchError


class StoppedBy(StrEnum):
    """Why a search ended."""

    MEMORY = "memory"
    """N fits and N + 1 does not: the critical batch size."""
    MAX_BATCH = "max-batch"
    """The largest batch size allowed fits."""
    TIMEOUT = "timeout"
    """A trial took too long; the critical batch size may be larger."""
    LIMIT = "limit"
    """A trial met a limit that is not memory; the critical batch size may be larger."""


@dataclass(frozen=True)
class Bracket:
    """What is known so far."""

    fits: int = 0
    """Largest batch size that fitted; 0 if none was run."""
    too_large: int | None = None
    """Smallest batch size that ran out of memory; None if none did."""

    def next_batch_size(self, max_batch: int) -> int | None:
        """The batch size to run next: doubled while all fit, then bisected.

        Args:
            max_batch: Largest batch size allowed.

        Returns:
            N, or None if nothing is left to run.
        """
        if self.too_large is None:
            doubled = min(max(2 * self.fits, 1), max_batch)
            return doubled if doubled > self.fits else None
        middle = (self.fits + self.too_large) // 2
        return middle if middle > self.fits else None


@dataclass(frozen=True)
class SearchResult:
    """A finished search."""

    critical_batch_size: int
    """Largest batch size that fitted; 0 if not even one sample does."""
    stopped_by: StoppedBy
    message: str
    """The trial that ended the search early; empty otherwise."""
    trials: tuple[Trial, ...]
    """In the order they were run."""

    @property
    def critical_trial(self) -> Trial | None:
        """The trial of the critical batch size; None if that is 0."""
        sizes = {trial.n: trial for trial in self.trials}
        return sizes.get(self.critical_batch_size)


class TrialError(VivitBenchError):
    """A trial failed for a reason that says nothing about memory."""

    def __init__(self, trial: Trial):
        set_up = trial.message.startswith("set-up failed")
        what = "" if set_up else f"N = {trial.n} failed, and not for memory: "
        super().__init__(f"{what}{trial.message}")
        self.trial = trial


def find_critical_batch_size(run: Callable[[int, Bracket], Trial], max_batch: int) -> SearchResult:
    """Find the largest batch size that fits.

    Doubling from 1 until a trial runs out of memory, then bisection, to the exact number. The
    critical N and N + 1 have both been run, if memory stopped the search; so has ``max_batch``,
    if that did. A time-out or another limit ends the search at the largest N known to fit.

    Args:
        run: Runs one batch size. It is also told what is known so far, and is called at most
            once for every N.
        max_batch: Largest batch size to run, at least 1.

    Returns:
        The result.

    Raises:
        TrialError: A trial ended with `Outcome.ERROR`.
    """
    bracket = Bracket()
    trials: list[Trial] = []
    while (n := bracket.next_batch_size(max_batch)) is not None:
        trial = run(n, bracket)
        trials.append(trial)
        match trial.outcome:
            case Outcome.FITS:
                bracket = Bracket(n, bracket.too_large)
            case Outcome.OUT_OF_MEMORY:
                bracket = Bracket(bracket.fits, n)
            case Outcome.ERROR:
                raise TrialError(trial)
            case Outcome.TIMEOUT | Outcome.LIMIT:
                reason = StoppedBy(trial.outcome.value)
                message = f"N = {n}: {trial.message}"
                return SearchResult(bracket.fits, reason, message, tuple(trials))
    reason = StoppedBy.MAX_BATCH if bracket.too_large is None else StoppedBy.MEMORY
    return SearchResult(bracket.fits, reason, "", tuple(trials))
