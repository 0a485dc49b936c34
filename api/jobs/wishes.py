"""From a caller's words to a complete configuration, with every complaint pointing at the caller's own field. Pure."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from api.errors import FieldError, InvalidParameters
from api.jobs.engines import EngineName
from api.jobs.event_types import EventType
from api.jobs.schemas import JobParams, LoraWish, StepWishes
from api.webhooks.guard import TargetRefused, check_at_submit
from api.webhooks.signing import InvalidSecret, check_secret
from duolora import recipes
from duolora.config import Prompts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic_core import ErrorDetails

    from api.schemas import Wire
    from api.settings import Network
    from duolora.config import PersonalizeConfig

_Params = TypeVar("_Params", bound=JobParams)

ROOT = "/params"
"""Where complaints point, unless `pointing` says where else the request has its parameters."""
_WORDS = ("subject_class", "content_trigger", "style_trigger", "style_captions", "content_captions")
_SHARED = {"rank", "resolution_px", "seed"}
"""Fields of the configuration's parts that one wish fills in several."""
_SHAPES: Mapping[object, type[Wire]] = {"steps": StepWishes, "loras": LoraWish}
"""Fields that have fields of their own."""


@contextmanager
def pointing(root: str) -> Iterator[None]:
    """Have complaints about parameters point below another root than ROOT: empty for those at the top of a document.

    Raises:
        InvalidParameters: what the block raised, so changed.
    """
    try:
        yield
    except InvalidParameters as refusal:
        refusal.errors = tuple(
            replace(entry, pointer=root + entry.pointer.removeprefix(ROOT) or "/")
            if f"{entry.pointer}/".startswith(f"{ROOT}/")
            else entry
            for entry in refusal.errors
        )
        raise


def parse(text: str | bytes) -> JobParams:
    """Read the JSON part; values must have the type they are documented with.

    Raises:
        InvalidParameters: it is not JSON, or a key or type is wrong.
    """
    return parse_as(text, JobParams)


def parse_as(text: str | bytes, shape: type[_Params]) -> _Params:
    """Read a document that holds parameters, and perhaps more besides.

    Raises:
        InvalidParameters: it is not JSON, or a key or type is wrong.
    """
    try:
        return shape.model_validate_json(text or "{}", strict=True)
    except ValidationError as error:
        raise InvalidParameters(errors=complaints(error.errors(), _literal_pointer, shape)) from error


def resolve(
    params: JobParams, base_models: Mapping[str, str], default_base: str, *, told: Mapping[str, str] | None = None
) -> PersonalizeConfig:
    """Fill the recipe and put the wishes over it: of a job that trains, merges and draws (`api.jobs.kinds`: of others).

    `told` are words that are known from elsewhere; wishes go before them.

    Raises:
        InvalidParameters: a name is unknown or a value is out of the bounds of `duolora.config`.
    """
    base = params.base_model or default_base
    errors = []
    if base not in base_models:
        errors.append(_unknown("base_model", base, base_models))
    if params.recipe is not None and params.recipe not in recipes.RECIPES:
        errors.append(_unknown("recipe", params.recipe, recipes.RECIPES))
    if params.merge_recipe is not None and params.merge_recipe not in recipes.MERGE_RECIPES:
        errors.append(_unknown("merge_recipe", params.merge_recipe, recipes.MERGE_RECIPES))
    if errors:
        raise InvalidParameters(errors=errors)
    wished = {name: getattr(params, name) for name in _WORDS if getattr(params, name) is not None}
    words = dict(told or {}) | wished
    try:
        prompts = Prompts.model_validate(words)
    except ValidationError as error:
        raise InvalidParameters(errors=complaints(error.errors(), _prompt_pointer)) from error
    try:
        return recipes.resolve(
            params.recipe,
            base,
            prompts,
            location=base_models[base],
            content_steps=params.steps.content,
            style_steps=params.steps.style,
            merge_recipe=params.merge_recipe,
            merge_steps=params.steps.merge,
            rank=params.rank,
            resolution_px=params.resolution_px,
            seed=params.seed,
            slider=params.slider,
            preview_every=params.preview_every,
        )
    except ValidationError as error:
        raise InvalidParameters(errors=complaints(error.errors(), _config_pointer)) from error


def check_webhook(params: JobParams, allow: Iterable[Network]) -> list[FieldError]:
    """Return what is wrong with the wishes about a webhook."""
    if params.webhook_url is None:
        return [
            FieldError(pointer=f"{ROOT}/{name}", detail="needs a webhook_url", code="missing")
            for name in ("webhook_events", "webhook_secret")
            if getattr(params, name) is not None
        ]
    errors = []
    try:
        check_at_submit(params.webhook_url, allow)
    except TargetRefused as refusal:
        errors.append(FieldError(pointer=f"{ROOT}/webhook_url", detail=str(refusal), code="url_refused"))
    try:
        if params.webhook_secret is not None:
            check_secret(params.webhook_secret)
    except InvalidSecret as error:
        errors.append(FieldError(pointer=f"{ROOT}/webhook_secret", detail=str(error), code="invalid"))
    for place, name in enumerate(params.webhook_events or ()):
        if name not in set(EventType):
            pointer, known = f"{ROOT}/webhook_events/{place}", ", ".join(EventType)
            errors.append(FieldError(pointer=pointer, detail=f"there is no {name!r}; known: {known}", code="unknown"))
    return errors


def check_engine(params: JobParams) -> list[FieldError]:
    """Return what is wrong with the wish for an engine."""
    if params.mock_outcome is None or params.engine is EngineName.MOCK:
        return []
    detail = "only a job of the mock engine ends as one likes; send engine mock with it, or leave it out"
    return [FieldError(pointer=f"{ROOT}/mock_outcome", detail=detail, code="needs_mock")]


def check_priority(priority: int, highest: int) -> list[FieldError]:
    """Return what is wrong with a priority."""
    if priority <= highest:
        return []
    detail = f"the account may ask for at most {highest}"
    return [FieldError(pointer=f"{ROOT}/priority", detail=detail, code="priority_too_high")]


def check_retention(days: int | None, most: int) -> list[FieldError]:
    """Return what is wrong with the time that a job is to be kept."""
    if days is None or days <= most:
        return []
    detail = f"jobs are kept for {most} days at most here; ask for fewer"
    return [FieldError(pointer=f"{ROOT}/retention_days", detail=detail, code="too_long")]


def check_captions(side: str, captions: Sequence[str] | None, pictures: int) -> list[FieldError]:
    """Return what is wrong with the number of captions of one side."""
    if captions is None or len(captions) <= pictures:
        return []
    detail = f"{len(captions)} captions for {pictures} {side} pictures; send at most one for each"
    return [FieldError(pointer=f"{ROOT}/{side}_captions", detail=detail, code="too_many")]


def _unknown(name: str, value: str, known: Iterable[str]) -> FieldError:
    detail = f"there is no {value!r}; known: {', '.join(sorted(known))}"
    return FieldError(pointer=f"{ROOT}/{name}", detail=detail, code="unknown")


def complaints(errors: Iterable[ErrorDetails], point: _Pointer, shape: type[JobParams] = JobParams) -> list[FieldError]:
    """Turn pydantic's complaints into ours, one for each field."""
    found: dict[str, FieldError] = {}
    for error in errors:
        pointer, detail = point(error["loc"]), error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            known = shape if len(error["loc"]) == 1 else _SHAPES[error["loc"][0]]
            detail = f"unknown parameter; known: {', '.join(known.model_fields)}"
        found.setdefault(pointer, FieldError(pointer=pointer, detail=detail, code=error["type"]))
    return list(found.values())


def _literal_pointer(location: tuple[int | str, ...]) -> str:
    """Point at the field of the same name."""
    return ROOT + "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in location)


def _prompt_pointer(location: tuple[int | str, ...]) -> str:
    """Point at the word; the one contradiction there can be is between the two triggers."""
    return _literal_pointer(location or ("style_trigger",))


def _config_pointer(location: tuple[int | str, ...]) -> str:
    """Point at the wish that a field of the configuration was filled from: (content, steps) is steps/content."""
    part, name = str(location[0]), str(location[-1])
    if name in _SHARED:
        return f"{ROOT}/{name}"
    return f"{ROOT}/{name}/{part}" if name == "steps" else _literal_pointer(location)


if TYPE_CHECKING:
    from collections.abc import Callable

    _Pointer = Callable[[tuple[int | str, ...]], str]
