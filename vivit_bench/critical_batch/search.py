"""The search for the critical batch size: a pure function of "does N fit?".

Which batch size is run next decides only how long the search takes. The result is always
an N that fitted beside an N + 1 that did not. What memory is expected to be needed guides it
(`vivit_bench.critical_batch.guide`): an engine's plan, or the continued peaks of small trials.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile

from vivit_bench.critical_batch.guide import (
    PlannedPeaks,
    is_whole,
    predict_critical_batch_size,
)
from vivit_bench.errors import VivitBenchError
from vivit_bench.measure import Outcome, Trial

SMALL_SIZES = (1, 16, 32, 64)
"""Run before a planned size that is 8 times as large, beside which they cost nothing: failures are
seen early, and something fits."""

HOPELESS = 1.5
"""Times the time-out: a trial that is expected to take longer is not started."""

_STEPS = (0, 0, 0, 1, 4, 16, 100)
"""Percent by which a search leaves a planned size, one trial after the other; 0: by one sample."""

_FREE = 4
"""Trials that closing a bracket may cost beyond those of bisection."""


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
    DATA = "data"
    """All samples there are fit; with more data, the critical batch size may be larger."""


@dataclass(frozen=True)
class Bracket:
    """What is known so far."""

    fits: int = 0
    """Largest batch size that fitted; 0 if none was run."""
    too_large: int | None = None
    """Smallest batch size that ran out of memory; None if none did."""


def next_batch_size(
    bracket: Bracket,
    trials: Sequence[Trial],
    max_batch: int,
    limit_bytes: int | None = None,
    planned: PlannedPeaks | None = None,
    known: int = 0,
) -> int | None:
    """The batch size to run next: doubled while all fit, then by peaks on both sides, or bisected.

    With a plan, or a curve that is forecast, there is no doubling: a few small N, then the one that
    it names.

    Args:
        bracket: What is known so far.
        trials: All trials so far, in the order they were run.
        max_batch: Largest batch size allowed.
        limit_bytes: Memory limit that the trials' peaks are compared with; None: do not guide.
        planned: What is expected to be needed; None: nothing is.
        known: How many of the trials were made to find that out.

    Returns:
        N, or None if nothing is left to run.
    """
    fits, too_large = bracket.fits, bracket.too_large
    if fits >= max_batch or too_large == fits + 1:
        return None
    if planned is not None and limit_bytes is not None:
        return _next_planned(bracket, trials, max_batch, limit_bytes, planned, known)
    if too_large is None:
        return min(max(2 * fits, 1), max_batch)
    middle = (fits + too_large) // 2
    if limit_bytes is not None:
        start = next(n for n, t in enumerate(trials, 1) if t.outcome is Outcome.OUT_OF_MEMORY)
        middle = _between(bracket, trials, limit_bytes) or middle
        middle = _guarded(middle, bracket, trials[:start], trials[start:])
    return min(middle, too_large - 1, max_batch)


def _between(bracket: Bracket, trials: Sequence[Trial], limit_bytes: int) -> int | None:
    """Where peaks meet the limit between those of a bracket's ends; None where they do not tell."""
    ends = {t.n: t for t in reversed(trials)}
    below, above = ends.get(bracket.fits), ends.get(bracket.too_large or 0)
    if below is None or above is None or not is_whole(above, limit_bytes):
        return None
    low, high = below.peak_bytes or 0, above.peak_bytes or 0
    if low <= limit_bytes // 2:  # what does not grow with N decides
        return None
    return below.n + (above.n - below.n) * (limit_bytes - low) // (high - low)


def _next_planned(
    bracket: Bracket,
    trials: Sequence[Trial],
    max_batch: int,
    limit_bytes: int,
    planned: PlannedPeaks,
    known: int,
) -> int:
    """The planned size, then where it is after each trial's correction.

    Whatever the plan says, both sides of the bracket are left in widening steps until the other
    side is known; from then on see `_guarded`.
    """
    fits, too_large = bracket.fits, bracket.too_large
    predicted = predict_critical_batch_size(planned, trials, limit_bytes, max_batch)
    large = [t for t in trials[known:] if t.n not in SMALL_SIZES]
    fitted = sum(t.outcome is Outcome.FITS for t in large)
    failed = sum(t.outcome is Outcome.OUT_OF_MEMORY for t in trials[known:])
    if too_large is None:
        small = next((n for n in SMALL_SIZES if n > fits), None)
        if small is not None and (small == 1 or 8 * small <= predicted):
            return min(small, max_batch)
        return min(max(predicted, fits + _step(fits, fitted)), max_batch)
    if not fitted and failed < len(_STEPS) - 1:
        # How far above the limit is known only of a trial that was run to its end.
        whole = is_whole(next(t for t in trials if t.n == too_large), limit_bytes)
        predicted = min(predicted, too_large - _step(too_large, failed + (0 if whole else 2)))
        return min(max(predicted, fits + 1), too_large - 1, max_batch)
    if not fitted:
        predicted = (fits + too_large) // 2
    enclosed = (n for n in range(len(trials)) if _is_enclosed(trials[:n], known))
    start = next(enclosed, len(trials))
    return min(_guarded(predicted, bracket, trials[:start], trials[start:]), max_batch)


def _is_enclosed(trials: Sequence[Trial], known: int) -> bool:
    """Whether the limit is between two trials, of which the lower one is no small one if it can."""
    fitted = any(t.outcome is Outcome.FITS and t.n not in SMALL_SIZES for t in trials[known:])
    failed = [t.outcome is Outcome.OUT_OF_MEMORY for t in trials]
    return any(failed) if fitted else sum(failed[known:]) >= len(_STEPS) - 1


def _guarded(
    predicted: int, bracket: Bracket, before: Sequence[Trial], since: Sequence[Trial]
) -> int:
    """The predicted size, or what is nearest to it that cannot make a search long.

    Each trial must leave what bisection would have left `_FREE` trials before. Where the same side
    moved twice, the next trial goes twice as far from it as predicted, then four times, and so on,
    and not only by one sample: one whose other side moves says more, and peaks of neighbours differ
    by less than what makes them vary.

    Args:
        predicted: N.
        bracket: What is known.
        before: Trials up to the one by which the bracket had two sides.
        since: Those after them.
    """
    fits, too_large = bracket.fits, bracket.too_large
    assert too_large is not None
    first = known_bracket(before)
    width = too_large - fits
    left = ((first.too_large or width) - first.fits) * 2**_FREE >> len(since) + 1
    left = max(left, (width + 1) // 2)
    alike = sum(1 for _ in takewhile(lambda t: t.outcome is since[-1].outcome, reversed(since)))
    further, least = 2 ** max(alike - 1, 0), 2 ** max(alike - 2, 0)
    if since and since[-1].outcome is Outcome.FITS:
        predicted = fits + max(further * (predicted - fits - 1) + 1, least)
    elif since:
        predicted = too_large - max(further * (too_large - predicted - 1) + 1, least)
    predicted = min(max(predicted, too_large - left), fits + left)
    return min(max(predicted, fits + 1), too_large - 1)


def _step(n: int, number: int) -> int:
    """How far to go from N in the so manieth step."""
    return max(n * _STEPS[min(number, len(_STEPS) - 1)] // 100, 1)


@dataclass(frozen=True)
class SearchResult:
    """A finished search."""

    critical_batch_size: int
    """Largest batch size that fitted; 0 if not even one sample does."""
    stopped_by: StoppedBy
    message: str
    """What ended the search early, or which sizes fitted in some of their trials only."""
    trials: tuple[Trial, ...]
    """In the order they were run."""
    repeats: int = 1
    """Trials of the critical N, and of N + 1."""

    @property
    def is_lower_bound(self) -> bool:
        """Whether a larger batch may fit: memory did not stop the search."""
        return self.stopped_by is not StoppedBy.MEMORY

    @property
    def critical_trial(self) -> Trial | None:
        """The trial of the critical batch size; None if that is 0."""
        sizes = {trial.n: trial for trial in reversed(self.trials)}  # the first of each
        return sizes.get(self.critical_batch_size)


class TrialError(VivitBenchError):
    """A trial failed for a reason that says nothing about memory."""

    def __init__(self, trial: Trial):
        set_up = trial.message.startswith("set-up failed")
        what = "" if set_up else f"N = {trial.n} failed, which says nothing of its memory: "
        super().__init__(f"{what}{trial.message}")
        self.trial = trial


def find_critical_batch_size(
    run: Callable[[int, Bracket], Trial],
    max_batch: int,
    limit_bytes: int | None = None,
    planned: PlannedPeaks | None = None,
    *,
    known: Sequence[Trial] = (),
    again: Callable[[int, Bracket, int], Trial] | None = None,
    repeats: int = 1,
    expected: Callable[[int], float | None] = lambda n: None,
    recorded: Callable[[int], bool] = lambda n: False,
    timeout_seconds: float = math.inf,
    largest: int | None = None,
) -> SearchResult:
    """Find the largest batch size that fits.

    Doubling from 1 until a trial runs out of memory, then bisection to the exact number; or from
    the size that is expected (see `next_batch_size`). The critical N and N + 1 have both been run,
    if memory stopped the search; so has ``max_batch``, if that did, or all samples there are, if a
    trial met the end of the data. Another limit ends the search at the largest N known to fit, and
    so does time: what is expected to take much longer than the time-out is not even started, but
    the largest N is that is not; after a first trial that was stopped, one smaller N is run.

    Args:
        run: Runs one batch size. It is also told what is known so far, and is called at most
            once for every N.
        max_batch: Largest batch size to run, at least 1.
        limit_bytes: What the trials' peaks must not exceed, to guide the search.
        planned: What is expected to be needed; None: nothing is.
        known: Trials that fitted, or did not, before the search began.
        again: Runs a batch size once more; is also told how often it was run. Of the critical N and
            N + 1 ``repeats`` trials are made: N fits in all of them, and N + 1 not in all.
        repeats: See ``again``.
        expected: N -> seconds; None where nothing is known.
        recorded: Whether the trial of N has been made, and takes no time.
        timeout_seconds: Of a trial.
        largest: N of the largest problem that a library is known to take: nothing larger is run
            before it, and the next one says whether that is so.

    Returns:
        The result.

    Raises:
        TrialError: A trial ended with `Outcome.ERROR`.
    """
    trials = list(known)
    most, all_samples = max_batch, None
    stopped: Trial | None = None
    while True:
        bracket = known_bracket(trials)
        bound = most
        if largest is not None and bracket.fits <= largest:
            bound = min(most, largest if bracket.fits < largest else largest + 1)
        n = next_batch_size(bracket, trials, bound, limit_bytes, planned, len(known))
        is_first = n is not None
        if n is not None:
            timed = trials[len(known) :]
            seconds = 0.0 if recorded(n) else _expected_seconds(expected, timed, n)
            if seconds > HOPELESS * timeout_seconds:
                affordable = _affordable(expected, timed, n, timeout_seconds)
                if affordable <= bracket.fits and stopped is not None:
                    break
                if affordable <= bracket.fits:
                    message = f"N = {n} is expected to take {seconds:.0f} s, and was not started"
                    return SearchResult(
                        bracket.fits, StoppedBy.TIMEOUT, message, tuple(trials), repeats
                    )
                n = affordable
            trial = run(n, bracket)
        else:
            repeated = None if again is None else _next_repeat(bracket, trials, repeats)
            if again is None or repeated is None:
                break
            n, number = repeated
            trial = again(n, bracket, number)
        trials.append(trial)
        match trial.outcome:
            case Outcome.DATA:
                assert trial.available_samples is not None
                most = all_samples = min(trial.available_samples, n - 1)
            case Outcome.ERROR:
                raise TrialError(trial)
            case Outcome.TIMEOUT if is_first and stopped is None and expected(n) is not None:
                stopped, most = trial, n - 1
            case Outcome.TIMEOUT | Outcome.LIMIT:
                reason = StoppedBy(trial.outcome.value)
                message = f"N = {n}: {trial.message}"
                fits = known_bracket(trials).fits
                return SearchResult(fits, reason, message, tuple(trials), repeats)
    found = tuple(trials)
    if bracket.too_large == bracket.fits + 1:
        return SearchResult(bracket.fits, StoppedBy.MEMORY, _unsteady(trials), found, repeats)
    if stopped is not None:
        message = f"N = {stopped.n}: {stopped.message}"
        return SearchResult(bracket.fits, StoppedBy.TIMEOUT, message, found, repeats)
    if all_samples is not None:
        message = f"the data end at {all_samples} samples"
        return SearchResult(bracket.fits, StoppedBy.DATA, message, found, repeats)
    return SearchResult(bracket.fits, StoppedBy.MAX_BATCH, "", found, repeats)


def known_bracket(trials: Sequence[Trial]) -> Bracket:
    """What trials tell: a size that once did not fit is too large, whatever it did else."""
    too_large = min((t.n for t in trials if t.outcome is Outcome.OUT_OF_MEMORY), default=None)
    fitted = (t.n for t in trials if t.outcome is Outcome.FITS)
    fits = max((n for n in fitted if too_large is None or n < too_large), default=0)
    return Bracket(fits, too_large)


def _next_repeat(bracket: Bracket, trials: Sequence[Trial], repeats: int) -> tuple[int, int] | None:
    """The critical N or N + 1, and how often it was run; None if that is often enough."""
    if bracket.too_large != bracket.fits + 1:
        return None
    runs = Counter(trial.n for trial in trials)
    return next(
        ((n, runs[n]) for n in (bracket.fits, bracket.too_large) if n and runs[n] < repeats), None
    )


def _unsteady(trials: Sequence[Trial]) -> str:
    """Sizes that fitted in some of their trials only; empty if there are none."""
    runs = Counter(trial.n for trial in trials)
    fitted = Counter(trial.n for trial in trials if trial.outcome is Outcome.FITS)
    mixed = [n for n in sorted(runs) if 0 < fitted[n] < runs[n]]
    return "; ".join(f"N = {n} fitted in {fitted[n]} of {runs[n]} trials" for n in mixed)


def _expected_seconds(
    expected: Callable[[int], float | None], timed: Sequence[Trial], n: int
) -> float:
    """What N will take, as the largest trial that was timed corrects it; 0 if nothing is known.

    A trial that was stopped is taken to have needed twice its time-out. What a smaller N takes is
    at least its share of that: powers of N that hold near the limit promise too much far below.
    """
    seconds = expected(n)
    if seconds is None:
        return 0.0
    ended = [
        (t.n, t.work_seconds)
        for t in timed
        if t.outcome is Outcome.FITS and t.work_seconds and not t.confirmed
    ] + [(t.n, 2 * t.timeout_seconds) for t in timed if t.outcome is Outcome.TIMEOUT]
    largest, took = max(ended, default=(0, 0.0))
    guess = expected(largest) if largest > SMALL_SIZES[-1] else None
    if not guess:
        return seconds
    return took * max(seconds / guess, n / largest if n < largest else 0.0)


def _affordable(
    expected: Callable[[int], float | None],
    timed: Sequence[Trial],
    n: int,
    timeout_seconds: float,
) -> int:
    """The largest size below N that should be done well within the time-out; 0 if none is."""
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        within = _expected_seconds(expected, timed, middle) <= timeout_seconds / HOPELESS
        low, high = (middle, high) if within else (low, middle)
    return low
