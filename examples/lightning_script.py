"""zoo in a Lightning script of one's own: your Trainer, your callbacks, our model, task and data.

Run it with `python examples/lightning_script.py [epochs]`; it needs the extra `train` and takes a minute.
"""

from __future__ import annotations

import sys

import lightning
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint

import zoo
from zoo.training import DataModule, ZooModule


def main(epochs: int = 20) -> None:
    """Trains a small ViT on handwritten digits and reads it back."""
    lightning.seed_everything(0)
    images = {"image_size": 8, "patch_size": 2, "channels": 1, "position": {"type": "learned", "std": 0.5}}
    model = zoo.build("vit-tiny", {"embedding": images, "stack.depth": 2, "head.classes": 10})
    module = ZooModule(
        model,
        task={"type": "classification", "label_smoothing": 0.1},
        optimizer={"name": "adamw", "lr": 1e-3, "warmup": 0.1, "schedule": "cosine"},
    )
    data = DataModule({"type": "digits", "validation": 0.1, "shift": 0.7, "rotation": 15})
    best = ModelCheckpoint("lightning-script", filename="best", monitor="validation_accuracy", mode="max")
    trainer = lightning.Trainer(
        max_epochs=epochs,
        callbacks=[best, LearningRateMonitor()],
        accelerator="cpu",
        gradient_clip_val=1.0,
        log_every_n_steps=5,
    )
    trainer.fit(module, data)
    accuracy = trainer.test(module, data, ckpt_path="best", weights_only=True)[0]["test_accuracy"]
    print(f"accuracy on the test part: {accuracy:.3f}")

    again = zoo.load(best.best_model_path)  # without any code of the training
    print(f"{best.best_model_path}: {again.num_parameters():,} parameters")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
