"""Random crop: the one augmentation that HIL-SERL uses (DrQ, arXiv 2004.13649)."""

import torch

PAD = 4


def crop_offsets(batch_size: int, device: torch.device | str) -> torch.Tensor:
    """One (y, x) offset in 0..8 per sample, int64 (B, 2); 4 leaves the image where it is."""
    return torch.randint(0, 2 * PAD + 1, (batch_size, 2), device=device)


def random_crop(images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Pad each image by 4 with its edge pixels and crop it back at its offset.

    Args:
        images: (B, H, W, C), any dtype.
        offsets: (B, 2) int64 in 0..8, y then x; pass the same for every camera of a sample.
    Returns: (B, H, W, C).
    """
    batch, height, width, _ = images.shape
    rows = torch.arange(height, device=images.device) + offsets[:, :1] - PAD  # (B, H)
    columns = torch.arange(width, device=images.device) + offsets[:, 1:] - PAD  # (B, W)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)  # clamping replicates the edge
    sample = torch.arange(batch, device=images.device)[:, None, None]
    return images[sample, rows[:, :, None], columns[:, None, :]]
