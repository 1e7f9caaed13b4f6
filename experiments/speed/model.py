"""Rows `step` and `views`: the article's network at the article's size."""

import torch
from loop import autocast, step
from timing import DEVICE, Row, alternate, composed, ratios, row
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from adlight.features.optimizer import parameter_groups
from adlight.mae.masking import draw_masks
from adlight.mae.module import MAEModule
from adlight.mae.network import Block, MaskedAutoencoder
from adlight.mae.tokens import PixelTokenizer

BATCH = 16 if DEVICE.type == "cuda" else 4  # the article's is 16
SQUARE = 8192 if DEVICE.type == "cuda" else 4096  # of the matrices that show the peak
KINDS = {  # words of the operators' names, first match wins
    "attention": ("scaled_dot_product",),
    "matrix products": ("mm", "linear", "matmul"),
    "layer norm": ("layer_norm",),
    "GELU": ("gelu",),
    "copies": ("copy", "clone", "cat", "index", "fill", "zero", "contiguous", "gather", "scatter"),
    "sums, element-wise": ("add", "mul", "sub", "div", "sum", "mean", "abs", "where", "neg", "sgn", "pow", "sqrt"),
}


def article_module() -> MAEModule:
    from hydra.utils import instantiate

    torch.manual_seed(0)
    config = composed("model=mae", "dataset=mvtec", "model.objective.lpips=0")
    return instantiate(config.model, _convert_="all").to(DEVICE)


def measure_step() -> list[Row]:
    """FLOPs / time / peak of one training step, in float32 and with autocast to bfloat16; then where the time goes."""
    module, rows = article_module(), []
    image = torch.rand(BATCH, 3, 224, 224, device=DEVICE)
    optimizer, generator = module.optimizer(parameter_groups([module.network])), Generator().manual_seed(0)
    total, loss = flops(module, image, generator)
    rows.append(row("step", f"FLOPs of a step, batch {BATCH}, 224 pixels, r = 0.75", total / 1e9, "GFLOP"))
    rows.append(row("step", "of which in the loss (the blur of SSIM)", 100 * loss / total, "%"))
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16 autocast")):
        a, b = (torch.randn(SQUARE, SQUARE, device=DEVICE, dtype=dtype) for _ in range(2))

        def work(dtype: torch.dtype = dtype) -> None:
            step(module, optimizer, image, generator, dtype)

        product, taken = alternate(lambda a=a, b=b: a @ b, work, repeats=5)
        peak = [2 * SQUARE**3 / t for t in product]
        rows.append(row("step", f"{name}: peak, {SQUARE} x {SQUARE} product", [p / 1e9 for p in peak], "GFLOP/s"))
        rows.append(row("step", f"{name}: a step", [1e3 * t for t in taken], "ms"))
        used = [total / t / p for t, p in zip(taken, peak, strict=True)]
        rows.append(row("step", f"{name}: utilization", used, "of peak", ">= 0.6"))
        network = [u * (1 - loss / total) for u in used]
        rows.append(row("step", f"{name}: utilization, the network's FLOPs only", network, "of peak"))
        rows += [row("step", f"{name}: time in {kind}", 100 * s, "%") for kind, s in shares(module, work).items()]
    return rows


def flops(module: MAEModule, image: Tensor, generator: Generator) -> tuple[int, int]:
    """FLOPs of forward and backward pass by PyTorch's counter: (all, those of the loss).

    Attention is run as plain matrix products for the count, so that it is counted on every device, and without what
    fused kernels compute again in the backward pass.
    """
    network = module.network
    mask = draw_masks(module.masks, module.mask_ratio, network.num_patches, generator)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        views = network(module.tokenizer.tokenize(image), mask)
        views.sum().backward()
    loss = FlopCounterMode(display=False)
    guess = torch.rand_like(image, requires_grad=True)
    with loss:
        module.objective(image, guess)["loss"].backward()
    module.zero_grad()
    return counter.get_total_flops() + loss.get_total_flops(), loss.get_total_flops()


def shares(module: MAEModule, work) -> dict[str, float]:
    """Share of the operators' own time by kind, largest first, over two steps."""
    objective = module.objective

    def marked(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        with record_function("objective"):
            return objective(x, y)

    module.objective = marked
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE.type == "cuda" else [])]
    with profile(activities=activities, record_shapes=True) as profiled:
        for _ in range(2):
            work()
    module.objective = objective
    time: dict[str, float] = {}
    for event in profiled.events():
        own = event.self_device_time_total if DEVICE.type == "cuda" else event.self_cpu_time_total
        kind = kind_of(event)
        time[kind] = time.get(kind, 0.0) + own
    total = sum(time.values())
    return {kind: spent / total for kind, spent in sorted(time.items(), key=lambda item: -item[1])}


def kind_of(event) -> str:
    """Optimizer and loss by the range they run in (the loss's backward pass by its whole images), else by name."""
    parent = event
    while parent is not None:
        if parent.name.startswith("Optimizer."):
            return "optimizer"
        if parent.name == "objective":
            return "loss (SSIM, l1)"
        parent = parent.cpu_parent
    shapes = [shape for shape in event.input_shapes or [] if shape and not isinstance(shape[0], list)]
    if any(list(shape[-2:]) == [224, 224] for shape in shapes):
        return "loss (SSIM, l1)"
    if event.name.startswith("aten::"):
        for kind, words in KINDS.items():
            if any(word in event.name for word in words):
                return kind
    return "the rest (views, autograd, Python)"


class Padded(MaskedAutoencoder):
    """The alternative to groups of one size: all views in one pass, padded to the longest, with an attention mask."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.patch_embed(tokens - self.token_mean) + self.encoder_positions  # (B, L, De)
        n, b, visible = len(mask), len(x), ~mask.cpu()
        longest = int(visible.sum(1).max())
        patch = visible.int().argsort(dim=1, descending=True, stable=True)[:, :longest].to(x.device)  # (n, V)
        real = visible.to(x.device).gather(1, patch)  # (n, V)
        z = x[:, patch].transpose(0, 1).flatten(0, 1)  # (nB, V, De)
        attend = real[:, None, None, None].expand(n, b, 1, longest, longest).flatten(0, 1)  # (nB, 1, V, V)
        for block in self.encoder_blocks:
            z = masked_block(block, z, attend)
        z = self.decoder_embed(self.encoder_norm(z)).unflatten(0, (n, b)).transpose(1, 2)  # (n, V, B, Dd)
        place = (torch.arange(n, device=x.device)[:, None] * self.num_patches + patch)[real]
        flat = self.mask_token.expand(n * self.num_patches, b, -1).index_copy(
            0, place, z[real].to(self.mask_token.dtype)
        )
        return self.forward_decoder(flat.unflatten(0, (n, -1)).transpose(1, 2) + self.decoder_positions)


def masked_block(block: Block, x: Tensor, attend: Tensor) -> Tensor:
    b, length, width = x.shape
    q, k, v = block.qkv(block.norm1(x)).view(b, length, 3, block.heads, -1).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
    x = x + block.proj(attended.transpose(1, 2).reshape(b, length, width))
    return x + block.fc2(F.gelu(block.fc1(block.norm2(x))))


@torch.no_grad()
def measure_views() -> list[Row]:
    """All n views in one pass against n passes; groups of one size against padding."""
    network, rows = article_module().network.eval(), []
    padded = Padded().to(DEVICE).eval()
    padded.load_state_dict(network.state_dict())
    tokens = PixelTokenizer().tokenize(torch.rand(BATCH, 3, 224, 224, device=DEVICE))
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16 autocast")):
        for ratio in (0.5, 0.75, 0.8, 0.9):
            mask = draw_masks("complementary", ratio, network.num_patches, Generator().manual_seed(0))

            def together(net: MaskedAutoencoder = network, mask: Tensor = mask, dtype: torch.dtype = dtype) -> Tensor:
                with autocast(dtype):
                    return net(tokens, mask)

            def apart(mask: Tensor = mask, dtype: torch.dtype = dtype) -> None:
                with autocast(dtype):
                    for view in mask:
                        network(tokens, view[None])

            what = f"{name}, r = {ratio}, n = {len(mask)}"
            one, many = alternate(together, apart, repeats=5)
            rows.append(row("views", f"{what}: one pass / {len(mask)} passes", ratios(one, many), "ratio"))
            if ratio >= 0.8:
                torch.testing.assert_close(together(), together(padded), atol=0.05, rtol=0.05)
                groups, pads = alternate(together, lambda call=together: call(padded), repeats=5)
                rows.append(row("views", f"{what}: groups / padding, whole network", ratios(groups, pads), "ratio"))
    return rows
