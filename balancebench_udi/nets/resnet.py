"""torchvision's ResNet-18 with the same values and gradients, less kept for a backward pass and fewer copies.

A network of the exact modules and names of torchvision's. On a CPU in training mode what a backward pass needs and can
compute again in little time is not kept; on a GPU, where memory is not short, two kernels are avoided that copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, ResNet


def widened(conv: nn.Conv2d, x: Tensor, channels: int = 4) -> Tensor:
    """``conv(x)`` of ``x [B, C, H, W]``, with channels of zeros beside C up to ``channels``: the same up to rounding.

    On a GPU a convolution of a single channel turns layouts back and forth: with four, the passes of a ResNet-18 take
    8 % less time (bf16, H100).
    """
    more = channels - x.shape[1]
    x, weight = (functional.pad(t.permute(0, 2, 3, 1), (0, more)).permute(0, 3, 1, 2) for t in (x, conv.weight))
    return functional.conv2d(x, weight, conv.bias, conv.stride, conv.padding)


class _Stem(torch.autograd.Function):
    """Batch norm of the batch, max pooling and ReLU in one; backward computes the first two again from the input.

    It is the arithmetic of the three modules, bit for bit, and of a quarter of the ReLU, which comes before the pooling
    in the modules. It keeps one result where they keep three, in fp32 a fifth of what a ResNet-18 on 224 x 224 keeps
    for its backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, pool: Sequence[Sequence[int]]
    ) -> Tensor:
        y = _first(ctx, x, weight, bias, norm)
        ctx.pool = pool
        return torch.ops.aten.max_pool2d_with_indices(y, *pool)[0].relu_()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        y = _again(ctx)
        pooled, index = torch.ops.aten.max_pool2d_with_indices(y, *ctx.pool)
        g = torch.ops.aten.threshold_backward(gradients[0], pooled, 0)
        g = torch.ops.aten.max_pool2d_with_indices_backward(g, y, *ctx.pool, [1, 1], False, index)
        del y, index, pooled
        return *_norm_backward(ctx, g), None, None


class _NormReluConv(torch.autograd.Function):
    """Batch norm of the batch, ReLU and a 3 x 3 convolution in one; backward computes the first two again.

    It is the arithmetic of the three modules, bit for bit, and keeps one result where they keep two.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, norm: nn.BatchNorm2d, conv: nn.Conv2d
    ) -> Tensor:
        y = _first(ctx, x, weight, bias, norm, kernel).relu_()
        ctx.conv = (None, conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups)
        return torch.ops.aten.convolution(y, kernel, *ctx.conv)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        y, kernel = _again(ctx).relu_(), ctx.saved_tensors[-1]
        mask = [True, ctx.needs_input_grad[3], False]
        g, of_kernel, _ = torch.ops.aten.convolution_backward(gradients[0], y, kernel, *ctx.conv, mask)
        g = torch.ops.aten.threshold_backward(g, y, 0)
        del y
        return *_norm_backward(ctx, g), of_kernel, None, None


def _first(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, *more: Tensor) -> Tensor:
    """``norm(x)`` in training mode; what the others need of it is kept in ``ctx``, with ``more``."""
    state = (norm.running_mean, norm.running_var, True, norm.momentum, norm.eps)
    y, mean, inverse_std = torch.ops.aten.native_batch_norm(x, weight, bias, *state)
    ctx.save_for_backward(x, weight, bias, mean, inverse_std, *more)
    ctx.eps = norm.eps
    return y


def _again(ctx: Any) -> Tensor:
    """What :func:`_first` returned; it leaves the running statistics as they are."""
    return torch.ops.aten.native_batch_norm(*ctx.saved_tensors[:3], None, None, True, 0.0, ctx.eps)[0]


def _norm_backward(ctx: Any, g: Tensor) -> Sequence[Tensor]:
    """Gradients of the input, the weight and the bias."""
    x, weight, _, mean, inverse_std = ctx.saved_tensors[:5]
    batch = (None, None, mean, inverse_std, True, ctx.eps, [True, True, True])
    return torch.ops.aten.native_batch_norm_backward(g, x, weight, *batch)


class _FixedNorm(torch.autograd.Function):
    """Batch norm by the running statistics, on a GPU: torch's own values and gradients, up to rounding.

    The backward pass of torch's own lets go of channels_last, which the convolution before it then makes again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        state = (norm.running_mean, norm.running_var, False, 0.0, norm.eps)
        y, mean, inverse_std = torch.ops.aten.native_batch_norm(x, weight, bias, *state)
        ctx.save_for_backward(x, weight, mean, inverse_std)
        ctx.eps = norm.eps
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        g = gradients[0].contiguous(memory_format=torch.channels_last)
        fixed = (None, None, mean, inverse_std, False, ctx.eps, [False, *ctx.needs_input_grad[1:3]])
        _, *of_norm = torch.ops.aten.native_batch_norm_backward(g, x, weight, *fixed)
        return torch.batch_norm_elemt(g, weight, None, torch.zeros_like(mean), inverse_std, ctx.eps), *of_norm, None


class _BatchNorm(nn.BatchNorm2d):
    """torch's own, but for gradients in eval mode on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and not self.training and torch.is_grad_enabled():
            return _FixedNorm.apply(x, self.weight, self.bias, self)
        return super().forward(x)


class _Block(BasicBlock):
    """torchvision's own; on a CPU in training mode with :class:`_NormReluConv`."""

    def forward(self, x: Tensor) -> Tensor:
        if not _spared(x, self.bn1):
            return super().forward(x)
        y, norm, conv = self.conv1(x), self.bn1, self.conv2
        y = _NormReluConv.apply(y, norm.weight, norm.bias, conv.weight.to(y.dtype), norm, conv)
        y = self.bn2(y)
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


def _spared(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether ``norm`` before a ReLU is computed again in backward; if so, it has seen one more batch."""
    if x.is_cuda or not (norm.training and torch.is_grad_enabled()):
        return False
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    return True


class Backbone(ResNet):
    """``[N, C, H, W] -> [N, 512]``: ResNet-18 without its classifier, of so many input channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(_Block, [2, 2, 2, 2], num_classes=1, norm_layer=_BatchNorm)
        if channels != 3:
            self.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        norm, pool = self.bn1, self.maxpool
        x = widened(self.conv1, x) if x.is_cuda and x.shape[1] == 1 else self.conv1(x)
        if _spared(x, norm):
            window = [[size, size] for size in (pool.kernel_size, pool.stride, pool.padding)]
            x = _Stem.apply(x, norm.weight, norm.bias, norm, window)
        else:
            x = self.relu(pool(norm(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.avgpool(x).flatten(1)
