"""Crashes while it imports."""

import torch  # noqa: F401
import torchvison  # noqa: F401  # misspelled
