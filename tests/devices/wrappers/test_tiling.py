"""Compare a device made of chips with one matrix of the same size."""

from math import sqrt
from typing import Any

import pytest
import torch

import astralora.devices as d
from astralora.devices import Budget, BudgetExceeded, DeviceError, Session, TiledDevice
from astralora.simulators import Impairments

pytestmark = pytest.mark.processors


def chips(kind: str, count: int, n: int = 4, m: int = 3, **options: Any) -> list[d.Device]:
    return [d.make_device(kind, in_features=n, out_features=m, seed=seed, **options) for seed in range(count)]


def whole(session: Session, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Measure the transfer matrix column by column."""
    return session.query(torch.eye(session.spec.in_features, dtype=dtype)).T


@pytest.mark.parametrize("count", [9, 4, 1])
@pytest.mark.parametrize(("n", "m"), [(12, 9), (10, 7), (9, 8)])
def test_elementwise_chips_make_a_wide_elementwise_device(count: int, n: int, m: int) -> None:
    tiled = TiledDevice(chips("matvec", count), n, m)
    spec = tiled.spec
    assert (spec.coupling, spec.num_controls, spec.linear) == ("elementwise", n * m, True)
    with Session(tiled) as session:
        controls = torch.empty(n * m, dtype=torch.float64).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
        session.program(controls)
        torch.testing.assert_close(whole(session), controls.view(m, n))
        settings = torch.stack([controls, -controls, controls / 2])
        answers = session.query_each(settings, torch.eye(n, dtype=torch.float64))
        torch.testing.assert_close(answers.mT, settings.view(3, m, n))
        torch.testing.assert_close(whole(session), controls.view(m, n) / 2)


@pytest.mark.parametrize("kind", ["mzi", "monarch"])
@pytest.mark.parametrize(("n", "m"), [(12, 8), (10, 7)])
def test_other_chips_declare_which_block_their_controls_reach(kind: str, n: int, m: int) -> None:
    tiled = TiledDevice(chips(kind, 6, 4, 4), n, m)
    assert tiled.spec.coupling == "sparse"
    with Session(tiled) as session:
        controls = d.initial_controls(tiled.spec, torch.Generator().manual_seed(0)).double()
        session.program(controls)
        before = whole(session)
        assert tiled.spec.reach is not None
        start = 0
        for patch in tiled.spec.reach:
            moved = controls.clone()
            moved[start : start + patch.controls] = (moved[start : start + patch.controls] + 0.3) % 6
            start += patch.controls
            session.program(moved)
            changed = (whole(session) - before).abs() > 1e-9
            allowed = torch.zeros_like(changed)
            allowed[slice(*patch.outputs), slice(*patch.inputs)] = True
            assert bool((changed <= allowed).all())


def test_usage_is_that_of_all_chips() -> None:
    tiled = TiledDevice(chips("slm", 9), 12, 9)
    with Session(tiled) as session:
        session.program(torch.zeros(108))
        session.query(torch.zeros(5, 12))
        assert (session.usage.programs, session.usage.vectors) == (9, 45)
        session.query_each(torch.ones(2, 108), torch.zeros(5, 12))
        assert (session.usage.programs, session.usage.vectors) == (27, 135)


def test_chips_that_take_turns_are_programmed_for_every_batch() -> None:
    tiled = TiledDevice(chips("slm", 1), 12, 3)
    assert tiled.spec.program_seconds == pytest.approx(1e-3), "time of each counted program"
    with Session(tiled) as session:
        session.program(torch.zeros(36) + torch.arange(36) / 40)
        assert session.usage.programs == 0, "nothing has been sent yet"
        session.query(torch.zeros(5, 12))
        assert session.usage.programs == 3
        session.query(torch.zeros(5, 12))
        assert session.usage.programs == 5, "the last tile of a query is the first of the next one"


@pytest.mark.parametrize("count", [9, 1])
def test_refuses_operations_beyond_the_budget_of_all_chips(count: int) -> None:
    with Session(TiledDevice(chips("slm", count), 12, 9), budget=Budget(programs=17)) as session:
        session.apply(torch.arange(108) / 50, torch.zeros(5, 12))
        with pytest.raises(BudgetExceeded, match="18 programs of a budget of 17"):
            session.apply(torch.arange(108) / 40, torch.zeros(5, 12))
        assert session.usage.programs == 9


def test_partial_sums_add_the_noise_of_their_chips() -> None:
    noisy = Impairments(output_noise_fraction=0.01, output_levels=201)
    tiled = TiledDevice(chips("matvec", 4, 4, 64, impairments=noisy), 16, 64)
    one = chips("matvec", 1, 4, 64, impairments=noisy)[0].spec
    assert one.output_step is not None
    assert tiled.spec.output_step == pytest.approx(one.output_step)
    with Session(tiled) as session:
        controls = torch.zeros(1024)
        session.program(controls)
        error = session.query(torch.zeros(400, 16))
    # Noise and rounding of four chips; the output step of the whole accounts for one of the four.
    declared = sqrt(tiled.spec.noise_std**2 + one.output_step**2 / 12)
    assert float(error.std()) == pytest.approx(declared, rel=5 / sqrt(2 * error.numel()))


def test_a_layer_on_tiles_trains_by_two_programs_a_chip() -> None:
    import astralora as al

    device = d.open_device("tiled", in_features=24, out_features=20, chip="mrr", tile=8, impairments="lab")
    layer = al.BlackBoxLinear(device, every=1)
    x = torch.empty(10, 24).uniform_(-1, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = device.usage
    layer(x).square().sum().backward()
    assert (device.usage - before).programs == 9, "the chips still hold the controls of the startup"
    assert x.grad is not None
    assert layer.controls.grad is not None


def test_a_mesh_of_tiles_is_measured_tile_by_tile_at_once() -> None:
    from astralora.estimators import Coloured, Exact

    device = d.open_device("tiled", in_features=8, out_features=8, chip="mzi", tile=4)
    single = d.open_device("mzi", in_features=4, out_features=4)
    controls = d.initial_controls(device.spec, torch.Generator().manual_seed(0)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.empty(6, 8, dtype=torch.float64).uniform_(-1, 1, generator=generator)
    grad = torch.randn(6, 8, dtype=torch.float64, generator=generator)
    outputs = device.apply(controls, x)
    estimate = Coloured(step=1e-5).estimate(device, controls, x, outputs, grad)
    expected = [
        Exact().estimate(single, part, x[:, 4 * (tile % 2) :][:, :4], outputs, grad[:, 4 * (tile // 2) :][:, :4])
        for tile, part in enumerate(controls.split(12))
    ]
    torch.testing.assert_close(estimate, torch.cat(expected), rtol=1e-3, atol=1e-3)


def test_saves_and_restores_every_chip() -> None:
    first, second = (TiledDevice(chips("slm", 4, impairments="lab"), 8, 6) for _ in range(2))
    controls, x = torch.linspace(0, 6, 48), torch.ones(3, 8)
    with Session(first) as one, Session(second) as other:
        one.apply(controls, x)
        assert other.load_state_dict(one.state_dict())
        assert torch.equal(one.query(x), other.query(x))


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (lambda: TiledDevice([], 4, 4), "needs at least one chip"),
        (lambda: TiledDevice([*chips("slm", 1), *chips("mrr", 1)], 8, 3), "'mrr' and 'slm' have different specs"),
        (
            lambda: TiledDevice(chips("slm", 3, input_range=(0.25, 0.75)), 10, 3),
            "10 inputs leave 2 inputs of the last chips unused, .* 'slm' does not allow 0",
        ),
    ],
)
def test_explains_why_chips_cannot_be_tiled(made: Any, complaint: str) -> None:
    with pytest.raises(DeviceError, match=complaint):
        made()


def test_a_nonlinear_chip_cannot_be_tiled(matrix_device: Any) -> None:
    with pytest.raises(DeviceError, match="'bench' is not linear"):
        TiledDevice([matrix_device(linear=False)], 8, 3)


def test_opens_all_chips_or_none(matrix_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = matrix_device(), matrix_device()

    def fail() -> None:
        raise DeviceError("no answer", device="bench", operation="open")

    monkeypatch.setattr(bad, "_open", fail)
    with pytest.raises(DeviceError, match="no answer"):
        TiledDevice([good, bad], 8, 3).open()
    assert good.log == ["open", "close"]


@pytest.mark.parametrize("count", [9, 2])
def test_threads_do_not_change_answers_or_usage(count: int) -> None:
    answers, usages = [], []
    for threads in (False, True):
        with Session(TiledDevice(chips("slm", count, impairments="lab"), 12, 9, threads=threads)) as session:
            controls = torch.linspace(0, 6, 108)
            found = [
                session.apply(controls, torch.ones(5, 12)),
                *session.query_each(controls.expand(2, -1), torch.ones(5, 12)),
            ]
            answers.append(torch.stack(found))
            usages.append((session.usage.programs, session.usage.vectors))
    assert torch.equal(*answers)
    assert usages[0] == usages[1]


def test_chips_with_threads_work_at_the_same_time(matrix_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    meeting = threading.Barrier(3, timeout=5)
    devices = [matrix_device() for _ in range(3)]
    for device in devices:
        monkeypatch.setattr(device, "_query", lambda inputs: (meeting.wait(), inputs[:, :3])[1])
    with Session(TiledDevice(devices, 12, 3, threads=True)) as session:
        session.apply(torch.zeros(36), torch.ones(2, 12))  # in turn, they would break the barrier


def test_chips_side_by_side_take_the_time_of_one() -> None:
    for count, seconds in ((4, 1e-3), (2, 2e-3), (1, 4e-3)):
        with Session(TiledDevice(chips("slm", count), 8, 6)) as session:
            session.apply(torch.arange(48) / 10, torch.zeros(1, 8))
            programs = session.usage.hardware_seconds(session.spec.model_copy(update={"vector_seconds": 0.0}))
            assert programs == pytest.approx(seconds)


def test_peaks_show_a_saturated_chip_behind_a_small_sum() -> None:
    limited = Impairments(output_levels=201)
    with Session(TiledDevice(chips("matvec", 2, 4, 3, impairments=limited), 8, 3)) as session:
        # The first chip reaches 4 on a detector that ends at 2, and the second one subtracts as much.
        session.program(torch.cat([torch.ones(3, 4), -torch.ones(3, 4)], dim=1).flatten())
        assert float(session.query(torch.ones(1, 8)).abs().max()) == 0
        report = session.capability(d.ReportsPeaks)
        assert report is not None
        assert report.peaks.tolist() == pytest.approx([1], abs=0.02)
        session.query(torch.full((1, 8), 0.1))
        assert report.peaks.tolist() == pytest.approx([0.2], abs=0.02)


def test_probes_keep_every_chip_of_a_tiled_device_within_its_range() -> None:
    from astralora.probing.probes import TransferProbe

    session = d.open_device("tiled", in_features=64, out_features=16, chip="mrr", tile=16, impairments="lab")
    controls = torch.empty(1024).uniform_(0.1, 3, generator=torch.Generator().manual_seed(0))
    session.program(controls)
    probe = TransferProbe(session.spec)
    matrix = probe.matrix(probe.ask(session))
    tiled: Any = session.device
    settings = [part.flatten() for part in controls.view(16, 64).split(16, dim=1)]
    parts = [s.device.transfer(w, torch.eye(16)).T for s, w in zip(tiled.sessions, settings, strict=True)]
    true = torch.cat(parts, dim=1)
    assert float((matrix - true).norm() / true.norm()) < 0.05


def test_chips_that_take_turns_continue_exactly_from_a_saved_state() -> None:
    for queries in (1, 2):
        first, second = (TiledDevice(chips("slm", 1, impairments="lab"), 8, 6) for _ in range(2))
        with Session(first) as one, Session(second) as other:
            one.program(torch.linspace(0, 6, 48))
            for _ in range(queries):
                one.query(torch.ones(3, 8))
            other.load_state_dict(one.state_dict())
            assert torch.equal(one.query(torch.ones(3, 8)), other.query(torch.ones(3, 8)))


def test_hardware_chips_report_that_they_cannot_be_restored(matrix_device: Any) -> None:
    first, second = (TiledDevice([matrix_device(), matrix_device()], 8, 3) for _ in range(2))
    with Session(first) as one, Session(second) as other:
        one.apply(torch.zeros(24), torch.ones(2, 8))
        other.apply(torch.ones(24), torch.ones(2, 8))
        assert not other.load_state_dict(one.state_dict())
        assert other.usage.programs == 4, "the usage of both"
        with pytest.raises(d.NotConnected):
            other.query(torch.ones(2, 8))


def test_one_chip_given_twice_takes_turns(matrix_device: Any) -> None:
    chip = matrix_device()
    with Session(TiledDevice([chip] * 4, 8, 6)) as session:
        controls = torch.linspace(-1, 1, 48, dtype=torch.float64)
        session.program(controls)
        torch.testing.assert_close(whole(session), controls.view(6, 8))


@pytest.mark.parametrize(
    ("kind", "size", "colours"), [("output", 31, 4), ("output", 17, 4), ("monarch", 31, 2), ("monarch", 20, 2)]
)
def test_partly_used_tiles_need_no_more_colours(kind: str, size: int, colours: int, matrix_device: Any) -> None:
    from astralora.estimators.colouring import Colouring

    if kind == "monarch":
        tiled = TiledDevice(chips("monarch", 4, 16, 16), size, 32)
    else:
        spec = {"num_controls": 64, "coupling": "output"}
        tiled = TiledDevice([matrix_device(16, 16, **spec) for _ in range(4)], 32, size)
    assert Colouring(tiled.spec).count == colours


@pytest.mark.parametrize("options", [{"tile": 0}, {"chips": 0}])
def test_a_tiling_without_tiles_or_chips_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(DeviceError, match="must be at least 1, not 0"):
        d.make_device("tiled", in_features=8, out_features=8, **options)


def test_chips_whose_factory_takes_no_seed_can_be_tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astralora.devices.registry._registered", {})

    def lab_chip(in_features: int, out_features: int) -> d.Device:
        return d.make_device("matvec", in_features=in_features, out_features=out_features)

    d.register_device("lab-chip", lab_chip)
    tiled = d.make_device("tiled", in_features=4, out_features=4, chip="lab-chip", tile=2)
    with Session(tiled) as session:
        assert session.apply(torch.ones(16), torch.ones(1, 4)).tolist() == [[4.0, 4.0, 4.0, 4.0]]
