"""An LSTM that predicts words: hidden state carried from batch to batch, no optimizer but an update by hand.

After each epoch it is evaluated; the best model is saved whole, and loaded back at the end for the test.

python word_language_model.py --epochs 2 --lr 10
"""

import argparse
import math
import time

import torch
from torch import nn


class LanguageModel(nn.Module):
    def __init__(self, vocabulary, embedding, hidden, layers, dropout):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, vocabulary)

    def forward(self, words, state=None):
        """Scores of (time * batch, vocabulary), and the state to go on with."""
        outputs, state = self.lstm(self.dropout(self.embedding(words)), state)
        return self.out(self.dropout(outputs)).flatten(0, 1), state


def columns_of_text(words, vocabulary, seed, columns):
    """Text as word numbers in so many columns, each read from top to bottom: a word is followed by one of four."""
    follows = torch.randint(vocabulary, (vocabulary, 4), generator=torch.Generator().manual_seed(0)).tolist()
    choices = torch.rand(words, generator=torch.Generator().manual_seed(seed)).pow(2).mul(4).long().tolist()
    text, word = [], 0
    for choice in choices:
        word = follows[word][choice]
        text.append(word)
    rows = words // columns
    return torch.tensor(text[: rows * columns]).view(columns, rows).t().contiguous()


def windows(text, length):
    """Pairs of (at most length, columns) and the words that follow, flat."""
    for start in range(0, len(text) - 1, length):
        end = min(start + length, len(text) - 1)
        yield text[start:end], text[start + 1 : end + 1].flatten()


@torch.no_grad()
def evaluate(model, text, length):
    model.eval()
    total, state = 0.0, None
    for words, targets in windows(text, length):
        scores, state = model(words, state)
        total += nn.functional.cross_entropy(scores, targets).item() * len(words)
    return total / (len(text) - 1)


def train_epoch(epoch, model, text, lr, args):
    model.train()
    state, losses, since = None, [], time.time()
    for batch, (words, targets) in enumerate(windows(text, args.length), 1):
        if state is not None:
            state = tuple(part.detach() for part in state)
        model.zero_grad()
        scores, state = model(words, state)
        loss = nn.functional.cross_entropy(scores, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        for p in model.parameters():
            p.data.add_(p.grad, alpha=-lr)

        losses.append(loss.item())
        if batch % args.log_every == 0:
            mean, each_ms = sum(losses) / len(losses), (time.time() - since) * 1000 / len(losses)
            print(
                f"epoch {epoch} batch {batch} lr {lr:g} ms/batch {each_ms:.2f} loss {mean:.3f} ppl {math.exp(mean):.2f}"
            )
            losses, since = [], time.time()
    return batch


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, default=100_000, help="of the text to train with")
    parser.add_argument("--vocabulary", type=int, default=500)
    parser.add_argument("--embedding", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--lr", type=float, default=20)
    parser.add_argument("--clip", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--length", type=int, default=25, help="of a window")
    parser.add_argument("--seed", type=int, default=1111)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save", default="model.pt")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = torch.device("cuda" if args.cuda else "cpu")
    train_text = columns_of_text(args.words, args.vocabulary, 1, args.batch_size).to(device)
    valid_text = columns_of_text(args.words // 10, args.vocabulary, 2, 10).to(device)
    test_text = columns_of_text(args.words // 10, args.vocabulary, 3, 10).to(device)
    model = LanguageModel(args.vocabulary, args.embedding, args.hidden, args.layers, args.dropout).to(device)

    lr, best, steps, seconds = args.lr, math.inf, 0, 0.0
    try:
        for epoch in range(1, args.epochs + 1):
            began = time.perf_counter()
            steps += train_epoch(epoch, model, train_text, lr, args)
            seconds += time.perf_counter() - began
            loss = evaluate(model, valid_text, args.length)
            print(f"epoch {epoch} ended: valid loss {loss:.3f} ppl {math.exp(loss):.2f}")
            if loss < best:
                best = loss
                torch.save(model, args.save)
            else:
                lr /= 4
    except KeyboardInterrupt:
        print("stopped; the best model so far goes to the test")

    model = torch.load(args.save, weights_only=False)
    loss = evaluate(model, test_text, args.length)
    print(f"test loss {loss:.3f} ppl {math.exp(loss):.2f}")
    print(f"{steps} steps in {seconds:.2f} s")


if __name__ == "__main__":
    main()
