"""Describe, register, guard, wrap and calibrate devices; simulators and hardware share one interface."""

from .bench import Bench
from .calibration import Calibration, CalibrationAgeWarning, FitQuality, FittedModel
from .capabilities import (
    ChecksRequests,
    Clock,
    Composite,
    Differentiable,
    Flushes,
    ForwardsCapabilities,
    Identifiable,
    InProcess,
    ProgramsMany,
    PullsBack,
    Reciprocal,
    Rehearses,
    ReportsPeaks,
    Resends,
    Snapshots,
    Thermometer,
    Twinned,
    capability_of,
)
from .clock import WallClock, clock_of
from .constants import Constant
from .controls import initial_controls
from .device import Device, HardwareDevice
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
from .functions import wrap_device
from .ledger import Purpose
from .opening import open_device
from .pullback import pull_back, pull_back_answer
from .random import derive_generator, derive_seed
from .reach import Patch, Stripe
from .recovery import Retry
from .registry import (
    DeviceEntry,
    find_device,
    list_devices,
    make_device,
    offer_device,
    register_device,
)
from .session import Session
from .spec import Coupling, DeviceSpec, Range
from .usage import Budget, Usage
from .wrapper import DeviceWrapper
from .wrappers.calibrated import CalibratedDevice, CalibratedTwin, make_model
from .wrappers.compensation import CompensatedDevice, Compensation, CompensationWarning
from .wrappers.faults import FaultPlan, FaultyDevice
from .wrappers.recording import RecordingDevice, ReplayDevice
from .wrappers.rehearsal import RehearsalDevice, rehearse
from .wrappers.tiling import TiledDevice

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
    "DeviceWrapper",
    "Differentiable",
    "FaultPlan",
    "FaultyDevice",
    "FitQuality",
    "FittedModel",
    "Flushes",
    "ForwardsCapabilities",
    "HardwareDevice",
    "Identifiable",
    "InProcess",
    "NotConnected",
    "OutOfRange",
    "Patch",
    "ProgramsMany",
    "ProtocolError",
    "PullsBack",
    "Purpose",
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
    "capability_of",
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
