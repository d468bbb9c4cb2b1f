"""SIGHUP reads the settings again, and applies those that can change while the server runs."""

from collections.abc import Callable
from typing import Generic, TypeVar

import anyio.to_thread

from frontends.access.control import Access
from frontends.logs.operator_log import say, set_level
from frontends.net.file_watch import MAX_CHARACTERS
from frontends.options.changes import changes, with_options
from frontends.options.definitions import key_of
from frontends.program.settings import ProgramSettings

Settings = TypeVar("Settings", bound=ProgramSettings)
# A change of these may need another admission policy, which would not know the running requests.
CHOOSE_POLICY = frozenset({"slo_ttft", "slo_tpot", "max_running"})


class LiveSettings(Generic[Settings]):
    """The settings of a running server.

    Args:
        current: the settings of the start.
        read: reads the settings again. Raises ConfigurationError.

    Attributes:
        current: the settings in force.
    """

    def __init__(self, current: Settings, read: Callable[[], Settings]) -> None:
        self.current = current
        self._read = read

    async def reload(self, access: Access, apply: Callable[[Settings], None]) -> None:
        """Read the settings again, `apply` those that can change, and log each change.

        An error changes nothing. The values of options that need a restart are not logged, because
        they may contain a password.
        """
        try:
            found = await anyio.to_thread.run_sync(self._read, abandon_on_cancel=True)
            found.check(access)
            taken = _reloadable(self.current, found, access)
            apply(taken)
        except Exception as error:  # No content of a file may stop the server.
            say(f"reload    no setting changed: {(str(error) or type(error).__name__)[:MAX_CHARACTERS]}")
            return
        before, self.current = self.current, taken
        set_level(taken.log.log_level)
        for change in changes(before, taken):
            say(f"reload    {change}")
        if later := [key_of(change.name) for change in changes(taken, found)]:
            say(f"reload    needs a restart: {', '.join(later)}")


def _reloadable(old: Settings, new: Settings, access: Access) -> Settings:
    """Return the old settings with those new values that can be applied now."""
    names = {change.name for change in changes(old, new) if change.described.reloads}
    taken = with_options(old, new, names)
    if len({_policy(settings, access) for settings in (old, new, taken)}) > 1:
        taken = with_options(old, new, names - CHOOSE_POLICY)
    return taken


def _policy(settings: ProgramSettings, access: Access) -> str:
    config = settings.manager_config(access)
    return config.admission.policy_for(config.slo)
