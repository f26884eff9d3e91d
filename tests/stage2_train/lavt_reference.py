"""LAVT said again, plainly, under the names of its published checkpoints: what `official_weights` must reproduce.

Written from the papers (Swin, arXiv 2103.14030; LAVT, arXiv 2112.02244). Sizes are parameters; everything is slow and
explicit on purpose, and shares no code with the network under test.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WindowAttention(nn.Module):
    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        offset = place.flatten(1)[:, :, None] - place.flatten(1)[:, None, :] + window - 1
        self.register_buffer("relative_position_index", offset[0] * (2 * window - 1) + offset[1])

    def forward(self, tokens: Tensor, region: Tensor) -> Tensor:
        """One window of one image, [w*w, C]; tokens of different regions do not see each other."""
        num, dim = tokens.shape
        per_head = dim // self.heads
        query, key, value = self.qkv(tokens).reshape(num, 3, self.heads, per_head).permute(1, 2, 0, 3)
        score = query @ key.transpose(1, 2) / per_head**0.5
        score = score + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        score = score.masked_fill(region[:, None] != region[None, :], -100.0)
        return self.proj((score.softmax(-1) @ value).transpose(0, 1).reshape(num, dim))


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, window: int, heads: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = WindowAttention(dim, window, heads), Mlp(dim)

    def forward(self, image: Tensor) -> Tensor:
        """[H, W, C] of one image."""
        height, width, dim = image.shape
        window, shift = self.window, self.shift
        padded = F.pad(self.norm1(image), (0, 0, 0, -width % window, 0, -height % window))
        rows, columns = padded.shape[:2]
        region = torch.zeros(rows, columns)
        if shift:
            cut_y, cut_x = torch.zeros(rows), torch.zeros(columns)
            cut_y[-window:], cut_x[-window:] = 1, 1
            cut_y[-shift:], cut_x[-shift:] = 2, 2
            region = 3 * cut_y[:, None] + cut_x[None, :]
            padded = padded.roll((-shift, -shift), (0, 1))
        out = torch.zeros_like(padded)
        for top in range(0, rows, window):
            for left in range(0, columns, window):
                here = (slice(top, top + window), slice(left, left + window))
                attended = self.attn(padded[here].reshape(-1, dim), region[here].reshape(-1))
                out[here] = attended.reshape(window, window, dim)
        if shift:
            out = out.roll((shift, shift), (0, 1))
        image = image + out[:height, :width]
        return image + self.mlp(self.norm2(image))


class Merging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        image = F.pad(image, (0, 0, 0, image.shape[1] % 2, 0, image.shape[0] % 2))
        corners = [image[y::2, x::2] for x in (0, 1) for y in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class WordsForPixels(nn.Module):
    """The attention inside the pixel-word module."""

    def __init__(self, dim: int, text_dim: int) -> None:
        super().__init__()
        self.f_key = nn.Sequential(nn.Conv1d(text_dim, dim, 1))
        self.f_query = nn.Sequential(nn.Conv1d(dim, dim, 1), nn.InstanceNorm1d(dim))
        self.f_value = nn.Sequential(nn.Conv1d(text_dim, dim, 1))
        self.W = nn.Sequential(nn.Conv1d(dim, dim, 1), nn.InstanceNorm1d(dim))

    def forward(self, pixels: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """pixels [B, C, N], words [B, L, T], mask [B, T] of 0 and 1."""
        query, key, value = self.f_query(pixels), self.f_key(words), self.f_value(words)
        score = torch.einsum("bcn,bct->bnt", query, key) / query.shape[1] ** 0.5
        weight = (score + 1e4 * (mask[:, None, :] - 1)).softmax(-1)
        return self.W(torch.einsum("bnt,bct->bcn", weight, value * mask[:, None, :]))


class Fusion(nn.Module):
    def __init__(self, dim: int, text_dim: int) -> None:
        super().__init__()
        self.vis_project = nn.Sequential(nn.Conv1d(dim, dim, 1), nn.GELU(), nn.Dropout(0.0))
        self.image_lang_att = WordsForPixels(dim, text_dim)
        self.project_mm = nn.Sequential(nn.Conv1d(dim, dim, 1), nn.GELU(), nn.Dropout(0.0))

    def forward(self, pixels: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        return self.project_mm(self.vis_project(pixels) * self.image_lang_att(pixels, words, mask))


class Stage(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, window: int, text_dim: int, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, window, heads, window // 2 * (i % 2)) for i in range(depth))
        self.fusion = Fusion(dim, text_dim)
        self.res_gate = nn.Sequential(
            nn.Linear(dim, dim, bias=False), nn.ReLU(), nn.Linear(dim, dim, bias=False), nn.Tanh()
        )
        self.downsample = None if last else Merging(dim)

    def forward(self, images: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """images [B, H, W, C]; returns what the decoder reads and what goes on."""
        for block in self.blocks:
            images = torch.stack([block(image) for image in images])
        fused = self.fusion(images.flatten(1, 2).transpose(1, 2), words, mask).transpose(1, 2)
        fused = fused.reshape(images.shape)
        images = images + self.res_gate(fused) * fused
        if self.downsample is not None:
            images = torch.stack([self.downsample(image) for image in images])
        return fused, images


class Patches(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, dim, 4, stride=4), nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class Backbone(nn.Module):
    def __init__(
        self, dim: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, text_dim: int
    ) -> None:
        super().__init__()
        self.patch_embed = Patches(dim)
        self.layers = nn.ModuleList(
            Stage(dim * 2**i, depth, heads[i], window, text_dim, i == 3) for i, depth in enumerate(depths)
        )
        for i in range(4):
            self.add_module(f"norm{i}", nn.LayerNorm(dim * 2**i))

    def forward(self, image: Tensor, words: Tensor, mask: Tensor) -> list[Tensor]:
        x, maps = self.patch_embed(image), []
        for i, stage in enumerate(self.layers):
            read, x = stage(x, words, mask)
            maps.append(getattr(self, f"norm{i}")(read).permute(0, 3, 1, 2))
        return maps


class Decoder(nn.Module):
    def __init__(self, top: int) -> None:
        super().__init__()
        width = top // 2
        for name, skip in (("4", top // 2), ("3", top // 4), ("2", top // 8)):
            below = top if name == "4" else width
            self.add_module(f"conv1_{name}", nn.Conv2d(below + skip, width, 3, padding=1, bias=False))
            self.add_module(f"bn1_{name}", nn.BatchNorm2d(width))
            self.add_module(f"conv2_{name}", nn.Conv2d(width, width, 3, padding=1, bias=False))
            self.add_module(f"bn2_{name}", nn.BatchNorm2d(width))
        self.conv1_1 = nn.Conv2d(width, 2, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = maps[3]
        for name, skip in (("4", maps[2]), ("3", maps[1]), ("2", maps[0])):
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=True)
            x = torch.cat([x, skip], dim=1)
            for layer in ("1", "2"):
                x = self.get_submodule(f"conv{layer}_{name}")(x)
                x = self.get_submodule(f"bn{layer}_{name}")(x).relu()
        return self.conv1_1(x)


class Lavt(nn.Module):
    """Image and word features to two logits at the image's size."""

    def __init__(
        self, dim: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, text_dim: int
    ) -> None:
        super().__init__()
        self.backbone = Backbone(dim, depths, heads, window, text_dim)
        self.classifier = Decoder(8 * dim)

    def forward(self, image: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """image [B, 3, H, W], words [B, L, T], mask [B, T]."""
        logit = self.classifier(self.backbone(image, words, mask.to(words.dtype)))
        return F.interpolate(logit, size=image.shape[-2:], mode="bilinear", align_corners=True)
