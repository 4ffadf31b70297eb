"""Check the behaviour of a device that does not depend on its law."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ..capabilities import (
    Clock,
    Composite,
    Flushes,
    ProgramsMany,
    Reciprocal,
    Resends,
    Snapshots,
    capability_of,
    check_declared,
)
from ..device import Device
from ..errors import DeviceError, DeviceTimeout, NotConnected, OutOfRange
from ..recovery import Retry
from ..session import Session
from ..spec import DeviceSpec
from ..usage import Usage
from .subject import NotApplicable, Subject, fail

__all__: list[str] = []


def check_spec(subject: Subject) -> None:
    """Check that the spec is a DeviceSpec, and that opening and closing the device do not change it."""
    device = subject.fresh()
    before = device.spec
    if not isinstance(before, DeviceSpec):
        fail(f"spec is a {type(before).__name__}, but must be a DeviceSpec")
    device.open()
    while_open = device.spec
    device.close()
    for when, spec in (("by opening the device", while_open), ("by closing it", device.spec)):
        if spec != before:
            fail(f"the spec changed {when}; it must be complete before open(), and must not change")


def check_lifecycle(subject: Subject) -> None:
    """Check that opening or closing twice has no effect, and that a closed device can be opened again."""
    device = subject.fresh()
    device.close()
    device.open()
    device.open()
    controls, inputs = subject.controls(device.spec), subject.inputs(device.spec, 2)
    subject.program(device, controls)
    first = subject.query(device, inputs)
    device.open()
    subject.agree(device.spec, subject.query(device, inputs), first, "opening an open device changed its answers")
    device.close()
    device.close()
    device.open()
    subject.program(device, controls)
    subject.agree(device.spec, subject.query(device, inputs), first, "reopening the device changed its answers")


def check_leaks(subject: Subject) -> None:
    """Check that closing releases the port, and all files and threads that opening has created."""
    device = subject.fresh()

    def cycle() -> None:
        device.open()
        device.close()

    for _ in range(3):
        cycle()  # resources that are created only once may stay
    before = _open_resources()
    for _ in range(5):
        cycle()
    after = _open_resources()
    for what, count in after.items():
        if count >= before[what] + 5:
            fail(f"{count - before[what]} more {what} are open after opening and closing five times")
    try:
        subject.fresh().open()
    except NotConnected as error:
        fail(f"another device cannot open the port after the first device was closed: {error}")


def check_errors(subject: Subject) -> None:
    """Check that a closed or unprogrammed device raises NotConnected with a message."""
    device = subject.fresh()
    spec = device.spec
    controls, inputs = subject.controls(spec), subject.inputs(spec, 1)
    _must_raise("program on a closed device", lambda: device.program(controls))
    _must_raise("query on a closed device", lambda: device.query(inputs))
    device.open()
    _must_raise("query before the first program", lambda: device.query(inputs))
    subject.program(device, controls)
    subject.query(device, inputs)
    device.close()
    _must_raise("query on a device that was closed again", lambda: device.query(inputs))
    device.open()
    _must_raise("query after reopening and before a program", lambda: device.query(inputs))


def check_requests(subject: Subject) -> None:
    """Check that a session refuses requests of the wrong shape, type or range, and counts nothing for them."""
    session = Session(subject.running())
    spec = session.spec
    session.open()
    subject.program(session, subject.controls(spec))
    before = session.usage
    bad = {
        "inputs that are too wide": torch.zeros(1, spec.in_features + 1),
        "whole numbers": torch.zeros(1, spec.in_features, dtype=torch.int64),
        "NaN": torch.full((1, spec.in_features), torch.nan),
    }
    if spec.input_range is not None:
        low, high = spec.input_range
        bad["inputs out of range"] = torch.full((1, spec.in_features), high + 0.1 * (high - low))
    for what, inputs in bad.items():
        try:
            session.query(inputs)
        except OutOfRange:
            continue
        fail(f"{what} were not refused")
    if session.usage != before:
        fail("refused requests were counted")


def check_shapes(subject: Subject) -> None:
    """Check that a query of any number of vectors returns one finite answer for each vector."""
    device = subject.running()
    limit = device.spec.max_batch or 64
    for batch in sorted({1, 2, min(7, limit), *([limit] if limit <= 4096 else [])}):
        if not torch.isfinite(subject.query(device, subject.inputs(device.spec, min(batch, limit)))).all():
            fail(f"a query of {batch} vectors returned NaN or infinity")


def check_dtypes(subject: Subject) -> None:
    """Check that answers have the dtype of the inputs, float32 or float64."""
    device = subject.running()
    for dtype in (torch.float32, torch.float64):
        subject.program(device, subject.controls(device.spec).to(dtype))
        answer = subject.query(device, subject.inputs(device.spec, 2).to(dtype))
        if answer.dtype != dtype:
            fail(f"the answer to {dtype} inputs has the dtype {answer.dtype}; it must have the dtype of the inputs")


def check_batch_equals_loop(subject: Subject) -> None:
    """Check that the answer to a vector does not depend on the other vectors in the same query."""
    device = subject.running()
    inputs = subject.inputs(device.spec, min(5, device.spec.max_batch or 5))
    together = subject.query(device, inputs)
    for row, vector in enumerate(inputs):
        alone = subject.query(device, vector[None])
        subject.agree(
            device.spec,
            together[row],
            alone[0],
            f"vector {row} of {len(inputs)} has a different answer if it is sent alone",
        )


def check_inputs_not_mutated(subject: Subject) -> None:
    """Check that the device changes neither its arguments nor its earlier answers, and keeps no reference to them."""
    device = subject.running()
    spec = device.spec
    controls, inputs, others = subject.controls(spec), subject.inputs(spec, 3), subject.inputs(spec, 3)
    given, sent = controls.clone(), inputs.clone()
    subject.program(device, controls)
    subject.query(device, inputs)
    # Without a session, which would copy answers that it concatenates.
    answer = device.query(inputs)
    if not torch.equal(controls, given):
        fail("program changed the tensor of controls that it was given")
    if not torch.equal(inputs, sent):
        fail("query changed the tensor of inputs that it was given")
    kept = answer.clone()
    subject.query(device, others)
    if not torch.equal(answer, kept):
        fail("an answer changed when the next query was made: it is a view of a buffer that the device reuses")
    controls.copy_(subject.controls(spec))
    subject.agree(
        spec,
        subject.query(device, sent),
        kept,
        "the caller changed its tensor of controls after program, and this changed the answers",
    )


def check_program_takes_effect(subject: Subject) -> None:
    """Check that different controls give different answers."""
    device = subject.running()
    spec, repeats = device.spec, subject.repeats(device.spec)
    inputs = subject.inputs(spec, 8)
    answers = []
    for _ in range(4):
        subject.program(device, subject.controls(spec))
        answers.append(subject.average(device, inputs, repeats))
    spread = max(float((answer - answers[0]).abs().max()) for answer in answers[1:])
    bound = subject.scatter(spec, 3 * answers[0].numel(), float(answers[0].abs().max()), repeats=repeats)
    if spread <= bound:
        fail(f"the answers at four random settings differ by only {spread:.3g}, and noise explains up to {bound:.3g}")


def check_program_sets_everything(subject: Subject) -> None:
    """Check that the answers at a setting do not depend on earlier settings."""
    device = subject.running()
    controls, inputs = subject.controls(device.spec), subject.inputs(device.spec, 4)
    subject.program(device, controls)
    first = subject.query(device, inputs)
    subject.program(device, subject.controls(device.spec))
    subject.program(device, controls)
    subject.agree(
        device.spec,
        subject.query(device, inputs),
        first,
        "the same controls give different answers after other controls were set",
    )


def check_program_idempotence(subject: Subject) -> None:
    """Check, if the spec declares it, that programming the same controls twice does not change the answers."""
    device = subject.running()
    if not device.spec.idempotent_program:
        raise NotApplicable("the spec does not declare idempotent_program")
    controls, inputs = subject.controls(device.spec), subject.inputs(device.spec, 4)
    subject.program(device, controls)
    first = subject.query(device, inputs)
    for _ in range(3):
        subject.program(device, controls)
    subject.agree(
        device.spec, subject.query(device, inputs), first, "programming the same controls again changed the answers"
    )


def check_usage(subject: Subject) -> None:
    """Check that a session counts exactly the requested operations."""
    device = subject.fresh()
    spec = device.spec
    with Session(device) as session:
        # A device with several parts counts the operations of its parts: at most the price that it states.
        parts = session.capability(Composite)
        inputs, controls = subject.inputs(spec, min(3, spec.max_batch or 3)), subject.controls(spec)
        batch = len(inputs)
        for what, act, expected in (
            ("program", lambda: subject.program(session, controls), Usage(programs=1)),
            ("query", lambda: subject.query(session, inputs), Usage(queries=1, vectors=batch)),
            ("a program that changes nothing", lambda: subject.program(session, controls), Usage()),
        ):
            before = session.usage
            act()
            spent = session.usage - before
            allowed = expected if parts is None else parts.price(expected)
            counted = (spent.programs, spent.queries, spent.vectors, spent.retries)
            most = (allowed.programs, allowed.queries, allowed.vectors, 0)
            wrong = counted != most if parts is None else any(c > limit for c, limit in zip(counted, most, strict=True))
            if wrong:
                fail(f"{what} was counted as {counted} programs, queries, vectors and retries; it must be {most}")


def check_threads(subject: Subject) -> None:
    """Check that queries from several threads receive their own answers."""
    device = subject.running()
    spec = device.spec
    batches = [subject.inputs(spec, 2) for _ in range(8)]
    expected = [subject.query(device, inputs) for inputs in batches]
    answers: list[Tensor | None] = [None] * len(batches)
    problems: list[BaseException] = []
    start = threading.Barrier(4)

    def run(first: int) -> None:
        try:
            start.wait()
            for place in (first, first + 4):
                answers[place] = device.query(batches[place])
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    subject.vectors += 2 * len(batches)
    if problems:
        fail(f"a query at the same time as others failed with {type(problems[0]).__name__}: {problems[0]}")
    for answer, alone in zip(answers, expected, strict=True):
        assert answer is not None
        if answer.shape != alone.shape:
            fail(f"a query at the same time as others returned shape {tuple(answer.shape)}")
        subject.agree(spec, answer, alone, "a query at the same time as others has a different answer than alone")


def check_recovery(subject: Subject) -> None:
    """Check that a query over a cut link raises the right error, and that a session recovers afterwards."""
    device = subject.running()
    interrupted = getattr(device, "interrupted", None)
    if interrupted is None:
        raise NotApplicable("the driver has no interrupted(), which cuts its link for a test")
    spec = device.spec
    controls, inputs = subject.controls(spec), subject.inputs(spec, 2)
    subject.program(device, controls)
    expected = subject.query(device, inputs)
    with interrupted():
        try:
            device.query(inputs)
        except (DeviceTimeout, NotConnected):
            pass
        except Exception as error:
            fail(f"a query over a cut link raised {type(error).__name__}, but must raise DeviceTimeout or NotConnected")
        else:
            fail("a query over a cut link returned an answer, but must raise DeviceTimeout or NotConnected")
    with suppress(DeviceError):
        device.close()
    with Session(device, retry=Retry(attempts=3)) as session:
        subject.program(session, controls)
        subject.agree(spec, subject.query(session, inputs), expected, "cutting the link changed the answers")


def check_capabilities(subject: Subject) -> None:
    """Check the capabilities that the device declares."""
    device = subject.running()
    spec = device.spec
    controls, inputs = subject.controls(spec), subject.inputs(spec, 3)
    for declared in getattr(device, "capabilities", ()):
        try:
            check_declared(device, declared)
        except TypeError as error:
            fail(str(error))
    for undeclared in (Clock, Flushes, Resends):
        # Recovery and drift would silently ignore the methods.
        if isinstance(device, undeclared) and capability_of(device, undeclared) is None:
            fail(f"has the methods of {undeclared.__name__}, but does not list it in capabilities")
    many, resends = capability_of(device, ProgramsMany), capability_of(device, Resends)
    snapshots, reverse = capability_of(device, Snapshots), capability_of(device, Reciprocal)
    if many is None and resends is None and snapshots is None and reverse is None:
        raise NotApplicable("the device declares no capability that is checked here")
    if many is not None:
        _check_many(subject, device, many, inputs)
    if resends is not None:
        subject.program(device, controls)
        answer = subject.query(device, inputs)
        again = resends.resend()
        if again is None:
            fail("resend returned None after a query")
        subject.agree(spec, again, answer, "resend returned a different answer than the query")
    if snapshots is not None:
        subject.program(device, controls)
        state = snapshots.state_dict()
        answer = subject.query(device, inputs)
        subject.program(device, subject.controls(spec))
        if snapshots.load_state_dict(state) is not False:
            subject.agree(spec, subject.query(device, inputs), answer, "restoring a state changed the answers")
    if reverse is not None and spec.linear:
        subject.program(device, controls)
        _check_adjoint(subject, device, reverse)


def _check_many(subject: Subject, device: Device, many: ProgramsMany, inputs: Tensor) -> None:
    spec = device.spec
    settings = torch.stack([subject.controls(spec) for _ in range(3)])
    together = many.query_each(settings, inputs)
    subject.programs += 3
    subject.vectors += 3 * len(inputs)
    expected = (3, len(inputs), spec.out_features)
    if tuple(together.shape) != expected:
        fail(f"query_each of 3 settings returned shape {tuple(together.shape)}; it must return {expected}")
    for place, setting in enumerate(settings):
        subject.program(device, setting)
        subject.agree(
            spec,
            together[place],
            subject.query(device, inputs),
            f"setting {place} of query_each has different answers if it is programmed alone",
        )


def _check_adjoint(subject: Subject, device: Device, port: Reciprocal) -> None:
    spec = device.spec
    backward = spec.backward()
    x, y = subject.inputs(spec, 1).double(), subject.inputs(backward, 1).double()
    forward = subject.average(device, x.float(), 4)
    reverse = sum((port.query_adjoint(y.float()).double() for _ in range(4)), torch.zeros_like(x)) / 4
    # <y, A x> = <A^T y, x>, up to the rounding of the converters at both ends.
    left, right = float((y * forward).sum()), float((reverse * x).sum())
    reach = max(float(y.norm()), float(x.norm()))
    power = float(forward.norm() / x.norm() + reverse.norm() / y.norm())
    allowed = reach * (
        subject.scatter(spec, 1, float(forward.abs().max()), repeats=4) * 2 + power * (spec.input_step or 0.0) * 3
    )
    if abs(left - right) > allowed:
        fail(f"the reverse port does not multiply by the transpose: <y, A x> = {left:.4g}, <A^T y, x> = {right:.4g}")


def _must_raise(what: str, act: Callable[[], object]) -> None:
    try:
        act()
    except NotConnected as error:
        if not str(error):
            fail(f"{what} raised NotConnected without a message")
        return
    except Exception as error:
        fail(f"{what} raised {type(error).__name__}, but must raise NotConnected")
    fail(f"{what} was carried out, but must raise NotConnected")


def _open_resources() -> dict[str, int]:
    files = Path("/dev/fd")
    return {
        "files": len(os.listdir(files)) if files.exists() else 0,
        "threads": threading.active_count(),
    }
