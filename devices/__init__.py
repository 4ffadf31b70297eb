"""The `Device` protocol and everything that stands around a device, whatever it is made of."""

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
from .errors import (
    BudgetExceeded,
    CalibrationMismatch,
    DeviceError,
    DeviceTimeout,
    NotConnected,
    OutOfRange,
    ProtocolError,
)
from .random import derive_generator, derive_seed
from .reach import Patch, Stripe
from .recovery import Retry
from .registry import (
    DeviceEntry,
    find_device,
    list_devices,
    make_device,
    open_device,
    register_device,
)
from .rehearsal import RehearsalDevice, Rehearses, rehearse
from .session import Session
from .spec import Coupling, DeviceSpec, Range
from .tiling import TiledDevice
from .usage import Budget, Usage

__all__ = [
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
    "Flushes",
    "HardwareDevice",
    "NotConnected",
    "OutOfRange",
    "Patch",
    "ProgramsMany",
    "ProtocolError",
    "Range",
    "Reciprocal",
    "RehearsalDevice",
    "Rehearses",
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
    "make_device",
    "open_device",
    "register_device",
    "rehearse",
]
