"""What a job of each kind computes from, besides its files. Torch-free.

A `personalize` job's configuration is `duolora.config.PersonalizeConfig`, and has no `kind`: it is older than the word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, StringConstraints, Tag, TypeAdapter, model_validator

from duolora.config import (
    SCHEMA_VERSION,
    Frozen,
    GenerateConfig,
    LoraTrainConfig,
    MergeConfig,
    PersonalizeConfig,
    PreviewEvery,
    Prompts,
    Slider,
    check_company,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

MAX_LORAS = 4
"""Most LoRAs that draw together."""
MAX_PROMPTS = 16
MAX_PICTURES = 64
"""Most pictures that one job draws."""
MAX_STRENGTH = 4.0

Prompt = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f]+$")
]
"""What a picture is to show: visible characters. Encoders read the first 75 tokens or so."""

Strength = Annotated[float, Field(ge=-MAX_STRENGTH, le=MAX_STRENGTH, allow_inf_nan=False)]
"""What a LoRA is multiplied by."""


class TrainJobConfig(Frozen):
    """Everything a `train` job computes from: one side or both are trained, and none is merged."""

    kind: Literal["train"] = "train"
    schema_version: int = SCHEMA_VERSION
    recipe: str
    base_model: str
    prompts: Prompts
    content: LoraTrainConfig | None
    style: LoraTrainConfig | None
    preview: GenerateConfig
    preview_every: PreviewEvery = 0

    @model_validator(mode="after")
    def _trains_something(self) -> Self:
        if self.content is not None and self.style is not None:
            check_company(self.content, self.style)
            return self
        alone = self.content or self.style
        if alone is None:
            raise ValueError("a training needs content, or style, or both")
        if alone.company > 0:
            raise ValueError("company needs both content and style; one side alone has none")
        return self

    @classmethod
    def of(cls, whole: PersonalizeConfig, sides: Collection[str]) -> Self:
        """Return the training of some sides as a whole job would train them; one alone has no company."""
        fields = whole.model_dump(exclude={"merge", "slider"})
        for side in {"content", "style"} - set(sides):
            fields[side] = None
        for side in sides if len(sides) == 1 else ():
            fields[side]["company"] = 0.0
        return cls.model_validate(fields)

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides that are trained."""
        return tuple(side for side in ("content", "style") if getattr(self, side) is not None)

    def of_side(self, side: str) -> LoraTrainConfig:
        """Return how one side is trained: `content` or `style`.

        Raises:
            KeyError: it is not trained.
        """
        config = self.content if side == "content" else self.style
        if config is None:
            raise KeyError(side)
        return config

    @property
    def trains_together(self) -> bool:
        """Whether both LoRAs are trained in one pass, each in the other's company."""
        return any(self.of_side(side).company > 0 for side in self.sides)


class MergeJobConfig(Frozen):
    """Everything a `merge` job computes from, besides its two LoRAs and what pictures its way of merging needs."""

    kind: Literal["merge"] = "merge"
    schema_version: int = SCHEMA_VERSION
    recipe: str
    base_model: str
    prompts: Prompts
    resolution_px: int = Field(ge=64, le=2048, multiple_of=32)
    merge: MergeConfig
    preview: GenerateConfig
    slider: Slider = 0

    @classmethod
    def of(cls, whole: PersonalizeConfig) -> Self:
        """Return the merge as a whole job would merge."""
        fields = whole.model_dump(exclude={"content", "style", "preview_every"})
        return cls.model_validate(fields | {"resolution_px": whole.resolution_px})


class GenerateJobConfig(Frozen):
    """Everything a `generate` job computes from, besides its LoRAs. `sampling.images` counts those of one prompt.

    All prompts begin with the same noise, so that their pictures can be compared.
    """

    kind: Literal["generate"] = "generate"
    schema_version: int = SCHEMA_VERSION
    recipe: str
    base_model: str
    strengths: tuple[Strength, ...] = Field(max_length=MAX_LORAS, description="Of the LoRAs, in their order.")
    prompts: tuple[Prompt, ...] = Field(min_length=1, max_length=MAX_PROMPTS)
    sampling: GenerateConfig

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        pictures = len(self.prompts) * self.sampling.images
        if pictures > MAX_PICTURES:
            raise ValueError(
                f"{len(self.prompts)} prompts of {self.sampling.images} pictures are {pictures} pictures; "
                f"a job draws {MAX_PICTURES} at most"
            )
        return self

    @classmethod
    def of(
        cls,
        whole: PersonalizeConfig,
        *,
        prompts: Sequence[str],
        strengths: Sequence[float],
        wishes: Mapping[str, float | None],
    ) -> Self:
        """Return the sampling of a whole job's preview, with wishes for its fields over it; None keeps what is there.

        Raises:
            pydantic.ValidationError: a value is out of bounds.
        """
        sampling = whole.preview.model_dump() | {name: value for name, value in wishes.items() if value is not None}
        return cls.model_validate(
            {
                "recipe": whole.recipe,
                "base_model": whole.base_model,
                "strengths": tuple(strengths),
                "prompts": tuple(prompts),
                "sampling": sampling,
            }
        )


Training = PersonalizeConfig | TrainJobConfig
"""Of jobs that train LoRAs."""
Merging = PersonalizeConfig | MergeJobConfig
"""Of jobs that merge two LoRAs."""
JobConfig = PersonalizeConfig | TrainJobConfig | MergeJobConfig | GenerateJobConfig
"""Of jobs of any kind."""


def _kind(document: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    """Return the kind that a stored configuration is of."""
    return str(document.get("kind", "personalize") if isinstance(document, dict) else "personalize")


_ANY: TypeAdapter[JobConfig] = TypeAdapter(
    Annotated[
        Annotated[PersonalizeConfig, Tag("personalize")]
        | Annotated[TrainJobConfig, Tag("train")]
        | Annotated[MergeJobConfig, Tag("merge")]
        | Annotated[GenerateJobConfig, Tag("generate")],
        Discriminator(_kind),
    ]
)


def read_config(document: Mapping[str, Any]) -> JobConfig:
    """Read a stored configuration, of whatever kind.

    Raises:
        pydantic.ValidationError: it is of another form.
    """
    return _ANY.validate_python(dict(document))
