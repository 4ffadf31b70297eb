"""The `Device` protocol and everything that stands around a device, whatever it is made of."""

from .bench import Bench
from .wrappers.calibrated import CalibratedDevice, CalibratedTwin, make_model
from .calibration import Calibration, CalibrationAgeWarning, FitQuality, FittedModel, Thermometer
from .clock import Clock, WallClock, clock_of
from .wrappers.compensation import CompensatedDevice, Compensation, CompensationWarning
from .controls import initial_controls
from .device import (
    ChecksRequests,
    Composite,
    Device,
    Differentiable,
    Flushes,
    HardwareDevice,
    PassesOn,
    ProgramsMany,
    PullsBack,
    Reciprocal,
    ReportsPeaks,
    Resends,
    Snapshots,
    Twinned,
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
from .wrappers.faults import FaultPlan, FaultyDevice
from .identifiable import Constant, Identifiable
from .opening import open_device
from .pullback import pull_back, pull_back_answer
from .random import derive_generator, derive_seed
from .reach import Patch, Stripe
from .wrappers.recording import RecordingDevice, ReplayDevice
from .recovery import Retry
from .registry import (
    DeviceEntry,
    find_device,
    list_devices,
    make_device,
    offer_device,
    register_device,
)
from .wrappers.rehearsal import RehearsalDevice, Rehearses, rehearse
from .session import Session
from .spec import Coupling, DeviceSpec, Range
from .wrappers.tiling import TiledDevice
from .usage import Budget, Usage
from .functions import wrap_device

__all__ = [
    "Bench",
    "Budget",
    "BudgetExceeded",
    "CalibratedDevice",
    "CalibratedTwin",
    "Calibration",
    "CalibrationAgeWarning",
    "CalibrationMismatch",
    "ChecksRequests",
    "Clock",
    "CompensatedDevice",
    "Compensation",
    "CompensationWarning",
    "Composite",
    "Constant",
    "Coupling",
    "Device",
    "DeviceEntry",
    "DeviceError",
    "DeviceSpec",
    "DeviceTimeout",
    "Differentiable",
    "FaultPlan",
    "FaultyDevice",
    "FitQuality",
    "Flushes",
    "HardwareDevice",
    "Identifiable",
    "FittedModel",
    "NotConnected",
    "OutOfRange",
    "PassesOn",
    "Patch",
    "ProgramsMany",
    "ProtocolError",
    "PullsBack",
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
    "Thermometer",
    "TiledDevice",
    "Twinned",
    "Usage",
    "WallClock",
    "clock_of",
    "derive_generator",
    "derive_seed",
    "find_device",
    "initial_controls",
    "list_devices",
    "list_emulators",
    "make_device",
    "make_emulator",
    "make_model",
    "offer_device",
    "open_device",
    "pull_back",
    "pull_back_answer",
    "register_device",
    "rehearse",
    "wrap_device",
]
