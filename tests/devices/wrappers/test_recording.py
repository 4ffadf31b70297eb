"""Test recordings of devices, and their replay."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import astralora.devices as d
from astralora.devices import (
    DeviceError,
    DeviceTimeout,
    FaultPlan,
    FaultyDevice,
    RecordingDevice,
    ReplayDevice,
    Retry,
    Session,
)

pytestmark = pytest.mark.processors

AT_ONCE = Retry(attempts=6, wait_seconds=0)


def chip(seed: int = 0) -> d.Device:
    return d.make_device("slm", in_features=4, out_features=3, impairments="lab", seed=seed)


def work(session: Session, seed: int = 0) -> list[torch.Tensor]:
    """Make programs and queries like those of a training run."""
    generator = torch.Generator().manual_seed(seed)
    answers = []
    for _ in range(5):
        controls = torch.empty(12).uniform_(0, 6, generator=generator)
        batches = [torch.empty(3, 4).uniform_(-1, 1, generator=generator) for _ in range(2)]
        answers += [session.apply(controls, inputs) for inputs in batches]
    return answers


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, list[torch.Tensor]]:
    with Session(RecordingDevice(chip(), tmp_path / "run.safetensors")) as session:
        answers = work(session)
    return tmp_path / "run.safetensors", answers


def test_replays_to_the_bit(recorded: tuple[Path, list[torch.Tensor]]) -> None:
    path, answers = recorded
    replay = ReplayDevice(path)
    with Session(replay) as session:
        assert all(map(torch.equal, work(session), answers))
    assert replay.remaining == 0
    assert replay.spec == chip().spec


def test_recording_does_not_change_the_answers(recorded: tuple[Path, list[torch.Tensor]]) -> None:
    with Session(chip()) as session:
        assert all(map(torch.equal, work(session), recorded[1]))


def test_names_the_first_divergence(recorded: tuple[Path, list[torch.Tensor]]) -> None:
    with Session(ReplayDevice(recorded[0])) as session:
        generator = torch.Generator().manual_seed(0)
        controls = torch.empty(12).uniform_(0, 6, generator=generator)
        inputs = torch.empty(3, 4).uniform_(-1, 1, generator=generator)
        session.apply(controls, inputs)
        session.query(torch.empty(3, 4).uniform_(-1, 1, generator=generator))
        controls = torch.empty(12).uniform_(0, 6, generator=generator)
        controls[7] += 0.125
        with pytest.raises(
            DeviceError, match=r"operation 3 of 15: controls differ .* in 1 of 12 values, first at \[7\]"
        ):
            session.program(controls)


def test_names_another_operation_and_another_shape(recorded: tuple[Path, list[torch.Tensor]]) -> None:
    replay = ReplayDevice(recorded[0])
    replay.open()
    generator = torch.Generator().manual_seed(0)
    controls = torch.empty(12).uniform_(0, 6, generator=generator)
    replay.program(controls)
    with pytest.raises(
        DeviceError,
        match=r"recorded inputs have shape \(3, 4\) and torch.float32, but the given ones have shape \(2, 4\)",
    ):
        replay.query(torch.zeros(2, 4))
    with pytest.raises(DeviceError, match="operation 1 of 15 is query in the recording, but is program now"):
        replay.program(controls)


def test_reports_the_end_of_the_recording(recorded: tuple[Path, list[torch.Tensor]]) -> None:
    with Session(ReplayDevice(recorded[0])) as session:
        work(session)
        with pytest.raises(DeviceError, match="the recording ends after 15 operations"):
            session.query(torch.zeros(1, 4))


def test_a_divergence_is_not_repeated(recorded: tuple[Path, list[torch.Tensor]]) -> None:
    with Session(ReplayDevice(recorded[0]), retry=AT_ONCE) as session:
        with pytest.raises(DeviceError):
            session.program(torch.zeros(12))
        assert session.usage.retries == 0


def test_by_content_the_order_is_free(recorded: tuple[Path, list[torch.Tensor]]) -> None:
    path, answers = recorded
    generator = torch.Generator().manual_seed(0)
    asked = []
    for _ in range(5):
        controls = torch.empty(12).uniform_(0, 6, generator=generator)
        asked += [(controls, torch.empty(3, 4).uniform_(-1, 1, generator=generator)) for _ in range(2)]
    with Session(ReplayDevice(path, match="content")) as session:
        for place in (7, 0, 3, 0):
            assert torch.equal(session.apply(*asked[place]), answers[place])
        with pytest.raises(DeviceError, match="contains no answer to these controls and inputs"):
            session.apply(asked[0][0], torch.zeros(1, 4))


def test_by_content_repeated_queries_receive_their_answers_in_turn(tmp_path: Path) -> None:
    controls, inputs = torch.full((12,), 1.0), torch.full((1, 4), 0.5)
    with Session(RecordingDevice(chip(), tmp_path / "run")) as session:
        session.program(controls)
        answers = [session.query(inputs) for _ in range(3)]
    with Session(ReplayDevice(tmp_path / "run", match="content")) as session:
        session.program(controls)
        for answer in (*answers, answers[0]):
            assert torch.equal(session.query(inputs), answer)


@pytest.mark.parametrize("linked", [False, True], ids=["in process", "over a link"])
def test_faults_are_recorded_and_replayed(tmp_path: Path, matrix_device: Any, linked: bool) -> None:
    device = matrix_device(idempotent_program=True, control_range=None) if linked else chip()
    faulty = FaultyDevice(device, FaultPlan(timeout=0.1, nan=0.1, disconnect=0.1, seed=2))
    with Session(RecordingDevice(faulty, tmp_path / "run"), retry=AT_ONCE) as session:
        answers = work(session)
        usage = session.usage
    assert usage.retries == sum(faulty.injected.values()) > 0
    with Session(ReplayDevice(tmp_path / "run"), retry=AT_ONCE) as session:
        assert all(map(torch.equal, work(session), answers))
        again = session.usage
    assert (again.programs, again.vectors, again.retries) == (usage.programs, usage.vectors, usage.retries)


def test_a_recorded_error_has_its_class(tmp_path: Path) -> None:
    device = RecordingDevice(FaultyDevice(chip(), FaultPlan(at={1: "timeout"})), tmp_path / "run")
    with pytest.raises(DeviceTimeout), Session(device, retry=Retry(attempts=1)) as session:
        session.apply(torch.ones(12), torch.zeros(1, 4))
    with (
        pytest.raises(DeviceTimeout, match="as recorded"),
        Session(ReplayDevice(tmp_path / "run"), retry=Retry(attempts=1)) as session,
    ):
        session.apply(torch.ones(12), torch.zeros(1, 4))


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    with Session(RecordingDevice(chip(), tmp_path / "run")) as session:
        session.program(torch.ones(12))
        for _ in range(50):
            session.query(torch.full((1, 4), 0.5))
    size = (tmp_path / "run").stat().st_size
    assert size < 50 * 200 + 3000, "fifty operations, one input, and answers of twelve bytes"


def test_later_changes_of_a_tensor_are_not_recorded(tmp_path: Path) -> None:
    inputs = torch.full((1, 4), 0.5)
    with Session(RecordingDevice(chip(), tmp_path / "run")) as session:
        session.program(torch.ones(12))
        answer = session.query(inputs)
        inputs.zero_()
    with Session(ReplayDevice(tmp_path / "run")) as session:
        session.program(torch.ones(12))
        assert torch.equal(session.query(torch.full((1, 4), 0.5)), answer)


def test_a_crash_while_writing_leaves_the_earlier_file(
    recorded: tuple[Path, list[torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, answers = recorded

    def crash(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", crash)
    with (
        pytest.raises(DeviceError, match="cannot be written: No space left"),
        Session(RecordingDevice(chip(seed=9), path)) as session,
    ):
        work(session)
    monkeypatch.undo()
    with Session(ReplayDevice(path)) as session:
        assert all(map(torch.equal, work(session), answers))


@pytest.mark.parametrize("content", [b"", b"not a recording", b"\xff" * 64])
def test_an_invalid_file_is_described_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run").write_bytes(content)
    with pytest.raises(DeviceError, match=r"the recording .*run is (empty|not a safetensors file)") as error:
        ReplayDevice(tmp_path / "run")
    assert "\n" not in str(error.value)
    with pytest.raises(DeviceError, match="there is no recording"):
        ReplayDevice(tmp_path / "nothing")


@pytest.mark.parametrize(
    "index",
    ['{"format": 2}', '{"format": 1}', '{"format": 1, "operations": [{"operation": "query"}], "spec": {}}', "[]"],
)
def test_an_invalid_index_is_refused(tmp_path: Path, index: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "run", {"astralora": index})
    with pytest.raises(DeviceError, match=r"run (is|has format) "):
        ReplayDevice(tmp_path / "run")


def test_offered_options_are_passed_to_devices_that_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bench.toml").write_text('device = "matvec"\n[options]\nin_features = 4\nout_features = 3\n')
    offered = {"impairments": "lab", "seed": 3}
    options = {"device": str(tmp_path / "bench.toml"), "path": str(tmp_path / "run")}
    device = d.offer_device("record", offered, **options)
    assert device.spec == d.make_device("matvec", in_features=4, out_features=3, **offered).spec
    fixed = chip()
    monkeypatch.setattr("astralora.devices.registry._registered", {"fixed": lambda: fixed})
    assert d.offer_device("record", offered, device="fixed", path=options["path"]).spec == fixed.spec
    with pytest.raises(DeviceError, match="colour"):
        d.make_device("record", device="fixed", path=options["path"], colour="red")


def test_recording_and_replay_are_registered(tmp_path: Path) -> None:
    path = str(tmp_path / "run")
    with d.open_device("record", device="matvec", path=path, in_features=4, out_features=3) as session:
        answer = session.apply(torch.full((12,), 0.5), torch.ones(1, 4))
    with d.open_device("replay", path=path) as session:
        assert torch.equal(session.apply(torch.full((12,), 0.5), torch.ones(1, 4)), answer)
