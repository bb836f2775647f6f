"""What every app must keep. ``tests/contract/test_<app>.py`` takes all of them in, so that one process asks them of one app."""

from tests.contract.promises.bad_inputs import *  # noqa: F403
from tests.contract.promises.geometry import *  # noqa: F403
from tests.contract.promises.help import *  # noqa: F403
from tests.contract.promises.moving import *  # noqa: F403
from tests.contract.promises.notebook import *  # noqa: F403
from tests.contract.promises.published import *  # noqa: F403
from tests.contract.promises.resuming import *  # noqa: F403
from tests.contract.promises.same_answer import *  # noqa: F403
from tests.contract.promises.training import *  # noqa: F403
