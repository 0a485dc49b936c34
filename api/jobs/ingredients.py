"""The LoRAs of the library that a job works with: found by their ids, and copied for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from api.errors import FieldError, InvalidParameters
from api.jobs.engines import EngineName
from api.jobs.models import JobLora, LoraUse
from api.jobs.wishes import ROOT
from api.loras import repository as library
from api.object_keys import job_lora_key

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable

    from sqlalchemy.orm import Session

    from api.jobs.schemas import JobParams
    from api.loras.models import LoraFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredient:
    """A LoRA that a job is to work with, as the library had it a moment ago."""

    role: LoraUse
    ordinal: int
    strength: float
    pointer: str
    """To where the request names it."""
    lora_id: uuid.UUID
    name: str
    base_model: str | None
    trigger: str | None
    file: LoraFile

    def row(self, account_id: uuid.UUID, job_id: uuid.UUID) -> JobLora:
        """Return the row of a job's own copy."""
        return JobLora(
            role=self.role,
            ordinal=self.ordinal,
            lora_id=self.lora_id,
            name=self.name,
            key=job_lora_key(account_id, job_id, self.role, self.ordinal, self.file.sha256),
            sha256=self.file.sha256,
            bytes=self.file.bytes,
            strength=self.strength,
        )


def find_ingredients(session: Session, *, account_id: uuid.UUID, params: JobParams) -> list[Ingredient]:
    """Return the LoRAs that a request names.

    Raises:
        InvalidParameters: the account has no such LoRA; all are named at once.
    """
    found, errors = [], []
    for role, ordinal, strength, pointer, lora_id in _named(params):
        lora = library.find(session, account_id=account_id, lora_id=lora_id)
        if lora is None:
            errors.append(FieldError(pointer=pointer, detail=f"there is no LoRA {lora_id}", code="unknown"))
            continue
        if lora.mock and params.engine is not EngineName.MOCK:
            detail = "it was made by the mock engine and holds nothing; name another one, or send engine mock"
            errors.append(FieldError(pointer=pointer, detail=detail, code="is_mock"))
            continue
        found.append(
            Ingredient(
                role=role,
                ordinal=ordinal,
                strength=strength,
                pointer=pointer,
                lora_id=lora_id,
                name=lora.name,
                base_model=lora.base_model,
                trigger=lora.trigger,
                file=lora.file(),
            )
        )
    if errors:
        raise InvalidParameters(errors=errors)
    return found


def _named(params: JobParams) -> Iterable[tuple[LoraUse, int, float, str, uuid.UUID]]:
    """Yield role, place, strength, pointer and id of every LoRA that a request names."""
    for role, lora_id in ((LoraUse.CONTENT, params.content_lora_id), (LoraUse.STYLE, params.style_lora_id)):
        if lora_id is not None:
            yield role, 0, 1.0, f"{ROOT}/{role}_lora_id", lora_id
    for place, wish in enumerate(params.loras or ()):
        yield LoraUse.DRAWING, place, wish.strength, f"{ROOT}/loras/{place}/lora_id", wish.lora_id
