"""Open a device, use it from a second process, and go on: python -m tests.fork_program WAY KIND ADDRESS..."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from astralora.devices import DeviceError, DeviceTimeout, NotConnected, ProtocolError, Session

from .chip_driver import drivers_of, open_chips

REMEDY = "open the device in the process that uses it"


def attempts(session: Session) -> dict[str, Callable[[], object]]:
    """Return all operations that a child may try, by name."""
    (driver, *_) = drivers_of(session.device)
    raw: Any = driver
    inputs, controls = torch.ones(1, session.spec.in_features), torch.zeros(session.spec.num_controls)
    vectors, setting = torch.ones(1, 2), torch.zeros(4)
    return {
        "query": lambda: session.query(inputs),
        "program": lambda: session.program(controls),
        "apply": lambda: session.apply(controls, inputs),
        "query_each": lambda: session.query_each(controls.unsqueeze(0), inputs),
        "open": session.open,
        "enter": session.__enter__,
        "usage": lambda: session.usage,
        "holds": lambda: session.holds(controls),
        "state": session.state_dict,
        "transaction": lambda: session.transaction().__enter__(),
        "raw query": lambda: raw.query(vectors),
        "raw program": lambda: raw.program(setting),
        "raw open": raw.open,
        "flush": raw.flush,
    }


def misuse(session: Session, parent: int) -> list[str]:
    """Try all operations in a child; return what was not refused as it should be."""
    wrong = []
    for name, attempt in attempts(session).items():
        try:
            attempt()
            wrong.append(f"{name} was carried out")
        except (NotConnected, DeviceTimeout, ProtocolError) as error:
            wrong.append(f"{name}: {type(error).__name__} is repeated")
        except DeviceError as error:
            parts = [f"process {parent} ", f"process {os.getpid()} ", REMEDY]
            wrong += [f"{name}: {error}"] if not all(part in str(error) for part in parts) else []
    for driver in drivers_of(session.device):
        driver.close()
    session.device.close()
    session.close()
    session.__exit__(None, None, None)
    return wrong


def by_fork(session: Session) -> list[str]:
    """Fork while another thread uses the session, and end the children in three ways."""
    wrong: list[str] = []
    parent, taken, ended = os.getpid(), threading.Event(), threading.Event()

    def hold() -> None:
        with session.transaction():
            taken.set()
            ended.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    for end in ("normally", "by an error", "by leaving the with block"):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, json.dumps(misuse(session, parent)).encode())
            os.close(write)
            if end == "by leaving the with block":
                session.__exit__(None, None, None)
            if end == "by an error":
                raise ValueError
            sys.exit()
        os.close(write)
        with open(read) as pipe:
            wrong += json.loads(pipe.read() or '["the child said nothing"]')
        os.waitpid(child, 0)
    ended.set()
    holder.join()
    return wrong


def by_multiprocessing(session: Session) -> list[str]:
    """Give the session to a process that multiprocessing forks."""
    context: Any = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=lambda: answers.put(misuse(session, os.getppid())))
    process.start()
    wrong: list[str] = answers.get(timeout=60)
    process.join()
    return wrong


def refuses_to_travel(send: Callable[[object], object], objects: list[object]) -> list[str]:
    """Return what was sent to another process, or refused without the sentence."""
    wrong = []
    for item in objects:
        try:
            send(item)
            wrong.append(f"{item!r} was sent")
        except Exception as error:
            causes = str(error) + str(error.__cause__)
            if "cannot be copied or sent to another process; open the device there" not in causes:
                wrong.append(f"{type(error).__name__}: {causes}")
    return wrong


def by_spawn(session: Session) -> list[str]:
    """Send the session and its driver to a process that multiprocessing spawns."""
    context = multiprocessing.get_context("spawn")

    def send(item: object) -> None:
        context.Process(target=print, args=(item,)).start()

    return refuses_to_travel(send, [session, *drivers_of(session.device)])


class Answers(Dataset[Tensor]):
    """Compute samples with the device, as a mistaken data set would."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return self.session.query(torch.full((1, self.session.spec.in_features), float(index)))


def by_data_loader(session: Session) -> list[str]:
    """Use the session in workers of a data loader."""
    try:
        for _ in DataLoader(Answers(session), num_workers=2, multiprocessing_context="fork"):
            return ["a worker has used the device"]
    except DeviceError as error:
        return [] if REMEDY in str(error) else [str(error)]
    return ["no answers"]


def by_joblib(session: Session) -> list[str]:
    """Send the session and its driver to workers of joblib."""
    from joblib import Parallel, delayed

    def send(item: object) -> None:
        Parallel(n_jobs=2)(delayed(repr)(item) for _ in range(2))

    return refuses_to_travel(send, [session, *drivers_of(session.device)])


def describe(item: object) -> str:
    """Return the text of an object; Ray accepts only functions of Python."""
    return repr(item)


def by_ray(session: Session) -> list[str]:
    """Send the session and its driver to a task of Ray."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # otherwise Ray writes a token to the user's home folder
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 1024 * 1024)
    task = ray.remote(describe)
    wrong = refuses_to_travel(lambda item: ray.get(task.remote(item)), [session, *drivers_of(session.device)])
    ray.shutdown()
    return wrong


WAYS = {
    "fork": by_fork,
    "multiprocessing fork": by_multiprocessing,
    "multiprocessing spawn": by_spawn,
    "data loader": by_data_loader,
    "joblib": by_joblib,
    "ray": by_ray,
}


def main(way: str, kind: str, uris: list[str]) -> None:
    """Print what is wrong as JSON; nothing is wrong if the list is empty."""
    wrong: list[str] = []
    with Session(open_chips(kind, uris)) as session:
        width = session.spec.in_features
        controls = torch.arange(session.spec.num_controls, dtype=torch.float32)
        matrix = controls.reshape(session.spec.out_features, width)

        def ask(first: int) -> None:
            for number in range(first, first + 5):
                inputs = torch.full((1, width), float(number))
                if not torch.equal(session.query(inputs), inputs @ matrix.T):
                    wrong.append(f"query {number} received the answer to another one")

        session.program(controls)
        ask(1)
        wrong += WAYS[way](session)
        ask(6)
        print(json.dumps(wrong), flush=True)
        input()  # the parent looks at the chips


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
