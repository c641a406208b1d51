"""Sample grids."""

from __future__ import annotations

import torch

from ldm.training.image_grid import FRAME, RIGHT, WRONG, framed


def test_a_frame_has_the_colour_of_its_verdict_and_leaves_the_picture() -> None:
    images = torch.linspace(-1, 1, 2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    made = framed(images, torch.tensor([True, False]))
    assert made.shape == (2, 3, 4 + 2 * FRAME, 6 + 2 * FRAME)
    torch.testing.assert_close(made[:, :, FRAME:-FRAME, FRAME:-FRAME], images)
    for picture, colour in zip(made, (RIGHT, WRONG), strict=True):
        torch.testing.assert_close(picture[:, 0, 0], torch.tensor(colour) * 2 - 1)
        torch.testing.assert_close(picture[:, -1, -1], torch.tensor(colour) * 2 - 1)
