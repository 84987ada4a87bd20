"""What several test files share: the devices to test on, and sample inputs."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("same", derandomize=True)  # a run tests what the one before it did
settings.load_profile("same")

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same weights and images in every run."""
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device there is."""
    return torch.device(request.param)
