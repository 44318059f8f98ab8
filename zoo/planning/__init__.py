"""What a training step needs of each device, before there is a device: memory, communication, the micro-batch that fits."""
