"""Networks as people train them, each with a loss and a batch of N = 3 samples.

Every entry has seeded weights in float64, is in evaluation mode, and has statistics, scales and
heads that are not at the trivial values many networks start with: no zero heads, no layer scales
of 1e-6, no batch normalisation by (0, 1).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from oracle import Tree, to_double
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, rnn
from torch.utils.checkpoint import checkpoint
from torchvision import models, ops
from torchvision.models import convnext, densenet, efficientnet, maxvit, mobilenetv3, regnet, resnet
from torchvision.models import shufflenetv2 as shufflenet
from torchvision.models import swin_transformer as swin

N = 3
CLASSES = 10

Problem = tuple[nn.Module, nn.Module, Tree, Tensor]
"""Model, loss, inputs, targets."""
Draw = Callable[[int], Tree]
"""Number of samples -> inputs."""


@dataclass(frozen=True)
class Entry:
    name: str
    make: Callable[[], Problem]
    quick: bool = True
    """Small enough for every run of the tests."""
    params: str | None = None
    """Pattern of the names of the parameters to differentiate by; None: all of them."""
    needs_compiler: bool = False

    def build(self) -> Problem:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make()


def finish(
    model: nn.Module, draw: Draw, targets: Tensor | None = None, loss: nn.Module | None = None
) -> Problem:
    """Away from trivial parameters and statistics; float64; evaluation mode.

    Without targets and loss: class labels and cross-entropy.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() == max(parameter.shape, default=1):
                # Biases, scales of normalisations, scales of layers.
                parameter.clamp_(min=-0.5, max=1.5).add_(0.1 * torch.randn_like(parameter))
                if parameter.abs().mean() < 0.2 and parameter.ndim > 1:
                    parameter.add_(0.3)
            else:
                # Matrices that are zero, or so small that nothing passes a reduced network.
                usual = parameter[0].numel() ** -0.5
                if parameter.square().mean().sqrt() < usual / 2:
                    parameter.normal_(std=usual / 2)
        for norm in norms:
            norm.momentum = None  # The mean over all batches: of this one.
        model.train()
        model(draw(16))
        for norm in norms:
            norm.momentum = 0.1
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.add_(0.1 * torch.randn_like(norm.running_mean))
            norm.running_var.mul_(0.8 + 0.5 * torch.rand_like(norm.running_var)).add_(0.01)
    inputs = to_double(draw(N))
    if targets is None:
        targets = torch.randint(CLASSES, (N,))
    return (
        model.double().eval(),
        (loss or nn.CrossEntropyLoss()).double(),
        inputs,
        to_double(targets),
    )


def images(model: nn.Module, size: int, channels: int = 3) -> Problem:
    return finish(model, lambda n: torch.randn(n, channels, size, size))


# --- torchvision ----------------------------------------------------------------------------------


def _vit(image: int, patch: int, layers: int, heads: int, width: int) -> Problem:
    model = models.VisionTransformer(
        image, patch, layers, heads, width, 2 * width, num_classes=CLASSES
    )
    return images(model, image)


def _small_mobilenet() -> Problem:
    block = mobilenetv3.InvertedResidualConfig
    blocks = [
        block(8, 3, 16, 8, True, "RE", 2, 1, 1.0),
        block(8, 5, 24, 16, True, "HS", 2, 1, 1.0),
        block(16, 5, 32, 16, False, "HS", 1, 1, 1.0),
    ]
    return images(mobilenetv3.MobileNetV3(blocks, 32, num_classes=CLASSES), 16)


def _small_convnext() -> Problem:
    block = convnext.CNBlockConfig
    model = models.ConvNeXt([block(8, 16, 1), block(16, None, 2)], num_classes=CLASSES)
    return images(model, 16)


def _small_efficientnet() -> Problem:
    block = efficientnet.MBConvConfig
    blocks = [block(1, 3, 1, 8, 8, 1), block(4, 3, 2, 8, 12, 1), block(4, 5, 1, 12, 12, 2)]
    model = efficientnet.EfficientNet(blocks, 0.2, num_classes=CLASSES, last_channel=32)
    return images(model, 16)


def _small_swin() -> Problem:
    model = swin.SwinTransformer([2, 2], 8, [2, 2], [2, 4], [3, 3], num_classes=CLASSES)
    return images(model, 12)


def _small_swin_v2() -> Problem:
    model = swin.SwinTransformer(
        [2, 2],
        8,
        [2, 2],
        [2, 4],
        [4, 4],
        num_classes=CLASSES,
        block=swin.SwinTransformerBlockV2,
        downsample_layer=swin.PatchMergingV2,
    )
    return images(model, 16)


def _small_regnet() -> Problem:
    blocks = regnet.BlockParams.from_init_params(4, 8, 8, 2.0, 4, se_ratio=0.25)
    return images(regnet.RegNet(blocks, CLASSES, stem_width=8), 32)


def _maxvit(image: int, stem: int, channels: list[int], layers: list[int], head: int) -> Problem:
    model = maxvit.MaxVit((image, image), stem, 2, channels, layers, head, 0.2, num_classes=CLASSES)
    return images(model, image)


# --- other networks on images ---------------------------------------------------------------------


def _same_pool() -> nn.Module:
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2))


def _net_3c3d(image: int, widths: tuple[int, int, int], dense: tuple[int, int]) -> Problem:
    """The convolutional network of DeepOBS's cifar10_3c3d."""
    a, b, c = widths
    side = (((image - 4) // 2 - 2) // 2) // 2
    model = nn.Sequential(
        nn.Conv2d(3, a, 5),
        nn.ReLU(),
        _same_pool(),
        nn.Conv2d(a, b, 3),
        nn.ReLU(),
        _same_pool(),
        nn.Conv2d(b, c, 3, padding=1),
        nn.ReLU(),
        _same_pool(),
        nn.Flatten(),
        nn.Linear(c * side**2, dense[0]),
        nn.ReLU(),
        nn.Linear(dense[0], dense[1]),
        nn.ReLU(),
        nn.Linear(dense[1], CLASSES),
    )
    return images(model, image)


def _net_2c2d(image: int, widths: tuple[int, int], dense: int) -> Problem:
    """The convolutional network of DeepOBS's fmnist_2c2d."""
    model = nn.Sequential(
        nn.Conv2d(1, widths[0], 5, padding="same"),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(widths[0], widths[1], 5, padding="same"),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(widths[1] * (image // 4) ** 2, dense),
        nn.ReLU(inplace=True),
        nn.Linear(dense, CLASSES),
    )
    return images(model, image, channels=1)


def _all_cnn(image: int, a: int, b: int) -> Problem:
    """All-CNN-C."""
    widths = [3, a, a, a, b, b, b, b, b]
    layers: list[nn.Module] = [nn.Dropout(0.2)]
    for number, (before, after) in enumerate(pairwise(widths), 1):
        kernel = 3 if number < 8 else 1
        stride = 2 if number in (3, 6) else 1
        layers += [nn.Conv2d(before, after, kernel, stride, padding=kernel // 2), nn.ReLU()]
        if number in (3, 6):
            layers.append(nn.Dropout(0.5))
    layers += [nn.Conv2d(b, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return images(nn.Sequential(*layers), image)


class UNet(nn.Module):
    """Down twice, up twice by transposed convolutions, with skip connections."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.enter = self._double(2, width)
        self.down = self._double(width, 2 * width)
        self.bottom = self._double(2 * width, 4 * width)
        self.up_1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.merge_1 = self._double(4 * width, 2 * width)
        self.up_2 = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False)
        self.merge_2 = self._double(2 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _double(before: int, after: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, padding=1),
            nn.GroupNorm(2, after),
            nn.LeakyReLU(0.1, inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        fine = self.enter(x)
        middle = self.down(F.max_pool2d(fine, 2))
        coarse = self.bottom(F.avg_pool2d(middle, 2))
        middle = self.merge_1(torch.cat([middle, self.up_1(coarse)], 1))
        return self.head(self.merge_2(torch.cat([fine, self.up_2(middle)], 1)))


def _unet(width: int, image: int) -> Problem:
    classes = 3
    targets = torch.randint(classes, (N, image, image))
    targets[1, 0] = -100
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0]))
    return finish(UNet(width, classes), lambda n: torch.randn(n, 2, image, image), targets, loss)


class Mixer(nn.Module):
    """An MLP-mixer: patches, then layers across tokens and across channels in turn."""

    def __init__(self, image: int, patch: int, width: int, depth: int):
        super().__init__()
        tokens = (image // patch) ** 2
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.across_tokens = nn.ModuleList(self._mlp(tokens, width) for _ in range(depth))
        self.across_channels = nn.ModuleList(self._mlp(width, 2 * width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth + 1))
        self.head = nn.Linear(width, CLASSES)

    @staticmethod
    def _mlp(width: int, hidden: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for i, (tokens, channels) in enumerate(
            zip(self.across_tokens, self.across_channels, strict=True)
        ):
            x = x + tokens(self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + channels(self.norms[2 * i + 1](x))
        return self.head(self.norms[-1](x).mean(1))


class Checkpointed(nn.Module):
    """Residual blocks whose activations are computed again in the backward pass."""

    def __init__(self, width: int):
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(3)
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return self.head(x.mean((2, 3)))


def _weight_normed() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 6, 3)),
        nn.Softplus(),
        nn.Flatten(),
        parametrizations.weight_norm(nn.Linear(96, 12), dim=1),
        nn.Tanh(),
        parametrizations.weight_norm(nn.Linear(12, CLASSES)),
    )


def _spectral_normed() -> nn.Module:
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Conv2d(3, 6, 3, stride=2)),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        parametrizations.spectral_norm(nn.Linear(24, 12)),
        nn.LeakyReLU(0.2),
        parametrizations.orthogonal(nn.Linear(12, 12)),
        nn.Linear(12, CLASSES),
    )


class Decoder(nn.Module):
    """Images from latent codes, as a variational autoencoder's second half."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.enter = nn.Linear(4, 4 * width)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.ELU(),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(width, 1, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.up(F.elu(self.enter(z)).unflatten(1, (self.width, 2, 2)))


def _decoder(width: int, reduction: str) -> Problem:
    targets = torch.rand(N, 1, 8, 8)
    draw = lambda n: torch.randn(n, 4)  # noqa: E731
    return finish(Decoder(width), draw, targets, nn.MSELoss(reduction=reduction))


def _multi_label() -> Problem:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"),
        nn.InstanceNorm2d(6, affine=True),
        nn.Hardswish(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )
    loss = nn.BCEWithLogitsLoss(pos_weight=0.5 + 3 * torch.rand(CLASSES))
    targets = torch.randint(2, (N, CLASSES)).double()
    return finish(model, lambda n: torch.randn(n, 3, 6, 6), targets, loss)


class SuperResolution(nn.Module):
    """Images of twice the size by a rearrangement of channels."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, padding_mode="circular"),
            nn.Tanh(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2, groups=2),
            nn.GLU(1),
            nn.Conv2d(width // 2, 4, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bicubic") + self.layers(x)


def _super_resolution() -> Problem:
    draw = lambda n: torch.randn(n, 1, 4, 4).to(memory_format=torch.channels_last)  # noqa: E731
    return finish(SuperResolution(4), draw, torch.randn(N, 1, 8, 8), nn.MSELoss())


class Standardised(nn.Conv2d):
    """A convolution whose filters have mean zero and variance one."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (variance + 1e-5).sqrt()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Deformable(nn.Module):
    """A deformable convolution, whose offsets are another one's outputs; a cosine classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = Standardised(2, 4, 3, padding=1)
        self.offsets = nn.Conv2d(4, 18, 3, padding=1)
        self.deformed = ops.DeformConv2d(4, 5, 3, padding=1)
        self.prototypes = nn.Parameter(torch.randn(CLASSES, 5))
        self.temperature = nn.Parameter(torch.tensor(1.2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.enter(x))
        x = self.deformed(x, self.offsets(x)).square().mean((2, 3))
        cosines = F.normalize(x, dim=1) @ F.normalize(self.prototypes, dim=1).t()
        return self.temperature.exp() * cosines


def _video() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 3, (1, 3, 3), padding=(0, 1, 1)),
        nn.BatchNorm3d(3),
        nn.CELU(),
        nn.Conv3d(3, 4, (3, 1, 1), groups=1, padding=(1, 0, 0), bias=False),
        nn.MaxPool3d((1, 2, 2)),
        nn.ConvTranspose3d(4, 2, 2),
        nn.AdaptiveAvgPool3d((2, 1, 1)),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    )


# --- sequences ------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """Tokens through a transformer encoder, padded positions masked, to a class."""

    def __init__(self, words: int, width: int, heads: int, depth: int, batch_first: bool):
        super().__init__()
        self.batch_first = batch_first
        self.embedding = nn.Embedding(words, width, padding_idx=0)
        self.position = nn.Parameter(torch.randn(64, width) / 2)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, batch_first=batch_first, norm_first=not batch_first
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=batch_first)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, batch: dict[str, Tensor] | tuple[Tensor, Tensor]) -> Tensor:
        tokens, padded = batch.values() if isinstance(batch, dict) else batch
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        if self.batch_first:
            x = self.encoder(x, src_key_padding_mask=padded)
        else:
            x = self.encoder(x.transpose(0, 1), src_key_padding_mask=padded).transpose(0, 1)
        kept = (~padded).to(x.dtype).unsqueeze(-1)
        return self.head((x * kept).sum(1) / kept.sum(1))


def _padded_tokens(n: int, words: int, length: int) -> tuple[Tensor, Tensor]:
    """Sentences of different lengths and where they are padded; the last place of all is."""
    lengths = 2 + torch.arange(n) * 2 % (length - 2)
    padded = torch.arange(length) >= lengths[:, None]
    return torch.randint(1, words, (n, length)).masked_fill(padded, 0), padded


def _encoder(
    words: int, width: int, heads: int, depth: int, length: int, batch_first: bool
) -> Problem:
    def draw(n: int) -> Tree:
        tokens, padded = _padded_tokens(n, words, length)
        return {"tokens": tokens, "padded": padded} if batch_first else (tokens, padded)

    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    return finish(Encoder(words, width, heads, depth, batch_first), draw, None, loss)


class PlainSequence(nn.Module):
    """A transformer encoder on vectors, sequence first inside, without masks."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, activation="gelu"), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.transpose(0, 1))[-1])


class GPTBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = split.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    """The embedding's weight is the head's too: as an operand, or as a tied module's."""

    def __init__(self, words: int, length: int, width: int, heads: int, depth: int, tied: str):
        super().__init__()
        self.tokens = nn.Embedding(words, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(GPTBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.tokens.weight, std=width**-0.5)
        self.head = nn.Linear(width, words, bias=False) if tied == "module" else None
        if self.head is not None:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits = F.linear(x, self.tokens.weight) if self.head is None else self.head(x)
        return logits.transpose(1, 2)


def _gpt(words: int, length: int, width: int, heads: int, depth: int, tied: str) -> Problem:
    targets = torch.randint(words, (N, length))
    targets[0, length // 2 :] = -100
    targets[2, -1] = -100
    model = GPT(words, length, width, heads, depth, tied)
    return finish(model, lambda n: torch.randint(words, (n, length)), targets)


class Recurrent(nn.Module):
    """The last state (or the mean of all outputs) of a recurrent network, to a class."""

    def __init__(self, network: nn.RNNBase, mean: bool):
        super().__init__()
        self.embedding = nn.Embedding(12, network.input_size)
        self.network, self.mean = network, mean
        width = network.hidden_size * (2 if network.bidirectional else 1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.network(self.embedding(tokens))
        return self.head(states.mean(1) if self.mean else states[:, -1])


def _recurrent(network: nn.RNNBase, length: int, mean: bool = False) -> Problem:
    return finish(Recurrent(network, mean), lambda n: torch.randint(12, (n, length)))


class Packed(nn.Module):
    """A recurrent network over sentences of different lengths, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 4)
        self.network = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        packed = rnn.pack_padded_sequence(
            self.embedding(batch["tokens"]),
            batch["lengths"],
            batch_first=True,
            enforce_sorted=False,
        )
        _, (state, _) = self.network(packed)
        return self.head(state[-1])


def _packed() -> Problem:
    def draw(n: int) -> Tree:
        tokens, padded = _padded_tokens(n, 12, 7)
        return {"tokens": tokens, "lengths": (~padded).sum(1)}

    return finish(Packed(), draw)


class StepByStep(nn.Module):
    """A cell called once for every element of the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 6)
        for element in x.unbind(1):
            state = self.cell(element, state)
        return self.head(state)


class EinsumAttention(nn.Module):
    """Attention written with einsum, its weights bare parameters."""

    def __init__(self, width: int, heads: int, depth: int):
        super().__init__()
        shape = (depth, heads, width, width // heads)
        self.q, self.k, self.v, self.o = (
            nn.Parameter(torch.randn(shape) / math.sqrt(2 * width)) for _ in range(4)
        )
        self.query = nn.Parameter(torch.randn(width))
        self.head = nn.Parameter(torch.randn(width, CLASSES) / width**0.75)

    def forward(self, x: Tensor) -> Tensor:
        for wq, wk, wv, wo in zip(self.q, self.k, self.v, self.o, strict=True):
            q, k, v = (torch.einsum("ntd,hde->nhte", x, w) for w in (wq, wk, wv))
            weights = torch.softmax(torch.einsum("nhte,nhse->nhts", q, k) / q.shape[-1] ** 0.5, -1)
            x = x + torch.einsum("nhts,nhse,hde->ntd", weights, v, wo)
        focus = torch.softmax(x @ self.query / len(self.query) ** 0.5, -1)
        pooled = torch.einsum("nt,ntd->nd", focus, x)
        return pooled @ self.head


class FourierMixer(nn.Module):
    """Tokens mixed by a Fourier transform; the same block three times over."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.Mish(), nn.Linear(2 * width, width)
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.norm(x + torch.fft.fft2(x, norm="ortho").real)
            x = x + self.mlp(x)
        return self.head(x.amax(1))


class LlamaBlock(nn.Module):
    """Rotary positions, grouped queries, root-mean-square normalisation, a gated MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.norm_1, self.norm_2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * self.size, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)

    def _rotate(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[-2], dtype=x.dtype)
        rates = 100.0 ** (-torch.arange(self.size // 2, dtype=x.dtype) / self.size)
        turn = torch.polar(torch.ones(1, dtype=x.dtype), places[:, None] * rates)
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        q = self.q(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(y).unsqueeze(1).chunk(2, -1)
        attended = F.scaled_dot_product_attention(
            self._rotate(q), self._rotate(k), v, is_causal=True, enable_gqa=True
        )
        x = x + self.o(attended.transpose(1, 2).flatten(2))
        y = self.norm_2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self, words: int, width: int, heads: int, depth: int):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.blocks = nn.Sequential(*(LlamaBlock(width, heads) for _ in range(depth)))
        self.head = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, words, bias=False))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head(self.blocks(self.embed(batch["input_ids"]))).movedim(-1, 1)


def _llama(words: int, length: int, width: int, heads: int, depth: int) -> Problem:
    draw = lambda n: {"input_ids": torch.randint(words, (n, length))}  # noqa: E731
    targets = torch.randint(words, (N, length))
    targets[1, :2] = 0
    loss = nn.CrossEntropyLoss(ignore_index=0, reduction="sum")
    return finish(Llama(words, width, heads, depth), draw, targets, loss)


class Translator(nn.Module):
    """Encoder and decoder; the target's padded positions are no part of the loss."""

    def __init__(self, words: int, width: int):
        super().__init__()
        self.source = nn.Embedding(words, width)
        self.target = nn.Embedding(words, width)
        self.transformer = nn.Transformer(width, 2, 1, 1, 2 * width, batch_first=True)
        self.head = nn.Linear(width, words)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(
            batch["target"].shape[1], dtype=self.head.weight.dtype
        )
        x = self.transformer(
            self.source(batch["source"]),
            self.target(batch["target"]),
            tgt_mask=mask,
            src_key_padding_mask=batch["padded"],
            memory_key_padding_mask=batch["padded"],
        )
        return self.head(x).transpose(1, 2)


def _translator(words: int, width: int) -> Problem:
    def draw(n: int) -> Tree:
        source, padded = _padded_tokens(n, words, 6)
        return {"source": source, "padded": padded, "target": torch.randint(words, (n, 4))}

    targets = torch.randint(words, (N, 4))
    targets[0, 3] = targets[2, 2:] = -100
    loss = nn.CrossEntropyLoss(weight=0.5 + torch.rand(words), label_smoothing=0.1)
    return finish(Translator(words, width), draw, targets, loss)


class Perceiver(nn.Module):
    """Learned queries attend to the sequence, by nn.MultiheadAttention of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, kdim=4, vdim=4)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        attended, _ = self.attention(self.queries.expand(len(x), -1, -1), x, x)
        return self.head(attended.flatten(1))


class WaveNet(nn.Module):
    """Causal dilated convolutions with gates, weights normalised, in an autoregressive model."""

    def __init__(self, levels: int, width: int):
        super().__init__()
        self.embed = nn.Embedding(levels, width)
        self.gates = nn.ModuleList(
            parametrizations.weight_norm(nn.Conv1d(width, 2 * width, 2, dilation=2**i))
            for i in range(2)
        )
        self.skips = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(2))
        self.head = nn.Conv1d(width, levels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).transpose(1, 2)
        layers = [x]
        for i, (gate, skip) in enumerate(zip(self.gates, self.skips, strict=True)):
            a, b = gate(F.pad(x, (2**i, 0))).chunk(2, 1)
            x = x + skip(torch.tanh(a) * torch.sigmoid(b))
            layers.append(x)
        return self.head(F.relu(torch.stack(layers).sum(0)))


def _wavenet() -> Problem:
    targets = torch.randint(4, (N, 5))
    return finish(WaveNet(4, 4), lambda n: torch.randint(4, (n, 5)), targets)


# --- tables, graphs, adapters ---------------------------------------------------------------------


class ClickModel(nn.Module):
    """Dense features, bags of categories, their pairwise products, one logit."""

    def __init__(self, fields: int, words: int, width: int):
        super().__init__()
        self.bags = nn.ModuleList(
            nn.EmbeddingBag(words, width, mode="sum" if i % 2 else "mean") for i in range(fields)
        )
        self.bottom = nn.Sequential(nn.Linear(4, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        pairs = fields * (fields + 1) // 2
        self.top = nn.Sequential(nn.Linear(width + pairs, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        dense = self.bottom(batch["dense"])
        bags = [bag(batch["sparse"][:, i]) for i, bag in enumerate(self.bags)]
        features = torch.stack([dense, *bags], 1)
        products = features @ features.transpose(1, 2)
        rows, columns = torch.triu_indices(products.shape[1], products.shape[2], 1)
        return self.top(torch.cat([dense, products[:, rows, columns]], 1))


def _click_model(fields: int, words: int, width: int) -> Problem:
    def draw(n: int) -> Tree:
        return {"dense": torch.randn(n, 4), "sparse": torch.randint(words, (n, fields, 3))}

    targets = torch.randint(2, (N, 1)).double()
    return finish(ClickModel(fields, words, width), draw, targets, nn.BCEWithLogitsLoss())


class GraphNetwork(nn.Module):
    """Two rounds of messages along a dense adjacency, then the sum over the nodes."""

    def __init__(self, width: int):
        super().__init__()
        self.enter = nn.Linear(3, width)
        self.own = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.message = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
        nodes, adjacency = graph
        adjacency = adjacency / adjacency.sum(-1, keepdim=True).clamp(min=1)
        x = self.enter(nodes)
        for own, message in zip(self.own, self.message, strict=True):
            x = F.elu(own(x) + adjacency @ message(x))
        return self.head(x.sum(1))


def _graph() -> Problem:
    def draw(n: int) -> Tree:
        edges = torch.rand(n, 7, 7) < 0.3
        return torch.randn(n, 7, 3), (edges | edges.transpose(1, 2)).float()

    return finish(GraphNetwork(6), draw)


class LowRank(nn.Module):
    """A linear layer plus a trainable correction of low rank."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * F.linear(F.linear(x, self.lora_a), self.lora_b)


def _lora(width: int, depth: int, frozen: bool) -> Problem:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.LayerNorm(width), LowRank(nn.Linear(width, width), 2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, CLASSES))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name or not frozen)
    return finish(model, lambda n: torch.randn(n, width))


class Experts(nn.Module):
    """A mixture of experts: every token goes to the one its gate prefers.

    An expert without tokens is called with none, or not at all.
    """

    def __init__(self, width: int, experts: int, call_idle: bool):
        super().__init__()
        self.call_idle = call_idle
        self.gate = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
            for _ in range(experts)
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        weight, chosen = torch.softmax(self.gate(tokens), -1).max(-1)
        mixed = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            (here,) = torch.where(chosen == number)
            if not (len(here) or self.call_idle):
                continue
            mixed = mixed.index_add(0, here, weight[here, None] * expert(tokens[here]))
        return self.head((tokens + mixed).unflatten(0, x.shape[:2]).mean(1))


class Siamese(nn.Module):
    """Both inputs through the same layers, compared by a bilinear form."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 5))
        self.compare = nn.Bilinear(5, 5, CLASSES)

    def forward(self, pair: list[Tensor]) -> Tensor:
        left, right = pair
        return self.compare(self.tower(left), self.tower(right))


class PointNet(nn.Module):
    """Points turned by a matrix that a network of their own predicts; then their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Sequential(nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6), nn.ReLU())
        self.matrix = nn.Linear(6, 9)
        self.points = nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.SELU())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        turn = torch.eye(3, dtype=x.dtype) + self.matrix(self.turn(x).amax(2)).view(-1, 3, 3)
        return self.head(self.points(torch.bmm(turn, x)).max(2).values)


class HyperNetwork(nn.Module):
    """A network whose weights are another network's outputs, different for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({"task": nn.Parameter(torch.randn(3, 5))})
        self.make = nn.Linear(5, 4 * 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, task = batch
        made = self.make(torch.tanh(self.weights["task"][task])).view(-1, 4, 4)
        shared = functional_call(self.body, {"weight": self.body.weight.tril()}, (x,))
        return self.head(torch.tanh(torch.einsum("nij,nj->ni", made, shared)))


def _hyper_network() -> Problem:
    return finish(HyperNetwork(), lambda n: (torch.randn(n, 4), torch.randint(3, (n,))))


def _compiled(backend: str) -> Problem:
    model, loss, inputs, targets = images(
        nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.GELU(), nn.Flatten(), nn.Linear(96, CLASSES)
        ),
        6,
    )
    return torch.compile(model, backend=backend), loss, inputs, targets  # type: ignore[return-value]


ZOO = [
    # Architectures of torchvision, reduced.
    Entry("small-mobilenet", _small_mobilenet),
    Entry("small-convnext", _small_convnext),
    Entry("small-efficientnet", _small_efficientnet),
    Entry(
        "small-densenet", lambda: images(densenet.DenseNet(4, (2, 2), 8, num_classes=CLASSES), 16)
    ),
    Entry("small-vit", lambda: _vit(16, 8, 2, 2, 16)),
    Entry("small-swin", _small_swin),
    Entry("small-swin-v2", _small_swin_v2, False),
    Entry(
        "small-shufflenet",
        lambda: images(shufflenet.ShuffleNetV2([1, 1, 1], [8, 16, 16, 32, 32], CLASSES), 32),
    ),
    Entry("small-regnet", _small_regnet),
    Entry("small-maxvit", lambda: _maxvit(16, 4, [4, 8], [1, 1], 4)),
    # Other networks on images.
    Entry("small-3c3d", lambda: _net_3c3d(20, (4, 6, 8), (12, 8))),
    Entry("small-2c2d", lambda: _net_2c2d(8, (4, 6), 16)),
    Entry("small-all-cnn", lambda: _all_cnn(8, 4, 8)),
    Entry("small-unet", lambda: _unet(2, 4)),
    Entry("small-mixer", lambda: images(Mixer(12, 4, 8, 2), 12)),
    Entry("checkpointed", lambda: images(Checkpointed(6), 6)),
    Entry("weight-norm", lambda: images(_weight_normed(), 6)),
    Entry("spectral-norm", lambda: images(_spectral_normed(), 6)),
    Entry("small-decoder", lambda: _decoder(3, "mean")),
    Entry("decoder-sum", lambda: _decoder(3, "sum")),
    Entry("multi-label", _multi_label),
    Entry("super-resolution", _super_resolution),
    Entry("deformable", lambda: finish(Deformable(), lambda n: torch.randn(n, 2, 5, 5))),
    Entry("video", lambda: finish(_video(), lambda n: torch.randn(n, 2, 3, 4, 4))),
    Entry("compiled-eagerly", lambda: _compiled("eager")),
    # Sequences.
    Entry("small-encoder", lambda: _encoder(12, 8, 2, 2, 6, True)),
    Entry("small-encoder-sequence-first", lambda: _encoder(12, 8, 2, 2, 6, False)),
    Entry("plain-sequence-first", lambda: finish(PlainSequence(), lambda n: torch.randn(n, 5, 8))),
    Entry("small-gpt", lambda: _gpt(5, 4, 8, 2, 2, "operand")),
    Entry("small-gpt-tied-module", lambda: _gpt(5, 4, 8, 2, 2, "module")),
    Entry("small-lstm", lambda: _recurrent(nn.LSTM(4, 6, 2, batch_first=True), 5)),
    Entry(
        "small-gru",
        lambda: _recurrent(nn.GRU(4, 5, batch_first=True, bidirectional=True), 5, mean=True),
    ),
    Entry("packed-lstm", _packed),
    Entry("gru-cell", lambda: finish(StepByStep(), lambda n: torch.randn(n, 5, 4))),
    Entry(
        "small-einsum-attention",
        lambda: finish(EinsumAttention(8, 2, 2), lambda n: torch.randn(n, 5, 8)),
    ),
    Entry("fourier-mixer", lambda: finish(FourierMixer(6), lambda n: torch.randn(n, 5, 6))),
    Entry("small-llama", lambda: _llama(5, 4, 8, 2, 2)),
    Entry("translator", lambda: _translator(5, 8)),
    Entry("perceiver", lambda: finish(Perceiver(), lambda n: torch.randn(n, 5, 4))),
    Entry("wavenet", _wavenet),
    # Tables, graphs, adapters.
    Entry("small-click-model", lambda: _click_model(3, 9, 4)),
    Entry("graph", _graph),
    Entry("small-lora", lambda: _lora(12, 2, False), params="*lora*"),
    Entry("frozen-lora", lambda: _lora(12, 2, True)),
    Entry("experts", lambda: finish(Experts(6, 3, True), lambda n: torch.randn(n, 4, 6))),
    Entry("idle-experts", lambda: finish(Experts(6, 8, False), lambda n: torch.randn(n, 4, 6))),
    Entry("siamese", lambda: finish(Siamese(), lambda n: [torch.randn(n, 4), torch.randn(n, 4)])),
    Entry("point-net", lambda: finish(PointNet(), lambda n: torch.randn(n, 3, 7))),
    Entry("hyper-network", _hyper_network),
    # The same at the size people use.
    Entry("resnet18", lambda: images(models.resnet18(num_classes=CLASSES), 32), False),
    Entry("resnet50", lambda: images(models.resnet50(num_classes=CLASSES), 32), False),
    Entry("resnext50", lambda: images(models.resnext50_32x4d(num_classes=CLASSES), 32), False),
    Entry(
        "resnet-group-norm",
        lambda: images(
            resnet.ResNet(
                resnet.BasicBlock,
                [1, 1, 1, 1],
                num_classes=CLASSES,
                norm_layer=lambda width: nn.GroupNorm(8, width),
            ),
            32,
        ),
        False,
    ),
    Entry(
        "mobilenet_v3_small",
        lambda: images(models.mobilenet_v3_small(num_classes=CLASSES), 32),
        False,
    ),
    Entry("convnext_tiny", lambda: images(models.convnext_tiny(num_classes=CLASSES), 32), False),
    Entry(
        "efficientnet_b0", lambda: images(models.efficientnet_b0(num_classes=CLASSES), 32), False
    ),
    Entry("densenet121", lambda: images(models.densenet121(num_classes=CLASSES), 32), False),
    Entry("vit", lambda: _vit(32, 4, 12, 3, 192), False),
    Entry("swin_t", lambda: images(models.swin_t(num_classes=CLASSES), 64), False),
    Entry(
        "shufflenet_v2", lambda: images(models.shufflenet_v2_x1_0(num_classes=CLASSES), 32), False
    ),
    Entry("regnet_y_400mf", lambda: images(models.regnet_y_400mf(num_classes=CLASSES), 32), False),
    Entry("maxvit", lambda: _maxvit(64, 64, [64, 128, 256, 512], [2, 2, 5, 2], 32), False),
    Entry("3c3d", lambda: _net_3c3d(32, (64, 96, 128), (512, 256)), False),
    Entry("2c2d", lambda: _net_2c2d(28, (32, 64), 1024), False),
    Entry("all-cnn", lambda: _all_cnn(32, 96, 192), False),
    Entry("unet", lambda: _unet(16, 8), False),
    Entry("mixer", lambda: images(Mixer(32, 4, 128, 6), 32), False),
    Entry("decoder", lambda: _decoder(32, "mean"), False),
    Entry("compiled", lambda: _compiled("inductor"), False, needs_compiler=True),
    Entry("encoder", lambda: _encoder(1000, 256, 8, 6, 32, True), False),
    Entry("encoder-sequence-first", lambda: _encoder(1000, 256, 8, 6, 32, False), False),
    Entry("gpt", lambda: _gpt(16, 6, 128, 4, 4, "operand"), False),
    Entry("llama", lambda: _llama(16, 6, 128, 4, 4), False),
    Entry("lstm", lambda: _recurrent(nn.LSTM(64, 256, 2, batch_first=True), 32), False),
    Entry(
        "gru",
        lambda: _recurrent(nn.GRU(64, 128, 2, batch_first=True, bidirectional=True), 32, mean=True),
        False,
    ),
    Entry(
        "einsum-attention",
        lambda: finish(EinsumAttention(128, 4, 4), lambda n: torch.randn(n, 32, 128)),
        False,
    ),
    Entry("click-model", lambda: _click_model(8, 5000, 32), False),
    Entry("lora", lambda: _lora(512, 4, False), False, params="*lora*"),
]
