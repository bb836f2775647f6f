from tests.contract.promises import *  # noqa: F403
