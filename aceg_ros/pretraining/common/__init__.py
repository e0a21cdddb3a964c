# SPDX-License-Identifier: Apache-2.0
"""Code that all pre-trainings share: training loop, run folders, distributed training, scores."""
