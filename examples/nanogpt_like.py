"""A small GPT on characters: batches cut from one tensor, four micro-batches a step, clipping, warm-up and cosine.

Everything is at the top of the file, as in many such scripts: there is no main().

python nanogpt_like.py --max-iters 200 --eval-interval 100
"""

import argparse
import math
import os
import time

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--out-dir", default="out")
parser.add_argument("--eval-interval", type=int, default=100)
parser.add_argument("--eval-iters", type=int, default=20)
parser.add_argument("--log-interval", type=int, default=10)
parser.add_argument("--gradient-accumulation-steps", type=int, default=4)
parser.add_argument("--batch-size", type=int, default=6)
parser.add_argument("--block-size", type=int, default=64)
parser.add_argument("--n-layer", type=int, default=2)
parser.add_argument("--n-head", type=int, default=4)
parser.add_argument("--n-embd", type=int, default=64)
parser.add_argument("--learning-rate", type=float, default=2e-3)
parser.add_argument("--max-iters", type=int, default=1_000)
parser.add_argument("--weight-decay", type=float, default=0.1)
parser.add_argument("--grad-clip", type=float, default=1.0)
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
config = parser.parse_args()
warmup_iters = config.max_iters // 20
min_lr = config.learning_rate / 10

os.makedirs(config.out_dir, exist_ok=True)
torch.manual_seed(1337)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        width = config.n_embd
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        heads = [part.unflatten(2, (config.n_head, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, 2)]
        attended = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, config.n_embd)
        self.places = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.Sequential(*(Block() for _ in range(config.n_layer)))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, x, y):
        h = self.tokens(x) + self.places(torch.arange(x.size(1), device=x.device))
        logits = self.head(self.norm(self.blocks(h)))
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten())

    def configure_optimizer(self):
        decayed = [p for p in self.parameters() if p.dim() >= 2]
        others = [p for p in self.parameters() if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))


def make_text(sentences):
    """A text of sums, which are right: there is something to learn."""
    a, b = torch.randint(100, (2, sentences), generator=torch.Generator().manual_seed(0)).tolist()
    return "".join(f"{i} and {j} make {i + j}.\n" for i, j in zip(a, b, strict=True))


text = make_text(20_000)
letters = sorted(set(text))
data = torch.tensor([letters.index(letter) for letter in text])
splits = {"train": data[: int(0.9 * len(data))], "val": data[int(0.9 * len(data)) :]}


def get_batch(split):
    source = splits[split]
    starts = torch.randint(len(source) - config.block_size, (config.batch_size,))
    x = torch.stack([source[i : i + config.block_size] for i in starts])
    y = torch.stack([source[i + 1 : i + 1 + config.block_size] for i in starts])
    if config.device.startswith("cuda"):
        return x.pin_memory().to(config.device, non_blocking=True), y.pin_memory().to(config.device, non_blocking=True)
    return x, y


@torch.no_grad()
def estimate_loss():
    model.eval()
    means = {}
    for split in splits:
        means[split] = sum(model(*get_batch(split))[1].item() for _ in range(config.eval_iters)) / config.eval_iters
    model.train()
    return means


def learning_rate_at(it):
    if it < warmup_iters:
        return config.learning_rate * (it + 1) / (warmup_iters + 1)
    done = (it - warmup_iters) / max(1, config.max_iters - warmup_iters)
    return min_lr + (config.learning_rate - min_lr) * (1 + math.cos(math.pi * done)) / 2


model = GPT(len(letters)).to(config.device)
optimizer = model.configure_optimizer()
best_val = math.inf
seconds = 0.0
began = time.perf_counter()
x, y = get_batch("train")
for it in range(config.max_iters):
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(it)

    if it % config.eval_interval == 0:
        seconds += time.perf_counter() - began
        losses = estimate_loss()
        print(f"step {it}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}")
        if it and losses["val"] < best_val:
            best_val = losses["val"]
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "iter": it,
                "config": vars(config),
            }
            torch.save(state, os.path.join(config.out_dir, "ckpt.pt"))
        began = time.perf_counter()

    began_iter = time.perf_counter()
    for _ in range(config.gradient_accumulation_steps):
        _, loss = model(x, y)
        loss = loss / config.gradient_accumulation_steps
        x, y = get_batch("train")  # the next one, while a GPU is still busy with this one
        loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if it % config.log_interval == 0:
        each_ms = (time.perf_counter() - began_iter) * 1000
        print(f"iter {it}: loss {loss.item() * config.gradient_accumulation_steps:.4f}, time {each_ms:.2f}ms")
seconds += time.perf_counter() - began
print(f"{config.max_iters} steps in {seconds:.2f} s")
