"""A U-Net with the project's kernels against one without."""

from __future__ import annotations

import pytest
import torch

from duolora.models.fused import fuse
from tests.duolora.models.test_lean import prediction
from tests.duolora.pico import pico_unet


def test_nothing_changes_without_a_gpu():
    unet = pico_unet()
    fuse(unet, torch.device("cpu"))
    assert not any("forward" in vars(module) for module in unet.modules())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_predictions_and_gradients_stay_the_same_on_a_gpu():
    torch.manual_seed(0)
    usual, fused = pico_unet().eval().cuda(), pico_unet().eval().cuda()
    fused.load_state_dict(usual.state_dict())
    fuse(fused, torch.device("cuda"))
    assert any("forward" in vars(module) for module in fused.modules())
    for found, expected in zip(prediction(fused), prediction(usual), strict=True):
        assert (found - expected).norm() <= 1e-4 * expected.norm()
