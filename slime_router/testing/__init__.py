"""What tests of the router, and of plug-ins for it, need: a worker without a model."""

from slime_router.testing.controls import Received
from slime_router.testing.fake_worker import FakeWorker
from slime_router.testing.script import Script

__all__ = ["FakeWorker", "Received", "Script"]
