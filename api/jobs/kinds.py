"""What jobs of each kind take: which fields, how many pictures, which configuration comes of them. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from api.errors import FieldError, InvalidParameters
from api.jobs import wishes
from api.jobs.models import LoraUse
from api.jobs.plan import JobKind
from api.jobs.wishes import ROOT
from duolora.config import MAX_IMAGES_PER_SIDE, Word
from duolora.job_configs import GenerateJobConfig, MergeJobConfig, TrainJobConfig
from duolora.recipes import MERGE_RECIPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from api.jobs.ingredients import Ingredient
    from api.jobs.schemas import JobParams
    from duolora.config import PersonalizeConfig
    from duolora.job_configs import JobConfig

_TRAINING = frozenset({JobKind.PERSONALIZE, JobKind.TRAIN})
_MERGING = frozenset({JobKind.PERSONALIZE, JobKind.MERGE})
_WORDS = _TRAINING | _MERGING
_GENERATE = frozenset({JobKind.GENERATE})

OF_KINDS: Mapping[str, frozenset[JobKind]] = {
    "merge_recipe": _MERGING,
    "subject_class": _WORDS,
    "content_trigger": _WORDS,
    "style_trigger": _WORDS,
    "style_captions": _WORDS,
    "content_captions": _WORDS,
    "rank": _TRAINING,
    "slider": _MERGING,
    "preview_every": _TRAINING,
    "content_lora_id": frozenset({JobKind.MERGE}),
    "style_lora_id": frozenset({JobKind.MERGE}),
    "loras": _GENERATE,
    "prompts": _GENERATE,
    "images_per_prompt": _GENERATE,
    "guidance_scale": _GENERATE,
    "steps/content": _TRAINING,
    "steps/style": _TRAINING,
    "steps/merge": _MERGING,
    "steps/sampling": _GENERATE,
}
"""Fields that not all kinds have, and which do."""
_NEEDED: Mapping[JobKind, tuple[str, ...]] = {
    JobKind.MERGE: ("content_lora_id", "style_lora_id"),
    JobKind.GENERATE: ("prompts",),
}

_OF_SAMPLING = {"images": "images_per_prompt", "steps": "steps/sampling"}
"""Fields of a sampling, and the wishes that they are filled from, where these have other names."""

_CONTENT_PHRASE = re.compile(r"(?:an? )?(?P<trigger>\S+)(?: (?P<subject>.+))?")
_STYLE_PHRASE = re.compile(r"(?:in )?(?P<trigger>.+?)(?: style)?")
_WORD: TypeAdapter[str] = TypeAdapter(Word)


def check_fields(params: JobParams) -> None:
    """Refuse what jobs of the kind have no use for, and the lack of what they need.

    Raises:
        InvalidParameters: naming the fields and the kind.
    """
    errors = []
    for field, kinds in OF_KINDS.items():
        if _given(params, field) is not None and params.kind not in kinds:
            takers = " and ".join(kind for kind in JobKind if kind in kinds)
            detail = f"a {params.kind} job has no {field.replace('/', '.')}; {takers} jobs do"
            errors.append(FieldError(pointer=f"{ROOT}/{field}", detail=detail, code="not_of_kind"))
    for field in _NEEDED.get(params.kind, ()):
        if _given(params, field) is None:
            detail = f"a {params.kind} job needs {field}"
            errors.append(FieldError(pointer=f"{ROOT}/{field}", detail=detail, code="missing"))
    if errors:
        raise InvalidParameters(errors=errors)


def _given(params: JobParams, field: str) -> object:
    first, _, second = field.partition("/")
    value: object = getattr(params, first)
    return getattr(value, second) if second else value


def resolve(
    params: JobParams,
    base_models: Mapping[str, str],
    default_base: str,
    *,
    pictures: Mapping[str, int],
    ingredients: Sequence[Ingredient] = (),
) -> JobConfig:
    """Return the complete configuration of a job.

    Args:
        params: what its owner wishes.
        base_models: those of the installation, by name, and where they are.
        default_base: the one of a job that names none.
        pictures: how many there are of each side.
        ingredients: the LoRAs that it works with.

    Raises:
        InvalidParameters: a name is unknown, a value is out of the bounds of `duolora.config`, or a LoRA is of another
            base.
    """
    check_fields(params)
    base = params.base_model or _common_base(ingredients, base_models) or default_base
    told = {} if params.kind is not JobKind.MERGE else _words(ingredients)
    whole = wishes.resolve(params, base_models, base, told=told)
    _check_bases(ingredients, base)
    match params.kind:
        case JobKind.TRAIN:
            return TrainJobConfig.of(whole, [side for side, count in pictures.items() if count] or pictures)
        case JobKind.MERGE:
            return MergeJobConfig.of(whole)
        case JobKind.GENERATE:
            return _generation(params, whole)
        case _:
            return whole


def _generation(params: JobParams, whole: PersonalizeConfig) -> GenerateJobConfig:
    try:
        return GenerateJobConfig.of(
            whole,
            prompts=params.prompts or (),
            strengths=[wish.strength for wish in params.loras or ()],
            wishes={
                "images": params.images_per_prompt,
                "steps": params.steps.sampling,
                "guidance_scale": params.guidance_scale,
            },
        )
    except ValidationError as error:
        places = [each["loc"] for each in error.errors()]
        # Of a list none of whose entries can be used it is also said that it is too short.
        told = [
            each
            for each in error.errors()
            if not any(place != each["loc"] and place[: len(each["loc"])] == each["loc"] for place in places)
        ]
        raise InvalidParameters(errors=wishes.complaints(told, _generation_pointer)) from error


def _generation_pointer(location: tuple[int | str, ...]) -> str:
    """Point at the wish that a field of the configuration was filled from."""
    match location:
        case ("strengths", *place):
            return "/".join((ROOT, "loras", *(f"{number}/strength" for number in place[:1])))
        case ("sampling", str(name), *_):
            return f"{ROOT}/{_OF_SAMPLING.get(name, name)}"
        case ("prompts", int(place), *_):
            return f"{ROOT}/prompts/{place}"
        case _:  # also the one contradiction that there can be: too many pictures of all prompts
            return f"{ROOT}/prompts"


def _common_base(ingredients: Sequence[Ingredient], base_models: Mapping[str, str]) -> str | None:
    """Return the base that LoRAs were trained on, if all that say so say the same and there is one of that name."""
    bases = {each.base_model for each in ingredients} - {None}
    return bases.pop() if len(bases) == 1 and bases <= base_models.keys() else None


def _check_bases(ingredients: Sequence[Ingredient], base: str) -> None:
    errors = [
        FieldError(
            pointer=each.pointer,
            detail=f"it was trained on {each.base_model!r}, and the job's base model is {base!r}",
            code="other_base",
        )
        for each in ingredients
        if each.base_model not in {None, base}
    ]
    if errors:
        raise InvalidParameters(errors=errors)


def _words(ingredients: Sequence[Ingredient]) -> dict[str, str]:
    """Return the words that call what LoRAs were trained on, as far as the library knows them and they can be used."""
    triggers = {each.role: each.trigger.strip() for each in ingredients if each.trigger is not None}
    content = _CONTENT_PHRASE.fullmatch(triggers.get(LoraUse.CONTENT, ""))
    style = _STYLE_PHRASE.fullmatch(triggers.get(LoraUse.STYLE, ""))
    found = {
        "content_trigger": content and content["trigger"],
        "subject_class": content and content["subject"],
        "style_trigger": style and style["trigger"],
    }
    words = {name: word for name, word in found.items() if word and _is_word(word)}
    if words.get("content_trigger", "").casefold() == words.get("style_trigger", "").casefold():
        words.pop("style_trigger", None)
    return words


def _is_word(text: str) -> bool:
    try:
        _WORD.validate_python(text)
    except ValidationError:
        return False
    return True


def check_pictures(params: JobParams, config: JobConfig, pictures: Mapping[str, int], field: str) -> list[FieldError]:
    """Return what is wrong with the numbers of pictures of both sides; `field` names a side's in the request."""
    if params.kind is JobKind.TRAIN:
        return _check_training(params, pictures, field)
    if params.kind is JobKind.PERSONALIZE:
        return _check_counts(pictures, field, "send")
    if isinstance(config, MergeJobConfig) and config.merge.needs_pictures:
        way = params.merge_recipe or f"of the recipe {config.recipe}"
        easy = next(name for name, merge in MERGE_RECIPES.items() if not merge.needs_pictures)
        return _check_counts(
            pictures, field, f"the merge_recipe {way} learns from pictures; choose merge_recipe {easy}, or send"
        )
    why = f"a {params.kind} job takes none"
    if params.kind is JobKind.MERGE:
        why = f"a merge by the merge_recipe {params.merge_recipe or 'of its recipe'} takes none"
    return [
        FieldError(pointer=f"/{field.format(side=side)}", detail=f"{count} pictures came; {why}", code="not_of_kind")
        for side, count in pictures.items()
        if count
    ]


def _check_counts(pictures: Mapping[str, int], field: str, remedy: str, least: int = 1) -> list[FieldError]:
    errors = []
    for side, count in pictures.items():
        if not least <= count <= MAX_IMAGES_PER_SIDE:
            own = field.format(side=side)
            detail = f"{count} pictures came; {remedy} {least} to {MAX_IMAGES_PER_SIDE} in {own}"
            errors.append(FieldError(pointer=f"/{own}", detail=detail, code="too_many" if count else "missing"))
    return errors


def _check_training(params: JobParams, pictures: Mapping[str, int], field: str) -> list[FieldError]:
    """A training has pictures of one side at least, and no wishes for a side that has none."""
    if not any(pictures.values()):
        own = field.format(side="content")
        detail = f"no pictures came; send some in {own}, or in {field.format(side='style')}, or in both"
        return [FieldError(pointer=f"/{own}", detail=detail, code="missing")]
    errors = _check_counts(pictures, field, "send", least=0)
    for side, count in pictures.items():
        if not count and _given(params, f"steps/{side}") is not None:
            detail = f"no {side} pictures came, so no {side} LoRA is trained"
            errors.append(FieldError(pointer=f"{ROOT}/steps/{side}", detail=detail, code="no_pictures"))
    return errors
