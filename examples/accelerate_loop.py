"""A loop of one's own under accelerate: gradient accumulation, a scheduler, clipping, checkpoints of the whole state.

python accelerate_loop.py --num_epochs 1
accelerate launch accelerate_loop.py --mixed_precision bf16
"""

import argparse
import time

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Reader(nn.Module):
    """Does a sequence of tokens hold more even ones than odd ones?"""

    def __init__(self, vocabulary, width, length):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.zeros(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, width * 4, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens):
        return self.head(self.encoder(self.embedding(tokens) + self.places).mean(dim=1))


def sequences(n, length, seed):
    tokens = torch.randint(200, (n, length), generator=torch.Generator().manual_seed(seed))
    return TensorDataset(tokens, (tokens % 2 == 0).float().mean(dim=1).gt(0.5).long())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="accelerate's own, if not given")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_epochs", type=int, default=4)
    parser.add_argument("--samples", type=int, default=6_400)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--output_dir", default="accelerate_output")
    args = parser.parse_args()

    accelerator = Accelerator(
        cpu=args.cpu,
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
    )
    set_seed(42)
    train_loader = DataLoader(sequences(args.samples, 32, 1), batch_size=args.batch_size, shuffle=True)
    valid_loader = DataLoader(sequences(args.samples // 10, 32, 2), batch_size=args.batch_size)
    model = Reader(200, 64, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    steps = args.num_epochs * len(train_loader) // args.gradient_accumulation_steps
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    model, optimizer, train_loader, valid_loader, scheduler = accelerator.prepare(
        model, optimizer, train_loader, valid_loader, scheduler
    )

    taken, seconds = 0, 0.0
    for epoch in range(args.num_epochs):
        model.train()
        began, total = time.perf_counter(), torch.zeros((), device=accelerator.device)
        for tokens, labels in train_loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(tokens), labels)
                total += loss.detach()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    taken += 1
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        seconds += time.perf_counter() - began

        model.eval()
        right = []
        for tokens, labels in valid_loader:
            with torch.no_grad():
                found = model(tokens).argmax(dim=-1)
            found, labels = accelerator.gather_for_metrics((found, labels))
            right.append((found == labels).float().mean().item())
        loss = total.item() / len(train_loader)
        accelerator.print(f"epoch {epoch}: loss {loss:.4f} accuracy {sum(right) / len(right):.3f}")
        accelerator.save_state(f"{args.output_dir}/epoch_{epoch}")
    accelerator.print(f"{taken} steps in {seconds:.2f} s")
    accelerator.end_training()


if __name__ == "__main__":
    main()
