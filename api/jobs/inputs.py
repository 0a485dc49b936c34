"""What a job works with, on its way into the store: each object comes from a file here, or from another object."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from api.jobs import images
from api.jobs.models import JobImage
from api.object_keys import input_key
from api.storage import ObjectMissing

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence

    from api.jobs.ingredients import Ingredient
    from api.jobs.models import JobLora, Side
    from api.jobs.sources import Picture
    from api.storage import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """An object that another one is copied to."""

    source: str
    target: str
    pointer: str = ""
    """To where the request names the source; empty if it does not."""


class SourceGone(Exception):
    """An object that was to be copied is not there any more."""

    def __init__(self, copy: Copy) -> None:
        super().__init__(copy.source)
        self.copy = copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The objects of a job about to be written, and the rows that speak of them."""

    images: Sequence[JobImage] = ()
    loras: Sequence[JobLora] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    """By key."""
    copies: Sequence[Copy] = ()

    @property
    def keys(self) -> list[str]:
        """Keys of all of them."""
        return [*self.files, *(copy.target for copy in self.copies)]

    @property
    def bytes(self) -> int:
        """What they count against the account's quota."""
        return sum(row.bytes for row in self.images) + sum(row.bytes for row in self.loras)

    def store(self, store: ObjectStore) -> None:
        """Put them into the store.

        Raises:
            SourceGone: one that was to be copied is not there any more.
            StoreError: the store does not take them. Some may be there by now.
        """
        store.put_files(self.files, images.CONTENT_TYPE)
        for copy in self.copies:
            try:
                store.copy(copy.source, copy.target)
            except ObjectMissing as error:
                raise SourceGone(copy) from error


def to_inputs(pictures: Sequence[tuple[Side, int, Picture]], *, account_id: uuid.UUID, job_id: uuid.UUID) -> Inputs:
    """Return the pictures under the keys of a job."""
    rows, files, copies = [], {}, []
    for side, ordinal, picture in pictures:
        key = input_key(account_id, job_id, side, ordinal, picture.sha256)
        rows.append(
            JobImage(
                side=side,
                ordinal=ordinal,
                key=key,
                sha256=picture.sha256,
                bytes=picture.bytes,
                width=picture.width,
                height=picture.height,
                content_type=images.CONTENT_TYPE,
            )
        )
        if isinstance(picture.place, Path):
            files[key] = picture.place
        else:
            copies.append(Copy(source=picture.place, target=key, pointer=picture.pointer))
    return Inputs(images=rows, files=files, copies=copies)


def with_loras(
    inputs: Inputs, ingredients: Sequence[Ingredient], *, account_id: uuid.UUID, job_id: uuid.UUID
) -> Inputs:
    """Return the same with copies of LoRAs of the library."""
    rows = [ingredient.row(account_id, job_id) for ingredient in ingredients]
    copies = [
        Copy(source=ingredient.file.key, target=row.key, pointer=ingredient.pointer)
        for ingredient, row in zip(ingredients, rows, strict=True)
    ]
    return replace(inputs, loras=rows, copies=[*inputs.copies, *copies])
