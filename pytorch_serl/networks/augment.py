"""Random crop: the one augmentation that HIL-SERL uses (DrQ, arXiv 2004.13649)."""

import torch

PAD = 4


def crop_offsets(batch_size: int, device: torch.device | str, generator: torch.Generator | None = None) -> torch.Tensor:
    """One (y, x) offset in 0..8 per sample, int64 (B, 2); 4 leaves the image where it is."""
    return torch.randint(0, 2 * PAD + 1, (batch_size, 2), device=device, generator=generator)


def random_crop(images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Pad each image by 4 with its edge pixels and crop it back at its offset.

    Args:
        images: (B, H, W, C), any dtype.
        offsets: (B, 2) int64 in 0..8, y then x; pass the same for every camera of a sample.
    Returns: (B, H, W, C).
    """
    return _copy_blocks(images, offsets) if images.device.type == "cpu" else _gather(images, offsets)


def _gather(images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Each pixel by its index: no loop and no synchronisation, but 15 times slower than blocks on a CPU."""
    batch, height, width, _ = images.shape
    rows = torch.arange(height, device=images.device) + offsets[:, :1] - PAD  # (B, H)
    columns = torch.arange(width, device=images.device) + offsets[:, 1:] - PAD  # (B, W)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)  # clamping replicates the edge
    sample = torch.arange(batch, device=images.device)[:, None, None]
    return images[sample, rows[:, :, None], columns[:, None, :]]


def _copy_blocks(images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """One block of each image, and up to two edges beside it."""
    height, width = images.shape[1:3]
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    for source, target, (y, x) in zip(images.numpy(), out.numpy(), (offsets - PAD).tolist()):
        top, bottom, left, right = max(0, -y), min(height, height - y), max(0, -x), min(width, width - x)
        target[top:bottom, left:right] = source[top + y : bottom + y, left + x : right + x]
        target[top:bottom, :left] = target[top:bottom, left : left + 1]
        target[top:bottom, right:] = target[top:bottom, right - 1 : right]
        target[:top], target[bottom:] = target[top], target[bottom - 1]
    return out
