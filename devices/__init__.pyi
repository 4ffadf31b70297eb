"""The `Device` protocol and everything that stands around a device, whatever it is made of."""

from .bench import Bench
from .controls import initial_controls
from .device import (
    ChecksRequests,
    Composite,
    Device,
    Differentiable,
    Flushes,
    HardwareDevice,
    ProgramsMany,
    Reciprocal,
    ReportsPeaks,
    Resends,
    Snapshots,
)
from .emulation import list_emulators, make_emulator
from .errors import (
    BudgetExceeded,
    CalibrationMismatch,
    DeviceError,
    DeviceTimeout,
    NotConnected,
    OutOfRange,
    ProtocolError,
)
from .faults import FaultPlan, FaultyDevice
from .random import derive_generator, derive_seed
from .reach import Patch, Stripe
from .recording import RecordingDevice, ReplayDevice
from .recovery import Retry
from .registry import (
    DeviceEntry,
    find_device,
    list_devices,
    make_device,
    offer_device,
    open_device,
    register_device,
)
from .rehearsal import RehearsalDevice, Rehearses, rehearse
from .session import Session
from .spec import Coupling, DeviceSpec, Range
from .tiling import TiledDevice
from .usage import Budget, Usage
from .wrapped import wrap_device

__all__ = [
    "Bench",
    "Budget",
    "BudgetExceeded",
    "CalibrationMismatch",
    "ChecksRequests",
    "Composite",
    "Coupling",
    "Device",
    "DeviceEntry",
    "DeviceError",
    "DeviceSpec",
    "DeviceTimeout",
    "Differentiable",
    "FaultPlan",
    "FaultyDevice",
    "Flushes",
    "HardwareDevice",
    "NotConnected",
    "OutOfRange",
    "Patch",
    "ProgramsMany",
    "ProtocolError",
    "Range",
    "Reciprocal",
    "RecordingDevice",
    "RehearsalDevice",
    "Rehearses",
    "ReplayDevice",
    "ReportsPeaks",
    "Resends",
    "Retry",
    "Session",
    "Snapshots",
    "Stripe",
    "TiledDevice",
    "Usage",
    "derive_generator",
    "derive_seed",
    "find_device",
    "initial_controls",
    "list_devices",
    "list_emulators",
    "make_device",
    "make_emulator",
    "offer_device",
    "open_device",
    "register_device",
    "rehearse",
    "wrap_device",
]
