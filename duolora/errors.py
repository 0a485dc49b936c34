"""What can go wrong with the work itself.

    DuoLoraError
    ├── InvalidConfig        a parameter is out of bounds or contradicts another
    ├── InvalidImage         an input picture cannot be used
    ├── InvalidLora          a LoRA file cannot be read or does not fit the base
    ├── InvalidBase          the base model cannot be loaded
    ├── LayerGroupEmpty      a selector of layers matched nothing
    ├── TrainingDiverged     a loss stopped being finite
    ├── OutOfMemory          the device has too little memory
    ├── CheckpointUnusable   a checkpoint cannot be read or is of other work
    └── Cancelled            somebody asked for the work to stop

Each class carries a stable machine code (the `type` of the problem document a client sees) and the class of fault,
from which the worker decides whether a retry can help.
"""

from __future__ import annotations

from enum import StrEnum


class Fault(StrEnum):
    """Whose fault an error is: it decides what happens to the job."""

    CALLER = "caller"
    """The request cannot succeed as it stands; never retried."""
    INFRASTRUCTURE = "infrastructure"
    """The environment failed; retried with backoff, attempts capped."""
    MEMORY = "memory"
    """The device ran out of memory; tried once more with a smaller profile."""
    CANCELLED = "cancelled"
    """The caller asked for it."""


class DuoLoraError(Exception):
    """The engine could not do what was asked."""

    code = "engine_error"
    fault = Fault.INFRASTRUCTURE


class InvalidConfig(DuoLoraError):
    """A parameter is out of bounds or contradicts another."""

    code = "invalid_config"
    fault = Fault.CALLER


class InvalidImage(DuoLoraError):
    """An input picture cannot be used."""

    code = "invalid_image"
    fault = Fault.CALLER


class InvalidLora(DuoLoraError):
    """A LoRA file cannot be read or does not fit the base model."""

    code = "invalid_lora"
    fault = Fault.CALLER


class InvalidBase(DuoLoraError):
    """The base model cannot be loaded. Callers choose among bases the operator offers, so it is never their fault."""

    code = "invalid_base"
    fault = Fault.INFRASTRUCTURE


class LayerGroupEmpty(DuoLoraError):
    """A selector of layers matched nothing in this model."""

    code = "layer_group_empty"
    fault = Fault.CALLER


class TrainingDiverged(DuoLoraError):
    """A loss stopped being finite; a lower learning rate or fewer steps help."""

    code = "training_diverged"
    fault = Fault.CALLER


class OutOfMemory(DuoLoraError):
    """The device has too little memory for this profile."""

    code = "gpu_out_of_memory"
    fault = Fault.MEMORY


class CheckpointUnusable(DuoLoraError):
    """A checkpoint cannot be read, or is of other work; a start from the beginning helps."""

    code = "checkpoint_unusable"
    fault = Fault.INFRASTRUCTURE


class Cancelled(DuoLoraError):
    """The work was stopped on request."""

    code = "cancelled"
    fault = Fault.CANCELLED
