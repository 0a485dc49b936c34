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

    from duolora.lora.weights import LoraLayer

MOST_AT_ONCE = 8
"""Layers that are decomposed at once, where the engine may use so many threads."""


def canonical_layer(layer: LoraLayer) -> LoraLayer:
    """Rewrite a layer so that `up = U sqrt(S)` and `down = sqrt(S) V^T`, singular values falling, alpha = R.

    A thin QR of each factor reduces the problem to an R x R SVD, so no (O, I) matrix is ever formed. Signs are fixed
    by making the largest entry of each left vector positive. Computed in float64, returned in float32.
    """
    up_OR = layer.up_OR.to(torch.float64)
    down_RI = layer.down_RI.to(torch.float64)
    q_up_OK, r_up_KR = torch.linalg.qr(up_OR)
    q_down_IK, r_down_KR = torch.linalg.qr(down_RI.mT)
    left_KK, singular_K, right_KK = torch.linalg.svd(layer.scale * (r_up_KR @ r_down_KR.mT), full_matrices=False)
    u_OK = q_up_OK @ left_KK
    v_KI = right_KK @ q_down_IK.mT
    sign_K = torch.sign(u_OK.gather(0, u_OK.abs().argmax(dim=0, keepdim=True))[0])
    root_K = singular_K.sqrt()
    return layer.with_factors(
        ((sign_K * root_K)[:, None] * v_KI).to(torch.float32), (u_OK * (sign_K * root_K)).to(torch.float32)
    )


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
