# SPDX-License-Identifier: Apache-2.0
"""The relative pose network of Reloc3r (Dong et al., CVPR 2025): two images -> the pose of each in the other's frame.

A ViT encodes each image, two decoders of shared weights attend to each other, and a head reads a rotation and a
translation from each of them. The translation has a direction, but no scale that means anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.networks.rotations import nearest_rotation

ROPE_BASE = 100.0
PUBLISHED_HEAD_DIM = 64          # channels of an attention head in the release: 16 heads of 1024, 12 of 768
_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class RelativePoseConfig:
    """Sizes, with the names and defaults of the release. img_size: width in pixels of the images that the network was
    trained on; 224 means square images."""

    img_size: int = 512
    patch_size: int = 16
    enc_embed_dim: int = 1024
    enc_depth: int = 24
    enc_num_heads: int = 16
    dec_embed_dim: int = 768
    dec_depth: int = 12
    dec_num_heads: int = 12


def _rope(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary position embedding in two dimensions: half of the channels turn with the row, the others with the column.

    x (B, heads, N, d); positions (N, 2), row and column of each token.
    """
    return torch.cat([_turn(part, positions[:, axis]) for axis, part in enumerate(x.chunk(2, -1))], -1)


def _turn(x: Tensor, position: Tensor) -> Tensor:
    size = x.shape[-1]
    inverse = ROPE_BASE ** (-torch.arange(0, size, 2, device=x.device).float() / size)
    angle = (position[:, None].float() * inverse).repeat(1, 2)
    first, second = x.chunk(2, -1)
    return x * angle.cos().to(x.dtype) + torch.cat([-second, first], -1) * angle.sin().to(x.dtype)


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, C / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        q, k, v = (_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        y = functional.scaled_dot_product_attention(_rope(q, positions), _rope(k, positions), v)
        return self.proj(y.transpose(1, 2).flatten(2))


class _CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.projq, self.projk, self.projv, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, other: Tensor, positions: Tensor, other_positions: Tensor) -> Tensor:
        q, k, v = (_heads(layer(tokens), self.heads) for layer, tokens in
                   ((self.projq, x), (self.projk, other), (self.projv, other)))
        y = functional.scaled_dot_product_attention(_rope(q, positions), _rope(k, other_positions), v)
        return self.proj(y.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class _EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, _EPS), nn.LayerNorm(width, _EPS)
        self.attn, self.mlp = _SelfAttention(width, heads), _Mlp(width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), positions)
        return x + self.mlp(self.norm2(x))


class _DecoderBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3, self.norm_y = (nn.LayerNorm(width, _EPS) for _ in range(4))
        self.attn, self.cross_attn = _SelfAttention(width, heads), _CrossAttention(width, heads)
        self.mlp = _Mlp(width)

    def forward(self, x: Tensor, other: Tensor, positions: Tensor, other_positions: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), positions)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(other), positions, other_positions)
        return x + self.mlp(self.norm3(x))


class _ResidualConvolutions(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.res_conv1, self.res_conv2, self.res_conv3 = (nn.Conv2d(width, width, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.res_conv1(x))
        y = functional.relu(self.res_conv2(y))
        return x + functional.relu(self.res_conv3(y))


class _PoseHead(nn.Module):
    def __init__(self, config: RelativePoseConfig):
        super().__init__()
        width = 4 * config.patch_size**2
        self.proj = nn.Linear(config.dec_embed_dim, width)
        self.res_conv = nn.ModuleList(_ResidualConvolutions(width) for _ in range(2))
        self.more_mlps = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.fc_t, self.fc_rot = nn.Linear(width, 3), nn.Linear(width, 9)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, N, C) of a grid of rows and columns -> poses (B, 4, 4)."""
        x = self.proj(tokens).transpose(1, 2).unflatten(2, grid)
        for block in self.res_conv:
            x = block(x)
        x = self.more_mlps(x.mean((2, 3)))
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            pose = torch.eye(4, device=x.device).repeat(len(x), 1, 1)
            pose[:, :3, :3] = nearest_rotation(functional.linear(x, self.fc_rot.weight.float(),
                                                                 self.fc_rot.bias.float()).unflatten(1, (3, 3)))
            pose[:, :3, 3] = functional.linear(x, self.fc_t.weight.float(), self.fc_t.bias.float())
        return pose


@dataclass(frozen=True, kw_only=True)
class ImageTokens:
    """Encoder tokens (B, N, C) of images, row-major on a grid of rows and columns."""

    tokens: Tensor
    grid: tuple[int, int]


class RelativePoseNet(nn.Module):
    """The published network, of any size. State-dict keys are the release's."""

    def __init__(self, config: RelativePoseConfig):
        super().__init__()
        self.config = config
        width, size = config.enc_embed_dim, config.patch_size
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, size, size)})
        self.enc_blocks = nn.ModuleList(_EncoderBlock(width, config.enc_num_heads) for _ in range(config.enc_depth))
        self.enc_norm = nn.LayerNorm(width, _EPS)
        self.decoder_embed = nn.Linear(width, config.dec_embed_dim)
        self.dec_blocks = nn.ModuleList(_DecoderBlock(config.dec_embed_dim, config.dec_num_heads)
                                        for _ in range(config.dec_depth))
        self.dec_norm = nn.LayerNorm(config.dec_embed_dim, _EPS)
        self.pose_head = _PoseHead(config)

    def encode(self, images: Tensor) -> ImageTokens:
        """Encode images (B, 3, H, W), RGB in [-1, 1]; sides are multiples of the patch size."""
        x = self.patch_embed["proj"](images)
        grid = (x.shape[2], x.shape[3])
        x, positions = x.flatten(2).transpose(1, 2), _positions(grid, x.device)
        for block in self.enc_blocks:
            x = block(x, positions)
        return ImageTokens(tokens=self.enc_norm(x), grid=grid)

    def decode(self, first: ImageTokens, second: ImageTokens) -> tuple[Tensor, Tensor]:
        """Return the poses (B, 4, 4) of pairs of images: first_from... of the first image, and of the second.

        The second one maps points of the second camera into the first (`first_from_second`), the first one the other
        way round. The length of a translation means nothing.
        """
        positions = [_positions(image.grid, image.tokens.device) for image in (first, second)]
        a, b = self.decoder_embed(first.tokens), self.decoder_embed(second.tokens)
        for block in self.dec_blocks:
            a, b = block(a, b, *positions), block(b, a, *positions[::-1])
        return (self.pose_head(self.dec_norm(a), first.grid), self.pose_head(self.dec_norm(b), second.grid))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1], twice -> the two poses of `decode`."""
        return self.decode(self.encode(first), self.encode(second))


def _positions(grid: tuple[int, int], device: torch.device) -> Tensor:
    rows, columns = (torch.arange(count, device=device) for count in grid)
    return torch.cartesian_prod(rows, columns)


def config_from_release(state: Mapping[str, Tensor], img_size: int) -> RelativePoseConfig:
    """Read the sizes of a network from a state dict of the release, whose heads have PUBLISHED_HEAD_DIM channels.

    Raises ValueError, saying what differs, if it is not the state dict of such a network.
    """
    try:
        width, _, size, _ = state["patch_embed.proj.weight"].shape
        decoder_width = len(state["decoder_embed.weight"])
    except KeyError as error:
        raise ValueError(f"it has no {error.args[0]}") from None
    if width % PUBLISHED_HEAD_DIM or decoder_width % PUBLISHED_HEAD_DIM:
        raise ValueError(f"its widths {width} and {decoder_width} are not multiples of {PUBLISHED_HEAD_DIM}")
    config = RelativePoseConfig(
        img_size=img_size, patch_size=size, enc_embed_dim=width, enc_depth=_depth(state, "enc_blocks"),
        enc_num_heads=width // PUBLISHED_HEAD_DIM, dec_embed_dim=decoder_width, dec_depth=_depth(state, "dec_blocks"),
        dec_num_heads=decoder_width // PUBLISHED_HEAD_DIM)
    with torch.device("meta"):                                      # 0.4 billion parameters: shapes are enough
        expected = RelativePoseNet(config).state_dict()
    for key in sorted(expected.keys() | state.keys()):
        if key not in state or key not in expected:
            raise ValueError(f"it has {'no' if key in expected else 'an unknown'} {key}")
        if state[key].shape != expected[key].shape:
            raise ValueError(f"its {key} is {tuple(state[key].shape)}, not {tuple(expected[key].shape)}")
    return config


def _depth(state: Mapping[str, Tensor], blocks: str) -> int:
    return len({key.split(".")[1] for key in state if key.startswith(f"{blocks}.")})
