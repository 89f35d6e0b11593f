"""A LightningModule and its Trainer: validation, checkpoints, a logger and a scheduler that steps with each batch.

python lightning_module.py --max-epochs 2 --limit-train-batches 50
"""

import argparse
import time

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Tones(L.LightningDataModule):
    """Short sounds, each of one of eight pitches under noise."""

    def __init__(self, samples, batch_size, num_workers):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage=None):
        draw = torch.Generator().manual_seed(0)
        n = self.hparams.samples
        pitch = torch.randint(8, (n,), generator=draw)
        phase = torch.rand(n, 1, generator=draw) * 6.28
        sound = torch.sin(torch.arange(256) * (0.1 + 0.05 * pitch.unsqueeze(1)) + phase)
        sound = sound + torch.randn(n, 256, generator=draw) * 2
        whole = TensorDataset(sound.unsqueeze(1), pitch)
        self.train, self.valid = torch.utils.data.random_split(whole, [0.9, 0.1], draw)

    def train_dataloader(self):
        return DataLoader(self.train, self.hparams.batch_size, shuffle=True, num_workers=self.hparams.num_workers)

    def val_dataloader(self):
        return DataLoader(self.valid, self.hparams.batch_size, num_workers=self.hparams.num_workers)


class PitchFinder(L.LightningModule):
    def __init__(self, width, lr):
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Conv1d(1, width, 9, stride=2), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Conv1d(width, width, 9, stride=2), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Conv1d(width, width * 2, 9, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width * 2, 8),
        )  # fmt: skip

    def forward(self, sounds):
        return self.network(sounds)

    def training_step(self, batch, batch_idx):
        sounds, pitches = batch
        loss = F.cross_entropy(self(sounds), pitches)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        sounds, pitches = batch
        scores = self(sounds)
        self.log("val_loss", F.cross_entropy(scores, pitches), prog_bar=True)
        self.log("val_accuracy", (scores.argmax(dim=1) == pitches).float().mean(), prog_bar=True)

    def on_validation_epoch_end(self):
        measured = self.trainer.callback_metrics
        self.print(f"\nepoch {self.current_epoch} val loss {measured['val_loss']:.4f}")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-epochs", type=int, default=8)
    parser.add_argument("--limit-train-batches", type=int)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--precision", default="32-true")
    args = parser.parse_args()

    L.seed_everything(7)
    trainer = L.Trainer(
        max_epochs=args.max_epochs,
        limit_train_batches=args.limit_train_batches,
        precision=args.precision,
        accelerator="auto",
        devices=1,
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        logger=CSVLogger("logs", name="pitch"),
        callbacks=[ModelCheckpoint(monitor="val_loss"), LearningRateMonitor()],
    )
    began = time.perf_counter()
    trainer.fit(PitchFinder(args.width, args.lr), datamodule=Tones(args.samples, args.batch_size, args.num_workers))
    print(f"{trainer.global_step} steps in {time.perf_counter() - began:.2f} s")
    print(f"best model: {trainer.checkpoint_callback.best_model_path}")


if __name__ == "__main__":
    main()
