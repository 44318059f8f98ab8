"""zoo under Lightning's own command line: every argument of the Trainer, the module and the data.

python examples/lightning_cli.py fit --model.model vit-tiny --data.data digits --trainer.max_epochs 1
python examples/lightning_cli.py fit --config examples/lightning_cli.yaml
"""

from __future__ import annotations

from lightning.pytorch.cli import LightningCLI

from zoo.training import DataModule, ZooModule

if __name__ == "__main__":
    LightningCLI(ZooModule, DataModule, seed_everything_default=0)
