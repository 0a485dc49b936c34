"""Rank masks in closed form: the masks are found by least squares, layer by layer, without a training step.

The output of a layer is linear in the masks. "On the inputs that content pictures bring, change the output as the
content LoRA alone would; on those of style pictures as the style LoRA alone would" is therefore a ridge least squares:

    min over m:  sum over sides k of  E_k || sum_i m_i u_i (v_i . x) - sum_(i in k) u_i (v_i . x) ||^2 / e_k
                 + ridge * mean(diag) * || m - toward ||^2

where u_i, v_i are the columns and rows of the joined factors, E_k the mean over tokens of side k's pictures, and e_k
the energy of side k's own change, so that both sides weigh the same (one that is nearly idle in a layer weighs less).
It needs the Gram matrices
G_k[i, j] = (u_i . u_j) E_k[(v_i . x)(v_j . x)] only, of size R x R.

J tenants, R joined ranks of a layer, O outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


SMALLEST_ENERGY = 1e-100
"""Stands for an energy of nothing at all; far above the smallest float64, so that its square still is a number."""


def rank_gram(up_JOR: Tensor, moments_JRR: Tensor) -> Tensor:
    """Return the Gram matrix of the ranks' outputs, (J, R, R) float64.

    Args:
        up_JOR: joined up factors.
        moments_JRR: mean over tokens of (v_i . x)(v_j . x).
    """
    up = up_JOR.to(torch.float64)
    return torch.bmm(up.mT, up) * moments_JRR.to(torch.float64)


def solve_masks(
    grams: Mapping[str, Tensor], spans: Mapping[str, slice], *, ridge: float, toward: float, idle: float = 1e-4
) -> Tensor:
    """Solve for the masks of one layer, (J, R) float32.

    Args:
        grams: side -> Gram matrix of all ranks on that side's inputs, (J, R, R) float64.
        spans: side -> where its own ranks stand among the R; a side that does not change the layer is absent.
        ridge: how strongly masks are held at `toward`, as a share of the mean diagonal.
        toward: value that masks return to where the inputs say nothing of a rank.
        idle: a side whose energy is below this share of the largest in the layer loses its say in proportion: its own
            change matters little there, while what it would demand of the others grows without bound.
    """
    first = next(iter(grams.values()))
    ranks, identity = first.shape[-1], torch.eye(first.shape[-1], dtype=first.dtype, device=first.device)
    normal_JRR, target_JR = torch.zeros_like(first), first.new_zeros(first.shape[:2])
    wanted, energies = {}, {}
    for side, span in spans.items():
        own_R = first.new_zeros(ranks)
        own_R[span] = 1
        wanted[side] = grams[side] @ own_R
        energies[side] = wanted[side] @ own_R
    largest_J = torch.stack(list(energies.values())).amax(dim=0).clamp(min=SMALLEST_ENERGY)
    for side, energy_J in energies.items():
        floor_J = idle * largest_J
        say_J = torch.where(energy_J > floor_J, 1 / energy_J.clamp(min=floor_J), energy_J / floor_J**2)
        normal_JRR = normal_JRR + grams[side] * say_J[:, None, None]
        target_JR = target_JR + wanted[side] * say_J[:, None]
    held_J = ridge * normal_JRR.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=SMALLEST_ENERGY)
    system_JRR = normal_JRR + held_J[:, None, None] * identity
    masks_JR: Tensor = torch.linalg.solve(system_JRR, target_JR + toward * held_J[:, None])
    return masks_JR.to(torch.float32)
