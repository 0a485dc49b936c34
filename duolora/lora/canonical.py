"""The canonical form of a LoRA: every layer in the basis of its own singular vectors.

Masks on ranks mean something only there: the best approximation of given rank keeps the leading singular values
(Eckart-Young), while the raw factors of a trained LoRA can be turned by any invertible R x R matrix.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from duolora.lora.parts import PARTS_KEY
from duolora.lora.weights import LoraWeights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from duolora.lora.weights import LoraLayer

LEAST_INDEPENDENCE = 1e-3
"""Part of a row's length that must stand apart from the rows before it, for Gram matrices to be used."""
LEAST_SINGULAR_SHARE = 1e-5
"""The last singular value over the first, likewise: vectors are then orthogonal to about 1e-6."""
MOST_AT_ONCE = 8
"""Layers that are decomposed at once, where the engine may use so many threads."""


def canonical_layer(layer: LoraLayer) -> LoraLayer:
    """Rewrite a layer so that `up = U sqrt(S)` and `down = sqrt(S) V^T`, singular values falling, alpha = R.

    No (O, I) matrix is ever formed. Signs are fixed by making the largest entry of each left vector positive. Computed
    in float64, returned in float32.
    """
    up_OR, down_RI = layer.up_OR.to(torch.float64), layer.down_RI.to(torch.float64)
    factors = _by_gram(up_OR, down_RI, layer.scale) or _by_qr(up_OR, down_RI, layer.scale)
    up_OK, down_KI = (factor.to(torch.float32) for factor in factors)
    lowest_K, highest_K = up_OK.aminmax(dim=0)
    sign_K = torch.where(highest_K >= -lowest_K, 1.0, -1.0)
    return layer.with_factors(down_KI * sign_K[:, None], up_OK * sign_K)


def _by_gram(up_OR: Tensor, down_RI: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
    """Return balanced factors but for their signs, by Gram matrices; None where these would lose too many digits.

    With down down^T = L L^T the rows of L^-1 down are orthonormal, so that up L = U S W^T holds the singular values;
    W diagonalises its Gram matrix. Half the work of two QRs. Squaring halves the digits, which float64 can spare unless
    ranks are all but dependent or singular values far apart; the product of the factors is right in any case.
    """
    if scale <= 0 or up_OR.shape[1] > min(up_OR.shape[0], down_RI.shape[1]):
        return None
    gram_RR = down_RI @ down_RI.mT
    lower_RR, failed = torch.linalg.cholesky_ex(gram_RR)
    if failed or not bool((lower_RR.diagonal() > LEAST_INDEPENDENCE * gram_RR.diagonal().sqrt()).all()):
        return None
    squares_R, turn_RR = torch.linalg.eigh(lower_RR.mT @ (up_OR.mT @ up_OR) @ lower_RR)
    if not bool(squares_R[0] > LEAST_SINGULAR_SHARE**2 * squares_R[-1]):
        return None
    turn_RR, root_R = turn_RR.flip(1), (scale * squares_R.flip(0).sqrt()).sqrt()
    back_RR = torch.linalg.solve_triangular(lower_RR.mT, turn_RR * root_R, upper=True)
    return up_OR @ (lower_RR @ (turn_RR * (scale / root_R))), back_RR.mT @ down_RI


def _by_qr(up_OR: Tensor, down_RI: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return balanced factors but for their signs, by a thin QR of each and an SVD of the small product of both."""
    q_up_OK, r_up_KR = torch.linalg.qr(up_OR)
    q_down_IK, r_down_KR = torch.linalg.qr(down_RI.mT)
    left_KK, singular_K, right_KK = torch.linalg.svd(scale * (r_up_KR @ r_down_KR.mT), full_matrices=False)
    root_K = singular_K.sqrt()
    return q_up_OK @ (left_KK * root_K), (root_K[:, None] * right_KK) @ q_down_IK.mT


def canonicalise(weights: LoraWeights) -> LoraWeights:
    """Bring every layer of a LoRA into canonical form; the change it makes to the base stays the same.

    The ranks of a merged LoRA's sides are mixed by it, so the result no longer says its parts.
    """
    words = {key: value for key, value in weights.metadata.items() if key != PARTS_KEY}
    at_once = min(MOST_AT_ONCE, torch.get_num_threads())
    with _one_thread_each(), ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        layers = pool.map(canonical_layer, weights.layers.values())
        return LoraWeights(dict(zip(weights.layers, layers, strict=True)), words)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let matrix routines use one thread: on factors so thin more of them mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
