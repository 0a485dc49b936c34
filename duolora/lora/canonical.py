"""The canonical form of a LoRA: every layer in the basis of its own singular vectors.

Masks on ranks mean something only there: the best approximation of given rank keeps the leading singular values
(Eckart-Young), while the raw factors of a trained LoRA can be turned by any invertible R x R matrix.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from duolora.errors import InvalidLora
from duolora.lora.parts import PARTS_KEY
from duolora.lora.weights import LoraWeights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from duolora.lora.weights import LoraLayer

MOST_DEPENDENCE = 5e3
"""Norm of the inverse Cholesky factor of `down`, its rows brought to length 1, up to which Gram matrices are used."""
LEAST_SINGULAR_SHARE = 1e-5
"""The last singular value over the first, likewise: vectors are then orthogonal to about 1e-6."""
STACKED_NUMBERS = 4_000_000
"""Numbers of the layers that are decomposed together, 32 MB in float64."""
MOST_AT_ONCE = 8
"""Stacks that are decomposed at once, where the engine may use so many threads."""

CPU = torch.device("cpu")


def canonical_layer(layer: LoraLayer) -> LoraLayer:
    """Rewrite a layer so that `up = U sqrt(S)` and `down = sqrt(S) V^T`, singular values falling, alpha = R.

    No (O, I) matrix is ever formed. Signs are fixed by making the largest entry of each left vector positive. Computed
    in float64, returned in float32.
    """
    return _canonical_stack([layer], CPU)[0]


def canonicalise(weights: LoraWeights, device: torch.device = CPU) -> LoraWeights:
    """Bring every layer of a LoRA into canonical form; the change it makes to the base stays the same.

    The ranks of a merged LoRA's sides are mixed by it, so the result no longer says its parts. The long products are
    computed on `device`; the result is on the CPU.
    """
    words = {key: value for key, value in weights.metadata.items() if key != PARTS_KEY}
    stacks = list(_stacks(weights))
    at_once = min(MOST_AT_ONCE, torch.get_num_threads())
    with _one_thread_each(), ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        given = [[weights.layers[name] for name in names] for names in stacks]
        done = list(pool.map(partial(_canonical_stack, device=device), given))
    canonical = dict(
        zip((name for names in stacks for name in names), (each for of in done for each in of), strict=True)
    )
    return LoraWeights({name: canonical[name] for name in weights.layers}, words)


def _stacks(weights: LoraWeights) -> Iterator[Sequence[str]]:
    """Return the names of layers of one shape each time, as many as are decomposed together."""
    alike: dict[tuple[torch.Size, torch.Size], list[str]] = {}
    for name, layer in weights.layers.items():
        alike.setdefault((layer.up_OR.shape, layer.down_RI.shape), []).append(name)
    for names in alike.values():
        together = max(1, STACKED_NUMBERS // weights.layers[names[0]].numbers)
        for first in range(0, len(names), together):
            yield names[first : first + together]


def _canonical_stack(layers: Sequence[LoraLayer], device: torch.device) -> list[LoraLayer]:
    """Bring layers of one shape into canonical form."""
    outputs, ranks = layers[0].up_OR.shape
    if ranks > min(outputs, layers[0].down_RI.shape[1]):
        return [_by_qr(layer) for layer in layers]
    up_LOR = torch.stack([layer.up_OR.to(device) for layer in layers])
    down_LRI = torch.stack([layer.down_RI.to(device) for layer in layers])
    scale_L = torch.tensor([layer.scale for layer in layers], dtype=torch.float64)
    ups_LOR, downs_LRI, well_L = _by_gram(up_LOR.to(torch.float64), down_LRI.to(torch.float64), scale_L)
    return [
        layer.with_factors(down_RI, up_OR) if well else _by_qr(layer)
        for layer, well, down_RI, up_OR in zip(layers, well_L.tolist(), downs_LRI, ups_LOR, strict=True)
    ]


def _by_gram(up_LOR: Tensor, down_LRI: Tensor, scale_L: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Decompose L layers by their Gram matrices, half the work of two QRs; their factors, and for which they are right.

    With down down^T = L L^T the rows of L^-1 down are orthonormal, so that up L = U S W^T holds the singular values;
    W diagonalises its Gram matrix. Squaring halves the digits, which float64 can spare unless ranks are all but
    dependent or singular values far apart: such layers are said not to be well. The small matrices are the CPU's, which
    decomposes them sooner.
    """
    gram_LRR, up_gram_LRR = (down_LRI @ down_LRI.mT).cpu(), (up_LOR.mT @ up_LOR).cpu()
    if not all(gram.isfinite().all() for gram in (gram_LRR, up_gram_LRR)):
        raise InvalidLora("the factors of a layer hold infinite numbers or none at all; train again")
    lower_LRR, failed_L = torch.linalg.cholesky_ex(gram_LRR)
    identity_RR = torch.eye(gram_LRR.shape[1], dtype=torch.float64)
    lower_LRR = torch.where((failed_L == 0)[:, None, None], lower_LRR, identity_RR)
    lengths_LR = gram_LRR.diagonal(dim1=1, dim2=2).sqrt()
    inverse_LRR = torch.linalg.solve_triangular(lower_LRR, torch.diag_embed(lengths_LR), upper=False)
    well_L = (failed_L == 0) & (inverse_LRR.norm(dim=(1, 2)) < MOST_DEPENDENCE) & (scale_L > 0)
    squares_LR, turn_LRR = torch.linalg.eigh(lower_LRR.mT @ up_gram_LRR @ lower_LRR)
    well_L &= squares_LR[:, 0] > LEAST_SINGULAR_SHARE**2 * squares_LR[:, -1]
    singular_LR = scale_L[:, None] * squares_LR.flip(1).sqrt()
    turn_LRR, root_L1R = turn_LRR.flip(2), torch.where(well_L[:, None], singular_LR, 1.0).sqrt()[:, None]
    back_LRR = torch.linalg.solve_triangular(lower_LRR.mT, turn_LRR * root_L1R, upper=True)
    there_LRR = lower_LRR @ (turn_LRR * (scale_L[:, None, None] / root_L1R))
    ups_LOR = (up_LOR @ there_LRR.to(up_LOR.device)).to(torch.float32)
    sign_L1R = _signs(ups_LOR)[:, None]
    downs_LRI = (back_LRR.mT.to(down_LRI.device) @ down_LRI).to(torch.float32)
    return (ups_LOR * sign_L1R).cpu(), (downs_LRI * sign_L1R.mT).cpu(), well_L


def _by_qr(layer: LoraLayer) -> LoraLayer:
    """Decompose a layer by a thin QR of each factor and an SVD of the small product of both; right for every layer."""
    q_up_OK, r_up_KR = torch.linalg.qr(layer.up_OR.to(torch.float64))
    q_down_IK, r_down_KR = torch.linalg.qr(layer.down_RI.to(torch.float64).mT)
    left_KK, singular_K, right_KK = torch.linalg.svd(layer.scale * (r_up_KR @ r_down_KR.mT), full_matrices=False)
    root_K = singular_K.sqrt()
    up_OK = (q_up_OK @ (left_KK * root_K)).to(torch.float32)
    down_KI = ((root_K[:, None] * right_KK) @ q_down_IK.mT).to(torch.float32)
    sign_K = _signs(up_OK[None])[0]
    return layer.with_factors(down_KI * sign_K[:, None], up_OK * sign_K)


def _signs(ups_LOR: Tensor) -> Tensor:
    """Return the sign of every column's largest entry, (L, R)."""
    lowest_LR, highest_LR = ups_LOR.aminmax(dim=1)
    return torch.where(highest_LR >= -lowest_LR, 1.0, -1.0)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let matrix routines use one thread: on factors so thin more of them mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
