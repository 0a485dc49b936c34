"""Memory profiles: what the engine does with the memory of a card, one decision a field.

A profile is named for the card that a whole SDXL job at 1024 px and rank 64 is to fit on. GiB of tensors that such a
job takes, counted: passes of SDXL's U-Net and VAE with the engine's adapters ran on tensors without storage, an
attention that keeps no scores in place of PyTorch's. Work space of convolutions, what the allocator cannot use between
tensors, and the driver's half GiB come on top. The last three lines were measured on an H100 that was allowed no more
(`tests/benchmarks/gpu.md`); 8gb has not been shown to end there yet.

| what lies on the card                                       | 80gb | 24gb | 16gb | 12gb |  8gb |
| ----------------------------------------------------------- | ---- | ---- | ---- | ---- | ---- |
| U-Net: 2,567 M numbers in bf16; 8gb: 2,208 M of them in int8 | 4.78 | 4.78 | 4.78 | 4.78 | 2.73 |
| text encoders in bf16 (818 M), VAE in float32 (84 M)        | 1.83 |  (0) |  (0) |  (0) |  (0) |
| a side that learns: 92.9 M numbers, gradients, Adam's two   | 1.38 | 1.38 | 1.38 | 1.38 | 1.38 |
| its copies in bf16 for whole steps, and their gradients     |  .35 |  .35 |    - |    - |    - |
| a pass that learns: 5.7 a sample; recomputed .43, and .12   |  5.7 |  5.7 |  .55 |  .55 |  .55 |
| training, one side: all that                                | 14.0 | 12.2 |  6.7 |  6.7 |  4.7 |
| training, both sides in one pass or in parts                | 21.5 | 13.2 |  9.6 |  8.4 |  6.4 |
| merge with cycles, 6 samples kept; both LoRAs .69           | 37.8 |  8.7 |  8.7 |  8.7 |  6.7 |
| sampling 4 pictures with guidance, the merged LoRA          |  8.9 |  7.1 |  7.1 |  7.1 |  5.0 |
| VAE at work, 3.0 a picture; the U-Net gives way in the last | 19.3 |  8.8 |  8.8 |  3.3 |  3.3 |
| text encoders at work, a LoRA in place                      |  8.9 |  7.0 |  7.0 |  7.0 |  5.0 |
| measured: training                                          | 21.8 | 11.5 |  8.3 |  6.5 |    - |
| measured: merge with cycles                                 | 32.4 |  9.3 |  8.8 |  8.8 |    - |
| measured: one picture sampled and drawn by the VAE          | 13.8 | 12.3 | 11.9 |  7.2 |    - |

Without 8-bit weights a card of 8 GiB would have to hold 8.4 in training and 8.7 in the merge: only 8gb has them.
The recording of a whole step is what makes training fast: 24gb keeps it (a side by itself, a sample a step), which the
smaller ones cannot, as recomputed blocks are not recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duolora.errors import InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

GIB = 2**30
AUTO = "auto"

SDXL_UNET_NUMBERS = 2_567_463_684
"""Size of the U-Net that `needs_gib` is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryProfile:
    """How the engine treats the memory of its device; the results are the same but for rounding, unless it says so."""

    name: str
    needs_gib: float
    """Free memory from which on the profile is chosen by itself: its largest sum, and some for what sums leave out."""
    parks_encoders: bool = False
    """The VAE and the text encoders wait on the CPU and are on the card only while they work."""
    unet_gives_way: bool = False
    """The U-Net waits on the CPU while the VAE works. Where weights move, no pass may be recorded."""
    recomputes_training: bool = False
    """Training passes keep the inputs of the U-Net's blocks only, and compute the blocks again."""
    recomputes_merge: bool = False
    """The same for the steps of a merge, which hold several passes at once."""
    learns_at_once: int | None = None
    """Most samples of a training pass; a larger step is taken in parts. None: any number."""
    predicts_at_once: int | None = None
    """Most samples of a pass that nothing learns from."""
    pictures_at_once: int | None = None
    """Most pictures that the VAE encodes or decodes at once."""
    pairs: bool = True
    """Whether training two sides in one pass is worth while; where it is not, it works all the same."""
    eight_bit_unet: bool = False
    """The U-Net's transformers are held as 8-bit integers, so that results differ (`duolora.models.eight_bit`)."""

    @property
    def records(self) -> bool:
        """Whether passes of the U-Net may be recorded: its weights stay in place."""
        return not self.unet_gives_way

    @property
    def fuses(self) -> bool:
        """Whether a LoRA may be added to the U-Net's weights: they stay in place, as whole numbers of their dtype."""
        return not self.unet_gives_way and not self.eight_bit_unet

    @property
    def shares_passes(self) -> bool:
        """Whether several tenants may share a pass: not where passes are split or computed again."""
        return self.learns_at_once is None and self.predicts_at_once is None and not self.recomputes_training


UNLIMITED = MemoryProfile(name="80gb", needs_gib=44)
"""Everything stays where it is, every pass as large as it comes; also what a CPU has."""
_LIMITED = (
    MemoryProfile(
        name="24gb",
        needs_gib=17,
        parks_encoders=True,
        recomputes_merge=True,
        learns_at_once=1,
        predicts_at_once=8,
        pictures_at_once=1,
        pairs=False,
    ),
    MemoryProfile(
        name="16gb",
        needs_gib=12,
        parks_encoders=True,
        recomputes_training=True,
        recomputes_merge=True,
        learns_at_once=4,
        predicts_at_once=8,
        pictures_at_once=1,
    ),
    MemoryProfile(
        name="12gb",
        needs_gib=10,
        parks_encoders=True,
        unet_gives_way=True,
        recomputes_training=True,
        recomputes_merge=True,
        learns_at_once=1,
        predicts_at_once=8,
        pictures_at_once=1,
        pairs=False,
    ),
    MemoryProfile(
        name="8gb",
        needs_gib=7.2,
        parks_encoders=True,
        unet_gives_way=True,
        recomputes_training=True,
        recomputes_merge=True,
        learns_at_once=1,
        predicts_at_once=8,
        pictures_at_once=1,
        pairs=False,
        eight_bit_unet=True,
    ),
)
PROFILES: Mapping[str, MemoryProfile] = {profile.name: profile for profile in (UNLIMITED, *_LIMITED)}
"""All profiles by name, the largest first."""

SPARING = PROFILES["12gb"]
"""The smallest profile with the weights that the larger ones have."""


def named_profile(name: str, source: str = "memory") -> MemoryProfile | None:
    """Return a profile by its name, None for `auto`: then the card decides once the base is known.

    Args:
        name: as written by a caller.
        source: option or variable it came from, for the error.

    Raises:
        InvalidConfig: there is no such profile.
    """
    if name == AUTO:
        return None
    if name not in PROFILES:
        raise InvalidConfig(f"{source} is {name!r}, which is no memory profile; known: {AUTO}, {', '.join(PROFILES)}")
    return PROFILES[name]


def choose_profile(free_bytes: int, unet_numbers: int = SDXL_UNET_NUMBERS) -> MemoryProfile:
    """Return the largest profile that fits; the smallest where none does, as it may yet suffice for a small job.

    Args:
        free_bytes: memory of the card that nobody uses, before the base is on it.
        unet_numbers: size of the base's U-Net; needs are taken to grow with it, since both weights and activations do.
    """
    share = unet_numbers / SDXL_UNET_NUMBERS
    for profile in PROFILES.values():
        if free_bytes >= profile.needs_gib * share * GIB:
            return profile
    return list(PROFILES.values())[-1]


def after_out_of_memory(used: MemoryProfile) -> MemoryProfile:
    """Return the profile for the one further try of work that ran out of memory.

    As small as it can be without other weights than the first try had; below that, the smallest there is.
    """
    names = list(PROFILES)
    smaller = names.index(used.name) < names.index(SPARING.name)
    return SPARING if smaller else list(PROFILES.values())[-1]
