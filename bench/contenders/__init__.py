"""What mmebm is measured against: plain PyTorch, torch.compile, other libraries and the machine's limits."""
