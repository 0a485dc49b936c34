"""Frozen configurations of the engine: every bound and unit is declared here, once.

The API validates requests with the same classes, a job row stores them as JSON, and the engine runs from that JSON,
so that any job can be run again exactly as it was. Torch-free.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

SCHEMA_VERSION = 1
"""Version of the stored JSON; raised when a field changes its meaning."""

MAX_IMAGES_PER_SIDE = 20
"""Most pictures of a subject, and most pictures of a style, in one job."""

MAX_SLIDER = 9
"""Most pictures between all content and all style."""

Word = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=40, pattern=r"^[^\x00-\x1f,]+$")
]
"""A trigger word or a class name: visible characters, no comma (it ends up inside a caption)."""

Caption = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")
]
"""A caption of one picture: visible characters only."""

OptionalCaption = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200, pattern=r"^[^\x00-\x1f]*$")]
"""A caption of one picture, or empty for the one that pictures have by themselves."""


MAX_TRAINING_PREVIEWS = 40
"""Most times that a training is shown."""


class Frozen(BaseModel):
    """Base of all configurations: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TargetLayers(StrEnum):
    """Which linear layers of the U-Net a LoRA adapts."""

    ATTENTION = "attention"
    """q, k, v and output projections of self- and cross-attention: 560 layers in SDXL."""
    TRANSFORMER = "transformer"
    """Attention and the feed-forward layers of every transformer block: 700 layers in SDXL."""


class LayerPrior(StrEnum):
    """How a merge uses what is known of a layer's role."""

    NONE = "none"
    RESOLUTION = "resolution"
    """Layers at low resolution carry content, layers at high resolution carry style (paper, section 4.2)."""


class MaskStart(StrEnum):
    """Where the masks of a merge begin; a merge of no steps ends there too."""

    ONES = "ones"
    """All ranks of all sides: the plain sum. What the released code does in effect."""
    LEADING = "leading"
    """A layer's dominant side in full, of the other only the leading ranks (paper, section 4.2)."""
    CLOSED_FORM = "closed-form"
    """Least squares on the layers' own outputs (`duolora.method.closed_form`)."""
    MEASURED = "measured"
    """Strengths of groups of layers found by experiment (`duolora.method.measured_priors`)."""


class MergeMethod(StrEnum):
    """Who computes the masks."""

    RANK_MASKS = "rank-masks"
    """DuoLoRA as this project reads the paper."""
    RELEASE = "release"
    """The authors' published code as it behaves, for comparison (`duolora.baselines.duolora_release`)."""


class Prompts(Frozen):
    """The words of one job. A caption is built around them: "a sbu dog", "a bicycle in szn style"."""

    subject_class: Word = Field("subject", description="What the subject is, in a word or two: dog, backpack, teapot.")
    content_trigger: Word = Field("sbu", description="Word that will call the subject.")
    style_trigger: Word = Field("szn", description="Word that will call the style.")
    style_captions: tuple[Caption, ...] = Field(
        (),
        max_length=MAX_IMAGES_PER_SIDE,
        description="What each style picture shows, without its style, in the order of the files: 'a bicycle'.",
    )
    content_captions: tuple[OptionalCaption, ...] = Field(
        (),
        max_length=MAX_IMAGES_PER_SIDE,
        description="What each content picture shows, content_trigger included, in the order of the files: "
        "'a sbu dog on a beach'. Left out or empty, a picture has the usual caption: 'a sbu dog'.",
    )

    @field_validator("content_captions")
    @classmethod
    def _captions_call_the_subject(cls, captions: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        trigger = info.data.get("content_trigger")  # absent when it was refused itself
        if trigger is None:
            return captions
        word = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)  # CLIP's tokenizers ignore case
        for index, caption in enumerate(captions):
            if caption and not word.search(caption):
                raise ValueError(
                    f"caption {index}, {caption!r}, lacks the word {trigger!r} (content_trigger), "
                    "so its picture would not teach it"
                )
        return captions

    @model_validator(mode="after")
    def _triggers_differ(self) -> Self:
        if self.content_trigger.casefold() == self.style_trigger.casefold():  # CLIP's tokenizers ignore case
            raise ValueError("content_trigger and style_trigger must differ, or the two LoRAs answer to the same word")
        return self

    @property
    def content(self) -> str:
        """Caption of the subject, and of every content picture that has none of its own."""
        return f"a {self.content_trigger} {self.subject_class}"

    def content_picture(self, index: int) -> str:
        """Caption of content picture `index`."""
        own = self.content_captions[index] if index < len(self.content_captions) else ""
        return own or self.content

    def style(self, index: int) -> str:
        """Caption of style picture `index`."""
        subject = self.style_captions[index] if index < len(self.style_captions) else self.style_class
        return f"{subject} in {self.style_trigger} style"

    @property
    def content_class(self) -> str:
        """Caption that asks for any subject of the class."""
        article = "an" if self.subject_class[0].lower() in "aeiou" else "a"
        return f"{article} {self.subject_class}"

    @property
    def style_class(self) -> str:
        """Caption that asks for a picture in any style."""
        return "a picture"

    @property
    def style_of_class(self) -> str:
        """Caption that asks for any subject of the class in the style, to show the style LoRA alone."""
        return f"{self.content_class} in {self.style_trigger} style"

    @property
    def joint(self) -> str:
        """Caption of the subject in the style, which no training picture has."""
        return f"{self.content} in {self.style_trigger} style"


class Preservation(Frozen):
    """Prior preservation (DreamBooth, Ruiz et al. 2023, section 3.2).

    Before the training, the base draws pictures of the class ("a dog"; for a style "a picture"). Every step then learns
    as many samples of them as of the caller's pictures, so that the class stays what it was.
    """

    weight: float = Field(0.0, ge=0, le=100, description="Weight of the class pictures' loss; 0 for none.")
    pictures: int = Field(16, ge=1, le=1000, description="Pictures of the class that the base draws.")


class LoraTrainConfig(Frozen):
    """Training of one LoRA."""

    steps: int = Field(ge=1, le=20_000)
    rank: int = Field(ge=1, le=256)
    learning_rate: float = Field(gt=0, le=0.1)
    batch_size: int = Field(1, ge=1, le=64)
    resolution_px: int = Field(1024, ge=64, le=2048, multiple_of=32)
    targets: TargetLayers = TargetLayers.ATTENTION
    snr_gamma: float | None = Field(None, gt=0, description="Min-SNR weighting (Hang et al. 2023); null for none.")
    warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises from 0.")
    flip: bool = Field(False, description="Mirror pictures at random.")
    company: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of a step's samples that meet the LoRAs of all sides at once, so that each learns to do its "
        "part in company. Above 0 the sides of a job are trained in one pass.",
    )
    preservation: Preservation = Preservation()
    text_encoder: bool = Field(
        False, description="Adapt the attention of the text encoders too, at the same rank and learning rate."
    )
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _company_has_samples(self) -> Self:
        if self.company > 0 and round(self.company * self.batch_size) == 0:
            raise ValueError(
                f"company {self.company} of a batch of {self.batch_size} is no sample at all; "
                "raise batch_size or company"
            )
        return self


class MergeConfig(Frozen):
    """DuoLoRA's merge: masks over the ranks of both LoRAs. The defaults are the paper's (section 4)."""

    method: MergeMethod = MergeMethod.RANK_MASKS
    start: MaskStart = MaskStart.LEADING
    ridge: float = Field(0.05, gt=0, le=100, description="Ridge of the closed form, as a share of the mean diagonal.")
    steps: int = Field(100, ge=0, le=5_000)
    learning_rate: float = Field(0.01, gt=0, le=1)
    batch_size: int = Field(1, ge=1, le=64, description="Noised samples per side and step.")
    bank_size: int = Field(16, ge=1, le=1024, description="Noised samples per side whose teachers are kept.")
    prior: LayerPrior = LayerPrior.RESOLUTION
    prior_weight: float = Field(0.1, ge=0, description="Weight of L_prior.")
    prior_hinge: float = Field(1.0, ge=0, description="Lambda of the rank constraint inside L_prior.")
    prior_start: float = Field(
        0.5, ge=0, le=1, description="Share of ones in the mask of a layer's minor side at the start."
    )
    constyle_weight: float = Field(0.01, ge=0, description="Weight of L_constyle.")
    constyle_every: int = Field(1, ge=1, description="Steps between two evaluations of the cycles.")
    prune_below: float = Field(
        1e-3,
        ge=0,
        lt=1,
        description="Ranks whose mask is smaller in absolute value are dropped from the file.",
    )
    seed: int = Field(0, ge=0, lt=2**63)

    @field_validator("prior")
    @classmethod
    def _leading_needs_a_prior(cls, prior: LayerPrior, info: ValidationInfo) -> LayerPrior:
        known = info.data
        leads = known.get("method") is MergeMethod.RANK_MASKS and known.get("start") is MaskStart.LEADING
        if leads and prior is LayerPrior.NONE:
            raise ValueError(
                "prior none leaves start leading no layer to lead in, so that it would be the plain sum; "
                "give prior resolution, or start ones for the sum"
            )
        return prior

    @property
    def needs_pictures(self) -> bool:
        """Whether it looks at pictures of the sides at all."""
        return self.steps > 0 or self.start is MaskStart.CLOSED_FORM or self.method is MergeMethod.RELEASE


Slider = Annotated[
    int,
    Field(
        ge=0,
        le=MAX_SLIDER,
        description="So many pictures of the merge, from all content to all style; 0 for none.",
        exclude_if=lambda positions: positions == 0,  # so that files of jobs without one stay what they were
    ),
]
"""How many pictures show what lies between the two sides."""

PreviewEvery = Annotated[
    int,
    Field(
        ge=0,
        description="Steps after which pictures are drawn with what the training has learnt by then; 0 for none.",
        exclude_if=lambda steps: steps == 0,
    ),
]
"""How often a training is shown."""


class GenerateConfig(Frozen):
    """Sampling of pictures."""

    steps: int = Field(30, ge=1, le=200)
    guidance_scale: float = Field(5.0, ge=0, le=30)
    images: int = Field(4, ge=1, le=16)
    resolution_px: int = Field(1024, ge=64, le=2048, multiple_of=32)
    seed: int = Field(0, ge=0, lt=2**63)


class PersonalizeConfig(Frozen):
    """Everything a `personalize` job computes from, besides the pictures."""

    schema_version: int = SCHEMA_VERSION
    recipe: str
    base_model: str
    prompts: Prompts
    content: LoraTrainConfig
    style: LoraTrainConfig
    merge: MergeConfig
    preview: GenerateConfig
    slider: Slider = 0
    preview_every: PreviewEvery = 0

    @field_validator("preview_every")
    @classmethod
    def _previews_are_few(cls, every: int, info: ValidationInfo) -> int:
        check_preview_every(every, [part for side in ("content", "style") if (part := info.data.get(side))])
        return every

    @model_validator(mode="after")
    def _company_is_mutual(self) -> Self:
        check_company(self.content, self.style)
        return self

    def of_side(self, side: str) -> LoraTrainConfig:
        """Return how one side is trained: `content` or `style`."""
        return self.content if side == "content" else self.style

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides that are trained."""
        return ("content", "style")

    @property
    def resolution_px(self) -> int:
        """The side of the pictures that the merge looks at; it decides the roles of the layers."""
        return self.content.resolution_px

    @property
    def trains_together(self) -> bool:
        """Whether both LoRAs are trained in one pass, each in the other's company."""
        return max(self.content.company, self.style.company) > 0


def check_preview_every(every: int, sides: Iterable[LoraTrainConfig]) -> None:
    """Refuse more pictures of a training than anybody looks at.

    Raises:
        ValueError: naming the least that may be asked for.
    """
    steps = max((side.steps for side in sides), default=0)
    if every and steps > every * (MAX_TRAINING_PREVIEWS + 1):
        least = -(-steps // (MAX_TRAINING_PREVIEWS + 1))
        raise ValueError(
            f"a training of {steps} steps is shown {MAX_TRAINING_PREVIEWS} times at most; "
            f"ask for every {least} steps or more"
        )


def check_company(content: LoraTrainConfig, style: LoraTrainConfig) -> None:
    """Refuse sides of which only one wants company, or that cannot keep it.

    Raises:
        ValueError: naming the fields.
    """
    if max(content.company, style.company) == 0:
        return
    if min(content.company, style.company) == 0:
        raise ValueError(
            "content.company and style.company must both be above 0, to train both sides in one pass, or both be 0"
        )
    if content.resolution_px != style.resolution_px:
        raise ValueError("content and style need the same resolution_px to keep each other company")
