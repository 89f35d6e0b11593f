"""A transformers Trainer: a small BERT with random weights learns to tell two kinds of token sequences apart.

All options of TrainingArguments are options of the script, too.

python hf_trainer.py --max_steps 100 --per_device_train_batch_size 8
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)


@dataclass
class ModelArguments:
    hidden_size: int = field(default=64, metadata={"help": "of the model"})
    layers: int = 2
    samples: int = field(default=6_400, metadata={"help": "to train with; a tenth more to evaluate with"})


@dataclass
class Arguments(TrainingArguments):
    """What is usual, under this script's own defaults."""

    output_dir: str = "hf_output"
    num_train_epochs: float = 2.0
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: float = 10
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    logging_steps: float = 50
    report_to: str = "none"


class Sentences(Dataset):
    """Sequences of 24 to 48 tokens; those of the second kind have more of the lower half of the vocabulary."""

    def __init__(self, n, seed):
        draw = np.random.default_rng(seed)
        self.labels = draw.integers(0, 2, n)
        self.tokens = []
        for label in self.labels:
            length = draw.integers(24, 49)
            low = draw.random(length) < (0.8 if label else 0.2)
            self.tokens.append(np.where(low, draw.integers(5, 500, length), draw.integers(500, 1_000, length)).tolist())

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        tokens = self.tokens[index]
        return {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": int(self.labels[index])}


class Padding:
    """A batch of the length of its longest sequence."""

    def __call__(self, rows):
        longest = max(len(row["input_ids"]) for row in rows)
        batch = {
            name: torch.tensor([row[name] + [0] * (longest - len(row[name])) for row in rows])
            for name in ("input_ids", "attention_mask")
        }
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


def accuracy(evaluated):
    return {"accuracy": float((evaluated.predictions.argmax(axis=1) == evaluated.label_ids).mean())}


def main():
    model_args, args = HfArgumentParser((ModelArguments, Arguments)).parse_args_into_dataclasses()
    set_seed(args.seed)
    config = BertConfig(
        vocab_size=1_000,
        hidden_size=model_args.hidden_size,
        num_hidden_layers=model_args.layers,
        num_attention_heads=4,
        intermediate_size=model_args.hidden_size * 4,
        max_position_embeddings=64,
    )
    trainer = Trainer(
        model=BertForSequenceClassification(config),
        args=args,
        train_dataset=Sentences(model_args.samples, seed=1),
        eval_dataset=Sentences(model_args.samples // 10, seed=2),
        data_collator=Padding(),
        compute_metrics=accuracy,
    )
    began = time.perf_counter()
    result = trainer.train()
    print(f"{result.global_step} steps in {time.perf_counter() - began:.2f} s")
    print(f"training loss {result.training_loss:.4f}, evaluated: {trainer.evaluate()}")
    trainer.save_model()


if __name__ == "__main__":
    main()
