"""Code that all pre-trainings share: training loop, run folders, distributed training, scores."""
