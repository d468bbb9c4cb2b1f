"""Makes a manager out of settings: the only place where a server's parts are put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs

from frontends.access.control import Access
from frontends.program.settings import ServerSettings
from frontends.program.telemetry import telemetry
from llmserve import EngineManager, ManagerConfig, RestartConfig
from llmserve.admission import Admission


@attrs.frozen
class Service:
    """What a server serves.

    Attributes:
        manager: the manager of the engine, which the caller enters and leaves.
        name: the model's name in requests and responses.
        access: the API keys and the tenants' limits.
    """

    manager: EngineManager
    name: str
    access: Access


@asynccontextmanager
async def open_service(
    settings: ServerSettings, access: Access, *, admission: Admission | None = None, restart: RestartConfig | None = None
) -> AsyncIterator[Service]:
    """Yield a service whose engine is not started; at the end flush its telemetry.

    Args:
        settings: the settings of the server.
        access: the files of keys and tenants, which the caller has read with `open_access`.
        admission: decides which requests run; None uses the settings.
        restart: replaces the restarts of the settings.

    Raises:
        ConfigurationError: an argument of the engine or a limit is invalid; the message names it.
    """
    engine, args, config = settings.engine, settings.engine_args(), _config(settings, access, restart)
    async with telemetry(settings) as tracer:
        manager = EngineManager.open(
            engine.model,
            engine=engine.kind,
            engine_args=args,
            engines=engine.number(args),
            config=config,
            tracer=tracer,
            admission=admission,
        )
        if tracer is not None:
            tracer.observe(manager.statistics)
        yield Service(manager, engine.name, access)


def reconfigure(service: Service, settings: ServerSettings, restart: RestartConfig | None = None) -> None:
    """Apply the settings that can change while the service runs; `restart` is as for `open_service`.

    Raises ConfigurationError.
    """
    service.access.set_tenant_limit(settings.limits.tenant_limit)
    service.manager.reconfigure(_config(settings, service.access, restart))


def _config(settings: ServerSettings, access: Access, restart: RestartConfig | None) -> ManagerConfig:
    config = settings.manager_config(access)
    return config if restart is None else attrs.evolve(config, restart=restart)
