"""Devices on other hosts of a Ray cluster: a real one, on this machine."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import astralora.devices as d
from astralora.devices import DeviceError, NotConnected, Retry, Session

ray = pytest.importorskip("ray")

# Ray's own, which are none of ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CHIP: dict[str, Any] = {"device": "mrr", "resource": "chip-a", "in_features": 6, "out_features": 4}
STORE = 80 * 1024 * 1024


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Start a head without chips, and a host with one."""
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "object_store_memory": STORE,
            "include_dashboard": False,
            "_system_config": {"health_check_failure_threshold": 3, "health_check_period_ms": 500},
        },
    )
    cluster.host = cluster.add_node(num_cpus=1, resources={"chip-a": 1}, object_store_memory=STORE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def session(cluster: Any) -> Iterator[Session]:
    session = d.open_device("remote", retry=Retry(attempts=4, wait_seconds=0.1), impairments="lab", **CHIP)
    yield session
    session.close()


def questions(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(3, 24).uniform_(0, 3, generator=generator), torch.rand(5, 6, generator=generator)


def local(impairments: str = "lab") -> Session:
    return d.open_device("mrr", in_features=6, out_features=4, impairments=impairments)


def test_answers_as_the_same_device_does_here(session: Session) -> None:
    settings, inputs = questions()
    with local() as here:
        for setting in settings:
            assert torch.equal(session.apply(setting, inputs), here.apply(setting, inputs))
        assert torch.equal(session.query_each(settings, inputs), here.query_each(settings, inputs))
        assert session.spec == here.spec
        there, known = session.usage, here.usage
    assert (there.programs, there.queries, there.vectors) == (known.programs, known.queries, known.vectors)


def test_works_in_the_precision_of_the_caller(session: Session) -> None:
    settings, inputs = questions()
    assert session.apply(settings[0].double(), inputs.double()).dtype == torch.float64


def test_errors_arrive_as_what_they_are(session: Session) -> None:
    device = session.device
    device.close()
    with pytest.raises(NotConnected, match="is closed; call open first"):
        device.query(torch.zeros(1, 6))
    device.open()
    with pytest.raises(NotConnected, match="no controls are set; call program first"):
        device.query(torch.zeros(1, 6))
    with pytest.raises(d.OutOfRange, match="must stay within"):
        device.program(torch.full((24,), 9.0))


def test_a_chip_is_nobody_elses_while_it_is_held(session: Session) -> None:
    with pytest.raises(NotConnected, match="'chip-a' is in use by another process; close it there"):
        d.make_device("remote", patience=1.0, **CHIP)


def test_a_chip_that_is_closed_is_free(cluster: Any) -> None:
    for _ in range(2):
        with d.open_device("remote", **CHIP) as session:
            session.program(questions()[0][0])


def test_a_resource_that_no_host_offers_is_named(cluster: Any) -> None:
    with pytest.raises(NotConnected, match="no host of the cluster offers 'chip-b'; run ray start --resources="):
        d.make_device("remote", **{**CHIP, "resource": "chip-b"})


def test_what_the_factory_there_refuses_is_told_here(cluster: Any) -> None:
    with pytest.raises(DeviceError, match="there are no impairments named 'awful'"):
        d.make_device("remote", impairments="awful", **CHIP)


def test_training_through_it_is_training_in_process(cluster: Any) -> None:
    import astralora as al

    def train(session: Session) -> torch.Tensor:
        layer = al.BlackBoxLinear(session, seed=0)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            inputs = torch.rand(8, 6, generator=generator)
            optimizer.zero_grad()
            (layer(inputs) - inputs[:, :4]).square().mean().backward()
            optimizer.step()
        return layer.controls.detach().clone()

    with d.open_device("remote", impairments="ideal", **CHIP) as there, local("ideal") as here:
        assert torch.equal(train(there), train(here))


def test_the_loss_of_the_node_is_survived_once_it_returns(cluster: Any, session: Session) -> None:
    settings, inputs = questions()
    session.apply(settings[0], inputs)
    cluster.remove_node(cluster.host)

    with ThreadPoolExecutor(1) as pool:
        # The session waits meanwhile.
        waiting = pool.submit(session.query, inputs)
        time.sleep(1)
        cluster.host = cluster.add_node(num_cpus=1, resources={"chip-a": 1}, object_store_memory=STORE)
        answer = waiting.result(60)
    with local() as here:
        expected = here.apply(settings[0], inputs)
    # The chip that has come back is the same, and begins anew. A vector with a known answer was passed before, so that
    # the noise differs; it exceeds 8 standard deviations of a difference less than once in 10^14 values.
    spec = session.spec
    bound = 8 * 2**0.5 * spec.noise_std + (spec.output_step or 0.0)
    assert float((answer - expected).abs().max()) <= bound
    assert session.usage.retries >= 1


def test_ray_is_imported_only_when_used() -> None:
    import subprocess
    import sys

    code = "import sys, astralora.drivers.remote; assert 'ray' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_ray_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DeviceError, match=r"need ray, which is not installed; pip install 'astralora\[ray\]'"):
        d.make_device("remote", **CHIP)


def test_the_clock_of_the_chip_and_its_reverse_port_reach_across(cluster: Any) -> None:
    options: dict[str, Any] = {"device": "matvec", "resource": "chip-a", "in_features": 3, "out_features": 2}
    with (
        d.open_device("remote", **options) as there,
        d.open_device("matvec", in_features=3, out_features=2) as here,
    ):
        controls, outputs = torch.linspace(-0.5, 0.5, 6), torch.tensor([[0.25, -0.5]])
        for session in (there, here):
            session.program(controls)
            d.clock_of(session).wait(5.0)
        assert torch.equal(there.query_adjoint(outputs), here.query_adjoint(outputs))
        assert d.clock_of(there).clock_seconds == d.clock_of(here).clock_seconds
