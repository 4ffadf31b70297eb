"""Check that every answer belongs to its own vector and to the newest controls.

A driver that duplicates, swaps or shifts rows, or that returns an earlier answer, returns numbers that look right. The
checks therefore use *probes*: vectors whose answers the device has shown to differ by more than twice the allowed
scatter, so that an answer which belongs to another probe is always found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf

import torch
from torch import Tensor

from ..controls import initial_controls
from ..device import Device
from ..spec import DeviceSpec
from .subject import NotApplicable, Subject, fail

__all__: list[str] = []

# Number of queries or programs after which an answer is up to date, if it is late by no more than this number.
_DEPTH = 3
# Largest number of probes, and number of vectors among which they are sought at each of several settings.
_PROBES = 8
_FEW = 4
_CANDIDATES = 16
_SETTINGS = 6
# Numbers of vectors in a query; the last one only if answers need not be averaged.
_BATCHES = (2, 3, 4, 5, 8, 17, 64, 256)
_LARGEST_AVERAGED = 64
# Upper limit of the number of rows that one check compares.
_COMPARED_ROWS = 10_000


def check_fresh_answers(subject: Subject) -> None:
    """Check that an answer belongs to the newest vector and the newest controls, not to earlier ones."""
    device = subject.running()
    probes = _find_probes(subject, device)
    _check_vectors(subject, device, probes)
    _check_controls(subject, device, probes)


def check_row_order(subject: Subject) -> None:
    """Check that row i of an answer belongs to vector i, in queries of 2 to 256 vectors."""
    device = subject.running()
    spec = device.spec
    if spec.max_batch == 1:
        raise NotApplicable("the device accepts only one vector in a query")
    probes = _find_probes(subject, device)
    largest = min(spec.max_batch or inf, _BATCHES[-1] if probes.repeats == 1 else _LARGEST_AVERAGED)
    for size in sorted({*(size for size in _BATCHES if size <= largest), int(largest)}):
        codes = _arrange(len(probes.vectors), size)
        totals = torch.zeros(len(codes), size, spec.out_features, dtype=torch.float64)
        subject.query(device, probes.vectors[codes[-1]])
        for _ in range(probes.repeats):
            # Different arrangements follow each other, so that answers to an earlier query are found.
            for place, code in enumerate(codes):
                totals[place] += subject.query(device, probes.vectors[code])
        found = torch.stack([probes.match(answers) for answers in totals / probes.repeats])
        if not torch.equal(found, codes):
            fail(_describe_rows(codes, found))


# -- probes ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Probes:
    """Hold vectors whose answers can be told apart.

    Attributes:
        controls: setting of the device, (num_controls,).
        vectors: vectors, (probes, in_features).
        answers: mean answers, (probes, out_features).
        repeats: number of queries to average for each comparison.
        bound: largest allowed scatter of such a mean; all answers differ by more than twice this number.
    """

    controls: Tensor
    vectors: Tensor
    answers: Tensor
    repeats: int
    bound: float

    def match(self, answers: Tensor) -> Tensor:
        """Return the number of the probe that each answer belongs to, -1 for none: (batch, outputs) -> (batch,)."""
        distances, nearest = _distances(answers.double(), self.answers).min(1)
        return torch.where(distances <= self.bound, nearest, -1)


def _find_probes(subject: Subject, device: Device) -> _Probes:
    """Return vectors whose answers differ at some setting of the device, which keeps this setting.

    Raises:
        NotApplicable: noise and rounding hide all differences of the answers.
    """
    spec = device.spec
    controls = initial_controls(spec, subject.generator)
    widest = 0.0
    for _ in range(_SETTINGS):
        _settle(subject, device, controls)
        candidates = _candidates(subject, spec)
        answers = torch.stack([_settled_answer(subject, device, vector) for vector in candidates])
        found = []
        for repeats in subject.averages(spec):
            bound = _bound(subject, spec, answers, repeats)
            kept = _keep_apart(answers, 2 * bound)
            found.append(_Probes(controls, candidates[kept], answers[kept], repeats, bound))
        # A larger average costs more than it saves by more probes, unless there are very few of them.
        for least in (_FEW, 2):
            for probes in found:
                if len(probes.vectors) >= least:
                    return probes
        widest = max(widest, float(_distances(answers, answers).max()))
        controls = subject.controls(spec)
    raise NotApplicable(
        f"the answers to {_CANDIDATES} vectors at each of {_SETTINGS} settings differ by at most {widest:.3g}, "
        f"but only more than {2 * bound:.3g} can be told apart from noise and rounding"
    )


def _candidates(subject: Subject, spec: DeviceSpec) -> Tensor:
    """Return random vectors; half of them have values at the ends of the range only, which gives strong signals."""
    low, high = spec.input_range or (-1.0, 1.0)
    signs = torch.randint(0, 2, (_CANDIDATES // 2, spec.in_features), generator=subject.generator)
    return torch.cat([low + (high - low) * signs, subject.inputs(spec, _CANDIDATES - len(signs))])


def _strong_controls(subject: Subject, spec: DeviceSpec) -> Tensor:
    """Return random controls at the ends of their range, which most often have the strongest effect."""
    low, high = spec.control_range or (-1.0, 1.0)
    return low + (high - low) * torch.randint(0, 2, (spec.num_controls,), generator=subject.generator)


def _settle(subject: Subject, device: Device, controls: Tensor) -> None:
    # Programmed again, so that a device whose controls are late by a few programs has them too.
    for _ in range(_DEPTH if device.spec.idempotent_program else 1):
        subject.program(device, controls)


def _settled_answer(subject: Subject, device: Device, vector: Tensor) -> Tensor:
    """Return the mean answer to a vector after it was passed often enough that earlier vectors have no effect."""
    for _ in range(_DEPTH):
        subject.query(device, vector[None])
    return subject.average(device, vector[None], subject.repeats(device.spec))[0]


def _bound(subject: Subject, spec: DeviceSpec, answers: Tensor, repeats: int) -> float:
    compared = _COMPARED_ROWS * spec.out_features
    return subject.scatter(spec, compared, float(answers.abs().max()), repeats=(repeats, subject.repeats(spec)))


def _keep_apart(answers: Tensor, distance: float) -> list[int]:
    """Return the numbers of answers that all differ by more than a distance, at most as many as there are probes."""
    kept: list[int] = []
    for number, answer in enumerate(answers):
        if len(kept) < _PROBES and (not kept or float(_distances(answer[None], answers[kept]).min()) > distance):
            kept.append(number)
    return kept


def _distances(answers: Tensor, others: Tensor) -> Tensor:
    """Return the largest difference of two answers in one output, (answers, others)."""
    return (answers[:, None] - others).abs().amax(2)


# -- earlier answers ---------------------------------------------------------------------------------


def _check_vectors(subject: Subject, device: Device, probes: _Probes) -> None:
    """Check the answers to alternating vectors, and that answers do not change afterwards."""
    # Each probe twice in a row, so that the sequence differs from itself at any delay of up to three queries.
    order = torch.arange(len(probes.vectors)).repeat_interleave(2)
    answers, copies = [], []
    for _ in range(1 + probes.repeats):
        for vector in probes.vectors[order]:
            answers.append(subject.ask(device, vector[None]))
            copies.append(answers[-1].clone())
    if not all(map(torch.equal, answers, copies)):
        fail("an answer changed when the next query was made: it is a view of a buffer that the device reuses")
    # The first round is left out, because other vectors were passed before it.
    means = torch.cat(copies[len(order) :]).double().view(probes.repeats, len(order), -1).mean(0)
    found = probes.match(means)
    for late in range(1, _DEPTH + 1):
        if torch.equal(found, order.roll(late)):
            before = "before it" if late == 1 else f"{late} queries before it"
            fail(f"a query returns the answer to the query {before}: the answer is stale")
    if not torch.equal(found, order):
        fail("the answer to a vector depends on the vectors of earlier queries")


def _check_controls(subject: Subject, device: Device, probes: _Probes) -> None:
    """Check the answers to two vectors while two settings alternate."""
    pairs = _find_pairs(subject, device, probes)
    totals = torch.zeros_like(pairs.answers)
    _settle(subject, device, pairs.settings[0])
    subject.query(device, pairs.vectors[1:])
    for _ in range(pairs.repeats):
        for setting in (1, 0):
            subject.program(device, pairs.settings[setting])
            for vector in (0, 1):
                totals[2 * setting + vector] += subject.query(device, pairs.vectors[vector, None])[0]
    for expected in (2, 3, 0, 1):
        answer = pairs.match(totals[expected] / pairs.repeats)
        if answer == expected:
            continue
        which = "second" if expected % 2 else "first"
        if answer < 0:
            reason = "depends on the operations before the program"
        elif answer % 2 == expected % 2:
            reason = "is the answer at the previous controls: it is stale"
        else:
            reason = "is the answer to an earlier query: it is stale"
        fail(f"the {which} answer after a program {reason}")


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Hold two settings and two vectors whose four answers can be told apart.

    Attributes:
        settings: two settings.
        vectors: two vectors, (2, in_features).
        answers: mean answers to both vectors at the first setting, then at the second, (4, out_features).
        repeats: number of queries to average for each comparison.
        bound: largest allowed scatter of such a mean.
    """

    settings: tuple[Tensor, Tensor]
    vectors: Tensor
    answers: Tensor
    repeats: int
    bound: float

    def match(self, answer: Tensor) -> int:
        """Return the number of the answer that an answer, (out_features,), agrees with; -1 for none."""
        distances, nearest = _distances(answer[None], self.answers).min(1)
        return int(nearest) if float(distances) <= self.bound else -1


def _find_pairs(subject: Subject, device: Device, probes: _Probes) -> _Pairs:
    """Return two settings and two probes whose four answers differ.

    Raises:
        NotApplicable: noise and rounding hide the differences between the settings.
    """
    spec = device.spec
    widest = 0.0
    for number in range(_SETTINGS):
        controls = subject.controls(spec) if number % 2 == 0 else _strong_controls(subject, spec)
        _settle(subject, device, controls)
        answers = torch.stack([_settled_answer(subject, device, vector) for vector in probes.vectors])
        apart, chosen = max(
            (_least_distance(torch.cat([probes.answers[[*pair]], answers[[*pair]]])), pair)
            for pair in combinations(range(len(answers)), 2)
        )
        widest = max(widest, apart)
        four = torch.cat([probes.answers[[*chosen]], answers[[*chosen]]])
        for repeats in subject.averages(spec):
            bound = _bound(subject, spec, four, repeats)
            if apart > 2 * bound:
                return _Pairs((probes.controls, controls), probes.vectors[[*chosen]], four, repeats, bound)
    raise NotApplicable(
        f"the answers at {1 + _SETTINGS} settings differ by at most {widest:.3g}, "
        f"but only more than {2 * bound:.3g} can be told apart from noise and rounding"
    )


def _least_distance(answers: Tensor) -> float:
    distances = _distances(answers, answers)
    return float(distances[~torch.eye(len(answers), dtype=torch.bool)].min())


# -- rows --------------------------------------------------------------------------------------------


def _arrange(probes: int, size: int) -> Tensor:
    """Return arrangements of probes in a query of ``size`` vectors: numbers of probes, (arrangements, size).

    In at least one arrangement, any two rows have different probes: the first arrangements are the digits of the number
    of the row. There are at least two arrangements, and all of them are different.
    """
    rows = torch.arange(size)
    digits: list[Tensor] = []
    while not digits or probes ** len(digits) < size:
        digits.append(rows // probes ** len(digits) % probes)
    return torch.stack(digits if len(digits) > 1 else [*digits, (rows + 1) % probes])


def _describe_rows(codes: Tensor, found: Tensor) -> str:
    """Return a sentence about rows that hold other answers than their own.

    Args:
        codes: numbers of the probes that were passed in each arrangement, (arrangements, size).
        found: numbers of the probes whose answers were returned, -1 for none, (arrangements, size).
    """
    size = codes.shape[1]
    if torch.equal(found, codes.roll(1, 0)):
        return f"a query of {size} vectors returns the answers to the query before it: the answers are stale"
    # The vector whose answers each row holds in all arrangements; None if there is no such vector.
    agrees = (found[:, :, None] == codes[:, None]).all(0)
    sources = [int(row.nonzero()[0, 0]) if row.any() else None for row in agrees]
    wrong = [row for row, source in enumerate(sources) if source != row]
    row, source = wrong[0], sources[wrong[0]]
    if sorted(sources, key=str) == sorted(range(size), key=str):
        return _describe_order(sources, wrong)
    for shift in (1, -1):
        if size > 2 and _is_shifted(sources, shift):
            return (
                f"in a query of {size} vectors, the answers are shifted by one row: row {max(shift, 0)} holds the "
                f"answer to vector {max(-shift, 0)}, and one row does not belong to this query"
            )
    if source is None:
        return f"row {row} of a query of {size} vectors has a different answer than if its vector is passed alone"
    return (
        f"row {row} of a query of {size} vectors holds the answer to vector {source}"
        + (f", like row {source}" if sources[source] == source else "")
        + (f": the answer to vector {row} is missing" if row not in sources else "")
    )


def _describe_order(sources: Sequence[int | None], wrong: Sequence[int]) -> str:
    """Return a sentence about rows that hold all answers in another order."""
    size, rows = len(sources), range(len(sources))
    start = f"in a query of {size} vectors,"
    if len(wrong) == 2:
        return f"{start} the answers to the vectors {wrong[0]} and {wrong[1]} are swapped"
    if list(sources) == list(reversed(rows)):
        return f"{start} the answers are in reverse order"
    for shift in rows[1:]:
        if all(source == (row + shift) % size for row, source in enumerate(sources)):
            return f"{start} the answers are rotated: row 0 holds the answer to vector {shift}"
    return f"{start} the answers are in another order: row {wrong[0]} holds the answer to vector {sources[wrong[0]]}"


def _is_shifted(sources: Sequence[int | None], shift: int) -> bool:
    """Return whether each row holds the answer to the vector ``shift`` rows before, as far as there is one."""
    size = len(sources)
    return all(source == row - shift for row, source in enumerate(sources) if 0 <= row - shift < size)
